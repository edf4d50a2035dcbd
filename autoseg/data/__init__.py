"""Folders of labelled volumes: what is in them, what is wrong with them, and how they are split."""
