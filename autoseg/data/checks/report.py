"""What the check of a dataset says, as a document that programs can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from autoseg.data.dataset import DatasetDescription, describe_dataset
from autoseg.data.discovery.unlabelled import NamedImage
from autoseg.imaging.readers import printable
from autoseg.issues import UNNAMED, AutosegError, Issue
from planners import Document


class CheckReport(Document):
    """What ``autoseg check --json`` prints."""

    schema_version: Literal[1] = 1
    root: str
    summary: str | None = None
    """What was found, in one sentence; none where no dataset was recognised."""
    layout: str | None = None
    channels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    """Ids of labelled cases that can be used, those with warnings among them."""
    test: tuple[str, ...] = ()
    """Ids of unlabelled cases."""
    left_out: tuple[str, ...] = ()
    num_errors: int = 0
    num_warnings: int = 0
    num_notes: int = 0
    issues: tuple[Issue, ...] = ()
    """Errors first, then warnings and notes."""


def make_report(dataset: DatasetDescription, findings: Sequence[Issue]) -> CheckReport:
    """The report on a dataset and its findings; after `leave_out_bad`, on the cases that are left."""
    found = CheckReport(
        root=dataset.root,
        summary=describe_dataset(dataset),
        layout=dataset.layout,
        channels=dataset.channels,
        classes=tuple(label.name for label in dataset.labels.classes),
        training=tuple(case.case_id for case in dataset.training),
        test=tuple(case.case_id for case in dataset.test),
        left_out=dataset.left_out,
    )
    return _with(found, findings)


def images_report(
    root: Path, images: Sequence[NamedImage], findings: Sequence[Issue], *, elsewhere: str
) -> CheckReport:
    """The report on images without labels; ``elsewhere`` says where a labelled dataset lies instead, if one does."""
    unlabelled = Issue(
        code=UNNAMED,
        severity="warning",
        case=None,
        where=str(root),
        message="nothing is labelled: these images can be predicted, not trained on",
        fix=elsewhere
        or "to train, add label maps; if there are some, say in a spec file where they lie (--spec); autoseg plan lists "
        "where it looked",
    )
    number = "1 image" if len(images) == 1 else f"{len(images)} images"
    found = CheckReport(root=str(root), summary=f"{number} without labels", test=tuple(name for name, _ in images))
    return _with(
        found,
        [*(f for f in findings if f.severity == "error"), unlabelled, *(f for f in findings if f.severity != "error")],
    )


def failed_report(root: Path, error: AutosegError) -> CheckReport:
    """The report on a folder in which no dataset was recognised, with the reason as its only finding."""
    found, _, mend = printable(str(error)).rpartition("; ")
    finding = Issue(code=UNNAMED, severity="error", case=None, where=printable(root), message=found or mend, fix=mend)
    return _with(CheckReport(root=printable(root)), [finding])


def _with(report: CheckReport, findings: Sequence[Issue]) -> CheckReport:
    severities = [finding.severity for finding in findings]
    counts = {f"num_{name}s": severities.count(name) for name in ("error", "warning", "note")}
    return report.model_copy(update={**counts, "issues": tuple(findings)})
