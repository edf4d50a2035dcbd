"""Select: chooses the model by cross-validation, decides its postprocessing, and scores the result."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
from autoseg.inference.bundle import stages_of
from autoseg.inference.model import selection_key
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
from autoseg.stages.folds import groups_of
from autoseg.stages.pretrained import find_overlap
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import all_keys, stage_keys
from autoseg.stages.work import Work, is_filled
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.cache import key_of

Labelled = NDArray[np.integer]


def select(run: Run) -> Generator[Work, None, None]:
    """Choose the best configuration or pair and its postprocessing; predict all training cases with it."""
    prepared = read_prepared(run)
    # Trained again from the same, on a GPU or with another torch, a fold may validate otherwise.
    scores = [single_scores(run, prepared, training.configuration) for training in prepared.schedule.trainings]
    inputs = {"models": key_of(sorted(all_keys(run, prepared).items())), "validation": key_of(scores)}
    outputs = [run.folder.selection]
    if prepared.splits.cross_validated:
        folder = run.folder.cross_validation
        predictions = [prediction_path(folder, case_id, prepared.dataset) for case_id in validated_cases(prepared)]
        outputs += [folder / "summary.json", *predictions]
    yield Work(
        name="select",
        what="the selection",
        inputs=lambda: inputs,
        outputs=outputs,
        is_whole=lambda path: is_filled(path) and (path != run.folder.selection or selection_fits(run, prepared)),
        do=partial(choose, run, prepared),
    )
    selection = run.selection
    run.say(f"Selected {selection.name}: {selection.reason}")
    for step in selection.postprocessing:
        of = step.classes[0] if len(step.classes) == 1 else f"{', '.join(step.classes)} together"
        run.say(f"Postprocessing: keep the largest component of {of}")


def score_issues(run: Run, prepared: Prepared) -> tuple[Issue, ...]:
    """Caveats of the scores: networks that were trained on cases they are scored on, or on other cases of the same patients."""
    overlap = None if prepared.pretrained is None else find_overlap(prepared.pretrained, prepared.dataset)
    leaks = find_leaks(prepared.splits, groups_of(run.settings, prepared.dataset))
    return (*([] if overlap is None else [overlap]), *leaks)


def selection_fits(run: Run, prepared: Prepared) -> bool:
    """Whether ``selection.json`` can be read and belongs to the plan, the schedule and the weights of the run."""
    try:
        selection = load_document(Selection, run.folder.selection)
    except AutosegError:
        return False
    return selection.made_from == made_from(run, prepared, selection.members)


def made_from(run: Run, prepared: Prepared, members: tuple[str, ...]) -> str:
    """Hash of all that a selection of ``members`` is made from."""
    stages = stages_of(prepared.plan, members)
    keys = {name: stage_keys(run, prepared, name) for name in stages}
    return selection_key(prepared.plan, prepared.schedule.trainings, prepared.dataset, keys)


def choose(run: Run, prepared: Prepared) -> None:
    """Write ``selection.json`` and the cross-validated predictions."""
    names = [training.configuration for training in prepared.schedule.trainings]
    scores: dict[str, dict[str, dict[str, float | None]]] = {name: single_scores(run, prepared, name) for name in names}
    if prepared.splits.cross_validated:
        for pair in combinations(names, 2):
            scores[candidate_name(pair)] = pair_scores(run, prepared, pair)
    choice = select_candidate(scores, scored_as="held-out" if prepared.splits.is_hold_out else "cross-validated")
    steps: tuple[KeepLargestComponent, ...] = ()
    trials: tuple[PostprocessingTrial, ...] = ()
    if choice.cross_validated:
        cases = postprocessing_cases(run, prepared, choice.members)
        steps, trials = decide_postprocessing(
            cases, prepared.plan.labels, num_workers=1, keep_in=run.folder.cache("select")
        )
    selection = Selection(
        members=choice.members,
        folds=tuple(range(prepared.schedule.num_folds)),
        postprocessing=steps,
        cross_validated=choice.cross_validated,
        reason=choice.reason,
        candidates=choice.candidates,
        dice_before_postprocessing=choice.mean_dice,
        dice_after_postprocessing=choice.mean_dice,
        postprocessing_trials=trials,
        made_from=made_from(run, prepared, choice.members),
    )
    if choice.cross_validated:
        summary = write_and_score(run, prepared, choice.members, steps, run.folder.cross_validation)
        selection = selection.model_copy(update={"dice_after_postprocessing": summary.mean_dice})
    save_document(run.folder.selection, selection)


def single_scores(run: Run, prepared: Prepared, name: str) -> dict[str, dict[str, float | None]]:
    """Dice by case and class of one configuration, from the summaries of its folds."""
    scores: dict[str, dict[str, float | None]] = {}
    for fold, split in enumerate(prepared.splits.folds):
        if split.val:
            scores |= read_summary(run.folder.validation(name, fold) / "summary.json").dice_by_case()
    return scores


def pair_scores(run: Run, prepared: Prepared, pair: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    """Dice by case and class of two configurations whose probabilities are averaged."""
    folder = run.folder.models / "ensembles" / "__".join(pair)
    return write_and_score(run, prepared, pair, (), folder).dice_by_case()


def postprocessing_cases(run: Run, prepared: Prepared, members: tuple[str, ...]) -> list[PostprocessingCase]:
    """Loaders of every validated case's prediction and reference."""
    return [
        PostprocessingCase(
            case_id=case_id,
            load_prediction=partial(load_prediction, run, prepared, members, case_id),
            load_reference=partial(load_reference, prepared, case_id),
            files=files_read(run, prepared, members, case_id),
        )
        for case_id in validated_cases(prepared)
    ]


def predicted_files(run: Run, prepared: Prepared, members: tuple[str, ...], case_id: str) -> tuple[Path, ...]:
    """What `load_prediction` reads."""
    fold = fold_of(prepared, case_id)
    predicted = [member_prediction(run, prepared, name, case_id) for name in members]
    probabilities = [
        probabilities_path(run.folder.validation(name, fold), case_id) for name in members if len(members) > 1
    ]
    return (*predicted, *probabilities)


def files_read(run: Run, prepared: Prepared, members: tuple[str, ...], case_id: str) -> tuple[Path, ...]:
    """What `load_prediction` and `load_reference` read."""
    references = map(Path, labelled_case(prepared.dataset, case_id).label_files)
    return (*predicted_files(run, prepared, members, case_id), *references)


def write_and_score(
    run: Run,
    prepared: Prepared,
    members: tuple[str, ...],
    steps: Sequence[KeepLargestComponent],
    folder: Path,
) -> Summary:
    """Predictions of a candidate with postprocessing for all validated cases, in ``folder``, and their summary."""
    dataset, case_ids = prepared.dataset, validated_cases(prepared)
    sink = PredictionFolder(folder=folder, dataset=dataset, made_from=key_of(members, steps), say=run.say, is_own=True)
    jobs = [
        Job(
            case_id=case_id,
            predict=partial(ensemble_prediction, run, prepared, members, steps, case_id),
            inputs=predicted_files(run, prepared, members, case_id),
        )
        for case_id in case_ids
    ]
    sink.begin(jobs)
    with run.reporter.track(f"Scoring {candidate_name(members)}", 2 * len(jobs)) as tracker:
        complete_jobs(jobs, sink.complete, tracker)
        paths = [(case_id, prediction_path(folder, case_id, dataset)) for case_id in case_ids]
        summary = score_cases(dataset, paths, tracker, num_workers=run.num_workers, keep_in=run.folder.cache("select"))
    write_summary(folder / "summary.json", summary)
    return summary


def ensemble_prediction(
    run: Run, prepared: Prepared, members: tuple[str, ...], steps: Sequence[KeepLargestComponent], case_id: str
) -> Prediction:
    """The label map of a validated case after postprocessing."""
    labels = load_prediction(run, prepared, members, case_id)
    labels = apply_postprocessing(labels, steps, prepared.plan.labels)
    geometry = read_header(member_prediction(run, prepared, members[0], case_id)).geometry
    file_labels = to_file_values(labels, prepared.dataset.file_values)
    return Prediction(labels=file_labels, probabilities=None, geometry=geometry)


def load_prediction(run: Run, prepared: Prepared, members: tuple[str, ...], case_id: str) -> Labelled:
    """Validated label map (Z, Y, X), internal values, of one configuration or of a pair's mean probabilities."""
    if len(members) == 1:
        label_map = read_label_map(member_prediction(run, prepared, members[0], case_id))
        return to_internal(label_map.array, prepared.dataset.file_values)
    fold = fold_of(prepared, case_id)
    probabilities = mean_probabilities(
        load_probabilities(run.folder.validation(name, fold), case_id) for name in members
    )
    return labels_from_probabilities(probabilities, prepared.plan.labels)


def load_reference(prepared: Prepared, case_id: str) -> Labelled:
    """The user's label map (Z, Y, X) on the grid of its image, internal values."""
    case = next(case for case in prepared.dataset.training if case.case_id == case_id)
    reference = reference_labels(prepared.dataset, case_id)
    aligned = align_label_map(reference, read_header(case.image_paths[0]).geometry)
    return to_internal(aligned, prepared.dataset.file_values)


def member_prediction(run: Run, prepared: Prepared, name: str, case_id: str) -> Path:
    """Path of a configuration's validation of a case."""
    return prediction_path(run.folder.validation(name, fold_of(prepared, case_id)), case_id, prepared.dataset)


def validated_cases(prepared: Prepared) -> list[str]:
    """Ids of all cases that some fold validates, sorted."""
    return list(prepared.splits.validated)


def fold_of(prepared: Prepared, case_id: str) -> int:
    """The fold that validates a case."""
    return next(k for k, split in enumerate(prepared.splits.folds) if case_id in split.val)
