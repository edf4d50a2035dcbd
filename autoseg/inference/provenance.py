"""Which model made a prediction, from what, how, where and in which time: a line for each case of a folder."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

import autoseg
from autoseg.compute.device import describe_device
from autoseg.compute.memory import peak_bytes
from autoseg.imaging.writers import Maker
from autoseg.inference.predictor import Predictor
from autoseg.issues import Issue
from autoseg.storage.journal import Provenance

T = TypeVar("T")
CONSTANT = "image.constant"
FAR = "predict.far_from_training"
NOT_CT = "predict.not_ct"
"""Flags of images that are unlike those of training."""


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
    notes: list[Issue] = field(default_factory=list)
    """How images were read, each with its case."""
    flags: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @classmethod
    def of(cls, predictor: Predictor) -> Watch:
        """For the cases that ``predictor`` predicts."""
        return cls(maker=maker_of(predictor), device=predictor.model.device)

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
