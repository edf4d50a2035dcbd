"""Puts cases together from the files that a layout found; files that fit nowhere become issues."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from autoseg.data.dataset import Case, MaskFile
from autoseg.data.discovery.classes import unique_names
from autoseg.data.discovery.declarations import Declaration
from autoseg.data.discovery.files import FoundFile, list_files, match_files
from autoseg.data.discovery.layouts import TRAINING_FOLDER, Match, count_channels
from autoseg.imaging.readers import (
    PART_MARK,
    frame_path,
    image_ending,
    image_endings,
    image_stem,
    is_debris,
    is_segmentation,
    list_segments,
    list_series,
    read_header,
    read_label_map,
    referenced_series,
    resampled_paths,
    split_part,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout
from datasets_spec.layout import CLASS


def make_case(
    root: Path,
    layout: Layout,
    case_id: str,
    images: Sequence[FoundFile],
    labels: Sequence[FoundFile],
    channels: Sequence[str],
) -> Case:
    """A case with the first file of each channel; `file_issues` reports the others."""
    masks = {file.fields[CLASS]: file.path for file in reversed(labels) if file.fields.get(CLASS)}
    by_channel = {file.channel: root / file.path for file in reversed(images)}
    chosen = [by_channel[text] for text in channels if text in by_channel]
    return Case(
        case_id=case_id,
        images=tuple(map(str, channel_paths(layout, chosen or [root / images[0].path], channels))),
        label=str(root / labels[0].path) if labels and not masks else None,
        masks=tuple(MaskFile(label=name, file=str(root / masks[name])) for name in sorted(masks)),
        group=_group(layout, case_id, images[0]),
        modality=layout.known.modality_of(case_id) if layout.known is not None else "",
    )


def channel_paths(layout: Layout, found: Sequence[Path], texts: Sequence[str]) -> tuple[Path, ...]:
    """The channels of a case as they are read: one file for all of them, or resampled onto the first, where the layout says so."""
    paths = tuple(found) * (len(texts) if layout.repeat_channel and len(found) == 1 else 1)
    return resampled_paths(paths) if layout.resample_channels else paths


def _group(layout: Layout, case_id: str, image: FoundFile) -> str | None:
    for group, cases in layout.groups.items():
        if case_id in cases:
            return group
    found = re.search(layout.patient, case_id) if layout.patient else None
    return found[0] if found else image.fields.get("patient")


def with_all_segments(root: Path, match: Match, cases: Sequence[Case]) -> tuple[tuple[Case, ...], list[Issue]]:
    """The cases, those with several files of segments with the structures of all, and errors about these."""
    made, issues = [], []
    for case in cases:
        files = [root / file.path for file in match.labels[case.case_id]]
        if case.label is not None and _are_parts(files):
            case, found = _join_segments(case, files)
            issues += found
        made.append(case)
    return tuple(made), issues


def _are_parts(files: Sequence[Path]) -> bool:
    """Whether several label files of a case are files of segments drawn on the same series: organs in one, tumours in another."""
    if len(files) > 1 and all(map(is_segmentation, files)):
        with suppress(AutosegError):  # the check reports it
            return len({frozenset(referenced_series(file)) for file in files}) == 1
    return False


def _join_segments(case: Case, files: Sequence[Path]) -> tuple[Case, list[Issue]]:
    """The case with the structures of all its files of segments as masks, and errors about names that several files have.

    Raises `AutosegError` where a file cannot be read.
    """
    masks: list[MaskFile] = []
    owners: dict[str, Path] = {}
    issues = []
    for file in files:
        twice: dict[Path, list[str]] = {}
        for number, name in unique_names(list_segments(file).by_number).items():
            if (owner := owners.setdefault(name.casefold(), file)) != file:
                twice.setdefault(owner, []).append(name)
            else:
                masks.append(MaskFile(label=name, file=f"{file}{PART_MARK}{number}"))
        for other, names in twice.items():
            message = f"it has structures that {other} has, too: {shorten(names)}"
            fix = "keep one file, or remove or rename these structures in one of them"
            issues.append(
                Issue(code="case.duplicate_structure", case=case.case_id, where=str(file), message=message, fix=fix)
            )
    return case.model_copy(update={"label": None, "masks": tuple(masks)}), issues


def find_test_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str]
) -> tuple[tuple[Case, ...], list[Issue]]:
    """Unlabelled cases: those in the folder, and those that only ``dataset.json`` lists."""
    cases = {
        case_id: make_case(root, match.layout, case_id, files, (), channels) for case_id, files in match.test.items()
    }
    known = {image for case in cases.values() for image in case.images}
    missing = []
    for listed in declaration.test_files:
        path = Path(os.path.normpath(root / listed))
        if str(path) in known or is_debris(path):
            continue
        if path.is_file() and image_ending(path):
            case_id = image_stem(path)
            cases.setdefault(case_id, Case(case_id=case_id, images=(str(path),)))
        else:
            missing.append(listed)
    issues = _missing_images(root, match, missing, "test") + _add_named_volumes(root, match.layout, cases)
    return tuple(cases[case_id] for case_id in sorted(cases)), issues


def _add_named_volumes(root: Path, layout: Layout, cases: dict[str, Case]) -> list[Issue]:
    """Add test cases that are volumes of 4D images in folders without other test images; warnings where nothing names them."""
    named = layout.known.volumes if layout.known is not None else None
    if named is None:
        return []
    files: list[tuple[Path, str | None]] = []
    for place in (root, *([root.parent] if TRAINING_FOLDER.fullmatch(root.name) else [])):
        with suppress(OSError):
            listed = list_files(place, named.images, fields=layout.fields)
            found = match_files(listed, named.images, fields=layout.fields, endings=image_endings())
            files += [(place / each.path, each.fields.get("patient")) for each in found]
    full = {Path(image).parent for case in cases.values() for image in case.images}
    issues = []
    for file, patient in files:
        if file.parent in full:
            continue
        for number in (numbers := listed_volumes(file.parent / named.file, named.keys)):
            case_id = frame_name(image_stem(file).removesuffix(named.ending), number)
            image = str(frame_path(file, number))
            cases[case_id] = Case(case_id=case_id, images=(image,), group=patient)
        if not numbers:
            message = f"not predicted: {named.file} beside it names no {' and '.join(named.keys)}"
            fix = f"add {named.file}, or predict the file with autoseg predict"
            issues.append(
                Issue(code="dataset.no_volumes", severity="warning", where=str(file), message=message, fix=fix)
            )
    return issues


def frame_name(case_id: str, number: int) -> str:
    """The case of one volume of a 4D file, counted from 1."""
    return f"{case_id}_frame{number:02d}"


def listed_volumes(path: Path, keys: Sequence[str]) -> tuple[int, ...]:
    """Numbers after ``keys`` in a text file of lines ``key: number``; empty where it cannot be read or lacks one."""
    try:
        lines = [line.partition(":") for line in path.read_text("utf-8", errors="replace").splitlines()]
    except OSError:
        return ()
    found = {key.strip(): value.strip() for key, _, value in lines}
    texts = [found.get(key, "") for key in keys]
    return tuple(map(int, texts)) if all(text.isdecimal() for text in texts) else ()


MODALITY = re.compile(r"(?i)(cb)?ct|pet|t1(w|c|ce|gd)?|t2(w|star)?|flair|pdw?|dwi|adc|[st]em")
"""Last word of a file name that names a modality; a channel named CT is normalised as CT."""


LABEL_WORD = re.compile(r"(?i)seg|label|mask|gt|annot|truth|roi|manual")
MOST_VALUES = 256
"""Of a label map among the channels."""


def channel_texts(root: Path, match: Match) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Texts of ``{channel}`` in channel order, and the files of other texts, by their text.

    Only channels that a layout or spec file names may be label maps, which would tell networks what they should find.
    """
    counts = count_channels(match)
    declared = match.layout.channels
    if declared is not None and set(declared) & set(counts):
        texts = tuple(declared)
    else:
        # a file that most cases lack is no channel: a mask, a raw copy, a note
        texts = tuple(sorted(text for text, count in counts.items() if 2 * count > len(match.paired)))
        texts = texts or tuple(sorted(counts))
        texts = tuple(text for text in texts if not _names_label_map(root, match, text)) or texts
    dropped: dict[str, list[str]] = {}
    for files in (*match.images.values(), *match.test.values()):
        for file in files:
            if file.channel not in texts and (file.channel or not match.layout.repeat_channel):
                dropped.setdefault(file.channel, []).append(file.path)
    return texts, dropped


def _names_label_map(root: Path, match: Match, text: str) -> bool:
    """Whether the files of a channel are named like label maps, and the first one holds few whole numbers."""
    if not LABEL_WORD.search(text):
        return False
    path = next((file.path for case_id in match.paired for file in match.images[case_id] if file.channel == text), None)
    try:
        return path is not None and len(np.unique(read_label_map(root / path).array)) <= MOST_VALUES
    except AutosegError:
        return False


def channel_names(cases: Sequence[Case], texts: Sequence[str]) -> tuple[str, ...]:
    """The texts if they are names; else the modality of the DICOM series or in all file names (``_ct``, ``_T1w``).

    Else ``channel_0``, ``channel_1`` ..., as many as the first readable case has.
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
    modalities = {_modality(case) for case in cases} if count == 1 else set()
    if len(modalities) == 1 and any(modalities):
        return (modalities.pop(),)
    return tuple(f"channel_{index}" for index in range(count))


def _modality(case: Case) -> str:
    """Modality of a case with one image, from its DICOM headers or the last word of its name; empty if unknown."""
    if len(case.images) > 1:
        return ""
    folder, _ = split_part(case.image_paths[0])
    if not folder.is_dir():
        word = image_stem(case.image_paths[0]).rpartition("_")[2]
        return word.upper() if word.casefold() == "ct" else word if MODALITY.fullmatch(word) else ""
    try:
        return next((name.modality for name in list_series(case.image_paths[0])), "")
    except AutosegError:
        return ""


def folder_issues(
    root: Path,
    match: Match,
    whole: Match,
    rivals: Sequence[Match],
    declaration: Declaration,
    dropped: Mapping[str, Sequence[str]],
) -> list[Issue]:
    """Issues about other layouts, lists and groups of cases that do not exist, and files that belong to no case or to several.

    ``whole`` is the match before cases were left out, ``dropped`` files that are no channel, by their kind.
    """
    groups, layout = whole.layout.groups.values(), whole.layout
    unknown = [case_id for listed in groups for case_id in listed if case_id not in whole.paired]
    issues = [
        Issue(
            code="spec.unknown_case",
            severity="warning",
            where=f"groups of {layout.name}",
            message=f"{count_noun(len(unknown), 'case')} not found in the folder: {shorten(unknown)}",
            fix="correct the names: otherwise cases of one patient may be in both training and validation",
        )
    ] * bool(unknown)
    issues += [
        Issue(
            code="layout.ambiguous",
            severity="note",
            where=str(root),
            message=f"read as {layout.title} ({count_noun(len(whole.paired), 'case')}), but "
            f"{rival.layout.title} also matches ({count_noun(len(rival.paired), 'case')})",
            fix=f"use --layout {rival.layout.name} or a spec file (--spec) if that is what you meant",
        )
        for rival in (rivals if layout.known is None else ())
    ]
    issues += [*_missing_training_images(root, whole, declaration), *whole.issues]
    issues += [
        Issue(
            code="layout.ignored_files",
            severity="note",
            where=str(root / files[0]),
            message=f"{count_noun(len(files), 'file')} {text!r} not used as a channel: "
            + ("label maps by name and values" if 2 * len(files) > len(match.paired) else "most cases lack it"),
            fix="remove them, or list the channels in a spec file (--spec)",
        )
        for text, files in sorted(dropped.items())
    ]
    return issues + _unpaired_files(root, match)


def _missing_training_images(root: Path, match: Match, declaration: Declaration) -> list[Issue]:
    """Training images that are listed, but have neither image nor label in the folder."""
    if match.layout.listing is not None:
        return []
    present = match.images.keys() | match.labels.keys()
    missing = [file for file in declaration.training_files if image_stem(file) not in present]
    if missing:
        used = {os.path.realpath(root / each.path) for files in match.images.values() for each in files}
        missing = [file for file in missing if os.path.realpath(root / file) not in used]
    return _missing_images(root, match, missing, "training")


def _missing_images(root: Path, match: Match, missing: Sequence[str], kind: str) -> list[Issue]:
    """Images that ``dataset.json`` lists but the folder lacks; ``kind``: training or test."""
    if not missing or match.layout.description is None:
        return []
    return [
        Issue(
            code="description.missing_image",
            severity="warning" if kind == "training" else "note",
            where=str(root / match.layout.description.file),
            message=f"{count_noun(len(missing), f'listed {kind} image')} not found: {shorten(missing)}",
            fix="add the files, or remove them from the list",
        )
    ]


def _unpaired_files(root: Path, match: Match) -> list[Issue]:
    """Images without a label map, label maps without an image, and several files for one channel or class."""
    issues = []
    for case_id in sorted(match.images.keys() | match.labels.keys()):
        images, labels = match.images.get(case_id, []), match.labels.get(case_id, [])
        if not labels:
            message, fix = "the image has no label map", "add a label map of the same name, or remove the image"
            issues.append(_error(root, case_id, images[0], message, fix, code="case.unpaired_image"))
        elif not images:
            message, fix = "the label map has no image", "add an image of the same name, or remove the label map"
            issues.append(_error(root, case_id, labels[0], message, fix, code="case.unpaired_label"))
        issues += _duplicates(root, case_id, images, "channel")
        if any(file.fields.get(CLASS) for file in labels) or not _are_parts([root / file.path for file in labels]):
            issues += _duplicates(root, case_id, labels, CLASS)
    for case_id, files in sorted(match.test.items()):
        issues += _duplicates(root, case_id, files, "channel")
    return issues


def _duplicates(root: Path, case_id: str, files: Sequence[FoundFile], field: str) -> list[Issue]:
    """Files beyond the first for the same channel or class of a case."""
    first: dict[str, FoundFile] = {}
    issues = []
    for file in files:
        kept = first.setdefault(file.fields.get(field) or "", file)
        if kept is not file:
            message = f"{kept.path} is for the same case and {field}"
            fix = "keep one of them, or choose one in a spec file (--spec)"
            if field == CLASS and not file.path.lower().endswith(
                (".seg.nrrd", ".dcm")
            ):  # their classes have names of their own
                fix += ', where labels = ["{case}/{class}{ending}"] makes each a class'
            issues.append(_error(root, case_id, file, message, fix, code="case.duplicate_file"))
    return issues


def _error(root: Path, case_id: str, file: FoundFile, message: str, fix: str, *, code: str) -> Issue:
    return Issue(code=code, case=case_id, where=str(root / file.path), message=message, fix=fix)
