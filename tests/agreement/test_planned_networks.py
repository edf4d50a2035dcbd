"""What a plan says of its network holds for the module that is built from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoseg.issues import AutosegError
from autoseg.networks.blocks import ResidualBlock
from autoseg.networks.build import build_network
from planners import (
    CaseSize,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    plan_dataset,
    read_nnunet_dataset,
)
from planners.memory import network_layers
from planners.registry import TOPOLOGIES
from planners.rules.topology import Pyramid
from planners.topology import preset_names

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans"
STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=2.0, percentile_00_5=0.0, percentile_99_5=2.0
)
COUNTED = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def golden_configurations() -> Iterator[Any]:
    for folder in sorted(GOLDEN.glob("[0-9]*")):
        dataset = read_nnunet_dataset(
            (folder / "fingerprint.json").read_bytes(), (folder / "dataset.json").read_bytes()
        )
        for preset in sorted({*preset_names()} - {"resenc"}):  # its networks are those of resenc_m
            for configuration in plan_dataset(dataset.fingerprint, preset=preset).configurations:
                yield pytest.param(configuration, id=f"{folder.name}-{preset}-{configuration.name}")


def odd_fingerprint(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Fingerprint:
    return Fingerprint(
        dataset_name="odd",
        cases=(CaseSize(case_id="only", shape=shape, spacing_mm=spacing_mm),),
        num_training_cases=1,
        channels=("CT",),
        labels=Labels(classes=(LabelClass(name="one", values=(1,)),)),
        intensities=(STATISTICS,),
        median_relative_size_after_cropping=1.0,
    )


def run_on_meta(configuration: Configuration) -> tuple[nn.Module, torch.Tensor, int, int]:
    """The module, its logits for one patch, the values that the operations of method section 3.8 put out, and the
    multiplications that torch counts.
    """
    network = configuration.network
    with torch.device("meta"):
        module = build_network(network, seed=None).eval()
        image = torch.zeros(1, network.num_inputs, *configuration.patch_shape)
    values = 0

    def count(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        nonlocal values
        values += output.numel()

    for name, part in module.named_modules():
        if isinstance(part, COUNTED) and not name.startswith("head"):
            part.register_forward_hook(count)
        # a skip path counts once: by its projection, or where the width stays by its pooling
        if isinstance(part, ResidualBlock) and part.project is None and part.pool is not None:
            part.pool.register_forward_hook(count)
    with FlopCounterMode(display=False) as counter:  # type: ignore[no-untyped-call]  # counts additions, too
        logits = module(image)
    return module, logits, values, counter.get_total_flops() // 2


@pytest.mark.parametrize("configuration", golden_configurations())
def test_feature_map_estimates_are_those_of_the_module(configuration: Configuration) -> None:
    network = configuration.network
    module, logits, values, multiplications = run_on_meta(configuration)
    pyramid = Pyramid(
        patch=configuration.patch_shape,
        strides=network.strides,
        kernels=network.kernels,
        divisors=configuration.patch_shape,
    )
    assert values == TOPOLOGIES.get(network.family).feature_maps(pyramid, 0)
    assert logits.shape == (1, network.num_outputs, *configuration.patch_shape)
    layers = network_layers(network, configuration.patch_shape)
    assert sum(parameter.numel() for parameter in module.parameters()) == sum(layer.parameters for layer in layers)
    lower_heads = [
        layer for layer in layers if layer.name.startswith("head ") and layer.name != "head 0"
    ]  # unused here
    counted = sum(layer.multiplications for layer in layers) - sum(layer.multiplications for layer in lower_heads)
    assert counted == multiplications


@pytest.mark.parametrize("preset", ["default", "resenc", "vnet"])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [
        ((1, 1, 1), (1.0, 1.0, 1.0)),
        ((7, 7, 7), (1.0, 1.0, 1.0)),
        ((9, 9, 9), (1.0, 1.0, 1.0)),
        ((28, 11, 188), (1.26, 0.33, 1.03)),
        ((3, 5, 300), (9.0, 0.1, 1.0)),
        ((200, 1, 90), (1.0, 0.2, 1.0)),
        ((2, 3, 4), (0.1, 5.0, 700.0)),
    ],
)
def test_odd_plans_build_and_run(preset: Any, shape: Any, spacing_mm: Any) -> None:
    for configuration in plan_dataset(odd_fingerprint(shape, spacing_mm), preset=preset).configurations:
        module = build_network(configuration.network, deep_supervision=configuration.deep_supervision).eval()
        image = torch.randn(2, configuration.network.num_inputs, *configuration.patch_shape)
        with torch.inference_mode():
            logits = module(image)
        assert logits.shape == (2, configuration.network.num_outputs, *configuration.patch_shape)
        assert torch.isfinite(logits).all()


def test_a_network_of_one_stage_is_refused() -> None:
    plan = plan_dataset(odd_fingerprint((7, 7, 7), (1.0, 1.0, 1.0)), strict_reference=True)
    with pytest.raises(AutosegError, match="single stage"):
        build_network(plan.configuration("3d_fullres").network)


def test_golden_options_are_complete() -> None:
    for folder in GOLDEN.glob("[0-9]*"):
        options = json.loads((folder / "options.json").read_text())
        assert {f"plans_{name}.json" for name in options} == {path.name for path in folder.glob("plans_*.json")}
