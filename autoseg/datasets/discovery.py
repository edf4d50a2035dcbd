"""Finds the cases, channels and labels of a dataset in a folder, as people have it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.datasets.dataset import Case, DatasetDescription, Finding, MaskFile
from autoseg.datasets.declaration import Declaration, declared_by_layout, read_decathlon
from autoseg.datasets.found_labels import (
    FoundLabels,
    Looking,
    as_label_map,
    find_labels,
    only_class,
    replace_masks,
)
from autoseg.datasets.known import choose_known, expectations
from autoseg.datasets.label_tables import find_label_names
from autoseg.datasets.matching import Match, best_match, match_layouts, rival_matches
from autoseg.datasets.nothing_found import explain_nothing
from autoseg.datasets.patterns import FoundFile
from autoseg.datasets.segment_files import resolve_segments
from autoseg.datasets.series_choice import choose_series
from autoseg.datasets.wording import NUM_SHOWN, count_noun, shorten
from autoseg.errors import AutosegError
from autoseg.imaging.formats import (
    image_ending,
    image_stem,
    list_series,
    read_header,
    writable_ending,
)
from autoseg.imaging.formats.dicom import split_part
from autoseg.progress import Reporter, SilentReporter
from datasets_spec import Layout, load_known, load_layouts, read_spec
from datasets_spec.layout import CLASS
from planners import DocumentError

MODALITIES = frozenset({
    "ct", "cbct", "pet", "t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2star", "flair", "pd", "pdw", "dwi", "adc", "sem", "tem",
})
"""Last words of file names that say what was recorded; a channel that is called CT is normalised as CT."""
LISTS = (".csv", ".tsv", ".json")
"""Endings of lists of cases, which may be given in place of their folder."""


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
    folder, nothing in it, no layout that fits, or a ``dataset.json`` that
    is wrong; what was looked for and what was found are said.
    """
    if spec is not None:
        layouts = (_read_spec(spec),)
    root, candidates = _candidates(folder, layouts, layout)
    matches = match_layouts(root, candidates)
    match = best_match([each for each in matches if each.layout.known is None] or matches)
    match = choose_known(root, match, matches)
    if not match.paired:
        raise explain_nothing(root, matches)
    match, series_findings = choose_series(root, match, num_workers=num_workers)
    declaration, findings = _read_declaration(root, match)
    declaration = _with_defaults(declaration, match.layout)
    channels, dropped = _channel_texts(match)
    looking = Looking(kept=looks, num_workers=num_workers, reporter=reporter or SilentReporter())
    training, found = _training_cases(root, match, declaration, channels, looking=looking)
    test, test_findings = _test_cases(root, match, declaration, channels)
    names = declaration.channels or _channel_names(training, channels)
    unlabelled = sorted(
        file.path for case_id in match.images.keys() - match.labels.keys() for file in match.images[case_id]
    )
    orphans = sorted(file.path for case_id in match.labels.keys() - match.images.keys() for file in match.labels[case_id])
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
        findings=(
            *findings, *series_findings, *found.findings, *_unknown_in_groups(match, training),
            *_ambiguity(root, match, rival_matches(matches, match)), *_dropped(root, match, dropped),
            *_unlisted_findings(root, match, declaration), *_list_findings(match), *_pairing_findings(root, match),
            *test_findings,
        ),
    )
    return description.model_copy(update={"findings": (*description.findings, *expectations(description, match.layout))})


def _training_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str], *, looking: Looking
) -> tuple[tuple[Case, ...], FoundLabels]:
    """The labelled cases, each with the classes that it was annotated for, and what is to be told apart in them.

    Segments of DICOM SEG files are masks; where there is but one class, its masks are label maps.
    """
    cases = tuple(
        _case(root, match.layout, case_id, match.images[case_id], match.labels[case_id], channels).model_copy(
            update={"annotated": declaration.annotated_classes.get(case_id)}
        )
        for case_id in match.paired
    )
    cases, names = resolve_segments(cases)
    name = only_class(cases)
    if name is not None:
        cases = tuple(as_label_map(case) for case in cases)
    findings: list[Finding] = []
    if declaration.label_values is None:
        in_tables, findings = find_label_names(root, [Path(case.label) for case in cases if case.label is not None])
        names |= in_tables
    found = find_labels(cases, match.layout, declaration, name=name, names=names, looking=looking)
    if found.classes:
        cases = tuple(replace_masks(case, found.classes) for case in cases)
    return cases, replace(found, findings=(*findings, *found.findings))


def describe_dataset(dataset: DatasetDescription) -> str:
    """One sentence, e.g. ``60 labelled cases, 1 channel (MRI), labels Anterior and Posterior: Decathlon layout``."""
    cases = count_noun(len(dataset.training), "labelled case")
    test = f", {count_noun(len(dataset.test), 'test case')}" if dataset.test else ""
    channels = f"{count_noun(len(dataset.channels), 'channel')} ({', '.join(dataset.channels)})"
    names = [label.name for label in dataset.labels.classes]
    kind = "region" if dataset.labels.has_regions else "label"
    if len(names) > 2 * NUM_SHOWN:
        labels = f"{len(names)} {kind}s ({shorten(names)})"
    else:
        labels = f"{kind} {names[0]}" if len(names) == 1 else f"{kind}s {', '.join(names[:-1])} and {names[-1]}"
    ignore = ", an ignore label" if dataset.labels.ignore is not None else ""
    patients = {case.group or case.case_id for case in dataset.training}
    of = f" of {count_noun(len(patients), 'patient')}" if len(patients) < len(dataset.training) else ""
    return f"{cases}{of}{test}, {channels}, {labels}{ignore}: {dataset.layout_title or dataset.layout}"


# --- where to look ---


def _candidates(folder: Path, layouts: Sequence[Layout] | None, name: str | None) -> tuple[Path, Sequence[Layout]]:
    """The folder to look into and the layouts to look for."""
    known = load_layouts() if layouts is None else layouts
    if folder.is_file() and folder.suffix.lower() in LISTS:
        lists = [each for each in known if each.listing is not None]
        return folder.parent.resolve(), [
            each.model_copy(update={"listing": each.listing.model_copy(update={"files": (folder.name,)})})
            for each in lists if each.listing is not None
        ]
    root = _existing_folder(folder)
    if layouts is None:
        known = (*known, *(each for each in load_known() if each.training is not None))
    if name is None:
        return root, known
    chosen = [each for each in known if each.name == name]
    if not chosen:
        names = ", ".join(each.name for each in known)
        raise AutosegError(f"there is no layout {name!r}; choose one of {names}, or describe the folder in a spec file (--spec)")
    return root, chosen


def _read_spec(path: Path) -> Layout:
    try:
        return read_spec(path)
    except (DocumentError, OSError) as error:
        raise AutosegError(f"{path} is no spec file that can be used: {error}; docs/guides/spec-files.md shows how to write one"
                           ) from error


def _existing_folder(folder: Path) -> Path:
    if not folder.exists():
        raise AutosegError(f"{folder} does not exist; give the folder that holds the dataset")
    if not folder.is_dir():
        raise AutosegError(f"{folder} is a file, not a folder; give the folder that holds the dataset, or a list of cases as "
                           "CSV or JSON")
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise AutosegError(f"{folder} could not be listed ({error.strerror or error}); make it readable") from error
    if empty:
        raise AutosegError(f"{folder} is empty; give the folder that holds the dataset")
    return folder.resolve()


# --- what the dataset says of itself ---


def _read_declaration(root: Path, match: Match) -> tuple[Declaration, list[Finding]]:
    description = match.layout.description
    if description is None:
        return Declaration(), []
    path = root / description.file
    if not path.is_file():
        unnamed = f"there is no {description.file}: channels are numbered, classes named by their values"
        missing = description.required and (match.layout.labels is None or match.layout.channels is None)
        return Declaration(), [_unnamed(path, unnamed)] if missing else []
    declaration = read_decathlon(path)
    findings = []
    if declaration.channels is None and match.layout.channels is None:
        findings.append(_unnamed(path, "neither modality nor channel_names is given: channels are numbered"))
    if declaration.label_values is None and match.layout.labels is None:
        findings.append(_unnamed(path, "labels is not given: classes are named by their values"))
    return declaration, findings


def _with_defaults(declaration: Declaration, layout: Layout) -> Declaration:
    """What a spec file says goes before what the folder says, and that before what is known of the dataset."""
    own = declared_by_layout(layout)
    first, second = (declaration, own) if layout.known is not None else (own, declaration)
    return replace(
        declaration, channels=first.channels or second.channels, label_values=first.label_values or second.label_values
    )


def _unnamed(path: Path, found: str) -> Finding:
    return Finding(
        severity="warning", case_id=None, where=str(path), found=found,
        mend='write {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "name"}} there; a channel named CT is '
        "normalised as CT",
    )


# --- channels ---


def _channel_texts(match: Match) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Texts of ``{channel}`` in channel order, and the files whose text is no channel, by that text."""
    counts = Counter(text for case_id in match.paired for text in {_channel(file) for file in match.images[case_id]})
    declared = match.layout.channels
    if declared is not None and set(declared) & set(counts):
        texts = tuple(declared)
    else:
        # a file that most cases lack is no channel: a mask, a raw copy, a note
        texts = tuple(sorted(text for text, count in counts.items() if 2 * count > len(match.paired)))
        texts = texts or tuple(sorted(counts))
    dropped: dict[str, list[str]] = {}
    for files in (*match.images.values(), *match.test.values()):
        for file in files:
            if _channel(file) not in texts:
                dropped.setdefault(_channel(file), []).append(file.path)
    return texts, dropped


def _channel(file: FoundFile) -> str:
    return file.fields.get("channel") or ""


def _channel_names(cases: Sequence[Case], texts: Sequence[str]) -> tuple[str, ...]:
    """The texts where they are names; the modality of DICOM series, or that in which all files end (``_ct``, ``_T1w``).

    Else ``channel_0``, ``channel_1`` ... for the channels of the first case whose files can be read.
    """
    if all(re.search("[A-Za-z]", text) for text in texts):
        return tuple(texts)
    count = 1
    for case in cases:
        try:
            count = sum(read_header(path).num_channels for path in case.image_paths)
            break
        except AutosegError:  # the check reports it with the others
            continue
    modalities = {_modality(case) for case in cases} if count == 1 else {""}
    if len(modalities) == 1 and (modality := modalities.pop()):
        return (modality,)
    return tuple(f"channel_{index}" for index in range(count))


def _modality(case: Case) -> str:
    """Of the image of a case, by its DICOM headers or by the last word of its name; empty where neither tells."""
    if len(case.images) > 1:
        return ""
    folder, uid = split_part(case.image_paths[0])
    if not folder.is_dir():
        word = image_stem(case.image_paths[0]).rpartition("_")[2]
        return word.upper() if word.casefold() == "ct" else word if word.casefold() in MODALITIES else ""
    try:
        return next((name.modality for name in list_series(folder) if uid in (None, name.uid)), "")
    except AutosegError:
        return ""


def _dropped(root: Path, match: Match, dropped: Mapping[str, Sequence[str]]) -> list[Finding]:
    return [
        Finding(
            severity="note", case_id=None, where=str(root / files[0]),
            found=f"{count_noun(len(files), 'file')} of the kind {text!r} that most cases lack: taken for no channel",
            mend="remove them, or say in a spec file which files are channels (--spec)",
        )
        for text, files in sorted(dropped.items())
    ]


# --- cases ---


def _case(
    root: Path, layout: Layout, case_id: str, images: Sequence[FoundFile], labels: Sequence[FoundFile], channels: Sequence[str]
) -> Case:
    """A case of the first file for each channel; rivals are reported by `_rivals`."""
    by_channel = {_channel(file): file.path for file in reversed(images)}
    masks = {file.fields[CLASS]: file.path for file in reversed(labels) if file.fields.get(CLASS)}
    chosen = [by_channel[text] for text in channels if text in by_channel] or [images[0].path]
    return Case(
        case_id=case_id,
        images=tuple(str(root / path) for path in chosen),
        label=str(root / labels[0].path) if labels and not masks else None,
        masks=tuple(MaskFile(label=name, file=str(root / masks[name])) for name in sorted(masks)),
        group=_group(layout, case_id, images[0]),
    )


def _group(layout: Layout, case_id: str, image: FoundFile) -> str | None:
    for group, cases in layout.groups.items():
        if case_id in cases:
            return group
    found = re.search(layout.patient, case_id) if layout.patient else None
    return found[0] if found else image.fields.get("patient")


def _test_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str]
) -> tuple[tuple[Case, ...], list[Finding]]:
    """Unlabelled cases in the folder, then those that only ``dataset.json`` lists."""
    cases = {case_id: _case(root, match.layout, case_id, files, (), channels) for case_id, files in match.test.items()}
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


# --- what people should know ---


def _unknown_in_groups(match: Match, cases: Sequence[Case]) -> list[Finding]:
    ids = {case.case_id for case in cases}
    unknown = [case_id for listed in match.layout.groups.values() for case_id in listed if case_id not in ids]
    return [] if not unknown else [Finding(
        severity="warning", case_id=None, where=f"groups of {match.layout.name}",
        found=f"{count_noun(len(unknown), 'case')} that the folder does not have: {shorten(unknown)}",
        mend="correct the names, or cases of one patient may train and validate in one fold",
    )]


def _ambiguity(root: Path, match: Match, rivals: Sequence[Match]) -> list[Finding]:
    if match.layout.known is not None:
        return []
    return [
        Finding(
            severity="note", case_id=None, where=str(root),
            found=f"taken as {match.layout.title} ({count_noun(len(match.paired), 'case')}), but it may also be {rival.layout.title} "
            f"({count_noun(len(rival.paired), 'case')})",
            mend=f"give --layout {rival.layout.name} if that is what it is, or a spec file (--spec)",
        )
        for rival in rivals
    ]


def _unlisted_findings(root: Path, match: Match, declaration: Declaration) -> list[Finding]:
    """Training images that are listed, but of which neither image nor label is in the folder."""
    if match.layout.listing is not None:
        return []
    present = match.images.keys() | match.labels.keys()
    missing = [
        file for file in declaration.training_files
        if image_stem(file) not in present and not any((root / file).samefile(root / each) for each in _same_name(match, file))
    ]
    return _missing_findings(root, match, missing, "training")


def _same_name(match: Match, file: str) -> list[str]:
    name = Path(file).name
    return [each.path for files in match.images.values() for each in files if Path(each.path).name == name]


def _missing_findings(root: Path, match: Match, missing: Sequence[str], kind: str) -> list[Finding]:
    if not missing or match.layout.description is None:
        return []
    return [Finding(
        severity="warning" if kind == "training" else "note", case_id=None,
        where=str(root / match.layout.description.file),
        found=f"lists {count_noun(len(missing), f'{kind} image')} that the folder does not have: {shorten(missing)}",
        mend="fetch the files, or remove them from the list; the run goes on without them",
    )]


def _list_findings(match: Match) -> list[Finding]:
    return [
        Finding(severity="error", case_id=None, where=problem.where, found=problem.found, mend=problem.mend)
        for problem in match.problems
    ]


def _pairing_findings(root: Path, match: Match) -> list[Finding]:
    findings = []
    for case_id in sorted(match.images.keys() | match.labels.keys()):
        images, labels = match.images.get(case_id, []), match.labels.get(case_id, [])
        if not labels:
            findings.append(_error(root, case_id, images[0], "the image has no label map",
                                   "add a label map of the same name, or remove the image"))
        elif not images:
            findings.append(_error(root, case_id, labels[0], "the label map has no image",
                                   "add an image of the same name, or remove the label map"))
        findings += _rivals(root, case_id, images, "channel") + _rivals(root, case_id, labels, CLASS)
    return findings + [f for case_id, files in sorted(match.test.items()) for f in _rivals(root, case_id, files, "channel")]


def _rivals(root: Path, case_id: str, files: Sequence[FoundFile], field: str) -> list[Finding]:
    """Files beyond the first for the same channel or class of a case."""
    first: dict[str, FoundFile] = {}
    findings = []
    for file in files:
        kept = first.setdefault(file.fields.get(field) or "", file)
        if kept is not file:
            findings.append(_error(root, case_id, file, f"{kept.path} is there for the same case",
                                   "keep one of the two, or say in a spec file which one is meant (--spec)"))
    return findings


def _error(root: Path, case_id: str, file: FoundFile, found: str, mend: str) -> Finding:
    return Finding(severity="error", case_id=case_id, where=str(root / file.path), found=found, mend=mend)


def _common_ending(cases: Sequence[Case]) -> str:
    """The ending that most label files have; the first by alphabet where several are as frequent."""
    endings = Counter(image_ending(file) for case in cases for file in case.label_files[:1])
    ending = min(endings, key=lambda ending: (-endings[ending], ending))
    return writable_ending(ending)
