"""Label maps that do not fit their image, judged by the model of `label_model` against how well the others fit theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from autoseg.compute.executor import run_jobs
from autoseg.data.checks.case import CaseMeasures
from autoseg.data.checks.label_model import (
    Evidence,
    Fit,
    add_up,
    fit_label_map,
    masks,
    mean_correlations,
    predict,
    usual_masks,
    without,
)
from autoseg.data.checks.plausibility import MANY, all_but, oddness
from autoseg.issues import Issue
from autoseg.tracking.progress import Reporter

MIN_OTHERS = 3
MIN_DROP = 0.1
"""A correlation must be so much below those of the others to be unusual."""
MIN_GAIN = 0.06
"""By so much another arrangement must fit better than the present one, and than it does in any other case."""
FEW = 4.0
"""With so many others both thresholds are twice as high, with more they fall (docs/decisions/0176)."""
RELIABLE = 0.4
"""Below this median correlation of the others, as for lesions, the model cannot predict labels, and no case is judged."""
SAME_BY_INTENSITY = 0.8
"""With this share of the others' agreement by intensities alone, a label map lies where it should, and its image has another
field of view, which the model of places cannot know."""
LOST, RESTORED = 0.5, 0.8
"""A label map with less than the first share of the usual agreement, which another arrangement brings above the second,
is certainly misplaced."""
TAIL = 10
"""Percentile below which a case among many counts as badly fitting: some kinds of images are harder for the model."""
MOST_COMPARED = 300
"""Label maps of one size that are tried on each other's images."""
AXES = ("z (head to foot)", "y (front to back)", "x (left to right)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """How a label map fails to fit its image."""

    case_id: str
    message: str
    is_certain: bool
    """Whether another arrangement explains what happened to it."""
    is_strange: bool
    """Whether it fits much worse than any other."""
    is_sure: bool
    """Whether it is worth a word without other signs that the label map is wrong."""


@dataclass(frozen=True, slots=True)
class _Judged:
    case: CaseMeasures
    fit: Fit
    predicted: NDArray[np.float16]
    """Of the compared masks."""


def find_misfits(
    cases: Sequence[CaseMeasures], num_classes: int, *, num_workers: int, reporter: Reporter
) -> list[Misfit]:
    """Label maps that agree unusually badly with what the other cases predict, or better in another arrangement.

    ``num_classes``: internal values 1 ... that are classes. Empty for fewer than `MIN_OTHERS` others, and if images
    differ in their number of channels.
    """
    labelled = [case for case in cases if case.evidence is not None]
    if len(labelled) <= MIN_OTHERS or len({len(case.channel_digests) for case in labelled}) > 1:
        return []
    parts = [case.evidence for case in labelled if case.evidence is not None]
    total = add_up(parts)
    compared = usual_masks(parts)
    judge = partial(_judge, total=total, num_others=len(labelled) - 1, num_classes=num_classes, compared=compared)
    with reporter.track("Comparing label maps", len(labelled)) as tracker:
        judged = run_jobs(
            judge, labelled, name=lambda case: f"case {case.case_id}", num_workers=num_workers, tracker=tracker
        )
    known = [each for each in judged if each is not None]
    swaps = _better_labels(known, num_classes, compared)
    return [misfit for index in range(len(known)) if (misfit := _misfit(known, index, swaps)) is not None]


def _judge(
    case: CaseMeasures, *, total: Evidence, num_others: int, num_classes: int, compared: NDArray[np.bool_]
) -> _Judged | None:
    if case.evidence is None:
        return None
    predicted = predict(case.thumbnail, without(total, case.evidence, num_others))
    fit = fit_label_map(case.thumbnail, predicted, num_classes, compared)
    return None if fit is None else _Judged(case, fit, predicted[0][compared].astype(np.float16))


def _misfit(known: Sequence[_Judged], index: int, swaps: Sequence[tuple[float, str]]) -> Misfit | None:
    judged, others = known[index], all_but(known, index)
    caution = 1 + FEW / len(others)
    own, usual = judged.fit.own, [other.fit.own for other in others]
    middle = float(np.median(usual))
    if middle < RELIABLE:
        return None
    signs = {**_flip_signs(judged.fit, others, caution * MIN_GAIN), **_shift_signs(judged, others, caution * MIN_GAIN)}
    gain, name = swaps[index]
    if name:
        text = f"it fits the image of case {name} better, and the label map of that case fits this image"
        signs[text] = own + gain
    # Among many: as far below the lowest tenth of the others as that is below their median.
    lowest = 2 * float(np.percentile(usual, TAIL)) - middle if len(usual) >= MANY else float("inf")
    usual_by_intensity = float(np.median([other.fit.by_intensity for other in others]))
    is_strange = (
        oddness(own, usual, floor=MIN_DROP) < -1
        and own < lowest
        and judged.fit.by_intensity < SAME_BY_INTENSITY * usual_by_intensity
    )
    if not signs and not is_strange:
        return None
    is_sure = bool(signs) or oddness(own, usual, floor=caution * MIN_DROP) < -1
    agreement = f"its agreement with a prediction from the other cases is {own:.2f}, that of the {len(others)} others {middle:.2f}"
    return Misfit(
        case_id=judged.case.case_id,
        message="; ".join([agreement, *signs]),
        is_certain=own < LOST * middle and max(signs.values(), default=0.0) > RESTORED * middle,
        is_strange=is_strange,
        is_sure=is_sure,
    )


def _flip_signs(fit: Fit, others: Sequence[_Judged], min_gain: float) -> dict[str, float]:
    """The axis along which flipping the label map makes it fit better, as for no other case, and how well it then fits."""
    gains = np.array([np.subtract(other.fit.flips, other.fit.own) for other in others])
    own = np.subtract(fit.flips, fit.own)
    axis = int(own.argmax())
    usual = float(gains[:, axis].max())
    if own[axis] < min_gain or own[axis] < usual + min_gain:
        return {}
    return {f"flipped along {AXES[axis]} the agreement would be {fit.flips[axis]:.2f}": fit.flips[axis]}


def _shift_signs(judged: _Judged, others: Sequence[_Judged], min_gain: float) -> dict[str, float]:
    """The shift by which the label map fits better than by any in other cases, also judged by intensities alone."""
    if judged.fit.shifted_by_intensity < MIN_GAIN / 2:  # another field of view moves the image with its label map
        return {}
    usual = max(other.fit.shifted for other in others)
    if judged.fit.shifted < min_gain or judged.fit.shifted < usual + min_gain:
        return {}
    z, y, x = (blocks * mm for blocks, mm in zip(judged.fit.shift, judged.case.thumbnail.spacing_mm, strict=True))
    moved = judged.fit.own + judged.fit.shifted
    return {f"moved by about ({z:.0f}, {y:.0f}, {x:.0f}) mm (z, y, x) the agreement would be {moved:.2f}": moved}


def _better_labels(known: Sequence[_Judged], num_classes: int, compared: NDArray[np.bool_]) -> list[tuple[float, str]]:
    """For each case the gain by exchanging its label map with another of the same size, and that case's name.

    Only exchanges by which both cases gain; (0, "") where there is none.
    """
    gains = [(0.0, "")] * len(known)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(known):
        by_shape.setdefault(each.predicted.shape, []).append(index)
    for alike in by_shape.values():
        if not 1 < len(alike) <= MOST_COMPARED:
            continue
        labels = [known[index].case.thumbnail.labels for index in alike]
        own_masks = np.stack([masks(each, num_classes)[compared] for each in labels if each is not None])
        fits = mean_correlations(np.stack([known[index].predicted for index in alike]).astype(np.float32), own_masks)
        gain = fits - np.diag(fits)[:, None]
        both = np.minimum(gain, gain.T)
        for row, index in enumerate(alike):
            best = int(both[row].argmax())
            if both[row, best] >= MIN_GAIN * (1 + FEW / (len(known) - 1)):
                gains[index] = (float(gain[row, best]), known[alike[best]].case.case_id)
    return gains


def misfit_issue(misfit: Misfit, where: str, *, more: Sequence[str] = ()) -> Issue:
    """The issue about a misfit. ``more``: other signs that the label map is wrong, which make it an error."""
    is_error = misfit.is_certain or (misfit.is_strange and bool(more))
    return Issue(
        code="labels.misfit",
        severity="error" if is_error else "warning",
        case=misfit.case_id,
        where=where,
        message="; ".join(
            [f"the label map {'does' if is_error else 'may'} not fit its image: {misfit.message}", *more]
        ),
        fix="view it on its image, and replace the label map or remove the case"
        if is_error
        else "view it on its image, and correct it if it is wrong",
    )
