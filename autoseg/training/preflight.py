"""Preflight: before the first step, whether plan and cases fit, compiled steps work, and how much of a batch fits into memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from autoseg.compute.executor import readers_that_fit
from autoseg.compute.memory import (
    free_memory_bytes,
    free_shared_bytes,
    is_out_of_memory,
    micro_batch_sizes,
    release_memory,
)
from autoseg.compute.workarounds import kept_heap
from autoseg.issues import AutosegError, Issue
from autoseg.networks.norms import why_not_fused
from autoseg.training.fold_spec import FoldSpec, configuration_recipe, make_fold_parts
from autoseg.training.loop import Parts, is_mean_over_samples, train_step
from autoseg.training.sampling import ANNOTATED, PatchSource, crop_size
from autoseg.wording import first_line
from planners import Configuration, Labels, Plan, Training, estimate_configuration_memory, with_width

logger = logging.getLogger(__name__)
GB = 1e9
TRIAL_STEPS = 2
"""The first one allocates the optimiser's state, beside which the second one must fit."""
NUM_LABELLED = 3
"""Cases whose classes are checked; all of a folder were stored with the same ones, and reading them takes time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What this machine can do of a spec."""

    spec: FoldSpec
    """Without compiled steps where they fail."""
    micro_batch_size: int
    issues: tuple[Issue, ...] = ()


def clear_fold(spec: FoldSpec, *, most: int) -> Cleared:
    """Try steps of the fold: compiled, where the schedule wants that, and with as much of the batch at once as memory allows.

    ``most``: no larger micro-batches. Raises `AutosegError` where not even one sample fits.
    """
    issues, ranks = norm_issues(spec), spec.ranks
    spec = replace(spec, ranks=None)  # trial steps are this process's own
    if spec.training.compiled and (reason := why_not_compiled(spec, most)) is not None:
        message = f"torch.compile does not work here ({reason}); steps run without it, which is slower"
        issues.append(Issue(code="training.not_compiled", severity="warning", where=spec.where, message=message))
        spec = replace(spec, training=spec.training.model_copy(update={"compiled": False}))
    size = find_micro_batch(spec, most=most)
    if size is None:
        raise AutosegError(memory_issue(spec.plan, spec.configuration, spec.training, spec.device))
    if size < most:
        issues.append(micro_batch_issue(spec, size))
    return Cleared(spec=replace(spec, ranks=ranks), micro_batch_size=size, issues=tuple(issues))


def norm_issues(spec: FoldSpec) -> list[Issue]:
    """Says that a CUDA GPU computes in torch's own layout and norm, and why."""
    reason = why_not_fused(spec.device) if spec.device.type == "cuda" else None
    if reason is None:
        return []
    message = f"steps use torch's own norm and layout, which are slower than autoseg's ({reason})"
    return [Issue(code="training.plain_norm", severity="note", where=spec.where, message=message)]


def micro_batch_issue(spec: FoldSpec, size: int) -> Issue:
    """Says that steps run in micro-batches of ``size`` samples."""
    message, longer = f"a batch of {spec.training.batch_size} samples does not fit into memory", "a little longer"
    message += f"; it is split into micro-batches of {size}"
    if not is_mean_over_samples(spec.configuration.loss, spec.plan.labels):
        message += ", each computed forward twice because the loss is that of the whole batch"
        longer = "about a third longer"
    message += f". The gradient is that of the whole batch; steps take {longer}"
    return Issue(code="training.micro_batches", severity="note", where=spec.where, message=message)


def require_fit(spec: FoldSpec) -> None:
    """Raise `AutosegError` with all reasons why plan, schedule and preprocessed cases cannot be trained together."""
    issues = [*_plan_issues(spec.plan.labels, spec.configuration, spec.training, spec.where)]
    if not spec.training_cases:
        message, fix = "the fold has no training cases", "use other folds (--splits)"
        issues.append(Issue(code="training.no_cases", where=spec.where, message=message, fix=fix))
    known = {label.name for label in spec.plan.labels.classes} | {ANNOTATED}
    for number, case in enumerate([*spec.training_cases, *spec.validation_cases]):
        case_id = spec.case_ids[number] if number < len(spec.case_ids) else None
        issues += _case_issues(case, number, case_id, len(spec.configuration.normalization), known)
    if issues:
        raise AutosegError(*issues, headline=f"{spec.where} cannot be trained")


def _case_issues(
    case: PatchSource, number: int, case_id: str | None, channels: int, known: set[str]
) -> Iterator[Issue]:
    where, fix = f"case {case_id or f'number {number}'}", "preprocess it again with this plan"
    found = case.image.shape[0]
    if found != channels:
        message = f"the preprocessed image has {found} channels, but the plan has {channels}"
        yield Issue(code="training.channels_differ", where=where, message=message, fix=fix, case=case_id)
    unknown = sorted(set(case.locations) - known) if number < NUM_LABELLED else []
    if unknown:
        message = f"the preprocessed labels contain {', '.join(unknown)}, which the plan does not have"
        yield Issue(code="training.classes_differ", where=where, message=message, fix=fix, case=case_id)


def _plan_issues(labels: Labels, configuration: Configuration, training: Training, where: str) -> Iterator[Issue]:
    network = configuration.network
    stage_inputs = len(labels.values) if configuration.previous_stage else 0
    inputs = len(configuration.normalization) + stage_inputs
    for what, found, needed in (
        ("inputs", network.num_inputs, inputs),
        ("outputs", network.num_outputs, labels.num_outputs),
    ):
        if found != needed:
            message = f"the network has {found} {what}, but channels and labels of the plan need {needed}"
            yield Issue(code="training.network_differs", where=where, message=message, fix="plan the dataset again")
    if training.configuration != configuration.name:
        message, fix = f"the schedule is for {training.configuration}", "use the schedule that was made for this plan"
        yield Issue(code="training.schedule_differs", where=where, message=message, fix=fix)


def find_micro_batch(spec: FoldSpec, *, most: int | None = None) -> int | None:
    """The largest micro-batch with which a training step fits into memory; None if not even one sample does.

    Steps are tried with separate parts, which are discarded. ``most``: no larger ones.
    """
    if spec.device.type != "cpu":
        release_memory(spec.device)  # what an earlier training left in the allocator's hands may be in the way
    sizes = plausible_sizes(spec.configuration, spec.training, spec.device, most=most)
    return next((size for size in sizes if survives_step(spec, size)), None)


def plausible_sizes(
    configuration: Configuration, training: Training, device: torch.device, *, most: int | None = None
) -> tuple[int, ...]:
    """Sizes of micro-batches to try, largest first; ``most``: no larger ones.

    On a CPU those that by the estimate fit into free memory: there a process that allocates too much is killed without an error.
    """
    sizes = tuple(size for size in micro_batch_sizes(training.batch_size) if most is None or size <= most)
    if device.type != "cpu":
        return sizes
    free = free_memory_bytes()
    return tuple(size for size in sizes if needed_bytes(configuration, training, size) <= free)


def needed_bytes(
    configuration: Configuration, training: Training, size: int, *, keeps_freed: bool = False, on_gpu: bool = False
) -> int:
    """Memory of a training with micro-batches of ``size`` samples, of a CPU or a CUDA GPU; see `kept_heap` for ``keeps_freed``."""
    return estimate_configuration_memory(
        configuration,
        dtype=training.precision,
        device="cuda" if on_gpu else "cpu",
        optimiser=training.optimiser,
        batch_size=size,
        network=with_width(configuration.network, training.base_features),
        keeps_freed=keeps_freed,
    ).training_bytes


def batch_bytes(configuration: Configuration, training: Training) -> int:
    """Memory of the images (float32) and labels (int64) of a batch, whatever the size of micro-batches."""
    return training.batch_size * math.prod(configuration.patch_shape) * (4 * configuration.network.num_inputs + 8)


def crops_bytes(configuration: Configuration, training: Training) -> int:
    """Memory of a batch before its augmentation, at most: images in float32 and label maps in 16 bits, with room to rotate, and noise."""
    recipe, channels = configuration_recipe(configuration, training), len(configuration.normalization)
    crop = (
        crop_size(recipe.patch, rotation=recipe.rotation, dummy_2d=recipe.dummy_2d) if recipe.augment else recipe.patch
    )
    maps = 2 if configuration.previous_stage is not None else 1
    sample = math.prod(crop) * (4 * channels + 2 * maps) + math.prod(recipe.patch) * 4 * channels
    return training.batch_size * sample


def num_readers(
    configuration: Configuration, training: Training, device: torch.device, cores: int, *, trainings: int = 1
) -> int:
    """Processes that read patches, with so many ``trainings`` on the ``cores`` of this machine; on a CPU none, as they would take the
    cores that train."""
    if device.type != "cuda":
        return 0
    return readers_that_fit(
        cores,
        crops_bytes(configuration, training),
        free_bytes=free_memory_bytes(),
        shared_bytes=free_shared_bytes(),
        trainings=trainings,
    )


def kept_heap_for(
    configuration: Configuration, training: Training, device: torch.device
) -> AbstractContextManager[None]:
    """`kept_heap`, if there is enough memory for a training with whole batches."""
    size = training.batch_size
    return kept_heap(device, lambda: needed_bytes(configuration, training, size, keeps_freed=True))


def survives_step(spec: FoldSpec, size: int) -> bool:
    """Whether steps of an empty batch in micro-batches of ``size`` samples end without running out of memory."""
    try:
        parts = make_fold_parts(spec)
        for _ in range(TRIAL_STEPS):
            try_step(spec, parts, size)
        fits = True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("%d samples at once do not fit: %s", size, error)
        fits = False
    release_memory(spec.device)  # not before: the error holds on to what the step had allocated
    return fits


def try_step(spec: FoldSpec, parts: Parts, size: int) -> None:
    """A training step of an empty batch in micro-batches of ``size`` samples, at learning rate 0."""
    batch, patch = spec.training.batch_size, spec.configuration.patch_shape
    parts.network.train()
    images = torch.zeros((batch, spec.configuration.network.num_inputs, *patch), device=spec.device)
    labels = torch.zeros((batch, *patch), dtype=torch.int64, device=spec.device)
    train_step(parts, images, labels, 0.0, micro_batch_size=size)


def why_not_compiled(spec: FoldSpec, most: int) -> str | None:
    """Why a compiled step of an empty batch fails; None if it works, or if memory is too small for any step.

    Compilers raise errors of many kinds, and a step that only they break is no reason to end a run. The step is as large as the
    first that is tried without compiling, and no larger: on a CPU a process that allocates too much is killed.
    """
    sizes = plausible_sizes(spec.configuration, spec.training, spec.device, most=most)
    if not sizes:
        return None
    try:
        try_step(spec, make_fold_parts(spec), sizes[0])
    except Exception as error:
        return None if is_out_of_memory(error) else first_line(error)
    return None


def memory_issue(plan: Plan, configuration: Configuration, training: Training, device: torch.device) -> Issue:
    """Says that not even one sample at a time fits, or not with the whole batch, which is in memory at once."""
    on_gpu = device.type == "cuda"
    needed = needed_bytes(configuration, training, 1, on_gpu=on_gpu)
    held = batch_bytes(configuration, training)
    what, fix = "a single sample", f"plan smaller patches with --memory-gb below {plan.memory_target_gb:.3g}"
    fix += " (an edited plan.json stays as it is: make its patch_shape smaller, or discard the edits with --replan)"
    if held > needed:
        needed += held
        what, fix = f"a batch of {training.batch_size} samples", "train with smaller batches (--schedule)"
    free = f"it does not fit on {device}"
    if device.type == "cpu":
        free = f"{free_memory_bytes() / GB:.1f} GB is free"
    message = (
        f"training with {training.base_features} features needs about {needed / GB:.1f} GB of memory for {what}; {free}"
    )
    return Issue(
        code="memory.too_small", where=configuration.name, message=message, fix=f"close other programs, or {fix}"
    )
