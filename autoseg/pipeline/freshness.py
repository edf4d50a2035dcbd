"""Whether a stage must be done again: only if what it consumes has changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.locks import hold_lock
from planners import Document

NOT_DONE = "it was not done yet"
Consumed = Mapping[str, str]
"""What a stage depends on: hashes by the words a person knows the thing by."""


class RetrainingError(AutosegError):
    """A command that trains nothing anew met changed inputs, and left everything as it was."""


class StageRecord(Document):
    """What a finished stage consumed."""

    consumed: dict[str, str]
    """Hash of each thing that was consumed, by what it is called."""
    seconds: float
    """What the stage took."""


def is_filled(path: Path) -> bool:
    """Whether a file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0


def what_changed(
    run: RunFolder,
    stage: str,
    consumed: Consumed,
    outputs: Sequence[Path],
    fits: Callable[[Path], bool] = Path.exists,
) -> tuple[str, ...]:
    """Why a stage must be done again; nothing where it was finished from the same values and its files are there and ``fits``.

    ``("it was not done yet",)`` for a stage without a readable record.
    """
    try:
        before = load_document(StageRecord, run.stage(stage)).consumed
    except AutosegError:
        return (NOT_DONE,)
    names = dict.fromkeys([*consumed, *before])
    changed = tuple(f"the {name} changed" for name in names if before.get(name) != consumed.get(name))
    unfit = [path for path in outputs if not (path.exists() and fits(path))]
    return changed + tuple(f"{path.name} {'does not fit' if path.exists() else 'is gone'}" for path in unfit)


def consumed_before(run: RunFolder, stage: str) -> Consumed:
    """What a finished stage consumed; nothing where it was not finished."""
    try:
        return load_document(StageRecord, run.stage(stage)).consumed
    except AutosegError:
        return {}


@contextmanager
def open_stage(
    run: RunFolder,
    name: str,
    consumed: Consumed,
    outputs: Sequence[Path],
    *,
    what: str,
    say: Callable[[str], None],
    wait: bool = True,
    fits: Callable[[Path], bool] = Path.exists,
    forget: bool = True,
    may_redo: bool = True,
) -> Iterator[bool]:
    """Own a stage while the block runs; yields whether there is anything to do.

    When the block that had to do something ends without an error, the stage is noted as finished, and results of single
    cases that it kept until then are removed. ``what`` names the stage to a person: when it is done again because something
    changed, and when another process has it. With ``wait`` that process is waited for, else it is an error. ``fits``
    looks into outputs that are there: damaged ones, and those that something else was written over, are made again.
    Without ``forget`` the former record stays until the block removes it, which it does before it writes over the
    first output. Without ``may_redo`` changed inputs raise `RetrainingError`, and all stays as it is.
    """
    with hold_lock(run.lock(name), what=what, wait=wait, say=say):
        if not may_redo:
            refuse_changes(run, name, consumed, what=what)
        changes = what_changed(run, name, consumed, outputs, fits)
        if not changes:
            shutil.rmtree(run.kept(name), ignore_errors=True)  # of a call that was killed in its last moment
            yield False
            return
        if changes != (NOT_DONE,):
            say(f"Doing {what} again: {', '.join(changes)}")
        if forget:
            run.stage(name).unlink(missing_ok=True)
        started = time.monotonic()
        yield True
        save_document(run.stage(name), StageRecord(consumed=dict(consumed), seconds=time.monotonic() - started))
        shutil.rmtree(run.kept(name), ignore_errors=True)


def refuse_changes(run: RunFolder, stage: str, consumed: Consumed, *, what: str) -> None:
    """Raise `RetrainingError` where a finished stage consumed something else; missing and damaged outputs are no reason."""
    changes = what_changed(run, stage, consumed, ())
    if changes not in ((), (NOT_DONE,)):
        refuse_redoing(run, changes, what=what)


def refuse_redoing(run: RunFolder, changes: Sequence[str], *, what: str) -> NoReturn:
    """Raise `RetrainingError` for what only a command that may train anew does."""
    raise RetrainingError(
        f"{run.root}: {' and '.join(changes)}, so that {what} would be made again and everything trained anew, which this "
        f"command does not do; give it the options that the run was made with ({run.log} has every call), or take autoseg run"
    )
