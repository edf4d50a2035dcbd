"""The norm of CUDA devices: its gradients against the formula, its kernels where Triton is installed, and who may use it."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from autoseg.networks import norms
from autoseg.networks.blocks import channels_last

GPU = torch.device("cuda")


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("slope", [1.0, 0.01])
def test_its_gradients_are_those_of_the_formula(has_skip: bool, slope: float) -> None:
    torch.manual_seed(0)
    x, skip = (torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def compute(*given: torch.Tensor) -> torch.Tensor:
        return torch.ops.autoseg.norm(*given[:3], given[3] if has_skip else None, slope)[0]

    assert torch.autograd.gradcheck(compute, (x, weight, bias, *[skip] * has_skip))


def test_it_is_accurate_in_bfloat16_and_keeps_format_and_layout() -> None:
    assert norms.kernel_error(torch.device("cpu")) < 2**-8  # half a unit in the last of 8 bits
    x = channels_last(torch.randn(2, 3, 4, 5, 6)).bfloat16()
    result, mean, scale = torch.ops.autoseg.norm(x, torch.ones(3), torch.zeros(3), None, 0.01)
    assert result.dtype == torch.bfloat16
    assert norms.is_channels_last(result)
    assert {each.dtype for each in (mean, scale)} == {torch.float32}
    checked = torch.library.opcheck(torch.ops.autoseg.norm, (x, torch.ones(3), torch.zeros(3), None, 0.01))
    assert set(checked.values()) == {"SUCCESS"}


def test_channels_of_a_larger_map_are_read_in_place() -> None:
    joined = channels_last(torch.randn(2, 8, 3, 4, 5))
    part = joined[:, 4:]
    rows = norms._rows(part)
    assert rows.data_ptr() == part.data_ptr()
    assert torch.equal(rows, part.movedim(1, -1).flatten(1, -2))
    assert torch.equal(norms._rows(part.contiguous()), rows)


@pytest.mark.parametrize(
    ("capability", "error", "reason"),
    [
        ((7, 5), 0.0, "the GPU has compute capability 7.5"),
        ((8, 0), norms.TOLERANCE, None),
        ((9, 0), 1.01 * norms.TOLERANCE, "its kernels are wrong by 1.6%"),
        ((9, 0), RuntimeError("no compiler\nmore"), "no compiler"),
        ((9, 0), KeyError(), "KeyError"),
    ],
)
def test_it_is_used_where_it_works(monkeypatch, capability, error, reason) -> None:
    def find_error(_: torch.device) -> float:
        if isinstance(error, Exception):
            raise error
        return error

    norms.why_not_fused.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(norms, "kernel_error", find_error)
    assert norms.why_not_fused(GPU) == reason
    norms.why_not_fused.cache_clear()


KERNELS = """
import torch
from autoseg.networks import kernels, norms
torch.manual_seed(0)
for shape, has_skip, dtype in (((2, 5, 3, 4, 5), False, torch.bfloat16), ((1, 66, 6, 11), True, torch.float32)):
    x, skip = (norms._dense((torch.randn(shape) + 3).to(dtype)) for _ in range(2))
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    upstream = norms._dense(torch.randn(shape[0], 2 * shape[1], *shape[2:]).to(dtype))[:, shape[1]:]
    found = kernels.forward(x, weight, bias, skip if has_skip else None, 0.01, norms.EPSILON)
    y = found[0] if has_skip else None
    found += kernels.backward(norms._rows(upstream), x, y, *found[1:], weight, bias, 0.01)
    plain = norms.formula(x, weight, bias, skip if has_skip else None, 0.01)
    plain += norms.fused_norm_backward(upstream, x, y, *plain[1:], weight, bias, 0.01)
    for mine, right in zip(found, plain, strict=True):
        assert mine.dtype == right.dtype
        torch.testing.assert_close(mine, right, rtol=2**-7 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
"""


OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11)


@pytest.mark.skipif(
    OLD or importlib.util.find_spec("triton") is None,
    reason="Triton comes with torch's CUDA build; older interpreters ask for a GPU",
)
def test_kernels_agree_with_the_formula_step_by_step() -> None:
    """In Triton's interpreter, which needs no GPU; voxels and channels that fill no tile, and a part of a larger gradient."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", KERNELS], check=True, env=environment, timeout=300)


def test_a_convolution_of_its_result_has_the_gradients_of_both() -> None:
    """Its input is computed again for the backward pass."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    kernel = torch.randn(2, 3, 3, 3, 1, dtype=torch.float64, requires_grad=True)
    given = (x, weight, bias, kernel)
    expected = norms.formula(x, weight, bias, None, norms.NEGATIVE_SLOPE)[0]
    found, again = norms.norm_convolved(*given, (1, 1, 0), gives_both=True)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(found, torch.nn.functional.conv3d(expected, kernel, None, 1, (1, 1, 0)))
    weights = torch.randn(again.shape, dtype=torch.float64)

    def both(*values: torch.Tensor) -> torch.Tensor:
        convolved, result = norms.norm_convolved(*values, (1, 1, 0), gives_both=True)
        return convolved.pow(2).sum() + (result * weights).sum()

    assert torch.autograd.gradcheck(both, given)
    assert torch.autograd.gradcheck(functools.partial(norms.norm_convolved, padding=(1, 1, 0), gives_both=False), given)
