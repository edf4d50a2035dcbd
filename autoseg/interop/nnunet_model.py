"""Converts a model that nnU-Net v2 trained into a bundle that predicts as nnU-Net does."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import autoseg
from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.selection import Selection
from autoseg.inference.bundle import ModelDescription, write_bundle
from autoseg.interop.nnunet_checkpoint import ReferenceCheckpoint, read_reference_checkpoint, translate_weights
from autoseg.issues import AutosegError, Issue
from autoseg.networks.weights import pack_weights
from autoseg.run_folder import check_free
from autoseg.storage.cache import key_of
from planners import (
    Configuration,
    DocumentError,
    Measurement,
    NnunetModel,
    Training,
    method_training,
    read_nnunet_model,
)

Checkpoints = Literal["final", "best"]
FOLD = re.compile(r"fold_(\d+)")
ALL_CASES = "fold_all"
"""One network trained on all cases; here it is fold 0."""
NEEDED = ("plans.json", "dataset.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One trained configuration of nnU-Net: its documents, and the checkpoint of each fold."""

    model: NnunetModel
    configuration: Configuration
    checkpoints: dict[int, Path]
    trainer: str
    epochs: int


def import_nnunet(
    folder: Path,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    checkpoints: Checkpoints = "final",
    say: Callable[[str], None],
) -> Path:
    """Write the model in ``folder`` (``TRAINER__PLANS__CONFIGURATION``) of nnU-Net v2 as the bundle ``out``, and return it.

    It predicts in nnU-Net's own axes, with its preprocessing, windows and mirroring, the mean of ``folds`` (none: all). The
    first stage of a cascade is taken from the folder beside. No code in the files is run, so ``postprocessing.pkl`` is
    ignored. Raises `AutosegError` with everything that is missing, does not fit, or asks for code, before anything is
    written.
    """
    check_free(out)
    stages, issues = _open_stages(folder, folds, checkpoints)
    hashes = []
    for stage in stages:
        for path in stage.checkpoints.values():
            try:
                hashes.append(sha256(_packed(stage, path)).hexdigest())
            except AutosegError as error:
                issues += error.issues
    if issues:
        raise AutosegError(*issues, headline=f"{folder} cannot be imported")
    _tell(folder, stages[-1], say)
    description = _describe(stages)
    by_name = {stage.configuration.name: stage for stage in stages}

    def weights(name: str, fold: int) -> bytes:
        return _packed(by_name[name], by_name[name].checkpoints[fold])

    write_bundle(out, description, weights, key=key_of(hashes, description), version=autoseg.__version__)
    return out


def _open_stages(
    folder: Path, folds: Sequence[int] | None, checkpoints: Checkpoints
) -> tuple[list[_Stage], list[Issue]]:
    """The stage in a folder, and its first stage from the folder beside, with all issues."""
    stage, issues = _open_stage(folder, folds, checkpoints)
    if stage is None or stage.configuration.previous_stage is None:
        return [stage] if stage is not None else [], issues
    name, first, whole = stage.configuration.name, stage.configuration.previous_stage, folder.resolve()
    fix = f"put them side by side, named as nnU-Net does: TRAINER__PLANS__{first} and TRAINER__PLANS__{name}"
    if name not in whole.name:
        message = (
            f"trained as {name}, which its name does not contain: the folder of its first stage {first} is unknown"
        )
        return [stage], [*issues, Issue(code="import.first_stage", where=str(whole), message=message, fix=fix)]
    beside = whole.with_name(whole.name.replace(name, first))
    before, more = _open_stage(beside, tuple(stage.checkpoints), checkpoints)
    if before is not None and before.configuration.name != first:
        message = f"trained as {before.configuration.name}, not as {first}, the first stage of {name}"
        more.append(Issue(code="import.first_stage", where=str(beside), message=message, fix=fix))
    return [each for each in (before, stage) if each is not None], issues + more


def _open_stage(
    folder: Path, folds: Sequence[int] | None, checkpoints: Checkpoints
) -> tuple[_Stage | None, list[Issue]]:
    """The stage in a folder, with all issues of its documents and checkpoints."""
    texts, issues = _documents(folder)
    if issues:
        return None, issues
    files, issues = _find_checkpoints(folder, folds, f"checkpoint_{checkpoints}.pth")
    opened: dict[int, ReferenceCheckpoint] = {}
    for fold, file in files.items():
        try:
            opened[fold] = read_reference_checkpoint(file)
        except AutosegError as error:
            issues += error.issues
    if not opened:
        return None, issues
    first = next(iter(opened.values()))
    for fold, checkpoint in opened.items():
        if checkpoint.configuration != first.configuration:
            message = f"trained as {checkpoint.configuration}, others as {first.configuration}"
            fix = "put each configuration into its own folder"
            issues.append(Issue(code="import.mixed_folds", where=str(files[fold]), message=message, fix=fix))
    try:
        model = read_nnunet_model(
            *texts,
            configuration=first.configuration,
            mirror_axes=first.mirror_axes,  # type: ignore[arg-type]  # 0 to 2
            plans_where=str(folder / NEEDED[0]),
            dataset_where=str(folder / NEEDED[1]),
        )
    except DocumentError as error:
        fix = "use nnU-Net for this model, or correct the file"
        faults = [Issue(code="import.unsupported", where=str(folder), message=str(e), fix=fix) for e in error.issues]
        return None, issues + faults
    stage = _Stage(
        model=model,
        configuration=model.plan.configuration(first.configuration),
        checkpoints={fold: files[fold] for fold in opened},
        trainer=first.trainer,
        epochs=first.epochs,
    )
    return stage, issues


def _documents(folder: Path) -> tuple[list[bytes], list[Issue]]:
    texts, issues = [], []
    inside = sorted(path.parent.name for path in folder.glob("*/plans.json"))
    fix = (
        f"pass one of its subfolders: {', '.join(inside)}"
        if inside
        else "pass the folder TRAINER__PLANS__CONFIGURATION that nnU-Net v2 wrote, which contains fold_0 and so on"
    )
    for name in NEEDED:
        try:
            texts.append((folder / name).read_bytes())
        except OSError as error:
            message = f"could not be read ({error.strerror or error})"
            issues.append(Issue(code="import.not_a_model", where=str(folder / name), message=message, fix=fix))
    return texts, issues


def _find_checkpoints(folder: Path, folds: Sequence[int] | None, name: str) -> tuple[dict[int, Path], list[Issue]]:
    """The checkpoint of each fold, or of ``folds``. If not all are finished, the network of all cases, if that is."""
    found = {int(match[1]): path for path in folder.iterdir() if path.is_dir() and (match := FOLD.fullmatch(path.name))}
    whole = folder / ALL_CASES
    unfinished = folds is None and not all((path / name).is_file() for path in found.values())
    if (not found and whole.is_dir()) or (unfinished and (whole / name).is_file()):
        found = {0: whole}
    wanted = sorted(found) if folds is None else sorted(set(folds))
    known = ", ".join(map(str, sorted(found))) or "none"
    fix = "train it, or choose other folds with --fold"
    files, issues = {}, []
    for fold in wanted:
        file = found[fold] / name if fold in found else None
        if file is not None and file.is_file():
            files[fold] = file
            continue
        message = f"fold {fold} has no {name}: its training was not finished"
        issues.append(
            Issue(
                code="import.missing_fold" if file is None else "import.unfinished_fold",
                where=str(folder if file is None else file.parent),
                message=f"fold {fold} does not exist (available: {known})" if file is None else message,
                fix=fix,
            )
        )
    if not wanted:
        fix = "pass the folder of a trained model"
        issues.append(Issue(code="import.missing_fold", where=str(folder), message="no folds", fix=fix))
    return files, issues


def _packed(stage: _Stage, path: Path) -> bytes:
    """The translated weights of one checkpoint."""
    weights, faults = translate_weights(read_reference_checkpoint(path).weights, stage.configuration.network)
    if faults:
        message = f"does not fit the network of the plan: {'; '.join(faults)}"
        fix = f"use nnU-Net for trainers that build another network, as {stage.trainer} may do"
        raise AutosegError(Issue(code="import.other_network", where=str(path), message=message, fix=fix))
    return pack_weights({name: tensor.float() for name, tensor in weights.items()}, key="")


def _tell(folder: Path, stage: _Stage, say: Callable[[str], None]) -> None:
    names = ["all" if path.parent.name == ALL_CASES else str(fold) for fold, path in stage.checkpoints.items()]
    say(
        f"{stage.model.plan.dataset_name}: {stage.configuration.name}, fold{'s' if len(names) > 1 else ''} {', '.join(names)}, "
        f"{stage.trainer}, {stage.epochs} epochs"
    )
    numbered = any(FOLD.fullmatch(path.name) for path in folder.iterdir())
    if any(path.parent.name == ALL_CASES for path in stage.checkpoints.values()):
        if numbered:
            say(f"Using {folder / ALL_CASES}, one network trained on all cases: not all numbered folds are finished")
    elif (folder / ALL_CASES).is_dir():
        say(f"Ignoring {folder / ALL_CASES}, one network trained on all cases, in favour of the numbered folds")
    for pickled in sorted(folder.glob("**/postprocessing.pkl")):
        say(f"Ignoring {pickled}: loading it would run code; predictions are made without its postprocessing")


def _describe(stages: Sequence[_Stage]) -> ModelDescription:
    main, model = stages[-1], stages[-1].model
    trained = {stage.configuration.name: stage for stage in stages}
    plan = model.plan.model_copy(
        update={
            "configurations": tuple(
                trained[each.name].configuration.model_copy(update={"next_stage": each.next_stage})
                if each.name in trained
                else each
                for each in model.plan.configurations
            )
        }
    )
    return ModelDescription(
        origin=f"nnU-Net v2, {main.trainer}, {main.epochs} epochs",
        dataset=DatasetDescription(
            name=plan.dataset_name,
            root="",
            layout="nnunet",
            channels=plan.channels,
            labels=plan.labels,
            file_values=model.file_values,
            file_ending=model.file_ending,
            training=(),
        ),
        plan=plan,
        selection=Selection(
            members=(main.configuration.name,),
            folds=tuple(main.checkpoints),
            postprocessing=(),
            cross_validated=False,
            reason="imported as it was trained",
            candidates=(),
            dice_before_postprocessing=None,
            dice_after_postprocessing=None,
        ),
        trainings=tuple(_training(stage) for stage in stages),
        window_sums="float16",
    )


def _training(stage: _Stage) -> Training:
    """nnU-Net's training, as long as the checkpoint says; half precision on GPUs, as nnU-Net predicts."""
    configuration = stage.configuration
    measured = Measurement(
        configuration=configuration.name,
        base_features=configuration.network.features[0],
        batch_size=configuration.batch_size,
        precision="float16",
        step_s=1.0,
        case_s=1.0,
    )
    training = method_training(configuration, measured)
    return training.model_copy(update={"num_steps": max(1, stage.epochs) * training.steps_per_epoch})
