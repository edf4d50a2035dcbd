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

from autoseg.execution.device import set_threads
from autoseg.inference.model import Member, load_network
from autoseg.inference.validation import ValidationTask, prediction_path, validate_fold
from autoseg.pipeline.measuring import make_bench, time_steps
from autoseg.pipeline.options import Options
from autoseg.pipeline.scoring import score_cases
from autoseg.pipeline.splitting import splits_stage
from autoseg.pipeline.stages import preprocess_stage
from autoseg.preparation.storage import open_case
from autoseg.progress import SilentReporter
from autoseg.run_folder import RunFolder
from autoseg.training.fold import train_fold
from autoseg.training.task import FoldTask
from planners import Measurement, budgeted_training, trial_training


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
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--try", dest="trials", nargs="+", action="append", required=True)
    options = parser.parse_args(arguments)
    trials = []
    for title, *settings in options.trials:
        pairs = dict(entry.split("=", 1) for entry in settings)
        trials.append(Trial(title, {key: _value(value) for key, value in pairs.items()}))
    return options, trials


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    arguments, trials = parse(sys.argv[1:])
    set_threads(arguments.threads)
    options = Options(
        dataset=arguments.dataset,
        run=RunFolder(arguments.work),
        device_name="cpu",
        num_threads=arguments.threads,
        num_workers=arguments.threads,
        reporter=SilentReporter(),
        seed=arguments.seed,
    )
    dataset, plan = preprocess_stage(options, choose=lambda planned: planned.chain(arguments.configuration))
    split = splits_stage(options, dataset, arguments.folds).folds[arguments.fold]
    configuration = plan.configuration(arguments.configuration)
    folder = options.run.preprocessed(configuration.data)
    bench = make_bench(options, dataset, plan)
    for number, pilot in enumerate(trials):
        settings = dict(pilot.settings)
        precision = settings.pop("precision", "bfloat16")
        width = settings.pop("base_features", 16)
        batch = settings.pop("batch_size", 2 if configuration.dimensions == 3 else 12)
        trial = trial_training(configuration, base_features=width, batch_size=batch, precision=precision)
        step_s = time_steps(bench, configuration, trial, longest_s=10)
        measured = Measurement(
            configuration=configuration.name, base_features=width, batch_size=batch, precision=precision, step_s=step_s, case_s=1
        )
        steps = settings.pop("num_steps", arguments.steps or int(arguments.seconds / measured.step_s))
        training = budgeted_training(configuration, measured, steps, mirroring=False).model_copy(update=settings)
        target = arguments.work / "pilots" / str(number)
        task = FoldTask(
            plan=plan,
            configuration=configuration,
            training=training,
            fold=arguments.fold,
            seed=arguments.seed,
            training_cases=[open_case(folder, case_id) for case_id in split.train],
            validation_cases=[open_case(folder, case_id) for case_id in split.val],
            folder=target,
            key=f"{time.time()}",
            device=options.device,
        )
        started = time.perf_counter()
        with SilentReporter().track("pilot", steps) as tracker:
            train_fold(task, tracker)
        trained = time.perf_counter() - started
        network = load_network(target / "final.safetensors", configuration, training, device=options.device)
        validation = ValidationTask(
            dataset=dataset,
            labels=plan.labels,
            member=Member(configuration=configuration, training=training, networks=(network,)),
            preprocessed=folder,
            case_ids=split.val,
            folder=target / "validation",
            key=task.key,
            keep_probabilities=False,
            device=options.device,
        )
        with SilentReporter().track("validation", len(split.val)) as tracker:
            validate_fold(validation, tracker)
        paths = [(case_id, prediction_path(validation.folder, case_id, dataset)) for case_id in split.val]
        scores = [mean.dice or 0.0 for mean in score_cases(dataset, paths).mean.values()]
        row = f"{pilot.title:32s} {steps:5d} steps {trained:6.0f} s  mean Dice {fmean(scores):.4f}  "
        row += f"({measured.step_s:.3f} s a step) "
        sys.stdout.write(row + " ".join(f"{score:.3f}" for score in scores) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
