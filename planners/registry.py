"""Where the parts that a plan names are found: those of the product, and those that other installed packages add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator

import planners.topologies
from planners.document import PlanningError

if TYPE_CHECKING:
    from planners.topology import Topology

Part = TypeVar("Part")


class UnknownPartError(LookupError):
    """A name that no installed package knows; the message lists the known ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry(Generic[Part]):
    """Parts of one kind by name. Names may come from documents; what they stand for never does.

    A part is imported when it is first asked for, from the product's own table or from an entry point of an installed
    package. The product's own names cannot be taken by others.
    """

    group: str
    """Of the entry points, e.g. ``autoseg.losses``."""
    noun: str
    """What a part is called in messages, e.g. ``loss``."""
    own: Mapping[str, str]
    """``module:object`` of the product's own parts, by name."""

    def names(self) -> tuple[str, ...]:
        """All known names, the product's own first."""
        others = sorted({entry.name for entry in entry_points(group=self.group)} - self.own.keys())
        return (*self.own, *others)

    def get(self, name: str) -> Part:
        """The part of that name. Raises `UnknownPartError` for a name that is not installed."""
        if name in self.own:
            module, _, attribute = self.own[name].partition(":")
            part: Part = getattr(import_module(module), attribute)
            return part
        for entry in entry_points(group=self.group, name=name):
            loaded: Part = entry.load()
            return loaded
        raise UnknownPartError(f"no {self.noun} {name!r} is installed; there are {', '.join(self.names())}")


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
