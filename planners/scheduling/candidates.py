"""What is worth measuring: configurations in order of preference, their widths, and trainings that are only timed."""

from __future__ import annotations

from planners.decision import Decision, DecisionRecord
from planners.plan import Configuration, Plan
from planners.schedule import Measurement, Precision, Training
from planners.scheduling.trainings import budgeted_training

WIDTHS = (32, 16, 8)
"""Base features that are worth measuring, widest first; the plan's own width is the first."""
_FIRST = ("3d_fullres", "2d")
"""Names in order of preference."""
SHORT_BATCH = {2: 4, 3: 2}
"""Batch size by dimensions in budgeted runs: in the same time more steps beat larger batches (docs/decisions/0041)."""


def candidate_widths(configuration: Configuration) -> tuple[int, ...]:
    """Base features worth measuring for a configuration: its own, then narrower ones."""
    own = configuration.network.features[0]
    return (own, *(width for width in WIDTHS if width < own))


def short_batch_size(configuration: Configuration) -> int:
    """Batch size of a budgeted run."""
    return min(configuration.batch_size, SHORT_BATCH[configuration.dimensions])


def preferred_configurations(plan: Plan) -> tuple[Configuration, ...]:
    """Configurations in the order in which time is given to them: full resolution in 3D, then 2D, then the V-Net beside
    them. Of single slices only 2D. A plan with none of these (of a pretrained cascade) gives its first stages.
    """
    left_out = _left_out(plan)
    alone = {c.name: c for c in plan.configurations if c.previous_stage is None and c.name not in left_out}
    names = [*_FIRST, *(name for name in alone if name.startswith("3d_fullres_"))]
    return tuple(alone[name] for name in names if name in alone) or tuple(alone.values())


def method_configurations(plan: Plan) -> tuple[Configuration, ...]:
    """Configurations that the method's schedule trains: those of `preferred_configurations`, and the cascade after its stages.

    Other topologies beside the preset's own are candidates of budgeted runs only.
    """
    preferred = preferred_configurations(plan)
    beside = [c for c in preferred if c.name in _FIRST] or preferred
    last_stages = [c for c in plan.configurations if c.previous_stage is not None and c.next_stage is None]
    staged = [] if _left_out(plan) else [stage for last in last_stages for stage in plan.chain(last.name)]
    return tuple(dict.fromkeys([*beside, *staged]))


def shows_slices(plan: Plan) -> bool:
    """Whether the images are single slices, planned in 2D only or resampled to several (decision record 0010)."""
    return plan.original_median_shape[0] == 1 or all(c.dimensions == 2 for c in plan.configurations)


def _left_out(plan: Plan) -> tuple[str, ...]:
    """3D configurations of single slices; none where there is nothing else to train."""
    names = tuple(c.name for c in plan.configurations if c.dimensions == 3)
    return names if shows_slices(plan) and len(names) < len(plan.configurations) else ()


def records_of_left_out(plan: Plan) -> list[DecisionRecord]:
    """Why 3D configurations of single slices are not trained; no record where there are none."""
    names = _left_out(plan)
    if not names:
        return []
    decision = Decision(
        rule="schedule.single_slices",
        value=names,
        reason=f"the median case is a single slice, of which resampling to one thickness makes several: {', '.join(names)} would see "
        "one slice blurred into a few, and take time from 2d",
        source="docs/decisions/0010",
        change="volumes with several slices would be trained in 3D",
    )
    return [decision.record(list(names))]


def trial_training(
    configuration: Configuration, *, base_features: int, batch_size: int, precision: Precision
) -> Training:
    """A training of a few steps that is only timed; each step costs what a scheduled one costs."""
    measured = Measurement(
        configuration=configuration.name,
        base_features=base_features,
        batch_size=batch_size,
        precision=precision,
        step_s=1.0,
        case_s=1.0,
    )
    return budgeted_training(configuration, measured, 10, mirroring=False)
