"""Packs the predictions of a dataset's test images the way a challenge wants them."""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.grids import GridTolerances, grid_differences
from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.readers import image_ending, image_stem, read_header, read_label_map
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.storage.atomic import atomic_write, sync_folder, write_error

SubmissionKind = Literal["msd", "folder"]

SUBMISSION_GRID = GridTolerances(spacing=1e-6, origin=1e-4, direction=1e-6)
"""Prediction against test image. Both come from files; NIfTI stores single precision, which is good to 6e-8 of a value:
origins of some 1000 mm are then off by up to 1e-4 mm, and directions, kept as quaternions, by up to 5e-7."""
TWO_FILES = (".mhd", ".nhdr")
"""Headers whose voxels lie in a second file, under a name that the header holds: renaming would part them."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip file can hold: the same predictions give the same archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One prediction and the name it is handed in under."""

    case: Case
    file: Path
    name: str
    """With a folder before it for masks of classes."""
    is_mask: bool = False


def pack_submission(predictions: Path, dataset: DatasetDescription, *, kind: SubmissionKind, out: Path) -> Path:
    """Pack the predictions of all test cases of ``dataset`` and return ``out``.

    ``predictions`` holds one label map a test case, named as its case id, or a folder of that name with one mask for each
    class where the dataset has such masks. ``msd`` writes a zip file with one folder, named as the dataset's, of files (or
    folders of masks) named as the test images; ``folder`` writes these into the folder ``out``.
    Before anything is written every prediction is checked: all test cases are there and nothing else is; integers;
    values that the dataset declares; the grid of the test image within `SUBMISSION_GRID`. ``out`` appears whole or not
    at all; an existing one is replaced only where it is an empty file or folder.

    Raises `AutosegError` with every fault and its file, `AutosegError` where the dataset has no test case, there is no
    such folder of predictions, or ``out`` is in use or cannot be written.
    """
    if not dataset.test:
        raise AutosegError(f"{dataset.root} has no test images; there is nothing to submit")
    if not predictions.is_dir():
        raise AutosegError(f"{predictions} is no folder of predictions; predict the test images first")
    _check_out(out, kind)
    entries, problems = (_pair_masks if dataset.classes_with_masks else _pair)(predictions, dataset)
    problems += [problem for entry in entries for problem in _check(entry, dataset)]
    if problems:
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise AutosegError(*problems, headline=(f"{predictions} cannot be submitted, it has {faults}:"))
    if kind == "msd":
        _write_zip(out, Path(dataset.root).name, entries)
    else:
        _write_folder(out, entries)
    return out


def _check_out(out: Path, kind: SubmissionKind) -> None:
    if not (out.exists() or out.is_symlink()):
        return
    if kind == "msd" and out.is_dir():
        raise AutosegError(
            f"{out} is a folder, but a zip file is to be written; name a file with --out, e.g. {out / 'submission.zip'}"
        )
    if not out.name:
        raise AutosegError(f"{out} is the folder that you are in; name another one with --out, which is made")
    if kind == "folder" and not out.is_dir():
        raise AutosegError(f"{out} is a file, but a folder is to be written; choose another name with --out")
    if out.is_dir() and any(out.iterdir()):
        raise AutosegError(f"{out} is not empty; choose another folder with --out, or empty it")
    if out.is_file() and out.stat().st_size:
        raise AutosegError(f"{out} exists; choose another name with --out, or delete it")


def _pair(predictions: Path, dataset: DatasetDescription) -> tuple[list[_Entry], list[Issue]]:
    """Predictions of the test cases; what is missing, there twice, or belongs to no test case."""
    found: dict[str, list[Path]] = {}
    for file in sorted(predictions.iterdir()):
        if file.is_file() and image_ending(file) and not file.name.startswith("."):
            found.setdefault(image_stem(file), []).append(file)
    entries, problems = [], []
    for case in dataset.test:
        files = found.pop(case.case_id, [])
        if not files:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(predictions),
                    message=f"test case {case.case_id} has no prediction",
                    fix="predict it first",
                )
            )
        elif len(files) > 1:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(predictions),
                    message=f"test case {case.case_id} has {len(files)} predictions: "
                    f"{', '.join(file.name for file in files)}",
                    fix="keep one of them",
                )
            )
        else:
            entries.append(_Entry(case=case, file=files[0], name=_submitted_stem(case) + image_ending(files[0])))
    strays = [file for files in found.values() for file in files]
    return entries, problems + _stray(strays, dataset)


def _pair_masks(predictions: Path, dataset: DatasetDescription) -> tuple[list[_Entry], list[Issue]]:
    """Masks of the test cases; what is missing, there twice, or belongs to no test case or class."""
    entries, problems = [], []
    strays: list[Path] = []
    folders = {
        entry.name: entry
        for entry in sorted(predictions.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    for case in dataset.test:
        folder = folders.pop(case.case_id, None)
        if folder is None:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(predictions),
                    message=f"test case {case.case_id} has no folder of masks",
                    fix="predict it first",
                )
            )
            continue
        found: dict[str, list[Path]] = {mask_stem(label.name): [] for label in dataset.labels.classes}
        for file in sorted(file for file in folder.iterdir() if image_ending(file) and not file.name.startswith(".")):
            found.get(image_stem(file), strays).append(file)
        for stem, files in found.items():
            if len(files) == 1:
                name = f"{case.case_id}/{files[0].name}"
                entries.append(_Entry(case=case, file=files[0], name=name, is_mask=True))
            else:
                shown = f"{len(files)} masks of {stem}" if files else f"no mask of {stem}"
                problems.append(
                    Issue(
                        code=UNNAMED,
                        where=str(folder),
                        message=f"has {shown}",
                        fix="predict the case again into an empty folder",
                    )
                )
    return entries, problems + _stray([*strays, *folders.values()], dataset)


def _stray(files: Sequence[Path], dataset: DatasetDescription) -> list[Issue]:
    return [
        Issue(
            code=UNNAMED,
            where=str(file),
            message=f"is no prediction of a test case of {dataset.name}",
            fix="move it elsewhere",
        )
        for file in files
    ]


def _submitted_stem(case: Case) -> str:
    """The name of the test image where it is one file that is named after the case, else that of the case."""
    image = Path(case.images[0])
    is_named = len(case.images) == 1 and image_ending(image) and case.case_id in image_stem(image)
    return image_stem(image) if is_named else case.case_id


def _check(entry: _Entry, dataset: DatasetDescription) -> list[Issue]:
    where = str(entry.file)
    if image_ending(entry.file) in TWO_FILES:
        return [
            Issue(
                code=UNNAMED,
                where=where,
                message="keeps its voxels in a second file",
                fix="save it as .mha, .nrrd or .nii.gz",
            )
        ]
    try:
        header, image = read_header(entry.file), read_header(entry.case.image_paths[0])
        if not header.is_integer:
            return [
                Issue(
                    code=UNNAMED,
                    where=where,
                    message=f"stores {header.pixel_type}, not integers",
                    fix="predict the case again",
                )
            ]
        values = np.unique(read_label_map(entry.file).array)
    except AutosegError as error:
        return [Issue(code=UNNAMED, where=where, message=str(error), fix="mend that file, or predict the case again")]
    problems = []
    allowed = (0, dataset.mask_value) if entry.is_mask else _predictable_values(dataset)
    unknown = [int(value) for value in values if int(value) not in allowed]
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        problems.append(
            Issue(
                code=UNNAMED,
                where=where,
                message=f"has the values {shown}, but the dataset's are {', '.join(map(str, allowed))}",
                fix="predict the case again with a model of this dataset",
            )
        )
    differences = grid_differences(header.geometry, image.geometry, SUBMISSION_GRID)
    if differences:
        problems.append(
            Issue(
                code=UNNAMED,
                where=where,
                message=f"lies on another grid than {entry.case.images[0]}: {'; '.join(differences)}",
                fix="predict the case again from that image",
            )
        )
    return problems


def _predictable_values(dataset: DatasetDescription) -> tuple[int, ...]:
    """File values that a prediction may have: all but the ignore value."""
    return tuple(value for i, value in enumerate(dataset.file_values) if i != dataset.labels.ignore)


def _write_zip(out: Path, folder: str, entries: Sequence[_Entry]) -> None:
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for entry in entries:
            # compressed formats gain nothing from a second compression
            method = zipfile.ZIP_STORED if entry.name.endswith(".gz") else zipfile.ZIP_DEFLATED
            member = zipfile.ZipInfo(f"{folder}/{entry.name}", ZIP_DATE)
            member.compress_type = method
            member.external_attr = 0o644 << 16
            with open(entry.file, "rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def _write_folder(out: Path, entries: Sequence[_Entry]) -> None:
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        for entry in entries:
            (part / entry.name).parent.mkdir(exist_ok=True)
            with open(entry.file, "rb") as source, open(part / entry.name, "wb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        for folder in {(part / entry.name).parent for entry in entries} | {part}:
            sync_folder(folder)
        if out.exists():
            out.rmdir()
        part.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
