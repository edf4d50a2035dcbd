"""How long to train what: measured step times and a budget -> folds, configurations, steps, width, optimiser, curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planners.decision import Decision
from planners.plan import Configuration, Plan
from planners.schedule import Conditions, Measurement, Precision, Schedule, Training

METHOD_EPOCHS = 1000
METHOD_STEPS_PER_EPOCH = 250

DEFAULT_CPU_BUDGET_S = 3600.0
"""What a run on a CPU takes when nobody says how long it may take."""
WIDTHS = (32, 16, 8)
"""Base features that are worth measuring, widest first; the plan's own width is the first."""
MODEST_WIDTH = 16
"""Base features that learn fastest in short trainings: after 60 seconds on the hippocampus 16 features reached a Dice of
0.84, 32 features 0.82; one seed, machine shared with other work (docs/decisions/0002)."""
ENOUGH_STEPS = 1000
"""A wider network pays only if it still gets this many steps: 16 features reached a Dice of 0.87 after 622 steps
and 0.88 after 1134 on the hippocampus, 32 features only 0.71 after 210 (design, section 7.5)."""
FEWEST_STEPS = 150
"""Fewer steps than this teach nothing; rather train fewer folds."""
SATURATED_STEPS = 8000
"""Beyond this another configuration gains more than further steps of the first."""
SHORT_BATCH = {2: 12, 3: 2}
"""Batch size by dimensions in budgeted runs: the method's reference batches; more steps beat larger batches."""
RESERVE_SHARE = 0.03
"""Of the budget, kept for selection, postprocessing, report and the noise of the clock."""
RESERVE_S = 6.0


def candidate_widths(configuration: Configuration) -> tuple[int, ...]:
    """Base features worth measuring for a configuration: its own, then narrower ones."""
    own = configuration.network.features[0]
    return (own, *(width for width in WIDTHS if width < own))


def short_batch_size(configuration: Configuration) -> int:
    """Batch size of a budgeted run."""
    return min(configuration.batch_size, SHORT_BATCH[configuration.dimensions])


def preferred_configurations(plan: Plan) -> tuple[Configuration, ...]:
    """Configurations in the order in which time is given to them: full resolution in 3D, then 2D, then the V-Net beside
    them.
    """
    order = {"3d_fullres": 0, "2d": 1, "3d_fullres_vnet": 2}
    known = [c for c in plan.configurations if c.name in order]
    return tuple(sorted(known, key=lambda c: order[c.name]))


def wants_more_candidates(measured: Sequence[Measurement], *, budget_s: float | None, num_folds: int) -> bool:
    """Whether the next configuration is worth measuring, after ``measured`` of those before it.

    It is where a modest network of the first would starve (fewer than `FEWEST_STEPS` steps a fold), and where the time is
    enough to saturate one more.
    """
    share = (budget_s or DEFAULT_CPU_BUDGET_S) / num_folds
    first = [m for m in measured if m.configuration == measured[0].configuration]
    modest = min(first, key=lambda m: abs(m.base_features - MODEST_WIDTH))
    widest = max(first, key=lambda m: m.base_features)
    count = len({m.configuration for m in measured}) + 1
    return share / modest.step_s < FEWEST_STEPS or share / widest.step_s / count >= SATURATED_STEPS


def plan_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """What to train for how long.

    Without a budget a GPU follows the method (section 7.1) and a CPU takes an hour. With one, see
    `budgeted_schedule`. Raises `ValueError` when a configuration to train was not measured.
    """
    if conditions.budget_s is None and conditions.device == "cuda":
        return method_schedule(plan, conditions)
    return budgeted_schedule(plan, conditions)


def method_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """1000 epochs of 250 steps for every measured configuration and every fold (method section 7.1)."""
    trainings, seconds, rest = [], 0.0, 0.0
    for configuration in preferred_configurations(plan):
        if configuration.network.family == "vnet" and plan.preset != "vnet":
            continue  # a candidate of budgeted runs; the method's own schedule trains the method's networks
        measured = _measurement(conditions, configuration.name, configuration.network.features[0])
        if measured is None:
            continue
        num_steps = METHOD_EPOCHS * METHOD_STEPS_PER_EPOCH
        trainings.append(
            Training(
                configuration=configuration.name,
                base_features=measured.base_features,
                batch_size=configuration.batch_size,
                num_steps=num_steps,
                steps_per_epoch=METHOD_STEPS_PER_EPOCH,
                precision=measured.precision,
                optimiser="sgd",
                peak_learning_rate=0.01,
                momentum=0.99,
                weight_decay=3e-5,
                warmup_steps=0,
                curve="polynomial",
                gradient_clip=12.0,
                deep_supervision=configuration.deep_supervision,
                mirroring=bool(configuration.mirror_axes),
                augmentation=True,
                foreground_share=0.33,
                validation_batches=50,
            )
        )
        seconds += num_steps * measured.step_s * conditions.num_folds
        seconds += _validation_s(conditions, measured)
        rest += _test_s(conditions, measured, conditions.num_folds)
    decision = Decision(
        rule="schedule.length",
        value=METHOD_EPOCHS,
        reason=f"no budget was given and a GPU is at hand: {METHOD_EPOCHS} epochs of {METHOD_STEPS_PER_EPOCH} steps",
        source="method section 7.1",
        change="with --budget the run is fitted into the time you have",
    )
    return Schedule(
        conditions=conditions,
        num_folds=conditions.num_folds,
        trainings=tuple(trainings),
        expected_training_s=seconds,
        expected_rest_s=rest,
        decisions=(decision.record(METHOD_EPOCHS),),
    )


def budgeted_schedule(plan: Plan, conditions: Conditions) -> Schedule:
    """The first preferred configuration, as wide as `ENOUGH_STEPS` allows, and further ones once it is saturated."""
    budget = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    usable = budget - conditions.elapsed_s - RESERVE_S - RESERVE_SHARE * budget
    measured = [c for c in preferred_configurations(plan) if _measurements(conditions, c.name)]
    if not measured:
        raise ValueError("no configuration of the plan was measured")
    chosen = decide_configurations(measured, conditions, usable)
    share = usable / len(chosen.value)
    folds = decide_folds(chosen.value, conditions, share)
    records = [chosen.record([c.name for c in chosen.value]), folds.record(folds.value)]
    trainings, seconds, rest = [], 0.0, 0.0
    for configuration in chosen.value:
        width = decide_width(configuration, conditions, share, folds.value)
        steps = affordable_steps(width.value, conditions, share, folds.value)
        mirroring = mirroring_decision(plan, configuration)
        trainings.append(short_training(configuration, width.value, steps, mirroring=mirroring.value))
        records.append(width.record(width.value.base_features, configuration=configuration.name))
        records.append(optimiser_decision(steps).record("sgd", configuration=configuration.name))
        records.append(mirroring.record(mirroring.value, configuration=configuration.name))
        seconds += steps * width.value.step_s * folds.value + _validation_s(conditions, width.value)
        rest += _test_s(conditions, width.value, folds.value)
    return Schedule(
        conditions=conditions,
        num_folds=folds.value,
        trainings=tuple(trainings),
        expected_training_s=seconds,
        expected_rest_s=rest + RESERVE_S,
        decisions=tuple(records),
    )


def decide_configurations(
    candidates: Sequence[Configuration], conditions: Conditions, usable_s: float
) -> Decision[tuple[Configuration, ...]]:
    """As many configurations, in order of preference, as each can be trained to saturation.

    Where a modest network of the first would starve, the configuration that gets the most steps takes its place.
    """
    names = ", ".join(c.name for c in candidates)

    def modest_steps(configuration: Configuration) -> int:
        return affordable_steps(_modest(conditions, configuration.name), conditions, usable_s, conditions.num_folds)

    first = candidates[0]
    if modest_steps(first) < FEWEST_STEPS:
        first = max(candidates, key=modest_steps)
    chosen = [first]
    for candidate in candidates:
        if candidate is first:
            continue
        trial = [*chosen, candidate]
        share = usable_s / len(trial)
        steps = [
            affordable_steps(_measurements(conditions, c.name)[0], conditions, share, conditions.num_folds) for c in trial
        ]
        if min(steps) >= SATURATED_STEPS:
            chosen = trial
    return Decision(
        rule="schedule.configurations",
        value=tuple(chosen),
        reason=f"of {names}: time is given to the first that does not starve (here {first.name}, {modest_steps(first)} steps a "
        f"fold), and to another only if each then gets {SATURATED_STEPS} steps a fold at full width",
        source="design, section 7.5",
        change="a larger --budget trains more configurations",
    )


def decide_folds(
    chosen: Sequence[Configuration], conditions: Conditions, share_s: float
) -> Decision[int]:
    """All folds, or as few as two where a modest network would get fewer than `FEWEST_STEPS` steps a fold."""
    folds = conditions.num_folds
    steps = 0
    while True:
        steps = min(affordable_steps(_modest(conditions, c.name), conditions, share_s, folds) for c in chosen)
        if steps >= FEWEST_STEPS or folds <= 2:
            break
        folds -= 1
    return Decision(
        rule="schedule.folds",
        value=folds,
        reason=f"{folds} of {conditions.num_folds} folds leave {steps} steps for a modest network in each; fewer than "
        f"{FEWEST_STEPS} would teach little",
        source="design, section 7.7",
        change="a larger --budget allows more folds" if folds < conditions.num_folds else None,
    )


def decide_width(
    configuration: Configuration, conditions: Conditions, share_s: float, folds: int
) -> Decision[Measurement]:
    """The widest network that still gets `ENOUGH_STEPS` steps, but at least a modest one; where even that gets fewer than
    `FEWEST_STEPS`, the narrowest that was measured.
    """
    options = _measurements(conditions, configuration.name)
    table = ", ".join(
        f"{m.base_features} features {affordable_steps(m, conditions, share_s, folds)} steps" for m in options
    )
    modest = _modest(conditions, configuration.name)
    fallback = modest if affordable_steps(modest, conditions, share_s, folds) >= FEWEST_STEPS else options[-1]
    wider = [m for m in options if m.base_features > modest.base_features]
    value = next((m for m in wider if affordable_steps(m, conditions, share_s, folds) >= ENOUGH_STEPS), fallback)
    return Decision(
        rule="schedule.width",
        value=value,
        reason=f"the time allows {table}; the widest with at least {ENOUGH_STEPS} steps is taken, else a modest one "
        f"with at least {FEWEST_STEPS}, else the narrowest",
        source="design, section 7.5",
        change="a larger --budget allows a wider network" if value is not options[0] else None,
    )


def optimiser_decision(num_steps: int) -> Decision[str]:
    """Momentum 0.9 for short trainings."""
    return Decision(
        rule="schedule.optimiser",
        value="sgd",
        reason=f"momentum 0.99 needs thousands of steps to settle; {num_steps} steps take 0.9 and twice the rate",
        source="design, section 7.5",
    )


def mirroring_decision(plan: Plan, configuration: Configuration) -> Decision[bool]:
    """Short trainings mirror only images that have no common orientation (2D photographs, microscopy)."""
    only_2d = all(c.dimensions == 2 for c in plan.configurations)
    value = only_2d and bool(configuration.mirror_axes)
    reason = (
        "these are 2D images without a common orientation: every mirror image is as likely"
        if value
        else "all cases are turned to one orientation; mirroring would teach the network to ignore what tells front "
        "from back, and eight-fold prediction would cost training time"
    )
    return Decision(rule="schedule.mirroring", value=value, reason=reason, source="design, section 7.5")


def affordable_steps(measured: Measurement, conditions: Conditions, share_s: float, folds: int) -> int:
    """Steps of each fold if ``share_s`` seconds go to one configuration, prediction of all cases paid first."""
    left = share_s - _validation_s(conditions, measured) - _test_s(conditions, measured, folds)
    return max(1, math.floor(left / folds / measured.step_s))


def short_training(
    configuration: Configuration, measured: Measurement, num_steps: int, *, mirroring: bool
) -> Training:
    """Nesterov SGD with momentum 0.9, a short warm-up and polynomial decay (design, section 7.5)."""
    steps_per_epoch = max(1, min(METHOD_STEPS_PER_EPOCH, round(num_steps / 12)))
    return Training(
        configuration=configuration.name,
        base_features=measured.base_features,
        batch_size=measured.batch_size,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        precision=measured.precision,
        optimiser="sgd",
        peak_learning_rate=0.02,
        momentum=0.9,
        weight_decay=3e-5,
        warmup_steps=min(50, num_steps // 10),
        curve="polynomial",
        gradient_clip=12.0,
        deep_supervision=configuration.deep_supervision,
        mirroring=mirroring,
        augmentation=True,
        foreground_share=0.33,
        validation_batches=4,
    )


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
    return short_training(configuration, measured, 10, mirroring=False)


def _measurements(conditions: Conditions, configuration: str) -> list[Measurement]:
    """Measurements of a configuration, widest first."""
    found = [m for m in conditions.measurements if m.configuration == configuration]
    return sorted(found, key=lambda m: -m.base_features)


def _modest(conditions: Conditions, configuration: str) -> Measurement:
    """The measurement nearest to `MODEST_WIDTH` features."""
    options = _measurements(conditions, configuration)
    return min(options, key=lambda m: abs(m.base_features - MODEST_WIDTH))


def _measurement(conditions: Conditions, configuration: str, width: int) -> Measurement | None:
    return next((m for m in _measurements(conditions, configuration) if m.base_features == width), None)


def _validation_s(conditions: Conditions, measured: Measurement) -> float:
    """Every training case is predicted once."""
    return measured.case_s * conditions.num_training_cases if conditions.cross_validated else 0.0


def _test_s(conditions: Conditions, measured: Measurement, folds: int) -> float:
    """Every test case is predicted by the networks of all folds."""
    return measured.case_s * conditions.num_test_cases * folds
