"""Cases put together from the files that a layout found."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from autoseg.data.channels import channel_of
from autoseg.data.dataset import Case, MaskFile
from autoseg.data.declaration import Declaration
from autoseg.data.discovery_findings import missing_images
from autoseg.data.matching import Match
from autoseg.data.patterns import FoundFile
from autoseg.imaging.readers import image_ending, image_stem
from autoseg.issues import Issue
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
