"""What the labelled folders of the real data are taken for, and how long looking, planning and preprocessing take.

Usage: ``python benchmarks/folders.py [--real-data DIR] [--out FILE] [FOLDER ...]``. Every folder is pointed at as it is;
where the meaning is ambiguous, with a spec file of ``tests/real/specs``. Folders whose check finds errors are
planned and preprocessed without the bad cases. Each command is a process of its own, start-up included.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "tests" / "real" / "specs"
FOLDERS = {
    "Task04_Hippocampus": None,
    "ms_flair_thick": "ms_flair_thick",
    "ms_multichannel_thick": "ms_multichannel_thick",
    "ms_lesion_4ch": None,
    "ct_torso_partial": None,
    "ct_lung_patches2d": None,
    "nuclei_grey2d": None,
    "nuclei_rgb2d": None,
    "bids_ivadomed/mri": "bids_mri",
    "bids_ivadomed/microscopy_png": "microscopy_png",
    "bids_ivadomed/ct_scan": None,
    "spinalcord_sct": "spinalcord_sct",
    "nrrd_pyradiomics": None,
    "dicom_seg_ct3slice": "dicom_seg_ct3slice",
    "dicom_series": None,
    "dirty_ms/wrong_brain_mask": "wrong_brain_mask",
    "dirty_ms/channels_on_different_grids": None,
}
"""Labelled folders, and the spec file that goes with them. ``dirty_hippocampus`` holds no pair of image and label."""
SHOWN = 60
CALL = [sys.executable, "-c", "from autoseg.cli import main; main()"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One folder of the table."""

    folder: str
    spec: str | None
    sentence: str
    findings: Counter[str]
    seconds: dict[str, float]
    """By command; a command that failed is not there."""
    failure: str = ""


def look_at(real_data: Path, folder: str, spec: str | None, *, commands: Sequence[str]) -> Row:
    """Run ``check`` and then ``commands`` on one folder."""
    given = [] if spec is None else ["--spec", str(SPECS / f"{spec}.toml")]
    checked, seconds = _timed(["check", str(real_data / folder), *given])
    lines = checked.stdout.splitlines()
    sentence = next((line.removeprefix("Found ") for line in lines if line.startswith("Found ")), "")
    findings = Counter(line.partition(":")[0] for line in lines if line.startswith(("error: ", "warning: ", "note: ")))
    if not sentence:
        return Row(
            folder=folder, spec=spec, sentence="", findings=findings, seconds={}, failure=_first_line(checked.stderr)
        )
    took = {"check": seconds}
    skip = ["--skip-bad"] if findings["error"] else []
    failure = ""
    with TemporaryDirectory() as run:
        for command in commands:
            done, seconds = _timed([command, str(real_data / folder), *given, *skip, "--out", run])
            if done.returncode:
                failure = f"{command}: {_first_line(done.stderr)}"
                break
            took[command] = seconds
    return Row(folder=folder, spec=spec, sentence=sentence, findings=findings, seconds=took, failure=failure)


def _timed(arguments: Sequence[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.perf_counter()
    done = subprocess.run([*CALL, *arguments], capture_output=True, text=True, check=False)
    return done, time.perf_counter() - started


def _first_line(text: str) -> str:
    lines = [
        line for line in text.splitlines() if line.startswith(("error", "Error")) or " ERROR " in line
    ] or text.splitlines()
    return lines[0][:200] if lines else "failed without a message"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| folder | taken for | errors, warnings, notes | check s | plan s | preprocess s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spec = "" if row.spec is None else f" (`{row.spec}.toml`)"
        found = ", ".join(str(row.findings[kind]) for kind in ("error", "warning", "note"))
        times = " | ".join(
            f"{row.seconds[name]:.1f}" if name in row.seconds else "-" for name in ("check", "plan", "preprocess")
        )
        failure = f"; {row.failure}" if row.failure else ""
        lines.append(f"| `{row.folder}`{spec} | {row.sentence}{failure} | {found} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--real-data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "folders.md")
    given = parser.parse_args()
    rows = []
    for folder in given.folders:
        rows.append(look_at(given.real_data, folder, FOLDERS[folder], commands=("plan", "preprocess")))
        sys.stderr.write(table(rows[-1:]).splitlines()[-1] + "\n")
    given.out.write_text(
        f"# Labelled folders, pointed at\n\n`python benchmarks/folders.py`, {datetime.date.today()}, "
        f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}). Seconds of whole processes; `preprocess` goes on "
        "after `plan` in the same run folder. Folders with a spec file in brackets cannot be guessed; the file says why. Cases "
        "with errors are left out of `plan` and `preprocess`.\n\n" + table(rows)
    )


if __name__ == "__main__":
    main()
