"""Plans for datasets that only nnU-Net's own files describe, and plans in its format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.run_folder import write_text
from planners import NnunetDataset, Plan, Preset, nnunet_plans, plan_dataset, read_nnunet_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What a person may ask of a plan."""

    preset: Preset
    memory_gb: float | None
    target_spacing_mm: tuple[float, float, float] | None
    """Source axes (z, y, x)."""
    strict_reference: bool


def plan_from_nnunet(fingerprint: Path, dataset: Path, settings: PlanSettings) -> tuple[Plan, NnunetDataset]:
    """The plan of a dataset described by ``dataset_fingerprint.json`` and ``dataset.json``, and what these files say.

    Raises `AutosegError` for files that cannot be read, and `DocumentError` or `PlanningError` with all problems.
    """
    found = read_nnunet_dataset(
        _read(fingerprint), _read(dataset), fingerprint_where=str(fingerprint), dataset_where=str(dataset)
    )
    plan = plan_dataset(
        found.fingerprint,
        preset=settings.preset,
        memory_gb=settings.memory_gb,
        target_spacing_mm=settings.target_spacing_mm,
        strict_reference=settings.strict_reference,
    )
    return plan, found


def write_nnunet_plans(path: Path, plan: Plan, *, file_ending: str, reader: str | None = None) -> None:
    """Write a plan in nnU-Net's format (method section 3.14), atomically. ``reader``: its class, if the dataset names one."""
    write_text(path, json.dumps(nnunet_plans(plan, file_ending=file_ending, reader=reader), indent=4) + "\n")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AutosegError(f"{path} could not be read ({error.strerror or error}); give a file that nnU-Net wrote") from error
