"""How a fold gets along with the memory there is: a trial before it, smaller pieces on the way, an error at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autoseg.compute.memory import is_out_of_memory
from autoseg.issues import AutosegError
from autoseg.training.accumulation import is_mean_over_samples
from autoseg.training.batches import worker_died
from autoseg.training.care import Care, FoldState, note
from autoseg.training.learning import Remark
from autoseg.training.loop import Parts
from autoseg.training.resuming import save
from autoseg.training.task import FoldTask, make_fold_parts
from autoseg.training.trial import find_micro_batch, refuse_for_memory


def fit_into_memory(task: FoldTask, care: Care, state: FoldState, *, step: int) -> None:
    """Try a step before the first one, and take as much of the batch at once as memory allows."""
    before = state.learning.micro_batch_size
    size = find_micro_batch(task.configuration, task.training, task.device, lambda: make_fold_parts(task), most=before)
    if size is None:
        raise refuse_for_memory(task.plan, task.configuration, task.training, task.device)
    _take_pieces(task, care, state, step, size)


def relieve(task: FoldTask, care: Care, parts: Parts, state: FoldState, step: int) -> None:
    """A step ran out of memory that was there when the training began: smaller pieces, or a saved end."""
    if state.control.micro_batch_size == 1:
        save(task, parts, state, step)
        raise refuse_for_memory(task.plan, task.configuration, task.training, task.device)
    _take_pieces(task, care, state, step, -(-state.control.micro_batch_size // 2))


def _take_pieces(task: FoldTask, care: Care, state: FoldState, step: int, size: int) -> None:
    state.control.micro_batch_size = size
    if size == state.learning.micro_batch_size:
        return
    state.learning = state.learning.model_copy(update={"micro_batch_size": size})
    batch = task.training.batch_size
    separable = is_mean_over_samples(task.configuration.loss, task.plan.labels)
    price = "" if separable else ", each twice, since the loss is one of the whole batch"
    measure = f"{size} at a time are computed{price}; the gradient stays that of the whole batch, and steps take longer"
    found = f"memory is not enough for a batch of {batch} samples at once"
    note(care, state, Remark(kind="memory", step=step, about=f"{size} at a time", found=found, measure=measure))


@contextmanager
def readable_errors(care: Care) -> Iterator[None]:
    """What the machine does to a training beside its steps becomes an error for a person.

    That is memory that runs out where smaller pieces are no answer, and a process that reads patches and is killed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if worker_died(error):
            raise AutosegError(
                f"{care.where}: a process that reads patches was ended from outside ({error}). Most often memory ran out, or "
                "shared memory (/dev/shm, in containers often small): give it more of either, or take fewer processes "
                "(--workers 1), and run again: the training goes on from its last checkpoint"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise AutosegError(
            f"{care.where}: memory ran out while patches were prepared or looked at ({error}); close what else uses it, then "
            "run again: the training goes on from its last checkpoint"
        ) from error
