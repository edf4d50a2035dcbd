"""Training steps through `torch.compile`, where the schedule wants them and the compiler works."""

from __future__ import annotations

from dataclasses import replace

from autoseg.compute.memory import is_out_of_memory
from autoseg.training.care import Care, FoldState, note
from autoseg.training.learning import Remark
from autoseg.training.task import FoldTask, make_fold_parts
from autoseg.training.trial import plausible_sizes, try_step


def without_failing_compiler(task: FoldTask, care: Care, state: FoldState) -> FoldTask:
    """The task, or the same without compiling where a compiled step fails; that is said once and kept in the record.

    Too little memory is no failure of the compiler: what is done about it is found out afterwards. The step is as large as
    the first that is tried then, and no larger: on a CPU a process that takes too much memory is killed, not told.
    """
    if not task.training.compiled:
        return task
    known = state.learning.micro_batch_size
    sizes = plausible_sizes(task.configuration, task.training, task.device, most=known)
    reason = why_not_compiled(task, sizes[0]) if sizes else None
    if reason is None:
        return task
    found = f"torch.compile does not work here ({reason})"
    note(care, state, Remark(kind="compiling", step=0, found=found, measure="steps run without it, and take longer"))
    return replace(task, training=task.training.model_copy(update={"compiled": False}))


def why_not_compiled(task: FoldTask, size: int) -> str | None:
    """What a compiled step of an empty batch, with parts of its own, fails of; none where it ends well.

    Compilers raise errors of many kinds, and a step that only they break is no reason to end a run.
    """
    try:
        try_step(task.configuration, task.training, task.device, make_fold_parts(task), size)
    except Exception as error:
        return None if is_out_of_memory(error) else first_line(error)
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something, or its type where none does."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
