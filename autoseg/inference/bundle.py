"""A trained model in one file: a plain zip of JSON and safetensors, checked when it is opened, never unpacked."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from autoseg.inference.description import ModelDescription
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.networks.weights import unpack_weights
from autoseg.storage.atomic import atomic_write
from planners import Document, DocumentError, read_document, write_document

MANIFEST = "manifest.json"
DESCRIPTION = "model.json"
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip file can hold: the same model gives the same bytes."""
LARGEST_DOCUMENT = 64_000_000
"""Bytes of JSON; what is read before anything is known of a file must have a limit."""
ENCRYPTED = 0x1
D = TypeVar("D", bound=Document)


class Entry(Document):
    """One file of a bundle."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(Document):
    """``manifest.json``: what else is in a bundle."""

    format: Literal["autoseg bundle"] = "autoseg bundle"
    schema_version: Literal[1] = 1
    autoseg_version: str
    key: str
    """Of the model: changes when weights or the way they are used change."""
    files: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFiles:
    """The model of a bundle."""

    path: Path
    description: ModelDescription
    key: str
    entries: tuple[Entry, ...]

    def where(self, configuration: str, fold: int) -> str:
        return f"{self.path}: {weights_name(configuration, fold)}"

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        name = weights_name(configuration, fold)
        entry = next(entry for entry in self.entries if entry.name == name)
        return unpack_weights(_content(self.path, entry), where=f"{self.path}: {name}")


def weights_name(configuration: str, fold: int) -> str:
    """Where a bundle keeps the weights of one network."""
    return f"models/{configuration}/fold_{fold}.safetensors"


def write_bundle(
    path: Path, description: ModelDescription, weights: Callable[[str, int], bytes], *, key: str, version: str
) -> None:
    """Write a bundle atomically; ``weights`` gives the safetensors content of a configuration's fold, one at a time.

    ``key`` names the model, ``version`` the autoseg that writes. The same model gives the same bytes. Raises
    `AutosegError` where ``path`` exists, or cannot be written.
    """
    check_free(path)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        entries = [_put(archive, DESCRIPTION, write_document(description).encode())]
        for name in description.stages:
            for fold in description.selection.folds:
                entries.append(_put(archive, weights_name(name, fold), weights(name, fold)))
        manifest = Manifest(autoseg_version=version, key=key, files=tuple(entries))
        _put(archive, MANIFEST, write_document(manifest).encode())


def check_free(path: Path) -> None:
    """Raise `AutosegError` where something is at ``path``: bundles replace nothing."""
    if path.exists() or path.is_symlink():
        raise AutosegError(f"{path} exists; choose another name for the bundle, or remove it first")


def open_bundle(path: Path) -> BundleFiles:
    """The model of a bundle file. Everything but the weights is read and checked; these are, when they are asked for.

    Raises `AutosegError` for a file that is no bundle, and `AutosegError` with all its faults for one that is not
    whole or holds what no bundle holds: compressed or encrypted parts, names that lead out of it, names twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AutosegError(
            f"{path} is no bundle ({error}); give a file that autoseg bundle or import-nnunet wrote"
        ) from error
    problems = _name_problems(parts) + _form_problems(parts, path)
    if MANIFEST not in {part.filename for part in parts}:
        raise AutosegError(
            f"{path} is no bundle: it has no {MANIFEST}; give a file that autoseg bundle or import-nnunet wrote"
        )
    if problems:
        raise _faulty(path, problems)
    manifest = _document(Manifest, path, MANIFEST, _read(path, MANIFEST, LARGEST_DOCUMENT))
    problems = _manifest_problems(manifest, parts)
    if problems:
        raise _faulty(path, problems)
    described = next(entry for entry in manifest.files if entry.name == DESCRIPTION)
    if described.size > LARGEST_DOCUMENT:
        raise _faulty(
            path, [f"{DESCRIPTION} has {described.size} bytes, more than the {LARGEST_DOCUMENT} a description may have"]
        )
    description = _document(ModelDescription, path, DESCRIPTION, _content(path, described))
    needed = {weights_name(name, fold) for name in description.stages for fold in description.selection.folds}
    problems = _difference(needed, {entry.name for entry in manifest.files} - {DESCRIPTION}, "the model's description")
    if problems:
        raise _faulty(path, problems)
    return BundleFiles(path=path, description=description, key=manifest.key, entries=manifest.files)


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> Entry:
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
    return Entry(name=name, size=len(content), sha256=sha256(content).hexdigest())


def _name_problems(parts: list[zipfile.ZipInfo]) -> list[str]:
    names = Counter(part.filename for part in parts)
    twice = [f"{name} is in it {count} times" for name, count in names.items() if count > 1]
    return twice + [f"{name!r} is no name of a part" for name in names if not _stays_inside(name)]


def _stays_inside(name: str) -> bool:
    """Whether a name would lie below the folder that it is unpacked to, on any system."""
    path = PurePosixPath(name)
    plain = not any(character in name for character in "\\:\0")
    return plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == name


def _form_problems(parts: list[zipfile.ZipInfo], path: Path) -> list[str]:
    """Parts of a bundle are stored as they are, so together they are no larger than the file."""
    odd = [
        f"{part.filename} is {'encrypted' if part.flag_bits & ENCRYPTED else 'compressed'}"
        for part in parts
        if part.compress_type != zipfile.ZIP_STORED
        or part.flag_bits & ENCRYPTED
        or part.file_size != part.compress_size
    ]
    size, largest = sum(part.file_size for part in parts), path.stat().st_size
    return odd + ([f"its parts say that they have {size} bytes, but the file has {largest}"] if size > largest else [])


def _manifest_problems(manifest: Manifest, parts: list[zipfile.ZipInfo]) -> list[str]:
    there = {part.filename: part.file_size for part in parts if part.filename != MANIFEST}
    listed = {entry.name: entry.size for entry in manifest.files}
    problems = _difference(set(listed) | {DESCRIPTION}, set(there), "the manifest")
    if len(listed) < len(manifest.files):
        problems.append("the manifest names a part twice")
    return problems + [
        f"{name} has {there[name]} bytes instead of {size}"
        for name, size in listed.items()
        if there.get(name, size) != size
    ]


def _difference(needed: set[str], there: set[str], source: str) -> list[str]:
    missing = [f"{name} is missing" for name in sorted(needed - there)]
    return missing + [f"{name} is in it, but {source} does not name it" for name in sorted(there - needed)]


def _content(path: Path, entry: Entry) -> bytes:
    """A part whose size and hash are those of the manifest."""
    content = _read(path, entry.name, entry.size)
    if sha256(content).hexdigest() != entry.sha256:
        raise _faulty(path, [f"{entry.name} is not what the manifest says: its SHA-256 differs"])
    return content


def _read(path: Path, name: str, most: int) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as part:
            content = part.read(most + 1)
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise _faulty(path, [f"{name} could not be read ({error})"]) from error
    if len(content) > most:
        raise _faulty(path, [f"{name} has more than {most} bytes"])
    return content


def _document(model: type[D], path: Path, name: str, text: bytes) -> D:
    try:
        return read_document(model, text, where=f"{path}: {name}")
    except DocumentError as error:
        raise AutosegError(f"{error}\nfetch the bundle again, or use the autoseg that wrote it") from error


def _faulty(path: Path, problems: list[str]) -> AutosegError:
    return AutosegError(
        *[
            Issue(code=UNNAMED, where=str(path), message=problem, fix="fetch the file again, or bundle the run anew")
            for problem in problems
        ],
        headline=(f"{path} is not a whole bundle"),
    )
