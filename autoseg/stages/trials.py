"""Times real training steps and predictions on this machine, so that a budget can be planned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from autoseg.compute.device import fast_precision
from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.evaluation.scoring import reference_labels, score_cases
from autoseg.imaging.readers import read_image, write_label_map
from autoseg.inference.predictions import prediction_path
from autoseg.inference.predictor import MemberOutput
from autoseg.inference.sliding_window import count_windows
from autoseg.issues import AutosegError
from autoseg.networks.build import build_network, place
from autoseg.preprocessing.prepare import CascadeCase, prepare_image
from autoseg.preprocessing.store import open_case
from autoseg.settings import sets_steps
from autoseg.stages.run import Run
from autoseg.storage.atomic import temporary_folder
from autoseg.training.fold_spec import configuration_recipe, make_network, previous_values
from autoseg.training.loop import is_mean_over_samples, make_parts, run_network, train_step
from autoseg.training.losses import make_loss
from autoseg.training.preflight import kept_heap_for, memory_issue, num_readers, plausible_sizes
from autoseg.training.sampling import BatchSource, finish
from autoseg.wording import first_line
from planners import (
    DEFAULT_CPU_BUDGET_S,
    Conditions,
    Configuration,
    Measurement,
    Plan,
    Precision,
    Training,
    candidate_widths,
    compiling_may_pay,
    modest_width,
    short_batch_size,
    trial_training,
    wants_more_candidates,
    with_width,
)

TRIALS_SHARE, TRIALS_S = 0.05, 60.0
"""Trials end after this share of the planned time or so many seconds, whatever is not timed then: they must not use up what
they plan, and the pace of training corrects them."""
FEW_TRIALS_S = 10.0
"""Where the user set the steps: trials only tell how long they will take."""
TRIAL_SHARE = 0.01
"""Share of the planned time for each trial."""
BESIDE_TRIALS = 1.5
"""Trials that each further configuration may take, whatever the trials before have left: wider networks are extrapolated."""
SHORTEST_TRIAL_S = 2.0
LONGEST_TRIAL_S = 10.0
"""Enough where steps are slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What trials are made from."""

    run: Run
    dataset: DatasetDescription
    plan: Plan
    longest_s: float
    """Of one trial."""
    ends: float = math.inf
    """When all trials should be over, by the monotonic clock."""

    @property
    def left_s(self) -> float:
        """For the next trial: what one may take, or what is left of the time of all."""
        return max(0.0, min(self.longest_s, self.ends - time.monotonic()))

    @property
    def cases(self) -> Sequence[Case]:
        """Training cases."""
        return self.dataset.training


def make_bench(run: Run, dataset: DatasetDescription, plan: Plan) -> Bench:
    """Trials that last as long as the budget allows."""
    planned_s = run.settings.budget or DEFAULT_CPU_BUDGET_S
    longest_s = min(LONGEST_TRIAL_S, max(SHORTEST_TRIAL_S, TRIAL_SHARE * planned_s))
    limit_s = FEW_TRIALS_S if sets_steps(run.settings) else TRIALS_S
    ends = time.monotonic() + min(limit_s, TRIALS_SHARE * planned_s)
    return Bench(run=run, dataset=dataset, plan=plan, longest_s=longest_s, ends=ends)


FLOAT32: Precision = "float32"
WARM_UP_STEPS = 4
"""The first steps also prepare convolution kernels and fill caches; on CPUs they take up to twice as long."""
TIMED_STEPS = 8
TRIAL_CASES = 3
"""Opening a case for the first time takes tens of milliseconds, which costs a training once and would cost a trial in every
step; few cases are open after the warm-up."""
REFINED_S = 30.0
"""The training that was chosen is timed again, longer: all that follows depends on it."""
LONGEST_COMPILED_S = 120.0
"""Compiling a large network takes up to a minute or two."""
COMPILED_STEPS = 40
COMPILING_STEPS = 2
"""The first steps, in which the forward and the backward pass are compiled."""
GROWTH = 3.0
"""A network twice as wide takes up to this much longer; so that a trial is only started if it fits."""
USUAL_GROWTH = 2.5
"""What a network twice as wide is taken to cost where it is not timed: between moving its feature maps, twice as many bytes, and
its operations, four times as many (docs/decisions/0215). The chosen network is timed again."""


def measure_steps(
    bench: Bench,
    candidates: Sequence[Configuration],
    *,
    budgeted: bool,
    num_folds: int,
    precision: Precision | None = None,
    modest: bool = False,
) -> tuple[Measurement, ...]:
    """Measurements of ``candidates``, in order of preference, narrow widths first until time or memory forbids.

    A configuration is left out where the ones before it take all the time. Without a budget only the plan's own width and
    batch size are measured; ``modest``: only a modest width. ``precision`` is measured too where it is not given. Raises
    `AutosegError` where nothing fits into memory.
    """
    run = bench.run
    precision = precision or measure_precision(bench, candidates[0])
    measurements: list[Measurement] = []
    for configuration in candidates:
        if (
            measurements
            and budgeted
            and not wants_more_candidates(measurements, budget_s=run.settings.budget, num_folds=num_folds)
        ):
            break
        own: list[Measurement] = []
        fixed = not budgeted or run.settings.pretrained is not None
        widths = [configuration.network.features[0]] if fixed else sorted(candidate_widths(configuration))
        widths = [modest_width(widths)] if modest else widths
        batch_size = short_batch_size(configuration, run.device.type) if budgeted else configuration.batch_size
        outside_s = measure_export(bench, configuration), measure_preparation(bench, configuration)
        for width in widths:
            training = trial_training(configuration, base_features=width, batch_size=batch_size, precision=precision)
            whole = budgeted and bool(measurements or own)
            if own and 2 * GROWTH * own[-1].step_s > bench.left_s:
                if training.batch_size in plausible_sizes(configuration, training, run.device):
                    own.append(extrapolated(own, width))
                continue
            step_s = time_fitting_steps(bench, configuration, training, longest_s=bench.left_s, whole=whole)
            if step_s is None:
                run.say(f"{configuration.name} with {width} features does not fit into free memory")
                break
            own.append(
                Measurement(
                    configuration=configuration.name,
                    base_features=width,
                    batch_size=batch_size,
                    precision=precision,
                    step_s=step_s,
                    case_s=measure_network(bench, configuration, training),
                    export_s=outside_s[0],
                    prepare_s=outside_s[1],
                )
            )
        measurements += own
    if not measurements:
        raise AutosegError(memory_issue(bench.plan, configuration, training, run.device))
    return tuple(measurements)


def measure_each(
    bench: Bench,
    configurations: Sequence[Configuration],
    *,
    budgeted: bool,
    num_folds: int,
    precision: Precision | None = None,
    modest: bool = False,
) -> tuple[Measurement, ...]:
    """`measure_steps` of every one of ``configurations``: none is left out."""
    precision = precision or measure_precision(bench, configurations[0])
    return tuple(
        measured
        for configuration in configurations
        for measured in measure_steps(
            bench, [configuration], budgeted=budgeted, num_folds=num_folds, precision=precision, modest=modest
        )
    )


def measure_beside(bench: Bench, conditions: Conditions, names: Sequence[str], *, modest: bool = False) -> Conditions:
    """``conditions`` with measurements of further configurations, timed for a little while each; at a ``modest`` width only.

    What does not fit into memory is left out, and said.
    """
    known = {(m.configuration, m.base_features) for m in conditions.measurements}
    found: list[Measurement] = []
    for name in names:
        own = replace(bench, ends=time.monotonic() + BESIDE_TRIALS * bench.longest_s)
        try:
            found += measure_each(
                own,
                [bench.plan.configuration(name)],
                budgeted=not bench.run.follows_method,
                num_folds=conditions.num_folds,
                precision=conditions.measurements[0].precision,
                modest=modest,
            )
        except AutosegError as error:
            bench.run.say(f"{name} is left out: {error}")
    new = tuple(m for m in found if (m.configuration, m.base_features) not in known)
    return conditions.model_copy(update={"measurements": (*conditions.measurements, *new)})


def refine(bench: Bench, measured: Measurement, training: Training) -> Measurement:
    """``measured``, from which ``training`` was planned, with its step timed for longer."""
    configuration = bench.plan.configuration(training.configuration)
    longest = min(REFINED_S, 1.5 * TRIAL_SHARE * (bench.run.settings.budget or DEFAULT_CPU_BUDGET_S))
    longest = max(0.0, min(longest, bench.ends - time.monotonic()))
    if longest < 3 * measured.step_s:
        return measured
    most = round(longest / measured.step_s)
    step_s = time_fitting_steps(bench, configuration, training, longest_s=longest, most=most)
    return measured.model_copy(update={"step_s": step_s, "extrapolated": False}) if step_s else measured


def extrapolated(measured: Sequence[Measurement], width: int) -> Measurement:
    """What a network of another width takes, from the last of those ``measured``."""
    last = measured[-1]
    growth = USUAL_GROWTH ** math.log2(width / last.base_features)
    changes = {"step_s": last.step_s * growth, "case_s": last.case_s * growth}
    return last.model_copy(update={"base_features": width, "extrapolated": True, **changes})


def try_compiling(bench: Bench, measured: Measurement, training: Training, num_folds: int) -> Measurement:
    """``measured`` with the compiled step of ``training``, where that may be faster and the compiler works."""
    device, configuration = bench.run.device, bench.plan.configuration(training.configuration)
    if not compiling_may_pay(measured, training.num_steps, num_folds):
        return measured
    if training.batch_size not in plausible_sizes(configuration, training, device):
        return measured  # on a CPU a process that takes too much is killed, not told
    compiled = training.model_copy(update={"compiled": True})
    try:
        with kept_heap_for(configuration, training, device):
            durations = time_steps(bench, configuration, compiled, longest_s=LONGEST_COMPILED_S, most=COMPILED_STEPS)
    except Exception as error:  # compilers raise errors of many kinds, and steps run without them, too
        found = f"torch.compile does not work here ({first_line(error)})"
        if is_out_of_memory(error):
            found = "memory is not enough for compiled steps"
        bench.run.say(f"{found}; steps run without it")
        return measured
    finally:
        release_memory(device)
    step_s = settled_mean(durations)
    compile_s = max(0.0, sum(durations[:COMPILING_STEPS]) - COMPILING_STEPS * step_s)
    return measured.model_copy(update={"compiled_step_s": step_s, "compile_s": compile_s})


def measure_precision(bench: Bench, configuration: Configuration) -> Precision:
    """The faster of float32 and the device's short precision, by trial steps of a configuration on a CPU.

    A GPU with units for it is always faster in short precision, and so is a CPU where steps are slow: large networks would
    cost minutes to try twice.
    """
    short = fast_precision(bench.run.device)
    if short == FLOAT32 or bench.run.device.type != "cpu":
        return short
    narrow = min(candidate_widths(configuration))
    seconds: dict[Precision, float] = {}
    for precision in (short, FLOAT32):
        training = trial_training(configuration, base_features=narrow, batch_size=2, precision=precision)
        step_s = time_fitting_steps(bench, configuration, training, longest_s=bench.left_s)
        if step_s is None:
            raise AutosegError(memory_issue(bench.plan, configuration, training, bench.run.device))
        seconds[precision] = step_s
        if precision == short and 2 * GROWTH * seconds[short] > bench.left_s:
            bench.run.say(f"Precision: {short}, which this processor computes in hardware")
            return short
    chosen = min(seconds, key=lambda precision: seconds[precision])
    bench.run.say(
        f"Precision: {chosen} ({seconds[short]:.2f} s per trial step in {short}, {seconds[FLOAT32]:.2f} s in float32)"
    )
    return chosen


def time_fitting_steps(
    bench: Bench,
    configuration: Configuration,
    training: Training,
    *,
    longest_s: float,
    most: int = WARM_UP_STEPS + TIMED_STEPS,
    whole: bool = False,
) -> float | None:
    """Seconds of a step (`time_steps`) with as much of the batch at once as fits into memory; None where not even one sample does.

    ``whole``: only with all of it, for another training is there that fits.
    """
    device = bench.run.device
    for size in plausible_sizes(configuration, training, device):
        if whole and size < training.batch_size:
            return None
        try:
            with kept_heap_for(configuration, training, device):
                return settled_mean(
                    time_steps(bench, configuration, training, longest_s=longest_s, most=most, micro_batch_size=size)
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(device)
    return None


def time_steps(
    bench: Bench,
    configuration: Configuration,
    training: Training,
    *,
    longest_s: float,
    most: int = WARM_UP_STEPS + TIMED_STEPS,
    micro_batch_size: int | None = None,
) -> list[float]:
    """Seconds that training steps take, data included: at most so many or so long, but two whatever they take.

    Readers that work beside the steps are not started for a trial: see `pipelined_s`.
    """
    run = bench.run
    folder = run.folder.preprocessed(configuration.data)
    source = BatchSource(
        cases=[CascadeCase(open_case(folder, case.case_id), None) for case in bench.cases[:TRIAL_CASES]],
        recipe=configuration_recipe(configuration, training),
        batch_size=training.batch_size,
        foreground_share=training.foreground_share,
        seed=run.settings.seed,
        configuration=configuration.name,
        previous_values=previous_values(configuration, bench.plan.labels),
        fold=0,
        purpose="training",
    )
    network = make_network(configuration, training, seed=0)
    loss, labels = configuration.loss, bench.plan.labels
    separable = is_mean_over_samples(loss, labels)
    parts = make_parts(network, make_loss(loss, labels), training, run.device, separable=separable)
    parts.network.train()
    durations: list[float] = []
    readers, begun = num_readers(configuration, training, run.device, run.num_workers), time.perf_counter()
    for step in range(most):
        started = time.perf_counter()
        crops = source[step]
        read = time.perf_counter()
        images, target = finish(crops, source.recipe, run.device)
        train_step(parts, images, target, 1e-6, micro_batch_size=micro_batch_size)
        wait_for(run.device)
        done = time.perf_counter()
        durations.append(pipelined_s(read - started, done - read, readers))
        if len(durations) > 1 and done - begun > longest_s:
            break
    return durations


def pipelined_s(read_s: float, step_s: float, readers: int) -> float:
    """Seconds from one step to the next, where ``readers`` processes read batches in ``read_s`` each; none: the step waits."""
    return max(step_s, read_s / readers) if readers else read_s + step_s


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settled_mean(durations: Sequence[float]) -> float:
    """Mean without the first ones; of two the second stands for all.

    The mean is what a training takes: a median would pass over the steps with much augmentation.
    """
    return fmean(durations[min(WARM_UP_STEPS, (len(durations) + 1) // 2) :])


SAMPLED_CASES = 25
"""Cases whose sizes stand for all."""
TIMED_SCORES = 50_000_000
"""Voxels times classes that are resampled to time the export; cost is linear in both."""


def measure_network(bench: Bench, configuration: Configuration, training: Training) -> float:
    """Seconds that one network takes for a case of mean size, from timed windows."""
    device = bench.run.device
    network = place(build_network(with_width(configuration.network, training.base_features)), device).eval()
    window = torch.zeros((1, configuration.network.num_inputs, *configuration.patch_shape), device=device)

    def run() -> None:
        with torch.inference_mode():
            run_network(network, window, training.precision)
            wait_for(device)

    with kept_heap_for(configuration, training, device):
        durations = [seconds(run)]
        if durations[0] < bench.left_s / 4:
            durations = [seconds(run) for _ in range(3)]
    windows = fmean(count_windows(shape, configuration.patch_shape) for shape in stored_shapes(bench, configuration))
    return median(durations) * windows


def measure_export(bench: Bench, configuration: Configuration) -> float:
    """Seconds to bring logits of a case of median size to the image's grid, to write and to score its label map."""
    case = median_case(bench, configuration)
    stored = open_case(bench.run.folder.preprocessed(configuration.data), case.case_id)
    labels = bench.plan.labels
    voxels = int(np.prod(stored.labels.shape))
    needed = configuration.network.num_outputs
    timed = needed if labels.has_regions else min(needed, max(2, TIMED_SCORES // voxels))
    logits = np.zeros((timed, *stored.labels.shape), dtype=np.float32)
    output = MemberOutput(logits=logits, placement=stored.placement, configuration=configuration)
    resampling_s = seconds(lambda: output.label_map(labels))
    reference = reference_labels(bench.dataset, case.case_id)

    def write_and_score(folder: Path) -> None:
        path = prediction_path(folder, case.case_id, bench.dataset)
        write_label_map(path, reference.array, reference.geometry)
        score_cases(bench.dataset, [(case.case_id, path)])

    with temporary_folder(bench.run.folder.root / "export") as folder:
        return resampling_s * needed / timed + seconds(lambda: write_and_score(folder))


def measure_preparation(bench: Bench, configuration: Configuration) -> float:
    """Seconds to read and preprocess an image of median size; 0 where there are no test images to prepare."""
    if not bench.dataset.test:
        return 0.0
    paths = median_case(bench, configuration).image_paths
    return seconds(lambda: prepare_image(read_image(paths), bench.plan, configuration))


def seconds(action: Callable[[], object]) -> float:
    """How long ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def sampled_cases(bench: Bench) -> Sequence[Case]:
    """At most `SAMPLED_CASES`, evenly spread."""
    every = -(-len(bench.cases) // SAMPLED_CASES)
    return bench.cases[::every]


def stored_shapes(bench: Bench, configuration: Configuration) -> list[tuple[int, ...]]:
    """Shapes of preprocessed cases in voxels."""
    folder = bench.run.folder.preprocessed(configuration.data)
    return [tuple(open_case(folder, case.case_id).labels.shape) for case in sampled_cases(bench)]


def median_case(bench: Bench, configuration: Configuration) -> Case:
    """The sampled case of median number of voxels."""
    shapes = stored_shapes(bench, configuration)
    ranked = sorted(
        zip(shapes, sampled_cases(bench), strict=True), key=lambda pair: (np.prod(pair[0]), pair[1].case_id)
    )
    return ranked[len(ranked) // 2][1]
