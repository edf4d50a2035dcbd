"""Plans made from nnU-Net's own files, and plans written in its format."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import require_file_name, write_text
from planners import NnunetDataset, Plan, nnunet_plans, plan_dataset, read_nnunet_dataset

OTHER_FILE = "pass another file with --nnunet-plans"


def plan_from_nnunet(
    fingerprint: Path,
    dataset: Path,
    *,
    preset: str,
    memory_gb: float | None,
    target_spacing_mm: tuple[float, float, float] | None,
    strict_reference: bool,
) -> tuple[Plan, NnunetDataset]:
    """The plan of a dataset described by ``dataset_fingerprint.json`` and ``dataset.json``, and the content of these files.

    ``target_spacing_mm`` has source axes (z, y, x). Raises `AutosegError` for files that cannot be read, and `DocumentError`
    or `PlanningError` with all problems.
    """
    texts = []
    for path in (fingerprint, dataset):
        try:
            texts.append(path.read_bytes())
        except OSError as error:
            raise _unreadable(path, error, fix="pass a file that nnU-Net wrote") from error
    found = read_nnunet_dataset(*texts, fingerprint_where=str(fingerprint), dataset_where=str(dataset))
    plan = plan_dataset(
        found.fingerprint,
        preset=preset,
        memory_gb=memory_gb,
        target_spacing_mm=target_spacing_mm,
        strict_reference=strict_reference,
    )
    return plan, found


def require_place_for_plans(path: Path, inputs: Collection[Path]) -> None:
    """Raise `AutosegError` if plans at ``path`` would replace a folder, one of the ``inputs``, or anything but a plans file."""
    require_file_name(path)
    if path.resolve() in {each.resolve() for each in inputs}:
        message = "an input of this command, which would be overwritten"
        raise AutosegError(Issue(code="plans.is_input", where=str(path), message=message, fix=OTHER_FILE))
    _existing_configurations(path)


def write_nnunet_plans(path: Path, plan: Plan, *, file_ending: str, reader: str | None = None) -> tuple[str, ...]:
    """Write a plan in nnU-Net's format (method section 3.14), atomically. ``reader``: its class, if the dataset names one.

    Configurations of an existing plans file that this plan does not have, such as the user's own, are kept as nnU-Net does;
    returns their names. Raises `AutosegError` for an existing file that is not a plans file.
    """
    before, written = _existing_configurations(path), nnunet_plans(plan, file_ending=file_ending, reader=reader)
    planned = written["configurations"]
    assert isinstance(planned, dict)
    kept = {name: configuration for name, configuration in before.items() if name not in planned}
    write_text(path, json.dumps({**written, "configurations": {**planned, **kept}}, indent=4) + "\n")
    return tuple(kept)


def _existing_configurations(path: Path) -> dict[str, Any]:
    """The configurations of the plans file at ``path``; none if it does not exist."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _unreadable(path, error, fix=OTHER_FILE) from error
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    configurations = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(configurations, dict):
        message = "exists and is not an nnU-Net plans file"
        raise AutosegError(Issue(code="plans.foreign_file", where=str(path), message=message, fix=OTHER_FILE))
    return configurations


def _unreadable(path: Path, error: OSError, *, fix: str) -> AutosegError:
    message = f"could not be read ({error.strerror or error})"
    return AutosegError(Issue(code="file.unreadable", where=str(path), message=message, fix=fix))
