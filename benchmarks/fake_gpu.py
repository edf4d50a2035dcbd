"""What a training step asks of a GPU, counted without one: kernels, bytes, relayouts, waiting, memory, and a modelled time.

    python benchmarks/fake_gpu.py PLANS [--cases 001 004 028 046] [--all | --compiled]

Steps run on fake CUDA tensors, which have shapes, layouts and formats, and no numbers. Needs torch's CUDA build, no GPU and no
driver, and a C compiler: a stub that says that there are devices is built and preloaded, without which fake tensors have no
gradients. PLANS holds one folder for each case, with the reference's ``fingerprint.json``, ``dataset.json`` and
``plans_default.json``. Each plan is computed twice, as the product does and as the reference does it: contiguous, with biases,
torch's instance norm and leaky ReLU one after the other.

The model of time: each kernel takes what its bytes take at 80 % of the bandwidth, what its operations take at a share of the matrix
peak that grows with the width, or a launch, whichever is longest. Two kinds of numbers are counted that torch does not show: a norm
reads its map twice forward, and map and gradient twice backward, in both ways; and cuDNN's tensor cores take channels last, so
contiguous maps are converted before and after. How fast that is and whether it can be left out is not known here, so the table
tells the time with and without these hidden conversions.

``--all`` counts the peak memory of every configuration of every plan instead, beside the plan's target and the product's estimate.
``--compiled`` counts the code that torch's compiler makes of a network, forward and backward: once with every map counted once for each
kernel that reads or writes it, and once with the second reading that a norm of the product's takes. Beside both ways stands the product's
norm as a formula that the compiler fuses itself.
Results are kept in ``results/fake_gpu.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import subprocess
import sys
import tempfile
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoseg.networks import blocks, build, norms
from autoseg.training.loop import Parts, make_optimiser, run_network, train_step
from autoseg.training.losses import make_loss
from planners import (
    Configuration,
    Plan,
    Training,
    estimate_configuration_memory,
    read_nnunet_dataset,
    read_nnunet_plans,
    trial_training,
)

RESULTS = Path(__file__).resolve().parent / "results" / "fake_gpu.md"
STUB = """
static signed char n = 0;
void set_fake_devices(int k) { n = (signed char)k; }
signed char _ZN3c104cuda12device_countEv(void) { return n; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { if (flags) *flags = 0; *active = 0; return 0; }
int cuCtxGetCurrent(void **context) { *context = 0; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = 0; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "there is no driver"; return 0; }
"""
"""Of torch's count of devices, and of what it asks the driver before the first kernel."""
ABSENT = """
cuDevicePrimaryCtxRetain cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuLaunchCooperativeKernel cuLaunchKernel
cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2 cuModuleGetFunction cuModuleLoad cuModuleLoadData cuModuleLoadDataEx
cuModuleUnload cuOccupancyMaxActiveBlocksPerMultiprocessor cuPointerGetAttribute cuTensorMapEncodeTiled
"""
"""Functions of the driver that must exist and are never called."""
DEVICE = torch.device("cuda:0")
BANDWIDTH, PEAK, LAUNCH_S = 4.8e12, 790e12, 5e-6
"""Of an H200: bytes a second, bfloat16 operations a second that libraries reach, seconds from kernel to kernel."""
REACHED, RELAYOUT_REACHED = 0.8, 0.6
"""Of the bandwidth: by kernels that read in order, and by those that exchange axes."""
STEPS, VALIDATION_STEPS = 250, 50
"""Of the reference's epoch."""
WIDE = 100_000
"""Values from which a tensor is a feature map."""
WORKSPACES_GB = 1.0
"""Of a plan's target, left for workspaces of libraries and for gaps."""
VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "select", "slice", "unsqueeze", "squeeze", "expand",
    "as_strided", "split", "split_with_sizes", "unbind", "detach", "alias", "movedim", "narrow", "_reshape_alias",
    "lift_fresh", "unsafe_split", "unfold", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "set_",
}  # fmt: skip
"""Operations that start no kernel."""
WAITING = {"_local_scalar_dense", "equal", "nonzero", "bincount", "_unique2", "unique_dim", "masked_select"}
"""Operations that make the host wait for the device."""
TWICE = {"cudnn_batch_norm": 1, "native_batch_norm": 1, "_batch_norm_with_update": 1, "native_group_norm": 1, "norm": 1,
         "cudnn_batch_norm_backward": 2, "native_batch_norm_backward": 2, "native_group_norm_backward": 2,
         "norm_backward": 2}  # fmt: skip
"""Norms, and how many of their inputs, from the first, are maps that are read twice."""
KERNELS = {
    "norm": 3,
    "norm_again": 1,
    "norm_backward": 3,
    "cudnn_batch_norm": 2,
    "native_batch_norm": 3,
    "native_batch_norm_backward": 2,
}


def is_channels_last(t: Tensor) -> bool:
    """As torch asks before it calls cuDNN: by strides, of which those of a single voxel or channel say nothing."""
    if t.ndim not in (4, 5) or t.stride(1) == 0:
        return False
    least = 0
    for axis in (1, *range(t.ndim - 1, 1, -1), 0):
        if t.shape[axis] == 0 or t.stride(axis) < least or (axis == 0 and least == t.stride(1)):
            return False
        least = t.stride(axis) * max(t.shape[axis], 1)
    return True


def layout_of(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Of a convolution's maps in torch: channels last where either has it."""
    if not (is_channels_last(x) or is_channels_last(weight)):
        return torch.contiguous_format
    return torch.channels_last_3d if weight.ndim == 5 else torch.channels_last


def empty(shape: Any, like: Tensor, layout: torch.memory_format) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout)


def fake_convolution(mode: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Shapes and layouts of a convolution and of its gradients as torch's calls of cuDNN give them."""
    names = [each.name for each in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    x, weight = given["input"], given["weight"]
    layout = layout_of(x, weight)
    with mode:
        if func is torch.ops.aten.convolution.default:
            sizes = zip(x.shape[2:], given["stride"], given["padding"], weight.shape[2:], strict=True)
            if given["transposed"]:
                spatial, channels = [(n - 1) * s - 2 * p + k for n, s, p, k in sizes], weight.shape[1]
            else:
                spatial, channels = [(n + 2 * p - k) // s + 1 for n, s, p, k in sizes], weight.shape[0]
            return empty((x.shape[0], channels, *spatial), x, layout)
        wanted = given["output_mask"]
        channels = weight.shape[1] if given["transposed"] else weight.shape[0]
        return (
            empty(x.shape, x, layout) if wanted[0] else None,
            torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device)
            if wanted[1]
            else None,
            torch.empty(channels, dtype=weight.dtype, device=weight.device) if wanted[2] else None,
        )


@dataclass(slots=True)
class Kernel:
    """One operation of torch."""

    name: str
    num_bytes: int
    operations: float = 0.0
    width: int = 1
    hidden: int = 0
    """Bytes of conversions that cuDNN makes by itself."""
    relayout: bool = False
    launches: int = 1


@dataclass
class Count:
    """Of a step."""

    kernels: list[Kernel] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    wide: Counter[str] = field(default_factory=Counter)
    """float32 feature maps, by the operation that made them."""
    live: int = 0
    peak: int = 0

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    def gigabytes(self, *, hidden: bool = False, relayouts: bool = False) -> float:
        if hidden:
            return sum(kernel.hidden for kernel in self.kernels) / 1e9
        return sum(kernel.num_bytes for kernel in self.kernels if kernel.relayout or not relayouts) / 1e9

    def seconds(self, *, hidden: bool) -> float:
        return sum(modelled_s(kernel, hidden=hidden) for kernel in self.kernels)


def modelled_s(kernel: Kernel, *, hidden: bool) -> float:
    reached = RELAYOUT_REACHED if kernel.relayout else REACHED
    share = 0.12 if kernel.width <= 8 else 0.20 if kernel.width <= 32 else 0.35 if kernel.width <= 64 else 0.45
    needed = max(kernel.num_bytes / (BANDWIDTH * reached), kernel.operations / (PEAK * share))
    needed += hidden * kernel.hidden / (BANDWIDTH * RELAYOUT_REACHED)
    return max(needed, kernel.launches * LAUNCH_S)


class StepCounter(TorchDispatchMode):
    """Counts what runs on fake CUDA tensors, and the storages alive."""

    def __init__(self, shapes: set[tuple[int, ...]], widths: set[int]) -> None:
        super().__init__()
        self.count, self.shapes, self.widths = Count(), shapes, widths
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        waits = name in WAITING
        if name == "_local_scalar_dense":
            self.count.waits[name] += 1
            return 1.0 if args[0].dtype.is_floating_point else 1
        out = func(*args, **(kwargs or {}))
        given, made = ([t for t in tree_leaves(each) if isinstance(t, Tensor)] for each in ((args, kwargs), out))
        for tensor in made:
            self.remember(tensor)
        if name in ("copy_", "_to_copy"):
            source = given[1] if name == "copy_" else given[0]
            waits = source.device.type == "cuda" and made[0].device.type == "cpu"
        self.count.waits[name] += waits
        cuda = list({id(t): t for t in given + made if t.device.type == "cuda"}.values())
        if not cuda or name in VIEWS or func._schema.name.startswith("prim::"):
            return out
        kernel = Kernel(name, sum(map(bytes_of, cuda)), launches=KERNELS.get(name, 1))
        if name in TWICE:
            kernel.num_bytes += sum(map(bytes_of, given[: TWICE[name]]))
        if name in ("convolution", "convolution_backward"):
            self.convolve(kernel, func, args, made)
        if name in ("clone", "copy_", "_to_copy") and made[0].ndim > 2 and made[0].numel() > WIDE:
            source = given[1] if name == "copy_" and len(given) > 1 else given[0]
            kernel.relayout = source.shape == made[0].shape and source.stride() != made[0].stride()
        for tensor in made:
            if tensor.dtype == torch.float32 and tensor.shape[2:] in self.shapes and tensor.shape[1] in self.widths:
                self.count.wide[name] += tensor.numel() > WIDE
        self.count.kernels.append(kernel)
        return out

    def convolve(self, kernel: Kernel, func: Any, args: Any, made: list[Tensor]) -> None:
        """Operations, a bias that is added in a kernel of its own, and conversions."""
        names = [each.name for each in func._schema.arguments]
        given = dict(zip(names, args, strict=False))
        x, weight, transposed = given["input"], given["weight"], given["transposed"]
        layout = layout_of(x, weight)
        at = given.get("grad_output", made[0])
        per_value = 2 * math.prod(weight.shape[2:]) * weight.shape[1]
        kernel.width = min(weight.shape[:2])
        kernel.operations = per_value * (x if transposed else at).numel()
        mask = given.get("output_mask", (True, False, given.get("bias") is not None))
        runs = sum(map(int, mask[:2]))
        kernel.operations *= runs
        kernel.launches = runs
        if "grad_output" in given:  # each of both kernels reads the gradient, and map or weight
            kernel.num_bytes += bytes_of(at) * (runs - 1 + int(mask[2]))
        elif mask[2]:
            kernel.num_bytes += 2 * bytes_of(at)
        kernel.launches += int(mask[2])
        maps = [t for t in (x, at) if "grad_output" in given or t is x]
        visible = [t for t in maps if not t.is_contiguous(memory_format=layout)]
        kernel.hidden = 2 * sum(map(bytes_of, visible))
        if layout is torch.contiguous_format:
            kernel.hidden += 2 * (bytes_of(x) + bytes_of(at)) * max(1, runs)

    def remember(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        self.alive[key] = size = -(-storage.nbytes() // 512) * 512  # as torch's allocator rounds
        self.count.live += size
        self.count.peak = max(self.count.peak, self.count.live)

        def gone() -> None:
            self.count.live -= self.alive.pop(key, 0)

        weakref.finalize(storage, gone)


def bytes_of(t: Tensor) -> int:
    return t.numel() * t.element_size()


@contextlib.contextmanager
def the_references_way(on: bool) -> Iterator[None]:
    """Within, convolutions keep their bias."""
    kept = blocks.before_norm
    changed = (lambda convolution, x: convolution(x)) if on else kept
    blocks.before_norm = build.before_norm = changed
    try:
        yield
    finally:
        blocks.before_norm = build.before_norm = kept


def method_training(configuration: Configuration) -> Training:
    """The reference's own: a batch of the plan in bfloat16 under momentum, all heads."""
    trial = trial_training(
        configuration,
        base_features=configuration.network.features[0],
        batch_size=configuration.batch_size,
        precision="bfloat16",
    )
    changes = {"optimiser": "sgd", "momentum": 0.99, "deep_supervision": configuration.deep_supervision}
    return trial.model_copy(update=changes)


def made_fake(network: nn.Module, *, reference: bool) -> nn.Module:
    """The network with fake parameters on the device."""
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                fake = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=DEVICE)
                trained = parameter.requires_grad or reference
                module._parameters[name] = nn.Parameter(fake, requires_grad=trained)
    return network


def count_step(plan: Plan, configuration: Configuration, *, reference: bool, trains: bool = True) -> Count:
    """The second training step, beside which the optimiser's state exists, or a validation step."""
    training, shape = method_training(configuration), configuration.patch_shape
    topology = configuration.network
    shapes = {tuple(shape)}
    for stride in topology.strides:
        shapes.add(tuple(n // s for n, s in zip(min(shapes, key=math.prod), stride, strict=True)))
    widths = {*topology.features, *(2 * width for width in topology.features)} - {topology.num_outputs}
    with torch.device("meta"):
        network = build.build_network(topology, deep_supervision=training.deep_supervision, seed=None)
        network = build.lay_out(network, channels_last=not reference)
    with FakeTensorMode(allow_non_fake_inputs=True), the_references_way(reference):
        counter = StepCounter(shapes, widths)
        with counter:
            network = made_fake(network, reference=reference)
            parts = Parts(
                network=network,
                step_network=network,
                optimiser=make_optimiser(network, training),
                scaler=torch.amp.GradScaler("cuda", enabled=False),
                loss=make_loss(configuration.loss, plan.labels),
                training=training,
                device=DEVICE,
            )
            for group in parts.optimiser.param_groups:
                group["foreach"] = True
            images = torch.empty((configuration.batch_size, topology.num_inputs, *shape), device=DEVICE)
            labels = torch.zeros((configuration.batch_size, *shape), dtype=torch.int64, device=DEVICE)
            if trains:
                network.train()
                train_step(parts, images, labels, 0.01)
            live = counter.count.live
            counter.count = Count(live=live, peak=live)
            if trains:
                train_step(parts, images, labels, 0.01)
            else:
                with torch.no_grad():
                    run_network(network.eval(), images, training.precision)
    return counter.count


def pretend() -> None:
    """Make torch believe in a GPU, as far as fake tensors ask for one."""
    torch._C._ensureCUDADeviceGuardSet()
    ctypes.CDLL(os.environ["LD_PRELOAD"]).set_fake_devices(8)
    import torch.cuda.amp.common as common
    from torch.nn.utils import clip_grad

    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.is_available = lambda: False
    clip_grad._has_foreach_support = clip_grad._device_has_foreach_support = lambda *given: True
    for operation in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
        fake_impls.op_implementations_dict[operation] = fake_convolution


def read_plans(folder: Path, cases: list[str], kind: str = "default") -> Iterator[tuple[str, Plan]]:
    """The reference's own plans of some cases."""
    for name in cases:
        each = folder / name
        dataset = read_nnunet_dataset((each / "fingerprint.json").read_bytes(), (each / "dataset.json").read_bytes())
        yield name, read_nnunet_plans((each / f"plans_{kind}.json").read_bytes(), dataset)


def table(folder: Path, cases: list[str], configurations: list[str]) -> Iterator[str]:
    """Both ways of each plan."""
    yield "| plan | way | kernels | waits | GB a step | relayouts GB | hidden GB | float32 maps | peak GB | ms a step | without hidden | s an epoch |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for name, plan in read_plans(folder, cases):
        for configuration in (each for each in plan.configurations if each.name in configurations):
            for reference in (False, True):
                step = count_step(plan, configuration, reference=reference)
                checked = count_step(plan, configuration, reference=reference, trains=False)
                epoch = STEPS * step.seconds(hidden=True) + VALIDATION_STEPS * checked.seconds(hidden=True)
                row = (
                    f"{name} {configuration.name}", "reference" if reference else "autoseg", step.launches,
                    sum(step.waits.values()), f"{step.gigabytes():.1f}", f"{step.gigabytes(relayouts=True):.2f}",
                    f"{step.gigabytes(hidden=True):.1f}", sum(step.wide.values()), f"{step.peak / 1e9:.2f}",
                    f"{1e3 * step.seconds(hidden=True):.1f}", f"{1e3 * step.seconds(hidden=False):.1f}", f"{epoch:.1f}",
                )  # fmt: skip
                yield f"| {' | '.join(map(str, row))} |"


def memory_table(folder: Path) -> Iterator[str]:
    """Peak memory of every configuration of every plan, as the product computes it."""
    yield "| plan | target GB | counted GB | estimate GB | |"
    yield "| --- | --- | --- | --- | --- |"
    for path in sorted(folder.glob("*/plans_*.json")):
        kind = path.stem.removeprefix("plans_")
        try:
            ((name, plan),) = read_plans(folder, [path.parent.name], kind)
        except ValueError as error:
            yield f"| {path.parent.name} {kind} | | | | not read: {str(error).splitlines()[0][:80]} |"
            continue
        options = json.loads((path.parent / "options.json").read_text())[kind]["options"]
        target = options.get("gpu_memory_target_in_gb", plan.memory_target_gb)
        for configuration in plan.configurations:
            if len(configuration.network.features) < 2:
                continue
            counted = count_step(plan, configuration, reference=False).peak / 1e9
            estimate = (
                estimate_configuration_memory(configuration, dtype="bfloat16", device="cuda").training_bytes / 1e9
            )
            fits = counted <= target - WORKSPACES_GB
            row = (
                f"{name} {kind} {configuration.name}", f"{target:g}", f"{counted:.2f}", f"{estimate:.2f}",
                "" if fits else "more than the target less 1 GB",
            )  # fmt: skip
            yield f"| {' | '.join(row)} |"


# --- compiled ---

CARD = {
    "name": "H200", "major": 9, "minor": 0, "multi_processor_count": 132, "max_threads_per_multi_processor": 2048, "warp_size": 32,
    "regs_per_multiprocessor": 65536, "total_memory": 141 * 10**9, "gcnArchName": "", "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448, "shared_memory_per_multiprocessor": 233472, "L2_cache_size": 50 * 2**20,
    "max_threads_per_block": 1024, "uuid": "", "is_integrated": False,
}  # fmt: skip
"""What the compiler asks of a card."""
AGAIN = {"norm": (0,), "norm_backward": (0, 1)}
"""Inputs of the product's norm that its kernels read a second time."""


def pretend_to_compile() -> None:
    """Make the compiler believe in an H200, as far as it asks before anything runs."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from torch.utils import _triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    card = types.SimpleNamespace(**CARD)
    answers = {"get_device_properties": card, "current_device": 0, "device_count": 1, "get_device_capability": (9, 0),
               "_lazy_init": None, "is_initialized": True}  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *given, answer=answer: answer)
    for name, answer in {"get_device_properties": card, "get_compute_capability": "90", "is_triton_capable": True, "raise_if_triton_unavailable": None,
                         "is_available": True, "current_device": 0}.items():  # fmt: skip
        setattr(CudaInterface, name, staticmethod(lambda *given, answer=answer: answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *given: card)
    _triton.triton_hash_with_backend = lambda: ""
    driver._active = types.SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    config.compile_threads, config.fx_graph_cache = 1, False


@dataclass
class Code:
    """What the compiler made of a network, forward and backward."""

    kernels: int = 0
    num_bytes: int = 0
    """Each buffer once for each kernel that reads or writes it."""
    again: int = 0
    """Bytes that the norm's kernels read a second time."""
    kept: Counter[str] = field(default_factory=Counter)
    """Bytes of feature maps that wait for the backward pass, by type."""


def count_code(configuration: Configuration, way: str) -> Code:
    """Of a training step's network."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    torch._dynamo.reset()
    code = Code()
    with torch.device("meta"):
        network = build.build_network(configuration.network, deep_supervision=configuration.deep_supervision, seed=None)
        network = build.lay_out(network, channels_last=way != "reference")
    kept, fused = (
        norms.norm_activate,
        lambda x, weight, bias, *, skip=None, slope: norms.formula(x, weight, bias, skip, slope)[0],
    )
    blocks.norm_activate = fused if way == "formula" else kept
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), the_references_way(way == "reference"):
            network = made_fake(network, reference=way == "reference").train()
            shape = (configuration.batch_size, configuration.network.num_inputs, *configuration.patch_shape)
            backend = aot_autograd(
                fw_compiler=lambda graph, given: lowered(graph, given, code, is_backward=False),
                bw_compiler=lambda graph, given: lowered(graph, given, code, is_backward=True),
                decompositions=select_decomp_table(),
                partition_fn=min_cut_rematerialization_partition,
            )
            compiled = torch.compile(network, dynamic=False, fullgraph=True, backend=backend)
            logits = run_network(compiled, torch.empty(shape, device=DEVICE), "bfloat16")
            sum(each.float().sum() for each in (logits if isinstance(logits, list) else [logits])).backward()
    finally:
        blocks.norm_activate = kept
    return code


def lowered(graph: Any, given: Any, code: Code, *, is_backward: bool) -> Any:
    """Has the compiler write the code of a graph, which is not run, and counts it."""
    from functorch.compile import make_boxed_func
    from torch._guards import detect_fake_mode
    from torch._inductor import metrics
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    metrics.reset()
    with V.set_fake_mode(detect_fake_mode(given)), V.set_debug_handler(DebugContext()):
        view_to_reshape(graph)
        post_grad_passes(graph, False)
        lowering = GraphLowering(graph, example_inputs=given, is_inference=False, is_backward=is_backward)
        with V.set_graph_handler(lowering):
            lowering.run(*given)
            lowering.codegen()
            code.num_bytes += lowering.count_bytes()[0]
    nodes = [each for each in graph.graph.nodes if each.op == "call_function"]
    names = [getattr(each.target, "_schema", types.SimpleNamespace(name="::")).name.split("::")[1] for each in nodes]
    extern = sum(KERNELS.get(name, 1) for name in names if name in ("convolution", "convolution_backward", *KERNELS))
    code.kernels += metrics.generated_kernel_count + extern
    for node, name in zip(nodes, names, strict=True):
        code.again += sum(bytes_of(node.args[i].meta["val"]) for i in AGAIN.get(name, ()))
    if not is_backward:
        outputs = [each.meta["val"] for each in tree_leaves(next(iter(graph.graph.find_nodes(op="output"))).args)
                   if each is not None]  # fmt: skip
        for each in outputs:
            if each.ndim > 3 and each.numel() > WIDE:
                code.kept[str(each.dtype).removeprefix("torch.")] += bytes_of(each)
    return make_boxed_func(graph.forward)


def compiled_table(folder: Path, cases: list[str], configurations: list[str]) -> Iterator[str]:
    """Both ways of each plan, and the product's norm as a formula."""
    pretend_to_compile()
    yield "| plan | way | kernels | GB | GB with second readings | float32 maps kept GB |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, plan in read_plans(folder, cases):
        for configuration in (each for each in plan.configurations if each.name in configurations):
            for way in ("autoseg", "formula", "reference"):
                code = count_code(configuration, way)
                row = (
                    f"{name} {configuration.name}", way, code.kernels, f"{code.num_bytes / 1e9:.1f}",
                    f"{(code.num_bytes + code.again) / 1e9:.1f}", f"{code.kept['float32'] / 1e9:.2f}",
                )  # fmt: skip
                yield f"| {' | '.join(map(str, row))} |"


LIBRARY = "libcuda.so.1"


def run_with_stub() -> int:
    """This program once more, with the stub in place of the driver."""
    source = STUB + "".join(f"int {name}(void) {{ return 100; }}\n" for name in ABSENT.split())
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / LIBRARY
        compiler = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-x", "c", "-", "-o", str(library)]
        subprocess.run(compiler, input=source.encode(), check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", type=Path)
    parser.add_argument("--cases", nargs="*", default=["001", "004", "028", "046"])
    parser.add_argument("--configurations", nargs="*", default=["3d_fullres", "2d"])
    parser.add_argument("--all", action="store_true", help="peak memory of all plans")
    parser.add_argument("--compiled", action="store_true", help="bytes that compiled networks move")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if LIBRARY not in os.environ.get("LD_PRELOAD", ""):
        sys.exit(run_with_stub())
    pretend()
    chosen = arguments.plans, arguments.cases, arguments.configurations
    rows = (
        memory_table(arguments.plans) if arguments.all else (compiled_table if arguments.compiled else table)(*chosen)
    )
    lines = [f"torch {torch.__version__}, {date.today().isoformat()}", ""]
    for line in rows:
        lines.append(line)
        print(line, flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
