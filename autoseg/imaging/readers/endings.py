"""Names of image files: what their endings say, and what is left without them."""

from __future__ import annotations

from pathlib import Path

IMAGE_ENDINGS = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".seg.nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".gipl",
    ".gipl.gz",
    ".dcm",
    ".tif",
    ".tiff",
    ".png",
    ".bmp",
    ".jpg",
    ".jpeg",
)
"""Endings of single image files, lower case, with the dot. DICOM series are folders."""
NRRD = (".nrrd", ".seg.nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
NIFTI = (".nii.gz", ".nii")
PICTURE_ENDINGS = (".tif", ".tiff", ".png", ".bmp", ".jpg", ".jpeg")
"""Formats without a place in the world: no orientation, spacing 1; resolution tags there are rarely true."""
FLAT = (".png", ".bmp", ".jpg", ".jpeg")
"""Formats that hold one slice of whole numbers from 0 upwards."""
DETACHED = (".nhdr", ".mhd")
"""Headers whose voxels lie in a file of their own."""
LOSSY = (".jpg", ".jpeg")


def image_ending(path: Path | str) -> str:
    """The ending of an image file's name, lower case, ``.nii.gz`` as one; empty if it is none of `IMAGE_ENDINGS`."""
    name = Path(path).name.lower()
    fitting = [ending for ending in IMAGE_ENDINGS if name.endswith(ending) and name != ending]
    return max(fitting, key=len, default="")


def image_stem(path: Path | str) -> str:
    """The name of an image file without its ending (``la_003`` of ``la_003.nii.gz``); other names whole."""
    name = Path(path).name
    ending = image_ending(name)
    return name[: -len(ending)] if ending else name
