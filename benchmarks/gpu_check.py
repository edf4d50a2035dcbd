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
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # what each process would load for its first step
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoseg import api
from autoseg.compute.device import choose_device, fast_precision, introduce_device
from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.data.phantom import make_phantom_case, make_phantom_dataset
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import canonical_orientation, to_canonical
from autoseg.inference.model import Member, Model
from autoseg.inference.predictor import Predictor
from autoseg.networks import norms
from autoseg.networks.build import build_network, lay_out, place
from autoseg.networks.weights import read_weights
from autoseg.preprocessing.prepare import class_locations
from autoseg.run_folder import RunFolder
from autoseg.tracking.callbacks import Callback, StepRecord
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec, batch_source, make_fold_parts, make_network
from autoseg.training.loop import Parts, compute_gradient, load_optimiser, make_optimiser, run_network, train
from autoseg.training.losses import make_loss, supervise_deeply
from autoseg.training.preflight import find_micro_batch, num_readers
from autoseg.training.sampling import Batch, PackedBatch, finish, finish_together, load_crops, pack
from planners import (
    CaseSize,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Loss,
    Network,
    Plan,
    Training,
    estimate_configuration_memory,
    plan_dataset,
    trial_training,
)

Found = tuple[dict[str, Any], list[str]]
"""Figures of a check, and what is wrong."""
GB = 1e9
CAP_GB, CONTEXT_GB = 8.0, 0.6
"""What the usual plan is made for, and what of it a driver keeps for itself."""
LEAST_COSINE, LEAST_COSINE_FLOAT32 = 0.99, 0.9999
"""Of each parameter's gradient in the fast precision and in float32 with that of a CPU in float32."""
IMAGE_ERROR, TIES = 2e-4, 1e-3
"""Largest difference of augmented images, and share of voxels whose labels may differ, between device and CPU."""
MOST_WAITING = 0.25
"""Share of a step's time; readers that cannot keep up make a GPU useless."""
MARGIN = 1.4
"""Volumes are so much longer than the patch on every axis."""
BLOCK = 8
"""Edge of the blocks of one label, in voxels: classes of the size of small organs."""
WARM_UP_STEPS, MOST_STEPS = 5, 100_000
LEAST_DICE = 0.6
"""Of a phantom that was not seen, after the short training."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What checks are made on."""

    device: torch.device
    small: bool
    folder: Path
    """For files of this check."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        return fast_precision(self.device)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, action: Callable[[], object], times: int) -> float:
        """Seconds of each of so many calls, after one that is not counted."""
        action()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            action()
        self.wait()
        return (time.perf_counter() - started) / times


@dataclass(frozen=True, slots=True)
class MadeCase:
    """A preprocessed case in memory."""

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    locations: dict[str, NDArray[np.int32]]


# --- what is made up ---


def make_plan(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *, channels: int = 1, classes: int = 2
) -> Plan:
    """The plan of twenty such cases."""
    values = range(1, classes + 1)
    statistics = {"mean": 0.0, "median": 0.0, "std": 1.0, "minimum": -3.0, "maximum": 3.0}
    intensities = IntensityStatistics(**statistics, percentile_00_5=-2.0, percentile_99_5=2.0)
    cases = tuple(CaseSize(case_id=str(i), shape=shape, spacing_mm=spacing_mm) for i in range(20))
    return plan_dataset(
        Fingerprint(
            dataset_name="made",
            cases=cases,
            num_training_cases=len(cases),
            channels=tuple(f"MRI {i}" for i in range(channels)),
            labels=Labels(classes=tuple(LabelClass(name=f"class {value}", values=(value,)) for value in values)),
            intensities=(intensities,) * channels,
            median_relative_size_after_cropping=1.0,
        )
    )


def made_plans(bench: Bench) -> dict[str, tuple[Plan, Configuration]]:
    """A large isotropic one, like that of liver or torso, an anisotropic one of two channels, and slices."""
    if bench.small:
        plan, flat = make_plan((20, 24, 20), (1.0,) * 3), make_plan((8, 40, 40), (4.0, 1.0, 1.0), channels=2)
    else:
        plan = make_plan((300, 300, 300), (1.0,) * 3, classes=14)
        flat = make_plan((20, 320, 320), (3.6, 0.6, 0.6), channels=2)
    return {
        "isotropic": (plan, plan.configuration("3d_fullres")),
        "anisotropic": (flat, flat.configuration("3d_fullres")),
        "2d": (plan, plan.configuration("2d")),
    }


def make_case(plan: Plan, configuration: Configuration, seed: int) -> MadeCase:
    """Noise in blocks of random labels, on the configuration's grid."""
    rng, patch = np.random.default_rng(seed), configuration.patch_shape
    shape = tuple(math.ceil(MARGIN * n) for n in ((8, *patch) if len(patch) == 2 else patch))
    values = [value for label in plan.labels.classes for value in label.values]
    blocks = rng.choice([0, *values], [math.ceil(n / BLOCK) for n in shape])
    labels = np.kron(blocks, np.ones((BLOCK,) * 3, np.int16))[tuple(slice(n) for n in shape)].astype(np.int16)
    image = rng.standard_normal((len(configuration.normalization), *shape), dtype=np.float32) + labels
    return MadeCase(image.astype(np.float32), labels, class_locations(labels, plan.labels))


def make_phantom(number: int, labels: Labels, *, small: bool) -> MadeCase:
    """A case of the demo, standardised, in canonical axes; ``small``: its middle."""
    image, label_map, geometry = make_phantom_case(seed=0, number=number)
    orientation = canonical_orientation(geometry)
    image, found = to_canonical(image, orientation), to_canonical(label_map[None], orientation)[0].astype(np.int16)
    if small:
        middle = tuple(slice(n // 2 - 8, n // 2 + 8) for n in found.shape)
        image, found = image[(slice(None), *middle)], found[middle]
    image = (image - image.mean()) / image.std()
    return MadeCase(image, found, class_locations(found, labels))


def method_training(bench: Bench, configuration: Configuration, precision: str = "", **changes: Any) -> Training:
    """nnU-Net's own: width and batch of the plan under momentum, all heads."""
    features, batch_size = (4, 2) if bench.small else (configuration.network.features[0], configuration.batch_size)
    precision = precision or bench.precision
    trial = trial_training(configuration, base_features=features, batch_size=batch_size, precision=precision)
    method = {
        "optimiser": "sgd",
        "momentum": 0.99,
        "deep_supervision": configuration.deep_supervision,
        "mirroring": True,
    }
    return trial.model_copy(update={**method, **changes})


def make_spec(bench: Bench, plan: Plan, configuration: Configuration, training: Training) -> FoldSpec:
    """A fold of two made cases."""
    cases = [make_case(plan, configuration, seed) for seed in range(2)]
    return FoldSpec(
        plan=plan, configuration=configuration, training=training, fold=0, seed=0, training_cases=cases,
        validation_cases=cases[:1], folder=bench.folder, key="made", device=bench.device,
    )  # fmt: skip


def draw_batch(spec: FoldSpec) -> Batch:
    """The first batch of a fold, on its device."""
    source = batch_source(spec, purpose="training")
    return finish(source[0], source.recipe, spec.device)


# --- checks of what is computed ---


def check_device(bench: Bench) -> Found:
    """The device computes, and which norm it takes."""
    chosen = choose_device(str(bench.device))
    reason = norms.why_not_fused(chosen) if bench.on_gpu else "the device is no CUDA GPU"
    figures = {"device": introduce_device(chosen, num_threads=torch.get_num_threads()), "norm": reason or "fused"}
    modern = bench.on_gpu and torch.cuda.get_device_capability(chosen) >= norms.TENSOR_CORES_OF_BFLOAT16
    return figures, [f"the fused norm is not used: {reason}"] if modern and reason else []


def check_norm(bench: Bench) -> Found:
    """Triton kernels against the plain norm: results, gradients and time, with and without a skip path."""
    error = norms.kernel_error(bench.device) if bench.on_gpu else norm_error(bench.device)
    faults = [] if error <= norms.TOLERANCE else [f"the norm is wrong by {error:.2%}"]
    shape = (2, 8, 8, 12, 12) if bench.small else (2, 32, 128, 128, 128)
    plain = torch.randn(shape, device=bench.device).to(getattr(torch, bench.precision)).requires_grad_()
    last = plain.detach().to(memory_format=torch.channels_last_3d).requires_grad_()
    weight, bias = (torch.ones(shape[1], device=bench.device, requires_grad=True) for _ in range(2))

    def step(x: Tensor, norm: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        norm(x).backward(torch.ones_like(x))

    fused_s = bench.timed(partial(step, last, lambda x: norms.norm_activate(x, weight, bias)), 10)
    plain_s = bench.timed(
        partial(step, plain, lambda x: functional.leaky_relu(norms.instance_norm(x, weight, bias), 0.01)), 10
    )
    moved = 3 * last.numel() * last.element_size() + 5 * last.numel() * last.element_size()
    figures = {
        "error": error,
        "fused_ms": 1e3 * fused_s,
        "plain_ms": 1e3 * plain_s,
        "fused_gb_per_s": moved / fused_s / GB,
    }
    if bench.on_gpu and fused_s > plain_s:
        faults.append(f"the fused norm takes {fused_s / plain_s:.2f} times as long as the plain one")
    return figures, faults


def norm_error(device: torch.device) -> float:
    """Of the operation as it runs on a CPU, against torch's own norm in float64: value and gradients."""
    x = torch.randn(
        (2, 5, 4, 6, 7), dtype=torch.float64, device=device, generator=torch.Generator(device).manual_seed(0)
    )
    outcomes = []
    for norm in (lambda *given: torch.ops.autoseg.norm(*given, None, norms.NEGATIVE_SLOPE)[0], reference_norm):
        given = [
            x.clone().requires_grad_(),
            *(torch.linspace(0.5, 1.5, 5, dtype=x.dtype).requires_grad_() for _ in range(2)),
        ]
        result = norm(*given)
        (result * x.flip(0)).sum().backward()
        outcomes.append([result.detach(), *(each.grad for each in given)])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*outcomes, strict=True))


def reference_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.leaky_relu(
        functional.instance_norm(x, weight=weight, bias=bias, eps=norms.EPSILON), norms.NEGATIVE_SLOPE
    )


def check_gradients(bench: Bench) -> Found:
    """Each kind of network against a CPU in float32: the cosine of each parameter's gradient, in float32 and in the fast precision.

    A short precision changes small gradients of deep layers by itself, on every processor: there a cosine below 0.99 must be no
    worse than three times what the CPU loses by it. Left out are biases before a norm, which takes them away (their gradient is 0
    in exact arithmetic; on CUDA they have none), and heads without a weight in the loss.
    """
    figures: dict[str, Any] = {}
    faults = []
    for family in ("unet", "residual_unet", "vnet"):
        for axes in (2, 3):
            topology, cpu = topology_of(family, axes, small=bench.small), torch.device("cpu")
            size = 4 if bench.small else 8
            right, left_out = gradients(topology, cpu, "float32", size)
            usual, _ = gradients(topology, cpu, "bfloat16", size)
            for precision in dict.fromkeys(("float32", bench.precision)):
                found, _ = gradients(topology, bench.device, precision, size)
                name = f"{family} {axes}d {precision}"
                if found.keys() != right.keys():
                    faults.append(
                        f"{name}: other parameters have a gradient: {sorted(found.keys() ^ right.keys())[:3]}"
                    )
                    continue
                cosines = {each: cosine(found[each], right[each]) for each in found}
                allowed = {each: LEAST_COSINE_FLOAT32 if precision == "float32" else least_cosine(usual[each], right[each])
                           for each in found}  # fmt: skip
                worst = min(cosines, key=lambda each: cosines[each] - allowed[each])
                figures[name] = {"least": min(cosines.values()), "median": float(np.median([*cosines.values()])),
                                 "parameters": len(cosines), "left_out": left_out}  # fmt: skip
                if not cosines[worst] >= allowed[worst]:
                    faults.append(f"{name}: {worst} has the cosine {cosines[worst]:.5f}, below {allowed[worst]:.5f}")
    return figures, faults


def least_cosine(usual: Tensor, right: Tensor) -> float:
    """In a short precision, by what a CPU reaches in it."""
    return min(LEAST_COSINE, 1 - 3 * (1 - cosine(usual, right)))


def topology_of(family: str, axes: int, *, small: bool) -> Network:
    widths, counts = ((8, 16), 2) if small else ((32, 64, 128, 256), 4)
    residual = family == "residual_unet"
    return Network(
        family=family, num_inputs=1, num_outputs=3, features=widths, kernels=((3,) * axes,) * counts,
        strides=((1,) * axes, *[(2,) * axes] * (counts - 1)), blocks=(1, 3, 4, 4)[:counts] if residual else (2,) * counts,
        decoder_blocks=(1 if residual else 2,) * (counts - 1),
    )  # fmt: skip


def gradients(topology: Network, device: torch.device, precision: str, size: int) -> tuple[dict[str, Tensor], int]:
    """Of the product's loss by the parameters that matter, on the CPU in float32, and how many were left out."""
    labels = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
    images, truth = blocks_of_labels(len(topology.kernels[0]), size)
    network = awake(build_network(topology, deep_supervision=True, seed=3))
    trained = lay_out(build_network(topology, seed=None), channels_last=True)
    names = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
    network = place(network, device).train()
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        logits = run_network(network, images.to(device), precision)
        heads = logits if isinstance(logits, list) else [logits]
        supervise_deeply(make_loss(Loss(batch_dice=False), labels), heads, truth.to(device)).backward()
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    found = {name: each.grad for name, each in network.named_parameters() if name in names and each.grad is not None}
    return {name: grad.float().cpu() for name, grad in found.items()}, len([*network.parameters()]) - len(found)


def blocks_of_labels(axes: int, size: int) -> tuple[Tensor, Tensor]:
    """Two images with labels that show in them, in four blocks of that size on each axis."""
    drawn = torch.Generator().manual_seed(4)
    truth = torch.randint(0, 3, (2, *(4,) * axes), generator=drawn)
    for axis in range(1, axes + 1):
        truth = truth.repeat_interleave(size, axis)
    return (truth + 0.5 * torch.randn(truth.shape, generator=drawn))[:, None], truth


def awake(network: nn.Module) -> nn.Module:
    """With weights in place of zeros, which would hide gradients behind them."""
    drawn = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0.0, 0.1, generator=drawn)
        elif "conv2.norm" in name:
            nn.init.normal_(parameter, 1.0, 0.1, generator=drawn)
    return network


def cosine(one: Tensor, other: Tensor) -> float:
    """0 where either is 0 or not finite."""
    product = float((one * other).sum() / (one.norm() * other.norm()))
    return product if math.isfinite(product) else 0.0


def check_augmentation(bench: Bench) -> Found:
    """A batch at once on the device against sample by sample on the CPU, and its time at full size."""
    figures: dict[str, Any] = {}
    faults = []
    tried = made_plans(replace(bench, small=True))
    for name, (plan, configuration) in tried.items():
        training = method_training(bench, configuration, "float32", batch_size=12)
        spec = make_spec(bench, plan, configuration, training)
        source = batch_source(spec, purpose="training")
        crops = source[0]
        images, labels = finish(crops, source.recipe, torch.device("cpu"))
        together = finish if bench.on_gpu else finish_together
        found, found_labels = together(pack(crops, source.recipe.patch), source.recipe, bench.device)
        error = float((found.cpu() - images).abs().max())
        ties = float((found_labels.cpu() != labels).float().mean())
        figures[name] = {"image_error": error, "labels_apart": ties}
        if not (error <= IMAGE_ERROR and ties <= TIES):
            faults.append(f"{name}: images differ by {error:.1e}, {ties:.2%} of the labels")
    for name, (plan, configuration) in made_plans(bench).items():
        spec = make_spec(bench, plan, configuration, method_training(bench, configuration))
        source = batch_source(spec, purpose="training")
        packed = pack(source[0], source.recipe.patch)
        packed = packed.pin_memory() if bench.on_gpu else packed
        figures[name]["batch_ms"] = 1e3 * bench.timed(partial(finish, packed, source.recipe, bench.device), 3)
    return figures, faults


def check_late_results(bench: Bench) -> Found:
    """Pinned copies, the fused optimiser, results read late, and a step that is not finite, which must leave everything as it is."""
    plan, configuration = made_plans(replace(bench, small=True))["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration))
    faults = []
    source = batch_source(spec, purpose="training")
    loaded = next(iter(load_crops(source, range(1), num_workers=bench.on_gpu, device=bench.device)))
    pinned = isinstance(loaded, PackedBatch) and loaded.numbers.is_pinned()
    parts, batch = make_fold_parts(spec), draw_batch(spec)
    bad = batch[0] * math.nan, batch[1]
    watch = Watch(seconds=math.inf, micro_batch_size=spec.training.batch_size)
    weights: list[Tensor] = []

    def given(number: int) -> Batch:
        if number in (0, 1, 12, 13):  # right before, and right after the bad ones
            weights.append(torch.cat([each.detach().flatten().clone() for each in parts.network.parameters()]))
        return bad if number in (0, 12) else batch

    train(
        parts,
        range(21),
        range(21),
        make_batch=given,
        control=watch,
        on_step=watch.on_step,
        on_memory_error=watch.on_memory_error,
    )
    skipped = [record.step for record in watch.records if record.skipped]
    lags = max(record.lag for record in watch.records)
    if skipped != [0, 12] or [record.step for record in watch.records] != list(range(21)):
        faults.append(f"steps {skipped} were skipped of {len(watch.records)}; expected 0 and 12 of 21")
    if not (torch.equal(*weights[:2]) and torch.equal(*weights[2:]) and bool(weights[3].isfinite().all())):
        faults.append("weights changed in a step that was skipped")
    if any(not 0 <= record.wait_s <= record.duration_s + 1e-3 for record in watch.records):
        faults.append("a step waited longer than it took")
    error = optimiser_error(parts, batch)
    if error > 1e-5:
        faults.append(f"the fused optimiser differs from the plain one by {error:.1e}")
    if bench.on_gpu and not (pinned and parts.reads_late and lags > 0):
        faults.append(f"pinned memory {pinned}, fused optimiser {parts.reads_late}, results read {lags} steps late")
    return {"pinned": pinned, "fused": parts.reads_late, "latest": lags, "optimiser_error": error}, faults


def optimiser_error(parts: Parts, batch: Batch) -> float:
    """Largest difference of weights after two updates with the same gradients, relative to the largest weight."""
    compute_gradient(parts, *batch, len(batch[0]))
    copies = []
    for fused in (parts.reads_late, False):
        network = deepcopy(parts.network)
        optimiser = make_optimiser(network, parts.training, fused=fused)
        for _ in range(2):
            for mine, given in zip(network.parameters(), parts.network.parameters(), strict=True):
                mine.grad = None if given.grad is None else given.grad.clone()
            optimiser.step()
            load_optimiser(optimiser, optimiser.state_dict())
        copies.append(torch.cat([each.detach().flatten() for each in network.parameters()]))
    return float((copies[0] - copies[1]).abs().max() / copies[1].abs().max())


# --- checks of trainings ---


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
    for compiled in (False, True):
        spec = make_spec(bench, plan, configuration, method_training(bench, configuration, compiled=compiled))
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


def phantom_spec(bench: Bench, steps: int, fold: int = 0) -> FoldSpec:
    """A training on phantoms, with the network of their plan."""
    plan = make_plan((16, 16, 16) if bench.small else (48, 48, 48), (1.0,) * 3)
    configuration = plan.configuration("3d_fullres")
    changes = {"num_steps": steps, "steps_per_epoch": max(1, steps // 2), "warmup_steps": 0, "validation_batches": 2}
    features, size = (4, 2) if bench.small else (configuration.network.features[0], configuration.batch_size)
    trial = trial_training(configuration, base_features=features, batch_size=size, precision=bench.precision)
    training = trial.model_copy(update=changes)
    count = 2 if bench.small else 8
    cases = [make_phantom(number, plan.labels, small=bench.small) for number in range(count + 1)]
    folder = bench.folder / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    return FoldSpec(
        plan=plan, configuration=configuration, training=training, fold=fold, seed=0, training_cases=cases[:count],
        validation_cases=cases[count:], folder=folder, key=f"phantoms {steps}", device=bench.device,
        num_workers=num_readers(configuration, training, bench.device, available_cores()),
    )  # fmt: skip


@dataclass
class StopAfter(Callback):
    """An interruption after some steps."""

    left: int

    def on_step(self, step: StepRecord) -> None:
        self.left -= 1

    def is_due(self) -> bool:
        return self.left <= 0


def check_training(bench: Bench) -> Found:
    """A fold of phantoms, interrupted and resumed: losses, Dice of a case that was not seen, and the same training in one go."""
    steps = 4 if bench.small else 400
    started = time.perf_counter()
    spec = phantom_spec(bench, steps)
    stop = StopAfter(steps // 2)
    try:
        train_fold(spec, (stop,), should_stop=stop.is_due)
    except KeyboardInterrupt:
        train_fold(spec)
    spent = time.perf_counter() - started
    history = [json.loads(line) for line in (spec.folder / "history.jsonl").read_text().splitlines()]
    losses = [epoch["loss"] for epoch in history]
    weights = read_weights(spec.folder / "final.safetensors")
    dice = dice_of(bench, spec, weights)
    faults = [] if stop.left <= 0 and history[-1]["step"] == steps else ["the training did not end"]
    if None in losses or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        faults.append(f"losses of the epochs: {losses}")
    if not bench.small and dice < LEAST_DICE:
        faults.append(f"Dice {dice:.3f} of a phantom that was not seen")
    whole = phantom_spec(replace(bench, folder=bench.folder / "whole"), steps)
    train_fold(whole)
    others = read_weights(whole.folder / "final.safetensors")
    apart = cosine(
        *(torch.cat([each[name].flatten().float() for name in sorted(weights)]) for each in (weights, others))
    )
    if not bench.on_gpu and apart < 1 - 1e-6:  # sums on a GPU come in any order
        faults.append(f"weights of a resumed training have the cosine {apart:.4f} with those of one in one go")
    return {"seconds": spent, "losses": losses, "dice": dice, "cosine_of_resumed": apart}, faults


def make_predictor(spec: FoldSpec, network: nn.Module, device: torch.device) -> Predictor:
    dataset = DatasetDescription(
        name="made", root=str(spec.folder), layout="made", channels=tuple(spec.plan.channels), labels=spec.plan.labels,
        file_values=(0, *(label.values[0] for label in spec.plan.labels.classes)), file_ending=".nii.gz", training=(),
    )  # fmt: skip
    member = Member(configuration=spec.configuration, training=spec.training, networks=(place(network, device).eval(),))
    return Predictor(model=Model(dataset=dataset, plan=spec.plan, members=(member,), device=device, key=""))


def dice_of(bench: Bench, spec: FoldSpec, weights: dict[str, Tensor]) -> float:
    """Mean of the classes of the validation case, as the product predicts it."""
    network = make_network(spec.configuration, spec.training, seed=None)
    network.load_state_dict(weights)
    case = spec.validation_cases[0]
    image = Image(array=np.asarray(case.image), geometry=Geometry(shape=case.labels.shape, spacing_mm=(1.0,) * 3))
    labels = make_predictor(spec, network, bench.device).predict_read(image).labels
    pairs = [(labels == value, case.labels == value) for value in spec.plan.labels.values]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in pairs]))


def check_prediction(bench: Bench) -> Found:
    """A small image on device and CPU, and a large one on the device under 8 GB."""
    plan, configuration = made_plans(replace(bench, small=True))["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration, "float32", mirroring=True))
    rng = np.random.default_rng(0)
    small = Image(array=rng.standard_normal((1, 22, 30, 26)).astype(np.float32),
                  geometry=Geometry(shape=(22, 30, 26), spacing_mm=(1.0, 0.8, 0.8)))  # fmt: skip
    maps = []
    for device in (torch.device("cpu"), bench.device):
        network = make_network(configuration, spec.training, seed=1)
        maps.append(make_predictor(spec, network, device).predict_read(small).labels)
    apart = float((maps[0] != maps[1]).mean())
    faults = (
        [] if apart < 0.01 and len(np.unique(maps[0])) > 1 else [f"{apart:.2%} of the voxels differ from the CPU's"]
    )
    plan, configuration = made_plans(bench)["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration, mirroring=False))
    shape = (30, 40, 40) if bench.small else (400, 512, 512)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (CAP_GB - CONTEXT_GB) * GB / total), bench.device)
    image = Image(
        array=rng.standard_normal((1, *shape), dtype=np.float32),
        geometry=Geometry(shape=shape, spacing_mm=(1.0, 0.8, 0.8)),
    )
    predictor = make_predictor(spec, make_network(configuration, spec.training, seed=1), bench.device)
    started = time.perf_counter()
    labels = predictor.predict_read(image).labels
    figures = {"voxels_apart": apart, "large": {"shape": shape, "seconds": time.perf_counter() - started}}
    if bench.on_gpu:
        figures["large"]["peak_gb"] = torch.cuda.max_memory_reserved(bench.device) / GB
    return figures, [*faults, *([] if labels.shape == shape else [f"the large label map is {labels.shape}"])]


def check_folds(bench: Bench) -> Found:
    """Two folds at once, each on a device of its own, against one alone."""
    devices = (
        [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if bench.on_gpu else [bench.device] * 2
    )
    if len(devices) < 2:
        return {"skipped": "there is one device"}, []
    steps = 2 if bench.small else 150

    times = []
    for numbers in ((2,), (0, 1)):
        context, started = multiprocessing.get_context("spawn" if bench.on_gpu else "fork"), time.perf_counter()
        given = [(number, devices[number % 2]) for number in numbers]
        running = [context.Process(target=run_fold, args=(bench, steps, *each)) for each in given]
        for each in running:
            each.start()
        for each in running:
            each.join()
        times.append(time.perf_counter() - started)
    done = [(bench.folder / f"fold_{number}" / "final.safetensors").exists() for number in range(3)]
    faults = [] if all(done) else [f"folds that ended: {done}"]
    if bench.on_gpu and times[1] > 1.5 * times[0]:
        faults.append(f"two folds take {times[1]:.0f} s, one {times[0]:.0f} s")
    return {"one_s": times[0], "two_s": times[1]}, faults


def run_fold(bench: Bench, steps: int, number: int, device: torch.device) -> None:
    torch.set_num_threads(1)
    train_fold(phantom_spec(replace(bench, device=device), steps, number))


def check_run(bench: Bench) -> Found:
    """The product as it is called: the demo's phantoms with a budget, which must be kept, and scores that are no accident."""
    data, budget_s = bench.folder / "data", 20 if bench.small else 90
    make_phantom_dataset(data, num_training=4 if bench.small else 10, num_test=1)
    started = time.perf_counter()
    run = api.run(
        data, bench.folder / "run", budget=f"{budget_s}s", device=str(bench.device), folds=2, anyway=bench.small
    )
    spent = time.perf_counter() - started
    folder = RunFolder(bench.folder / "run")
    selection = json.loads(folder.selection.read_text())
    figures = {"budget_s": budget_s, "seconds": spent, "selection": {name: selection[name] for name in ("members", "folds")},
               "dice": selection.get("dice_after_postprocessing"), "device": str(run.device)}  # fmt: skip
    faults = [] if [*folder.predictions.glob("*.nii.gz")] else ["there is no prediction"]
    if not bench.small and spent > 1.1 * budget_s + 15:  # the report and the first use of a device are no part of it
        faults.append(f"took {spent:.0f} s of {budget_s} s")
    if not bench.small and (figures["dice"] or 0) < LEAST_DICE:
        faults.append(f"Dice {figures['dice']}")
    return figures, faults


# --- one after the other ---


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
