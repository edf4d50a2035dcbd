"""What is said to a wrong call: how the wish behind an unknown option is met, here or under the names of nnU-Net."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any

import typer

HINTS = {
    "epochs num-epochs max-epochs": "use `--set schedule.epochs=NUMBER`, or `--budget TIME`",
    "steps num-steps iterations": "use `--set schedule.num_steps=NUMBER`, or `--budget TIME`",
    "time hours minutes timeout duration": "use `--budget TIME`, e.g. 20m or 2h",
    "batch batch-size": "use `--set plan.3d_fullres.batch_size=NUMBER`",
    "patch patch-size patch-shape": "use `--set plan.3d_fullres.patch_shape=Z,Y,X`",
    "lr learning-rate initial-lr": "use `--set schedule.peak_learning_rate=NUMBER`",
    "momentum": "use `--set schedule.momentum=NUMBER`",
    "weight-decay": "use `--set schedule.weight_decay=NUMBER`",
    "warmup warmup-steps": "use `--set schedule.warmup_steps=NUMBER`",
    "scheduler lr-scheduler": "use `--set schedule.curve=cosine` or `polynomial`",
    "oversample oversample-foreground foreground-share": "use `--set schedule.foreground_share=NUMBER`",
    "augmentation augment no-augmentation": "use `--set schedule.augmentation=false`, or `--no-mirroring`",
    "normalization norm": "use `--set plan.3d_fullres.normalization=NAME`",
    "deep-supervision": "use `--set plan.3d_fullres.deep_supervision=false`",
    "optimizer optimiser": "use `--set schedule.optimiser=sgd` or `adamw`",
    "precision amp bf16 fp16 half": "it is measured; to choose it, edit `precision` in RUN/schedule.json",
    "features width base-features": "use `--set schedule.base_features=NUMBER`",
    "loss": "use `--set plan.3d_fullres.loss.name=NAME`",
    "model network architecture arch topology p pl plan plans plans-name overwrite-plans-name": "use `--preset NAME`, "
    "e.g. resenc_m, or `--set plan.3d_fullres.topology=NAME`",
    "tr trainer": "there are no trainer classes; use `--set` for steps, rates and losses, `--no-mirroring`, or `--preset`",
    "spacing resolution overwrite-target-spacing": "use `--target-spacing Z,Y,X`",
    "gpu-memory gpu-memory-target memory vram": "use `--memory-gb GB`",
    "np npp nps npfp num-workers num-processes jobs processes cores": "use `--workers NUMBER`",
    "gpu gpus num-gpus cuda": "use `--device cuda`, or `--device cuda:1` for the second GPU",
    "cpu": "use `--device cpu`",
    "c config": "use `--configurations NAME`, or `autoseg train RUN --configuration NAME` for one",
    "f": "use `autoseg train RUN --fold NUMBER`; predictions use all folds that were trained",
    "cv num-folds k": "use `--folds NUMBER`",
    "val validation validation-split": "use `--splits FILE` or `--folds NUMBER`; validation is part of every training",
    "continue resume continue-training continue-prediction": "run the same command again: it resumes",
    "force overwrite": "use `--redo`",
    "pretrained-weights weights finetune fine-tune": "use `--pretrained RUN`",
    "i input": "pass it without an option: `autoseg predict MODEL INPUT OUTPUT`",
    "o output output-dir": "use `--out RUN`; for predictions: `autoseg predict MODEL INPUT OUTPUT`",
    "d dataset data dataset-id data-dir": "pass its folder without an option: `autoseg run DATASET`",
    "m model-dir": "pass it without an option: `autoseg predict MODEL INPUT OUTPUT`",
    "disable-tta no-tta": "use `--no-mirroring`",
    "tta use-tta": "images are mirrored unless `--no-mirroring` is given",
    "npz save-probabilities softmax": "use `autoseg predict … --probabilities`",
    "step-size overlap": "windows overlap by half, as in nnU-Net; there is no option for it",
    "chk": "final weights are always used",
    "verify-dataset-integrity verify": "use `autoseg check DATASET`; every run begins with it",
    "no-pp": "use `autoseg plan DATASET`",
    "verbose v debug q quiet disable-progress-bar": "RUN/log.txt has every detail; `2>progress.txt` writes plain lines",
    "random-state random-seed": "use `--seed NUMBER`",
    "name": "use `--out RUN`",
    "test images": "test images in the dataset are found; for others: `autoseg predict RUN INPUT OUTPUT`",
    "labels classes": "name them in `dataset.json` or in a spec file (`--spec FILE`)",
    "modality modalities channels": "name them in `dataset.json` or in a spec file (`--spec FILE`)",
}
"""By names without their dashes."""
WISHES = {name: hint for names, hint in HINTS.items() for name in names.split()}


def explain_usage_error(error: Any, arguments: Sequence[str], app: typer.Typer) -> str:
    """What is wrong with a call and what to type in its place; ``error`` is the parser's."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = next((word for word in arguments if word in commands), "")
    message = error.format_message()
    if name := getattr(error, "option_name", None):
        typed = next((word for word in arguments if word.startswith(name)), name).partition("=")[0]
        message = f"unknown option {typed}"
        if hint := _hint(typed, command, commands):
            message += f": {hint}"
    elif not command and (given := next((word for word in arguments if not word.startswith("-")), "")):
        close = get_close_matches(given, commands, n=1)
        message = f"unknown command {given}"
        if Path(given).exists():
            message += f"; to train on it: `autoseg run {quote(given)}`"
        elif close:
            message += f"; did you mean {close[0]}?"
    more = f"`autoseg {command} --help`" if command else "`autoseg --help`"
    return f"{message}\n{more} shows how it is called"


def _hint(typed: str, command: str, commands: dict[str, Any]) -> str:
    """How the wish behind an unknown option is met; empty if nothing is known of it."""
    options = {name: _flags(each) for name, each in commands.items()}
    others = [name for name, flags in options.items() if typed in flags]
    if others:
        *first, last = (f"`autoseg {name}`" for name in others[:3])
        return f"it is an option of {' and '.join([', '.join(first), last] if first else [last])}"
    name = typed.lstrip("-").replace("_", "-").lower()
    if f"--{name}" in options.get(command, ()):
        return f"did you mean --{name}?"
    if name in WISHES:
        return WISHES[name]
    close = get_close_matches(f"--{name}", options.get(command, ()), n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _flags(command: Any) -> set[str]:
    return {
        flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts) if flag[:1] == "-"
    }
