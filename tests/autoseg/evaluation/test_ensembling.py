"""Probabilities of several models become one label map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from autoseg.evaluation.ensembling import labels_from_probabilities, mean_probabilities
from autoseg.issues import AutosegError
from planners import LabelClass, Labels

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


def voxels(*probabilities: tuple[float, ...]) -> np.ndarray:
    """(K, 1, 1, number of voxels) from the probabilities of each voxel."""
    return np.array(probabilities, dtype=np.float32).T[:, None, None, :]


def test_mean_is_plain_and_of_one_type() -> None:
    members = (voxels((0.2, 0.8)), voxels((0.4, 0.6)).astype(np.float64))

    got = mean_probabilities(members)

    assert got.dtype == np.float32
    assert got.ravel() == pytest.approx([0.3, 0.7])


def test_members_are_left_as_they_are() -> None:
    first = voxels((0.2, 0.8))

    mean_probabilities([first, voxels((1.0, 0.0))])

    assert first.ravel() == pytest.approx([0.2, 0.8])


def test_members_of_different_shape_are_refused() -> None:
    with pytest.raises(AutosegError, match="disagree in shape"):
        mean_probabilities([voxels((0.2, 0.8)), voxels((0.2, 0.5, 0.3))])


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_probabilities([])


def test_largest_probability_wins_and_the_first_of_equals() -> None:
    got = labels_from_probabilities(voxels((0.1, 0.2, 0.7), (0.4, 0.4, 0.2), (0.2, 0.4, 0.4)), TWO)

    assert got.shape == (1, 1, 3)
    assert got.ravel().tolist() == [2, 0, 1]


def test_regions_write_in_order_above_one_half() -> None:
    got = labels_from_probabilities(voxels((0.9, 0.9), (0.9, 0.5), (0.2, 0.8), (0.5, 0.5)), REGIONS)

    assert got.ravel().tolist() == [2, 1, 2, 0]


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(AutosegError, match=r"\(2, 1, 1, 1\).*\(3, z, y, x\)"):
        labels_from_probabilities(voxels((0.5, 0.5)), TWO)


@pytest.mark.parametrize(("number", "dtype"), [(254, np.uint8), (255, np.uint16)])
def test_integer_type_grows_with_the_number_of_classes(number: int, dtype: type[np.integer]) -> None:
    labels = Labels(classes=tuple(LabelClass(name=str(i), values=(i,)) for i in range(1, number + 1)))
    probabilities = np.zeros((number + 1, 1, 1, 2), dtype=np.float32)
    probabilities[number, 0, 0, 1] = 1

    got = labels_from_probabilities(probabilities, labels)

    assert got.dtype == dtype
    assert got.ravel().tolist() == [0, number]


@given(probabilities=arrays(np.float32, (3, 2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_an_ensemble_of_equal_members_decides_as_one(probabilities: np.ndarray) -> None:
    """Four members, because the sum of four equal numbers and a quarter of it are exact."""
    together = mean_probabilities([probabilities] * 4)

    assert np.array_equal(labels_from_probabilities(together, TWO), labels_from_probabilities(probabilities, TWO))
