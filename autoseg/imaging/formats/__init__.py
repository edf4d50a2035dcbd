"""The door to image files: everything that knows SimpleITK, nibabel and pydicom lies behind it."""

from autoseg.imaging.formats.dicom import is_dicom_series
from autoseg.imaging.formats.endings import IMAGE_ENDINGS, image_ending, image_stem
from autoseg.imaging.formats.header import ImageHeader
from autoseg.imaging.formats.reading import read_header, read_label_map, read_volume
from autoseg.imaging.formats.writing import write_label_map, write_volume

__all__ = [
    "IMAGE_ENDINGS",
    "ImageHeader",
    "image_ending",
    "image_stem",
    "is_dicom_series",
    "read_header",
    "read_label_map",
    "read_volume",
    "write_label_map",
    "write_volume",
]
