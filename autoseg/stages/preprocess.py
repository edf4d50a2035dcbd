"""Preprocess: crop, normalise and resample every case for the configurations that may be trained."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.preprocess import Target, preprocess_dataset
from autoseg.stages.run import Run
from autoseg.stages.work import Work
from autoseg.storage.locks import hold_lock
from planners import (
    Configuration,
    Plan,
    estimate_disk,
    method_configurations,
    preferred_configurations,
    why_untrainable,
)

GB = 1e9


def preprocess(run: Run) -> Generator[Work, None, None]:
    """Preprocessed data of every configuration that a schedule may train.

    Each stored case notes what it was made from, so that only missing and outdated ones are made.
    """
    from autoseg.stages.schedule import preflight

    plan = run.plan
    preflight(run, plan)
    do = partial(preprocess_configurations, run, plan, candidates(run, plan))
    yield Work(name="preprocess", what="preprocessing", do=do)


def candidates(run: Run, plan: Plan) -> Sequence[Configuration]:
    """Configurations that the schedule's rule chooses from, or those that the user asked for."""
    by_rule = method_configurations(plan) if run.follows_method else preferred_configurations(plan)
    asked = run.settings.configurations
    if not asked:
        return by_rule
    wanted = [plan.configuration(name) for name in asked]
    return tuple(dict.fromkeys(stage for each in wanted for stage in plan.chain(each.name)))


def preprocess_configurations(run: Run, plan: Plan, chosen: Sequence[Configuration]) -> None:
    """Preprocess what is missing; different configurations may be preprocessed at once by different processes."""
    require_trainable(run, chosen)
    names = tuple(dict.fromkeys(configuration.data for configuration in chosen))
    with ExitStack() as locks:
        for name in sorted(names):  # one order for all processes, or two could wait for each other for ever
            lock, what = run.folder.lock(f"preprocess-{name}"), f"preprocessing for {name}"
            locks.enter_context(hold_lock(lock, what=what, wait=True, say=run.say))
        warn_of_disk(run, plan, names)
        targets = [Target(plan.configuration(name), run.folder.preprocessed(name)) for name in names]
        preprocess_dataset(run.dataset, plan, targets, num_workers=run.num_workers, reporter=run.reporter)


def require_trainable(run: Run, configurations: Sequence[Configuration]) -> None:
    """Refuse plans whose networks cannot be trained before hours are spent on their data."""
    issues = [
        Issue(code="plan.untrainable", where=str(run.folder.plan), message=fault, fix="or choose another --preset")
        for configuration in configurations
        for fault in why_untrainable(configuration)
    ]
    if issues:
        raise AutosegError(*issues, headline="the plan cannot be trained:")


def warn_of_disk(run: Run, plan: Plan, names: Sequence[str]) -> None:
    """Warn where the data of the configurations ``names`` may not fit on their disk; what is stored already counts as free."""
    needs = estimate_disk(plan, run.fingerprint)
    folders = [run.folder.preprocessed(name) for name in names]
    needed = sum(needs[name] for name in names)
    stored = sum(file.stat().st_size for folder in folders if folder.is_dir() for file in folder.iterdir())
    parent = existing_parent(folders[0])
    free = shutil.disk_usage(parent).free
    if needed - stored > free:
        issue = Issue(
            code="disk.too_small",
            severity="warning",
            where=str(parent),
            message=f"preprocessed data may take {needed / GB:.1f} GB, but only {free / GB:.1f} GB is free",
            fix="free some space, or use another disk with --work",
        )
        run.show(issue)


def existing_parent(folder: Path) -> Path:
    """The nearest folder above, or ``folder`` itself, that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
