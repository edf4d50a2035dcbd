"""The U-Net with plain or residual encoder (method sections 5.2 and 5.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoseg.networks.blocks import (
    CONVOLUTION,
    TRANSPOSED,
    ConvBlock,
    channels_first,
    channels_last,
    conv_blocks,
    residual_blocks,
)
from planners import Network


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
        x = self.stem(channels_last(x))
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()  # the bottleneck goes up itself
        everywhere = self.deep_supervision and self.training
        logits: list[Tensor] = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat((self.upsample[i](x), skips.pop()), dim=1))
            if i == 0 or everywhere:
                logits.insert(0, channels_first(self.heads[i](x)))
        return logits if everywhere else logits[0]
