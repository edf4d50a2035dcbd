"""Logits that are computed row by row are those of the whole volume, bit for bit, whatever memory there is."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_volume import whole_logits

from autoseg.imaging.readers import read_image
from autoseg.inference.bundle import WindowSums
from autoseg.inference.member_output import How, open_logits
from autoseg.inference.model import Member
from autoseg.inference.sliding_window import half_importance_map, window_starts
from autoseg.inference.window_logits import HalfPrecisionOverflowError, NoWindowFitsError, WindowLogits
from autoseg.inference.window_sums import Room
from autoseg.networks.build import build_network
from planners import ChannelNormalization, Configuration, Loss, Network, Resampling, trial_training

CPU = torch.device("cpu")
CUBIC = Resampling(order=3, order_z=0)
PATCH = (8, 16, 8)
NETWORK = Network(
    family="unet", num_inputs=2, num_outputs=3, features=(4, 8), kernels=((3, 3, 3),) * 2,
    strides=((1, 1, 1), (2, 2, 2)), blocks=(1, 1), decoder_blocks=(1,),
)  # fmt: skip
IMAGE = torch.randn(2, 11, 21, 14, generator=torch.Generator().manual_seed(0))


class Echo(torch.nn.Module):
    """Logits that are the image, its double and its position-dependent part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[:, :1], 2 * x[:, :1], x[:, :1] - x[:, 1:2]), dim=1)


class Ramp(torch.nn.Module):
    """Logits that grow along the last axis, whatever the image: mirroring must even them out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(x.shape[-1], dtype=x.dtype).expand(x.shape[0], 2, *x.shape[2:])


class Constant(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((x.shape[0], 2, *x.shape[2:]), self.value)


def logits_of(image: torch.Tensor, networks, *, classes: int = 3, patch=PATCH, **given) -> WindowLogits:
    given = {"mirror_axes": (), "precision": "float32", "device": CPU, **given}
    return WindowLogits(image=image, networks=networks, num_outputs=classes, patch=patch, **given)


def read(logits: WindowLogits, step: int = 100, overlap: int = 0) -> torch.Tensor:
    """All rows, ``step`` at once, and each time some of those before once more."""
    rows = logits.shape[1]
    parts = []
    for start in range(0, rows, step):
        first = max(0, start - overlap)
        parts.append(torch.from_numpy(logits[:, first : min(start + step, rows)][:, start - first :]))
    return torch.cat(parts, dim=1)


def unets(flat: bool = False) -> list[torch.nn.Module]:
    parts = {"kernels": ((3, 3),) * 2, "strides": ((1, 1), (2, 2))} if flat else {}
    return [build_network(NETWORK.model_copy(update=parts), seed=seed).eval() for seed in (0, 1)]


@pytest.mark.parametrize("memory_bytes", [None, 0, 10_000])
@pytest.mark.parametrize("sums", [torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "patch"), [((19, 27, 9), PATCH), ((5, 11, 20), PATCH), ((4, 21, 14), (16, 8))])
def test_rows_are_those_of_the_whole_volume(
    shape, patch, sums: torch.dtype, memory_bytes: int | None, tmp_path: Path
) -> None:
    """In memory, with a part of the sums in a file, and with all of them but one window's."""
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    networks = unets(flat=len(patch) == 2)
    given = {"patch": patch, "mirror_axes": (1,), "batch_size": 2, "sums": sums}
    expected = whole_logits(image, networks, **given)
    logits = logits_of(image, networks, room=Room(memory_bytes=memory_bytes, folder=tmp_path), **given)
    found = read(logits, step=3, overlap=2)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    spilled = [each.cells._slots > 0 for each in logits._of]
    logits.close()
    if not memory_bytes:
        assert spilled == [memory_bytes == 0] * len(spilled)
    assert not list(tmp_path.iterdir())  # the file has no name, so none is left by a killed process


def test_what_was_read_is_forgotten() -> None:
    """No more rows are kept than a window has, and those that are read at once."""
    image = torch.randn(2, 80, 16, 8, generator=torch.Generator().manual_seed(1))
    logits, most = logits_of(image, [Echo()]), 0
    for row in range(80):
        logits[:, row : row + 1]
        cells = logits._of[0].cells._cells.values()
        most = max(most, sum(cell.shape[0] for cell in cells))
    assert most <= PATCH[0] + 4  # a step of windows more until the next row is read


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_windows_without_contrast_are_computed_once(precision: str) -> None:
    image = torch.full((2, 28, 32, 16), -1.5)
    image[:, 12:20, 8:20] = torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(2))
    networks, given = unets(), {"precision": precision, "mirror_axes": (1,), "batch_size": 2}
    every = logits_of(image, networks, every_window=True, **given)
    once = logits_of(image, networks, **given)
    expected = read(every)
    # rounding depends on what else is in a batch
    torch.testing.assert_close(read(once), expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(expected.numpy(), whole_logits(image, networks, patch=PATCH, **given).numpy())
    assert every.skipped == 0
    starts = [window_starts(n, p) for n, p in zip(image.shape[1:], PATCH, strict=True)]
    without = sum(len(image[0, z : z + 8, y : y + 16, x : x + 8].unique()) == 1 for z, y, x in product(*starts))
    # the first is computed, and the second where both are in one batch
    assert without - 2 <= once.skipped <= without - 1


def test_air_of_a_real_ct_is_computed_once_and_hardly_a_voxel_is_decided_otherwise(real_data: Path) -> None:
    """By networks that are sure of nothing; the issue allows one voxel in 10 000."""
    image = read_image([real_data / "ct_torso_partial" / "imagesTr" / "ct01.nii.gz"]).array[:, :16]
    voxels = torch.from_numpy((np.clip(image, -150, 400) - 50) / 120).repeat(2, 1, 1, 1)
    given = {"patch": (16, 16, 16), "batch_size": 2}
    every = read(logits_of(voxels, unets(), every_window=True, **given)).argmax(0)
    logits = logits_of(voxels, unets(), **given)
    once = read(logits).argmax(0)
    assert logits.skipped > 10
    assert (once != every).sum() <= once.numel() / 10_000
    assert len(every.unique()) > 1


@pytest.mark.parametrize("patch", [(8, 16, 8), (16, 8), (40, 8, 8)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_network_that_echoes_gives_the_image_back(patch, batch_size: int) -> None:
    logits = read(logits_of(IMAGE, [Echo()], patch=patch, mirror_axes=(0, 1), batch_size=batch_size))
    torch.testing.assert_close(logits, Echo()(IMAGE[None])[0], rtol=1e-5, atol=1e-5)  # weighted float32 means


def test_mirror_images_are_averaged_over_all_combinations() -> None:
    given = {"classes": 2, "patch": (4, 4, 8)}
    plain = read(logits_of(torch.zeros(1, 4, 4, 8), [Ramp()], **given))
    even = read(logits_of(torch.zeros(1, 4, 4, 8), [Ramp()], mirror_axes=(2,), **given))
    assert plain[0, 0, 0].tolist() == pytest.approx(range(8))
    assert even[0, 0, 0].tolist() == pytest.approx([3.5] * 8)


def test_folds_are_averaged_as_logits() -> None:
    logits = logits_of(torch.zeros(1, 4, 4, 4), [Constant(1.0), Constant(4.0)], classes=2, patch=(4, 4, 4))
    assert torch.allclose(read(logits), torch.tensor(2.5))


def test_sums_in_half_precision_lose_what_its_bits_lose() -> None:
    """Far from every window's centre that is much: there weights are as small as the numbers that float16 can tell apart."""
    given = {"networks": [Echo()] * 2, "batch_size": 2}
    found, expected = read(logits_of(IMAGE, sums=torch.float16, **given)), read(logits_of(IMAGE, **given))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    weights = torch.zeros(IMAGE.shape[1:])
    for corner in product(*(window_starts(n, p) for n, p in zip(weights.shape, PATCH, strict=True))):
        weights[tuple(slice(c, c + p) for c, p in zip(corner, PATCH, strict=True))] += half_importance_map(PATCH)
    # up to eight windows, each rounded where it is multiplied, added, divided and averaged: to 11 bits, or to 2^-24
    allowed = 8 * (2**-10 * expected.abs() + 2**-24 / weights)
    assert bool(((found - expected).abs() <= allowed).all())


def test_sums_in_half_precision_are_rounded_as_the_method_says() -> None:
    """One window: the map and its product with the logits are float16, and so is their quotient."""
    image = torch.randn(2, 8, 16, 8, generator=torch.Generator().manual_seed(1))
    importance = half_importance_map(PATCH).numpy()
    expected = (Echo()(image[None])[0].numpy() * importance.astype(np.float32)).astype(np.float16) / importance
    found = read(logits_of(image, [Echo()], sums=torch.float16))
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    assert importance.max() == 10
    assert importance.min() > 0


def test_sums_that_overflow_half_precision_are_taken_in_float32() -> None:
    """Though some rows were read before the first that overflows."""
    image = IMAGE.clone()
    image[:, 9:] *= 1e5
    logits = logits_of(image, [Echo()] * 2, sums=torch.float16)
    with pytest.raises(HalfPrecisionOverflowError) as caught:
        read(logits, step=1)
    assert caught.value.logits is logits
    logits.restart(torch.float32)
    np.testing.assert_array_equal(read(logits).numpy(), read(logits_of(image, [Echo()] * 2)).numpy())


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
        patch_shape=PATCH, batch_size=batch_size, normalization=(ChannelNormalization(scheme="zscore"),) * 2,
        resample_image=CUBIC, resample_labels=CUBIC, resample_logits=CUBIC, network=NETWORK,
        loss=Loss(batch_dice=False), deep_supervision=False, mirror_axes=(0,),
    )  # fmt: skip
    training = trial_training(configuration, base_features=4, batch_size=batch_size, precision="float32")
    return Member(configuration=configuration, training=training, networks=(network,), window_sums=sums)


def open_for(network: torch.nn.Module, sums: WindowSums = "float32") -> WindowLogits:
    return open_logits(member_of(network, sums), IMAGE.numpy(), How(device=CPU))[0]


@pytest.mark.parametrize("sums", ["float32", "float16"])
@pytest.mark.parametrize(("windows", "sizes"), [(1, {4, 2, 1}), (2, {4, 2}), (4, {4})])
def test_where_memory_is_short_fewer_windows_give_the_same_logits(
    windows: int, sizes: set[int], sums: WindowSums
) -> None:
    network = Narrow(windows)
    found = read(open_for(network, sums), step=2)
    np.testing.assert_array_equal(found.numpy(), read(open_for(Echo(), sums)).numpy())
    assert set(network.sizes) == sizes  # eight windows


def test_memory_for_no_window_is_told_and_other_errors_pass() -> None:
    with pytest.raises(NoWindowFitsError):
        read(open_for(Narrow(0)))

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        read(open_for(Broken()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sums_that_do_not_fit_on_a_gpu_are_gathered_in_main_memory() -> None:
    there, here = (logits_of(IMAGE, [Echo()], device=torch.device("cuda"), gathered_on=on) for on in (None, CPU))
    torch.testing.assert_close(read(here), read(there), rtol=1e-6, atol=1e-6)  # float32 sums of eight windows
