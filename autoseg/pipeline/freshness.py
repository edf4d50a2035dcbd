"""Whether a stage must be done again: only if what it consumes has changed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from autoseg.execution.locks import hold_lock
from autoseg.run_folder import RunFolder, load_document, save_document
from planners import Document

PROSE = frozenset({"decisions", "reason", "findings", "source", "change", "measurements", "expected_training_s"})
"""Fields that explain and decide nothing: rewording them redoes no work."""


class StageRecord(Document):
    """What a finished stage consumed."""

    consumed: str
    """Hash of the consumed values."""
    seconds: float
    """What the stage took."""


def digest(*values: object) -> str:
    """Hash of documents and plain values, the prose in them left out."""
    text = json.dumps([_plain(value) for value in values], sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def file_states(paths: Iterable[Path | str]) -> list[list[object]]:
    """Path, size and modification time of files; of a folder, those of the files in it. Missing files have size -1."""
    states: list[list[object]] = []
    for path in sorted(str(path) for path in paths):
        here = Path(path)
        for file in sorted(here.iterdir()) if here.is_dir() else [here]:
            found = file.stat() if file.exists() else None
            states.append([str(file), found.st_size if found else -1, found.st_mtime_ns if found else 0])
    return states


def is_fresh(run: RunFolder, stage: str, consumed: str, outputs: Sequence[Path]) -> bool:
    """Whether the stage was finished from the same values, and what it wrote is still there."""
    record = run.stage(stage)
    if not record.is_file() or not all(path.exists() for path in outputs):
        return False
    return load_document(StageRecord, record).consumed == consumed


@contextmanager
def open_stage(run: RunFolder, name: str, consumed: str, outputs: Sequence[Path], *, what: str) -> Iterator[bool]:
    """Own a stage while the block runs; yields whether there is anything to do.

    When the block that had to do something ends without an error, the stage is noted as finished. ``what`` names the
    stage for the process that finds it taken.
    """
    with hold_lock(run.lock(name), what=what):
        if is_fresh(run, name, consumed, outputs):
            yield False
            return
        started = time.monotonic()
        yield True
        save_document(run.stage(name), StageRecord(consumed=consumed, seconds=time.monotonic() - started))


def _plain(value: object) -> Any:
    if isinstance(value, Document):
        return _without_prose(value.model_dump(mode="json"))
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _without_prose(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_prose(entry) for key, entry in value.items() if key not in PROSE}
    if isinstance(value, list):
        return [_without_prose(entry) for entry in value]
    return value
