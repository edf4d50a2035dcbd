"""Chooses the configuration that a challenge would rank first, by its own classes and metrics (``--select-by``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.challenge import (
    ChallengeScores,
    challenge_scores,
    find_challenge,
    lesion_rule,
    rank_teams,
    scored_classes,
    tolerance_of,
)
from autoseg.evaluation.metrics import DEFAULT_TOLERANCE_MM
from autoseg.evaluation.scoring import score_cases
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter
from datasets_spec import Challenge, Scoring


def challenge_for(name: str, dataset: DatasetDescription) -> tuple[Challenge, Scoring]:
    """The challenge to select by. Raises `AutosegError` where it is not known, or its classes are not those of the dataset."""
    where, asked = f"--select-by {name}", f"--as {name}"
    try:
        challenge = find_challenge(name, [case.case_id for case in dataset.training])
    except AutosegError as error:
        issues = (each.model_copy(update={"where": where}) if each.where == asked else each for each in error.issues)
        raise AutosegError(*issues) from error
    assert challenge.scoring is not None
    values = {value for each in scored_classes(challenge.scoring) for value in each.values}
    missing = sorted(values - {*dataset.file_values})
    if missing or (values and dataset.classes_with_masks):
        message = f"{challenge.title} scores the values {', '.join(map(str, sorted(values)))}"
        message += ", but the dataset has masks" if not missing else f", but the dataset has no {missing[0]}"
        fix = "select by Dice, or by a challenge of this dataset"
        raise AutosegError(Issue(code="select.other_challenge", where=where, message=message, fix=fix))
    return challenge, challenge.scoring


def score_configurations(
    name: str,
    dataset: DatasetDescription,
    predictions: Mapping[str, Sequence[tuple[str, Path]]],
    reporter: Reporter,
    *,
    num_workers: int,
) -> dict[str, ChallengeScores]:
    """The challenge's scores of each configuration's ``predictions``, case id and label map, of the same cases."""
    challenge, scoring = challenge_for(name, dataset)
    tolerance_mm = tolerance_of(scoring)
    scores = {}
    for configuration, paths in predictions.items():
        with reporter.track(f"Scoring {configuration} for {challenge.title}", len(paths)) as tracker:
            summary = score_cases(
                dataset,
                paths,
                tracker,
                tolerance_mm=DEFAULT_TOLERANCE_MM if tolerance_mm is None else tolerance_mm,
                classes=scored_classes(scoring),
                lesions=lesion_rule(scoring),
                num_workers=num_workers,
            )
        scores[configuration] = challenge_scores(summary, challenge)
    return scores


def first_of(name: str, scores: Mapping[str, ChallengeScores], dataset: DatasetDescription) -> tuple[str, str]:
    """The configuration that the challenge ranks first, of equals the first, and why in words."""
    challenge, scoring = challenge_for(name, dataset)
    ranks = rank_teams(scores, scoring)
    best = min(scores, key=lambda each: ranks[each][0])
    shown = "; ".join(f"{each}: {_means(own)}" for each, own in scores.items())
    return best, f"{best} is ranked first by {challenge.title} ({shown})"


def _means(scores: ChallengeScores) -> str:
    return ", ".join(
        f"{title} {'-' if each.mean is None else format(each.mean, '.4g')}" for title, each in scores.overall.items()
    )
