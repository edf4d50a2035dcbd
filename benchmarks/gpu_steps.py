"""Training steps on a GPU with their whole data pipeline: speed, waiting, memory beside the estimate, share of the peak.

    python benchmarks/gpu_steps.py PLANS [--cases 001 004 028 046] [--seconds 45] [--compile]

PLANS holds one folder for each case, with the reference's ``fingerprint.json``, ``dataset.json`` and ``plans_default.json``.
Volumes are made up in memory, so nothing is read from disk, and neither SimpleITK nor a network is needed; batches come
from workers, are copied from pinned memory and augmented on the device, as in a training. ``--device cpu`` tries the
program itself. Results are kept in ``results/gpu_steps.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoseg.networks.build import build_network
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.fold_spec import configuration_recipe
from autoseg.training.loop import make_parts, train
from autoseg.training.losses import make_loss
from autoseg.training.sampling import BatchSource, finish, load_crops
from planners import (
    Configuration,
    Plan,
    estimate_configuration_memory,
    read_nnunet_dataset,
    read_nnunet_plans,
    trial_training,
)

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_steps.json"
WARM_UP_STEPS, MOST_STEPS = 5, 100_000
MARGIN = 1.4
"""Volumes are so much longer than the patch on every axis: larger than most turned crops, small enough to be made fast."""
BLOCK = 8
"""Edge of the blocks of one label, in voxels: classes of the size of small organs."""


@dataclass(frozen=True, slots=True)
class MadeCase:
    """A preprocessed case in memory."""

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    locations: dict[str, NDArray[np.int32]]


def make_case(plan: Plan, configuration: Configuration, seed: int) -> MadeCase:
    """Noise in blocks of random labels, on the configuration's grid."""
    rng = np.random.default_rng(seed)
    patch = configuration.patch_shape
    shape = tuple(math.ceil(MARGIN * n) for n in ((8, *patch) if len(patch) == 2 else patch))
    values = [value for label in plan.labels.classes for value in label.values]
    blocks = rng.choice([0, *values], [math.ceil(n / BLOCK) for n in shape])
    labels = np.kron(blocks, np.ones((BLOCK,) * 3, np.int16))[tuple(slice(n) for n in shape)].astype(np.int16)
    image = rng.standard_normal((len(configuration.normalization), *shape), dtype=np.float32) + labels
    places = {
        label.name: np.argwhere(np.isin(labels, label.values))[:10000].astype(np.int32) for label in plan.labels.classes
    }
    return MadeCase(image.astype(np.float32), labels, places)


def read_plans(folder: Path, cases: list[str]) -> Iterator[tuple[str, Plan]]:
    """The reference's own plans of some cases."""
    for name in cases:
        each = folder / name
        dataset = read_nnunet_dataset((each / "fingerprint.json").read_bytes(), (each / "dataset.json").read_bytes())
        yield name, read_nnunet_plans((each / "plans_default.json").read_bytes(), dataset)


def step_operations(plan: Plan, configuration: Configuration) -> int:
    """Multiplications and additions of a forward and a backward pass, as torch counts them, without computing them."""
    with torch.device("meta"):
        network = build_network(configuration.network, deep_supervision=configuration.deep_supervision, seed=None)
        images = torch.empty(configuration.batch_size, configuration.network.num_inputs, *configuration.patch_shape)
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
        sum(each.sum() for each in (logits if isinstance(logits, list) else [logits])).backward()
    return int(counter.get_total_flops())


def convolution_peak(device: torch.device) -> float:
    """Operations per second of the fastest of some bfloat16 convolutions, 2D and 3D, channels last."""
    best = 0.0
    for shape, layout in (((8, 256, 128, 128), torch.channels_last), ((2, 256, 48, 64, 64), torch.channels_last_3d)):
        if device.type == "cpu":
            shape = (1, 64, *(n // 4 for n in shape[2:]))
        convolve = functional.conv2d if len(shape) == 4 else functional.conv3d
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=layout)
        weight = torch.randn(shape[1], shape[1], *(3,) * (len(shape) - 2), device=device, dtype=torch.bfloat16)
        weight = weight.to(memory_format=layout)
        operations = 2 * shape[0] * math.prod(shape[2:]) * weight.numel()
        for _ in range(12):
            settle(device)
            started = time.perf_counter()
            for _ in range(5):
                convolve(x, weight, padding=1)
            settle(device)
            best = max(best, 5 * operations / (time.perf_counter() - started))
    return best


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(slots=True, kw_only=True)
class Stopwatch:
    """Lets steps be done for some seconds, after those that warm up, and keeps their records."""

    seconds: float
    micro_batch_size: int
    begun: float = 0.0
    records: list[StepRecord] = field(default_factory=list)
    new_batches: bool = False
    """Ends the steps."""

    def reads_after(self, step: int) -> bool:
        return step + 1 == WARM_UP_STEPS

    def learning_rate(self, step: int) -> float:
        return 1e-3

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)
        if len(self.records) == WARM_UP_STEPS:
            self.begun = time.perf_counter()
        self.new_batches = self.begun > 0 and time.perf_counter() - self.begun > self.seconds and not record.lag

    def on_memory_error(self, step: int) -> None:
        raise MemoryError(f"step {step} does not fit")


def measure(
    plan: Plan, configuration: Configuration, device: torch.device, arguments: argparse.Namespace
) -> dict[str, object]:
    """Steps for some seconds, from the first batch on."""
    features, batch = configuration.network.features[0], configuration.batch_size
    trial = trial_training(configuration, base_features=features, batch_size=batch, precision="bfloat16")
    method = {
        "optimiser": "sgd",
        "momentum": 0.99,
        "deep_supervision": configuration.deep_supervision,
        "mirroring": True,
    }
    training = trial.model_copy(update=method)
    network = build_network(configuration.network, deep_supervision=training.deep_supervision)
    parts = make_parts(network, make_loss(configuration.loss, plan.labels), training, device)
    parts.network.train()
    if arguments.compile:
        parts.network.compile()
    source = BatchSource(
        cases=[make_case(plan, configuration, seed) for seed in range(2)],
        recipe=configuration_recipe(configuration, training),
        batch_size=training.batch_size,
        foreground_share=training.foreground_share,
        seed=0,
        configuration=configuration.name,
        fold=0,
        purpose="training",
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    watch = Stopwatch(seconds=arguments.seconds, micro_batch_size=training.batch_size)
    train(
        parts,
        load_crops(source, range(MOST_STEPS), num_workers=arguments.workers, device=device),
        range(MOST_STEPS),
        make_batch=lambda crops: finish(crops, source.recipe, device),
        control=watch,
        on_step=watch.on_step,
        on_memory_error=watch.on_memory_error,
    )
    settled = watch.records[WARM_UP_STEPS:]
    spent, waited = (sum(getattr(record, name) for record in settled) for name in ("duration_s", "wait_s"))
    return {
        "patch": configuration.patch_shape,
        "batch": configuration.batch_size,
        "steps": len(settled),
        "steps_per_s": round(len(settled) / spent, 3),
        "waiting_share": round(waited / spent, 4),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 3) if device.type == "cuda" else None,
        "estimate_gb": round(estimated_gb(plan, configuration, device), 3),
        "operations_per_s": step_operations(plan, configuration) * len(settled) / spent,
    }


def estimated_gb(plan: Plan, configuration: Configuration, device: torch.device) -> float:
    kind = "cuda" if device.type == "cuda" else "cpu"
    return estimate_configuration_memory(configuration, dtype="bfloat16", device=kind).training_bytes / 1e9


def main() -> None:
    """Measure each case's first 3D configuration, or its 2D one, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("--cases", nargs="*", default=["001", "004", "028", "046"])
    parser.add_argument("--configurations", nargs="*", default=["3d_fullres", "2d"])
    parser.add_argument("--seconds", type=float, default=45.0, help="of steps for each configuration")
    parser.add_argument(
        "--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="processes that read crops"
    )
    parser.add_argument("--compile", action="store_true", help="let torch compile the network first")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    peak = convolution_peak(device)
    rows = {}
    for name, plan in read_plans(arguments.plans, arguments.cases):
        planned = {each.name for each in plan.configurations}
        for configuration in (plan.configuration(each) for each in arguments.configurations if each in planned):
            row = measure(plan, configuration, device, arguments)
            rate = row.pop("operations_per_s")
            row["share_of_peak"] = round(rate / peak, 3)  # type: ignore[operator]  # a float
            rows[f"{name} {configuration.name}"] = row
            print(name, configuration.name, json.dumps(row), flush=True)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    result = {
        "command": f"python benchmarks/gpu_steps.py PLANS --seconds {arguments.seconds:g}{' --compile' * arguments.compile}",
        "date": date.today().isoformat(),
        "hardware": f"{hardware}, {arguments.workers} workers",
        "torch": torch.__version__,
        "convolution_peak_tera_per_s": round(peak / 1e12, 2),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
