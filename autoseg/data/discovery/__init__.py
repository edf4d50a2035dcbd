"""From a folder to a dataset: which layout it has, its cases, channels and classes."""

from autoseg.data.discovery.discover import discover_dataset

__all__ = ["discover_dataset"]
