"""Fingerprints for the planner's tests: by hand, and drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from planners import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels

STATISTICS = IntensityStatistics(
    mean=100.0, median=90.0, std=20.0, minimum=0.0, maximum=300.0, percentile_00_5=5.0, percentile_99_5=250.0
)
MakeFingerprint = Callable[..., Fingerprint]


def make_fingerprint(
    shapes: Sequence[Sequence[int]],
    spacings_mm: Sequence[Sequence[float]],
    *,
    num_classes: int = 2,
    channels: Sequence[str] = ("MRI",),
    num_training_cases: int | None = None,
    **fields: Any,
) -> Fingerprint:
    """A fingerprint of cases with these shapes and spacings, both (z, y, x)."""
    return Fingerprint(
        dataset_name="drawn",
        cases=tuple(
            CaseSize(case_id=f"case_{i:04d}", shape=tuple(shape), spacing_mm=tuple(map(float, spacing)))  # type: ignore[arg-type]
            for i, (shape, spacing) in enumerate(zip(shapes, spacings_mm, strict=True))
        ),
        num_training_cases=num_training_cases or len(shapes),
        channels=tuple(channels),
        labels=fields.pop("labels", None)
        or Labels(classes=tuple(LabelClass(name=f"class {i}", values=(i,)) for i in range(1, num_classes + 1))),
        intensities=(STATISTICS,) * len(channels),
        median_relative_size_after_cropping=fields.pop("relative_size", 1.0),
        **fields,
    )


@pytest.fixture(scope="session")
def fingerprint_of() -> MakeFingerprint:
    """The function `make_fingerprint`, for tests that are not allowed to import each other."""
    return make_fingerprint
