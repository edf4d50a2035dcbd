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
from autoseg.data.discovery.cases import listed_volumes
from autoseg.delivery.package_check import Checked, ExpectedFile, Rules, check_package
from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.readers import image_ending, image_stem, read_header, read_label_map, split_frame, write_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, sync_folder, temporary_folder, write_error
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun, shorten
from datasets_spec import Challenge, Layout, Package, Part, load_challenges, load_known
from datasets_spec.challenge import fields_of, fill

ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip file can hold: the same predictions give the same archive."""
COMPRESSED = (".gz", ".mha", ".zraw", ".png")
"""Endings of files that are compressed already."""
MOST_LISTED = 12
"""Values that are listed one by one in the last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedImage:
    """One case to submit."""

    case_id: str
    image: Path | None = None
    """Its first image, for its name and grid; none: only its prediction is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """Test images of one dataset and their predictions."""

    dataset: DatasetDescription
    """That of the model: its labels are those of the predictions."""
    images: tuple[SubmittedImage, ...]
    folder: Path
    """Label maps named after cases or test images, or folders of masks."""
    are_chosen: bool = False
    """Whether the images were given for this submission, so that all of them belong to it."""


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
    notes = (*checked.issues, *notes_of(challenge), *_better_names(challenge, predicted[0].dataset))
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


# --- parts and cases ---


def known_name(dataset: DatasetDescription) -> str | None:
    """Name of the known public dataset that this is."""
    return next((each.name for each in load_known() if each.title == dataset.known), None)


def part_of(challenge: Challenge, predicted: Predicted) -> str:
    """The part of the challenge that these are the cases of: by the dataset, else by the form of the case ids."""
    name = known_name(predicted.dataset)
    found = [key for key, part in challenge.parts.items() if name is not None and name in part.datasets]
    found = found or [
        key
        for key, part in challenge.parts.items()
        if any(part.fields_of_case(each.case_id) is not None for each in predicted.images)
    ]
    if len(found) == 1:
        return found[0]
    title = predicted.dataset.known or predicted.dataset.name
    if not predicted.images:
        message, fix = "has no test images", "pass the folder of the test images (--images)"
        raise AutosegError(_issue(predicted.dataset.root, code="submission.no_test_images", message=message, fix=fix))
    some = shorten([each.case_id for each in predicted.images][:3])
    forms = " or ".join(part.case for part in list(challenge.parts.values())[:3])
    message = f"has no case of {challenge.title}: cases of {title} are called {some}, those of the challenge {forms}"
    if found:
        message = f"may be {' or '.join(found)} of {challenge.title}"
    fix = "give the run of the challenge's dataset, its test images (--images), or another challenge (autoseg submit --list)"
    raise AutosegError(_issue(predicted.folder, code="submission.other_dataset", message=message, fix=fix))


def chosen_images(part: Part, predicted: Predicted) -> tuple[SubmittedImage, ...]:
    """The test images that are submitted: those of the part's form, without the ones to leave out."""
    fitting = [each for each in predicted.images if part.fields_of_case(each.case_id) is not None]
    named = [
        each for each in fitting if each.image is not None and {*part.images_in} & {p.name for p in each.image.parents}
    ]
    kept = named if named and not predicted.are_chosen else fitting
    return tuple(each for each in kept if each.case_id not in part.leave_out)


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
    mapping, classes = value_map(predicted.dataset, part), class_values(predicted.dataset, part)
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
            planned.cases.append(_Case(prediction=place, files=files, mapping=mapping, classes=classes))


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


def expected_files(
    name: str,
    part: Part,
    dataset: DatasetDescription,
    image: SubmittedImage,
    given: Mapping[str, str],
    prediction: Path | None = None,
) -> dict[str, ExpectedFile]:
    """The files of one case, by class or slice. Raises `AutosegError` where a name cannot be made, or the image not be read."""
    fields = {**given, **(part.fields_of_case(image.case_id) or {}), "image": _submitted_stem(image)}
    fields["ending"] = image_ending(prediction or Path()) or dataset.file_ending
    keys: list[tuple[str, dict[str, object]]] = [("", {})]
    named = fields_of(part.file)
    if "volume" in named:
        fields["volume"] = _volume_name(part, image, fields.get("frame", ""))
    if "class" in named:
        keys = [(each.name, {"class": mask_stem(each.name)}) for each in dataset.labels.classes]
    if "slice" in named:
        source = image.image or prediction
        count = 0 if source is None else read_header(source).geometry.shape[0]
        keys = [(str(number), {"slice": number}) for number in range(count)]
    return {
        key: ExpectedFile(
            name=fill(part.file, fields | more),
            part=name,
            case_id=image.case_id,
            image=image.image,
            allowed=_allowed(part, dataset),
        )
        for key, more in keys
    }


def _allowed(part: Part, dataset: DatasetDescription) -> tuple[int, ...]:
    if "{class}" in part.file:
        return (0, dataset.mask_value if dataset.classes_with_masks else 1)
    values = [value for i, value in enumerate(dataset.file_values) if i != dataset.labels.ignore]
    return part.values if part.values is not None else tuple(values)


def _submitted_stem(image: SubmittedImage) -> str:
    """The name of the test image where it is one file that is named after the case, else that of the case."""
    is_named = image.image is not None and image_ending(image.image) and image.case_id in image_stem(image.image)
    return image_stem(image.image) if image.image is not None and is_named else image.case_id


def _volume_name(part: Part, image: SubmittedImage, frame: str) -> str:
    """The name of a volume, such as ED, by the text file beside its image."""
    layouts = [each for each in load_known() if each.name in part.datasets and each.known is not None]
    named = next((each.known.volumes for each in layouts if each.known is not None and each.known.volumes), None)
    if named is None or image.image is None:
        message, fix = f"the name of volume {frame} is not known", "pass the test images (--images)"
        raise AutosegError(_issue(image.case_id, code="submission.no_volume_name", message=message, fix=fix))
    path = split_frame(image.image)[0].parent / named.file
    numbers = dict(zip(listed_volumes(path, named.keys), named.keys, strict=False))
    if not frame.isdecimal() or int(frame) not in numbers:
        message = f"{path} does not say what volume {frame} is ({' or '.join(named.keys)})"
        fix = f"put the challenge's {named.file} beside the image"
        raise AutosegError(
            _issue(image.case_id, code="submission.no_volume_name", message=message, fix=fix, case=image.case_id)
        )
    return numbers[int(frame)]


# --- values ---


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())


def named_values(part: Part) -> dict[str, tuple[int, ...]]:
    """Classes of the challenge, or of the known dataset that it uses, and their values in its files."""
    if part.classes:
        return {name: (value,) for name, value in part.classes.items()}
    layout: Layout | None = next((each for each in load_known() if each.name in part.datasets and each.labels), None)
    labels = {} if layout is None or layout.labels is None else layout.labels
    return {name: value if isinstance(value, tuple) else (value,) for name, value in labels.items()}


def value_map(dataset: DatasetDescription, part: Part) -> dict[int, int]:
    """Value in a prediction -> value to write, for all values that differ.

    Where all classes of the dataset have names of the challenge, a value becomes the one that belongs to the same classes;
    regions tell values apart in this way, too. What the part's ``remap`` says of the value that this gives comes after.
    """
    target = {_plain(name): values for name, values in named_values(part).items()}
    own = {_plain(label.name): label.values for label in dataset.labels.classes}
    meaning = {
        frozenset(name for name, values in target.items() if value in values): value
        for value in (0, *sorted({value for values in target.values() for value in values}, reverse=True))
    }
    classes = [
        frozenset(name for name, values in own.items() if internal in values)
        for internal in range(len(dataset.file_values))
        if internal != dataset.labels.ignore
    ]
    by_name = own.keys() <= target.keys() and all(each in meaning for each in classes)
    remap = {} if by_name and part.classes else {int(value): new for value, new in part.remap.items()}
    written = {}
    for internal, each in enumerate(classes):
        value = meaning[each] if by_name else dataset.file_values[internal]
        written[dataset.file_values[internal]] = remap.get(value, value)
    written |= {value: new for value, new in remap.items() if value not in written}
    return {value: new for value, new in written.items() if new != value}


def class_values(dataset: DatasetDescription, part: Part) -> dict[str, tuple[int, ...]]:
    """The values of each class in a label map of the dataset; where it has masks, the one that the challenge's label map gets."""
    classes = dataset.labels.classes
    if not dataset.classes_with_masks:
        return {each.name: tuple(dataset.file_values[value] for value in each.values) for each in classes}
    target = {_plain(name): values[0] for name, values in named_values(part).items()}
    return {each.name: (target.get(_plain(each.name), number),) for number, each in enumerate(classes, 1)}


def _mapped(array: NDArray[np.integer[Any]], mapping: Mapping[int, int]) -> NDArray[np.integer[Any]]:
    if not mapping:
        return array
    values, places = np.unique(array, return_inverse=True)
    new = np.array([mapping.get(int(value), int(value)) for value in values], np.int64)
    return new[places].reshape(array.shape)


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
    if only is not None and _is_as_wanted(case.prediction, only.name, case.mapping, challenge.package):
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


def _arrays(case: _Case, array: NDArray[np.integer[Any]], part: Part) -> dict[str, NDArray[np.integer[Any]]]:
    """What each file of a case holds, by its key, from the label map of the prediction."""
    if "{class}" in part.file:
        return {key: np.isin(array, case.classes[key]).astype(np.uint8) for key in case.files}
    mapped = _mapped(array, case.mapping)
    if "" in case.files:
        return {"": mapped}
    order = reversed(range(len(mapped))) if part.reverse_slices else range(len(mapped))
    return {str(number): mapped[z : z + 1] for number, z in enumerate(order) if str(number) in case.files}


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
            member = zipfile.ZipInfo(path.relative_to(inside).as_posix(), ZIP_DATE)
            # compressed formats gain nothing from a second compression
            member.compress_type = zipfile.ZIP_STORED if path.suffix in COMPRESSED else zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
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
        message, fix = f"{what.rstrip(',')} was not confirmed", f"check it at {challenge.page or 'the source'}"
        issues.append(Issue(code="challenge.unconfirmed", severity="warning", where=where, message=message, fix=fix))
    for document in challenge.documents:
        message, fix = f"{document} goes with it", "hand it in yourself"
        issues.append(Issue(code="challenge.document", severity="note", where=where, message=message, fix=fix))
    for note in challenge.notes:
        issues.append(Issue(code="challenge.note", severity="note", where=where, message=note.rstrip(".")))
    return tuple(issues)


def list_challenges() -> str:
    """All challenges with what they limit and how sure their facts are, one a line."""
    lines = []
    for each in load_challenges():
        limits = each.limits
        words = []
        if limits.uploads is not None:
            days = "a day" if limits.days == 1 else f"in {limits.days} days"
            words.append(f"{limits.uploads} {days}")
        if limits.in_all is not None:
            words.append(f"{limits.in_all} in all")
        counts = [part.count for part in each.parts.values()]
        if all(count is not None for count in counts):
            words.append(count_noun(sum(filter(None, counts)), "case"))
        words += [f"not confirmed: {what.rstrip(',')}" for what in each.unconfirmed("package", "parts", "upload")]
        lines.append(f"{each.name:20} {each.title}" + (f" ({'; '.join(words)})" if words else ""))
    return "\n".join(lines)
