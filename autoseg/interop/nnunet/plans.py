"""Plans for datasets that only nnU-Net's own files describe, and plans in its format."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.issues import AutosegError
from autoseg.storage.atomic import require_file_name, write_text
from planners import NnunetDataset, Plan, nnunet_plans, plan_dataset, read_nnunet_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What a person may ask of a plan."""

    preset: str
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


def require_place_for_plans(path: Path, inputs: Collection[Path]) -> None:
    """Raise `AutosegError` where plans at ``path`` would replace a folder, one of the ``inputs``, or a file that is no plans file."""
    require_file_name(path)
    if path.resolve() in {each.resolve() for each in inputs}:
        raise AutosegError(
            f"{path} is read by this very call, so nothing is written there; give another file with --nnunet-plans"
        )
    _configurations_there(path)


def write_nnunet_plans(path: Path, plan: Plan, *, file_ending: str, reader: str | None = None) -> tuple[str, ...]:
    """Write a plan in nnU-Net's format (method section 3.14), atomically. ``reader``: its class, if the dataset names one.

    Configurations of a plans file that is there already and that this plan has not, such as a person's own, are kept as the
    reference keeps them; returns their names. Raises `AutosegError` where something else is there.
    """
    before, written = _configurations_there(path), nnunet_plans(plan, file_ending=file_ending, reader=reader)
    planned = written["configurations"]
    assert isinstance(planned, dict)
    kept = {name: configuration for name, configuration in before.items() if name not in planned}
    write_text(path, json.dumps({**written, "configurations": {**planned, **kept}}, indent=4) + "\n")
    return tuple(kept)


def _configurations_there(path: Path) -> dict[str, Any]:
    """The configurations of the plans file at ``path``; none where nothing was written yet."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AutosegError(
            f"{path} could not be read ({error.strerror or error}); give another file with --nnunet-plans"
        ) from error
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    configurations = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(configurations, dict):
        raise AutosegError(
            f"{path} is there and no plans file of nnU-Net, so it is not replaced; give another file with --nnunet-plans"
        )
    return configurations


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AutosegError(
            f"{path} could not be read ({error.strerror or error}); give a file that nnU-Net wrote"
        ) from error
