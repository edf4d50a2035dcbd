"""Packs the test predictions in the format of a challenge.

A format is a `SubmissionFormat`. Built-in ones are in `SUBMISSION_FORMATS`; an installed package adds one with an
entry point of the group ``autoseg.submissions``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.orientation import GridTolerances, grid_differences
from autoseg.imaging.readers import image_ending, image_stem, read_header, read_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, sync_folder, write_error
from autoseg.wording import count_noun
from planners import Registry, UnknownPartError

SUBMISSION_GRID = GridTolerances(spacing=1e-6, origin=1e-4, direction=1e-6)
"""Prediction against test image. Both come from files; NIfTI stores single precision, which is good to 6e-8 of a value:
origins of some 1000 mm are then off by up to 1e-4 mm, and directions, kept as quaternions, by up to 5e-7."""
TWO_FILES = (".mhd", ".nhdr")
"""Headers whose voxels lie in a second file, under a name that the header holds: renaming would separate them."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip file can hold: the same predictions give the same archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedFile:
    """One checked prediction and the name it is submitted under."""

    case: Case
    file: Path
    name: str
    """As the test image is named; masks of classes have the folder of their case before it."""
    is_mask: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionFormat:
    """How checked predictions are packed."""

    default_out: str
    """Name of the file or folder where none is given."""
    is_folder: bool
    write: Callable[[Path, str, Sequence[SubmittedFile]], None]
    """Takes ``out``, the name of the dataset's folder and the files; ``out`` must appear whole or not at all."""


SUBMISSION_FORMATS: Registry[SubmissionFormat] = Registry(
    group="autoseg.submissions",
    noun="submission format",
    own={"msd": "autoseg.delivery.submission:MSD", "folder": "autoseg.delivery.submission:FOLDER"},
)


def pack_submission(
    predictions: Path, dataset: DatasetDescription, *, kind: str = "msd", out: Path | None = None
) -> Path:
    """Pack the predictions of all test cases of ``dataset`` in the format ``kind`` and return ``out``.

    ``predictions`` holds one label map a test case, named as its case id, or a folder of that name with one mask for each
    class where the dataset has such masks. ``msd`` writes a zip file with one folder, named as the dataset's, of files (or
    folders of masks) named as the test images; ``folder`` writes these into the folder ``out``.
    Before anything is written every prediction is checked: all test cases are there and nothing else is; integers;
    values that the dataset declares; the grid of the test image within `SUBMISSION_GRID`. ``out`` appears whole or not
    at all; an existing one is replaced only where it is an empty file or folder.

    Raises `AutosegError` with every issue and its file; also where the format is unknown, the dataset has no test case,
    there is no such folder of predictions, or ``out`` is in use or cannot be written.
    """
    try:
        form = SUBMISSION_FORMATS.get(kind)
    except UnknownPartError as error:
        fix = f"choose one of {', '.join(SUBMISSION_FORMATS.names())}"
        raise AutosegError(
            _issue("--as", code="submission.unknown_format", message=f"{kind} is not a submission format", fix=fix),
        ) from error
    out = out or Path(form.default_out)
    if not dataset.test:
        fix = "use a run whose dataset has test images"
        raise AutosegError(
            _issue(dataset.root, code="submission.no_test_images", message="has no test images", fix=fix)
        )
    if not predictions.is_dir():
        raise AutosegError(
            _issue(
                predictions,
                code="submission.no_predictions",
                message="is not a folder",
                fix="predict the test images first",
            )
        )
    _check_out(out, form)
    files, issues = (_pair_masks if dataset.classes_with_masks else _pair)(predictions, dataset)
    issues += [issue for file in files for issue in _check(file, dataset)]
    if issues:
        headline = f"{predictions} cannot be submitted, it has {count_noun(len(issues), 'error')}:"
        raise AutosegError(*issues, headline=headline)
    form.write(out, Path(dataset.root).name, files)
    return out


def _issue(where: Path | str, *, code: str, message: str, fix: str) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix)


def _check_out(out: Path, form: SubmissionFormat) -> None:
    """Refuse to write over anything that is not empty."""
    if not (out.exists() or out.is_symlink()):
        return
    if not out.name:
        raise AutosegError(
            _issue(
                out,
                code="submission.out_is_working_folder",
                message="is the current folder",
                fix="name a new folder with --out",
            )
        )
    if out.is_dir() != form.is_folder:
        found, wanted = ("a folder", "a file") if out.is_dir() else ("a file", "a folder")
        fix = f"choose another name with --out, e.g. {out / form.default_out if out.is_dir() else form.default_out}"
        raise AutosegError(
            _issue(
                out, code="submission.out_of_other_kind", message=f"is {found}, but the submission is {wanted}", fix=fix
            )
        )
    if any(out.iterdir()) if out.is_dir() else out.stat().st_size:
        fix = "choose another name with --out, or delete it"
        raise AutosegError(_issue(out, code="submission.out_exists", message="exists and is not empty", fix=fix))


# --- pairing ---


Paired = tuple[list[SubmittedFile], list[Issue]]
"""Predictions of the test cases; what is missing, found twice, or belongs to no test case or class."""


def _pair(predictions: Path, dataset: DatasetDescription) -> Paired:
    found: dict[str, list[Path]] = {}
    for file in _images(predictions):
        found.setdefault(image_stem(file), []).append(file)
    paired: list[SubmittedFile] = []
    issues: list[Issue] = []
    for case in dataset.test:
        files = found.pop(case.case_id, [])
        if len(files) == 1:
            name = _submitted_stem(case) + image_ending(files[0])
            paired.append(SubmittedFile(case=case, file=files[0], name=name))
        elif files:
            message = f"test case {case.case_id} has {len(files)} predictions: {', '.join(file.name for file in files)}"
            issues.append(
                _issue(predictions, code="submission.duplicate_prediction", message=message, fix="keep one of them")
            )
        else:
            message = f"test case {case.case_id} has no prediction"
            issues.append(
                _issue(predictions, code="submission.missing_prediction", message=message, fix="predict it first")
            )
    return paired, issues + [_stray(file, dataset) for files in found.values() for file in files]


def _pair_masks(predictions: Path, dataset: DatasetDescription) -> Paired:
    folders = {entry.name: entry for entry in sorted(predictions.iterdir()) if entry.is_dir()}
    paired: list[SubmittedFile] = []
    issues: list[Issue] = []
    for case in dataset.test:
        if folder := folders.pop(case.case_id, None):
            masks, found = _masks_of_case(folder, case, dataset)
            paired += masks
            issues += found
        else:
            message = f"test case {case.case_id} has no folder of masks"
            issues.append(
                _issue(predictions, code="submission.missing_prediction", message=message, fix="predict it first")
            )
    strays = [folder for folder in folders.values() if not folder.name.startswith(".")]
    return paired, issues + [_stray(folder, dataset) for folder in strays]


def _masks_of_case(folder: Path, case: Case, dataset: DatasetDescription) -> Paired:
    found: dict[str, list[Path]] = {mask_stem(label.name): [] for label in dataset.labels.classes}
    strays: list[Path] = []
    for file in _images(folder):
        found.get(image_stem(file), strays).append(file)
    fix = "predict the case again into an empty folder"
    masks: list[SubmittedFile] = []
    issues: list[Issue] = []
    for stem, files in found.items():
        if len(files) == 1:
            name = f"{case.case_id}/{files[0].name}"
            masks.append(SubmittedFile(case=case, file=files[0], name=name, is_mask=True))
        elif files:
            issues.append(
                _issue(folder, code="submission.duplicate_mask", message=f"has {len(files)} masks of {stem}", fix=fix)
            )
        else:
            issues.append(_issue(folder, code="submission.missing_mask", message=f"has no mask of {stem}", fix=fix))
    return masks, issues + [_stray(file, dataset) for file in strays]


def _images(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.is_file() and image_ending(file) and not file.name.startswith(".")
    )


def _stray(path: Path, dataset: DatasetDescription) -> Issue:
    return _issue(
        path,
        code="submission.stray_file",
        message=f"is not a prediction of a test case of {dataset.name}",
        fix="move it elsewhere",
    )


def _submitted_stem(case: Case) -> str:
    """The name of the test image where it is one file that is named after the case, else that of the case."""
    image = Path(case.images[0])
    is_named = len(case.images) == 1 and image_ending(image) and case.case_id in image_stem(image)
    return image_stem(image) if is_named else case.case_id


# --- checks ---


def _check(submitted: SubmittedFile, dataset: DatasetDescription) -> list[Issue]:
    """Why a prediction cannot be submitted; a reader's own issues where a file cannot be read."""
    file = submitted.file
    if image_ending(file) in TWO_FILES:
        fix = "save it as .mha, .nrrd or .nii.gz"
        return [_issue(file, code="submission.two_files", message="keeps its voxels in a second file", fix=fix)]
    fix = "predict the case again"
    try:
        header, image = read_header(file), read_header(submitted.case.image_paths[0])
        if not header.is_integer:
            return [
                _issue(
                    file, code="submission.not_integers", message=f"stores {header.pixel_type}, not integers", fix=fix
                )
            ]
        values = np.unique(read_label_map(file).array)
    except AutosegError as error:
        return list(error.issues)
    issues = []
    predictable = [value for i, value in enumerate(dataset.file_values) if i != dataset.labels.ignore]
    allowed = [0, dataset.mask_value] if submitted.is_mask else predictable
    if unknown := [int(value) for value in values if int(value) not in allowed]:
        shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        message = f"has the values {shown}, but the dataset's are {', '.join(map(str, allowed))}"
        issues.append(
            _issue(file, code="submission.unknown_values", message=message, fix=f"{fix} with a model of this dataset")
        )
    if differences := grid_differences(header.geometry, image.geometry, SUBMISSION_GRID):
        message = f"is not on the grid of {submitted.case.images[0]}: {', '.join(differences)}"
        issues.append(_issue(file, code="submission.grid_mismatch", message=message, fix=f"{fix} from that image"))
    return issues


# --- formats ---


def _write_zip(out: Path, folder: str, files: Sequence[SubmittedFile]) -> None:
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for each in files:
            # compressed formats gain nothing from a second compression
            method = zipfile.ZIP_STORED if each.name.endswith(".gz") else zipfile.ZIP_DEFLATED
            member = zipfile.ZipInfo(f"{folder}/{each.name}", ZIP_DATE)
            member.compress_type = method
            member.external_attr = 0o644 << 16
            with open(each.file, "rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def _write_folder(out: Path, _: str, files: Sequence[SubmittedFile]) -> None:
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        for each in files:
            (part / each.name).parent.mkdir(exist_ok=True)
            with open(each.file, "rb") as source, open(part / each.name, "wb") as target:
                shutil.copyfileobj(source, target)
                target.flush()
                os.fsync(target.fileno())
        for folder in {(part / each.name).parent for each in files} | {part}:
            sync_folder(folder)
        if out.exists():
            out.rmdir()
        part.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise write_error(out, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


MSD = SubmissionFormat(default_out="submission.zip", is_folder=False, write=_write_zip)
FOLDER = SubmissionFormat(default_out="submission", is_folder=True, write=_write_folder)
