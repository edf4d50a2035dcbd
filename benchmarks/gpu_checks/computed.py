"""Checks of what a device computes: norm, gradients, augmentation, steps that are read late."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.compute.device import choose_device, introduce_device
from autoseg.networks import norms
from autoseg.networks.build import build_network, lay_out, place
from autoseg.training.fold_spec import batch_source, make_fold_parts
from autoseg.training.loop import Parts, compute_gradient, load_optimiser, make_optimiser, run_network, train
from autoseg.training.losses import make_loss, supervise_deeply
from autoseg.training.sampling import Batch, PackedBatch, finish, finish_together, load_crops, pack
from gpu_checks.made import (
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
from gpu_checks.trained import Watch
from planners import (
    LabelClass,
    Labels,
    Loss,
    Network,
)

IMAGE_ERROR, TIES = 2e-4, 1e-3
"""Largest difference of augmented images, and share of voxels whose labels may differ, between device and CPU."""


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
