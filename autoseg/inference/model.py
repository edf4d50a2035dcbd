"""A trained model in memory: its plan, its networks, and how they are put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoseg.compute.device import usable_precision
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.selection import Selection
from autoseg.inference.bundle import open_bundle
from autoseg.inference.description import WindowSums
from autoseg.inference.model_files import ModelFiles, open_run
from autoseg.issues import AutosegError
from autoseg.networks.build import build_network
from autoseg.networks.weights import fill_network, load_weights
from planners import Configuration, Plan, Training, with_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One configuration of a model with the networks of its folds, in evaluation mode on the model's device."""

    configuration: Configuration
    training: Training
    networks: tuple[nn.Module, ...]
    previous: Member | None = None
    """The first stage of a cascade, whose label map is a part of the input."""
    window_sums: WindowSums = "float32"

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes that prediction mirrors: those that training mirrored."""
        return self.configuration.mirror_axes if self.training.mirroring else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What prediction needs of a run or bundle."""

    dataset: DatasetDescription
    plan: Plan
    selection: Selection
    members: tuple[Member, ...]
    device: torch.device
    key: str
    """Changes when weights or the way they are used change."""


def load_model(path: Path, *, device: torch.device) -> Model:
    """The model of a finished run folder or of a bundle. Loading runs no code from the files.

    Raises `AutosegError` for what is neither, for a run that has not come to its end, and for damaged files.
    """
    files = open_model(path)
    about = files.description
    return Model(
        dataset=about.dataset,
        plan=about.plan,
        selection=about.selection,
        members=tuple(load_member(files, name, device=device) for name in about.selection.members),
        device=device,
        key=files.key,
    )


def open_model(path: Path) -> ModelFiles:
    """The files of a model: a folder is taken for a run, a file for a bundle. Weights are not read yet."""
    if path.is_dir():
        return open_run(path)
    if path.is_file():
        return open_bundle(path)
    raise AutosegError(f"{path} does not exist; give the folder that autoseg run wrote (its --out), or a bundle file")


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
    network = _bare_network(about.plan.configuration(name), about.training(name))
    fill_network(network, files.weights(name, fold), where=files.where(name, fold))
    return network


def load_network(
    weights: Path, configuration: Configuration, training: Training, *, device: torch.device, key: str | None = None
) -> nn.Module:
    """One network with trained weights, in evaluation mode; ``key``: what they must have been trained from."""
    network = _bare_network(configuration, training)
    load_weights(weights, network, key=key)
    return network.to(device).eval()


def _bare_network(configuration: Configuration, training: Training) -> nn.Module:
    return build_network(with_width(configuration.network, training.base_features), seed=None)
