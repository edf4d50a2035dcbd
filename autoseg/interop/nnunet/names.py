"""Where each tensor of a U-Net trained by the reference has its place in ours (method section 5.5).

The reference registers some tensors several times: the parts of a convolution block also in a list, ``all_modules``, and
the encoder also inside the decoder. Shapes and orders of axes are the same on both sides; only names differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from autoseg.networks.build import build_network
from planners import Network

FAMILIES = ("unet", "residual_unet")
PARTS = {"conv": 0, "norm": 1}
"""Place of a convolution block's parts in its list."""
WRAPPERS = ("module.", "_orig_mod.")
"""What parallel training and compilation put in front of names."""
CONVOLUTION = ("weight", "bias")


def reference_names(network: Network) -> dict[str, tuple[str, ...]]:
    """For each of our parameters its names in a state dict of the reference, the canonical one first.

    Raises `ValueError` for a topology that the reference does not have (V-Net).
    """
    if network.family not in FAMILIES:
        raise ValueError(f"the reference has no {network.family}")
    return dict((*_encoder(network), *_decoder(network)))


def translate_weights(weights: Mapping[str, Tensor], network: Network) -> tuple[dict[str, Tensor], list[str]]:
    """A reference's state dict by our names, and what does not fit ``network``: one line for each kind of fault.

    Prefixes of parallel training and compilation are cut off. Each canonical tensor must be there in its shape, each
    further name must hold the same numbers where it is there, and nothing may be left over. Where there are faults, the
    weights are not complete.
    """
    found = {_unwrapped(name): tensor for name, tensor in weights.items()}
    names = reference_names(network)
    shapes = _shapes(network)
    known = {name for aliases in names.values() for name in aliases}
    missing = [first for first, *_ in names.values() if first not in found]
    odd = [
        f"{first} {tuple(found[first].shape)} instead of {shapes[ours]}"
        for ours, (first, *_) in names.items()
        if first in found and tuple(found[first].shape) != shapes[ours]
    ]
    different = [
        f"{alias} and {first}"
        for first, *aliases in names.values()
        for alias in aliases
        if first in found and alias in found and not torch.equal(found[alias], found[first])
    ]
    faults = {
        "missing tensors": missing,
        "unknown tensors": [name for name in found if name not in known],
        "tensors of another shape": odd,
        "pairs of names of one tensor with different numbers": different,
    }
    problems = [f"{what}: {len(them)}, the first is {them[0]}" for what, them in faults.items() if them]
    return {ours: found[first] for ours, (first, *_) in names.items() if first in found}, problems


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module = build_network(network, seed=None)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
    return name


Names = tuple[str, tuple[str, ...]]


def _encoder(network: Network) -> Iterator[Names]:
    for ours, theirs in _encoder_alone(network):
        yield ours, (*theirs, *(f"decoder.{name}" for name in theirs))


def _encoder_alone(network: Network) -> Iterator[Names]:
    residual = network.family == "residual_unet"
    if residual:
        yield from _block("stem", "encoder.stem.convs.0")
    inputs = network.features[0] if residual else network.num_inputs
    for i, (features, count) in enumerate(zip(network.features, network.blocks, strict=True)):
        for j in range(count):
            ours = f"encoder.{i}.{j}"
            if not residual:
                yield from _block(ours, f"encoder.stages.{i}.0.convs.{j}")
                continue
            theirs = f"encoder.stages.{i}.blocks.{j}"
            for part in ("conv1", "conv2"):
                yield from _block(f"{ours}.{part}", f"{theirs}.{part}")
            if j == 0 and inputs != features:
                place = 1 if max(network.strides[i]) > 1 else 0  # a pooling comes before
                yield from _projection(f"{ours}.project", f"{theirs}.skip.{place}")
        inputs = features


def _decoder(network: Network) -> Iterator[Names]:
    """The reference counts the decoder from the lowest resolution, we from the highest."""
    for i, count in enumerate(network.decoder_blocks):
        j = len(network.decoder_blocks) - 1 - i
        for ours, theirs in ((f"upsample.{i}", f"decoder.transpconvs.{j}"), (f"heads.{i}", f"decoder.seg_layers.{j}")):
            yield from ((f"{ours}.{end}", (f"{theirs}.{end}",)) for end in CONVOLUTION)
        for k in range(count):
            yield from _block(f"decoder.{i}.{k}", f"decoder.stages.{j}.convs.{k}")


def _block(ours: str, theirs: str) -> Iterator[Names]:
    for part, number in PARTS.items():
        for end in CONVOLUTION:
            yield f"{ours}.{part}.{end}", (f"{theirs}.{part}.{end}", f"{theirs}.all_modules.{number}.{end}")


def _projection(ours: str, theirs: str) -> Iterator[Names]:
    """The skip path's 1x1 convolution, which has no bias; here a sequence of convolution and norm."""
    for part, end in (("conv", "weight"), ("norm", "weight"), ("norm", "bias")):
        yield f"{ours}.{PARTS[part]}.{end}", (f"{theirs}.{part}.{end}", f"{theirs}.all_modules.{PARTS[part]}.{end}")
