"""Cases that occur twice, and cases of one patient that may come into different folds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks.voxels import CaseMeasures
from autoseg.data.dataset import Case
from autoseg.issues import UNNAMED, Issue

MIN_LABEL_VOXELS = 20
"""Label maps with less foreground may be equal by chance."""
NEARLY_SAME = 0.999
"""Correlation of two images of one size. Two scans of one patient, registered to each other, reach 0.97."""


def find_duplicates(cases: Sequence[CaseMeasures]) -> list[Issue]:
    """Findings on cases with the same voxels.

    The same image with different labels is an error: one of them is wrong. The same image and label map twice is a
    warning, as is a label map that two different images share, and two images that differ by little more than scale.
    A training image among the test images is a warning too. Cases of one group may be alike without a word about
    folds.
    """
    same_image = _alike(cases, lambda case: case.channel_digests)
    findings = [_same_image(first, second) for first, second in same_image]
    reported = {frozenset((a.case_id, b.case_id)) for a, b in same_image}
    for first, second in _alike(cases, _label_key):
        if frozenset((first.case_id, second.case_id)) not in reported:
            findings.append(_same_label(first, second))
            reported.add(frozenset((first.case_id, second.case_id)))
    for first, second in _nearly_same_images(cases):
        if frozenset((first.case_id, second.case_id)) not in reported:
            findings.append(
                _finding(
                    "warning",
                    second,
                    second.image_path,
                    f"nearly the same image as that of case {first.case_id}{_across(first, second)}",
                    "keep one of the two, or keep them together in the folds by naming their patient",
                )
            )
    return [*findings, *_repeated_channels(cases)]


def _label_key(case: CaseMeasures) -> bytes | None:
    return case.label_digest if case.num_foreground >= MIN_LABEL_VOXELS else None


def _alike(
    cases: Iterable[CaseMeasures], key: Callable[[CaseMeasures], object]
) -> list[tuple[CaseMeasures, CaseMeasures]]:
    """Each case with the first one of the same key."""
    first: dict[object, CaseMeasures] = {}
    pairs = []
    for case in cases:
        value = key(case)
        if value is None:
            continue
        kept = first.setdefault(value, case)
        if kept is not case:
            pairs.append((kept, case))
    return pairs


def _same_image(first: CaseMeasures, second: CaseMeasures) -> Issue:
    if first.is_training != second.is_training:
        return _finding(
            "warning",
            second,
            second.image_path,
            f"the test image is the training image of case {first.case_id}",
            "remove one of the two: a score on it would say nothing of new images",
        )
    if first.is_training and first.label_digest != second.label_digest:
        return _finding(
            "error",
            second,
            second.image_path,
            f"the same image as that of case {first.case_id}, but with another label map",
            "find out which label map is right, and remove the other case",
        )
    return _finding(
        "warning",
        second,
        second.image_path,
        f"the same image as that of case {first.case_id}{_across(first, second)}",
        "remove one of the two; in two folds it would flatter the cross-validation",
    )


def _same_label(first: CaseMeasures, second: CaseMeasures) -> Issue:
    return _finding(
        "warning",
        second,
        second.label_path or "",
        f"the same label map as that of case {first.case_id}, whose image is another{_across(first, second)}",
        "find out to which image it belongs, and give the other its own",
    )


def _across(first: CaseMeasures, second: CaseMeasures) -> str:
    if first.group is None or second.group is None or first.group == second.group:
        return ""
    return f", which counts as another patient ({first.group}, here {second.group})"


def _nearly_same_images(cases: Sequence[CaseMeasures]) -> list[tuple[CaseMeasures, CaseMeasures]]:
    """Pairs of images of one size that differ by little more than scale and noise."""
    by_shape: dict[tuple[int, ...], list[CaseMeasures]] = {}
    for case in cases:
        by_shape.setdefault(case.thumbnail.image.shape, []).append(case)
    pairs = []
    for alike in by_shape.values():
        rows = np.stack([_unit(case.thumbnail.image) for case in alike])
        for index, row in enumerate(rows):
            close = np.flatnonzero(rows[:index] @ row > NEARLY_SAME)
            if close.size:
                pairs.append((alike[int(close[0])], alike[index]))
    return pairs


def _unit(image: NDArray[np.float16]) -> NDArray[np.float32]:
    flat = image.astype(np.float32).reshape(len(image), -1)
    flat = (flat - flat.mean(axis=1, keepdims=True)).ravel()
    length = float(np.linalg.norm(flat))
    unit: NDArray[np.float32] = flat / length if length > 0 else flat
    return unit


def _repeated_channels(cases: Sequence[CaseMeasures]) -> list[Issue]:
    """Two channels of a case that hold the same image, where most cases have two different ones."""
    findings = []
    num_channels = len(cases[0].channel_digests) if cases else 0
    for a, b in combinations(range(num_channels), 2):
        same = [
            case
            for case in cases
            if len(case.channel_digests) > b and case.channel_digests[a] == case.channel_digests[b]
        ]
        if 2 * len(same) < len(cases):
            findings += [
                _finding(
                    "error",
                    case,
                    case.image_path,
                    f"channels {a} and {b} hold the same image",
                    "give each channel its own file, or remove the case",
                )
                for case in same
            ]
    return findings


def _finding(severity: str, case: CaseMeasures, where: str, found: str, mend: str) -> Issue:
    return Issue.model_validate(
        {"code": UNNAMED, "severity": severity, "case": case.case_id, "where": where, "message": found, "fix": mend}
    )


REPEATED = re.compile(
    r"(?i)(?P<patient>.*[a-z0-9])[-_. ]+(?:"
    r"(?:s|t|tp|v|ses|session|scan|study|time|timepoint|visit|frame|phase|fu|followup|rep|repeat|run)[-_]?\d+"
    r"|left|right|od|os|pre|post|baseline|followup)"
)
"""A name that ends in a repeat of the patient: ``ms01_s2``, ``P7-visit3``, ``0012_left``."""
NUM_SHOWN = 3


def patient_of(case_id: str) -> str | None:
    """The part of a case's name that would be the patient, where the rest numbers scans of one; else None."""
    match = REPEATED.fullmatch(case_id)
    return match["patient"] if match else None


def leaking_patients(cases: Iterable[Case], where: str) -> list[Issue]:
    """One warning with the patients that, by their names, have several cases, which are not grouped."""
    named: dict[str, list[Case]] = {}
    for case in cases:
        patient = patient_of(case.case_id)
        if patient is not None:
            named.setdefault(patient, []).append(case)
    apart = {
        patient: sorted(case.case_id for case in of_patient)
        for patient, of_patient in sorted(named.items())
        if len(of_patient) > 1 and len({case.group or case.case_id for case in of_patient}) > 1
    }
    if not apart:
        return []
    shown = "; ".join(" and ".join(cases[:NUM_SHOWN]) for cases in list(apart.values())[:NUM_SHOWN])
    more = f" and {len(apart) - NUM_SHOWN} more patients" if len(apart) > NUM_SHOWN else ""
    return [
        Issue(
            code=UNNAMED,
            severity="warning",
            case=None,
            where=where,
            message=f"by their names these cases are of one patient, but they may come into different folds: {shown}{more}",
            fix="describe the folder with a spec file whose pattern has {patient} (--spec), or take the scores with care",
        )
    ]
