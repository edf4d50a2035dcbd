"""Times real training steps and predictions on this machine, so that a budget can be planned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from autoseg.compute.device import fast_precision
from autoseg.compute.executor import batches_ahead, validation_readers
from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.evaluation.scoring import reference_labels, score_cases
from autoseg.imaging.readers import read_image, write_label_map
from autoseg.inference.member_output import MemberOutput
from autoseg.inference.predictions import prediction_path
from autoseg.inference.sliding_window import count_windows
from autoseg.issues import AutosegError
from autoseg.networks.build import build_network, place
from autoseg.preprocessing.prepare import CascadeCase, prepare_image
from autoseg.preprocessing.store import open_case
from autoseg.settings import Settings, fewest_steps_set, sets_steps
from autoseg.stages.run import Run
from autoseg.storage.atomic import temporary_folder
from autoseg.training.fold_spec import configuration_recipe, make_network, previous_values
from autoseg.training.loop import is_mean_over_samples, make_parts, run_network, train_step
from autoseg.training.losses import make_loss
from autoseg.training.preflight import kept_heap_for, memory_issue, num_readers, plausible_sizes
from autoseg.training.sampling import BatchSource, finish, load_crops
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
    extrapolated,
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
"""Trials that each challenger of a race may take, whatever the trials before have left."""
SHORTEST_TRIAL_S = 2.0
LONGEST_TRIAL_S = 10.0
"""Enough where steps are slow."""


WARM_UP_STEPS = 4
"""The first steps also prepare convolution kernels and fill caches; on CPUs they take up to twice as long."""
TRIAL_STEPS = WARM_UP_STEPS + 8
"""Of which the last are timed."""


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
    most: int = TRIAL_STEPS
    """Steps of one trial."""

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
    return Bench(run=run, dataset=dataset, plan=plan, longest_s=longest_s, ends=ends, most=trial_steps(run.settings))


def trial_steps(settings: Settings) -> int:
    """Steps of one trial: two at least, and a small share of a training whose steps the user set."""
    steps = fewest_steps_set(settings)
    return TRIAL_STEPS if steps is None else min(TRIAL_STEPS, max(2, round(TRIALS_SHARE * steps)))


FLOAT32: Precision = "float32"
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
SLOWER = 3.0
"""A step in float32 takes up to so many times one in short precision."""
MUCH_FASTER = 0.8
"""float32 must take at most this share of the time: a processor that computes short precision gains less from it in the narrow network
that is tried than in wider ones, and the first trial bears what a process does once. 2D photographs, 8 features: 0.76 against 0.62 s,
yet 0.41 against 0.47 s in the first trials of a run; 16 features: 1.48 against 0.85 s (docs/decisions/0255)."""
MARGIN = 1.2
"""A trial is only started if what is expected of it fits with so much to spare."""


def measure_steps(
    bench: Bench,
    candidates: Sequence[Configuration],
    *,
    budgeted: bool,
    num_folds: int,
    precision: Precision | None = None,
    modest: bool = False,
    known: Sequence[Measurement] = (),
) -> tuple[Measurement, ...]:
    """Measurements of ``candidates``, in order of preference, narrow widths first until time or memory forbids.

    What there is no time to time follows from what was timed, here or before (``known``). A configuration is left out where the
    ones before it take all the time. Without a budget only the plan's own width and batch size are measured; ``modest``: only a
    modest width. ``precision`` is measured too where it is not given. Raises `AutosegError` where nothing fits into memory.
    """
    run = bench.run
    found: list[Measurement] = []
    if precision is None:
        precision, tried = measure_precision(bench, candidates[0])
    else:
        tried = None
    for configuration in candidates:
        if (
            found
            and budgeted
            and not wants_more_candidates(
                found, budget_s=run.settings.budget, num_folds=num_folds, num_devices=run.num_devices
            )
        ):
            break
        fixed = not budgeted or run.settings.pretrained is not None
        widths = [configuration.network.features[0]] if fixed else sorted(candidate_widths(configuration))
        widths = [modest_width(widths)] if modest else widths
        batch_size = short_batch_size(configuration, run.device.type) if budgeted else configuration.batch_size
        trainings = [
            trial_training(configuration, base_features=width, batch_size=batch_size, precision=precision)
            for width in widths
        ]
        before = [*known, *found] if budgeted else []
        found += measure_widths(bench, configuration, trainings, before, tried, whole=budgeted and bool(found))
        tried = None
    if not found:
        raise AutosegError(memory_issue(bench.plan, configuration, trainings[0], run.device))
    return tuple(found)


def measure_widths(
    bench: Bench,
    configuration: Configuration,
    trainings: Sequence[Training],
    known: Sequence[Measurement],
    tried: TriedStep | None,
    *,
    whole: bool,
) -> list[Measurement]:
    """Measurements of ``trainings`` of one configuration, from narrow to wide; ends with the first that does not fit into memory.

    ``known``: those of other configurations. ``tried``: what one of the trainings is known to take. ``whole``: the first one, too,
    must fit with its whole batch.
    """
    run, own = bench.run, list[Measurement]()
    for training in trainings:
        expected = expect(bench, configuration, training, own or known)
        fits = training.batch_size in plausible_sizes(configuration, training, run.device)
        if expected is not None and fits and has_no_time(bench, expected.step_s):
            own.append(expected)
            continue
        if tried is not None and tried.training == training and has_no_time(bench, tried.step_s):
            step_s: float | None = tried.step_s
        else:
            whole = whole or bool(own)
            step_s = time_fitting_steps(bench, configuration, training, longest_s=bench.left_s, whole=whole)
        if step_s is None:
            run.say(f"{configuration.name} with {training.base_features} features does not fit into free memory")
            break
        timed = Measurement(
            configuration=configuration.name,
            base_features=training.base_features,
            batch_size=training.batch_size,
            precision=training.precision,
            step_s=step_s,
            case_s=measure_network(bench, configuration, training),
            export_s=own[0].export_s if own else measure_export(bench, configuration),
            prepare_s=own[0].prepare_s if own else measure_preparation(bench, configuration),
        )
        own.append(timed)
    return own


def has_no_time(bench: Bench, step_s: float) -> bool:
    """Whether two steps of so many seconds may not fit into the time of the trials."""
    return 2 * MARGIN * step_s > bench.left_s


def expect(
    bench: Bench, configuration: Configuration, training: Training, known: Sequence[Measurement]
) -> Measurement | None:
    """What ``training`` takes as far as ``known`` measurements tell: from the last timed one of the most similar width."""
    if not known:
        return None
    width = training.base_features
    nearest = min(reversed(known), key=lambda m: (m.extrapolated, abs(math.log2(width / m.base_features))))
    before = bench.plan.configuration(nearest.configuration)
    return extrapolated(
        nearest,
        before,
        configuration,
        base_features=width,
        batch_size=training.batch_size,
        windows=mean_windows(bench, configuration) / mean_windows(bench, before),
    )


def measure_each(
    bench: Bench,
    configurations: Sequence[Configuration],
    *,
    budgeted: bool,
    num_folds: int,
    precision: Precision | None = None,
    modest: bool = False,
    known: Sequence[Measurement] = (),
) -> tuple[Measurement, ...]:
    """`measure_steps` of every one of ``configurations``: none is left out."""
    precision = precision or measure_precision(bench, configurations[0])[0]
    found: list[Measurement] = []
    for configuration in configurations:
        found += measure_steps(
            bench,
            [configuration],
            budgeted=budgeted,
            num_folds=num_folds,
            precision=precision,
            modest=modest,
            known=[*known, *found],
        )
    return tuple(found)


def measure_beside(bench: Bench, conditions: Conditions, names: Sequence[str], *, modest: bool = False) -> Conditions:
    """``conditions`` with measurements of further configurations; at a ``modest`` width only.

    What does not fit into memory is left out, and said.
    """
    before = {(m.configuration, m.base_features) for m in conditions.measurements}
    found: list[Measurement] = []
    for name in names:
        try:
            found += measure_steps(
                bench,
                [bench.plan.configuration(name)],
                budgeted=not bench.run.follows_method,
                num_folds=conditions.num_folds,
                precision=conditions.measurements[0].precision,
                modest=modest,
                known=[*conditions.measurements, *found],
            )
        except AutosegError as error:
            bench.run.say(f"{name} is left out: {error}")
    new = tuple(m for m in found if (m.configuration, m.base_features) not in before)
    return conditions.model_copy(update={"measurements": (*conditions.measurements, *new)})


def for_one_more(bench: Bench) -> Bench:
    """``bench`` with time for trials of one more configuration, whatever those before have left."""
    return replace(bench, ends=time.monotonic() + BESIDE_TRIALS * bench.longest_s)


def refine(bench: Bench, measured: Measurement, training: Training) -> Measurement:
    """``measured``, from which ``training`` was planned, with its step timed for longer."""
    configuration = bench.plan.configuration(training.configuration)
    longest = min(REFINED_S, 1.5 * TRIAL_SHARE * (bench.run.settings.budget or DEFAULT_CPU_BUDGET_S))
    longest = max(0.0, min(longest, bench.ends - time.monotonic()))
    if bench.most < TRIAL_STEPS or longest < 3 * measured.step_s:
        return measured
    most = round(longest / measured.step_s)
    step_s = time_fitting_steps(bench, configuration, training, longest_s=longest, most=most)
    return measured.model_copy(update={"step_s": step_s, "extrapolated": False}) if step_s else measured


def try_compiling(bench: Bench, measured: Measurement, training: Training, num_folds: int) -> Measurement:
    """``measured`` with the compiled step of ``training``, where that may be faster and the compiler works.

    On a GPU, where 40 steps take seconds, the same ones are timed without compiling: augmentation differs from step to step.
    """
    device, configuration = bench.run.device, bench.plan.configuration(training.configuration)
    if not compiling_may_pay(measured, training.num_steps, num_folds):
        return measured
    if training.batch_size not in plausible_sizes(configuration, training, device):
        return measured  # on a CPU a process that takes too much is killed, not told
    compiled = training.model_copy(update={"compiled": True})
    try:
        with kept_heap_for(configuration, training, device):
            alike = [compiled] if device.type == "cpu" else [compiled, training]
            durations, *plain = [
                time_steps(bench, configuration, each, longest_s=LONGEST_COMPILED_S, most=COMPILED_STEPS)
                for each in alike
            ]
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
    plain_s = settled_mean(plain[0]) if plain else measured.step_s
    return measured.model_copy(update={"step_s": plain_s, "compiled_step_s": step_s, "compile_s": compile_s})


@dataclass(frozen=True, slots=True)
class TriedStep:
    """A training of which a few steps were timed to choose the precision."""

    training: Training
    step_s: float


def measure_precision(bench: Bench, configuration: Configuration) -> tuple[Precision, TriedStep | None]:
    """The device's short precision, or float32 where that is `MUCH_FASTER` in trial steps on a CPU, and what was tried.

    A GPU with units for it is always faster in short precision, and so is a CPU where steps are slow: large networks would
    cost minutes to try twice.
    """
    short = fast_precision(bench.run.device)
    if short == FLOAT32 or bench.run.device.type != "cpu":
        return short, None
    narrow = min(candidate_widths(configuration))
    tried: dict[Precision, TriedStep] = {}
    for precision in (short, FLOAT32):
        training = trial_training(configuration, base_features=narrow, batch_size=2, precision=precision)
        step_s = time_fitting_steps(bench, configuration, training, longest_s=bench.left_s)
        if step_s is None:
            raise AutosegError(memory_issue(bench.plan, configuration, training, bench.run.device))
        tried[precision] = TriedStep(training, step_s)
        if precision == short and 2 * SLOWER * step_s > bench.left_s:
            bench.run.say(f"Precision: {short}, which this processor computes in hardware")
            return short, tried[short]
    chosen = FLOAT32 if tried[FLOAT32].step_s <= MUCH_FASTER * tried[short].step_s else short
    bench.run.say(
        f"Precision: {chosen} ({tried[short].step_s:.2f} s per trial step in {short}, {tried[FLOAT32].step_s:.2f} s in float32)"
    )
    return chosen, tried[chosen]


def time_fitting_steps(
    bench: Bench,
    configuration: Configuration,
    training: Training,
    *,
    longest_s: float,
    most: int | None = None,
    whole: bool = False,
) -> float | None:
    """Seconds of a step (`time_steps`) with as much of the batch at once as fits into memory; None where not even one sample does.

    ``whole``: only with all of it, for another training is there that fits.
    """
    device, most = bench.run.device, bench.most if most is None else most
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
    most: int = TRIAL_STEPS,
    micro_batch_size: int | None = None,
) -> list[float]:
    """Seconds that training steps take, data included: at most so many or so long, but two whatever they take.

    Readers work beside the steps as they do in a training. They fill their queue while the first steps are slow, so the steps that only
    empty it again are left out; and as they all begin at once, each of them reads as many of the steps that count.
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
    readers = num_readers(configuration, training, run.device, run.num_workers, trainings=run.num_devices)
    readers -= validation_readers(readers)
    queued = readers * batches_ahead(readers) if readers else 0
    counted = most if not readers else WARM_UP_STEPS + -(-(most - WARM_UP_STEPS) // readers) * readers
    with closing(load_crops(source, range(queued + counted), num_workers=readers, device=run.device)) as loaded:
        crops = chain([next(loaded)], loaded) if readers else loaded  # readers have begun
        begun = ended = time.perf_counter()
        for batch in crops:
            images, target = finish(batch, source.recipe, run.device)
            train_step(parts, images, target, 1e-6, micro_batch_size=micro_batch_size)
            wait_for(run.device)
            started, ended = ended, time.perf_counter()
            durations.append(ended - started)
            if len(durations) > 1 and ended - begun > longest_s:
                break
    emptied = WARM_UP_STEPS + queued
    return durations if len(durations) <= emptied else durations[:WARM_UP_STEPS] + durations[emptied:]


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
    return median(durations) * mean_windows(bench, configuration)


def mean_windows(bench: Bench, configuration: Configuration) -> float:
    """Windows of a case of mean size."""
    return fmean(count_windows(shape, configuration.patch_shape) for shape in stored_shapes(bench, configuration))


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
