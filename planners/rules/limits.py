"""Datasets and arguments out of range, reported before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planners.decision import millimetres
from planners.document import Issue
from planners.fingerprint import MEMORY_GB, MOST_CASES, MOST_LABELS, MOST_VOXELS, SPACING_MM, Fingerprint
from planners.geometry import SourceShape, SourceSpacing


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
        for axis, (voxels, mm) in enumerate(zip(case.shape, case.spacing_mm, strict=True)):
            issues += _spacing_issues(f"cases.{index}.spacing_mm.{axis}", mm, "check the image's spacing", case.case_id)
            if voxels > MOST_VOXELS:
                issues.append(
                    Issue(
                        code="plan.image_too_large",
                        where=f"cases.{index}.shape.{axis}",
                        message=f"{voxels} voxels are more than {MOST_VOXELS}",
                        fix="check the image",
                        case=case.case_id,
                    )
                )
    for place, number, most in (
        ("num_training_cases", fingerprint.num_training_cases, MOST_CASES),
        ("label_entries", fingerprint.num_label_entries, MOST_LABELS),
    ):
        if number > most:
            found = f"must be at most {most}"
            issues.append(Issue(code="plan.count_too_large", where=place, message=found, fix="check the dataset"))
    low, high = MEMORY_GB
    for name, gigabytes in (("memory_gb", memory_gb), ("device_memory_gb", device_memory_gb)):
        if gigabytes is not None and not low <= gigabytes <= high:
            found = f"{gigabytes} is not between {low:g} and {high:g}"
            issue = Issue(code="plan.memory_out_of_range", where=name, message=found, fix="give it in gigabytes")
            issues.append(issue)
    if target_spacing_mm is not None and len(target_spacing_mm) != 3:
        issues.append(
            Issue(
                code="plan.spacing_out_of_range",
                where="target_spacing_mm",
                message=f"{len(target_spacing_mm)} values were given",
                fix="give three, for axes z, y and x",
            )
        )
    elif target_spacing_mm is not None:
        for axis, mm in enumerate(target_spacing_mm):
            issues += _spacing_issues(f"target_spacing_mm.{axis}", mm, "give another --target-spacing")
    return tuple(issues)


def _spacing_issues(place: str, spacing_mm: float, fix: str, case: str | None = None) -> list[Issue]:
    low, high = SPACING_MM
    if math.isfinite(spacing_mm) and low <= spacing_mm <= high:
        return []
    found = f"{spacing_mm} mm is not between {low:g} and {high:g} mm"
    return [Issue(code="plan.spacing_out_of_range", where=place, message=found, fix=fix, case=case)]


def find_size_issues(shape: SourceShape, *, requested_mm: SourceSpacing | None = None) -> tuple[Issue, ...]:
    """One issue for each axis along which the resampled median case is too large.

    The cause is the spacing of the cases, or the target spacing where one was requested.
    """
    place, to, fix = "cases", "the target spacing", "check the spacings for mixed units"
    if requested_mm is not None:
        place, to, fix = "target_spacing_mm", millimetres(requested_mm), "give a coarser --target-spacing"
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
