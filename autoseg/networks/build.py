"""The torch modules of the topologies, U-Net (method sections 5.2 and 5.3) and V-Net, and how a plan becomes one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import pairwise

import torch
from torch import Tensor, nn

from autoseg.issues import AutosegError, Issue
from autoseg.networks.blocks import (
    CONVOLUTION,
    TRANSPOSED,
    ConvBlock,
    InstanceNorm,
    arrange,
    before_norm,
    channels_first,
    channels_last,
    conv_blocks,
    initialise,
    residual_blocks,
    same_padding,
)
from autoseg.networks.norms import why_not_fused
from planners import TOPOLOGIES, Network


def build_network(network: Network, *, deep_supervision: bool = False, seed: int | None = 0) -> nn.Module:
    """The module of a topology, in float32 on torch's current default device.

    Weights are drawn from ``seed``; None leaves them as torch made them (for modules that are loaded, or that live on
    the meta device). Raises `AutosegError` for a topology that cannot be trained: a single stage has no decoder.
    """
    if len(network.features) < 2:
        message = f"the {network.family} has a single stage (features {list(network.features)}), so no decoder"
        fix = "plan without --strict-reference, or with a larger patch"
        raise AutosegError(Issue(code="network.single_stage", where="plan", message=message, fix=fix))
    module = find_module(network.family)(network, deep_supervision=deep_supervision)
    if seed is not None:
        initialise(module, generator=torch.Generator().manual_seed(seed))
    return arrange(module, len(network.kernels[0]))


def find_module(family: str) -> Callable[..., nn.Module]:
    """What makes the torch module of an installed topology, which names it as ``module:callable``."""
    module, _, name = TOPOLOGIES.get(family).module.partition(":")
    make: Callable[..., nn.Module] = getattr(import_module(module), name)
    return make


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on its device, in the layout that is fast there (decision 0219).

    On a CUDA device torch then tries all ways to compute each convolution once, since patches do not change their size.
    """
    network = network.to(device)
    if device.type != "cuda":
        return network
    torch.backends.cudnn.benchmark = True
    return lay_out(network, channels_last=why_not_fused(device) is None)


def lay_out(network: nn.Module, *, channels_last: bool) -> nn.Module:
    """The network of a CUDA device in one layout or the other, and without gradients of biases that a norm takes away."""
    for module in network.modules():
        if isinstance(module, UNet | VNet):
            module.channels_last = channels_last
        for convolution in _before_norms(module):
            if convolution.bias is not None:
                convolution.bias.requires_grad_(False)
    axes = next((parameter.ndim - 2 for parameter in network.parameters() if parameter.ndim > 2), 3)
    return arrange(network, axes, channels_last=channels_last)


def _before_norms(module: nn.Module) -> Iterator[nn.Module]:
    """Convolutions right within ``module`` that a norm follows."""
    if isinstance(module, ConvBlock):
        yield module.conv
    elif isinstance(module, VNetStage):
        yield from module.convolutions
    elif isinstance(module, VNet):
        yield from (*module.down, *module.up)


def finished(logits: Tensor) -> Tensor:
    """Logits as the loss takes them: contiguous on a CPU; on a GPU any layout is as fast, and a copy would be lost time."""
    return logits if logits.device.type == "cuda" else channels_first(logits)


class UNet(nn.Module):
    """Encoder, decoder with skips, and one head for every decoder stage.

    Input (N, num_inputs, spatial...), each spatial size divisible by the product of strides along it. Returns the
    logits (N, num_outputs, spatial...); while training with deep supervision a list of them, highest resolution
    first. Stages run from the highest resolution (0) to the bottleneck.
    """

    def __init__(self, network: Network, *, deep_supervision: bool) -> None:
        super().__init__()
        features, kernels, strides = network.features, network.kernels, network.strides
        residual = network.family == "residual_unet"
        ones = (1,) * len(kernels[0])
        self.deep_supervision = deep_supervision
        self.channels_last = True
        self.stem = ConvBlock(network.num_inputs, features[0], kernels[0], ones) if residual else nn.Identity()
        inputs = features[0] if residual else network.num_inputs
        stack = residual_blocks if residual else conv_blocks
        self.encoder = nn.ModuleList()
        for width, kernel, stride, count in zip(features, kernels, strides, network.blocks, strict=True):
            self.encoder.append(stack(inputs, width, kernel, stride, count))
            inputs = width
        self.upsample = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.heads = nn.ModuleList()
        for i, count in enumerate(network.decoder_blocks):
            stride = tuple(strides[i + 1])
            self.upsample.append(TRANSPOSED[len(stride)](features[i + 1], features[i], stride, stride))
            self.decoder.append(conv_blocks(2 * features[i], features[i], kernels[i], ones, count))
            self.heads.append(CONVOLUTION[len(ones)](features[i], network.num_outputs, ones))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        x = channels_last(x) if self.channels_last else x
        skips = []
        for i, stage in enumerate(self.encoder):
            if i == 0 and isinstance(self.stem, ConvBlock) and isinstance(stage, nn.Sequential):
                x = stage[1:](stage[0](x, self.stem))
            else:
                x = stage(x)
            skips.append(x)
        skips.pop()  # the bottleneck goes up itself
        everywhere = self.deep_supervision and self.training
        logits: list[Tensor] = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat((self.upsample[i](x), skips.pop()), dim=1))
            if i == 0 or everywhere:
                logits.insert(0, finished(self.heads[i](x)))
        return logits if everywhere else logits[0]


class NormedPReLU(nn.Module):
    """Instance norm and PReLU with one slope a channel. The norm is ours: batches are small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = InstanceNorm(channels)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(x))
        return y


class VNetStage(nn.Module):
    """``count`` convolutions whose last output is added to the stage's input.

    Where the input has fewer channels than the output (the image), they are repeated in turn to the width, as the
    paper does with its single channel.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], count: int) -> None:
        super().__init__()
        convolution = CONVOLUTION[len(kernel)]
        padding = same_padding(kernel)
        widths = [inputs, *([outputs] * count)]
        self.convolutions = nn.ModuleList(
            convolution(a, b, tuple(kernel), padding=padding) for a, b in pairwise(widths)
        )
        self.activations = nn.ModuleList(NormedPReLU(outputs) for _ in range(count))
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        image = x
        last = len(self.convolutions) - 1
        for i, (convolve, activate) in enumerate(zip(self.convolutions, self.activations, strict=True)):
            x = before_norm(convolve, x)
            if i == last:
                x = x + self._widen(image.to(x.dtype))  # an image is float32 whatever the convolutions compute in
            x = activate(x)
        return x

    def _widen(self, x: Tensor) -> Tensor:
        """Channels in turn up to the width."""
        if self.inputs == self.outputs:
            return x
        times = -(-self.outputs // self.inputs)
        return x.repeat(1, times, *(1,) * (x.ndim - 2)).narrow(1, 0, self.outputs)


class VNet(nn.Module):
    """Stages of growing depth joined by strided convolutions down and transposed convolutions up; one head.

    Input (N, num_inputs, spatial...), each spatial size divisible by the product of strides along it.
    Returns logits (N, num_outputs, spatial...), with ``deep_supervision`` too.
    """

    def __init__(self, network: Network, *, deep_supervision: bool = False) -> None:
        super().__init__()
        features, kernels, strides = network.features, network.kernels, network.strides
        axes = len(kernels[0])
        self.channels_last = True
        self.down = nn.ModuleList()
        self.down_activations = nn.ModuleList()
        self.encoder = nn.ModuleList([VNetStage(network.num_inputs, features[0], kernels[0], network.blocks[0])])
        for i in range(1, len(features)):
            stride = tuple(strides[i])
            self.down.append(CONVOLUTION[axes](features[i - 1], features[i], stride, stride))
            self.down_activations.append(NormedPReLU(features[i]))
            self.encoder.append(VNetStage(features[i], features[i], kernels[i], network.blocks[i]))
        self.up = nn.ModuleList()
        self.up_activations = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for i, count in enumerate(network.decoder_blocks):
            stride = tuple(strides[i + 1])
            below = features[i + 1] if i == len(features) - 2 else 2 * features[i + 1]
            self.up.append(TRANSPOSED[axes](below, features[i], stride, stride))
            self.up_activations.append(NormedPReLU(features[i]))
            self.decoder.append(VNetStage(2 * features[i], 2 * features[i], kernels[i], count))
        self.head = CONVOLUTION[axes](2 * features[0], network.num_outputs, (1,) * axes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder[0](channels_last(x) if self.channels_last else x)
        skips = [x]
        for down, activate, stage in zip(self.down, self.down_activations, self.encoder[1:], strict=True):
            x = stage(activate(before_norm(down, x)))
            skips.append(x)
        skips.pop()  # the bottleneck goes up itself
        for i in reversed(range(len(self.decoder))):
            up = self.up_activations[i](before_norm(self.up[i], x))
            x = self.decoder[i](torch.cat((up, skips.pop()), dim=1))
        return finished(self.head(x))
