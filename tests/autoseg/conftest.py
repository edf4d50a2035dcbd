"""A network laid out as the reference registers it, for the rooms that read its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from planners import Network

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOLING = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class Block(nn.Module):
    """Convolution, norm, perhaps an activation; parts by name and in ``all_modules``."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], *, bias: bool, active: bool
    ) -> None:
        super().__init__()
        padding = [(size - 1) // 2 for size in kernel]
        self.conv = CONVOLUTION[len(kernel)](inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)
        self.norm = NORM[len(kernel)](outputs, eps=1e-5, affine=True)
        parts: list[nn.Module] = [self.conv, self.norm]
        if active:
            self.nonlin = nn.LeakyReLU(inplace=True)
            parts.append(self.nonlin)
        self.all_modules = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.all_modules(x)


class Blocks(nn.Module):
    """Several blocks in a row."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int) -> None:
        super().__init__()
        ones = [1] * len(kernel)
        self.convs = nn.Sequential(
            *(
                Block(outputs if k else inputs, outputs, kernel, ones if k else stride, bias=True, active=True)
                for k in range(count)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class Residual(nn.Module):
    """A residual block with its skip path."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        axes, ones = len(kernel), [1] * len(kernel)
        self.conv1 = Block(inputs, outputs, kernel, stride, bias=True, active=True)
        self.conv2 = Block(outputs, outputs, kernel, ones, bias=True, active=False)
        skip: list[nn.Module] = [POOLING[axes](tuple(stride), tuple(stride))] if max(stride) > 1 else []
        if inputs != outputs:
            skip.append(Block(inputs, outputs, ones, ones, bias=False, active=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv2(self.conv1(x)) + self.skip(x), 0.01)


class ResidualStage(nn.Module):
    """Residual blocks in a row."""

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], count: int) -> None:
        super().__init__()
        ones = [1] * len(kernel)
        self.blocks = nn.Sequential(
            *(Residual(outputs if k else inputs, outputs, kernel, ones if k else stride) for k in range(count))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    """Stages from the highest resolution on."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        residual = network.family == "residual_unet"
        inputs = network.num_inputs
        if residual:
            ones = [1] * len(network.kernels[0])
            self.stem = Blocks(inputs, network.features[0], network.kernels[0], ones, 1)
            inputs = network.features[0]
        stages: list[nn.Module] = []
        for features, kernel, stride, count in zip(
            network.features, network.kernels, network.strides, network.blocks, strict=True
        ):
            if residual:
                stages.append(ResidualStage(inputs, features, kernel, stride, count))
            else:
                stages.append(nn.Sequential(Blocks(inputs, features, kernel, stride, count)))
            inputs = features
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        if hasattr(self, "stem"):
            x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Stages from the lowest resolution on; holds the encoder too."""

    def __init__(self, encoder: Encoder, network: Network) -> None:
        super().__init__()
        self.encoder = encoder
        axes = len(network.kernels[0])
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in reversed(range(len(network.decoder_blocks))):
            features, stride = network.features[i], tuple(network.strides[i + 1])
            self.transpconvs.append(TRANSPOSED[axes](network.features[i + 1], features, stride, stride))
            self.stages.append(
                Blocks(2 * features, features, network.kernels[i], [1] * axes, network.decoder_blocks[i])
            )
            self.seg_layers.append(CONVOLUTION[axes](features, network.num_outputs, 1))

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Logits of every resolution, highest first."""
        x, logits = skips[-1], []
        for stage, up, head, skip in zip(self.stages, self.transpconvs, self.seg_layers, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), dim=1))
            logits.insert(0, head(x))
        return logits


class ReferenceLayout(nn.Module):
    """What method section 5 says of the reference's U-Nets, registered under its names."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.encoder = Encoder(network)
        self.decoder = Decoder(self.encoder, network)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.decoder(self.encoder(x))


@pytest.fixture(scope="session")
def reference_layout() -> Callable[[Network], nn.Module]:
    """Builds a network of method section 5 whose state dict has the reference's names and aliases."""
    return ReferenceLayout
