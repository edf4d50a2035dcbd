"""Largest components, and the rule that decides whether keeping only them helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from autoseg.evaluation.postprocessing import (
    KeepLargestComponent,
    PostprocessingCase,
    PostprocessingTrial,
    apply_postprocessing,
    decide_postprocessing,
)
from autoseg.issues import AutosegError
from planners import LabelClass, Labels, read_document, write_document

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)
A, B = KeepLargestComponent(classes=("a",)), KeepLargestComponent(classes=("b",))
ALL = KeepLargestComponent(classes=("a", "b"))


def row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(1, 1, -1)


def constant(array: np.ndarray) -> np.ndarray:
    return array


def cases_of(*pairs: tuple[np.ndarray, np.ndarray]) -> list[PostprocessingCase]:
    return [
        PostprocessingCase(
            case_id=f"case{i}", load_prediction=partial(constant, p), load_reference=partial(constant, r)
        )
        for i, (p, r) in enumerate(pairs)
    ]


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


def test_step_on_everything_is_accepted_when_the_mean_rises_and_no_class_falls() -> None:
    cases = cases_of((row(1, 2, 2, 0, 1), row(1, 2, 2, 0, 0)))

    steps, trials = decide_postprocessing(cases, TWO)

    assert steps == (ALL,)
    assert [trial.accepted for trial in trials] == [True, False, False]
    assert trials[0].dice_before == pytest.approx((2 / 3 + 1) / 2)
    assert trials[0].dice_after == 1.0


def test_step_on_everything_is_refused_when_one_class_falls() -> None:
    """Class a gains a lot, b loses its only voxel: only the own step of a remains."""
    cases = cases_of((row(1, 1, 1, 0, 1, 1, 0, 2), row(1, 1, 1, 0, 0, 0, 0, 2)))

    steps, trials = decide_postprocessing(cases, TWO)

    assert steps == (A,)
    assert "but that of b falls" in trials[0].reason
    assert "but" not in trials[2].reason  # that of b alone


def test_true_scattered_lesions_forbid_any_step() -> None:
    scattered = row(1, 0, 1, 0, 2, 0, 1, 1, 0, 2)

    steps, trials = decide_postprocessing(cases_of((scattered, scattered)), TWO)

    assert steps == ()
    assert len(trials) == 3


def test_unchanged_mean_accepts_nothing() -> None:
    compact = row(1, 1, 2, 2)

    assert decide_postprocessing(cases_of((compact, compact)), TWO)[0] == ()


def test_single_class_is_tried_once() -> None:
    one = Labels(classes=(LabelClass(name="a", values=(1,)),))

    steps, trials = decide_postprocessing(cases_of((row(1, 1, 0, 1), row(1, 1, 0, 0))), one)

    assert steps == (A,)
    assert len(trials) == 1


def test_class_that_never_occurs_forbids_the_step_on_everything() -> None:
    """The foreground mean is undefined then, and a comparison with it is false; a's own step decides."""
    steps, trials = decide_postprocessing(cases_of((row(1, 1, 0, 1), row(1, 1, 0, 0))), TWO)

    assert steps == (A,)
    assert (trials[0].accepted, trials[0].dice_before, trials[2].dice_before) == (False, None, None)


def test_ignored_voxels_do_not_decide() -> None:
    labels = Labels(classes=TWO.classes, ignore=3)
    cases = cases_of((row(1, 1, 0, 1, 2), row(1, 1, 0, 3, 2)))

    steps, trials = decide_postprocessing(cases, labels)

    assert steps == ()
    assert trials[1].dice_before == trials[1].dice_after == 1.0


def test_later_region_is_judged_on_top_of_the_accepted_ones() -> None:
    """The step on the whole removes the core's stray voxel too, so that nothing is left for the core's own step."""
    prediction = row(1, 1, 2, 2, 0, 1, 0, 2)
    reference = row(1, 1, 2, 2, 0, 0, 0, 0)

    steps, trials = decide_postprocessing(cases_of((prediction, reference)), REGIONS)

    assert steps == (KeepLargestComponent(classes=("whole", "core")),)
    assert trials[2].dice_before == 1.0


def test_no_cases_decide_nothing() -> None:
    assert decide_postprocessing([], TWO) == ((), ())


def test_steps_and_trials_survive_storage() -> None:
    _, trials = decide_postprocessing(cases_of((row(1, 1, 0, 1), row(1, 1, 0, 0))), TWO)

    for trial in trials:
        assert read_document(PostprocessingTrial, write_document(trial), where="trial") == trial


def test_workers_decide_as_one_process_does() -> None:
    pairs = [(row(1, 2, 2, 0, 1), row(1, 2, 2, 0, 0)), (row(1, 0, 0, 1, 1), row(1, 0, 0, 1, 1))]

    assert decide_postprocessing(cases_of(*pairs), TWO, num_workers=2) == decide_postprocessing(cases_of(*pairs), TWO)


@dataclass(slots=True)
class CountingLoader:
    """Counts how often its array was loaded."""

    array: np.ndarray
    loads: int = 0

    def __call__(self) -> np.ndarray:
        self.loads += 1
        return self.array


def test_many_classes_need_two_rounds_of_reading() -> None:
    """Classes without shared values are tried together: one round for everything, one for all of them."""
    many = Labels(classes=tuple(LabelClass(name=str(i), values=(i,)) for i in range(1, 21)))
    loader = CountingLoader(np.arange(21, dtype=np.uint8).reshape(1, 1, -1))
    case = PostprocessingCase(case_id="a", load_prediction=loader, load_reference=loader)

    decide_postprocessing([case], many)

    assert loader.loads == 4


def test_what_was_tried_on_a_case_is_not_tried_again_after_a_kill(tmp_path: Path) -> None:
    loader = CountingLoader(row(1, 2, 2, 0, 1))
    case = PostprocessingCase(
        case_id="a", load_prediction=loader, load_reference=lambda: row(1, 2, 2, 0, 0), files=(tmp_path / "read",)
    )
    decided = [decide_postprocessing([case], TWO, keep_in=tmp_path / "kept") for _ in range(2)]
    assert decided == [decide_postprocessing([case], TWO)] * 2
    once = loader.loads // 2
    (tmp_path / "read").touch()
    decide_postprocessing([case], TWO, keep_in=tmp_path / "kept")
    assert loader.loads == 3 * once


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(*[arrays(np.uint8, (1, 3, 5), elements=st.integers(0, 3))] * 2), min_size=1, max_size=3),
    labels=st.sampled_from(
        [
            TWO,
            REGIONS,
            Labels(classes=(*TWO.classes, LabelClass(name="c", values=(3,)))),
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
)
def test_decision_agrees_with_the_rule_taken_one_class_at_a_time(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: Labels
) -> None:
    pairs = [tuple(np.where(each > len(labels.values), 0, each) for each in pair) for pair in pairs]  # type: ignore[misc]

    steps, trials = decide_postprocessing(cases_of(*pairs), labels)

    assert steps == slow_decision(pairs, labels)
    assert steps == tuple(trial.step for trial in trials if trial.accepted)


def slow_decision(pairs: Sequence[tuple[np.ndarray, np.ndarray]], labels: Labels) -> tuple[KeepLargestComponent, ...]:
    """Method section 9.3, word by word, with NaN as numpy has it."""
    predictions = [prediction.copy() for prediction, _ in pairs]
    references = [reference for _, reference in pairs]
    values = {each.name: each.values for each in labels.classes}
    accepted = []

    def means(of: Sequence[np.ndarray]) -> dict[str, float]:
        result = {}
        for name, own in values.items():
            dices = []
            for prediction, reference in zip(of, references, strict=True):
                p, r = np.isin(prediction, own), np.isin(reference, own)
                if p.any() or r.any():
                    dices.append(2 * (p & r).sum() / (p.sum() + r.sum()))
            result[name] = fmean(dices) if dices else float("nan")
        return result

    def keep(array: np.ndarray, own: Sequence[int]) -> np.ndarray:
        components, number = ndimage.label(np.isin(array, own), np.ones((3, 3, 3)))
        sizes = [(components == i + 1).sum() for i in range(number)]
        small = [i + 1 for i in range(number) if sizes[i] < max(sizes)]
        return np.where(np.isin(components, small), 0, array)

    changed = [keep(array, labels.values) for array in predictions]
    before, after = means(predictions), means(changed)
    if fmean(after.values()) > fmean(before.values()) and not any(after[name] < before[name] for name in values):
        accepted.append(KeepLargestComponent(classes=tuple(values)))
        predictions = changed
    for name, own in values.items() if len(values) > 1 else ():
        changed = [keep(array, own) for array in predictions]
        if means(changed)[name] > means(predictions)[name]:
            accepted.append(KeepLargestComponent(classes=(name,)))
            predictions = changed
    return tuple(accepted)
