"""Reading image files: header, voxels as an image, a label map or segments; and which files that touches."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry, Image, LabelMap, Segmentation, SegmentNames
from autoseg.imaging.readers.dicom import PART_MARK, begins_as_dicom, dicom_candidates, is_dicom, series_uid, split_part
from autoseg.imaging.readers.dicom_seg import (
    dicom_grid,
    dicom_segment_names,
    dicom_segments,
    is_dicom_segmentation,
)
from autoseg.imaging.readers.dicom_series import is_dicom_series, read_series, series_image
from autoseg.imaging.readers.header import (
    LESS_MEMORY,
    ImageHeader,
    damaged,
    reader_error,
    require_memory,
    require_text,
    unreadable,
)
from autoseg.imaging.readers.nrrd import NRRD, has_segments, nrrd_segment_names, nrrd_segments, read_nrrd
from autoseg.imaging.readers.registry import FORMATS, Format, format_of, formats_by_ending, image_ending, is_picture
from autoseg.imaging.readers.stacks import is_picture_stack, stack_header, stacked_pictures
from autoseg.issues import AutosegError

WHOLE = 1e-4
"""Float label files may miss whole numbers by this much: what scaling by a slope in single precision leaves."""
FRAME, RESAMPLED = "frame", "resampled"
SAME_PLACE = 1.0
"""Channels whose corners lie within this many voxels of each other are on one grid; headers round differently."""


def read_header(path: Path | str) -> ImageHeader:
    """What the header of ``path`` says, without reading voxels; ``path`` is a file, or a folder with one DICOM series.

    Of ``FILE#frame3`` that of the third volume. Raises `AutosegError` that names the file and the cause when it is
    missing, damaged, or no image.
    """
    path, frame = split_frame(_without_mark(Path(path)))
    if frame is not None:
        return _of_frame(path, read_header(path), frame)
    with _reading(path):
        if is_picture_stack(path):
            return stack_header(path)
        if path.is_dir() or is_dicom_series(path):
            return read_series(path).header
        if not is_segmentation(path):
            return _format(path).read_header(path)
        file, _ = split_part(path)
        header = read_nrrd(file).header if _is_nrrd(file) else dicom_grid(file)
        return replace(header, num_channels=1, is_integer=True, may_be_part=True)


def read_image(paths: Path | str | Sequence[Path | str]) -> Image:
    """The image of one case, float32 (C, Z, Y, X): one file per channel, or one file (or DICOM folder) with all.

    Channels follow the order of ``paths``, then that inside a file (fourth axis, or colours). The geometry is that of
    the first file. Channels of `resampled_paths` are brought onto its grid, linearly in the world. Raises `AutosegError`
    when a file cannot be read, or when other files lie on different grids.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    if not paths:
        raise reader_error("", code="reader.no_input", message="no image file was given", fix="pass at least one")
    parts = [_read(Path(path)) for path in paths]
    first = parts[0][0].geometry
    for i, (path, (header, array)) in enumerate(zip(paths, parts, strict=True)):
        if i and is_resampled(path):
            parts[i] = (header, _onto(Path(path), array, header.geometry, first))
        elif i:
            _check_same_grid(Path(paths[0]), first, Path(path), header.geometry)
    with np.errstate(over="ignore"):  # values beyond single precision become infinite, which checks then name
        arrays = [np.ascontiguousarray(array, dtype=np.float32) for _, array in parts]
    return Image(
        array=arrays[0] if len(arrays) == 1 else np.concatenate(arrays),
        geometry=first,
        notes=tuple(note for header, _ in parts for note in header.notes),
        modality=tuple(header.modality for header, array in parts for _ in array)
        if any(header.modality for header, _ in parts)
        else (),
    )


def resampled_paths(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The channels of one image, marked so that `read_image` brings them onto the grid of the first: ``pet.nii.gz#resampled``."""
    marked = (
        each if is_resampled(each) else each.with_name(f"{each.name}{PART_MARK}{RESAMPLED}") for each in paths[1:]
    )
    return (*paths[:1], *marked)


def is_resampled(path: Path | str) -> bool:
    """Whether a path is one of `resampled_paths`."""
    return str(path).endswith(f"{PART_MARK}{RESAMPLED}")


def _without_mark(path: Path) -> Path:
    return Path(str(path).removesuffix(f"{PART_MARK}{RESAMPLED}"))


def _onto(path: Path, array: NDArray[Any], source: Geometry, target: Geometry) -> NDArray[Any]:
    if source == target:
        return array
    from autoseg.imaging.resampling import resample_onto

    require_memory(path, len(array) * math.prod(target.shape) * 4)
    return np.stack([resample_onto(channel, source, target) for channel in array])


def read_label_map(path: Path | str) -> LabelMap:
    """The label map in ``path``: integers (Z, Y, X) with the values of the file.

    Files of floating type are accepted when every value is whole (within 1e-4), and greys stored as colours when the
    three colours are equal. A folder of pictures is a stack in the order of their names. Raises `AutosegError` when values are fractional or not finite, saying which and where,
    when there are several different channels, or when the file is damaged.
    """
    path = Path(path)
    with _reading(path):
        if is_segmentation(path):
            return _segments_label_map(path)
        if is_picture_stack(path):
            grid = stack_header(path).geometry
            require_memory(path, math.prod(grid.shape) * 2)
            slices = [read_label_map(file).array for file in stacked_pictures(path)]
            return LabelMap(array=np.concatenate(slices), geometry=grid)
    header, array = _read(path, as_labels=True)
    if len(array) in (3, 4) and is_picture(path) and (array[1:3] == array[0]).all():
        array = array[:1]
    if len(array) != 1:
        raise reader_error(
            path,
            code="reader.several_channels",
            message=f"it has {len(array)} channels, but a label map has one",
            fix="store one label number per voxel",
        )
    values = array[0]
    if values.dtype.kind not in "iu":
        values = _as_whole(path, values)
    return LabelMap(array=np.ascontiguousarray(values), geometry=header.geometry)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name ``path`` where the system cannot read it or has no memory for it, and where its name is not UTF-8."""
    require_text([path])  # ITK would end the process
    try:
        # nonsense in headers is found by its results
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            yield
    except OSError as error:
        raise unreadable(error.filename or path, error) from None
    except MemoryError:
        raise reader_error(
            path, code="reader.too_large", message="it needs more memory than is available", fix=LESS_MEMORY
        ) from None


def split_frame(path: Path) -> tuple[Path, int | None]:
    """The file of ``FILE#frame3`` and the number of the volume, from 1 along the fourth axis; none where all are meant."""
    file, part = split_part(path)
    return (file, int(part.removeprefix(FRAME))) if part and re.fullmatch(rf"{FRAME}\d+", part) else (path, None)


def frame_path(file: Path, number: int) -> Path:
    """The name of one volume of a file, as `split_frame` splits it."""
    return file.with_name(f"{file.name}{PART_MARK}{FRAME}{number}")


def _of_frame(file: Path, header: ImageHeader, frame: int) -> ImageHeader:
    if not 1 <= frame <= header.num_volumes or header.num_volumes < header.num_channels:
        last = f"{PART_MARK}{FRAME}{header.num_volumes}"
        message, fix = (
            f"it has no volume {frame}",
            f"name one up to {file.name}{last}" if header.num_volumes > 1 else "pass the file itself",
        )
        raise reader_error(file, code="reader.no_such_frame", message=message, fix=fix)
    return replace(header, num_channels=1, num_volumes=1)


def _read(path: Path, *, as_labels: bool = False) -> tuple[ImageHeader, NDArray[Any]]:
    """Header and voxels (C, Z, Y, X) in the type of the file."""
    path, frame = split_frame(_without_mark(path))
    if frame is not None:
        header, voxels = _read(path, as_labels=as_labels)
        return _of_frame(path, header, frame), voxels[frame - 1 : frame]
    with _reading(path):
        if path.is_dir() or is_dicom_series(path):
            header, voxels = series_image(read_series(path), path)
        else:
            found = _format(path)
            header = found.read_header(path)
            voxels = ((as_labels and found.read_labels) or found.read_voxels)(path)
        if voxels.shape[1:] != header.geometry.shape:
            shapes = f"{header.geometry.shape} voxels (z, y, x), but {voxels.shape[1:]} were read"
            raise damaged(path, code="reader.corrupt", message=f"the header declares {shapes}")
        return header, voxels[: header.num_channels]


def _format(path: Path) -> Format:
    """How the file ``path`` is read: DICOM is recognised by content, all others by their ending."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from None
    if size == 0:
        raise damaged(path, code="reader.truncated", message="the file is empty")
    return FORMATS.get("dicom") if is_dicom(path) else format_of(path)


def _check_same_grid(first_path: Path, first: Geometry, path: Path, other: Geometry) -> None:
    """Same shape, and all corners of the grids within one voxel of each other."""
    if first.shape == other.shape:
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(first.shape) - 1)
        apart = (first.affine - other.affine) @ np.column_stack([corners, np.ones(8)]).T
        if np.abs(apart).max() <= SAME_PLACE * min(first.spacing_mm):
            return
    shown = [
        f"{g.shape} voxels of {tuple(round(mm, 4) for mm in g.spacing_mm)} mm (z, y, x) from "
        f"{tuple(round(mm, 4) for mm in g.origin_mm)} mm (x, y, z)"
        for g in (other, first)
    ]
    raise reader_error(
        path,
        code="reader.channel_grids_differ",
        message=f"it has {shown[0]}, but {first_path} of the same image has {shown[1]}",
        fix="resample the channels to one grid, or set resample_channels = true in a spec file of the dataset",
    )


def _as_whole(path: Path, values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Floats as int64 or int32, or an error that says which are not whole."""
    with np.errstate(invalid="ignore"):
        rounded = np.rint(values)
        odd = ~(np.abs(values - rounded) <= WHOLE)
    if odd.any():
        shown = ", ".join(f"{value:g}" for value in np.unique(values[odd])[:5])
        where = tuple(int(i) for i in np.argwhere(odd)[0])
        raise reader_error(
            path,
            code="reader.fractional_labels",
            message=f"{int(odd.sum())} of its values are not whole numbers, such as {shown}, first at {where} (z, y, x)",
            fix="use a label map with one whole number per voxel, not probabilities or an image",
        )
    limit = float(np.abs(rounded).max(initial=0))
    whole: NDArray[np.integer[Any]] = rounded.astype(np.int32 if limit < 2**31 else np.int64)
    return whole


# --- files ---


def files_of(path: Path | str) -> tuple[Path, ...]:
    """The file itself, and the one with its voxels if its header names another; of a series those that reading it looks at, sorted.

    ``FOLDER#UID`` has the files of that series alone. Other files in a folder of slices are ignored; of a folder
    without any, all files are named. A segment of a file stands for the whole. Files that are missing or damaged are named
    too: reading them says what is wrong. Raises `AutosegError` where a folder cannot be listed.
    """
    here, part = split_part(_without_mark(Path(path)))
    if here.is_dir():
        slices = tuple(file for file in dicom_candidates(here) if _counts(file))
        if not slices:
            return tuple(sorted(file for file in here.iterdir() if file.is_file()))
        return (part is not None and tuple(file for file in slices if _is_of_series(file, part))) or slices
    found = formats_by_ending().get(image_ending(here))
    if found is None or found.voxel_file is None:
        return (here,)
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return tuple(dict.fromkeys((here, found.voxel_file(here))))
    except (AutosegError, OSError):
        return (here,)


def _counts(file: Path) -> bool:
    """Whether a candidate is DICOM or makes reading its folder fail: that holds for all that is named .dcm, which is not opened."""
    try:
        return bool(image_ending(file)) or begins_as_dicom(file)
    except OSError:
        return True


def _is_of_series(file: Path, uid: str) -> bool:
    """Whether a slice is of the series ``uid``; one that does not say is of all, for a broken one makes reading any of them fail."""
    try:
        return series_uid(file) in (uid, "")
    except (AutosegError, OSError):
        return True


def file_states(paths: Sequence[Path | str]) -> tuple[tuple[str, int, int], ...]:
    """Path, size and modification time in ns of each of the `files_of` all ``paths``; -1 for what is missing or cannot be listed."""
    states = []
    for path in paths:
        try:
            files = files_of(path)
        except AutosegError:
            files = (Path(path),)
        states += [_state(file) for file in files]
    return tuple(states)


def _state(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return str(file), -1, -1
    return str(file), status.st_size, status.st_mtime_ns


def is_segmentation(path: Path | str) -> bool:
    """Whether ``path`` is a DICOM SEG file or an NRRD file with segments, or names a segment of one (``FILE#NUMBER``).

    A damaged file is none: reading it raises the reason.
    """
    file, _ = split_part(Path(path))
    try:
        return file.is_file() and (has_segments(file) if _is_nrrd(file) else is_dicom_segmentation(file))
    except AutosegError:
        return False


def read_segments(path: Path | str) -> Segmentation:
    """All segments of a DICOM SEG or NRRD file, or the one that ``FILE#NUMBER`` names.

    Fractional segments count from half of the largest fraction on. Raises `AutosegError` when the file is damaged, holds
    no segments, or has no such segment.
    """
    file, part = split_part(Path(path))
    found = nrrd_segments(file) if _is_nrrd(file) else dicom_segments(file)
    if part is None:
        return found
    wanted = tuple(segment for segment in found.segments if str(segment.number) == part)
    if not wanted:
        raise reader_error(
            file,
            code="reader.no_such_segment",
            message=f"it has no segment {part}",
            fix=f"use one of {_listed_segments(file, found)}",
        )
    return replace(found, segments=wanted)


def list_segments(file: Path | str) -> SegmentNames:
    """Names and numbers of the segments of a DICOM SEG or NRRD file; its voxels are not read."""
    file = Path(file)
    return nrrd_segment_names(file) if _is_nrrd(file) else dicom_segment_names(file)


def _segments_label_map(path: Path) -> LabelMap:
    """Segment numbers (Z, Y, X) of a file of segments; of ``FILE#NUMBER`` a mask of 0 and 1.

    Raises `AutosegError` when segments overlap: one number a voxel cannot say that.
    """
    file, part = split_part(path)
    if part is None and _is_nrrd(file) and not list_segments(file).may_overlap:  # values without a name are kept, too
        found_here = read_nrrd(file)
        return LabelMap(array=found_here.voxels()[0], geometry=found_here.header.geometry, may_be_part=True)
    found = read_segments(path)
    require_memory(path, math.prod(found.geometry.shape) * 2)
    array = np.zeros(found.geometry.shape, np.uint16)
    for segment in found.segments:
        for index, frame in segment.planes():
            if array[index][frame].any():
                names = {each.number: each.name for each in found.segments}
                pairs = [
                    f"{a} ({names[a]}) and {b} ({names[b]}) share {n} voxels" for (a, b), n in found.overlaps().items()
                ]
                shown = ", ".join(pairs[:4]) or "a segment has two frames in one slice"
                raise reader_error(
                    file,
                    code="reader.overlapping_segments",
                    message=f"its segments overlap ({shown}), which one label map cannot hold",
                    fix=f"read each as a separate mask: {_listed_segments(file, found)}",
                )
            array[index][frame] = 1 if part is not None else segment.number
    return LabelMap(array=array, geometry=found.geometry, may_be_part=True)


def _is_nrrd(file: Path) -> bool:
    return image_ending(file) in NRRD.endings


def _listed_segments(file: Path, found: Segmentation) -> str:
    return ", ".join(f"{file.name}{PART_MARK}{segment.number} ({segment.name})" for segment in found.segments[:10])
