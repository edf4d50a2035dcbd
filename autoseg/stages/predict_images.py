"""Predict given images: what `autoseg.predict` is passed, as cases, devices and a loaded model; parts of it as commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg.compute.device import choose_device, choose_devices, set_threads
from autoseg.compute.executor import available_cores
from autoseg.data.discovery.inputs import InputCase, Inputs
from autoseg.imaging.image import Image
from autoseg.imaging.readers import as_image, image_ending, image_stem
from autoseg.inference.dicom_output import DicomOutput, dicom_output
from autoseg.inference.input_cases import find_input_cases
from autoseg.inference.model import load_model
from autoseg.inference.predict import predict_cases, predict_file
from autoseg.inference.predictor import Predictor
from autoseg.inference.provenance import maker_of
from autoseg.inference.sliding_window import STEP
from autoseg.inference.ways import Way, cost_of
from autoseg.issues import AutosegError, Issue
from autoseg.stages.predict import predict_own
from autoseg.stages.run import Run
from autoseg.tracking.progress import Reporter
from autoseg.wording import as_line


def predict_images(
    model: Path,
    source: Any,
    out: Path,
    *,
    place: dict[str, Any],
    search: dict[str, Any],
    limits: dict[str, Any],
    probabilities: bool,
    doubt: bool,
    way: Way,
    engine: str | None,
    skip_bad: bool,
    device: str,
    threads: int | None,
    kind: str | None,
    terms: Path | None,
    reporter: Reporter,
) -> list[Path]:
    """Load the model, find the images and segment them, on several devices where several are named and there are as many images.

    ``place``: affine, spacing and axes of an image in memory; ``search``: layout, spec and part of ``source``; ``limits``: options of
    `load_predictor`. The rest is as for `autoseg.predict`.
    """
    paths = [] if any(value is not None for value in place.values()) else paths_in(source)
    with reporter.phase("Loading the model"):
        devices = device_names(device, reporter.say)
        predictor = load_predictor(model, devices[0], way, engine=engine, threads=threads, say=reporter.say, **limits)
    if not paths:
        image = image_in_memory(predictor, source, place, kind)
        return predict_file(predictor, image, out, probabilities=probabilities, doubt=doubt, reporter=reporter)
    file = one_file(out)
    dicom = None if kind is None else dicom_output_of(predictor, kind, terms, file, reporter)
    with reporter.phase("Looking for images"):
        found = inputs_in(predictor, paths, file, **search, reporter=reporter)
    inputs = found if dicom is None else dicom.fitting(found, skip_bad=skip_bad)
    if file is not None:
        return predict_file(
            predictor, inputs, out, probabilities=probabilities, doubt=doubt, reporter=reporter, dicom=dicom
        )
    if min(len(devices), len(inputs.cases)) > 1 and search["part"] is None and len(paths) == 1:
        flags = {"skip_bad": skip_bad, "probabilities": probabilities, "doubt": doubt, "as": kind, "terms": terms}
        words = predict_words(model, paths[0], out, search | limits | flags | {"engine": engine}, way)
        return predict_parts_on(devices[: len(inputs.cases)], words, out, threads=threads, reporter=reporter)
    return predict_cases(
        predictor,
        inputs,
        out,
        probabilities=probabilities,
        doubt=doubt,
        reporter=reporter,
        dicom=dicom,
        skip_bad=skip_bad,
    )


def one_file(out: Path) -> Path | None:
    """``out``, if it is meant as the file for one image and not as a folder."""
    return out if image_ending(out) and not out.is_dir() else None


def inputs_in(predictor: Predictor, paths: Sequence[Path], file: Path | None, **how: Any) -> Inputs:
    """The cases in ``paths``; where there is one path for each channel, and one ``file`` for the label map, those are one."""
    if file is not None and len(paths) == len(predictor.model.plan.channels) > 1:
        images = predictor.model.dataset.channel_paths(paths)
        return Inputs(cases=(InputCase(case_id=image_stem(file), images=images),))
    return find_input_cases(paths, predictor.model.dataset, **how)


def image_in_memory(predictor: Predictor, source: Any, place: dict[str, Any], kind: str | None) -> Image:
    """An image that was passed itself."""
    if kind is not None:
        message = f"an image in memory is not a DICOM series, which --as {kind} must refer to"
        issue = Issue(code="dicom.no_series", where="source", message=message, fix="pass the folder of the series")
        raise AutosegError(issue)
    image, _ = as_image(source, **place, needs_directions=predictor.needs_directions)
    return image


def dicom_output_of(
    predictor: Predictor, kind: str, terms: Path | None, file: Path | None, reporter: Reporter
) -> DicomOutput:
    """How objects of ``kind`` are written, if need be as one ``file``."""
    output = dicom_output(kind, terms, predictor.model.dataset, maker_of(predictor), reporter.say)
    if file is not None:
        output.require_place(file)
    return output


def paths_in(source: Any) -> list[Path]:
    """Paths of images; none for an image in memory, or for parts of it."""
    several = source if isinstance(source, list | tuple) else [source]
    paths = [Path(each) for each in several if isinstance(each, str | Path)]
    return paths if len(paths) == len(several) else []


def predict_own_images(root: Path, device: str, *, threads: int | None, reporter: Reporter) -> list[Path]:
    """The test images of a run, in its own folder; several calls share them."""
    if not root.is_dir():
        message, fix = "is no run folder, so it has no test images of its own", "pass INPUT and OUTPUT"
        raise AutosegError(Issue(code="predict.no_input", where=str(root), message=message, fix=fix))
    run = Run.open(root)
    set_threads(threads or available_cores())
    chosen = choose_device(device.partition(",")[0], lambda issue: reporter.say(as_line(issue)))
    return predict_own(replace(run, device_name=str(chosen), reporter=reporter), run.dataset)


def device_names(name: str, say: Callable[[str], None]) -> list[str]:
    """Names of the devices that are meant; one that is named alone is looked for when it is needed."""
    several = name == "auto" or "," in name
    return [str(each) for each in choose_devices(name, lambda issue: say(as_line(issue)))] if several else [name]


def predict_parts_on(
    devices: Sequence[str], words: Sequence[str], out: Path, *, threads: int | None, reporter: Reporter
) -> list[Path]:
    """A part of the images on each device."""
    from autoseg.stages.cluster import predict_on  # here: it knows trainings, and takes long to load

    on_cpu = max(1, sum(each.startswith("cpu") for each in devices))
    num_threads = threads or max(1, available_cores() // on_cpu)
    return predict_on(devices, words, out, num_threads=num_threads, reporter=reporter)


def predict_words(model: Path, source: Path, out: Path, options: dict[str, Any], way: Way) -> list[str]:
    """A prediction as a command that means the same in any folder."""
    words = ["predict", *(str(path.absolute()) for path in (model, source, out))]
    words += [] if way.mirroring else ["--no-mirroring"]
    words += [] if way.step == STEP else ["--step", str(way.step)]
    words += [] if way.num_folds is None else ["--folds", str(way.num_folds)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        elif value is not None:
            words += [flag, str(value.absolute() if isinstance(value, Path) else value)]
    return words


def load_predictor(
    model: Path,
    device: str,
    way: Way,
    *,
    engine: str | None = None,
    every_window: bool = False,
    memory_gb: float | None = None,
    strict: bool = False,
    threads: int | None,
    say: Callable[[str], None],
) -> Predictor:
    """The model on the device of that name, used in that ``way``; ``say`` gets a line for each device that cannot be used."""
    set_threads(threads or available_cores())
    chosen = choose_device(device.partition(",")[0], lambda issue: say(as_line(issue)))
    loaded = load_model(model, device=chosen, num_folds=way.num_folds, engine=engine)
    mirrors = any(member.mirror_axes for member in loaded.members)
    told = way if mirrors else replace(way, mirroring=True)  # training did not mirror, so prediction never does
    if told.words:
        say(cost_of(told, loaded.measured))
    return Predictor(
        model=loaded,
        mirroring=way.mirroring,
        step=way.step,
        every_window=every_window,
        memory_bytes=None if memory_gb is None else round(memory_gb * 1e9),
        strict=strict,
    )
