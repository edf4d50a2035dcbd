"""The method's training of preprocessed cases, cut short, fold by fold: seconds, and Dice of every class.

    autoseg preprocess DATASET --out RUN
    python benchmarks/gpu_folds.py RUN [--folds 0 1 2 3 4] [--epochs 25] [--steps 250] [--work DIR]

The run's folder is all that is read, so it can be carried to a machine without SimpleITK. Folds are those of
`autoseg run`. Each is trained with the method's schedule of that length and its validation cases are predicted with
mirroring and scored on the preprocessed grid, which for hippocampi is that of the images. A fold that is done in
``--work`` is not trained again. Results go to ``results/gpu_folds.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from autoseg.data.splits import Split, make_splits
from autoseg.inference.window_logits import WindowLogits
from autoseg.networks.weights import read_weights
from autoseg.preprocessing.store import open_case
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document
from autoseg.tracking.progress import FoldProgress, LogReporter, RunClock
from autoseg.training.fold import class_counts, train_fold
from autoseg.training.fold_spec import FoldSpec, make_network
from planners import Configuration, Plan, Training, trial_training

RESULTS = Path(__file__).resolve().parent / "results" / "gpu_folds.json"


def short_method(configuration: Configuration, *, epochs: int, steps: int, precision: str) -> Training:
    """Nesterov SGD with polynomial decay, at the plan's own width and batch, over fewer epochs."""
    trial = trial_training(
        configuration,
        base_features=configuration.network.features[0],
        batch_size=configuration.batch_size,
        precision=precision,  # type: ignore[arg-type]  # the parser checks
    )
    return trial.model_copy(
        update={
            "num_steps": epochs * steps, "steps_per_epoch": steps, "optimiser": "sgd", "peak_learning_rate": 0.01,
            "momentum": 0.99, "curve": "polynomial", "warmup_steps": 0, "validation_batches": min(50, steps),
            "deep_supervision": configuration.deep_supervision, "mirroring": bool(configuration.mirror_axes),
        }
    )  # fmt: skip


def run_fold(
    plan: Plan, training: Training, split: Split, fold: int, preprocessed: Path, arguments: argparse.Namespace
) -> dict[str, object]:
    """Train where that is not done yet, predict, score."""
    configuration = plan.configuration(training.configuration)
    device = torch.device(arguments.device)
    folder = arguments.work / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    task = FoldSpec(
        plan=plan,
        configuration=configuration,
        training=training,
        fold=fold,
        seed=arguments.seed,
        training_cases=[open_case(preprocessed, name) for name in split.train],
        validation_cases=[open_case(preprocessed, name) for name in split.val],
        folder=folder,
        key=f"gpu_folds {training.num_steps} {training.precision} {arguments.seed}",
        device=device,
        num_workers=arguments.workers,
        case_ids=split.train,
    )
    started = time.perf_counter()
    if not (folder / "final.safetensors").exists():
        with LogReporter(RunClock()).track(f"fold {fold}", training.num_steps) as tracker:
            train_fold(task, (FoldProgress(tracker, print),))
    trained = time.perf_counter()
    network = make_network(configuration, training, seed=None)
    network.load_state_dict(read_weights(folder / "final.safetensors"))
    network = network.to(device).eval()
    scores = []
    for name in split.val:
        case = open_case(preprocessed, name)
        logits = torch.from_numpy(
            WindowLogits(
                image=torch.from_numpy(np.asarray(case.image[:])),
                networks=[network],
                num_outputs=configuration.network.num_outputs,
                patch=configuration.patch_shape,
                mirror_axes=configuration.mirror_axes,
                precision=training.precision,
                device=device,
                batch_size=configuration.batch_size,
            )[:, :]
        )
        truth = torch.from_numpy(np.maximum(np.asarray(case.labels[:]), 0).astype(np.int64))
        hits, guessed, present = class_counts(logits[None], truth[None], plan.labels)
        scores.append(torch.where(guessed + present > 0, 2 * hits / (guessed + present), torch.nan))
    means = torch.stack(scores).nanmean(0).tolist()
    return {
        "training_s": round(trained - started, 1),
        "prediction_s": round(time.perf_counter() - trained, 1),
        "cases": len(split.val),
        "dice": {label.name: round(mean, 4) for label, mean in zip(plan.labels.classes, means, strict=True)},
    }


def main() -> None:
    """Train, score and keep the folds that were asked for, beside those kept before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--folds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=250, help="of an epoch")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8, help="processes that read crops")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, default=Path("gpu_folds"), help="where weights are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    plan = load_document(Plan, run.plan)
    configuration = plan.configuration(arguments.configuration)
    preprocessed = run.preprocessed(configuration.data)
    names = [path.name.removesuffix(".case.json") for path in preprocessed.glob("*.case.json")]
    names = [name for name in names if open_case(preprocessed, name).record.has_labels]
    training = short_method(
        configuration, epochs=arguments.epochs, steps=arguments.steps, precision=arguments.precision
    )
    splits = make_splits(names)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"folds": {}}
    gpu = (
        torch.cuda.get_device_name() if arguments.device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    )
    for fold in arguments.folds:
        row = run_fold(plan, training, splits.folds[fold], fold, preprocessed, arguments)
        print(fold, json.dumps(row), flush=True)
        kept["folds"][str(fold)] = {
            **row, "epochs": arguments.epochs, "steps": arguments.steps, "precision": arguments.precision,
            "hardware": gpu, "torch": torch.__version__, "date": date.today().isoformat(),
        }  # fmt: skip
        arguments.out.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
