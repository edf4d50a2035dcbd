"""Select: chooses the model, its decoder and its postprocessing by out-of-fold evidence, and scores the result."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.labels import to_file_values
from autoseg.data.splits import find_leaks
from autoseg.evaluation.intervals import mean_interval, unit_codes
from autoseg.evaluation.label_maps import (
    Counts,
    Step,
    apply_postprocessing,
    count_ensembles,
    count_trials,
)
from autoseg.evaluation.metrics import ClassMetrics
from autoseg.evaluation.scoring import labelled_case, score_cases
from autoseg.evaluation.selection import (
    Candidate,
    Recipe,
    Selection,
    Trial,
    candidate_recipes,
    choose,
    class_means,
    corrected_dices,
    dice_of,
    mean_dice,
    without_comparison,
)
from autoseg.evaluation.table import Summary, read_summary, with_groups, write_summary
from autoseg.imaging.readers import file_states, read_header
from autoseg.inference.bundle import ModelDescription
from autoseg.inference.kept import load_probabilities, ranked_path
from autoseg.inference.model import keep_model, open_model
from autoseg.inference.predict import complete_jobs
from autoseg.inference.predictions import Job, PredictionFolder, prediction_path
from autoseg.inference.predictor import Prediction
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.looks import Usual
from autoseg.settings import as_arguments
from autoseg.stages.calibrate import describe_doubt, has_samples
from autoseg.stages.challenge import challenge_for, first_of, score_configurations
from autoseg.stages.folds import groupings, groups_of, units_of
from autoseg.stages.pretrained import find_overlap
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import all_keys, stage_keys
from autoseg.stages.validated import ValidatedCase
from autoseg.stages.work import Work, is_filled
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import KEPT, Cached, key_of
from autoseg.wording import count_noun
from planners import Labels

KeptCounts = Annotated[Counts, KEPT]
VOXEL_S = 3e-7
"""Processor time to read a voxel of a prediction and its reference, and to try all steps on it."""
VOXEL_BYTES = 40


def select(run: Run) -> Generator[Work, None, None]:
    """Choose the model and its postprocessing; predict all training cases with it; keep it."""
    prepared = read_prepared(run)
    names = [training.configuration for training in prepared.schedule.trainings]
    summaries = {name: _summaries(run, prepared, name) for name in names}
    dices = [{case: dice for each in own for case, dice in each.dice_by_case().items()} for own in summaries.values()]
    # Trained again from the same, on a GPU or with another torch, a fold may validate otherwise.
    keys = {job: key for job, key in all_keys(run, prepared).items() if job[1] in prepared.schedule.folds}
    inputs = {"models": key_of(sorted(keys.items())), "validation": key_of(dices)}
    if has_samples(validated_cases(run, prepared, names).values()):
        inputs["sampled probabilities"] = "kept"  # not by versions before 0.3
    if run.settings.select_by is not None:
        inputs["challenge to select by"] = key_of(challenge_for(run.settings.select_by, prepared.dataset)[1])
    outputs = [run.folder.selection, run.folder.model]
    if prepared.splits.cross_validated:
        folder = run.folder.cross_validation
        predictions = [prediction_path(folder, case_id, prepared.dataset) for case_id in prepared.validated]
        outputs += [folder / "summary.json", *predictions]
    yield Work(
        name="select",
        what="the selection",
        inputs=lambda: inputs,
        outputs=outputs,
        is_whole=lambda path: is_filled(path) and (path != run.folder.model or _has_model(run)),
        do=partial(_choose, run, prepared, summaries),
    )
    if prepared.splits.cross_validated:
        score_groups(run, prepared)
    selection = run.selection
    run.say(f"Selected: {selection.reason}")
    for trial in selection.trials:
        if trial.accepted:
            run.say(f"Accepted: {trial}")


def score_groups(run: Run, prepared: Prepared) -> None:
    """Bring the scores by group in ``summary.json`` up to date with the table of groups: labels and choices do not depend on it."""
    path, settings = run.folder.cross_validation / "summary.json", run.settings
    found, notes = groupings(settings, prepared.dataset)
    for note in notes:
        run.say(f"Note: {note}")
    summary = read_summary(path)
    if found or summary.groups:
        now = with_groups(summary, found, held_out=settings.hold_out_groups)
        if now != summary:
            write_summary(path, now)


def score_issues(run: Run, prepared: Prepared) -> tuple[Issue, ...]:
    """Caveats of the scores: folds that were left out, networks that were trained on cases they are scored on, or on other cases
    of the same patients.
    """
    overlap = None if prepared.pretrained is None else find_overlap(prepared.pretrained, prepared.dataset)
    leaks = find_leaks(prepared.splits, groups_of(run.settings, prepared.dataset))
    return (*_left_out(run, prepared), *([] if overlap is None else [overlap]), *leaks)


def _left_out(run: Run, prepared: Prepared) -> list[Issue]:
    """That some folds were left out, so that their cases have no score."""
    schedule, splits = prepared.schedule, prepared.splits
    left_out = [fold for fold in range(schedule.num_folds) if fold not in schedule.folds]
    if not left_out:
        return []
    numbers = f"{'fold' if len(left_out) == 1 else 'folds'} {' and '.join(map(str, left_out))}"
    cases = f"{len(prepared.validated)} of {count_noun(len(splits.validated), 'case')}"
    message = f"{numbers} of {schedule.num_folds} could not be trained in time, so scores are of {cases}"
    fix = f"train more with autoseg train {run.folder.root} --fold {left_out[0]} and then autoseg run {run.folder.root}"
    return [Issue(code="scores.folds_left_out", severity="warning", where="cross-validation", message=message, fix=fix)]


def _has_model(run: Run) -> bool:
    """Whether the run's model can be read and is the one of its selection."""
    try:
        return key_of(open_model(run.folder.model).description.selection) == key_of(run.selection)
    except AutosegError:
        return False


def _summaries(run: Run, prepared: Prepared, name: str) -> list[Summary]:
    """Scores of one configuration's folds."""
    folds = [fold for fold in prepared.schedule.folds if prepared.splits.folds[fold].val]
    return [read_summary(run.folder.validation(name, fold) / "summary.json") for fold in folds]


def _choose(run: Run, prepared: Prepared, summaries: Mapping[str, Sequence[Summary]]) -> None:
    """Write the model, ``selection.json`` and the cross-validated predictions."""
    selection, summary = _selected(run, prepared, summaries)
    calibration, expected = None, None
    if summary is not None:
        cases = validated_cases(run, prepared, list(summaries))
        calibration, expected = describe_doubt(run, prepared, selection, cases, summary)
        coverage = {} if expected is None else expected.coverage
        summary = summary.model_copy(update={"calibration": calibration, "expected_coverage": coverage})
        write_summary(run.folder.cross_validation / "summary.json", summary)
    seen = frozenset[str]() if prepared.pretrained is None else prepared.pretrained.description.seen
    model = ModelDescription(
        origin="autoseg",
        dataset=prepared.dataset,
        plan=prepared.plan,
        selection=selection,
        trainings=prepared.schedule.trainings,
        options=as_arguments(run.settings, deciding=True),
        calibration=calibration,
        expected=expected,
        usual=Usual.of(run.fingerprint, prepared.plan),
        seen_before=None if seen is None else tuple(sorted(seen)),
    )
    keys = {name: stage_keys(run, prepared, name, selection.folds) for name in model.stages}
    kept = keep_model(run.folder, model, keys, summary)
    save_document(run.folder.selection, selection)
    if kept is not None:
        run.report.unlink(missing_ok=True)  # it must not pass for that of another model
        run.say(f"Kept the previous model as {kept}")


def _selected(
    run: Run, prepared: Prepared, summaries: Mapping[str, Sequence[Summary]]
) -> tuple[Selection, Summary | None]:
    """What is chosen, and, if cases were validated, its scores; their predictions are written."""
    names, parts = list(summaries), _parts(prepared)
    cases = [case_id for part in parts for case_id in part]
    evidence = RunEvidence(run=run, prepared=prepared, names=names, single_counts=_counts(summaries))
    before = dice_of(evidence.of_candidates(cases))
    units = units_of(run.settings, prepared.dataset, cases)
    compared = [
        _candidate(each, before[:, i], prepared.plan.labels, units) for i, each in enumerate(evidence.candidates)
    ]
    summary: Summary | None = None
    corrected, interval, correction = None, None, ""
    trials: tuple[Trial, ...] = ()
    if all(each.mean_dice is None for each in compared):
        name, reason = without_comparison(names, bool(cases))
        recipe = Recipe(members=(name,))
    else:
        evidence, by = _by_challenge(run, evidence)
        recipe, trials = choose(evidence, cases, units)
        summary = evidence.write_and_score(recipe)
        corrected, interval, correction = _corrected(evidence, parts, units, recipe, summary)
        scored_as = "held-out" if len(prepared.schedule.folds) == 1 else "cross-validated"
        reason = by or _reason(recipe, compared, trials, scored_as)
    chosen = next(each for each in compared if (each.members, each.weights) == (recipe.members, recipe.weights))
    selection = Selection(
        members=recipe.members,
        weights=recipe.weights,
        decoder=recipe.decoder,
        folds=prepared.schedule.folds,
        postprocessing=recipe.postprocessing,
        cross_validated=summary is not None,
        reason=reason,
        candidates=_worth_showing(compared, chosen),
        dice_before_postprocessing=chosen.mean_dice,
        dice_after_postprocessing=None if summary is None else summary.mean_dice,
        dice_corrected=corrected,
        corrected_interval=interval,
        correction=correction,
        trials=trials,
    )
    return selection, summary


def _by_challenge(run: Run, evidence: RunEvidence) -> tuple[RunEvidence, str]:
    """With ``--select-by`` and several configurations, the evidence of the one that the challenge ranks first, and why."""
    name, dataset = run.settings.select_by, evidence.prepared.dataset
    if name is None or len(evidence.names) == 1:
        return evidence, ""
    scores = score_configurations(name, dataset, evidence.label_maps(), run.reporter, num_workers=run.num_workers)
    best, reason = first_of(name, scores, dataset)
    return replace(evidence, names=(best,), known={}), reason


def _candidate(recipe: Recipe, dices: NDArray[np.float64], labels: Labels, units: Sequence[str]) -> Candidate:
    means = class_means(dices) if len(dices) else np.full(len(labels.classes), np.nan)
    _, low, high, _ = mean_interval(dices, unit_codes(units))
    return Candidate(
        name=recipe.name,
        members=recipe.members,
        weights=recipe.weights,
        mean_dice=mean_dice(dices),
        dice_per_class={
            each.name: float(mean) if np.isfinite(mean) else None
            for each, mean in zip(labels.classes, means, strict=True)
        },
        num_cases=len(dices),
        low=low,
        high=high,
    )


def _worth_showing(compared: Sequence[Candidate], chosen: Candidate) -> tuple[Candidate, ...]:
    """All but the ensembles with other weights, of which only the best and the chosen one are shown."""
    weighted = [each for each in compared if each.weights and each.mean_dice is not None]
    best = max(weighted, key=lambda each: each.mean_dice or 0.0, default=chosen)
    return tuple(each for each in compared if not each.weights or each in (best, chosen))


def _reason(recipe: Recipe, compared: Sequence[Candidate], trials: Sequence[Trial], scored_as: str) -> str:
    """Why these members, with the scores of the others."""
    singles = [each for each in compared if len(each.members) == 1]
    made_of = recipe.members, recipe.weights
    others = [each for each in compared if not each.weights and (each.members, each.weights) != made_of]
    listed = ", ".join(
        f"{each.name} {each.mean_dice:.4f}"
        for each in sorted(others, key=lambda each: -(each.mean_dice or 0.0))
        if each.mean_dice is not None
    )
    chosen = next(each for each in compared if (each.members, each.weights) == made_of)
    score = f"mean foreground Dice {chosen.mean_dice:.4f} over {count_noun(chosen.num_cases, f'{scored_as} case')}"
    if len(compared) == 1:
        return f"{chosen.name} is the only candidate; {score}"
    if len(recipe.members) == 1:
        what = "the only configuration that could be scored" if not listed else "the best single configuration"
        better = "" if len(singles) == len(compared) else ", and no ensemble is surely better"
        return f"{chosen.name} is {what}{better}; {score}; {listed}"
    gain = next(
        trial for trial in reversed(trials) if trial.accepted and trial.what.startswith(f"{chosen.name} instead")
    )
    return f"{gain}; {score}; {listed}"


def _parts(prepared: Prepared) -> list[tuple[str, ...]]:
    """Validated cases of each fold; one that several folds validate is of the first."""
    seen: set[str] = set()
    parts = []
    for split in (prepared.splits.folds[fold] for fold in prepared.schedule.folds):
        parts.append(tuple(case_id for case_id in split.val if case_id not in seen))
        seen |= set(split.val)
    return [part for part in parts if part]


def _corrected(
    evidence: RunEvidence, parts: Sequence[Sequence[str]], units: Sequence[str], recipe: Recipe, summary: Summary
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Mean Dice without the advantage of having chosen on the scored cases, its interval, and how that was done."""
    if len(parts) < 2:
        return None, None, "not corrected: the choices were made on the cases that are scored"
    by_case = summary.dice_by_case()
    scored = [[np.nan if dice is None else dice for dice in by_case[case].values()] for part in parts for case in part]
    dices, same = corrected_dices(evidence, parts, units, recipe, np.array(scored, np.float64))
    how = f"for each fold, model and postprocessing were chosen on the other folds; {same} of {len(parts)} chose the same as all together"
    _, low, high, _ = mean_interval(dices, unit_codes(units))
    return mean_dice(dices), None if low is None or high is None else (low, high), how


def _counts(summaries: Mapping[str, Sequence[Summary]]) -> dict[str, dict[str, Counts]]:
    """Counts (C, 3) by configuration and case."""
    return {
        name: {
            case.case_id: np.array([(of.tp, of.n_pred, of.n_ref) for of in _in_order(case.metrics, each)], np.int64)
            for each in own
            for case in each.metric_per_case
        }
        for name, own in summaries.items()
    }


def _in_order(metrics: Mapping[str, ClassMetrics], summary: Summary) -> list[ClassMetrics]:
    return [metrics[each.key] for each in summary.classes]


# --- evidence ---


def validated_cases(run: Run, prepared: Prepared, names: Sequence[str]) -> dict[str, ValidatedCase]:
    """All validated cases by name, with the predictions of these configurations; one that several folds validate is of the first."""
    return {
        case_id: ValidatedCase(
            case_id=case_id,
            dataset=prepared.dataset,
            labels=prepared.plan.labels,
            folders={name: run.folder.validation(name, fold) for name in names},
        )
        for fold in reversed(prepared.schedule.folds)
        for case_id in prepared.splits.folds[fold].val
    }


def count_case_ensembles(case: ValidatedCase, *, names: Sequence[str], weights: Sequence[Sequence[float]]) -> Counts:
    """(ensembles, C, 3) of one case."""
    probabilities = [load_probabilities(case.folders[name], case.case_id) for name in names]
    label_maps, reference = case.load_members(names), case.load_reference()
    return case.counted(count_ensembles(label_maps, probabilities, weights, reference, case.labels))


def count_case_steps(case: ValidatedCase, *, recipe: Recipe, trials: Sequence[Step]) -> Counts:
    """(1 + trials, C, 3) of one case."""
    voxel_mm3 = 1000 * read_header(case.label_map_path(recipe.members[0])).geometry.voxel_volume_ml
    prediction = apply_postprocessing(case.load(recipe), recipe.postprocessing, case.labels, voxel_mm3=voxel_mm3)
    return case.counted(count_trials(prediction, case.load_reference(), trials, case.labels, voxel_mm3=voxel_mm3))


@dataclass(frozen=True, kw_only=True)
class RunEvidence:
    """`Evidence` from the validation of a run; what was counted is kept, and cached on disk until the stage has ended."""

    run: Run
    prepared: Prepared
    names: Sequence[str]
    single_counts: Mapping[str, Mapping[str, Counts]]
    """(C, 3) by configuration and case."""
    known: dict[object, Counts] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """The classes."""
        return self.prepared.plan.labels

    @cached_property
    def candidates(self) -> tuple[Recipe, ...]:
        """Single configurations, and ensembles of them."""
        return candidate_recipes(self.names)

    @cached_property
    def has_ranked(self) -> bool:
        """Whether validation kept what RankSEG decides otherwise; versions before 0.3 did not."""
        return all(
            ranked_path(folder, case.case_id).is_file()
            for case in self._cases.values()
            for folder in case.folders.values()
        )

    @cached_property
    def _cases(self) -> dict[str, ValidatedCase]:
        return validated_cases(self.run, self.prepared, self.names)

    def label_maps(self) -> dict[str, list[tuple[str, Path]]]:
        """Case id and label map of every validated case, by configuration."""
        return {
            name: [(case_id, case.label_map_path(name)) for case_id, case in self._cases.items()] for name in self.names
        }

    def of_candidates(self, cases: Sequence[str]) -> Counts:
        """(cases, candidates, C, 3)."""
        ensembles = [each for each in self.candidates if len(each.members) > 1]
        singles = np.array([[self.single_counts[name][case] for name in self.names] for case in cases], np.int64)
        singles = singles.reshape(len(cases), len(self.names), len(self.labels.classes), 3)
        if not ensembles:
            return singles
        weights = tuple(tuple(_weight_of(each, name) for name in self.names) for each in ensembles)
        count = partial(count_case_ensembles, names=tuple(self.names), weights=weights)
        return np.concatenate([singles, self._count(cases, count, tuple(self.names), ranked=False)], axis=1)

    def of_steps(self, recipe: Recipe, trials: Sequence[Step], cases: Sequence[str]) -> Counts:
        """(cases, 1 + trials, C, 3)."""
        count = partial(count_case_steps, recipe=recipe, trials=tuple(trials))
        return self._count(cases, count, recipe.members, ranked=recipe.decoder == "rankseg")

    def _count(self, cases: Sequence[str], count: partial[Counts], members: Sequence[str], *, ranked: bool) -> Counts:
        """What ``count`` returns for each case, counted where it is not known."""

        def state(case: ValidatedCase) -> object:
            own = labelled_case(case.dataset, case.case_id)
            files = (*case.files(members, ranked=ranked), *map(Path, own.label_files))
            return case.case_id, own.annotated, file_states(files)

        kind = repr((count.func.__name__, count.keywords))
        missing = [self._cases[case] for case in cases if (kind, case) not in self.known]
        if missing:
            voxels = [prod(read_header(case.label_map_path(members[0])).geometry.shape) for case in missing]
            cached = Cached(function=count, kind=KeptCounts, state=state, folder=self.run.folder.cache("select"))
            found = run_jobs(
                cached,
                missing,
                name=lambda case: f"case {case.case_id}",
                num_workers=workers_worth_starting(self.run.num_workers, VOXEL_S * sum(voxels)),
                need_bytes=VOXEL_BYTES * max(voxels),
            )
            self.known.update({(kind, case.case_id): counts for case, counts in zip(missing, found, strict=True)})
        return np.array([self.known[kind, case] for case in cases])

    def write_and_score(self, recipe: Recipe) -> Summary:
        """Predictions of all validated cases by a recipe, in the run's folder for them, and their summary."""
        run, dataset = self.run, self.prepared.dataset
        folder, case_ids = run.folder.cross_validation, self.prepared.validated
        sink = PredictionFolder(folder=folder, dataset=dataset, made_from=key_of(recipe), say=run.say, is_own=True)
        jobs = [
            Job(
                case_id=case_id,
                predict=partial(self._predict, recipe, case_id),
                inputs=self._cases[case_id].files(recipe.members, ranked=recipe.decoder == "rankseg"),
            )
            for case_id in case_ids
        ]
        sink.begin(jobs)
        with run.reporter.track(f"Scoring {recipe.name}", 2 * len(jobs)) as tracker:
            complete_jobs(jobs, sink, tracker)
            paths = [(case_id, prediction_path(folder, case_id, dataset)) for case_id in case_ids]
            cache = run.folder.cache("select")
            patients = groups_of(run.settings, dataset)
            summary = score_cases(
                dataset, paths, tracker, patients=patients, num_workers=run.num_workers, keep_in=cache
            )
        write_summary(folder / "summary.json", summary)
        return summary

    def _predict(self, recipe: Recipe, case_id: str) -> Prediction:
        case = self._cases[case_id]
        geometry = read_header(case.label_map_path(recipe.members[0])).geometry
        voxel_mm3 = 1000 * geometry.voxel_volume_ml
        labels = apply_postprocessing(case.load(recipe), recipe.postprocessing, self.labels, voxel_mm3=voxel_mm3)
        return Prediction(
            labels=to_file_values(labels, case.dataset.file_values), probabilities=None, geometry=geometry
        )


def _weight_of(recipe: Recipe, name: str) -> float:
    """Weight of one configuration in an ensemble, 0 if it is no member."""
    weights = recipe.weights or (1 / len(recipe.members),) * len(recipe.members)
    return dict(zip(recipe.members, weights, strict=True)).get(name, 0.0)
