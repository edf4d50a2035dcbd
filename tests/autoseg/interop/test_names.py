"""Every tensor of a network laid out as the reference's has one place in ours, and computes the same there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from autoseg.interop.nnunet_checkpoint import reference_names, translate_weights
from autoseg.networks.build import build_network
from planners import Network, Plan, read_nnunet_dataset, read_nnunet_plans

Layout = Callable[[Network], nn.Module]
GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "plans"


def network(family: str, *, axes: int = 3, inputs: int = 2) -> Network:
    """Small, with every case of the method: uneven strides and kernels, a stage that keeps its width."""
    residual = family == "residual_unet"
    return Network(
        family=family,
        num_inputs=inputs,
        num_outputs=3,
        features=(4, 8, 16, 16),
        kernels=(((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)) if axes == 3 else ((3, 3),) * 4),
        strides=(((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)) if axes == 3 else ((1, 1), (2, 2), (2, 1), (2, 2))),
        blocks=(1, 3, 2, 1) if residual else (2, 2, 1, 2),
        decoder_blocks=(1, 2, 1) if residual else (2, 1, 2),
    )


def drawn_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict after every parameter was drawn: no two tensors are alike, norms and biases included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module.state_dict()


def reference_plans(folder: Path) -> Iterator[Plan]:
    """One plan of each family for every fingerprint: the others differ in patch, batch and depth only."""
    for plans in sorted((*folder.glob("[0-9]*/plans_default*.json"), *folder.glob("[0-9]*/plans_resenc_l.json"))):
        dataset = read_nnunet_dataset(
            (plans.parent / "fingerprint.json").read_bytes(), (plans.parent / "dataset.json").read_bytes()
        )
        yield read_nnunet_plans(plans.read_bytes(), dataset)


def assert_every_tensor_has_one_place(topology: Network, layout: Layout) -> None:
    with torch.device("meta"):
        ours = {name: tuple(tensor.shape) for name, tensor in build_network(topology, seed=None).state_dict().items()}
        module = layout(topology)
    names = reference_names(topology)
    assert names.keys() == ours.keys()
    theirs = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert Counter(name for aliases in names.values() for name in aliases) == Counter(theirs.keys())
    for name, aliases in names.items():
        assert {theirs[alias] for alias in aliases} == {ours[name]}
    # names of one tensor in the reference are names of one tensor here
    shared = {id(parameter): set() for parameter in module.parameters()}
    for name, parameter in module.state_dict(keep_vars=True).items():
        shared[id(parameter)].add(name)
    assert {frozenset(group) for group in shared.values()} == {frozenset(aliases) for aliases in names.values()}


def assert_plans_fit(folder: Path, layout: Layout) -> int:
    seen = set()
    for plan in reference_plans(folder):
        for configuration in plan.configurations:
            topology = configuration.network
            if topology not in seen and len(topology.features) > 1:
                assert_every_tensor_has_one_place(topology, layout)
                seen.add(topology)
    return len(seen)


@pytest.mark.parametrize("family", ["unet", "residual_unet"])
@pytest.mark.parametrize("axes", [2, 3])
def test_translated_weights_compute_the_same(family: str, axes: int, reference_layout: Layout) -> None:
    topology = network(family, axes=axes)
    reference = reference_layout(topology).eval()
    weights, problems = translate_weights(drawn_weights(reference), topology)
    assert not problems
    ours = build_network(topology, deep_supervision=True, seed=None).train()
    ours.load_state_dict(weights)
    image = torch.randn(2, 2, *(8, 16, 24)[-axes:], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for found, expected in zip(ours(image), reference(image), strict=True):
            # float32 sums in two orders, through some twenty layers
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_golden_plans_fit(reference_layout: Layout) -> None:
    assert assert_plans_fit(GOLDEN, reference_layout) > 5


def test_reference_plans_fit(real_data: Path, reference_layout: Layout) -> None:
    folder = real_data.parent / "reference" / "plans"
    if not folder.is_dir():
        pytest.skip("no reference plans beside the folder given with --real-data")
    assert assert_plans_fit(folder, reference_layout) > 25


def test_entries_are_as_many_as_the_reference_writes() -> None:
    """Method section 5.5: three plain stages have 48 parameters under 136 names."""
    topology = Network(
        family="unet",
        num_inputs=1,
        num_outputs=3,
        features=(4, 8, 16),
        kernels=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        blocks=(2, 2, 2),
        decoder_blocks=(2, 2),
    )
    names = reference_names(topology)
    assert len(names) == 48
    assert sum(map(len, names.values())) == 136


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrapped_networks_are_cut_off(prefix: str, reference_layout: Layout) -> None:
    topology = network("unet")
    weights = drawn_weights(reference_layout(topology))
    wrapped = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    assert translate_weights(wrapped, topology)[1] == []


def test_canonical_names_alone_are_enough(reference_layout: Layout) -> None:
    topology = network("residual_unet")
    weights = drawn_weights(reference_layout(topology))
    canonical = {first: weights[first] for first, *_ in reference_names(topology).values()}
    assert translate_weights(canonical, topology)[1] == []


def test_all_kinds_of_faults_are_reported_at_once(reference_layout: Layout) -> None:
    topology = network("unet")
    weights = drawn_weights(reference_layout(topology))
    del weights["decoder.seg_layers.0.bias"]
    weights["encoder.stages.0.0.convs.0.norm.running_mean"] = torch.zeros(4)
    weights["decoder.seg_layers.2.weight"] = torch.zeros(5, 4, 1, 1, 1)
    weights["decoder.encoder.stages.1.0.convs.0.conv.bias"] = torch.ones(8)
    _, problems = translate_weights(weights, topology)
    assert problems == [
        "missing tensors: 1, the first is decoder.seg_layers.0.bias",
        "unknown tensors: 1, the first is encoder.stages.0.0.convs.0.norm.running_mean",
        "tensors of another shape: 1, the first is decoder.seg_layers.2.weight (5, 4, 1, 1, 1) instead of (3, 4, 1, 1, 1)",
        "pairs of names of one tensor with different numbers: 1, the first is "
        "decoder.encoder.stages.1.0.convs.0.conv.bias and encoder.stages.1.0.convs.0.conv.bias",
    ]


def test_vnets_have_no_names_there() -> None:
    with pytest.raises(ValueError, match="vnet"):
        reference_names(network("unet").model_copy(update={"family": "vnet"}))
