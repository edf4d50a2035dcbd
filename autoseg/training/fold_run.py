"""A training under way: all that changes in it, which is what checkpoints hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from autoseg.issues import Issue
from autoseg.tracking.callbacks import Callback
from autoseg.tracking.history import EpochRecord
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.loop import Parts


@dataclass(slots=True, kw_only=True)
class FoldState:
    """What changes during a training besides weights and optimiser; checkpoints hold all of it."""

    micro_batch_size: int
    """Samples computed at once; smaller than the batch where memory does not suffice for all."""
    good: dict[str, Tensor]
    """Weights to go back to: of the last epoch that ended well, at first those of the start."""
    rate_factor: float = 1.0
    """Of the schedule's learning rate, halved with every restart."""
    restarts: int = 0
    restarted_at: int = 0
    """Steps done at the last restart."""
    skipped_steps: list[int] = field(default_factory=list)
    """0-based; their loss or gradient was not finite."""
    sought: dict[str, int] = field(default_factory=dict)
    """Classes around which more patches are drawn because they were not learned, with the steps done when that began."""
    issues: list[Issue] = field(default_factory=list)
    history: list[EpochRecord] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps of the present epoch, as are the next two."""
    waits: list[float] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    moving_average: float | None = None
    """Of the mean pseudo-Dice."""
    best_score: float = -math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights with the best moving average; empty before the first."""


@dataclass(slots=True, kw_only=True)
class FoldRun:
    """The training of one fold under way."""

    spec: FoldSpec
    parts: Parts
    state: FoldState
    listeners: Callback
    num_workers: int = 0
    """Processes that read patches now."""
    steps_done: int = 0
    new_batches: bool = False
    """Set by a callback: batches must be drawn anew from the next step on, by other rules or more workers."""

    @property
    def micro_batch_size(self) -> int:
        return self.state.micro_batch_size

    @property
    def rate_factor(self) -> float:
        return self.state.rate_factor


def add_issue(run: FoldRun, issue: Issue, *, repeat: bool = False) -> None:
    """Tell the callbacks of an issue and keep it in the fold's record; unless ``repeat``, once for each code and place."""
    if repeat or not any((known.code, known.where) == (issue.code, issue.where) for known in run.state.issues):
        run.state.issues.append(issue)
        run.listeners.on_issue(issue)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights in main memory."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
