"""Gradients of random 3D convolutions in bfloat16, each in a process with a time limit: which of them never end?

    python benchmarks/endless_gradients.py [--seconds 120] [--threads 2] [--seed 0] [--library]

``--library`` takes torch's own convolutions instead of the product's; on processors with matrix tiles some of those wait for
ever (decision 0120). Shapes are those that networks have: 16 to 512 channels, kernels of 1, 3 and 5 voxels, strides of 1 and 2,
transposed ones too. Ends with 1 where something did not end.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from autoseg.networks.blocks import CONVOLUTION, TRANSPOSED, arrange, channels_last, same_padding

CHANNELS = (16, 32, 64, 96, 128, 192, 256, 320, 512)
SIDES = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)
KERNELS = ((3, 3, 3), (1, 3, 3), (5, 5, 5), (1, 5, 5), (1, 1, 1))
STRIDES = ((2, 2, 2), (1, 2, 2))
MOST_FLOPS = 60e9
"""Of one pass; larger ones would take most of the time."""
LEAST_LIMIT_S, FLOPS_PER_SECOND = 3.0, 1e10
"""A pass has this long at least, and longer the more there is to compute: a fiftieth of the speed that was measured."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One convolution and what it is given, (Z, Y, X)."""

    transposed: bool
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    shape: tuple[int, ...]
    batch: int

    @property
    def flops(self) -> float:
        """Multiplications and additions of the forward pass, strides left out."""
        return 2.0 * self.batch * self.inputs * self.outputs * math.prod(self.shape) * math.prod(self.kernel)

    def run(self, threads: int, *, library: bool) -> None:
        """Forward and backward once."""
        torch.set_num_threads(threads)
        if self.transposed:
            make = nn.ConvTranspose3d if library else TRANSPOSED[3]
            module = make(self.inputs, self.outputs, self.kernel, self.stride)
        else:
            make = nn.Conv3d if library else CONVOLUTION[3]
            padding = (0, 0, 0) if self.kernel == self.stride else same_padding(self.kernel)
            module = make(self.inputs, self.outputs, self.kernel, self.stride, padding)
        x = channels_last(torch.zeros((self.batch, self.inputs, *self.shape))).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = arrange(module, 3)(x)
        y.backward(torch.zeros_like(y))


def draw(rng: random.Random) -> Trial:
    """A random trial that is not too large."""
    while True:
        apart = rng.random() < 0.4  # kernels that do not overlap: V-Net's way down, and every way up
        kernel = rng.choice(STRIDES) if apart else rng.choice(KERNELS)
        stride = kernel if apart else rng.choice(((1, 1, 1), (1, 1, 1), *STRIDES))
        transposed = apart and rng.random() < 0.6
        inputs = rng.choice(CHANNELS)
        outputs = rng.choice((inputs, inputs, max(16, inputs // 2), 32))
        slices = rng.randint(1, 12) if rng.random() < 0.7 else rng.randint(13, 40)
        sides = (slices, rng.choice(SIDES), rng.choice(SIDES))
        shape = sides if transposed else tuple(side * step for side, step in zip(sides, stride, strict=True))
        trial = Trial(transposed, inputs, outputs, kernel, stride, shape, rng.choice((1, 2, 2, 3)))
        if trial.flops <= MOST_FLOPS:
            return trial


def ends(trial: Trial, threads: int, *, library: bool) -> bool:
    """Whether the trial ends in time, in a child of this process; its failures are failures of this benchmark."""
    child = os.fork()
    if child == 0:
        try:
            trial.run(threads, library=library)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    limit = time.monotonic() + LEAST_LIMIT_S + trial.flops / FLOPS_PER_SECOND
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"{trial} failed")
            return True
        time.sleep(0.004)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    """Try random convolutions until the time is over, and say which did not end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", action="store_true")
    options = parser.parse_args()
    rng, counts = random.Random(options.seed), Counter[bool]()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        trial = draw(rng)
        ended = ends(trial, options.threads, library=options.library)
        counts[ended] += 1
        if not ended:
            sys.stdout.write(f"does not end: {trial}\n")
            sys.stdout.flush()
    whose = "torch's own" if options.library else "the product's"
    sys.stdout.write(
        f"{counts.total()} convolutions, {whose}, {options.threads} threads: {counts[False]} did not end\n"
    )
    return int(counts[False] > 0)


if __name__ == "__main__":
    sys.exit(main())
