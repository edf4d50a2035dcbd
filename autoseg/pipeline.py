"""The way from a folder of labelled volumes to a report: the stages in order, and the one rule for what is redone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Literal

from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.stages.check import check
from autoseg.stages.fingerprint import fingerprint
from autoseg.stages.plan import plan
from autoseg.stages.predict import predict
from autoseg.stages.preprocess import preprocess
from autoseg.stages.record import what_differs, write_record
from autoseg.stages.report import report
from autoseg.stages.run import Run, StageRecord, keep_settings
from autoseg.stages.schedule import schedule
from autoseg.stages.select import select
from autoseg.stages.train import train
from autoseg.stages.validate import validate
from autoseg.stages.work import Stage, Work, changed_inputs, read_record, written_document
from autoseg.storage.atomic import load_document, remove_orphans, save_document
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from autoseg.tracking.callbacks import StageEvent, notify
from planners import PlanningError

STAGES = (
    Stage(
        name="check",
        doing="Checking the dataset",
        inputs=("the dataset's files",),
        outputs=("dataset.json",),
        function=check,
    ),
    Stage(
        name="fingerprint",
        doing="Measuring the cases",
        inputs=("dataset.json",),
        outputs=("fingerprint.json",),
        function=fingerprint,
    ),
    Stage(name="plan", doing="Planning", inputs=("fingerprint.json",), outputs=("plan.json",), function=plan),
    Stage(
        name="preprocess",
        doing="Preprocessing",
        inputs=("dataset.json", "plan.json"),
        outputs=("preprocessed/",),
        function=preprocess,
    ),
    Stage(
        name="schedule",
        doing="Scheduling",
        inputs=("dataset.json", "plan.json", "preprocessed/"),
        outputs=("schedule.json", "splits.json"),
        function=schedule,
    ),
    Stage(
        name="train",
        doing="Preparing the training",
        inputs=("plan.json", "schedule.json", "splits.json", "preprocessed/"),
        outputs=("models/CONFIGURATION/fold_K/final.safetensors", "models/CONFIGURATION/fold_K/history.jsonl"),
        function=train,
    ),
    Stage(
        name="validate",
        doing="Validating",
        inputs=("models/", "splits.json", "preprocessed/"),
        outputs=("models/CONFIGURATION/fold_K/validation/",),
        function=validate,
    ),
    Stage(
        name="select",
        doing="Selecting",
        inputs=("models/CONFIGURATION/fold_K/validation/",),
        outputs=("selection.json", "cross_validation/"),
        function=select,
    ),
    Stage(
        name="predict",
        doing="Predicting the test images",
        inputs=("models/", "selection.json"),
        outputs=("predictions/",),
        function=predict,
    ),
    Stage(
        name="report",
        doing="Writing the report",
        inputs=("all documents", "cross_validation/"),
        outputs=("report/index.html",),
        function=report,
    ),
)
"""Each reads what those before it wrote."""


def run_stages(run: Run, last: str) -> Run:
    """Run every stage up to and including ``last``; stages that are up to date are skipped.

    Raises `AutosegError`, also for what cannot be planned.
    """
    try:
        for stage in STAGES:
            if stage.name == "train":
                keep_settings(run)
            with run.reporter.phase(stage.doing), closing(stage.function(run)) as works:
                for work in works:
                    do_work(run, work)
            if stage.name == last:
                keep_settings(run)
                return run
    except PlanningError as error:
        raise AutosegError(*error.issues, headline=f"{error.headline}:") from error
    raise KeyError(last)


def run_all(run: Run) -> Run:
    """The whole run, by one process at a time; ``run.json`` says how the last call ended."""
    with hold_lock(run.folder.lock("run"), what=f"the run in {run.folder.root}"):
        remove_orphans(run.folder.root, below=False)
        for folder in run.folder.folders:
            remove_orphans(folder)
        difference = what_differs(run)
        if difference is not None:
            run.say(f"Since the last call, {difference}: the remaining results may differ in the last digits")
        with _recorded(run):
            return run_stages(run, "report")


@contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Keep in ``run.json`` that the block is running, then how it ended."""
    write_record(run, "running")
    try:
        yield
    except KeyboardInterrupt:
        with suppress(AutosegError):
            write_record(run, "interrupted")
        raise
    except AutosegError as error:
        with suppress(AutosegError):  # on a full disk the first error is the one to report
            write_record(run, "failed", str(error))
        raise
    write_record(run, "finished")


def do_work(run: Run, work: Work) -> bool:
    """Do one unit unless it is up to date; returns whether it was done.

    A unit is up to date when it was finished from the same inputs, by key, and its outputs are complete. While it is
    done its lock is held; its record is written at the end, and the per-case results that it kept until then are removed.
    """
    if not work.is_recorded:
        with _announced(run, work):
            work.do()
        return True
    folder = run.folder
    with hold_lock(folder.lock(work.name), what=work.what, wait=work.wait, say=run.say):
        reasons = why_outdated(folder, work)
        if not reasons:
            shutil.rmtree(folder.cache(work.name), ignore_errors=True)  # of a call that was killed at its very end
            return False
        if read_record(folder, work.name) is not None:
            run.say(f"Redoing {work.what}: {', '.join(reasons)}")
        if not work.keeps_record:
            folder.stage(work.name).unlink(missing_ok=True)
        started = time.monotonic()
        with _announced(run, work):
            work.do()
        record = StageRecord(
            inputs=dict(work.inputs()),
            seconds=time.monotonic() - started,
            documents={
                path.name: load_document(kind, path).model_dump(mode="json") for path, kind in work.edited.items()
            },
        )
        save_document(folder.stage(work.name), record)
        shutil.rmtree(folder.cache(work.name), ignore_errors=True)
    return True


@contextmanager
def _announced(run: Run, work: Work) -> Iterator[None]:
    """Call the run's callbacks when a unit starts and ends."""
    started = time.monotonic()
    state: Literal["finished", "failed"] = "failed"
    notify(run.callbacks, "on_stage", StageEvent(name=work.name, state="started"))
    try:
        yield
        state = "finished"
    finally:
        event = StageEvent(name=work.name, state=state, seconds=time.monotonic() - started)
        notify(run.callbacks, "on_stage", event)


def why_outdated(folder: RunFolder, work: Work) -> tuple[str, ...]:
    """Why a unit must be done or redone; empty if it is up to date."""
    record = read_record(folder, work.name)
    if record is None:
        return ("not done yet",)
    changed = [f"the {name} changed" for name in changed_inputs(folder, work.name, work.inputs())]
    missing = [path for path in work.outputs if not (path.exists() and work.is_whole(path))]
    changed += [f"{path.name} {'is incomplete' if path.exists() else 'is missing'}" for path in missing]
    for path, kind in work.edited.items():
        written = written_document(folder, work.name, path, kind)
        if path not in missing and (written is None or key_of(load_document(kind, path)) != key_of(written)):
            changed.append(f"{path.name} was edited")
    return tuple(changed)
