"""What trainings and predictions will take, from what was measured, and whether compiling steps pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planners.decision import Decision
from planners.memory import network_layers
from planners.plan import Configuration
from planners.schedule.documents import Conditions, Measurement, Precision, rounds, with_width

MODEST_WIDTH = 16
"""Base features that learn fastest in short trainings: after 60 seconds on the hippocampus 16 features reached a Dice of
0.84, 32 features 0.82; one seed, machine shared with other work (docs/decisions/0002)."""

DEFAULT_CPU_BUDGET_S = 3600.0
"""The default budget on a CPU."""
ENOUGH_STEPS = 1000
"""Steps that a wider network must still get: 16 features reached a Dice of 0.87 after 622 steps
and 0.88 after 1134 on the hippocampus, 32 features only 0.71 after 210 (docs/decisions/0041)."""
FEWEST_STEPS = 150
"""With fewer steps a network learns nothing; fewer folds are trained instead."""
SATURATED_STEPS = 8000
"""Beyond this another configuration gains more than further steps of the first."""
RESERVE_SHARE = 0.03
"""Of the budget, reserved for selection, postprocessing, report and timing noise."""
RESERVE_S = 6.0

HELD_OUT = 5
"""A hold-out keeps one case of so many for validation."""
PSEUDO_DICE_STEPS = 16
"""Cost in steps of the pseudo-Dice of a budgeted training: twelve epochs of four batches, forward only, a third each."""


def follows_method(conditions: Conditions) -> bool:
    """Whether nnU-Net's schedule is followed: on a GPU without a budget."""
    return conditions.budget_s is None and conditions.device == "cuda"


def usable_s(conditions: Conditions) -> float:
    """What is left of the budget for training and predicting."""
    budget = conditions.budget_s or DEFAULT_CPU_BUDGET_S
    return budget - conditions.elapsed_s - RESERVE_S - RESERVE_SHARE * budget


def share_s_of(conditions: Conditions, configurations: int, folds: int) -> float:
    """Seconds of the whole run that go to each of so many configurations. On several devices the last folds of one train beside the
    first ones of the next."""
    devices = conditions.num_devices
    return usable_s(conditions) / (rounds(configurations * folds, devices) / rounds(folds, devices))


def side_by_side(conditions: Conditions, folds: int) -> float:
    """Seconds of devices in a second in which ``folds`` of a configuration are trained: fewer than devices where some have none left."""
    return folds / rounds(folds, conditions.num_devices)


def measurements_of(conditions: Conditions, configuration: str) -> list[Measurement]:
    """Measurements of a configuration, widest first."""
    found = [m for m in conditions.measurements if m.configuration == configuration]
    return sorted(found, key=lambda m: -m.base_features)


def measurement_of(conditions: Conditions, configuration: str, width: int) -> Measurement | None:
    """The measurement of one width; None: not measured."""
    return next((m for m in measurements_of(conditions, configuration) if m.base_features == width), None)


def modest_of(conditions: Conditions, configuration: str) -> Measurement:
    """The measurement of a configuration nearest to `MODEST_WIDTH` features."""
    return nearest_to_modest(measurements_of(conditions, configuration))


def nearest_to_modest(options: Sequence[Measurement]) -> Measurement:
    """The one of ``options`` nearest to `MODEST_WIDTH` features."""
    width = modest_width([m.base_features for m in options])
    return next(m for m in options if m.base_features == width)


def modest_width(widths: Sequence[int]) -> int:
    """The one of ``widths`` nearest to `MODEST_WIDTH`."""
    return min(widths, key=lambda width: abs(width - MODEST_WIDTH))


def with_mirroring(conditions: Conditions, mirrored: Iterable[Configuration]) -> Conditions:
    """``conditions`` where networks of ``mirrored`` configurations predict all mirror images of a case."""
    passes = {configuration.name: 2 ** len(configuration.mirror_axes) for configuration in mirrored}
    measurements = tuple(
        m.model_copy(update={"case_s": m.case_s * passes.get(m.configuration, 1)}) for m in conditions.measurements
    )
    return conditions.model_copy(update={"measurements": measurements})


def validation_s(conditions: Conditions, measured: Measurement, folds: int) -> float:
    """Every validated case is predicted once, and scored again with and without postprocessing; of a hold-out, one in five."""
    each, cases = measured.case_s + 2 * measured.export_s, conditions.num_validated_cases
    cases = conditions.num_training_cases if cases is None else cases
    if folds == 1 < conditions.num_folds:
        cases = -(-cases // HELD_OUT)
    return each * cases if conditions.cross_validated else 0.0


def passing_on_s(conditions: Conditions, configuration: Configuration, measured: Measurement) -> float:
    """The first stage of a cascade predicts every training case once more, for the stage after it."""
    cases = conditions.num_training_cases * conditions.num_devices  # all others wait meanwhile
    return measured.case_s * cases if configuration.next_stage is not None else 0.0


def test_s(conditions: Conditions, measured: Measurement, folds: int) -> float:
    """Every test case is prepared and written once, and predicted by the networks of all folds."""
    return (measured.prepare_s + measured.case_s * folds + measured.export_s) * conditions.num_test_cases


def training_s(measured: Measurement, steps: int, folds: int) -> float:
    """So many steps of each fold, with the pseudo-Dice after each epoch."""
    return (steps + min(PSEUDO_DICE_STEPS, steps)) * measured.step_s * folds


def affordable_steps(measured: Measurement, conditions: Conditions, share_s: float, folds: int) -> int:
    """Steps of each fold if ``share_s`` seconds go to one configuration, prediction of all cases paid first; at least 1."""
    given = share_s * side_by_side(conditions, folds)
    left = given - validation_s(conditions, measured, folds) - test_s(conditions, measured, folds)
    paid = math.floor(left / folds / measured.step_s)
    return max(1, paid - min(PSEUDO_DICE_STEPS, -(-paid // 2)))


def seconds_for_steps(measured: Measurement, conditions: Conditions, steps: int, folds: int) -> float:
    """The inverse of `affordable_steps`: what so many steps of each fold take, prediction of all cases included."""
    predictions = validation_s(conditions, measured, folds) + test_s(conditions, measured, folds)
    return (training_s(measured, steps, folds) + predictions) / side_by_side(conditions, folds)


MULTIPLICATION: dict[Precision, float] = {"bfloat16": 1.0, "float16": 1.0, "float32": 5.0}
VALUE, VOXEL, STEP = 270.0, 1.5e5, 7e9
"""What one multiplication costs on a CPU, one value that a convolution reads or writes, one voxel of a batch that is read and augmented,
and each step besides; in multiplications in short precision. Fitted to the trials of one processor (docs/decisions/0253)."""


def extrapolated(
    known: Measurement,
    before: Configuration,
    after: Configuration,
    *,
    base_features: int,
    batch_size: int,
    windows: float = 1.0,
) -> Measurement:
    """What a network of ``after`` takes that is not timed, from one of ``before`` that was, in the same precision.

    ``windows``: of a case of ``after`` for each one of ``before``. Export and preparation stay the same: they depend on the images
    (docs/decisions/0253).
    """
    was, becomes = (
        window_work(configuration, width, known.precision)
        for configuration, width in ((before, known.base_features), (after, base_features))
    )
    step = step_work(after, becomes, batch_size) / step_work(before, was, known.batch_size)
    return Measurement(
        configuration=after.name,
        base_features=base_features,
        batch_size=batch_size,
        precision=known.precision,
        step_s=known.step_s * step,
        case_s=known.case_s * windows * becomes / was,
        export_s=known.export_s,
        prepare_s=known.prepare_s,
        extrapolated=True,
    )


def window_work(configuration: Configuration, base_features: int, precision: Precision) -> float:
    """Cost of one patch, forward. Of a topology that does not tell its multiplications only the values count."""
    layers = network_layers(with_width(configuration.network, base_features), configuration.patch_shape)
    values = sum(layer.inputs + layer.outputs for layer in layers)
    return MULTIPLICATION[precision] * sum(layer.multiplications for layer in layers) + VALUE * values


def step_work(configuration: Configuration, window: float, batch_size: int) -> float:
    """Cost of a training step, from that of one patch, `window_work`; forward and backward stand in the constants."""
    return batch_size * (window + VOXEL * math.prod(configuration.patch_shape)) + STEP


WORTH_COMPILING_S = 900.0
"""Seconds of training from which compiling may pay: it saves about 15 % and takes a minute, or several on a busy machine
(docs/decisions/0113)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How many steps each fold gets, and what they cost."""

    measured: Measurement
    """With the step as it will be run."""
    steps: int
    training_s: float
    """Of all folds."""
    compiling: Decision[bool] | None
    """None: no compiled step was measured."""

    @property
    def compiled(self) -> bool:
        """Whether steps run compiled."""
        return self.compiling is not None and self.compiling.value


def compiling_may_pay(measured: Measurement, num_steps: int, folds: int) -> bool:
    """Whether a compiled step is worth measuring."""
    return folds * num_steps * measured.step_s > WORTH_COMPILING_S


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
    """Compile where that saves more than it takes; none where it was not measured. A process compiles once for all folds."""
    if measured.compiled_step_s is None:
        return None
    saved = folds * num_steps * (measured.step_s - measured.compiled_step_s)
    return Decision(
        rule="schedule.compiling",
        value=saved > measured.compile_s,
        reason=f"a step takes {measured.step_s:.3g} s, compiled {measured.compiled_step_s:.3g} s; {num_steps} steps of {folds} "
        f"folds save {saved:.0f} s, compiling takes {measured.compile_s:.0f} s",
        source="measured on this machine",
    )


# --- on paper, for GPUs that are not at hand ---


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet."""

    name: str
    bandwidth: float
    """Of its memory, bytes a second."""
    peak: float
    """Multiplications and additions of 16-bit numbers a second in matrix units, sums in float32."""


CARDS = (
    Card("T4", 320e9, 65e12),
    Card("RTX 3090", 936e9, 71e12),
    Card("RTX 4090", 1008e9, 165e12),
    Card("A100", 1555e9, 312e12),
    Card("H100", 3350e9, 989e12),
    Card("H200", 4800e9, 989e12),
)
BANDWIDTH_SHARE, PEAK_SHARE, LAUNCH_S = 0.12, 0.67, 8e-6
"""What nnU-Net reaches of a data sheet. The bytes are the fewest that could be moved, so conversions and float32 copies are in the share.
Fitted to nine of its public epoch times (docs/decisions/0229): each within 12 %, six others within 26 %."""


def modelled_step_s(configuration: Configuration, card: Card, *, backward: bool = True) -> float | None:
    """Seconds of a step on paper, in 16-bit precision; None for a topology that does not tell its multiplications.

    Each operation takes what its bytes take, its multiplications, or its launch, whichever is longest.
    """
    total, batch = 0.0, configuration.batch_size
    layers = network_layers(configuration.network, configuration.patch_shape)
    if not any(layer.multiplications for layer in layers):
        return None

    def operation(values: int, multiplications: int = 0, launches: int = 1) -> float:
        by_bytes = 2 * values * batch / (BANDWIDTH_SHARE * card.bandwidth)
        return max(by_bytes, 2 * multiplications * batch / (PEAK_SHARE * card.peak), launches * LAUNCH_S)

    for layer in layers:
        convolution = operation(layer.inputs + layer.outputs, layer.multiplications)
        total += convolution * (3 if backward else 1)  # backward: of the input, and of the weights
        if layer.convolved:  # a norm reads its map twice and writes it; activations once more. Backward reads two maps
            total += operation(4 * layer.outputs, launches=2)
            total += operation(6 * layer.outputs, launches=2) if backward else 0.0
    return total


def modelled_fold_h(configuration: Configuration, card: Card) -> float | None:
    """Hours of nnU-Net's schedule for one fold on paper: 1000 epochs of 250 steps and 50 validation batches."""
    step, forward = modelled_step_s(configuration, card), modelled_step_s(configuration, card, backward=False)
    return None if step is None or forward is None else 1000 * (250 * step + 50 * forward) / 3600


def spread_h(jobs: Sequence[float], gpus: int) -> float:
    """Hours until the last of ``jobs`` (hours each) is done on so many GPUs, longest first."""
    return queue_s(sorted(jobs, reverse=True), gpus)


def queue_s(jobs: Iterable[float], devices: int, *, busy_s: Sequence[float] = ()) -> float:
    """Time until the last of ``jobs`` (time each) is done: in order, each on the device that is free first.

    ``busy_s``: the times for which some of the devices are busy already.
    """
    busy = [*busy_s, *[0.0] * (devices - len(busy_s))]
    for time in jobs:
        busy[busy.index(min(busy))] += time
    return max(busy)


def stretch_to_fit(jobs: Sequence[float], devices: int, *, left_s: float, busy_s: Sequence[float] = ()) -> float:
    """By what all times of ``jobs`` may be multiplied such that the last one is done in ``left_s`` seconds; see `queue_s`.

    Found within 2^-40 by halving. 0 where no time is left, 1 for jobs that take none.
    """
    if not any(jobs):
        return 1.0
    low, high = 0.0, max(0.0, left_s) / max(jobs)
    if queue_s([each * high for each in jobs], devices, busy_s=busy_s) <= left_s:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        fits = queue_s([each * middle for each in jobs], devices, busy_s=busy_s) <= left_s
        low, high = (middle, high) if fits else (low, middle)
    return low
