"""Clean: removes from a run folder what neither its model nor its next call needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from autoseg.stages.run import Run
from autoseg.storage.atomic import write_error
from autoseg.storage.locks import hold_lock


def find_needless(run: Run) -> dict[Path, int]:
    """Files and folders that `clean` removes, with their bytes.

    These are the models that were selected before, trainings that ``schedule.json`` no longer has, predictions of pairs that
    were compared, and preprocessed data of configurations that ``plan.json`` no longer has. Raises `AutosegError` for a
    folder that is no run, or has no schedule yet.
    """
    folder, schedule, plan = run.folder, run.schedule, run.plan
    trained = {training.configuration for training in schedule.trainings}
    data = {configuration.data for configuration in plan.configurations}
    models = [path for path in _inside(folder.models) if path.name not in trained]
    folds = [fold for name in trained for fold in (folder.models / name).glob("fold_*")]
    others = [fold for fold in folds if not _is_scheduled(fold, schedule.num_folds)]
    preprocessed = [path for path in _inside(folder.all_preprocessed) if path.name not in data]
    found = [*_inside(folder.previous), *models, *others, *preprocessed]
    return {path: _size(path) for path in sorted(found)}


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
