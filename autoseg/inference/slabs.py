"""Label maps of several configurations, or by another decoder, and probabilities: slab by slab, nothing else at full size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.label_maps import Slab, decide
from autoseg.evaluation.rankseg import rank_labels
from autoseg.imaging.placement import Placement, inside_box, restore_labels
from autoseg.imaging.resampling import to_probabilities, write_largest, write_regions
from autoseg.inference.doubt import Taker
from autoseg.inference.member_output import LabelMap, MemberOutput, consume
from autoseg.preprocessing.store import scratch_array
from planners import Labels

Floats = NDArray[np.float32]


class Volumes(Protocol):
    """Probabilities (K, Z, Y, X), in memory or in a file; ``[k]`` is the volume of a class, float32 (Z, Y, X)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, k: int, /) -> Floats: ...


class KeptVolumes:
    """Probabilities of the crop in a temporary file, and the volumes of the whole image made of them; to be closed."""

    def __init__(self, placement: Placement, labels: Labels, folder: Path) -> None:
        self.placement, self.labels = placement, labels
        self.shape = (labels.num_outputs, *placement.source.shape)
        self._open = ExitStack()
        kept = scratch_array((self.shape[0], *placement.shape_after_cropping), np.float32, folder=folder)
        self.inside = self._open.enter_context(kept)

    def __getitem__(self, k: int) -> Floats:
        is_background = k == 0 and not self.labels.has_regions
        whole = np.full(self.placement.source.shape, 1 if is_background else 0, np.float32)
        inside_box(whole, self.placement)[...] = self.inside[k]
        return whole

    def close(self) -> None:
        """The file is gone."""
        self._open.close()


def blank_probabilities(placement: Placement, labels: Labels) -> Floats:
    """Probabilities (K, Z, Y, X) of an image in which nothing is found: the background is 1, regions are 0 (method section 8.2)."""
    whole = np.zeros((labels.num_outputs, *placement.source.shape), np.float32)
    if not labels.has_regions:
        whole[0] = 1
    return whole


def decide_together(
    outputs: Sequence[MemberOutput],
    labels: Labels,
    weights: Sequence[float],
    *,
    ranks: bool,
    target: Any = None,
    ranked_bytes: int | None = None,
    folder: Path | None = None,
    takers: Sequence[Taker] = (),
) -> tuple[LabelMap, LabelMap | None]:
    """Label maps (Z, Y, X), internal values: of the largest probability, and, if it ``ranks``, of RankSEG.

    Configurations are averaged as probabilities with ``weights``; none: the plain mean. Their slabs are the same rows of the cropped
    image, whatever their own grids are. ``target`` (K, a0, a1, a2) gets the probabilities of the crop by rows, and so do ``takers``.
    ``ranked_bytes`` and ``folder`` are where RankSEG keeps probabilities, see `rank_labels`. Raises `ValueError` if the crops differ.
    """
    placement = outputs[0].placement
    if any(
        each.placement.box != placement.box or each.placement.transpose_forward != placement.transpose_forward
        for each in outputs
    ):
        raise ValueError("the configurations see different parts of the image")
    shape, alone = placement.shape_after_cropping, len(outputs) == 1
    # by one configuration RankSEG sees the crop, by several the image, as in selection from probabilities that were kept
    outside = 0 if alone else math.prod(placement.source.shape) - math.prod(shape)

    def use() -> tuple[LabelMap, LabelMap | None]:
        slabs = _logit_slabs(outputs[0]) if alone else _mean_slabs(outputs, labels, weights)
        if target is not None or takers:
            slabs = _kept(slabs, labels, target, takers, are_logits=alone)
        if ranks:
            where: dict[str, Any] = {"memory_bytes": ranked_bytes, "folder": folder}
            return rank_labels(slabs, shape, labels, are_logits=alone, outside=outside, **where)
        return _decided(slabs, shape, labels, are_logits=alone), None

    plain, ranked = consume(outputs, use)
    return restore_labels(plain, placement), None if ranked is None else restore_labels(ranked, placement)


def _logit_slabs(output: MemberOutput) -> Iterator[Slab]:
    yield from output.slabs()


def _mean_slabs(outputs: Sequence[MemberOutput], labels: Labels, weights: Sequence[float]) -> Iterator[Slab]:
    """The mean probabilities of several configurations."""
    for parts in zip(*(each.slabs() for each in outputs), strict=True):
        total: Floats | None = None
        for i, (_, scores) in enumerate(parts):
            own = np.stack(scores)
            scores.clear()
            to_probabilities(own, has_regions=labels.has_regions)
            if weights:
                own *= np.float32(weights[i])
            total = own if total is None else np.add(total, own, out=total)
        if total is not None:
            if not weights:
                total /= len(outputs)
            yield parts[0][0], list(total)


def _kept(
    slabs: Iterator[Slab], labels: Labels, target: Any, takers: Sequence[Taker], *, are_logits: bool
) -> Iterator[Slab]:
    """The slabs as they are; their probabilities are written into ``target`` (K, a0, a1, a2), if there is one, and given to ``takers``."""
    for rows, scores in slabs:
        probabilities = np.stack(scores)
        if are_logits:
            to_probabilities(probabilities, has_regions=labels.has_regions)
        if target is not None:
            target[:, rows] = probabilities
        for take in takers:
            take(rows, probabilities)
        del probabilities
        yield rows, scores


def _decided(slabs: Iterator[Slab], shape: tuple[int, int, int], labels: Labels, *, are_logits: bool) -> LabelMap:
    """Internal label values by the largest scores, or by all that are above a threshold."""
    result = np.zeros(shape, np.uint8 if max(labels.values) < 255 else np.uint16)
    for rows, scores in slabs:
        if not are_logits:
            result[rows] = decide(scores, labels)
        elif labels.region_order is None:
            write_largest(result[rows], scores)
        else:
            write_regions(result[rows], scores, labels.region_order, labels.overlaps)
    return result
