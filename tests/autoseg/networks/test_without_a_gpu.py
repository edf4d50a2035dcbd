"""The CUDA path on fake tensors, which have devices, formats and layouts but no numbers: in torch's CPU build, too, forward only.

`benchmarks/fake_gpu.py` counts whole steps, with the CUDA build.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoseg.networks.blocks import memory_format
from autoseg.networks.build import build_network, lay_out
from autoseg.training.loop import run_network
from autoseg.training.losses import make_loss, supervise_deeply
from planners import LabelClass, Labels, Loss, Network

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="fake tensors and compiler of an older torch"
)
GPU = torch.device("cuda:0")
WIDTHS = {8, 16, 32}
LABELS = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


class Maps(TorchDispatchMode):
    """Feature maps in float32, copies of maps, maps in another layout than ``layout``, and what waits for the device."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.seen["waits"] += name in ("_local_scalar_dense", "nonzero", "equal")
        maps = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.ndim > 3 and t.shape[1] in WIDTHS]
        for each in (t for t in maps if t.shape[2:].numel() > 27 and t.shape[0] == 2):
            self.seen["maps"] += 1
            self.seen[f"float32 {name}"] += each.dtype == torch.float32
            self.seen[f"copies {name}"] += name in ("clone", "_to_copy", "contiguous")
            dense = name in ("convolution", "norm", "cat", "instance_norm", "leaky_relu")
            self.seen[f"other layout {name}"] += dense and not each.is_contiguous(memory_format=self.layout)
        return out


def seems_channels_last(t: Tensor) -> bool:
    """By its strides, as torch asks."""
    least = 0
    for axis in (1, *range(t.ndim - 1, 1, -1), 0):
        if t.stride(axis) < least or (axis == 0 and least == t.stride(1)):
            return False
        least = t.stride(axis) * t.shape[axis]
    return True


def fake_convolution(mode: Any, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """In channels last where map or weights are, as torch calls cuDNN, which its CPU build does not know."""
    names = [each.name for each in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    x, weight, transposed = given["input"], given["weight"], given["transposed"]
    sizes = zip(x.shape[2:], given["stride"], given["padding"], weight.shape[2:], strict=True)
    spatial = [(n - 1) * s - 2 * p + k if transposed else (n + 2 * p - k) // s + 1 for n, s, p, k in sizes]
    layout = memory_format(weight.ndim - 2, channels_last=any(map(seems_channels_last, (x, weight))))
    with mode:
        made = (x.shape[0], weight.shape[1 if transposed else 0], *spatial)
        return torch.empty(made, dtype=weight.dtype, device=GPU, memory_format=layout)


@pytest.fixture
def fake(monkeypatch) -> FakeTensorMode:
    """Fake tensors, and a GPU that torch believes in as far as autocast asks for one."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setitem(fake_impls.op_implementations_dict, torch.ops.aten.convolution.default, fake_convolution)
    return FakeTensorMode(allow_non_fake_inputs=True)


def network_on_gpu(fake: FakeTensorMode, family: str, axes: int, *, channels_last: bool) -> nn.Module:
    residual = family == "residual_unet"
    topology = Network(
        family=family,
        num_inputs=1,
        num_outputs=3,
        features=(8, 16, 32),
        kernels=((3,) * axes,) * 3,
        strides=((1,) * axes, (2,) * axes, (2,) * axes),
        blocks=(1, 3, 4) if residual else (2, 2, 2),
        decoder_blocks=(1, 1) if residual else (2, 2),
    )
    with torch.device("meta"):
        network = lay_out(build_network(topology, deep_supervision=True, seed=None), channels_last=channels_last)
    for module in network.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                with fake:
                    on_gpu = torch.empty_strided(parameter.shape, parameter.stride(), device=GPU)
                    module._parameters[name] = nn.Parameter(on_gpu, requires_grad=False)
    return network.train()


@pytest.mark.parametrize("family", ["unet", "residual_unet", "vnet"])
@pytest.mark.parametrize(("axes", "channels_last"), [(3, True), (2, True), (3, False)])
def test_maps_keep_format_and_layout(fake: FakeTensorMode, family: str, axes: int, channels_last: bool) -> None:
    network = network_on_gpu(fake, family, axes, channels_last=channels_last)
    maps = Maps(memory_format(axes, channels_last=channels_last))
    with fake, torch.no_grad(), maps:
        logits = run_network(network, torch.empty((2, 1, *(24,) * axes), device=GPU), "bfloat16")
    logits = logits if isinstance(logits, list) else [logits]
    assert {each.dtype for each in logits} == {torch.bfloat16}
    assert {each.device for each in logits} == {GPU}
    assert maps.seen["maps"] > 20
    assert {kind: number for kind, number in maps.seen.items() if number and kind != "maps"} == {}


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (LABELS, Loss(batch_dice=False)),
        (LABELS, Loss(batch_dice=True, voxel="focal")),
        (LABELS, Loss(batch_dice=False, voxel="top_k")),
        (LABELS, Loss(batch_dice=False, region="squared_dice", voxel=None)),
        (LABELS.model_copy(update={"ignore": 3}), Loss(batch_dice=True)),
        (REGIONS, Loss(batch_dice=False)),
        (REGIONS.model_copy(update={"ignore": 3}), Loss(batch_dice=True)),
    ],
)
def test_losses_stay_on_the_device_and_do_not_wait(fake: FakeTensorMode, labels: Labels, loss: Loss) -> None:
    maps = Maps(torch.contiguous_format)
    with fake, torch.no_grad(), maps:
        heads = [torch.empty((2, labels.num_outputs, n, n, n), device=GPU, dtype=torch.bfloat16) for n in (8, 4)]
        target = torch.zeros((2, 8, 8, 8), device=GPU, dtype=torch.int64)
        value = supervise_deeply(make_loss(loss, labels), heads, target)
    assert value.device == GPU
    assert value.dtype == torch.float32
    assert maps.seen["waits"] == 0


def test_biases_before_a_norm_have_no_gradient_on_a_gpu() -> None:
    """Those of heads and upsampling, which no norm follows, have."""
    for family, trained in (
        ("unet", {"upsample", "heads"}),
        ("residual_unet", {"upsample", "heads"}),
        ("vnet", {"head"}),
    ):
        with torch.device("cpu"):
            topology = Network(
                family=family, num_inputs=1, num_outputs=3, features=(4, 8), kernels=((3, 3),) * 2, strides=((1, 1), (2, 2)),
                blocks=(1, 1), decoder_blocks=(1,),
            )  # fmt: skip
            network = lay_out(build_network(topology), channels_last=False)
        biases = {name: p for name, p in network.named_parameters() if name.endswith("bias") and "norm" not in name}
        biases = {name: p for name, p in biases.items() if not name.endswith("project.1.bias")}
        assert {name.split(".")[0] for name, p in biases.items() if p.requires_grad} == trained
        assert all(p.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("family", ["unet", "residual_unet"])
def test_no_part_of_a_network_is_left_to_the_interpreter(family: str) -> None:
    topology = Network(
        family=family, num_inputs=1, num_outputs=3, features=(4, 8), kernels=((3, 3),) * 2, strides=((1, 1), (2, 2)),
        blocks=(1, 1), decoder_blocks=(1,),
    )  # fmt: skip
    network = build_network(topology, deep_supervision=True).train()
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend="eager")
    image = torch.randn(1, 1, 8, 8)
    for mine, plain in zip(compiled(image), network(image), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)  # the compiler's norm sums in another order
