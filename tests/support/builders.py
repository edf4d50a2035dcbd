"""What several tests build: a phantom dataset, a schedule of a few steps, a run of it, a reporter that listens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK

from autoseg import api
from autoseg.data.phantom import make_phantom_dataset
from autoseg.pipeline import run_all, run_stages
from autoseg.run_folder import RunFolder
from autoseg.stages.begin import begin_run
from autoseg.stages.run import Run
from autoseg.storage.atomic import save_document
from autoseg.tracking.progress import SilentReporter
from planners import Conditions, Measurement, Plan, Schedule, plan_schedule

CPU = {"device": "cpu", "threads": 1, "workers": 1}
"""One thread: tests run at once, and last digits depend on the number of threads."""
CPU_WORDS = ("--device", "cpu", "--threads", "1", "--workers", "1")


class Listening(SilentReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.say(f"Warning: {text}")

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


class Impatient(SilentReporter):
    """Presses Ctrl-C when a certain line comes."""

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning

    def say(self, text: str) -> None:
        if text.startswith(self.beginning):
            raise KeyboardInterrupt


def make_phantom(folder: Path, *, training: int = 4, test: int = 0, seed: int = 0) -> Path:
    """A phantom dataset inside ``folder``."""
    dataset = folder / "Task99_Phantom"
    make_phantom_dataset(dataset, num_training=training, num_test=test, seed=seed)
    return dataset


def crop_images(dataset: Path, size: int) -> None:
    """Leave the middle of every volume, so many voxels a side: 2D networks predict slice by slice."""
    for path in sorted(dataset.glob("*/[!.]*.nii.gz")):
        image = SimpleITK.ReadImage(path)
        starts = [(whole - size) // 2 for whole in image.GetSize()]
        SimpleITK.WriteImage(SimpleITK.RegionOfInterest(image, [size] * 3, starts), path)


def short_schedule(plan: Plan, *, num_folds: int = 2, steps: int = 2, cases: int = 4) -> Schedule:
    """A narrow 2D network for a few steps."""
    measured = Measurement(
        configuration="2d", base_features=4, batch_size=2, precision="float32", step_s=1.0, case_s=0.1
    )
    conditions = Conditions(
        device="cpu", num_threads=1, budget_s=600, elapsed_s=1.0, num_folds=num_folds, num_training_cases=cases,
        num_test_cases=1, cross_validated=num_folds > 1, measurements=(measured,), seed=0,
    )  # fmt: skip
    schedule = plan_schedule(plan, conditions)
    short = {"num_steps": steps, "steps_per_epoch": 1, "warmup_steps": 0, "validation_batches": 1}
    trainings = tuple(training.model_copy(update=short) for training in schedule.trainings)
    return schedule.model_copy(update={"trainings": trainings, "num_folds": num_folds})


def begin(target: Path, out: Path | None = None, wishes: Mapping[str, Any] | None = None, **context: Any) -> Run:
    """A run on one core that listens; ``context`` as of `begin_run`."""
    return begin_run(
        target, out, {**CPU, **(wishes or {})}, **{"reporter": Listening(), "needs_device": True, **context}
    )


def said(run: Run) -> str:
    """All that a run said."""
    assert isinstance(run.reporter, Listening)
    return run.reporter.text


@dataclass(frozen=True)
class Job:
    """A run in ``root``, which follows a short schedule."""

    dataset: Path
    schedule: Path
    root: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root)

    def call(self, last: str = "predict", *, dataset: Path | None = None, **given: Any) -> Run:
        """Bring the run up to date as far as ``last``; ``given`` are options, or ``redo``, ``replan``, ``configuration``, ``fold``.

        Without the report, which takes longer than all the rest, unless it is asked for; then it is the whole run.
        """
        context = {
            name: given.pop(name) for name in ("redo", "replan", "configuration", "fold", "reporter") if name in given
        }
        target, out = (self.root, None) if dataset is None else (dataset, self.root)
        run = begin(target, out, given, **context)
        return run_all(run) if last == "report" else run_stages(run, last)

    def weights(self) -> dict[Path, int]:
        """When each weights file was written."""
        return {path: path.stat().st_mtime_ns for path in self.folder.models.rglob("final.safetensors")}

    def results(self) -> dict[Path, bytes]:
        """Documents, weights and predictions."""
        documents = {path: path.read_bytes() for path in self.root.glob("*.json") if path != self.folder.record}
        return documents | contents(self.folder.models, "*.safetensors") | contents(self.folder.predictions, "*.nii.gz")


def write_short_schedule(dataset: Path, folder: Path, **changes: Any) -> Path:
    """``schedule.json`` in ``folder`` for a run of a dataset, which is planned there for it."""
    plan = api.plan(dataset, folder / "planned", **CPU).plan
    save_document(folder / "schedule.json", short_schedule(plan, **changes))
    return folder / "schedule.json"


def contents(folder: Path, *patterns: str) -> dict[Path, bytes]:
    """Bytes of all files below a folder, or of those that match one of the patterns."""
    return {path: path.read_bytes() for each in patterns or ("*",) for path in folder.rglob(each) if path.is_file()}
