"""Trained models: the files that a run keeps of its own, and their networks in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import torch
from torch import nn

import autoseg
from autoseg.compute.device import usable_precision
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.calibration import Calibration
from autoseg.evaluation.expected_quality import ExpectedQuality
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
from autoseg.inference.engines import Network, require_engine
from autoseg.inference.exported import open_exported, open_networks
from autoseg.inference.ways import MeasuredWay
from autoseg.issues import AutosegError, Issue
from autoseg.networks.build import build_network, place
from autoseg.networks.weights import fill_network, load_weights, pack_weights, read_weights
from autoseg.preprocessing.looks import Usual
from autoseg.run_folder import EXPORT, RunFolder, check_free, find_model
from autoseg.storage.atomic import atomic_write
from autoseg.storage.cache import key_of
from planners import Configuration, Plan, Precision, Training, with_width, write_document


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

    write_bundle(
        run.model,
        description,
        weights,
        key=key,
        version=autoseg.__version__,
        summary=None if summary is None else write_document(summary).encode(),
    )
    return kept


def describe_anew(run: RunFolder, **changes: object) -> None:
    """Write the model of a run with these ``changes`` of its description: it stays the same model."""
    files = open_bundle(run.model)
    about = files.description.model_copy(update=changes)
    write_bundle(
        run.model,
        about,
        files.packed_weights,
        key=files.key,
        version=autoseg.__version__,
        summary=files.packed_summary(),
    )


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
    """One configuration of a model with the networks of its folds, ready for use on the model's device."""

    configuration: Configuration
    training: Training
    networks: tuple[Network, ...]
    previous: Member | None = None
    """The first stage of a cascade, whose label map is part of the input."""
    window_sums: WindowSums = "float32"

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes of the patch that prediction mirrors: those that training mirrored."""
        return self.configuration.mirror_axes if self.training.mirroring else ()

    def of_fold(self, i: int) -> Member:
        """With one network, and one of each stage before."""
        return replace(
            self,
            networks=self.networks[i : i + 1],
            previous=None if self.previous is None else self.previous.of_fold(i),
        )

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
    measured: tuple[MeasuredWay, ...] = ()
    """What faster ways to predict cost in cross-validation, if that was measured."""
    calibration: Calibration | None = None
    expected: ExpectedQuality | None = None
    usual: Usual | None = None
    """What its training images looked like, as far as that is known."""

    def alone(self) -> Iterator[Model]:
        """Each network of the last stages alone, by the largest probability, as in cross-validation."""
        for each in self.members:
            for i in range(len(each.networks)):
                yield replace(self, members=(each.of_fold(i),), weights=(), decoder="argmax", postprocessing=())


def load_model(path: Path, *, device: torch.device, num_folds: int | None = None, engine: str | None = None) -> Model:
    """The model of a finished run folder, of a bundle, or one that was exported. Loading runs no code from the files.

    ``num_folds``: the networks of the first folds only; ``engine``: what computes an exported one (`ENGINES`), which needs a CPU.
    Raises `AutosegError` for anything else, for an unfinished run, and for damaged files.
    """
    found = find_model(path)
    if found.name == EXPORT:
        return _load_exported(found.parent, device=device, num_folds=num_folds, engine=engine or "onnxruntime")
    if engine is not None:
        message, fix = "is for exported models", f"omit it, or export the model: autoseg export {path} OUT"
        raise AutosegError(Issue(code="onnx.engine", where="--engine", message=message, fix=fix))
    files = open_bundle(found)
    return _load(files, *fewer_folds(files.description, files.key, num_folds), device=device)


def load_fold(files: ModelFiles, fold: int, *, device: torch.device) -> Model:
    """A model with the networks of one fold only."""
    return _load(files, *with_folds(files.description, files.key, (fold,)), device=device)


def _load(files: ModelFiles, about: ModelDescription, key: str, *, device: torch.device) -> Model:
    return assemble(
        about, lambda name, fold: place(open_member_network(files, name, fold), device).eval(), device=device, key=key
    )


def _load_exported(folder: Path, *, device: torch.device, num_folds: int | None, engine: str) -> Model:
    exported = open_exported(folder)
    if device.type != "cpu":
        message, fix = "exported models are computed on the CPU", "pass --device cpu, or predict by the bundle"
        raise AutosegError(Issue(code="onnx.device", where=str(device), message=message, fix=fix))
    about, key = fewer_folds(exported.model, exported.key, num_folds)
    networks = open_networks(
        exported, folder, require_engine(engine), folds=about.selection.folds, num_threads=torch.get_num_threads()
    )
    key = key if engine == "onnxruntime" else key_of(key, engine)
    return assemble(about, lambda name, fold: networks[name, fold], device=device, key=key, precision="float32")


def fewer_folds(about: ModelDescription, key: str, num_folds: int | None) -> tuple[ModelDescription, str]:
    """Description and key of a model of which only the first folds are used; none: all."""
    folds = about.selection.folds
    if num_folds is None or num_folds >= len(folds):
        return about, key
    return with_folds(about, key_of(key, num_folds), folds[:num_folds])


def with_folds(about: ModelDescription, key: str, folds: tuple[int, ...]) -> tuple[ModelDescription, str]:
    """Description of a model of which only ``folds`` are used, with its ``key``."""
    return about.model_copy(update={"selection": about.selection.model_copy(update={"folds": folds})}), key


def assemble(
    about: ModelDescription,
    network: Callable[[str, int], Network],
    *,
    device: torch.device,
    key: str,
    precision: Precision | None = None,
) -> Model:
    """A model of what ``network`` gives for a configuration and a fold; ``precision``: of all networks, otherwise as in training."""
    return Model(
        dataset=about.dataset,
        plan=about.plan,
        members=tuple(
            _member(about, name, network, device=device, precision=precision) for name in about.selection.members
        ),
        weights=about.selection.weights,
        decoder=about.selection.decoder,
        postprocessing=about.selection.postprocessing,
        device=device,
        key=key,
        measured=about.measured,
        calibration=about.calibration,
        expected=about.expected,
        usual=about.usual,
    )


def _member(
    about: ModelDescription,
    name: str,
    network: Callable[[str, int], Network],
    *,
    device: torch.device,
    precision: Precision | None,
) -> Member:
    """The networks of one configuration's folds, with those of the stage before it."""
    configuration, training = about.plan.configuration(name), about.training(name)
    precision = precision or usable_precision(training.precision, device)
    before = configuration.previous_stage
    return Member(
        configuration=configuration,
        training=training.model_copy(update={"precision": precision}),
        networks=tuple(network(name, fold) for fold in about.selection.folds),
        previous=None if before is None else _member(about, before, network, device=device, precision=precision),
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
    description, key = fewer_folds(files.description, files.key, num_folds)
    description = description.model_copy(update=changes)
    write_bundle(out, description, files.packed_weights, key=key, version=autoseg.__version__)
    return out
