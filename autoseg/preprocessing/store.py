"""Preprocessed cases on disk: compressed arrays of which a patch can be read without the volume.

A case is four files: ``CASE.image.b2nd``, ``CASE.labels.b2nd`` (labelled cases), ``CASE.locations.npz`` and, written
last, ``CASE.case.json``. Without that record the case does not exist.
"""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import blosc2
import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.placement import Placement
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import load_document, sync_folder, temporary_folder, write_error, write_together
from autoseg.wording import shorten
from planners import Document, write_document

Shape = tuple[int, ...]
STORAGE_VERSION = 1
"""Increased when stored files get another meaning, so that older ones are made again."""
MADE_FROM = "made_from"
"""Name under which the file of an array keeps the key of what it was made from."""
RECORD_ENDING = ".case.json"
MAX_BLOCK_BYTES = 128 * 1024
"""One block fits into the second-level cache of a core (method section 4.6)."""
MAX_CHUNK_BYTES = 6 * 2**20
PATCH_MARGIN = 1.5
"""Chunks grow up to this multiple of the patch: what random patches and their margins touch."""
COMPRESSION_LEVEL = 1
"""Of Zstandard: as small as the method's LZ4HC, written seven times as fast (docs/decisions/0020)."""
DAMAGE = (OSError, RuntimeError, ValueError, OverflowError)
"""What blosc2 raises for damaged files; indices outside an array are an `IndexError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One case, ready for a network. Axes are plan axes."""

    image: NDArray[np.float32]
    """(C, a0, a1, a2), normalised and resampled."""
    labels: NDArray[np.int16] | None
    """(a0, a1, a2), internal values, -1 outside the non-zero mask; none for unlabelled cases."""
    placement: Placement


class CaseRecord(Document):
    """``CASE.case.json``: what a stored case was made from, and where it is in its source."""

    storage_version: Literal[1] = 1
    case_id: str
    made_from: str
    """Key of everything that decides its voxels: plan, label values and the content of its files."""
    image_shape: tuple[int, int, int, int]
    has_labels: bool
    placement: Placement
    sizes: dict[str, int]
    """Bytes of each of the case's other files by its ending."""


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An open array on disk. Damage is found where it is read, so any read may raise `AutosegError`."""

    path: Path
    array: Any
    """As blosc2 sees it."""

    @property
    def shape(self) -> Shape:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        kind: np.dtype[Any] = self.array.dtype
        return kind

    @property
    def made_from(self) -> str | None:
        """Key of what it was made from; none: its file has none."""
        try:
            metadata = self.array.schunk.meta
            return str(metadata[MADE_FROM]) if MADE_FROM in metadata else None
        except DAMAGE as error:
            raise _unreadable(self.path, error) from error

    def __getitem__(self, where: Any) -> NDArray[Any]:
        try:
            values: NDArray[Any] = self.array[where]
        except DAMAGE as error:
            raise _unreadable(self.path, error) from error
        return values


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A case on disk. Holds paths only, so it can be sent to other processes; arrays are opened on access."""

    folder: Path
    case_id: str
    record: CaseRecord

    @property
    def image(self) -> StoredArray:
        """float32 (C, a0, a1, a2): slice it like an array, only the chunks that are touched are read."""
        return open_array(self.folder / f"{self.case_id}.image.b2nd")

    @property
    def labels(self) -> StoredArray:
        """int16 (a0, a1, a2), sliced like ``image``. Raises `AutosegError` for cases stored without labels."""
        if not self.record.has_labels:
            message = f"case {self.case_id} has no labels"
            fix = "train on labelled cases only"
            raise AutosegError(
                Issue(code="store.no_labels", where=str(self.folder), message=message, fix=fix, case=self.case_id)
            )
        return open_array(self.folder / f"{self.case_id}.labels.b2nd")

    @property
    def placement(self) -> Placement:
        """Where the arrays are in the source image."""
        return self.record.placement

    @property
    def locations(self) -> dict[str, NDArray[np.int32]]:
        """Sampled voxels (N, 3) of each class (see ``class_locations``); empty for cases without labels.

        Raises `AutosegError` when the file is missing or damaged.
        """
        path = self.folder / f"{self.case_id}.locations.npz"
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                names = [str(name) for name in stored["names"]]
                return {name: stored[f"voxels_{i}"] for i, name in enumerate(names)}
        except (OSError, BadZipFile, ValueError, KeyError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from error


def write_case(
    folder: Path,
    case_id: str,
    prepared: Prepared,
    locations: Mapping[str, NDArray[np.int32]],
    *,
    made_from: str,
    patch_shape: Shape | None = None,
) -> None:
    """Store a case in ``folder``, replacing an older one of this id; it is stored whole or not at all.

    ``made_from`` is the key of everything it was made from. ``patch_shape`` (two or three axes) shapes the chunks for the
    patches that will be read; it changes speed only. Raises `AutosegError` when the disk is full or read-only.
    """
    patch = patch_shape or prepared.image.shape[1:]
    contents = {".image.b2nd": pack_array(prepared.image, patch)}
    if prepared.labels is not None:
        contents[".labels.b2nd"] = pack_array(prepared.labels, patch)
    voxels = {f"voxels_{i}": array for i, array in enumerate(locations.values())}
    buffer = BytesIO()
    np.savez_compressed(buffer, names=np.array(list(locations), dtype=str), **voxels)  # type: ignore[arg-type]
    contents[".locations.npz"] = buffer.getvalue()
    record = CaseRecord(
        case_id=case_id,
        made_from=made_from,
        image_shape=prepared.image.shape,
        has_labels=prepared.labels is not None,
        placement=prepared.placement,
        sizes={ending: len(content) for ending, content in contents.items()},
    )
    contents[RECORD_ENDING] = write_document(record).encode()
    remove_case(folder, case_id)
    write_together({folder / f"{case_id}{ending}": content for ending, content in contents.items()})


def open_case(folder: Path, case_id: str) -> StoredCase:
    """A stored case. Raises `AutosegError` when it was not stored, or not completely."""
    return StoredCase(folder, case_id, load_document(CaseRecord, folder / f"{case_id}{RECORD_ENDING}"))


def is_stored(folder: Path, case_id: str, made_from: str) -> bool:
    """Whether the case is complete, no file of it is truncated, and it was made from the same."""
    record = _record_made_from(folder, case_id, made_from)
    if record is None:
        return False
    endings = {".image.b2nd", ".locations.npz"} | ({".labels.b2nd"} if record.has_labels else set())
    paths = {ending: folder / f"{case_id}{ending}" for ending in endings}
    return record.sizes == {ending: path.stat().st_size if path.is_file() else None for ending, path in paths.items()}


def require_cases(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise `AutosegError` if a stored case is missing or was not made from what is ``expected`` (key by case id).

    A record is removed before its arrays and written after them: if it is right, so is what was read before.
    """
    others = sorted(case_id for case_id, key in expected.items() if _record_made_from(folder, case_id, key) is None)
    if others:
        message = f"another process preprocessed these cases for another plan or dataset: {shorten(others)}"
        fix = "run the same command again to resume, and use another run folder for the other plan"
        raise AutosegError(Issue(code="store.replaced", where=str(folder), message=message, fix=fix))


def _record_made_from(folder: Path, case_id: str, made_from: str) -> CaseRecord | None:
    """The record of a stored case; none where it is missing, damaged, or of something else."""
    try:
        record = open_case(folder, case_id).record
    except AutosegError:
        return None
    return record if record.made_from == made_from else None


def remove_case(folder: Path, case_id: str) -> None:
    """Remove a stored case, its record first, so that no record ever names missing files."""
    record = folder / f"{case_id}{RECORD_ENDING}"
    try:
        if record.exists():
            record.unlink()
            sync_folder(folder)  # before other files replace those that it names
        for ending in (".image.b2nd", ".labels.b2nd", ".locations.npz"):
            (folder / f"{case_id}{ending}").unlink(missing_ok=True)
    except OSError as error:
        raise write_error(record, error) from error


def open_array(path: Path) -> StoredArray:
    """A stored array, sliced like any other. Raises `AutosegError` when the file is missing or damaged."""
    try:
        # one thread: there are many reader processes already; mapped: a patch touches only its own pages
        array = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        if not isinstance(array, blosc2.NDArray):
            raise ValueError("not an array")
    except DAMAGE as error:
        raise _unreadable(path, error) from error
    return StoredArray(path, array)


def _unreadable(path: Path, error: Exception) -> AutosegError:
    fix = "delete it and run the same command again, which makes it again"
    return AutosegError(Issue(code="store.damaged", where=str(path), message=f"could not be read ({error})", fix=fix))


def pack_array(array: NDArray[Any], patch_shape: Shape, *, made_from: str | None = None) -> bytes:
    """The file of one array, compressed, with the key of what it was made from.

    The first axis of four is the channel, and each chunk holds one channel.
    """
    lead = (1,) * (array.ndim - 3)
    chunk, block = chunk_and_block(array.shape[-3:], patch_shape, array.dtype.itemsize)
    array = np.ascontiguousarray(array)
    packed: bytes = blosc2.asarray(
        array,
        chunks=(*lead, *chunk),
        blocks=(*lead, *block),
        cparams=_parameters(_choose_filter(array, block)),
        meta={} if made_from is None else {MADE_FROM: made_from},
    ).to_cframe()
    return packed


@contextmanager
def scratch_array(shape: Shape, kind: Any, *, folder: Path | None = None) -> Iterator[Any]:
    """A compressed array (K, a0, a1, a2) in a temporary file, written and read by rows of its second axis; gone at the end.

    ``folder``: where; none: the system's for temporary files. Raises `AutosegError` where the disk is full.
    """
    place = (folder or Path(tempfile.gettempdir())) / "scores"
    with temporary_folder(place) as temporary:
        try:
            yield _empty(temporary / "scores.b2nd", shape, kind, (1, 1, *shape[2:]), None, blosc2.Filter.SHUFFLE)
        except DAMAGE as error:  # blosc2 does not say why it could not write
            raise write_error(place, error if isinstance(error, OSError) else OSError(str(error))) from error


def write_volumes(path: Path, volumes: Iterable[NDArray[Any]], shape: Shape, patch_shape: Shape) -> None:
    """Write the array file ``path`` of ``shape`` (K, Z, Y, X), as `pack_array` packs it, from its K ``volumes``, one after the other.

    Raises `OSError` where the disk is full.
    """
    array = None
    chunk, block = chunk_and_block(shape[1:], patch_shape, 2)
    for k, volume in enumerate(volumes):
        try:
            if array is None:
                shuffle = _choose_filter(volume, block)
                array = _empty(path, shape, volume.dtype, (1, *chunk), (1, *block), shuffle)
            array[k] = volume
        except RuntimeError as error:
            raise OSError(str(error)) from error


def _empty(path: Path, shape: Shape, kind: Any, chunks: Shape, blocks: Shape | None, shuffle: Any) -> Any:
    return blosc2.empty(
        shape, dtype=kind, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=_parameters(shuffle)
    )


def _parameters(shuffle: Any) -> dict[str, Any]:
    return {"codec": blosc2.Codec.ZSTD, "clevel": COMPRESSION_LEVEL, "filters": [shuffle], "nthreads": 1}


def _choose_filter(array: NDArray[Any], block: Shape) -> Any:
    """The filter that packs a centred block better; none if both do equally well."""
    middle = tuple(slice((n - b) // 2, (n - b) // 2 + b) for n, b in zip(array.shape[-3:], block, strict=True))
    piece = np.ascontiguousarray(array.reshape(-1, *array.shape[-3:])[0][middle])
    filters = (blosc2.Filter.NOFILTER, blosc2.Filter.SHUFFLE)
    return min(filters, key=lambda shuffle: blosc2.asarray(piece, cparams=_parameters(shuffle)).schunk.cbytes)


def chunk_and_block(shape: Shape, patch_shape: Shape, itemsize: int) -> tuple[Shape, Shape]:
    """Chunk and block shape of a spatial ``shape`` (3 axes) read in patches of two or three axes (method section 4.6)."""
    patch = (1,) * (3 - len(patch_shape)) + tuple(patch_shape)
    target = [max(1, min(n, math.floor(PATCH_MARGIN * p))) for n, p in zip(shape, patch, strict=True)]
    block = [min(_power_of_two_from(p), n) for n, p in zip(shape, patch, strict=True)]
    while math.prod(block) * itemsize > MAX_BLOCK_BYTES:
        axis = max((a for a in range(3) if block[a] > 1), key=lambda a: (block[a] / target[a], a))
        block[axis] = _power_of_two_from(block[axis]) // 2
    chunk = list(block)
    while True:  # grow the axis that is furthest behind
        candidates = []
        for axis in range(3):
            if patch[axis] == 1 or chunk[axis] >= min(shape[axis], target[axis]):
                continue
            grown = min(chunk[axis] + block[axis], shape[axis], target[axis])
            if math.prod(chunk) // chunk[axis] * grown * itemsize <= MAX_CHUNK_BYTES:
                candidates.append((chunk[axis] / target[axis], -shape[axis], axis, grown))
        if not candidates:
            return tuple(chunk), tuple(block)
        _, _, axis, grown = min(candidates)
        chunk[axis] = grown


def _power_of_two_from(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << (number - 1).bit_length()
