"""Puts cases together from the files that a layout found; files that fit nowhere become issues."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.data.dataset import Case, MaskFile
from autoseg.data.discovery.declarations import Declaration
from autoseg.data.discovery.files import FoundFile
from autoseg.data.discovery.layouts import Match
from autoseg.imaging.readers import image_ending, image_stem, list_series, read_header, split_part
from autoseg.issues import UNNAMED, AutosegError, Issue
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
    """A case of the first file for each channel; others are reported by `unpaired_files`."""
    by_channel = {channel_of(file): file.path for file in reversed(images)}
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


def find_test_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str]
) -> tuple[tuple[Case, ...], list[Issue]]:
    """Unlabelled cases in the folder, then those that only ``dataset.json`` lists."""
    cases = {
        case_id: make_case(root, match.layout, case_id, files, (), channels) for case_id, files in match.test.items()
    }
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
    return tuple(cases[case_id] for case_id in sorted(cases)), missing_images(root, match, missing, "test")


MODALITIES = frozenset(
    {
        "ct",
        "cbct",
        "pet",
        "t1",
        "t1w",
        "t1c",
        "t1ce",
        "t1gd",
        "t2",
        "t2w",
        "t2star",
        "flair",
        "pd",
        "pdw",
        "dwi",
        "adc",
        "sem",
        "tem",
    }
)
"""Last words of file names that say what was recorded; a channel that is called CT is normalised as CT."""


def channel_texts(match: Match) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Texts of ``{channel}`` in channel order, and the files whose text is no channel, by that text."""
    counts = Counter(text for case_id in match.paired for text in {channel_of(file) for file in match.images[case_id]})
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
            if channel_of(file) not in texts:
                dropped.setdefault(channel_of(file), []).append(file.path)
    return texts, dropped


def channel_of(file: FoundFile) -> str:
    """Text of the file's ``{channel}``; empty where the layout has none."""
    return file.fields.get("channel") or ""


def channel_names(cases: Sequence[Case], texts: Sequence[str]) -> tuple[str, ...]:
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


def findings_about_files(
    root: Path, match: Match, rivals: Sequence[Match], declaration: Declaration, dropped: Mapping[str, Sequence[str]]
) -> list[Issue]:
    """All but those about groups and test images; ``dropped`` are files by the kind that makes them no channel."""
    return [
        *other_layouts(root, match, rivals),
        *files_of_no_channel(root, dropped),
        *missing_training_images(root, match, declaration),
        *list_problems(match),
        *unpaired_files(root, match),
    ]


def files_of_no_channel(root: Path, dropped: Mapping[str, Sequence[str]]) -> list[Issue]:
    """Kinds of files that most cases lack."""
    return [
        Issue(
            code=UNNAMED,
            severity="note",
            case=None,
            where=str(root / files[0]),
            message=f"{count_noun(len(files), 'file')} of the kind {text!r} that most cases lack: taken for no channel",
            fix="remove them, or say in a spec file which files are channels (--spec)",
        )
        for text, files in sorted(dropped.items())
    ]


def unknown_in_groups(match: Match, cases: Sequence[Case]) -> list[Issue]:
    """Cases of a layout's groups that are not there."""
    ids = {case.case_id for case in cases}
    unknown = [case_id for listed in match.layout.groups.values() for case_id in listed if case_id not in ids]
    return (
        []
        if not unknown
        else [
            Issue(
                code=UNNAMED,
                severity="warning",
                case=None,
                where=f"groups of {match.layout.name}",
                message=f"{count_noun(len(unknown), 'case')} that the folder does not have: {shorten(unknown)}",
                fix="correct the names, or cases of one patient may train and validate in one fold",
            )
        ]
    )


def other_layouts(root: Path, match: Match, rivals: Sequence[Match]) -> list[Issue]:
    """What else the folder may be."""
    if match.layout.known is not None:
        return []
    return [
        Issue(
            code=UNNAMED,
            severity="note",
            case=None,
            where=str(root),
            message=f"taken as {match.layout.title} ({count_noun(len(match.paired), 'case')}), but it may also be {rival.layout.title} "
            f"({count_noun(len(rival.paired), 'case')})",
            fix=f"give --layout {rival.layout.name} if that is what it is, or a spec file (--spec)",
        )
        for rival in rivals
    ]


def missing_training_images(root: Path, match: Match, declaration: Declaration) -> list[Issue]:
    """Training images that are listed, but of which neither image nor label is in the folder."""
    if match.layout.listing is not None:
        return []
    present = match.images.keys() | match.labels.keys()
    missing = [
        file
        for file in declaration.training_files
        if image_stem(file) not in present
        and not any((root / file).samefile(root / each) for each in _same_name(match, file))
    ]
    return missing_images(root, match, missing, "training")


def _same_name(match: Match, file: str) -> list[str]:
    name = Path(file).name
    return [each.path for files in match.images.values() for each in files if Path(each.path).name == name]


def missing_images(root: Path, match: Match, missing: Sequence[str], kind: str) -> list[Issue]:
    """Images that ``dataset.json`` lists and the folder lacks; ``kind``: training or test."""
    if not missing or match.layout.description is None:
        return []
    return [
        Issue(
            code=UNNAMED,
            severity="warning" if kind == "training" else "note",
            case=None,
            where=str(root / match.layout.description.file),
            message=f"lists {count_noun(len(missing), f'{kind} image')} that the folder does not have: {shorten(missing)}",
            fix="fetch the files, or remove them from the list; the run goes on without them",
        )
    ]


def list_problems(match: Match) -> list[Issue]:
    """What is wrong with a list of cases."""
    return [
        Issue(code=UNNAMED, severity="error", case=None, where=problem.where, message=problem.message, fix=problem.fix)
        for problem in match.problems
    ]


def unpaired_files(root: Path, match: Match) -> list[Issue]:
    """Images without a label map, label maps without an image, and files that compete for one place."""
    findings = []
    for case_id in sorted(match.images.keys() | match.labels.keys()):
        images, labels = match.images.get(case_id, []), match.labels.get(case_id, [])
        if not labels:
            findings.append(
                _error(
                    root,
                    case_id,
                    images[0],
                    "the image has no label map",
                    "add a label map of the same name, or remove the image",
                )
            )
        elif not images:
            findings.append(
                _error(
                    root,
                    case_id,
                    labels[0],
                    "the label map has no image",
                    "add an image of the same name, or remove the label map",
                )
            )
        findings += _rivals(root, case_id, images, "channel") + _rivals(root, case_id, labels, CLASS)
    return findings + [
        f for case_id, files in sorted(match.test.items()) for f in _rivals(root, case_id, files, "channel")
    ]


def _rivals(root: Path, case_id: str, files: Sequence[FoundFile], field: str) -> list[Issue]:
    """Files beyond the first for the same channel or class of a case."""
    first: dict[str, FoundFile] = {}
    findings = []
    for file in files:
        kept = first.setdefault(file.fields.get(field) or "", file)
        if kept is not file:
            findings.append(
                _error(
                    root,
                    case_id,
                    file,
                    f"{kept.path} is there for the same case",
                    "keep one of the two, or say in a spec file which one is meant (--spec)",
                )
            )
    return findings


def _error(root: Path, case_id: str, file: FoundFile, found: str, mend: str) -> Issue:
    return Issue(code=UNNAMED, severity="error", case=case_id, where=str(root / file.path), message=found, fix=mend)
