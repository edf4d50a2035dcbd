"""Strict plans equal the reference planner's, for every fingerprint that comes with its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planners import (
    NnunetDataset,
    Plan,
    estimate_configuration_memory,
    nnunet_plans,
    plan_dataset,
    read_nnunet_dataset,
    read_nnunet_plans,
)
from planners.interop.nnunet_plans import PLANNERS

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "plans"
COMPARED = (
    "data_identifier",
    "batch_size",
    "patch_size",
    "median_image_size_in_voxels",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg_kwargs",
    "resampling_fn_probabilities_kwargs",
    "architecture",
    "batch_dice",
    "next_stage",
    "previous_stage",
    "inherits_from",
)


def _load(folder: Path) -> NnunetDataset:
    return read_nnunet_dataset((folder / "fingerprint.json").read_bytes(), (folder / "dataset.json").read_bytes())


def _planned(folder: Path, options: dict[str, Any]) -> Plan:
    preset = next(preset for preset, (planner, _) in PLANNERS.items() if planner == options["planner"])
    target = options["options"].get("gpu_memory_target_in_gb")
    return plan_dataset(_load(folder).fingerprint, preset=preset, memory_gb=target, strict_reference=True)


def _made(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    name, ending = options["options"].get("plans_name"), _load(folder).file_ending
    return nnunet_plans(_planned(folder, options), plans_name=name, file_ending=ending)


def assert_equal_plans(made: dict[str, Any], reference: dict[str, Any]) -> None:
    """Everything exactly, spacings to 1e-9: numpy may order the additions inside a percentile differently."""
    for key in reference.keys() - {"configurations", "dataset_name"}:
        assert (
            made[key] == pytest.approx(reference[key], rel=1e-9) if "spacing" in key else made[key] == reference[key]
        ), key
    assert list(made["configurations"]) == list(reference["configurations"])
    for name, expected in reference["configurations"].items():
        found = made["configurations"][name]
        assert {key: found.get(key) for key in COMPARED} == {key: expected.get(key) for key in COMPARED}, name
        assert found.get("spacing") == (pytest.approx(expected["spacing"], rel=1e-9) if "spacing" in expected else None)


def test_every_reference_plan_is_reproduced(real_data: Path) -> None:
    folders = sorted(folder for folder in (real_data.parent / "reference" / "plans").glob("*") if folder.is_dir())
    if not folders:
        pytest.skip("no reference plans beside the folder given with --real-data")
    for folder in folders:
        for name, options in json.loads((folder / "options.json").read_text()).items():
            assert_equal_plans(_made(folder, options), json.loads((folder / f"plans_{name}.json").read_text()))


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("[0-9]*")), ids=lambda folder: folder.name)
def test_golden_plans_are_reproduced(folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    for name in options:
        assert_equal_plans(_made(folder, options[name]), json.loads((folder / f"plans_{name}.json").read_text()))


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("[0-9]*")), ids=lambda folder: folder.name)
def test_plans_keep_to_their_target_on_a_gpu(folder: Path) -> None:
    """By the estimate, which is that of the counted steps (decision 0220), with 0.9 GB for all that is not counted."""
    for options in json.loads((folder / "options.json").read_text()).values():
        plan = _planned(folder, options)
        for configuration in (each for each in plan.configurations if len(each.network.features) > 1):
            estimate = estimate_configuration_memory(configuration, dtype="bfloat16", device="cuda")
            assert 1.0 < estimate.training_bytes / 1e9 < plan.memory_target_gb, configuration.name


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("[0-9]*")), ids=lambda folder: folder.name)
def test_reading_a_written_plan_gives_the_plan_back(folder: Path) -> None:
    dataset = _load(folder)
    for preset in PLANNERS:
        plan = plan_dataset(dataset.fingerprint, preset=preset, strict_reference=True)
        read = read_nnunet_plans(json.dumps(nnunet_plans(plan)), dataset)
        assert read == plan.model_copy(update={"decisions": ()})


@pytest.mark.parametrize(
    ("changes", "spacing_mm", "reader"),
    [
        ({"file_ending": ".tif"}, [999.0, 1.0, 1.0], "NaturalImage2DIO"),
        ({"file_ending": ".TIF"}, [3.0, 1.0, 1.0], "Tiff3DIO"),
        ({"file_ending": ".tif"}, [1.0, 1.0, 1.0], "Tiff3DIO"),
        ({"overwrite_image_reader_writer": "NibabelIOWithReorient"}, [1.0, 1.0, 1.0], "NibabelIOWithReorient"),
        ({"overwrite_image_reader_writer": "None"}, [1.0, 1.0, 1.0], "SimpleITKIO"),
        ({"overwrite_image_reader_writer": "Unknown", "file_ending": ".nii"}, [1.0, 1.0, 1.0], "NibabelIO"),
    ],
)
def test_plans_name_the_reader_that_the_reference_takes(
    changes: dict[str, str], spacing_mm: list[float], reader: str
) -> None:
    fingerprint = json.loads((GOLDEN / "006" / "fingerprint.json").read_text())
    fingerprint["spacings"] = [spacing_mm] * len(fingerprint["spacings"])
    description = json.loads((GOLDEN / "006" / "dataset.json").read_text()) | {"file_ending": ".nii.gz"} | changes
    dataset = read_nnunet_dataset(json.dumps(fingerprint), json.dumps(description))
    plan = plan_dataset(dataset.fingerprint, strict_reference=True)
    assert nnunet_plans(plan, file_ending=dataset.file_ending, reader=dataset.reader)["image_reader_writer"] == reader


def test_a_reference_plan_survives_reading_and_writing() -> None:
    folder = GOLDEN / "052"
    text = (folder / "plans_default.json").read_text()
    again = nnunet_plans(read_nnunet_plans(text, _load(folder)))
    expected = json.loads(text)
    assert_equal_plans(again, expected)
    assert again == expected
