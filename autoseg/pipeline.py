"""The way from a folder of labelled volumes to a report: the stages in order, the one rule for what is redone, the record.

| stage | reads | writes |
|---|---|---|
| check | the dataset's files | ``dataset.json`` |
| fingerprint | ``dataset.json`` | ``fingerprint.json`` |
| plan | ``fingerprint.json`` | ``plan.json`` |
| preprocess | ``dataset.json``, ``plan.json`` | ``preprocessed/`` |
| schedule | ``dataset.json``, ``plan.json``, ``preprocessed/`` | ``schedule.json``, ``splits.json`` |
| train | ``plan.json``, ``schedule.json``, ``splits.json``, ``preprocessed/`` | ``models/CONFIGURATION/fold_K/`` |
| validate | ``models/``, ``splits.json``, ``preprocessed/`` | ``models/CONFIGURATION/fold_K/validation/`` |
| select | ``models/`` | ``selection.json``, ``cross_validation/``, ``model.zip`` |
| predict | ``model.zip``, test images | ``predictions/`` |
| report | all documents | ``report/index.html`` |
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from autoseg import __version__
from autoseg.data.dataset import DatasetDescription
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.settings import STAGES, StageName, as_arguments
from autoseg.stages.run import Run, StageRecord, keep_settings, trained_folds
from autoseg.stages.work import GivenUpError, Inputs, Work, changed_inputs, read_record, written_document
from autoseg.storage.atomic import load_document, load_or_none, remove_orphans, save_document
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from autoseg.tracking.callbacks import StageEvent, notify
from autoseg.tracking.progress import SilentReporter
from planners import Document, PlanningError

if TYPE_CHECKING:
    from autoseg.inference.bundle import ModelDescription

State = Literal["running", "finished", "failed", "interrupted"]
PACKAGES = ("torch", "numpy", "SimpleITK", "scikit-image", "batchgenerators", "blosc2", "pydantic")
"""Whose versions ``run.json`` names."""
DOING: dict[StageName, str] = {
    "check": "Checking the dataset",
    "fingerprint": "Measuring the cases",
    "plan": "Planning",
    "preprocess": "Preprocessing",
    "schedule": "Scheduling",
    "train": "Preparing the training",
    "validate": "Validating",
    "select": "Selecting",
    "predict": "Predicting the test images",
    "report": "Writing the report",
}
"""What is shown while a stage works."""


def run_stages(run: Run, last: str, *, first: StageName = "check") -> Run:
    """Run every stage from ``first`` up to and including ``last``; stages that are up to date are skipped.

    Each is the function of its name in its module, and yields units of work. Raises `AutosegError`, also for what cannot be
    planned.
    """
    try:
        for name in STAGES[STAGES.index(first) : STAGES.index(last) + 1]:
            if name == "train":
                keep_settings(run)
            with run.reporter.phase(DOING[name]):
                stage = getattr(import_module(f"autoseg.stages.{name}"), name)  # those before training do without torch
                with closing(stage(run)) as works:
                    for work in works:
                        do_work(run, work)
    except PlanningError as error:
        raise AutosegError(*error.issues, headline=f"{error.headline}:") from error
    keep_settings(run)
    return run


def run_all(run: Run, *, first: StageName = "check") -> Run:
    """The whole run, by one process at a time; ``run.json`` says how the last call ended."""
    with hold_lock(run.folder.lock("run"), what=f"the run in {run.folder.root}"):
        remove_orphans(run.folder.root, below=False)
        for folder in run.folder.folders:
            remove_orphans(folder)
        if difference := _what_differs(run):
            run.say(f"Since the last call, {difference}: the remaining results may differ by rounding")
        write_record(run, "running")
        try:
            run_stages(run, "report", first=first)
        except KeyboardInterrupt:
            with suppress(AutosegError):
                write_record(run, "interrupted")
            raise
        except AutosegError as error:
            with suppress(AutosegError):  # on a full disk the first error is the one to report
                write_record(run, "failed", str(error))
            raise
        write_record(run, "finished")
        return run


def show(run: Run, last: Literal["select", "report"]) -> Run:
    """Bring a run with a finished model up to date without training anything, or show that model (decision record 0201).

    Without a finished model, or with ``redo``, it is the run as far as ``last``.
    """
    first: StageName = "check"
    model = None if run.redo else _finished_model(run)
    if model is not None and run.settings.select_by is not None:
        from autoseg.stages.challenge import challenge_for

        challenge_for(run.settings.select_by, load_or_none(DatasetDescription, run.folder.dataset) or model.dataset)
    if model is not None:
        with run.reporter.phase("Comparing the run with its model"):
            difference = _why_unfinished(run)
        if difference:
            what = "page" if last == "report" else "selection"
            run.say(f"This {what} is that of the finished model: {difference}; autoseg run {run.folder.root} goes on")
            if last == "report" and not run.report.is_file():
                _write_page_of(run, model)
            return replace(run, trains=False)
        first = "select"
    return run_all(run, first=first) if last == "report" else run_stages(run, last, first=first)


def _finished_model(run: Run) -> ModelDescription | None:
    from autoseg.inference.bundle import open_bundle

    try:
        return open_bundle(run.folder.model).description
    except AutosegError:
        return None


def _why_unfinished(run: Run) -> str:
    """What must be trained, validated or asked for before the run has a model for its present dataset and options."""
    try:
        run_stages(replace(run, trains=False, reporter=SilentReporter(), callbacks=()), "validate")
    except AutosegError as error:
        issue = error.issues[0]
        return issue.message if issue.where == str(run.folder.root) else f"{issue.where}: {issue.message}"
    return ""


def _write_page_of(run: Run, model: ModelDescription) -> None:
    """The page of a finished model, if the documents of the run are still its own."""
    from autoseg.stages.check import trained_on
    from autoseg.stages.report import write_page

    documents = (model.plan, model.trainings, trained_on(model.dataset), model.options)
    with suppress(AutosegError):
        present = (run.plan, run.schedule.trainings, trained_on(run.dataset), as_arguments(run.settings, deciding=True))
        if key_of(*documents) == key_of(*present):
            write_page(run)
            write_record(run, "finished")
            return
    run.say("Its page is missing, and the documents that it was made from were replaced")


def do_work(run: Run, work: Work) -> bool:
    """Do one unit unless it is up to date; returns whether it was done.

    A unit is up to date when it was finished from the same inputs, by key, and its outputs are complete. While it is
    done its lock is held; its record is written at the end, and the per-case results that it kept until then are removed.
    """
    if work.inputs is None:
        if not run.trains:
            return False
        with _announced(run, work):
            work.do()
        return True
    folder = run.folder
    with hold_lock(folder.lock(work.name), what=work.what, wait=work.wait or run.waits, say=run.say):
        reasons = _why_outdated(folder, work, work.inputs())
        if not reasons:
            shutil.rmtree(folder.cache(work.name), ignore_errors=True)  # of a call that was killed at its very end
            return False
        # Stages before training refuse what would change trainings, and are done if those are what they were.
        if not run.trains and work.name != "check" and (work.name not in STAGES or not trained_folds(folder)):
            message, fix = f"{work.what} ({', '.join(reasons)})", f"continue with autoseg run {folder.root}"
            raise AutosegError(Issue(code="run.unfinished", where=str(folder.root), message=message, fix=fix))
        if read_record(folder, work.name) is not None:
            run.say(f"Redoing {work.what}: {', '.join(reasons)}")
        if not work.keeps_record:
            folder.stage(work.name).unlink(missing_ok=True)
        started = time.monotonic()
        try:
            with _announced(run, work):
                earlier_s = work.do() or 0.0
        except GivenUpError:
            return False
        record = StageRecord(
            inputs=dict(work.inputs()),
            seconds=earlier_s + time.monotonic() - started,
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


def _why_outdated(folder: RunFolder, work: Work, inputs: Inputs) -> list[str]:
    """Why a unit must be done or redone; empty if it is up to date."""
    if read_record(folder, work.name) is None:
        return ["not done yet"]
    changed = [f"the {name} changed" for name in changed_inputs(folder, work.name, inputs)]
    missing = [path for path in work.outputs if not (path.exists() and work.is_whole(path))]
    changed += [f"{path.name} {'is incomplete or outdated' if path.exists() else 'is missing'}" for path in missing]
    for path, kind in work.edited.items():
        written = written_document(folder, work.name, path, kind)
        if path not in missing and (written is None or key_of(load_document(kind, path)) != key_of(written)):
            changed.append(f"{path.name} was edited")
    return changed


class RunRecord(Document):
    """``run.json``."""

    schema_version: Literal[1] = 1
    autoseg: str
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    processor: str
    num_threads: int
    seed: int
    budget_s: float | None
    dataset: str
    started: str
    """Of the last call; UTC, ISO 8601."""
    seconds: float
    """Of the last call."""
    left_out: tuple[str, ...] = ()
    """Cases and files that were left out of the dataset because of errors (``--skip-bad``)."""
    stages_s: dict[str, float]
    """Seconds of each stage when it was last done."""
    state: State
    error: str | None


def write_record(run: Run, state: State, error: str | None = None) -> RunRecord:
    """Write ``run.json`` with the present state."""
    from autoseg.compute.device import describe_device

    started = datetime.now(UTC) - timedelta(seconds=run.elapsed_s)
    stages = {path.stem: load_or_none(StageRecord, path) for path in sorted(run.folder.stages.glob("*.json"))}
    checked = load_or_none(DatasetDescription, run.folder.dataset)
    record = RunRecord(
        autoseg=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version(name) for name in PACKAGES},
        device=describe_device(run.device, num_threads=run.num_threads),
        processor=_processor_name(),
        num_threads=run.num_threads,
        seed=run.settings.seed,
        budget_s=run.settings.budget,
        dataset=str(run.settings.dataset),
        started=started.isoformat(timespec="seconds"),
        left_out=() if checked is None else checked.left_out,
        seconds=round(run.elapsed_s, 2),
        stages_s={name: round(each.seconds, 2) for name, each in stages.items() if each is not None},
        state=state,
        error=error,
    )
    save_document(run.folder.record, record)
    return record


def _what_differs(run: Run) -> str:
    """What the last call in the run folder was made with, where the rounding of results depends on it and it is otherwise now.

    Empty where nothing is otherwise, or no call was before. Threads are compared with those of the schedule instead.
    """
    before = load_or_none(RunRecord, run.folder.record)
    if before is None:
        return ""
    pairs = {
        "autoseg": (before.autoseg, __version__),
        "torch": (before.packages.get("torch", "unknown"), version("torch")),
        "the processor": (before.processor, _processor_name()),
    }
    changes = [f"{name} was {old} and is {new}" for name, (old, new) in pairs.items() if old != new]
    return "; ".join(changes)


def _processor_name() -> str:
    """The processor's capabilities as torch reports them."""
    import torch

    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
