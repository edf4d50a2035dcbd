"""Largest and large components, holes, and what each step would change."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import TypeAdapter
from scipy import ndimage

from autoseg.evaluation.label_maps import (
    SMALLEST_MM3,
    FillHoles,
    KeepLargestComponent,
    RemoveSmallComponents,
    Step,
    count_agreement,
    count_trials,
    trial_steps,
)
from autoseg.evaluation.label_maps import apply_postprocessing as apply_with_volume
from autoseg.issues import AutosegError
from planners import LabelClass, Labels

apply_postprocessing = partial(apply_with_volume, voxel_mm3=1.0)

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)
A, B = KeepLargestComponent(classes=("a",)), KeepLargestComponent(classes=("b",))
ALL = KeepLargestComponent(classes=("a", "b"))


def row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(1, 1, -1)


def test_smaller_component_becomes_background() -> None:
    got = apply_postprocessing(row(1, 1, 0, 1, 0, 2, 0, 2, 2), (A,), TWO)

    assert got.ravel().tolist() == [1, 1, 0, 0, 0, 2, 0, 2, 2]


def test_components_of_equal_largest_size_all_stay() -> None:
    got = apply_postprocessing(row(1, 1, 0, 1, 1, 0, 1), (A,), TWO)

    assert got.ravel().tolist() == [1, 1, 0, 1, 1, 0, 0]


def test_step_on_all_classes_sees_one_mask() -> None:
    got = apply_postprocessing(row(1, 2, 2, 0, 1, 1, 0, 2), (ALL,), TWO)

    assert got.ravel().tolist() == [1, 2, 2, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("corner", [(1, 1, 1), (0, 1, 1), (0, 0, 1)])
def test_voxels_that_share_a_face_edge_or_corner_are_connected(corner: tuple[int, int, int]) -> None:
    labels = np.zeros((2, 2, 2), dtype=np.uint8)
    labels[0, 0, 0] = labels[corner] = 1

    assert np.array_equal(apply_postprocessing(labels, (A,), TWO), labels)


def test_voxel_removed_from_a_region_leaves_all_its_labels() -> None:
    step = KeepLargestComponent(classes=("whole",))

    got = apply_postprocessing(row(1, 2, 1, 0, 2, 1), (step,), REGIONS)

    assert got.ravel().tolist() == [1, 2, 1, 0, 0, 0]


def test_step_on_unknown_class_names_the_known_ones() -> None:
    with pytest.raises(AutosegError) as caught:
        apply_postprocessing(row(1), (KeepLargestComponent(classes=("liver",)),), TWO)
    (issue,) = caught.value.issues
    assert issue.code == "postprocessing.unknown_class"
    assert "liver" in issue.message
    assert "a, b" in issue.message


label_maps = arrays(np.uint8, st.sampled_from([(3, 4, 5), (1, 6, 6)]), elements=st.integers(0, 2))


@given(labels=label_maps)
def test_postprocessing_leaves_its_input_and_is_done_after_once(labels: np.ndarray) -> None:
    before = labels.copy()

    once = apply_postprocessing(labels, (ALL, A, B), TWO)

    assert np.array_equal(labels, before)
    assert np.all((once == labels) | (once == 0))
    assert np.array_equal(apply_postprocessing(once, (A, B), TWO), once)
    assert not np.any(apply_postprocessing(np.zeros_like(labels), (ALL, A, B), TWO))


@given(labels=label_maps)
def test_largest_component_agrees_with_a_walk_over_neighbours(labels: np.ndarray) -> None:
    components = flood(labels == 1)

    got = apply_postprocessing(labels, (A,), TWO)

    largest = max(map(len, components), default=0)
    expected = {voxel for component in components if len(component) == largest for voxel in component}
    assert {tuple(voxel) for voxel in np.argwhere(got == 1).tolist()} == expected


def flood(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    components = []
    while left:
        edge = [left.pop()]
        component = set(edge)
        while edge:
            here = edge.pop()
            near = {v for v in left if max(abs(a - b) for a, b in zip(v, here, strict=True)) <= 1}
            left -= near
            component |= near
            edge += near
        components.append(component)
    return components


# --- volumes and holes ---


@pytest.mark.parametrize(
    ("voxel_mm3", "smallest_mm3", "left"),
    [(1.0, 2.0, [2, 3]), (1.0, 2.01, [3]), (0.1, 0.3, [3]), (0.1, 0.2, [2, 3]), (0.5, 1.6, []), (4.0, 3.9, [1, 2, 3])],
)
def test_components_below_a_volume_in_mm3_go(voxel_mm3: float, smallest_mm3: float, left: list[int]) -> None:
    step = RemoveSmallComponents(classes=("a",), smallest_mm3=smallest_mm3)

    got = apply_with_volume(row(1, 0, 1, 1, 0, 1, 1, 1, 2), (step,), TWO, voxel_mm3=voxel_mm3)

    assert [len(part) for part in "".join(map(str, got.ravel())).replace("2", "0").split("0") if part] == left
    assert got.ravel()[-1] == 2


def ring(*, opening: int = 1) -> np.ndarray:
    """A closed shell of class 1 around background with a voxel of class 2, in 3D; ``opening`` is the value of one voxel of the shell."""
    labels = np.zeros((5, 5, 5), dtype=np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    labels[2, 2, 2] = 0
    labels[1, 2, 2] = opening
    return labels


@pytest.mark.parametrize(("opening", "filled"), [(1, True), (0, False)])
def test_holes_are_filled_where_they_are_closed(opening: int, filled: bool) -> None:
    got = apply_postprocessing(ring(opening=opening), (FillHoles(classes=("a",)),), TWO)

    assert got[2, 2, 2] == int(filled)
    assert np.count_nonzero(got != ring(opening=opening)) == int(filled)


def test_other_classes_inside_a_hole_stay() -> None:
    labels = np.zeros((1, 5, 6), dtype=np.uint8)
    labels[0, :, :5] = 1
    labels[0, 1:4, 1:4] = [[0, 0, 0], [0, 2, 0], [0, 0, 0]]

    got = apply_postprocessing(labels, (FillHoles(classes=("a",)),), TWO)

    assert got[0, 1:4, 1:4].tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]
    assert not got[0, :, 5].any()


def test_a_hole_in_one_slice_of_a_volume_is_open() -> None:
    labels = np.zeros((3, 3, 3), dtype=np.uint8)
    labels[1] = 1
    labels[1, 1, 1] = 0

    assert np.array_equal(apply_postprocessing(labels, (FillHoles(classes=("a",)),), TWO), labels)


def test_a_hole_of_a_region_gets_the_value_that_the_region_writes() -> None:
    got = apply_postprocessing(row(2, 0, 1, 0, 2, 0), (FillHoles(classes=("whole",)),), REGIONS)

    assert got.ravel().tolist() == [2, 1, 1, 1, 2, 0]


def test_steps_are_told_apart_by_their_kind() -> None:
    adapter: TypeAdapter[Step] = TypeAdapter(Step)
    for step in trial_steps(TWO):
        assert adapter.validate_json(adapter.dump_json(step)) == step
    assert adapter.validate_json('{"kind": "keep_largest_component", "classes": ["a"]}') == A


# --- what steps would change ---


def test_each_class_is_tried_with_every_step() -> None:
    one = Labels(classes=TWO.classes[:1])

    assert len(trial_steps(one)) == 2 + len(SMALLEST_MM3)
    assert trial_steps(TWO)[0] == ALL
    assert len(trial_steps(TWO)) == 1 + 2 * len(trial_steps(one))


def test_agreement_is_counted_without_ignored_voxels() -> None:
    labels = Labels(classes=TWO.classes, ignore=3)

    got = count_agreement(row(1, 1, 1, 2, 0, 2), row(1, 3, 2, 3, 1, 2), labels)

    assert got.tolist() == [[1, 2, 2], [1, 1, 2]]


@settings(max_examples=60, deadline=None)
@given(
    pair=st.sampled_from([(3, 4, 5), (1, 6, 6)]).flatmap(
        lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 3))] * 2)
    ),
    labels=st.sampled_from(
        [
            TWO,
            REGIONS,
            Labels(classes=TWO.classes, ignore=3),
            Labels(
                classes=(
                    LabelClass(name="w", values=(1, 2, 3)),
                    LabelClass(name="x", values=(1,)),
                    LabelClass(name="y", values=(2, 3)),
                ),
                region_order=(1, 2, 3),
            ),
        ]
    ),
    voxel_mm3=st.sampled_from([0.3, 1.0, 2.5]),
)
def test_counts_are_those_after_each_step(
    pair: tuple[np.ndarray, np.ndarray], labels: Labels, voxel_mm3: float
) -> None:
    prediction, reference = pair
    prediction = np.where(prediction > len(labels.values), 0, prediction)
    reference = np.where(reference > len(labels.values) + (labels.ignore is not None), 0, reference)
    steps = trial_steps(labels)

    got = count_trials(prediction, reference, steps, labels, voxel_mm3=voxel_mm3)

    assert np.array_equal(got[0], count_agreement(prediction, reference, labels))
    for step, counts in zip(steps, got[1:], strict=True):
        after = apply_with_volume(prediction, (step,), labels, voxel_mm3=voxel_mm3)
        assert np.array_equal(counts, count_agreement(after, reference, labels)), step
        slow = slow_step(prediction, step, labels, voxel_mm3)
        assert np.array_equal(after, slow), step


def slow_step(array: np.ndarray, step: Step, labels: Labels, voxel_mm3: float) -> np.ndarray:
    """A step by scipy's own labelling, one component or hole at a time."""
    values = {each.name: each.values for each in labels.classes}
    mask = np.isin(array, [value for name in step.classes for value in values[name]])
    result = array.copy()
    if isinstance(step, FillHoles):
        flat = array.shape[0] == 1
        around = np.pad(~mask, [(0, 0) if flat else (1, 1), (1, 1), (1, 1)], constant_values=True)
        background, _ = ndimage.label(around)  # through faces; in one slice none of them leads out of it
        inner = background[(slice(None) if flat else slice(1, -1), slice(1, -1), slice(1, -1))]
        place = list(values).index(step.classes[0])
        value = values[step.classes[0]][0] if labels.region_order is None else labels.region_order[place]
        result[(inner > 0) & (inner != background[0, 0, 0]) & (array == 0)] = value
        return result
    components, number = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = [int((components == i + 1).sum()) for i in range(number)]
    for i, size in enumerate(sizes):
        if isinstance(step, KeepLargestComponent):
            goes = size < max(sizes)
        else:
            goes = size * voxel_mm3 < step.smallest_mm3 - 1e-9
        if goes:
            result[components == i + 1] = 0
    return result
