"""Which files of a folder were predicted of which images: a line for each case, so that nothing else is taken for one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from autoseg.errors import AutosegError
from autoseg.file_content import FileContent, read_content
from autoseg.imaging.formats import files_of, read_volume
from autoseg.run_folder import write_error
from planners import Document

RECORD_NAME = "predicted.jsonl"


class PredictedCase(Document):
    """A line of ``predicted.jsonl``; of several of one case the last counts."""

    case_id: str
    images: tuple[FileContent, ...]
    """All files of the image, in the order of its channels."""
    files: tuple[FileContent, ...] = ()
    """What was written for it; nothing while that is being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies in the folder of one case, beside what was noted when it was predicted."""

    images: tuple[FileContent, ...]
    same_images: bool
    missing: tuple[Path, ...]
    changed: tuple[Path, ...]
    """Whole images that are not what was predicted: somebody has worked on them since."""
    damaged: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to make; ``changed`` files are somebody's work, and count as made."""
        return self.same_images and not self.missing and not self.damaged


def read_predicted(folder: Path) -> dict[str, PredictedCase]:
    """The last line of every case; lines that a kill or a full disk has cut are left out."""
    try:
        lines = (folder / RECORD_NAME).read_text("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AutosegError(f"{folder / RECORD_NAME} could not be read ({error.strerror or error}); make it readable") from error
    cases: dict[str, PredictedCase] = {}
    for line in lines:
        try:
            case = PredictedCase.model_validate_json(line)
        except ValidationError:
            continue
        cases[case.case_id] = case
    return cases


def note_predicted(folder: Path, case: PredictedCase) -> None:
    """Add a line, which is on the disk when this returns; several processes may do so at once."""
    path = folder / RECORD_NAME
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(f"\n{case.model_dump_json()}\n".encode())  # a line that was cut before ends here
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def look_at(case: PredictedCase | None, images: Sequence[Path], files: Sequence[Path]) -> Found:
    """Compare ``images`` and the predicted ``files``, as they are now, with what was noted of them."""
    now = contents(images, case.images if case else ())
    noted = {Path(entry.path).name: entry for entry in case.files} if case else {}
    missing = tuple(path for path in files if not path.exists() or path.name not in noted)
    other = [path for path in files if path not in missing and not _is_same(path, noted)]
    damaged = tuple(path for path in other if not _is_whole(path))
    return Found(
        images=now,
        same_images=case is not None and [entry.sha256 for entry in now] == [entry.sha256 for entry in case.images],
        missing=missing,
        changed=tuple(path for path in other if path not in damaged),
        damaged=damaged,
    )


def contents(paths: Sequence[Path], before: Sequence[FileContent] = ()) -> tuple[FileContent, ...]:
    """What is in all files of ``paths``, by their names: folders are moved, and their names are nobody's business."""
    files = [file for path in paths for file in files_of(path)]
    known = before if [entry.path for entry in before] == [file.name for file in files] else [None] * len(files)
    return tuple(
        read_content(file, noted).model_copy(update={"path": file.name}) for file, noted in zip(files, known, strict=True)
    )


def _is_same(path: Path, noted: Mapping[str, FileContent]) -> bool:
    before = [noted[file.name] for file in files_of(path) if file.name in noted]
    return [entry.sha256 for entry in contents([path], before)] == [entry.sha256 for entry in before]


def _is_whole(path: Path) -> bool:
    if path.suffix == ".npz":
        return False  # nobody draws in probabilities
    try:
        read_volume([path])
    except AutosegError:
        return False
    return True
