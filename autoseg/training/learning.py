"""What went wrong in a training, and what was done about it: the record that a fold keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from planners import Document

Kind = Literal[
    "memory", "not_finite", "collapse", "restart", "lost_class", "never_found", "never_shown", "starved", "overfitting", "compiling"
]  # fmt: skip


class Remark(Document):
    """Something that was noticed, in words for a person."""

    kind: Kind
    step: Annotated[int, Field(ge=0)]
    """Steps done when it was noticed."""
    about: str = ""
    """What it concerns, where that can be several things: a class, a number of samples."""
    found: str
    measure: str
    """What was done about it, or what the user can do."""

    def __str__(self) -> str:
        return f"{self.found}; {self.measure}"


class Learning(Document):
    """``learning.json`` of a fold. All but the remarks steers the training, so checkpoints hold it too."""

    schema_version: Literal[1] = 1
    key: str
    """Hash of what the training was made from."""
    batch_size: Annotated[int, Field(ge=1)]
    micro_batch_size: Annotated[int, Field(ge=1)]
    """Samples that were computed at once; smaller than the batch where memory was not enough for all."""
    rate_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the schedule's learning rate, halved with every restart."""
    restarts: Annotated[int, Field(ge=0)] = 0
    restarted_at: Annotated[int, Field(ge=0)] = 0
    """Steps done at the last restart."""
    skipped_steps: tuple[int, ...] = ()
    """0-based; their loss or gradient was no finite number."""
    sought: tuple[str, ...] = ()
    """Classes around which more patches are drawn, because they were lost."""
    adaptations: tuple[str, ...] = ()
    """How pretrained weights were fitted to this plan, a sentence each."""
    remarks: tuple[Remark, ...] = ()

    def knows(self, remark: Remark) -> bool:
        """Whether the same was said before."""
        return any((known.kind, known.about) == (remark.kind, remark.about) for known in self.remarks)
