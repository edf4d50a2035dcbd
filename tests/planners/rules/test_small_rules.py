"""Axis order, intensities, memory target, loss and mirroring, by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planners.fingerprint import ClassSize, CtEvidence
from planners.geometry import SourceShape, SourceSpacing, inverse, transpose
from planners.plan import Loss
from planners.registry import TOPOLOGIES
from planners.rules.axes import decide_axis_order, put_single_slice_first
from planners.rules.intensity import MIXED_SHARE, decide_normalization, normalization_scheme
from planners.rules.loss import (
    RARE_SHARE,
    decide_batch_dice,
    decide_deep_supervision,
    decide_loss,
    find_rarity,
)
from planners.rules.patch import decide_memory_target, memory_budget
from planners.rules.spacing import decide_interpolation
from planners.topology import find_preset


@pytest.mark.parametrize(
    ("spacing", "forward", "backward"),
    [
        ((3, 1, 1), (0, 1, 2), (0, 1, 2)),
        ((1, 3, 1), (1, 0, 2), (1, 0, 2)),
        ((1, 1, 3), (2, 0, 1), (1, 2, 0)),
        ((1, 1, 1), (0, 1, 2), (0, 1, 2)),
        ((1, 3, 3), (1, 0, 2), (1, 0, 2)),
    ],
)
def test_coarsest_axis_goes_first(
    spacing: tuple[int, ...], forward: tuple[int, ...], backward: tuple[int, ...]
) -> None:
    order = decide_axis_order(SourceSpacing(spacing)).value  # type: ignore[arg-type]
    assert order == forward
    assert inverse(order) == backward
    assert transpose(transpose("zyx", order), inverse(order)) == ("z", "y", "x")


def test_channel_names_choose_the_scheme() -> None:
    names = ("CT", "ct", "noNorm", "zscore", "rescale_to_0_1", "RGB_to_0_1", "T1", "ct ", "CT2")
    schemes = [entry.scheme for entry in decide_normalization(names, 1.0).value]
    assert schemes == ["ct", "ct", "none", "zscore", "rescale_to_0_1", "rgb_to_0_1", "zscore", "zscore", "zscore"]


def test_only_zscore_uses_the_mask_and_only_below_three_quarters() -> None:
    names = ("CT", "T1", "noNorm")
    assert [entry.use_mask for entry in decide_normalization(names, 0.7499).value] == [False, True, False]
    assert [entry.use_mask for entry in decide_normalization(names, 0.75).value] == [False, False, False]
    assert "taken inside the non-zero mask" in decide_normalization(names, 0.7499).reason
    assert "of the median image, at least 75%" in decide_normalization(names, 0.75).reason
    assert "less than 75%, but no channel is z-scored" in decide_normalization(names[:1], 0.7499).reason


def test_interpolation_is_the_methods() -> None:
    chosen = decide_interpolation().value
    assert [(kind.order, kind.order_z, kind.separate_z) for kind in (chosen.image, chosen.labels, chosen.logits)] == [
        (3, 0, None),
        (1, 0, None),
        (1, 0, None),
    ]


@pytest.mark.parametrize(
    ("requested", "device", "expected"),
    [(None, None, 24), (None, 80, 24), (None, 16, 16), (40, 16, 40), (10, None, 10)],
)
def test_memory_target(requested: float | None, device: float | None, expected: float) -> None:
    assert decide_memory_target(find_preset("resenc_l")[1], requested_gb=requested, device_gb=device).value == expected


def test_a_device_of_the_presets_size_caps_nothing() -> None:
    (rules, same) = find_preset("default")[1], "8 GB is the preset's default"
    assert decide_memory_target(rules, requested_gb=None, device_gb=8.0).reason == same
    assert "the device has 7.9 GB" in decide_memory_target(rules, requested_gb=None, device_gb=7.9).reason


@pytest.mark.parametrize(
    ("preset", "memory_gb", "volumes", "slices", "fitting_slices", "share"),
    [
        ("default", 8, 560e6, 85e6, 2, 0.05),
        ("vnet", 8, 560e6, 85e6, 2, 0.05),
        ("resenc", 8, 680e6, 135e6, 12, 0.05),
        ("resenc_m", 8, 680e6, 135e6, 12, 1.0),
        ("resenc_l", 24, 2100e6, 380e6, 12, 1.0),
        ("resenc_xl", 40, 3600e6, 560e6, 12, 1.0),
    ],
)
def test_memory_scales_what_the_presets_of_nnunet_fit(
    preset: str, memory_gb: float, volumes: float, slices: float, fitting_slices: int, share: float
) -> None:
    """In one and a half times the memory of each: the table of the method's section 3.1."""
    rules = find_preset(preset)[1]
    flat, deep = (memory_budget(rules, 1.5 * memory_gb, dimensions=dimensions) for dimensions in (2, 3))
    assert (deep.feature_maps, deep.batch, deep.fitting_images) == (1.5 * volumes, 2, 2)
    assert (flat.feature_maps, flat.batch, flat.fitting_images) == (1.5 * slices, 12, fitting_slices)
    assert rules.batch_share == share


def test_batch_dice_follows_the_stage() -> None:
    assert decide_batch_dice(2, is_full_resolution=False, has_low_resolution=False).value
    assert decide_batch_dice(3, is_full_resolution=True, has_low_resolution=True).value
    assert not decide_batch_dice(3, is_full_resolution=True, has_low_resolution=False).value
    assert not decide_batch_dice(3, is_full_resolution=False, has_low_resolution=True).value


def test_a_stage_that_was_left_out_does_not_make_patches_large() -> None:
    # a low resolution may be left out as too similar, while patches see less than a quarter of the case
    reason = decide_batch_dice(3, is_full_resolution=True, has_low_resolution=False).reason
    assert "cover" not in reason
    low = decide_batch_dice(3, is_full_resolution=False, has_low_resolution=True).reason
    assert "at least a quarter" in low


@pytest.mark.parametrize(
    ("shape", "spacing", "told", "untold"),
    [
        ((1, 200, 200), (0.5, 1, 1), "200 voxels is a single slice along axis 0, so this axis goes first although 0.5 mm", "counts"),
        ((3, 1, 200), (2, 5, 1), "a single slice along axis 1, so this axis goes first; 2D", "although"),
    ],
)  # fmt: skip
def test_a_single_slice_is_told_as_it_is(
    shape: tuple[int, ...], spacing: tuple[float, ...], told: str, untold: str
) -> None:
    axis = 1 if shape[1] == 1 else 0
    reason = put_single_slice_first(axis, SourceShape(shape), SourceSpacing(spacing)).reason  # type: ignore[arg-type]
    assert told in reason
    assert untold not in reason


def test_loss_and_supervision_of_the_families() -> None:
    assert decide_loss(has_regions=False, batch_dice=True).value.voxel == "cross_entropy"
    assert "binary" in decide_loss(has_regions=True, batch_dice=True).reason
    own = TOPOLOGIES.get("vnet").decide_loss
    assert own is not None
    assert (own(False).value.region, own(False).value.voxel) == ("squared_dice", None)
    assert decide_deep_supervision(TOPOLOGIES.get("residual_unet"), 3, strict_reference=False).value
    assert not decide_deep_supervision(TOPOLOGIES.get("unet"), 2, strict_reference=False).value
    assert decide_deep_supervision(TOPOLOGIES.get("unet"), 2, strict_reference=True).value
    assert not decide_deep_supervision(TOPOLOGIES.get("vnet"), 6, strict_reference=True).value


def class_size(name: str, share: float, *, components: float = 1.0, num_cases: int = 9) -> ClassSize:
    return ClassSize(
        name=name, num_cases=num_cases, median_volume_ml=1.0, median_share=share, median_components=components
    )


def test_the_smallest_class_is_measured_in_the_patch_that_shows_it() -> None:
    sizes = [class_size("organ", 0.1), class_size("bleed", 1e-6), class_size("absent", 0.0, num_cases=0)]
    rarity = find_rarity(sizes, case_voxels=4e6, patch_voxels=1_000_000)
    assert rarity is not None
    assert (rarity.name, rarity.voxels) == ("bleed", pytest.approx(4.0))
    scattered = find_rarity([class_size("bleed", 1e-6, components=2)], case_voxels=4e6, patch_voxels=1_000_000)
    assert scattered is not None
    assert scattered.voxels == pytest.approx(2 + 2 / 4)
    assert find_rarity([], case_voxels=4e6, patch_voxels=1_000_000) is None


@given(st.floats(1e-7, 1), st.floats(1, 1000), st.integers(1000, 10**7), st.floats(1, 1e3))
def test_only_a_very_rare_class_changes_the_loss(share: float, pieces: float, patch: int, ratio: float) -> None:
    """A class with more than a hundred thousandth of a case has at least as much of any patch that shows it."""
    rarity = find_rarity([class_size("x", share, components=pieces)], case_voxels=patch * ratio, patch_voxels=patch)
    decided = decide_loss(has_regions=False, batch_dice=True, rarity=rarity)
    if share > 1.001 * RARE_SHARE:
        assert decided == decide_loss(has_regions=False, batch_dice=True)
    if share * ratio < 0.999 * RARE_SHARE:
        assert decided.value == Loss(voxel="top_k", batch_dice=True)
        assert decided.rule == "loss.rare_class"


def evidence(ct: int, other: int = 0, unclear: int = 0, told: int = 0) -> CtEvidence:
    return CtEvidence(num_ct=ct, num_other=other, num_unclear=unclear, num_other_told=told)


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("image", evidence(3), ("ct", True)),
        ("channel_0", evidence(3, unclear=3), ("ct", True)),
        ("0", evidence(2, unclear=3), ("zscore", False)),
        ("image", evidence(0, other=4), ("zscore", False)),
        ("image", None, ("zscore", False)),
        ("abdomen CT", evidence(4), ("ct", True)),
        ("T1", evidence(4), ("zscore", False)),
        ("MRI", evidence(4, other=4), ("zscore", False)),
        ("direct", evidence(4), ("zscore", False)),
        ("CT", evidence(0, other=4), ("ct", False)),
        ("CT", evidence(4), ("ct", False)),
        ("CT or MR", evidence(9, other=1), ("ct_or_zscore", True)),
        ("CT or MR", evidence(0, other=1), ("zscore", False)),
        ("noNorm", evidence(4), ("none", False)),
        ("CT", evidence(99, other=1, told=1), ("ct_or_zscore", True)),
        ("CT", evidence(0, other=2, told=2), ("zscore", True)),
        ("CT", evidence(0, other=2, told=1), ("ct", False)),
        ("image", evidence(0, other=2, told=2), ("zscore", False)),
        ("image", evidence(0, other=2, unclear=2, told=2), ("zscore", False)),
    ],
)
def test_intensities_decide_where_a_name_does_not(
    name: str, found: CtEvidence | None, expected: tuple[str, bool]
) -> None:
    assert normalization_scheme(name, found) == expected


@pytest.mark.parametrize("name", ["CT", "image"])
def test_a_few_faulty_images_do_not_make_a_mixed_channel(name: str) -> None:
    few = round(100 * MIXED_SHARE) - 1
    assert normalization_scheme(name, evidence(100 - few, other=few))[0] == "ct"
    assert normalization_scheme(name, evidence(99 - few, other=few + 1))[0] == "ct_or_zscore"


def test_evidence_is_told_with_its_numbers_and_is_no_reason_without() -> None:
    decided = decide_normalization(("image", "T1"), 0.5, [evidence(3), evidence(0, other=3)])
    assert decided.rule == "intensity.by_content"
    assert [(entry.scheme, entry.use_mask) for entry in decided.value] == [("ct", False), ("zscore", True)]
    assert "by channel name: 'T1' is z-scored" in decided.reason
    assert "3 of 3 cases are CT" in decided.reason
    by_name = decide_normalization(("CT",), 0.5, [evidence(3)])
    assert by_name == decide_normalization(("CT",), 0.5)
