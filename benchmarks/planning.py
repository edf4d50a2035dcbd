"""How long importing the planner and planning a dataset take.

Usage: ``python benchmarks/planning.py [FOLDER]``. FOLDER holds one folder for each dataset, with the reference's
``fingerprint.json`` and ``dataset.json``; by default the golden plans of the tests. Beside the planner's import stands
that of its two dependencies alone, which nothing built on them can undercut.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from planners import Fingerprint, explain, plan_dataset, read_nnunet_dataset
from planners.topology import preset_names

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "plans"
IMPORT_LIMIT_MS = 500
PLAN_LIMIT_MS = 100
REPEATS = 7


def import_ms(modules: str) -> float:
    """Median milliseconds to import ``modules`` in a fresh process, as the process itself sees it."""
    code = f"import time; start = time.perf_counter(); import {modules}; print(1000 * (time.perf_counter() - start))"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(REPEATS)
    ]
    return statistics.median(times)


def plan_ms(fingerprint: Fingerprint) -> dict[str, float]:
    """Median milliseconds of planning with each preset, and of the explanation of the last one."""
    times = {
        preset: _median_ms(lambda preset=preset: plan_dataset(fingerprint, preset=preset)) for preset in preset_names()
    }
    plan = plan_dataset(fingerprint)
    return {**times, "explain": _median_ms(lambda: explain(plan))}


def _median_ms(work: object) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()  # type: ignore[operator]  # any function without arguments
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main(folder: Path) -> int:
    """Print the table; 1 if a limit is exceeded."""
    planner, alone = import_ms("planners"), import_ms("numpy, pydantic")
    print(f"import: planners {planner:.0f} ms (limit {IMPORT_LIMIT_MS}), numpy and pydantic alone {alone:.0f} ms")
    print("milliseconds, median of", REPEATS)
    print("dataset   " + "".join(f"{name:>11}" for name in (*preset_names(), "explain")))
    slowest = 0.0
    for each in sorted(path for path in folder.iterdir() if (path / "fingerprint.json").exists()):
        dataset = read_nnunet_dataset((each / "fingerprint.json").read_bytes(), (each / "dataset.json").read_bytes())
        times = plan_ms(dataset.fingerprint)
        slowest = max(slowest, *times.values())
        print(f"{each.name:<10}" + "".join(f"{value:11.1f}" for value in times.values()))
    print(f"slowest plan: {slowest:.0f} ms (limit {PLAN_LIMIT_MS})")
    return int(planner > IMPORT_LIMIT_MS or slowest > PLAN_LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN))
