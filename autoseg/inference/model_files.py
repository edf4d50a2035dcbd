"""Where the parts of a trained model lie: a run folder here, a bundle next door."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from torch import Tensor

from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.selection import Selection
from autoseg.inference.description import ModelDescription
from autoseg.issues import AutosegError
from autoseg.networks.weights import read_key, read_weights
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from planners import Document, Plan, Schedule, Training, describe_problems


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
    keys: Mapping[str, Sequence[str]]
    """What the weights were trained from, by configuration, in the order of the folds."""

    @property
    def key(self) -> str:
        return _run_key(self.description, self.keys)

    def where(self, configuration: str, fold: int) -> str:
        return str(final_weights(self.run, configuration, fold))

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        key = self.keys[configuration][self.description.selection.folds.index(fold)]
        return read_weights(final_weights(self.run, configuration, fold), key=key)


def final_weights(run: RunFolder, configuration: str, fold: int) -> Path:
    """The weights that a fold ended with."""
    return run.fold(configuration, fold) / "final.safetensors"


def open_run(path: Path) -> RunFiles:
    """The model of a finished run folder.

    Raises `AutosegError` for a folder that is no run, whose run has not come to its end, or where plan, schedule or weights
    are no longer those that the selection was made from.
    """
    run = RunFolder(path)
    needed = (run.dataset, run.plan, run.schedule, run.selection)
    missing = [file.name for file in needed if not file.is_file()]
    if missing and ((path / "plans.json").is_file() or any(path.glob("fold_*/*.pth"))):
        raise AutosegError(
            f"{path} is a model of nnU-Net; make a model of it that can be used here: autoseg import-nnunet {path} OUT"
        )
    made = [file.name for file in needed if file != run.dataset]  # datasets have a dataset.json of their own
    if not run.is_begun and set(made) <= set(missing):
        raise AutosegError(f"{path} is no run folder: it has none of {', '.join(made)}; give the --out of autoseg run")
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise AutosegError(
            f"{path}: {', '.join(missing)} {are} missing; the run is not finished: repeat autoseg run --out {path}"
        )
    description = _describe(run)
    keys = _weight_keys(run, description)
    _refuse_mixture(run, description, keys)
    return RunFiles(run=run, description=description, keys=keys)


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


def model_digest(
    plan: Plan, trainings: Sequence[Training], dataset: DatasetDescription, keys: Mapping[str, Sequence[str]]
) -> str:
    """Hash of what a selection is made from: what the documents say of the networks in ``keys``, and what those were
    trained from, fold by fold.
    """
    used = [training for training in trainings if training.configuration in keys]
    documents = [_fields(plan), *map(_fields, used), _fields(dataset.coding)]
    content = [documents, sorted((name, list(of_folds)) for name, of_folds in keys.items())]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _fields(document: Document) -> dict[str, object]:
    """All that decides something; what only a newer version knows and nobody has set is left out."""
    return document.model_dump(mode="json", exclude={"decisions"}, exclude_defaults=True)


def _refuse_mixture(run: RunFolder, description: ModelDescription, keys: Mapping[str, Sequence[str]]) -> None:
    expected = description.selection.made_from
    if expected not in (None, model_digest(description.plan, description.trainings, description.dataset, keys)):
        raise AutosegError(
            f"{run.selection} was made from another plan, schedule or other weights than lie here now, for instance because "
            f"autoseg plan or autoseg train was called with other options; the run is not finished: repeat autoseg run --out {run.root}"
        )


def _weight_keys(run: RunFolder, description: ModelDescription) -> dict[str, list[str]]:
    """What the weights of each network were trained from, by configuration, in the order of the folds."""
    keys: dict[str, list[str]] = {name: [] for name in description.stages}
    faults = []
    for name in description.stages:
        for fold in description.selection.folds:
            try:
                keys[name].append(read_key(final_weights(run, name, fold)))
            except AutosegError as error:
                faults.append(str(error))
    if faults:
        raise AutosegError("\n".join(faults))
    return keys


def _run_key(description: ModelDescription, keys: Mapping[str, Sequence[str]]) -> str:
    selection = description.selection
    digest = sha256(repr((selection.members, selection.folds, selection.postprocessing)).encode())
    for of_folds in keys.values():
        for key in of_folds:
            digest.update(key.encode())
    return digest.hexdigest()
