"""What is rehearsed: a container that is ready to be started, and the cases it gets."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.discover import UNLABELLED
from autoseg.delivery.container.boxes import Box, context_box, image_box, model_of, namespaces_fault
from autoseg.delivery.container.context import APP, LABEL, read_program
from autoseg.delivery.container.docker import DockerBox, docker, has_docker, load_image
from autoseg.delivery.container.image import opened_image, read_config, upload_issues
from autoseg.delivery.container.program import DESCRIPTION, ContainerProgram
from autoseg.inference.input_cases import find_input_cases
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter
from planners import read_document


@dataclass(frozen=True, slots=True)
class RehearsalCase:
    """One case: its images, and the dataset that has its reference."""

    name: str
    images: tuple[Path, ...]
    reference: DatasetDescription | None = None


def find_cases(folder: Path, dataset: DatasetDescription) -> list[RehearsalCase]:
    """The cases in ``folder``: those of a labelled dataset with their references, else its images as the model reads them."""
    try:
        found = discover_dataset(folder)
    except AutosegError as error:
        if UNLABELLED not in error.codes and not _may_be_images(error):
            raise
        inputs = find_input_cases([folder], dataset)
        return [RehearsalCase(case.case_id, case.images) for case in inputs.cases]
    return [
        RehearsalCase(case.case_id, case.image_paths, found if case.is_labelled else None)
        for case in (*found.training, *found.test)
    ]


def _may_be_images(error: AutosegError) -> bool:
    return all(code.startswith("dataset.") for code in error.codes)


def program_of_image(image: Path) -> ContainerProgram:
    """The description of a container in its image file. Raises `AutosegError` where ``autoseg container`` did not write it."""
    name = f"{APP[1:]}/{DESCRIPTION}"
    with opened_image(image) as opened:
        for layer in reversed(opened.layers):
            with opened.open(layer) as stream, tarfile.open(fileobj=stream) as archive:
                for member in archive:
                    if member.name.removeprefix("./") == name and (text := archive.extractfile(member)) is not None:
                        return read_document(ContainerProgram, text.read(), where=f"{image}: {name}")
    raise _foreign(image)


def _foreign(image: Path | str) -> AutosegError:
    message, fix = f"has no {APP}/{DESCRIPTION}", "pass a folder or an image of autoseg container"
    return AutosegError(Issue(code="container.foreign", where=str(image), message=message, fix=fix))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A container that is ready to be started."""

    box: Box
    program: ContainerProgram
    model: Path | None
    issues: tuple[Issue, ...] = ()

    @property
    def method(self) -> str:
        """``exec`` or ``invoke``."""
        return dict(self.box.config.labels).get(LABEL, "exec").strip("\"'").lower()


@contextmanager
def opened_container(container: str, *, method: str, model: Path | None, reporter: Reporter) -> Iterator[Rehearsed]:
    """A build context, an image file, or the name of an image that Docker has, ready to be started.

    ``method`` says which stage of a build context is meant; ``model`` is the file of the weights beside an image. Raises
    `AutosegError` for anything else, and where this machine can run no container.
    """
    path, by_docker = Path(container), has_docker()
    if not by_docker and (fault := namespaces_fault()):
        message, fix = (
            f"cannot run containers: no Docker daemon answers, and {fault}",
            "start Docker, or use another machine",
        )
        raise AutosegError(Issue(code="container.no_way", where="this machine", message=message, fix=fix))
    with ExitStack() as stack:
        models = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autoseg-model-")))
        models.chmod(0o755)
        if path.is_dir():
            program, weights = read_program(path), model_of(path)
            if by_docker:
                with reporter.phase("Building the image"):
                    target = ["--target", method] if program.table.kind == "grand-challenge" else []
                    name = docker("build", "--quiet", "--platform", "linux/amd64", *target, str(path))
                yield Rehearsed(box=_docker_box(name, program), program=program, model=weights)
                return
            box: Box = stack.enter_context(context_box(path, program, method))
            yield Rehearsed(box=box, program=program, model=weights)
            return
        weights = _unpacked_model(model, models)
        if path.is_file():
            program = program_of_image(path)
            issues = tuple(upload_issues(path, served=program.table.kind == "grand-challenge"))
            with reporter.phase("Loading the image" if by_docker else "Unpacking the image"):
                box = (
                    _docker_box(load_image(path), program)
                    if by_docker
                    else stack.enter_context(image_box(path, program))
                )
            yield Rehearsed(box=box, program=program, model=weights, issues=issues)
            return
        if not by_docker:
            message, fix = (
                "does not exist, and no Docker daemon answers",
                "pass a folder of autoseg container, or an image file",
            )
            raise AutosegError(Issue(code="container.missing", where=container, message=message, fix=fix))
        program = _program_in_docker(container)
        yield Rehearsed(box=_docker_box(container, program), program=program, model=weights)


def _docker_box(name: str, program: ContainerProgram) -> DockerBox:
    (config,) = json.loads(docker("image", "inspect", name))
    given = read_config({"config": config["Config"]})
    return DockerBox(image=name, config=given, table_input=program.table.input, table_output=program.table.output)


def _program_in_docker(name: str) -> ContainerProgram:
    number = docker("create", name)
    try:
        done = subprocess.run(["docker", "cp", f"{number}:{APP}/{DESCRIPTION}", "-"], capture_output=True, check=False)
    finally:
        docker("rm", number)
    if done.returncode != 0:
        raise _foreign(name)
    with tempfile.TemporaryFile() as file:
        file.write(done.stdout)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            text = archive.extractfile(DESCRIPTION)
            return read_document(ContainerProgram, b"" if text is None else text.read(), where=name)


def _unpacked_model(model: Path | None, folder: Path) -> Path | None:
    """The content of ``model.tar.gz`` in ``folder``, with the filter that the platform unpacks it with."""
    if model is None:
        return None
    try:
        with tarfile.open(model) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        fix = "pass the model.tar.gz of autoseg container"
        raise AutosegError(
            Issue(code="container.model_refused", where=str(model), message=f"could not be unpacked ({error})", fix=fix)
        ) from error
    return folder
