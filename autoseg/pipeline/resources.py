"""Compares what a stage will need with what the machine has, before the stage starts."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.free_memory import free_memory_bytes
from autoseg.pipeline.options import Options
from autoseg.run_folder import load_document
from planners import Configuration, Fingerprint, Plan, Training, estimate_disk, estimate_memory, with_width

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


def training_bytes(plan: Plan, configuration: Configuration, training: Training) -> int:
    """Main memory that a training takes on a CPU."""
    return estimate_memory(
        plan,
        configuration.name,
        dtype=training.precision,
        optimiser=training.optimiser,
        batch_size=training.batch_size,
        network=with_width(configuration.network, training.base_features),
    ).training_bytes


def fits_into_memory(options: Options, plan: Plan, configuration: Configuration, training: Training) -> bool:
    """Whether a training on a CPU fits into free memory; devices of their own are not asked."""
    return options.device.type != "cpu" or training_bytes(plan, configuration, training) <= free_memory_bytes()


def refuse_for_memory(plan: Plan, configuration: Configuration, training: Training) -> AutosegError:
    """The error where not even the narrowest network fits."""
    needed = training_bytes(plan, configuration, training)
    return AutosegError(
        f"training {configuration.name} with {training.base_features} features takes about {needed / GB:.1f} GB of memory, but "
        f"{free_memory_bytes() / GB:.1f} GB are free; close other programs, or plan smaller patches with a "
        f"--memory-gb below {plan.memory_target_gb:.3g}"
    )
