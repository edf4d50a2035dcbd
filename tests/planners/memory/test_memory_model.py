"""The memory model: its monotonies, its parts, disk and case sizes by hand, and a table of what it has told so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.training.losses import SLAB_VALUES
from planners import (
    CaseSize,
    Fingerprint,
    Plan,
    estimate_configuration_memory,
    estimate_disk,
    estimate_volume_memory,
    plan_dataset,
)
from planners.memory import Pile, coefficients_for, inference_pile, network_layers, training_pile
from planners.topology import Layer, preset_names

MakeFingerprint = Callable[..., Fingerprint]
GOLDEN = Path(__file__).parents[2] / "golden" / "memory.json"


@pytest.fixture(scope="session")
def plans(fingerprint_of: MakeFingerprint) -> dict[str, Plan]:
    fingerprint = fingerprint_of([(60, 120, 120)] * 30, [(2.0, 1.0, 1.0)] * 30, num_classes=3)
    return {preset: plan_dataset(fingerprint, preset=preset) for preset in preset_names()}


@settings(max_examples=40, deadline=None)
@given(preset=st.sampled_from(sorted(preset_names())), batch=st.integers(1, 64), data=st.data())
def test_larger_batches_take_more(plans: dict[str, Plan], preset: str, batch: int, data: Any) -> None:
    """Twice the batch: one image more may make blocks so large that they leave no gaps any more."""
    plan = plans[preset]
    name = data.draw(st.sampled_from([configuration.name for configuration in plan.configurations]))
    dtype = data.draw(st.sampled_from(["float32", "bfloat16"]))
    less, more = (
        estimate_configuration_memory(plan.configuration(name), dtype=dtype, batch_size=n) for n in (batch, 2 * batch)
    )
    assert less.training_bytes <= more.training_bytes
    assert less.inference_bytes <= more.inference_bytes


def test_half_precision_halves_what_waits(plans: dict[str, Plan]) -> None:
    full, half = (
        estimate_configuration_memory(plans["default"].configuration("3d_fullres"), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )  # type: ignore[arg-type]
    assert full.activations_bytes == 2 * half.activations_bytes
    assert full.loss_bytes == half.loss_bytes


def test_adamw_keeps_one_more_value_for_each_parameter(plans: dict[str, Plan]) -> None:
    sgd, adamw = (
        estimate_configuration_memory(plans["resenc_m"].configuration("3d_fullres"), optimiser=name)
        for name in ("sgd", "adamw")
    )  # type: ignore[arg-type]
    assert adamw.training_bytes - sgd.training_bytes == 4 * sgd.num_parameters


@pytest.mark.parametrize("preset", sorted(preset_names()))
def test_keeping_what_is_freed_takes_more_but_not_without_bounds(plans: dict[str, Plan], preset: str) -> None:
    for configuration in plans[preset].configurations:
        plain, kept = (estimate_configuration_memory(configuration, keeps_freed=keeps) for keeps in (False, True))
        assert plain.training_bytes <= kept.training_bytes <= 1.6 * plain.training_bytes
        # of small patches little is freed in between, and the two models differ by a few percent
        assert 0.95 * plain.inference_bytes <= kept.inference_bytes <= 1.6 * plain.inference_bytes


def test_training_takes_at_least_what_must_exist_at_once(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        for configuration in plan.configurations:
            estimate = estimate_configuration_memory(configuration)
            assert (
                estimate.training_bytes > estimate.weights_bytes + estimate.optimiser_bytes + estimate.activations_bytes
            )
            assert estimate.inference_bytes < estimate.training_bytes


def test_what_waits_in_a_plain_network_by_hand(fingerprint_of: MakeFingerprint) -> None:
    plan = plan_dataset(fingerprint_of([(9, 9, 9)], [(1, 1, 1)]))
    network = plan.configuration("3d_fullres").network
    assert network.strides == ((1, 1, 1), (2, 2, 2))
    layers = network_layers(network, (10, 10, 10))
    # four encoder blocks, one doubling, two decoder blocks, one head
    assert [layer.convolved for layer in layers] == [32_000, 32_000, 8_000, 8_000, 0, 32_000, 32_000, 0]
    assert [layer.joined for layer in layers] == [0, 0, 0, 0, 64_000, 0, 0, 0]
    assert layers[0].parameters == 27 * 32 + 3 * 32
    assert layers[4].parameters == 8 * 64 * 32 + 32


def test_unknown_configurations_are_named(plans: dict[str, Plan]) -> None:
    with pytest.raises(KeyError, match="it has: 2d, 3d_fullres"):
        estimate_configuration_memory(plans["default"].configuration("4d"))


def test_disk_holds_images_and_labels_of_each_stored_configuration(fingerprint_of: MakeFingerprint) -> None:
    fingerprint = fingerprint_of([(100, 100, 100)] * 4, [(1, 1, 1)] * 4, channels=("a", "b"), num_training_cases=8)
    disk = estimate_disk(plan_dataset(fingerprint), fingerprint)
    # eight cases: 95 % of two float32 channels, 5 % of a 16-bit label map
    assert disk == dict.fromkeys(("2d", "3d_fullres"), int(8 * 1_000_000 * (0.95 * 2 * 4 + 0.05 * 2)))


def test_disk_follows_the_axes_of_the_plan(fingerprint_of: MakeFingerprint) -> None:
    """Slices of 5 mm, axial or sagittal; turned the wrong way they would be resampled to other sizes."""
    axial = CaseSize(case_id="a", shape=(24, 200, 180), spacing_mm=(5.0, 0.8, 0.8), file_axes=(0, 1, 2))
    sagittal = CaseSize(case_id="s", shape=(200, 180, 24), spacing_mm=(0.8, 0.8, 5.0), file_axes=(1, 2, 0))
    made = fingerprint_of([(24, 200, 180)] * 2, [(5.0, 0.8, 0.8)] * 2)
    for cases, axes in (((axial, sagittal), "acquisition"), ((sagittal, sagittal), "anatomical")):
        named = tuple(each.model_copy(update={"case_id": f"c{i}"}) for i, each in enumerate(cases))
        fingerprint = made.model_copy(update={"cases": named})
        plan = plan_dataset(fingerprint)
        assert plan.source_axes == axes
        assert estimate_disk(plan, fingerprint)["3d_fullres"] == int(2 * 24 * 200 * 180 * (0.95 * 4 + 0.05 * 2))


def test_prediction_holds_images_and_logits_of_the_case(plans: dict[str, Plan]) -> None:
    # four logits twice, the image three times, one map of weights, four bytes each
    assert estimate_volume_memory(plans["default"].configuration("3d_fullres"), 1000) == 4 * 1000 * (4 * 2 + 3 + 1)


FORMATS: tuple[tuple[Any, Any], ...] = (
    ("float32", "cpu"),
    ("bfloat16", "cpu"),
    ("float32", "cuda"),
    ("bfloat16", "cuda"),
)


ANOTHER_WAY: dict[str, Any] = {"optimiser": "adamw", "window_batch_size": 2, "keeps_freed": True}


def told(plans: dict[str, Plan]) -> dict[str, Any]:
    """Estimates, and the networks' layers summed up by kind of value, of small plans of three families."""
    estimates, sums = {}, {}
    for preset, name in product(("default", "resenc_m", "vnet"), ("2d", "3d_fullres")):
        chosen = plans[preset].configuration(name).model_copy(update={"batch_size": 3})
        network = chosen.network.model_copy(update={"num_inputs": 2})
        layers = network_layers(network, chosen.patch_shape)
        counts = [
            sum(getattr(layer, kind) for layer in layers) for kind in Layer.__dataclass_fields__ if kind != "name"
        ]
        sums[f"{preset} {name}"] = [len(layers), *counts]
        for (dtype, device), keeps in product(FORMATS, (False, True)):
            estimate = estimate_configuration_memory(
                chosen,
                dtype=dtype,
                device=device,
                network=network,
                **(ANOTHER_WAY if keeps else {}),
            )
            estimates[f"{preset} {name} {dtype} {device}{' keeps' * keeps}"] = list(astuple(estimate))
    return {"estimates": estimates, "layers": sums}


def test_estimates_are_those_of_earlier_versions(plans: dict[str, Plan]) -> None:
    """Plans fit into the same memory in later versions, too; see tests/golden/PROVENANCE.md."""
    assert told(plans) == json.loads(GOLDEN.read_text())


def layer(**values: Any) -> Layer:
    """A layer of one image with these values and nothing else."""
    return Layer(**{"name": "x", "parameters": 0, "inputs": 0, "outputs": 0, **values})


ALL_SMALL = replace(
    coefficients_for("bfloat16", "cpu"), returned_from=1e12, convolved=4, normed=4, activated=6, gradient=4, input_copies=2,
    output_copies=2,
)  # fmt: skip
"""Of a convolution's input and output two copies, four bytes of gradient, two of cast and six of scratch a weight."""


@pytest.mark.parametrize(
    ("layers", "most"),
    [
        ([layer(convolved=10)], 2 * 10 * 4),
        ([layer(normed=10)], 2 * 10 * 4),
        ([layer(activated=10)], 2 * 10 * 6),
        ([layer(joined=10)], 2 * 10 * 2),
        # backward the gradient of the outputs and of what is normed exist at once, a gradient of the way round once
        ([layer(outputs=10)], 2 * 2 * 10 * 4),
        ([layer(beside=10)], 2 * 10 * 4),
        ([layer(outputs=10, beside=10)], 2 * (2 * 10 + 10) * 4),
        ([layer(inputs=10)], 2 * 2 * 10 * 4),
        ([layer(inputs=10, outputs=10, beside=10)], 2 * (2 * 10 + 10 + 10) * 4),
        # scratch and gradient cast while the cast copy has just gone; casts of earlier layers wait, gradients of later ones
        ([layer(parameters=10)], 10 * (6 + 2)),
        ([layer(parameters=10), layer(parameters=30)], 30 * (6 + 2) + 10 * 2),
        ([layer(parameters=20), layer(parameters=10)], 20 * (6 + 2) + 10 * 4),
        # the last step's gradients exist until the loss is computed, when all casts wait
        ([layer(parameters=10), layer(parameters=10)], 2 * 10 * (2 + 4)),
        # the joined gradient waits until the encoder's layer has run
        ([layer(outputs=30), layer(is_skip=True), layer(joined=10, takes_skip=True)], 2 * 2 * 30 * 4),
        ([layer(outputs=30, is_skip=True), layer(joined=10, takes_skip=True)], 2 * 10 * 4 + 2 * 2 * 30 * 4),
        (
            [layer(outputs=30, is_skip=True), layer(is_skip=True), *[layer(joined=10, takes_skip=True)] * 2],
            2 * 10 * 4 + 2 * 2 * 30 * 4,
        ),
    ],
)
def test_a_step_takes_by_hand(layers: list[Layer], most: int) -> None:
    """A batch of two images, bytes that exist at once."""
    assert training_pile(layers, 2, [0], ALL_SMALL).most(1.0) == most


def test_convolutions_that_copy_much_are_told_by_their_forward_pass() -> None:
    pile = training_pile([layer(outputs=10)], 2, [0], replace(ALL_SMALL, output_copies=5))
    assert pile.most(1.0) == 2 * (5 - 1) * 10 * 4


def test_the_loss_keeps_copies_of_the_largest_head_and_gradients_of_the_others() -> None:
    assert training_pile([], 2, [30, 10, 5], ALL_SMALL).most(1.0) == 2 * 4 * (6 * 30 + 10 + 5)


ON_GPU = coefficients_for("bfloat16", "cuda")


@pytest.mark.parametrize(
    ("layers", "most"),
    [
        # what is computed again does not wait
        ([layer(activated=30, again=10)], 2 * (30 - 10) * 2),
        # of a norm's gradients one exists beside what waits, and of a convolution's one of its output and one of its input
        ([layer(outputs=10)], 2 * 10 * 2),
        ([layer(inputs=10, outputs=10)], 2 * 2 * 10 * 2),
        # the last step's gradients are gone before the loss
        ([layer(parameters=10), layer(parameters=10)], 10 * (2 + 2 + 4) + 10 * 2 - 10 * 2),
    ],
)
def test_a_step_on_a_gpu_takes_by_hand(layers: list[Layer], most: int) -> None:
    assert training_pile(layers, 2, [0], ON_GPU).most(1.0) == most


def test_large_logits_are_copied_in_slabs_on_a_gpu_only() -> None:
    at_once = int(ON_GPU.logits_at_once)
    assert training_pile([], 1, [at_once], ON_GPU).most(1.0) == 6 * 4 * at_once
    # beside a slab, logits and their gradient wait in two bytes each
    assert training_pile([], 1, [2 * at_once], ON_GPU).most(1.0) == 6 * 4 * at_once + 2 * 2 * 2 * at_once
    assert training_pile([], 1, [2 * at_once], ALL_SMALL).most(1.0) == 6 * 4 * 2 * at_once


def test_slabs_are_those_of_the_loss() -> None:
    assert ON_GPU.logits_at_once == SLAB_VALUES


@pytest.mark.parametrize(
    ("layers", "copies", "most"),
    [
        ([layer(inputs=10, outputs=20)], 2, 2 * 4 * (10 + 2 * 20)),
        ([layer(inputs=10, outputs=20)], 1, 2 * 4 * (10 + 2 * 20)),  # a norm writes beside what it reads
        ([layer(inputs=10, outputs=20)], 3, 2 * 4 * (10 + 3 * 20)),
        ([layer(parameters=10), layer(parameters=20)], 2, (10 + 20) * 2),
        ([layer(activated=10, is_skip=True), layer(joined=10, takes_skip=True)], 2, 2 * 10 * (6 + 2)),
        ([layer(activated=10, is_skip=True), layer(inputs=10)], 2, 2 * 10 * (6 + 4)),
        ([layer(activated=10, is_skip=True), layer(takes_skip=True), layer(inputs=30)], 2, 2 * 30 * 4),
    ],
)
def test_windows_take_by_hand(layers: list[Layer], copies: float, most: int) -> None:
    """Two windows: nothing waits but skips and casts of weights."""
    assert inference_pile(layers, 2, 0, replace(ALL_SMALL, output_copies=copies)).most(1.0) == most


def test_logits_of_windows_exist_four_times_or_once_beside_the_network() -> None:
    assert inference_pile([layer(inputs=10)], 2, 10, ALL_SMALL).most(1.0) == 4 * 2 * 10 * 4
    assert inference_pile([layer(inputs=100)], 2, 10, ALL_SMALL).most(1.0) == 2 * 10 * 4 + 2 * 100 * 4


def test_large_blocks_go_back_at_once_and_gaps_are_left_by_small_ones_only() -> None:
    pile = Pile(returned_from=100)
    assert pile.most(1.5) == 0
    pile.touch((100, 2))
    pile.touch((99, 1), (50, 1))
    pile.add([(10, 1)])
    assert pile.most(1.5) == 200 + 1.5 * 149
    assert (pile.large, pile.small) == (0, 10)


def test_a_processor_gives_blocks_of_32_mib_back() -> None:
    returned_from = coefficients_for("float32", "cpu").returned_from
    for size, large in ((32 * 1024**2, True), (32 * 1024**2 - 1, False)):
        pile = Pile(returned_from=returned_from)
        pile.add([(size, 1)])
        assert (pile.large > 0) is large
