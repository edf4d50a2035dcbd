"""One choice of a planner, with reason and source, and how numbers appear in reasons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, JsonValue, TypeAdapter

from planners.document import PROSE, Document

T = TypeVar("T")
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Generic[T]):
    """One choice with its reason, as a rule returns it."""

    rule: str
    """Stable name, ``room.matter``, e.g. ``spacing.target``."""
    value: T
    reason: str
    """One sentence with the numbers that decided."""
    source: str
    """Section of the method or paper, or a decision record."""
    change: str | None = None
    """What would lead to another value; none: nothing sensible."""

    def record(self, configuration: str | None = None, *, shown: JsonValue = None) -> DecisionRecord:
        """The decision as a plan stores it, with ``shown`` in place of a value that says more than a reader needs."""
        return DecisionRecord(
            rule=self.rule,
            configuration=configuration,
            value=_ANYTHING.dump_python(self.value if shown is None else shown, mode="json"),
            reason=self.reason,
            source=self.source,
            change=self.change,
        )


def _finite(value: JsonValue) -> JsonValue:
    """Pydantic refuses infinities in number fields only; in free JSON they would be written as null."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must hold finite numbers only, found {value}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(inner)
    return value


class DecisionRecord(Document):
    """A decision as documents store it. Its prose does not decide whether work is redone."""

    rule: str
    configuration: str | None
    """Name of the configuration that it concerns; none: the whole dataset."""
    value: Annotated[JsonValue, AfterValidator(_finite)]
    reason: Annotated[str, PROSE]
    source: Annotated[str, PROSE]
    change: Annotated[str | None, PROSE] = None


# --- the words of reasons ---


def voxels(shape: Sequence[float]) -> str:
    """A shape as ``40 x 56 x 40``; halves are kept."""
    return " x ".join(f"{size:.10g}" for size in shape)


def millimetres(spacing_mm: Sequence[float]) -> str:
    """A spacing as ``2.5 x 0.8 x 0.8 mm``, four significant digits."""
    return " x ".join(f"{size:.4g}" for size in spacing_mm) + " mm"


def amount(number: float) -> str:
    """A large number in words: ``560 million``, ``19.2 million``, ``2.1 billion``."""
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if abs(number) >= size:
            return f"{number / size:.3g} {name}" if abs(number) < 999.5 * size else f"{number / size:.0f} {name}"
    return f"{number:.6g}"


def gigabytes(size: float) -> str:
    """Bytes as ``2.1 GB``."""
    return f"{size / 1e9:.1f} GB"


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 case``, ``3 cases``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Words as a list: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
