"""Convolutions whose gradients end: the same gradients as torch's own, also where those would hang."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from autoseg.compute.workarounds import FEW_SLICES, LARGE_SLICE, may_hang, weight_gradient
from autoseg.networks.blocks import Convolution3d, Transposed3d, arrange, channels_last

KERNELS = st.sampled_from([(3, 3, 3), (1, 3, 3), (5, 5, 5), (1, 1, 1), (3, 1, 3), (2, 2, 2), (1, 2, 2)])
STRIDES = st.sampled_from([(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1)])


@given(KERNELS, STRIDES, st.tuples(*(st.integers(2, 6) for _ in range(3))), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_weight_gradients_equal_autograds(kernel, stride, shape, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    padding = tuple(size // 2 if size % 2 else 0 for size in kernel)
    source = torch.randn((2, 3, *shape), generator=generator, dtype=torch.float64)
    weight = torch.randn((4, 3, *kernel), generator=generator, dtype=torch.float64, requires_grad=True)
    result = functional.conv3d(source, weight, None, stride, padding)
    upstream = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(result, weight, upstream)
    found = weight_gradient(source, upstream, kernel, stride, padding)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # sums of doubles in another order


@pytest.mark.parametrize("up", [False, True])
def test_a_few_large_slices_take_the_other_way_and_agree_with_float32(up: bool) -> None:
    torch.manual_seed(0)
    plain = nn.ConvTranspose3d(8, 40, (1, 2, 2), (1, 2, 2)) if up else nn.Conv3d(40, 8, (3, 3, 3), padding=1)
    ours = Transposed3d(8, 40, (1, 2, 2), (1, 2, 2)) if up else Convolution3d(40, 8, (3, 3, 3), padding=(1, 1, 1))
    ours.load_state_dict(plain.state_dict())
    arrange(ours, 3)
    x = torch.randn(2, 8 if up else 40, 4, 34, 32)
    upstream = torch.randn(plain(x).shape)
    gradients = []
    for module, enabled in ((plain, False), (ours, True)):
        given_values = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = module(channels_last(given_values) if enabled else given_values)
        assert not enabled or "SliceGradient" in str(y.grad_fn)
        y.backward(upstream.to(y.dtype))
        gradients.append([given_values.grad, module.weight.grad, module.bias.grad])
    for expected, found in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        # bfloat16 has 8 bits, so values differ by up to 2 ** -9 of their size, and sums of them by about as much of theirs
        assert (found - expected).norm() < 2**-7 * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "slices", "side", "single", "other_way"),
    [
        (torch.bfloat16, 4, 64, False, True),
        (torch.float16, 4, 64, False, True),
        (torch.float32, 4, 64, False, False),
        (torch.bfloat16, FEW_SLICES + 1, 64, False, False),
        (torch.bfloat16, FEW_SLICES + 1, 64, True, True),
        (torch.bfloat16, 4, 16, False, False),
    ],
)
def test_only_few_large_slices_in_short_formats_take_the_other_way(dtype, slices, side, single, other_way) -> None:
    x = torch.empty((1, 32, slices, side, side), dtype=dtype)
    assert (32 * side * side > LARGE_SLICE) == (side == 64)
    assert may_hang(x, 32, x.shape[2:], single=single) == other_way
    with torch.no_grad():
        assert not may_hang(x, 32, x.shape[2:], single=single)


STEPS = """
import torch
from autoseg.networks.blocks import Convolution3d, Transposed3d
torch.set_num_threads(2)
for module, shape in (
    (Convolution3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), (2, 256, 5, 32, 28)),
    (Convolution3d(192, 192, (3, 3, 3), padding=(1, 1, 1)), (1, 192, 6, 48, 20)),
    (Convolution3d(128, 128, (2, 2, 2), (2, 2, 2)), (3, 128, 8, 128, 40)),
    (Transposed3d(32, 32, (1, 2, 2), (1, 2, 2)), (3, 32, 6, 64, 56)),
):
    module.to(memory_format=torch.channels_last_3d)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.backward(torch.ones_like(y))
"""
"""Each of them never ended on a processor with matrix tiles, with oneDNN's own gradient and two threads."""


def test_gradients_that_hung_finish() -> None:
    subprocess.run([sys.executable, "-c", STEPS], check=True, timeout=120)
