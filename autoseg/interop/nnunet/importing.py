"""Turns a trained model's folder of the reference into a bundle that predicts as it does."""

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
from autoseg.inference.bundle import ModelDescription, check_free, write_bundle
from autoseg.interop.nnunet.checkpoint import ReferenceCheckpoint, read_reference_checkpoint
from autoseg.interop.nnunet.names import translate_weights
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.networks.weights import pack_weights
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
"""One network trained on every case; here it is fold 0."""
NEEDED = ("plans.json", "dataset.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One configuration of the reference: its documents, and the checkpoint of each fold."""

    folder: Path
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

    It predicts in the reference's own axes, with its preprocessing, windows and mirroring, the mean of ``folds`` (none: all
    that there are). The first stage of a cascade is taken from the folder beside. No code of the files is run, so
    ``postprocessing.pkl`` is left aside. Raises `AutosegError` with everything that is missing, does not fit, or asks for
    code, before anything is written.
    """
    check_free(out)
    stages, problems = _open_stages(folder, folds, checkpoints)
    hashes: list[str] = []
    for stage in stages:
        hashed, more = _check_weights(stage)
        hashes, problems = hashes + hashed, problems + more
    if problems:
        raise AutosegError(*problems, headline=(f"{folder} cannot be imported"))
    _tell(folder, stages[-1], say)
    description = _describe(stages)
    by_name = {stage.configuration.name: stage for stage in stages}

    def weights(name: str, fold: int) -> bytes:
        stage = by_name[name]
        return _packed(read_reference_checkpoint(stage.checkpoints[fold]), stage.configuration)

    key = sha256(repr((hashes, description.model_dump_json())).encode()).hexdigest()
    write_bundle(out, description, weights, key=key, version=autoseg.__version__)
    return out


def _open_stages(
    folder: Path, folds: Sequence[int] | None, checkpoints: Checkpoints
) -> tuple[list[_Stage], list[Issue]]:
    """The stage in a folder, and before it the one it builds on, from the folder beside; with all that is wrong."""
    stage, problems = _open_stage(folder, folds, checkpoints)
    if stage is None or stage.configuration.previous_stage is None:
        return [stage] if stage is not None else [], problems
    name, first, whole = stage.configuration.name, stage.configuration.previous_stage, folder.resolve()
    mend = f"let them lie side by side, as nnU-Net names them: TRAINER__PLANS__{first} and TRAINER__PLANS__{name}"
    if name not in whole.name:
        found = f"it holds {name}, but its name does not say so: the folder of {first}, its first stage, cannot be told from it"
        return [stage], [*problems, Issue(code=UNNAMED, where=str(whole), message=found, fix=mend)]
    beside = whole.with_name(whole.name.replace(name, first))
    before, more = _open_stage(beside, tuple(stage.checkpoints), checkpoints)
    if before is not None and before.configuration.name != first:
        found = f"it holds {before.configuration.name}, not {first}, the first stage of {name}"
        more.append(Issue(code=UNNAMED, where=str(beside), message=found, fix=mend))
    return [each for each in (before, stage) if each is not None], problems + more


def _open_stage(
    folder: Path, folds: Sequence[int] | None, checkpoints: Checkpoints
) -> tuple[_Stage | None, list[Issue]]:
    """The stage in a folder, with all that is wrong with its documents and the presence of its files."""
    texts, problems = _documents(folder)
    files, missing = _find_checkpoints(folder, folds, f"checkpoint_{checkpoints}.pth") if texts else ({}, [])
    problems += missing
    opened = {}
    for fold, file in files.items():
        try:
            opened[fold] = read_reference_checkpoint(file)
        except AutosegError as error:
            problems.append(
                Issue(code=UNNAMED, where=f"fold {fold}", message=str(error), fix="or take the other folds with --fold")
            )
    first = next(iter(opened.values()), None)
    if first is None or not texts:
        return None, problems
    for fold, checkpoint in opened.items():
        if checkpoint.configuration != first.configuration:
            found = f"was trained as {checkpoint.configuration}, others as {first.configuration}"
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(files[fold]),
                    message=found,
                    fix="put each configuration into a folder of its own",
                )
            )
    try:
        model = read_nnunet_model(
            *texts,
            configuration=first.configuration,
            mirror_axes=first.mirror_axes,  # type: ignore[arg-type]  # 0 to 2
            plans_where=str(folder / NEEDED[0]),
            dataset_where=str(folder / NEEDED[1]),
        )
    except DocumentError as error:
        return None, problems + [
            Issue(
                code=UNNAMED,
                where=str(folder),
                message=line,
                fix="autoseg has no counterpart: use nnU-Net, or mend the file",
            )
            for line in error.problems
        ]
    stage = _Stage(
        folder=folder,
        model=model,
        configuration=model.plan.configuration(first.configuration),
        checkpoints={fold: files[fold] for fold in opened},
        trainer=first.trainer,
        epochs=first.epochs,
    )
    return stage, problems


def _documents(folder: Path) -> tuple[list[bytes], list[Issue]]:
    texts, problems = [], []
    inside = sorted(path.parent.name for path in folder.glob("*/plans.json"))
    mend = (
        f"give one of the folders in it: {', '.join(inside)}"
        if inside
        else ("give the folder TRAINER__PLANS__CONFIGURATION that nnU-Net v2 wrote, with fold_0 and so on in it")
    )
    for name in NEEDED:
        try:
            texts.append((folder / name).read_bytes())
        except OSError as error:
            problems.append(
                Issue(code=UNNAMED, where=str(folder / name), message=f"could not be read ({error.strerror})", fix=mend)
            )
    return ([] if problems else texts), problems


def _find_checkpoints(folder: Path, folds: Sequence[int] | None, name: str) -> tuple[dict[int, Path], list[Issue]]:
    """The checkpoint of each fold; with ``folds``, of these. Where not all are finished, the network of all cases, if it is."""
    there = {int(match[1]): path for path in folder.iterdir() if path.is_dir() and (match := FOLD.fullmatch(path.name))}
    whole = folder / ALL_CASES
    unfinished = folds is None and not all((path / name).is_file() for path in there.values())
    if (not there and whole.is_dir()) or (unfinished and (whole / name).is_file()):
        there = {0: whole}
    wanted = sorted(there) if folds is None else sorted(set(folds))
    known = ", ".join(map(str, sorted(there))) or "none"
    problems = [
        Issue(
            code=UNNAMED,
            where=str(folder),
            message=f"fold {fold} is missing (there are: {known})",
            fix="train it, or choose others with --fold",
        )
        for fold in wanted
        if fold not in there
    ]
    if not wanted:
        problems.append(
            Issue(code=UNNAMED, where=str(folder), message="it has no folds", fix="give the folder of a trained model")
        )
    files = {fold: there[fold] / name for fold in wanted if fold in there}
    for fold, file in files.items():
        if not file.is_file():
            found = f"fold {fold} has no {name}; its training has not come to its end"
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=str(file.parent),
                    message=found,
                    fix="train it to its end, or choose other folds with --fold",
                )
            )
    return {fold: file for fold, file in files.items() if file.is_file()}, problems


def _check_weights(stage: _Stage) -> tuple[list[str], list[Issue]]:
    """Hashes of the translated weights, and what does not fit the plan."""
    hashes, problems = [], []
    for path in stage.checkpoints.values():
        try:
            hashes.append(sha256(_packed(read_reference_checkpoint(path), stage.configuration)).hexdigest())
        except AutosegError as error:
            mend = f"a trainer that builds another network ({stage.trainer}) has no counterpart in autoseg"
            problems.append(Issue(code=UNNAMED, where=str(path), message=str(error), fix=mend))
    return hashes, problems


def _packed(checkpoint: ReferenceCheckpoint, configuration: Configuration) -> bytes:
    weights, faults = translate_weights(checkpoint.weights, configuration.network)
    if faults:
        raise AutosegError(f"does not fit the network of the plan: {'; '.join(faults)}")
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
            say(f"{folder / ALL_CASES} is used, one network of all cases: the numbered folds are not all finished")
    elif (folder / ALL_CASES).is_dir():
        say(f"{folder / ALL_CASES}, one network of all cases, is not used beside the numbered folds")
    for pickled in sorted(folder.glob("**/postprocessing.pkl")):
        say(f"{pickled} is not used: reading it would run code; predictions come without the postprocessing it holds")


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
    """The method's training, for as long as the checkpoint says; half precision on GPUs, as the reference predicts."""
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
