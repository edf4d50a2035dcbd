"""Select: chooses the model by cross-validation, decides its postprocessing, and scores the result."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.data.labels import to_file_values, to_internal
from autoseg.data.splits import find_leaks
from autoseg.evaluation.postprocessing import (
    KeepLargestComponent,
    PostprocessingCase,
    PostprocessingTrial,
    apply_postprocessing,
    decide_postprocessing,
)
from autoseg.evaluation.scoring import labelled_case, reference_labels, score_cases
from autoseg.evaluation.selection import (
    Selection,
    candidate_name,
    labels_from_probabilities,
    mean_probabilities,
    select_candidate,
)
from autoseg.evaluation.table import Summary, read_summary, write_summary
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import read_header, read_label_map
from autoseg.inference.bundle import ModelDescription
from autoseg.inference.model import keep_model, open_model
from autoseg.inference.predict import complete_jobs
from autoseg.inference.predictions import (
    Job,
    PredictionFolder,
    load_probabilities,
    prediction_path,
    probabilities_path,
)
from autoseg.inference.predictor import Prediction
from autoseg.issues import AutosegError, Issue
from autoseg.settings import as_arguments
from autoseg.stages.folds import groups_of
from autoseg.stages.pretrained import find_overlap
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import all_keys, stage_keys
from autoseg.stages.work import Work, is_filled
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from autoseg.wording import count_noun

Labelled = NDArray[np.integer]
DiceByCase = dict[str, dict[str, float | None]]
"""By case id and class name."""


def select(run: Run) -> Generator[Work, None, None]:
    """Choose the best configuration or pair and its postprocessing; predict all training cases with it; keep it as the model."""
    prepared = read_prepared(run)
    names = [training.configuration for training in prepared.schedule.trainings]
    singles = {name: _dice_of_folds(run, prepared, name) for name in names}
    # Trained again from the same, on a GPU or with another torch, a fold may validate otherwise.
    keys = {job: key for job, key in all_keys(run, prepared).items() if job[1] in prepared.schedule.folds}
    inputs = {"models": key_of(sorted(keys.items())), "validation": key_of(list(singles.values()))}
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
        do=partial(_choose, run, prepared, singles),
    )
    selection = run.selection
    run.say(f"Selected: {selection.reason}")
    for step in selection.postprocessing:
        of = step.classes[0] if len(step.classes) == 1 else f"{', '.join(step.classes)} together"
        run.say(f"Postprocessing: keep the largest component of {of}")


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


def _dice_of_folds(run: Run, prepared: Prepared, name: str) -> DiceByCase:
    """Dice of one configuration, from the summaries of its folds."""
    scores: DiceByCase = {}
    for fold in prepared.schedule.folds:
        if prepared.splits.folds[fold].val:
            scores |= read_summary(run.folder.validation(name, fold) / "summary.json").dice_by_case()
    return scores


def _choose(run: Run, prepared: Prepared, singles: Mapping[str, DiceByCase]) -> None:
    """Write the model, ``selection.json`` and the cross-validated predictions."""
    scores = dict(singles)
    if prepared.splits.cross_validated:
        for pair in combinations(singles, 2):
            folder = run.folder.models / "ensembles" / "__".join(pair)
            scores[candidate_name(pair)] = _Candidate(run, prepared, pair).write_and_score(folder).dice_by_case()
    choice = select_candidate(scores, scored_as="held-out" if len(prepared.schedule.folds) == 1 else "cross-validated")
    candidate, summary = _Candidate(run, prepared, choice.members), None
    steps: tuple[KeepLargestComponent, ...] = ()
    trials: tuple[PostprocessingTrial, ...] = ()
    if choice.cross_validated:
        cases, cache = candidate.postprocessing_cases(), run.folder.cache("select")
        steps, trials = decide_postprocessing(cases, prepared.plan.labels, num_workers=1, keep_in=cache)
        summary = candidate.write_and_score(run.folder.cross_validation, steps)
    selection = Selection(
        members=choice.members,
        folds=prepared.schedule.folds,
        postprocessing=steps,
        cross_validated=choice.cross_validated,
        reason=choice.reason,
        candidates=choice.candidates,
        dice_before_postprocessing=choice.mean_dice,
        dice_after_postprocessing=choice.mean_dice if summary is None else summary.mean_dice,
        postprocessing_trials=trials,
    )
    seen = frozenset[str]() if prepared.pretrained is None else prepared.pretrained.description.seen
    model = ModelDescription(
        origin="autoseg",
        dataset=prepared.dataset,
        plan=prepared.plan,
        selection=selection,
        trainings=prepared.schedule.trainings,
        options=as_arguments(run.settings, deciding=True),
        seen_before=None if seen is None else tuple(sorted(seen)),
    )
    keys = {name: stage_keys(run, prepared, name, selection.folds) for name in model.stages}
    kept = keep_model(run.folder, model, keys, summary)
    save_document(run.folder.selection, selection)
    if kept is not None:
        run.report.unlink(missing_ok=True)  # it must not pass for that of another model
        run.say(f"Kept the previous model as {kept}")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A configuration, or a pair whose probabilities are averaged, with what its folds predicted of their validation cases."""

    run: Run
    prepared: Prepared
    members: tuple[str, ...]

    def write_and_score(self, folder: Path, steps: Sequence[KeepLargestComponent] = ()) -> Summary:
        """Predictions of all validated cases after postprocessing, in ``folder``, and their summary."""
        run, dataset, case_ids = self.run, self.prepared.dataset, self.prepared.validated
        made_from = key_of(self.members, steps)
        sink = PredictionFolder(folder=folder, dataset=dataset, made_from=made_from, say=run.say, is_own=True)
        jobs = [
            Job(case_id=case_id, predict=partial(self._predict, steps, case_id), inputs=self._files(case_id))
            for case_id in case_ids
        ]
        sink.begin(jobs)
        with run.reporter.track(f"Scoring {candidate_name(self.members)}", 2 * len(jobs)) as tracker:
            complete_jobs(jobs, sink.complete, tracker)
            paths = [(case_id, prediction_path(folder, case_id, dataset)) for case_id in case_ids]
            cache = run.folder.cache("select")
            summary = score_cases(dataset, paths, tracker, num_workers=run.num_workers, keep_in=cache)
        write_summary(folder / "summary.json", summary)
        return summary

    def postprocessing_cases(self) -> list[PostprocessingCase]:
        """Loaders of every validated case's prediction and reference."""
        dataset = self.prepared.dataset
        return [
            PostprocessingCase(
                case_id=case_id,
                load_prediction=partial(self._load, case_id),
                load_reference=partial(_load_reference, dataset, case_id),
                files=(*self._files(case_id), *map(Path, labelled_case(dataset, case_id).label_files)),
            )
            for case_id in self.prepared.validated
        ]

    def _predict(self, steps: Sequence[KeepLargestComponent], case_id: str) -> Prediction:
        dataset = self.prepared.dataset
        labels = apply_postprocessing(self._load(case_id), steps, self.prepared.plan.labels)
        geometry = read_header(self._files(case_id)[0]).geometry
        return Prediction(labels=to_file_values(labels, dataset.file_values), probabilities=None, geometry=geometry)

    def _load(self, case_id: str) -> Labelled:
        """Validated label map (Z, Y, X), internal values."""
        if len(self.members) == 1:
            label_map = read_label_map(self._files(case_id)[0])
            return to_internal(label_map.array, self.prepared.dataset.file_values)
        folders = self._folders(case_id)
        probabilities = mean_probabilities(load_probabilities(folder, case_id) for folder in folders)
        return labels_from_probabilities(probabilities, self.prepared.plan.labels)

    def _files(self, case_id: str) -> tuple[Path, ...]:
        """The label map of each member, then, of a pair, the probabilities."""
        folders = self._folders(case_id)
        label_maps = [prediction_path(folder, case_id, self.prepared.dataset) for folder in folders]
        return (*label_maps, *(probabilities_path(folder, case_id) for folder in folders if len(folders) > 1))

    def _folders(self, case_id: str) -> list[Path]:
        """Where each member's validation of the case is."""
        fold = next(k for k, split in enumerate(self.prepared.splits.folds) if case_id in split.val)
        return [self.run.folder.validation(name, fold) for name in self.members]


def _load_reference(dataset: DatasetDescription, case_id: str) -> Labelled:
    """The user's label map (Z, Y, X) on the grid of its image, internal values."""
    case = labelled_case(dataset, case_id)
    aligned = align_label_map(reference_labels(dataset, case_id), read_header(case.image_paths[0]).geometry)
    return to_internal(aligned, dataset.file_values)
