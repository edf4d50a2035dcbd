"""A trained model in memory: its plan, its networks, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from autoseg.datasets.dataset import DatasetDescription
from autoseg.errors import AutosegError
from autoseg.evaluation.selection import Selection
from autoseg.networks.build import build_network
from autoseg.networks.weights import load_weights
from autoseg.run_folder import RunFolder, load_document
from planners import Configuration, Plan, Schedule, Training, with_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One configuration of a model with the networks of its folds, in evaluation mode on the model's device."""

    configuration: Configuration
    training: Training
    networks: tuple[nn.Module, ...]

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes that prediction mirrors: those that training mirrored."""
        return self.configuration.mirror_axes if self.training.mirroring else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What prediction needs of a run."""

    dataset: DatasetDescription
    plan: Plan
    selection: Selection
    members: tuple[Member, ...]
    device: torch.device
    key: str
    """Changes when weights or the way they are used change."""


def load_model(path: Path, *, device: torch.device) -> Model:
    """The model of a finished run folder. Loading runs no code from the files.

    Raises `AutosegError` for a folder that is no run, or whose run has not come to its end.
    """
    if not path.is_dir():
        raise AutosegError(f"{path} is no folder; give the folder that autoseg run wrote (its --out)")
    run = RunFolder(path)
    needed = (run.dataset, run.plan, run.schedule, run.selection)
    missing = [file.name for file in needed if not file.is_file()]
    if len(missing) == len(needed):
        raise AutosegError(f"{path} is no run folder: it has none of {', '.join(missing)}; give the --out of autoseg run")
    if missing:
        raise AutosegError(f"{path}: {', '.join(missing)} is missing; the run is not finished: repeat autoseg run --out {path}")
    plan = load_document(Plan, run.plan)
    schedule = load_document(Schedule, run.schedule)
    selection = load_document(Selection, run.selection)
    members = tuple(
        load_member(run, plan, schedule.training(name), selection.folds, device=device) for name in selection.members
    )
    return Model(
        dataset=load_document(DatasetDescription, run.dataset),
        plan=plan,
        selection=selection,
        members=members,
        device=device,
        key=_model_key(run, selection),
    )


def load_member(
    run: RunFolder, plan: Plan, training: Training, folds: tuple[int, ...], *, device: torch.device
) -> Member:
    """The final networks of one configuration's folds."""
    configuration = plan.configuration(training.configuration)
    networks = tuple(
        load_network(run.fold(configuration.name, fold) / "final.safetensors", configuration, training, device=device)
        for fold in folds
    )
    return Member(configuration=configuration, training=training, networks=networks)


def load_network(weights: Path, configuration: Configuration, training: Training, *, device: torch.device) -> nn.Module:
    """One network with trained weights, in evaluation mode."""
    network = build_network(with_width(configuration.network, training.base_features), seed=None)
    load_weights(weights, network)
    return network.to(device).eval()


def _model_key(run: RunFolder, selection: Selection) -> str:
    digest = sha256(repr((selection.members, selection.folds, selection.postprocessing)).encode())
    for member in selection.members:
        for fold in selection.folds:
            path = run.fold(member, fold) / "final.safetensors"
            try:
                with safe_open(path, framework="pt") as file:
                    digest.update(str((file.metadata() or {}).get("key", "")).encode())
            except (SafetensorError, OSError) as error:
                raise AutosegError(f"{path} holds no readable weights ({error}); train the fold again, or restore it") from error
    return digest.hexdigest()
