"""nnU-Net v2: its checkpoints, models and plans."""
