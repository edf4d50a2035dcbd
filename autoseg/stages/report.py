"""Report: one page from what the run left in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping
from dataclasses import asdict
from functools import partial
from math import ceil
from pathlib import Path

from autoseg.delivery.figures import overlay
from autoseg.delivery.report import (
    Command,
    OverlayPicture,
    RankedCase,
    ReportContent,
    rank_cases,
    write_report,
)
from autoseg.evaluation.scoring import reference_labels
from autoseg.imaging.orientation import align_label_map, canonical_orientation, to_canonical
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.inference.validation import prediction_path
from autoseg.settings import words_of
from autoseg.stages.record import RunRecord, write_record
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.select import score_issues
from autoseg.stages.work import Work
from autoseg.storage.atomic import load_document
from autoseg.training.history import read_history
from autoseg.training.learning import Learning
from planners import Schedule

STAGE_ORDER = ("check", "fingerprint", "plan", "preprocess", "schedule", "train", "validate", "select", "predict")


def report(run: Run) -> Generator[Work, None, None]:
    """Write ``report/index.html``."""
    yield Work(
        name="report",
        what="the report",
        inputs=dict,
        outputs=[],
        do=partial(_write, run),
        is_recorded=False,
    )


def _write(run: Run) -> None:
    record = write_record(run, "running")
    prepared = read_prepared(run)
    dataset, summary = prepared.dataset, run.summary
    content = ReportContent(
        dataset_name=dataset.name,
        num_cases=len(dataset.training),
        num_test_cases=len(dataset.test),
        channels=dataset.channels,
        class_names=tuple(each.name for each in dataset.labels.classes),
        selection=run.selection,
        summary=summary,
        caveats=score_issues(run, prepared),
        histories=_read_histories(run, prepared.schedule),
        remarks=_read_remarks(run, prepared.schedule),
        decisions=(*prepared.plan.decisions, *prepared.schedule.decisions),
        issues=dataset.issues,
        overlays=()
        if summary is None
        else tuple(OverlayPicture(case=each, png=_draw_case(run, prepared, each)) for each in rank_cases(summary)),
        commands=commands(run),
        environment=environment(record),
        durations_s=durations(record.stages_s, prepared.schedule),
    )
    write_report(run.folder.report, content)


def _folds(run: Run, schedule: Schedule) -> dict[tuple[str, int], Path]:
    """Folder of each training, by configuration and fold."""
    return {
        (training.configuration, fold): run.folder.fold(training.configuration, fold)
        for training in schedule.trainings
        for fold in range(schedule.num_folds)
    }


def _read_histories(run: Run, schedule: Schedule) -> dict[tuple[str, int], list[dict[str, object]]]:
    """The records of every training."""
    histories = {}
    for key, folder in _folds(run, schedule).items():
        records, damage = read_history(folder / "history.jsonl")
        histories[key] = [asdict(record) for record in records]
        if damage:
            run.say(damage)
    return histories


def _read_remarks(run: Run, schedule: Schedule) -> dict[tuple[str, int], list[str]]:
    """How weights were fitted, what went wrong in every training, and what was done."""
    files = {key: folder / "learning.json" for key, folder in _folds(run, schedule).items()}
    found = {key: load_document(Learning, path) for key, path in files.items() if path.exists()}
    return {key: [*each.adaptations, *map(str, each.remarks)] for key, each in found.items()}


def _draw_case(run: Run, prepared: Prepared, ranked: RankedCase) -> bytes:
    """One case in canonical axes, so that every picture shows the patient the same way up."""
    dataset = prepared.dataset
    case = next(case for case in dataset.training if case.case_id == ranked.case_id)
    volume = read_image(case.image_paths)
    orientation = canonical_orientation(volume.geometry)
    z, y, x = volume.geometry.spacing_mm
    spacing = [(z, y, x)[axis] for axis in orientation.permutation]
    prediction = read_label_map(prediction_path(run.folder.cross_validation, case.case_id, dataset))
    reference = reference_labels(dataset, case.case_id)
    return overlay(
        to_canonical(volume.array[0], orientation),
        to_canonical(align_label_map(reference, volume.geometry), orientation),
        to_canonical(align_label_map(prediction, volume.geometry), orientation),
        names=_class_names(prepared),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def _class_names(prepared: Prepared) -> Mapping[int, str]:
    """Names of label values in the dataset's files; a value that is in several regions gets the last one's name."""
    dataset = prepared.dataset
    return {dataset.file_values[value]: each.name for each in dataset.labels.classes for value in each.values}


def commands(run: Run) -> tuple[Command, ...]:
    """What a reader may want to do next, as a shell takes it."""
    root, settings = run.folder.root, run.settings
    hours = max(2, ceil(2 * (settings.budget or 0) / 3600))
    longer = settings.model_copy(update={"budget": 3600.0 * hours, "schedule": None})
    beside = ("run", settings.dataset, "--out", root.with_name(f"{root.name}_{hours}h"), *words_of(longer))
    useful = {
        "Segment new images": ("predict", root, "FOLDER_OF_IMAGES", "predictions"),
        "Score predictions": ("evaluate", "predictions", "FOLDER_OF_REFERENCES"),
        "Resume this run": ("run", root),
        "Train for longer, beside this run": beside,
    }
    if run.dataset.test:
        useful["Pack the test predictions"] = ("submit", root, "--as", "msd", "--out", "submission.zip")
    return tuple(
        Command(purpose=purpose, text=shlex.join(("autoseg", *map(str, words)))) for purpose, words in useful.items()
    )


def environment(record: RunRecord) -> dict[str, str]:
    """Versions and hardware, in the order shown."""
    return {
        "autoseg": record.autoseg,
        "Python": record.python,
        **record.packages,
        "device": record.device,
        "processor": record.processor,
        "system": record.platform,
        "seed": str(record.seed),
    }


def durations(stages_s: Mapping[str, float], schedule: Schedule) -> dict[str, float]:
    """Seconds by kind of stage: those of all folds together, without trainings of former schedules."""
    folds = {f"{each.configuration}-fold_{fold}" for each in schedule.trainings for fold in range(schedule.num_folds)}
    total: dict[str, float] = {}
    for stage, seconds in stages_s.items():
        kind, _, fold = stage.partition("-")
        if not fold or fold in folds:
            total[kind] = total.get(kind, 0.0) + seconds
    return {kind: total[kind] for kind in sorted(total, key=lambda kind: STAGE_ORDER.index(kind))}
