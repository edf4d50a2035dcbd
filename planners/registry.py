"""Where the parts that a plan names are found: those of the product, and those that other installed packages add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

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
        known = ", ".join(self.names())
        raise UnknownPartError(f"no {self.noun} {name!r} is installed; there are {known}")
