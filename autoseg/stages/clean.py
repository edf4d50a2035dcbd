"""Clean: removes from a run folder what neither its model nor its next call needs."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from autoseg.inference.bundle import ModelDescription, open_bundle
from autoseg.inference.model import final_weights, model_key
from autoseg.issues import AutosegError
from autoseg.networks.weights import read_key
from autoseg.stages.run import Run
from autoseg.storage.atomic import write_error
from autoseg.storage.locks import hold_lock


def find_needless(run: Run) -> dict[Path, int]:
    """Files and folders that `clean` removes, with their bytes.

    These are the models that were selected before, trainings that ``schedule.json`` no longer has, predictions of pairs that
    were compared, and preprocessed data of configurations that ``plan.json`` no longer has. While another model is
    unfinished, all trainings of the present one stay. Raises `AutosegError` for a folder that is no run, or has no schedule.
    """
    folder, schedule, plan = run.folder, run.schedule, run.plan
    before = _model_to_return_to(run)
    num_folds = dict.fromkeys((training.configuration for training in schedule.trainings), schedule.num_folds)
    if before is not None:
        for training in before.trainings:
            name = training.configuration
            num_folds[name] = max(num_folds.get(name, 0), len(before.selection.folds))
    data = {configuration.data for configuration in plan.configurations}
    models = [path for path in _inside(folder.models) if path.name not in num_folds]
    folds = [(fold, count) for name, count in num_folds.items() for fold in (folder.models / name).glob("fold_*")]
    others = [fold for fold, count in folds if not _is_scheduled(fold, count)]
    preprocessed = [path for path in _inside(folder.all_preprocessed) if path.name not in data]
    kept = set() if before is None else {folder.kept_trainings, folder.kept_schedules}
    previous = [path for path in _inside(folder.previous) if path not in kept]
    return {path: _size(path) for path in sorted([*previous, *models, *others, *preprocessed])}


def _model_to_return_to(run: Run) -> ModelDescription | None:
    """The run's model, unless all that it was trained as is scheduled and in its place: another one is unfinished."""
    try:
        model = open_bundle(run.folder.model)
    except AutosegError:
        return None
    description, selection = model.description, model.description.selection
    with suppress(AutosegError):
        keys = {
            name: [read_key(final_weights(run.folder, name, fold)) for fold in selection.folds]
            for name in description.stages
        }
        if description.trainings == run.schedule.trainings and model_key(selection, keys) == model.key:
            return None
    return description


def clean(run: Run, *, dry_run: bool = False) -> dict[Path, int]:
    """Remove what `find_needless` finds, and return it; with ``dry_run`` nothing is removed."""
    with hold_lock(run.folder.lock("run"), what=f"the run in {run.folder.root}"):
        found = find_needless(run)
        for path in () if dry_run else found:
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except OSError as error:
                raise write_error(path, error) from error
    return found


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_scheduled(fold: Path, num_folds: int) -> bool:
    number = fold.name.removeprefix("fold_")
    return not number.isdecimal() or int(number) < num_folds


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
