"""Checks of training steps: speed and waiting, profile, memory within a cap, compiled networks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoseg.compute.executor import available_cores
from autoseg.networks import norms
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.fold_spec import FoldSpec, batch_source, make_fold_parts, make_network
from autoseg.training.loop import Parts, compute_gradient, train
from autoseg.training.preflight import find_micro_batch, num_readers
from autoseg.training.sampling import finish, load_crops
from gpu_checks.made import (
    CAP_GB,
    CONTEXT_GB,
    GB,
    LEAST_COSINE,
    LEAST_COSINE_FLOAT32,
    Bench,
    Found,
    cosine,
    draw_batch,
    made_plans,
    make_spec,
    method_training,
)
from planners import (
    Configuration,
    Training,
    estimate_configuration_memory,
)

MOST_WAITING = 0.25
"""Share of a step's time; readers that cannot keep up make a GPU useless."""
WARM_UP_STEPS, MOST_STEPS = 5, 100_000


@dataclass(slots=True, kw_only=True)
class Watch:
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


def do_steps(spec: FoldSpec, seconds: float) -> tuple[Parts, list[StepRecord]]:
    """Steps of a fold for some seconds through its whole data pipeline; the records of those after the first few."""
    parts, source = make_fold_parts(spec), batch_source(spec, purpose="training")
    watch = Watch(seconds=seconds, micro_batch_size=spec.training.batch_size)
    readers = num_readers(spec.configuration, spec.training, spec.device, available_cores())
    train(
        parts,
        load_crops(source, range(MOST_STEPS), num_workers=readers, device=spec.device),
        range(MOST_STEPS),
        make_batch=lambda crops: finish(crops, source.recipe, spec.device),
        control=watch,
        on_step=watch.on_step,
        on_memory_error=watch.on_memory_error,
    )
    return parts, watch.records[WARM_UP_STEPS:]


def check_steps(bench: Bench, compiled: bool = False) -> Found:
    """Steps a second with their data pipeline, waiting, memory beside estimate and target, and the share of the peak."""
    figures: dict[str, Any] = {"peak_tera_per_s": convolution_peak(bench) / 1e12}
    faults = []
    for name, (plan, configuration) in made_plans(bench).items():
        training = method_training(bench, configuration, compiled=compiled)
        if bench.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(bench.device)
        _, records = do_steps(make_spec(bench, plan, configuration, training), 0.2 if bench.small else 12.0)
        spent, waited = (sum(getattr(record, each) for record in records) for each in ("duration_s", "wait_s"))
        estimate = estimate_configuration_memory(
            configuration, dtype=training.precision, device="cuda" if bench.on_gpu else "cpu", optimiser="sgd"
        ).training_bytes
        row = {
            "patch": configuration.patch_shape, "batch": configuration.batch_size, "steps_per_s": len(records) / spent,
            "waiting_share": waited / spent, "estimate_gb": estimate / GB,
            "share_of_peak": step_operations(configuration, training) * len(records) / spent / figures["peak_tera_per_s"] / 1e12,
        }  # fmt: skip
        figures[name] = row
        if any(record.skipped or not math.isfinite(record.loss) for record in records):
            faults.append(f"{name}: a loss or gradient is not finite")
        if bench.on_gpu:
            row["reserved_gb"] = torch.cuda.max_memory_reserved(bench.device) / GB
            if row["waiting_share"] > MOST_WAITING:
                faults.append(f"{name}: {row['waiting_share']:.0%} of the time waits for patches")
            if row["reserved_gb"] > min(1.1 * row["estimate_gb"], plan.memory_target_gb):
                faults.append(f"{name}: takes {row['reserved_gb']:.1f} GB; estimate {row['estimate_gb']:.1f} GB")
    return figures, faults


def step_operations(configuration: Configuration, training: Training) -> int:
    """Multiplications and additions of a forward and a backward pass, as torch counts them, without computing them."""
    with torch.device("meta"):
        network = make_network(configuration, training, seed=None)
        images = torch.empty(training.batch_size, configuration.network.num_inputs, *configuration.patch_shape)
    with FlopCounterMode(display=False) as counter:
        logits = network(images)
        sum(each.sum() for each in (logits if isinstance(logits, list) else [logits])).backward()
    return int(counter.get_total_flops())


def convolution_peak(bench: Bench) -> float:
    """Operations a second of the faster of two convolutions, 2D and 3D, in the fast precision, channels last."""
    best = 0.0
    for shape, layout in (((8, 256, 128, 128), torch.channels_last), ((2, 256, 48, 64, 64), torch.channels_last_3d)):
        if bench.small:
            shape = (1, 32, *(n // 8 for n in shape[2:]))
        convolve, axes = (functional.conv2d if len(shape) == 4 else functional.conv3d), len(shape) - 2
        x, weight = (
            torch.randn(size, device=bench.device, dtype=getattr(torch, bench.precision)).to(memory_format=layout)
            for size in (shape, (shape[1], shape[1], *(3,) * axes))
        )
        seconds = bench.timed(partial(convolve, x, weight, padding=1), 1 if bench.small else 20)
        best = max(best, 2 * shape[0] * math.prod(shape[2:]) * weight.numel() / seconds)
    return best


def check_compiled(bench: Bench) -> Found:
    """A compiled step against one that is not: gradients, then speed."""
    plan, configuration = made_plans(bench)["isotropic"]
    outcomes, times = [], []
    precision = "float32" if bench.small else ""  # a few voxels in short precision are mostly rounding
    for compiled in (False, True):
        training = method_training(bench, configuration, precision, compiled=compiled)
        spec = make_spec(bench, plan, configuration, training)
        parts, batch = make_fold_parts(spec), draw_batch(spec)
        times.append(bench.timed(lambda parts=parts, batch=batch: compute_gradient(parts, *batch, len(batch[0])), 5))
        outcomes.append({name: each.grad.float() for name, each in parts.network.named_parameters()
                         if each.grad is not None and "norm" in name})  # fmt: skip
    least = min(cosine(grad, outcomes[0][name]) for name, grad in outcomes[1].items())
    faults = [] if least >= LEAST_COSINE else [f"the least cosine of a norm's gradient is {least:.4f}"]
    return {"eager_ms": 1e3 * times[0], "compiled_ms": 1e3 * times[1], "least_cosine": least}, faults


def check_profile(bench: Bench) -> Found:
    """What the steps of the large plan spend their time on: kernels by kind, launches, and copies between layouts."""
    from torch.profiler import ProfilerActivity, profile

    plan, configuration = made_plans(bench)["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration))
    parts, batch = make_fold_parts(spec), draw_batch(spec)
    steps = 1 if bench.small else 5
    watch = Watch(seconds=math.inf, micro_batch_size=spec.training.batch_size)
    run = partial(train, parts, make_batch=lambda number: batch, control=watch, on_step=watch.on_step,
                  on_memory_error=watch.on_memory_error)  # fmt: skip
    run(loaded=range(2), steps=range(2))
    with profile(activities=[ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]) as seen:
        run(loaded=range(steps), steps=range(steps))
    busy = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    rows = sorted(
        ((each.key, getattr(each, busy), each.count) for each in seen.key_averages()), key=lambda row: -row[1]
    )
    total = sum(row[1] for row in rows) or 1
    kinds = {"convolutions": ("conv", "xmma", "cutlass", "gemm", "wgrad", "dgrad", "fprop"), "norm": ("_moments", "_apply", "_sums", "_gradients", "_merge"),
             "relayouts": ("nchwtonhwc", "nhwctonchw", "ndhwc", "transpose")}  # fmt: skip
    shares = {
        kind: sum(row[1] for row in rows if any(word in row[0].lower() for word in words)) / total
        for kind, words in kinds.items()
    }
    figures = {"kernels_a_step": sum(row[2] for row in rows) / steps, "busy_ms_a_step": total / 1e3 / steps, "shares": shares,
               "most": [{"name": row[0][:80], "share": row[1] / total, "times": row[2] / steps} for row in rows[:12]]}  # fmt: skip
    faults = [] if rows else ["the profiler saw nothing"]
    if bench.on_gpu and norms.why_not_fused(bench.device) is None and shares["relayouts"] > 0.05:
        faults.append(f"{shares['relayouts']:.0%} of the time changes layouts")
    return figures, faults


def check_cap(bench: Bench) -> Found:
    """Plans for 8 GB fit into 8 GB whole; with less than half of what they take, micro-batches have the same gradient."""
    figures: dict[str, Any] = {}
    faults = []
    for name, (plan, configuration) in made_plans(bench).items():
        spec = make_spec(bench, plan, configuration, method_training(bench, configuration))
        estimate = estimate_configuration_memory(
            configuration, dtype=spec.training.precision, device="cuda"
        ).training_bytes
        for cap_gb in (CAP_GB, CONTEXT_GB + 0.45 * estimate / GB):
            if bench.on_gpu:
                torch.cuda.empty_cache()
                total = torch.cuda.get_device_properties(bench.device).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, (cap_gb - CONTEXT_GB) * GB / total), bench.device)
            size = find_micro_batch(spec)
            batch_size = spec.training.batch_size
            figures[f"{name}, {cap_gb:.1f} GB"] = {"batch": batch_size, "micro_batch": size}
            if cap_gb == CAP_GB and size != batch_size:
                faults.append(f"{name}: of {batch_size} samples {size} fit into {cap_gb:g} GB at once")
        if bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    plan, configuration = made_plans(replace(bench, small=True))["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration, "float32", batch_size=4))
    parts, batch = make_fold_parts(spec), draw_batch(spec)
    found = []
    for size in (4, 2):
        compute_gradient(parts, *batch, size)
        found.append(
            torch.cat([each.grad.flatten().clone() for each in parts.network.parameters() if each.grad is not None])
        )
    figures["cosine of micro-batches"] = cosine(*found)
    if figures["cosine of micro-batches"] < LEAST_COSINE_FLOAT32:
        faults.append("micro-batches have another gradient than the batch")
    return figures, faults
