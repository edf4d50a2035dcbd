"""Times a few real training steps and predictions on this machine, so that a budget can be planned."""

from __future__ import annotations

import time
from statistics import median

import torch

from autoseg.execution.device import fast_precision
from autoseg.inference.sliding_window import count_windows
from autoseg.networks.build import build_network
from autoseg.pipeline.options import Options
from autoseg.preparation.storage import open_case, stored_case_ids
from autoseg.training.batches import BatchSource
from autoseg.training.fold import configuration_recipe, make_network
from autoseg.training.loop import make_parts, run_network, train_step
from autoseg.training.losses import make_loss
from planners import (
    Configuration,
    Measurement,
    Plan,
    Precision,
    Training,
    candidate_widths,
    preferred_configurations,
    short_batch_size,
    trial_training,
    wants_more_candidates,
    with_width,
)

FLOAT32: Precision = "float32"
WARM_UP_STEPS = 4
"""The first steps also prepare convolution kernels and fill caches; on CPUs they take up to twice as long."""
TIMED_STEPS = 8
TRIAL_CASES = 3
"""Opening a case for the first time takes tens of milliseconds, which a training pays once and a trial would pay in every
step; few cases are open after the warm-up."""
MAX_TRIAL_S = 10.0
"""Where steps are slow a few must do: after this time the last of those done are taken."""
TRIAL_SHARE = 0.01
"""Of a budget, for each width at most: trials must not eat the time that they plan."""
HOPELESS_SHARE = 1 / 200
"""A width whose single step takes more than this share of the budget could not be trained; wider ones neither."""


def measure_steps(
    options: Options, plan: Plan, case_ids: list[str], *, budgeted: bool, num_folds: int
) -> tuple[Measurement, ...]:
    """Measurements of the configurations that may be trained, narrow widths first until time forbids.

    A configuration is left out where the ones before it take all the time. Without a budget only the plan's own width and
    batch size are measured.
    """
    precision = measure_precision(options, plan, case_ids)
    measurements: list[Measurement] = []
    for configuration in preferred_configurations(plan):
        if measurements and budgeted and not wants_more_candidates(measurements, budget_s=options.budget_s, num_folds=num_folds):
            break
        widths = sorted(candidate_widths(configuration)) if budgeted else [configuration.network.features[0]]
        batch_size = short_batch_size(configuration) if budgeted else configuration.batch_size
        for width in widths:
            measured = measure_width(
                options, plan, configuration, case_ids, width=width, batch_size=batch_size, precision=precision
            )
            measurements.append(measured)
            if options.budget_s is not None and measured.step_s > options.budget_s * HOPELESS_SHARE:
                break
    return tuple(measurements)


def measure_precision(options: Options, plan: Plan, case_ids: list[str]) -> Precision:
    """The faster of float32 and the device's short precision, by trial steps of the first configuration on a CPU.

    A GPU with units for it is always faster in short precision, and large networks would cost minutes to try twice.
    """
    short = fast_precision(options.device)
    if short == "float32" or options.device.type != "cpu":
        return short
    configuration = preferred_configurations(plan)[0]
    narrow = min(candidate_widths(configuration))
    seconds = {
        precision: measure_width(
            options, plan, configuration, case_ids, width=narrow, batch_size=2, precision=precision
        ).step_s
        for precision in (short, FLOAT32)
    }
    chosen = min(seconds, key=lambda precision: seconds[precision])
    options.reporter.say(
        f"Precision: {chosen} ({seconds[short]:.2f} s per trial step in {short}, {seconds[FLOAT32]:.2f} s in float32)"
    )
    return chosen


def measure_width(
    options: Options,
    plan: Plan,
    configuration: Configuration,
    case_ids: list[str],
    *,
    width: int,
    batch_size: int,
    precision: Precision,
) -> Measurement:
    """Median seconds of a real training step, data included, and of predicting a median case."""
    training = trial_training(configuration, base_features=width, batch_size=batch_size, precision=precision)
    folder = options.run.preprocessed(configuration.data)
    source = BatchSource(
        cases=[open_case(folder, case_id) for case_id in case_ids[:TRIAL_CASES]],
        recipe=configuration_recipe(configuration, training),
        batch_size=batch_size,
        foreground_share=training.foreground_share,
        seed=options.seed,
        configuration=configuration.name,
        fold=0,
        purpose="training",
    )
    network = make_network(configuration, training, seed=0)
    parts = make_parts(network, make_loss(configuration.loss, plan.labels), training, options.device)
    parts.network.train()
    durations: list[float] = []
    longest = MAX_TRIAL_S if options.budget_s is None else min(MAX_TRIAL_S, TRIAL_SHARE * options.budget_s)
    for step in range(WARM_UP_STEPS + TIMED_STEPS):
        started = time.perf_counter()
        images, labels = source[step]
        train_step(parts, images, labels, 1e-6)
        durations.append(time.perf_counter() - started)
        if len(durations) > 2 and sum(durations) > longest:
            break
    return Measurement(
        configuration=configuration.name,
        base_features=width,
        batch_size=batch_size,
        precision=training.precision,
        step_s=median(durations[min(WARM_UP_STEPS, len(durations) // 2) :]),
        case_s=measure_case(options, configuration, training),
    )


def measure_case(options: Options, configuration: Configuration, training: Training) -> float:
    """Seconds to predict a case of median shape with one network, from one timed window."""
    network = build_network(with_width(configuration.network, training.base_features)).to(options.device).eval()
    window = torch.zeros((1, configuration.network.num_inputs, *configuration.patch_shape), device=options.device)
    durations = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            run_network(network, window, training.precision)
            durations.append(time.perf_counter() - started)
    windows = count_windows(median_case_shape(options, configuration), configuration.patch_shape)
    return median(durations) * windows + 0.05


def median_case_shape(options: Options, configuration: Configuration) -> tuple[int, ...]:
    """Median case after resampling, three axes; a 2D configuration counts the slices of its stored cases."""
    shape = [max(1, round(n)) for n in configuration.median_shape]
    if len(shape) == 3:
        return tuple(shape)
    return (stored_slices(options, configuration), *shape)


def stored_slices(options: Options, configuration: Configuration) -> int:
    """Median number of slices of the preprocessed cases."""
    folder = options.run.preprocessed(configuration.data)
    return round(median(int(open_case(folder, case_id).labels.shape[0]) for case_id in stored_case_ids(folder)))
