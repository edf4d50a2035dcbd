"""Which cases belong to a challenge, what their files are called, and which values they get. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.cases import listed_volumes
from autoseg.delivery.package_check import ExpectedFile
from autoseg.evaluation.folders import mask_stem
from autoseg.imaging.readers import image_ending, image_stem, read_header, split_frame
from autoseg.issues import AutosegError, Issue
from autoseg.wording import bare_name, shorten
from datasets_spec import Challenge, Layout, Part, load_known
from datasets_spec.challenge import fields_of, fill


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
    """Values that a file may hold: those of the challenge, else those that the dataset's become."""
    if "{class}" in part.file:
        return (0, dataset.mask_value if dataset.classes_with_masks else 1)
    if part.values is not None:
        return part.values
    if dataset.classes_with_masks:
        return (0, *sorted(values[0] for values in class_values(dataset, part).values()))
    mapping = value_map(dataset, part)
    values = [value for i, value in enumerate(dataset.file_values) if i != dataset.labels.ignore]
    return tuple(mapping.get(value, value) for value in values)


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
    meaning, classes = _meanings(part), _classes_by_value(dataset)
    by_name = names_fit(dataset, part)
    remap = {} if by_name and part.classes else part.remap
    written = {}
    for internal, each in enumerate(classes):
        value = meaning[each] if by_name else dataset.file_values[internal]
        written[dataset.file_values[internal]] = remap.get(value, value)
    written |= {value: new for value, new in remap.items() if value not in written}
    return {value: new for value, new in written.items() if new != value}


def _meanings(part: Part) -> dict[frozenset[str], int]:
    """Classes that a value of the challenge belongs to, by their plain names -> the value."""
    target = {bare_name(name): values for name, values in named_values(part).items()}
    return {
        frozenset(name for name, values in target.items() if value in values): value
        for value in (0, *sorted({value for values in target.values() for value in values}, reverse=True))
    }


def _classes_by_value(dataset: DatasetDescription) -> list[frozenset[str]]:
    """Plain names of the classes that each internal value of the dataset belongs to, without the ignore label."""
    own = {bare_name(label.name): label.values for label in dataset.labels.classes}
    return [
        frozenset(name for name, values in own.items() if internal in values)
        for internal in range(len(dataset.file_values))
        if internal != dataset.labels.ignore
    ]


def names_fit(dataset: DatasetDescription, part: Part) -> bool:
    """Whether all classes of the dataset have names of the challenge, and belong together as there."""
    meaning = _meanings(part)
    target = {bare_name(name) for name in named_values(part)}
    own = {bare_name(label.name) for label in dataset.labels.classes}
    return own <= target and all(each in meaning for each in _classes_by_value(dataset))


def value_issues(challenge: Challenge, part: Part, dataset: DatasetDescription) -> list[Issue]:
    """Why predictions of a model of ``dataset`` cannot have the challenge's values (errors), or may not mean the same (a warning).

    Known before anything is predicted: values that the challenge does not have, and classes of another public dataset.
    """
    own = ", ".join(label.name for label in dataset.labels.classes)
    where, fix = dataset.root, "give a run of the challenge's dataset, or another challenge (autoseg submit --list)"
    if not dataset.classes_with_masks and "{class}" not in part.file and part.values is not None:
        mapping = value_map(dataset, part)
        values = [value for i, value in enumerate(dataset.file_values) if i != dataset.labels.ignore]
        if foreign := sorted({mapping.get(value, value) for value in values} - {*part.values}):
            message = f"its classes ({own}) give the values {shorten([*map(str, foreign)])}, but {challenge.title} has "
            message += ", ".join(map(str, part.values))
            return [_issue(where, code="submission.other_values", message=message, fix=fix)]
    theirs = named_values(part)
    if not theirs or known_name(dataset) in part.datasets or names_fit(dataset, part):
        return []
    message = f"its classes ({own}) are not those of {challenge.title} ({', '.join(theirs)})"
    if dataset.known is not None:
        return [_issue(where, code="submission.other_classes", message=f"{message}: it is {dataset.known}", fix=fix)]
    fix = "make sure that equal values mean the same, or name the classes as the challenge does"
    message += ", so its values are written as they are"
    return [Issue(code="submission.class_names", severity="warning", where=where, message=message, fix=fix)]


def class_values(dataset: DatasetDescription, part: Part) -> dict[str, tuple[int, ...]]:
    """The values of each class in a label map of the dataset; where it has masks, the one that the challenge's label map gets."""
    classes = dataset.labels.classes
    if not dataset.classes_with_masks:
        return {each.name: tuple(dataset.file_values[value] for value in each.values) for each in classes}
    target = {bare_name(name): values[0] for name, values in named_values(part).items()}
    return {each.name: (target.get(bare_name(each.name), number),) for number, each in enumerate(classes, 1)}


def written_names(dataset: DatasetDescription, part: Part) -> dict[int, str]:
    """Value in a submitted file -> name of its class, for the classes that the dataset has."""
    own = {bare_name(label.name): label.name for label in dataset.labels.classes}
    named = {values[0]: name for name, values in named_values(part).items() if bare_name(name) in own}
    own_values = {values[0]: name for name, values in class_values(dataset, part).items()}
    return named or own_values


def _issue(where: Path | str, *, code: str, message: str, fix: str, case: str | None = None) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix, case=case)
