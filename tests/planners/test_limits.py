"""Sizes, memory and spacings that are planned, and the next ones that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from planners import Fingerprint
from planners.fingerprint import find_issues, find_size_issues
from planners.geometry import SourceShape, SourceSpacing

MakeFingerprint = Callable[..., Fingerprint]
NO_WISHES: dict[str, Any] = {"memory_gb": None, "device_memory_gb": None, "target_spacing_mm": None}


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ((1e-6, 0.99e-6), "cases.0.spacing_mm.2"),
        ((1e6, 1.01e6), "cases.0.spacing_mm.2"),
        ((1_000_000, 1_000_001), "cases.0.shape.1"),
        ((10**9, 10**9 + 1), "num_training_cases"),
        ((10**6, 10**6 + 1), "label_entries"),
    ],
)
def test_the_largest_and_smallest_datasets(
    fingerprint_of: MakeFingerprint, values: tuple[float, float], place: str
) -> None:
    def issues(value: Any) -> list[tuple[str, str | None]]:
        shape = (9, value, 9) if "shape" in place else (9, 9, 9)
        spacing = (1.0, 1.0, value) if "spacing" in place else (1.0, 1.0, 1.0)
        fields = {place: value} if "." not in place else {}
        made = fingerprint_of([shape], [spacing], **fields)
        return [(issue.where, issue.case) for issue in find_issues(made, **NO_WISHES)]

    inside, outside = values
    assert issues(inside) == []
    assert issues(outside) == [(place, "case_0000" if place.startswith("cases") else None)]


@pytest.mark.parametrize(
    ("option", "inside", "outside", "place"),
    [
        ("memory_gb", 1e-3, 0.99e-3, "memory_gb"),
        ("memory_gb", 1e6, 1.01e6, "memory_gb"),
        ("device_memory_gb", 1e6, float("nan"), "device_memory_gb"),
        ("target_spacing_mm", (1.0, 1e-6, 1.0), (1.0, 0.99e-6, 1.0), "target_spacing_mm.1"),
        ("target_spacing_mm", (1.0, 1.0, 1e6), (1.0, 1.0, float("inf")), "target_spacing_mm.2"),
        ("target_spacing_mm", (1.0, 1.0, 1.0), (1.0, 1.0), "target_spacing_mm"),
        ("target_spacing_mm", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), "target_spacing_mm"),
    ],
)
def test_the_largest_and_smallest_wishes(
    fingerprint_of: MakeFingerprint, option: str, inside: Any, outside: Any, place: str
) -> None:
    made = fingerprint_of([(9, 9, 9)], [(1, 1, 1)])
    assert find_issues(made, **{**NO_WISHES, option: inside}) == ()
    assert [issue.where for issue in find_issues(made, **{**NO_WISHES, option: outside})] == [place]


def test_a_resampled_case_has_a_million_voxels_along_an_axis_at_most() -> None:
    assert find_size_issues(SourceShape((1e6, 1.0, 1e6))) == ()
    shape = SourceShape((1.0, 1e6 + 0.5, 2e6))
    assert [issue.where for issue in find_size_issues(shape)] == ["cases", "cases"]
    (first, second) = find_size_issues(shape, requested_mm=SourceSpacing((1.0, 2.0, 3.0)))
    assert first.where == second.where == "target_spacing_mm"
    assert "along axis 1" in first.message
    assert "resampled to 1 x 2 x 3 mm" in second.message
