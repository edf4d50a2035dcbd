"""What people should know of files that belong to no case, or to more than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.data.dataset import Case
from autoseg.data.declaration import Declaration
from autoseg.data.matching import Match
from autoseg.data.patterns import FoundFile
from autoseg.imaging.readers import image_stem
from autoseg.issues import UNNAMED, Issue
from autoseg.wording import count_noun, shorten
from datasets_spec.layout import CLASS


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
