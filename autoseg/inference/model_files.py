"""Where the parts of a trained model lie: a run folder here, a bundle next door."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from torch import Tensor

from autoseg.datasets.dataset import DatasetDescription
from autoseg.errors import AutosegError
from autoseg.evaluation.selection import Selection
from autoseg.inference.description import ModelDescription
from autoseg.networks.weights import read_key, read_weights
from autoseg.run_folder import RunFolder, load_document
from planners import Plan, Schedule, describe_problems


class ModelFiles(Protocol):
    """A model on disk, read without running code."""

    @property
    def description(self) -> ModelDescription:
        """All but the weights."""

    @property
    def key(self) -> str:
        """Changes when weights or the way they are used change."""

    def where(self, configuration: str, fold: int) -> str:
        """Names the place of one network's weights in messages."""

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        """One network's weights by our names; `AutosegError` where they are missing or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The model of a finished run folder."""

    run: RunFolder
    description: ModelDescription
    key: str

    def where(self, configuration: str, fold: int) -> str:
        return str(final_weights(self.run, configuration, fold))

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        return read_weights(final_weights(self.run, configuration, fold))


def final_weights(run: RunFolder, configuration: str, fold: int) -> Path:
    """The weights that a fold ended with."""
    return run.fold(configuration, fold) / "final.safetensors"


def open_run(path: Path) -> RunFiles:
    """The model of a finished run folder.

    Raises `AutosegError` for a folder that is no run, or whose run has not come to its end.
    """
    run = RunFolder(path)
    needed = (run.dataset, run.plan, run.schedule, run.selection)
    missing = [file.name for file in needed if not file.is_file()]
    if len(missing) == len(needed):
        raise AutosegError(f"{path} is no run folder: it has none of {', '.join(missing)}; give the --out of autoseg run")
    if missing:
        raise AutosegError(
            f"{path}: {', '.join(missing)} is missing; the run is not finished: repeat autoseg run --out {path}"
        )
    description = _describe(run)
    return RunFiles(run=run, description=description, key=_run_key(run, description))


def _describe(run: RunFolder) -> ModelDescription:
    try:
        return ModelDescription(
            origin="autoseg",
            dataset=load_document(DatasetDescription, run.dataset),
            plan=load_document(Plan, run.plan),
            selection=load_document(Selection, run.selection),
            trainings=load_document(Schedule, run.schedule).trainings,
        )
    except ValidationError as error:
        raise AutosegError(
            f"{run.root}: its documents do not belong together: {'; '.join(describe_problems(error))}; "
            f"repeat autoseg run --out {run.root}"
        ) from error


def _run_key(run: RunFolder, description: ModelDescription) -> str:
    selection = description.selection
    digest = sha256(repr((selection.members, selection.folds, selection.postprocessing)).encode())
    faults = []
    for name in description.stages:
        for fold in selection.folds:
            try:
                digest.update(read_key(final_weights(run, name, fold)).encode())
            except AutosegError as error:
                faults.append(str(error))
    if faults:
        raise AutosegError("\n".join(faults))
    return digest.hexdigest()
