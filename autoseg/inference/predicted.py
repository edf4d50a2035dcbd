"""Which files of a folder were predicted of which images: a line for each prediction, so that nothing else is taken for one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from autoseg.imaging.readers import files_of, read_image
from autoseg.issues import AutosegError
from autoseg.storage.atomic import write_error
from autoseg.storage.cache import FileContent, read_content
from planners import Document

RECORD_NAME = "predicted.jsonl"


class PredictedCase(Document):
    """A line of ``predicted.jsonl``, written before its files get their names: a file is a prediction if some line knows it."""

    case_id: str
    source: str
    """Hash of where the image lay, which tells a changed image from another one of the same name."""
    images: tuple[FileContent, ...]
    """All files of the image, in the order of its channels."""
    files: tuple[FileContent, ...]
    """What was written for it."""


Lines = Sequence[PredictedCase]
"""Of one case, the last one last."""


@dataclass(slots=True)
class PredictionNotes:
    """The lines of a folder, those that other processes add meanwhile included."""

    folder: Path
    cases: dict[str, list[PredictedCase]] = field(default_factory=dict)
    num_read: int = 0
    """Bytes of the file that were read so far."""

    def of(self, case_id: str) -> Lines:
        """All lines of a case; those that a full disk has cut are left out."""
        self._read_on()
        return self.cases.get(case_id, [])

    def everything(self) -> dict[str, list[PredictedCase]]:
        """The lines of all cases."""
        self._read_on()
        return self.cases

    def add(self, case: PredictedCase) -> None:
        """Write a line, which is on the disk when this returns; several processes may do so at once."""
        path = self.folder / RECORD_NAME
        line = f"\n{case.model_dump_json()}\n".encode()  # a line that was cut before ends here
        try:
            with open(path, "ab", buffering=0) as file:
                if file.write(line) < len(line):
                    raise OSError("it was cut, as on a full disk")
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(path, error) from error

    def _read_on(self) -> None:
        path = self.folder / RECORD_NAME
        try:
            with open(path, "rb") as file:
                file.seek(self.num_read)
                new = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise AutosegError(f"{path} could not be read ({error.strerror or error}); make it readable") from error
        whole = new[: new.rfind(b"\n") + 1]
        self.num_read += len(whole)
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            try:
                case = PredictedCase.model_validate_json(line)
            except ValidationError:
                continue
            self.cases.setdefault(case.case_id, []).append(case)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What lies in the folder of one case, beside what was noted when it was predicted."""

    images: tuple[FileContent, ...]
    same_images: bool
    to_make: tuple[Path, ...]
    """Files that are missing, cut, or predicted of what the image was before."""
    changed: tuple[Path, ...]
    """Whole images that were never predicted: somebody has worked on them since."""

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to make; ``changed`` files are somebody's work, and count as made."""
        return self.same_images and not self.to_make


def look_at(lines: Lines, images: Sequence[Path], files: Sequence[Path]) -> Found:
    """Compare ``images`` and the predicted ``files``, as they are now, with what was noted of them."""
    last = lines[-1] if lines else None
    now = contents(images, last.images if last else ())
    to_make, changed = [], []
    for path in files:
        state = _state(path, lines)
        if state == "changed":
            changed.append(path)
        elif state != "as noted":
            to_make.append(path)
    return Found(
        images=now,
        same_images=last is not None and _hashes(now) == _hashes(last.images),
        to_make=tuple(to_make),
        changed=tuple(changed),
    )


def _state(path: Path, lines: Lines) -> Literal["as noted", "missing", "older", "changed", "cut"]:
    """What has become of a predicted file; ``older`` is what some line before the last one noted."""
    if not lines or not all(part.exists() for part in files_of(path)):
        return "missing"
    noted = {entry.path: entry for entry in lines[-1].files}
    parts = [read_content(part, noted.get(part.name)) for part in files_of(path)]
    found = {(Path(part.path).name, part.sha256) for part in parts}
    if found <= {(entry.path, entry.sha256) for entry in lines[-1].files}:
        return "as noted"
    if found <= {(entry.path, entry.sha256) for line in lines for entry in line.files}:
        return "older"
    return "changed" if _is_whole(path) else "cut"


def _hashes(files: Sequence[FileContent]) -> list[str]:
    return [entry.sha256 for entry in files]


def names(lines: Lines) -> frozenset[str]:
    """Names of all files that were ever predicted for a case."""
    return frozenset(entry.path for line in lines for entry in line.files)


def contents(paths: Sequence[Path], before: Sequence[FileContent] = ()) -> tuple[FileContent, ...]:
    """What is in all files of ``paths``, by their names: folders are moved, and their names are nobody's business."""
    files = [file for path in paths for file in files_of(path)]
    known = before if [entry.path for entry in before] == [file.name for file in files] else [None] * len(files)
    return tuple(
        read_content(file, noted).model_copy(update={"path": file.name})
        for file, noted in zip(files, known, strict=True)
    )


def source_of(images: Sequence[Path]) -> str:
    """Hash of where an image lies."""
    return sha256(
        "\n".join(str(image.absolute()) for image in images).encode("utf-8", errors="surrogateescape")
    ).hexdigest()


def _is_whole(path: Path) -> bool:
    if path.suffix == ".npz":
        return False  # nobody draws in probabilities
    try:
        read_image([path])
    except AutosegError:
        return False
    return True


def predictions_among(paths: Sequence[Path]) -> frozenset[Path]:
    """Those of ``paths`` that were predicted into their folder, or into the one above it as masks of a case."""
    notes = {
        folder: PredictionNotes(folder).everything() for path in paths for folder in (path.parent, path.parent.parent)
    }
    by_folder = {
        folder: frozenset(name for lines in cases.values() for name in names(lines)) for folder, cases in notes.items()
    }
    return frozenset(
        path
        for path in paths
        if path.name in by_folder[path.parent]
        or path.name in names(notes[path.parent.parent].get(path.parent.name, []))
    )
