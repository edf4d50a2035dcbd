"""Trained models: the files that a run keeps of its own, and their networks in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

import autoseg
from autoseg.compute.device import usable_precision
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.label_maps import Decoder, Step
from autoseg.evaluation.selection import Selection
from autoseg.evaluation.table import Summary
from autoseg.inference.bundle import (
    ModelDescription,
    ModelFiles,
    WindowSums,
    open_bundle,
    without_cases,
    write_bundle,
)
from autoseg.issues import AutosegError
from autoseg.networks.build import build_network, place
from autoseg.networks.weights import fill_network, load_weights, pack_weights, read_weights
from autoseg.run_folder import RunFolder, check_free, find_model
from autoseg.storage.atomic import atomic_write
from autoseg.storage.cache import key_of
from planners import Configuration, Plan, Training, with_width


def final_weights(run: RunFolder, configuration: str, fold: int) -> Path:
    """The weights at the end of a fold's training."""
    return run.fold(configuration, fold) / "final.safetensors"


def open_model(path: Path) -> ModelFiles:
    """The model of a run folder, whatever has happened in it since it was selected, or of a bundle file.

    Weights are not read yet. Raises `AutosegError` for what is neither, and for a run without a model.
    """
    return open_bundle(find_model(path))


def keep_model(
    run: RunFolder, description: ModelDescription, keys: Mapping[str, Sequence[str]], summary: Summary | None
) -> Path | None:
    """Write the model of a run, with the scores of its cases; returns where the one before is kept, if that was another one.

    ``keys``: what the weights were trained from, by configuration, in the order of the folds. Raises `AutosegError` where
    some were trained from something else.
    """
    selection = description.selection
    key = model_key(selection, keys)
    kept = _keep_previous(run, key) if run.model.is_file() else None

    def weights(name: str, fold: int) -> bytes:
        made_from = keys[name][selection.folds.index(fold)]
        return pack_weights(read_weights(final_weights(run, name, fold), key=made_from), key=made_from)

    write_bundle(run.model, description, weights, key=key, version=autoseg.__version__, summary=summary)
    return kept


def model_key(selection: Selection, keys: Mapping[str, Sequence[str]]) -> str:
    """Key of a model; ``keys`` as of `keep_model`."""
    weights = {name: list(keys[name]) for name in keys}
    changes = [each for each in (selection.weights, selection.decoder) if each not in ((), "argmax")]
    return key_of(selection.members, selection.folds, selection.postprocessing, weights, *changes)


def _keep_previous(run: RunFolder, key: str) -> Path | None:
    """Copy the model of a run to where the next one does not replace it; None for a damaged one, and for one of that key."""
    try:
        files = open_bundle(run.model)
    except AutosegError:
        return None
    if files.key == key:
        return None
    for path in run.previous.glob("*.zip"):
        with suppress(AutosegError):
            if open_bundle(path).key == files.key:
                return path
    selection, selected = files.description.selection, datetime.fromtimestamp(run.model.stat().st_mtime)
    dice = selection.dice_after_postprocessing
    score = "" if dice is None else f"_dice{dice:.3f}"
    kept = run.previous / f"{selected:%Y-%m-%d_%H%M%S}_{'+'.join(selection.members)}{score}.zip"
    if not kept.exists():
        with atomic_write(kept) as copy, run.model.open("rb") as model:
            shutil.copyfileobj(model, copy)
    return kept


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

    @property
    def chain(self) -> tuple[Member, ...]:
        """All stages of a cascade up to this one, in order."""
        return (*(() if self.previous is None else self.previous.chain), self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A trained model in memory."""

    dataset: DatasetDescription
    plan: Plan
    members: tuple[Member, ...]
    """One configuration, or several whose probabilities are averaged."""
    weights: tuple[float, ...] = ()
    """Of the members; none: the plain mean."""
    decoder: Decoder = "argmax"
    postprocessing: tuple[Step, ...] = ()
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
        weights=about.selection.weights,
        decoder=about.selection.decoder,
        postprocessing=about.selection.postprocessing,
        device=device,
        key=files.key,
    )


def load_member(files: ModelFiles, name: str, *, device: torch.device) -> Member:
    """The final networks of one configuration's folds, with those of the stage before it."""
    about = files.description
    configuration, training = about.plan.configuration(name), about.training(name)
    training = training.model_copy(update={"precision": usable_precision(training.precision, device)})
    networks = tuple(place(open_member_network(files, name, fold), device).eval() for fold in about.selection.folds)
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
    return place(network, device).eval()


def _new_network(configuration: Configuration, training: Training) -> nn.Module:
    return build_network(with_width(configuration.network, training.base_features), seed=None)


def bundle_run(model: Path, out: Path, *, num_folds: int | None = None) -> Path:
    """Write the ``model`` of a run, or one that it kept, as the bundle ``out``, and return ``out``.

    It has the weights of the chosen configurations and their first stages, the plan, how they were trained, the selection
    with its postprocessing, channels and labels; nothing of the cases. ``num_folds``: the networks of the first folds only.
    Raises `AutosegError` for an unfinished run and if ``out`` exists.
    """
    check_free(out)
    files = open_model(model)
    changes: dict[str, object] = {
        "dataset": without_cases(files.description.dataset), "seen_before": (), "options": None,
    }  # fmt: skip
    selection, key = files.description.selection, files.key
    if num_folds is not None and num_folds < len(selection.folds):
        changes["selection"] = selection.model_copy(update={"folds": selection.folds[:num_folds]})
        key = key_of(key, num_folds)
    description = files.description.model_copy(update=changes)
    write_bundle(out, description, files.packed_weights, key=key, version=autoseg.__version__)
    return out
