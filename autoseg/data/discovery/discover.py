"""Finds the cases, channels and labels of a dataset in a folder, as people have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery.cases import (
    channel_names,
    channel_texts,
    find_test_cases,
    findings_about_files,
    make_case,
    unknown_in_groups,
)
from autoseg.data.discovery.classes import (
    FoundLabels,
    Looking,
    as_label_map,
    find_labels,
    only_class,
    replace_masks,
    resolve_segments,
)
from autoseg.data.discovery.declarations import Declaration, find_label_names, read_declaration, with_defaults
from autoseg.data.discovery.layouts import (
    Match,
    best_match,
    candidate_layouts,
    choose_known,
    expectations,
    match_layouts,
    read_layout,
    rival_matches,
)
from autoseg.data.discovery.series import choose_series
from autoseg.data.discovery.unlabelled import explain_nothing
from autoseg.imaging.readers import image_ending, require_text, writable_ending
from autoseg.issues import Issue
from autoseg.tracking.progress import Reporter, SilentReporter
from datasets_spec import Layout


def discover_dataset(
    folder: Path,
    *,
    layouts: Sequence[Layout] | None = None,
    layout: str | None = None,
    spec: Path | None = None,
    looks: Path | None = None,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> DatasetDescription:
    """The dataset that lies in ``folder``, whichever of ``layouts`` it has.

    ``folder`` may be a list of cases, too (CSV, TSV or JSON). Layouts are by default all that are known; ``layout``
    chooses one of them by name, and ``spec`` is a file that describes another one. Of several that fit, the one with the
    most cases is taken, and a note names the others.

    What lies in the folder decides which cases there are. What channels and classes are called, say in this order: the
    layout itself (a spec file), the folder's ``dataset.json``, what is known of the public dataset that it turns out to
    be, the names of files. Classes without a name are called after the values found in the label maps, which are then
    read by ``num_workers`` processes; so are masks of classes, to see which overlap. What was found so is kept in the file
    ``looks``, and files of unchanged size and time are not read again. Images without a label map, label
    maps without an image and files that compete for one place become ``findings``; those files belong to no case. Paths
    of the description are absolute.

    Raises `NothingLabelledError` where nothing in the folder is named like labels, and `AutosegError` where there is no such
    folder, nothing in it, no layout that fits, names of files that are no text, or a ``dataset.json`` that
    is wrong; what was looked for and what was found are said.
    """
    if spec is not None:
        layouts = (read_layout(spec),)
    root, candidates = candidate_layouts(folder, layouts, layout)
    matches = match_layouts(root, candidates)
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
    match, series_findings = choose_series(root, match, num_workers=num_workers)
    declaration, findings = read_declaration(root, match.layout)
    declaration = with_defaults(declaration, match.layout)
    channels, dropped = channel_texts(match)
    looking = Looking(kept=looks, num_workers=num_workers, reporter=reporter or SilentReporter())
    training, found = _training_cases(root, match, declaration, channels, looking=looking)
    test, test_findings = find_test_cases(root, match, declaration, channels)
    names = declaration.channels or channel_names(training, channels)
    unlabelled = sorted(
        file.path for case_id in match.images.keys() - match.labels.keys() for file in match.images[case_id]
    )
    orphans = sorted(
        file.path for case_id in match.labels.keys() - match.images.keys() for file in match.labels[case_id]
    )
    description = DatasetDescription(
        name=declaration.name or root.name,
        root=str(root),
        layout=match.layout.name,
        layout_title=match.layout.title,
        known=match.layout.title if match.layout.known is not None else None,
        channels=names,
        labels=found.values.labels,
        file_values=found.values.file_values,
        classes_with_masks=found.classes,
        later_mask_wins=match.layout.overlap == "later",
        threshold=match.layout.threshold,
        mask_value=found.mask_value,
        file_ending=_common_ending(training),
        training=training,
        test=test,
        unpaired_images=tuple(str(root / path) for path in unlabelled) if match.labels else (),
        unpaired_labels=tuple(str(root / path) for path in orphans),
        issues=(
            *findings,
            *series_findings,
            *found.issues,
            *unknown_in_groups(match, training),
            *findings_about_files(root, match, rival_matches(matches, match), declaration, dropped),
            *test_findings,
        ),
    )
    return description.model_copy(update={"issues": (*description.issues, *expectations(description, match.layout))})


def _training_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str], *, looking: Looking
) -> tuple[tuple[Case, ...], FoundLabels]:
    """The labelled cases, each with the classes that it was annotated for, and what is to be told apart in them.

    Segments of DICOM SEG files are masks; where there is but one class, its masks are label maps.
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
    findings: list[Issue] = []
    if declaration.label_values is None:
        in_tables, findings = find_label_names(root, [Path(case.label) for case in cases if case.label is not None])
        names |= in_tables
    found = find_labels(cases, match.layout, declaration, name=name, names=names, looking=looking)
    if found.classes:
        cases = tuple(replace_masks(case, found.classes) for case in cases)
    return cases, replace(found, issues=(*findings, *found.issues))


def _common_ending(cases: Sequence[Case]) -> str:
    """The ending that most label files have; the first by alphabet where several are as frequent."""
    endings = Counter(image_ending(file) for case in cases for file in case.label_files[:1])
    ending = min(endings, key=lambda ending: (-endings[ending], ending))
    return writable_ending(ending)
