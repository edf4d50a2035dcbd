"""Sums of overlapping windows, each kept only from the first window that reaches it until its mean is taken.

Voxels that are in the same windows along each axis are one cell. Cells that do not fit into the memory that is given lie in a temporary
file meanwhile; those that are needed last go first. Every voxel is added up in the order of the windows, whatever memory there is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from autoseg.inference.sliding_window import Triple, WindowGrid
from autoseg.storage.atomic import write_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where sums of windows are kept."""

    memory_bytes: int | None = None
    """Of main memory; none: as much as they take."""
    folder: Path | None = None
    """For what does not fit; none: that of the system for temporary files."""


@dataclass(slots=True, kw_only=True)
class Cell:
    """A block of voxels; ``sums`` (c0, K, c1, c2) and the ``weights`` (c0, 1, c1, c2) that they were multiplied with."""

    place: tuple[slice, slice, slice]
    """In the padded volume."""
    reached: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """First and last window that reach it, along each axis."""
    next_use: int
    """Index of the next window."""
    sums: Tensor | None = None
    """None: in the file."""
    weights: Tensor
    slot: int | None = None
    """Its place in the file."""

    @property
    def shape(self) -> Triple:
        a, b, c = (side.stop - side.start for side in self.place)
        return a, b, c

    @property
    def held(self) -> Tensor:
        """Sums that are in memory."""
        if self.sums is None:
            raise ValueError("the sums of a cell were asked for while they were in the file")
        return self.sums


@dataclass(slots=True, kw_only=True)
class WindowSums:
    """Weighted sums of ``classes`` scores over the windows of a grid, and their means row by row of the first axis."""

    grid: WindowGrid
    classes: int
    dtype: torch.dtype
    device: torch.device
    room: Room = field(default_factory=Room)
    _cells: dict[Triple, Cell] = field(default_factory=dict)
    _file: IO[bytes] | None = None
    _free: list[int] = field(default_factory=list)
    """Slots of the file that are empty again."""
    _slots: int = 0

    def add(self, index: int, part: Tensor, weights: Tensor) -> None:
        """Add a window's scores (p0, K, p1, p2), times their ``weights`` (p0, 1, p1, p2), float32, in the order of windows."""
        self.reserve(index)
        corner = [side.start for side in self.grid.place(index)]
        for cell in self._cells_of(index):
            inside = _overlap(self.grid.place(index), cell.place)
            within = tuple(slice(s.start - o, s.stop - o) for s, o in zip(inside, corner, strict=True))
            own = tuple(slice(s.start - c.start, s.stop - c.start) for s, c in zip(inside, cell.place, strict=True))
            held, scores, factors = cell.held[_of_all(own)], part[_of_all(within)], weights[_of_all(within)]
            step = 1 if held.device.type == "cpu" else len(held)  # a row of a window stays in a processor's cache
            for row in range(0, len(held), step):
                rows = slice(row, row + step)
                held[rows] += scores[rows].float() * factors[rows]
            cell.weights[_of_all(own)] += factors
            cell.next_use = self._next_use(cell, index)

    def reserve(self, index: int) -> None:
        """Have all that a window is added to in memory: nothing is allocated when it is added."""
        wanted = list(self._cells_of(index))
        if self.room.memory_bytes is not None:
            self._make_room(wanted)
        for cell in wanted:
            if cell.sums is None:
                shape = (cell.shape[0], self.classes, *cell.shape[1:])
                if cell.slot is None:
                    cell.sums = torch.zeros(shape, dtype=self.dtype, device=self.device)
                else:
                    cell.sums = self._read(cell.slot, shape)
                    self._free.append(cell.slot)
                    cell.slot = None

    def means(self, first: int, last: int) -> Tensor:
        """Means (K, last - first, a1, a2) of rows of the volume, which must be complete; rows before are dropped."""
        before = self.grid.padding[0][0]
        self._drop(first + before)
        _, a1, a2 = self.grid.shape
        result = torch.empty((self.classes, last - first, a1, a2), dtype=self.dtype)
        bounds = [slice(low, low + n) for (low, _), n in zip(self.grid.padding, self.grid.shape, strict=True)]
        wanted = (slice(first + before, last + before), bounds[1], bounds[2])
        for cell in self._cells.values():
            met = _overlap(wanted, cell.place)
            if any(side.start >= side.stop for side in met):
                continue
            own = tuple(slice(s.start - c.start, s.stop - c.start) for s, c in zip(met, cell.place, strict=True))
            target = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(met, wanted, strict=True))
            rows, weights = self._rows(cell, own[0])[:, :, own[1], own[2]], cell.weights[_of_all(own)]
            for row, weight, place in zip(rows, weights, range(target[0].start, target[0].stop), strict=True):
                result[:, place, target[1], target[2]] = row / weight
        return result

    def move_to(self, device: torch.device) -> None:
        """Keep everything on another device from now on."""
        self.device = device
        for cell in self._cells.values():
            cell.weights = cell.weights.to(device)
            cell.sums = None if cell.sums is None else cell.sums.to(device)

    def close(self) -> None:
        """Forget everything; the file is gone."""
        self._cells.clear()
        self._free.clear()
        self._slots = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- cells ---

    def _edges(self, axis: int) -> tuple[int, ...]:
        """Cells are whole rows if they fit into memory: adding to a few large cells is faster."""
        if axis and self.room.memory_bytes is None:
            return 0, self.grid.starts[axis][-1] + self.grid.patch[axis]
        return self.grid.edges(axis)

    def _cells_of(self, index: int) -> Iterator[Cell]:
        """All cells that a window reaches; new ones are made."""
        sides = []
        for axis, side in enumerate(self.grid.place(index)):
            spans = pairwise(self._edges(axis))
            sides.append([slice(a, b) for a, b in spans if b > side.start and a < side.stop])
        for place in product(*sides):
            key = (place[0].start, place[1].start, place[2].start)
            cell = self._cells.get(key)
            if cell is None:
                c0, c1, c2 = (side.stop - side.start for side in place)
                a, b, c = (self.grid.around(axis, side.start, side.stop) for axis, side in enumerate(place))
                weights = torch.zeros((c0, 1, c1, c2), dtype=self.dtype, device=self.device)
                cell = Cell(place=place, reached=(a, b, c), next_use=index, weights=weights)  # type: ignore[arg-type]
                self._cells[key] = cell
            yield cell

    def _next_use(self, cell: Cell, index: int) -> int:
        """The next window that reaches a cell; of a complete one, the first of the next row of windows: then it is read."""
        (_, last0), (first1, last1), (first2, last2) = cell.reached
        i, j, k = self.grid.steps(index)
        if k < last2:
            return index + 1
        if j < last1:
            return self.grid.index((i, j + 1, first2))
        return self.grid.index((i + 1, first1, first2) if i < last0 else (i + 1, 0, 0))

    def _drop(self, row: int) -> None:
        """Forget cells that end before a row of the padded volume."""
        for key in [key for key, cell in self._cells.items() if cell.place[0].stop <= row]:
            if (slot := self._cells.pop(key).slot) is not None:
                self._free.append(slot)

    # --- what does not fit ---

    def _bytes(self, shape: Sequence[int]) -> int:
        a, b, c = shape
        return a * b * c * self.classes * self.dtype.itemsize

    def _make_room(self, wanted: Sequence[Cell]) -> None:
        """Write cells to the file, those that are needed last first, until what a window needs fits into memory."""
        own = {id(cell) for cell in wanted}
        held = [cell for cell in self._cells.values() if cell.sums is not None and id(cell) not in own]
        excess = sum(self._bytes(cell.shape) for cell in (*held, *wanted)) - (self.room.memory_bytes or 0)
        for cell in sorted(held, key=lambda each: each.next_use, reverse=True) if excess > 0 else ():
            cell.slot, cell.sums = self._write(cell), None
            excess -= self._bytes(cell.shape)
            if excess <= 0:
                return

    def _slot_bytes(self) -> int:
        return self._bytes([max(b - a for a, b in pairwise(self._edges(axis))) for axis in range(3)])

    def _open(self, slot: int, skipped: int = 0) -> IO[bytes]:
        """The file, at a number of bytes of a slot."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.room.folder, buffering=0)  # noqa: SIM115  # closed by `close`
        self._file.seek(slot * self._slot_bytes() + skipped)
        return self._file

    def _write(self, cell: Cell) -> int:
        if not self._free:
            self._free.append(self._slots)
            self._slots += 1
        slot = self._free.pop()
        data = cell.held.numpy().view(np.uint8).data.cast("B")
        try:
            file = self._open(slot)
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise write_error(Path(self.room.folder or tempfile.gettempdir()) / "window sums", error) from error
        return slot

    def _read(self, slot: int, shape: Sequence[int], *, skipped: int = 0) -> Tensor:
        """A tensor of ``shape`` from the file, after so many bytes of a slot."""
        result = torch.empty(tuple(shape), dtype=self.dtype)
        data, file = result.numpy().view(np.uint8).data.cast("B"), self._open(slot, skipped)
        while data:
            number = file.readinto(data)  # type: ignore[attr-defined]
            if not number:
                raise OSError("the temporary file of window sums is shorter than what was written")
            data = data[number:]
        return result

    def _rows(self, cell: Cell, rows: slice) -> Tensor:
        """Some rows (n, K, c1, c2) of a cell, from memory or the file."""
        if cell.slot is None:
            return cell.held[rows]
        _, c1, c2 = cell.shape
        skipped = self._bytes((rows.start, c1, c2))
        return self._read(cell.slot, (rows.stop - rows.start, self.classes, c1, c2), skipped=skipped)


def _of_all(where: Sequence[slice]) -> tuple[slice, ...]:
    """A place in all classes, which are the second axis."""
    return (where[0], slice(None), where[1], where[2])


def _overlap(one: Sequence[slice], other: Sequence[slice]) -> tuple[slice, ...]:
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
