"""The whole `autoseg preprocess` from process start with an empty run folder; and what a case costs by its voxels.

    python benchmarks/preprocess.py DATASET [--repeats 5] [--out FILE.json]      # seconds of the command
    python benchmarks/preprocess.py --growth [--out FILE.json]                   # seconds and memory of made CT-like cases

The command includes start-up, discovery, check, fingerprint, plan and all configurations of the plan. Growth is measured
in a fresh process for each size, in seconds of the processor; memory is what the process held at most beyond its libraries, for each voxel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZES = ((25, 256, 256), (50, 256, 256), (100, 256, 256), (100, 512, 512))
SPACING_MM = (2.5, 0.8, 0.8)
TARGETS_MM = {"kept": (2.5, 0.8, 0.8), "finer": (1.0, 0.8, 0.8)}


def time_command(dataset: Path, repeats: int) -> dict[str, Any]:
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            run = Path(folder) / str(i)
            command = [
                sys.executable,
                "-c",
                "from autoseg.cli import main; main()",
                "preprocess",
                str(dataset),
                "--out",
                str(run),
            ]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
            sys.stdout.write(f"{seconds[-1]:.2f} s\n")
            configurations = sorted(path.name for path in (run / "preprocessed").iterdir())
    return {"dataset": dataset.name, "configurations": configurations, "seconds": seconds, "median_s": median(seconds)}


def measure_growth() -> list[dict[str, Any]]:
    rows = []
    for target in TARGETS_MM:
        for size in SIZES:
            child = subprocess.run(
                [sys.executable, __file__, "--child", target, *map(str, size)],
                check=True,
                capture_output=True,
                text=True,
            )
            row = json.loads(child.stdout)
            rows.append(row)
            sys.stdout.write(
                f"{target} spacing, {size}: {row['seconds']:.2f} s, {row['ns_per_voxel']:.0f} ns and "
                f"{row['bytes_per_voxel']:.1f} bytes for each of {row['voxels'] / 1e6:.1f} million voxels before and after\n"
            )
    return rows


def measure_case(target: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """Preprocess one made case in this process."""
    from autoseg.data.dataset import Case, DatasetDescription
    from autoseg.imaging.image import Geometry
    from autoseg.imaging.readers import write_image, write_label_map
    from autoseg.preprocessing.preprocess import Target, preprocess_case
    from planners import CaseSize, Fingerprint, IntensityStatistics, LabelClass, Labels, plan_dataset

    labels = Labels(classes=(LabelClass(name="one", values=(1,)), LabelClass(name="two", values=(2,))))
    statistics = IntensityStatistics(
        mean=0, median=0, std=1, minimum=-3, maximum=3, percentile_00_5=-2, percentile_99_5=2
    )
    plan = plan_dataset(
        Fingerprint(
            dataset_name="made",
            cases=(CaseSize(case_id="a", shape=size, spacing_mm=SPACING_MM),),
            num_training_cases=1,
            channels=("CT",),
            labels=labels,
            intensities=(statistics,),
            median_relative_size_after_cropping=1.0,
        ),
        target_spacing_mm=TARGETS_MM[target],
    )
    with tempfile.TemporaryDirectory() as folder:
        geometry = Geometry(shape=size, spacing_mm=SPACING_MM)
        image, label = Path(folder) / "image.nii.gz", Path(folder) / "label.nii.gz"
        write_image(image, np.random.default_rng(0).normal(size=size).astype(np.float32) + 10, geometry)
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 4 : size[0] // 2, 50:150, 50:150], mask[size[0] // 2 :, 60:200, 60:100] = 1, 2
        write_label_map(label, mask, geometry)
        del mask
        case = Case(case_id="a", images=(str(image),), label=str(label))
        dataset = DatasetDescription(
            name="made",
            root=folder,
            layout="made",
            channels=("CT",),
            labels=labels,
            file_values=(0, 1, 2),
            file_ending=".nii.gz",
            training=(case,),
        )
        before = resident_bytes()
        targets = [Target(plan.configuration("3d_fullres"), Path(folder) / "out")]
        start = time.process_time()
        preprocess_case(case, dataset, plan, targets)
        seconds = time.process_time() - start
    voxels = int(np.prod(size)) * (1 + SPACING_MM[0] / TARGETS_MM[target][0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {
        "spacing": target,
        "size": size,
        "seconds": seconds,
        "voxels": voxels,
        "ns_per_voxel": seconds / voxels * 1e9,
        "bytes_per_voxel": peak / voxels,
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        z, y, x = map(int, arguments.child[1:])
        sys.stdout.write(json.dumps(measure_case(arguments.child[0], (z, y, x))))
        return
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if arguments.dataset:
        result["command"] = time_command(arguments.dataset, arguments.repeats)
    if arguments.growth:
        result["growth"] = measure_growth()
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
