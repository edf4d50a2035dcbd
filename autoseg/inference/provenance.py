"""Which model made a prediction, from what, how, where and in which time: a line for each case of a folder."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

import autoseg
from autoseg.compute.device import describe_device
from autoseg.compute.memory import peak_bytes
from autoseg.imaging.writers import Maker
from autoseg.inference.predictor import Predictor, unlike_issue
from autoseg.issues import AutosegError, Issue
from autoseg.storage.journal import Provenance
from autoseg.wording import shorten

T = TypeVar("T")
CONSTANT = "image.constant"
FAR = "predict.far_from_training"
NOT_CT = "predict.not_ct"
"""Flags of images that are unlike those of training."""
MOST_WARNINGS = 10
"""Images that are warned of one by one; the others are counted at the end."""


def maker_of(predictor: Predictor) -> Maker:
    """Who makes the predictions: version, model, and how it is used."""
    model = predictor.model
    return Maker(
        version=autoseg.__version__,
        model=model.dataset.name,
        key=model.key,
        parameters=(
            ("mirroring", "on" if predictor.mirroring else "off"),
            ("device", describe_device(model.device, num_threads=torch.get_num_threads())),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Times cases while they are predicted, and collects what is noted on them."""

    maker: Maker
    device: torch.device
    strict: bool = False
    """Refuse what would be warned of."""
    notes: list[Issue] = field(default_factory=list)
    """How images were read, each with its case."""
    flags: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    doubted: set[str] = field(default_factory=set)
    """Cases that are unlike those of training."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, predictor: Predictor) -> Watch:
        """For the cases that ``predictor`` predicts."""
        return cls(maker=maker_of(predictor), device=predictor.model.device, strict=predictor.strict)

    def timed(self, case_id: str, step: Callable[..., T]) -> Callable[..., T]:
        """``step`` of a case, timed whenever it is done."""
        return partial(self._time, case_id, step)

    def _time(self, case_id: str, step: Callable[..., T], *values: object) -> T:
        started = time.monotonic()
        try:
            return step(*values)
        finally:
            self.seconds[case_id] += time.monotonic() - started

    def note(self, note: Issue) -> None:
        """Keep a note on how the image of a case was read."""
        self.notes.append(note)
        self.flags[note.case or ""].add(note.code)

    def doubt(self, case_id: str, code: str, reasons: Sequence[str], warn: Callable[[str], None]) -> None:
        """Warn of an image that is unlike those of training, or refuse it. Raises `AutosegError`."""
        if not reasons:
            return
        text = "; ".join(reasons)
        if self.strict:
            raise AutosegError(unlike_issue(code, "", text))
        self.flags[case_id].add(code)
        self.doubted.add(case_id)
        if len(self.doubted) <= MOST_WARNINGS:
            warn(f"{case_id}: {text}; predictions may be wrong")

    def summary(self) -> str:
        """Of images of which nothing was said, for too many were odd; empty: there are none."""
        return f"{len(self.doubted)} images are unlike the training cases: {shorten(sorted(self.doubted))}" * (
            len(self.doubted) > MOST_WARNINGS
        )

    def provenance(self, case_id: str) -> Provenance:
        """What is known of a case when its prediction is written."""
        is_gpu = self.device.type == "cuda"
        return Provenance(
            version=self.maker.version,
            model=self.maker.key,
            options=dict(self.maker.parameters),
            seconds=round(self.seconds.get(case_id, 0.0), 3),
            peak_memory_bytes=peak_bytes(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated(self.device) if is_gpu else None,
            flags=tuple(sorted(self.flags.get(case_id, set()))),
        )
