"""One command for ten minutes on a GPU: whether what was only counted so far is right, and how fast it is.

    python benchmarks/gpu_check.py [--device cuda] [--out DIR] [--minutes 10] [--only NAME …]
    python benchmarks/gpu_check.py --device cpu --small     # tries the program itself

No data, no network, no compiler but Triton's. Of autoseg's packages it needs torch 2.11, numpy, scipy, pandas, scikit-image, pydantic,
batchgenerators, blosc2, safetensors, joblib, threadpoolctl, jinja2 and matplotlib; of those for images nibabel, pydicom, pynrrd,
tifffile and Pillow, and not SimpleITK. Volumes are made up.

Each check is a process of its own with a time limit and a record of what it printed; one that fails, hangs or dies ends no other.
``DIR/gpu_check.json`` and ``DIR/gpu_check.md`` are written after each of them. The last line says pass or fail, and so does the exit code.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what each process would load for its first step
from gpu_checks.computed import check_augmentation, check_device, check_gradients, check_late_results, check_norm
from gpu_checks.made import Bench, Found
from gpu_checks.trained import check_cap, check_compiled, check_profile, check_steps
from gpu_checks.whole import check_folds, check_prediction, check_run, check_training


@dataclass(frozen=True, slots=True)
class Check:
    """One of the checks."""

    function: Callable[[Bench], Found]
    limit_s: float
    by_default_small: bool = True
    """Part of the small run."""


CHECKS = {
    "device": Check(check_device, 60),
    "norm": Check(check_norm, 60),
    "gradients": Check(check_gradients, 90),
    "augmentation": Check(check_augmentation, 90),
    "late results": Check(check_late_results, 60),
    "steps": Check(check_steps, 120),
    "profile": Check(check_profile, 60),
    "cap": Check(check_cap, 90),
    "training": Check(check_training, 120),
    "prediction": Check(check_prediction, 120),
    "run": Check(check_run, 180, by_default_small=False),
    "compiled": Check(check_compiled, 120, by_default_small=False),
    "folds": Check(check_folds, 120),
}
"""In this order; when the time is up, the last ones are left out, and said."""


def run_apart(name: str, bench: Bench, limit_s: float) -> dict[str, Any]:
    """A check in a process of its own, which is killed with all that it started when its time is up."""
    answers, theirs = multiprocessing.Pipe(duplex=False)
    log = bench.folder.with_suffix(".log")
    method = "spawn" if bench.on_gpu else "fork"  # a GPU's driver does not survive a fork
    process = multiprocessing.get_context(method).Process(target=_answer, args=(name, bench, log, theirs))
    started = time.perf_counter()
    process.start()
    theirs.close()
    try:
        result = answers.recv() if answers.poll(limit_s) else {"faults": [f"took more than {limit_s:.0f} s"]}
    except EOFError:
        process.join()
        result = {"faults": [f"ended with code {process.exitcode}; {_last_lines(log)}"]}
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return {"passed": not result["faults"], "seconds": time.perf_counter() - started, "figures": {}, **result}


def _answer(name: str, bench: Bench, log: Path, answers: Any) -> None:
    os.setsid()
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        figures, faults = CHECKS[name].function(bench)
        answers.send({"figures": figures, "faults": faults})
    except BaseException as error:
        traceback.print_exc()
        answers.send({"faults": [f"{type(error).__name__}: {error}"[:500]]})
    finally:
        sys.stdout.flush()
        answers.close()
        os._exit(0)


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:]) if log.exists() else ""


def rounded(value: Any) -> Any:
    """Figures as they are read."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def write_results(folder: Path, head: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    (folder / "gpu_check.json").write_text(json.dumps({**head, "checks": results}, indent=2) + "\n")
    lines = [
        f"{head['command']}, torch {head['torch']}, {head['date']}",
        "",
        "| check | | seconds | figures |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in results.items():
        told = "; ".join(row["faults"]) or json.dumps(row["figures"])
        lines.append(
            f"| {name} | {'pass' if row['passed'] else 'FAIL'} | {row['seconds']:.1f} | {told.replace('|', '/')} |"
        )
    (folder / "gpu_check.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, and no demand on speed")
    parser.add_argument("--only", nargs="*", choices=CHECKS, help="only these checks")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all checks together")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the results")
    arguments = parser.parse_args()
    ends = time.monotonic() + 60 * arguments.minutes
    names = arguments.only or [name for name, check in CHECKS.items() if check.by_default_small or not arguments.small]
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/gpu_check.py --device {arguments.device}{' --small' * arguments.small}"
    head = {"command": command, "date": date.today().isoformat(), "torch": torch.__version__}
    results: dict[str, dict[str, Any]] = {}
    device = torch.device(arguments.device)
    device = torch.device("cuda", 0) if str(device) == "cuda" else device
    work = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    for name in names:
        bench = Bench(device=device, small=arguments.small, folder=work / name.replace(" ", "_"))
        bench.folder.mkdir()
        left = ends - time.monotonic()
        if left < 5:
            results[name] = {"passed": False, "seconds": 0.0, "figures": {}, "faults": ["there was no time left"]}
        else:
            results[name] = rounded(run_apart(name, bench, min(CHECKS[name].limit_s, left)))
        told = "; ".join(results[name]["faults"]) or json.dumps(results[name]["figures"])
        print(
            f"{'pass' if results[name]['passed'] else 'FAIL'} {name} ({results[name]['seconds']:.1f} s): {told}",
            flush=True,
        )
        write_results(arguments.out, head, results)
    shutil.rmtree(work, ignore_errors=True)
    failed = [name for name, row in results.items() if not row["passed"]]
    print(
        f"fail: {', '.join(failed)} ({len(failed)} of {len(results)} checks)"
        if failed
        else f"pass: all {len(results)} checks"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
