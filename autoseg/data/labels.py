"""The labels of a case, from whichever files they are in, and which structures have a left and a right form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import Case, LabelCoding, MaskFile
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import (
    ImageHeader,
    in_slice_order,
    is_lossy,
    is_picture,
    is_picture_stack,
    read_header,
    read_image,
    read_label_map,
    read_segments,
    split_part,
)
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import KEPT
from autoseg.wording import count_noun, shorten
from planners import LabelClass

CHANNEL, OF = "channel", "of"
"""``FILE#channel2of3`` names the last of three channels of a label file, ``FILE#ff0000`` a colour, ``FILE#3`` a segment of a DICOM SEG."""
COLOUR = re.compile("[0-9a-f]{6}")
BACKGROUND = "background"
"""Name of a channel that is no class."""
SEVERAL_CHANNELS, CHANNEL_COUNT = "reader.several_channels", "labels.channel_count"
MOST_COLOURS = 16
"""A picture with more of them is blurred or compressed: its colours are no classes."""
EXPORT_AS_PNG = (
    "export the masks as PNG from where they were drawn: JPEG changes values and colours, converting it does not help"
)
WHITE = 255
"""Inside of the masks that image editors save."""
TABLE_SIZE = 2**16
"""Largest span of file values that is mapped through a table; wider ones are searched."""
Pair = tuple[str, str]
"""Names of two classes, (left, right) if their names tell."""

LEFT = frozenset({"left", "l", "lt", "lh", "sinister", "sin", "links", "gauche"})
RIGHT = frozenset({"right", "r", "rt", "rh", "dexter", "dex", "rechts", "droit", "droite"})
SHORT = 2
"""Abbreviations of up to so many letters count only as the first or the last word: ``kidney_l``, ``L Kidney``."""
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

LEFT_TO_RIGHT: Literal[2] = 2
"""The canonical axis x."""
MIN_CASES = 3
"""In fewer cases a mirrored place can be chance."""
MAX_SLANT = 0.5
"""Distance along the other axes, as a share of that from left to right: patients lie tilted, organs differ in height."""
MAX_VOLUME_RATIO = 1.5
"""Of the two forms; liver and spleen, which also lie on two sides, differ by more."""
MAX_OFF_CENTRE = 0.25
"""Distance of the middle between the two from the centre of the foreground, as a share of the distance between them."""
MAX_COUNTED = 2**21
"""Voxels of a label map that are used; of larger ones every n-th along each axis."""


def to_internal(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.int16]:
    """Internal values (int16, same shape) of an array with file values; ``file_values[i]`` stands for i.

    Raises `AutosegError` (``labels.undeclared_value``) for values that are not among ``file_values``.
    """
    if array.size == 0:
        return array.astype(np.int16)
    low, high = int(array.min()), int(array.max())
    if high - low < TABLE_SIZE:
        table = np.full(high - low + 1, -1, np.int16)
        for internal, value in enumerate(file_values):
            if low <= value <= high:
                table[value - low] = internal
        result = table[array if low == 0 else array.astype(np.int64) - low]
    else:
        order = np.argsort(file_values)
        ascending = np.asarray(file_values)[order]
        place = np.searchsorted(ascending, array).clip(max=len(ascending) - 1)
        result = np.where(ascending[place] == array, order[place], -1).astype(np.int16)
    if int(result.min()) < 0:
        values, counts = np.unique(array[result < 0], return_counts=True)
        raise AutosegError(undeclared_values(dict(zip(values.tolist(), counts.tolist(), strict=True)), file_values))
    return result


def undeclared_values(counts: Mapping[int, int], file_values: Sequence[int], **fields: Any) -> Issue:
    """The issue about values that are not declared, with their numbers of voxels; ``fields`` are others of the issue."""
    shown = shorten([f"{value} ({count_noun(count, 'voxel')})" for value, count in counts.items()])
    declared = ", ".join(map(str, file_values))
    return Issue(
        code="labels.undeclared_value",
        message=f"undeclared label values: {shown}; declared are {declared}",
        fix="correct the label map, declare the values in the dataset's labels, or list them beside that of its background, which drops them",
        **{"where": "labels", **fields},
    )


def to_file_values(array: NDArray[np.integer[Any]], file_values: Sequence[int]) -> NDArray[np.integer[Any]]:
    """File values of an array of internal values 0 ... ``len(file_values) - 1``, smallest integer type that fits."""
    low, high = min(file_values), max(file_values)
    for kind in (np.uint8, np.uint16, np.int16, np.int32, np.int64):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            values: NDArray[np.integer[Any]] = np.asarray(file_values, kind)[array]
            return values
    message = f"values from {low} to {high} do not fit any integer type"
    raise AutosegError(Issue(code="labels.value_range", where="labels", message=message, fix="use smaller values"))


def with_values(array: NDArray[np.integer[Any]], changes: Mapping[int, int]) -> NDArray[np.integer[Any]]:
    """The array with ``changes`` (value -> new value) made at once, so that values can be swapped; int64 if there are any."""
    if not changes:
        return array
    values, places = np.unique(array, return_inverse=True)
    new = np.array([changes.get(int(value), int(value)) for value in values], np.int64)
    return new[places].reshape(array.shape)


Combination = frozenset[str]
"""Names of the classes that a voxel belongs to."""


def read_case_labels(
    case: Case, coding: LabelCoding, *, onto: Geometry | None = None, missing_as_ignore: bool = True
) -> LabelMap:
    """Labels (Z, Y, X) of a case, int16, with internal values.

    Reoriented to the grid ``onto``, the geometry of the image; without it, in the axes of the label file. Where the case is
    annotated for some classes only and the dataset has an ignore label, background becomes ignored: it may hold any of
    the other classes. ``missing_as_ignore=False`` leaves it, as scoring the annotated classes needs it.

    Raises `AutosegError` that names the file where it cannot be read or holds undeclared values, and `ValueError` for a
    case without labels.
    """
    found = read_file_labels(case, coding, onto=onto)
    try:
        array = found.array.astype(np.int16) if coding.classes else to_internal(found.array, coding.file_values)
    except AutosegError as error:
        raise AutosegError(*(issue.model_copy(update={"where": case.label}) for issue in error.issues)) from error
    ignore = coding.labels.ignore
    if missing_as_ignore and ignore is not None and is_partly_annotated(case, coding):
        array[array == 0] = ignore
    return LabelMap(array=array, geometry=found.geometry)


def read_file_labels(case: Case, coding: LabelCoding, *, onto: Geometry | None = None) -> LabelMap:
    """Labels (Z, Y, X) of a case with the values of the file; of masks, with internal values.

    Grey values of a dataset with a threshold become its foreground value, dropped ones the background. Undeclared values are returned as they are.
    """
    if case.masks:
        return _combined(case, coding, onto)
    if case.label is None:
        raise ValueError(f"case {case.case_id} has no labels")
    label_map = _aligned(Path(case.label), _as_stored(case, Path(case.label)), onto)
    if coding.dropped:
        array = np.where(np.isin(label_map.array, coding.dropped), coding.file_values[0], label_map.array)
        label_map = replace(label_map, array=array)
    if coding.threshold is None:
        return label_map
    background, inside = coding.file_values[:2]
    array = np.where(label_map.array >= coding.threshold, inside, background)
    return LabelMap(array=array, geometry=label_map.geometry)


def _as_stored(case: Case, file: Path) -> LabelMap:
    """The label map in a file; a stack of pictures in the order of the slices that they were drawn on, on the grid of the image."""
    found = read_label_map(file)
    if not is_picture_stack(file):
        return found
    array = in_slice_order(found.array, file, case.image_paths[0])
    grid = read_header(case.image_paths[0]).geometry
    return LabelMap(array=array, geometry=grid.model_copy(update={"shape": array.shape}))


def is_partly_annotated(case: Case, coding: LabelCoding) -> bool:
    """Whether some class was not annotated in this case."""
    return case.annotated is not None and not {label.name for label in coding.labels.classes} <= set(case.annotated)


def mask_combinations(case: Case, coding: LabelCoding) -> tuple[frozenset[Combination], dict[str, int]]:
    """Which classes occur together in the masks of a case, the background being the empty combination; values inside masks."""
    values: dict[str, int] = {}
    _, combinations, _ = _overlaid(case, coding, None, values)
    return frozenset(combinations), values


def combination_values(coding: LabelCoding) -> dict[Combination, int]:
    """Internal value of each combination of classes that the dataset has."""
    table = {frozenset[str](): 0}
    for value in coding.labels.values:
        table[frozenset(label.name for label in coding.labels.classes if value in label.values)] = value
    return table


def read_mask(
    mask: MaskFile,
    *,
    threshold: int | None,
    onto: Geometry | None = None,
) -> tuple[NDArray[np.bool_], Geometry]:
    """Where a class is: bool (Z, Y, X), reoriented to ``onto`` if given, and its geometry.

    Raises `AutosegError` where the file has several values besides 0 and there is no threshold.
    """
    inside, _, geometry = _with_value(mask, threshold, onto, {})
    return inside, geometry


def _with_value(
    mask: MaskFile, threshold: int | None, onto: Geometry | None, opened: dict[Path, Any]
) -> tuple[NDArray[np.bool_], int | None, Geometry]:
    """As `read_mask`, with the value inside; None for an empty mask, and where there is a threshold. ``opened`` caches files of segments."""
    label_map = _aligned(Path(mask.file), _read_segment(Path(mask.file), opened), onto)
    array = label_map.array
    if threshold is not None:
        return array >= threshold, None, label_map.geometry
    inside = array != 0
    values = array[inside]
    if values.size and values.min() != values.max():
        raise AutosegError(_several_values(mask.file, np.unique(values)))
    return inside, int(values[0]) if values.size else None, label_map.geometry


def _several_values(file: str, values: NDArray[Any]) -> Issue:
    shown = shorten([str(value) for value in values])
    if int(values.max()) == WHITE:
        message = f"grey values between 0 and {WHITE} ({shown}) in the mask of a class"
        fix = "save a binary mask, or set threshold = 128 in a spec file (--spec)"
        return Issue(code="labels.grey_values", where=file, message=message, fix=fix)
    message = f"values {shown} besides 0, but a class mask has only one"
    fix = "use one file per class, or write a spec file that declares this file as a label map (--spec)"
    return Issue(code="labels.mask_values", where=file, message=message, fix=fix)


def _combined(case: Case, coding: LabelCoding, onto: Geometry | None) -> LabelMap:
    state, combinations, geometry = _overlaid(case, coding, onto)
    known = combination_values(coding)
    for names in combinations:
        if names not in known:
            message = f"{' and '.join(sorted(names))} overlap, but did not in any case when the dataset was checked"
            fix, where = "run autoseg check again", case.masks[0].file
            raise AutosegError(Issue(code="labels.new_overlap", where=where, message=message, fix=fix))
    table = np.array([known[names] for names in combinations], np.int16)
    return LabelMap(array=table[state], geometry=geometry)


def _overlaid(
    case: Case, coding: LabelCoding, onto: Geometry | None, values: dict[str, int] | None = None
) -> tuple[NDArray[np.int32], Sequence[Combination], Geometry]:
    """For each voxel the number of its combination, the combinations, and the geometry; ``values`` gets those inside masks."""
    combinations: list[Combination] = [frozenset()]
    state: NDArray[np.int32] | None = None
    grid = onto
    opened: dict[Path, Any] = {}
    for mask in sorted(case.masks, key=lambda mask: coding.classes.index(mask.label)):
        inside, value, geometry = _with_value(mask, coding.threshold, grid, opened)
        if values is not None and value is not None:
            values[mask.label] = value
        if state is None:
            state, grid = np.zeros(inside.shape, np.int32), onto or geometry
        if inside.shape != state.shape:
            message = f"{inside.shape} voxels (z, y, x), but the previous masks have {state.shape}"
            fix = "resample the masks of a case to one grid"
            raise AutosegError(Issue(code="labels.mask_grid", where=mask.file, message=message, fix=fix))
        before = state[inside]
        table = np.zeros(len(combinations), np.int32)
        for number in np.unique(before):
            names = frozenset([mask.label]) | (frozenset() if coding.later_wins else combinations[number])
            if names not in combinations:
                combinations.append(names)
            table[number] = combinations.index(names)
        state[inside] = table[before]
    if state is None or grid is None:
        raise ValueError(f"case {case.case_id} has no masks")
    present = np.unique(state)
    numbers = np.zeros(len(combinations), np.int32)
    numbers[present] = np.arange(len(present))
    return numbers[state], [combinations[number] for number in present], grid


def _read_segment(path: Path, opened: dict[Path, Any]) -> LabelMap:
    """A mask from its file, or one segment of a file that is read once for all its segments."""
    file, part = split_part(path)
    if part is None:
        return read_label_map(path)
    if part.startswith(CHANNEL) or COLOUR.fullmatch(part):
        return _read_channel(file, part, opened)
    if file not in opened:
        opened[file] = read_segments(file)
    for segment in opened[file].segments:
        if str(segment.number) == part:
            return LabelMap(array=segment.mask.astype(np.uint8), geometry=segment.geometry, may_be_part=True)
    return read_label_map(path)  # raises with the segments that exist


def with_way_out(issue: Issue, image: str | None) -> Issue:
    """A reader's issue about a label file with several channels, with what the file looks like and the entry of a spec file for it.

    ``image``: the image of the same case, if there is one.
    """
    if issue.code not in (SEVERAL_CHANNELS, CHANNEL_COUNT):
        return issue
    try:
        header = read_header(issue.where)
        if image is not None and is_channel_first(header, read_header(image)):
            return issue.model_copy(update=_channel_first(header.geometry.shape[2]))
        if is_lossy(issue.where):
            return issue.model_copy(update={"fix": EXPORT_AS_PNG})
        entry = _entry_for(Path(issue.where))
    except AutosegError:
        return issue
    if not entry:
        return issue
    before = "write" if issue.code == CHANNEL_COUNT else f"{issue.fix}, or write a spec file (--spec) with"
    return issue.model_copy(update={"fix": f"{before} {entry}, with the names of your classes"})


def is_channel_first(label: ImageHeader, image: ImageHeader) -> bool:
    """Whether the first axis of a label file counts its channels, so that each of its axes is one place late."""
    return label.num_channels > 1 and (label.num_channels, *label.geometry.shape[:2]) == image.geometry.shape


def _channel_first(num_channels: int) -> dict[str, str]:
    message = f"the channels come first: {num_channels} channels, then x, y and z"
    fix = "move the first axis to the end: np.moveaxis(array, 0, -1)"
    return {"code": "labels.channel_first", "message": message, "fix": fix}


def _entry_for(file: Path) -> str:
    """The entry of a spec file that reads this file: its colours, or its channels if they are masks; else empty."""
    channels = read_image([file]).array
    if is_picture(file) and len(channels) in (3, 4):
        colours, counts = np.unique(channels[:3].reshape(3, -1), axis=1, return_counts=True)
        by_size = [bytes(map(int, colour)).hex() for colour in colours.T[np.argsort(-counts, kind="stable")]]
        shown = by_size[1:] if 1 < len(by_size) <= MOST_COLOURS else ["ff0000"]
        names = ", ".join(f'class_{number} = "#{colour}"' for number, colour in enumerate(shown, 1))
        return f"colours = {{{names}}}"
    masks = channels != 0
    if any(np.ptp(channel[mask]) > 0 for channel, mask in zip(channels, masks, strict=True) if mask.any()):
        return ""
    outside = [number for number in range(len(masks)) if (masks[number] != np.delete(masks, number, 0).any(0)).all()]
    rest = iter(range(1, len(masks) + 1))
    names = ", ".join(
        f'"{BACKGROUND}"' if [number] == outside[:1] else f'"class_{next(rest)}"' for number in range(len(masks))
    )
    return f"one_hot = [{names}]"


def _read_channel(file: Path, part: str, opened: dict[Path, Any]) -> LabelMap:
    """Where a picture has a colour, or one channel of an image."""
    if file not in opened:
        opened[file] = read_image([file])
    image = opened[file]
    if not part.startswith(CHANNEL):
        wanted = np.reshape(list(bytes.fromhex(part)), (3, 1, 1, 1))
        return LabelMap(array=(image.array[:3] == wanted).all(axis=0).astype(np.uint8), geometry=image.geometry)
    number, total = map(int, part.removeprefix(CHANNEL).split(OF))
    if total != len(image.array):
        message = f"{count_noun(len(image.array), 'channel')}, but one_hot in the spec file names {total}"
        fix = f"name every channel, a background channel as {BACKGROUND}"
        raise AutosegError(Issue(code=CHANNEL_COUNT, where=str(file), message=message, fix=fix))
    values = image.array[number]
    if not np.array_equal(values, np.rint(values)):
        message = f"fractions in channel {number}, such as {values[values != np.rint(values)][0]:g}: not a mask"
        raise AutosegError(
            Issue(code="labels.mask_values", where=str(file), message=message, fix="round them to 0 and 1")
        )
    return LabelMap(array=values.astype(np.int64), geometry=image.geometry)


def _aligned(path: Path, label_map: LabelMap, onto: Geometry | None) -> LabelMap:
    if onto is None:
        return label_map
    try:
        return LabelMap(array=align_label_map(label_map, onto), geometry=onto)
    except AutosegError as error:
        raise AutosegError(*(issue.model_copy(update={"where": str(path)}) for issue in error.issues)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the classes of one case are."""

    volumes: Annotated[NDArray[np.float64], KEPT]
    """(K,) voxels of each class, (K + 1,) with all of the foreground last."""
    centres_mm: Annotated[NDArray[np.float64], KEPT]
    """(K + 1, 3) z, y, x from the corner of the image; NaN for a class that the case lacks."""


def find_places(labels: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: Sequence[LabelClass]) -> Places:
    """Places of ``classes`` in a label map (Z, Y, X) with internal values, in canonical axes."""
    step = max(1, int(np.ceil((labels.size / MAX_COUNTED) ** (1 / 3))))
    picked = labels[::step, ::step, ::step]
    size = max(int(picked.max(initial=0)), max(value for label in classes for value in label.values)) + 1
    flat = picked.ravel().astype(np.int64)
    counts = np.bincount(flat, minlength=size).astype(np.float64)
    sums = np.stack(
        [
            np.bincount(flat, weights=np.broadcast_to(_along(axis, picked.shape), picked.shape).ravel(), minlength=size)
            for axis in range(3)
        ],
        axis=1,
    )
    groups = [list(label.values) for label in classes]
    groups.append(sorted({value for values in groups for value in values}))
    volumes = np.array([counts[values].sum() for values in groups])
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = np.stack([sums[values].sum(axis=0) for values in groups]) / volumes[:, None]
    return Places(volumes=volumes * step**3, centres_mm=centres * step * np.asarray(spacing_mm))


def paired_names(names: Sequence[str]) -> tuple[Pair, ...]:
    """Pairs of names that differ only in a word for left and one for right, in order of the left one."""
    sides = {name: _split_side(name) for name in names}
    return tuple(
        (left, right)
        for left in names
        for right in names
        if sides[left][0] == "left" and sides[right][0] == "right" and sides[left][1] == sides[right][1]
    )


def mirrored_pairs(names: Sequence[str], cases: Sequence[Places]) -> tuple[Pair, ...]:
    """Pairs of classes of like volume that in every case lie beside each other from left to right, the same one always first.

    Cases that lack one of the two do not count; `MIN_CASES` must have both. The first of a pair is the one further left
    (canonical x runs to the left).
    """
    if not cases:
        return ()
    volumes = np.stack([case.volumes for case in cases])
    centres = np.stack([case.centres_mm for case in cases])
    pairs = []
    for a, b in combinations(range(len(names)), 2):
        both = (volumes[:, a] > 0) & (volumes[:, b] > 0)
        if both.sum() < MIN_CASES:
            continue
        apart = centres[both, a] - centres[both, b]
        beside = np.abs(apart[:, LEFT_TO_RIGHT])
        slant = np.linalg.norm(np.delete(apart, LEFT_TO_RIGHT, axis=1), axis=1)
        ratio = np.exp(abs(float(np.median(np.log(volumes[both, a] / volumes[both, b])))))
        off = np.abs(
            (centres[both, a, LEFT_TO_RIGHT] + centres[both, b, LEFT_TO_RIGHT]) / 2 - centres[both, -1, LEFT_TO_RIGHT]
        )
        same_side = abs(int(np.sign(apart[:, LEFT_TO_RIGHT]).sum())) == len(apart)
        if (
            same_side
            and (slant <= MAX_SLANT * beside).all()
            and ratio <= MAX_VOLUME_RATIO
            and (off <= MAX_OFF_CENTRE * beside).all()
        ):
            pairs.append((names[a], names[b]) if apart[0, LEFT_TO_RIGHT] > 0 else (names[b], names[a]))
    return tuple(pairs)


def find_pairs(classes: Sequence[LabelClass], cases: Sequence[Places]) -> tuple[Pair, ...]:
    """Paired structures by their names and, for other classes, by their places."""
    names = [label.name for label in classes]
    named = paired_names(names)
    taken = {name for pair in named for name in pair}
    placed = tuple(pair for pair in mirrored_pairs(names, cases) if not taken & set(pair))
    return (*named, *placed)


def _along(axis: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Indices along an axis, ready to be broadcast to ``shape``."""
    return np.arange(shape[axis], dtype=np.float64).reshape([-1 if each == axis else 1 for each in range(3)])


def _split_side(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The side in a name, if it has exactly one, and its other words."""
    words = [word.lower() for word in WORDS.findall(name)]
    found = [
        (place, "left" if word in LEFT else "right")
        for place, word in enumerate(words)
        if word in LEFT | RIGHT and (len(word) > SHORT or place in (0, len(words) - 1)) and len(words) > 1
    ]
    if len(found) != 1:
        return None, tuple(words)
    ((place, side),) = found
    return side, tuple(words[:place] + words[place + 1 :])
