"""Networks: shapes, sizes, initialisation, and agreement with torch's own parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from autoseg.issues import AutosegError
from autoseg.networks.blocks import InstanceNorm
from autoseg.networks.build import build_network
from autoseg.networks.weights import load_weights, save_weights
from planners import Network


def network(
    family: str = "unet", *, axes: int = 3, stages: int = 3, base: int = 4, inputs: int = 1, outputs: int = 3
) -> Network:
    """A small isotropic topology."""
    residual = family == "residual_unet"
    return Network(
        family=family,
        num_inputs=inputs,
        num_outputs=outputs,
        features=tuple(min(320, base * 2**i) for i in range(stages)),
        kernels=((3,) * axes,) * stages,
        strides=((1,) * axes, *(((2,) * axes,) * (stages - 1))),
        blocks=(1, 3, 4, 6, 6, 6)[:stages] if residual else (2,) * stages,
        decoder_blocks=(1 if residual else 2,) * (stages - 1),
    )


@pytest.mark.parametrize(("family", "parameters"), [("unet", 31_196_399), ("residual_unet", 102_350_575)])
def test_parameters_are_as_many_as_the_reference_has(family: str, parameters: int) -> None:
    """Method section 5.5 gives the counts for six isotropic stages, one channel and three outputs."""
    with torch.device("meta"):
        module = build_network(network(family, stages=6, base=32), seed=None)
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("family", ["unet", "residual_unet", "vnet"])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("inputs", [1, 3])
def test_logits_have_the_shape_of_the_patch(family: str, axes: int, inputs: int) -> None:
    module = build_network(network(family, axes=axes, inputs=inputs)).eval()
    patch = (8, 16, 12)[:axes]
    assert module(torch.zeros(2, inputs, *patch)).shape == (2, 3, *patch)


def test_deep_supervision_gives_every_resolution_only_in_training() -> None:
    topology = network(stages=4)
    module = build_network(topology, deep_supervision=True)
    logits = module.train()(torch.zeros(1, 1, 16, 16, 24))
    assert [tuple(each.shape[2:]) for each in logits] == [(16, 16, 24), (8, 8, 12), (4, 4, 6)]
    assert module.eval()(torch.zeros(1, 1, 16, 16, 24)).shape == (1, 3, 16, 16, 24)


def test_instance_norm_is_torchs() -> None:
    x = torch.randn(2, 5, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    norm = InstanceNorm(5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    # two ways to sum the same float32 numbers: a few units in the last place of values around 1
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-5)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (build_network(network(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_convolutions_start_with_the_methods_spread() -> None:
    """Kaiming, fan-in, leaky ReLU with slope 0.01: standard deviation sqrt(2 / (1 + 0.01^2) / fan_in)."""
    module = build_network(network(stages=4, base=32))
    weight = module.encoder[2][1].conv.weight
    expected = math.sqrt(2 / (1 + 0.01**2) / (weight.shape[1] * 27))
    assert weight.std().item() == pytest.approx(expected, rel=0.01)  # 442 368 draws: 0.1 % standard error
    assert module.encoder[2][1].conv.bias.abs().max() == 0


def test_residual_blocks_start_as_their_skip_path() -> None:
    module = build_network(network("residual_unet"))
    block = module.encoder[0][0]
    x = torch.randn(1, 4, 6, 6, 6)
    torch.testing.assert_close(block(x), functional.leaky_relu(x, 0.01))


def test_a_single_stage_is_refused() -> None:
    with pytest.raises(AutosegError, match="single stage"):
        build_network(network(stages=1))


def test_weights_return_from_disk(tmp_path) -> None:
    module, other = build_network(network(), seed=1), build_network(network(), seed=2)
    save_weights(tmp_path / "w.safetensors", module.state_dict(), key="k")
    load_weights(tmp_path / "w.safetensors", other)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_weights_of_another_network_are_refused_with_the_tensor(tmp_path) -> None:
    save_weights(tmp_path / "w.safetensors", build_network(network(base=8)).state_dict(), key="k")
    with pytest.raises(AutosegError, match=r"another network.*decoder\.0\.0\.conv.*plan \(4,\), file \(8,\)"):
        load_weights(tmp_path / "w.safetensors", build_network(network()))


def test_files_that_are_no_weights_are_refused(tmp_path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights at all")
    for name, code in (("w", "weights.damaged"), ("absent", "weights.missing")):
        with pytest.raises(AutosegError) as raised:
            load_weights(tmp_path / f"{name}.safetensors", build_network(network()))
        assert raised.value.codes == (code,)
