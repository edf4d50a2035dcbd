"""The program inside a container: reads what the challenge laid down, predicts, and writes what it asks for.

``python -m autoseg.delivery.container.program exec`` does one task and ends; ``invoke`` is the HTTP server of
grand-challenge, which does one at each ``POST /invoke``. ``container.json`` beside the packages says all else. A second
word is a folder in which the container's own root is simulated.
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import autoseg
from autoseg.compute.device import choose_device, set_threads
from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.data.labels import with_values
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers import (
    image_ending,
    is_dicom_series,
    read_header,
    read_image,
    resampled_paths,
    write_image,
    write_label_map,
    write_masks,
)
from autoseg.inference.model import load_model
from autoseg.inference.predictor import Prediction, Predictor
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, write_text
from datasets_spec.container import CASE, ContainerTable, Output
from planners import Document

logger = logging.getLogger("autoseg.container")
PORT = 4743
SILENT_S = 10.0
"""A caller who says nothing for so long is left, since others wait."""
INPUTS = "inputs.json"
DESCRIPTION = "container.json"
FAILED = 1


class ContainerProgram(Document):
    """``container.json``: what a container is given, what it writes, and with which model."""

    schema_version: Literal[1] = 1
    autoseg_version: str
    table: ContainerTable
    channels: tuple[tuple[str, ...], ...]
    """For each interface, paths of the inputs that are the model's channels, in their order; empty: cannot be served."""
    model: str
    """Path of the bundle, absolute or beside this file."""
    dataset: DatasetDescription
    """That the model was trained on, without its cases."""
    networks: Annotated[int, Field(ge=1)]
    """That run for each image, one after the other."""
    mirrored: Annotated[int, Field(ge=1)]
    """How often each runs: once, and for each mirror image."""
    mirroring: bool = True
    empty_if_failing: bool = False
    """Write an empty label map for a case that cannot be predicted, instead of failing."""


@dataclass(frozen=True, slots=True)
class Target:
    """One output of a case and its file."""

    output: Output
    path: Path


@dataclass(frozen=True, slots=True)
class Work:
    """One case: its name, channels, and what to write."""

    name: str
    images: tuple[Path, ...]
    targets: tuple[Target, ...]
    grid: int = 0
    """Which of the images has the grid of the outputs."""


@dataclass(frozen=True, slots=True)
class Container:
    """The program with its model in memory; ``root`` is where the container's own root folder lies."""

    program: ContainerProgram
    predictor: Predictor
    root: Path

    @property
    def inputs(self) -> Path:
        """Folder of the inputs."""
        return under(self.root, self.program.table.input)

    @property
    def outputs(self) -> Path:
        """Folder of the outputs."""
        return under(self.root, self.program.table.output)


def under(root: Path, path: str) -> Path:
    """The absolute ``path`` of a container whose root is ``root``."""
    return root / path.lstrip("/")


def load_container(root: Path = Path("/"), home: Path | None = None, threads: int | None = None) -> Container:
    """The container described in ``home`` (default: beside the package), with its model on the best device.

    ``threads``: of the CPU (default: one per core).
    """
    home = home or Path(autoseg.__file__).parents[1]
    program = load_document(ContainerProgram, home / DESCRIPTION, fix="build the container again")
    model = under(root, program.model) if program.model.startswith("/") else home / program.model
    set_threads(threads or available_cores())
    started = time.monotonic()
    device = choose_device("auto", lambda issue: logger.warning("%s", issue))
    predictor = Predictor(model=load_model(model, device=device), mirroring=program.mirroring)
    logger.info("Model loaded on %s in %.1f s", device, time.monotonic() - started)
    return Container(program=program, predictor=predictor, root=root)


# --- one task ---


def run_task(container: Container) -> int:
    """Predict all that lies in the folder of the inputs; returns the number of cases.

    Raises `AutosegError` with every case that failed, unless empty label maps are wanted for these.
    """
    works = list(find_work(container.program, container.inputs, container.outputs))
    issues: list[Issue] = []
    for work in works:
        started = time.monotonic()
        try:
            _complete(container, work)
            logger.info("%s: done in %.1f s", work.name, time.monotonic() - started)
        except AutosegError as error:
            issues += [issue.model_copy(update={"case": work.name}) for issue in error.issues]
            logger.error("%s: failed: %s", work.name, error)  # no stack of a fault of the input
    if issues:
        raise AutosegError(*issues)
    return len(works)


def find_work(program: ContainerProgram, inputs: Path, outputs: Path) -> Iterator[Work]:
    """The cases in the folder ``inputs``. Raises `AutosegError` where there is none, or none that fits."""
    table = program.table
    if table.takes_all_cases:
        yield from _batch(program, inputs, outputs)
        return
    slugs, name = read_sockets(inputs / INPUTS)
    chosen = choose_interface(program, slugs, lambda path: (inputs / path).exists())
    interface, channels = table.interfaces[chosen], program.channels[chosen]
    images = tuple(_one_image(inputs / path) for path in channels)
    targets = tuple(Target(each, _file_of(outputs / each.path)) for each in interface.outputs)
    yield Work(name, images, targets, interface.grid_of(channels))


def _batch(program: ContainerProgram, inputs: Path, outputs: Path) -> Iterator[Work]:
    """A case for each file or folder that the first channel's pattern fits."""
    interface, channels = program.table.interfaces[0], program.channels[0]
    first, _, _ = channels[0].rpartition("/")
    pattern = re.escape(channels[0]).replace(re.escape(CASE), "(?P<case>[^/]+)", 1)
    pattern = pattern.replace(re.escape(CASE), "(?P=case)")
    files = sorted(inputs.glob("*/*" if first else "*"))
    names = [found["case"] for file in files if (found := re.fullmatch(pattern, file.relative_to(inputs).as_posix()))]
    if not names:
        raise AutosegError(_issue(inputs, "container.no_input", f"has no {channels[0]}", "put the cases there"))
    for name in names:
        images = tuple(inputs / path.replace(CASE, name) for path in channels)
        targets = tuple(Target(each, outputs / each.path.replace(CASE, name)) for each in interface.outputs)
        yield Work(name, images, targets, interface.grid_of(channels))


def read_sockets(path: Path) -> tuple[tuple[str, ...] | None, str]:
    """Sorted slugs of the sockets in ``inputs.json``, none where there is no such file, and the name of the first image in it."""
    if not path.is_file():
        return None, "case"
    try:
        entries = json.loads(path.read_bytes())
        slugs = tuple(sorted(str((entry.get("socket") or entry["interface"])["slug"]) for entry in entries))
        names = [(entry.get("image") or {}).get("name") for entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"is not a list of sockets ({error!r:.100})"
        raise AutosegError(
            _issue(path, "container.inputs_unreadable", message, "pass it as the platform writes it")
        ) from error
    return slugs, next((name for name in names if name), "case")


def choose_interface(program: ContainerProgram, slugs: tuple[str, ...] | None, exists: Callable[[str], bool]) -> int:
    """The interface with these sockets, else the first whose channels are all there."""
    served = [i for i, channels in enumerate(program.channels) if channels]
    for i in served:
        if program.table.interfaces[i].slugs == slugs:
            return i
    for i in served:
        if all(exists(path) for path in program.channels[i]):
            if slugs is not None:
                logger.warning("no interface has exactly the sockets %s; its images are there, so it is used", slugs)
            return i
    known = " or ".join(", ".join(program.table.interfaces[i].slugs) for i in served)
    found = ", ".join(slugs or ()) or "nothing"
    fix = "build the container with the table of this phase (--interface)"
    raise AutosegError(
        _issue(INPUTS, "container.unknown_sockets", f"has the sockets {found}, but the container serves {known}", fix)
    )


def _one_image(path: Path) -> Path:
    """The one image file in a folder, the folder itself where it is a DICOM series, or ``path`` where it is a file."""
    if path.is_file() or is_dicom_series(path):
        return path
    files = sorted(file for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else []
    if len(files) == 1 and image_ending(files[0]):
        return files[0]
    headers = [file for file in files if file.suffix.lower() == ".mhd"]
    if len(headers) == 1:
        return headers[0]
    if not files:
        raise AutosegError(_issue(path, "container.no_input", "has no image", "put one image there"))
    message = f"has {len(files)} files, not one image: {', '.join(file.name for file in files[:5])}"
    raise AutosegError(_issue(path, "container.several_images", message, "put one image there"))


def _file_of(path: Path) -> Path:
    """The file itself, or that in the folder of an image socket."""
    return path if path.suffix else path / "output.mha"


def _issue(where: Path | str, code: str, message: str, fix: str) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix)


# --- one case ---


def _complete(container: Container, work: Work) -> None:
    program, model = container.program, container.predictor.model
    scores = any(target.output.kind == "probability" for target in work.targets)
    try:
        image = read_channels(work.images, work.grid)
        found = container.predictor.predict_read(image, probabilities=scores)
    except Exception as error:
        if not program.empty_if_failing:
            raise _as_issue(work, error) from error
        logger.error("EMPTY LABEL MAP for %s: it could not be predicted: %s", work.name, error)
        found = _empty(_geometry(work), num_scores=len(model.plan.labels.classes) + (not model.plan.labels.has_regions))
    for target in work.targets:
        target.path.parent.mkdir(parents=True, exist_ok=True)
        _write(target, found, container.predictor, source=work.images[work.grid])


def read_channels(paths: Sequence[Path], grid: int) -> Image:
    """The image of a case; channels that are not on the grid of ``paths[grid]`` are resampled to it."""
    try:
        return read_image(paths)
    except AutosegError as error:
        if error.codes != ("reader.channel_grids_differ",):
            raise
    logger.warning("channels lie on different grids: they are resampled to that of %s", paths[grid].parent.name)
    order = [grid, *(i for i in range(len(paths)) if i != grid)]  # the first one gives the grid
    image = read_image(resampled_paths([paths[i] for i in order]))
    back = np.argsort(np.repeat(order, [read_header(paths[i]).num_channels for i in order]), kind="stable")
    modality = tuple(image.modality[i] for i in back) if image.modality else ()
    return replace(image, array=image.array[back], modality=modality)


def _as_issue(work: Work, error: Exception) -> AutosegError:
    if isinstance(error, AutosegError):
        return error
    message = f"{type(error).__name__}: {error}"
    return AutosegError(_issue(work.images[0], "container.failed", message, "see the log"))


def _geometry(work: Work) -> Geometry:
    """That of the outputs: of the channel that gives it, else of the first whose header can be read. Raises `AutosegError` where none can."""
    for path in (work.images[work.grid], *work.images):
        try:
            return read_header(path).geometry
        except AutosegError:
            continue
    return read_header(work.images[work.grid]).geometry


def _empty(geometry: Geometry, *, num_scores: int) -> Prediction:
    scores = np.zeros((num_scores, *geometry.shape), np.float32)
    return Prediction(labels=np.zeros(geometry.shape, np.uint8), probabilities=scores, geometry=geometry)


def _write(target: Target, found: Prediction, predictor: Predictor, *, source: Path) -> None:
    output, path = target.output, target.path
    if output.kind == "json":
        write_text(path, json.dumps(output.value))
    elif output.kind == "probability":
        write_image(path, probability_of(found, predictor, output.class_value), found.geometry)
    elif output.kind == "masks":
        write_masks(path, masks_of(found.labels, predictor), found.geometry)
    else:
        labels = with_values(found.labels, output.remap)
        write_label_map(path, labels, found.geometry, source=source)
        values = np.unique(labels).tolist()
        logger.info("%s: values %s", path.name, " ".join(map(str, values)))


def masks_of(labels: NDArray[np.integer], predictor: Predictor) -> NDArray[np.bool_]:
    """(N, Z, Y, X): which voxels belong to each class of the model, in their order."""
    dataset = predictor.model.dataset
    values = [[dataset.file_values[value] for value in each.values] for each in dataset.labels.classes]
    return np.stack([np.isin(labels, some) for some in values])


def probability_of(found: Prediction, predictor: Predictor, class_value: int | None) -> NDArray[np.float32]:
    """(Z, Y, X), 0 to 1: of the class with that value in the files, or, with None, of any class."""
    model, scores = predictor.model, found.probabilities
    if scores is None:
        raise ValueError("probabilities were not asked for")
    labels = model.plan.labels
    if class_value is None:
        result = scores.max(axis=0) if labels.has_regions else scores[1:].sum(axis=0)
    else:
        internal = model.dataset.file_values.index(class_value)
        order = labels.region_order
        result = scores[internal if order is None else order.index(internal)]
    return np.asarray(np.clip(result, 0, 1), np.float32)


# --- the two ways of being run ---


def main(words: Sequence[str]) -> int:
    """Run as ``exec`` or ``invoke``; the exit code. The last line on standard error says what was wrong."""
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    signal.signal(signal.SIGTERM, _end)  # as process 1 nothing else would end it
    method, root = words[0] if words else "exec", Path(words[1] if len(words) > 1 else "/")
    try:
        container = load_container(root)
        if method == "invoke":
            with make_server(container) as server:
                logger.info("Ready on port %d", PORT)
                server.serve_forever()
        else:
            run_task(container)
    except Exception as error:
        logger.debug("failed", exc_info=error)
        sys.stderr.write(f"{type(error).__name__ if not isinstance(error, AutosegError) else 'autoseg'}: {error}\n")
        return FAILED
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: a platform waits five seconds, and unloading all libraries may take longer."""
    sys.stdout.flush()
    os._exit(128 + number)


def make_server(container: Container, port: int = PORT) -> http.server.HTTPServer:
    """A server that answers ``GET /health`` with 200 and does a task at each ``POST /invoke``: 201 where it succeeded, 500 where not.

    One call after the other, in the thread that serves: a new one would start threads of its own for every prediction.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = SILENT_S

        def do_GET(self) -> None:
            self._answer(200 if self.path == "/health" else 404)

        def do_POST(self) -> None:
            if self.path != "/invoke":
                return self._answer(404)
            try:
                run_task(container)
            except Exception as error:
                sys.stderr.write(f"{error}\n")
                return self._answer(500, str(error))
            self._answer(201)

        def _answer(self, status: int, text: str = "") -> None:
            body = json.dumps({"detail": text}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            logger.debug(format, *args)

    return http.server.HTTPServer(("0.0.0.0", port), Handler)  # the platform calls from outside


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
