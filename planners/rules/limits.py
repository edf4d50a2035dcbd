"""Datasets and arguments out of range, reported before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planners.document import Issue
from planners.fingerprint import MEMORY_GB, MOST_CASES, MOST_LABELS, MOST_VOXELS, SPACING_MM, Fingerprint
from planners.geometry import SourceShape, SourceSpacing
from planners.wording import millimetres


def find_issues(
    fingerprint: Fingerprint,
    *,
    memory_gb: float | None,
    device_memory_gb: float | None,
    target_spacing_mm: Sequence[float] | None,
) -> tuple[Issue, ...]:
    """One issue for each value out of range, with its place in the fingerprint or its argument."""
    issues = []
    for index, case in enumerate(fingerprint.cases):
        for axis in range(3):
            issues += _spacing_issues(f"cases.{index}.spacing_mm.{axis}", case.spacing_mm[axis], case=case.case_id)
            if case.shape[axis] > MOST_VOXELS:
                issues.append(
                    Issue(
                        code="plan.image_too_large",
                        where=f"cases.{index}.shape.{axis}",
                        message=f"{case.shape[axis]} voxels are more than {MOST_VOXELS}",
                        fix="check the image",
                        case=case.case_id,
                    )
                )
    for place, number, most in (
        ("num_training_cases", fingerprint.num_training_cases, MOST_CASES),
        ("label_entries", fingerprint.num_label_entries, MOST_LABELS),
    ):
        if number > most:
            issues.append(
                Issue(
                    code="plan.count_too_large", where=place, message=f"must be at most {most}", fix="check the dataset"
                )
            )
    for name, gigabytes in (("memory_gb", memory_gb), ("device_memory_gb", device_memory_gb)):
        if gigabytes is not None and not MEMORY_GB[0] <= gigabytes <= MEMORY_GB[1]:
            issues.append(
                Issue(
                    code="plan.memory_out_of_range",
                    where=name,
                    message=f"{gigabytes} is not between {MEMORY_GB[0]:g} and {MEMORY_GB[1]:g}",
                    fix="give it in gigabytes",
                )
            )
    return (*issues, *_target_issues(target_spacing_mm))


def find_size_issues(shape: SourceShape, *, requested_mm: SourceSpacing | None = None) -> tuple[Issue, ...]:
    """One issue for each axis along which the resampled median case is too large.

    The cause is the spacing of the cases, or the target spacing where one was requested.
    """
    place, to, fix = "cases", "the target spacing", "check the spacings for mixed units"
    if requested_mm is not None:
        place, to = "target_spacing_mm", millimetres(requested_mm)
        fix = "give a coarser --target-spacing"
    return tuple(
        Issue(
            code="plan.image_too_large",
            where=place,
            message=f"resampled to {to}, the median case has {size:.3g} voxels along axis {axis}, more than {MOST_VOXELS}",
            fix=fix,
        )
        for axis, size in enumerate(shape)
        if size > MOST_VOXELS
    )


def _target_issues(target_spacing_mm: Sequence[float] | None) -> list[Issue]:
    if target_spacing_mm is None:
        return []
    if len(target_spacing_mm) != 3:
        return [
            Issue(
                code="plan.spacing_out_of_range",
                where="target_spacing_mm",
                message=f"{len(target_spacing_mm)} values were given",
                fix="give three, for axes z, y and x",
            )
        ]
    fix = "give another --target-spacing"
    return [
        issue
        for axis in range(3)
        for issue in _spacing_issues(f"target_spacing_mm.{axis}", target_spacing_mm[axis], fix=fix)
    ]


def _spacing_issues(
    place: str, spacing_mm: float, *, fix: str = "check the image's spacing", case: str | None = None
) -> list[Issue]:
    low, high = SPACING_MM
    if math.isfinite(spacing_mm) and low <= spacing_mm <= high:
        return []
    return [
        Issue(
            code="plan.spacing_out_of_range",
            where=place,
            message=f"{spacing_mm} mm is not between {low:g} and {high:g} mm",
            fix=fix,
            case=case,
        )
    ]
