"""Labels in files of segments (DICOM SEG, ``.seg.nrrd``): masks of classes by their names, or label maps where these suffice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from autoseg.data.dataset import Case, MaskFile
from autoseg.imaging.readers import PART_MARK, is_segmentation, list_segments


def resolve_segments(cases: Sequence[Case]) -> tuple[tuple[Case, ...], dict[int, str]]:
    """The cases with the segments of their label files as masks, and the names of values where they stay label maps.

    Segments are told apart by name; those of one file that share one are numbered. They stay label maps where each file
    holds one, and a name has the same value in all files. Other label files are left as they are. Raises `AutosegError`
    where a file of segments cannot be read.
    """
    found = {
        case.label: list_segments(case.label)
        for case in cases
        if case.label is not None and is_segmentation(case.label)
    }
    named = {label: _told_apart(segments.by_number) for label, segments in found.items()}
    together = _together(named.values())
    if together is not None and not any(segments.may_overlap for segments in found.values()):
        return tuple(cases), together
    return tuple(_with_masks(case, named[case.label]) if case.label in named else case for case in cases), {}


def _told_apart(names: Mapping[int, str]) -> dict[int, str]:
    count = Counter(names.values())
    return {
        number: name if name and count[name] == 1 else f"{name or 'segment'}_{number}" for number, name in names.items()
    }


def _together(tables: Iterable[Mapping[int, str]]) -> dict[int, str] | None:
    """The names of all values; None where a value has two names, or a name two values."""
    pairs = {pair for table in tables for pair in table.items()}
    numbers, names = {number for number, _ in pairs}, {name for _, name in pairs}
    return dict(sorted(pairs)) if len(numbers) == len(names) == len(pairs) else None


def _with_masks(case: Case, names: Mapping[int, str]) -> Case:
    masks = tuple(MaskFile(label=name, file=f"{case.label}{PART_MARK}{number}") for number, name in names.items())
    return case.model_copy(update={"label": None, "masks": masks})
