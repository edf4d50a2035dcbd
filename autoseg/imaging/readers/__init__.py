"""The door to image files: everything that knows SimpleITK, nibabel and pydicom is behind it.

What is read is named by a path. Most often that is a file. A DICOM series is named by its folder; where a folder holds
several, by the folder, ``#`` and the SeriesInstanceUID (``scan/dicom#1.2.840.113``); `list_series` gives these names.
``cine.nii.gz#frame3`` is the third volume of a file with a fourth axis. ``pet.nii.gz#resampled`` is a channel that is brought onto the grid of the first one. A
file of segments, DICOM SEG, RTSTRUCT or ``.seg.nrrd``, is one label map with the numbers of its segments; where they overlap, or where
one is wanted alone, ``seg.dcm#3`` is the mask (0 and 1) of segment 3, and `read_segments` gives all with their names and
numbers. Its grid may be a part of the image's (``may_be_part``): `autoseg.imaging.orientation.align_label_map` places it.
"""

from autoseg.imaging.image import Segment, Segmentation, SegmentNames
from autoseg.imaging.readers.dicom import PART_MARK, dicom_candidates, is_dicom, series_uid, split_part
from autoseg.imaging.readers.dicom_seg import is_structure_set, referenced_series
from autoseg.imaging.readers.dicom_series import SeriesName, is_dicom_series, list_series
from autoseg.imaging.readers.header import ImageHeader, printable, require_text
from autoseg.imaging.readers.nifti import write_shares
from autoseg.imaging.readers.objects import Imagelike, as_image
from autoseg.imaging.readers.reading import (
    file_states,
    files_of,
    frame_path,
    is_resampled,
    is_segmentation,
    list_segments,
    read_header,
    read_image,
    read_label_map,
    read_segments,
    resampled_paths,
    split_frame,
)
from autoseg.imaging.readers.registry import (
    FORMATS,
    WAYS_OUT,
    Format,
    image_ending,
    image_endings,
    image_stem,
    is_debris,
    is_flat,
    is_lossy,
    is_picture,
    prediction_ending,
    writable_ending,
    write_image,
    write_label_map,
    write_masks,
)
from autoseg.imaging.readers.stacks import in_slice_order, is_picture_stack, slice_count, slices_by_name

__all__ = [
    "FORMATS",
    "PART_MARK",
    "WAYS_OUT",
    "Format",
    "ImageHeader",
    "Imagelike",
    "Segment",
    "SegmentNames",
    "Segmentation",
    "SeriesName",
    "as_image",
    "dicom_candidates",
    "file_states",
    "files_of",
    "frame_path",
    "image_ending",
    "image_endings",
    "image_stem",
    "in_slice_order",
    "is_debris",
    "is_dicom",
    "is_dicom_series",
    "is_flat",
    "is_lossy",
    "is_picture",
    "is_picture_stack",
    "is_resampled",
    "is_segmentation",
    "is_structure_set",
    "list_segments",
    "list_series",
    "prediction_ending",
    "printable",
    "read_header",
    "read_image",
    "read_label_map",
    "read_segments",
    "referenced_series",
    "require_text",
    "resampled_paths",
    "series_uid",
    "slice_count",
    "slices_by_name",
    "split_frame",
    "split_part",
    "writable_ending",
    "write_image",
    "write_label_map",
    "write_masks",
    "write_shares",
]
