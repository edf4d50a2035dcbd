"""Whether a folder may become the folder of a run, and which files of a run are its own: nothing of others is written over."""

from __future__ import annotations

from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder, run_of
from autoseg.storage.atomic import load_document
from planners import Plan


def require_free(run: RunFolder, dataset: Path) -> None:
    """Raise `AutosegError` where ``run`` is the folder ``dataset`` itself, or holds files of somebody else that it would write over.

    Where a run has been at work before, all are its own, damaged ones, too. A plan may have been put there for it.
    """
    if run.root.resolve() == dataset.resolve():
        raise AutosegError(
            f"{run.root} is the dataset itself, to which nothing is written; choose another run folder with --out"
        )
    if run.is_begun:
        return
    theirs = [path.name for path in (run.fingerprint, run.schedule, run.splits, run.selection) if path.is_file()]
    if theirs and not (run.root / "locks").is_dir():
        raise AutosegError(
            f"{run.root} has {', '.join(theirs)}, but no run was begun there: a run would write its own in that place; choose another "
            "run folder with --out"
        )
    if not run.dataset.is_file():
        return
    try:
        load_document(DatasetDescription, run.dataset)
    except AutosegError as error:
        raise AutosegError(
            f"{run.dataset} was not written by a run, which would put its own in that place; choose another run folder with --out"
        ) from error


def require_free_for_plan(run: RunFolder, dataset: Path) -> None:
    """Raise `AutosegError` where a plan that is made of the files in ``dataset`` may not be put.

    That is in a dataset, in a run, which goes by the plan in it, and over a ``plan.json`` that is no plan.
    """
    require_free(run, dataset)
    if run.is_begun or run.dataset.exists():
        raise AutosegError(
            f"{run.root} is the folder of a run, which goes by the plan in it; choose another folder with --out"
        )
    if not run.plan.exists():
        return
    try:
        load_document(Plan, run.plan)
    except AutosegError as error:
        raise AutosegError(
            f"{run.plan} is there and no plan of autoseg, so it is not replaced; choose another folder with --out"
        ) from error


def require_no_own_scores(path: Path) -> None:
    """Raise `AutosegError` where ``path`` is a ``summary.json`` that a run made of its cross-validation or of one of its folds.

    The run goes by these scores: others in their place would be taken for its own.
    """
    whole = path.resolve()
    run = run_of(whole)
    if run is None or whole.name != "summary.json":
        return
    if whole.parent == run.cross_validation or run.models in whole.parents:
        raise AutosegError(
            f"{path} is for the scores of the run in {run.root}, which goes by them; choose another file with --out"
        )
