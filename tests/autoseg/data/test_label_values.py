"""File values and internal values of labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.data.labels import to_file_values, to_internal
from autoseg.issues import AutosegError

file_values = st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 300), min_size=1, max_size=8, unique=True)


@settings(deadline=None, max_examples=100)
@given(values=file_values, seed=st.integers(0, 99))
def test_values_go_in_and_come_out(values: list[int], seed: int) -> None:
    internal = np.random.default_rng(seed).integers(0, len(values), (2, 3, 4))
    outside = to_file_values(internal, values)
    assert np.array_equal(outside, np.array(values)[internal])
    back = to_internal(outside, values)
    assert back.dtype == np.int16
    assert np.array_equal(back, internal)


def test_the_smallest_type_is_chosen() -> None:
    array = np.zeros((1, 1, 1), np.int16)
    kinds = [to_file_values(array, values).dtype for values in ((0, 255), (0, 300), (-5, 0), (0, 70_000), (0, 2**40))]
    assert kinds == [np.uint8, np.uint16, np.int16, np.int32, np.int64]


@pytest.mark.parametrize("wide", [7, 10**9])
def test_unknown_values_are_named_with_their_counts(wide: int) -> None:
    array = np.array([0, 1, 5, wide, wide])
    with pytest.raises(
        AutosegError, match=rf"5 \(1 voxels\), {wide} \(2 voxels\) are not declared; declared are 0, 1:"
    ):
        to_internal(array, (0, 1))


def test_an_empty_array_stays_empty() -> None:
    assert to_internal(np.zeros((0, 2), np.uint8), (0, 1)).shape == (0, 2)
