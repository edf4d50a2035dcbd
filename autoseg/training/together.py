"""One model, trained by several processes: what those do that do not lead (decision 0236)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from autoseg.compute.device import use_device
from autoseg.compute.executor import validation_readers
from autoseg.compute.ranks import Ranks
from autoseg.issues import AutosegError
from autoseg.tracking.callbacks import StepRecord
from autoseg.training.fold_spec import FoldRun, FoldSpec, batch_source, make_fold_parts
from autoseg.training.guards import readable_errors
from autoseg.training.loop import Parts, SegmentOverError, load_optimiser, train
from autoseg.training.preflight import memory_issue
from autoseg.training.sampling import finish, load_crops, with_sought


@dataclass(slots=True, kw_only=True)
class Led:
    """The `Control` of a process that does what rank 0 says."""

    micro_batch_size: int
    new_batches: bool = field(default=False, init=False)

    def learning_rate(self, step: int) -> float:
        return math.nan

    def reads_after(self, step: int) -> bool:
        return False


def announce(run: FoldRun, ranks: Ranks, steps: range) -> None:
    """Tell the others which steps come, how their batches are drawn, and the state before them."""
    parts = run.parts
    ranks.tell(
        {
            "steps": (steps.start, steps.stop),
            "sought": list(run.state.sought),
            "micro_batch_size": run.micro_batch_size,
            "num_workers": run.num_workers,
            "network": parts.network.state_dict(),
            "optimiser": parts.optimiser.state_dict(),
            "scaler": parts.scaler.state_dict(),
        }
    )


def end_segment(ranks: Ranks) -> None:
    """Let the others end before the last of the steps that were announced."""
    ranks.agree(math.nan)


def follow_fold(spec: FoldSpec, ranks: Ranks) -> None:
    """Compute this process's samples of all batches of a fold until rank 0 ends it. Writes nothing."""
    use_device(spec.device)
    parts = make_fold_parts(spec)
    while (told := ranks.hear()) is not None:
        _follow_segment(spec, parts, told)


def _follow_segment(spec: FoldSpec, parts: Parts, told: dict[str, Any]) -> None:
    parts.network.load_state_dict(told["network"])
    load_optimiser(parts.optimiser, told["optimiser"])
    parts.scaler.load_state_dict(told["scaler"])
    source = with_sought(batch_source(spec, purpose="training"), told["sought"])
    readers = told["num_workers"] - validation_readers(told["num_workers"])
    steps = range(*told["steps"])
    crops = load_crops(source, steps, num_workers=readers, device=spec.device)
    try:
        with readable_errors(spec.where):
            train(
                parts,
                crops,
                steps,
                make_batch=lambda crops: finish(crops, source.recipe, spec.device),
                control=Led(micro_batch_size=told["micro_batch_size"]),
                on_step=_nothing,
                on_memory_error=lambda step: _give_up(spec),
            )
    except SegmentOverError:
        pass
    finally:
        if isinstance(crops, Generator):
            crops.close()


def _nothing(record: StepRecord) -> None:
    """Rank 0 keeps what was measured."""


def _give_up(spec: FoldSpec) -> None:
    raise AutosegError(memory_issue(spec.plan, spec.configuration, spec.training, spec.device))
