"""What a check tells, as a document: of a dataset, of images without labels, of a folder in which nothing is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from autoseg.data.checks.check import check_dataset, check_images
from autoseg.data.dataset import DatasetDescription, describe_dataset, leave_out_bad
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.discover import UNLABELLED, with_all_layouts
from autoseg.data.discovery.inputs import LooseImages, NamedImage, find_loose_images
from autoseg.imaging.readers import printable
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter
from autoseg.wording import count_noun
from planners import Document


class CheckReport(Document):
    """What ``autoseg check --json`` prints."""

    schema_version: Literal[1] = 1
    root: str
    summary: str | None = None
    """The dataset in one sentence; none if no dataset was recognised."""
    layout: str | None = None
    channels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    """Ids of labelled cases that can be used, with or without warnings."""
    test: tuple[str, ...] = ()
    """Ids of unlabelled cases."""
    left_out: tuple[str, ...] = ()
    num_errors: int = 0
    """Not counting those of cases that were left out."""
    num_warnings: int = 0
    num_notes: int = 0
    issues: tuple[Issue, ...] = ()
    """Errors first, then warnings and notes."""


def report_on_folder(
    folder: Path,
    *,
    layout: str | None,
    spec: Path | None,
    exclude: Sequence[str],
    skip_bad: bool,
    num_workers: int,
    reporter: Reporter,
) -> CheckReport:
    """The report on the dataset in ``folder``, or on images without labels.

    Raises `AutosegError` where neither is there, with a note that lists all layouts unless one was asked for.
    """
    try:
        with reporter.phase("Looking through the folder"):
            found = discover_dataset(
                folder, layout=layout, spec=spec, exclude=exclude, num_workers=num_workers, reporter=reporter
            )
    except AutosegError as error:
        loose = find_loose_images(folder) if error.codes[0] == UNLABELLED else LooseImages()
        if loose.images:
            issues = check_images(loose.images, num_workers=num_workers, reporter=reporter)
            return images_report(folder, loose.images, (*issues, *loose.issues), fix=error.issues[0].fix)
        if folder.is_dir() and layout is None and spec is None:
            raise with_all_layouts(folder, error) from error
        raise
    issues = check_dataset(found, num_workers=num_workers, reporter=reporter)
    if skip_bad:
        found = leave_out_bad(found, issues)
        issues = found.issues
    return make_report(found, issues)


def make_report(dataset: DatasetDescription, issues: Sequence[Issue]) -> CheckReport:
    """The report on a dataset and its issues; after `leave_out_bad`, on the cases that are left."""
    report = CheckReport(
        root=dataset.root,
        summary=describe_dataset(dataset),
        layout=dataset.layout,
        channels=dataset.channels,
        classes=tuple(label.name for label in dataset.labels.classes),
        training=tuple(case.case_id for case in dataset.training),
        test=tuple(case.case_id for case in dataset.test),
        left_out=dataset.left_out,
    )
    return _with(report, issues)


def images_report(root: Path, images: Sequence[NamedImage], issues: Sequence[Issue], *, fix: str) -> CheckReport:
    """The report on images without labels; ``fix`` says how to get a labelled dataset."""
    unlabelled = Issue(
        code=UNLABELLED,
        severity="warning",
        where=str(root),
        message="no labels: these images can be predicted, but not used for training",
        fix=fix,
    )
    report = CheckReport(
        root=str(root),
        summary=f"{count_noun(len(images), 'image')} without labels",
        test=tuple(name for name, _ in images),
    )
    errors = [issue for issue in issues if issue.severity == "error"]
    return _with(report, [*errors, unlabelled, *(issue for issue in issues if issue.severity != "error")])


def failed_report(root: Path, error: AutosegError) -> CheckReport:
    """The report on a folder in which no dataset was recognised, with the issues of the error."""
    issues = [
        issue.model_copy(update={name: printable(getattr(issue, name)) for name in ("where", "message", "fix")})
        for issue in error.issues
    ]
    return _with(CheckReport(root=printable(root)), issues)


def _with(report: CheckReport, issues: Sequence[Issue]) -> CheckReport:
    severities = [issue.severity for issue in issues if issue.severity != "error" or issue.case not in report.left_out]
    counts = {f"num_{name}s": severities.count(name) for name in ("error", "warning", "note")}
    return report.model_copy(update={**counts, "issues": tuple(issues)})
