"""The classes of a dataset and their values: as declared, or as found in the label files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import is_not
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.dataset import Case, LabelCoding, MaskFile
from autoseg.data.discovery.declarations import Declaration, LabelValues, labels_named_by_value
from autoseg.data.labels import (
    BACKGROUND,
    CHANNEL,
    EXPORT_AS_PNG,
    OF,
    WHITE,
    Combination,
    mask_combinations,
    with_way_out,
)
from autoseg.imaging.readers import (
    PART_MARK,
    file_states,
    is_lossy,
    is_segmentation,
    list_segments,
    read_image,
    read_label_map,
    split_part,
)
from autoseg.issues import AutosegError, Issue
from autoseg.storage.cache import Cached
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout
from planners import LabelClass, Labels

Result = TypeVar("Result")


def resolve_segments(cases: Sequence[Case]) -> tuple[tuple[Case, ...], dict[int, str]]:
    """The cases with the segments of their label files as masks, or with label maps and the names of their values.

    Segments are distinguished by name; those of one file with the same name are numbered. They are read as label maps if
    they do not overlap and a name has the same value in all files. Other label files stay as they are. Raises
    `AutosegError` where a file of segments cannot be read.
    """
    found = {
        case.label: list_segments(case.label)
        for case in cases
        if case.label is not None and is_segmentation(case.label)
    }
    named = {label: unique_names(segments.by_number) for label, segments in found.items()}
    pairs = {pair for table in named.values() for pair in table.items()}
    numbers, names = {number for number, _ in pairs}, {name for _, name in pairs}
    may_overlap = any(segments.may_overlap for segments in found.values()) or any(case.masks for case in cases)
    if len(numbers) == len(names) == len(pairs) and not may_overlap:
        return tuple(cases), dict(sorted(pairs))
    return tuple(_with_masks(case, named[case.label]) if case.label in named else case for case in cases), {}


def resolve_channels(cases: Sequence[Case], layout: Layout) -> tuple[tuple[Case, ...], dict[int, str]] | None:
    """The cases with a mask for each colour or channel of their label files, where the layout names these; else None."""
    parts = {name: colour.lower() for name, colour in (layout.colours or {}).items()} or {
        name: f"{PART_MARK}{CHANNEL}{number}{OF}{len(layout.one_hot or ())}"
        for number, name in enumerate(layout.one_hot or ())
        if name != BACKGROUND
    }
    if not parts:
        return None
    masks = (tuple(MaskFile(label=name, file=f"{case.label}{part}") for name, part in parts.items()) for case in cases)
    return tuple(c.model_copy(update={"label": None, "masks": own}) for c, own in zip(cases, masks, strict=True)), {}


def _colours_in(case: Case) -> dict[str, int] | None:
    """Pixels of each colour in the label file of a case; None if it cannot be read, which the check reports."""
    try:
        image = read_image([Path(case.label_files[0])]).array.astype(np.int64)
    except AutosegError:
        return None
    red, green, blue = (image[min(channel, len(image) - 1)] for channel in range(3))
    values, counts = np.unique((red << 16) + (green << 8) + blue, return_counts=True)
    return {f"#{value:06x}": count for value, count in zip(values.tolist(), counts.tolist(), strict=True)}


def _other_colours(found: Sequence[Mapping[str, int] | None], colours: Mapping[str, str], where: str) -> list[Issue]:
    """A warning about colours that the spec file does not name; the most frequent of them is the background."""
    total: Counter[str] = Counter()
    for counts in found:
        total.update(counts or {})
    others = [colour for colour, _ in total.most_common() if colour not in {each.lower() for each in colours.values()}]
    if len(others) < 2:
        return []
    shown = shorten([f"{colour} ({count_noun(total[colour], 'pixel')})" for colour in others[1:]])
    message = f"no class has these colours, so they count as background, as {others[0]} does: {shown}"
    fix = "name them under colours in the spec file, or save the masks without smooth edges"
    return [Issue(code="labels.undeclared_colour", severity="warning", where=where, message=message, fix=fix)]


def unique_names(names: Mapping[int, str]) -> dict[int, str]:
    count = Counter(names.values())
    return {
        number: name if name and count[name] == 1 else f"{name or 'segment'}_{number}" for number, name in names.items()
    }


def _with_masks(case: Case, names: Mapping[int, str]) -> Case:
    masks = tuple(MaskFile(label=name, file=f"{case.label}{PART_MARK}{number}") for number, name in names.items())
    return case.model_copy(update={"label": None, "masks": masks})


def one_spelling(root: Path, cases: Sequence[Case]) -> tuple[tuple[Case, ...], list[Issue]]:
    """The cases with one name for classes whose masks are named alike but for case, spaces and dashes, and a note on them.

    The most frequent spelling is kept. Names that occur together in a case are different classes.
    """
    count = Counter(mask.label for case in cases for mask in case.masks)
    spellings: dict[str, list[str]] = {}
    for name, _ in sorted(count.items(), key=lambda each: (-each[1], each[0])):
        spellings.setdefault(re.sub(r"[\s_-]+", " ", name.casefold()).strip(), []).append(name)
    together = [{mask.label for mask in case.masks} for case in cases]
    merged = {
        name: names[0]
        for names in spellings.values()
        if len(names) > 1 and not any(len(labels.intersection(names)) > 1 for labels in together)
        for name in names
    }
    if not merged:
        return tuple(cases), []
    renamed = (
        tuple(mask.model_copy(update={"label": merged.get(mask.label, mask.label)}) for mask in case.masks)
        for case in cases
    )
    shown = shorten([f"{name} as {kept}" for name, kept in sorted(merged.items()) if name != kept])
    message, fix = f"masks whose names differ in spelling only are one class: {shown}", "give them one name"
    issue = Issue(code="labels.spelling", severity="note", where=str(root), message=message, fix=fix)
    return tuple(c.model_copy(update={"masks": own}) for c, own in zip(cases, renamed, strict=True)), [issue]


FILE_S, BYTE_S = 0.005, 2.5e-6
"""Processor time to read a label file, and for each byte of it: compressed, one holds about a hundred voxels."""
MOST_CLASSES_BELOW_WHITE = 30
GREY_SHARE = 0.05
"""Values between 0 and 255 are grey values of a smoothed edge, not classes, if they cover less than this share of the
foreground, or if there are more than `MOST_CLASSES_BELOW_WHITE` of them."""
NEARLY_WHITE = 240
"""... or if they come as near to 255 as this: lossy compression turns 0 and 255 into 0 to 7 and 248 to 255, with large areas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReading:
    """How label files are read while the classes are determined."""

    cache: Path | None = None
    """Folder that keeps what was found; files of unchanged size and time are not read again."""
    num_workers: int = 1
    reporter: Reporter = field(default_factory=SilentReporter)

    def of_each(
        self, function: Callable[[Case], Result | None], kind: Any, cases: Sequence[Case]
    ) -> list[Result | None]:
        """``function`` of each case, from the cache if its label files have not changed; None for unreadable files."""
        cached = function
        missing = list(cases)
        if self.cache is not None:
            kept = Cached(
                function=function, kind=kind, state=_state, folder=self.cache, worth_keeping=partial(is_not, None)
            )
            cached, missing = kept, [case for case in cases if not kept.has(case)]
        if not missing:
            return [cached(case) for case in cases]
        sizes = (size for case in missing for _, size, _ in file_states(case.label_files))
        seconds = sum(FILE_S + BYTE_S * size for size in sizes)
        workers = workers_worth_starting(self.num_workers, seconds)
        with self.reporter.track("Reading labels", len(cases)) as tracker:
            return run_jobs(
                cached, cases, name=lambda case: f"case {case.case_id}", num_workers=workers, tracker=tracker
            )


def _state(case: Case) -> object:
    return case.label, case.masks, file_states(case.label_files)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLabels:
    """The classes of a dataset."""

    values: LabelValues
    classes: tuple[str, ...] = ()
    """Those with their own mask files, in order."""
    mask_value: int = 1
    issues: tuple[Issue, ...] = ()


def only_class(cases: Sequence[Case]) -> str | None:
    """The class of all masks if there is only one and each mask has its own file: such files are label maps."""
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
    reading: LabelReading,
) -> FoundLabels:
    """The classes of a dataset with the labelled ``cases`` (one or more).

    Declared ones are taken as they are; otherwise the label maps are read for their values. Masks of classes are read
    for overlaps, unless the later class wins: every combination that occurs gets an internal value, and overlapping
    classes become regions. ``names`` are those of undeclared values, ``name`` that of the only class. Raises
    `AutosegError` where there is nothing to segment, where a label file has grey values, or where some cases have masks
    and others label maps.
    """
    if any(case.masks for case in cases):
        found = _labels_of_masks(cases, layout, reading)
    elif declaration.label_values is not None:
        found = FoundLabels(values=declaration.label_values)
    elif layout.threshold is not None:
        only = LabelClass(name=name or "foreground", values=(1,))
        found = FoundLabels(values=LabelValues(labels=Labels(classes=(only,)), file_values=(0, WHITE)))
    else:
        values = _values_in_files(cases, reading)
        if name is not None and len(values) == 1:
            names = {values[0]: name} | dict(names or {})
        found = FoundLabels(values=labels_named_by_value(values, names))
    lossy = _lossy(cases, found) if layout.threshold is None else []
    return _with_unannotated(replace(found, issues=(*found.issues, *lossy)), cases)


def _lossy(cases: Sequence[Case], found: FoundLabels) -> list[Issue]:
    """A warning on label files that do not keep their values, unless they are masks of black and white."""
    files = [path for case in cases for path in dict.fromkeys(split_part(Path(f))[0] for f in case.label_files)]
    lossy = [path for path in files if is_lossy(path)]
    if not lossy or found.values.file_values == (0, WHITE):
        return []
    message = (
        f"{count_noun(len(lossy), 'label file')} saved as JPEG, which changes values: borders of classes are wrong"
    )
    return [Issue(code="labels.lossy", severity="warning", where=str(lossy[0]), message=message, fix=EXPORT_AS_PNG)]


def _values_in_files(cases: Sequence[Case], reading: LabelReading) -> tuple[int, ...]:
    """All values other than 0, sorted."""
    read = reading.of_each(_label_values, dict[int, int], cases)
    found = [counts or {} for counts in read]
    _refuse_greys(cases, found)
    values = {value for counts in found for value in counts} - {0}
    if not values:
        _refuse_unreadable([case for case, counts in zip(cases, read, strict=True) if counts is None])
        where, fix = str(Path(cases[0].label or "").parent), "use label maps whose structures have values of 1 or more"
        message = "no label map has a value other than 0: there is nothing to segment"
        raise AutosegError(Issue(code="labels.all_empty", where=where, message=message, fix=fix))
    return tuple(sorted(values))


def _label_values(case: Case) -> dict[int, int] | None:
    """Voxels of each value in the label map of a case; None if it cannot be read, which the check reports."""
    try:
        values, counts = np.unique(read_label_map(Path(case.label or "")).array, return_counts=True)
    except AutosegError:
        return None
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _refuse_unreadable(cases: Sequence[Case]) -> None:
    """Raise the readers' own reasons."""
    issues = []
    for case in cases:
        try:
            read_label_map(Path(case.label or ""))
        except AutosegError as error:
            issues += [
                with_way_out(issue, case.images[0]).model_copy(update={"case": case.case_id}) for issue in error.issues
            ]
    if issues:
        raise AutosegError(*issues, headline="No label map can be read:")


def _refuse_greys(cases: Sequence[Case], found: Sequence[Mapping[int, int]]) -> None:
    total: Counter[int] = Counter()
    for of_case in found:
        total.update(of_case)
    white = [case for case, counts in zip(cases, found, strict=True) if WHITE in counts]
    if total.keys() - {0} == {1, WHITE} and not any({1, WHITE} <= counts.keys() for counts in found):
        raise AutosegError(
            Issue(
                code="labels.mixed_masks",
                where=white[0].label or "",
                message=f"{count_noun(len(white), 'label map')} with values 0 and {WHITE}, {len(cases) - len(white)} others "
                "with 0 and 1: one class written in two ways, or two classes",
                fix="set threshold = 1 in a spec file (--spec) if it is one, else name both in labels",
            )
        )
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
    raise AutosegError(
        Issue(
            code="labels.grey_values",
            where=with_greys[0],
            message=f"{count_noun(len(with_greys), 'label map')} with grey values between 0 and {WHITE} "
            f"({shorten(list(map(str, sorted(between))))}): edges of a smoothed or compressed mask, not labels",
            fix=f"{'export them as PNG' if is_lossy(with_greys[0]) else f'save masks of 0 and {WHITE}'}, or set threshold = 128 in a "
            "spec file (--spec)",
        )
    )


def _labels_of_masks(cases: Sequence[Case], layout: Layout, reading: LabelReading) -> FoundLabels:
    maps = [case.label for case in cases if case.label is not None]
    if maps:
        message, fix = (
            "a label map, but other cases have a mask for each class",
            "use the same kind of labels in all cases",
        )
        raise AutosegError(Issue(code="labels.mixed_kinds", where=maps[0], message=message, fix=fix))
    present = {mask.label for case in cases for mask in case.masks}
    declared = [name for name in layout.labels or layout.colours or layout.one_hot or () if name in present]
    others = sorted(present - set(declared))
    # a public dataset may have got masks of one's own beside it, a spec file lists what is wanted
    classes = (*declared, *others) if layout.known is not None or not declared else tuple(declared)
    wanted = [replace_masks(case, classes) for case in cases]
    coding = LabelCoding(
        labels=_plain(classes),
        file_values=tuple(range(len(classes) + 1)),
        classes=classes,
        later_wins=layout.overlap == "later",
        threshold=layout.threshold,
    )
    issues: list[Issue] = []
    if layout.colours and not any(is_lossy(split_part(Path(f))[0]) for case in wanted for f in case.label_files):
        in_files = reading.of_each(_colours_in, dict[str, int], wanted)
        issues += _other_colours(in_files, layout.colours, layout.title)
    combinations: set[Combination] = set()
    if not coding.later_wins:
        found = [each for each in reading.of_each(partial(_combinations, coding=coding), Overlaps, wanted) if each]
        combinations.update(*(overlaps for overlaps, _ in found))
        issues += _mixed_values([values for _, values in found], layout)
    if layout.one_hot and combinations and frozenset() not in combinations:
        issues.append(_no_background(layout))
    labels = labels_of_combinations(classes, combinations)
    return FoundLabels(
        values=LabelValues(labels=labels, file_values=tuple(range(len(labels.values) + 1))),
        classes=classes,
        mask_value=_inside_value(wanted, layout.threshold),
        issues=(*issues, *(_other_masks(others, classes, layout) if declared and others else ())),
    )


def _no_background(layout: Layout) -> Issue:
    """A warning about channels that leave no voxel to the background."""
    message = "every voxel of every case has a class: a background channel may count as one"
    fix = f"call it {BACKGROUND} in one_hot of the spec file, if it is one"
    return Issue(code="labels.no_background", severity="warning", where=layout.title, message=message, fix=fix)


def _other_masks(others: Sequence[str], classes: Sequence[str], layout: Layout) -> tuple[Issue, ...]:
    """A note about masks of classes that the layout does not list."""
    use = "trained as classes of their own" if set(others) <= set(classes) else "not used"
    return (
        Issue(
            code="labels.other_masks",
            severity="note",
            where=layout.title,
            message=f"masks of {shorten(others)} are not among its labels: they are {use}",
            fix="list the classes that are wanted under labels in a spec file (--spec)",
        ),
    )


def replace_masks(case: Case, classes: Sequence[str]) -> Case:
    """The case with the masks of ``classes`` alone, in their order."""
    by_name = {mask.label: mask for mask in case.masks}
    return case.model_copy(update={"masks": tuple(by_name[name] for name in classes if name in by_name)})


Overlaps = tuple[frozenset[Combination], dict[str, int]]
"""What `mask_combinations` finds in a case."""


def _mixed_values(found: Sequence[Mapping[str, int]], layout: Layout) -> list[Issue]:
    """A note on classes whose masks have other values inside in some cases."""
    of_class: dict[str, Counter[int]] = {}
    for values in found:
        for name, value in values.items():
            of_class.setdefault(name, Counter())[value] += 1
    mixed = {name: sorted(counts.items()) for name, counts in sorted(of_class.items()) if len(counts) > 1}
    if not mixed:
        return []
    shown = []
    for name, counts in mixed.items():
        values_in = ", ".join(f"{value} in {count_noun(number, 'case')}" for value, number in counts)
        shown.append(f"{name} ({values_in})")
    message = f"masks of one class have several values inside, which are read as one: {shorten(shown)}"
    fix = "make sure that they are one class"
    return [Issue(code="labels.mixed_masks", severity="note", where=layout.title, message=message, fix=fix)]


def _combinations(case: Case, *, coding: LabelCoding) -> Overlaps | None:
    """Which classes overlap in a case; None if its masks cannot be read, which the check reports."""
    try:
        return mask_combinations(case, coding) if case.masks else (frozenset(), {})
    except AutosegError:
        return None


def labels_of_combinations(classes: Sequence[str], combinations: Iterable[Combination]) -> Labels:
    """Labels of classes that occur in these combinations: 1, 2 ... for a class alone, then one value a combination.

    Without a combination of two classes or more, classes are plain; with one, all are regions, and where regions overlap
    in a way that did not occur the later one is written.
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
    for mask in (mask for case in cases for mask in case.masks):
        with suppress(AutosegError):  # the check reports it
            high = int(read_label_map(Path(mask.file)).array.max())
            if high > 0:
                return WHITE if threshold is not None and high <= WHITE else high
    return 1


def _with_unannotated(found: FoundLabels, cases: Sequence[Case]) -> FoundLabels:
    """With an ignore value where some cases are annotated for some classes only."""
    names = [label.name for label in found.values.labels.classes]
    unknown = sorted({name for case in cases for name in case.annotated or () if name not in names})
    if unknown:
        raise AutosegError(
            Issue(
                code="description.annotated_classes",
                where="annotated_classes",
                message=f"unknown classes {', '.join(unknown)} (available: {', '.join(names)})",
                fix="correct the names in the dataset's description",
            )
        )
    partial_cases = [case.case_id for case in cases if case.annotated is not None and set(names) - set(case.annotated)]
    if not partial_cases:
        return found
    labels, file_values = found.values.labels, found.values.file_values
    if labels.ignore is None:
        labels = labels.model_copy(update={"ignore": len(labels.values) + 1})
        file_values = (*file_values, max(file_values) + 1)
    note = Issue(
        code="labels.partly_annotated",
        severity="note",
        where=shorten(partial_cases),
        message="only some classes are annotated: the background is ignored in training, because it may contain "
        "the other classes, which are not scored",
    )
    return replace(found, values=LabelValues(labels=labels, file_values=file_values), issues=(*found.issues, note))
