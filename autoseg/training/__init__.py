"""Training: patches, augmentation, losses, the loop, one fold. Independent of image formats."""
