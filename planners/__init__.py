"""The pure core: what is known of a dataset -> what to do with it.

Names of `planners.front_door` are loaded when first asked for, documents and registries at once: a command line that only
explains itself needs no numpy.
"""

# ruff: noqa: F401, F403

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planners.document import (
    ADDED,
    PROSE,
    Document,
    DocumentError,
    Issue,
    PlanningError,
    Severity,
    essence,
    issues_of,
    read_document,
    write_document,
)
from planners.registry import AUGMENTATIONS, LOSSES, TOPOLOGIES, Preset, Registry, UnknownPartError

if TYPE_CHECKING:
    from planners.front_door import *
    from planners.front_door import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        front_door = import_module("planners.front_door")
        if name != "__all__" and name not in front_door.__all__:
            raise AttributeError(f"planners has no {name!r}")
        return getattr(front_door, name)
