"""Export: the model of a run in 8 bits, which needs its cases: some to calibrate it, others to measure what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.delivery.export import graph_of, require_exportable, write_export
from autoseg.delivery.quantise import quantise
from autoseg.inference.bundle import ModelFiles
from autoseg.inference.engines import Network, by_onnxruntime
from autoseg.inference.model import assemble, fewer_folds, open_member_network, open_model, with_folds
from autoseg.inference.predictor import Predictor
from autoseg.inference.ways import MeasuredWay, Way
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import RunFolder
from autoseg.stages.measure import Candidate, measure, stored_source
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.storage.cache import key_of

CALIBRATION_CASES = 8
WINDOWS_OF_CASE = 4
CPU = torch.device("cpu")
Graphs = dict[tuple[str, int], bytes]
"""By configuration and fold."""


@dataclass(slots=True)
class Recorder:
    """A network that keeps some of the windows it sees, each with the same chance."""

    network: Network
    most: int = WINDOWS_OF_CASE
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    """(1, C, patch...) of all cases so far."""
    _of_case: list[NDArray[np.float32]] = field(default_factory=list)
    _seen: int = 0
    _draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __call__(self, windows: Tensor, /) -> Tensor:
        for window in windows:
            self._seen += 1
            place = len(self._of_case) if self._seen <= self.most else int(self._draw.integers(self._seen))
            if place < self.most:
                self._of_case[place : place + 1] = [window[None].numpy().copy()]
        return self.network(windows)

    def next_case(self) -> None:
        """Windows from now on are those of another case."""
        self.kept += self._of_case
        self._of_case, self._seen = [], 0


def export_quantised(run: Run, out: Path, *, num_folds: int | None, most_cases: int | None) -> tuple[MeasuredWay, ...]:
    """Write the folder ``out`` with 8-bit graphs of the run's model; returns what they cost and gain, which is in its JSON, too.

    Each network is calibrated on cases it was trained on, and measured on those that it was not, at most ``most_cases`` of all folds
    together, beside its float32 graph. Raises `AutosegError` without the run's preprocessed cases.
    """
    require_exportable(out)
    files = open_model(run.folder.root)
    about, key = fewer_folds(files.description, files.key, num_folds)
    prepared = read_prepared(run)
    plain: Graphs = {}
    small: Graphs = {}
    pairs = [(name, fold) for fold in about.selection.folds for name in about.stages]
    with run.reporter.track("Quantising networks", len(pairs)) as tracker:
        for fold in about.selection.folds:
            windows = calibration_windows(run, prepared, files, fold)
            for name in about.stages:
                plain[name, fold] = graph_of(files, name, fold)
                small[name, fold] = quantise(plain[name, fold], windows[name])
                tracker.advance(note=f"{name}, fold {fold}")
    measured = measure(
        run,
        partial(_candidates, files, {"float32": plain, "int8": small}),
        folds=about.selection.folds,
        most_cases=most_cases,
    )
    write_export(
        out, about, lambda name, fold: small[name, fold], key=key_of(key, "onnx", "int8"), reporter=run.reporter,
        precision="int8", measured=measured,
    )  # fmt: skip
    return measured


def calibration_windows(
    run: Run, prepared: Prepared, files: ModelFiles, fold: int
) -> Mapping[str, Sequence[NDArray[np.float32]]]:
    """Windows (1, C, patch...) that the networks of a fold see in some of their training cases, by configuration."""
    recorders: dict[str, Recorder] = {}

    def network(name: str, fold: int) -> Network:
        return recorders.setdefault(name, Recorder(open_member_network(files, name, fold).eval()))

    about, key = with_folds(files.description, files.key, (fold,))
    model = assemble(about, network, device=CPU, key=key)
    predictor = Predictor(model=model, mirroring=False)
    cases = prepared.splits.folds[fold].train
    for i in range(min(CALIBRATION_CASES, len(cases))):
        case_id = cases[i * len(cases) // min(CALIBRATION_CASES, len(cases))]
        predictor.predict_source(stored_source(run, prepared, case_id, model))
        for recorder in recorders.values():
            recorder.next_case()
    return {name: recorder.kept for name, recorder in recorders.items()}


def _candidates(files: ModelFiles, graphs: Mapping[str, Graphs], fold: int) -> list[Candidate]:
    """The model of one fold by each kind of graphs."""
    about, key = with_folds(files.description, files.key, (fold,))
    threads = torch.get_num_threads()

    def candidate(kind: str) -> Candidate:
        def network(name: str, fold: int) -> Network:
            return by_onnxruntime(graphs[kind][name, fold], num_threads=threads)

        model = assemble(about, network, device=CPU, key=key, precision="float32")
        return Candidate(model=model, way=Way(), precision=kind)

    return [candidate(kind) for kind in graphs]


def require_run(model: Path) -> None:
    """Raise `AutosegError` for a model without the cases of its run."""
    if not RunFolder(model).is_begun:
        message = "8 bits need the training cases of a run, to calibrate and to measure; this is no run folder"
        fix = "pass the run folder, or omit --quantise"
        raise AutosegError(Issue(code="onnx.no_cases", where=str(model), message=message, fix=fix))
