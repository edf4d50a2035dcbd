"""Packs predictions of test images as a challenge wants them: values, types, names, archive; checked by its rules before it appears.

What a challenge wants is a record of ``datasets_spec/challenges``, or a user's own file of the same form.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.data.labels import with_values
from autoseg.delivery.package_check import Checked, ExpectedFile, Rules, check_package
from autoseg.delivery.submitted_cases import (
    Predicted,
    SubmittedImage,
    chosen_images,
    class_values,
    expected_files,
    known_name,
    part_of,
    value_issues,
    value_map,
    written_names,
)
from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.readers import (
    image_ending,
    image_stem,
    read_header,
    read_label_map,
    slices_by_name,
    write_label_map,
)
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, sync_folder, temporary_folder, write_error, zip_member
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun
from datasets_spec import Challenge, Package, Part, load_challenges
from datasets_spec.challenge import fill

COMPRESSED = (".gz", ".mha", ".zraw", ".png")
"""Endings of files that are compressed already."""
MOST_LISTED = 12
"""Values that are listed one by one in the last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A package that keeps the rules of its challenge."""

    path: Path
    line: str
    """What was checked, and where to upload it."""
    issues: tuple[Issue, ...] = ()
    """Notes and warnings: facts of the challenge that were not confirmed, documents that go with it, what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One case of a part, its prediction and the files that it becomes."""

    prediction: Path
    files: Mapping[str, ExpectedFile]
    """By class or number of the slice; a single one by an empty text."""
    mapping: Mapping[int, int]
    """Value in the prediction -> value to write."""
    classes: Mapping[str, tuple[int, ...]]
    """Values of each class in the prediction, or, of masks, the one to write."""
    names: Mapping[int, str]
    """Names of values that are stored in the file; empty: none are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    cases: list[_Case] = field(default_factory=list)
    expected: dict[str, list[ExpectedFile]] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)


def pack_submission(
    predicted: Sequence[Predicted],
    challenge: Challenge,
    *,
    out: Path | None = None,
    given: Mapping[str, str] | None = None,
    is_incomplete: bool = False,
    reporter: Reporter | None = None,
) -> Submission:
    """Pack predictions for ``challenge``, check the package by its rules, and put it at ``out``, whole or not at all.

    Each of ``predicted`` gives one part of the challenge: labels get the challenge's values, by the names of their classes where
    these are the dataset's that the challenge uses, then by its table; integers get its type; files its names. ``given``:
    fields of names that the challenge asks for. With ``is_incomplete`` missing cases are warnings. The same predictions
    give the same bytes. An existing ``out`` is replaced only where it is an empty file or folder.

    Raises `AutosegError` with every fault at once.
    """
    reporter, fields = reporter or SilentReporter(), dict(given or {})
    require_given(challenge, fields)
    fields["dataset"] = Path(predicted[0].dataset.root).name
    out = out or Path(fill(challenge.package.name, fields))
    _check_out(out, is_folder=challenge.package.archive == "folder")
    planned = _Planned()
    for each in predicted:
        name = part_of(challenge, each)
        if name in planned.expected:
            message, fix = f"a second run of {name}", "give one run for each part"
            raise AutosegError(_issue(each.folder, code="submission.same_part", message=message, fix=fix))
        challenge = _for_masks(challenge, name, each.dataset)
        _plan_part(challenge, name, each, fields, planned)
    rules = Rules(challenge=challenge, given=fields, expected=planned.expected, is_incomplete=is_incomplete)
    try:
        with temporary_folder(out.absolute()) as folder:
            inside = folder / out.name
            inside.mkdir()
            issues = [*planned.issues, *_write_cases(planned.cases, challenge, inside, reporter)]
            checked = _checked(inside, rules, reporter, issues)
            _place(inside, out, challenge)
    except OSError as error:
        raise write_error(out, error) from error
    doubts = [issue for issue in planned.issues if issue.severity == "warning"]
    notes = (*doubts, *checked.issues, *notes_of(challenge), *_better_names(challenge, predicted[0].dataset))
    return Submission(path=out, line=line_of(checked, rules), issues=notes)


def challenges_of(dataset: DatasetDescription) -> tuple[str, ...]:
    """Names of the challenges that use this public dataset."""
    name = known_name(dataset)
    return tuple(each.name for each in load_challenges() if any(name in part.datasets for part in each.parts.values()))


def _better_names(challenge: Challenge, dataset: DatasetDescription) -> list[Issue]:
    names = () if challenge.page else challenges_of(dataset)
    message = f"files are named as test images; {dataset.known} has rules of its own"
    fix = f"pack for it with --as {' or --as '.join(names[:3])}"
    return (
        [Issue(code="challenge.available", severity="note", where=dataset.name, message=message, fix=fix)]
        if names
        else []
    )


def _checked(folder: Path, rules: Rules, reporter: Reporter, issues: Sequence[Issue]) -> Checked:
    """The checked package. Raises `AutosegError` with ``issues`` and all that the check finds besides."""
    blamed = {issue.case for issue in issues if issue.case is not None}
    checked = None
    try:
        checked = check_package(folder, rules, reporter)
    except AutosegError as error:
        issues = [*issues, *(issue for issue in error.issues if issue.case is None or issue.case not in blamed)]
    errors = [issue for issue in issues if issue.severity == "error"]
    if errors:
        headline = (
            f"the predictions cannot be submitted to {rules.challenge.title}, {count_noun(len(errors), 'error')}:"
        )
        raise AutosegError(*errors, headline=headline)
    assert checked is not None
    return checked


def require_given(challenge: Challenge, given: Mapping[str, str]) -> None:
    """Raise `AutosegError` for fields of names that are missing, unknown or of another form."""
    issues = []
    for name, ask in challenge.package.asks.items():
        if name not in given:
            message, fix = f"{challenge.title} needs it: {ask.what}", f"pass --fill {name}=..."
            issues.append(_issue(name, code="submission.not_given", message=message, fix=fix))
        elif not re.fullmatch(ask.form, given[name]):
            message, fix = f"{given[name]!r} is not of the form {ask.form}", f"give {ask.what}"
            issues.append(_issue(f"--fill {name}", code="submission.bad_field", message=message, fix=fix))
    known = ", ".join(challenge.package.asks) or "no fields"
    for name in given.keys() - challenge.package.asks.keys():
        message, fix = f"{challenge.title} asks for {known}", "omit it"
        issues.append(_issue(f"--fill {name}", code="submission.bad_field", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)


def _issue(where: Path | str, *, code: str, message: str, fix: str, case: str | None = None) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix, case=case)


def _check_out(out: Path, *, is_folder: bool) -> None:
    """Refuse to write over anything that is not empty."""
    if not (out.exists() or out.is_symlink()):
        return
    if not out.name:
        message, fix = "is the current folder", "name a new folder with --out"
        raise AutosegError(_issue(out, code="submission.out_is_working_folder", message=message, fix=fix))
    if out.is_dir() != is_folder:
        found, wanted = ("a folder", "a file") if out.is_dir() else ("a file", "a folder")
        message, fix = f"is {found}, but the submission is {wanted}", "choose another name with --out"
        raise AutosegError(_issue(out, code="submission.out_of_other_kind", message=message, fix=fix))
    if any(out.iterdir()) if out.is_dir() else out.stat().st_size:
        fix = "choose another name with --out, or delete it"
        raise AutosegError(_issue(out, code="submission.out_exists", message="exists and is not empty", fix=fix))


def _for_masks(challenge: Challenge, name: str, dataset: DatasetDescription) -> Challenge:
    """The challenge with the names of masks, where the dataset has a mask file for each class."""
    part = challenge.parts[name]
    if not dataset.classes_with_masks or part.masks is None:
        return challenge
    own = part.model_copy(update={"file": part.masks})
    return challenge.model_copy(update={"parts": {**challenge.parts, name: own}})


def _plan_part(
    challenge: Challenge, name: str, predicted: Predicted, given: Mapping[str, str], planned: _Planned
) -> None:
    """Find the predictions of a part's cases, and what each becomes."""
    part = challenge.parts[name]
    images = chosen_images(part, predicted)
    planned.expected[name] = []
    found, strays = _predictions(predicted, {each.case_id for each in images})
    planned.issues.extend(strays)
    planned.issues.extend(
        each for each in value_issues(challenge, part, predicted.dataset) if each.severity == "warning"
    )
    mapping, classes = value_map(predicted.dataset, part), class_values(predicted.dataset, part)
    names = written_names(predicted.dataset, part) if part.names_in_header else {}
    for image in images:
        place, faults = _one_prediction(found.get(image.case_id, []), image, predicted.folder)
        planned.issues.extend(faults)
        try:
            files = expected_files(name, part, predicted.dataset, image, given, place)
        except AutosegError as error:
            planned.issues.extend(error.issues)
            continue
        planned.expected[name] += files.values()
        if place is not None:
            planned.cases.append(_Case(prediction=place, files=files, mapping=mapping, classes=classes, names=names))


def _predictions(predicted: Predicted, case_ids: set[str]) -> tuple[dict[str, list[Path]], list[Issue]]:
    """Predictions by case id, and images that are no test case's; files of other kinds are passed over."""
    by_image = {image_stem(each.image): each.case_id for each in predicted.images if each.image is not None}
    known = {each.case_id for each in predicted.images}
    found: dict[str, list[Path]] = {}
    strays: list[Issue] = []
    if not predicted.folder.is_dir():
        fix = "predict the test images first"
        issue = _issue(predicted.folder, code="submission.no_predictions", message="is not a folder", fix=fix)
        raise AutosegError(issue)
    wants_folders = bool(predicted.dataset.classes_with_masks)
    for path in sorted(predicted.folder.iterdir()):
        if path.name.startswith(".") or path.is_dir() != wants_folders or not (wants_folders or image_ending(path)):
            continue
        stem = path.name if wants_folders else image_stem(path)
        case_id = stem if stem in known else by_image.get(stem)
        if case_id in case_ids:
            found.setdefault(str(case_id), []).append(path)
        elif case_id is None:
            message, fix = f"is not a prediction of a test case of {predicted.dataset.name}", "move it elsewhere"
            strays.append(_issue(path, code="submission.stray_file", message=message, fix=fix))
    return found, strays


def _one_prediction(paths: Sequence[Path], image: SubmittedImage, folder: Path) -> tuple[Path | None, list[Issue]]:
    if len(paths) <= 1:
        return (paths[0] if paths else None), []
    message = f"test case {image.case_id} has {len(paths)} predictions: {', '.join(path.name for path in paths)}"
    fault = _issue(
        folder, code="submission.duplicate_prediction", message=message, fix="keep one of them", case=image.case_id
    )
    return None, [fault]


# --- files ---


def _write_cases(cases: Sequence[_Case], challenge: Challenge, folder: Path, reporter: Reporter) -> list[Issue]:
    """Write the files of all cases below ``folder``; faults of predictions, by their own names."""
    issues: list[Issue] = []
    with reporter.track("Writing files", len(cases)) as tracker:
        for case in cases:
            try:
                _write_case(case, challenge, folder)
            except AutosegError as error:
                case_id = next(iter(case.files.values())).case_id
                issues += [issue.model_copy(update={"case": case_id}) for issue in error.issues]
            tracker.advance()
    return issues


def _write_case(case: _Case, challenge: Challenge, folder: Path) -> None:
    part = challenge.parts[next(iter(case.files.values())).part]
    for file in case.files.values():
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
    only = case.files.get("")
    if (
        only is not None
        and not case.names
        and _is_as_wanted(case.prediction, only.name, case.mapping, challenge.package)
    ):
        shutil.copyfile(case.prediction, folder / only.name)
        return
    if case.prediction.is_dir() and only is None:
        masks = _mask_files(case.prediction, case.files)
        for key, file in case.files.items():
            shutil.copyfile(masks[key], folder / file.name)
        return
    found = _joined(case) if case.prediction.is_dir() else read_label_map(case.prediction)
    is_nifti = image_ending(case.prediction) in (".nii", ".nii.gz")
    for key, array in _arrays(case, found.array, part).items():
        geometry = found.geometry
        if array.shape != geometry.shape:
            geometry = geometry.model_copy(update={"shape": array.shape, "dimensions": 2})
        write_label_map(
            folder / case.files[key].name,
            array,
            geometry,
            source=case.prediction if is_nifti else None,
            compressed=challenge.package.compressed is not False,
        )
        if case.names:
            from autoseg.imaging.readers.nifti import store_label_names

            store_label_names(folder / case.files[key].name, case.names)


def _arrays(case: _Case, array: NDArray[np.integer[Any]], part: Part) -> dict[str, NDArray[np.integer[Any]]]:
    """What each file of a case holds, by its key, from the label map of the prediction."""
    if "{class}" in part.file:
        return {key: np.isin(array, case.classes[key]).astype(np.uint8) for key in case.files}
    written = with_values(array, case.mapping)
    if "" in case.files:
        return {"": written}
    image = next(iter(case.files.values())).image
    by_file = slices_by_name(image) if part.slices_by_file and image is not None else None
    order = range(len(written)) if by_file is None else by_file
    return {str(number): written[z : z + 1] for number, z in enumerate(order) if str(number) in case.files}


def _is_as_wanted(prediction: Path, name: str, mapping: Mapping[int, int], package: Package) -> bool:
    """Whether a prediction can be submitted as it is stored."""
    ending = image_ending(name)
    is_metaimage = ending == ".mhd" or (ending == ".mha" and package.compressed is not None)
    if mapping or is_metaimage or prediction.is_dir() or image_ending(prediction) != ending:
        return False
    return read_header(prediction).pixel_type in (package.accepts or (package.dtype,))


def _mask_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The mask of each class. Raises `AutosegError` where one is missing, there twice, or of no class."""
    found: dict[str, list[Path]] = {mask_stem(name): [] for name in names}
    strays: list[Path] = []
    for path in sorted(folder.iterdir()):
        if image_ending(path) and not path.name.startswith("."):
            found.get(image_stem(path), strays).append(path)
    fix = "predict the case again into an empty folder"
    issues = [
        _issue(path, code="submission.stray_file", message="is not a mask of a class", fix="move it elsewhere")
        for path in strays
    ]
    for stem, paths in found.items():
        if not paths:
            issues.append(_issue(folder, code="submission.missing_mask", message=f"has no mask of {stem}", fix=fix))
        elif len(paths) > 1:
            message = f"has {len(paths)} masks of {stem}"
            issues.append(_issue(folder, code="submission.duplicate_mask", message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return {name: found[mask_stem(name)][0] for name in names}


def _joined(case: _Case) -> LabelMap:
    """One label map of the masks of a case; where they overlap the later class wins."""
    joined: NDArray[np.integer[Any]] | None = None
    geometry: Geometry | None = None
    masks = _mask_files(case.prediction, case.classes)
    for name, values in case.classes.items():
        mask = read_label_map(masks[name])
        if joined is None or geometry is None:
            joined, geometry = np.zeros(mask.array.shape, np.int32), mask.geometry
        elif mask.array.shape != joined.shape:
            message, fix = "masks of different sizes", "predict the case again into an empty folder"
            raise AutosegError(_issue(case.prediction, code="submission.grid_mismatch", message=message, fix=fix))
        joined[mask.array != 0] = values[0]
    assert joined is not None
    assert geometry is not None
    return LabelMap(array=joined, geometry=geometry)


def _place(inside: Path, out: Path, challenge: Challenge) -> None:
    """Put the checked files at ``out``, as a folder or in an archive."""
    if challenge.package.archive == "zip":
        _write_zip(inside, out)
        return
    for path in inside.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
    if out.exists():
        out.rmdir()
    inside.rename(out)
    sync_folder(out.absolute().parent)


def _write_zip(inside: Path, out: Path) -> None:
    with atomic_write(out) as file, zipfile.ZipFile(file, "w") as archive:
        for path in sorted(each for each in inside.rglob("*") if each.is_file()):
            member = zip_member(path.relative_to(inside).as_posix())
            # compressed formats gain nothing from a second compression
            member.compress_type = zipfile.ZIP_STORED if path.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            with open(path, "rb") as source, archive.open(member, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


# --- what is said ---


def line_of(checked: Checked, rules: Rules) -> str:
    """``219 of 219 cases, names BraTS-GLI-NNNNN-NNN.nii.gz, values 0 1 2 3, grids checked; upload at ...``."""
    parts = rules.challenge.parts
    number = sum(checked.cases.values())
    totals = [part.count or checked.cases.get(name, 0) for name, part in parts.items()]
    first = next(iter(checked.cases), next(iter(parts)))
    names = parts[first].shown_name(rules.given)
    if len(parts) > 1:
        names += f" and those of {count_noun(len(checked.cases) - 1, 'other part')}"
    words = [f"{number} of {sum(totals)} cases", f"names {names}", f"values {_listed(checked.values)}"]
    words.append("grids checked" if checked.with_grids else "grids not compared with images")
    upload = f"; upload at {rules.challenge.upload}" if rules.challenge.upload else ""
    return ", ".join(words) + upload


def _listed(values: Sequence[int]) -> str:
    """Values one by one, or, if there are many, runs of them: ``0-18 21-28``."""
    if len(values) <= MOST_LISTED:
        return " ".join(map(str, values))
    starts = [values[0], *(later for value, later in pairwise(values) if later != value + 1)]
    ends = [*(value for value, later in pairwise(values) if later != value + 1), values[-1]]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def notes_of(challenge: Challenge) -> tuple[Issue, ...]:
    """What a participant should know before uploading: facts that were not confirmed, documents, rules in words."""
    where, issues = challenge.title, []
    for what in challenge.unconfirmed("package", "parts", "upload"):
        message, fix = f"not confirmed: {what}", f"check it at {challenge.page or 'the source'}"
        issues.append(Issue(code="challenge.unconfirmed", severity="warning", where=where, message=message, fix=fix))
    for document in challenge.documents:
        message, fix = f"{document} must be handed in, too", "hand it in yourself"
        issues.append(Issue(code="challenge.document", severity="note", where=where, message=message, fix=fix))
    for note in challenge.notes:
        issues.append(Issue(code="challenge.note", severity="note", where=where, message=note.rstrip(".")))
    return tuple(issues)
