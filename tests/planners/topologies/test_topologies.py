"""Feature-map estimates and layer counts of the three families, by hand."""

from __future__ import annotations

import pytest

from planners.rules.topology import Pyramid, reference_pyramid
from planners.topologies import describe_network, estimate_feature_maps
from planners.topologies.residual_unet import blocks
from planners.topologies.unet import features
from planners.topologies.vnet import convolutions, kernels

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
    assert estimate_feature_maps(family, pyramid, label_entries=3) == expected  # type: ignore[arg-type]


def test_one_stage_has_no_head() -> None:
    single = reference_pyramid((1, 1, 1), (7, 7, 7))
    assert estimate_feature_maps("unet", single, label_entries=9) == 2 * 32 * 343
    assert estimate_feature_maps("residual_unet", single, label_entries=9) == 3 * 32 * 343
    assert estimate_feature_maps("vnet", single, label_entries=9) == 16 * 343


def test_vnet_estimate_by_hand() -> None:
    pyramid = reference_pyramid((1, 1), (16, 16))
    assert pyramid.strides == ((1, 1), (2, 2), (2, 2))
    # encoder: 1, 2, 3 convolutions and 2 halvings; decoder: 1 and 2 convolutions of twice the width and 2 doublings
    encoder = 16 * 256 + (2 + 1) * 32 * 64 + (3 + 1) * 64 * 16
    decoder = (1 + 2 * 1) * 16 * 256 + (1 + 2 * 2) * 32 * 64
    assert estimate_feature_maps("vnet", pyramid, label_entries=3) == encoder + decoder + 3 * 256


def test_features_double_up_to_the_cap() -> None:
    assert features(6, dimensions=3) == (32, 64, 128, 256, 320, 320)
    assert features(6, dimensions=2) == (32, 64, 128, 256, 512, 512)
    assert describe_network("vnet", CUBE, (1, 1, 1), num_inputs=1, num_outputs=2).features == (
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
    vnet = describe_network("vnet", CUBE, (1, 1, 1), num_inputs=1, num_outputs=2)
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
