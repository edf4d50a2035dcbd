"""One choice of a planner, with reason and source."""

from __future__ import annotations

import math
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
