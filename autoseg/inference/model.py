"""Trained models: their files in a run folder or a bundle, and their networks in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn

import autoseg
from autoseg.compute.device import usable_precision
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.postprocessing import KeepLargestComponent
from autoseg.evaluation.selection import Selection
from autoseg.inference.bundle import (
    ModelDescription,
    WindowSums,
    check_free,
    open_bundle,
    without_cases,
    write_bundle,
)
from autoseg.issues import AutosegError, Issue
from autoseg.networks.build import build_network
from autoseg.networks.weights import fill_network, load_weights, read_key, read_weights
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from autoseg.storage.cache import key_of
from planners import Configuration, Plan, Schedule, Training, issues_of, with_width


class ModelFiles(Protocol):
    """A model on disk, read without running code."""

    @property
    def description(self) -> ModelDescription:
        """Everything but the weights."""

    @property
    def key(self) -> str:
        """Changes when the weights or their use change."""

    def where(self, configuration: str, fold: int) -> str:
        """Names one network's weights in messages."""

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        """One network's weights by autoseg's names; raises `AutosegError` if they are missing or damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The model of a finished run folder."""

    run: RunFolder
    description: ModelDescription
    keys: Mapping[str, Sequence[str]]
    """What the weights were trained from, by configuration, in the order of the folds."""

    @property
    def key(self) -> str:
        """Changes when the weights or their use change."""
        selection = self.description.selection
        keys = {name: list(keys) for name, keys in self.keys.items()}
        return key_of(selection.members, selection.folds, selection.postprocessing, keys)

    def where(self, configuration: str, fold: int) -> str:
        return str(final_weights(self.run, configuration, fold))

    def weights(self, configuration: str, fold: int) -> dict[str, Tensor]:
        key = self.keys[configuration][self.description.selection.folds.index(fold)]
        return read_weights(final_weights(self.run, configuration, fold), key=key)


def final_weights(run: RunFolder, configuration: str, fold: int) -> Path:
    """The weights at the end of a fold's training."""
    return run.fold(configuration, fold) / "final.safetensors"


def open_model(path: Path) -> ModelFiles:
    """The files of a model, a run folder or a bundle file. Weights are not read yet."""
    if path.is_dir():
        return open_run(path)
    if path.is_file():
        return open_bundle(path)
    fix = "pass a run folder (--out of autoseg run) or a bundle file"
    raise AutosegError(Issue(code="model.not_found", where=str(path), message="does not exist", fix=fix))


def open_run(path: Path) -> RunFiles:
    """The model of a finished run folder.

    Raises `AutosegError` for a folder that is not a run, for an unfinished run, and where plan, schedule or weights are no
    longer those that the selection was made from.
    """
    run = RunFolder(path)
    _require_finished(run)
    description = _describe(run)
    keys = _weight_keys(run, description)
    expected = description.selection.made_from
    if expected not in (None, selection_key(description.plan, description.trainings, description.dataset, keys)):
        message = (
            "made from a different plan, schedule or weights than the run has now: plan.json or schedule.json was edited, or "
            "networks were trained with other options"
        )
        raise _outdated(run.selection, message, run)
    return RunFiles(run=run, description=description, keys=keys)


def _require_finished(run: RunFolder) -> None:
    needed = (run.dataset, run.plan, run.schedule, run.selection)
    missing = [file.name for file in needed if not file.is_file()]
    if missing and ((run.root / "plans.json").is_file() or any(run.root.glob("fold_*/*.pth"))):
        fix = f"convert it: autoseg import-nnunet {run.root} OUT"
        raise AutosegError(Issue(code="model.nnunet", where=str(run.root), message="an nnU-Net model", fix=fix))
    made = [file.name for file in needed if file != run.dataset]  # datasets have their own dataset.json
    if not run.is_begun and set(made) <= set(missing):
        message = f"not a run folder: it has none of {', '.join(made)}"
        fix = "pass a folder that autoseg run wrote (--out)"
        raise AutosegError(Issue(code="model.not_a_run", where=str(run.root), message=message, fix=fix))
    if missing:
        raise _unfinished(run.root, f"the run is not finished: no {', '.join(missing)}", run)


def _unfinished(where: Path, message: str, run: RunFolder) -> AutosegError:
    fix = f"resume it: autoseg run {run.root}"
    return AutosegError(Issue(code="model.unfinished", where=str(where), message=message, fix=fix))


def _outdated(where: Path, message: str, run: RunFolder) -> AutosegError:
    fix = f"undo edits with autoseg plan {run.root} --replan, or train what changed with autoseg run {run.root} --redo"
    return AutosegError(Issue(code="model.outdated", where=str(where), message=message, fix=fix))


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
        message = f"its documents are inconsistent: {'; '.join(map(str, issues_of(error)))}"
        raise _outdated(run.root, message, run) from error


def _weight_keys(run: RunFolder, description: ModelDescription) -> dict[str, list[str]]:
    """What the weights of each network were trained from, by configuration, in the order of the folds."""
    keys: dict[str, list[str]] = {name: [] for name in description.stages}
    issues: list[Issue] = []
    for name in description.stages:
        for fold in description.selection.folds:
            try:
                keys[name].append(read_key(final_weights(run, name, fold)))
            except AutosegError as error:
                issues += error.issues
    if issues:
        raise AutosegError(*issues)
    return keys


def selection_key(
    plan: Plan, trainings: Sequence[Training], dataset: DatasetDescription, keys: Mapping[str, Sequence[str]]
) -> str:
    """Key of what a selection is made from: the documents about the networks in ``keys``, and what those were trained
    from, fold by fold.
    """
    used = [training for training in trainings if training.configuration in keys]
    return key_of(plan, used, dataset.coding, {name: list(of_folds) for name, of_folds in keys.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One configuration of a model with the networks of its folds, in evaluation mode on the model's device."""

    configuration: Configuration
    training: Training
    networks: tuple[nn.Module, ...]
    previous: Member | None = None
    """The first stage of a cascade, whose label map is part of the input."""
    window_sums: WindowSums = "float32"

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes of the patch that prediction mirrors: those that training mirrored."""
        return self.configuration.mirror_axes if self.training.mirroring else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A trained model in memory."""

    dataset: DatasetDescription
    plan: Plan
    members: tuple[Member, ...]
    """One configuration, or two whose probabilities are averaged."""
    postprocessing: tuple[KeepLargestComponent, ...] = ()
    device: torch.device
    key: str
    """Changes when the weights or their use change."""


def load_model(path: Path, *, device: torch.device) -> Model:
    """The model of a finished run folder or of a bundle. Loading runs no code from the files.

    Raises `AutosegError` for anything else, for an unfinished run, and for damaged files.
    """
    files = open_model(path)
    about = files.description
    return Model(
        dataset=about.dataset,
        plan=about.plan,
        members=tuple(load_member(files, name, device=device) for name in about.selection.members),
        postprocessing=about.selection.postprocessing,
        device=device,
        key=files.key,
    )


def load_member(files: ModelFiles, name: str, *, device: torch.device) -> Member:
    """The final networks of one configuration's folds, with those of the stage before it."""
    about = files.description
    configuration, training = about.plan.configuration(name), about.training(name)
    training = training.model_copy(update={"precision": usable_precision(training.precision, device)})
    networks = tuple(open_member_network(files, name, fold).to(device).eval() for fold in about.selection.folds)
    before = configuration.previous_stage
    previous = None if before is None else load_member(files, before, device=device)
    return Member(
        configuration=configuration,
        training=training,
        networks=networks,
        previous=previous,
        window_sums=about.window_sums,
    )


def open_member_network(files: ModelFiles, name: str, fold: int) -> nn.Module:
    """The network of one fold, on the CPU. Raises `AutosegError` for weights that are damaged or of another network."""
    about = files.description
    network = _new_network(about.plan.configuration(name), about.training(name))
    fill_network(network, files.weights(name, fold), where=files.where(name, fold))
    return network


def load_network(
    weights: Path, configuration: Configuration, training: Training, *, device: torch.device, key: str | None = None
) -> nn.Module:
    """One network with trained weights, in evaluation mode; ``key``: what they must have been trained from."""
    network = _new_network(configuration, training)
    load_weights(weights, network, key=key)
    return network.to(device).eval()


def _new_network(configuration: Configuration, training: Training) -> nn.Module:
    return build_network(with_width(configuration.network, training.base_features), seed=None)


def bundle_run(folder: Path, out: Path) -> Path:
    """Write the model of the finished run in ``folder`` as the bundle ``out``, and return ``out``.

    It has the weights of the chosen configurations and their first stages, the plan, how they were trained, the selection
    with its postprocessing, channels and labels; nothing of the cases. Raises `AutosegError` for an unfinished run, for
    weights that do not fit the plan, and if ``out`` exists.
    """
    check_free(out)
    files = open_run(folder)
    description = files.description.model_copy(update={"dataset": without_cases(files.description.dataset)})

    def weights(name: str, fold: int) -> bytes:
        open_member_network(files, name, fold)  # raises for weights of another network
        return final_weights(files.run, name, fold).read_bytes()

    write_bundle(out, description, weights, key=files.key, version=autoseg.__version__)
    return out
