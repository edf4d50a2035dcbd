"""Logits of a volume of any size, computed while they are read: rows of the first axis, from the first to the last (method section 8.1)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.inference.engines import Network
from autoseg.inference.sliding_window import STEP, WindowGrid, half_importance_map, importance_map
from autoseg.inference.window_sums import Room, WindowSums

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HalfPrecisionOverflowError(Exception):
    """Sums of windows are beyond half precision; ``logits`` must be computed once more, in single precision."""

    def __init__(self, logits: WindowLogits) -> None:
        super().__init__("sums of windows overflow half precision")
        self.logits = logits


class NoWindowFitsError(Exception):
    """Not even one window of ``logits`` fits into memory."""

    def __init__(self, logits: WindowLogits) -> None:
        super().__init__("not even one window fits into memory")
        self.logits = logits


@dataclass(slots=True)
class _Sums:
    """Sums of some networks' windows, and what these networks say where an image is constant."""

    networks: Sequence[Network]
    cells: WindowSums
    constant: Tensor | None = None
    """Logits (K, patch...) of a window whose every channel has one value."""
    values: tuple[float, ...] | None = None
    """Those of its channels."""


@dataclass(slots=True)
class _Window:
    index: int
    voxels: Tensor
    """(C, patch...)."""
    values: tuple[float, ...] | None
    """Of the channels, where each has only one."""


@dataclass(slots=True, kw_only=True)
class WindowLogits:
    """Mean logits (K, a0, a1, a2) of ``networks``, float32; read ``[:, first:last]``, never before an earlier ``first``.

    A row is computed when it is read: windows move along the last axis first, and what overlaps of them is summed up in that order
    (`WindowSums`). ``image``: float32 (C, a0, a1, a2), preprocessed. With a 2D ``patch`` every slice along a0 is predicted on its own.
    ``mirror_axes`` are axes of the patch; all their combinations are averaged. The networks must be on ``device``, modules of torch in evaluation
    mode. With ``sums`` float16, windows and networks are summed as in nnU-Net; the rounding matters if two classes are almost
    equal: of equal ones the first wins, so otherwise an uncertain network would predict the lower class less often.

    If memory runs out, fewer windows go through the network at once, and finally sums are kept in main memory. Reading raises
    `NoWindowFitsError` where that does not fit either, and `HalfPrecisionOverflowError`; then `restart` and read from the first row on.

    A window without contrast, all air of a CT, gives the same logits wherever it is: they are computed once. ``every_window`` computes
    it anew each time.
    """

    image: Tensor
    networks: Sequence[Network]
    num_outputs: int
    patch: Sequence[int]
    mirror_axes: Sequence[int]
    precision: str
    device: torch.device
    batch_size: int = 1
    """Windows that go through the network at once."""
    step: float = STEP
    """Largest distance of windows, as a share of the patch."""
    sums: torch.dtype = torch.float32
    gathered_on: torch.device | None = None
    """Where sums are kept; none: on ``device``."""
    room: Room = field(default_factory=Room)
    every_window: bool = False
    remembers: bool = True
    """Keep the logits of a window without contrast, which takes memory."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Told after each batch how many windows are done, and how many there are."""
    skipped: int = 0
    """Windows without contrast so far that were not computed."""
    _grid: WindowGrid = field(init=False)
    _padded: Tensor = field(init=False)
    _weights: Tensor = field(init=False)
    _of: list[_Sums] = field(init=False, default_factory=list)
    _done: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._grid = WindowGrid.of(self.image.shape[1:], self.patch, step=self.step)
        padding = [side for sides in reversed(self._grid.padding) for side in sides]
        self._padded = functional.pad(self.image, padding) if any(padding) else self.image
        self.restart()

    def restart(self, sums: torch.dtype | None = None) -> None:
        """Begin again with the first window, from now on with ``sums`` of that type."""
        self.close()
        self.sums, self._done, self.skipped = sums or self.sums, 0, 0
        weights = (importance_map if self.sums == torch.float32 else half_importance_map)(self.patch)
        self._weights = weights.to(self.device)
        groups = [self.networks] if self.sums == torch.float32 else [[network] for network in self.networks]
        where = self.gathered_on or self.device
        self._of = [
            _Sums(
                group,
                WindowSums(grid=self._grid, classes=self.num_outputs, dtype=self.sums, device=where, room=self.room),
            )
            for group in groups
        ]

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, a0, a1, a2)."""
        return (self.num_outputs, *self.image.shape[1:])

    def __getitem__(self, where: tuple[slice, slice]) -> Floats:
        """Rows ``[:, first:last]``."""
        rows = where[1]
        if where[0] != slice(None) or rows.step not in (None, 1):
            raise ValueError("logits are read as [:, first:last]")
        first, last = rows.start or 0, self.shape[1] if rows.stop is None else rows.stop
        needed = last + self._grid.padding[0][0]
        while self._grid.complete_rows(self._done) < needed:
            self._advance()
        result = self._mean(first, last)
        if last == self.shape[1]:
            for each in self._of:
                each.constant = None
        return result

    def _mean(self, first: int, last: int) -> Floats:
        """Of complete rows."""
        means = (each.cells.means(first, last) for each in self._of)
        if self.sums == torch.float32:
            (mean,) = means
        else:
            total = torch.zeros((), dtype=torch.float16)
            for each in means:
                total = total + each
            if not bool(torch.isfinite(total).all()):
                raise HalfPrecisionOverflowError(self)
            mean = (total / len(self._of)).float()
        result: Floats = mean.numpy()
        return result

    def close(self) -> None:
        """Free memory and files; what is not read yet is lost."""
        for each in self._of:
            each.cells.close()
            each.constant = None

    # --- windows ---

    def _advance(self) -> None:
        """Compute and add the next batch of windows."""
        group = list(self._next_windows())
        with torch.inference_mode():
            for each in self._of:
                left: Sequence[_Window] = group
                while left:
                    left = self._add_some(left, each)
        self._done += len(group)
        self.progress(self._done, self._grid.number)

    def _next_windows(self) -> Iterator[_Window]:
        """So many windows as have ``batch_size`` to compute; those that are known already take no time."""
        new = 0
        for index in range(self._done, self._grid.number):
            window = self._window(index)
            new += not self._is_known(window, self._of[-1])
            yield window
            if new == self.batch_size:
                return

    def _window(self, index: int) -> _Window:
        place: tuple[Any, ...] = self._grid.place(index)
        if self._grid.is_flat:
            place = (place[0].start, *place[1:])
        voxels = self._padded[(slice(None), *place)]
        values = None
        if self.remembers and not self.every_window:
            first, last = (voxels[(slice(None), *[slice(i, i + 1 or None)] * len(self.patch))] for i in (0, -1))
            if bool((first == last).all()) and bool((voxels == first).all()):
                values = tuple(first.flatten().tolist())
        return _Window(index, voxels, values)

    def _is_known(self, window: _Window, sums: _Sums) -> bool:
        return window.values is not None and window.values == sums.values

    def _add_some(self, windows: Sequence[_Window], sums: _Sums) -> Sequence[_Window]:
        """Add the first few of ``windows`` and return the others; all of them, with less memory for the next attempt, if it ran out."""
        new = [window for window in windows if not self._is_known(window, sums)][: self.batch_size]
        more = [window for window in windows if not self._is_known(window, sums)][self.batch_size :]
        some = [window for window in windows if not more or window.index < more[0].index]
        try:
            for window in some if self.room.memory_bytes is None else ():
                sums.cells.reserve(window.index)
            logits = None if not new else self._logits([window.voxels for window in new], sums.networks)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.debug("%d windows at once with sums on %s do not fit: %s", len(new), sums.cells.device, error)
            logits = None
        else:
            self._add(some, new, logits, sums)
            return windows[len(some) :]
        release_memory(self.device)  # only now: the error refers to what the attempt had taken
        self._take_less(len(new))
        return windows

    def _take_less(self, size: int) -> None:
        """Half the windows at once, or else the sums in main memory."""
        if size > 1:
            self.batch_size = -(-size // 2)
        elif self._of[0].cells.device != CPU:
            for each in self._of:
                each.cells.move_to(CPU)
        else:
            raise NoWindowFitsError(self)

    def _add(self, some: Sequence[_Window], new: Sequence[_Window], logits: Tensor | None, sums: _Sums) -> None:
        """Add windows in their order: ``logits`` has those of the ``new`` ones."""
        device, number = sums.cells.device, 0
        weights = self._weights.to(device)
        weights = weights[None, None] if self._grid.is_flat else weights[:, None]
        for window in some:
            if number < len(new) and window is new[number] and logits is not None:
                part, number = logits[number], number + 1
                if window.values is not None and sums.values is None:
                    sums.values, sums.constant = window.values, part.clone()
            elif sums.constant is not None:
                part, self.skipped = sums.constant, self.skipped + (sums is self._of[0])
            part = part.to(device)
            part = part[None] if self._grid.is_flat else part.movedim(0, 1)
            sums.cells.add(window.index, part, weights)

    def _logits(self, windows: Sequence[Tensor], networks: Sequence[Network]) -> Tensor:
        """Logits (N, K, patch...) of a batch of windows, averaged over networks and mirror images."""
        batch = torch.stack(list(windows)).to(self.device)
        return mean_logits(batch, networks, mirror_axes=self.mirror_axes, precision=self.precision)


def mean_logits(windows: Tensor, networks: Sequence[Network], *, mirror_axes: Sequence[int], precision: str) -> Tensor:
    """Logits of a batch of windows, float32 mean over networks and mirror images; of a single one as it computes them."""
    dtype = DTYPES[precision]
    flips = [
        tuple(axis + 2 for axis in chosen)
        for count in range(len(mirror_axes) + 1)
        for chosen in itertools.combinations(mirror_axes, count)
    ]
    total: Tensor | None = None
    for network in networks:
        for axes in flips:
            flipped = windows.flip(axes) if axes else windows
            with torch.autocast(windows.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits: Tensor = network(flipped)
            logits = logits.flip(axes) if axes else logits
            if len(networks) * len(flips) == 1:
                return logits
            total = logits.to(torch.float32, copy=True) if total is None else total.add_(logits)
            del logits
    if total is None:
        raise ValueError("logits need at least one network")
    return total.div_(len(networks) * len(flips))
