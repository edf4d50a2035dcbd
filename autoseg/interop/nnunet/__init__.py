"""nnU-Net v2: its checkpoints, names and plans."""
