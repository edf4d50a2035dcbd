"""Fingerprint: sizes, spacings and intensities of the training cases."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

from autoseg.data.dataset import DatasetDescription
from autoseg.preprocessing.fingerprint import take_fingerprint
from autoseg.stages.check import trained_on
from autoseg.stages.run import Run
from autoseg.stages.work import Work, reads_as
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from planners import Fingerprint


def fingerprint(run: Run) -> Generator[Work, None, None]:
    """Measure the training cases, in the axes that the run plans in."""
    dataset, strict = run.dataset, run.settings.strict_reference
    yield Work(
        name="fingerprint",
        what="the fingerprint",
        inputs=lambda: {"dataset": trained_on(dataset), "orientation (--strict-reference)": key_of(not strict)},
        outputs=[run.folder.fingerprint],
        is_whole=reads_as(Fingerprint),
        do=partial(_measure, run, dataset),
    )


def _measure(run: Run, dataset: DatasetDescription) -> None:
    measured = take_fingerprint(
        dataset,
        num_workers=run.num_workers,
        reporter=run.reporter,
        canonical=not run.settings.strict_reference,
        keep_in=run.folder.cache("fingerprint"),
    )
    save_document(run.folder.fingerprint, measured)
