"""What training on is worth: few cases of a new task, from a run's weights and from scratch, in as many steps.

    python benchmarks/finetuning.py RUN --work DIR --steps 40 --train 4

The new task is made from the run's own data: all its classes become one, whose output layer therefore starts fresh. Its cases
are those that the run's first fold validated, which that fold's network has not seen: ``--train`` of them train, the others
are scored (Dice of whole cases on the preprocessed grid). RUN keeps its preprocessed data and is not changed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from autoseg.data.splits import Splits
from autoseg.inference.member_output import How, open_logits
from autoseg.inference.model import Member, load_network, open_model
from autoseg.networks.weights import Transfer
from autoseg.preprocessing.store import open_case
from autoseg.run_folder import RunFolder
from autoseg.stages.pretrained import fit_weights
from autoseg.storage.atomic import load_document
from autoseg.tracking.progress import FoldProgress, SilentReporter
from autoseg.training.fold import class_counts, train_fold
from autoseg.training.fold_spec import FoldSpec
from planners import LabelClass, Labels, plan_finetuning

MERGED = Labels(classes=(LabelClass(name="all classes together", values=(1,)),))


@dataclass(frozen=True)
class MergedCase:
    """A preprocessed case whose classes are one."""

    image: np.ndarray
    labels: np.ndarray
    locations: dict[str, np.ndarray]


def merged_case(folder: Path, case_id: str) -> MergedCase:
    stored = open_case(folder, case_id)
    labels = np.asarray(stored.labels[:])
    places = np.concatenate(list(stored.locations.values()))
    return MergedCase(
        np.asarray(stored.image[:], np.float32),
        np.minimum(labels, 1).astype(np.int16),
        {MERGED.classes[0].name: places},
    )


def train_and_score(task: FoldSpec) -> float:
    """Mean Dice of the validation cases after training."""
    with SilentReporter().track("", 1) as tracker:
        train_fold(task, (FoldProgress(tracker, print),))
    network = load_network(task.folder / "final.safetensors", task.configuration, task.training, device=task.device)
    member = Member(configuration=task.configuration, training=task.training, networks=(network,))
    scores = []
    for case in task.validation_cases:
        logits = open_logits(member, np.asarray(case.image[:]), How(device=task.device))[0][:, :]
        target = torch.from_numpy(case.labels).long().clamp_min(0)
        hits, predicted, present = class_counts(
            torch.as_tensor(np.asarray(logits))[None].float(), target[None], MERGED
        )[:, 0].tolist()
        scores.append(2 * hits / (predicted + present))
    return fmean(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--train", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    files, run = open_model(arguments.run), RunFolder(arguments.run)
    about = files.description
    name = about.stages[0]
    own = about.plan.model_copy(update={"labels": MERGED, "dataset_name": "classes merged"})
    plan = plan_finetuning(own, about.plan, {name: about.training(name).base_features})
    configuration = plan.configuration(name)
    steps = {
        "num_steps": arguments.steps,
        "steps_per_epoch": max(1, arguments.steps // 4),
        "warmup_steps": arguments.steps // 10,
    }
    training = about.training(name).model_copy(update=steps)
    unseen = load_document(Splits, run.splits).folds[about.selection.folds[0]].val
    cases = [merged_case(run.preprocessed(configuration.data), case_id) for case_id in unseen]
    sys.stdout.write(f"| start | seed | steps | cases | scored | Dice |\n{'|---' * 6}|\n")
    for seed in range(arguments.seeds):
        starts: dict[str, Transfer | None] = {
            "pretrained": fit_weights(files, plan, training, fold=0, seed=seed),
            "scratch": None,
        }
        for title, weights in starts.items():
            task = FoldSpec(
                plan=plan, configuration=configuration, training=training, fold=0, seed=seed,
                training_cases=cases[: arguments.train], validation_cases=cases[arguments.train :],
                folder=arguments.work / f"{title}_{seed}_{arguments.steps}", key=title, device=torch.device("cpu"), start=weights,
            )  # fmt: skip
            dice, scored = train_and_score(task), len(cases) - arguments.train
            sys.stdout.write(f"| {title} | {seed} | {arguments.steps} | {arguments.train} | {scored} | {dice:.3f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
