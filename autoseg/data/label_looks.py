"""What was looked up in label files, kept so that the next command need not read them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.dataset import Case
from autoseg.imaging.readers import file_states
from autoseg.issues import AutosegError
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import Reporter
from planners import Document

FILE_S, BYTE_S = 0.005, 2.5e-6
"""Processor time to look into a label file, and for each byte of it: compressed, one holds about a hundred voxels."""
FileState = tuple[str, int, int]
"""Path, size in bytes, modification time in ns."""


class Answer(Document):
    """What was found in the label files of one case."""

    values: tuple[tuple[int, int], ...] = ()
    """Label values with their numbers of voxels."""
    combinations: tuple[tuple[str, ...], ...] = ()
    """Classes that share voxels; an empty one for the background."""


class Look(Answer):
    """An answer with what was asked."""

    question: str
    labels: tuple[str, ...]
    """The label map, or ``CLASS=FILE`` for each mask."""
    files: tuple[FileState, ...]


class Looks(Document):
    """All answers that are kept for a dataset."""

    looks: tuple[Look, ...] = ()


def look_up(
    cases: Sequence[Case],
    question: str,
    answer: Callable[[Case], Answer | None],
    *,
    kept: Path | None,
    num_workers: int,
    reporter: Reporter,
) -> list[Look]:
    """``answer`` for each case, in order, taken from the file ``kept`` where size and time of its label files are as they were.

    ``question`` is everything besides the files that answers depend on. A case without an answer (None) gets an empty one,
    which is not kept. When there is something new, ``kept`` is written with what was asked for now and nothing else, so
    that it does not grow.
    """
    asked = [_asked(case, question) for case in cases]
    known = {look.model_copy(update={"values": (), "combinations": ()}): look for look in _load(kept).looks}
    missing = [(case, key) for case, key in zip(cases, asked, strict=True) if key not in known]
    answers = _answers(answer, missing, num_workers=num_workers, reporter=reporter)
    new = {
        key: key.model_copy(update={"values": found.values, "combinations": found.combinations})
        for (_, key), found in zip(missing, answers, strict=True)
        if found is not None
    }
    known |= new
    if kept is not None and new:
        save_document(kept, Looks(looks=tuple(known[key] for key in asked if key in known)))
    return [known.get(key, key) for key in asked]


def _answers(
    answer: Callable[[Case], Answer | None],
    missing: Sequence[tuple[Case, Look]],
    *,
    num_workers: int,
    reporter: Reporter,
) -> list[Answer | None]:
    if not missing:
        return []
    seconds = sum(FILE_S + BYTE_S * size for _, key in missing for _, size, _ in key.files)
    with reporter.track("look into label files", len(missing)) as tracker:
        return run_jobs(
            answer,
            [case for case, _ in missing],
            name=lambda case: f"case {case.case_id}",
            num_workers=workers_worth_starting(num_workers, seconds),
            tracker=tracker,
        )


def _asked(case: Case, question: str) -> Look:
    """A look without an answer."""
    labels = (case.label,) if case.label is not None else tuple(f"{mask.label}={mask.file}" for mask in case.masks)
    return Look(question=question, labels=labels, files=file_states(case.label_files))


def _load(kept: Path | None) -> Looks:
    try:
        return Looks() if kept is None else load_document(Looks, kept)
    except AutosegError:
        return Looks()
