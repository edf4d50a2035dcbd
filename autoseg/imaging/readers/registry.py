"""Image formats: how files of each are recognised, read and written. Installed packages can add formats.

An own format is one module with a `Format` and one line in `FORMATS`; other packages name theirs in an entry point of the group
``autoseg.readers``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.header import ImageHeader, damaged, unsupported
from planners import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One image format. All functions raise `AutosegError` for files that are damaged or use what is not supported."""

    endings: tuple[str, ...]
    """Lower case, with the dot."""
    read_header: Callable[[Path], ImageHeader]
    read_voxels: Callable[[Path], NDArray[Any]]
    """(C, Z, Y, X) in the type of the file; at least the channels that the header counts, those first."""
    read_labels: Callable[[Path], NDArray[Any]] | None = None
    """As ``read_voxels``, where a label map is not what an image is: indices of a palette, not its colours."""
    write: Callable[[Path, NDArray[Any], Geometry], None] | None = None
    """Writes an array (Z, Y, X); the file may be left half written when it raises."""
    magic: tuple[bytes, ...] = ()
    """One of these begins every file; none: not checked before reading."""
    voxel_file: Callable[[Path], Path] | None = None
    """The file with the voxels, where the header may lie in a file of its own."""
    is_picture: bool = False
    """Stores no place in the world: no orientation, and a spacing of 1 whatever its resolution tags say."""
    is_flat: bool = False
    """Holds one slice of whole numbers from 0 upwards."""


_OWN = "autoseg.imaging.readers"
FORMATS: Registry[Format] = Registry(
    group="autoseg.readers",
    noun="image format",
    own={
        "nifti": f"{_OWN}.nifti:NIFTI",
        "nrrd": f"{_OWN}.nrrd:NRRD",
        "metaimage": f"{_OWN}.metaimage:METAIMAGE",
        "gipl": f"{_OWN}.itk:GIPL",
        "dicom": f"{_OWN}.dicom_series:DICOM",
        "tiff": f"{_OWN}.pictures:TIFF",
        "png": f"{_OWN}.pictures:PNG",
        "bmp": f"{_OWN}.pictures:BMP",
        "jpeg": f"{_OWN}.itk:JPEG",
    },
)


@lru_cache(1)
def formats_by_ending() -> dict[str, Format]:
    """All installed formats by ending, the product's own first; they cannot be replaced."""
    found: dict[str, Format] = {}
    for name in FORMATS.names():
        image_format = FORMATS.get(name)
        found = {ending: image_format for ending in image_format.endings} | found
    return found


def image_endings() -> tuple[str, ...]:
    """Endings of single image files, lower case, with the dot. DICOM series are folders."""
    return tuple(formats_by_ending())


def image_ending(path: Path | str) -> str:
    """The ending of an image file's name, lower case, ``.nii.gz`` as one; empty if no installed format has it."""
    name = Path(path).name.lower()
    fitting = [ending for ending in formats_by_ending() if name.endswith(ending) and name != ending]
    return max(fitting, key=len, default="")


def image_stem(path: Path | str) -> str:
    """The name of an image file without its ending (``la_003`` of ``la_003.nii.gz``); other names whole."""
    name = Path(path).name
    ending = image_ending(name)
    return name[: -len(ending)] if ending else name


def is_picture(path: Path | str) -> bool:
    """Whether the ending is that of a format without a place in the world, such as PNG or TIFF."""
    ending = image_ending(path)
    return bool(ending) and formats_by_ending()[ending].is_picture


def format_of(path: Path) -> Format:
    """The format that the ending of ``path`` names. Raises `AutosegError` where none does, or where the file begins otherwise."""
    ending = image_ending(path)
    if not ending:
        known = ", ".join(formats_by_ending())
        raise unsupported(
            path, message="its ending is not that of an image format", fix=f"give a file that ends in one of {known}"
        )
    found = formats_by_ending()[ending]
    if found.magic:
        with open(path, "rb") as file:
            begin = file.read(max(map(len, found.magic)))
        if not begin.startswith(found.magic):
            raise damaged(path, code="reader.unknown_format", message=f"it does not begin as a {ending} file")
    return found
