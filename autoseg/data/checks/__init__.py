"""What is wrong with a dataset: every fault of every file, and cases unlike the others."""

from autoseg.data.checks.check import check_dataset, check_images, examine_dataset, require_clean

__all__ = ["check_dataset", "check_images", "examine_dataset", "require_clean"]
