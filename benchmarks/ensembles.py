"""What ensembles and averaged weights give at equal training, measured before a rule is made of it.

    python benchmarks/ensembles.py RUN --steps 930 1860 [--folds 0 1 2 3 4] [--features 16] [--seed 0] [--mirrored] [--set augmentation=false]

RUN is the folder of `autoseg preprocess`. For each number of steps and each fold the first configuration is trained, and its
weights are averaged along the way by several rules; then every configuration is trained with its share of the steps, and their
probabilities are averaged. All predict the fold's validation cases at full resolution. A row gives the mean foreground Dice over
the cases, and the paired difference to the plain training with its 95 % interval (Student t over cases). Finished folds, in
RUN/ensembles, are not trained again. ``--set`` changes a field of the training, to try an idea. Rows are appended to ``results/ensembles.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from autoseg.data.labels import to_internal
from autoseg.evaluation.metrics import dice_coefficient
from autoseg.evaluation.scoring import labelled_case, reference_labels
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import read_header
from autoseg.inference.member_output import How, MemberOutput, run_member
from autoseg.inference.model import Member
from autoseg.inference.predictor import StoredImage
from autoseg.inference.slabs import decide_together
from autoseg.networks.weights import fill_network
from autoseg.preprocessing.store import open_case
from autoseg.stages.folds import find_splits
from autoseg.stages.run import Run
from autoseg.storage.atomic import write_text
from autoseg.storage.cache import key_of
from autoseg.tracking.callbacks import Callback, StepRecord
from autoseg.training.fold import _begin, _take_steps
from autoseg.training.fold_spec import FoldSpec, make_network
from planners import Configuration, Labels, Measurement, Training
from planners.schedule.candidates import budgeted_training, preferred_configurations, short_batch_size

RESULTS = Path(__file__).resolve().parent / "results" / "ensembles.md"
MOVING = (0.01, 0.03, 0.1)
"""Time constants of exponential averages, as shares of the training."""
TAILS = (0.1, 0.2, 0.3, 0.4)
"""Last shares of the training whose weights are averaged evenly."""
Scores = dict[str, float]
"""Mean foreground Dice by case."""


@dataclass
class Averages(Callback):
    """Averages of a network's weights while it trains, by the name of the rule."""

    num_steps: int
    network: nn.Module | None = None
    sums: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def on_step(self, step: StepRecord) -> None:
        assert self.network is not None
        done, now = step.step + 1, self.network.state_dict()
        for share in MOVING:  # bias of the start: a plain mean until the time constant is reached
            self._blend(f"moving average, {share:.0%}", now, max(1 / done, 1 / (share * self.num_steps)))
        for share in TAILS:
            begun = done - round((1 - share) * self.num_steps)
            if begun > 0:
                self._blend(f"mean of the last {share:.0%}", now, 1 / begun)

    def _blend(self, name: str, now: dict[str, Tensor], weight: float) -> None:
        before = self.sums.setdefault(name, {key: value.detach().clone() for key, value in now.items()})
        for key, value in before.items():
            value.lerp_(now[key].detach(), min(1.0, weight))


@dataclass(frozen=True)
class Bench:
    """A preprocessed dataset and what all trainings share."""

    run: Run
    features: int
    seed: int
    mirrored: bool
    changes: dict[str, object]
    device = torch.device("cpu")

    def training(self, configuration: Configuration, steps: int) -> Training:
        measured = Measurement(
            configuration=configuration.name,
            base_features=self.features,
            batch_size=short_batch_size(configuration, "cpu"),
            precision="bfloat16",
            step_s=1.0,
            case_s=1.0,
        )
        training = budgeted_training(configuration, measured, steps, mirroring=self.mirrored)
        return training.model_copy(update={"averaged_share": 0.0, **self.changes})

    def train(
        self, configuration: Configuration, steps: int, fold: int
    ) -> tuple[Training, dict[str, dict[str, Tensor]]]:
        """The training, and its weights at the end and by every rule of averaging."""
        split = find_splits(self.run.settings, self.run.dataset).folds[fold]
        stored, training = self.run.folder.preprocessed(configuration.data), self.training(configuration, steps)
        spec = FoldSpec(
            plan=self.run.plan,
            configuration=configuration,
            training=training,
            fold=fold,
            seed=self.seed,
            training_cases=[open_case(stored, each) for each in split.train],
            validation_cases=[open_case(stored, each) for each in split.val],
            folder=self.run.folder.root / "ensembles" / f"{configuration.name}_{steps}_{fold}",
            key=key_of(training, fold, self.seed),
            device=self.device,
            case_ids=split.train,
        )
        averages = Averages(steps)
        run, _ = _begin(spec, (averages,), lambda: False)
        averages.network = run.parts.network
        _take_steps(run)
        return training, {"final weights": run.parts.network.state_dict(), **averages.sums}

    def outputs(
        self,
        configuration: Configuration,
        training: Training,
        weights: dict[str, Tensor],
        case_id: str,
        mirroring: bool,
    ) -> MemberOutput:
        network = make_network(configuration, training, seed=None)
        fill_network(network, weights, where="benchmark")
        member = Member(configuration=configuration, training=training, networks=(network.eval(),))
        stored = self.run.folder.preprocessed(configuration.data)
        image = StoredImage(folder=stored, case_id=case_id, made_from=open_case(stored, case_id).record.made_from)
        return run_member(member, image, self.run.plan.labels, How(device=self.device, mirroring=mirroring))

    def dice(self, predicted: np.ndarray, case_id: str) -> float:
        """Mean over the classes that occur in prediction or reference."""
        dataset, labels = self.run.dataset, self.run.plan.labels
        case = labelled_case(dataset, case_id)
        grid = read_header(case.image_paths[0]).geometry
        reference = to_internal(align_label_map(reference_labels(dataset, case_id), grid), dataset.file_values)
        return mean_dice(predicted, reference, labels)

    def fold(self, steps: int, fold: int) -> dict[str, Scores]:
        """Scores of the fold's validation cases by rule."""
        plan, cases = self.run.plan, find_splits(self.run.settings, self.run.dataset).folds[fold].val
        first, *others = [c for c in preferred_configurations(plan) if c.name in ("2d", "3d_fullres")]
        training, averaged = self.train(first, steps, fold)
        scores: dict[str, Scores] = {}
        for name, weights in averaged.items():
            for mirroring in (False, True) if self.mirrored else (False,):
                rule = f"{first.name}, {name}" + (", mirrored prediction" if mirroring else "")
                for case_id in cases:
                    output = self.outputs(first, training, weights, case_id, mirroring)
                    scores.setdefault(rule, {})[case_id] = self.dice(output.label_map(plan.labels), case_id)
        if others:
            both = [first, others[0]]
            halves = [(each, *self.train(each, steps // 2, fold)) for each in both]
            for case_id in cases:
                made = [self.outputs(c, t, w["final weights"], case_id, self.mirrored) for c, t, w in halves]
                for each, single in zip(both, made, strict=True):
                    rule = f"{each.name}, half of the steps"
                    scores.setdefault(rule, {})[case_id] = self.dice(single.label_map(plan.labels), case_id)
                joint, _ = decide_together(made, plan.labels, (), ranks=False)
                rule = " + ".join(each.name for each in both) + ", half of the steps each"
                scores.setdefault(rule, {})[case_id] = self.dice(joint, case_id)
        return scores


def mean_dice(predicted: np.ndarray, reference: np.ndarray, labels: Labels) -> float:
    """Mean Dice over the classes that one of both label maps has."""
    found = []
    for each in labels.classes:
        masks = [np.isin(array, each.values) for array in (predicted, reference)]
        counts = (int(np.count_nonzero(mask)) for mask in (masks[0] & masks[1], *masks))
        found.append(dice_coefficient(*counts))
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if known else float("nan")


def row(name: str, scores: Scores, base: Scores) -> str:
    """A line of the table."""
    values = np.array([scores[case_id] for case_id in base])
    differences = values - np.array(list(base.values()))
    values, differences = (each[~np.isnan(differences)] for each in (values, differences))  # cases without a Dice
    if not differences.any():
        return f"| {name} | {values.mean():.4f} | |"
    half = stats.t.ppf(0.975, len(values) - 1) * differences.std(ddof=1) / np.sqrt(len(values))
    return f"| {name} | {values.mean():.4f} | {differences.mean():+.4f} [{differences.mean() - half:+.4f}, {differences.mean() + half:+.4f}] |"


def main() -> None:
    """Train what is missing, and append the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirrored", action="store_true", help="train with mirroring, and predict with and without it")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=JSON", help="change fields of the training")
    arguments = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (each.partition("=") for each in arguments.set)}
    bench = Bench(Run.open(arguments.run), arguments.features, arguments.seed, arguments.mirrored, changes)
    for steps in arguments.steps:
        scores = of_folds(bench, steps, arguments.folds)
        base = next(
            iter((of_folds(replace(bench, changes={}), steps, arguments.folds) if changes else scores).values())
        )
        title = f"{bench.run.dataset.name}: {steps} steps a fold, {arguments.features} features"
        title += "".join(f", {each}" for each in ["trained with mirroring"] * arguments.mirrored + arguments.set)
        about = f"{len(base)} cases of folds {', '.join(map(str, arguments.folds))}, seed {arguments.seed}, {date.today().isoformat()}."
        against = "the final weights of the unchanged training" if changes else "the first row"
        lines = [f"## {title}", "", about, "", f"| | mean foreground Dice | difference to {against} |", "|---|---|---|"]
        lines += [row(rule, cases, base) for rule, cases in scores.items()]
        before = RESULTS.read_text() if RESULTS.exists() else "# Ensembles and averaged weights\n"
        write_text(RESULTS, before + "\n" + "\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)


def of_folds(bench: Bench, steps: int, folds: Sequence[int]) -> dict[str, Scores]:
    """Scores of the cases of all ``folds`` by rule; folds that are known are not trained again."""
    scores: dict[str, Scores] = {}
    kind = "_".join(["mirrored"] * bench.mirrored + [f"{name}={value}" for name, value in bench.changes.items()])
    for fold in folds:
        kept = bench.run.folder.root / "ensembles" / f"{steps}_{bench.features}_{bench.seed}_{kind}_{fold}.json"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            write_text(kept, json.dumps(bench.fold(steps, fold), indent=1))
        for rule, cases in json.loads(kept.read_text()).items():
            scores.setdefault(rule, {}).update(cases)
    return scores


if __name__ == "__main__":
    main()
