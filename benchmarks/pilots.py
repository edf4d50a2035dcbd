"""Single-fold pilots for the schedule's rules: train one fold for a stated time with changed settings, score its cases.

    python benchmarks/pilots.py DATASET --work DIR --seconds 120 --fold 0 \\
        --try "sgd 0.02 w16" optimiser=sgd peak_learning_rate=0.02 base_features=16 \\
        --try "adamw" optimiser=adamw peak_learning_rate=0.001

Each line of the table is one training; steps follow from the time and the step time measured at its start, or are given
(``--steps``, which also compares fairly while the machine does other work). Settings are fields of the schedule's
`Training`. Steps are timed with the data pipeline, as in a real run. ``--folds 2`` trains on half of the cases and scores
the other half: less noise from few cases.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import autoseg
from autoseg.compute.device import set_threads
from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Split
from autoseg.evaluation.scoring import score_cases
from autoseg.inference.model import Member, Model, load_network
from autoseg.inference.predict import predict_stored
from autoseg.inference.predictions import prediction_path
from autoseg.inference.predictor import StoredImage
from autoseg.preprocessing.store import open_case
from autoseg.stages.folds import find_splits
from autoseg.stages.run import Run
from autoseg.stages.trials import make_bench, settled_mean, time_steps
from autoseg.tracking.progress import FoldProgress, SilentReporter
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.preflight import kept_heap_for
from planners import Configuration, Measurement, Plan, Training, budgeted_training, trial_training


@dataclass(frozen=True)
class Trial:
    title: str
    settings: dict[str, object]


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[Trial]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--steps", type=int, help="steps of each training, instead of --seconds")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--try", dest="trials", nargs="+", action="append", required=True)
    parsed = parser.parse_args(arguments)
    trials = []
    for title, *settings in parsed.trials:
        pairs = dict(entry.split("=", 1) for entry in settings)
        trials.append(Trial(title, {key: _value(value) for key, value in pairs.items()}))
    return parsed, trials


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What all trials train and are scored on."""

    run: Run
    dataset: DatasetDescription
    plan: Plan
    configuration: Configuration
    split: Split
    number: int

    @property
    def preprocessed(self) -> Path:
        return self.run.folder.preprocessed(self.configuration.data)


def prepare(arguments: argparse.Namespace) -> Fold:
    """Everything before training, done once."""
    run = autoseg.preprocess(
        arguments.dataset,
        arguments.work,
        device="cpu",
        threads=arguments.threads,
        workers=arguments.threads,
        seed=arguments.seed,
        preset=arguments.preset,
        configurations=arguments.configuration,
    )
    return Fold(
        run=run,
        dataset=run.dataset,
        plan=run.plan,
        configuration=run.plan.configuration(arguments.configuration),
        split=find_splits(run.settings, run.dataset, arguments.folds).folds[arguments.fold],
        number=arguments.fold,
    )


def schedule(fold: Fold, trial: Trial, *, steps: int | None, seconds: float) -> tuple[Training, float]:
    """The training of a trial and its seconds a step."""
    settings, configuration = dict(trial.settings), fold.configuration
    precision: Any = settings.pop("precision", "bfloat16")
    width: Any = settings.pop("base_features", 16)
    batch: Any = settings.pop("batch_size", 2 if configuration.dimensions == 3 else 12)
    timed = trial_training(configuration, base_features=width, batch_size=batch, precision=precision)
    bench = make_bench(fold.run, fold.dataset, fold.plan)
    with kept_heap_for(configuration, timed, fold.run.device):
        step_s = settled_mean(time_steps(bench, configuration, timed, longest_s=10))
    measured = Measurement(
        configuration=configuration.name,
        base_features=width,
        batch_size=batch,
        precision=precision,
        step_s=step_s,
        case_s=1,
    )
    count: Any = settings.pop("num_steps", steps or int(seconds / step_s))
    return budgeted_training(configuration, measured, count, mirroring=False).model_copy(update=settings), step_s


def train(fold: Fold, training: Training, folder: Path) -> str:
    """Train into ``folder``; returns the key of the weights."""
    task = FoldSpec(
        plan=fold.plan,
        configuration=fold.configuration,
        training=training,
        fold=fold.number,
        seed=fold.run.settings.seed,
        training_cases=[open_case(fold.preprocessed, case_id) for case_id in fold.split.train],
        validation_cases=[open_case(fold.preprocessed, case_id) for case_id in fold.split.val],
        folder=folder,
        key=f"{time.time()}",
        device=fold.run.device,
    )
    keeping = kept_heap_for(fold.configuration, training, fold.run.device)
    with SilentReporter().track("pilot", training.num_steps) as tracker, keeping:
        train_fold(task, (FoldProgress(tracker, print),))
    return task.key


def score(fold: Fold, training: Training, folder: Path, key: str) -> list[float]:
    """Dice of every class over the fold's validation cases."""
    network = load_network(folder / "final.safetensors", fold.configuration, training, device=fold.run.device)
    model = Model(
        dataset=fold.dataset,
        plan=fold.plan,
        members=(Member(configuration=fold.configuration, training=training, networks=(network,)),),
        device=fold.run.device,
        key=key,
    )
    images = [StoredImage(folder=fold.preprocessed, case_id=case_id) for case_id in fold.split.val]
    out, reporter = folder / "validation", SilentReporter()
    with reporter.track("validation", len(images)) as tracker:
        predict_stored(model, images, out, keep_probabilities=False, tracker=tracker, say=reporter.say)
    paths = [(case_id, prediction_path(out, case_id, fold.dataset)) for case_id in fold.split.val]
    return [mean["Dice"] or 0.0 for mean in score_cases(fold.dataset, paths).mean.values()]


def main() -> None:
    arguments, trials = parse(sys.argv[1:])
    set_threads(arguments.threads)
    fold = prepare(arguments)
    for number, trial in enumerate(trials):
        training, step_s = schedule(fold, trial, steps=arguments.steps, seconds=arguments.seconds)
        folder = arguments.work / "pilots" / str(number)
        started = time.perf_counter()
        key = train(fold, training, folder)
        trained = time.perf_counter() - started
        scores = score(fold, training, folder, key)
        row = f"{trial.title:32s} {training.num_steps:5d} steps {trained:6.0f} s  mean Dice {fmean(scores):.4f}  "
        sys.stdout.write(f"{row}({step_s:.3f} s a step) {' '.join(f'{dice:.3f}' for dice in scores)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
