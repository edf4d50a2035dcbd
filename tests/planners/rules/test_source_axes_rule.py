"""When source axes are those of the body, and when those of the acquisition."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners import CaseSize, Fingerprint, explain, plan_dataset
from planners.rules.axes import decide_mirror_axes, decide_source_axes, in_acquisition_axes

PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
"""Canonical axis of each axis of a file whose slices come first."""
orders = st.sampled_from(list(permutations(range(3))))


def acquired(
    plane: str, number: int, *, shape: tuple[int, int, int] = (24, 200, 180), thick_mm: float = 5.0
) -> CaseSize:
    """A stack of slices, thick ones first in the file, in anatomical axes."""
    canonical = PLANES[plane]
    file_axes = tuple(canonical.index(axis) for axis in range(3))
    in_file: Any = (thick_mm, 0.8, 0.8)
    return CaseSize(
        case_id=f"{plane}_{number}",
        shape=tuple(shape[axis] for axis in file_axes),  # type: ignore[arg-type]
        spacing_mm=tuple(in_file[axis] for axis in file_axes),  # type: ignore[arg-type]
        file_axes=file_axes,  # type: ignore[arg-type]
    )


def cases(axial: int, sagittal: int, **options: Any) -> list[CaseSize]:
    return [acquired("axial", i, **options) for i in range(axial)] + [
        acquired("sagittal", i, **options) for i in range(sagittal)
    ]


@pytest.mark.parametrize(
    ("axial", "sagittal", "value"),
    [
        (10, 0, "anatomical"),
        (0, 10, "anatomical"),
        (9, 1, "anatomical"),
        (89, 11, "acquisition"),
        (90, 10, "anatomical"),
        (5, 5, "acquisition"),
    ],
)
def test_scattered_coarse_axes_are_kept_as_acquired(axial: int, sagittal: int, value: str) -> None:
    decision = decide_source_axes(cases(axial, sagittal), sided_axis=None)
    assert decision.value == value
    assert decision.change


def test_files_that_do_not_agree_better_are_told_where_the_body_does_not_agree() -> None:
    stored_turned = [case.model_copy(update={"file_axes": (0, 1, 2)}) for case in cases(11, 89)]
    assert "(89% along the same axis of their files)" in decide_source_axes(stored_turned, sided_axis=None).reason
    assert "of their files" not in decide_source_axes(cases(90, 10), sided_axis=None).reason


def test_left_and_right_need_the_axes_of_the_body() -> None:
    decision = decide_source_axes(cases(5, 5), sided_axis=2)
    assert decision.value == "anatomical"
    assert "left and right" in decision.reason


def test_thin_slices_and_unknown_files_change_nothing() -> None:
    assert decide_source_axes(cases(5, 5, thick_mm=2.4), sided_axis=None).value == "anatomical"
    assert decide_source_axes(cases(5, 5, thick_mm=2.41), sided_axis=None).value == "acquisition"
    unknown = [case.model_copy(update={"file_axes": None}) for case in cases(5, 5)]
    assert decide_source_axes(unknown, sided_axis=None).value == "anatomical"


def test_files_that_scatter_as_much_gain_nothing() -> None:
    """Sagittal slices stored with the thick axis last: neither axes agree, so the body's are taken."""
    stored_turned = [case.model_copy(update={"file_axes": (0, 1, 2)}) for case in cases(5, 5)]
    assert decide_source_axes(stored_turned, sided_axis=None).value == "anatomical"


@given(order=orders, shape=st.tuples(*[st.integers(1, 99)] * 3), spacing=st.tuples(*[st.floats(0.1, 9)] * 3))
def test_acquisition_axes_are_those_of_the_file(order: Any, shape: Any, spacing: Any) -> None:
    turned = CaseSize(
        case_id="a",
        shape=tuple(shape[axis] for axis in order),
        spacing_mm=tuple(spacing[axis] for axis in order),
        file_axes=order,
    )
    got = in_acquisition_axes(turned)
    assert (got.shape, got.spacing_mm) == (shape, spacing)
    assert in_acquisition_axes(got) == got


def test_the_plan_follows_and_says_why(fingerprint_of: Any) -> None:
    made: Fingerprint = fingerprint_of([(24, 200, 180)] * 2, [(5.0, 0.8, 0.8)] * 2)
    mixed = made.model_copy(update={"cases": tuple(cases(3, 3)), "num_training_cases": 6})
    axial = made.model_copy(update={"cases": tuple(cases(6, 0)), "num_training_cases": 6})
    of_mixed, of_axial = plan_dataset(mixed), plan_dataset(axial)
    assert of_mixed.source_axes == "acquisition"
    assert of_axial.source_axes == "anatomical"
    assert of_mixed.configurations == of_axial.configurations  # the same slices, whatever their plane
    text = " ".join(explain(of_mixed).split())
    assert "50% of the 6 cases with a coarse axis have it along the same anatomical axis" in text


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "right labels, which"),
        (1, "(a and b), which"),
        (3, "(a and b, c and d, e and f), which"),
        (5, "(a and b, c and d, e and f, and 2 more), which"),
    ],
)
def test_three_pairs_of_labels_are_named(number: int, told: str) -> None:
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"), ("i", "j")][:number]
    decided = decide_mirror_axes(3, transpose_forward=(0, 1, 2), sided_axis=2, sided_pairs=pairs)
    assert told in decided.reason
