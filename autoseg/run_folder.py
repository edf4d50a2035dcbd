"""The run folder: where each file of a run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

from autoseg.issues import AutosegError, Issue


class _Inside:
    """A file or folder of this name in the run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.root / self.name


EXPORT = "model.json"
"""In the folder of an exported model: what its graphs are used for."""


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
    submissions = _Inside("submissions")
    """Predictions of images that were given for a challenge, in a folder of its name."""
    report = _Inside("report")
    stages = _Inside("stages")
    locks = _Inside("locks")
    caches = _Inside("cache")
    cluster = _Inside("cluster")
    """Job scripts, logs and records of tasks that were sent to a cluster."""

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
        results = (
            self.models,
            self.previous,
            self.cross_validation,
            self.predictions,
            self.submissions,
            self.report,
        )
        return (self.stages, self.locks, self.caches, self.cluster, *results, self.all_preprocessed)

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
        return self.kept_trainings / f"{configuration}-fold_{fold}-{key[:16]}"

    @property
    def kept_trainings(self) -> Path:
        """Trainings of folds that others replaced."""
        return self.previous / "trainings"

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


def find_model(path: Path) -> Path:
    """The bundle file at ``path``, that of the run in this folder, or the JSON of an exported model. Raises `AutosegError` for what has no model."""
    run = RunFolder(path)
    if (path / EXPORT).is_file() and not run.is_begun:
        return path / EXPORT
    found = path if path.is_file() else run.model
    if found.is_file():
        if not is_zipfile(found):
            fix = "pass a run folder, or a file that autoseg bundle or autoseg import-nnunet wrote"
            message = "not a bundle: no zip file"
            raise AutosegError(Issue(code="bundle.not_a_bundle", where=str(found), message=message, fix=fix))
        return found
    if not path.exists():
        fix = "pass a run folder (--out of autoseg run) or a bundle file"
        raise AutosegError(Issue(code="model.not_found", where=str(path), message="does not exist", fix=fix))
    if (path / "plans.json").is_file() or any(path.glob("fold_*/*.pth")):
        fix = f"convert it: autoseg import-nnunet {path} OUT"
        raise AutosegError(Issue(code="model.nnunet", where=str(path), message="an nnU-Net model", fix=fix))
    if not run.is_begun:
        fix = "pass a folder that autoseg run wrote (--out)"
        raise AutosegError(Issue(code="model.not_a_run", where=str(path), message="not a run folder", fix=fix))
    message, fix = "the run is not finished: no model.zip", f"resume it: autoseg run {path}"
    if run.selection.is_file():
        message = "no model.zip: the run is of an earlier version, or the file was lost"
        fix = f"write it: autoseg select {path}"
    raise AutosegError(Issue(code="model.unfinished", where=str(path), message=message, fix=fix))


def require_place_for_run(folder: Path) -> None:
    """Raise `AutosegError` where ``folder``, or what it would lie in, is a file."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        fix = "choose another folder with --out"
        raise AutosegError(Issue(code="run.not_a_folder", where=str(there), message="is a file, not a folder", fix=fix))


def require_place_for_predictions(folder: Path) -> None:
    """Raise `AutosegError` where predictions may not be put into ``folder``: it is a run, or one of a run's own folders."""
    whole = folder.resolve()
    run = RunFolder(whole) if RunFolder(whole).is_begun else run_of(whole / "image")
    if run is not None:
        message, fix = f"belongs to the run in {run.root}", "choose another output folder"
        raise AutosegError(Issue(code="predict.into_a_run", where=str(folder), message=message, fix=fix))


def require_folder_for_predictions(folder: Path) -> None:
    """Raise `AutosegError` where ``folder`` is a file."""
    if folder.exists() and not folder.is_dir():
        fix = "pass a folder for the label maps, or the name of a file that does not exist yet"
        raise AutosegError(Issue(code="predict.not_a_folder", where=str(folder), message="a file", fix=fix))


def check_free(path: Path) -> None:
    """Raise `AutosegError` if ``path`` exists: bundles replace nothing."""
    if path.exists() or path.is_symlink():
        fix = "choose another name for the bundle, or remove it first"
        raise AutosegError(Issue(code="bundle.exists", where=str(path), message="exists already", fix=fix))
