"""The classes of a dataset and their values: as declared, or as found in the label files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.dataset import Case, LabelCoding, MaskFile
from autoseg.data.discovery.declarations import Declaration, LabelValues, labels_named_by_value
from autoseg.data.labels import Combination, mask_combinations
from autoseg.imaging.readers import PART_MARK, file_states, is_segmentation, list_segments, read_label_map, split_part
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import Reporter, SilentReporter
from datasets_spec import Layout
from planners import Document, LabelClass, Labels


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


FILE_S, BYTE_S = 0.005, 2.5e-6
"""Processor time to look into a label file, and for each byte of it: compressed, one holds about a hundred voxels."""
FileState = tuple[str, int, int]
"""Path, size in bytes, modification time in ns."""


class Answer(Document):
    """What was found in the label files of one case."""

    values: tuple[tuple[int, int], ...] = ()
    """Label values with their numbers of voxels."""
    combinations: tuple[tuple[str, ...], ...] = ()
    """Classes that share voxels; an empty one for the background."""


class Look(Answer):
    """An answer with what was asked."""

    question: str
    labels: tuple[str, ...]
    """The label map, or ``CLASS=FILE`` for each mask."""
    files: tuple[FileState, ...]


class Looks(Document):
    """All answers that are kept for a dataset."""

    looks: tuple[Look, ...] = ()


def look_up(
    cases: Sequence[Case],
    question: str,
    answer: Callable[[Case], Answer | None],
    *,
    kept: Path | None,
    num_workers: int,
    reporter: Reporter,
) -> list[Look]:
    """``answer`` for each case, in order, taken from the file ``kept`` where size and time of its label files are as they were.

    ``question`` is everything besides the files that answers depend on. A case without an answer (None) gets an empty one,
    which is not kept. When there is something new, ``kept`` is written with what was asked for now and nothing else, so
    that it does not grow.
    """
    asked = [_asked(case, question) for case in cases]
    known = {look.model_copy(update={"values": (), "combinations": ()}): look for look in _load(kept).looks}
    missing = [(case, key) for case, key in zip(cases, asked, strict=True) if key not in known]
    answers = _answers(answer, missing, num_workers=num_workers, reporter=reporter)
    new = {
        key: key.model_copy(update={"values": found.values, "combinations": found.combinations})
        for (_, key), found in zip(missing, answers, strict=True)
        if found is not None
    }
    known |= new
    if kept is not None and new:
        save_document(kept, Looks(looks=tuple(known[key] for key in asked if key in known)))
    return [known.get(key, key) for key in asked]


def _answers(
    answer: Callable[[Case], Answer | None],
    missing: Sequence[tuple[Case, Look]],
    *,
    num_workers: int,
    reporter: Reporter,
) -> list[Answer | None]:
    if not missing:
        return []
    seconds = sum(FILE_S + BYTE_S * size for _, key in missing for _, size, _ in key.files)
    with reporter.track("look into label files", len(missing)) as tracker:
        return run_jobs(
            answer,
            [case for case, _ in missing],
            name=lambda case: f"case {case.case_id}",
            num_workers=workers_worth_starting(num_workers, seconds),
            tracker=tracker,
        )


def _asked(case: Case, question: str) -> Look:
    """A look without an answer."""
    labels = (case.label,) if case.label is not None else tuple(f"{mask.label}={mask.file}" for mask in case.masks)
    return Look(question=question, labels=labels, files=file_states(case.label_files))


def _load(kept: Path | None) -> Looks:
    try:
        return Looks() if kept is None else load_document(Looks, kept)
    except AutosegError:
        return Looks()


WHITE = 255
MOST_CLASSES_BELOW_WHITE = 30
GREY_SHARE = 0.05
"""Values between 0 and 255 are greys of a smoothed edge, not classes, where they cover less than this share of what is not
0, or are more than `MOST_CLASSES_BELOW_WHITE`."""
NEARLY_WHITE = 240
"""... or come as near to 255 as this: a little compression leaves 0 to 7 and 248 to 255 of 0 and 255, with large areas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """How label files are looked into."""

    kept: Path | None = None
    """File that keeps what was found."""
    num_workers: int = 1
    reporter: Reporter = field(default_factory=SilentReporter)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLabels:
    """What is to be told apart in a dataset."""

    values: LabelValues
    classes: tuple[str, ...] = ()
    """Those with mask files of their own, in order."""
    mask_value: int = 1
    issues: tuple[Issue, ...] = ()


def only_class(cases: Sequence[Case]) -> str | None:
    """The class of all masks, where there is but one and each has a file of its own: such files are label maps."""
    names = {mask.label for case in cases for mask in case.masks}
    named_parts = any(split_part(Path(mask.file))[1] for case in cases for mask in case.masks)
    return names.pop() if len(names) == 1 and not named_parts else None


def as_label_map(case: Case) -> Case:
    """The case with its only mask as its label map."""
    return case.model_copy(update={"label": case.masks[0].file, "masks": ()}) if case.masks else case


def find_labels(
    cases: Sequence[Case],
    layout: Layout,
    declaration: Declaration,
    *,
    name: str | None = None,
    names: Mapping[int, str] | None = None,
    looking: Looking,
) -> FoundLabels:
    """Labels of a dataset whose labelled cases are ``cases`` (one or more).

    Declared ones are taken as they are; of others the values are looked up in the label maps. Masks of classes are read
    to see which overlap, unless the later one wins: every combination that occurs gets an internal value, and classes
    that share one become regions. ``names`` are those of values that nobody declared, ``name`` that of the class if there is
    but one. Raises `AutosegError` where there is nothing to segment, where a mask holds greys, or where some cases have masks
    and others label maps.
    """
    if any(case.masks for case in cases):
        found = _labels_of_masks(cases, layout, looking)
    elif declaration.label_values is not None:
        found = FoundLabels(values=declaration.label_values)
    elif layout.threshold is not None:
        found = FoundLabels(
            values=LabelValues(
                labels=Labels(classes=(LabelClass(name=name or "foreground", values=(1,)),)), file_values=(0, WHITE)
            )
        )
    else:
        values = _values_in_files(cases, looking)
        if name is not None and len(values) == 1:
            names = {values[0]: name} | dict(names or {})
        found = FoundLabels(values=labels_named_by_value(values, names))
    return _with_unannotated(found, cases)


# --- label maps ---


def _values_in_files(cases: Sequence[Case], looking: Looking) -> tuple[int, ...]:
    """All values other than 0, sorted."""
    looks = look_up(
        cases, "values", _label_values, kept=looking.kept, num_workers=looking.num_workers, reporter=looking.reporter
    )
    found = [dict(look.values) for look in looks]
    _refuse_greys(cases, found)
    values = {value for of_case in found for value in of_case} - {0}
    if not values:
        raise AutosegError(
            f"no label map of {Path(cases[0].label or '').parent} holds a value other than 0: there is nothing to segment; "
            "give label maps whose structures have values from 1 on"
        )
    return tuple(sorted(values))


def _label_values(case: Case) -> Answer | None:
    """Voxels of each value in the label map of a case; None where it cannot be read, which the check reports."""
    try:
        values, counts = np.unique(read_label_map(Path(case.label or "")).array, return_counts=True)
    except AutosegError:
        return None
    return Answer(values=tuple((int(value), int(count)) for value, count in zip(values, counts, strict=True)))


def _refuse_greys(cases: Sequence[Case], found: Sequence[Mapping[int, int]]) -> None:
    total: Counter[int] = Counter()
    for of_case in found:
        total.update(of_case)
    between = {value: count for value, count in total.items() if 0 < value < WHITE}
    if WHITE not in total or min(total) < 0 or max(total) > WHITE or not between:
        return
    consecutive = sorted(between) == list(range(1, len(between) + 1))
    thin = sum(between.values()) < GREY_SHARE * (sum(between.values()) + total[WHITE])
    near_white = not consecutive and max(between) >= NEARLY_WHITE
    if len(between) <= MOST_CLASSES_BELOW_WHITE and (consecutive or not thin) and not near_white:
        return
    with_greys = [
        case.label or "" for case, of_case in zip(cases, found, strict=True) if of_case.keys() & between.keys()
    ]
    shown = ", ".join(map(str, sorted(between)[:8])) + (" ..." if len(between) > 8 else "")
    raise AutosegError(
        f"{len(with_greys)} label maps, the first {with_greys[0]}, have greys between 0 and 255 ({shown}): these are no labels, "
        "but the edges of a smoothed or compressed mask; save them as masks of 0 and 255, or say where to cut in a spec file "
        "with threshold = 128 (--spec)"
    )


# --- masks of classes ---


def _labels_of_masks(cases: Sequence[Case], layout: Layout, looking: Looking) -> FoundLabels:
    maps = [case.label for case in cases if case.label is not None]
    if maps:
        raise AutosegError(
            f"{maps[0]} is a label map, but other cases have a mask for each class; give all cases the same kind"
        )
    present = {mask.label for case in cases for mask in case.masks}
    declared = [name for name in layout.labels or {} if name in present]
    classes = tuple(declared) if declared else tuple(sorted(present))
    wanted = [replace_masks(case, classes) for case in cases]
    coding = LabelCoding(
        labels=_plain(classes),
        file_values=tuple(range(len(classes) + 1)),
        classes=classes,
        later_wins=layout.overlap == "later",
        threshold=layout.threshold,
    )
    combinations: set[Combination] = set()
    if not coding.later_wins:
        find = partial(_combinations, coding=coding)
        found = look_up(
            wanted,
            f"overlaps from {layout.threshold}",
            find,
            kept=looking.kept,
            num_workers=looking.num_workers,
            reporter=looking.reporter,
        )
        combinations = {frozenset(names) for look in found for names in look.combinations}
    labels = labels_of_combinations(classes, combinations)
    number = len(labels.values)
    return FoundLabels(
        values=LabelValues(labels=labels, file_values=tuple(range(number + 1))),
        classes=classes,
        mask_value=_inside_value(wanted, layout.threshold),
    )


def replace_masks(case: Case, classes: Sequence[str]) -> Case:
    """The case with the masks of ``classes`` alone, in their order."""
    by_name = {mask.label: mask for mask in case.masks}
    return case.model_copy(update={"masks": tuple(by_name[name] for name in classes if name in by_name)})


def _combinations(case: Case, *, coding: LabelCoding) -> Answer | None:
    """Which classes share voxels in a case; None where its masks cannot be read, which the check reports."""
    try:
        found = mask_combinations(case, coding) if case.masks else frozenset()
    except AutosegError:
        return None
    return Answer(combinations=tuple(sorted(tuple(sorted(names)) for names in found)))


def labels_of_combinations(classes: Sequence[str], combinations: Iterable[Combination]) -> Labels:
    """Labels of classes that occur in these combinations: 1, 2 ... for a class alone, then one value a combination.

    Without a combination of two classes or more, classes are plain; with one, all are regions, and where regions overlap
    in a way that never occurred the later one is written.
    """
    several = sorted(
        {names for names in combinations if len(names) > 1}, key=lambda names: sorted(map(classes.index, names))
    )
    if not several:
        return _plain(classes)
    values = {name: [number] for number, name in enumerate(classes, 1)}
    for number, names in enumerate(several, len(classes) + 1):
        for name in names:
            values[name].append(number)
    return Labels(
        classes=tuple(LabelClass(name=name, values=tuple(values[name])) for name in classes),
        region_order=tuple(range(1, len(classes) + 1)),
    )


def _plain(classes: Sequence[str]) -> Labels:
    return Labels(classes=tuple(LabelClass(name=name, values=(number,)) for number, name in enumerate(classes, 1)))


def _inside_value(cases: Sequence[Case], threshold: int | None) -> int:
    """The value inside the first mask that is not empty."""
    for case in cases:
        for mask in case.masks:
            try:
                high = int(read_label_map(Path(mask.file)).array.max())
            except AutosegError:  # the check reports it with the others
                continue
            if high > 0:
                return WHITE if threshold is not None and high <= WHITE else high
    return 1


# --- partial annotation ---


def _with_unannotated(found: FoundLabels, cases: Sequence[Case]) -> FoundLabels:
    """With an ignore value where some cases are annotated for some classes only."""
    names = [label.name for label in found.values.labels.classes]
    unknown = sorted({name for case in cases for name in case.annotated or () if name not in names})
    if unknown:
        raise AutosegError(
            f"annotated_classes names {', '.join(unknown)}, but the classes are {', '.join(names)}; correct it"
        )
    partial_cases = [case.case_id for case in cases if case.annotated is not None and set(names) - set(case.annotated)]
    if not partial_cases:
        return found
    labels, file_values = found.values.labels, found.values.file_values
    if labels.ignore is None:
        labels = labels.model_copy(update={"ignore": len(labels.values) + 1})
        file_values = (*file_values, max(file_values) + 1)
    note = Issue(
        code=UNNAMED,
        severity="note",
        case=None,
        where=", ".join(partial_cases[:10]) + (" ..." if len(partial_cases) > 10 else ""),
        message="annotated for some of the classes only: their background is left out of training, as it may hold the others, and "
        "the other classes are not scored there",
        fix="nothing needs to be done",
    )
    return replace(found, values=LabelValues(labels=labels, file_values=file_values), issues=(*found.issues, note))
