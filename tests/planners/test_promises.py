"""What a plan says that more memory would change is what a plan for more memory does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from planners import Plan, plan_dataset, read_nnunet_dataset

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
                assert larger.configuration(name).patch_shape == patch


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
