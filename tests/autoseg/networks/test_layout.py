"""Channels-last memory: the same numbers as torch's own operations, in the layout that was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from autoseg.networks.blocks import average_pool, channels_first, channels_last, memory_format
from autoseg.networks.norms import instance_norm

SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=3).flatmap(
    lambda spatial: st.tuples(st.integers(1, 3), st.integers(1, 5)).map(lambda front: (*front, *spatial))
)


@given(SHAPES)
@settings(max_examples=60, deadline=None)
def test_conversions_keep_values_and_give_the_layout(shape) -> None:
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    last = channels_last(x)
    assert torch.equal(last, x)
    assert last.movedim(1, -1).is_contiguous()
    assert last.stride(1) == 1  # also for a single channel, so that convolutions see the layout
    first = channels_first(last)
    assert torch.equal(first, x)
    assert first.is_contiguous()


@pytest.mark.parametrize("strided", [False, True])
def test_conversions_take_any_strides(strided: bool) -> None:
    x = torch.randn(2, 3, 4, 5, 6).transpose(2, 4)
    x = x if strided else x.contiguous()
    for convert in (channels_last, channels_first):
        assert torch.equal(convert(x), x)


def test_gradients_go_back_in_the_other_layout() -> None:
    x = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    seen = []
    y = channels_first(channels_last(x) * 2)
    y.register_hook(lambda g: seen.append(g.is_contiguous()))
    weights = torch.randn(y.shape)
    (y * weights).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * weights)
    assert x.grad.is_contiguous()
    assert seen == [True]


@pytest.mark.parametrize("shape", [(3, 5, 6, 4, 7), (2, 4, 9, 8), (1, 1, 5, 6)])
def test_instance_norm_agrees_with_torchs_in_double_precision(shape) -> None:
    torch.manual_seed(0)
    given_values = torch.randn(shape) * 3 + 5
    weight, bias, upstream = torch.randn(shape[1]), torch.randn(shape[1]), torch.randn(shape)
    expected_inputs = [t.double().requires_grad_() for t in (given_values, weight, bias)]
    expected = functional.instance_norm(expected_inputs[0], weight=expected_inputs[1], bias=expected_inputs[2])
    expected.backward(upstream.double())
    inputs = [channels_last(given_values).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    got = instance_norm(*inputs)
    got.backward(channels_last(upstream))
    assert got.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-5)  # float32 sums of up to 170 values
    for mine, exact in zip(inputs, expected_inputs, strict=True):
        assert mine.grad is not None
        assert exact.grad is not None
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-4, atol=1e-4)  # the same, twice


def test_instance_norm_of_bfloat16_keeps_statistics_in_float32() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 8, 10, 12, 10) + 20).bfloat16()
    got = instance_norm(channels_last(x), torch.ones(8), torch.zeros(8))
    assert got.dtype == torch.bfloat16
    exact = functional.instance_norm(x.double())
    torch.testing.assert_close(got.double(), exact, rtol=2**-7, atol=2**-8)  # one rounding to 8 bits


def test_contiguous_input_is_normed_too() -> None:
    x = torch.randn(2, 4, 5, 6, 7)
    expected = functional.instance_norm(x.double(), weight=torch.full((4,), 2.0).double(), bias=torch.ones(4).double())
    torch.testing.assert_close(
        instance_norm(x, torch.full((4,), 2.0), torch.ones(4)).double(), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (2, 1, 2), (3, 2, 1), (2, 2), (1, 3)])
def test_pooling_agrees_with_torchs(stride) -> None:
    pool = functional.avg_pool3d if len(stride) == 3 else functional.avg_pool2d
    shape = (2, 3, *(6 * s for s in stride))
    x = torch.randn(shape)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, expected = average_pool(channels_last(mine), stride), pool(theirs, stride)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    assert got.is_contiguous(memory_format=memory_format(len(stride)))
    upstream = torch.randn(expected.shape)
    got.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
