"""Predict a folder of thousands of tiny studies, one of them broken, and tell cases a second, memory and start-up time.

Usage: ``python benchmarks/many.py --work DIR [--cases 1000 10000] [--processes 1 3]``. Images are crops of 8 x 8 x 8 voxels of noise, as ``.nii.gz``, so
nearly all of the time is that of files, the journal and Python. The model is a bundle with one U-Net of 4 features and random weights. Every
call is ``autoseg predict`` as users call it; several at once share one output folder. It is checked that each case is in the journal once, that its
label map is there, that the broken one is named and that the call with it ends with exit code 1. Seconds are wall time, so say how busy the machine was.
Lines are added to ``results/many.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import autoseg
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.selection import Selection
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_image
from autoseg.inference.bundle import ModelDescription, write_bundle
from autoseg.networks.build import build_network
from autoseg.networks.weights import pack_weights
from planners import (
    CaseSize,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    plan_dataset,
    trial_training,
    with_width,
)

RESULTS = Path(__file__).resolve().parent / "results" / "many.jsonl"
SHAPE = (8, 8, 8)
FEATURES = 4
BROKEN = "broken"
JOURNAL = "predictions.jsonl"
CALL = [sys.executable, "-m", "autoseg", "predict"]
LOOK_S = 0.5
"""Between two looks at the memory of the processes."""


def write_model(path: Path) -> None:
    """A bundle that segments cubes of noise, somehow."""
    labels = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
    noise = IntensityStatistics(
        mean=0.0, median=0.0, std=1.0, minimum=-5.0, maximum=5.0, percentile_00_5=-2.6, percentile_99_5=2.6
    )
    plan = plan_dataset(
        Fingerprint(
            dataset_name="cubes",
            cases=(CaseSize(case_id="a", shape=SHAPE, spacing_mm=(1.0, 1.0, 1.0)),),
            num_training_cases=1,
            channels=("MRI",),
            labels=labels,
            intensities=(noise,),
            median_relative_size_after_cropping=1.0,
        )
    )
    configuration = plan.configuration("3d_fullres")
    training = trial_training(configuration, base_features=FEATURES, batch_size=1, precision="float32")
    network = build_network(with_width(configuration.network, FEATURES), seed=0)
    dataset = DatasetDescription(
        name="cubes",
        root="",
        layout="msd",
        channels=plan.channels,
        labels=labels,
        file_values=(0, 1, 2),
        file_ending=".nii.gz",
        training=(),
    )
    selection = Selection(
        members=("3d_fullres",),
        folds=(0,),
        postprocessing=(),
        cross_validated=False,
        reason="made for a benchmark",
        candidates=(),
        dice_before_postprocessing=None,
        dice_after_postprocessing=None,
    )
    about = ModelDescription(origin="many", dataset=dataset, plan=plan, selection=selection, trainings=(training,))
    content = pack_weights(network.state_dict(), key="many")
    write_bundle(path, about, lambda name, fold: content, key="many", version=autoseg.__version__)


def write_studies(folder: Path, number: int) -> None:
    """So many images, and one that is no image, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    cubes = rng.normal(size=(50, *SHAPE)).astype(np.float32)
    for i in range(number):
        path = folder / f"case_{i:05d}.nii.gz"
        if not path.exists():
            write_image(path, cubes[i % len(cubes)], Geometry(shape=SHAPE, spacing_mm=(1.0, 1.0, 1.0)))
    (folder / f"{BROKEN}.nii.gz").write_bytes(b"no image")


def predict(model: Path, images: Path, out: Path, processes: int) -> dict[str, object]:
    """Figures of one prediction by so many processes into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    command = [*CALL, str(model), str(images), str(out), "--device", "cpu", "--threads", "1"]
    logs = [out.with_name(f"{out.name}_{i}.log") for i in range(processes)]
    started = time.perf_counter()
    running = []
    for log in logs:
        with log.open("w") as file:
            running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    peak, first = 0.0, None
    while any(each.poll() is None for each in running):
        peak = max([peak, *(memory_gb(each.pid) for each in running)])
        if (
            first is None
            and (out / JOURNAL).exists()
            and '"item"' in (out / JOURNAL).read_text(errors="replace")[:5000]
        ):
            first = time.perf_counter() - started
        time.sleep(LOOK_S)
    seconds = time.perf_counter() - started
    children = os.times()
    require(images, out, logs, [each.returncode for each in running])
    return {
        "cases": sum(1 for _ in images.iterdir()) - 1,
        "processes": processes,
        "seconds": round(seconds, 1),
        "first_s": None if first is None else round(first, 1),
        "cases_per_s": round((sum(1 for _ in images.iterdir()) - 1) / seconds, 1),
        "peak_gb": round(peak, 3),
        "processor_s": round(children.children_user + children.children_system, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def memory_gb(pid: int) -> float:
    """The most main memory that a process has taken so far; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), 0.0)


def require(images: Path, out: Path, logs: list[Path], codes: list[int]) -> None:
    """Raise `AssertionError` unless every case was predicted once, and the broken one named."""
    lines = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines() if line.strip()]
    counts = Counter(line["item"] for line in lines if "item" in line)
    wanted = {path.name.removesuffix(".nii.gz") for path in images.iterdir()} - {BROKEN}
    assert set(counts) == wanted, "other cases than the images"
    assert set(counts.values()) == {1}, "a case was predicted twice"
    assert all((out / f"{case}.nii.gz").exists() for case in wanted), "a label map is missing"
    assert codes == [1] * len(codes), codes
    assert all(BROKEN in log.read_text() for log in logs), "the broken case is not named"
    assert len((out / "volumes.csv").read_text().splitlines()) == len(wanted) + 1, "volumes are missing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 3])
    given = parser.parse_args()
    model = given.work / "cubes.zip"
    given.work.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        write_model(model)
    before = 0.0
    for number in given.cases:
        images = given.work / f"images_{number}"
        write_studies(images, number)
        for processes in given.processes:
            figures = predict(model, images, given.work / f"out_{number}_{processes}", processes)
            total = float(str(figures["processor_s"]))
            figures["processor_s"], before = round(total - before, 1), total
            print(json.dumps(figures), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
