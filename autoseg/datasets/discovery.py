"""Finds the cases, channels and labels of a dataset in a folder, as people have it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.datasets.dataset import Case, DatasetDescription, Finding
from autoseg.datasets.declaration import (
    Declaration,
    LabelValues,
    labels_named_by_value,
    read_decathlon,
)
from autoseg.datasets.patterns import FoundFile, list_files, match_files
from autoseg.errors import AutosegError
from autoseg.execution.jobs import run_jobs
from autoseg.imaging.formats import IMAGE_ENDINGS, image_ending, image_stem, read_header, read_label_map
from datasets_spec import CaseFiles, Layout, load_layouts

NUM_SHOWN = 6
"""Names shown of a longer list in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """What a layout finds in a folder; keys are case ids."""

    layout: Layout
    images: dict[str, list[FoundFile]]
    labels: dict[str, list[FoundFile]]
    test: dict[str, list[FoundFile]]

    @property
    def paired(self) -> tuple[str, ...]:
        return tuple(sorted(self.images.keys() & self.labels.keys()))


def discover_dataset(
    folder: Path, *, layouts: Sequence[Layout] | None = None, num_workers: int = 1
) -> DatasetDescription:
    """The dataset that lies in ``folder``, whichever of ``layouts`` (default: all known) it has.

    What lies in the folder decides which cases there are; its ``dataset.json`` names channels and labels. Without one,
    channels are numbered and classes are named by the values found in the label maps, which are then read by
    ``num_workers`` processes. Images without a label map, label maps without an image and files that compete for one
    place become ``findings``; those files belong to no case. Paths of the description are absolute.

    Raises `AutosegError` where there is no such folder, nothing in it, no layout that fits, or a ``dataset.json`` that
    is wrong; what was looked for and what was found are said.
    """
    root = _existing_folder(folder)
    match = _recognise(root, load_layouts() if layouts is None else layouts)
    declaration, findings = _read_declaration(root, match)
    training = tuple(_case(root, case_id, match.images[case_id], match.labels[case_id]) for case_id in match.paired)
    test, test_findings = _test_cases(root, match, declaration)
    channels = declaration.channels or _numbered_channels(training)
    label_values = declaration.label_values or _values_in_files(training, num_workers)
    orphans = sorted(file.path for case_id in match.labels.keys() - match.images.keys() for file in match.labels[case_id])
    return DatasetDescription(
        name=declaration.name or root.name,
        root=str(root),
        layout=match.layout.name,
        channels=channels,
        labels=label_values.labels,
        file_values=label_values.file_values,
        file_ending=_common_ending(match),
        training=training,
        test=test,
        unpaired_labels=tuple(str(root / path) for path in orphans),
        findings=(*findings, *_unlisted_findings(root, match, declaration), *_pairing_findings(root, match), *test_findings),
    )


def describe_dataset(dataset: DatasetDescription) -> str:
    """One sentence, e.g. ``60 labelled cases, 1 channel (MRI), labels Anterior and Posterior: Decathlon layout``."""
    titles = {layout.name: layout.title for layout in load_layouts()}
    cases = _count(len(dataset.training), "labelled case")
    test = f", {_count(len(dataset.test), 'test case')}" if dataset.test else ""
    channels = f"{_count(len(dataset.channels), 'channel')} ({', '.join(dataset.channels)})"
    names = [label.name for label in dataset.labels.classes]
    labels = f"label {names[0]}" if len(names) == 1 else f"labels {', '.join(names[:-1])} and {names[-1]}"
    return f"{cases}{test}, {channels}, {labels}: {titles.get(dataset.layout, dataset.layout)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _existing_folder(folder: Path) -> Path:
    if not folder.exists():
        raise AutosegError(f"{folder} does not exist; give the folder that holds the dataset")
    if not folder.is_dir():
        raise AutosegError(f"{folder} is a file, not a folder; give the folder that holds the dataset")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise AutosegError(f"{folder} could not be listed ({error.strerror or error}); make it readable") from error
    if empty:
        raise AutosegError(f"{folder} is empty; give the folder that holds the dataset")
    return folder.resolve()


def _recognise(root: Path, layouts: Sequence[Layout]) -> _Match:
    matches = [_match(root, layout) for layout in layouts]
    best = max(matches, key=lambda match: len(match.paired))
    if best.paired:
        return best
    looked_for = "; ".join(_expectation(match) for match in matches)
    raise AutosegError(
        f"{root} holds no dataset: looked for {looked_for}; found {_summary(root)}; "
        f"{_suggestion(root, layouts) or 'arrange the files like that, or give another folder'}"
    )


def _match(root: Path, layout: Layout) -> _Match:
    try:
        files = list_files(root, layout.patterns, fields=layout.fields, skip=layout.skip)
    except OSError as error:
        raise AutosegError(f"{error.filename} could not be listed ({error.strerror}); make it readable") from error

    def by_case(patterns: Sequence[str]) -> dict[str, list[FoundFile]]:
        cases: dict[str, list[FoundFile]] = {}
        for file in match_files(files, patterns, fields=layout.fields, endings=IMAGE_ENDINGS):
            cases.setdefault(file.fields["case"], []).append(file)
        return cases

    test = layout.test or CaseFiles(images=layout.training.images)
    return _Match(
        layout=layout,
        images=by_case(layout.training.images),
        labels=by_case(layout.training.labels),
        test=by_case(test.images) if layout.test else {},
    )


def _expectation(match: _Match) -> str:
    images = f"{_count(len(match.images), 'image')} and {_count(len(match.labels), 'label map')}"
    seen = f" (here {images}, none of the same case)" if match.images or match.labels else ""
    return f"{match.layout.title}: {match.layout.expects}{seen}"


def _summary(root: Path) -> str:
    """The folders (with how many entries) and files of a folder, in a few words."""
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    names = [f"{entry.name}/ ({_num_entries(entry)})" if entry.is_dir() else entry.name for entry in entries]
    return _shorten(names) or "hidden files only"


def _num_entries(folder: Path) -> str:
    try:
        return _count(sum(1 for _ in folder.iterdir()), "entry").replace("entrys", "entries")
    except OSError:
        return "not readable"


def _suggestion(root: Path, layouts: Sequence[Layout]) -> str:
    """Where a dataset lies one folder below or above, say so."""
    near = [*sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")), root.parent]
    for folder in near[-50:]:
        try:
            if any(_match(folder, layout).paired for layout in layouts):
                return f"{folder} holds one: give that folder"
        except (OSError, AutosegError):
            continue
    return ""


def _shorten(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more


def _read_declaration(root: Path, match: _Match) -> tuple[Declaration, list[Finding]]:
    description = match.layout.description
    if description is None:
        return Declaration(), []
    path = root / description.file
    if not path.is_file():
        return Declaration(), [_unnamed(path, f"there is no {description.file}: channels are numbered, classes named by their values")]
    declaration = read_decathlon(path)
    findings = []
    if declaration.channels is None:
        findings.append(_unnamed(path, "neither modality nor channel_names is given: channels are numbered"))
    if declaration.label_values is None:
        findings.append(_unnamed(path, "labels is not given: classes are named by their values"))
    return declaration, findings


def _unnamed(path: Path, found: str) -> Finding:
    return Finding(
        severity="warning", case_id=None, where=str(path), found=found,
        mend='write {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "name"}} there; a channel named CT is '
        "normalised as CT",
    )


def _numbered_channels(cases: Sequence[Case]) -> tuple[str, ...]:
    """``channel_0``, ``channel_1`` ... for the channels of the first case whose files can be read."""
    count = 1
    for case in cases:
        try:
            count = sum(read_header(path).num_channels for path in case.image_paths)
            break
        except AutosegError:  # the check reports it with the others
            continue
    return tuple(f"channel_{index}" for index in range(count))


def _values_in_files(cases: Sequence[Case], num_workers: int) -> LabelValues:
    found = run_jobs(_label_values, cases, name=lambda case: f"case {case.case_id}", num_workers=num_workers)
    values = {value for of_case in found for value in of_case}
    if not values - {0}:
        raise AutosegError(
            f"no label map of {Path(cases[0].label or '').parent} holds a value other than 0: there is nothing to segment; "
            "give label maps whose structures have values from 1 on"
        )
    return labels_named_by_value(values)


def _label_values(case: Case) -> tuple[int, ...]:
    """Values in the label map of a case; none where it cannot be read, which the check reports."""
    try:
        return tuple(int(value) for value in np.unique(read_label_map(Path(case.label or "")).array))
    except AutosegError:
        return ()


def _case(root: Path, case_id: str, images: Sequence[FoundFile], labels: Sequence[FoundFile] = ()) -> Case:
    """A case of the first file for each channel; rivals are reported by `_rivals`."""
    by_channel = {file.fields.get("channel", ""): file.path for file in reversed(images)}
    return Case(
        case_id=case_id,
        images=tuple(str(root / by_channel[channel]) for channel in sorted(by_channel)),
        label=str(root / labels[0].path) if labels else None,
        group=images[0].fields.get("patient"),
    )


def _test_cases(root: Path, match: _Match, declaration: Declaration) -> tuple[tuple[Case, ...], list[Finding]]:
    """Unlabelled cases in the folder, then those that only ``dataset.json`` lists."""
    cases = {case_id: _case(root, case_id, files) for case_id, files in match.test.items()}
    known = {image for case in cases.values() for image in case.images}
    missing = []
    for listed in declaration.test_files:
        path = Path(os.path.normpath(root / listed))
        if str(path) in known or path.name.startswith("."):
            continue
        if path.is_file() and image_ending(path):
            case_id = image_stem(path)
            cases.setdefault(case_id, Case(case_id=case_id, images=(str(path),)))
        else:
            missing.append(listed)
    return tuple(cases[case_id] for case_id in sorted(cases)), _missing_findings(root, match, missing, "test")


def _unlisted_findings(root: Path, match: _Match, declaration: Declaration) -> list[Finding]:
    """Training images that are listed, but of which neither image nor label is in the folder."""
    present = match.images.keys() | match.labels.keys()
    missing = [file for file in declaration.training_files if image_stem(file) not in present]
    return _missing_findings(root, match, missing, "training")


def _missing_findings(root: Path, match: _Match, missing: Sequence[str], kind: str) -> list[Finding]:
    if not missing or match.layout.description is None:
        return []
    return [Finding(
        severity="warning" if kind == "training" else "note", case_id=None,
        where=str(root / match.layout.description.file),
        found=f"lists {_count(len(missing), f'{kind} image')} that the folder does not have: {_shorten(missing)}",
        mend="fetch the files, or remove them from the list; the run goes on without them",
    )]


def _pairing_findings(root: Path, match: _Match) -> list[Finding]:
    findings = []
    for case_id in sorted(match.images.keys() | match.labels.keys()):
        images, labels = match.images.get(case_id, []), match.labels.get(case_id, [])
        if not labels:
            findings.append(_error(root, case_id, images[0], "the image has no label map",
                                   "add a label map of the same name, or remove the image"))
        elif not images:
            findings.append(_error(root, case_id, labels[0], "the label map has no image",
                                   "add an image of the same name, or remove the label map"))
        findings += _rivals(root, case_id, images) + _rivals(root, case_id, labels)
    return findings + [f for case_id, files in sorted(match.test.items()) for f in _rivals(root, case_id, files)]


def _rivals(root: Path, case_id: str, files: Sequence[FoundFile]) -> list[Finding]:
    """Files beyond the first for the same channel of a case."""
    first: dict[str, FoundFile] = {}
    findings = []
    for file in files:
        kept = first.setdefault(file.fields.get("channel", ""), file)
        if kept is not file:
            findings.append(_error(root, case_id, file, f"{kept.path} is there for the same case",
                                   "keep one of the two"))
    return findings


def _error(root: Path, case_id: str, file: FoundFile, found: str, mend: str) -> Finding:
    return Finding(severity="error", case_id=case_id, where=str(root / file.path), found=found, mend=mend)


def _common_ending(match: _Match) -> str:
    """The ending that most label files have; the first by alphabet where several are as frequent."""
    endings = Counter(image_ending(match.labels[case_id][0].path) for case_id in match.paired)
    return min(endings, key=lambda ending: (-endings[ending], ending))
