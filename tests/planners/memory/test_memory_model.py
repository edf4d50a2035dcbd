"""The memory model: its monotonies, its parts, and disk and case sizes by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners import (
    Fingerprint,
    Plan,
    estimate_configuration_memory,
    estimate_disk,
    estimate_volume_memory,
    plan_dataset,
)
from planners.memory import network_layers
from planners.topology import preset_names

MakeFingerprint = Callable[..., Fingerprint]


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
        assert plain.inference_bytes <= kept.inference_bytes <= 1.6 * plain.inference_bytes


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
    plan = plan_dataset(fingerprint)
    disk = estimate_disk(plan, fingerprint)
    assert set(disk) == {"2d", "3d_fullres"}
    raw = 8 * 1_000_000 * (2 * 4 + 2)
    assert 0.5 * raw < disk["3d_fullres"] <= raw


def test_prediction_holds_images_and_logits_of_the_case(plans: dict[str, Plan]) -> None:
    # four logits twice, the image three times, one map of weights, four bytes each
    assert estimate_volume_memory(plans["default"].configuration("3d_fullres"), 1000) == 4 * 1000 * (4 * 2 + 3 + 1)
