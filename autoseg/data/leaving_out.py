"""Leaves cases with errors out of a dataset, so that the others can be used."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.data.dataset import DatasetDescription
from autoseg.issues import UNNAMED, AutosegError, Issue


def leave_out_bad(dataset: DatasetDescription, findings: Sequence[Issue]) -> DatasetDescription:
    """The dataset without the cases that have an error, which are named in ``left_out``; ``findings`` are kept with it.

    Unlabelled cases are left out alike. Files that belong to no case (an image without a label map) are named too. Errors
    of the dataset as a whole stay: see `errors_that_remain`. Raises `AutosegError` where no labelled case would be left.
    """
    bad = {finding.case for finding in findings if finding.severity == "error" and finding.case is not None}
    training = tuple(case for case in dataset.training if case.case_id not in bad)
    if not training:
        raise AutosegError(
            f"{dataset.root}: every one of the {len(dataset.training)} labelled cases has an error, so none would be left; "
            "mend what autoseg check reports"
        )
    return dataset.model_copy(
        update={
            "training": training,
            "test": tuple(case for case in dataset.test if case.case_id not in bad),
            "left_out": tuple(sorted(bad)),
            "issues": (*findings, *_note(dataset, sorted(bad))),
        }
    )


def errors_that_remain(findings: Sequence[Issue]) -> list[Issue]:
    """Errors of the dataset as a whole, which leaving cases out does not mend."""
    return [finding for finding in findings if finding.severity == "error" and finding.case is None]


def _note(dataset: DatasetDescription, bad: Sequence[str]) -> list[Issue]:
    if not bad:
        return []
    return [
        Issue(
            code=UNNAMED,
            severity="note",
            case=None,
            where=dataset.root,
            message=f"left out because of errors (--skip-bad), {len(bad)} of them: {', '.join(bad)}",
            fix="mend these cases, and run without --skip-bad to use them",
        )
    ]
