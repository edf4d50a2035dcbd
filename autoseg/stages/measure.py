"""Measure: what faster ways to predict cost, on the cases of the cross-validation, each by the networks that did not see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.data.labels import to_internal
from autoseg.evaluation.label_maps import count_agreement
from autoseg.evaluation.selection import dice_of, mean_dice, paired_gain
from autoseg.imaging.image import Geometry
from autoseg.inference.member_output import NetworkInput
from autoseg.inference.model import Model, describe_anew, load_fold, open_model
from autoseg.inference.predictor import Predictor, StoredImage
from autoseg.inference.sliding_window import STEP
from autoseg.inference.ways import FAST_STEP, MeasuredWay, Way
from autoseg.issues import AutosegError, Issue
from autoseg.stages.folds import units_of
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import expected_cases
from autoseg.stages.validated import ValidatedCase
from autoseg.storage.locks import hold_lock
from planners import Configuration

WAYS = tuple(Way(mirroring=mirroring, step=step) for step in (STEP, FAST_STEP) for mirroring in (True, False))
"""The first is that of the cross-validation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model with the networks of one fold, and how it predicts."""

    model: Model
    way: Way
    precision: str

    @property
    def predictor(self) -> Predictor:
        return Predictor(model=self.model, mirroring=self.way.mirroring, step=self.way.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSource:
    """A case that was preprocessed for all configurations of a model. The first stage of a cascade is predicted, too."""

    images: Mapping[str, StoredImage]
    """By configuration."""

    @property
    def geometry(self) -> Geometry:
        """Of the image before preprocessing."""
        return next(iter(self.images.values())).geometry

    def prepare(self, configuration: Configuration) -> NetworkInput:
        """The stored arrays."""
        return self.images[configuration.name].prepare(configuration)


def measure_ways(run: Run) -> tuple[MeasuredWay, ...]:
    """What mirroring and the distance of windows gain and cost; kept in the run's model, where ``predict`` finds it.

    Raises `AutosegError` for a run without a model or without preprocessed cases.
    """
    files = open_model(run.folder.root)
    mirrored = any(
        files.description.training(name).mirroring and files.description.plan.configuration(name).mirror_axes
        for name in files.description.selection.members
    )
    ways = [way for way in WAYS if mirrored or way.mirroring]

    def candidates(fold: int) -> list[Candidate]:
        model = load_fold(files, fold, device=run.device)
        return [Candidate(model=model, way=way, precision=model.members[0].training.precision) for way in ways]

    measured = measure(run, candidates, folds=files.description.selection.folds)
    with hold_lock(run.folder.lock("select"), what="the selection", wait=True, say=run.say):
        describe_anew(run.folder, measured=measured)
    return measured


def measure(
    run: Run, candidates: Callable[[int], Sequence[Candidate]], *, folds: Sequence[int], most_cases: int | None = None
) -> tuple[MeasuredWay, ...]:
    """Dice and seconds of what ``candidates`` gives for each fold, on the cases that the fold was not trained on.

    All candidates predict a case before the next one, so that a machine that others use, too, is as slow for each. ``most_cases``: so many,
    spread over all, are enough.
    """
    prepared = read_prepared(run)
    cases = list(_validated(prepared, folds, most_cases))
    if not cases:
        message, fix = "no fold validates on a case", "measure a run with cross-validation or a hold-out"
        raise AutosegError(Issue(code="measure.no_cases", where=str(run.folder.root), message=message, fix=fix))
    dices: list[list[NDArray[np.float64]]] = []
    seconds: list[list[float]] = []
    loaded: list[Candidate] = []
    with run.reporter.track("Measuring", len(cases)) as tracker:
        for i, (fold, case_id) in enumerate(cases):
            if i == 0 or cases[i - 1][0] != fold:
                loaded = list(candidates(fold))
            found = [_predict(run, prepared, case_id, each) for each in loaded]
            dices.append([dice for dice, _ in found])
            seconds.append([time_s for _, time_s in found])
            tracker.advance(note=case_id)
    units = units_of(run.settings, prepared.dataset, [case_id for _, case_id in cases])
    return summarise(loaded, np.array(dices), np.array(seconds), units, device=str(run.device))


def summarise(
    candidates: Sequence[Candidate],
    dices: NDArray[np.float64],
    seconds: NDArray[np.float64],
    units: Sequence[str],
    *,
    device: str,
) -> tuple[MeasuredWay, ...]:
    """``dices`` (cases, candidates, C) and ``seconds`` (cases, candidates) as a table; the first candidate is what others are compared with."""
    return tuple(
        MeasuredWay(
            mirroring=each.way.mirroring,
            step=each.way.step,
            precision=each.precision,
            dice=mean_dice(dices[:, i]),
            difference=None if i == 0 else paired_gain(dices[:, 0], dices[:, i], units),
            seconds=float(np.mean(seconds[:, i])),
            cases=len(dices),
            device=device,
        )
        for i, each in enumerate(candidates)
    )


def _validated(prepared: Prepared, folds: Sequence[int], most: int | None) -> Iterator[tuple[int, str]]:
    """Fold and case; of a case that several folds validate the first. By fold."""
    pairs: dict[str, int] = {}
    for fold in folds:
        for case_id in prepared.splits.folds[fold].val:
            pairs.setdefault(case_id, fold)
    cases = list(pairs)
    kept = cases if most is None or most >= len(cases) else [cases[i * len(cases) // most] for i in range(most)]
    yield from ((pairs[case_id], case_id) for case_id in kept)


def stored_source(run: Run, prepared: Prepared, case_id: str, model: Model) -> StoredSource:
    """A case as the configurations of a model need it. Reading it raises `AutosegError` where it is not there any more."""
    chains = [each.configuration for member in model.members for each in member.chain]
    return StoredSource(
        images={
            each.name: StoredImage(
                folder=run.folder.preprocessed(each.data),
                case_id=case_id,
                made_from=expected_cases(prepared, each, [case_id])[case_id],
            )
            for each in chains
        }
    )


def _predict(run: Run, prepared: Prepared, case_id: str, candidate: Candidate) -> tuple[NDArray[np.float64], float]:
    """Dice (C,) of a case, NaN where undefined, and the seconds it took."""
    source = stored_source(run, prepared, case_id, candidate.model)
    started = time.perf_counter()
    prediction = candidate.predictor.predict_source(source)
    seconds = time.perf_counter() - started
    case = ValidatedCase(case_id=case_id, dataset=prepared.dataset, labels=prepared.plan.labels, folders={})
    labels = to_internal(prediction.labels, prepared.dataset.file_values)
    counts = count_agreement(labels, case.load_reference(), prepared.plan.labels)
    return dice_of(case.counted(counts)), seconds
