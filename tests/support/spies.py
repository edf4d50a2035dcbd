"""What a GPU would have to do, seen on a CPU: the operations that torch dispatches."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = {
    "view",
    "_unsafe_view",
    "reshape",
    "t",
    "transpose",
    "permute",
    "select",
    "slice",
    "unsqueeze",
    "squeeze",
    "expand",
}
VIEWS |= {"as_strided", "split", "split_with_sizes", "unbind", "detach", "alias", "narrow", "_reshape_alias", "unfold"}
VIEWS |= {"lift_fresh"}
WAITS = {"_local_scalar_dense", "equal", "_unique2", "nonzero", "bincount"}


@dataclass
class Spy(TorchDispatchMode):
    """Counts kernels and waits for the device, and sees which devices meet."""

    kernels: int = 0
    waits: int = 0
    met: Counter[frozenset[str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        result = function(*args, **(kwargs or {}))
        if name not in VIEWS and not name.startswith("empty"):
            self.kernels += 1
            self.waits += name in WAITS
            tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
            self.met[frozenset(each.device.type for each in tensors)] += 1
        return result
