"""Weights for other inputs and outputs: what has the same name is computed as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoseg.issues import AutosegError
from autoseg.networks.build import build_network
from autoseg.networks.weights import Interface, tensors_that_follow, transfer_weights
from planners import Network

BEFORE = Interface(inputs=("CT", "PET"), outputs=("background", "head", "tail"))


def topology(family: str, dimensions: int, *, inputs: int = 2, outputs: int = 3) -> Network:
    sizes = {size: (size,) * dimensions for size in (1, 2, 3)}
    return Network(
        family=family,
        num_inputs=inputs,
        num_outputs=outputs,
        features=(4, 8, 8),
        kernels=(sizes[3],) * 3,
        strides=(sizes[1], sizes[2], sizes[2]),
        blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )  # type: ignore[arg-type]


def transferred(network: Network, after: Interface, *, seed: int = 5) -> tuple[nn.Module, nn.Module, tuple[str, ...]]:
    """The network before, the one after, and what was noted."""
    old = build_network(network, seed=1)
    target = network.model_copy(update={"num_inputs": len(after.inputs), "num_outputs": len(after.outputs)})
    new = build_network(target, seed=seed)
    done = transfer_weights(old.state_dict(), new.state_dict(), network=target, before=BEFORE, after=after, where="m")
    new.load_state_dict(done.weights)
    return old.eval(), new.eval(), done.notes


FAMILIES = [(family, dimensions) for family in ("unet", "residual_unet", "vnet") for dimensions in (2, 3)]


@pytest.mark.parametrize(("family", "dimensions"), FAMILIES)
def test_only_named_tensors_depend_on_inputs_and_outputs(family: str, dimensions: int) -> None:
    one, other = (build_network(topology(family, dimensions, inputs=n, outputs=n + 2)).state_dict() for n in (1, 3))
    differing = {name for name in one if one[name].shape != other[name].shape}
    network = topology(family, dimensions)
    inputs, heads = (tensors_that_follow(network, field) for field in ("num_inputs", "num_outputs"))
    assert differing == {*inputs, *heads}
    assert len(inputs) == 1
    assert {name.split(".")[0] for name in heads} == {"head" if family == "vnet" else "heads"}


@pytest.mark.parametrize(("family", "dimensions"), FAMILIES)
def test_the_same_interface_keeps_every_bit(family: str, dimensions: int) -> None:
    old, new, notes = transferred(topology(family, dimensions), BEFORE)
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))
    assert notes == ("inputs: CT, PET keep their filters", "outputs: background, head, tail keep their layers")


@pytest.mark.parametrize(("family", "dimensions"), [f for f in FAMILIES if f[0] != "vnet"])
def test_exchanged_channels_and_classes_give_exchanged_logits(family: str, dimensions: int) -> None:
    """(A V-Net adds the image itself to its first stage, channel by channel, so there the order matters.)"""
    after = Interface(inputs=("PET", "CT"), outputs=("background", "tail", "head"))
    old, new, _ = transferred(topology(family, dimensions), after)
    image = torch.randn(1, 2, *(16,) * dimensions, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = old(image)[:, [0, 2, 1]], new(image[:, [1, 0]])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)  # float32 sums over channels in another order


@pytest.mark.parametrize(("family", "dimensions"), FAMILIES)
def test_new_channels_get_the_mean_and_new_classes_start_from_scratch(family: str, dimensions: int) -> None:
    network = topology(family, dimensions)
    old, new, notes = transferred(network, Interface(inputs=("T1", "CT", "T2"), outputs=("background", "cyst", "tail")))
    (first,) = tensors_that_follow(network, "num_inputs")
    before, after = old.state_dict(), new.state_dict()
    assert torch.equal(after[first][:, 1], before[first][:, 0])
    for new_channel in (0, 2):
        torch.testing.assert_close(after[first][:, new_channel], before[first].mean(1))
    fresh = build_network(network.model_copy(update={"num_inputs": 3}), seed=5).state_dict()
    for name in tensors_that_follow(network, "num_outputs"):
        assert torch.equal(after[name][[0, 2]], before[name][[0, 2]])
        assert torch.equal(after[name][1], fresh[name][1])
    assert notes == (
        "inputs: CT keep their filters, T1, T2 start with the mean of those of CT, PET",
        "outputs: background, tail keep their layers, cyst start from scratch",
    )


def test_regions_do_not_take_layers_of_classes() -> None:
    """A sigmoid and a softmax read logits differently, whatever the names."""
    old, new, notes = transferred(topology("unet", 2), Interface(inputs=("CT", "PET"), outputs=("head", "tail")))
    assert "all start from scratch, since they were mutually exclusive classes and are now regions" in notes[1]
    assert not torch.equal(new.state_dict()["heads.0.weight"], old.state_dict()["heads.0.weight"][1:])


def test_weights_of_another_topology_are_refused_tensor_by_tensor() -> None:
    wide = topology("unet", 2).model_copy(update={"features": (8, 8, 8)})
    old, new = build_network(topology("unet", 2)).state_dict(), build_network(wide).state_dict()
    with pytest.raises(AutosegError) as raised:
        transfer_weights(old, new, network=wide, before=BEFORE, after=BEFORE, where="model.zip")
    assert "encoder.0.0.conv.weight is (4, 3, 3), but the plan needs (8, 3, 3)" in str(raised.value)
    assert len(raised.value.issues) > 5
    del old["encoder.1.0.conv.bias"]
    with pytest.raises(AutosegError, match=r"encoder\.1\.0\.conv\.bias is None"):
        transfer_weights(
            old,
            build_network(topology("unet", 2)).state_dict(),
            network=topology("unet", 2),
            before=BEFORE,
            after=BEFORE,
            where="m",
        )
