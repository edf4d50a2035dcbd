"""Compares cases with each other: label maps and images that do not seem to belong, and classes that hardly occur."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks.case import CaseMeasures
from autoseg.data.dataset import DatasetDescription
from autoseg.imaging.image import Geometry
from autoseg.issues import Issue, Severity
from autoseg.wording import count_noun, shorten
from planners import count_ct, normalization_scheme

T = TypeVar("T")
MAX_DEVIATIONS = 6.0
"""Robust standard deviations (1.4826 x median absolute deviation) of the others that are still usual."""
MANY = 10
"""From so many others on their spread is known; of fewer only their range is."""
MIN_OTHER_IMAGES = 3
MAX_SCALE_RATIO = 20.0
"""To the nearest other case. Scanners of one collection differ by thousands, but several cases share each scale."""
HOUNSFIELD_AIR = -200.0
"""CT images with air around or inside go below this."""
MAX_PERMUTED = 4
"""Channels of which all orders are tried; of more, only those with two exchanged."""
MIN_GAIN = 5.0
"""By how much another order of channels must reduce the distance ..."""
MAX_SHARE = 0.72
"""... and to what share of it, to be reported. Real pairs of exchanged MR channels gain 7.8 and
more and keep at most 0.70; cases in order gain at most 0.8, with an exchanged one among them 3.7 (docs/decisions/0071)."""
FLOOR = 0.03
"""Signatures differ by this much between any two cases."""
CAP = 8.0
"""One outlying number must not decide alone."""


def oddness(own: float, others: Sequence[float] | NDArray[Any], *, floor: float) -> float:
    """Distance of ``own`` from ``others`` in units of what is still usual: signed, beyond 1 or -1 it is unusual.

    Of many others the distance is that from their median, and `MAX_DEVIATIONS` robust standard deviations are usual. Of
    fewer it is that beyond the nearest of them, and a part of their range is usual that falls with their number: of
    normal values the next one is called unusual about once in a thousand times, of four as of nine. ``floor`` is the
    distance that is always usual. Zero where there are no others.
    """
    values = np.asarray(others, np.float64)
    if values.size == 0:
        return 0.0
    if values.size >= MANY:
        middle = float(np.median(values))
        usual = MAX_DEVIATIONS * 1.4826 * float(np.median(np.abs(values - middle)))
        return (own - middle) / max(usual, floor)
    low, high = float(values.min()), float(values.max())
    beyond = own - min(max(own, low), high)
    return beyond / max((0.4 + 6 / values.size) * (high - low), floor)


def all_but(values: Sequence[T], index: int) -> list[T]:
    """``values`` without that at ``index``."""
    return [value for other, value in enumerate(values) if other != index]


MIN_OTHERS = 5
"""With fewer other cases nothing is unusual, except for units of length."""
MIN_OTHERS_WITH_CLASS = 10
USUAL_SHARE = 0.95
"""A class that so many of the others have is expected in every case."""
MAX_SPACING_RATIO = 3.0
MAX_SIZE_RATIO = 10.0
MAX_VOLUME_RATIO = 1.4
"""Scanners, fields of view and organs of one collection do differ by less, unless their spread says otherwise."""
MIN_UNIT_RATIO = 8.0
"""Spacings that differ by this on every axis are in another unit: cm, m or micrometres."""
MIN_OTHERS_WITH_UNIT = 2
MIN_VOLUME_RATIO = 10.0
"""Downwards more is usual: lesions are specks, and organs are cut off by the edge of the image."""
NUM_SIGNS_OF_ERROR = 3
"""So many signs at once mean another kind of data, not just an unusual case."""
RARE = 2
MIN_STRAY_VALUES = 5
"""A label map with so many values that no other has, in a dataset that declares none, is not a label map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """One label map: where it is, its grid in canonical axes, and the voxels of each file value."""

    case_id: str
    path: str
    paired: bool
    """Whether it has an image; others are not compared with one that has none."""
    geometry: Geometry
    counts: Mapping[int, int]


def unusual_issue(fact: LabelFacts, signs: Sequence[str], *, num_others: int) -> Issue:
    """The issue about a label map with ``signs`` that it is unlike the others."""
    return Issue(
        code="labels.unlike_others",
        severity="error" if len(signs) >= NUM_SIGNS_OF_ERROR else "warning",
        case=fact.case_id,
        where=fact.path,
        message=f"the label map is unlike the {num_others} others: {'; '.join(signs)}",
        fix="make sure that it belongs to this dataset and to its image"
        + (", or remove the case" if len(signs) >= NUM_SIGNS_OF_ERROR else ""),
    )


def unusual_signs(facts: Sequence[LabelFacts], dataset: DatasetDescription) -> list[list[str]]:
    """For each label map how it is unlike the others, as text: spacing, size, volumes, missing classes.

    Quantities are compared by their logarithm with those of all label maps that have an image: unusual is what is off
    by more than a fixed ratio and, by `oddness`, more than they differ among each other.
    """
    volumes = [np.array(_volumes_ml(fact, dataset)) for fact in facts]
    signs: list[list[str]] = [[] for _ in facts]
    for index, (fact, own) in enumerate(zip(facts, volumes, strict=True)):
        others = [other for other in all_but(range(len(facts)), index) if facts[other].paired]
        if len(others) >= MIN_OTHERS:
            of_others = np.array([volumes[other] for other in others])
            signs[index] += _grid_signs(fact, [facts[other] for other in others])
            signs[index] += _volume_signs(own, of_others, dataset) + _class_signs(own, of_others, dataset)
    return signs


def wrong_units(facts: Sequence[LabelFacts]) -> list[Issue]:
    """Cases whose spacings are all too large or too small by the same large factor: another unit of length."""
    issues = []
    for index, fact in enumerate(facts):
        others = [other for other in all_but(facts, index) if other.paired]
        if len(others) < MIN_OTHERS_WITH_UNIT or not fact.geometry.has_orientation:
            continue
        logs = np.log([other.geometry.spacing_mm for other in others])
        factors = np.log(fact.geometry.spacing_mm) - np.median(logs, axis=0)
        off = math.log(MIN_UNIT_RATIO)
        alike = np.ptp(logs, axis=0).max() < off  # the others agree on one unit
        if alike and (np.all(factors > off) or np.all(factors < -off)):
            usual = _triple(np.exp(np.median(logs, axis=0)))
            ratio = f"{math.exp(abs(float(np.median(factors)))):.3g} times too {'large' if factors[0] > 0 else 'small'}"
            issues.append(
                Issue(
                    code="case.spacing_unit",
                    case=fact.case_id,
                    where=fact.path,
                    message=f"spacing {_triple(fact.geometry.spacing_mm)} mm, median {usual} mm: {ratio}, "
                    "probably in a different unit of length",
                    fix="correct the spacing in the headers of image and label map to mm, or remove the case",
                )
            )
    return issues


def stray_values(facts: Sequence[LabelFacts], dataset: DatasetDescription) -> list[Issue]:
    """Label maps with many values that no other label map has: greys or interpolated values, not labels.

    Declared values are never stray; this is for datasets whose classes are named by the values that were found.
    """
    holders = Counter(value for fact in facts for value in fact.counts)
    named = {f"label_{value}" for value in dataset.file_values} >= {label.name for label in dataset.labels.classes}
    issues = []
    for fact in facts if named and len(facts) > 1 else ():
        own = [value for value in fact.counts if holders[value] == 1]
        if len(own) >= MIN_STRAY_VALUES and len(own) > len(fact.counts) / 2:
            issues.append(
                Issue(
                    code="labels.grey_values",
                    case=fact.case_id,
                    where=fact.path,
                    message=f"{len(own)} values from {min(own)} to {max(own)} that no other label map has: grey values or "
                    "numbers of objects, not classes",
                    fix="replace it by a label map, not an image or an interpolated mask, remove the case, or, where each "
                    "object has a number, set threshold = 1 in a spec file (--spec)",
                )
            )
    return issues


def rare_classes(facts: Sequence[LabelFacts], dataset: DatasetDescription) -> list[Issue]:
    """Classes that no case has (warning), or only one or two of three or more (note)."""
    labelled = [fact for fact in facts if fact.paired]
    issues = []
    for label in dataset.labels.classes if labelled else ():
        values = [str(dataset.file_values[value]) for value in label.values]
        cases = [
            fact.case_id
            for fact in labelled
            if any(fact.counts.get(dataset.file_values[value]) for value in label.values)
        ]
        shown = f"class {label.name} ({'value' if len(values) == 1 else 'values'} {', '.join(values)})"
        code: str = "labels.absent_class"
        severity: Severity = "warning"
        message = f"no label map has {shown}"
        fix = "correct its value in the dataset's description, or remove the class from it"
        if cases:
            if len(cases) > RARE or len(labelled) <= RARE:
                continue
            code, severity = "labels.rare_class", "note"
            has = "has" if len(cases) == 1 else "have"
            message = f"only {len(cases)} of {len(labelled)} label maps {has} {shown}: {', '.join(cases)}"
            fix = "add cases with this class, which has too few to train and validate it"
        issues.append(Issue(code=code, severity=severity, where=dataset.root, message=message, fix=fix))
    return issues


def _grid_signs(fact: LabelFacts, others: Sequence[LabelFacts]) -> list[str]:
    def is_unusual(own: float, others: NDArray[Any], max_ratio: float) -> bool:
        return abs(oddness(math.log(own), np.log(others), floor=math.log(max_ratio))) > 1

    signs = []
    own, spacings = fact.geometry.spacing_mm, np.array([other.geometry.spacing_mm for other in others])
    if any(is_unusual(mm, column, MAX_SPACING_RATIO) for mm, column in zip(own, spacings.T, strict=True)):
        signs.append(f"spacing {_triple(own)} mm, median {_triple(np.median(spacings, axis=0))}")
    shape, shapes = fact.geometry.shape, np.array([other.geometry.shape for other in others], np.int64)
    if is_unusual(math.prod(shape), shapes.prod(axis=1), MAX_SIZE_RATIO):
        signs.append(f"size {_triple(shape)} voxels, median {_triple(np.median(shapes, axis=0))}")
    return signs


def _volume_signs(own: NDArray[np.float64], others: NDArray[np.float64], dataset: DatasetDescription) -> list[str]:
    """The class, or all of the foreground, whose volume is furthest from those of the others that have it.

    Among few others only all of the foreground: single classes, such as lesions, are often small once.
    """
    names = ["foreground", *(label.name for label in dataset.labels.classes)]
    unusual = []
    for name, volume, column in list(zip(names, own, others.T, strict=True))[: None if len(others) >= MANY else 1]:
        known = np.log(column[column > 0])
        if volume > 0 and len(known) >= MIN_OTHERS:
            above = oddness(math.log(volume), known, floor=math.log(MAX_VOLUME_RATIO))
            below = -oddness(math.log(volume), known, floor=math.log(MIN_VOLUME_RATIO))
            unusual.append((max(above, below), name, float(volume), math.exp(float(np.median(known)))))
    most = max(unusual, default=(0.0, "", 0.0, 0.0))
    return [f"{most[1]} of {most[2]:.3g} ml, median {most[3]:.3g}"] if most[0] > 1 else []


def _class_signs(own: NDArray[np.float64], others: NDArray[np.float64], dataset: DatasetDescription) -> list[str]:
    if len(others) < MIN_OTHERS_WITH_CLASS or own[0] == 0:  # reported as empty
        return []
    having = (others[:, 1:] > 0).sum(axis=0)
    return [
        f"no voxel of {label.name}, which {number} of them have"
        for label, number, volume in zip(dataset.labels.classes, having, own[1:], strict=True)
        if number >= USUAL_SHARE * len(others) and volume == 0
    ]


def _volumes_ml(fact: LabelFacts, dataset: DatasetDescription) -> list[float]:
    """Volume of the foreground, then of each class."""
    voxels = [sum(count for value, count in fact.counts.items() if value != dataset.file_values[0])]
    voxels += [
        sum(fact.counts.get(dataset.file_values[value], 0) for value in label.values)
        for label in dataset.labels.classes
    ]
    return [count * fact.geometry.voxel_volume_ml for count in voxels]


def _triple(values: Iterable[float]) -> str:
    return "x".join(f"{value:.3g}" for value in values)


def unusual_intensities(cases: Sequence[CaseMeasures], channels: Sequence[str]) -> list[Issue]:
    """Warnings on images whose scale or order of channels is unlike that of all other cases."""
    usable = [case for case in cases if len(case.channel_digests) == len(channels)]
    return [
        issue
        for index, name in enumerate(channels)
        for issue in (
            *_odd_scales(usable, index, name),
            *_ct_issues(usable, index, name),
        )
    ] + _swapped_channels(usable, channels)


def _odd_scales(cases: Sequence[CaseMeasures], channel: int, name: str) -> list[Issue]:
    """Images whose spread of intensities is far from that of every other one; a note where z-scoring removes the scale."""
    evidence = count_ct([case.ct_evidence[channel] for case in cases if case.is_training])
    is_removed = normalization_scheme(name, evidence)[0] == "zscore"
    widths = [float(case.quantiles[channel, -1] - case.quantiles[channel, 0]) for case in cases]
    spread = [(case, math.log(width)) for case, width in zip(cases, widths, strict=True) if width > 0]
    issues = []
    for index, (case, own) in enumerate(spread):
        others = np.array([other for _, other in all_but(spread, index)])
        if len(others) < MIN_OTHER_IMAGES or np.abs(others - own).min() <= math.log(MAX_SCALE_RATIO):
            continue
        issues.append(
            _warning(
                case,
                f"channel {channel} ({name}) spans {math.exp(own):.3g} between its 1st and 99th percentile, those of the {len(others)} others "
                f"{math.exp(others.min()):.3g} to {math.exp(others.max()):.3g}",
                "make sure that its intensities have the same unit as the others",
                code="image.scale",
            ).model_copy(update={"severity": "note"} if is_removed else {})
        )
    return issues


def _ct_issues(cases: Sequence[CaseMeasures], channel: int, name: str) -> list[Issue]:
    """What the intensities say about a channel that is CT, or may be: how it will be planned, and images that do not fit."""
    training = [case for case in cases if case.is_training]  # what the plan will be made from
    kinds = [case.ct_evidence[channel] for case in training]
    evidence = count_ct(kinds)
    scheme, by_content = normalization_scheme(name, evidence)
    where = f"channel {name}"
    told = all(by_tag for _, by_tag in kinds)
    why = (
        "by their DICOM tags or what is known of the dataset"
        if told
        else "by air near -1000 in whole numbers or by tag"
    )
    found = f"{evidence.num_ct} of {count_noun(len(training), 'image')} are CT {why}"
    if by_content and scheme == "ct":
        fix = "name the channel CT in dataset.json, or by its true modality to have it z-scored"
        message = f"{found}: planned as CT"
        return [Issue(code="channel.looks_like_ct", severity="note", where=where, message=message, fix=fix)]
    if by_content and scheme == "zscore":
        message = f"{found}, although the channel is named CT: planned as another modality, z-scored"
        fix = "name the channel by its modality in dataset.json, or correct the tags"
        return [Issue(code="channel.not_ct", severity="warning", where=where, message=message, fix=fix)]
    if by_content:
        others = shorten([case.case_id for case, (kind, _) in zip(training, kinds, strict=True) if kind is False])
        message = f"{found}, and {others} are not: each is normalised as CT or image by image"
        fix = "make sure that CT and another modality are mixed; convert CT images in other units to Hounsfield units"
        severity: Severity = "warning" if name.casefold() == "ct" and not told else "note"
        return [Issue(code="channel.ct_and_other", severity=severity, where=where, message=message, fix=fix)]
    if name.casefold() != "ct":
        return []
    if training and all(
        kind is False and case.minima[channel] >= HOUNSFIELD_AIR
        for case, (kind, _) in zip(training, kinds, strict=True)
    ):
        message = (
            f"no value of {count_noun(len(training), 'image')} is below {HOUNSFIELD_AIR:g}, and hardly any is negative: "
            "not CT in Hounsfield units, but planned as CT"
        )
        fix = "name the channel by its modality in dataset.json, or apply the rescale slope and intercept of the source"
        return [Issue(code="channel.not_ct", severity="warning", where=where, message=message, fix=fix)]
    return _not_hounsfield(cases, channel)


def _not_hounsfield(cases: Sequence[CaseMeasures], channel: int) -> list[Issue]:
    """CT images without values below zero among others that have air."""
    with_air = [case for case in cases if case.minima[channel] < HOUNSFIELD_AIR]
    if len(with_air) <= len(cases) / 2:
        return []
    return [
        _warning(
            case,
            f"no value of this CT is below {case.minima[channel]:g}, but {len(with_air)} of {len(cases)} images have air "
            f"below {HOUNSFIELD_AIR:g}: not Hounsfield units",
            "apply the rescale slope and intercept (often -1024) of its source",
            code="image.not_hounsfield",
        )
        for case in cases
        if case.minima[channel] >= 0
    ]


def _swapped_channels(cases: Sequence[CaseMeasures], channels: Sequence[str]) -> list[Issue]:
    """Cases that are much more like the others when their channels are put into another order."""
    if len(channels) < 2 or len(cases) < 2:
        return []
    signatures = [_signature(case) for case in cases]
    issues = []
    for index, case in enumerate(cases):
        order = _better_order(signatures[index], all_but(signatures, index))
        if order is None:
            continue
        if len(cases) == 2:
            found = f"the channels of cases {cases[0].case_id} and {cases[1].case_id} seem to be in different orders"
        else:
            found = f"the channels seem to be in a different order from the {len(cases) - 1} others: " + ", ".join(
                f"{channels[found]} looks like {channels[place]}" for place, found in enumerate(order) if place != found
            )
        issues.append(
            _warning(
                case, found, "view the channels, and reorder them if they are exchanged", code="image.channel_order"
            )
        )
    return issues


def _better_order(own: _Signature, others: Sequence[_Signature]) -> tuple[int, ...] | None:
    """The order of the own channels that resembles the others much better than the present one, if any."""
    each, pairs = np.stack([o.each for o in others]), np.stack([o.pairs for o in others])
    usual = _Signature(np.median(each, axis=0), np.median(pairs, axis=0))
    count = len(own.each)
    above = np.triu_indices(count, 1)
    # Of few cases each spread is uncertain; the mean over channels is less so.
    width = np.maximum(1.4826 * np.median(np.abs(each - usual.each), axis=0).mean(axis=0), FLOOR)
    pair_width = max(1.4826 * float(np.median(np.abs(pairs - usual.pairs), axis=0)[above].mean()), FLOOR)

    def distance(order: tuple[int, ...]) -> float:
        single = np.abs(own.each[list(order)] - usual.each) / width
        joint = np.abs(own.pairs[np.ix_(order, order)] - usual.pairs)[above] / pair_width
        return float((np.minimum(single, CAP) ** 2).mean() + (np.minimum(joint, CAP) ** 2).mean())

    straight = tuple(range(count))
    best = min(_orders(count), key=distance)
    now, then = distance(straight), distance(best)
    return best if best != straight and then < MAX_SHARE * now and now - then > MIN_GAIN else None


@dataclass(frozen=True, slots=True)
class _Signature:
    """What distinguishes the channels of a case, whatever their scale: one row per channel, and their correlations."""

    each: NDArray[np.float64]
    pairs: NDArray[np.float64]


def _signature(case: CaseMeasures) -> _Signature:
    low, high = case.quantiles[:, 1], case.quantiles[:, 5]
    width = np.maximum(high - low, 1e-9)[:, None]
    shape = (case.quantiles[:, 2:5] - low[:, None]) / width
    small = case.thumbnail.image.astype(np.float32)
    flat = small.reshape(len(small), -1)
    labels = case.thumbnail.labels
    labelled = flat if labels is None or not labels.any() else flat[:, labels.ravel() > 0]
    inside = np.quantile(labelled, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1).T
    brightness = np.log(np.maximum(case.quantiles[:, 3], 1e-9))
    each = np.column_stack(
        [shape, case.zero_share, inside, flat.mean(axis=1), np.clip(brightness - brightness.mean(), -2, 2)]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = np.nan_to_num(np.corrcoef(flat)).reshape(len(small), len(small))
    return _Signature(each.astype(np.float64), pairs)


def _orders(count: int) -> list[tuple[int, ...]]:
    if count <= MAX_PERMUTED:
        return list(permutations(range(count)))
    orders = [tuple(range(count))]
    for a, b in combinations(range(count), 2):
        order = list(range(count))
        order[a], order[b] = order[b], order[a]
        orders.append(tuple(order))
    return orders


def _warning(case: CaseMeasures, message: str, fix: str, *, code: str) -> Issue:
    return Issue(code=code, severity="warning", case=case.case_id, where=case.image_path, message=message, fix=fix)
