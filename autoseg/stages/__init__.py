"""The stages from a folder of labelled volumes to a report, one file each."""
