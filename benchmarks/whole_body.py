"""Predict a synthetic whole-body CT with 118 classes, and tell memory and time beside what was said before.

Usage: ``python benchmarks/whole_body.py --work DIR [--shape 800 512 512] [--folds 1 5] [--grid-mm 1.5] [--memory-gb 6] [--probabilities]``.
The image is an elliptic body of noise in air, int16, at 1.5 x 0.8 x 0.8 mm; the networks are U-Nets of 8 features with random weights, so
every class occurs everywhere, which is the worst case for what follows them. ``--grid-mm`` has them work on a grid of so many mm, by default on
that of the image. Each case runs in a process of its own, whose highest resident memory the system tells (VmHWM). Shares are of processor time, so that
a busy machine does not matter. Lines are added to ``results/whole_body.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.inputs import InputCase, Inputs
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_label_map
from autoseg.inference.model import Member, Model
from autoseg.inference.predict import predict_cases
from autoseg.inference.predictor import Predictor
from autoseg.networks.build import build_network
from autoseg.tracking.progress import SilentReporter
from planners import (
    CaseSize,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    Training,
    plan_dataset,
    trial_training,
    with_width,
)

RESULTS = Path(__file__).resolve().parent / "results" / "whole_body.jsonl"
SPACING_MM = (1.5, 0.8, 0.8)
CLASSES = 118
FEATURES = 8
CT = IntensityStatistics(
    mean=40.0, median=40.0, std=120.0, minimum=-1000.0, maximum=2000.0, percentile_00_5=-150.0, percentile_99_5=400.0
)


def write_body(path: Path, shape: tuple[int, int, int]) -> None:
    """An elliptic cylinder of soft tissue with noise in air, written slice by slice into memory that is one int16 volume."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = (y / 0.55) ** 2 + (x / 0.75) ** 2 < 1
    array = np.full(shape, -1000, np.int16)
    for plane in array:
        plane[body] = rng.normal(40, 60, int(body.sum())).astype(np.int16)
    write_label_map(path, array, Geometry(shape=shape, spacing_mm=SPACING_MM))


def plan_of(shape: tuple[int, int, int], grid_mm: float | None, patch: tuple[int, int, int]) -> Plan:
    """The product's plan for CTs of this size, with another patch and, perhaps, another grid."""
    labels = Labels(classes=tuple(LabelClass(name=f"class {i}", values=(i,)) for i in range(1, CLASSES)))
    plan = plan_dataset(
        Fingerprint(
            dataset_name="whole_body",
            cases=(CaseSize(case_id="a", shape=shape, spacing_mm=SPACING_MM),),
            num_training_cases=1,
            channels=("CT",),
            labels=labels,
            intensities=(CT,),
            median_relative_size_after_cropping=1.0,
        )
    )
    full = plan.configuration("3d_fullres")
    spacing = full.spacing_mm if grid_mm is None else (grid_mm,) * 3
    changed = full.model_copy(update={"patch_shape": patch, "spacing_mm": spacing, "batch_size": 1})
    return plan.model_copy(update={"configurations": (changed,)})


class Timed(nn.Module):
    """A network, and the processor seconds that it took, with what other threads did meanwhile."""

    spent_s = 0.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        started = time.process_time()
        result: Tensor = self.network(x)
        Timed.spent_s += time.process_time() - started
        return result


def model_of(plan: Plan, folds: int, precision: str) -> Model:
    (configuration,) = plan.configurations
    training: Training = trial_training(configuration, base_features=FEATURES, batch_size=1, precision=precision)  # type: ignore[arg-type]
    network = with_width(configuration.network, FEATURES)
    networks = tuple(Timed(build_network(network, seed=fold)).eval() for fold in range(folds))
    dataset = DatasetDescription(
        name="whole_body",
        root="",
        layout="nnunet",
        channels=plan.channels,
        labels=plan.labels,
        file_values=tuple(range(CLASSES)),
        file_ending=".nii.gz",
        training=(),
    )
    member = Member(configuration=configuration, training=training, networks=networks)
    return Model(dataset=dataset, plan=plan, members=(member,), device=torch.device("cpu"), key=f"{folds}")


class Listening(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def predict(arguments: argparse.Namespace, folds: int) -> dict[str, object]:
    """Figures of one prediction, in this process."""
    torch.set_num_threads(arguments.threads)
    shape: tuple[int, int, int] = tuple(arguments.shape)
    image = arguments.work / f"body_{'x'.join(map(str, shape))}.nii.gz"
    plan = plan_of(shape, arguments.grid_mm, tuple(arguments.patch))
    memory = None if arguments.memory_gb is None else round(arguments.memory_gb * 1e9)
    predictor = Predictor(model=model_of(plan, folds, arguments.precision), memory_bytes=memory)
    out, reporter = arguments.work / f"out_{time.time_ns()}", Listening()
    reset_peak()
    started, used = time.perf_counter(), time.process_time()
    cases = Inputs(cases=(InputCase(case_id="body", images=(image,)),))
    predict_cases(predictor, cases, out, probabilities=arguments.probabilities, reporter=reporter)
    whole, processor_s = time.perf_counter() - started, time.process_time() - used
    said = next(line for line in reporter.lines if line.startswith("Needs"))
    peak, told = resident_peak_gb(), float(re.findall(r"up to ([\d.]+) GB", said)[0])
    return {
        "shape": list(shape),
        "grid_mm": arguments.grid_mm,
        "patch": list(arguments.patch),
        "classes": CLASSES,
        "folds": folds,
        "precision": arguments.precision,
        "memory_gb": arguments.memory_gb,
        "probabilities": arguments.probabilities,
        "peak_gb": round(peak, 2),
        "told_gb": told,
        "seconds": round(whole, 1),
        "processor_s": round(processor_s, 1),
        "network_s": round(Timed.spent_s, 1),
        "outside_share": round(1 - Timed.spent_s / processor_s, 3),
        "said": said,
        "threads": arguments.threads,
        "processor": platform.processor() or platform.machine(),
    }


def resident_peak_gb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    """Have the system count the highest resident memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=3, default=[800, 512, 512])
    parser.add_argument("--patch", type=int, nargs=3, default=[96, 96, 96])
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--grid-mm", type=float)
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--probabilities", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        print(json.dumps(predict(arguments, arguments.here)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    image = arguments.work / f"body_{'x'.join(map(str, arguments.shape))}.nii.gz"
    if not image.exists():
        write_body(image, tuple(arguments.shape))
    for folds in arguments.folds:
        command = [sys.executable, __file__, *sys.argv[1:], "--here", str(folds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip())
        with RESULTS.open("a") as file:
            file.write(done.stdout.strip().splitlines()[-1] + "\n")


if __name__ == "__main__":
    main()
