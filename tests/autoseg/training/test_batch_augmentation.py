"""A batch augmented at once: the same as sample by sample, in few kernels, on one device, without waiting for it."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from spies import Spy

from autoseg.training import batch_augmentation, previous_stage
from autoseg.training.augmentation import Parameters, Recipe, draw_noise, draw_parameters, make_recipe
from autoseg.training.batch_augmentation import send
from autoseg.training.previous_stage import (
    OPERATIONS,
    Disturbance,
    Operation,
    Removal,
    draw_disturbance,
    take_turns,
)
from autoseg.training.sampling import Crop, crop_size, finish, finish_together, pack

CPU = torch.device("cpu")
IMAGE_ERROR, IMAGE_ERROR_GPU = 2e-5, 2e-4
"""float32 in another order: up to 6e-6 in 4000 samples; a GPU's powers and sums are further off."""
TIES = 1e-3
"""Of the voxels."""
MOST_KERNELS, MOST_WAITS = 350, 20
KINDS = {
    "2d": {"patch": (24, 20), "full": (56, 40), "batch": 366},
    "anisotropic": {"patch": (5, 32, 28), "full": (20, 256, 224), "batch": 4, "channels": 2},
    "isotropic": {"patch": (16, 16, 16), "full": (128, 128, 128), "batch": 2, "channels": 4},
    "tiny": {"patch": (5, 5), "full": (5, 5), "batch": 12},
    "cascade": {"patch": (14, 24, 12), "full": (112, 192, 96), "batch": 2, "classes": 19},
}
"""Of the reference's plans (001, 004, 030, 025) the structure in small, and patches whose crops are not larger."""


def recipe_of(patch: tuple[int, ...], channels: int = 1, **_: object) -> Recipe:
    masked = (channels - 1,) if channels > 1 else ()
    return make_recipe(
        patch, num_channels=channels, mirror_axes=range(len(patch)), masked_channels=masked, augment=True
    )


def made_crop(
    rng: np.random.Generator, recipe: Recipe, parameters: Parameters, classes: int = 0, *, disturbed: bool = True
) -> Crop:
    """Smooth noise, with labels in blobs and a part that is outside the image."""
    crop = recipe.patch
    if parameters.moves:
        crop = crop_size(crop, rotation=recipe.rotation, dummy_2d=recipe.dummy_2d)
    image = rng.normal(size=(recipe.num_channels, *crop)).astype(np.float32)
    labels = (
        (2.5 + 2 * ndimage.gaussian_filter(rng.normal(size=crop), 1.0) * 3).clip(0, max(4, classes)).astype(np.int16)
    )
    labels[: crop[0] // 4, ..., : crop[-1] // 3] = -1
    maps = [labels, (labels.clip(0) + 1) % (classes + 1)] if classes else [labels]
    return Crop(
        image=torch.from_numpy(image),
        labels=torch.from_numpy(np.stack(maps).astype(np.int16)),
        parameters=parameters,
        noise=draw_noise(parameters, recipe),
        previous_values=tuple(range(1, classes + 1)),
        disturbance=draw_disturbance(rng, classes) if classes and disturbed else Disturbance(),
    )


def much_changed(rng: np.random.Generator, recipe: Recipe) -> Parameters:
    """Every change half of the time: those of several draws put together."""
    draws = [draw_parameters(rng, recipe) for _ in range(40)]
    chosen = {}
    for each in fields(Parameters):
        found = next((value for draw in draws if (value := getattr(draw, each.name)) not in (None, ())), None)
        if found is not None and rng.random() < 0.5:
            chosen[each.name] = found
    return Parameters(**chosen)


def made_batch(seed: int, *, batch: int, much: bool, **kind: Any) -> tuple[list[Crop], Recipe]:
    rng, recipe = np.random.default_rng(seed), recipe_of(**kind)
    draw = much_changed if much else draw_parameters
    classes = kind.get("classes", 0)
    return [made_crop(rng, recipe, draw(rng, recipe), classes) for _ in range(batch)], recipe


@settings(max_examples=25)
@given(seed=st.integers(0, 2**20), kind=st.sampled_from([*KINDS]))
def test_a_batch_at_once_is_that_of_sample_by_sample(seed: int, kind: str) -> None:
    """Labels too, but for voxels where two of them tie within float32; how classes are disturbed then depends on single voxels."""
    crops, recipe = made_batch(seed, much=True, **{**KINDS[kind], "batch": 5, "classes": 3 * (kind == "cascade")})
    crops = [replace(each, disturbance=Disturbance()) if each.parameters.moves else each for each in crops]
    images, labels = finish(crops, recipe, CPU)
    before = pack(crops, recipe.patch)
    kept = before.numbers.clone(), before.labels.clone()
    got, got_labels = finish_together(before, recipe, CPU)
    assert torch.equal(before.numbers, kept[0])
    assert torch.equal(before.labels, kept[1])
    channels = recipe.num_channels
    assert (got[:, :channels] - images[:, :channels]).abs().max() < IMAGE_ERROR
    assert (got_labels != labels).sum() <= TIES * labels.numel()
    assert (got[:, channels:] != images[:, channels:]).sum() <= TIES * labels.numel() * len(crops[0].previous_values)
    for i, crop in enumerate(crops):
        if not crop.parameters.moves:
            assert torch.equal(got_labels[i], labels[i])
            assert torch.equal(got[i, channels:], images[i, channels:])
    assert (got.dtype, got_labels.dtype, got.shape) == (images.dtype, labels.dtype, images.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_takes_few_kernels_and_no_waiting(kind: str, monkeypatch) -> None:
    """In every batch, as the votes of the full patch would be divided."""
    small, full = (math.prod(KINDS[kind][name]) for name in ("patch", "full"))
    monkeypatch.setattr(batch_augmentation, "VOTES_AT_ONCE", batch_augmentation.VOTES_AT_ONCE * small // full)
    one = Spy()
    for seed in range(1 if kind == "2d" else 12):
        crops, recipe = made_batch(seed, much=False, **KINDS[kind])
        packed, all_ = pack(crops, recipe.patch), Spy()
        with all_:
            finish_together(packed, recipe, CPU)
        with one:
            finish(crops, recipe, CPU)
        assert all_.kernels <= MOST_KERNELS
        assert all_.waits <= MOST_WAITS
    if kind == "2d":
        assert one.kernels > 10 * MOST_KERNELS
        assert one.waits > 10 * MOST_WAITS


def test_the_largest_of_a_thousand_batches_of_a_cascade_takes_few_kernels(monkeypatch) -> None:
    """Of 19 classes; those with the most that is to be done after each other are computed."""
    classes, recipe = KINDS["cascade"]["classes"], recipe_of((6, 8, 6))
    monkeypatch.setattr(
        batch_augmentation, "VOTES_AT_ONCE", 1
    )  # each sample votes alone, as those of the full patch do
    drawn = []
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        disturbances = [draw_disturbance(rng, classes) for _ in range(2)]
        turns = [[operation for _, operation in turn] for turn in take_turns(disturbances)]
        passes = sum(1 + any(each.name in ("close", "open") for each in turn) for turn in turns)
        mixed = sum(any(not each.adds for each in turn) for turn in turns)
        drawn.append((7 * passes + 5 * mixed + 60 * any(each.removals for each in disturbances), rng, disturbances))
    for size, rng, disturbances in sorted(drawn, key=lambda each: -each[0])[:4]:
        assert size > 150
        parameters, spy = [draw_parameters(rng, recipe) for _ in range(2)], Spy()
        crops = [made_crop(rng, recipe, each, classes, disturbed=False) for each in parameters]
        crops = [replace(crop, disturbance=each) for crop, each in zip(crops, disturbances, strict=True)]
        with spy:
            finish_together(pack(crops, recipe.patch), recipe, CPU)
        assert spy.kernels <= MOST_KERNELS
        assert spy.waits <= MOST_WAITS


@pytest.mark.parametrize(("patch", "rows"), [((14, 18, 16), 8), ((30, 26), 8), ((30, 26), 2)])
def test_classes_of_all_samples_change_as_those_of_each(patch: tuple[int, ...], rows: int, monkeypatch) -> None:
    """One to five operations of every kind and radius in a sample, then removals; several operations of a class, too."""
    monkeypatch.setattr(previous_stage, "ROWS_AT_ONCE", rows)
    rng, recipe = np.random.default_rng(6), recipe_of(patch)
    crops = []
    for number in range(6):
        crop = made_crop(rng, recipe, Parameters(), 3)
        operations = tuple(
            Operation(channel=int(rng.integers(3)), name=str(rng.choice(OPERATIONS)), radius=float(rng.uniform(1, 4)))
            for _ in range(number)
        )
        removals = (Removal(channel=number % 3, choice=float(rng.random())),) if number % 2 else ()
        crops.append(replace(crop, disturbance=Disturbance(operations=operations, removals=removals)))
    assert {o.name for crop in crops for o in crop.disturbance.operations} == set(OPERATIONS)
    got = finish_together(pack(crops, recipe.patch), recipe, CPU)
    assert torch.equal(got[0], finish(crops, recipe, CPU)[0])


def test_what_takes_nothing_from_others_shares_a_turn() -> None:
    """Two samples: one of five operations, of which the third grows, and one of two that grow."""
    names = ("erode", "open", "close", "erode", "erode")
    one = [
        Operation(channel=channel, name=name, radius=2.0) for channel, name in zip((0, 1, 2, 3, 3), names, strict=True)
    ]
    two = [Operation(channel=channel, name="dilate", radius=2.0) for channel in (0, 1)]
    turns = take_turns([Disturbance(operations=tuple(each)) for each in (one, two)])
    assert turns == [
        [*((0, each) for each in one[:3]), (1, two[0])],
        [(0, one[3]), (1, two[1])],
        [(0, one[4])],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_votes_that_do_not_fit_at_once_are_taken_sample_by_sample(kind: str, monkeypatch) -> None:
    crops, recipe = made_batch(2, much=True, **{**KINDS[kind], "batch": 12})
    assert sum(crop.parameters.moves for crop in crops) > 2
    packed = pack(crops, recipe.patch)
    spies, found = (Spy(), Spy()), []
    for most, spy in zip((batch_augmentation.VOTES_AT_ONCE, 1), spies, strict=True):
        monkeypatch.setattr(batch_augmentation, "VOTES_AT_ONCE", most)
        with spy:
            found.append(finish_together(packed, recipe, CPU))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert spies[0].kernels < spies[1].kernels


def test_many_small_components_take_few_waits() -> None:
    """Each sample of a batch loses one."""
    rng, recipe = np.random.default_rng(3), recipe_of((24, 24, 24))
    crops = [made_crop(rng, recipe, Parameters(), 2, disturbed=False) for _ in range(3)]
    disturbances = iter(each for each in (draw_disturbance(rng, 2) for _ in range(200)) if each.removals)
    crops = [replace(crop, disturbance=replace(next(disturbances), operations=())) for crop in crops]
    spy = Spy()
    with spy:
        got = finish_together(pack(crops, recipe.patch), recipe, CPU)
    assert torch.equal(got[0], finish(crops, recipe, CPU)[0])
    assert not torch.equal(got[0], finish([replace(each, disturbance=Disturbance()) for each in crops], recipe, CPU)[0])
    assert 1 <= spy.waits <= 5


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_a_device_computes_with_is_there(kind: str) -> None:
    """Three tensors are brought to it; afterwards nothing meets one in main memory, and nothing is asked."""
    crops, recipe = made_batch(1, much=True, **{**KINDS[kind], "batch": 12})
    crops = [replace(each, disturbance=replace(each.disturbance, removals=())) for each in crops]
    packed, spy = pack(crops, recipe.patch), Spy()
    with spy:
        images, labels = finish_together(packed, recipe, torch.device("meta"))
    assert images.device.type == labels.device.type == "meta"
    assert spy.met[frozenset(("cpu", "meta"))] == 3
    assert set(spy.met) <= {frozenset(("cpu",)), frozenset(("meta",)), frozenset(("cpu", "meta"))}
    assert spy.waits == 0


def test_samples_that_do_not_change_come_through_as_they_are() -> None:
    recipe = recipe_of((6, 7), channels=2)
    crops = [made_crop(np.random.default_rng(i), recipe, Parameters()) for i in range(3)]
    images, labels = finish_together(pack(crops, recipe.patch), recipe, CPU)
    assert torch.equal(images, finish(crops, recipe, CPU)[0])
    assert torch.equal(labels, finish(crops, recipe, CPU)[1])


def test_equal_votes_go_to_the_smaller_label_and_to_none_outside() -> None:
    """The voxel of the patch lies between those of the crop."""
    recipe = recipe_of((1, 1))
    for values, expected in (([2, 1], 1), ([-1, 2], 2), ([-1, 0], 0)):
        crop = Crop(
            image=torch.zeros(1, 2, 2),
            labels=torch.tensor([[values, values]], dtype=torch.int16),
            parameters=Parameters(scale=1.0),
            noise=None,
        )
        assert finish_together(pack([crop], (1, 1)), recipe, CPU)[1].tolist() == [[[expected]]]


def test_tables_arrive_with_their_types_and_shapes() -> None:
    tables = {
        "bools": np.array([[True], [False], [True]]),
        "numbers": np.arange(5, dtype=np.int64),
        "short": np.arange(3, dtype=np.int16),
        "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3).T,
        "doubles": np.array([[0.1]]),
    }
    sent = send(tables, CPU)
    assert {name: each.dtype for name, each in sent.items()} == {
        "bools": torch.bool,
        "numbers": torch.int64,
        "short": torch.int16,
        "floats": torch.float32,
        "doubles": torch.float64,
    }
    for name, array in tables.items():
        np.testing.assert_array_equal(sent[name].numpy(), array)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_changes_batches_as_a_cpu_does(kind: str) -> None:
    crops, recipe = made_batch(1, much=True, **{**KINDS[kind], "batch": 12})
    images, labels = finish(crops, recipe, CPU)
    got, got_labels = finish(crops, recipe, torch.device("cuda"))
    channels = recipe.num_channels
    assert (got[:, :channels].cpu() - images[:, :channels]).abs().max() < IMAGE_ERROR_GPU
    assert (got_labels.cpu() != labels).sum() <= TIES * labels.numel()
    still = [not crop.parameters.moves for crop in crops]
    assert torch.equal(got[still, channels:].cpu(), images[still, channels:])
