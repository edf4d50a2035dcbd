"""One run: its settings, folder and machine, what it has trained, and what may not be trained again unasked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.splits import Splits
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings, as_arguments
from autoseg.storage.atomic import load_document, load_or_none, save_document
from autoseg.storage.cache import key_of
from autoseg.tracking.callbacks import HISTORY_FILE, Callback, read_history
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import as_line, count_noun, format_duration
from planners import (
    Document,
    Fingerprint,
    Plan,
    Schedule,
    Training,
)

if TYPE_CHECKING:
    import torch

    from autoseg.compute.ranks import Ranks
    from autoseg.evaluation.selection import Selection
    from autoseg.evaluation.table import Summary

GIVE_ANOTHER = "pass another file with --schedule, or omit the option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run folder with its settings; documents are read from disk whenever they are used."""

    folder: RunFolder
    settings: Settings
    device_name: str = "cpu"
    """What trains and predicts, e.g. ``cuda:1``; of several the first."""
    device_names: tuple[str, ...] = ()
    """Where several train side by side: all of them."""
    num_threads: int = field(default_factory=available_cores)
    num_workers: int = field(default_factory=available_cores)
    """Processes for reading and preprocessing."""
    reporter: Reporter = field(default_factory=SilentReporter)
    callbacks: tuple[Callback, ...] = ()
    """Called at stages, steps, epochs and folds: trackers, and those that the caller passes."""
    ddp: tuple[str, ...] = ()
    """Devices of the processes that train one model together, the first this one's; empty: each model is trained by one."""
    ranks: Ranks | None = None
    """Where torchrun started the processes: the place of this one."""
    redo: bool = False
    """Whether trainings whose inputs changed are redone."""
    replan: bool = False
    """Whether edits of the plan and the schedule are discarded."""
    configuration: str | None = None
    """If set, this call trains only that configuration and what it builds on."""
    fold: int | None = None
    """If set, this call trains only that fold."""
    waits: bool = False
    """Whether to wait where another process trains what is asked for, instead of refusing."""
    within_s: float | None = None
    """Seconds that the one fold may take which this call trains, validation included: its steps follow the pace."""
    added_s: float | None = None
    """Seconds that this call adds to the budget (``--budget +1h``)."""
    trains: bool = True
    """Whether trainings may be done or put back; a call that may not shows the finished model instead."""
    started: float = field(default_factory=time.monotonic)
    """When the budget began."""

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run in the folder ``path``, for reading. Raises `AutosegError` for a folder without ``settings.json``."""
        root = Path(path)
        settings = load_document(Settings, root / "settings.json", fix="pass the run folder, the --out of autoseg run")
        return cls(folder=RunFolder(root, settings.work), settings=settings)

    @property
    def dataset(self) -> DatasetDescription:
        """What was found in the dataset's folder."""
        return load_document(DatasetDescription, self.folder.dataset)

    @property
    def fingerprint(self) -> Fingerprint:
        """Sizes, spacings and intensities of the training cases."""
        return load_document(Fingerprint, self.folder.fingerprint)

    @property
    def plan(self) -> Plan:
        """What is done with the dataset, and why."""
        return load_document(Plan, self.folder.plan)

    @property
    def schedule(self) -> Schedule:
        """What is trained for how long."""
        return load_document(Schedule, self.folder.schedule)

    @property
    def splits(self) -> Splits:
        """Which cases train and validate in each fold."""
        return load_document(Splits, self.folder.splits)

    @property
    def selection(self) -> Selection:
        """The chosen configurations and their postprocessing."""
        from autoseg.evaluation.selection import Selection

        return load_document(Selection, self.folder.selection)

    @property
    def summary(self) -> Summary | None:
        """Scores of the chosen model over all cross-validated cases; None where nothing was cross-validated."""
        from autoseg.evaluation.table import read_summary

        path = self.folder.cross_validation / "summary.json"
        return read_summary(path) if self.selection.cross_validated else None

    @property
    def predictions(self) -> tuple[Path, ...]:
        """Label maps of the dataset's test images, and folders of masks; sorted."""
        names = {case.case_id for case in self.dataset.test}
        there = sorted(self.folder.predictions.iterdir()) if self.folder.predictions.is_dir() else []
        return tuple(path for path in there if path.name.partition(".")[0] in names or path.name in names)

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder.report / "index.html"

    @property
    def device(self) -> torch.device:
        """What trains and predicts; loads torch, which stages before training do not need."""
        import torch

        return torch.device(self.device_name)

    @property
    def num_devices(self) -> int:
        """Trainings that run side by side."""
        return max(1, len(self.device_names))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def follows_method(self) -> bool:
        """Whether the method's own schedule is followed: without a budget, on a GPU."""
        return self.settings.budget is None and self.device_name.startswith("cuda")

    def say(self, text: str) -> None:
        """One line for the user."""
        self.reporter.say(text)

    def show(self, issue: Issue) -> None:
        """An issue for the user; errors are raised instead."""
        self.say(as_line(issue))


class StageRecord(Document):
    """``stages/NAME.json``: what a finished unit was made from and what it wrote."""

    inputs: dict[str, str]
    seconds: float
    """What the unit took, and earlier calls that it resumed."""
    documents: dict[str, JsonValue] = Field(default_factory=dict)
    """Each editable document as the unit wrote it, by file name."""


def keep_first_settings(run: Run) -> None:
    """Write ``settings.json`` of a run that has none and has trained nothing."""
    if not run.folder.settings.is_file() and not trained_folds(run.folder):
        keep_settings(run)


def keep_settings(run: Run) -> None:
    """Write ``settings.json``, once plan and schedule have taken what was given: refused, it must not trouble later calls.

    What a call for one fold says of its machine is its own affair: others may train beside it elsewhere.
    """
    stored, settings = stored_settings(run.folder), run.settings
    if stored is not None and run.fold is not None:
        own = {name: getattr(stored, name) for name in ("device", "ddp", "threads", "workers")}
        settings = settings.model_copy(update=own)
    if stored != settings:
        save_document(run.folder.settings, settings)


def stored_settings(folder: RunFolder) -> Settings | None:
    """``settings.json`` of a run; None if it has none."""
    fix = "restore the file, or choose another run folder with --out"
    return load_document(Settings, folder.settings, fix=fix) if folder.settings.is_file() else None


def discover(run: Run) -> DatasetDescription:
    """The dataset as it is now, by the options of the run. Raises `AutosegError` for unknown layouts and cases."""
    settings = run.settings
    return discover_dataset(
        settings.dataset,
        layout=settings.layout,
        spec=settings.spec,
        exclude=settings.exclude,
        cache=run.folder.cache("labels"),
        num_workers=run.num_workers,
        reporter=run.reporter,
    )


def require_planned(names: Sequence[str], run: Run) -> None:
    """Refuse configurations that are asked for by name and are not among the ``names`` of a plan."""
    asked = {
        "--configurations": run.settings.configurations,
        "--configuration": () if run.configuration is None else (run.configuration,),
    }
    fix = f"choose from {', '.join(names)}"
    issues = [
        Issue(code="plan.no_configuration", where=option, message=f"unknown configuration {name}", fix=fix)
        for option, given in asked.items()
        for name in given
        if name not in names
    ]
    if issues:
        raise AutosegError(*issues)


def trained_folds(folder: RunFolder) -> list[tuple[str, int]]:
    """Configuration and fold of every scheduled training that was begun; of all that are there, where the schedule is lost."""
    schedule = load_or_none(Schedule, folder.schedule)
    files = [path for name in ("final.safetensors", "checkpoint.pt") for path in folder.models.glob(f"*/fold_*/{name}")]
    places = {(path.parent.parent.name, path.parent.name.removeprefix("fold_")) for path in files}
    found = sorted((name, int(fold)) for name, fold in places if fold.isdecimal())
    names = [name for name, _ in found] if schedule is None else [each.configuration for each in schedule.trainings]
    return [(name, fold) for name, fold in found if name in names and (schedule is None or fold < schedule.num_folds)]


def require_redo(
    run: Run,
    changes: Sequence[str],
    *,
    code: str,
    folds: Sequence[tuple[str, int]] | None = None,
    dataset: DatasetDescription | None = None,
    plan: Plan | None = None,
    trainings: Sequence[Training] | None = None,
    instead: str = "choose another run folder with --out",
) -> None:
    """Raise `AutosegError` where ``folds`` would be trained again because of ``changes``, unless that is asked for.

    Without ``folds`` it is all that were trained, or begun; ``dataset``, ``plan`` and ``trainings``, if they are not those of
    the run's models any more; ``instead``: what else can be done.
    """
    from autoseg.evaluation.selection import Selection

    trained = trained_folds(run.folder) if folds is None else folds
    if run.redo or not trained:
        return
    if not run.trains:
        fix = f"continue with autoseg run {run.folder.root}"
        raise AutosegError(Issue(code=code, where=str(run.folder.root), message=" and ".join(changes), fix=fix))
    histories = [read_history(run.folder.fold(name, fold) / HISTORY_FILE)[0] for name, fold in trained]
    took = format_duration(sum(epoch.seconds for epochs in histories for epoch in epochs))
    message = f"{' and '.join(changes)}: {count_noun(len(trained), 'trained fold')} would be trained again, which took {took} before"
    selection = load_or_none(Selection, run.folder.selection)
    if selection is not None and selection.dice_after_postprocessing is not None:
        message += f"; the present model scored Dice {selection.dice_after_postprocessing:.3f} {selection.scored_how}"
    if (model := _made_so_before(run, dataset, plan, trainings)) is not None:
        message += (
            f"; {model} was made with these options and cases: its trainings are used again where nothing else changed"
        )
    fix = f"train again with --redo (the present model is kept), {instead}, or undo the change"
    raise AutosegError(Issue(code=code, where=str(run.folder.root), message=message, fix=fix))


def _made_so_before(
    run: Run, dataset: DatasetDescription | None, plan: Plan | None, trainings: Sequence[Training] | None
) -> Path | None:
    """The run's model, or one before it, that was made with the present options of the same training cases, by the same plan."""
    from autoseg.inference.bundle import open_bundle
    from autoseg.stages.check import trained_on

    dataset = dataset or load_or_none(DatasetDescription, run.folder.dataset)
    options = as_arguments(run.settings, deciding=True)
    for path in (run.folder.model, *sorted(run.folder.previous.glob("*.zip"), reverse=True)):
        with suppress(AutosegError):
            model = open_bundle(path).description
            pairs = ((plan, model.plan), (trainings, model.trainings))
            is_same = all(now is None or key_of(now) == key_of(then) for now, then in pairs)
            if (
                is_same
                and model.options == options
                and dataset is not None
                and trained_on(model.dataset) == trained_on(dataset)
            ):
                return path
    return None
