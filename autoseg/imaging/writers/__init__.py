"""The door to DICOM objects that are written: segmentations (highdicom) and structure sets (pydicom) of the series they were predicted from."""

from autoseg.imaging.writers.maker import DrawnClass, Maker
from autoseg.imaging.writers.objects import KINDS, Kind, parse_kind, require_classes, require_source, write_object

__all__ = ["KINDS", "DrawnClass", "Kind", "Maker", "parse_kind", "require_classes", "require_source", "write_object"]
