"""Reorienting to the canonical orientation and back, for all orientations."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from autoseg.imaging.image import Geometry, LabelMap
from autoseg.imaging.orientation import (
    IDENTITY,
    align_label_map,
    canonical_geometry,
    canonical_orientation,
    from_canonical,
    part_indices,
    place_part,
    ras_orientation,
    to_canonical,
)
from autoseg.issues import AutosegError

SHAPE = (3, 4, 5)


def signed_permutations() -> list[np.ndarray]:
    """The 48 direction matrices along the axes of the world."""
    return [np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def geometry(direction: np.ndarray, **changes: object) -> Geometry:
    rows = tuple(tuple(float(value) for value in row) for row in direction)
    fields = {"shape": SHAPE, "spacing_mm": (3.0, 1.5, 1.0), "origin_mm": (10.0, -20.0, 30.0), "direction": rows}
    return Geometry(**{**fields, **changes})  # type: ignore[arg-type]


def world(where: Geometry, index: tuple[int, int, int]) -> np.ndarray:
    """Position in mm (x, y, z) of a voxel (z, y, x)."""
    steps = np.array(index[::-1]) * np.array(where.spacing_mm[::-1])
    return np.array(where.origin_mm) + np.array(where.direction) @ steps


def numbered() -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE)


def assert_voxels_keep_their_place(source: Geometry) -> None:
    orientation = canonical_orientation(source)
    turned, target = to_canonical(numbered(), orientation), canonical_geometry(source, orientation)
    assert turned.shape == target.shape
    for index in np.ndindex(*turned.shape):
        origin = np.argwhere(numbered() == turned[index])[0]
        assert np.allclose(world(target, index), world(source, tuple(origin)), atol=1e-9)  # float64 sums of tens of mm


def test_there_are_48_orientations() -> None:
    assert len({matrix.tobytes() for matrix in signed_permutations()}) == 48


@pytest.mark.parametrize("direction", signed_permutations(), ids=lambda m: "".join(f"{v:+.0f}" for v in m.ravel() if v))
def test_every_orientation_becomes_the_identity_and_back(direction: np.ndarray) -> None:
    source = geometry(direction)
    orientation = canonical_orientation(source)
    assert np.allclose(canonical_geometry(source, orientation).direction, np.eye(3))
    assert_voxels_keep_their_place(source)
    assert np.array_equal(from_canonical(to_canonical(numbered(), orientation), orientation), numbered())


@settings(deadline=None, max_examples=40)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3))
def test_oblique_directions_come_as_close_to_the_identity_as_whole_axes_allow(
    angles: tuple[float, float, float],
) -> None:
    source = geometry(Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    orientation = canonical_orientation(source)
    turned = np.array(canonical_geometry(source, orientation).direction)
    best = max(np.trace(np.array(source.direction) @ turn) for turn in signed_permutations())
    assert np.trace(turned) == pytest.approx(best, abs=1e-5)  # closer ones are ties by design
    assert_voxels_keep_their_place(source)


@pytest.mark.parametrize("direction", signed_permutations(), ids=lambda m: "".join(f"{v:+.0f}" for v in m.ravel() if v))
def test_ras_is_what_nibabel_takes_for_it(direction: np.ndarray) -> None:
    source = geometry(direction)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ direction  # world axes of NIfTI run to the right and to the front
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(numbered().T.astype(np.int32), affine))
    np.testing.assert_array_equal(to_canonical(numbered(), ras_orientation(source)), np.asarray(expected.dataobj).T)


def test_leading_axes_are_left_alone() -> None:
    orientation = canonical_orientation(geometry(signed_permutations()[29]))
    image = np.stack([numbered(), numbered() + 1000])
    turned = to_canonical(image, orientation)
    assert np.array_equal(turned[1], to_canonical(numbered(), orientation) + 1000)
    assert np.array_equal(from_canonical(turned, orientation), image)


def test_at_45_degrees_rounding_does_not_decide() -> None:
    for wobble in (-1e-9, 0, 1e-9):
        turn = Rotation.from_euler("z", 45 + wobble, degrees=True).as_matrix()
        assert canonical_orientation(geometry(turn)) == IDENTITY


@pytest.mark.parametrize("changes", [{"has_orientation": False}, {"dimensions": 2, "shape": (1, 4, 5)}])
def test_images_without_orientation_and_flat_ones_stay(changes: dict[str, object]) -> None:
    assert canonical_orientation(geometry(-np.eye(3), **changes)) == IDENTITY
    assert ras_orientation(geometry(-np.eye(3), **changes)) == IDENTITY


def test_labels_stored_in_another_orientation_are_brought_to_their_image() -> None:
    image = geometry(np.diag([-1.0, 1, -1]))
    label_geometry = geometry(np.eye(3))
    expected = numbered()[::-1, :, ::-1]
    got = align_label_map(LabelMap(array=numbered(), geometry=label_geometry), image)
    assert np.array_equal(got, expected)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(AutosegError) as caught:
        align_label_map(
            LabelMap(array=np.zeros((2, 4, 5), int), geometry=geometry(np.eye(3), shape=(2, 4, 5))), geometry(np.eye(3))
        )
    assert caught.value.codes == ("labels.shape_differs",)


WHOLE = (6, 7, 8)


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    start=st.tuples(*[st.integers(0, size - 1) for size in WHOLE]),
    step=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_a_part_comes_back_to_its_place(
    angles: tuple[float, float, float], start: tuple[int, int, int], step: tuple[int, int, int]
) -> None:
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    rows = tuple(tuple(float(v) for v in row) for row in direction)
    whole = Geometry(shape=WHOLE, spacing_mm=(2.5, 0.75, 0.5), origin_mm=(1.0, 2.0, 3.0), direction=rows)
    array = np.arange(1, 1 + np.prod(WHOLE)).reshape(WHOLE)
    cut = tuple(slice(a, None, b) for a, b in zip(start, step, strict=True))
    part = array[cut]
    offset = np.array(start[::-1]) * np.array(whole.spacing_mm[::-1])
    geometry = Geometry(
        shape=part.shape,
        spacing_mm=tuple(s * k for s, k in zip(whole.spacing_mm, step, strict=True)),
        origin_mm=tuple(float(v) for v in np.array(whole.origin_mm) + direction @ offset),
        direction=rows,
    )
    placed = place_part(part, geometry, whole)
    expected = np.zeros_like(array)
    expected[cut] = part
    assert placed is not None
    assert np.array_equal(placed, expected)


def test_grids_outside_between_voxels_or_rotated_are_not_parts() -> None:
    whole = Geometry(shape=WHOLE, spacing_mm=(1.0, 1.0, 1.0))
    for changes in (
        {"origin_mm": (0.5, 0.0, 0.0)},
        {"origin_mm": (-1.0, 0.0, 0.0)},
        {"shape": (7, 7, 8)},
        {"spacing_mm": (1.5, 1.0, 1.0)},
        {"direction": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))},
    ):
        assert part_indices(whole.model_copy(update=changes), whole) is None
