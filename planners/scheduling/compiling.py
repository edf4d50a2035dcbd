"""Whether training steps run through `torch.compile`: where what it saves is more than it costs."""

from __future__ import annotations

from dataclasses import dataclass

from planners.decision import Decision, DecisionRecord
from planners.schedule import Conditions, Measurement
from planners.scheduling.cost import affordable_steps, training_s

HOPED_FOR = 0.15
"""Share of a step that compiling may save (7 to 22 % on a CPU, docs/decisions/0113)."""
FORESEEN_COMPILE_S = 60.0
"""What compiling a network is taken to cost before it was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many steps each fold gets, and what they cost."""

    measured: Measurement
    """With the step as it will be run."""
    steps: int
    training_s: float
    """Of all folds."""
    compiling: Decision[bool] | None
    """None: nobody measured a compiled step."""

    @property
    def compiled(self) -> bool:
        """Whether steps run compiled."""
        return self.compiling is not None and self.compiling.value

    def records(self, configuration: str) -> list[DecisionRecord]:
        """The decision, if there was one."""
        return (
            [] if self.compiling is None else [self.compiling.record(self.compiling.value, configuration=configuration)]
        )


def compiling_may_pay(measured: Measurement, num_steps: int, folds: int) -> bool:
    """Whether it is worth finding out, which compiles the network."""
    return folds * num_steps * measured.step_s * HOPED_FOR > FORESEEN_COMPILE_S


def budgeted_pace(measured: Measurement, conditions: Conditions, share_s: float, folds: int) -> Pace:
    """As many steps as ``share_s`` seconds allow, compiled or not."""
    steps = affordable_steps(measured, conditions, share_s, folds)
    pace = fixed_pace(measured, steps, folds)
    return (
        fixed_pace(measured, affordable_steps(pace.measured, conditions, share_s, folds), folds)
        if pace.compiled
        else pace
    )


def fixed_pace(measured: Measurement, steps: int, folds: int) -> Pace:
    """So many steps, compiled or not."""
    compiling = decide_compiling(measured, steps, folds)
    if compiling is None or not compiling.value:
        return Pace(measured=measured, steps=steps, training_s=training_s(measured, steps, folds), compiling=compiling)
    fast = measured.model_copy(update={"step_s": measured.compiled_step_s})
    return Pace(measured=fast, steps=steps, training_s=training_s(fast, steps, folds), compiling=compiling)


def decide_compiling(measured: Measurement, num_steps: int, folds: int) -> Decision[bool] | None:
    """Compile where steps are faster for it by more than compiling takes; none where nobody measured.

    A process compiles once for all folds, and has done so when it measured; another one that goes on pays again.
    """
    if measured.compiled_step_s is None:
        return None
    saved = folds * num_steps * (measured.step_s - measured.compiled_step_s)
    return Decision(
        rule="schedule.compiling",
        value=saved > measured.compile_s,
        reason=f"a step takes {measured.step_s:.3g} s, compiled {measured.compiled_step_s:.3g} s; {num_steps} steps of {folds} "
        f"folds save {saved:.0f} s, compiling costs {measured.compile_s:.0f} s",
        source="measured on this machine",
    )
