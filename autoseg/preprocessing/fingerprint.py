"""The fingerprint of a dataset: sizes after cropping, class sizes, and intensities inside the foreground."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, generate_binary_structure, label

from autoseg.compute.executor import run_jobs
from autoseg.data.dataset import Case, DatasetDescription, LabelCoding
from autoseg.data.labels import LEFT_TO_RIGHT, Places, find_pairs, find_places, read_case_labels
from autoseg.imaging.image import Image
from autoseg.imaging.orientation import IDENTITY, canonical_orientation, knows_directions, to_canonical
from autoseg.imaging.placement import bounding_box, crop, nonzero_mask
from autoseg.imaging.readers import file_states, read_image
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.looks import look_at
from autoseg.preprocessing.prepare import box_around
from autoseg.preprocessing.preprocess import largest_need, locate
from autoseg.storage.cache import KEPT, Cached
from autoseg.tracking.progress import Reporter
from planners import CaseLook, CaseSize, ClassSize, CtEvidence, Fingerprint, IntensityStatistics, Labels, count_ct

MAX_STORED_VALUES = 2**24
"""Intensities kept over all cases and channels (64 MB as float32), so that memory does not grow with the data."""
MIN_VALUES_PER_CASE = 1024
"""Kept even of very many cases: a percentile of a case is then off by at most 1/2048 of its voxels."""
TINY_SHARE = 1e-4
"""Of the volume: a randomly placed patch hardly ever contains a class below it."""
MANY_COMPONENTS = 20
_CONNECTED = generate_binary_structure(3, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """One channel of one case: exact moments and extremes, and values at evenly spaced ranks."""

    mean: float
    variance: float
    minimum: float
    maximum: float
    values: Annotated[NDArray[np.float32], KEPT]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMeasure:
    """One class in one case."""

    num_voxels: int
    volume_ml: float
    share: float
    """Of the voxels of the case."""
    num_components: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _CaseSummary:
    size: CaseSize
    relative_size: float
    has_foreground: bool
    classes: tuple[ClassMeasure, ...]
    places: Places
    channels: tuple[Intensities, ...]
    """Inside the foreground; without foreground, inside the non-zero mask."""
    look: CaseLook
    ct_evidence: tuple[tuple[bool | None, bool], ...]
    """Of each channel inside the non-zero box: see `Image.ct_evidence`."""


def take_fingerprint(
    dataset: DatasetDescription,
    *,
    num_workers: int,
    reporter: Reporter,
    canonical: bool = True,
    keep_in: Path | None = None,
) -> Fingerprint:
    """Fingerprint of the training cases (method section 2).

    Sizes are those of the non-zero box. Axes are canonical: the file's, permuted to one orientation; with
    ``canonical=False`` the file's own, as in the reference.

    Intensity statistics are those of a foreground voxel drawn from a random case, which the reference approximates by
    sampling: every case with foreground (labels above the background, the ignore label among them) has equal weight.
    Mean, standard deviation (population), minimum and maximum are exact; median and percentiles are exact while a case
    has at most ``2**24 / cases / channels`` foreground voxels, else off by half of one such part of its voxels. A
    percentile is the smallest value with at least that share of the weight at or below it. If no case has foreground,
    statistics are those inside the non-zero masks, and ``reporter`` says so.

    Structures in a left and a right form are recognised in canonical axes only (`autoseg.data.labels`).

    Each of ``num_workers`` processes reads one case at a time; what is kept of a case does not grow with its voxels, and
    is cached in the folder ``keep_in`` so that an interrupted call resumes. Raises `AutosegError` with every case that
    cannot be read, whose label map does not fit its image or has undeclared values, or whose foreground has NaN or
    infinite voxels.
    """
    cases = sorted(dataset.training, key=lambda case: case.case_id)
    if not cases:
        issue = Issue(
            code="dataset.no_labelled_case", where=dataset.root, message="no labelled case", fix="add at least one"
        )
        raise AutosegError(issue)
    summaries = _summarise_cases(cases, dataset, canonical, num_workers, reporter, keep_in)
    counted = [summary for summary in summaries if summary.has_foreground]
    if not counted:
        reporter.say("No label map has any foreground: intensity statistics are those of all non-zero voxels")
    pairs = find_pairs(dataset.labels.classes, [summary.places for summary in summaries]) if canonical else ()
    return Fingerprint(
        dataset_name=dataset.name,
        cases=tuple(summary.size for summary in summaries),
        num_training_cases=len(cases),
        channels=dataset.channels,
        labels=dataset.labels,
        intensities=tuple(
            pool_intensities([summary.channels[channel] for summary in counted or summaries])
            for channel in range(len(dataset.channels))
        ),
        ct_evidence=tuple(_ct_evidence(summaries, channel) for channel in range(len(dataset.channels))),
        looks=tuple(summary.look for summary in summaries),
        class_sizes=pool_class_sizes(dataset.labels, [summary.classes for summary in summaries]),
        sided_axis=LEFT_TO_RIGHT if pairs else None,
        sided_pairs=pairs,
        median_relative_size_after_cropping=float(np.median([summary.relative_size for summary in summaries])),
    )


def _ct_evidence(summaries: Sequence[_CaseSummary], channel: int) -> CtEvidence:
    """How many cases are CT in a channel, and the intensities of those, undecided ones included, where others are not."""
    kinds = [summary.ct_evidence[channel] for summary in summaries]
    ct = [summary.channels[channel] for summary, (kind, _) in zip(summaries, kinds, strict=True) if kind is not False]
    pooled = pool_intensities(ct) if 0 < len(ct) < len(kinds) else None
    return count_ct(kinds).model_copy(update={"intensities": pooled})


def _summarise_cases(
    cases: Sequence[Case],
    dataset: DatasetDescription,
    canonical: bool,
    num_workers: int,
    reporter: Reporter,
    keep_in: Path | None,
) -> list[_CaseSummary]:
    summarise = partial(
        _summarise,
        coding=dataset.coding,
        num_channels=len(dataset.channels),
        canonical=canonical,
        num_values=max(MIN_VALUES_PER_CASE, MAX_STORED_VALUES // (len(cases) * len(dataset.channels))),
    )
    cached = (
        summarise if keep_in is None else Cached(function=summarise, kind=_CaseSummary, state=_state, folder=keep_in)
    )
    with reporter.track("Fingerprint", len(cases)) as tracker:
        return run_jobs(
            cached,
            cases,
            name=lambda case: f"case {case.case_id}",
            num_workers=num_workers,
            need_bytes=largest_need(cases),
            say=reporter.say,
            tracker=tracker,
        )


def _state(case: Case) -> object:
    return case, file_states([*case.images, *case.label_files])


def _summarise(case: Case, *, coding: LabelCoding, num_channels: int, canonical: bool, num_values: int) -> _CaseSummary:
    image = read_image(case.image_paths).of_modality(case.modality)
    try:
        if len(image.array) != num_channels:
            message = f"{len(image.array)} channels, but the dataset declares {num_channels}"
            fix = "correct the channels of the dataset, or remove the case"
            raise AutosegError(Issue(code="image.channels", where="", message=message, fix=fix))
        label_map = read_case_labels(case, coding, onto=image.geometry, missing_as_ignore=False).array
        return _summarise_arrays(case, image, label_map, coding.labels, canonical=canonical, num_values=num_values)
    except AutosegError as error:
        raise locate(error, case, where=", ".join(case.images)) from error


def _summarise_arrays(
    case: Case,
    image: Image,
    label_map: NDArray[np.integer[Any]],
    labels: Labels,
    *,
    canonical: bool,
    num_values: int,
) -> _CaseSummary:
    mask = nonzero_mask(image.array)
    box = bounding_box(mask)
    values = crop(label_map, box)
    foreground = values > 0
    has_foreground = bool(foreground.any())
    inside = foreground if has_foreground else crop(mask, box)
    if not inside.any():
        inside = np.ones(inside.shape, bool)
    orientation = canonical_orientation(image.geometry) if canonical else IDENTITY
    z, y, x = orientation.permutation
    spacing_mm = image.geometry.spacing_mm
    return _CaseSummary(
        size=CaseSize(
            case_id=case.case_id,
            shape=(inside.shape[z], inside.shape[y], inside.shape[x]),
            spacing_mm=(spacing_mm[z], spacing_mm[y], spacing_mm[x]),
            file_axes=orientation.permutation if canonical and knows_directions(image.geometry) else None,  # type: ignore[arg-type]  # a permutation of 0, 1, 2
        ),
        relative_size=math.prod(inside.shape) / math.prod(label_map.shape),
        has_foreground=has_foreground,
        places=find_places(to_canonical(values, orientation), [spacing_mm[axis] for axis in (z, y, x)], labels.classes),
        classes=measure_classes(values, labels, voxel_volume_ml=image.geometry.voxel_volume_ml),
        channels=tuple(
            summarise_intensities(channel[inside], num_values=num_values) for channel in crop(image.array, box)
        ),
        look=look_at(image),
        ct_evidence=replace(image, array=crop(image.array, box)).ct_evidence(),
    )


def summarise_intensities(voxels: NDArray[np.float32], *, num_values: int) -> Intensities:
    """Summary of the intensities ``voxels`` (1D, one or more) of one channel of one case.

    ``values`` are all of them, sorted, or, of more than ``num_values``, the middles of that many equal shares.
    Raises `AutosegError` for NaN or infinite ones.
    """
    if not np.isfinite(voxels).all():
        message = f"{int((~np.isfinite(voxels)).sum())} voxels inside the foreground are NaN or infinite"
        raise AutosegError(Issue(code="image.not_finite", where="", message=message, fix="correct or remove the case"))
    ordered = np.sort(voxels)
    if len(ordered) > num_values:
        ordered = ordered[((np.arange(num_values) + 0.5) * (len(ordered) / num_values)).astype(np.int64)]
    return Intensities(
        mean=float(voxels.mean(dtype=np.float64)),
        variance=float(voxels.var(dtype=np.float64)),
        minimum=float(voxels.min()),
        maximum=float(voxels.max()),
        values=ordered,
    )


def pool_intensities(cases: Sequence[Intensities]) -> IntensityStatistics:
    """Statistics over cases of equal weight (method section 2)."""
    values = np.concatenate([case.values for case in cases])
    weights = np.concatenate([np.full(len(case.values), 1 / len(case.values)) for case in cases])
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    # A share that ends exactly at a percentile must not be missed for rounding in the sum.
    targets = np.array([0.005, 0.5, 0.995]) * cumulative[-1] * (1 - 1e-12)
    low, median, high = (float(value) for value in values[order][np.searchsorted(cumulative, targets)])
    means = np.array([case.mean for case in cases])
    variances = np.array([case.variance for case in cases])
    return IntensityStatistics(
        mean=float(means.mean()),
        median=median,
        std=math.sqrt(float(variances.mean() + means.var())),
        minimum=min(case.minimum for case in cases),
        maximum=max(case.maximum for case in cases),
        percentile_00_5=low,
        percentile_99_5=high,
    )


def measure_classes(
    labels: NDArray[np.integer[Any]], plan_labels: Labels, *, voxel_volume_ml: float
) -> tuple[ClassMeasure, ...]:
    """Size and connected components of every class or region in ``labels`` (Z, Y, X), internal values, in order.

    Each is measured inside its own bounding box. Voxels that share a corner are connected.
    """
    boxes = find_objects(np.maximum(labels, 0))
    measures = []
    for entry in plan_labels.classes:
        mask = np.isin(labels[box_around(boxes, entry.values)], entry.values)
        number = int(mask.sum())
        measures.append(
            ClassMeasure(
                num_voxels=number,
                volume_ml=number * voxel_volume_ml,
                share=number / labels.size,
                num_components=label(mask, _CONNECTED)[1] if number else 0,
            )
        )
    return tuple(measures)


def pool_class_sizes(labels: Labels, cases: Sequence[Sequence[ClassMeasure]]) -> tuple[ClassSize, ...]:
    """Medians over the cases that have a class."""
    pooled = []
    for i, entry in enumerate(labels.classes):
        measures = [case[i] for case in cases]
        present = [measure for measure in measures if measure.num_voxels]
        of = present or measures
        pooled.append(
            ClassSize(
                name=entry.name,
                num_cases=len(present),
                median_volume_ml=median(measure.volume_ml for measure in of),
                median_share=median(measure.share for measure in of),
                median_components=float(median(measure.num_components for measure in of)),
            )
        )
    return tuple(pooled)


def describe_unusual_classes(fingerprint: Fingerprint) -> tuple[Issue, ...]:
    """A note on every class that is hard to learn by its size: absent, tiny, or in many components."""
    num_cases = fingerprint.num_training_cases
    notes: list[Issue] = []

    def note(*, code: str, message: str, fix: str = "expect scores that vary from case to case") -> None:
        notes.append(Issue(code=code, severity="note", where=size.name, message=message, fix=fix))

    for size in fingerprint.class_sizes:
        if size.num_cases == 0:
            message = f"in none of the {num_cases} training cases"
            note(code="class.absent", message=message, fix="expect no predictions of it")
            continue
        among = "the only case" if size.num_cases == 1 else f"the median of the {size.num_cases} cases"
        where = "the median case" if size.num_cases == num_cases else f"{among} with it"
        if size.median_share < TINY_SHARE:
            share = f"{100 * size.median_share:.2g} % of the volume ({size.median_volume_ml:.3g} ml)"
            note(code="class.tiny", message=f"{share} in {where}")
        if size.median_components > MANY_COMPONENTS:
            note(code="class.fragmented", message=f"{size.median_components:g} separate components in {where}")
    return tuple(notes)
