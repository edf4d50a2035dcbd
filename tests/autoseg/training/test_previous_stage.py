"""What a cascade's second stage sees of the first: draws against their distributions, shapes against other libraries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_folds import load_batches
from scipy import ndimage
from skimage import measure, morphology

from autoseg.imaging.readers import read_label_map
from autoseg.training import previous_stage
from autoseg.training.augmentation import Parameters, Recipe, augment, draw_parameters, make_recipe
from autoseg.training.previous_stage import (
    OPERATIONS,
    Disturbance,
    Operation,
    Removal,
    draw_disturbance,
    label_on_cpu,
    label_on_gpu,
    previous_classes,
)
from autoseg.training.sampling import BatchSource

DRAWS = 6000
CHANNELS = 3
VALUES = (1, 2)


@pytest.fixture(scope="module")
def drawn() -> list[Disturbance]:
    rng = np.random.default_rng(0)
    return [draw_disturbance(rng, CHANNELS) for _ in range(DRAWS)]


def disturb(classes: np.ndarray, change: Disturbance) -> np.ndarray:
    return previous_stage.disturb(torch.from_numpy(classes), change).numpy()


def dilate(mask: np.ndarray, radius: float) -> np.ndarray:
    return previous_stage.dilate(torch.from_numpy(mask), radius).numpy()


def erode(mask: np.ndarray, radius: float) -> np.ndarray:
    return previous_stage.erode(torch.from_numpy(mask), radius).numpy()


def squared_distance(mask: np.ndarray, reach: int) -> np.ndarray:
    return previous_stage.squared_distance(torch.from_numpy(mask), reach).numpy()


def four_errors(probability: float, number: int) -> float:
    return 4 * math.sqrt(probability * (1 - probability) / number)


@pytest.mark.parametrize(("field", "probability"), [("operations", 0.4), ("removals", 0.2)])
def test_samples_and_channels_are_disturbed_as_often_as_the_method_says(drawn, field: str, probability: float) -> None:
    """A channel is chosen with probability 0.5 where its sample is; so a sample has so many of three, independently."""
    numbers = np.array([len(getattr(each, field)) for each in drawn])
    for count in range(1, CHANNELS + 1):
        expected = probability * math.comb(CHANNELS, count) * 0.5**CHANNELS
        assert abs((numbers == count).mean() - expected) < four_errors(expected, DRAWS)
    for channel in range(CHANNELS):
        share = np.mean([any(change.channel == channel for change in getattr(each, field)) for each in drawn])
        assert abs(share - probability / 2) < four_errors(probability / 2, DRAWS)


def test_operations_and_removals_are_drawn_independently(drawn) -> None:
    both = np.mean([bool(each.operations) and bool(each.removals) for each in drawn])
    expected = 0.4 * 0.2 * (1 - 0.5**CHANNELS) ** 2
    assert abs(both - expected) < four_errors(expected, DRAWS)


def test_every_order_of_channels_is_as_likely(drawn) -> None:
    orders = [tuple(change.channel for change in each.operations) for each in drawn if len(each.operations) == CHANNELS]
    for first in range(CHANNELS):
        share = np.mean([order[0] == first for order in orders])
        assert abs(share - 1 / 3) < four_errors(1 / 3, len(orders))


def test_operations_are_uniform_and_radii_fill_their_range(drawn) -> None:
    operations = [change for each in drawn for change in each.operations]
    for name in OPERATIONS:
        assert abs(np.mean([change.name == name for change in operations]) - 0.25) < four_errors(0.25, len(operations))
    radii = np.array([change.radius for change in operations])
    assert 1 <= radii.min() < 1.1
    assert 7.9 < radii.max() <= 8
    assert abs(radii.mean() - 4.5) < 4 * 7 / math.sqrt(12 * len(radii))
    choices = np.array([change.choice for each in drawn for change in each.removals])
    assert choices.min() >= 0
    assert choices.max() < 1
    assert abs(choices.mean() - 0.5) < 4 / math.sqrt(12 * len(choices))


def blobs(shape: tuple[int, ...], seed: int, channels: int = 2) -> np.ndarray:
    """Classes that do not overlap, with pieces of many sizes."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.stack([(noise > 0.06 * k) & (noise <= 0.06 * (k + 1)) for k in range(1, channels + 1)])


def ball(radius: float, axes: int) -> np.ndarray:
    reach = math.floor(radius)
    grid = np.meshgrid(*[np.arange(-reach, reach + 1)] * axes, indexing="ij")
    return sum(each**2 for each in grid) <= radius**2


@pytest.mark.parametrize("shape", [(14, 18, 16), (30, 26)])
@pytest.mark.parametrize("radius", [1.0, 2.6, 5.0])
def test_shapes_change_as_scikit_image_changes_them(shape: tuple[int, ...], radius: float) -> None:
    """With the ball that holds the voxels no further than the radius; scikit-image does not erode from the border either."""
    theirs = {
        "dilate": morphology.dilation,
        "erode": morphology.erosion,
        "close": morphology.closing,
        "open": morphology.opening,
    }
    mask = blobs(shape, 1)[0]
    small = np.zeros_like(mask)
    small[3:7, 4:8] = mask[3:7, 4:8]  # its box is smaller than the array, and ends inside it
    for before in (mask, small):
        for name in OPERATIONS:
            change = Disturbance(operations=(Operation(channel=0, name=name, radius=radius),))
            expected = theirs[name](before, ball(radius, len(shape)))
            np.testing.assert_array_equal(disturb(before[None], change)[0], expected, err_msg=name)


@given(arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 3)), st.floats(1, 8))
def test_what_dilation_and_erosion_promise(mask: np.ndarray, radius: float) -> None:
    grown, shrunk = dilate(mask, radius), erode(mask, radius)
    assert (mask <= grown).all()
    assert (shrunk <= mask).all()
    assert (dilate(shrunk, radius) <= mask).all()
    assert (mask <= erode(grown, radius)).all()


@given(arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 3)))
def test_squared_distances_are_exact_within_reach(mask: np.ndarray) -> None:
    if not mask.any():
        assert (squared_distance(mask, 8) >= 10_000).all()
        return
    expected = np.rint(ndimage.distance_transform_edt(~mask) ** 2)
    np.testing.assert_array_equal(squared_distance(mask, 9), expected)


def test_what_is_added_to_one_class_is_taken_from_the_others() -> None:
    classes = np.zeros((3, 12, 12, 12), bool)
    classes[0, 4:8, 4:8, 4:8] = classes[1, 8:12, 4:8, 4:8] = classes[2, 0:2] = True
    got = disturb(classes, Disturbance(operations=(Operation(channel=0, name="dilate", radius=2.0),)))
    assert got[0].sum() > classes[0].sum()
    assert not (got[0] & got[1]).any()
    assert (got[1] == (classes[1] & ~got[0])).all()
    assert (got[2] == classes[2]).all()  # too far away


def test_later_operations_work_on_what_earlier_ones_left() -> None:
    classes = np.zeros((2, 16, 16, 16), bool)
    classes[0, 4:12, 4:12, 4:8] = classes[1, 4:12, 4:12, 8:12] = True
    first, second = (Operation(channel=channel, name="dilate", radius=2.0) for channel in (0, 1))
    one, other = (disturb(classes, Disturbance(operations=order)) for order in ((first, second), (second, first)))
    assert (one[1].sum(), one[0].sum()) == (other[0].sum(), other[1].sum())  # mirror images of each other
    assert (one != other).any()
    np.testing.assert_array_equal(
        one[0], disturb(disturb(classes, Disturbance(operations=(first,))), Disturbance(operations=(second,)))[0]
    )


@pytest.mark.parametrize("shape", [(14, 18, 16), (30, 26)])
def test_one_small_component_goes_and_each_may_be_the_one(shape: tuple[int, ...]) -> None:
    classes = blobs(shape, 2)
    components, number = measure.label(classes[0], connectivity=len(shape), return_num=True)
    small = [k for k in range(1, number + 1) if (components == k).sum() < 0.15 * classes[0].size]
    assert len(small) > 2
    gone = []
    for k in range(len(small)):
        got = disturb(classes, Disturbance(removals=(Removal(channel=0, choice=(k + 0.5) / len(small)),)))
        np.testing.assert_array_equal(got[1], classes[1])
        (lost,) = set(components[classes[0] & ~got[0]].tolist())
        assert not (got[0] & ~classes[0]).any()
        assert (got[0] == (classes[0] & (components != lost))).all()
        gone.append(lost)
    assert sorted(gone) == small


@given(arrays(np.bool_, st.tuples(*[st.integers(1, 9)] * 3)))
def test_both_ways_to_tell_components_apart_agree(mask: np.ndarray) -> None:
    """The numbers differ, their order does not."""
    one, other = (number(torch.from_numpy(mask)).numpy() for number in (label_on_cpu, label_on_gpu))
    for each in (one, other):
        assert ((each > 0) == mask).all()
    pairs = sorted({*zip(one[mask].tolist(), other[mask].tolist(), strict=True)})
    assert [a for a, _ in pairs] == list(range(1, len(pairs) + 1))
    assert [b for _, b in pairs] == sorted({b for _, b in pairs})


def test_a_long_winding_component_is_one() -> None:
    """A path through the whole plane, which numbers would need hundreds of steps to walk."""
    mask = np.zeros((41, 41), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert measure.label(mask, connectivity=2, return_num=True)[1] == 1
    for number in (label_on_cpu, label_on_gpu):
        assert len(np.unique(number(torch.from_numpy(mask)).numpy()[mask])) == 1


def test_large_components_are_kept_and_inputs_unchanged() -> None:
    classes = np.zeros((1, 10, 10, 10), bool)
    classes[0, 0], classes[0, 1, :5] = True, True  # 15 % of the patch
    before = classes.copy()
    assert (disturb(classes, Disturbance(removals=(Removal(channel=0, choice=0.0),))) == before).all()
    disturb(classes, Disturbance(operations=(Operation(channel=0, name="dilate", radius=3.0),)))
    assert (classes == before).all()


def test_slightly_smaller_ones_are_deleted() -> None:
    classes = np.zeros((1, 10, 10, 10), bool)
    classes[0, 0], classes[0, 1, :5, :9] = True, True
    assert not disturb(classes, Disturbance(removals=(Removal(channel=0, choice=0.0),))).any()


def test_an_empty_class_stays_empty() -> None:
    classes = np.zeros((2, 8, 8, 8), bool)
    change = Disturbance(
        operations=(Operation(channel=1, name="close", radius=4.0),), removals=(Removal(channel=0, choice=0.9),)
    )
    assert not disturb(classes, change).any()


def test_a_real_label_map_is_disturbed_like_its_indicators(real_data: Path) -> None:
    """Two real classes that touch: closing one by three voxels as scikit-image does, the other loses what it gained."""
    labels = read_label_map(real_data / "Task04_Hippocampus" / "labelsTr" / "hippocampus_003.nii.gz").array
    classes = np.stack([labels == value for value in VALUES])
    got = disturb(classes, Disturbance(operations=(Operation(channel=0, name="close", radius=3.2),)))
    expected = morphology.closing(classes[0], ball(3.2, 3))
    np.testing.assert_array_equal(got[0], expected)
    np.testing.assert_array_equal(got[1], classes[1] & ~(expected & ~classes[0]))


@pytest.mark.parametrize("patch", [(12, 14, 10), (4, 20, 20)])
def test_the_first_stages_map_moves_as_the_labels_do(patch: tuple[int, ...]) -> None:
    """Given the labels themselves, turned, scaled and mirrored or not, the classes are those of the augmented labels."""
    recipe: Recipe = make_recipe(patch, num_channels=1, mirror_axes=(0, 1, 2), masked_channels=(), augment=True)
    rng = np.random.default_rng(4)
    crop = tuple(n + 8 for n in patch) if not recipe.dummy_2d else (patch[0], *(n + 8 for n in patch[1:]))
    labels = (2 * blobs(crop, 3)[0] + blobs(crop, 5)[0]).astype(np.int16).clip(0, 2)
    labels[-2:] = -1
    for _ in range(12):
        changes: Parameters = draw_parameters(rng, recipe)
        both = torch.from_numpy(np.stack([labels, labels]))
        _, moved = augment(changes, recipe, torch.zeros((1, *crop)), both)
        got = previous_classes(moved[1], VALUES, Disturbance())
        assert got.dtype == torch.bool
        for k, value in enumerate(VALUES):
            assert torch.equal(got[k], moved[0] == value)


@dataclass(frozen=True)
class MadeCase:
    """A case in memory whose first stage found everything, and one voxel more."""

    image: np.ndarray
    labels: np.ndarray
    previous: np.ndarray
    locations: dict[str, np.ndarray]


def made_source(purpose: str) -> BatchSource:
    cases = []
    for seed in range(3):
        labels = (blobs((20, 22, 18), seed)[0] + 2 * blobs((20, 22, 18), seed)[1]).astype(np.int16)
        found = labels.astype(np.uint8)
        found[0, 0, 0] = 2
        places = {"a": np.argwhere(labels == 1).astype(np.int32)}
        cases.append(MadeCase(labels[None].astype(np.float32), labels, found, places))
    recipe = make_recipe((12, 14, 10), num_channels=1, mirror_axes=(0, 1, 2), masked_channels=(), augment=True)
    return BatchSource(
        cases=cases,
        recipe=recipe,
        batch_size=2,
        foreground_share=0.33,
        seed=3,
        configuration="3d_cascade_fullres",
        fold=0,
        purpose=purpose,
        previous_values=VALUES,
    )


def test_batches_hold_image_and_classes_whatever_the_number_of_workers() -> None:
    source, cpu = made_source("training"), torch.device("cpu")
    one, two = ([*load_batches(source, range(20), num_workers=n, device=cpu)] for n in (0, 2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))
    images = torch.cat([images for images, _ in one])
    assert images.shape == (40, 3, 12, 14, 10)
    assert set(images[:, 1:].unique().tolist()) == {0.0, 1.0}
    labels = torch.cat([labels for _, labels in one])
    same = [bool((images[i, 1:].bool() == torch.stack([labels[i] == v for v in VALUES])).all()) for i in range(40)]
    expected = (1 - 0.4 * 0.75) * (1 - 0.2 * 0.75)  # neither an operation nor a removal chose one of two channels
    assert abs(np.mean(same) - expected) < 4 * math.sqrt(expected * (1 - expected) / 40)


def test_validation_patches_show_the_first_stage_unchanged() -> None:
    source = made_source("validation")
    for images, labels in load_batches(source, range(6), num_workers=0, device=torch.device("cpu")):
        found = images[:, 1:].bool()
        for k, value in enumerate(VALUES):
            assert (found[:, k] ^ (labels == value)).sum() <= 2  # the voxel more, at most once in each sample


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_disturbs_as_a_cpu_does() -> None:
    classes = torch.from_numpy(blobs((40, 48, 44), 7))
    rng = np.random.default_rng(5)
    for _ in range(30):
        change = draw_disturbance(rng, len(classes))
        assert torch.equal(
            previous_stage.disturb(classes.cuda(), change).cpu(), previous_stage.disturb(classes, change)
        )
