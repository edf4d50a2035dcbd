"""Builds a container from a model: everything that Docker needs to make its image, and the scripts around it."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template

import numpy as np
from packaging.requirements import Requirement

import autoseg
import datasets_spec
import planners
from autoseg.delivery.container.program import DESCRIPTION, PORT, ContainerProgram
from autoseg.delivery.container.rules import lay_out
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image
from autoseg.inference.bundle import ModelDescription, open_bundle
from autoseg.inference.model import bundle_run
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, load_document, temporary_folder, write_error
from autoseg.tracking.progress import Reporter
from autoseg.wording import bare_name, shorten
from datasets_spec.container import ContainerKind, ContainerTable, load_container_tables, read_container_table
from planners import DocumentError, transpose, write_document

BUNDLE = "model.zip"
MODEL_FOLDER = "/opt/ml/model"
APP = "/opt/app"
USER_ID = 1000
LABEL = "org.grand-challenge.api-method"
PROGRAM = ("python3", "-m", "autoseg.delivery.container.program")
TORCH_INDEX = "https://download.pytorch.org/whl/cu126"
"""CUDA 12.6 runs on the T4 machines of grand-challenge."""
OF_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton|pytorch-triton.*")
"""What torch itself pins: another build of it needs others."""
PACKAGES = (autoseg, planners, datasets_spec)
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image is started."""

    user: str
    env: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    workdir: str
    labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[int, ...] = ()


def image_config(kind: ContainerKind, method: str = "exec") -> ImageConfig:
    """How images of a kind are started; ``method`` is that of grand-challenge. BraTS says nothing of users, and others are root there."""
    env = (("PYTHONUNBUFFERED", "1"), ("PYTHONDONTWRITEBYTECODE", "1"), ("PYTHONPATH", APP))
    is_flare, served = kind == "flare", kind == "grand-challenge"
    return ImageConfig(
        user="0:0" if kind == "brats25" else f"{USER_ID}:{USER_ID}",
        env=env,
        entrypoint=() if is_flare else PROGRAM,
        cmd=("sh", "predict.sh") if is_flare else (method if served else "exec",),
        workdir="/workspace" if is_flare else APP,
        labels=((LABEL, method),) if served else (),
        ports=(PORT,) if served and method == "invoke" else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerWishes:
    """What a person may choose for a container."""

    kind: ContainerKind
    interface: str | None = None
    """Name of a built-in table, or a file."""
    channels: Mapping[str, str]
    """Slug or path of an input, by the name of the model's channel."""
    num_folds: int | None = None
    mirroring: bool = True
    empty_if_failing: bool = False
    tag: str | None = None


# --- what is built ---


def find_table(kind: ContainerKind, interface: str | None) -> ContainerTable:
    """The table of a challenge: a built-in one, or that in a file. Raises `AutosegError` where there is none."""
    tables = {table.name: table for table in load_container_tables() if table.kind == kind}
    known = shorten(sorted(tables)) if len(tables) < 7 else ", ".join(sorted(tables))
    if interface is None and kind == "grand-challenge":
        fix = f"add --interface with one of {known}, or a file with the sockets of the phase"
        raise AutosegError(
            _issue("--interface", "container.no_interface", "grand-challenge needs the sockets of a phase", fix)
        )
    name = interface or kind
    if name in tables:
        return tables[name]
    path = Path(name)
    if not path.is_file():
        message, fix = f"{name} is neither a known table nor a file", f"pass one of {known}, or a file"
        raise AutosegError(_issue("--interface", "container.no_interface", message, fix))
    try:
        table = read_container_table(path)
    except DocumentError as error:
        raise AutosegError(*error.issues, headline=f"{path} cannot be read:") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AutosegError(
            _issue(path, "container.table_invalid", f"could not be read ({error})", "pass a text file")
        ) from error
    return table.model_copy(update={"kind": kind}) if path.suffix == ".json" else table


def assign_channels(
    table: ContainerTable, channels: Sequence[str], given: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    """For each interface the input of each channel of the model, as `ContainerProgram.channels`.

    An input is a channel if its names or the words of its slug are the channel's, or if both are the only ones; ``given``
    decides where it names one. Raises `AutosegError` where no interface has an input for every channel.
    """
    unknown = [
        _issue(
            f"--channel {name}={slug}",
            "container.unknown_channel",
            f"the model has {shorten(channels)}",
            "name one of these",
        )
        for name, slug in given.items()
        if name not in channels
    ]
    if unknown:
        raise AutosegError(*unknown)
    assigned, faults = [], []
    for interface in table.interfaces:
        images = [each for each in interface.inputs if each.is_image]
        found, open_ones = [], []
        for channel in channels:
            if channel in given:
                fits = [each.path for each in images if given[channel] in (each.slug, each.path)]
            elif len(channels) == len(images) == 1:
                fits = [images[0].path]
            else:
                exact = [
                    each.path
                    for each in images
                    if bare_name(channel) in {bare_name(name) for name in (*each.names, each.slug)}
                ]
                fits = exact or [each.path for each in images if bare_name(channel) in each.slug.lower().split("-")]
            found += fits[:1]
            open_ones += [channel] * (len(fits) != 1)
        is_whole = not open_ones and len(set(found)) == len(channels)
        assigned.append(tuple(found) if is_whole else ())
        inputs = shorten([each.slug or each.path for each in images])
        faults.append(f"no single input for {shorten(open_ones or channels)} among {inputs}")
    if not any(assigned):
        fix = f"say which input it is, e.g. --channel {channels[0]}={_example(table)}"
        raise AutosegError(*(_issue(table.name, "container.channels", fault, fix) for fault in faults))
    return tuple(assigned)


def _example(table: ContainerTable) -> str:
    first = table.interfaces[0].inputs[0]
    return first.slug or first.path


def value_issues(table: ContainerTable, file_values: Sequence[int]) -> list[Issue]:
    """Label values of a model that its challenge does not know; an error each. ``file_values``: of the model, background first."""
    issues = []
    for output in {output.path: output for interface in table.interfaces for output in interface.outputs}.values():
        written = {output.remap.get(value, value) for value in file_values}
        allowed = {0, *output.values} if output.values else set(range(256))
        if output.kind == "labels" and (unknown := sorted(written - allowed)):
            message = (
                f"the model writes {shorten([str(value) for value in unknown])}, allowed are {_ranges(sorted(allowed))}"
            )
            fix = f"pass a table whose output has a remap, e.g. remap = {{ {unknown[0]} = {max(allowed)} }}"
            issues.append(_issue(output.slug or output.path, "container.values", message, fix))
        if output.kind == "probability" and output.class_value not in (None, *file_values):
            message = f"is the probability of class {output.class_value}, which the model does not have"
            issues.append(
                _issue(output.slug or output.path, "container.values", message, "pass a table with another class_value")
            )
        if output.kind == "masks" and output.num_masks not in (None, len(file_values) - 1):
            message = f"has {output.num_masks} masks, but the model has {len(file_values) - 1} classes"
            issues.append(
                _issue(output.slug or output.path, "container.values", message, "pass a table with another num_masks")
            )
    return issues


def _ranges(values: Sequence[int]) -> str:
    """``0 to 255`` for a whole range, else the first values."""
    whole = len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1))
    return f"{values[0]} to {values[-1]}" if whole else shorten([str(value) for value in values])


def closure() -> dict[str, str]:
    """Installed distributions that autoseg needs, without its extras: version by name, sorted."""
    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in _needed()]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if (name, frozenset(extras)) in seen or not applies:
            continue
        seen.add((name, frozenset(extras)))
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # optional, or for another platform
        found[name] = installed.version
        for text in installed.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                waiting.append(needed)
    return dict(sorted(found.items()))


def _needed() -> list[str]:
    """What autoseg itself needs: by its project file where it runs from a checkout, since what was installed may be older."""
    project = Path(autoseg.__file__).parents[1] / "pyproject.toml"
    if (
        project.is_file()
        and (found := tomllib.loads(project.read_text("utf-8")).get("project", {})).get("name") == "autoseg"
    ):
        return list(found["dependencies"])
    return [text for text in distribution("autoseg").requires or () if "extra ==" not in text]


def requirements() -> str:
    """``requirements.txt``: what is installed here, pinned; torch by its public version, since its builds differ."""
    pins = {name: version.partition("+")[0] for name, version in closure().items() if not OF_TORCH.fullmatch(name)}
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


# --- writing it ---


def build_context(model: Path, out: Path, wishes: ContainerWishes, reporter: Reporter) -> ContainerProgram:
    """Write the build context of a container for ``model`` into the new folder ``out``.

    Raises `AutosegError` where ``out`` is in use, the table does not fit the model, or something cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AutosegError(
            _issue(out, "container.out_exists", "exists and is not empty", "choose another folder, or delete it")
        )
    table = find_table(wishes.kind, wishes.interface)
    try:
        with temporary_folder(out) as made:
            (made / "app").mkdir()
            bundle = made / ("model" if _has_tarball(table) else "app") / BUNDLE
            with reporter.phase("Packing the model"):
                bundle_run(model, bundle, num_folds=wishes.num_folds)
            about = open_bundle(bundle).description
            program = describe(about, table, wishes)
            _write_app(made / "app", program)
            _write_scripts(made, program, tag_of(program, wishes.tag))
            if _has_tarball(table):
                pack_model(made / "model", made / "model.tar.gz")
                _write_test_case(made / "test", program, about)
            _open_to_all(made)
            if out.exists():
                out.rmdir()
            shutil.move(made, out)
            made.mkdir()  # temporary_folder removes it
    except OSError as error:
        raise write_error(out, error) from error
    return program


def describe(about: ModelDescription, table: ContainerTable, wishes: ContainerWishes) -> ContainerProgram:
    """The program of a model for a table. Raises `AutosegError` with all that does not fit."""
    issues = value_issues(table, about.dataset.file_values)
    try:
        channels = assign_channels(table, about.plan.channels, wishes.channels)
    except AutosegError as error:
        raise AutosegError(*issues, *error.issues) from error
    if issues:
        raise AutosegError(*issues)
    trainings = [about.training(name) for name in about.stages]
    axes = [len(about.plan.configuration(t.configuration).mirror_axes) if t.mirroring else 0 for t in trainings]
    return ContainerProgram(
        autoseg_version=autoseg.__version__,
        table=table,
        channels=channels,
        model=f"{MODEL_FOLDER}/{BUNDLE}" if _has_tarball(table) else BUNDLE,
        dataset=about.dataset,
        networks=len(about.stages) * len(about.selection.folds),
        mirrored=max(2**number for number in axes) if wishes.mirroring else 1,
        mirroring=wishes.mirroring,
        empty_if_failing=wishes.empty_if_failing,
    )


def notes_on(program: ContainerProgram) -> Iterator[str]:
    """What a person should know of a container before uploading it."""
    table = program.table
    for sentence in table.unverified:
        yield f"not confirmed for {table.title}: {sentence}"
    for output in {output.path: output for interface in table.interfaces for output in interface.outputs}.values():
        if output.kind == "json":
            yield f"{output.path} is always {json.dumps(output.value)}: it is not predicted"
    unserved = [i for i, channels in enumerate(program.channels) if not channels]
    for i in unserved:
        yield f"cannot serve the inputs {', '.join(table.interfaces[i].slugs)}"


def tag_of(program: ContainerProgram, wanted: str | None = None) -> str:
    """Name of the image: what was ``wanted``, or the dataset's in lower case letters, digits and dashes."""
    return wanted or "autoseg-" + (re.sub(r"[^a-z0-9]+", "-", program.dataset.name.lower()).strip("-") or "model")


def _has_tarball(table: ContainerTable) -> bool:
    """Whether the model is uploaded beside the image."""
    return table.kind == "grand-challenge"


def _write_app(app: Path, program: ContainerProgram) -> None:
    for package in PACKAGES:
        (source,) = package.__path__
        shutil.copytree(source, app / package.__name__, ignore=shutil.ignore_patterns("__pycache__"))
    (app / DESCRIPTION).write_text(write_document(program))


def _write_scripts(made: Path, program: ContainerProgram, tag: str) -> None:
    kind = program.table.kind
    config = image_config(kind)
    values = {
        "tag": tag,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "torch_index": TORCH_INDEX,
        "env": " ".join(f"{name}={value}" for name, value in config.env),
        "workdir": config.workdir,
        "user": config.user,
        "entrypoint": _words(config.entrypoint),
        "app": APP,
        "model": MODEL_FOLDER,
        "label": LABEL,
        "port": str(PORT),
        "title": program.table.title,
        "memory": f"{program.table.memory_gb:g}g",
        "shm": f"{1024 * program.table.shm_gb:g}m",
        "input": program.table.input,
        "output": program.table.output,
    }
    stage = {"grand-challenge": "grand_challenge", "flare": "flare", "brats25": "brats"}[kind]
    values["stages"] = _template(f"{stage}.Dockerfile", values)
    files = {
        "Dockerfile": "Dockerfile",
        "README.md": f"{stage}.md",
        "do_build.sh": "do_build.sh",
        "do_save.sh": f"do_save_{stage}.sh",
        "do_test_run.sh": f"do_test_run_{stage}.sh",
    }
    if kind == "flare":
        files["predict.sh"] = "predict.sh"
    for name, template in files.items():
        (made / name).write_text(_template(template, values))
    (made / "requirements.txt").write_text(requirements())
    (made / ".dockerignore").write_text("model\nmodel.tar.gz\ntest\n*.tar.gz\n*.tar\n")


def _words(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def _template(name: str, values: Mapping[str, str]) -> str:
    class Marked(Template):
        delimiter = "@"

    return Marked((TEMPLATES / name).read_text("utf-8")).substitute(values)


def pack_model(folder: Path, out: Path) -> None:
    """``model.tar.gz``: the content of ``folder`` at its root, the same bytes each time."""
    with (
        atomic_write(out) as raw,
        gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed,  # weights hardly shrink
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in sorted(folder.iterdir()):
            with file.open("rb") as stream:
                archive.addfile(plain_member(file.name, size=file.stat().st_size), stream)


def plain_member(name: str, *, size: int = 0, mode: int = 0o644) -> tarfile.TarInfo:
    """A file of root in an archive, without anything of this machine or moment."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    return member


def _write_test_case(folder: Path, program: ContainerProgram, about: ModelDescription) -> None:
    """A case of noise, as large as the median training case, laid down as the platform does."""
    plan = about.plan
    shape: tuple[int, int, int] = transpose(plan.original_median_shape, plan.transpose_backward)
    spacing: tuple[float, float, float] = transpose(plan.original_median_spacing_mm, plan.transpose_backward)
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=shape, spacing_mm=spacing)
    with temporary_folder(folder / "noise") as noise:
        images = []
        for i, told in enumerate(plan.intensities):
            images.append(noise / f"channel{i}.mha")
            low, high = told.percentile_00_5, max(told.percentile_99_5, told.percentile_00_5 + 1)
            write_image(images[-1], rng.uniform(low, high, shape), geometry)
        for i, channels in enumerate(program.channels):
            if channels:
                lay_out(program, i, "noise", images, folder / "input" / f"interf{i}")


def _open_to_all(folder: Path) -> None:
    """Modes that any user of a container can read with; scripts can be run."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)


def read_program(context: Path) -> ContainerProgram:
    """The program of a build context. Raises `AutosegError` for another folder."""
    return load_document(
        ContainerProgram, context / "app" / DESCRIPTION, fix="pass a folder that autoseg container wrote"
    )


def _issue(where: Path | str, code: str, message: str, fix: str) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix)
