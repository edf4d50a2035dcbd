"""Feature-map estimates and layer counts of the three families, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from planners import (
    CaseSize,
    DocumentError,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    PlanningError,
    edited_plan,
    explain,
    plan_dataset,
    read_document,
    write_document,
)
from planners.memory import network_layers
from planners.registry import TOPOLOGIES
from planners.rules.topology import Pyramid, reference_pyramid
from planners.topologies.residual_unet import blocks
from planners.topologies.unet import features
from planners.topologies.vnet import convolutions, decide_candidate, kernels

CUBE = reference_pyramid((1, 1, 1), (128, 128, 128))
SLICE = reference_pyramid((1, 1), (512, 512))


@pytest.mark.parametrize(
    ("family", "pyramid", "expected"),
    [
        ("unet", CUBE, 452_796_416),
        ("residual_unet", CUBE, 557_420_544),
        ("unet", SLICE, 82_886_656),
        ("residual_unet", SLICE, 129_703_936),
    ],
)
def test_reference_points_of_the_method(family: str, pyramid: Pyramid, expected: int) -> None:
    assert TOPOLOGIES.get(family).feature_maps(pyramid, 3) == expected  # type: ignore[arg-type]


def test_one_stage_has_no_head() -> None:
    single = reference_pyramid((1, 1, 1), (7, 7, 7))
    assert TOPOLOGIES.get("unet").feature_maps(single, 9) == 2 * 32 * 343
    assert TOPOLOGIES.get("residual_unet").feature_maps(single, 9) == 3 * 32 * 343
    assert TOPOLOGIES.get("vnet").feature_maps(single, 9) == 16 * 343


def test_vnet_estimate_by_hand() -> None:
    pyramid = reference_pyramid((1, 1), (16, 16))
    assert pyramid.strides == ((1, 1), (2, 2), (2, 2))
    # encoder: 1, 2, 3 convolutions and 2 halvings; decoder: 1 and 2 convolutions of twice the width and 2 doublings
    encoder = 16 * 256 + (2 + 1) * 32 * 64 + (3 + 1) * 64 * 16
    decoder = (1 + 2 * 1) * 16 * 256 + (1 + 2 * 2) * 32 * 64
    assert TOPOLOGIES.get("vnet").feature_maps(pyramid, 3) == encoder + decoder + 3 * 256


def test_a_residual_estimate_counts_skip_paths_that_stride_along_some_axes_only() -> None:
    halvings = [(2, 2, 2)] * 4 + [(1, 2, 2)] * 2
    pyramid = Pyramid(
        patch=(64, 256, 256), strides=((1, 1, 1), *halvings), kernels=((3, 3, 3),) * 7, divisors=(16, 64, 64)
    )
    voxels = [4_194_304, 524_288, 65_536, 8192, 1024, 256, 64]
    maps = [width * size for width, size in zip((32, 64, 128, 256, 320, 320, 320), voxels, strict=True)]
    blocks_of_two = 2 * sum(count * size for count, size in zip((1, 3, 4, 6, 6, 6, 6), maps, strict=True))
    expected = maps[0] + blocks_of_two + sum(maps[1:]) + 2 * sum(maps[:-1]) + 3 * voxels[0]
    assert TOPOLOGIES.get("residual_unet").feature_maps(pyramid, 3) == expected


def test_features_double_up_to_the_cap() -> None:
    assert features(6, dimensions=3) == (32, 64, 128, 256, 320, 320)
    assert features(6, dimensions=2) == (32, 64, 128, 256, 512, 512)
    assert TOPOLOGIES.get("vnet").describe(CUBE, (1, 1, 1), num_inputs=1, num_outputs=2).features == (
        16,
        32,
        64,
        128,
        256,
        256,
    )


def test_blocks_grow_with_depth() -> None:
    assert blocks(6) == (1, 3, 4, 6, 6, 6)
    assert blocks(2) == (1, 3)
    assert convolutions(5) == (1, 2, 3, 3, 3)
    vnet = TOPOLOGIES.get("vnet").describe(CUBE, (1, 1, 1), num_inputs=1, num_outputs=2)
    assert (vnet.blocks, vnet.decoder_blocks) == ((1, 2, 3, 3, 3, 3), (1, 2, 3, 3, 3))


def test_vnet_kernels_follow_voxels_and_spacing() -> None:
    pyramid = reference_pyramid((3.0, 1.0, 1.0), (16, 64, 64))
    assert pyramid.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    # sizes: 16x64x64, 16x32x32, 8x16x16, 4x8x8, 4x4x4; z is 3 times coarser at first, then 1.5 times
    assert kernels(pyramid, (3.0, 1.0, 1.0)) == ((1, 5, 5), (5, 5, 5), (3, 5, 5), (1, 3, 3), (1, 1, 1))


def test_vnet_kernel_bounds_are_ten_and_six_voxels() -> None:
    for size, expected in ((10, 5), (9, 3), (6, 3), (5, 1)):
        single = Pyramid(patch=(size, size), strides=((1, 1),), kernels=((3, 3),), divisors=(1, 1))
        assert kernels(single, (1.0, 1.0)) == ((expected, expected),)


def test_a_residual_block_pools_where_it_strides_and_projects_where_the_width_changes() -> None:
    """Two stages of one resolution, then a halving: of 8 x 8 x 8 voxels, with 4, 6 and 6 features."""
    network = (
        TOPOLOGIES.get("residual_unet")
        .describe(reference_pyramid((1, 1, 1), (16, 16, 16)), (1, 1, 1), num_inputs=1, num_outputs=2)
        .model_copy(
            update={
                "features": (4, 6, 9),
                "strides": ((1, 1, 1), (1, 1, 1), (2, 2, 2)),
                "kernels": ((3, 3, 3),) * 3,
                "blocks": (1, 2, 1),
                "decoder_blocks": (1, 1),
            }
        )
    )
    layers = {layer.name: layer for layer in network_layers(network, (8, 8, 8))}
    apart, halved = layers["encoder 1 block 0 projection"], layers["encoder 2 block 0 projection"]
    assert "encoder 0 block 0 projection" not in layers
    assert "encoder 1 block 1 projection" not in layers
    assert (apart.inputs, apart.outputs, apart.joined, apart.pooled) == (4 * 512, 6 * 512, 0, 0)
    assert (halved.inputs, halved.outputs, halved.joined, halved.pooled) == (6 * 64, 9 * 64, 6 * 64, 6 * 512)
    assert [name for name, layer in layers.items() if layer.is_skip] == [
        "encoder 0 block 0 convolution 1",
        "encoder 1 block 1 convolution 1",
    ]
    flat = network.model_copy(update={"strides": ((1, 1), (1, 1), (2, 2)), "kernels": ((3, 3),) * 3})
    pooled = {layer.name: layer.pooled for layer in network_layers(flat, (8, 8))}
    assert set(pooled.values()) == {0}  # torch pools slices in any format


@pytest.mark.parametrize(("family", "most"), [("unet", 14), ("residual_unet", 13)])
def test_networks_have_as_many_stages_as_nnunet_lists_at_most(family: str, most: int) -> None:
    plan, longest = plan_dataset(small_fingerprint()), 4 * 2 ** (most - 1)
    edited = edited_plan(plan, {"2d.topology": family, "2d.patch_shape": f"{longest},{longest}"})
    assert len(edited.configuration("2d").network.features) == most
    with pytest.raises(PlanningError, match=f"has more than {most} stages; set a smaller patch_shape"):
        edited_plan(plan, {"2d.topology": family, "2d.patch_shape": f"{2 * longest},{2 * longest}"})


@pytest.mark.parametrize(
    ("spacing_mm", "near"), [((3.0, 2.0, 2.4), True), ((3.02, 2.0, 2.4), False), ((0.3, 0.15, 0.2), False)]
)
def test_a_vnet_is_for_spacings_that_differ_by_half_at_most(spacing_mm: tuple[float, ...], near: bool) -> None:
    assert decide_candidate(spacing_mm).value is near


OTHER = """
from dataclasses import replace
from planners.topologies.unet import TOPOLOGY as UNET

def describe(pyramid, spacing_mm, **interface):
    network = UNET.describe(pyramid, spacing_mm, **interface)
    return network.model_copy(update={"family": "wide", "features": tuple(2 * width for width in network.features)})

TOPOLOGY = replace(UNET, name="wide", title="wide U-Net", describe=describe, presets={"wide": UNET.presets["default"]})
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else that brings a topology."""
    (tmp_path / "wide_networks.py").write_text(OTHER)
    (tmp_path / "wide_networks-1.0.dist-info").mkdir()
    (tmp_path / "wide_networks-1.0.dist-info" / "METADATA").write_text("Name: wide-networks\nVersion: 1.0\n")
    entry = "[autoseg.topologies]\nwide = wide_networks:TOPOLOGY\n"
    (tmp_path / "wide_networks-1.0.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wide_networks", raising=False)


def small_fingerprint() -> Fingerprint:
    statistics = IntensityStatistics(
        mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=2.0, percentile_00_5=0.0, percentile_99_5=2.0
    )
    return Fingerprint(
        dataset_name="small",
        cases=(CaseSize(case_id="a", shape=(40, 50, 60), spacing_mm=(1.0, 1.0, 1.0)),),
        num_training_cases=1,
        channels=("CT",),
        labels=Labels(classes=(LabelClass(name="one", values=(1,)),)),
        intensities=(statistics,),
        median_relative_size_after_cropping=1.0,
    )


@pytest.mark.usefixtures("_installed")
def test_an_installed_package_brings_a_topology_with_its_preset() -> None:
    usual, wide = (plan_dataset(small_fingerprint(), preset=preset) for preset in ("default", "wide"))
    assert {c.network.family for c in wide.configurations} == {"wide"}
    assert read_document(Plan, write_document(wide), where="memory") == wide
    assert "3d_fullres: 3D wide U-Net" in explain(wide)
    edited = edited_plan(usual, {"3d_fullres.topology": "wide"})
    assert edited.configuration("3d_fullres").network == wide.configuration("3d_fullres").network


def test_names_that_are_not_installed_are_refused_with_the_known_ones() -> None:
    plan = plan_dataset(small_fingerprint())
    for name in ("family", "name"):
        text = write_document(plan).replace(f'"{name}": "unet"', f'"{name}": "wide"')
        text = text.replace(f'"{name}": "compound"', f'"{name}": "wide"')
        with pytest.raises(DocumentError, match=r"'wide' is installed; there are (residual_unet, unet, vnet|compound)"):
            read_document(Plan, text, where="plan.json")
    with pytest.raises(PlanningError) as raised:
        plan_dataset(small_fingerprint(), preset="wide")
    (issue,) = raised.value.issues
    assert issue.code == "plan.unknown_preset"
    assert "resenc_m" in issue.fix
