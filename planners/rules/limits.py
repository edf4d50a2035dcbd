"""Datasets and arguments beyond all sense, told before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planners.bounds import MEMORY_GB, MOST_CASES, MOST_LABELS, MOST_VOXELS, SPACING_MM
from planners.fingerprint import Fingerprint
from planners.geometry import SourceShape, SourceSpacing
from planners.wording import millimetres


def find_problems(
    fingerprint: Fingerprint,
    *,
    memory_gb: float | None,
    device_memory_gb: float | None,
    target_spacing_mm: Sequence[float] | None,
) -> tuple[str, ...]:
    """One line for each value that planning cannot take, with its place in the fingerprint or its argument."""
    problems = []
    for index, case in enumerate(fingerprint.cases):
        for axis in range(3):
            problems += _spacing_problem(f"cases.{index}.spacing_mm.{axis}", case.spacing_mm[axis])
            if case.shape[axis] > MOST_VOXELS:
                problems.append(
                    f"cases.{index}.shape.{axis}: {case.shape[axis]} voxels are more than {MOST_VOXELS}; check the image"
                )
    for place, number, most in (
        ("num_training_cases", fingerprint.num_training_cases, MOST_CASES),
        ("label_entries", fingerprint.num_label_entries, MOST_LABELS),
    ):
        if number > most:
            problems.append(f"{place}: must be at most {most}; check the number")
    for name, gigabytes in (("memory_gb", memory_gb), ("device_memory_gb", device_memory_gb)):
        if gigabytes is not None and not MEMORY_GB[0] <= gigabytes <= MEMORY_GB[1]:
            problems.append(f"{name}: {gigabytes} is not between {MEMORY_GB[0]:g} and {MEMORY_GB[1]:g}; give gigabytes")
    return (*problems, *_target_problems(target_spacing_mm))


def find_size_problems(shape: SourceShape, *, requested_mm: SourceSpacing | None = None) -> tuple[str, ...]:
    """One line for each axis along which the resampled median case is too long to plan for.

    To blame are spacings of the cases, or the target spacing where somebody asked for one.
    """
    place, to, mend = "cases", "to the target spacing", "check the spacings for mixed units"
    if requested_mm is not None:
        place, to, mend = (
            "target_spacing_mm",
            f"to {millimetres(requested_mm)}",
            "ask for coarser voxels (--target-spacing)",
        )
    return tuple(
        f"{place}: resampled {to}, half of the cases have {size:.3g} or more voxels along axis {axis}, more than {MOST_VOXELS}; {mend}"
        for axis, size in enumerate(shape)
        if size > MOST_VOXELS
    )


def _target_problems(target_spacing_mm: Sequence[float] | None) -> list[str]:
    if target_spacing_mm is None:
        return []
    if len(target_spacing_mm) != 3:
        return [f"target_spacing_mm: {len(target_spacing_mm)} values were given; give three, for axes z, y and x"]
    return [
        line
        for axis in range(3)
        for line in _spacing_problem(
            f"target_spacing_mm.{axis}", target_spacing_mm[axis], mend="ask for another (--target-spacing)"
        )
    ]


def _spacing_problem(place: str, spacing_mm: float, *, mend: str = "check the image's spacing") -> list[str]:
    low, high = SPACING_MM
    if math.isfinite(spacing_mm) and low <= spacing_mm <= high:
        return []
    return [f"{place}: {spacing_mm} mm is not between {low:g} and {high:g} mm; {mend}"]
