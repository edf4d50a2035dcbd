"""Our scores of challenges are those that the challenges' own code gave for the same label maps.

`benchmarks/metric_agreement.py` asked it, and kept label maps, answers and versions in ``tests/golden/challenge_metrics``.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "challenge_metrics"
ANSWERS: dict[str, Any] = json.loads((GOLDEN / "answers.json").read_text())["answers"]
LESIONS = {"lesion_dice", "lesion_hausdorff95_mm", "counts"}
BRATS_2023 = LESIONS | {"dice", "hausdorff95_mm"}
BRATS_2025 = LESIONS | {"lesion_f1", "dice"}
ASKED = {
    "kits23": {"dice", "surface_dice"},
    "flare23": {"dice", "surface_dice"},
    "brats2023-gli": BRATS_2023,
    "brats2023-men": BRATS_2023,
    "brats2023-met": BRATS_2023,
    "brats2025-goat": BRATS_2025,
    "brats2025-gli": BRATS_2025,
    "brats2025-ped": BRATS_2025,
    "brats2025-men-rt": BRATS_2025,
    "brats2025-met": {"lesion_dice", "lesion_hausdorff95_mm", "lesion_f1"},
    "brats2024-gli": LESIONS,
    "brats2024-men-rt": LESIONS,
    "brats2024-met": LESIONS,
    "brats2024-ped": LESIONS,
    "brats2024-ssa": LESIONS,
    "topcow24": {"dice", "absolute_lesion_count_error", "contour_hausdorff95_mm", "centreline_dice"},
    "toothfairy2": {"dice", "border_hausdorff95_voxels"},
    "crossmoda22": {"dice", "assd_mm"},
}
"""Metrics that were compared."""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metric_agreement", ROOT / "benchmarks" / "metric_agreement.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_asked_challenge_is_compared() -> None:
    assert ANSWERS.keys() == ASKED.keys()


@pytest.mark.parametrize("name", ASKED)
def test_scores_are_those_of_the_challenges_own_code(name: str, bench: ModuleType, tmp_path: Path) -> None:
    place = bench.lay_out(GOLDEN, bench.FOLDERS[name], tmp_path)

    largest, _ = bench.differences(name, ANSWERS[name], place)

    assert largest.keys() == ASKED[name]
    assert max(largest.values()) <= bench.limit_of(name)
