"""Predicts the cases of a user's file or folder, the validation cases of a fold, the first stage of a cascade."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.data.discovery.inputs import InputCase, Inputs
from autoseg.evaluation.expected_quality import from_numbers, in_words, worst_first
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import (
    image_ending,
    image_stem,
    prediction_ending,
    read_header,
    read_image,
    require_text,
    split_frame,
    write_label_map,
)
from autoseg.inference.dicom_output import ENDING, DicomOutput
from autoseg.inference.kept import write_full
from autoseg.inference.maps import FOLDER as MAPS
from autoseg.inference.maps import MapName, write_all_maps, write_names
from autoseg.inference.model import Model
from autoseg.inference.needs import GB
from autoseg.inference.pipelined import Done, one_by_one, side_by_side
from autoseg.inference.predictions import Job, Outcome, PredictionFolder, Scores
from autoseg.inference.predictor import (
    UNLIKE,
    Prediction,
    Predictor,
    PreparedImage,
    StoredImage,
    far_from_training,
    not_ct,
    unlike_issue,
    unlike_training,
    without_contrast,
)
from autoseg.inference.provenance import CONSTANT, FAR, NOT_CT, Watch
from autoseg.inference.sliding_window import STEP
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import require_folder_for_predictions
from autoseg.storage.atomic import remove_claims, remove_orphans, write_error
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Reporter, Tracker
from autoseg.wording import count_noun, format_duration, shorten
from planners import IntensityStatistics, Plan

WAIT_S = 0.5
"""Between two looks at cases that another process is predicting."""
TIMED_FROM = 100
"""Passes of windows through networks from which on one is timed, to tell how long they take."""
MOST_GRIDS = 200
"""Sizes of images whose needs are found, the largest first; smaller ones count as the last of them."""
MOST_LABELS = 32
LARGEST_LABEL = 255
SMALLEST_SHARE = 1e-3
"""Of voxels that are not 0: an image with fewer may be an empty frame with a hot pixel."""


def try_jobs(
    jobs: Sequence[Job],
    run: Callable[[Sequence[Job]], Iterator[Done]],
    tracker: Tracker,
    say: Callable[[str], None] | None = None,
) -> tuple[dict[str, Outcome], dict[str, AutosegError]]:
    """Outcomes and errors of all ``jobs`` by case id; ``run`` yields them one by one. A failing case stops no other.

    Cases that another process is predicting are waited for at the end, and done if it fails.
    """
    outcomes: dict[str, Outcome] = {}
    errors: dict[str, AutosegError] = {}
    left, waiting = list(jobs), False
    while left:
        claimed = []
        for job, outcome in run(left):
            if isinstance(outcome, AutosegError):
                errors[job.case_id] = outcome
            else:
                outcomes[job.case_id] = outcome
            if outcome == "being predicted":
                claimed.append(job)
            else:
                tracker.advance(note=job.case_id)
        if claimed and not waiting and say is not None:
            say(f"Waiting for {count_noun(len(claimed), 'image')} that another process is predicting")
        if claimed:
            time.sleep(WAIT_S)
        left, waiting = claimed, True
    return outcomes, errors


def complete_jobs(
    jobs: Sequence[Job], complete: PredictionFolder | Callable[[Job], Outcome | None], tracker: Tracker
) -> None:
    """`try_jobs`, and one `AutosegError` with the issues of all cases that failed; into a folder side by side."""
    if isinstance(complete, PredictionFolder):
        _, errors = try_jobs(jobs, partial(side_by_side, folder=complete), tracker)
    else:
        _, errors = try_jobs(jobs, partial(one_by_one, complete=complete), tracker)
    if errors:
        headline = f"{len(errors)} of {len(jobs)} cases could not be predicted"
        raise AutosegError(*_issues(errors), headline=headline)


def _issues(errors: dict[str, AutosegError]) -> list[Issue]:
    return [
        issue.model_copy(update={"case": case_id, "where": issue.where or case_id})
        for case_id, error in errors.items()
        for issue in error.issues
    ]


@contextmanager
def _naming(image: Path) -> Iterator[None]:
    """Let errors without a place name ``image``."""
    try:
        yield
    except AutosegError as error:
        found = [issue.model_copy(update={"where": issue.where or str(image)}) for issue in error.issues]
        raise AutosegError(*found) from error


def predict_cases(
    predictor: Predictor,
    inputs: Inputs,
    folder: Path,
    *,
    probabilities: bool,
    doubt: bool = False,
    reporter: Reporter,
    is_own: bool = False,
    skip_bad: bool = False,
    beginning: AbstractContextManager[None] | None = None,
    dicom: DicomOutput | None = None,
) -> list[Path]:
    """Write a label map for every case, ``CASE`` plus the ending of the dataset's label files; returns their paths.

    For datasets with a mask file per class, a folder ``CASE`` with such files is written. If the format cannot hold the
    grid of the image, the image's own format is used, or NIfTI (`prediction_ending`); with ``dicom`` a DICOM object per case. ``volumes.csv`` lists the volume of
    each class in each case.

    Cases that are up to date are skipped (`PredictionFolder`), and those that other processes predict meanwhile. With
    ``probabilities``, ``CASE.npz`` is written too, with an array ``probabilities``, float32 (K, Z, Y, X), and calibrated ones as NIfTI in the
    folder ``_maps``; with ``doubt`` maps of entropy and disagreement there, and what to expect of each case in the journal. A failing case does
    not stop the others; all issues, those of ``inputs`` included, are raised together at the end, or, with ``skip_bad``,
    said. Raises `AutosegError` at once when ``folder`` has predictions of another model or made in another way, or other
    files under the names of predictions, or a name that is not text. In a folder that ``is_own``, which only autoseg
    writes to, whatever does not fit is made again; ``beginning`` keeps others off while that is looked for.
    """
    require_text([folder])
    require_folder_for_predictions(folder)
    watch = Watch.of(predictor)
    maps = maps_asked_for(probabilities=probabilities, doubt=doubt)
    how: dict[str, Any] = {"scores": "full" if probabilities else None, "maps": maps, "is_own": is_own, "dicom": dicom}
    sink = _folder_of(predictor, folder, watch, reporter.say, **how)
    using = replace(predictor, folder=folder)
    with reporter.track("Predicting", len(inputs.cases)) as tracker:
        found = _image_jobs(
            using, inputs.cases, tracker, reporter.warn, watch, probabilities=probabilities, doubt=doubt
        )
        jobs, unread, headers = found
        remove_orphans(folder, below=False)
        remove_claims(folder)
        with beginning or nullcontext():
            sink.begin(jobs)
        tracker.advance(len(unread))
        outcomes, errors = _try_images(using, jobs, sink, headers, tracker, reporter.say)
    _say_notes(watch, reporter)
    written = [sink.shown(job) for job in jobs if job.case_id not in errors]
    if written:
        sink.write_volumes()
        _end_maps(predictor, sink, [job.case_id for job in jobs if job.case_id not in errors], reporter.say)
    issues = [*inputs.issues, *_issues(unread | errors)]
    _say_what_was_done(outcomes.values(), issues, reporter.say, skip_bad=skip_bad)
    bad = [issue for issue in issues if issue.severity == "error"]
    if bad and not skip_bad:
        number = len({case.case_id for case in inputs.cases} | {issue.case or issue.where for issue in issues})
        others = f"; the others are in {folder}" if written else ""
        failed = len({issue.case or issue.where for issue in bad})
        raise AutosegError(*bad, headline=f"{failed} of {number} images could not be predicted{others}")
    return written


def maps_asked_for(*, probabilities: bool, doubt: bool) -> tuple[MapName, ...]:
    """Maps to write beside label maps."""
    of_doubt: tuple[MapName, ...] = ("entropy", "disagreement") if doubt else ()
    return ("probabilities", *of_doubt) if probabilities else of_doubt


def _end_maps(predictor: Predictor, sink: PredictionFolder, cases: Sequence[str], say: Callable[[str], None]) -> None:
    """Write what maps are, if there are any, and say what is to be expected of each case, the one to look at first at the top."""
    if sink.maps:
        write_names(sink.folder / MAPS, predictor.model.dataset.labels, predictor.model.calibration)
    if "entropy" not in sink.maps:
        return
    entries = {case: sink.journal.of(case) for case in cases}
    expected = {case: from_numbers(of[-1].expected) for case, of in entries.items() if of and of[-1].expected}
    if not expected:
        say("No expected quality: the model has too few cross-validated cases, or is of an earlier version")
        return
    say("Expected Dice (90 % range), the cases to look at first:")
    for case in worst_first(expected):
        say(f"  {case}: {in_words(expected[case])}")


def _try_images(
    predictor: Predictor,
    jobs: Sequence[Job],
    sink: PredictionFolder,
    headers: Mapping[str, Geometry],
    tracker: Tracker,
    say: Callable[[str], None],
) -> tuple[dict[str, Outcome], dict[str, AutosegError]]:
    """`try_jobs` side by side, when it was said what they need."""
    new = {each.case_id: headers[each.case_id] for each in jobs if not sink.has(each)}
    ahead = tell_needs(predictor, new, say, probabilities=sink.scores is not None)
    return try_jobs(jobs, partial(side_by_side, folder=sink, reads_ahead=ahead), tracker, say)


def _folder_of(
    predictor: Predictor,
    folder: Path,
    watch: Watch,
    say: Callable[[str], None],
    *,
    scores: Scores | None,
    maps: tuple[MapName, ...],
    is_own: bool,
    dicom: DicomOutput | None,
) -> PredictionFolder:
    others = [*([] if dicom is None else [dicom.kind]), *([] if predictor.step == STEP else [predictor.step])]
    return PredictionFolder(
        folder=folder,
        dataset=predictor.model.dataset,
        made_from=key_of(predictor.model.key, predictor.mirroring, *others),
        say=say,
        scores=scores,
        maps=maps,
        calibration=predictor.model.calibration,
        with_masks=True,
        is_own=is_own,
        dicom=dicom,
        description=watch.maker.short,
        provenance=watch.provenance,
    )


def _image_jobs(
    predictor: Predictor,
    cases: Sequence[InputCase],
    tracker: Tracker,
    warn: Callable[[str], None],
    watch: Watch,
    *,
    probabilities: bool,
    doubt: bool,
) -> tuple[list[Job], dict[str, AutosegError], dict[str, Geometry]]:
    """Jobs, the errors of cases whose header cannot be read, and what the others' say; warns of what is unlike the training cases."""
    jobs: list[Job] = []
    errors: dict[str, AutosegError] = {}
    geometries: dict[str, Geometry] = {}
    for case in cases:
        image = case.images[0]
        try:
            geometry = geometries[case.case_id] = _geometry_of(case)
            ending = prediction_ending(image, geometry, predictor.model.dataset.file_ending)
        except AutosegError as error:
            errors[case.case_id] = error
            continue
        prepare = partial(_prepare_case, predictor, case, warn=warn, watch=watch, may_be_labels=case.is_beside_others)
        predict = partial(_predict_case, predictor, case, probabilities=probabilities, doubt=doubt, tracker=tracker)
        read, compute = (watch.timed(case.case_id, step) for step in (prepare, predict))
        jobs.append(Job(case_id=case.case_id, prepare=read, predict=compute, inputs=case.images, ending=ending))
    refused = _warn_of_far(geometries, predictor.model.plan, warn, watch)
    return [job for job in jobs if job.case_id not in refused], errors | refused, geometries


def tell_needs(
    predictor: Predictor, geometries: Mapping[str, Geometry], say: Callable[[str], None], *, probabilities: bool
) -> bool:
    """Say what images need of memory, disk and time before they are predicted; returns whether the next one can be read meanwhile."""
    if not geometries:
        return True
    grids = Counter((each.shape, each.spacing_mm, each.dimensions) for each in geometries.values())
    of = {(each.shape, each.spacing_mm, each.dimensions): each for each in geometries.values()}
    largest = sorted(grids, key=lambda grid: math.prod(grid[0]), reverse=True)
    needs = {grid: predictor.needs(of[grid], probabilities=probabilities) for grid in largest[:MOST_GRIDS]}
    needs |= {grid: needs[largest[MOST_GRIDS - 1]] for grid in largest[MOST_GRIDS:]}
    memory, disk = (max(getattr(each, name) for each in needs.values()) for name in ("memory_bytes", "disk_bytes"))
    windows = sum(number * needs[grid].windows for grid, number in grids.items())
    passes = Counter[str]()
    for grid, number in grids.items():
        passes.update({name: number * count for name, count in needs[grid].passes.items()})
    text = f"Needs up to {memory / GB:.1f} GB of memory"
    if disk:
        text += f" and {disk / GB:.1f} GB of disk for temporary files"
    if unsure := max(each.unsure_bytes for each in needs.values()):
        text += f", of disk {unsure / GB:.1f} GB more if the model were sure of no voxel"
    text += f"; {count_noun(windows, 'window')}"
    if sum(passes.values()) >= TIMED_FROM and (seconds := predictor.time_passes()) is not None:
        total = sum(seconds[name] * count for name, count in passes.items())
        total += predictor.time_voxel() * sum(math.prod(shape) * number for (shape, *_), number in grids.items())
        text += f", about {format_duration(total)} on {predictor.model.device}"
    say(text)
    return all(each.reads_ahead for each in needs.values())


def _geometry_of(case: InputCase) -> Geometry:
    return case.geometry or read_header(case.images[0]).geometry


def _say_what_was_done(
    outcomes: Iterable[Outcome], issues: Sequence[Issue], say: Callable[[str], None], *, skip_bad: bool
) -> None:
    """What was skipped, and ``3 predicted, 2 already there, 1 skipped: b``."""
    for issue in issues:
        if skip_bad or issue.severity != "error":
            say(f"Skipped: {issue}")
    counts, skipped = Counter(outcomes), sorted({issue.case or issue.where for issue in issues})
    parts = [f"{counts['predicted']} predicted"]
    if counts["already there"]:
        parts.append(f"{counts['already there']} already there")
    if skipped:
        parts.append(f"{len(skipped)} skipped: {shorten(skipped)}")
    say(", ".join(parts))


@dataclass(slots=True)
class _Progress:
    """Tells a tracker of one unit of work, a case, what share of it is done."""

    tracker: Tracker
    case_id: str
    told: float = 0.0

    def __call__(self, done: int, total: int) -> None:
        share = min(done / total, 0.99)  # the end is told when the label map is written
        if share > self.told:
            self.tracker.advance(share - self.told, note=f"{self.case_id}, window {done} of {total}")
            self.told = share


def _prepare_case(
    predictor: Predictor,
    case: InputCase,
    *,
    warn: Callable[[str], None],
    watch: Watch,
    may_be_labels: bool,
) -> PreparedImage:
    """Raises `AutosegError` with a note for what is a label map beside images; warns of one value in all voxels, and of what is no CT
    where CT is expected.

    Notes on how the image was read are added to ``watch``.
    """
    image = read_image(case.images).of_modality(case.modality)
    for note in image.notes:
        watch.note(note.model_copy(update={"case": case.case_id}))
    with _naming(case.images[0]):
        _warn_of_intensities(image, case.case_id, predictor.model.plan, warn, watch)
    if may_be_labels and looks_like_labels(image, predictor.model.plan.intensities):
        message, fix = "looks like a label map beside images", "pass it alone to predict it"
        where = str(case.images[0])
        raise AutosegError(Issue(code="predict.label_map", severity="note", where=where, message=message, fix=fix))
    with _naming(case.images[0]):
        prepared = predictor.prepare(image)
        _warn_of_unlike(predictor, image, prepared, case.case_id, warn, watch)
        return prepared


def _prepare_read(
    predictor: Predictor, image: Image, name: str, warn: Callable[[str], None], watch: Watch
) -> PreparedImage:
    """An image in memory; warns of what is unlike training."""
    _warn_of_intensities(image, name, predictor.model.plan, warn, watch)
    prepared = predictor.prepare(image)
    _warn_of_unlike(predictor, image, prepared, name, warn, watch)
    return prepared


def _warn_of_unlike(
    predictor: Predictor,
    image: Image,
    prepared: PreparedImage,
    name: str,
    warn: Callable[[str], None],
    watch: Watch,
) -> None:
    is_far = FAR in watch.flags.get(name, set())
    watch.doubt(name, UNLIKE, unlike_training(predictor.model, image, prepared, is_far=is_far), warn)


def _predict_case(
    predictor: Predictor,
    case: InputCase,
    prepared: PreparedImage,
    *,
    probabilities: bool,
    doubt: bool,
    tracker: Tracker,
) -> Prediction:
    progress = _Progress(tracker, case.case_id)
    try:
        with _naming(case.images[0]):
            return predictor.predict_source(prepared, probabilities=probabilities, doubt=doubt, progress=progress)
    finally:
        tracker.advance(-progress.told)


def _warn_of_intensities(image: Image, name: str, plan: Plan, warn: Callable[[str], None], watch: Watch) -> None:
    for code, reasons in ((CONSTANT, without_contrast(image, plan)), (NOT_CT, not_ct(image, plan))):
        watch.doubt(name, code, reasons, warn)


def looks_like_labels(image: Image, training: Sequence[IntensityStatistics]) -> bool:
    """Whether an image of one channel holds a few small whole numbers, background 0, where training images did not."""
    if len(image.array) != 1:
        return False
    (array,) = image.array
    sample = array.ravel()[:: max(1, array.size // 100_000)]  # to answer at once for most images
    for values in (sample, array):
        if values.min() < 0 or values.max() > LARGEST_LABEL or not np.array_equal(values, np.floor(values)):
            return False
    counts = np.bincount(array.ravel().astype(np.uint8))
    few = 2 <= np.count_nonzero(counts) <= MOST_LABELS and counts[0] > 0
    usual = {training[0].percentile_00_5, training[0].median, training[0].percentile_99_5}
    return bool(
        few and 1 - counts[0] / array.size >= SMALLEST_SHARE and usual - {training[0].minimum, training[0].maximum}
    )


def _warn_of_far(
    geometries: Mapping[str, Geometry], plan: Plan, warn: Callable[[str], None], watch: Watch
) -> dict[str, AutosegError]:
    """One warning of the images whose spacing or extent is far from the training cases', or the errors of those that are refused."""
    far = {case_id: words for case_id, geometry in geometries.items() if (words := far_from_training(geometry, plan))}
    if watch.strict:
        return {case_id: AutosegError(unlike_issue(FAR, case_id, words)) for case_id, words in far.items()}
    for case_id in far:
        watch.flags[case_id].add(FAR)
    if far:
        first = next(iter(far))
        warn(
            f"{count_noun(len(far), 'image')} unlike the training cases, predictions may be wrong: "
            f"{shorten(list(far))} ({first}: {far[first]})"
        )
    return {}


def _say_notes(watch: Watch, reporter: Reporter) -> None:
    """One line for each kind of notes on how images were read, and one on images that are odd, if they were many."""
    notes, say = watch.notes, reporter.say
    if text := watch.summary():
        reporter.warn(text)
    for code in dict.fromkeys(note.code for note in notes):
        first, *others = [note for note in notes if note.code == code]
        number = len({note.case for note in others} - {first.case})
        say(f"Note: {first}" + (f" ({count_noun(number, 'other image')} with a note like this)" if number else ""))


def _refuse_file(predictor: Predictor, image: Inputs | Image, path: Path, dicom: DicomOutput | None) -> None:
    """Raise `AutosegError` with all that forbids to predict ``image`` into the file ``path``."""
    issues = list(image.issues) if isinstance(image, Inputs) else []
    fix = "pass a folder for the label maps"
    if isinstance(image, Inputs) and (len(image.cases) > 1 or not (image.cases or image.issues)):
        message = f"one file for {len(image.cases)} images"
        issues.append(Issue(code="predict.one_file", where=str(path), message=message, fix=fix))
    if predictor.model.dataset.classes_with_masks and dicom is None:
        message = "the model writes a mask file for each class"
        issues.append(Issue(code="predict.one_file", where=str(path), message=message, fix=fix))
    if dicom is None and path.name.lower().endswith(ENDING):
        message, fix_as = "files that end in .dcm are DICOM objects", "add --as dicom-seg, or choose another ending"
        issues.append(Issue(code="predict.one_file", where=str(path), message=message, fix=fix_as))
    if not image_ending(path):
        fix = f"choose a file name that ends in {predictor.model.dataset.file_ending}"
        issues.append(Issue(code="predict.one_file", where=str(path), message="no image file", fix=fix))
    if path.resolve().exists():  # also where a folder on the way is not there yet, as in new/../a.nii.gz
        fix = "remove it, or choose another name"
        issues.append(Issue(code="predict.exists", where=str(path), message="exists already", fix=fix))
    if issues:
        raise AutosegError(*issues)


def predict_file(
    predictor: Predictor,
    image: Inputs | Image,
    path: Path,
    *,
    probabilities: bool,
    doubt: bool = False,
    reporter: Reporter,
    dicom: DicomOutput | None = None,
) -> list[Path]:
    """Write the label map of one image as the file ``path``, or as a DICOM object, and ``probabilities`` beside it as ``.npz``;
    maps as `predict_cases` in ``_maps``.

    Raises `AutosegError` for several cases, where ``path`` exists or is no image file, and for masks of classes, which are
    several files.
    """
    _refuse_file(predictor, image, path, dicom)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    name = image.cases[0].case_id if isinstance(image, Inputs) else path.name
    watch = Watch.of(predictor)
    source = split_frame(image.cases[0].images[0])[0] if isinstance(image, Inputs) else None
    with reporter.track("Predicting", 1) as tracker:
        try:
            geometry = image.geometry if isinstance(image, Image) else _geometry_of(image.cases[0])
            for refused in _warn_of_far({name: geometry}, predictor.model.plan, reporter.warn, watch).values():
                raise refused
            predictor = replace(predictor, folder=path.parent)
            tell_needs(predictor, {name: geometry}, reporter.say, probabilities=probabilities)
            if isinstance(image, Image):
                prepared = _prepare_read(predictor, image, name, reporter.warn, watch)
                progress = _Progress(tracker, name)
                found = predictor.predict_source(prepared, probabilities=probabilities, doubt=doubt, progress=progress)
            else:
                case = image.cases[0]
                prepared = _prepare_case(predictor, case, warn=reporter.warn, watch=watch, may_be_labels=False)
                found = _predict_case(
                    predictor, case, prepared, probabilities=probabilities, doubt=doubt, tracker=tracker
                )
        except AutosegError as error:
            raise AutosegError(*_issues({name: error})) from error
    _say_notes(watch, reporter)
    if dicom is not None and isinstance(image, Inputs):
        dicom.write(path, found.labels, image.cases[0].images)
    else:
        write_label_map(path, found.labels, found.geometry, source=source, description=watch.maker.short)
    if found.probabilities is not None:
        write_full(path.with_name(f"{image_stem(path)}.npz"), found.probabilities)
    if maps := maps_asked_for(probabilities=probabilities, doubt=doubt):
        model, name = predictor.model, image_stem(path)
        write_all_maps(path.parent / MAPS, name, found, maps, model.dataset.labels, model.calibration, source)
        write_names(path.parent / MAPS, model.dataset.labels, model.calibration)
    if found.doubt is not None and found.doubt.expected:
        reporter.say(f"Expected Dice (90 % range): {in_words(found.doubt.expected)}")
    found.close()
    reporter.say(f"1 predicted: {path}")
    return [path]


def predict_stored(
    model: Model,
    cases: Sequence[StoredImage],
    folder: Path,
    *,
    keep_probabilities: bool,
    tracker: Tracker,
    say: Callable[[str], None],
) -> None:
    """Write a label map for every stored case into one of a run's own folders (method section 8.3).

    What RankSEG decides otherwise is kept, too, and with ``keep_probabilities`` probabilities (K, Z, Y, X), for ensembles of
    configurations. Cases that are up to date are skipped; predictions of another model, or of other cases, are removed. Raises `AutosegError` at the
    end with the issues of all cases that failed.
    """
    predictor = Predictor(model=model, folder=folder)
    sink = PredictionFolder(
        folder=folder,
        dataset=model.dataset,
        made_from=key_of(model.key, keep_probabilities),
        say=say,
        scores="rounded" if keep_probabilities else None,
        with_ranked=True,
        with_sample=True,
        is_own=True,
    )
    images = {case.case_id: case.image_paths[0] for case in model.dataset.training}
    jobs = [
        Job(
            case_id=case.case_id,
            predict=partial(
                predictor.predict_source, case, probabilities=keep_probabilities, ranked=True, sampled=True
            ),
            made_from=case.made_from,
            image=image if (image := images.get(case.case_id)) is not None and image.is_file() else None,
        )
        for case in cases
    ]
    remove_orphans(folder, below=False)
    sink.begin(jobs)
    complete_jobs(jobs, sink, tracker)
