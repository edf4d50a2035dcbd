"""What platforms do: how they lay down the inputs of a case, and what they accept as its outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from autoseg.delivery.container.program import INPUTS, ContainerProgram
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import GridTolerances, grid_differences
from autoseg.imaging.readers import image_ending, read_header, read_image, write_image
from autoseg.issues import AutosegError, Issue
from autoseg.wording import shorten
from datasets_spec.container import CASE, ContainerTable, Interface, Output

MOST_FILES = 1000
"""In the folder of an image socket."""
MOST_MASKS = 64
LONGEST_LINE = 10_000
"""Characters of a line of a MetaImage header."""
BYTE_TYPES = ("8-bit unsigned integer", "8-bit signed integer", "uint8", "int8")
SAME_GRID = GridTolerances(spacing=1e-5, origin=1e-3, direction=1e-5)
"""Output against input: both are files, and formats store single or double precision."""


# --- inputs ---


def lay_out(program: ContainerProgram, interface: int, name: str, images: Sequence[Path], folder: Path) -> Path:
    """Lay down the ``images`` of a case, one for each channel or one with all, as the platform does; returns the first one's file.

    Sockets that are no channel get the first image, or an empty JSON object.
    """
    table, channels = program.table, program.channels[interface]
    written: dict[str, Path | Image] = dict(zip(channels, _one_file_each(images, len(channels)), strict=True))
    first = channels[0]
    entries: list[dict[str, Any]] = []
    paths: dict[str, Path] = {}
    for each in table.interfaces[interface].inputs:
        path = each.path.replace(CASE, name)
        if not each.is_image:
            paths[each.path] = folder / path
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text("{}")
        else:
            target = folder / path if image_ending(path) else folder / path / f"{uuid5(NAMESPACE_URL, name + path)}.mha"
            paths[each.path] = target
            _put_image(written.get(each.path, written[first]), target)
        entries.append(_entry(each.slug, path, name if each.is_image else None))
    if not table.takes_all_cases:
        (folder / INPUTS).write_text(json.dumps(entries, indent=1))
    return paths[first]


def _one_file_each(images: Sequence[Path], number: int) -> list[Path | Image]:
    if len(images) == number:
        return list(images)
    whole = read_image(images)
    return [Image(array=whole.array[i : i + 1], geometry=whole.geometry) for i in range(number)]


def _put_image(image: Path | Image, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, Path) and image.is_file() and image_ending(image) == image_ending(target):
        shutil.copyfile(image, target)
        return
    read = read_image(image) if isinstance(image, Path) else image
    write_image(target, read.array[0], read.geometry)


def _entry(slug: str, path: str, image: str | None) -> dict[str, Any]:
    socket = {"slug": slug, "relative_path": path, "super_kind": "Image" if image else "Value"}
    named = None if image is None else {"name": f"{image}.mha", "pk": str(uuid5(NAMESPACE_URL, slug))}
    value: dict[str, Any] | None = None if image else {}
    return {
        "pk": str(uuid5(NAMESPACE_URL, slug)),
        "socket": socket,
        "interface": socket,
        "value": value,
        "file": None,
        "image": named,
    }


# --- outputs ---


def output_issues(table: ContainerTable, interface: int, name: str, folder: Path, source: Geometry) -> list[Issue]:
    """What the platform, or the challenge's evaluation, would refuse of the outputs of a case in ``folder``.

    ``source`` is the grid of its first image.
    """
    return [
        issue.model_copy(update={"case": name})
        for output in table.interfaces[interface].outputs
        for issue in _output_issues(table, output, folder / output.path.replace(CASE, name), source)
    ]


def _output_issues(table: ContainerTable, output: Output, path: Path, source: Geometry) -> Iterator[Issue]:
    if output.kind == "json":
        yield from _json_issues(path)
        return
    if image_ending(path):
        if not path.is_file():
            yield _issue(path, "container.output_missing", "was not produced", "write one for every case")
            return
        file = path
    else:
        found, issue = _only_image(path)
        if issue is not None or found is None:
            yield from [issue] if issue else []
            return
        file = found
    try:
        yield from _image_issues(table, output, file, source)
    except AutosegError as error:
        yield from error.issues


def _json_issues(path: Path) -> Iterator[Issue]:
    if not path.is_file():
        yield _issue(path, "container.output_missing", "was not produced", "write it for every case")
        return
    try:
        json.loads(path.read_bytes())
    except ValueError as error:
        yield _issue(path, "container.output_unreadable", f"is not JSON ({error})", "write JSON")


def _only_image(folder: Path) -> tuple[Path | None, Issue | None]:
    """The one image in the folder of a socket, or why there is none."""
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    if not files:
        return None, _issue(folder, "container.output_missing", "was not produced", "write one image for every case")
    if len(files) > MOST_FILES:
        message = f"has {len(files)} files, more than {MOST_FILES}"
        return None, _issue(folder, "container.output_several", message, "write one image")
    images = [file for file in files if image_ending(file) in (".mha", ".mhd", ".tif", ".tiff")]
    if not images:
        message = f"has {shorten([file.name for file in files])}, but only .mha, .mhd and .tif are read"
        return None, _issue(folder, "container.output_format", message, "write .mha")
    if len(images) > 1:
        message = f"has {len(images)} images: {shorten([file.name for file in images])}"
        return None, _issue(folder, "container.output_several", message, "write one image")
    return images[0], None


def _image_issues(table: ContainerTable, output: Output, file: Path, source: Geometry) -> Iterator[Issue]:
    header = read_header(file)
    if output.kind == "probability":
        values = read_image(file).array
        low, high = float(values.min()), float(values.max())
        if header.is_integer or not (np.isfinite(values).all() and low >= 0 and high <= 1):
            message = f"holds {header.pixel_type} from {low:g} to {high:g}"
            yield _issue(file, "container.output_values", message, "write float32 probabilities from 0 to 1")
    elif not header.is_integer:
        yield _issue(file, "container.output_type", f"holds {header.pixel_type}", "write uint8")
        return
    else:
        yield from _label_issues(output, file, header.pixel_type, header.num_channels)
    if table.kind == "grand-challenge" and file.suffix == ".mha":
        yield from _header_issues(file)
    if differences := grid_differences(header.geometry, source, SAME_GRID):
        message = f"is not on the grid of the image: {', '.join(differences)}"
        yield _issue(file, "container.output_grid", message, "copy size, spacing, origin and direction of the image")


def _label_issues(output: Output, file: Path, pixel_type: str, num_channels: int) -> Iterator[Issue]:
    values = {int(value) for value in np.unique(read_image(file).array)}
    if pixel_type not in BYTE_TYPES:
        message = f"stores {pixel_type}, which the platform does not read as a segmentation"
        yield _issue(file, "container.output_type", message, "write uint8: array.astype(numpy.uint8)")
    if output.kind == "masks":
        if num_channels > MOST_MASKS or (output.num_masks or num_channels) != num_channels:
            message = f"has {num_channels} masks, expected {output.num_masks or f'at most {MOST_MASKS}'}"
            yield _issue(file, "container.output_masks", message, "write one volume per class")
        allowed = {0, 1}
    else:
        allowed = {0, *output.values} if output.values else values
    if unknown := sorted(values - allowed):
        message = f"has the values {shorten([str(value) for value in unknown])}, allowed are {shorten([str(value) for value in sorted(allowed)])}"
        yield _issue(file, "container.output_values", message, "write the challenge's values (remap in the table)")


def _header_issues(file: Path) -> Iterator[Issue]:
    """Lines of a MetaImage header that the platform refuses."""
    with file.open("rb") as stream:
        for line in stream:
            if len(line) > LONGEST_LINE:
                message = f"has a header line of {len(line)} characters"
                yield _issue(file, "container.output_header", message, f"keep lines below {LONGEST_LINE} characters")
            if line.startswith(b"ElementDataFile"):
                return


def strays(table: ContainerTable, interface: int, names: Sequence[str], folder: Path) -> list[str]:
    """Files in the folder of the outputs that belong to no output, as relative paths."""
    declared = [output.path.replace(CASE, name) for name in names for output in outputs_of(table, interface)]
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return [file for file in found if not any(file == path or file.startswith(f"{path}/") for path in declared)]


def outputs_of(table: ContainerTable, interface: int) -> Sequence[Output]:
    """Outputs of an interface."""
    chosen: Interface = table.interfaces[interface]
    return chosen.outputs


def _issue(where: Path, code: str, message: str, fix: str) -> Issue:
    return Issue(code=code, where=str(where), message=message, fix=fix)
