"""A plan, made cases and fold specs for tests of training: small enough for seconds on one core."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from autoseg.issues import Issue
from autoseg.tracking.callbacks import ISSUES_FILE, Callback, StepRecord, read_issues
from autoseg.training.checkpoints import CHECKPOINT_FILE, load_checkpoint, read_state
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec, FoldState, batch_source
from autoseg.training.sampling import Batch, BatchSource, finish, load_crops
from planners import (
    CaseSize,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    Revision,
    Training,
    plan_dataset,
    trial_training,
)

LABELS = Labels(classes=(LabelClass(name="ball", values=(1,)), LabelClass(name="box", values=(2,))))


@dataclass(frozen=True)
class MadeCase:
    """A preprocessed case in memory."""

    image: np.ndarray
    labels: np.ndarray
    locations: dict[str, np.ndarray]


def make_case(seed: int, shape: tuple[int, int, int] = (20, 24, 20)) -> MadeCase:
    """A bright ball and a dark box at random places, in noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    labels = np.zeros(shape, np.int16)
    labels[(np.abs(grid - rng.uniform(5, 14, 3)) < 4).all(-1)] = 2
    labels[((grid - rng.uniform(6, 13, 3)) ** 2).sum(-1) < 16] = 1
    image = np.select([labels == 1, labels == 2], [1.5, -1.5], 0.0) + rng.normal(0, 0.3, shape)
    places = {name: np.argwhere(labels == value).astype(np.int32) for name, value in (("ball", 1), ("box", 2))}
    return MadeCase(image[None].astype(np.float32), labels, places)


def make_plan() -> Plan:
    return plan_dataset(
        Fingerprint(
            dataset_name="shapes",
            cases=tuple(CaseSize(case_id=str(i), shape=(20, 24, 20), spacing_mm=(1.0, 1.0, 1.0)) for i in range(6)),
            num_training_cases=6,
            channels=("MRI",),
            labels=LABELS,
            intensities=(
                IntensityStatistics(
                    mean=0.0, median=0.0, std=1.0, minimum=-2.0, maximum=2.0, percentile_00_5=-1.9, percentile_99_5=1.9
                ),
            ),
            median_relative_size_after_cropping=1.0,
        )
    )


def shallow(configuration: Configuration) -> Configuration:
    """With a network of two stages of one convolution each, for what takes time for every layer."""
    network = configuration.network
    stages = {name: getattr(network, name)[:2] for name in ("features", "kernels", "strides")}
    network = network.model_copy(update={**stages, "blocks": (1, 1), "decoder_blocks": (1,)})
    return configuration.model_copy(update={"network": network})


def make_spec(folder: Path, *, steps: int = 6, training: Training | None = None, name: str = "3d_fullres") -> FoldSpec:
    plan = make_plan()
    configuration = plan.configuration(name)
    if training is None:
        training = trial_training(configuration, base_features=4, batch_size=2, precision="float32")
        training = training.model_copy(
            update={"num_steps": steps, "steps_per_epoch": 3, "validation_batches": 1, "warmup_steps": 1}
        )
    return FoldSpec(
        plan=plan,
        configuration=configuration,
        training=training,
        fold=0,
        seed=7,
        training_cases=[make_case(i) for i in range(4)],
        validation_cases=[make_case(i) for i in range(4, 6)],
        folder=folder,
        key="key",
        device=torch.device("cpu"),
    )


def revision(step: int, num_steps: int) -> Revision:
    return Revision(
        configuration="3d_fullres",
        fold=0,
        step=step,
        num_steps=num_steps,
        planned_steps=12,
        step_s=1.0,
        reason="the test",
    )


def load_batches(source: BatchSource, steps: range, *, num_workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of ``steps`` in order, as a training makes them."""
    for crops in load_crops(source, steps, num_workers=num_workers, device=device):
        yield finish(crops, source.recipe, device)


def run(spec: FoldSpec, *callbacks: Callback) -> None:
    train_fold(spec, callbacks)


@dataclass
class Told(Callback):
    """Keeps the issues that it is told of."""

    issues: list[Issue]

    def on_issue(self, issue: Issue) -> None:
        self.issues.append(issue)


@dataclass
class StopAt(Callback):
    """Behaves like a user who presses Ctrl-C twice after some steps."""

    left: int

    def on_step(self, step: StepRecord) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def after_steps(number: int) -> Callable[[], bool]:
    """For ``should_stop``: true after that many steps."""
    asked = iter([*[False] * (number - 1), True])
    return lambda: next(asked)


def history_of(spec: FoldSpec) -> list[dict[str, object]]:
    """Lines of a fold's history without what the clock measured."""
    lines = [json.loads(line) for line in (spec.folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "wait_share")} for line in lines]


def issues_of(spec: FoldSpec) -> tuple[Issue, ...]:
    assert (spec.folder / ISSUES_FILE).exists()
    return read_issues(spec.folder)


def codes_of(spec: FoldSpec) -> list[str]:
    return [issue.code for issue in issues_of(spec)]


def state_of(spec: FoldSpec) -> FoldState:
    """What the fold's last checkpoint holds."""
    checkpoint = load_checkpoint(spec.folder / CHECKPOINT_FILE, key=spec.key)
    assert checkpoint is not None
    return read_state(checkpoint)


def decisions_of(spec: FoldSpec) -> dict[str, object]:
    """What guards decided in the training up to the last checkpoint."""
    names = ("micro_batch_size", "rate_factor", "restarts", "restarted_at", "skipped_steps", "sought", "issues")
    return {name: getattr(state_of(spec), name) for name in names}


def steps_saved(spec: FoldSpec) -> int:
    checkpoint = load_checkpoint(spec.folder / CHECKPOINT_FILE, key=spec.key)
    assert checkpoint is not None
    return checkpoint.step


def same_weights(*specs: FoldSpec, name: str = "final.safetensors") -> bool:
    first, second = (load_file(spec.folder / name) for spec in specs)
    return all(torch.equal(first[key], second[key]) for key in first)


def broken_case(seed: int) -> MadeCase:
    """A case without a single finite voxel, as no preprocessing leaves it."""
    case = make_case(seed)
    case.image[:] = np.nan
    return case


def training_with(spec: FoldSpec, **changes: object) -> FoldSpec:
    return replace(spec, training=spec.training.model_copy(update=changes))


def one_broken_of(count: int, folder: Path, *, steps: int, **changes: object) -> tuple[FoldSpec, list[int]]:
    """A spec with one broken case among ``count``, and the steps whose batches hold it."""
    cases = [broken_case(0), *(make_case(i) for i in range(1, count))]
    spec = training_with(replace(make_spec(folder, steps=steps), training_cases=cases), **changes)
    source = batch_source(spec, purpose="training")
    return spec, [step for step in range(steps) if 0 in (source.choose(step, 0)[1], source.choose(step, 1)[1])]
