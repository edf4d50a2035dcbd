"""Training: patches, augmentation, losses, the loop, one fold. Knows no image formats."""
