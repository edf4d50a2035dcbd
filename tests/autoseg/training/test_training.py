"""Batches, the loop, checkpoints and folds: deterministic, resumable, and learning."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from autoseg.training.learning import Learning
from safetensors.torch import load_file
from torch._inductor import config as inductor_config
from torch.utils.data import get_worker_info

from autoseg.compute.workarounds import MMAP_THRESHOLD_BYTES, kept_heap
from autoseg.issues import AutosegError
from autoseg.preprocessing.store import open_array
from autoseg.storage.atomic import load_document
from autoseg.tracking.progress import SilentReporter
from autoseg.training import fold, health, loop, trial
from autoseg.training import task as tasks
from autoseg.training.checkpoints import load_checkpoint, load_latest
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec, batch_source, make_fold_parts, make_network
from autoseg.training.loop import compute_gradient, make_parts, train_step
from autoseg.training.losses import make_loss
from autoseg.training.sampling import finish, load_batches
from autoseg.training.validation import class_counts
from planners import (
    CaseSize,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
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


def make_task(folder: Path, *, steps: int = 6, training: Training | None = None, name: str = "3d_fullres") -> FoldSpec:
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


def run(task: FoldSpec) -> None:
    with SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["3d_fullres", "2d"])
def test_batches_are_the_same_whatever_the_number_of_workers(tmp_path, name: str) -> None:
    source = batch_source(make_task(tmp_path, name=name), purpose="training")
    one, two = ([b for b in load_batches(source, range(3), num_workers=n, device=torch.device("cpu"))] for n in (0, 2))
    for (image, labels), (image_2, labels_2) in zip(one, two, strict=True):
        assert torch.equal(image, image_2)
        assert torch.equal(labels, labels_2)
    assert not torch.equal(one[0][0], one[1][0])
    assert one[0][0].shape[2:] == make_plan().configuration(name).patch_shape


def test_forced_samples_hold_foreground(tmp_path) -> None:
    source = batch_source(make_task(tmp_path), purpose="validation")
    assert all(finish(source[step], source.recipe, torch.device("cpu"))[1][1].any() for step in range(20))


def test_a_small_network_learns_two_shapes(tmp_path) -> None:
    """A ball and a box of opposite brightness: after 120 steps both are found in unseen cases."""
    task = make_task(tmp_path, steps=120)
    changes = {"base_features": 8, "steps_per_epoch": 30, "validation_batches": 4, "augmentation": False}
    training = task.training.model_copy(update=changes)
    run(replace(task, training=training))
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert history[-1]["loss"] < history[0]["loss"] - 0.5
    assert min(history[-1]["pseudo_dice"].values()) > 0.6


def test_a_schedule_without_momentum_trains_with_plain_sgd(tmp_path) -> None:
    task = training_with(make_task(tmp_path, steps=1), optimiser="sgd", momentum=0.0, gradient_clip=1e9)
    parts = make_fold_parts(task)
    batch = finish(
        batch_source(task, purpose="training")[0], batch_source(task, purpose="training").recipe, task.device
    )
    before = [parameter.detach().clone() for parameter in parts.network.parameters()]
    train_step(parts, *batch, 0.01)
    decay = task.training.weight_decay
    for old, parameter in zip(before, parts.network.parameters(), strict=True):
        step = (
            0.0 if parameter.grad is None else parameter.grad + decay * old
        )  # heads below the full resolution have none
        assert torch.allclose(parameter, old - 0.01 * step, atol=1e-7)
    run(task)


def test_first_losses_are_golden(tmp_path) -> None:
    """Losses of the first steps, float32, one thread; see tests/golden/PROVENANCE.md."""
    run(make_task(tmp_path, steps=6))
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    golden = json.loads((Path(__file__).parents[2] / "golden" / "first_losses.json").read_text())
    # Processors order float32 sums differently and six steps amplify that. How much was not measured: this is a margin,
    # small against the changes of several percent that another loss, rate or draw makes.
    assert [line["loss"] for line in history] == pytest.approx(golden["epoch_losses"], rel=2e-3)


def test_a_resumed_training_ends_with_the_same_bits(tmp_path) -> None:
    undisturbed = make_task(tmp_path / "a")
    stopped = replace(make_task(tmp_path / "b"), checkpoint_interval_s=0.0)
    run(undisturbed)
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(stopped, StopAt(tracker, 5))
    assert load_checkpoint(tmp_path / "b" / "checkpoint.pt", key="key") is not None
    run(stopped)
    for name in ("final.safetensors", "best.safetensors"):
        first, second = load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert history_of(undisturbed) == history_of(stopped)


def history_of(task: FoldSpec) -> list[dict[str, object]]:
    """Lines of a fold's history without what the clock measured."""
    lines = [json.loads(line) for line in (task.folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "wait_share")} for line in lines]


class StopAt:
    """A tracker that behaves like a person who presses Ctrl-C after some steps."""

    def __init__(self, tracker, step: int) -> None:
        self.tracker, self.left = tracker, step

    def found(self, amount: float) -> None:
        self.tracker.found(amount)

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.tracker.advance(amount, note=note)
        if note:
            self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_stop_request_saves_the_finished_step(tmp_path) -> None:
    asked = iter([False, False, True])
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(make_task(tmp_path), tracker, should_stop=lambda: next(asked))
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pt", key="key")
    assert checkpoint is not None
    assert checkpoint.step == 3


@dataclass(frozen=True)
class SlowCase:
    """A case whose labels are there after a pause each time."""

    image: np.ndarray
    locations: dict[str, np.ndarray]
    label_map: np.ndarray
    pauses: Iterator[float]

    @property
    def labels(self) -> np.ndarray:
        time.sleep(next(self.pauses, 0.0))
        return self.label_map


@pytest.mark.parametrize("older", [False, True])
def test_times_of_an_epoch_are_those_of_all_its_steps(tmp_path, older: bool) -> None:
    """Two steps of an epoch, a stop, the third: the pause of the first step's batch is in the record."""
    case = make_case(0)
    slow = SlowCase(case.image, case.locations, case.labels, iter([0.5]))
    task = replace(make_task(tmp_path, steps=3), training_cases=[slow])
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, should_stop=lambda: next(asked))
    if older:  # checkpoints of older versions hold no times, and serve all the same
        content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        del content["epoch_waits"], content["epoch_durations"]
        torch.save(content, tmp_path / "checkpoint.pt")
    run(task)
    (line,) = (json.loads(text) for text in (tmp_path / "history.jsonl").read_text().splitlines())
    assert older or line["seconds"] > 0.5
    assert older or line["wait_share"] * line["seconds"] > 0.5


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(tmp_path) -> None:
    task = replace(make_task(tmp_path / "b"), checkpoint_interval_s=0.0)
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(task, StopAt(tracker, 5))
    last = tmp_path / "b" / "checkpoint.pt"
    last.write_bytes(last.read_bytes()[:500])
    said: list[str] = []
    with SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, say=said.append)
    assert len(said) == 1
    assert "checkpoint.pt is damaged" in said[0]
    assert "the one of step" in said[0]
    run(make_task(tmp_path / "a"))
    first, second = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_give_the_same_bits(tmp_path) -> None:
    here = Path(__file__)
    call = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as t, torch, pathlib; torch.set_num_threads(2); t.run(t.make_task(pathlib.Path(sys.argv[1])))"
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", call, str(tmp_path / name)], check=True)
    weights = [(tmp_path / name / "final.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_another_training_is_not_used_and_that_is_said(tmp_path) -> None:
    run(make_task(tmp_path))
    assert load_checkpoint(tmp_path / "checkpoint.pt", key="other") is None
    said: list[str] = []
    with SilentReporter().track("training", 1) as tracker:
        train_fold(replace(make_task(tmp_path), key="other"), tracker, say=said.append)
    (line,) = said
    assert "is of another training" in line
    assert line.endswith("the fold starts anew")


def test_plan_and_cases_that_do_not_go_together_are_refused_before_the_first_step(tmp_path) -> None:
    task = make_task(tmp_path)
    two_channels = replace(task.training_cases[1], image=np.zeros((2, 20, 24, 20), np.float32))
    renamed = replace(task.training_cases[0], locations={"sphere": task.training_cases[0].locations["ball"]})
    network = task.configuration.network.model_copy(update={"num_outputs": 7})
    wrong = replace(
        training_with(task, configuration="2d"),
        training_cases=[renamed, two_channels],
        configuration=task.configuration.model_copy(update={"network": network}),
        case_ids=["a", "b"],
    )
    with pytest.raises(AutosegError) as raised:
        run(wrong)
    text = str(raised.value)
    for line in (
        "the network has 7 outputs, but channels and labels of the plan need 3",
        "the schedule's training is one of 2d",
        "case a: the preprocessed labels show sphere",
        "case b: the preprocessed image has 2 channels, but the plan has 1",
    ):
        assert line in text
    with pytest.raises(AutosegError, match="no case trains"):
        run(replace(task, training_cases=[]))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))
    torch.save({"key": "key", "step": Evil()}, tmp_path / "zipped.pt")
    for name in ("checkpoint.pt", "zipped.pt"):
        with pytest.raises(AutosegError, match="delete it"):
            load_checkpoint(tmp_path / name, key="key")
    assert not marker.exists()


def test_a_truncated_checkpoint_is_named(tmp_path) -> None:
    run(make_task(tmp_path))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AutosegError, match=r"checkpoint\.pt.*delete it"):
        load_checkpoint(path, key="key")


@pytest.mark.parametrize("take", [lambda: torch.empty(10**15, dtype=torch.uint8), lambda: bytearray(2**62)])
def test_a_checkpoint_is_not_called_damaged_where_memory_is_too_little(tmp_path, monkeypatch, take) -> None:
    """The errors are the allocators' own: no test fills memory."""
    (tmp_path / "checkpoint.pt").touch()
    monkeypatch.setattr(torch, "load", lambda *given, **named: take())
    with pytest.raises((RuntimeError, MemoryError)):
        load_latest(tmp_path / "checkpoint.pt", key="key")


def test_a_loss_that_is_no_number_ends_the_training_with_a_remedy(tmp_path) -> None:
    task = make_task(tmp_path)
    for case in task.training_cases:
        case.image[:] = np.nan
    with pytest.raises(AutosegError, match="loss became nan at step 1"):
        run(task)


@pytest.mark.parametrize(("steps", "steps_per_epoch"), [(12, 1), (12, 2), (2, 2), (1, 1)])
def test_a_training_without_one_good_step_never_ends_well(tmp_path, steps: int, steps_per_epoch: int) -> None:
    """Epochs of short schedules are shorter than a row of skips, and the shortest trainings are, too."""
    task = replace(
        make_task(tmp_path, steps=steps),
        training_cases=[broken_case(0)],
        case_ids=["shape_0"],
        checkpoint_interval_s=0.0,
    )
    task = training_with(task, steps_per_epoch=steps_per_epoch)
    for _ in range(2):  # a second call goes on from the checkpoint, and ends no better
        with pytest.raises(AutosegError, match=r"at step 1\b.*Look for extreme intensities"):
            run(task)
    assert not (tmp_path / "final.safetensors").exists()


def test_a_failed_training_leaves_its_record_and_goes_on_from_its_checkpoint(tmp_path) -> None:
    undisturbed, task = (make_task(tmp_path / name, steps=12) for name in ("a", "b"))
    asked = iter([False, False, False, True])
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, should_stop=lambda: next(asked))
    with pytest.raises(
        AutosegError, match=r"at step 5, and in 6 steps up to step 10.*learning\.json and history\.jsonl"
    ):
        run(replace(task, training_cases=[broken_case(i) for i in range(4)]))
    assert [line["skipped"] for line in history_of(task)] == [0, 2, 3]
    assert learning_of(task).skipped_steps == (4, 5, 6, 7, 8, 9)
    assert [remark.kind for remark in learning_of(task).remarks] == ["not_finite", "restart"]
    checkpoint = load_checkpoint(tmp_path / "b" / "checkpoint.pt", key="key")
    assert checkpoint is not None
    assert checkpoint.step == 4
    run(task)
    run(undisturbed)
    assert history_of(task) == history_of(undisturbed)
    assert learning_of(task) == learning_of(undisturbed)
    one, two = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


@dataclass(frozen=True)
class StoredCase:
    """A case whose image lies in a file; beside a file ``kill``, processes that read it for another one are killed."""

    path: Path
    labels: np.ndarray
    locations: dict[str, np.ndarray]

    @property
    def image(self) -> object:
        if get_worker_info() is not None and self.path.with_name("kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return open_array(self.path)


def store_case(path: Path) -> StoredCase:
    case = make_case(0)
    blosc2.asarray(case.image, urlpath=str(path))
    return StoredCase(path, case.labels, case.locations)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_case_that_cannot_be_read_is_named_and_costs_no_step(tmp_path, num_workers: int) -> None:
    """Whoever reads, the message is that of the stored case, without a traceback, and what was learnt is saved."""
    whole, hidden = tmp_path / "case.b2nd", tmp_path / "hidden"
    made = replace(make_task(tmp_path, steps=12), training_cases=[store_case(whole)], num_workers=num_workers)
    undisturbed, task = (replace(made, folder=tmp_path / name) for name in "ab")
    steps: list[int] = []

    def hide_after_two_steps() -> bool:
        steps.append(len(steps))
        if len(steps) == 2:
            whole.rename(hidden)
        return False

    with pytest.raises(AutosegError) as raised, SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, should_stop=hide_after_two_steps)
    assert str(raised.value).startswith(f"{whole}: could not be read (")
    assert "Traceback" not in str(raised.value)
    checkpoint = load_checkpoint(tmp_path / "b" / "checkpoint.pt", key="key")
    assert checkpoint is not None
    assert checkpoint.step == len(steps)  # two, and what processes had read ahead
    hidden.rename(whole)
    run(task)
    run(undisturbed)
    one, two = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_killed_process_that_reads_is_an_error_with_a_remedy(tmp_path) -> None:
    task = replace(make_task(tmp_path, steps=2), training_cases=[store_case(tmp_path / "case.b2nd")], num_workers=1)
    (tmp_path / "kill").touch()
    with pytest.raises(
        AutosegError, match=r"3d_fullres, fold 0: a process that reads patches was ended.*--workers 1.*goes on"
    ):
        run(task)
    (tmp_path / "kill").unlink()
    run(task)
    assert (tmp_path / "final.safetensors").exists()


def test_class_counts_are_those_of_a_hand_count() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0] = 5.0  # the first row is predicted as class 1, the rest as background
    target = torch.tensor([[[1, 2], [1, 0]]])
    hits, predicted, present = class_counts(logits, target, LABELS).tolist()
    assert hits == [1, 0]
    assert predicted == [2, 0]
    assert present == [2, 1]


def broken_case(seed: int) -> MadeCase:
    """A case without a single finite voxel, as no preprocessing leaves it."""
    case = make_case(seed)
    case.image[:] = np.nan
    return case


def training_with(task: FoldSpec, **changes: object) -> FoldSpec:
    return replace(task, training=task.training.model_copy(update=changes))


def learning_of(task: FoldSpec) -> Learning:
    return load_document(Learning, task.folder / "learning.json")


def one_broken_of(count: int, folder: Path, *, steps: int, **changes: object) -> tuple[FoldSpec, list[int]]:
    """A task with one broken case among ``count``, and the steps whose batches hold it."""
    cases = [broken_case(0), *(make_case(i) for i in range(1, count))]
    task = training_with(replace(make_task(folder, steps=steps), training_cases=cases), **changes)
    source = batch_source(task, purpose="training")
    return task, [step for step in range(steps) if 0 in (source.choose(step, 0)[1], source.choose(step, 1)[1])]


def test_single_bad_steps_are_skipped_said_once_and_recorded(tmp_path) -> None:
    task, bad = one_broken_of(40, tmp_path, steps=30, steps_per_epoch=10)
    assert 1 <= len(bad) <= 3
    said: list[str] = []
    with SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, say=said.append)
    assert said == [
        f"3d_fullres, fold 0: the loss became nan at step {bad[0] + 1}; such steps are skipped, and the weights stay as they were"
    ]
    assert learning_of(task).skipped_steps == tuple(bad)
    assert learning_of(task).restarts == 0
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "final.safetensors").values())
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert sum(line["skipped"] for line in lines) == len(bad)


def test_repeated_bad_steps_restart_at_half_the_rate_and_resume_with_the_same_bits(tmp_path) -> None:
    def task(name: str) -> FoldSpec:
        return one_broken_of(12, tmp_path / name, steps=24, steps_per_epoch=24)[0]

    undisturbed, stopped = task("a"), replace(task("b"), checkpoint_interval_s=0.0)
    run(undisturbed)
    learning = learning_of(undisturbed)
    assert learning.restarts >= 1
    assert learning.rate_factor == 0.5**learning.restarts
    assert [remark.kind for remark in learning.remarks] == ["not_finite", *["restart"] * learning.restarts]
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(stopped, StopAt(tracker, learning.restarted_at + 1))
    run(stopped)
    assert learning_of(stopped) == learning
    first, second = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_training_that_nothing_mends_names_the_case(tmp_path) -> None:
    task, bad = one_broken_of(3, tmp_path, steps=60, steps_per_epoch=60)
    assert len(bad) > 20
    with pytest.raises(
        AutosegError, match=r"the loss became nan at step \d+, and in \d+ steps .*; case shape_0 was in each"
    ):
        run(replace(task, case_ids=[f"shape_{i}" for i in range(3)]))


def test_lost_classes_are_sampled_more_and_a_resumed_training_goes_on_so(tmp_path, monkeypatch) -> None:
    """A network that hardly moves, and limits that call chance hits lost: both classes are."""
    monkeypatch.setattr(health, "LEAST_STEPS", 6)
    monkeypatch.setattr(health, "FOUND_DICE", 0.5)

    def task(name: str) -> FoldSpec:
        return training_with(make_task(tmp_path / name, steps=16), steps_per_epoch=2, peak_learning_rate=1e-7)

    undisturbed, stopped = task("a"), replace(task("b"), checkpoint_interval_s=0.0)
    run(undisturbed)
    learning = learning_of(undisturbed)
    assert learning.sought == ("ball", "box")
    assert [remark.about for remark in learning.remarks if remark.kind == "never_found"] == ["ball", "box"]
    (first,) = {remark.step for remark in learning.remarks if remark.kind == "lost_class"}
    with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
        train_fold(stopped, StopAt(tracker, first + 3))
    run(stopped)
    assert learning_of(stopped) == learning
    one, two = (load_file(tmp_path / name / "final.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_more_patches_hold_a_class_that_is_sought_and_the_others_stay_as_they_were(tmp_path) -> None:
    task = make_task(tmp_path)
    task = replace(task, training_cases=[task.training_cases[0], *map(without_box, task.training_cases[1:])])
    plain, seeking = (batch_source(task, purpose="training", sought=sought) for sought in ((), ("box",)))
    assert dict(seeking.sought) == {"box": (0,)}
    draws = [(seeking.choose(step, i), plain.choose(step, i)) for step in range(300) for i in range(2)]
    changed = [found for found, before in draws if found[2] is not None]
    assert all(number == 0 for _, number, _ in changed)
    assert abs(len(changed) / len(draws) - 1 / 3) < 0.08  # four standard deviations of 600 draws
    assert all(found[1] == before[1] for found, before in draws if found[2] is None)
    crop = next(seeking.sample(step, 0) for step in range(300) if seeking.choose(step, 0)[2] is not None)
    assert (crop.labels == 2).any()


def test_a_class_of_few_cases_is_drawn_as_often_as_the_others(tmp_path) -> None:
    """Of ten cases one shows the box: half of the forced samples are centred on it, the rest is as it was."""
    task = replace(make_task(tmp_path), training_cases=[make_case(i) for i in range(10)])
    plain = batch_source(task, purpose="training")
    assert not plain.scarce
    one, few = ([without_box(case) if i >= n else case for i, case in enumerate(task.training_cases)] for n in (1, 2))
    assert not batch_source(replace(task, training_cases=few), purpose="training").scarce  # a fifth
    assert not batch_source(replace(task, training_cases=one), purpose="validation").scarce
    source = batch_source(replace(task, training_cases=one), purpose="training")
    assert (dict(source.scarce), source.num_classes) == ({"box": (0,)}, 2)
    draws = [(source.choose(step, i), plain.choose(step, i), i) for step in range(400) for i in range(2)]
    changed = [(found, i) for found, _, i in draws if found[2] is not None]
    assert all((found[1:], i) == ((0, "box"), 1) for found, i in changed)  # the second sample of each batch is forced
    assert abs(len(changed) / 400 - 1 / 2) < 0.1  # four standard deviations
    assert all(found[1] == before[1] for found, before, _ in draws if found[2] is None)
    step = next(step for step in range(400) if source.choose(step, 1)[2] is not None)
    assert (source.sample(step, 1).labels == 2).any()
    again = batch_source(replace(task, training_cases=one), purpose="training")
    assert torch.equal(again.sample(step, 1).image, source.sample(step, 1).image)


def without_box(case: MadeCase) -> MadeCase:
    return replace(case, locations={**case.locations, "box": np.zeros((0, 3), np.int32)})


def test_a_training_that_starves_for_memory_on_the_way_goes_on_in_pieces(tmp_path, monkeypatch) -> None:
    """The error is the allocator's own: whole batches ask it for a petabyte from step 3 on."""
    make_loss, calls = tasks.make_loss, []

    def hungry(*given: object):
        loss = make_loss(*given)

        def compute(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            calls.append(len(target))
            if len(target) > 1 and len(calls) > 4:
                torch.empty(10**15, dtype=torch.uint8)
            return loss(logits, target)

        return compute

    monkeypatch.setattr(tasks, "make_loss", hungry)
    task, said = training_with(make_task(tmp_path / "a"), validation_batches=0), []
    with SilentReporter().track("training", 1) as tracker:
        train_fold(task, tracker, say=said.append)
    assert len(said) == 1
    assert "memory is not enough for a batch of 2 samples at once; 1 at a time are computed" in said[0]
    assert learning_of(task).micro_batch_size == 1
    monkeypatch.setattr(tasks, "make_loss", make_loss)
    whole = training_with(make_task(tmp_path / "b"), validation_batches=0)
    run(whole)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / n / "history.jsonl").read_text().splitlines()] for n in "ab"
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # the same training, but float32 sums in another order


def test_too_little_memory_for_a_single_sample_is_refused_before_the_first_step(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trial, "free_memory_bytes", lambda: 1_000_000)
    with pytest.raises(AutosegError, match=r"GB of memory for a single sample, but 0\.0 GB are free.*--memory-gb"):
        run(make_task(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_batch_that_takes_more_than_its_samples_do_one_by_one_is_what_is_said_not_to_fit(
    tmp_path, monkeypatch
) -> None:
    """As a schedule from a file may ask for."""
    monkeypatch.setattr(trial, "free_memory_bytes", lambda: 10**10)
    monkeypatch.setattr(trial, "survives_step", lambda *given: False)
    task = training_with(make_task(tmp_path), batch_size=10**7)
    with pytest.raises(
        AutosegError,
        match=r"takes about \d{4,}\.\d GB of memory for a batch of 10000000 samples, but 10\.0 GB.*--schedule",
    ):
        run(task)
    small = training_with(make_task(tmp_path), batch_size=2)
    with pytest.raises(
        AutosegError, match=r"for a single sample, which could not be had although 10\.0 GB are free now"
    ):
        run(small)


def test_a_batch_that_does_not_fit_into_free_memory_is_computed_in_pieces(tmp_path, monkeypatch) -> None:
    task = training_with(make_task(tmp_path, steps=2), batch_size=6)
    third = trial.needed_bytes(task.configuration, task.training, 2)
    monkeypatch.setattr(trial, "free_memory_bytes", lambda: third)
    run(task)
    assert learning_of(task).micro_batch_size == 2


def test_memory_that_runs_out_beside_a_step_is_an_error_to_read(tmp_path, monkeypatch) -> None:
    """Again the allocator's own error, here while validation patches are looked at."""
    monkeypatch.setattr(fold, "look", lambda *given, **named: torch.empty(10**15, dtype=torch.uint8))
    with pytest.raises(
        AutosegError, match="3d_fullres, fold 0: memory ran out while patches were prepared or looked at"
    ):
        run(make_task(tmp_path))


def test_pieces_in_bfloat16_point_the_way_of_the_whole_batch(tmp_path) -> None:
    """Steps of bfloat16 are 2**-8: sums of a few hundred values in another order may differ by a percent."""
    task = training_with(make_task(tmp_path), precision="bfloat16", batch_size=4)
    crops = batch_source(task, purpose="training")[0]
    images, labels = finish(crops, batch_source(task, purpose="training").recipe, task.device)
    directions = []
    for size, separable in ((4, True), (1, True), (1, False)):
        parts = replace(make_fold_parts(task), separable=separable)
        parts.network.train()
        compute_gradient(parts, images, labels, size)
        gradient = torch.cat([p.grad.flatten() for p in parts.network.parameters() if p.grad is not None])
        directions.append(gradient / gradient.norm())
    for direction in directions[1:]:
        assert float(direction @ directions[0]) > 0.99


@pytest.mark.parametrize("spared", [0, 5])
def test_memory_that_only_an_attempt_shows_to_be_too_little_is_met_by_pieces(
    tmp_path, monkeypatch, spared: int
) -> None:
    """Pieces of more than 16 samples ask torch for more memory than any machine has: from the trial on, or only later."""
    compute, calls = loop.run_network, []

    def greedy(network, images, precision):
        calls.append(len(images))
        if len(images) > 16 and len(calls) > spared:
            torch.empty(1 << 60, dtype=torch.uint8)
        return compute(network, images, precision)

    monkeypatch.setattr(loop, "run_network", greedy)
    run(training_with(make_task(tmp_path, steps=4), batch_size=64, validation_batches=0))
    learning = learning_of(make_task(tmp_path))
    assert learning.batch_size == 64
    assert learning.micro_batch_size == 16
    assert {remark.kind for remark in learning.remarks} == {"memory"}
    assert learning.remarks[-1].about == "16 at a time"
    assert (tmp_path / "final.safetensors").exists()


def test_memory_that_is_kept_changes_no_bit() -> None:
    plan = make_plan()
    configuration = plan.configuration("3d_fullres")
    training = trial_training(configuration, base_features=4, batch_size=1, precision="float32")
    image = torch.rand((1, 1, 128, 128, 128), generator=torch.Generator().manual_seed(0))
    assert 4 * image.numel() * 4 >= MMAP_THRESHOLD_BYTES  # so that the first maps would be given back
    weights = []
    for held in (0.0, float("inf")):
        network = make_network(configuration, training, seed=1)
        parts = make_parts(network, make_loss(configuration.loss, plan.labels), training, torch.device("cpu"))
        with kept_heap(parts.device, lambda held=held: held):
            for _ in range(2):
                train_step(parts, image, (image[:, 0] > 0.5).long(), 1e-3)
        weights.append(torch.cat([tensor.flatten() for tensor in network.state_dict().values()]))
    assert torch.equal(*weights)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of its own doing
def test_a_compiler_that_fails_is_said_once_and_steps_run_without_it(tmp_path, monkeypatch) -> None:
    for name in ("CXX", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    task = make_task(tmp_path / "compiled", steps=3)
    with inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        run(replace(task, training=task.training.model_copy(update={"compiled": True})))
    run(make_task(tmp_path / "plain", steps=3))
    (remark,) = learning_of(replace(task, folder=tmp_path / "compiled")).remarks
    assert remark.kind == "compiling"
    assert "torch.compile does not work here (" in str(remark)
    assert "compiler" in str(remark).lower().split("(")[1]
    weights = [load_file(tmp_path / name / "final.safetensors") for name in ("compiled", "plain")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_steps_are_tried_in_pieces_that_memory_allows(tmp_path, monkeypatch) -> None:
    """Neither before the first step, where memory is too little, nor later, where only the checkpoint knows of it."""
    compute, pieces, free = loop.run_network, [], trial.free_memory_bytes()

    def measured(network, images, precision):
        pieces.append(len(images))
        return compute(network, images, precision)

    monkeypatch.setattr(loop, "run_network", measured)
    for name in ("CXX", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    task = training_with(make_task(tmp_path / "fold", steps=2), compiled=True, batch_size=6, validation_batches=0)
    third = trial.needed_bytes(task.configuration, task.training, 2)
    asked = iter([True])
    with inductor_config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        monkeypatch.setattr(trial, "free_memory_bytes", lambda: 1000)
        with pytest.raises(AutosegError, match="for a single sample"):
            run(task)
        assert not pieces
        monkeypatch.setattr(trial, "free_memory_bytes", lambda: third)
        with pytest.raises(KeyboardInterrupt), SilentReporter().track("training", 1) as tracker:
            train_fold(task, tracker, should_stop=lambda: next(asked))
        assert set(pieces) == {2}
        pieces.clear()
        monkeypatch.setattr(trial, "free_memory_bytes", lambda: free)
        run(task)
        assert set(pieces) == {2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_steps_learn_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    task = make_task(tmp_path / "compiled", steps=3)
    run(replace(task, training=task.training.model_copy(update={"compiled": True})))
    run(make_task(tmp_path / "plain", steps=3))
    assert not learning_of(task).remarks
    losses = [
        json.loads((tmp_path / name / "history.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("compiled", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # sums in another order, three steps long
