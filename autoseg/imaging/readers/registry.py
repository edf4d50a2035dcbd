"""The formats by the endings of their files, and writing images and label maps so that they lie where their source lies."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.header import ImageHeader, damaged, reader_error, require_text, unsupported
from autoseg.issues import AutosegError
from autoseg.storage.atomic import sync_folder, temporary_folder, write_error
from planners import Registry

LABEL_TYPES = (np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.int64)
NEAREST = {**dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ".png"), ".seg.nrrd": ".nrrd"}
"""For label maps: JPEG changes values, and files of segments name them."""
LONGEST_MAGIC = 64
BY_NIBABEL = 'convert {}, e.g. with nibabel: nibabel.save(nibabel.load(file), "a.nii.gz")'
AS_ARRAY = 'save the arrays of {} as NIfTI: nibabel.save(nibabel.Nifti1Image(array, affine), "a.nii.gz")'
AS_PNG = "convert {} to PNG"
AS_TIFF = "export {} as TIFF"
UNPACK = "unpack {}, or pack with gzip (.nii.gz)"
WAYS_OUT = {
    **dict.fromkeys((".mgz", ".mgh", ".img", ".hdr", ".mnc", ".par", ".rec", ".head", ".brik", ".vtk"), BY_NIBABEL),
    **dict.fromkeys((".npz", ".npy", ".h5", ".hdf5", ".mat", ".zarr", ".n5", ".pt", ".pkl"), AS_ARRAY),
    **dict.fromkeys((".nii.zst", ".nii.bz2", ".nii.xz", ".nii.zip"), UNPACK),
    **dict.fromkeys((".webp", ".gif", ".heic", ".avif", ".jp2", ".jxl", ".ppm", ".pgm"), AS_PNG),
    **dict.fromkeys((".czi", ".lif", ".lsm", ".nd2", ".oib", ".svs", ".ndpi", ".mrxs", ".scn", ".vsi"), AS_TIFF),
}
"""What to do with files of formats that are not read, by ending; ``{}`` stands for them."""
OTHER_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of Git LFS, whose content was not fetched", "fetch it (git lfs pull)"),
    (
        b"/annex/objects/",
        "a pointer of git-annex, whose content was not fetched",
        "fetch it (datalad get, git annex get)",
    ),
    (b"<!DOCTYPE", "a web page", "download it again"),
    (b"<html", "a web page", "download it again"),
    (b"<?xml", "an XML document", "download it again"),
    (b"PK\3\4", "a zip archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard", "unpack it"),
    (b"BZh", "packed with bzip2", "unpack it"),
    (b"\xfd7zXZ", "packed with xz", "unpack it"),
    (b"RIFF", "a WebP picture", AS_PNG.format("it")),
    (b"GIF8", "a GIF picture", AS_PNG.format("it")),
    (b"\x89HDF", "an HDF5 file", AS_ARRAY.format("it")),
)
"""First bytes of files that are no image, whatever their ending: what they are, and what to do."""


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
    write_plain: Callable[[Path, NDArray[Any], Geometry], None] | None = None
    """As ``write``, without compression, where files of this format are compressed otherwise."""
    write_like: Callable[[Path, NDArray[Any], Geometry, Path | None, str], None] | None = None
    """As ``write``, with a description, and all that a file of this format on the same grid, if there is one, says of its place."""
    magic: tuple[bytes, ...] = ()
    """One of these begins every file; none: not checked before reading."""
    voxel_file: Callable[[Path], Path] | None = None
    """The file with the voxels, where the header may lie in a separate file."""
    is_picture: bool = False
    """Stores no place in the world: no orientation, and a spacing of 1 whatever its resolution tags say."""
    is_flat: bool = False
    """Holds one slice of whole numbers from 0 upwards."""
    is_lossy: bool = False
    """Does not keep values exactly."""


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
        "jpeg": f"{_OWN}.pictures:JPEG",
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


DEBRIS = re.compile(
    r"(?i)\..*|@(?:eadir|tmp|recycle|recently-snapshot|syno.*)|#(?:recycle|snapshot)|\$recycle\.bin|__macosx|lost\+found|"
    r"system volume information|thumbs\.db|desktop\.ini|~\$.*|.*[:\uf03a]zone\.identifier"
)
"""Hidden names, and what file servers (Synology, QNAP, NetApp) and systems put beside files: previews, bins, copies, notes."""


def is_debris(path: Path | str) -> bool:
    """Whether the name of a file or folder is one that systems give, so that nobody means it for an image."""
    return DEBRIS.fullmatch(_name(path)) is not None


def _name(path: Path | str) -> str:
    """The last part of a path; a text without separators is one already, which thousands of listed files are."""
    return path if isinstance(path, str) and "/" not in path and "\\" not in path else Path(path).name


def image_ending(path: Path | str) -> str:
    """The ending of an image file's name, lower case, ``.nii.gz`` as one; empty if no installed format has it."""
    name = _name(path).lower()
    return max((end for end in formats_by_ending() if name.endswith(end) and name != end), key=len, default="")


def image_stem(path: Path | str) -> str:
    """The name of an image file without its ending (``la_003`` of ``la_003.nii.gz``); other names whole."""
    name = _name(path)
    return name[: len(name) - len(image_ending(name))]


def is_picture(path: Path | str) -> bool:
    """Whether the ending is that of a format without a place in the world, such as PNG or TIFF."""
    found = formats_by_ending().get(image_ending(path))
    return found is not None and found.is_picture


def is_lossy(path: Path | str) -> bool:
    """Whether the ending is that of a format that changes values, so that it cannot hold labels exactly: JPEG."""
    found = formats_by_ending().get(image_ending(path))
    return found is not None and found.is_lossy


def is_flat(path: Path | str) -> bool:
    """Whether the ending is that of a format for one slice, such as PNG."""
    found = formats_by_ending().get(image_ending(path))
    return found is not None and found.is_flat


def format_of(path: Path) -> Format:
    """The format that the ending of ``path`` names. Raises `AutosegError` where none does, or where the file begins otherwise."""
    ending, known = image_ending(path), formats_by_ending()
    if not ending:
        fix = way_out(path).format("it") or f"use a file that ends in one of {', '.join(known)}"
        raise unsupported(path, message="its ending is not that of an image format", fix=fix)
    with open(path, "rb") as file:
        head = file.read(LONGEST_MAGIC)
    for begin, what, fix in OTHER_BEGINNINGS:
        if head.lower().startswith(begin.lower()):
            raise unsupported(path, code="reader.unknown_format", message=f"it is {what}", fix=fix)
    if head.startswith(known[ending].magic or b""):
        return known[ending]
    other = next((end for end, each in known.items() if each.magic and head.startswith(each.magic)), "")
    if other:
        message, fix = f"it begins as a {other} file does", f"rename it to {image_stem(path)}{other}"
        raise unsupported(path, code="reader.unknown_format", message=message, fix=fix)
    raise damaged(path, code="reader.unknown_format", message=f"it is not a {ending} file")


def way_out(path: Path | str) -> str:
    """What to do with a file of a format that is not read, ``{}`` standing for it, by its ending; empty where that says nothing."""
    name = Path(path).name.lower()
    return "" if image_ending(path) else next((fix for end, fix in WAYS_OUT.items() if name.endswith(end)), "")


def writable_ending(label_ending: str) -> str:
    """The ending itself, or the nearest one that label maps can be written with (PNG for JPEG, NIfTI for DICOM)."""
    ending = NEAREST.get(label_ending, label_ending)
    return ending if ending in _writable() else ".nii.gz"


def _writable() -> list[str]:
    return [
        ending for ending, found in formats_by_ending().items() if found.write is not None and ending not in NEAREST
    ]


def prediction_ending(image: Path | str, geometry: Geometry, label_ending: str) -> str:
    """The ending for a label map of ``image``: that of the dataset's label files where it can hold the image's grid.

    Otherwise, for a PNG, TIFF or BMP image its own, for a JPEG image PNG, for all others (DICOM among them) NIfTI.
    """
    ending = writable_ending(label_ending)
    holds_slices = geometry.shape[0] == 1 or not is_flat(f"a{ending}")
    if is_picture(f"a{ending}") == (is_picture(image) or not geometry.has_orientation) and holds_slices:
        return ending
    return writable_ending(image_ending(image)) if is_picture(image) else ".nii.gz"


def write_label_map(
    path: Path | str,
    array: NDArray[Any],
    geometry: Geometry,
    *,
    source: Path | str | None = None,
    compressed: bool = True,
    description: str = "",
) -> None:
    """Write integers ``array`` (Z, Y, X) with the geometry of its source, in the format that the ending says.

    The smallest integer type that holds all values is used; what was 2D is written 2D. Where image and label map are NIfTI, both
    transforms are those of the file ``source``; NIfTI files keep 79 characters of the ``description``. MetaImage files can be written without compression. The file appears whole or not at all. Raises `AutosegError` when the format cannot hold the values or the shape, or the file cannot be written.
    """
    low, high = int(array.min()), int(array.max())
    kind = next(k for k in LABEL_TYPES if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    if is_flat(path) and kind not in (np.uint8, np.uint16):
        raise _cannot_hold(path, f"{image_ending(path)} files cannot hold label values from {low} to {high}")
    source = None if source is None else Path(source)
    array = array.astype(kind, copy=False)
    _write(Path(path), array, geometry, source, compressed=compressed, description=description)


def write_image(path: Path | str, array: NDArray[Any], geometry: Geometry) -> None:
    """Write intensities ``array`` (Z, Y, X) as float32 with the geometry of their source; else like `write_label_map`."""
    if is_flat(path):
        raise _cannot_hold(path, f"{image_ending(path)} files cannot hold fractions")
    _write(Path(path), array.astype(np.float32, copy=False), geometry)


def write_masks(path: Path | str, masks: NDArray[Any], geometry: Geometry) -> None:
    """Write ``masks`` (N, Z, Y, X) of 0 and 1 as one MetaImage of bytes with four axes; else like `write_label_map`."""
    if image_ending(path) != ".mha":
        raise _cannot_hold(path, f"{image_ending(path)} files are not written with four axes", "use .mha")
    _write(Path(path), masks.astype(np.uint8), geometry)


def _cannot_hold(path: Path | str, message: str, fix: str = "use .nii.gz") -> AutosegError:
    return reader_error(path, code="reader.not_written", message=message, fix=fix)


def _write(
    path: Path,
    array: NDArray[Any],
    geometry: Geometry,
    source: Path | None = None,
    *,
    compressed: bool = True,
    description: str = "",
) -> None:
    require_text([path])  # ITK would end the process
    ending = image_ending(path)
    target = formats_by_ending()[ending] if ending in _writable() else None
    if target is None or target.write is None:
        raise _cannot_hold(path, "files with this ending cannot be written", f"use one of {', '.join(_writable())}")
    if array.shape[-3:] != geometry.shape:
        raise ValueError(f"the array has {array.shape} voxels, but the geometry {geometry.shape}")
    if is_flat(path):
        geometry = geometry.model_copy(update={"dimensions": 2})
    if geometry.dimensions == 2 and array.shape[0] != 1:
        raise _cannot_hold(path, f"{ending} files hold one slice, but there are {array.shape[0]}")
    # a folder of its own keeps the file's real name, which formats with a second file for the voxels store inside
    try:
        with temporary_folder(path) as temporary:
            like = source if source is not None and image_ending(source) in target.endings else None
            if target.write_like is not None:
                target.write_like(temporary / path.name, array, geometry, like, description)
            else:
                plain = None if compressed else target.write_plain
                (plain or target.write)(temporary / path.name, array, geometry)
            # flush what was written and give it its place, the file that others look for last
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == path.name):
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(file, path.parent / file.name)
            sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
