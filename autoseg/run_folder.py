"""The run folder: where each file of a run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class _Inside:
    """A file or folder of this name in the run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.root / self.name


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run folder. Nothing is created by asking for a path."""

    root: Path
    work: Path | None = None
    """Where preprocessed data goes, if not below ``root``."""

    settings = _Inside("settings.json")
    dataset = _Inside("dataset.json")
    fingerprint = _Inside("fingerprint.json")
    plan = _Inside("plan.json")
    schedule = _Inside("schedule.json")
    splits = _Inside("splits.json")
    selection = _Inside("selection.json")
    record = _Inside("run.json")
    log = _Inside("log.txt")
    model = _Inside("model.zip")
    """The selected model, a bundle that needs nothing else in the folder."""
    previous = _Inside("previous")
    """Models that were selected before, as bundles: ``2026-11-30_114500_3d_fullres_dice0.884.zip``; their trainings."""
    models = _Inside("models")
    cross_validation = _Inside("cross_validation")
    """The chosen model's predictions of all training cases, each by a network that did not see it."""
    predictions = _Inside("predictions")
    report = _Inside("report")
    stages = _Inside("stages")
    locks = _Inside("locks")
    caches = _Inside("cache")

    def stage(self, name: str) -> Path:
        """What a finished stage was made from; decides whether it is redone."""
        return self.stages / f"{name}.json"

    def cache(self, name: str) -> Path:
        """Results of single cases: of files as long as the run exists, of a stage while it is running."""
        return self.caches / name

    def lock(self, name: str) -> Path:
        """Lock of a stage or a fold."""
        return self.locks / f"{name}.lock"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that a run creates; anything else belongs to someone else."""
        results = (self.models, self.previous, self.cross_validation, self.predictions, self.report)
        return (self.stages, self.locks, self.caches, *results, self.all_preprocessed)

    @property
    def is_begun(self) -> bool:
        """Whether a run was started in this folder."""
        return self.stages.is_dir() and self.locks.is_dir()

    @property
    def all_preprocessed(self) -> Path:
        return (self.work or self.root) / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        return self.all_preprocessed / configuration

    def fold(self, configuration: str, fold: int) -> Path:
        return self.models / configuration / f"fold_{fold}"

    def kept_fold(self, configuration: str, fold: int, key: str) -> Path:
        """Where the finished training of a fold is kept after another one took its place."""
        return self.previous / "trainings" / f"{configuration}-fold_{fold}-{key[:16]}"

    @property
    def kept_schedules(self) -> Path:
        """Records of the stage ``schedule`` that others replaced."""
        return self.previous / "schedules"

    def next_stage(self, configuration: str, following: str) -> Path:
        """Label maps that ``configuration`` made of all training cases for the stage ``following`` of a cascade."""
        return self.models / configuration / "next_stage" / following

    def validation(self, configuration: str, fold: int) -> Path:
        return self.fold(configuration, fold) / "validation"


def run_of(path: Path) -> RunFolder | None:
    """The run that ``path`` belongs to, inside one of its own folders; anything else in a run folder belongs to someone else."""
    above = (RunFolder(folder) for folder in path.parents)
    return next(
        (run for run in above if run.is_begun and any(path.is_relative_to(folder) for folder in run.folders)), None
    )
