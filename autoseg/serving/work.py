"""Doing a job: read the image, predict it by a model that is loaded, write the files of the answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import read_image, split_part, write_image, write_label_map
from autoseg.inference.dicom_output import dicom_output
from autoseg.inference.model import open_model
from autoseg.inference.predictions import volumes_ml
from autoseg.inference.predictor import Predictor, far_from_training, not_ct
from autoseg.inference.provenance import FAR, NOT_CT, maker_of
from autoseg.issues import AutosegError, Issue
from autoseg.serving.documents import DICOM, FILE_NAMES, ClassInfo, ClassVolume, Format, JobStatus, ModelInfo
from autoseg.serving.jobs import Job, Jobs
from autoseg.serving.uploads import series_path, without_paths
from autoseg.tracking.progress import Reporter
from autoseg.wording import first_line, format_duration
from datasets_spec import coded_classes

logger = logging.getLogger(__name__)
ANOTHER = "use another model, or an image like those of its training"


class StoppedError(Exception):
    """The job is not wanted any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is loaded, on one device."""

    info: ModelInfo
    predictor: Predictor

    @property
    def classes(self) -> tuple[EvaluatedClass, ...]:
        """Classes with their values in label maps."""
        dataset = self.predictor.model.dataset
        return evaluated_classes(dataset.labels, dataset.file_values)


def describe(path: Path) -> ModelInfo:
    """What clients are told of a model, which has the name of its dataset. Raises `AutosegError` for what is none."""
    files = open_model(path)
    about = files.description
    classes = evaluated_classes(about.dataset.labels, about.dataset.file_values)
    coded = coded_classes(tuple(each.name for each in classes))
    return ModelInfo(
        name=about.dataset.name,
        channels=about.plan.channels,
        classes=tuple(
            ClassInfo(name=each.name, values=each.values, colour="#{:02x}{:02x}{:02x}".format(*code.rgb))
            for each, code in zip(classes, coded, strict=True)
        ),
        configurations=about.selection.members,
        folds=len(about.selection.folds),
        dice=about.selection.dice_after_postprocessing,
        key=files.key,
    )


def work(jobs: Jobs, models: Mapping[str, Served], reporter: Reporter) -> None:
    """Do one job after the other on one device, until the service stops. Whatever is wrong with one ends no other."""
    while (job := jobs.next()) is not None:
        try:
            status = do(job, models, lambda: jobs.stopping, jobs.limits.timeout_s)
        except StoppedError:
            jobs.hand_back(job)
            return
        try:
            jobs.finish(job, status)
        except Exception:
            logger.exception("the end of a job cannot be kept")
        words = f"{status.state} after {format_duration(status.seconds)}"
        codes = ", ".join(dict.fromkeys(issue.code for issue in status.issues))
        reporter.say(f"Job {job.id[:8]} ({job.ask.model}): {words}{f' ({codes})' if codes else ''}")


def do(job: Job, models: Mapping[str, Served], is_stopping: Callable[[], bool], timeout_s: float) -> JobStatus:
    """How a job ends; `StoppedError` where the service stops before."""
    started = time.monotonic()
    served = models.get(job.ask.model)
    device = "" if served is None else str(served.predictor.model.device)

    def ended(state: str, **values: object) -> JobStatus:
        seconds = round(time.monotonic() - started, 3)
        return job.ended_as(state, seconds=seconds, device=device, **values)  # type: ignore[arg-type]

    def tell(done: int, total: int) -> None:
        job.progress = done / total
        if is_stopping():
            raise StoppedError
        if job.cancelled.is_set():
            raise AutosegError(Issue(code="serve.cancelled", where="job", message="was cancelled"))
        if time.monotonic() - started > timeout_s:
            message = f"took longer than {format_duration(timeout_s)}, {done} of {total} windows were done"
            raise AutosegError(Issue(code="serve.timeout", where="job", message=message, fix="send a smaller image"))

    try:
        if served is None:  # the service was started again with other models
            message, fix = f"model {job.ask.model} is not served any more", "send the image again"
            raise AutosegError(Issue(code="serve.unknown_model", where="model", message=message, fix=fix))
        values = answer(job, served, tell)
        return ended("done", progress=1.0, model_key=served.info.key, **values)
    except AutosegError as error:
        return ended("failed", issues=without_paths(error.issues, job.upload))
    except (StoppedError, KeyboardInterrupt):
        raise
    except Exception as error:
        if served is not None and is_out_of_memory(error):
            release_memory(served.predictor.model.device)
            message, fix = "memory is not enough for this image", "send a smaller image, or use a larger machine"
            return ended("failed", issues=(Issue(code="serve.memory", where="upload", message=message, fix=fix),))
        logger.exception("a job failed")
        message = f"failed unexpectedly: {type(error).__name__}: {first_line(error)}"
        issue = Issue(code="serve.failed", where="job", message=message, fix="report it as a bug, with the log")
        return ended("failed", issues=without_paths((issue,), job.upload))


def answer(job: Job, served: Served, tell: Callable[[int, int], None]) -> dict[str, object]:
    """Read, predict, write; what the status says of it. Raises `AutosegError` for an image that cannot be predicted."""
    paths = [series_path(job.upload / name, job.ask.series) for name in job.ask.images]
    image = read_image(served.predictor.model.dataset.channel_paths(paths))
    predictor = replace(served.predictor, folder=job.folder)
    issues = [*image.notes, *unlike_training(image, predictor)]
    prepared, geometry = predictor.prepare(image), image.geometry
    if "image" in job.ask.wishes:
        write_image(job.folder / FILE_NAMES["image"], image.array[0], geometry)
    del image  # only its preprocessed form is needed while it is predicted
    labels = predictor.predict_source(prepared, progress=tell).labels
    written = [wish for wish in job.ask.wishes if wish != "json"]
    for wish in written:
        write(wish, job.folder / FILE_NAMES[wish], labels, geometry, served, paths)
    return {
        "volumes": tuple(volumes(labels, geometry, served.classes)),
        "files": {wish: f"/jobs/{job.id}/{wish}" for wish in written},
        "issues": without_paths(issues, job.upload),
    }


def write(
    wish: Format, path: Path, labels: NDArray[np.integer], geometry: Geometry, served: Served, images: list[Path]
) -> None:
    """Write one file of an answer; of the image itself nothing is left to do."""
    maker = maker_of(served.predictor)
    if wish in DICOM:
        output = dicom_output(wish, None, served.predictor.model.dataset, maker, logger.debug)
        output.write(path, labels, images)
    elif wish == "nifti":
        source, _ = split_part(images[0])
        write_label_map(path, labels, geometry, source=source, description=maker.short)


def unlike_training(image: Image, predictor: Predictor) -> Iterator[Issue]:
    """Warnings of an image that is unlike those of the model's training."""
    plan = predictor.model.plan
    if far := far_from_training(image.geometry, plan):
        message = f"unlike the training cases, the prediction may be wrong: {far}"
        yield Issue(code=FAR, severity="warning", where="upload", message=message, fix=ANOTHER)
    for reason in not_ct(image, plan):
        message = f"{reason}; the prediction may be wrong"
        yield Issue(code=NOT_CT, severity="warning", where="upload", message=message, fix=ANOTHER)


def volumes(
    labels: NDArray[np.integer], geometry: Geometry, classes: Sequence[EvaluatedClass]
) -> Iterator[ClassVolume]:
    """How much of a label map (Z, Y, X) is each class."""
    found = volumes_ml(labels, geometry, classes)
    for each in classes:
        yield ClassVolume(name=each.name, values=each.values, volume_ml=found.get(each.name))
