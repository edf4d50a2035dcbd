"""What is measured, and how one configuration is trained: by nnU-Net's schedule, or within a budget."""

from __future__ import annotations

from planners.decision import Decision, DecisionRecord
from planners.plan import Configuration, Plan
from planners.schedule.cost import MODEST_WIDTH
from planners.schedule.documents import Measurement, Precision, Training

METHOD_EPOCHS = 1000
METHOD_STEPS_PER_EPOCH = 250
GRADIENT_CLIP = 12.0
FOREGROUND_SHARE = 0.33
WEIGHT_DECAY = 3e-5
MODEST_RATE = 4e-3
"""Peak learning rate of AdamW at 16 features (docs/decisions/0041)."""

AVERAGED_SHARE = 0.2
"""Of a short training: the mean of its last weights (docs/decisions/0214)."""


def method_training(configuration: Configuration, measured: Measurement) -> Training:
    """1000 epochs of 250 steps, Nesterov SGD with momentum 0.99, polynomial decay (method section 7.1)."""
    return Training(
        configuration=configuration.name,
        base_features=measured.base_features,
        batch_size=configuration.batch_size,
        num_steps=METHOD_EPOCHS * METHOD_STEPS_PER_EPOCH,
        steps_per_epoch=METHOD_STEPS_PER_EPOCH,
        precision=measured.precision,
        optimiser="sgd",
        peak_learning_rate=0.01,
        momentum=0.99,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=0,
        curve="polynomial",
        gradient_clip=GRADIENT_CLIP,
        deep_supervision=configuration.deep_supervision,
        mirroring=bool(configuration.mirror_axes),
        augmentation=True,
        foreground_share=FOREGROUND_SHARE,
        validation_batches=50,
    )


def short_learning_rate(base_features: int) -> float:
    """Peak rate of AdamW: that of 16 features, less in proportion for wider networks, never more."""
    return MODEST_RATE * min(1.0, MODEST_WIDTH / base_features)


def budgeted_training(
    configuration: Configuration, measured: Measurement, num_steps: int, *, mirroring: bool, compiled: bool = False
) -> Training:
    """A short training: AdamW, warm-up, cosine decay with every step (docs/decisions/0041)."""
    steps_per_epoch = max(1, min(METHOD_STEPS_PER_EPOCH, round(num_steps / 12)))
    return method_training(configuration, measured).model_copy(
        update={
            "batch_size": measured.batch_size,
            "num_steps": num_steps,
            "compiled": compiled,
            "steps_per_epoch": steps_per_epoch,
            "optimiser": "adamw",
            "peak_learning_rate": short_learning_rate(measured.base_features),
            "momentum": 0.9,
            "curve": "cosine",
            "warmup_steps": min(50, num_steps // 10),
            "mirroring": mirroring,
            "averaged_share": AVERAGED_SHARE,
            "validation_batches": min(4, steps_per_epoch),
        }
    )


LONG_TRAINING = 50_000
"""Steps from which nnU-Net's recipe is followed, with fewer epochs: AdamW's rate is measured for short trainings only."""


def long_training(
    configuration: Configuration, measured: Measurement, num_steps: int, *, compiled: bool = False
) -> Training:
    """nnU-Net's recipe, mirroring included, with as many whole epochs as there is time for, and a short pseudo-Dice after each."""
    epochs = num_steps // METHOD_STEPS_PER_EPOCH
    return method_training(configuration, measured).model_copy(
        update={
            "batch_size": measured.batch_size,
            "num_steps": epochs * METHOD_STEPS_PER_EPOCH,
            "compiled": compiled,
            "validation_batches": 4,
        }
    )


WIDTHS = (32, 16, 8)
"""Base features that are worth measuring, widest first; the plan's own width is the first."""
_FIRST = ("3d_fullres", "2d")
"""Names in order of preference."""
LITTLE_TIME = ("3d_coarse", "3d_fullres_small")
"""Where a step of the whole patch takes too long: coarser voxels before 2D, a smaller patch after it (docs/decisions/0207)."""
SHORT_BATCH = {2: 4, 3: 2}
"""Batch size by dimensions in budgeted runs on CPUs: in the same time more steps beat larger batches (docs/decisions/0041)."""


def candidate_widths(configuration: Configuration) -> tuple[int, ...]:
    """Base features worth measuring for a configuration: its own, then narrower ones."""
    own = configuration.network.features[0]
    return (own, *(width for width in WIDTHS if width < own))


def short_batch_size(configuration: Configuration, device: str) -> int:
    """Batch size of a budgeted run. A GPU gets the plan's own, which fills it: there a smaller one hardly takes less time."""
    own = configuration.batch_size
    return own if device == "cuda" else min(own, SHORT_BATCH[configuration.dimensions])


def preferred_configurations(plan: Plan) -> tuple[Configuration, ...]:
    """Configurations in order of preference: 3D full resolution, 2D, then other topologies. Of single slices only 2D. A plan
    with none of these (of a pretrained cascade) gives its first stages.
    """
    left_out = (*_left_out(plan), *LITTLE_TIME)
    alone = {c.name: c for c in plan.configurations if c.previous_stage is None and c.name not in left_out}
    names = [*_FIRST, *(name for name in alone if name.startswith("3d_fullres_"))]
    return tuple(alone[name] for name in names if name in alone) or tuple(alone.values())


def little_time_configurations(plan: Plan) -> tuple[Configuration, ...]:
    """Coarser voxels and smaller patches, in order of preference: measured only where the preferred configuration starves."""
    left_out = _left_out(plan)
    found = {c.name: c for c in plan.configurations if c.name not in left_out}
    return tuple(found[name] for name in LITTLE_TIME if name in found)


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
    """Why 3D configurations of single slices are not trained; empty where there are none."""
    names = _left_out(plan)
    if not names:
        return []
    decision = Decision(
        rule="schedule.single_slices",
        value=names,
        reason=f"the median case is a single slice that resampling makes several of, so {', '.join(names)} would learn nothing that 2d does "
        "not",
        source="docs/decisions/0010",
        change="volumes with several slices would be trained in 3D",
    )
    return [decision.record()]


def mirroring_decision(plan: Plan, configuration: Configuration, *, long: bool = False) -> Decision[bool]:
    """Short trainings mirror only images without a common orientation (2D photographs, microscopy)."""
    if long and configuration.mirror_axes:
        reason = "nnU-Net's recipe mirrors"
        return Decision(rule="schedule.mirroring", value=True, reason=reason, source="method section 6.2")
    value = shows_slices(plan) and bool(configuration.mirror_axes)
    reason = (
        "2D images have no common orientation"
        if value
        else "images have a common orientation, short trainings learn better without mirroring, and mirrored predictions would "
        "cost training time"
    )
    return Decision(rule="schedule.mirroring", value=value, reason=reason, source="docs/decisions/0041")


def mirrored_configurations(plan: Plan) -> list[Configuration]:
    """Those that budgeted trainings, and then predictions, mirror."""
    return [configuration for configuration in plan.configurations if mirroring_decision(plan, configuration).value]


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
