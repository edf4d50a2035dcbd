"""What predicting cases took, from the files of FLARE's monitor."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.evaluation.intervals import estimate, unit_codes
from autoseg.issues import AutosegError, Issue
from planners import Document

FLARE_INTERVAL_S = 0.1
"""Between two samples of FLARE's monitor."""
FLARE_RARE = 0.02
"""Share of the samples that a GPU memory must have to count as the largest."""


class Resources(Document):
    """What predicting one case took, as FLARE measures it (github.com/JunMa11/FLARE aad2cc2, ``load_json.py``)."""

    seconds: float
    gpu_mb: float | None
    """The largest memory that more than 2 % of the samples have; none without samples of a GPU."""
    gpu_mb_s: float | None
    """Area under the curve of GPU memory over time."""
    cpu_percent_s: float
    """Area under the curve of CPU use (of the whole machine) over time."""
    ram_mb_s: float
    """Area under the curve of main memory over time."""


def resource_areas(samples: Mapping[str, Any]) -> Resources:
    """From a JSON document of FLARE's monitor, which samples every `FLARE_INTERVAL_S`.

    It has ``gpu_memory`` and ``RAM_list`` (MB), ``cpu_list`` (user, system, idle in per cent) and ``time`` (s); without ``time``
    the number of samples tells it.
    """
    gpu = [float(value) for value in samples["gpu_memory"]]
    often = [value for value in {*gpu} if gpu.count(value) > FLARE_RARE * len(gpu)]
    busy = [100.0 - float(each[2]) for each in samples["cpu_list"]]
    return Resources(
        seconds=float(samples.get("time", FLARE_INTERVAL_S * len(gpu))),
        gpu_mb=max(often, default=None),
        gpu_mb_s=sum(gpu) * FLARE_INTERVAL_S if gpu else None,
        cpu_percent_s=sum(busy) * FLARE_INTERVAL_S,
        ram_mb_s=sum(map(float, samples["RAM_list"])) * FLARE_INTERVAL_S,
    )


def read_resources(folder: Path) -> dict[str, Resources]:
    """Of each case, by the names of FLARE's JSON files in a folder. Raises `AutosegError` with all that are none."""
    found: dict[str, Resources] = {}
    issues = []
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = resource_areas(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, LookupError, TypeError) as error:
            message = f"is no document of FLARE's monitor ({type(error).__name__}: {error})"
            issues.append(Issue(code="evaluation.resources", where=str(path), message=message, fix="remove it"))
    if not found and not issues:
        message, fix = "contains no JSON files", "pass the folder that FLARE's monitor wrote"
        issues.append(Issue(code="evaluation.resources", where=str(folder), message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    return found


def format_resources(found: Mapping[str, Resources]) -> str:
    """Means over cases, with half of their 95 % interval."""
    units = unit_codes(list(found))
    lines = [f"Resources, mean of {len(found)} cases"]
    for name, title in (
        ("seconds", "time, s"),
        ("gpu_mb", "largest GPU memory, MB"),
        ("gpu_mb_s", "area under GPU memory and time, MB s"),
        ("cpu_percent_s", "area under CPU use and time, % s"),
        ("ram_mb_s", "area under main memory and time, MB s"),
    ):
        values = [getattr(each, name) for each in found.values()]
        filled = np.array([math.nan if value is None else value for value in values], np.float64)
        lines.append(f"  {title:38}  {estimate(filled, units)}")
    return "\n".join(lines)
