"""A service over HTTP: volumes in, segmentations out, by models that stay loaded."""
