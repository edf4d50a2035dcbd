"""A trained model: described in one document, and packed into one file.

A bundle is a plain zip of JSON and safetensors that is checked when it is opened, and never unpacked. A run keeps its model
in one, with its cases and their cross-validated scores; bundles that are given away have neither.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.inputs import channels_are_numbered
from autoseg.evaluation.calibration import Calibration
from autoseg.evaluation.expected_quality import ExpectedQuality
from autoseg.evaluation.selection import Selection
from autoseg.inference.ways import MeasuredWay
from autoseg.issues import AutosegError, Issue
from autoseg.networks.weights import unpack_weights
from autoseg.preprocessing.looks import Usual
from autoseg.storage.atomic import atomic_write, zip_member
from planners import Document, DocumentError, Plan, Training, read_document, write_document

MANIFEST = "manifest.json"
DESCRIPTION = "model.json"
SUMMARY = "summary.json"
"""Cross-validated scores of the cases of a run."""
LARGEST_DOCUMENT = 64_000_000
"""Bytes of JSON; reading an untrusted file needs a limit."""
ENCRYPTED = 0x1
AGAIN = "download the file again, or bundle the run again"
WRITERS = "pass a file that autoseg bundle or autoseg import-nnunet wrote"
D = TypeVar("D", bound=Document)
WindowSums = Literal["float32", "float16"]


class ModelDescription(Document):
    """``model.json`` of a bundle."""

    schema_version: Literal[1] = 1
    origin: str
    """Where it was trained, as text."""
    dataset: DatasetDescription
    """Bundles that leave their run have no cases in it: their paths are private."""
    plan: Plan
    selection: Selection
    trainings: Annotated[tuple[Training, ...], Field(min_length=1)]
    """One for each of ``stages``, perhaps more."""
    window_sums: WindowSums = "float32"
    """Precision in which windows and folds are summed: imported models need that of nnU-Net."""
    options: tuple[str, ...] | None = None
    """Those of its run that decide results, as on a command line; bundles that leave their run have none."""
    calibration: Calibration | None = None
    """Of its probabilities; none: nothing was cross-validated, or it is of a version before 0.3."""
    expected: ExpectedQuality | None = None
    """What to expect of unseen cases; as above."""
    usual: Usual | None = None
    """What its training images looked like; None where they were not looked at, or were too few."""
    seen_before: tuple[str, ...] | None = ()
    """Contents of the images that the models it started from were trained on; None where that is not known."""
    measured: tuple[MeasuredWay, ...] = ()
    """What faster ways to predict cost in cross-validation, if that was measured; the first is that of the cross-validation."""

    @field_validator("selection")
    @classmethod
    def _check_selection(cls, selection: Selection, info: ValidationInfo) -> Selection:
        plan = info.data.get("plan")
        known = () if plan is None else plan.names
        unknown = [name for name in selection.members if name not in known]
        if plan is not None and unknown:
            raise ValueError(f"selects {', '.join(unknown)}, but the plan has {', '.join(known)}")
        return selection

    @field_validator("trainings")
    @classmethod
    def _check_trainings(cls, trainings: tuple[Training, ...], info: ValidationInfo) -> tuple[Training, ...]:
        plan, selection = info.data.get("plan"), info.data.get("selection")
        if plan is not None and selection is not None:
            trained = {training.configuration for training in trainings}
            missing = [name for name in stages_of(plan, selection.members) if name not in trained]
            if missing:
                raise ValueError(f"no training of {', '.join(missing)}")
        return trainings

    @property
    def stages(self) -> tuple[str, ...]:
        """Configurations whose networks prediction needs, first stages first."""
        return stages_of(self.plan, self.selection.members)

    @property
    def seen(self) -> frozenset[str] | None:
        """Contents of all images that its weights have learnt from; None where that is not known."""
        contents = [case.image_contents for case in self.dataset.training]
        if self.seen_before is None or not contents or not all(contents):
            return None
        return frozenset(self.seen_before).union(*contents)

    def training(self, configuration: str) -> Training:
        """How a configuration was trained; raises `KeyError` for one that was not."""
        return {training.configuration: training for training in self.trainings}[configuration]


def stages_of(plan: Plan, members: tuple[str, ...]) -> tuple[str, ...]:
    """``members`` and the stages before them, first stages first, each once."""
    return tuple(dict.fromkeys(stage.name for name in members for stage in plan.chain(name)))


def without_cases(dataset: DatasetDescription) -> DatasetDescription:
    """The dataset without anything private: no case, file, folder or issue."""
    return dataset.model_copy(
        update={
            "root": "",
            "training": (),
            "numbered_channels": channels_are_numbered(dataset),
            "test": (),
            "unpaired_images": (),
            "unpaired_labels": (),
            "issues": (),
            "left_out": (),
            "content": None,
        }
    )


class Entry(Document):
    """One file of a bundle."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(Document):
    """``manifest.json``: the other files of a bundle."""

    format: Literal["autoseg bundle"] = "autoseg bundle"
    schema_version: Literal[1] = 1
    autoseg_version: str
    key: str
    """Of the model: changes when the weights or their use change."""
    files: tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model on disk, read without running code."""

    path: Path
    """Of the bundle."""
    description: ModelDescription
    """Everything but the weights."""
    key: str
    """Changes when the weights or their use change."""
    entries: tuple[Entry, ...]

    def where(self, configuration: str, fold: int) -> str:
        """Names one network's weights in messages."""
        return _part(self.path, weights_name(configuration, fold))

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        """One network's weights by autoseg's names; raises `AutosegError` if they are damaged."""
        return unpack_weights(self.packed_weights(configuration, fold), where=self.where(configuration, fold))

    def packed_weights(self, configuration: str, fold: int) -> bytes:
        """One network's weights as the content of a safetensors file."""
        name = weights_name(configuration, fold)
        return _content(self.path, next(entry for entry in self.entries if entry.name == name))

    def packed_summary(self) -> bytes | None:
        """Scores of the cases of a run, as JSON; bundles that leave their run have none."""
        return next((_content(self.path, entry) for entry in self.entries if entry.name == SUMMARY), None)


def weights_name(configuration: str, fold: int) -> str:
    """Name of the weights of one network in a bundle."""
    return f"models/{configuration}/fold_{fold}.safetensors"


def write_bundle(
    path: Path,
    description: ModelDescription,
    weights: Callable[[str, int], bytes],
    *,
    key: str,
    version: str,
    summary: bytes | None = None,
) -> None:
    """Write a bundle atomically; ``weights`` returns the safetensors content of a configuration's fold.

    ``key`` is that of the model, ``version`` that of autoseg; ``summary`` has cross-validated scores of cases. The same model
    gives the same bytes. Raises `AutosegError` if ``path`` cannot be written.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        entries = [_put(archive, DESCRIPTION, write_document(description).encode())]
        for name in description.stages:
            for fold in description.selection.folds:
                entries.append(_put(archive, weights_name(name, fold), weights(name, fold)))
        if summary is not None:
            entries.append(_put(archive, SUMMARY, summary))
        manifest = Manifest(autoseg_version=version, key=key, files=tuple(entries))
        _put(archive, MANIFEST, write_document(manifest).encode())


def open_bundle(path: Path) -> ModelFiles:
    """The model of a bundle file. Everything but the weights is read and checked; these are checked on access.

    Raises `AutosegError` for a file that is not a bundle, and with all faults for one that is incomplete or has what
    bundles do not have: compressed or encrypted parts, names that lead out of it, duplicate names.
    """
    parts = _parts(path)
    _require_none(path, [*_name_faults(parts), *_form_faults(parts, path)])
    manifest = _document(Manifest, path, MANIFEST, _read(path, MANIFEST, LARGEST_DOCUMENT))
    _require_none(path, _manifest_faults(manifest, parts))
    described = next(entry for entry in manifest.files if entry.name == DESCRIPTION)
    if described.size > LARGEST_DOCUMENT:
        _require_none(path, [f"{DESCRIPTION} has {described.size} bytes, more than {LARGEST_DOCUMENT}"])
    description = _document(ModelDescription, path, DESCRIPTION, _content(path, described))
    needed = {weights_name(name, fold) for name in description.stages for fold in description.selection.folds}
    found = {entry.name for entry in manifest.files} - {DESCRIPTION, SUMMARY}
    _require_none(path, _difference(needed, found, "the model's description"))
    return ModelFiles(path=path, description=description, key=manifest.key, entries=manifest.files)


def _parts(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        issue = Issue(code="bundle.not_a_bundle", where=str(path), message=f"not a bundle ({error})", fix=WRITERS)
        raise AutosegError(issue) from error
    if MANIFEST not in {part.filename for part in parts}:
        message = f"not a bundle: no {MANIFEST}"
        raise AutosegError(Issue(code="bundle.not_a_bundle", where=str(path), message=message, fix=WRITERS))
    return parts


def _put(archive: zipfile.ZipFile, name: str, content: bytes) -> Entry:
    archive.writestr(zip_member(name), content)
    return Entry(name=name, size=len(content), sha256=sha256(content).hexdigest())


def _name_faults(parts: list[zipfile.ZipInfo]) -> list[str]:
    names = Counter(part.filename for part in parts)
    duplicates = [f"{name} occurs {count} times" for name, count in names.items() if count > 1]
    return duplicates + [f"{name!r} is not a valid name" for name in names if not _stays_inside(name)]


def _stays_inside(name: str) -> bool:
    """Whether a name stays below the folder that it would be unpacked to, on any system."""
    path = PurePosixPath(name)
    plain = not any(character in name for character in "\\:\0")
    return plain and bool(path.parts) and not path.is_absolute() and ".." not in path.parts and str(path) == name


def _form_faults(parts: list[zipfile.ZipInfo], path: Path) -> list[str]:
    """Parts of a bundle are stored uncompressed, so together they are no larger than the file."""
    odd = [
        f"{part.filename} is {'encrypted' if part.flag_bits & ENCRYPTED else 'compressed'}"
        for part in parts
        if part.compress_type != zipfile.ZIP_STORED
        or part.flag_bits & ENCRYPTED
        or part.file_size != part.compress_size
    ]
    size, largest = sum(part.file_size for part in parts), path.stat().st_size
    return odd + ([f"its parts have {size} bytes, but the file has {largest}"] if size > largest else [])


def _manifest_faults(manifest: Manifest, parts: list[zipfile.ZipInfo]) -> list[str]:
    found = {part.filename: part.file_size for part in parts if part.filename != MANIFEST}
    listed = {entry.name: entry.size for entry in manifest.files}
    faults = _difference(set(listed) | {DESCRIPTION}, set(found), "the manifest")
    if len(listed) < len(manifest.files):
        faults.append("the manifest lists a part twice")
    return faults + [
        f"{name} has {found[name]} bytes instead of {size}"
        for name, size in listed.items()
        if found.get(name, size) != size
    ]


def _difference(needed: set[str], found: set[str], source: str) -> list[str]:
    missing = [f"{name} is missing" for name in sorted(needed - found)]
    return missing + [f"{name} is not listed in {source}" for name in sorted(found - needed)]


def _content(path: Path, entry: Entry) -> bytes:
    """A part with the size and hash that the manifest lists."""
    content = _read(path, entry.name, entry.size)
    if sha256(content).hexdigest() != entry.sha256:
        _require_none(path, [f"{entry.name} has another SHA-256 than the manifest lists"])
    return content


def _read(path: Path, name: str, limit: int) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as part:
            content = part.read(limit + 1)
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, EOFError, NotImplementedError) as error:
        issue = Issue(code="bundle.damaged", where=_part(path, name), message=f"could not be read ({error})", fix=AGAIN)
        raise AutosegError(issue) from error
    if len(content) > limit:
        _require_none(path, [f"{name} has more than {limit} bytes"])
    return content


def _document(model: type[D], path: Path, name: str, text: bytes) -> D:
    try:
        return read_document(model, text, where=_part(path, name))
    except DocumentError as error:
        fix = "download the bundle again, or use the autoseg that wrote it"
        issues = [
            Issue(code="bundle.damaged", where=_part(path, name), message=str(issue), fix=fix) for issue in error.issues
        ]
        raise AutosegError(*issues) from error


def _part(path: Path, name: str) -> str:
    return f"{path}: {name}"


def _require_none(path: Path, faults: Sequence[str]) -> None:
    """Raise `AutosegError` with all ``faults`` of a bundle, if there are any."""
    if faults:
        issues = [Issue(code="bundle.damaged", where=str(path), message=fault, fix=AGAIN) for fault in faults]
        raise AutosegError(*issues)
