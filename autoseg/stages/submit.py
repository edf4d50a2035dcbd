"""Packs a run's predictions for a challenge, predicting what is missing, and checks packages that were made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.declarations import declared_by_layout
from autoseg.data.discovery.inputs import InputCase, Inputs
from autoseg.delivery.package_check import ExpectedFile, Rules, check_package, opened_package
from autoseg.delivery.submission import Submission, line_of, notes_of, pack_submission, require_given
from autoseg.delivery.submitted_cases import (
    Predicted,
    SubmittedImage,
    chosen_images,
    expected_files,
    part_of,
    value_issues,
)
from autoseg.imaging.readers import image_ending, image_stem
from autoseg.inference.input_cases import find_input_cases
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from autoseg.tracking.progress import Reporter
from datasets_spec import Challenge, load_known
from planners import LabelClass, Labels

Predict = Callable[[Path, Inputs, Path], object]
"""Predicts images by the model of a run folder into a folder."""


def submit(
    runs: Sequence[Path],
    challenge: Challenge,
    *,
    images: Path | None = None,
    predictions: Path | None = None,
    out: Path | None = None,
    given: Mapping[str, str],
    is_incomplete: bool,
    predict: Predict,
    reporter: Reporter,
) -> Submission:
    """Pack the test predictions of ``runs``, each a part of the challenge, or those of ``images``; what is missing is predicted.

    ``predictions``: a folder of label maps that were made elsewhere, with the values of the run's dataset.
    """
    if len(runs) > 1 and (images is not None or predictions is not None):
        message, fix = (
            "belong to one run, but several are given",
            "pack the parts from runs whose datasets have the test images",
        )
        raise AutosegError(
            Issue(code="settings.contradiction", where="--images, --predictions", message=message, fix=fix)
        )
    require_given(challenge, given)
    found = [
        _predicted(RunFolder(run), challenge, images, predictions, predict=predict, reporter=reporter) for run in runs
    ]
    return pack_submission(found, challenge, out=out, given=given, is_incomplete=is_incomplete, reporter=reporter)


def _predicted(
    run: RunFolder,
    challenge: Challenge,
    images: Path | None,
    predictions: Path | None,
    *,
    predict: Predict,
    reporter: Reporter,
) -> Predicted:
    dataset = load_document(DatasetDescription, run.dataset, fix="pass a run folder, the --out of autoseg run")
    cases = _test_cases(dataset, images, reporter)
    if not cases and predictions is None:
        fix = "pass the folder of the test images (--images), or of label maps of them (--predictions)"
        message = "has no test images"
        raise AutosegError(Issue(code="submission.no_test_images", where=dataset.root, message=message, fix=fix))
    tests = tuple(SubmittedImage(case_id=case.case_id, image=case.images[0]) for case in cases)
    if not tests and predictions is not None and predictions.is_dir():
        ids = sorted({_stem(path) for path in predictions.iterdir() if _is_prediction(path, dataset)})
        tests = tuple(SubmittedImage(case_id=case_id) for case_id in ids)
    own = run.predictions if images is None else run.submissions / challenge.name
    found = Predicted(dataset=dataset, images=tests, folder=predictions or own, are_chosen=images is not None)
    if predictions is None:
        part = challenge.parts[part_of(challenge, found)]
        if errors := [each for each in value_issues(challenge, part, dataset) if each.severity == "error"]:
            raise AutosegError(*errors, headline=f"{run.root} cannot be submitted to {challenge.title}:")
        wanted = {each.case_id for each in chosen_images(part, found)}
        done = {_stem(path) for path in own.iterdir() if _is_prediction(path, dataset)} if own.is_dir() else set()
        if images is not None:  # those that are up to date are passed over
            predict(run.root, Inputs(cases=tuple(case for case in cases if case.case_id in wanted)), own)
        elif wanted - done:
            predict(run.root, Inputs(cases=cases), own)
    return found


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else image_stem(path)


def _is_prediction(path: Path, dataset: DatasetDescription) -> bool:
    is_kind = path.is_dir() if dataset.classes_with_masks else bool(image_ending(path)) and path.is_file()
    return is_kind and not path.name.startswith(".")


def _test_cases(dataset: DatasetDescription, images: Path | None, reporter: Reporter) -> tuple[InputCase, ...]:
    """The given images, or the test cases of the dataset. Of a whole folder of the public dataset these are its test images.

    Raises `AutosegError` for images that are no case.
    """
    if images is not None and dataset.known is not None and images.is_dir():
        with suppress(AutosegError):  # a folder of test images has no labels
            whole = discover_dataset(images)
            dataset, images = (whole, None) if whole.known == dataset.known and whole.test else (dataset, images)
    if images is None:
        return tuple(
            InputCase(case_id=case.case_id, images=case.image_paths, modality=case.modality) for case in dataset.test
        )
    inputs = find_input_cases(images, dataset, reporter=reporter)
    if inputs.issues:
        raise AutosegError(*inputs.issues)
    return inputs.cases


def check_submission(
    file: Path,
    challenge: Challenge,
    *,
    images: Path | None = None,
    given: Mapping[str, str],
    is_incomplete: bool,
    reporter: Reporter,
) -> Submission:
    """Check a package that was made elsewhere, by the rules of ``challenge``; with the test ``images`` also names and grids.

    Raises `AutosegError` with every fault.
    """
    require_given(challenge, given)
    fields = {**given, "dataset": file.stem}
    expected = {} if images is None else _expected(challenge, images, fields, reporter)
    rules = Rules(challenge=challenge, given=fields, expected=expected, is_incomplete=is_incomplete)
    with opened_package(file) as folder:
        checked = check_package(folder, rules, reporter, where=file.name)
    return Submission(path=file, line=line_of(checked, rules), issues=(*checked.issues, *notes_of(challenge)))


def _expected(
    challenge: Challenge, images: Path, given: Mapping[str, str], reporter: Reporter
) -> dict[str, list[ExpectedFile]]:
    """The files of the test images in a folder, by part."""
    expected = {}
    for name, part in challenge.parts.items():
        dataset = described_known(part.datasets[0] if part.datasets else None, images)
        cases = _test_cases(dataset, images, reporter)
        tests = tuple(SubmittedImage(case_id=case.case_id, image=case.images[0]) for case in cases)
        chosen = chosen_images(part, Predicted(dataset=dataset, images=tests, folder=images))
        if chosen:
            files = [expected_files(name, part, dataset, image, given) for image in chosen]
            listed = [file for each in files for file in each.values()]
            # only a public dataset or the record says which values there are
            knows_values = part.datasets or part.values is not None or "{class}" in part.file
            expected[name] = listed if knows_values else [replace(file, allowed=None) for file in listed]
    if not expected:
        forms = " or ".join(part.case for part in list(challenge.parts.values())[:3])
        message, fix = f"holds no test image of {challenge.title} ({forms})", "pass the folder of its test images"
        raise AutosegError(Issue(code="submission.no_test_images", where=str(images), message=message, fix=fix))
    return expected


def described_known(name: str | None, root: Path) -> DatasetDescription:
    """A known dataset without cases, for finding its images in a folder; of an unknown one every image is a case."""
    layout = next((each for each in load_known() if each.name == name), None)
    declared = None if layout is None else declared_by_layout(layout)
    values = None if declared is None else declared.label_values
    labels = Labels(classes=(LabelClass(name="structure", values=(1,)),)) if values is None else values.labels
    if layout is not None and values is None and layout.labels:
        labels = Labels(classes=tuple(LabelClass(name=each, values=(i,)) for i, each in enumerate(layout.labels, 1)))
    return DatasetDescription(
        name=root.name,
        root=str(root),
        layout="" if layout is None else layout.name,
        known=None if layout is None else layout.title,
        channels=("image",) if declared is None or declared.channels is None else declared.channels,
        labels=labels,
        file_values=tuple(range(len(labels.values) + 1)) if values is None else values.file_values,
        file_ending=".nii.gz",
        training=(),
    )
