"""RankSEG (Dai and Li, JMLR 2023; Wang and Dai, NeurIPS 2025; method section 9.5), in bounded memory.

It chooses for each class as many voxels as make its expected Dice largest, where the largest probability makes the expected number of wrong
voxels smallest. That depends on all voxels, so those that are not certain are kept, in blocks: in memory as long as they fit, then in a
temporary file, and looked at again and again. Blocks are added up in the same order wherever they are, so label maps do not depend on memory.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.label_maps import (
    THRESHOLD,
    Floats,
    LabelMap,
    Slab,
    compose_regions,
    largest_scores,
    type_for,
)
from autoseg.imaging.resampling import to_probabilities
from autoseg.storage.atomic import write_error
from planners import Labels

CERTAIN = 0.999
"""For RankSEG, a voxel whose largest probability is above this has the probabilities 1 and 0, and a region's that is above, or below
the rest of 1, likewise. That leaves few voxels to look at again, and shifts expected volumes by less than a thousandth of the image."""
BLOCK_VOXELS = 2**16
"""Of a block of doubtful voxels: 31 MB for 118 classes."""
_LEAD = math.log(CERTAIN / (1 - CERTAIN))
"""Of a logit above 0, or above each of the others, shared among these."""


def rank_labels(
    slabs: Iterable[Slab],
    shape: tuple[int, int, int],
    labels: Labels,
    *,
    are_logits: bool,
    outside: int = 0,
    memory_bytes: int | None = None,
    folder: Path | None = None,
) -> tuple[LabelMap, LabelMap]:
    """Two label maps (*shape), internal values: of the largest probability, and of RankSEG.

    ``slabs`` cover the first axis, with the probabilities or the logits of every class. For each class with probabilities p, the
    background included, S(t) is the sum of the t largest and m that of all: it claims the t voxels that make
    2 S(t) / (t + m + 1) largest. A class none of whose p is above `THRESHOLD` claims nothing. Voxels that exactly one class claims are
    safe, k of a class with the sum s. A voxel that several claim, or none, goes to the claimant, or the class that claims others, with
    the largest gain 2 / (k + m + 2) * (p - s / (k + m + 1)). Regions keep all that they claim.

    ``outside``: voxels beyond ``shape`` that are background for certain. Voxels that are `CERTAIN` are only counted; the probabilities of the
    others take up to ``memory_bytes``, none: whatever they need, and beyond that a nameless file in ``folder``, none: the system's for
    temporary files. Raises `AutosegError` where the disk is full.
    """
    plain: LabelMap = np.zeros(shape, dtype=type_for(labels))
    certain = np.zeros(labels.num_outputs)
    with closing(_Doubtful(doubtful=np.zeros(shape, np.bool_), memory_bytes=memory_bytes, folder=folder)) as kept:
        for rows, scores in slabs:
            plain[rows], masks = _largest(scores, labels, kept.doubtful[rows], are_logits=are_logits)
            sure = ~kept.doubtful[rows]
            if labels.has_regions:
                certain += [np.count_nonzero(mask & sure) for mask in masks]
            else:
                certain += np.bincount(plain[rows][sure], minlength=len(certain))
            kept.add(rows, scores, labels, are_logits=are_logits)
        if not labels.has_regions:
            certain[0] += outside
        ranked, found = plain.copy(), _rank(kept, certain, labels)
        for block in kept.blocks if found is not None else ():
            ranked[block.rows].reshape(-1)[kept.places(block)] = found.decide(kept.read(block))  # type: ignore[union-attr]
    return plain, ranked


def _largest(
    scores: Sequence[Floats], labels: Labels, doubtful: NDArray[np.bool_], *, are_logits: bool
) -> tuple[LabelMap, list[NDArray[np.bool_]]]:
    """Label values of a slab by the largest scores, and the masks of regions, if there are any; marks voxels that are ``doubtful``."""
    if labels.has_regions:
        low, high = (-_LEAD, _LEAD) if are_logits else (1 - CERTAIN, CERTAIN)
        masks = [each > (0 if are_logits else THRESHOLD) for each in scores]
        for each in scores:
            doubtful |= (each >= low) & (each <= high)
        return compose_regions(masks, labels), masks
    found, lead = largest_scores(scores, labels, leads=are_logits)
    np.less_equal(lead, _LEAD + math.log(len(scores) - 1) if are_logits else CERTAIN, out=doubtful)
    return found, []


@dataclass(frozen=True, slots=True)
class _Block:
    """Probabilities (K, n) of some doubtful voxels of a slab."""

    rows: slice
    part: slice
    """Of the slab's doubtful voxels."""
    held: NDArray[np.float32] | None
    """None: in the file."""
    offset: int = 0


@dataclass(slots=True, kw_only=True)
class _Doubtful:
    """The voxels that are not certain, and their probabilities in blocks."""

    doubtful: NDArray[np.bool_]
    """(a0, a1, a2)."""
    memory_bytes: int | None
    folder: Path | None
    blocks: list[_Block] = field(default_factory=list)
    expected: NDArray[np.float64] | None = None
    """Sum of the probabilities of each class."""
    _held_bytes: int = 0
    _file: IO[bytes] | None = None
    _classes: int = 0

    def add(self, rows: slice, scores: Sequence[Floats], labels: Labels, *, are_logits: bool) -> None:
        """Keep the doubtful voxels of a slab."""
        where = np.flatnonzero(self.doubtful[rows])
        self._classes = len(scores)
        for start in range(0, len(where), BLOCK_VOXELS):
            part = slice(start, min(start + BLOCK_VOXELS, len(where)))
            p = np.array([each.reshape(-1)[where[part]] for each in scores], np.float32)
            if are_logits:
                to_probabilities(p, has_regions=labels.has_regions)
            total = p.sum(axis=1, dtype=np.float64)
            self.expected = total if self.expected is None else self.expected + total
            self._keep(rows, part, p)

    def _keep(self, rows: slice, part: slice, p: NDArray[np.float32]) -> None:
        if self.memory_bytes is None or self._held_bytes + p.nbytes <= self.memory_bytes:
            self._held_bytes += p.nbytes
            self.blocks.append(_Block(rows, part, p))
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # closed by `close`
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(p.data)
            self._file.flush()
        except OSError as error:
            raise write_error(Path(self.folder or tempfile.gettempdir()) / "probabilities", error) from error
        self.blocks.append(_Block(rows, part, None, offset))

    def read(self, block: _Block) -> NDArray[np.float32]:
        """Probabilities (K, n)."""
        if block.held is not None or self._file is None:
            return np.zeros((self._classes, 0), np.float32) if block.held is None else block.held
        number = block.part.stop - block.part.start
        self._file.seek(block.offset)
        p = np.frombuffer(self._file.read(4 * self._classes * number), np.float32)
        return p.reshape(self._classes, number)

    def places(self, block: _Block) -> NDArray[np.intp]:
        """Of a block's voxels in its slab made flat."""
        return np.flatnonzero(self.doubtful[block.rows])[block.part]

    def close(self) -> None:
        """The file is gone."""
        self.blocks.clear()
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """What decides a doubtful voxel."""

    labels: Labels
    limits: Sequence[float]
    """Above which each class claims a voxel; infinite if it claims none."""
    handicaps: NDArray[np.float64]
    """Of each class, taken from a probability, and the ``factors`` of the rest: the gain of one more voxel."""
    factors: NDArray[np.float64]

    def decide(self, p: NDArray[np.float32]) -> LabelMap:
        """Label values of voxels with probabilities (K, n)."""
        claims = _claims(p, self.limits)
        if self.labels.has_regions:
            return compose_regions(list(claims), self.labels)
        claimants = claims.sum(axis=0, dtype=np.uint16)
        result: LabelMap = np.zeros(claimants.shape, dtype=type_for(self.labels))
        for k, own in enumerate(claims):
            result[own & (claimants == 1)] = k
        is_open = claimants != 1
        gains = p[:, is_open] - self.handicaps[:, None]
        gains *= self.factors[:, None]
        may = np.where(claimants[is_open] > 1, claims[:, is_open], np.isfinite(self.limits)[:, None])
        result[is_open] = np.where(may, gains, -np.inf).argmax(axis=0)
        return result


def _claims(p: NDArray[np.float32], limits: Sequence[float]) -> NDArray[np.bool_]:
    return np.array([each > limit for each, limit in zip(p, limits, strict=True)])


def _rank(kept: _Doubtful, certain: NDArray[np.float64], labels: Labels) -> _Ranking | None:
    """From all doubtful voxels beside ``certain`` ones; none where no class claims anything."""
    expected = certain if kept.expected is None else certain + kept.expected
    limits = _limits(kept, certain, expected)
    if not np.isfinite(limits).any():
        return None
    count, mass = certain.astype(np.float64), certain.astype(np.float64)
    for block in () if labels.has_regions else kept.blocks:
        p = kept.read(block)
        claims = _claims(p, limits)
        is_lone = claims.sum(axis=0, dtype=np.uint16) == 1
        for k, own in enumerate(claims):
            alone = own & is_lone
            count[k] += np.count_nonzero(alone)
            mass[k] += p[k][alone].sum(dtype=np.float64)
    return _Ranking(
        labels=labels,
        limits=limits,
        handicaps=mass / (count + expected + 1),
        factors=2 / (count + expected + 2),
    )


def _limits(kept: _Doubtful, certain: NDArray[np.float64], expected: NDArray[np.float64]) -> list[float]:
    """Above which probability each class claims a voxel; infinite if it claims none.

    A voxel raises 2 S / (t + m + 1) if its probability is above half of that value: raising one and then the other ends, after a
    few rounds, at the largest value, without sorting (Dinkelbach's method for fractions).
    """
    limits: list[float] = [THRESHOLD] * len(certain)
    best, found = np.zeros(len(certain)), [math.inf] * len(certain)
    left = list(range(len(certain)))
    while left:
        number, mass = certain.copy(), certain.copy()
        for block in kept.blocks:
            p = kept.read(block)
            for k in left:
                chosen = p[k][p[k] > max(limits[k], 1 - CERTAIN)]
                number[k] += len(chosen)
                mass[k] += chosen.sum(dtype=np.float64)
        for k in tuple(left):
            value = 2 * mass[k] / (number[k] + expected[k] + 1) if number[k] else 0.0
            if value <= best[k]:
                found[k] = max(limits[k], 1 - CERTAIN) if number[k] else math.inf
                left.remove(k)
            else:
                limits[k], best[k] = value / 2, value
    return found
