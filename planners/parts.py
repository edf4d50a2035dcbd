"""The parts that a plan names: they are looked up among what is installed, never imported because a document says so."""

from __future__ import annotations

from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

import planners.topologies
from planners.document import PlanningError
from planners.registry import Registry

if TYPE_CHECKING:
    from planners.topology import Topology

TOPOLOGIES: Registry[Topology] = Registry(
    group="autoseg.topologies",
    noun="topology",
    own={
        module.name: f"planners.topologies.{module.name}:TOPOLOGY"
        for module in iter_modules(planners.topologies.__path__)
    },
)
"""Network families: each file in ``planners/topologies`` is one; packages add theirs as entry points."""
LOSSES: Registry[Any] = Registry(
    group="autoseg.losses", noun="loss", own={"compound": "autoseg.training.losses:compound_loss"}
)
"""Functions ``(Loss, Labels) -> (logits, label map) -> scalar`` that training calls; planning looks at the names only."""

AUGMENTATIONS: Registry[Any] = Registry(group="autoseg.augmentations", noun="augmentation", own={})
"""What a schedule may add to the method's augmentation; see `autoseg.training.augmentation.Augmentation`."""


def require_installed(registry: Registry[Any], name: str) -> str:
    """``name`` if it is known, without importing the part; `ValueError` lists the known ones."""
    if name not in registry.own and name not in registry.names():
        raise ValueError(f"no {registry.noun} {name!r} is installed; there are {', '.join(registry.names())}")
    return name


def _require_preset(preset: str) -> str:
    from planners.topology import find_preset

    try:
        find_preset(preset)
    except PlanningError as error:
        (issue,) = error.issues
        raise ValueError(f"{issue.message}; {issue.fix}") from None
    return preset


Preset = Annotated[str, AfterValidator(_require_preset)]
"""Name of a preset that is installed."""
