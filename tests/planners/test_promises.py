"""What a plan says that more memory would change is what a plan for more memory does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from planners import Fingerprint, Plan, PlanningError, plan_dataset, read_nnunet_dataset

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "plans"
PROMISE = re.compile(r"with ([\d.]+) GB (the|a) patch (?:would be|of) ([\dx ]+) voxels")


def promises(plan: Plan) -> list[tuple[str, float, bool, tuple[int, ...]]]:
    """(configuration, GB, whether its voxels stay as they are, patch) of every such sentence."""
    found = []
    for decision in plan.decisions:
        match = PROMISE.search(decision.change or "")
        if match and decision.configuration:
            patch = tuple(int(size) for size in match[3].split(" x "))
            found.append((decision.configuration, float(match[1]), match[2] == "the", patch))
    return found


def change_of(plan: Plan, rule: str, configuration: str) -> str:
    """What would change a decision."""
    return next(d.change or "" for d in plan.decisions if (d.rule, d.configuration) == (rule, configuration))


@pytest.mark.parametrize("preset", ["default", "resenc_m", "vnet"])
@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("[0-9]*")), ids=lambda folder: folder.name)
def test_plans_for_more_memory_are_as_told(folder: Path, preset: Any) -> None:
    fingerprint = read_nnunet_dataset(
        (folder / "fingerprint.json").read_bytes(), (folder / "dataset.json").read_bytes()
    ).fingerprint
    for memory_gb in (None, 5.0, 16.0):
        plan = plan_dataset(fingerprint, preset=preset, memory_gb=memory_gb)
        for name, more_gb, same_voxels, patch in promises(plan):
            assert same_voxels == (plan.configuration(name).next_stage is None)
            if same_voxels:
                larger = plan_dataset(fingerprint, preset=preset, memory_gb=more_gb)
                names = [configuration.name for configuration in larger.configurations]
                assert name in names or plan.configuration(name).previous_stage is not None
                assert name not in names or larger.configuration(name).patch_shape == patch


def test_a_cascade_that_more_memory_makes_needless_is_promised_nothing(
    fingerprint_of: Callable[..., Fingerprint],
) -> None:
    fingerprint = fingerprint_of([(120, 400, 400)] * 20, [(1, 0.8, 0.8)] * 20)
    change = change_of(plan_dataset(fingerprint), "patch.shape", "3d_cascade_fullres")
    assert "with 12 GB" in change
    assert change.endswith(", if a cascade were still needed")
    assert "3d_cascade_fullres" not in [c.name for c in plan_dataset(fingerprint, memory_gb=12.0).configurations]
    whole = plan_dataset(fingerprint_of([(60, 900, 900)] * 20, [(1, 0.8, 0.8)] * 20), memory_gb=24.0)
    assert "might be finer" in change_of(whole, "patch.shape", "3d_lowres")


@pytest.mark.parametrize(
    ("shape", "cases", "told"),
    [
        ((128, 128, 128), 1000, "more memory would allow more patches"),
        ((128, 128, 128), 1, "more memory and more training cases together would allow more patches"),
        ((200, 200, 200), 1000, "more memory would first allow larger patches, then more of them"),
        ((40, 40, 40), 10, "more training cases would allow more patches"),
    ],
)
def test_what_would_allow_more_patches_is_true(
    fingerprint_of: Callable[..., Fingerprint], shape: tuple[int, int, int], cases: int, told: str
) -> None:
    plan = plan_dataset(fingerprint_of([shape] * cases, [(1, 1, 1)] * cases))
    assert change_of(plan, "batch.size", "3d_fullres") == told
    if "larger patches" not in told:
        assert "not more memory" in change_of(plan, "patch.shape", "3d_fullres")


def test_no_more_memory_is_advised_where_it_plays_no_part(fingerprint_of: Callable[..., Fingerprint]) -> None:
    with pytest.raises(PlanningError, match="0 x 465 x 402") as caught:
        plan_dataset(fingerprint_of([(5, 465, 402)], [(20_000, 0.5, 0.5)]), strict_reference=True)
    assert "memory" not in str(caught.value)
    with pytest.raises(PlanningError, match="or for more --memory"):
        plan_dataset(fingerprint_of([(28, 11, 188)], [(1.26, 0.33, 1.03)]), memory_gb=0.001, strict_reference=True)


def test_there_are_promises_to_keep() -> None:
    told = [
        promise
        for folder in sorted(GOLDEN.glob("[0-9]*"))
        for promise in promises(
            plan_dataset(
                read_nnunet_dataset(
                    (folder / "fingerprint.json").read_bytes(), (folder / "dataset.json").read_bytes()
                ).fingerprint
            )
        )
    ]
    assert len(told) >= 4
    assert any(not same for _, _, same, _ in told)
