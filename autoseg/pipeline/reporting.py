"""Fills the report page from what a run has left in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
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
from autoseg.pipeline.options import Options
from autoseg.pipeline.record import RunRecord, write_record
from autoseg.pipeline.selecting import Selected
from autoseg.storage.atomic import load_document
from autoseg.training.history import read_history
from autoseg.training.learning import Learning
from planners import Schedule

STAGE_ORDER = ("check", "fingerprint", "plan", "preprocess", "schedule", "train", "validate", "select", "predict")


def report_stage(options: Options, selected: Selected, started: datetime) -> Path:
    """Write ``report/index.html`` and return its path."""
    record = write_record(options, started, "running")
    prepared = selected.prepared
    dataset = prepared.dataset
    content = ReportContent(
        dataset_name=dataset.name,
        num_cases=len(dataset.training),
        num_test_cases=len(dataset.test),
        channels=dataset.channels,
        class_names=tuple(each.name for each in dataset.labels.classes),
        selection=selected.selection,
        summary=selected.summary,
        caveats=selected.caveats,
        histories=read_histories(options, selected),
        remarks=read_remarks(options, selected),
        decisions=(*prepared.plan.decisions, *prepared.schedule.decisions),
        issues=dataset.issues,
        overlays=draw_overlays(options, selected),
        commands=commands(options, selected),
        environment=environment(record),
        durations_s=durations(record.stages_s, prepared.schedule),
    )
    return write_report(options.run.report, content)


def read_histories(options: Options, selected: Selected) -> dict[tuple[str, int], list[dict[str, object]]]:
    """The records of every training, by configuration and fold."""
    histories = {}
    for training in selected.prepared.schedule.trainings:
        for fold in range(selected.prepared.schedule.num_folds):
            path = options.run.fold(training.configuration, fold) / "history.jsonl"
            records, damage = read_history(path)
            histories[training.configuration, fold] = [asdict(record) for record in records]
            if damage:
                options.reporter.say(damage)
    return histories


def read_remarks(options: Options, selected: Selected) -> dict[tuple[str, int], list[str]]:
    """How weights were fitted, what went wrong in every training, and what was done, by configuration and fold."""
    remarks = {}
    for training in selected.prepared.schedule.trainings:
        for fold in range(selected.prepared.schedule.num_folds):
            path = options.run.fold(training.configuration, fold) / "learning.json"
            if path.exists():
                learning = load_document(Learning, path)
                remarks[training.configuration, fold] = [*learning.adaptations, *map(str, learning.remarks)]
    return remarks


def draw_overlays(options: Options, selected: Selected) -> tuple[OverlayPicture, ...]:
    """Outlines on the best, the median and the worst case of the cross-validation."""
    if selected.summary is None:
        return ()
    return tuple(
        OverlayPicture(case=ranked, png=draw_case(options, selected, ranked)) for ranked in rank_cases(selected.summary)
    )


def draw_case(options: Options, selected: Selected, ranked: RankedCase) -> bytes:
    """One case in canonical axes, so that every picture shows the patient the same way up."""
    dataset = selected.prepared.dataset
    case = next(case for case in dataset.training if case.case_id == ranked.case_id)
    volume = read_image(case.image_paths)
    orientation = canonical_orientation(volume.geometry)
    z, y, x = volume.geometry.spacing_mm
    spacing = [(z, y, x)[axis] for axis in orientation.permutation]
    prediction = read_label_map(prediction_path(options.run.cross_validation, case.case_id, dataset))
    reference = reference_labels(dataset, case.case_id)
    return overlay(
        to_canonical(volume.array[0], orientation),
        to_canonical(align_label_map(reference, volume.geometry), orientation),
        to_canonical(align_label_map(prediction, volume.geometry), orientation),
        names=class_names(selected),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def class_names(selected: Selected) -> Mapping[int, str]:
    """Names of label values in the dataset's files; a value that is in several regions gets the last one's name."""
    dataset = selected.prepared.dataset
    return {dataset.file_values[value]: each.name for each in dataset.labels.classes for value in each.values}


def commands(options: Options, selected: Selected) -> tuple[Command, ...]:
    """What a reader may want to do next, as a shell takes it."""
    root = options.run.root
    hours = max(2, ceil(2 * (selected.prepared.schedule.conditions.budget_s or 0) / 3600))
    useful = {
        "Segment new images": ("predict", root, "FOLDER_OF_IMAGES", "predictions"),
        "Score predictions": ("evaluate", "predictions", "FOLDER_OF_REFERENCES"),
        "Repeat this run, or go on with it": (
            *again(options, root),
            *(() if options.run.work is None else ("--work", options.run.work)),
            *(() if options.schedule is None else ("--schedule", options.schedule)),
        ),
        "Train for longer, beside this run": (
            *again(options, root.with_name(f"{root.name}_{hours}h")),
            "--budget",
            f"{hours}h",
        ),
    }
    if selected.prepared.dataset.test:
        useful["Pack the test predictions"] = ("submit", root, "--as", "msd", "--out", "submission.zip")
    return tuple(
        Command(purpose=purpose, text=shlex.join(("autoseg", *map(str, words)))) for purpose, words in useful.items()
    )


def again(options: Options, out: Path) -> tuple[str | Path, ...]:
    """The words of a run with the same wishes in the folder ``out``; time, cores and places to work in are left to it."""
    wishes = {
        "--device": options.device_name,
        "--seed": options.seed or None,
        "--preset": None if options.preset == "default" else options.preset,
        "--memory-gb": options.memory_gb,
        "--target-spacing": None
        if options.target_spacing_mm is None
        else ",".join(map(str, options.target_spacing_mm)),
        "--layout": options.layout,
        "--spec": options.spec,
        "--pretrained": options.pretrained,
        "--splits": options.splits,
        "--folds": options.folds,
        "--groups": options.groups,
    }
    flags = {
        "--strict-reference": options.strict_reference,
        "--skip-bad": options.skip_bad,
        "--leave-one-group-out": options.leave_one_group_out,
    }
    given = [word for name, value in wishes.items() if value is not None for word in (name, str(value))]
    return ("run", options.dataset, "--out", out, *given, *(name for name, wanted in flags.items() if wanted))


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
