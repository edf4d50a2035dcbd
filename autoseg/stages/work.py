"""Units of work of the stages, with their inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from autoseg.run_folder import RunFolder
from autoseg.stages.run import Run, StageRecord
from autoseg.storage.atomic import load_document, load_or_none
from autoseg.storage.cache import key_of
from planners import Document

D = TypeVar("D", bound=Document)

Inputs = Mapping[str, str]
"""Hash of each input of a unit, by its name in messages."""
FILE_INPUT = "schedule file (--schedule)"
"""Input of a schedule that was given, in place of the options that one is made from by measuring."""
CORRECT = "correct it, or delete it to redo it"


def is_filled(path: Path) -> bool:
    """Whether a file exists and is not empty."""
    return path.is_file() and path.stat().st_size > 0


def reads_as(kind: type[Document]) -> Callable[[Path], bool]:
    """Whether a file holds a whole document of this type."""
    return lambda path: load_or_none(kind, path) is not None


class GivenUpError(Exception):
    """Raised by `Work.do` where a unit is left undone on purpose: it gets no record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One unit of a stage: a whole stage, or one fold of a configuration."""

    name: str
    """Of its record and its lock: ``plan``, ``train-2d-fold_0``."""
    what: str
    """In messages: ``the plan``, ``training of 2d, fold 0``."""
    do: Callable[[], float | None]
    """Returns the seconds that earlier calls spent on it, where it resumed what they began."""
    inputs: Callable[[], Inputs] | None = None
    """Asked before, to see what changed, and after, for the record. None: `do` finds out itself, and takes its own locks."""
    outputs: Sequence[Path] = ()
    is_whole: Callable[[Path], bool] = Path.exists
    """Whether an output that exists is what the unit leaves; others are made again."""
    wait: bool = True
    """Whether to wait where another process does the same; else that is an error."""
    keeps_record: bool = False
    """The record of an earlier result stays until `do` removes it: interrupted before that, nothing is lost."""
    edited: Mapping[Path, type[Document]] = field(default_factory=dict)
    """Outputs that users may edit, with their types; the record keeps what the unit wrote."""


def read_record(folder: RunFolder, name: str) -> StageRecord | None:
    """The record of a finished unit; None where it was not finished, or its record cannot be read."""
    return load_or_none(StageRecord, folder.stage(name))


def changed_inputs(folder: RunFolder, name: str, inputs: Inputs) -> tuple[str, ...]:
    """What a finished unit was made from that is different now, by name; nothing for a unit that was not finished.

    Where a file was given before or now, but not both, nothing is said of the options that only the other one depends on.
    """
    record = read_record(folder, name)
    before = inputs if record is None else record.inputs
    changed = [each for each in dict.fromkeys([*inputs, *before]) if before.get(each) != inputs.get(each)]
    if FILE_INPUT in inputs.keys() ^ before.keys():
        changed = [each for each in changed if each == FILE_INPUT or each in inputs.keys() & before.keys()]
    return tuple(changed)


def is_edited(run: Run, name: str, path: Path, kind: type[Document], own: Document | None = None) -> bool:
    """Whether the document at ``path`` is the user's: neither what the unit ``name`` wrote, nor ``own``, what it would write.

    Without a record of the unit, a document counts as the user's only if ``own`` is known. Raises
    `AutosegError` with all problems of a document that cannot be read. With ``run.replan`` nothing counts as edited.
    """
    written = written_document(run.folder, name, path, kind)
    if run.replan or not path.is_file() or (read_record(run.folder, name) is None and own is None):
        return False
    known = {key_of(each) for each in (written, own) if each is not None}
    return key_of(load_document(kind, path, fix=CORRECT)) not in known


def written_document(folder: RunFolder, name: str, path: Path, kind: type[D]) -> D | None:
    """The document at ``path`` as the unit ``name`` wrote it, whatever happened to it since; None if unknown."""
    return document_of(read_record(folder, name), path.name, kind)


def document_of(record: StageRecord | None, name: str, kind: type[D]) -> D | None:
    """The document of this name in the record of a unit; None if there is none."""
    content = None if record is None else record.documents.get(name)
    try:
        return None if content is None else kind.model_validate_json(json.dumps(content))
    except ValidationError:
        return None
