"""The V-Net: a U-shaped network whose every stage learns a residual (Milletari et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from autoseg.networks.blocks import CONVOLUTION, TRANSPOSED, InstanceNorm, channels_first, channels_last, same_padding
from planners import Network


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
        self.repeated = [i % inputs for i in range(outputs)] if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.repeated is None else x[:, self.repeated]
        last = len(self.convolutions) - 1
        for i, (convolve, activate) in enumerate(zip(self.convolutions, self.activations, strict=True)):
            x = convolve(x)
            if i == last:
                x = x + skip.to(x.dtype)  # the image is float32 whatever the convolutions compute in
            x = activate(x)
        return x


class VNet(nn.Module):
    """Stages of growing depth joined by strided convolutions down and transposed convolutions up; one head.

    Input (N, num_inputs, spatial...), each spatial size divisible by the product of strides along it.
    Returns logits (N, num_outputs, spatial...), with ``deep_supervision`` too.
    """

    def __init__(self, network: Network, *, deep_supervision: bool = False) -> None:
        super().__init__()
        features, kernels, strides = network.features, network.kernels, network.strides
        axes = len(kernels[0])
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
        x = self.encoder[0](channels_last(x))
        skips = [x]
        for down, activate, stage in zip(self.down, self.down_activations, self.encoder[1:], strict=True):
            x = stage(activate(down(x)))
            skips.append(x)
        skips.pop()  # the bottleneck goes up itself
        for i in reversed(range(len(self.decoder))):
            up = self.up_activations[i](self.up[i](x))
            x = self.decoder[i](torch.cat((up, skips.pop()), dim=1))
        return channels_first(self.head(x))
