"""From a folder of labelled volumes to a trained, cross-validated segmentation model."""

__version__ = "0.1.0"
