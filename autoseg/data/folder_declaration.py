"""What a folder says of itself: names of channels and classes, in its `dataset.json` or a spec file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoseg.data.declaration import Declaration, declared_by_layout, read_decathlon
from autoseg.data.matching import Match
from autoseg.issues import UNNAMED, Issue
from datasets_spec import Layout


def read_declaration(root: Path, match: Match) -> tuple[Declaration, list[Issue]]:
    """What ``dataset.json`` says, and what is missing in it."""
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


def with_defaults(declaration: Declaration, layout: Layout) -> Declaration:
    """What a spec file says goes before what the folder says, and that before what is known of the dataset."""
    own = declared_by_layout(layout)
    first, second = (declaration, own) if layout.known is not None else (own, declaration)
    return replace(
        declaration, channels=first.channels or second.channels, label_values=first.label_values or second.label_values
    )


def _unnamed(path: Path, found: str) -> Issue:
    return Issue(
        code=UNNAMED,
        severity="warning",
        case=None,
        where=str(path),
        message=found,
        fix='write {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "name"}} there; a channel named CT is '
        "normalised as CT",
    )
