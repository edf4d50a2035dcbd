"""DICOM series: which files of a folder belong together, and the grid that their slices form.

A slice is a frame with a place in space: a file, one of the frames of a file, or a tile of a Siemens mosaic.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    CTImageStorage,
    EnhancedUSVolumeStorage,
    MRImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
    RTDoseStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.dicom import (
    PALETTE,
    PART_MARK,
    begins_as_dicom,
    decoded,
    dicom_candidates,
    frame_owners,
    image_type,
    is_dicom,
    is_leftover,
    is_reconstructed,
    kind_of,
    number,
    owner_of,
    read_tags,
    series_uid,
    split_part,
    table_values,
    tags_of,
    vector,
)
from autoseg.imaging.readers.header import (
    ImageHeader,
    damaged,
    header_note,
    make_geometry,
    printable,
    reader_error,
    require_memory,
    require_text,
    unreadable,
)
from autoseg.imaging.readers.registry import Format, image_ending
from autoseg.issues import AutosegError, Issue
from autoseg.wording import shorten

UNEVEN_STEP = 0.05
"""Slices are evenly spaced when no step differs from the median step by more than this share of it."""
TILTED_STEP = 0.02
"""Share of a slice step that may lie in the plane; more is a tilted gantry, and the grid is no box."""
SAME_PLACE = 1e-4
SLICE_STORAGES = (CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
"""Files of these kinds are slices with a place in space, or cut."""
LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, younger than some releases of pydicom."""
NO_IMAGES = {
    SegmentationStorage: "use it as the label map of the series that it was drawn on",
    LABEL_MAP_STORAGE: "use it as the label map of the series that it was drawn on",
    RTStructureSetStorage: "use it as the label map of the series that it was drawn on",
    VLWholeSlideMicroscopyImageStorage: "export the regions that you need as TIFF or PNG",
}
"""Kinds of files that are no image of a patient, and what to do with them."""
BEFORE_META = 144
"""Bytes up to the end of the element that says how long the information on the file itself is."""
MOSAIC = "MOSAIC"
"""In ImageType: Siemens scanners put all slices of a volume into one picture."""
IMAGES_IN_GRID = 0x00651050
"""Private tag: scanners of United Imaging do so, too, and say here how many there are."""
INVERTED = "MONOCHROME1"
SHOWN_INVERTED = "it is shown inverted (MONOCHROME1), small values bright: values are read as they are stored"
IN_PROBE = (
    "it lies in the axes of an ultrasound probe, not of the patient: they are taken for Left, Posterior and Superior"
)
POSITION, ORIENTATION = "ImagePositionPatient", "ImageOrientationPatient"
PLACE_TAGS = {
    POSITION: "PlanePositionSequence",
    ORIENTATION: "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}
"""Where a file of several frames keeps what places them."""
VOLUME_TAGS = {
    POSITION: ("PlanePositionVolumeSequence", "ImagePositionVolume"),
    ORIENTATION: ("PlaneOrientationVolumeSequence", "ImageOrientationVolume"),
}
"""The same of ultrasound, which knows where frames lie to one another, but not in the patient."""
NEEDED = (
    "SOPClassUID SOPInstanceUID PatientID SeriesInstanceUID SeriesDescription SeriesNumber InstanceNumber Modality "
    "ImageType ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices "
    "GridFrameOffsetVector SliceVector DetectorInformationSequence Rows Columns NumberOfFrames SamplesPerPixel "
    "PhotometricInterpretation BitsAllocated RescaleSlope RescaleIntercept DoseGridScaling ModalityLUTSequence "
    "PerFrameFunctionalGroupsSequence SharedFunctionalGroupsSequence"
)
NEEDED_TAGS = (*NEEDED.split(), IMAGES_IN_GRID)
RESCALE = ("PixelValueTransformationSequence", "RescaleSlope", "RescaleIntercept")
OTHER_SCALES = {
    ParametricMapStorage: ("RealWorldValueMappingSequence", "RealWorldValueSlope", "RealWorldValueIntercept"),
    RTDoseStorage: ("", "DoseGridScaling", ""),
}
"""Functional group, slope and intercept of stored values, where they are not those of `RESCALE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    file: Path
    index: int
    """Of the frame, or of the tile of a mosaic, in the file."""
    tags: Any
    size: tuple[int, int]
    """Rows and columns."""
    spacing_mm: NDArray[np.float64]
    """Between rows, and between columns."""
    position: NDArray[np.float64]
    """x, y, z in mm of the first voxel's centre."""
    plane: NDArray[np.float64]
    """(2, 3): unit vectors along a row and along a column."""
    scale: tuple[float, float]
    """Slope and intercept of the stored values."""


@dataclass(frozen=True, slots=True)
class Series:
    """Slices in the order of growing position along their normal, and what their headers say."""

    slices: tuple[_Slice, ...]
    header: ImageHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesName:
    """A series in a folder."""

    path: Path
    """What to give to `read_header` and `read_image`: the folder, with ``#SeriesInstanceUID`` where it has several."""
    description: str
    number: str
    uid: str
    patient: str
    """PatientID; empty where it was removed."""
    modality: str
    num_slices: int


def is_dicom_series(path: Path | str) -> bool:
    """Whether ``path`` is a folder that directly holds DICOM files, or names a series in one (``FOLDER#UID``).

    Files are recognised by content; their names may have any ending or none.
    """
    folder, _ = split_part(Path(path))
    return folder.is_dir() and any(is_dicom(file) for file in dicom_candidates(folder))


def list_series(folder: Path | str) -> tuple[SeriesName, ...]:
    """The image series directly in ``folder``, sorted by SeriesInstanceUID, or the one of ``FOLDER#UID``; none without slices.

    What has no position in space (reports, segmentations, scans of paper) is no image series.
    Raises `AutosegError` when a DICOM file of the folder is damaged.
    """
    folder, wanted = split_part(Path(folder))
    groups = _group(folder, wanted)
    return tuple(
        SeriesName(
            path=folder if len(groups) == 1 and wanted is None else Path(f"{folder}{PART_MARK}{uid}"),
            description=str(slices[0].tags.get("SeriesDescription") or "no description").strip(),
            number=f"{number(slices[0].tags, 'SeriesNumber', -1):g}" if slices[0].tags.get("SeriesNumber") else "",
            uid=uid,
            patient=str(slices[0].tags.get("PatientID") or "").strip(),
            modality=str(slices[0].tags.get("Modality") or ""),
            num_slices=len(slices),
        )
        for uid, slices in sorted(groups.items())
        if wanted in (None, uid)
    )


def read_series(path: Path) -> Series:
    """The series of slices that ``path`` names: a folder with one, or ``FOLDER#SeriesInstanceUID``.

    Raises `AutosegError` when there is none, when a folder has several and none is named, when slices are missing,
    doubled, of different size, or when the gantry was tilted.
    """
    folder, uid = split_part(path)
    groups = _group(folder, uid)
    groups = groups if uid is None or uid in groups else _group(folder)
    if not groups:
        kinds = Counter(
            kind_of(read_tags(file, ["SOPClassUID"])) for file in dicom_candidates(folder) if is_dicom(file)
        )
        listed = shorten([f"{count} {kind}" for kind, count in kinds.items()])
        raise reader_error(
            folder,
            code="dicom.no_slices",
            message=f"it has {kinds.total()} DICOM files, but none is a slice with a position: {listed}"
            if kinds
            else "a folder without DICOM files",
            fix="use the folder of an image series, or convert it to NIfTI"
            if kinds
            else "use an image file, or the folder of a DICOM series",
        )
    if uid in groups or (len(groups) == 1 and uid is None):
        series = _stack(path, groups[uid] if uid in groups else next(iter(groups.values())))
        notes = (*series.header.notes, *_leftovers(folder))
        return replace(series, header=replace(series.header, notes=notes))
    names = "; ".join(
        f"{len(slices)} slices of {slices[0].tags.get('SeriesDescription') or 'no description'!r}, {folder}{PART_MARK}{name}"
        for name, slices in sorted(groups.items())
    )
    raise reader_error(
        folder,
        code="dicom.no_such_series" if uid else "dicom.several_series",
        message=f"it has {f'no series {uid}, but {len(groups)} other' if uid else f'{len(groups)} series'} ({names})",
        fix="use one of these names, or put each series into its own folder",
    )


def _leftovers(folder: Path) -> Iterator[Issue]:
    """A note on backups and unfinished copies of slices, which are not read."""
    files = [
        each for each in folder.iterdir() if is_leftover(each) and (image_ending(each) == ".dcm" or is_dicom(each))
    ]
    if files:
        message = f"skipped {shorten(sorted(file.name for file in files))}: backups or unfinished copies by their names"
        fix = "rename them if they are slices, else move them elsewhere"
        yield Issue(code="dicom.leftovers", severity="note", where=printable(folder), message=message, fix=fix)


def read_single(file: Path) -> Series:
    """One DICOM file as an image: slices in space, or, without a position (X-ray, photograph), a flat image.

    Raises `AutosegError` for files that are no image, and for several frames without a position.
    """
    tags = read_tags(file, NEEDED_TAGS)
    with tags_of(file):
        kind, fix = kind_of(tags), NO_IMAGES.get(tags.get("SOPClassUID"))
        if fix is not None:
            raise reader_error(file, code="dicom.not_an_image", message=f"{kind}: not an image", fix=fix)
        if tags.get("Rows") in (None, "", 0):
            raise reader_error(file, code="dicom.no_pixels", message=f"{kind}: it has no pixels", fix="use an image")
        if slices := _slices(file, tags):
            return _stack(file, slices)
        if len(frame_owners(file, tags)) > 1:
            raise _unplaced(file, tags)
        rows, columns = (int(number(tags, name, 0)) for name in ("Rows", "Columns"))
        geometry, _ = make_geometry(
            file,
            shape=(columns, rows),
            spacing_mm=(1.0, 1.0),
            origin_mm=(0.0, 0.0),
            direction=np.eye(2),
            has_orientation=False,
        )
        item = _Slice(
            file=file,
            index=0,
            tags=tags,
            size=(rows, columns),
            spacing_mm=np.ones(2),
            position=np.zeros(3),
            plane=np.eye(3)[:2],
            scale=_scale([tags]),
        )
        return Series((item,), _header([item], geometry))


def series_image(series: Series, path: Path, *, colours: bool = True) -> tuple[ImageHeader, NDArray[np.float32]]:
    """Header and voxels (C, Z, Y, X) of a series, rescaled as each slice says; ``path`` names it in errors.

    Without ``colours`` a palette's indices are the values, and the one channel.
    """
    shape = series.header.geometry.shape
    num_channels = series.header.num_channels if colours else int(number(series.slices[0].tags, "SamplesPerPixel", 1))
    require_memory(path, num_channels * math.prod(shape) * 4)
    result = np.empty((num_channels, *shape), np.float32)
    files = {item.file: item.tags for item in series.slices}
    places: dict[Path, list[int]] = {file: [] for file in files}
    for z, item in enumerate(series.slices):
        places[item.file].append(z)
    for (file, tags), pixels in zip(files.items(), decoded(path, files), strict=True):
        frames = _untiled(table_values(file, tags, pixels, colours=colours), shape[1:])
        for z in places[file]:
            item = series.slices[z]
            result[:, z] = np.moveaxis(frames[item.index], -1, 0) * item.scale[0] + item.scale[1]
    return series.header, result


def _untiled(frames: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """The tiles of a mosaic as frames (frames, Y, X, samples), row by row; others as they are."""
    count, rows, columns, samples = frames.shape
    tiles = frames.reshape(count, rows // size[0], size[0], columns // size[1], size[1], samples)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(-1, *size, samples)


# --- slices ---


def _group(folder: Path, uid: str | None = None) -> dict[str, list[_Slice]]:
    """Slices with a position, by SeriesInstanceUID; with ``uid`` those of one series, as folders may hold many patients.

    One that does not say is read for all: a broken one makes reading any of them fail.
    """
    files = [file for file in dicom_candidates(folder) if _is_slice(file)]
    require_text(files)
    files = [file for file in files if uid is None or series_uid(file) in (uid, "")]
    groups: dict[str, list[_Slice]] = {}
    for file in files:
        tags = read_tags(file, NEEDED_TAGS)
        with tags_of(file):
            if tags.get("SOPClassUID") not in NO_IMAGES and (slices := _slices(file, tags)):
                groups.setdefault(str(tags.get("SeriesInstanceUID") or ""), []).extend(slices)
    return groups


def _is_slice(file: Path) -> bool:
    """Whether a candidate is DICOM; an image that lacks a slice must not pass for a whole one."""
    try:
        found = begins_as_dicom(file)
    except OSError as error:
        raise unreadable(file, error) from None
    if not found and image_ending(file):
        raise damaged(file, code="reader.unknown_format", message="it does not start like a DICOM file")
    return found


def _slices(file: Path, tags: Any) -> list[_Slice]:
    """The frames of a file with their places in space; none where it is of a kind that has none."""
    owners = frame_owners(file, tags)
    found = {name: _holders(owners, name) for name in PLACE_TAGS}
    missing = [name for name, (holders, _) in found.items() if None in holders]
    missing += [] if tags.get("Rows") not in (None, "") else ["Rows"]
    meta = tags.file_meta.get("FileMetaInformationGroupLength", 0)
    if missing and (not isinstance(meta, int) or BEFORE_META + meta >= file.stat().st_size):
        raise damaged(file, code="reader.truncated", message="it ends before its data")
    if missing and tags.file_meta.get("MediaStorageSOPClassUID") in SLICE_STORAGES:
        raise damaged(file, message=f"it is a slice without {', '.join(missing)}")
    if missing and len(owners) > 1 and (tags.get("PerFrameFunctionalGroupsSequence") or POSITION not in missing):
        raise _unplaced(file, tags)
    if missing:
        return []

    def values(name: str, frame: int, size: int) -> NDArray[np.float64]:
        holders, tag = found[name]
        return vector(holders[frame], tag, size)

    slices = [
        _Slice(
            file=file,
            index=k,
            tags=tags,
            size=(int(number(tags, "Rows", 0)), int(number(tags, "Columns", 0))),
            spacing_mm=values("PixelSpacing", k, 2),
            position=values(POSITION, k, 3),
            plane=values(ORIENTATION, k, 6).reshape(2, 3),
            scale=_scale(owners[k]),
        )
        for k in range(len(owners))
    ]
    grid = getattr(tags.get(IMAGES_IN_GRID), "value", None) or 1
    if MOSAIC in image_type(tags) or float(grid) > 1:  # bytes are numbers, too
        return _tiles(slices[0])
    holders, _ = found[POSITION]
    return _frames_of_one_place(slices) if len(slices) > 1 and holders[0] is holders[1] else slices


def _holders(owners: Sequence[Sequence[Any]], name: str) -> tuple[list[Any], str]:
    """For each frame what has the tag ``name``, or that of ultrasound instead (see `VOLUME_TAGS`), and the name of the tag."""
    holders = [owner_of(each, PLACE_TAGS[name], name) for each in owners]
    if None in holders and name in VOLUME_TAGS:
        group, other = VOLUME_TAGS[name]
        in_volume = [owner_of(each, group, other) for each in owners]
        if None not in in_volume:
            return in_volume, other
    return holders, name


def _unplaced(file: Path, tags: Any) -> AutosegError:
    return reader_error(
        file,
        code="dicom.multiframe",
        message=f"{kind_of(tags)}: {len(frame_owners(file, tags))} frames without positions in space",
        fix="convert it to one file per slice or to NIfTI",
    )


def _scale(owners: Sequence[Any]) -> tuple[float, float]:
    """Slope and intercept of the values of a frame."""
    group, *names = OTHER_SCALES.get(owners[-1].get("SOPClassUID"), RESCALE)
    slope, intercept = (
        default if (holder := owner_of(owners, group, name)) is None else number(holder, name, default)
        for name, default in zip(names, (1.0, 0.0), strict=True)
    )
    return slope or 1.0, intercept


def _frames_of_one_place(slices: Sequence[_Slice]) -> list[_Slice]:
    """The frames of a file with one position, as doses and volumes of nuclear medicine are: the others follow along the normal."""
    first, count = slices[0], len(slices)
    step_mm = number(first.tags, "SpacingBetweenSlices", 0) or number(first.tags, "SliceThickness", 0)
    offsets: NDArray[np.float64]
    if first.tags.get("GridFrameOffsetVector") not in (None, ""):
        offsets = vector(first.tags, "GridFrameOffsetVector", count)
    elif is_reconstructed(first.tags) and step_mm:
        has_order = first.tags.get("SliceVector") not in (None, "")
        offsets = step_mm * (
            vector(first.tags, "SliceVector", count) if has_order else np.arange(count, dtype=np.float64)
        )
    else:
        raise _unplaced(first.file, first.tags)
    normal = np.cross(*first.plane)
    return [
        replace(item, position=item.position + (offset - offsets[0]) * normal)
        for item, offset in zip(slices, offsets, strict=True)
    ]


def _tiles(whole: _Slice) -> list[_Slice]:
    """The slices of a Siemens mosaic. How many there are, and on which side of the first, only its private header says."""
    step_mm = abs(number(whole.tags, "SpacingBetweenSlices", 0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel calls this part of it experimental
            from nibabel.nicom.dicomwrappers import MosaicWrapper

            mosaic = MosaicWrapper(read_tags(whole.file))
            rows, columns, count = mosaic.image_shape
            position, normal = np.array(mosaic.image_position), np.array(mosaic.slice_normal)
        is_even = whole.size[0] % rows == 0 and whole.size[1] % columns == 0
        cause = "" if step_mm > 0 and is_even else f"{count} slices, {step_mm:g} mm apart, in {whole.size} voxels"
    except Exception as error:  # nibabel lets through whatever broken bytes cause
        cause = " ".join(str(error).split())[:200] or type(error).__name__
    if cause:
        raise reader_error(
            whole.file,
            code="dicom.mosaic",
            message=f"its slices are tiled in one image (mosaic), and what places them cannot be read ({cause})",
            fix="convert it to NIfTI with dcm2niix",
        )
    return [
        replace(whole, index=k, size=(rows, columns), position=position + k * step_mm * normal) for k in range(count)
    ]


# --- the grid ---


def _stack(path: Path, slices: Sequence[_Slice]) -> Series:
    first = slices[0]
    if not (first.spacing_mm > 0).all():
        raise damaged(first.file, message=f"PixelSpacing is {first.spacing_mm.tolist()}")
    for name in ("SamplesPerPixel", "PhotometricInterpretation"):
        kinds = {item.file: _kind_of_pixels(item.tags, name) for item in slices}
        other = next((file for file, kind in kinds.items() if kind != kinds[first.file]), None)
        if other is not None:
            raise _differing(path, name, {file: str(kinds[file]) for file in (first.file, other)})
    for name, place in (("size (rows, columns)", "size"), ("PixelSpacing", "spacing_mm"), (ORIENTATION, "plane")):
        ours = np.array(getattr(first, place))
        for item in slices:
            if not np.allclose(ours, theirs := np.array(getattr(item, place)), atol=SAME_PLACE):
                shown = {first.file: str(ours.ravel().tolist()), item.file: str(theirs.ravel().tolist())}
                raise _differing(path, name, shown)
    across, down = first.plane
    normal = np.cross(across, down)
    slices = sorted(slices, key=lambda item: float(normal @ item.position))
    geometry, notes = make_geometry(
        path,
        shape=(*first.size[::-1], len(slices)),
        spacing_mm=(float(first.spacing_mm[1]), float(first.spacing_mm[0]), _slice_step(path, slices, normal)),
        origin_mm=tuple(slices[0].position),
        direction=np.stack([across, down, normal], axis=1),
        has_orientation=True,
    )
    return Series(tuple(slices), _header(slices, geometry, notes))


def _kind_of_pixels(tags: Any, name: str) -> Any:
    """What of a tag on pixels must be the same in all slices: colours are decoded to RGB, but inverted greys stay as they are."""
    value = tags.get(name)
    return int(value or 1) if name == "SamplesPerPixel" else INVERTED if value == INVERTED else "another one"


def _differing(path: Path, name: str, values: dict[Path, str]) -> AutosegError:
    shown = " but ".join(f"{value} in {file.name}" for file, value in values.items())
    fix = "remove the slices that do not belong to the volume"
    return reader_error(path, code="dicom.slices_differ", message=f"{name} is {shown}", fix=fix)


def _header(slices: Sequence[_Slice], geometry: Geometry, notes: tuple[Issue, ...] = ()) -> ImageHeader:
    tags = slices[0].tags
    is_integer = tags.get("SOPClassUID") != ParametricMapStorage and all(
        value.is_integer() for item in slices for value in item.scale
    )
    is_palette = tags.get("PhotometricInterpretation") == PALETTE
    said = {
        "reader.inversion_ignored": (tags.get("PhotometricInterpretation") == INVERTED, SHOWN_INVERTED),
        "reader.no_orientation": (tags.get("SOPClassUID") == EnhancedUSVolumeStorage, IN_PROBE),
    }
    own = [header_note(slices[0].file, code=code, message=text) for code, (holds, text) in said.items() if holds]
    return ImageHeader(
        geometry=geometry,
        num_channels=3 if is_palette else int(number(tags, "SamplesPerPixel", 1)),
        pixel_type=f"{number(tags, 'BitsAllocated', 16):g}-bit integer" if is_integer else "scaled integer",
        is_integer=is_integer,
        notes=(*notes, *own),
        modality=str(tags.get("Modality") or ""),
    )


def _slice_step(path: Path, slices: Sequence[_Slice], normal: NDArray[np.float64]) -> float:
    """Distance between neighbouring slices in mm, which must be the same for all."""
    if len(slices) == 1:
        owners = frame_owners(slices[0].file, slices[0].tags)[slices[0].index]
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            holder = owner_of(owners, "PixelMeasuresSequence", name)
            if holder is not None and (step := number(holder, name, 0)):
                return step
        return 1.0
    steps = np.diff([item.position for item in slices], axis=0)
    along = steps @ normal
    usual = float(np.median(along))
    close = np.flatnonzero(along <= UNEVEN_STEP * usual)  # where most coincide, the usual step is 0
    if len(close):
        raise _coinciding(path, *slices[int(close[0]) :][:2])
    odd = np.flatnonzero(np.abs(along - usual) > UNEVEN_STEP * usual)
    if len(odd):
        file, after = (slices[int(odd[0]) + k].file.name for k in range(2))
        raise reader_error(
            path,
            code="dicom.uneven_slices",
            message=f"slices are {usual:g} mm apart but {float(along[odd[0]]):g} mm between {file} and {after} "
            f"({len(odd)} such {'gap' if len(odd) == 1 else 'gaps'} in {len(slices)} slices)",
            fix="add the missing slices, or leave the case out",
        )
    sideways = float(np.linalg.norm(steps.mean(axis=0) - usual * normal))
    if sideways > TILTED_STEP * usual:
        degrees = math.degrees(math.atan2(sideways, usual))
        raise reader_error(
            path,
            code="dicom.gantry_tilt",
            message=f"each slice is shifted sideways by {sideways:.2f} mm, a gantry tilt of {degrees:.1f} degrees",
            fix="resample the series to a rectangular grid",
        )
    return float(along.mean())


def _coinciding(path: Path, one: _Slice, other: _Slice) -> AutosegError:
    """The error for two slices in one place: the same one stored twice, or slices of two volumes."""
    names = " and ".join(sorted({one.file.name, other.file.name}))
    is_copy = one.file != other.file and any(
        one.tags.get(name) not in (None, "") and one.tags.get(name) == other.tags.get(name)
        for name in ("SOPInstanceUID", "InstanceNumber")
    )
    if is_copy:
        return reader_error(
            path,
            code="dicom.doubled_slice",
            message=f"{names} are the same slice",
            fix="remove one of each such two files",
        )
    return reader_error(
        path,
        code="dicom.slices_coincide",
        message=f"several slices have the same position, those of {names} first: "
        "it contains more than one volume (time points, echoes)",
        fix="convert it, for example with dcm2niix, which writes a file for each volume"
        if one.file == other.file
        else "put each volume into its own folder",
    )


DICOM = Format(
    endings=(".dcm",),
    read_header=lambda path: read_single(path).header,
    read_voxels=lambda path: series_image(read_single(path), path)[1],
    read_labels=lambda path: series_image(read_single(path), path, colours=False)[1],
)
