"""Ways to predict that save time, and what they cost: measured on cases that the networks were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoseg.evaluation.intervals import Difference
from autoseg.inference.sliding_window import STEP
from autoseg.wording import count_noun
from planners import Document

FAST_STEP = 0.75
"""Distance of windows of ``--fast``, as a share of the patch."""
FAST_FOLDS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How networks are used for an image."""

    mirroring: bool = True
    """Average over mirror images, where training mirrored."""
    step: float = STEP
    """Largest distance of windows, as a share of the patch."""
    num_folds: int | None = None
    """Networks of the first folds only; none: all."""

    @property
    def words(self) -> str:
        """``no mirroring, step 0.75, 1 fold``; empty for the way that is measured by cross-validation."""
        parts = [] if self.mirroring else ["no mirroring"]
        parts += [] if self.step == STEP else [f"step {self.step:g}"]
        parts += [] if self.num_folds is None else [f"{self.num_folds} fold{'s' * (self.num_folds > 1)}"]
        return ", ".join(parts)


def way_of(*, fast: bool, mirroring: bool, step: float | None, num_folds: int | None) -> Way:
    """The way that options ask for: ``fast`` takes one fold, no mirror images and larger steps, where nothing else is said."""
    if not fast:
        return Way(mirroring=mirroring, step=step or STEP, num_folds=num_folds)
    return Way(mirroring=False, step=step or FAST_STEP, num_folds=num_folds or FAST_FOLDS)


class MeasuredWay(Document):
    """What one way costs and saves, over the cases of a cross-validation, each predicted by the network that did not see it."""

    mirroring: bool
    step: float
    precision: str
    """In which the networks computed: ``float32``, ``bfloat16`` or ``int8``."""
    dice: float | None
    """Mean over classes and cases."""
    difference: Difference | None
    """Of Dice to the first way of the table, case by case; none for that one."""
    seconds: float
    """Of a case, preprocessed, through one network: windows, logits and label map."""
    cases: int
    device: str

    @property
    def words(self) -> str:
        """Of the way."""
        words = Way(mirroring=self.mirroring, step=self.step).words or "as in validation"
        return f"{words}, {self.precision}"


def table_of(measured: Sequence[MeasuredWay]) -> list[str]:
    """Lines of a table, the way of the cross-validation first."""
    first = measured[0].seconds if measured else 0
    lines = []
    for each in measured:
        dice = "-" if each.dice is None else f"{each.dice:.4f}"
        change = "" if each.difference is None else f"  Dice {each.difference}"
        times = f"{first / each.seconds:.1f} times as fast" if each.seconds and each is not measured[0] else ""
        lines.append(f"{each.words:<40} Dice {dice}  {each.seconds:.2f} s a case  {times}{change}".rstrip())
    return lines


def cost_of(way: Way, measured: Sequence[MeasuredWay]) -> str:
    """What is known of the cost of a way that is not that of the cross-validation, in one sentence."""
    of_one = next((each for each in measured if (each.mirroring, each.step) == (way.mirroring, way.step)), None)
    folds = "" if way.num_folds is None else "; what fewer folds cost cannot be told from a cross-validation"
    if (way.mirroring, way.step) == (True, STEP):
        return f"Predicts with {way.words}{folds}"
    if of_one is None or of_one.difference is None:
        return f"Predicts with {way.words}; not measured for this model: autoseg measure RUN does it{folds}"
    shown = Way(mirroring=way.mirroring, step=way.step).words
    return f"Predicts with {way.words}: {shown} changed Dice by {of_one.difference} on {count_noun(of_one.cases, 'validation case')}{folds}"
