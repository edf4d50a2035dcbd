"""The training loop: batches in, step records out. It knows no files, no screens and no callbacks but one function."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autoseg.compute.memory import is_out_of_memory, release_memory
from autoseg.compute.ranks import Ranks
from autoseg.networks.build import place
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.losses import LossFunction, supervise_deeply
from autoseg.training.sampling import Batch
from planners import Labels, Loss, Training

Forward = Callable[[Tensor], list[Tensor]]
"""Images (N, C, patch...) -> logits at every head."""
Criterion = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Logits at every head and a label map -> scalar."""
Backward = Callable[[Tensor], None]
"""Accumulates gradients of a scalar."""
Loaded = TypeVar("Loaded")
"""What a batch is made from."""
READ_EVERY = 10
"""Steps between readings of a GPU's results: each lets it run dry for as long as it takes to give it the next kernels."""
LONGEST_UNREAD_S = 1.0
"""Where steps are slow, every one of them may be read, and an interruption comes soon."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def is_mean_over_samples(loss: Loss, labels: Labels) -> bool:
    """Whether the loss of a batch is the mean of its samples' losses, so that micro-batches can be taken one after the other.

    It is not where Dice sums run over the batch, where the mean goes over valid voxels only, whose number differs from
    sample to sample, and where it goes over the worst voxels of the batch. Of other losses than the method's nothing is known.
    """
    return loss.name == "compound" and not loss.batch_dice and labels.ignore is None and loss.voxel != "top_k"


def accumulate(
    forward: Forward,
    criterion: Criterion,
    backward: Backward,
    images: Tensor,
    labels: Tensor,
    *,
    size: int,
    separable: bool,
) -> Tensor:
    """Add the gradient of the whole batch's loss to the parameters, ``size`` samples at a time; returns the loss, detached.

    ``separable``: the loss is a mean over samples. Then each micro-batch is weighted by its share. Otherwise each is computed
    twice: first for its logits, from which the loss of the whole batch and its gradient are computed, then to propagate that
    gradient to the parameters. That costs one forward pass more, and is exact for every loss.
    """
    parts = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
    if separable:
        total = torch.zeros((), device=images.device)
        for image, label in parts:
            loss = criterion(forward(image), label) * (len(image) / len(images))
            backward(loss)
            total += loss.detach()
        return total
    with torch.no_grad():
        computed = [forward(image) for image, _ in parts]
    heads = [torch.cat(head).requires_grad_() for head in zip(*computed, strict=True)]
    loss = criterion(heads, labels)
    backward(loss)
    gradients = [None if head.grad is None else torch.split(head.grad, size) for head in heads]
    for i, (image, _) in enumerate(parts):
        logits = forward(image)
        used = [(logit, gradient[i]) for logit, gradient in zip(logits, gradients, strict=True) if gradient is not None]
        torch.autograd.backward([logit for logit, _ in used], [gradient for _, gradient in used])
    return loss.detach()


class SegmentOverError(Exception):
    """Raised in processes that do what rank 0 says, where it ends before the last step that it announced."""


class Control(Protocol):
    """What may change from step to step."""

    new_batches: bool
    """The batches to come were drawn by rules that no longer hold, so `train` ends after this step."""

    @property
    def micro_batch_size(self) -> int:
        """Samples computed at once; the gradient is that of the whole batch."""

    def reads_after(self, step: int) -> bool:
        """Whether the result of a step must be known before the next one: where weights are looked at, or rules may change."""

    def learning_rate(self, step: int) -> float:
        """Of a step (0-based)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a training is put together from."""

    network: nn.Module
    step_network: Callable[..., Tensor | list[Tensor]]
    """What training steps call: the network or its compiled form, which shares its weights."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: LossFunction
    training: Training
    device: torch.device
    separable: bool = False
    """The loss of a batch is the mean of its samples' losses."""
    ranks: Ranks | None = None
    """Where several processes each compute a share of every batch: the place of this one."""
    joint_loss: LossFunction | None = None
    """Then, the loss of the whole batch from this process's share."""

    @property
    def reads_late(self) -> bool:
        """Whether the optimiser itself steps over what is not finite, so that nobody must read the loss before the next step."""
        return bool(self.optimiser.defaults["fused"])


def make_parts(
    network: nn.Module,
    loss: LossFunction,
    training: Training,
    device: torch.device,
    *,
    separable: bool = False,
    ranks: Ranks | None = None,
    joint_loss: LossFunction | None = None,
) -> Parts:
    """The network on its device with optimiser and gradient scaler (which acts in float16 only).

    Compiling happens in the first step.
    """
    network = place(network, device)
    return Parts(
        network=network,
        step_network=torch.compile(network, dynamic=False) if training.compiled else network,
        optimiser=make_optimiser(network, training, fused=device.type == "cuda"),
        scaler=torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
        loss=loss,
        training=training,
        device=device,
        separable=separable,
        ranks=ranks,
        joint_loss=joint_loss,
    )


def make_optimiser(network: nn.Module, training: Training, *, fused: bool = False) -> torch.optim.Optimizer:
    """Nesterov SGD or AdamW on all parameters, with the schedule's decay (method section 7.1).

    Without momentum: plain SGD. ``fused``: in a few kernels, which can step over what is not finite.
    """
    if training.optimiser == "adamw":
        return torch.optim.AdamW(
            network.parameters(),
            lr=training.peak_learning_rate,
            weight_decay=training.weight_decay,
            fused=fused or None,
        )
    return torch.optim.SGD(
        network.parameters(),
        lr=training.peak_learning_rate,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
        fused=fused or None,
    )


def load_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Go on from the state of an optimiser on this or another device."""
    groups = [{**group, "fused": optimiser.defaults["fused"]} for group in state["param_groups"]]
    optimiser.load_state_dict({**state, "param_groups": groups})


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a step found out, on its way from the device."""

    numbers: Tensor
    """float32 (3,): loss, norm of the gradient, the scaler's scale."""
    scaled: bool
    """The gradient scaler acts."""
    ready: torch.cuda.Event | None
    """When the numbers are there and the step is done; none: now."""

    def read(self) -> tuple[float, bool]:
        """Wait for the loss, and whether weights were updated."""
        if self.ready is not None:
            self.ready.synchronize()
        loss, norm, scale = self.numbers.tolist()
        overflown = self.scaled and scale >= 1  # a smaller scale would still help
        return loss, math.isfinite(loss) and (overflown or math.isfinite(norm))


@dataclass(slots=True, kw_only=True)
class _Given:
    """A step that the device was given, of whose result nobody knows yet."""

    step: int
    rate: float
    result: Result
    wait_s: float
    duration_s: float = 0.0
    ahead_s: float = 0.0
    """Wait for the next batch."""
    arrival: torch.cuda.Event | None = None
    """When that came; what the device had to do until then was no waiting."""

    def record(self, lag: int) -> StepRecord:
        """Waits for the result. ``lag``: steps done since."""
        began = time.perf_counter()
        loss, applied = self.result.read()
        waited = self.wait_s
        if self.result.ready is not None and self.arrival is not None:
            self.arrival.synchronize()
            waited += min(self.ahead_s, self.result.ready.elapsed_time(self.arrival) / 1000)
        return StepRecord(
            step=self.step,
            loss=loss,
            learning_rate=self.rate,
            wait_s=waited,
            duration_s=self.duration_s + time.perf_counter() - began,
            skipped=not applied,
            lag=lag,
        )


@dataclass(slots=True, kw_only=True)
class _Untold:
    """The steps whose results were not read yet."""

    on_step: Callable[[StepRecord], None]
    steps: list[_Given] = field(default_factory=list)
    told_at: float = field(default_factory=time.perf_counter)

    def tell(self) -> None:
        """Wait for all results, and tell them in order."""
        while self.steps:
            first = self.steps.pop(0)
            self.on_step(first.record(lag=len(self.steps)))
        self.told_at = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether it is time, after a step."""
        return (step + 1) % READ_EVERY == 0 or time.perf_counter() - self.told_at > LONGEST_UNREAD_S


def train(
    parts: Parts,
    loaded: Iterable[Loaded],
    steps: Sequence[int],
    *,
    make_batch: Callable[[Loaded], Batch],
    control: Control,
    on_step: Callable[[StepRecord], None],
    on_memory_error: Callable[[int], None],
    on_batch_error: Callable[[int], None] = lambda step: None,
) -> int:
    """Do ``steps`` with one batch each, and call ``on_step`` for each of them, in order; returns the steps done in all.

    A batch is made on the device from what was ``loaded``. Where the device works on its own (`Parts.reads_late`), it gets the
    next batch before it is asked for a step's result, and that only every so many steps, so that it never has to wait; the records then
    come several at a time.

    Ends early where new batches are wanted. A step that runs out of memory is done again after ``on_memory_error``, which is
    given its number and sets smaller micro-batches or raises. ``on_batch_error`` is called with the steps done when a batch cannot be
    had, before that error is raised.
    """
    parts.network.train()
    source, untold = iter(loaded), _Untold(on_step=on_step)

    def fetch(step: int) -> tuple[Batch, float, torch.cuda.Event | None]:
        started = time.perf_counter()
        try:
            ready = next(source)
            waited = time.perf_counter() - started
            arrival = _record_event(parts.device)
            return make_batch(ready), waited, arrival
        except Exception:
            untold.tell()
            on_batch_error(step)
            raise

    upcoming: Batch | None = None
    for left, step in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        started, waited = time.perf_counter(), 0.0
        if upcoming is None:
            upcoming, waited, _ = fetch(step)
        rate = control.learning_rate(step)
        if parts.ranks is not None and math.isnan(rate := parts.ranks.agree(rate)):
            raise SegmentOverError
        while (result := _try_step(parts, *upcoming, rate, control.micro_batch_size)) is None:
            untold.tell()
            on_memory_error(step)
        upcoming = None
        given = _Given(step=step, rate=rate, result=result, wait_s=waited)
        untold.steps.append(given)
        goes_on = parts.reads_late and left > 0
        if goes_on:
            upcoming, given.ahead_s, given.arrival = fetch(step + 1)
        given.duration_s = time.perf_counter() - started
        if not goes_on or untold.is_due(step) or control.reads_after(step):
            untold.tell()
        if control.new_batches:
            control.new_batches = False
            return step + 1
    return steps[-1] + 1 if steps else 0


def _record_event(device: torch.device) -> torch.cuda.Event | None:
    """The moment at which the device will have done what it was given."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _try_step(parts: Parts, images: Tensor, labels: Tensor, rate: float, size: int) -> Result | None:
    """A step; None where memory ran out, with all memory of the attempt released."""
    try:
        return queue_step(parts, images, labels, rate, micro_batch_size=size)
    except (RuntimeError, MemoryError) as error:
        if (
            not is_out_of_memory(error) or parts.ranks is not None
        ):  # the others wait for this process, and for its numbers
            raise
    parts.optimiser.zero_grad(set_to_none=True)
    if parts.scaler.is_enabled():  # the step may have ended between `unscale_` and `update`; the scale stays
        parts.scaler.scale(torch.zeros((), device=parts.device))  # before the first one it cannot be updated
        parts.scaler.update(parts.scaler.get_scale())
    release_memory(parts.device)
    return None


def train_step(
    parts: Parts, images: Tensor, labels: Tensor, rate: float, *, micro_batch_size: int | None = None
) -> tuple[float, bool]:
    """`queue_step`, waited for: the loss, and whether weights were updated."""
    return queue_step(parts, images, labels, rate, micro_batch_size=micro_batch_size).read()


def queue_step(
    parts: Parts, images: Tensor, labels: Tensor, rate: float, *, micro_batch_size: int | None = None
) -> Result:
    """Forward, backward, clipped update at learning rate ``rate``, given to the device.

    ``images`` float32 (N, C, patch...), ``labels`` int64 (N, patch...) with internal values. ``micro_batch_size``
    samples are computed at once (none: all), with the gradient of the whole batch. Where loss or gradient is not finite,
    nothing is updated; in float16 the scaler handles an overflow of the gradient, which counts as a normal step as long as
    its scale has not shrunk below 1.
    """
    optimiser, scaler = parts.optimiser, parts.scaler
    for group in optimiser.param_groups:
        group["lr"] = rate
    images = images.to(parts.device, non_blocking=True)
    labels = labels.to(parts.device, non_blocking=True)
    loss = compute_gradient(parts, images, labels, min(micro_batch_size or len(images), len(images)))
    scaler.unscale_(optimiser)
    norm = nn.utils.clip_grad_norm_(parts.network.parameters(), parts.training.gradient_clip)
    scale = scaler.scale(torch.ones((), device=parts.device))
    numbers = torch.stack([loss.float(), norm.float(), scale.float()])
    if parts.reads_late:
        _give_momentum(optimiser)
        if not scaler.is_enabled():
            optimiser.found_inf = (~numbers[:2].isfinite().all()).float()  # type: ignore[attr-defined]  # as the scaler does
        scaler.step(optimiser)
        scaler.update()
        numbers = numbers.to("cpu", non_blocking=True)
        return Result(numbers=numbers, scaled=scaler.is_enabled(), ready=_record_event(parts.device))
    result = Result(numbers=numbers, scaled=scaler.is_enabled(), ready=None)
    if result.read()[1] or scaler.is_enabled():  # the scaler steps over what is not finite by itself
        scaler.step(optimiser)
        scaler.update()
    return result


def _give_momentum(optimiser: torch.optim.Optimizer) -> None:
    """A momentum of 0 where there is none yet: a fused first step that is stepped over would leave it undefined."""
    for group in optimiser.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.grad is not None and optimiser.state[parameter].get("momentum_buffer") is None:
                optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def compute_gradient(parts: Parts, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """Replace the gradients by those of one batch, ``size`` samples at a time; returns the loss, detached.

    With ranks, ``images`` are this process's share of the batch; gradients and loss are those of the whole.
    """
    loss_of_batch = parts.joint_loss or parts.loss

    def forward(part: Tensor) -> list[Tensor]:
        logits = run_network(parts.step_network, part, parts.training.precision)
        return [logits] if isinstance(logits, Tensor) else logits

    def criterion(logits: Sequence[Tensor], target: Tensor) -> Tensor:
        return supervise_deeply(loss_of_batch, logits, target)

    def backward(loss: Tensor) -> None:
        parts.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    if images.device.type == "cuda":  # a CPU's heap has fewer gaps where the last step's gradients are kept until here
        parts.optimiser.zero_grad(set_to_none=True)
    if size < len(images):
        parts.optimiser.zero_grad(set_to_none=True)
        separable = parts.separable and parts.ranks is None
        loss = accumulate(forward, criterion, backward, images, labels, size=size, separable=separable)
    else:
        loss = criterion(forward(images), labels)
        parts.optimiser.zero_grad(set_to_none=True)
        backward(loss)
    if parts.ranks is not None:
        parts.ranks.sum_gradients(list(parts.network.parameters()))
    return loss.detach()


def run_network(network: Callable[..., Tensor | list[Tensor]], images: Tensor, precision: str) -> Tensor | list[Tensor]:
    """The network's logits, computed in the given precision."""
    dtype = DTYPES[precision]
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        result: Tensor | list[Tensor] = network(images)
    return result
