"""Finds the cases, channels and labels of a dataset in a folder, as people have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery.cases import (
    channel_names,
    channel_texts,
    file_issues,
    find_test_cases,
    layout_issues,
    make_case,
)
from autoseg.data.discovery.classes import (
    FoundLabels,
    LabelReading,
    as_label_map,
    find_labels,
    only_class,
    replace_masks,
    resolve_segments,
)
from autoseg.data.discovery.declarations import Declaration, find_label_names, read_declaration, with_defaults
from autoseg.data.discovery.layouts import (
    Files,
    Match,
    best_match,
    candidate_layouts,
    choose_known,
    compare_with_known,
    match_layouts,
    read_layout,
    rival_matches,
    without_cases,
)
from autoseg.data.discovery.series import choose_series
from autoseg.data.discovery.unlabelled import explain_nothing
from autoseg.imaging.readers import image_ending, require_text, writable_ending
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun, suggest
from datasets_spec import Layout


def discover_dataset(
    folder: Path,
    *,
    layouts: Sequence[Layout] | None = None,
    layout: str | None = None,
    spec: Path | None = None,
    exclude: Sequence[str] = (),
    cache: Path | None = None,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> DatasetDescription:
    """The dataset in ``folder``, in any of ``layouts``.

    ``folder`` may also be a list of cases (CSV, TSV or JSON). The default is all known layouts; ``layout`` selects one by
    name, and ``spec`` is a file that describes another one. Of several that fit, the one with the most cases is taken; a
    note names the others.

    The files in the folder determine the cases; training and test cases in ``exclude`` are left out. Names of channels and
    classes come from, in this order: the layout itself (a spec file), the folder's ``dataset.json``, the known public
    dataset that it is, the names of files. Unnamed classes are named by the values in the label maps, which
    ``num_workers`` processes then read; so are masks of classes, to find those that overlap. The folder ``cache`` keeps
    what they found, and unchanged files are not read again. Images without labels, labels without an image and several
    files for one channel become ``issues``; they belong to no case. All paths are absolute.

    Raises `AutosegError` where the folder does not exist, is empty or cannot be read, where no layout fits
    (``dataset.unrecognised``) or nothing is labelled (``dataset.unlabelled``), for an unknown case in ``exclude``, and for
    a spec file or ``dataset.json`` that is invalid.
    """
    if spec is not None:
        layouts = (read_layout(spec),)
    root, candidates = candidate_layouts(folder, layouts, layout)
    matches = match_layouts(root, candidates)
    whole = _recognise(root, matches)
    match, series_issues = choose_series(root, without_cases(root, whole, exclude), num_workers=num_workers)
    declared, declaration_issues = read_declaration(root, match.layout)
    declaration = with_defaults(declared, match.layout)
    channels, dropped = channel_texts(match)
    test, test_issues = find_test_cases(root, match, declaration, channels)
    known = {*whole.images, *whole.labels, *whole.test, *(case.case_id for case in test)}
    test_issues += _excluded(root, exclude, known)
    test = tuple(case for case in test if case.case_id not in exclude)
    reading = LabelReading(cache=cache, num_workers=num_workers, reporter=reporter or SilentReporter())
    training, found = _training_cases(root, match, declaration, channels, reading=reading)
    issues = (
        *declaration_issues,
        *series_issues,
        *found.issues,
        *layout_issues(root, whole, rival_matches(matches, whole), declaration),
        *file_issues(root, match, dropped),
        *test_issues,
    )
    description = _describe(root, match, declaration, channels, training, test, found)
    issues += tuple(compare_with_known(description, match.layout))
    return description.model_copy(update={"issues": issues, "left_out": tuple(sorted(set(exclude)))})


def _describe(
    root: Path,
    match: Match,
    declaration: Declaration,
    channels: Sequence[str],
    training: tuple[Case, ...],
    test: tuple[Case, ...],
    found: FoundLabels,
) -> DatasetDescription:
    layout = match.layout
    return DatasetDescription(
        name=declaration.name or root.name,
        root=str(root),
        layout=layout.name,
        layout_title=layout.title,
        known=layout.title if layout.known is not None else None,
        channels=declaration.channels or channel_names(training, channels),
        labels=found.values.labels,
        file_values=found.values.file_values,
        classes_with_masks=found.classes,
        later_mask_wins=layout.overlap == "later",
        threshold=layout.threshold,
        mask_value=found.mask_value,
        file_ending=_common_ending(training),
        training=training,
        test=test,
        unpaired_images=_paths(root, match.images, without=match.labels) if match.labels else (),
        unpaired_labels=_paths(root, match.labels, without=match.images),
    )


def _recognise(root: Path, matches: Sequence[Match]) -> Match:
    """The best match. Raises `AutosegError` where none has a labelled case, or where names of files are not text."""
    match = best_match([each for each in matches if each.layout.known is None] or matches)
    match = choose_known(root, match, matches)
    require_text(
        root / file.path
        for files in (match.images, match.labels, match.test)
        for found in files.values()
        for file in found
    )
    if not match.paired:
        raise explain_nothing(root, matches)
    return match


def _excluded(root: Path, exclude: Sequence[str], known: Collection[str]) -> list[Issue]:
    """A note about cases that were left out by name. Raises `AutosegError` for names of no case."""
    unknown = [
        Issue(code="case.unknown", where="--exclude", message=f"case {name} does not exist", fix=suggest(name, known))
        for name in dict.fromkeys(exclude)
        if name not in known
    ]
    if unknown:
        raise AutosegError(*unknown)
    names = sorted(set(exclude))
    message = f"{count_noun(len(names), 'case')} left out by name (--exclude): {', '.join(names)}"
    return [Issue(code="case.excluded", severity="note", where=str(root), message=message)] if names else []


def _paths(root: Path, files: Files, *, without: Files) -> tuple[str, ...]:
    """Files of the cases that have none in ``without``."""
    return tuple(sorted(str(root / file.path) for case_id in files.keys() - without.keys() for file in files[case_id]))


def _training_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str], *, reading: LabelReading
) -> tuple[tuple[Case, ...], FoundLabels]:
    """The labelled cases, with the classes that each was annotated for, and the classes of the dataset.

    Segments of DICOM SEG files are masks; if there is only one class, its masks are label maps.
    """
    cases = tuple(
        make_case(root, match.layout, case_id, match.images[case_id], match.labels[case_id], channels).model_copy(
            update={"annotated": declaration.annotated_classes.get(case_id)}
        )
        for case_id in match.paired
    )
    cases, names = resolve_segments(cases)
    name = only_class(cases)
    if name is not None:
        cases = tuple(as_label_map(case) for case in cases)
    issues: list[Issue] = []
    if declaration.label_values is None:
        in_tables, issues = find_label_names(root, [Path(case.label) for case in cases if case.label is not None])
        names |= in_tables
    found = find_labels(cases, match.layout, declaration, name=name, names=names, reading=reading)
    if found.classes:
        cases = tuple(replace_masks(case, found.classes) for case in cases)
    return cases, replace(found, issues=(*issues, *found.issues))


def _common_ending(cases: Sequence[Case]) -> str:
    """The ending that most label files have; the first by alphabet where several are as frequent."""
    endings = Counter(image_ending(file) for case in cases for file in case.label_files[:1])
    ending = min(endings, key=lambda ending: (-endings[ending], ending))
    return writable_ending(ending)
