"""Calibrate: from samples that validation keeps of each case, temperatures of the chosen model, and what to expect of unseen cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.executor import run_jobs
from autoseg.evaluation.calibration import Calibration, calibrate
from autoseg.evaluation.expected_quality import ClassFeatures, ExpectedQuality, fit_expected, mean_features
from autoseg.evaluation.selection import Selection
from autoseg.evaluation.table import Summary
from autoseg.inference.kept import load_sample, sample_path
from autoseg.inference.maps import output_names
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared
from autoseg.stages.validated import ValidatedCase
from planners import Labels

MOST_VALUES = 2**26
"""Sampled probabilities of all cases and classes together: 256 MB in single precision."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of one case, by networks that did not see it."""

    p: NDArray[np.float32]
    """(K, n)."""
    truth: NDArray[np.bool_]
    """(K, n)."""
    features: Mapping[str, ClassFeatures]


def describe_doubt(
    run: Run, prepared: Prepared, selection: Selection, cases: Mapping[str, ValidatedCase], summary: Summary
) -> tuple[Calibration | None, ExpectedQuality | None]:
    """Calibration and expected quality of the selected model; none where validation by an earlier version kept no samples."""
    if not has_samples(cases.values()):
        run.say("Probabilities are not calibrated: validation by an earlier version kept no samples of them")
        return None, None
    labels = prepared.plan.labels
    usable = {name: case for name, case in cases.items() if case.is_annotated}
    values = labels.num_outputs * 2**17 * max(1, len(usable))
    load = partial(
        load_case, members=selection.members, weights=selection.weights, labels=labels, step=-(-values // MOST_VALUES)
    )
    found = run_jobs(load, list(usable.values()), name=lambda case: f"case {case.case_id}", num_workers=1)
    if not found:
        return None, None
    fold_of = {case: fold for fold in reversed(prepared.schedule.folds) for case in prepared.splits.folds[fold].val}
    calibration = calibrate(
        [(each.p, each.truth) for each in found],
        [fold_of[name] for name in usable],
        output_names(labels),
        has_regions=labels.has_regions,
    )
    by_case = {each.case_id: each for each in summary.metric_per_case}
    dices = summary.dice_by_case()
    volumes = [
        {each.name: by_case[name].metrics[each.key].volume_reference_ml for each in summary.classes} for name in usable
    ]
    return calibration, fit_expected([each.features for each in found], [dices[name] for name in usable], volumes)


def has_samples(cases: Iterable[ValidatedCase]) -> bool:
    """Whether validation kept a sample of every case."""
    return all(sample_path(folder, case.case_id).is_file() for case in cases for folder in case.folders.values())


def load_case(
    case: ValidatedCase, *, members: Sequence[str], weights: Sequence[float], labels: Labels, step: int
) -> Sampled:
    """Sampled probabilities of the members' mean, every ``step``-th of them, and what is true there; voxels to be ignored are left out."""
    total: NDArray[np.float32] | None = None
    features = []
    shares = weights or (1 / len(members),) * len(members)
    for name, share in zip(members, shares, strict=True):
        voxels, p, of = load_sample(case.folders[name], case.case_id)
        own = p[:, ::step] * np.float32(share)
        total = own if total is None else total + own
        features.append(of)
    if total is None:
        raise ValueError("a model has members")
    true = case.load_reference().reshape(-1)[voxels[::step]]
    values = [(0,), *(each.values for each in labels.classes)][labels.has_regions :]
    truth = np.stack([np.isin(true, own) for own in values])
    kept = slice(None) if labels.ignore is None else true != labels.ignore
    return Sampled(total[:, kept], truth[:, kept], mean_features(features))
