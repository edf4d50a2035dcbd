"""Augmentation: drawn parameters against their distributions, their application against independent computation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.utils import create_zero_centered_coordinate_mesh, interpolate_img
from scipy import ndimage

from autoseg.training.augmentation import (
    Parameters,
    Recipe,
    augment,
    draw_noise,
    draw_parameters,
    gaussian_kernel,
    make_recipe,
    rotation_matrix,
    sampling_grid,
)
from autoseg.training.loop import is_mean_over_samples
from autoseg.training.losses import make_loss
from planners import LabelClass, Labels, Loss

DRAWS = 4000
PATCH = (12, 14, 10)


def recipe(patch=PATCH, *, channels: int = 2, mirror=(0, 1, 2), masked=()) -> Recipe:
    return make_recipe(patch, num_channels=channels, mirror_axes=mirror, masked_channels=masked, augment=True)


@pytest.fixture(scope="module")
def drawn() -> list[Parameters]:
    rng = np.random.default_rng(0)
    chosen = recipe()
    return [draw_parameters(rng, chosen) for _ in range(DRAWS)]


@pytest.mark.parametrize(
    ("field", "probability"),
    [
        ("angles", 0.2),
        ("scale", 0.2),
        ("noise_sigma", 0.1),
        ("blur_sigmas", 0.2),
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("low_resolution", 0.25),
        ("inverted_gamma", 0.1),
        ("gamma", 0.3),
    ],
)
def test_each_change_is_as_likely_as_the_method_says(drawn, field: str, probability: float) -> None:
    share = np.mean([getattr(p, field) not in (None, ()) for p in drawn])
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / DRAWS)  # four standard errors


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("scale", 0.7, 1.4), ("noise_sigma", 0.0, 0.1), ("low_resolution", 0.5, 1.0), ("blur_sigmas", 0.5, 1.0)],
)
def test_uniform_ranges_are_filled_evenly(drawn, field: str, low: float, high: float) -> None:
    values = np.array(list(flat(getattr(p, field) for p in drawn)))
    assert low <= values.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < values.max() <= high
    spread = (high - low) / math.sqrt(12 * len(values))
    assert abs(values.mean() - (low + high) / 2) < 4 * spread


@pytest.mark.parametrize(
    ("field", "low", "high"), [("brightness", 0.75, 1.25), ("contrast", 0.75, 1.25), ("gamma", 0.7, 1.5)]
)
def test_two_sided_ranges_favour_neither_side(drawn, field: str, low: float, high: float) -> None:
    values = np.array(list(flat(getattr(p, field) for p in drawn)))
    assert low <= values.min()
    assert values.max() <= high
    assert abs((values < 1).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(values))


def test_half_of_the_channels_are_blurred_and_lowered(drawn) -> None:
    for field in ("blur_sigmas", "low_resolution"):
        chosen = [c is not None for p in drawn for c in getattr(p, field)]
        assert abs(np.mean(chosen) - 0.5) < 4 * 0.5 / math.sqrt(len(chosen))


def test_mirroring_takes_each_allowed_axis_half_of_the_time() -> None:
    rng = np.random.default_rng(0)
    chosen = recipe(mirror=(0, 2))
    mirrored = [draw_parameters(rng, chosen).mirror for _ in range(DRAWS)]
    assert {axis for axes in mirrored for axis in axes} == {0, 2}
    assert abs(np.mean([0 in axes for axes in mirrored]) - 0.5) < 4 * 0.5 / math.sqrt(DRAWS)


@pytest.mark.parametrize(
    ("patch", "degrees", "dummy"),
    [
        ((64, 64, 64), 30, False),
        ((16, 64, 64), 180, True),
        ((22, 64, 64), 30, False),
        ((20, 60, 60), 30, False),
        ((64, 64), 180, False),
        ((64, 42), 15, False),
        ((63, 42), 180, False),
        ((64, 43), 180, False),
    ],
)
def test_rotation_follows_the_patchs_shape(patch, degrees, dummy) -> None:
    """Method section 6.1."""
    chosen = recipe(patch, mirror=())
    assert chosen.rotation == pytest.approx(math.radians(degrees))
    assert chosen.dummy_2d is dummy


def flat(values):
    """All numbers in nested tuples, None left out."""
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        elif value is not None:
            yield value


def sample(shape=(20, 22, 18), channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    image = ndimage.gaussian_filter(rng.normal(size=(channels, *shape)), (0, 1, 1, 1)[: len(shape) + 1]).astype(
        np.float32
    )
    labels = (image[0] > 0.1).astype(np.int16) + (image[0] > 0.3)
    return image, labels.astype(np.int16)


def change(
    parameters: Parameters, chosen: Recipe, image: np.ndarray, labels: np.ndarray, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """`augment` from arrays to arrays, by way of a device."""
    noise = draw_noise(parameters, chosen)
    got, got_labels = augment(
        parameters,
        chosen,
        torch.from_numpy(image).to(device),
        torch.from_numpy(labels)[None].to(device),
        None if noise is None else noise.to(device),
    )
    return got.cpu().numpy(), got_labels[0].cpu().numpy()


def test_no_change_cuts_the_centre_and_turns_outside_into_background() -> None:
    image, labels = sample()
    labels[:8] = -1
    got, got_labels = change(Parameters(), recipe(), image, labels)
    np.testing.assert_array_equal(got, image[:, 4:16, 4:18, 4:14])
    np.testing.assert_array_equal(got_labels, np.maximum(labels, 0)[4:16, 4:18, 4:14])


def test_inputs_stay_as_they_are() -> None:
    image, labels = sample(PATCH)
    before, before_labels = image.copy(), labels.copy()
    changes = Parameters(noise_sigma=0.1, brightness=(1.2, 0.8), gamma=(0.8, 1.2), mirror=(0,), contrast=(1.1, None))
    change(changes, recipe(), image, labels)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(labels, before_labels)


@pytest.mark.parametrize(("angles", "scale"), [((0.3, -0.2, 0.4), 1.2), ((0.3, -0.2, 0.4), None), (None, 0.8)])
def test_rotation_and_scaling_agree_with_scipys_affine_transform(angles, scale: float | None) -> None:
    image, labels = sample()
    got, got_labels = change(Parameters(angles=angles, scale=scale), recipe(), image, labels)
    matrix = rotation_matrix(angles, 3) * (1.0 if scale is None else scale)
    offset = (np.array(labels.shape) - 1) / 2 - matrix @ ((np.array(PATCH) - 1) / 2)
    for channel, result in zip(image, got, strict=True):
        expected = ndimage.affine_transform(
            channel.astype(float), matrix, offset, output_shape=PATCH, order=1, mode="grid-constant", cval=0
        )
        np.testing.assert_allclose(
            result, expected, atol=2e-5
        )  # places are float32: up to 2e-6 of a voxel, slopes up to 1
    scores = [
        ndimage.affine_transform(
            (labels == k).astype(float),
            matrix,
            offset,
            output_shape=PATCH,
            order=1,
            mode="grid-constant",
            cval=float(k == -1),
        )
        for k in (-1, 0, 1, 2)
    ]
    expected_labels = np.maximum(np.argmax(scores, 0) - 1, 0)
    clear = np.diff(np.sort(scores, 0)[-2:], axis=0)[0] > 2e-5  # places are float32
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got_labels[clear], expected_labels[clear])


def test_rotations_turn_the_axes_that_the_method_says() -> None:
    """Rx mixes array axes 1 and 2, Ry 0 and 2, Rz 0 and 1 (method section 6.3)."""
    quarter = math.pi / 2
    np.testing.assert_allclose(rotation_matrix((quarter, 0, 0), 3), [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-15)
    np.testing.assert_allclose(rotation_matrix((0, quarter, 0), 3), [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-15)
    np.testing.assert_allclose(rotation_matrix((0, 0, quarter), 3), [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)


def test_scaling_above_one_shrinks_objects() -> None:
    grid = sampling_grid(Parameters(scale=1.4), (11, 11), (21, 21))
    place = (grid[0, 0, 0] + 1) * 21 / 2 - 0.5  # from torch's coordinates to voxels
    assert place.tolist() == pytest.approx([10 - 5 * 1.4] * 2, abs=1e-5)  # float32


@pytest.mark.parametrize("patch", [(12, 14, 10), (14, 9)])
def test_rotation_agrees_with_batchgenerators(patch) -> None:
    """Coordinates, rotation, linear interpolation and the vote of the labels, as batchgenerators computes them."""
    image, labels = sample((20, 22, 18)[: len(patch)])
    labels[-3:] = -1
    changes = Parameters(angles=(0.3, -0.2, 0.4)[: 3 if len(patch) == 3 else 1], scale=0.8)
    got, got_labels = change(changes, recipe(patch), image, labels)
    mesh = create_zero_centered_coordinate_mesh(patch)
    matrix = rotation_matrix(changes.angles, len(patch)) * 0.8
    middle = (np.array(labels.shape) - 1).reshape(-1, *[1] * len(patch)) / 2
    coordinates = (matrix @ mesh.reshape(len(patch), -1)).reshape(mesh.shape) + middle
    for channel, result in zip(image, got, strict=True):
        expected = interpolate_img(channel, coordinates, order=1, mode="grid-constant", cval=0.0)
        np.testing.assert_allclose(result, expected, atol=2e-5)  # places are float32
    padded = np.pad(labels, 1, constant_values=-1)
    expected_labels = interpolate_img(padded, coordinates + 1, order=1, mode="nearest", is_seg=True)
    assert (np.maximum(expected_labels, 0) == got_labels).mean() > 0.998  # equal scores may go to another label


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_changes_samples_as_a_cpu_does() -> None:
    rng = np.random.default_rng(1)
    image, labels = sample()
    chosen = recipe(masked=(1,))
    for _ in range(100):
        parameters = draw_parameters(rng, chosen)
        got, got_labels = change(parameters, chosen, image, labels, device="cuda")
        expected, expected_labels = change(parameters, chosen, image, labels)
        np.testing.assert_allclose(got, expected, atol=1e-4)  # float32 in another order; gamma steepens
        assert (got_labels == expected_labels).mean() > 0.998  # near ties of two labels may fall either way


def test_thick_slices_are_rotated_in_plane_only() -> None:
    image, labels = sample((4, 30, 30), channels=1)
    labels[:] = np.arange(4).reshape(4, 1, 1)
    chosen = recipe((4, 20, 20), channels=1)
    _, got = change(Parameters(angles=(0.5,), scale=0.8), chosen, image, labels)
    assert [np.unique(plane).tolist() for plane in got] == [[0], [1], [2], [3]]


def test_blur_agrees_with_scipys_gaussian_filter() -> None:
    image, labels = sample(PATCH, channels=1)
    got, _ = change(Parameters(blur_sigmas=((0.9, 0.9, 0.9),)), recipe(channels=1), image, labels)
    expected = ndimage.gaussian_filter(image[0], 0.9, mode="mirror", radius=len(gaussian_kernel(0.9)) // 2)
    np.testing.assert_allclose(got[0], expected, atol=1e-6)  # float32


@pytest.mark.parametrize(("sigma", "length"), [(0.5, 3), (0.7, 5), (0.9, 5), (1.0, 7)])
def test_blur_kernels_have_the_methods_lengths(sigma: float, length: int) -> None:
    kernel = gaussian_kernel(sigma)
    assert len(kernel) == length
    assert kernel.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("patch", "factor", "small"),
    [(PATCH, 0.6, (7, 8, 6)), ((1, 2, 3), 0.5, (1, 1, 2)), ((4, 20, 20), 0.5, (4, 10, 10)), ((14, 9), 0.6, (8, 5))],
)
def test_low_resolution_agrees_with_torchs_interpolation(patch, factor: float, small: tuple[int, ...]) -> None:
    """At least a voxel is left of each axis, and all of the first one of thick slices."""
    image, labels = sample(patch, channels=1)
    got, _ = change(Parameters(low_resolution=(factor,)), recipe(patch, channels=1, mirror=()), image, labels)
    x = torch.from_numpy(image)[None]
    down = torch.nn.functional.interpolate(x, size=small, mode="nearest-exact")
    up = torch.nn.functional.interpolate(down, size=patch, mode="trilinear" if len(patch) == 3 else "bilinear")
    np.testing.assert_array_equal(got, up[0].numpy())


@pytest.mark.parametrize("side", [1, -1])
def test_gamma_bends_the_scale_and_keeps_mean_and_deviation(side: int) -> None:
    """Of the image turned upside down where it is inverted."""
    image, labels = sample(PATCH, channels=1)
    changes = Parameters(gamma=(1.4,)) if side == 1 else Parameters(inverted_gamma=(1.4,))
    got, _ = change(changes, recipe(channels=1), image, labels)
    x = side * image.astype(float)
    bent = ((x - x.min()) / np.ptp(x)) ** 1.4
    expected = side * ((bent - bent.mean()) / bent.std() * x.std() + x.mean())
    np.testing.assert_allclose(got, expected, atol=1e-4)  # float32
    assert np.abs(got - image).max() > 0.05


def test_contrast_is_about_the_mean_and_within_the_channels_range() -> None:
    image, labels = sample(PATCH, channels=1)
    for factor in (0.8, 1.25):
        got, _ = change(Parameters(contrast=(factor,)), recipe(channels=1), image, labels)
        expected = ((image - image.mean()) * factor + image.mean()).clip(image.min(), image.max())
        np.testing.assert_allclose(got, expected, atol=1e-6)  # float32
    assert got.max() == image.max()


def test_equal_scores_go_to_the_smaller_label_and_to_none_outside() -> None:
    """The voxel of the patch lies between those of the crop."""
    for values, expected in (([2, 1], 1), ([-1, 2], 2), ([-1, 0], 0)):
        labels = np.array([values, values], np.int16)
        _, got = change(
            Parameters(scale=1.0), recipe((1, 1), channels=1, mirror=()), np.zeros((1, 2, 2), np.float32), labels
        )
        assert got.tolist() == [[expected]]


def test_draws_are_those_of_earlier_trainings() -> None:
    """A run resumes with the same draws in later versions, too; see tests/golden/PROVENANCE.md."""
    golden = json.loads((Path(__file__).parents[2] / "golden" / "augmentation_draws.json").read_text())
    for name, each in golden.items():
        patch = tuple(map(int, name.split("x")))
        drawn = draws(recipe(patch, channels=2, mirror=tuple(range(len(patch)))))
        assert [*flat_numbers(drawn)] == pytest.approx([*flat_numbers(each)], rel=1e-12), name


def draws(chosen: Recipe) -> list[list[object]]:
    """Samples that draw each change at least once."""
    return [list(astuple(draw_parameters(np.random.default_rng(seed), chosen))) for seed in (370, 113, 192, 10)]


def flat_numbers(values) -> Iterator[float]:
    """All numbers in nested lists and tuples, with their lengths; -1 for None."""
    for value in values:
        if isinstance(value, list | tuple):
            yield len(value)
            yield from flat_numbers(value)
        else:
            yield -1 if value is None else value


def test_noise_has_the_drawn_deviation_and_follows_from_its_seed() -> None:
    image, labels = sample(PATCH, channels=2)
    changes = Parameters(noise_sigma=0.1, noise_seed=5)
    got, _ = change(changes, recipe(), image, labels)
    again, _ = change(changes, recipe(), image, labels)
    np.testing.assert_array_equal(got, again)
    noise = got - image
    assert noise.std() == pytest.approx(0.1, rel=0.05)  # 3360 draws: 1.2 % standard error
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1


def test_mirroring_turns_image_and_labels_together() -> None:
    image, labels = sample(PATCH)
    got, got_labels = change(Parameters(mirror=(0, 1)), recipe(), image, labels)
    np.testing.assert_array_equal(got, image[:, ::-1, ::-1])
    np.testing.assert_array_equal(got_labels, labels[::-1, ::-1])


def test_masked_channels_are_zero_outside_the_mask() -> None:
    image, labels = sample(PATCH)
    labels[:3] = -1
    got, _ = change(Parameters(brightness=(1.1, 1.1)), recipe(masked=(1,)), image, labels)
    assert (got[1, :3] == 0).all()
    assert (got[0, :3] != 0).any()


PLUGIN = """
import torch

class Erase:
    def draw(self, rng, recipe):
        return float(rng.uniform(5, 6)) if rng.random() < 0.5 else None

    def apply(self, drawn, image, labels):
        return image.fill_(drawn), labels

ERASE = Erase()

def flipped(loss, labels):
    return lambda logits, target: -logits.mean()
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> None:
    """An installed package that adds an augmentation and a loss."""
    (tmp_path / "erasing.py").write_text(PLUGIN)
    (tmp_path / "erasing-1.0.dist-info").mkdir()
    (tmp_path / "erasing-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: erasing\nVersion: 1.0\n")
    entries = "[autoseg.augmentations]\nerase = erasing:ERASE\n[autoseg.losses]\nflipped = erasing:flipped\n"
    (tmp_path / "erasing-1.0.dist-info" / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_an_installed_augmentation_follows_the_methods_and_changes_no_other_draw(plugin) -> None:
    chosen = [
        make_recipe(PATCH, num_channels=2, mirror_axes=(), masked_channels=(), augment=augment)
        for augment in (True, ["erase"])
    ]
    plain, further = ([draw_parameters(np.random.default_rng(i), each) for i in range(50)] for each in chosen)
    assert [replace(each, further=()) for each in further] == plain
    erased = [each for each in further if each.further[0] is not None]
    assert 10 < len(erased) < 40
    image, labels = sample()
    got, _ = change(replace(erased[0], mirror=()), chosen[1], image, labels)
    assert (got == np.float32(erased[0].further[0])).all()


def test_an_installed_loss_is_found_by_its_name(plugin) -> None:
    loss = Loss(name="flipped", batch_dice=False)
    labels = Labels(classes=(LabelClass(name="a", values=(1,)),))
    logits = torch.ones(1, 2, 3, 3)
    assert make_loss(loss, labels)(logits, torch.zeros(1, 3, 3, dtype=torch.int64)) == -1
    assert not is_mean_over_samples(loss, labels)
