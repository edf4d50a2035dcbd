"""Windows cover every voxel, weights favour their centre, and putting them together loses nothing."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from autoseg.inference.bundle import WindowSums
from autoseg.inference.model import Member
from autoseg.inference.predictor import member_logits
from autoseg.inference.sliding_window import (
    count_windows,
    half_importance_map,
    importance_map,
    predict_logits,
    predict_logits_in_half,
    window_starts,
)
from autoseg.issues import AutosegError
from planners import ChannelNormalization, Configuration, Loss, Network, Resampling, trial_training

CPU = torch.device("cpu")
CUBIC = Resampling(order=3, order_z=0)


def test_window_starts_are_the_methods_example() -> None:
    assert window_starts(110, 64) == [0, 23, 46]


@given(size=st.integers(1, 500), patch=st.integers(4, 200))
def test_windows_cover_the_axis_in_steps_of_half_a_patch(size: int, patch: int) -> None:
    size = max(size, patch)
    starts = window_starts(size, patch)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    # rounding of evenly spread starts may widen one step by a voxel
    assert all(0 < b - a <= patch / 2 + 1 for a, b in pairwise(starts))


def test_importance_is_the_filtered_impulse_of_the_method() -> None:
    patch = (12, 17, 8)
    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    expected = gaussian_filter(impulse, [n / 8 for n in patch], mode="constant")
    expected /= expected.max()
    got = importance_map(patch).numpy()
    inside = expected > 0
    np.testing.assert_allclose(got[inside], expected[inside], rtol=1e-5)  # float32
    assert (got > 0).all()
    assert got.max() == 1


class Echo(torch.nn.Module):
    """Logits that are the image, its double and its position-dependent part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[:, :1], 2 * x[:, :1], x[:, :1] - x[:, 1:2]), dim=1)


@pytest.mark.parametrize("patch", [(8, 16, 8), (16, 8), (40, 8, 8)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_network_that_echoes_gives_the_image_back(patch, batch_size: int) -> None:
    image = torch.randn(2, 11, 21, 14, generator=torch.Generator().manual_seed(0))
    logits = predict_logits(
        image, [Echo()], patch=patch, mirror_axes=(0, 1), precision="float32", device=CPU, batch_size=batch_size
    )
    expected = Echo()(image[None])[0]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)  # weighted float32 means


class Ramp(torch.nn.Module):
    """Logits that grow along the last axis, whatever the image: mirroring must even them out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[-1], dtype=x.dtype).expand(x.shape[0], 2, *x.shape[2:])


def test_mirror_images_are_averaged_over_all_combinations() -> None:
    image = torch.zeros(1, 4, 4, 8)
    settings = {"patch": (4, 4, 8), "precision": "float32", "device": CPU}
    plain = predict_logits(image, [Ramp()], mirror_axes=(), **settings)
    even = predict_logits(image, [Ramp()], mirror_axes=(2,), **settings)
    assert plain[0, 0, 0].tolist() == pytest.approx(range(8))
    assert even[0, 0, 0].tolist() == pytest.approx([3.5] * 8)


def test_folds_are_averaged_as_logits() -> None:
    class Constant(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((x.shape[0], 2, *x.shape[2:]), self.value)

    image = torch.zeros(1, 4, 4, 4)
    logits = predict_logits(
        image, [Constant(1.0), Constant(4.0)], patch=(4, 4, 4), mirror_axes=(), precision="float32", device=CPU
    )
    assert torch.allclose(logits, torch.tensor(2.5))


def echo_of(image: torch.Tensor, predict=predict_logits_in_half, networks=2) -> torch.Tensor:
    return predict(
        image,
        [Echo().eval()] * networks,
        patch=(8, 16, 8),
        mirror_axes=(),
        precision="float32",
        device=CPU,
        batch_size=2,
    )


def test_sums_in_half_precision_lose_what_its_bits_lose() -> None:
    """Far from every window's centre that is much: there weights are as small as the numbers that float16 can tell apart."""
    image = torch.randn(2, 11, 21, 14, generator=torch.Generator().manual_seed(0))
    found, expected = echo_of(image), echo_of(image, predict_logits)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    weights = torch.zeros(image.shape[1:])
    patch = (8, 16, 8)
    for corner in product(*(window_starts(n, p) for n, p in zip(weights.shape, patch, strict=True))):
        weights[tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))] += half_importance_map(patch)
    # up to eight windows, each rounded where it is multiplied, added, divided and averaged: to 11 bits, or to 2^-24
    allowed = 8 * (2**-10 * expected.abs() + 2**-24 / weights)
    assert bool(((found - expected).abs() <= allowed).all())


def test_sums_in_half_precision_are_rounded_as_the_method_says() -> None:
    """One window: the map and its product with the logits are float16, and so is their quotient."""
    image = torch.randn(2, 8, 16, 8, generator=torch.Generator().manual_seed(1))
    importance = half_importance_map((8, 16, 8)).numpy()
    logits = Echo()(image[None])[0].numpy()
    expected = (logits * importance.astype(np.float32)).astype(np.float16) / importance
    np.testing.assert_array_equal(echo_of(image, networks=1).numpy(), expected.astype(np.float32))
    assert importance.max() == 10
    assert importance.min() > 0


def test_sums_that_overflow_half_precision_are_taken_in_float32() -> None:
    image = 1e5 * torch.randn(2, 11, 21, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(echo_of(image), echo_of(image, predict_logits), rtol=0, atol=0)


def test_windows_are_counted_as_they_are_used() -> None:
    assert count_windows((110, 64, 30), (64, 64, 64)) == 3
    assert count_windows((10, 110, 64), (64, 64)) == 30


class Narrow(torch.nn.Module):
    """An echo with memory for so many windows at once."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.windows = windows
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.windows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 12.70 GiB.")
        return Echo()(x)


def member_of(network: torch.nn.Module, sums: WindowSums = "float32", batch_size: int = 4) -> Member:
    configuration = Configuration(
        name="3d_fullres", dimensions=3, data="3d_fullres", spacing_mm=(1.0,) * 3, median_shape=(11.0, 21.0, 14.0),
        patch_shape=(8, 16, 8), batch_size=batch_size, normalization=(ChannelNormalization(scheme="zscore"),) * 2,
        resample_image=CUBIC, resample_labels=CUBIC, resample_logits=CUBIC,
        network=Network(
            family="unet", num_inputs=2, num_outputs=3, features=(4, 8), kernels=((3, 3, 3),) * 2,
            strides=((1, 1, 1), (2, 2, 2)), blocks=(1, 1), decoder_blocks=(1,),
        ),
        loss=Loss(batch_dice=False), deep_supervision=False, mirror_axes=(0,),
    )  # fmt: skip
    training = trial_training(configuration, base_features=4, batch_size=batch_size, precision="float32")
    return Member(configuration=configuration, training=training, networks=(network,), window_sums=sums)


IMAGE = torch.randn(2, 11, 21, 14, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.mark.parametrize("sums", ["float32", "float16"])
@pytest.mark.parametrize(("windows", "sizes"), [(1, {4, 2, 1}), (2, {4, 2}), (4, {4})])
def test_where_memory_is_short_fewer_windows_give_the_same_logits(
    windows: int, sizes: set[int], sums: WindowSums
) -> None:
    network = Narrow(windows)
    found = member_logits(member_of(network, sums), IMAGE, mirror_axes=(0,), device=CPU)
    np.testing.assert_array_equal(found, member_logits(member_of(Echo(), sums), IMAGE, mirror_axes=(0,), device=CPU))
    assert set(network.sizes) == sizes  # eight windows


def test_memory_for_no_window_is_an_error_with_a_message() -> None:
    with pytest.raises(AutosegError) as caught:
        member_logits(member_of(Narrow(0)), IMAGE, mirror_axes=(), device=CPU)
    assert caught.value.codes == ("predict.out_of_memory",)

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        member_logits(member_of(Broken()), IMAGE, mirror_axes=(), device=CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sums_that_do_not_fit_on_a_gpu_are_gathered_in_main_memory() -> None:
    gpu = torch.device("cuda")
    settings = {"patch": (8, 16, 8), "mirror_axes": (0,), "precision": "float32", "device": gpu}
    there, here = (predict_logits(torch.from_numpy(IMAGE), [Echo()], gathered_on=on, **settings) for on in (None, CPU))
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6)  # float32 sums of eight windows
