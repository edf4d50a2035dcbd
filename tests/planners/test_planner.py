"""Whole plans: the worked examples of the method, properties, departures and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planners import (
    CaseSize,
    ClassSize,
    Configuration,
    CtEvidence,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    PlanningError,
    configuration_names,
    explain,
    method_configurations,
    plan_dataset,
    preferred_configurations,
    read_document,
    why_untrainable,
    write_document,
)
from planners.fingerprint import MEMORY_GB, MOST_CASES, MOST_VOXELS
from planners.registry import TOPOLOGIES
from planners.rules.patch import decide_smaller_patch
from planners.rules.topology import Pyramid
from planners.topology import preset_names

STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=2.0, percentile_00_5=0.0, percentile_99_5=2.0
)
PRIMES = [13, 17, 19, 23, 37, 61, 101, 151, 211, 307, 401, 503]


SIZES = st.integers(1, 700)
SPACINGS = st.floats(0.05, 12.0)


@st.composite
def fingerprints(
    draw: st.DrawFn, *, sizes: st.SearchStrategy[int] = SIZES, spacings: st.SearchStrategy[float] = SPACINGS
) -> Fingerprint:
    """Datasets of one to five cases around one size and spacing."""
    triple = st.tuples(sizes, sizes, sizes)
    spacing = st.tuples(spacings, spacings, spacings)
    common = draw(st.tuples(triple, spacing))
    cases = draw(st.lists(st.one_of(st.just(common), st.tuples(triple, spacing)), min_size=1, max_size=5))
    classes = draw(st.integers(1, 6))
    return Fingerprint(
        dataset_name="drawn",
        cases=tuple(
            CaseSize(case_id=f"case_{i}", shape=shape, spacing_mm=spacing_mm)
            for i, (shape, spacing_mm) in enumerate(cases)
        ),
        num_training_cases=draw(st.sampled_from([len(cases), 20, 1000])),
        channels=("CT",),
        labels=Labels(classes=tuple(LabelClass(name=f"class {i}", values=(i,)) for i in range(1, classes + 1))),
        intensities=(STATISTICS,),
        median_relative_size_after_cropping=draw(st.floats(0.1, 1.0)),
    )


presets = st.sampled_from(sorted(preset_names()))


def estimate_of(configuration: Configuration, label_entries: int) -> int:
    """Feature-map values of one image of a configuration."""
    network = configuration.network
    pyramid = Pyramid(
        patch=configuration.patch_shape,
        strides=network.strides,
        kernels=network.kernels,
        divisors=tuple(math.prod(column) for column in zip(*network.strides, strict=True)),
    )
    return TOPOLOGIES.get(network.family).feature_maps(pyramid, label_entries)


def without_prose(plan: Plan) -> Plan:
    return plan.model_copy(update={"decisions": ()})


def test_worked_example_a(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(36, 50, 35)] * 260, [(1, 1, 1)] * 260)
    plan = plan_dataset(fingerprint, strict_reference=True)
    volume, flat = plan.configuration("3d_fullres"), plan.configuration("2d")
    assert [configuration.name for configuration in plan.configurations] == ["2d", "3d_fullres"]
    assert (volume.patch_shape, volume.batch_size) == ((40, 56, 40), 9)
    assert volume.network.features == (32, 64, 128, 256)
    assert estimate_of(volume, 3) == 19_174_400
    assert (flat.patch_shape, flat.batch_size) == ((56, 40), 366)
    assert not volume.loss.batch_dice
    assert flat.loss.batch_dice


@pytest.mark.parametrize(
    ("preset", "volume_batch", "flat_batch"),
    [("resenc_m", 58, 1618), ("resenc_l", 178, 4554), ("resenc_xl", 183, 6711)],
)
def test_worked_example_a_with_residual_encoders(
    fingerprint_of: Callable[..., Fingerprint], preset: Any, volume_batch: int, flat_batch: int
) -> None:
    plan = plan_dataset(fingerprint_of([(36, 50, 35)] * 260, [(1, 1, 1)] * 260), preset=preset)
    assert plan.configuration("3d_fullres").batch_size == volume_batch
    assert plan.configuration("2d").batch_size == flat_batch


def test_worked_example_b(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(150, 512, 512)] * 100, [(2.5, 0.8, 0.8)] * 100, channels=("CT",))
    plan = plan_dataset(fingerprint, strict_reference=True)
    full, low, cascade = (plan.configuration(name) for name in ("3d_fullres", "3d_lowres", "3d_cascade_fullres"))
    assert (full.patch_shape, full.batch_size) == ((56, 192, 192), 2)
    assert full.network.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert full.network.kernels == ((1, 3, 3), *((3, 3, 3),) * 5)
    assert estimate_of(full, 3) == 555_028_992
    assert (low.patch_shape, low.median_shape) == ((80, 192, 160), (129, 275, 275))
    assert low.spacing_mm == pytest.approx((2.8982, 1.4882, 1.4882), abs=5e-5)  # four decimals are given
    assert (low.loss.batch_dice, full.loss.batch_dice, cascade.loss.batch_dice) == (False, True, True)
    assert (low.next_stage, cascade.previous_stage, cascade.data) == ("3d_cascade_fullres", "3d_lowres", "3d_fullres")
    assert cascade.network.num_inputs == 1 + 2


BESIDE = {"3d_fullres_residual_unet", "3d_fullres_vnet", "3d_fullres_small", "3d_coarse"}
"""Candidates of budgeted runs, which nnU-Net does not plan."""


@settings(max_examples=25, deadline=None)
@given(fingerprint=fingerprints(), preset=presets, seed=st.randoms())
def test_order_of_cases_changes_nothing(fingerprint: Fingerprint, preset: Any, seed: Any) -> None:
    shuffled = list(fingerprint.cases)
    seed.shuffle(shuffled)
    other = fingerprint.model_copy(update={"cases": tuple(shuffled)})
    assert plan_dataset(other, preset=preset) == plan_dataset(fingerprint, preset=preset)


@settings(max_examples=40, deadline=None)
@given(fingerprint=fingerprints(), preset=presets, power=st.integers(-3, 3))
def test_scaling_spacings_scales_spacings_only(fingerprint: Fingerprint, preset: Any, power: int) -> None:
    factor = 2.0**power
    scaled = fingerprint.model_copy(
        update={
            "cases": tuple(
                case.model_copy(update={"spacing_mm": tuple(mm * factor for mm in case.spacing_mm)})
                for case in fingerprint.cases
            )
        }
    )
    plain = plan_dataset(fingerprint, preset=preset)
    margin = any(
        abs(max(c.spacing_mm) - sorted(c.spacing_mm)[-2] - 1e-5) < 1e-9
        for c in plain.configurations
        if c.dimensions == 3
    )
    assume(not margin)  # the coarse axis is 1e-5 mm above the others, whatever the scale
    for made, original in zip(plan_dataset(scaled, preset=preset).configurations, plain.configurations, strict=True):
        expected = original.model_copy(update={"spacing_mm": tuple(mm * factor for mm in original.spacing_mm)})
        assert made == expected


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.permutations(PRIMES).map(lambda order: order[:3]),
    spacing=st.permutations([0.31, 0.5, 0.83, 1.07, 1.9, 3.1, 5.3]).map(lambda order: order[:3]),
    permutation=st.permutations([0, 1, 2]),
    preset=presets,
)
def test_permuting_axes_permutes_the_plan(
    fingerprint_of: Callable[..., Fingerprint],
    sizes: list[int],
    spacing: list[float],
    permutation: list[int],
    preset: Any,
) -> None:
    plain = plan_dataset(fingerprint_of([sizes], [spacing]), preset=preset)
    turned = plan_dataset(
        fingerprint_of([[sizes[i] for i in permutation]], [[spacing[i] for i in permutation]]), preset=preset
    )
    for a, b in zip(plain.configurations, turned.configurations, strict=True):
        # with prime sizes, ratios of patch and median can only be equal where two axes were never halved
        assume(all(math.prod(column) > 1 for column in zip(*a.network.strides, strict=True)))
        axes = [permutation.index(axis) for axis in plain.transpose_forward[3 - a.dimensions :]]
        order = [axes.index(axis) for axis in turned.transpose_forward[3 - a.dimensions :]]
        assert b.patch_shape == tuple(a.patch_shape[i] for i in order)
        assert b.spacing_mm == tuple(a.spacing_mm[i] for i in order)
        assert b.network.strides == tuple(tuple(stride[i] for i in order) for stride in a.network.strides)
        assert b.network.kernels == tuple(tuple(kernel[i] for i in order) for kernel in a.network.kernels)
        assert b.batch_size == a.batch_size


@settings(max_examples=40, deadline=None)
@given(fingerprint=fingerprints(), preset=presets, targets=st.tuples(st.floats(0.5, 90), st.floats(0.5, 90)))
def test_more_memory_never_gives_a_smaller_estimate(
    fingerprint: Fingerprint, preset: Any, targets: tuple[float, float]
) -> None:
    less, more = (
        {c.name: c for c in plan_dataset(fingerprint, preset=preset, memory_gb=gb).configurations}
        for gb in sorted(targets)
    )
    for name in ("2d", "3d_fullres"):
        if name in less:
            assert estimate_of(less[name], 3) <= estimate_of(more[name], 3)


@settings(max_examples=60, deadline=None)
@given(fingerprint=fingerprints(), preset=presets, memory_gb=st.sampled_from([None, 0.01, 1.0, 11.0, 80.0]))
def test_every_plan_can_be_trained_and_survives_writing(
    fingerprint: Fingerprint, preset: Any, memory_gb: float | None
) -> None:
    plan = plan_dataset(fingerprint, preset=preset, memory_gb=memory_gb)
    assert set(plan.names) <= set(configuration_names())
    for configuration in plan.configurations:
        divisors = [math.prod(column) for column in zip(*configuration.network.strides, strict=True)]
        assert all(size % divisor == 0 for size, divisor in zip(configuration.patch_shape, divisors, strict=True))
        assert why_untrainable(configuration) == ()
        assert len(configuration.network.features) >= 2
    assert read_document(Plan, write_document(plan), where="memory") == plan


@settings(max_examples=60, deadline=None)
@given(fingerprint=fingerprints(sizes=st.integers(1, 40)), preset=presets)
def test_departures_touch_only_what_cannot_be_trained(fingerprint: Fingerprint, preset: Any) -> None:
    mended = plan_dataset(fingerprint, preset=preset)
    assume(not any(decision.rule in ("axes.single_slice", "shape.at_least_one_voxel") for decision in mended.decisions))
    try:
        strict = plan_dataset(fingerprint, preset=preset, strict_reference=True)
    except PlanningError:
        return
    sound = {c.name for c in strict.configurations if not why_untrainable(c)}
    departed = {decision.configuration for decision in mended.decisions if decision.rule == "patch.trainable"}
    assert not sound & departed
    if all(c.name in sound for c in strict.configurations):
        assert [c for c in mended.configurations if c.name not in BESIDE] == list(strict.configurations)


@settings(max_examples=60, deadline=None)
@given(
    fingerprint=fingerprints(
        sizes=st.one_of(st.integers(1, 10), st.integers(1, 10**9)),
        spacings=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    ),
    preset=presets,
    strict=st.booleans(),
)
def test_any_positive_fingerprint_gives_a_plan_or_a_located_error(
    fingerprint: Fingerprint, preset: Any, strict: bool
) -> None:
    refusal = None
    try:
        plan_dataset(fingerprint, preset=preset, strict_reference=strict)
    except PlanningError as error:
        refusal = error
    if refusal is not None:
        assert refusal.issues
        assert all(issue.where and issue.message and issue.fix for issue in refusal.issues)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.sampled_from([1, 2, 3, 5, 7, 8, 11, 12, 40, 900, 5000])] * 3),
    spacing=st.tuples(*[st.sampled_from([0.001, 0.1, 0.33, 1.0, 1.03, 1.26, 7.0, 300.0])] * 3),
    classes=st.sampled_from([1, 100, 4000]),
    preset=presets,
)
def test_extreme_sizes_still_give_trainable_plans(
    fingerprint_of: Callable[..., Fingerprint], shape: Any, spacing: Any, classes: int, preset: Any
) -> None:
    plan = plan_dataset(fingerprint_of([shape], [spacing], num_classes=classes), preset=preset)
    assert all(why_untrainable(configuration) == () for configuration in plan.configurations)
    assert explain(plan).count("* Memory: ") == len(plan.configurations)


def test_a_single_slice_is_planned_in_2d_whatever_its_spacing(fingerprint_of: Callable[..., Fingerprint]) -> None:
    for thin, spacing in itertools.product(range(3), [(0.1, 1, 1), (1, 1, 1), (5, 0.2, 1), (1, 0.2, 9)]):
        shape = [300, 200, 250]
        shape[thin] = 1
        plan = plan_dataset(fingerprint_of([shape] * 3, [spacing] * 3))
        assert [configuration.name for configuration in plan.configurations] == ["2d"]
        assert plan.transpose_forward[0] == thin
        assert min(plan.configurations[0].patch_shape) >= 64


def test_slices_of_different_thickness_are_planned_as_the_reference_does(
    fingerprint_of: Callable[..., Fingerprint],
) -> None:
    # the tenth percentile of the thickness makes four voxels of the median slice: the schedule leaves 3D untrained
    thickness = [5.0] * 3 + [20.0] * 8
    fingerprint = fingerprint_of([(1, 200, 200)] * 11, [(mm, 1.0, 1.0) for mm in thickness])
    strict = plan_dataset(fingerprint, strict_reference=True)
    planned = plan_dataset(fingerprint).configurations
    assert tuple(each for each in planned if each.name not in BESIDE) == strict.configurations
    assert [c.name for c in strict.configurations] == ["2d", "3d_fullres"]
    assert [c.name for c in preferred_configurations(strict)] == ["2d"]
    assert [c.name for c in method_configurations(strict)] == ["2d"]


def test_strict_plans_keep_what_cannot_be_trained(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(7, 7, 7)] * 2, [(1, 1, 1)] * 2)
    strict = plan_dataset(fingerprint, strict_reference=True).configuration("3d_fullres")
    assert (strict.patch_shape, len(strict.network.features)) == ((7, 7, 7), 1)
    assert "one stage" in why_untrainable(strict)[0]
    mended = plan_dataset(fingerprint).configuration("3d_fullres")
    assert (mended.patch_shape, mended.deep_supervision) == ((8, 8, 8), False)


def test_a_short_finest_axis_does_not_stop_the_others(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(28, 11, 188)], [(1.26, 0.33, 1.03)])
    strict = plan_dataset(fingerprint, strict_reference=True).configuration("3d_fullres")
    assert len(strict.network.features) == 1
    mended = plan_dataset(fingerprint).configuration("3d_fullres")
    assert len(mended.network.features) >= 4
    assert mended.patch_shape[1] < 16


def test_two_stages_are_trained_without_deep_supervision(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(9, 9, 9)], [(1, 1, 1)])
    strict = plan_dataset(fingerprint, strict_reference=True).configuration("3d_fullres")
    mended = plan_dataset(fingerprint).configuration("3d_fullres")
    assert (len(strict.network.features), strict.deep_supervision) == (2, True)
    assert "two stages" in why_untrainable(strict)[0]
    assert mended == strict.model_copy(update={"deep_supervision": False})


def test_thousands_of_labels_end_in_the_smallest_patch(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(64, 64, 64)], [(1, 1, 1)], num_classes=5000)
    plan = plan_dataset(fingerprint, memory_gb=0.001)
    for name in ("2d", "3d_fullres"):
        patch = next(d for d in plan.decisions if d.rule == "patch.shape" and d.configuration == name)
        assert "exceed the" in patch.reason
        assert max(plan.configuration(name).patch_shape) == 8
    strict = plan_dataset(fingerprint, memory_gb=0.001, strict_reference=True)
    assert all(why_untrainable(configuration) for configuration in strict.configurations)


def test_a_smaller_device_caps_the_preset_and_a_larger_one_changes_nothing(
    fingerprint_of: Callable[..., Fingerprint],
) -> None:
    fingerprint = fingerprint_of([(200, 200, 200)], [(1, 1, 1)])
    own = plan_dataset(fingerprint)
    assert plan_dataset(fingerprint, device_memory_gb=80.0) == own
    capped = plan_dataset(fingerprint, device_memory_gb=4.0)
    assert without_prose(capped) == without_prose(plan_dataset(fingerprint, memory_gb=4.0))
    assert "the device has 4 GB" in capped.decisions[0].reason


@pytest.mark.parametrize(
    ("memory_gb", "told"),
    [
        *((4, "with 8 GB the"), (8, "with 12 GB the"), (12, "with 16 GB the"), (16, "with 24 GB the")),
        *((24, "with 32 GB the"), (32, "with 40 GB the"), (40, "with 48 GB the"), (48, "with 80 GB the")),
    ],
)
def test_the_next_larger_gpu_is_named_with_what_it_would_change(
    fingerprint_of: Callable[..., Fingerprint], memory_gb: float, told: str
) -> None:
    """Of cases larger than any patch."""
    plan = plan_dataset(fingerprint_of([(600, 600, 600)], [(1, 1, 1)]), memory_gb=memory_gb, strict_reference=True)
    changes = {d.configuration: d.change or "" for d in plan.decisions if d.rule == "patch.shape"}
    assert changes["3d_fullres"].startswith(told)


def test_intensities_are_those_of_the_cases_that_are_ct_where_some_are_not(
    fingerprint_of: Callable[..., Fingerprint],
) -> None:
    among_ct = STATISTICS.model_copy(update={"mean": 1.5})

    def planned(num_other: int, **options: Any) -> Plan:
        evidence = CtEvidence(num_ct=5, num_other=num_other, num_unclear=0, intensities=among_ct)
        made = fingerprint_of([(40, 50, 60)], [(1, 1, 1)], channels=("CT",), ct_evidence=(evidence,))
        return plan_dataset(made, **options)

    whole = planned(0).intensities
    assert whole != (among_ct,)
    assert planned(5).intensities == (among_ct,)
    assert planned(5, strict_reference=True).intensities == whole


def test_beyond_the_largest_common_gpu_only_more_memory_is_named(fingerprint_of: Callable[..., Fingerprint]) -> None:
    many = fingerprint_of([(600, 600, 600)], [(1, 1, 1)], num_classes=200)
    plan = plan_dataset(many, memory_gb=80, strict_reference=True)
    changes = {d.configuration: d.change for d in plan.decisions if d.rule == "patch.shape"}
    assert changes["3d_fullres"] == "more than 80 GB of memory would allow a larger patch"


def test_what_more_memory_would_change_depends_on_the_stage(fingerprint_of: Callable[..., Fingerprint]) -> None:
    plan = plan_dataset(fingerprint_of([(300, 512, 512)] * 5, [(0.8, 0.8, 0.8)] * 5))
    changes = {d.configuration: d.change or "" for d in plan.decisions if d.rule == "patch.shape"}
    assert changes["2d"] == "larger or finer images, but not more memory"
    assert changes["3d_fullres"].endswith(" voxels")
    assert changes["3d_cascade_fullres"].endswith("voxels, if a cascade were still needed")
    assert "or a finer spacing, or no cascade would be needed" in changes["3d_lowres"]


def test_left_and_right_are_never_mirrored(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(40, 200, 200)], [(5.0, 1.0, 1.0)], sided_axis=2)
    plan = plan_dataset(fingerprint)
    assert plan.configuration("3d_fullres").mirror_axes == (0, 1)
    assert plan.configuration("2d").mirror_axes == (0,)
    across = plan_dataset(fingerprint_of([(200, 200, 40)], [(1.0, 1.0, 5.0)], sided_axis=2))
    assert across.configuration("3d_fullres").mirror_axes == (1, 2)
    assert across.configuration("2d").mirror_axes == (0, 1)
    strict = plan_dataset(fingerprint, strict_reference=True)
    assert strict.configuration("3d_fullres").mirror_axes == (0, 1, 2)


def test_vnet_is_a_candidate_for_near_isotropic_volumes(fingerprint_of: Callable[..., Fingerprint]) -> None:
    near = plan_dataset(fingerprint_of([(100, 100, 100)], [(1.5, 1.0, 1.2)]))
    vnet = near.configuration("3d_fullres_vnet")
    assert (vnet.data, vnet.network.family, vnet.deep_supervision) == ("3d_fullres", "vnet", False)
    assert (vnet.loss.region, vnet.loss.voxel) == ("squared_dice", None)
    far = plan_dataset(fingerprint_of([(100, 100, 100)], [(1.51, 1.0, 1.2)]))
    assert [c.name for c in far.configurations if c.name != "3d_fullres_small"] == [
        "2d",
        "3d_fullres",
        "3d_fullres_residual_unet",
    ]


def test_vnet_preset_plans_every_configuration(fingerprint_of: Callable[..., Fingerprint]) -> None:
    plan = plan_dataset(fingerprint_of([(60, 400, 400)] * 9, [(4.0, 0.8, 0.8)] * 9), preset="vnet")
    assert {configuration.network.family for configuration in plan.configurations} == {"vnet"}
    assert {"2d", "3d_fullres"} <= {configuration.name for configuration in plan.configurations}


def test_a_requested_spacing_replaces_the_median(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(100, 120, 140)], [(1.0, 1.0, 1.0)])
    plan = plan_dataset(fingerprint, target_spacing_mm=(1.0, 2.5, 1.25))
    assert plan.transpose_forward == (1, 0, 2)
    assert plan.configuration("3d_fullres").spacing_mm == (2.5, 1.0, 1.25)
    assert plan.configuration("3d_fullres").median_shape == (48, 100, 112)


def test_a_spacing_coarser_than_the_case_keeps_one_voxel(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(4, 120, 140)], [(1.0, 1.0, 1.0)])
    plan = plan_dataset(fingerprint, target_spacing_mm=(10.0, 1.0, 1.0))
    assert [configuration.name for configuration in plan.configurations] == ["2d"]
    with pytest.raises(PlanningError, match="is empty"):
        plan_dataset(fingerprint, target_spacing_mm=(10.0, 1.0, 1.0), strict_reference=True)


def test_all_senseless_values_are_told_at_once(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(10, 10, 10), (10, 2_000_000, 10)], [(1, 1, 1e-9), (1, 1, 1)])
    with pytest.raises(PlanningError) as caught:
        plan_dataset(fingerprint, memory_gb=-1.0, target_spacing_mm=(1.0, float("nan"), 1.0))
    places = [issue.where for issue in caught.value.issues]
    assert places == ["cases.0.spacing_mm.2", "cases.1.shape.1", "memory_gb", "target_spacing_mm.1"]


@pytest.mark.parametrize("number", [10**10, 10**400], ids=["large", "no float"])
@pytest.mark.parametrize("field", ["num_training_cases", "label_entries"])
def test_counts_beyond_all_sense_are_told(fingerprint_of: Callable[..., Fingerprint], field: str, number: int) -> None:
    fingerprint = fingerprint_of([(40, 50, 60)], [(1, 1, 1)], **{field: number})
    with pytest.raises(PlanningError) as caught:
        plan_dataset(fingerprint)
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [("plan.count_too_large", field)]


@pytest.mark.parametrize("preset", ["default", "resenc", "vnet"])
@pytest.mark.parametrize("size", [8, MOST_VOXELS])
def test_the_largest_numbers_that_are_taken_give_plans_that_can_be_read(
    fingerprint_of: Callable[..., Fingerprint], preset: Any, size: int
) -> None:
    """Bounds of a plan lie beyond all that bounds of a fingerprint and of the memory allow."""
    for shape in ((size, size, size), (size, size, 1), (1, size, 1)):
        fingerprint = fingerprint_of([shape], [(1, 1, 1)], num_training_cases=MOST_CASES)
        for memory_gb in (None, MEMORY_GB[1]):
            plan = plan_dataset(fingerprint, preset=preset, memory_gb=memory_gb)
            assert read_document(Plan, write_document(plan), where="memory") == plan


def test_a_target_spacing_that_is_to_blame_is_named(fingerprint_of: Callable[..., Fingerprint]) -> None:
    fingerprint = fingerprint_of([(40, 50, 60)], [(1, 1, 1)])
    with pytest.raises(PlanningError) as caught:
        plan_dataset(fingerprint, target_spacing_mm=(1e-5, 1.0, 1.0))
    (issue,) = caught.value.issues
    assert (issue.code, issue.where) == ("plan.image_too_large", "target_spacing_mm")
    assert issue.message.startswith("resampled to 1e-05 x 1 x 1 mm, the median case has 4e+06 voxels")
    assert "--target-spacing" in issue.fix
    for drawn, wanted, where, fix in (
        (fingerprint, (1e-9, 1.0, 1.0), "target_spacing_mm.0", "give another --target-spacing"),
        (fingerprint_of([(40, 50, 60)], [(1e-9, 1, 1)]), None, "cases.0.spacing_mm.0", "check the image's spacing"),
    ):
        with pytest.raises(PlanningError) as caught:
            plan_dataset(drawn, target_spacing_mm=wanted)
        assert [(i.code, i.where, i.fix) for i in caught.value.issues] == [("plan.spacing_out_of_range", where, fix)]


@pytest.mark.parametrize(
    ("cases", "told"), [(40, "memory allows 20 and 5% of the dataset's voxels 2"), (20, "voxels 1;")]
)
def test_patches_of_a_batch_are_counted(fingerprint_of: Callable[..., Fingerprint], cases: int, told: str) -> None:
    plan = plan_dataset(fingerprint_of([(64, 64, 64)], [(1, 1, 1)], num_training_cases=cases))
    (reason,) = (d.reason for d in plan.decisions if (d.rule, d.configuration) == ("batch.size", "3d_fullres"))
    assert told in reason


def test_a_very_rare_class_chooses_the_loss_and_the_plan_says_why() -> None:
    def plan(share: float, **options: Any) -> Plan:
        names = ("organ", "bleed")
        return plan_dataset(
            Fingerprint(
                dataset_name="d",
                cases=tuple(
                    CaseSize(case_id=f"c{i}", shape=(160, 200, 180), spacing_mm=(1.0, 1.0, 1.0)) for i in range(20)
                ),
                num_training_cases=20,
                channels=("MRI",),
                labels=Labels(classes=tuple(LabelClass(name=name, values=(i,)) for i, name in enumerate(names, 1))),
                intensities=(STATISTICS,),
                median_relative_size_after_cropping=1.0,
                class_sizes=tuple(
                    ClassSize(name=name, num_cases=15, median_volume_ml=1.0, median_share=each, median_components=1.0)
                    for name, each in zip(names, (0.1, share), strict=True)
                ),
            ),
            **options,
        )

    rare, usual = plan(1e-6), plan(1e-3)
    assert {c.name: c.loss.voxel for c in rare.configurations} == {
        "2d": "cross_entropy",  # six voxels are much of a slice
        "3d_coarse": "top_k",
        "3d_fullres": "top_k",
        "3d_fullres_residual_unet": "top_k",
        "3d_fullres_small": "cross_entropy",  # an eighth of the voxels
        "3d_fullres_vnet": None,
    }
    assert usual.configuration("3d_fullres").loss.voxel == "cross_entropy"
    assert plan(1e-6, strict_reference=True).configurations == plan(1e-3, strict_reference=True).configurations
    text = " ".join(explain(rare).split())
    assert "Bleed fills about 5.8 of the" in text
    assert "loss.rare_class (3d_fullres)" in text
    assert "decision record 0116" in text


def little_time(plan: Plan) -> list[str]:
    return [c.name for c in plan.configurations if c.name in ("3d_fullres_small", "3d_coarse")]


def ball_of(width_mm: float, *, components: float = 1.0) -> ClassSize:
    """A class whose components are so wide."""
    volume_ml = math.pi / 6 * width_mm**3 / 1000 * components
    return ClassSize(name="a", num_cases=5, median_volume_ml=volume_ml, median_share=0.1, median_components=components)


@pytest.mark.parametrize(
    ("width_mm", "gain"),
    # twice the spacing along each axis is 8 times fewer voxels, 8 of which are 16 mm; 10.08 mm allow half of the voxels
    [(50.0, 8), (16.6, 8), (13.0, 4), (10.4, 2), (9.8, None), (1.0, None)],
)
def test_voxels_are_coarser_as_far_as_the_smallest_structure_allows(
    fingerprint_of: Callable[..., Fingerprint], width_mm: float, gain: float | None
) -> None:
    cubes = fingerprint_of([(160, 160, 160)] * 5, [(1.0, 1.0, 1.0)] * 5)
    sizes = (ball_of(100.0), ball_of(width_mm, components=7.0))
    plan = plan_dataset(cubes.model_copy(update={"class_sizes": sizes}))
    assert little_time(plan) == ["3d_fullres_small", *(["3d_coarse"] if gain else [])]
    if gain is not None:
        coarse = plan.configuration("3d_coarse")
        found = math.prod(coarse.spacing_mm)
        assert gain <= found * 1.1
        assert found < 8 * 1.1
        assert width_mm / found ** (1 / 3) >= 8
        assert coarse.data == "3d_coarse"
    assert little_time(plan_dataset(cubes)) == ["3d_fullres_small"]  # nothing is known of structures
    assert plan.configuration("3d_fullres_small").data == "3d_fullres"


def test_a_patch_is_smaller_only_where_that_saves_half_of_it(fingerprint_of: Callable[..., Fingerprint]) -> None:
    def planned(size: int, **options: Any) -> Plan:
        return plan_dataset(fingerprint_of([(size,) * 3] * 5, [(1.0, 1.0, 1.0)] * 5), **options)

    assert little_time(planned(64)) == []
    large = planned(160)
    full, small = (large.configuration(name).patch_shape for name in ("3d_fullres", "3d_fullres_small"))
    assert 4 < math.prod(full) / math.prod(small) < 12
    assert little_time(planned(160, strict_reference=True)) == []
    said = {d.rule: d for d in large.decisions if d.rule.startswith("candidates.")}
    assert said["candidates.small_patch"].value is True
    assert said["candidates.coarse"].value is False


@pytest.mark.parametrize(("smaller", "worth"), [((4, 4, 4), True), ((4, 4, 5), False)])
def test_half_of_the_voxels_must_be_saved(smaller: tuple[int, ...], worth: bool) -> None:
    assert decide_smaller_patch((4, 4, 8), smaller).value is worth
