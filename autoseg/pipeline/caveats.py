"""What takes away from the scores of a cross-validation, said wherever they are."""

from __future__ import annotations

from autoseg.data.splits import describe_leaks
from autoseg.issues import Issue
from autoseg.pipeline.finetuning import describe_overlap
from autoseg.pipeline.options import Options
from autoseg.pipeline.scheduling import Prepared
from autoseg.pipeline.splitting import groups_of


def score_caveats(options: Options, prepared: Prepared) -> tuple[Issue, ...]:
    """Where networks knew cases that they are scored on, or other cases of the same patients: scores that flatter."""
    overlap = None if prepared.pretrained is None else describe_overlap(prepared.pretrained, prepared.dataset)
    leaks = describe_leaks(prepared.splits, groups_of(options, prepared.dataset))
    return (
        *([] if overlap is None else [_caveat("scores.known_to_pretrained", overlap)]),
        *(_caveat("scores.groups_on_both_sides", leak) for leak in leaks),
    )


def _caveat(code: str, message: str) -> Issue:
    return Issue(code=code, severity="warning", where="", message=message)
