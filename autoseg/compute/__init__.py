"""Running work: independent jobs on cores, and locks between processes."""
