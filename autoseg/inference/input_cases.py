"""The cases among the files, folders and trees that a user wants to be predicted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.inputs import InputCase, Inputs, NamedImage, find_inputs
from autoseg.data.discovery.others import FOREIGN
from autoseg.imaging.readers import (
    image_endings,
    is_dicom_series,
    split_frame,
)
from autoseg.inference.predictions import predictions_among
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import run_of
from autoseg.tracking.progress import Reporter, SilentReporter


def find_input_cases(
    sources: Path | Sequence[Path],
    dataset: DatasetDescription,
    *,
    layout: str | None = None,
    spec: Path | None = None,
    part: tuple[int, int] | None = None,
    reporter: Reporter | None = None,
) -> Inputs:
    """The images of files, folders of files, DICOM series folders, or trees of all of these, for a model of ``dataset``.

    See `find_inputs`. Left out, too: predictions of an earlier call, and files of a run whose folder is inside; ``part``
    (2, 8) takes every eighth case, beginning with the second. What is left out is said to ``reporter``. Raises
    `AutosegError` where a source does not exist, and where there is nothing to predict.
    """
    sources = [sources] if isinstance(sources, Path) else sources
    found = list(_inputs_of(sources, dataset, layout=layout, spec=spec))
    # the same image may be named twice, alone and by its folder
    cases = list(
        {(case.case_id, *map(Path.resolve, case.images)): case for inputs in found for case in inputs.cases}.values()
    )
    are_several = len({split_frame(case.images[0])[0] for case in cases}) > 1
    cases = [replace(case, is_beside_others=are_several) for case in cases]
    issues = [issue for inputs in found for issue in inputs.issues]
    reporter = reporter or SilentReporter()
    for note in (issue for issue in issues if issue.severity != "error"):
        reporter.warn(str(note)) if note.severity == "warning" else reporter.say(f"Note: {note}")
    errors = [*(issue for issue in issues if issue.severity == "error"), *_same_names(cases)]
    bad = {error.case for error in errors}
    cases = [case for case in cases if case.case_id not in bad]
    if part is not None:
        named = {case.case_id for case in cases} | {name for name in bad if name}
        mine = frozenset(sorted(named)[part[0] - 1 :: part[1]])
        cases = [case for case in cases if case.case_id in mine]
        errors = [error for error in errors if error.case is None or error.case in mine]
    elif not cases and not errors:
        message, fix = (
            "no images found",
            f"pass files that end in {', '.join(sorted(image_endings()))}, or DICOM series",
        )
        where = ", ".join(map(str, sources))
        none = Issue(code="predict.no_images", where=where, message=message, fix=fix)
        raise AutosegError(none, *(issue for issue in issues if issue.code == FOREIGN))
    return Inputs(cases=tuple(sorted(cases, key=lambda case: case.case_id)), issues=tuple(errors))


def _inputs_of(
    sources: Sequence[Path], dataset: DatasetDescription, *, layout: str | None, spec: Path | None
) -> Iterator[Inputs]:
    """What is in each folder, and among the files of one folder, which may be channels of one case."""
    files = defaultdict[Path, list[Path]](list)
    for source in sources:
        if not split_frame(source)[0].exists() and not is_dicom_series(source):
            fix = "pass an image file, a folder of images or a DICOM series folder"
            raise AutosegError(Issue(code="predict.no_input", where=str(source), message="does not exist", fix=fix))
        if source.is_file():
            files[source.parent].append(source)
        else:
            leave_out = partial(_made_by_autoseg, source)
            yield find_inputs(source, dataset, layout=layout, spec=spec, leave_out=leave_out)
    for folder, several in files.items():
        place, only = (several[0], []) if len(several) == 1 else (folder, list(dict.fromkeys(several)))
        yield find_inputs(place, dataset, layout=layout, spec=spec, only=only)


def _same_names(cases: Sequence[InputCase]) -> Iterator[Issue]:
    """One error for each case id that several ``cases`` have."""
    images: dict[str, list[Path]] = {}
    for case in cases:
        images.setdefault(case.case_id, []).append(case.images[0])
    for case_id, (first, *others) in images.items():
        if others:
            message, fix = f"same name as {first}", "rename one of them"
            yield Issue(code="predict.same_name", where=str(others[0]), message=message, fix=fix, case=case_id)


def _made_by_autoseg(source: Path, images: Sequence[NamedImage]) -> dict[str, list[Path]]:
    """What runs and earlier predictions wrote. A folder of a run that is itself the ``source`` is meant to be predicted."""
    paths = [path for _, path in images]
    runs = {folder: run_of(folder.resolve()) for folder in {path.parent for path in paths}}
    whole = source.resolve()
    of_runs = [path for path in paths if (run := runs[path.parent]) and run.root.is_relative_to(whole)]
    return {"file that a run wrote": of_runs, "prediction": sorted(predictions_among(paths) - set(of_runs))}
