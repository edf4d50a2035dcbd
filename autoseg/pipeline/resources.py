"""Compares what a stage will need of the disk with what is free, before the stage starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from autoseg.pipeline.options import Options
from autoseg.storage.atomic import load_document
from planners import Fingerprint, Plan, estimate_disk

GB = 1e9


def warn_of_disk(options: Options, plan: Plan, names: Sequence[str]) -> None:
    """Say so where the data of the configurations ``names`` may not fit on their disk; what is there already counts as free."""
    needs = estimate_disk(plan, load_document(Fingerprint, options.run.fingerprint))
    folders = [options.run.preprocessed(name) for name in names]
    needed = sum(needs[name] for name in names)
    there = sum(file.stat().st_size for folder in folders if folder.is_dir() for file in folder.iterdir())
    parent = existing_parent(folders[0])
    free = shutil.disk_usage(parent).free
    if needed - there > free:
        options.reporter.say(
            f"Warning: preprocessed data may take {needed / GB:.1f} GB, but only {free / GB:.1f} GB are free for {parent}; free some "
            "space, or put them on another disk with --work"
        )


def existing_parent(folder: Path) -> Path:
    """The nearest folder above, or ``folder`` itself, that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
