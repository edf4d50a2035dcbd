"""The run folder: where each file of a run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run folder. Nothing is created by asking for a path."""

    root: Path
    work: Path | None = None
    """Where preprocessed data goes, if not below ``root``."""

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def dataset(self) -> Path:
        return self.root / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def schedule(self) -> Path:
        return self.root / "schedule.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def selection(self) -> Path:
        return self.root / "selection.json"

    def stage(self, name: str) -> Path:
        """What a finished stage was made from; decides whether it is redone."""
        return self.root / "stages" / f"{name}.json"

    def cache(self, name: str) -> Path:
        """Results of single cases: of files as long as the run exists, of a stage while it is running."""
        return self.root / "cache" / name

    def lock(self, name: str) -> Path:
        """Lock of a stage or a fold."""
        return self.root / "locks" / f"{name}.lock"

    @property
    def cross_validation(self) -> Path:
        """The chosen model's predictions of all training cases, each by a network that did not see it."""
        return self.root / "cross_validation"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def log(self) -> Path:
        return self.root / "log.txt"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders that a run creates; anything else belongs to someone else."""
        inside = (
            self.root / "stages",
            self.root / "locks",
            self.root / "cache",
            self.models,
            self.cross_validation,
            self.predictions,
            self.report,
        )
        return (*inside, self.all_preprocessed)

    @property
    def is_begun(self) -> bool:
        """Whether a run was started in this folder."""
        return (self.root / "stages").is_dir() and (self.root / "locks").is_dir()

    @property
    def all_preprocessed(self) -> Path:
        return (self.work or self.root) / "preprocessed"

    def preprocessed(self, configuration: str) -> Path:
        return self.all_preprocessed / configuration

    def fold(self, configuration: str, fold: int) -> Path:
        return self.models / configuration / f"fold_{fold}"

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
