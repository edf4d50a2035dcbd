"""Checks of whole trainings: learning and resuming, a large prediction, folds side by side, a budget."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from autoseg import api
from autoseg.compute.executor import available_cores
from autoseg.data.dataset import DatasetDescription
from autoseg.data.phantom import make_phantom_dataset
from autoseg.imaging.image import Geometry, Image
from autoseg.inference.model import Member, Model
from autoseg.inference.predictor import Predictor
from autoseg.networks.build import place
from autoseg.networks.weights import read_weights
from autoseg.run_folder import RunFolder
from autoseg.tracking.callbacks import Callback, StepRecord
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec, make_network
from autoseg.training.preflight import num_readers
from gpu_checks.made import (
    CAP_GB,
    CONTEXT_GB,
    GB,
    Bench,
    Found,
    cosine,
    made_plans,
    make_phantom,
    make_plan,
    make_spec,
    method_training,
)
from planners import (
    trial_training,
)

LEAST_DICE = 0.6
"""Of a phantom that was not seen, after the short training."""


def phantom_spec(bench: Bench, steps: int, fold: int = 0) -> FoldSpec:
    """A training on phantoms, with the network of their plan."""
    plan = make_plan((16, 16, 16) if bench.small else (48, 48, 48), (1.0,) * 3)
    configuration = plan.configuration("3d_fullres")
    changes = {"num_steps": steps, "steps_per_epoch": max(1, steps // 2), "warmup_steps": 0, "validation_batches": 2}
    features, size = (4, 2) if bench.small else (configuration.network.features[0], configuration.batch_size)
    trial = trial_training(configuration, base_features=features, batch_size=size, precision=bench.precision)
    training = trial.model_copy(update=changes)
    count = 2 if bench.small else 8
    cases = [make_phantom(number, plan.labels, small=bench.small) for number in range(count + 1)]
    folder = bench.folder / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    return FoldSpec(
        plan=plan, configuration=configuration, training=training, fold=fold, seed=0, training_cases=cases[:count],
        validation_cases=cases[count:], folder=folder, key=f"phantoms {steps}", device=bench.device,
        num_workers=num_readers(configuration, training, bench.device, available_cores()),
    )  # fmt: skip


@dataclass
class StopAfter(Callback):
    """An interruption after some steps."""

    left: int

    def on_step(self, step: StepRecord) -> None:
        self.left -= 1

    def is_due(self) -> bool:
        return self.left <= 0


def check_training(bench: Bench) -> Found:
    """A fold of phantoms, interrupted and resumed: losses, Dice of a case that was not seen, and the same training in one go."""
    steps = 4 if bench.small else 400
    started = time.perf_counter()
    spec = phantom_spec(bench, steps)
    stop = StopAfter(steps // 2)
    try:
        train_fold(spec, (stop,), should_stop=stop.is_due)
    except KeyboardInterrupt:
        train_fold(spec)
    spent = time.perf_counter() - started
    history = [json.loads(line) for line in (spec.folder / "history.jsonl").read_text().splitlines()]
    losses = [epoch["loss"] for epoch in history]
    weights = read_weights(spec.folder / "final.safetensors")
    dice = dice_of(bench, spec, weights)
    faults = [] if stop.left <= 0 and history[-1]["step"] == steps else ["the training did not end"]
    if None in losses or not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        faults.append(f"losses of the epochs: {losses}")
    if not bench.small and dice < LEAST_DICE:
        faults.append(f"Dice {dice:.3f} of a phantom that was not seen")
    whole = phantom_spec(replace(bench, folder=bench.folder / "whole"), steps)
    train_fold(whole)
    others = read_weights(whole.folder / "final.safetensors")
    apart = cosine(
        *(torch.cat([each[name].flatten().float() for name in sorted(weights)]) for each in (weights, others))
    )
    if not bench.on_gpu and apart < 1 - 1e-6:  # sums on a GPU come in any order
        faults.append(f"weights of a resumed training have the cosine {apart:.4f} with those of one in one go")
    return {"seconds": spent, "losses": losses, "dice": dice, "cosine_of_resumed": apart}, faults


def make_predictor(spec: FoldSpec, network: nn.Module, device: torch.device) -> Predictor:
    dataset = DatasetDescription(
        name="made", root=str(spec.folder), layout="made", channels=tuple(spec.plan.channels), labels=spec.plan.labels,
        file_values=(0, *(label.values[0] for label in spec.plan.labels.classes)), file_ending=".nii.gz", training=(),
    )  # fmt: skip
    member = Member(configuration=spec.configuration, training=spec.training, networks=(place(network, device).eval(),))
    return Predictor(model=Model(dataset=dataset, plan=spec.plan, members=(member,), device=device, key=""))


def dice_of(bench: Bench, spec: FoldSpec, weights: dict[str, Tensor]) -> float:
    """Mean of the classes of the validation case, as the product predicts it."""
    network = make_network(spec.configuration, spec.training, seed=None)
    network.load_state_dict(weights)
    case = spec.validation_cases[0]
    image = Image(array=np.asarray(case.image), geometry=Geometry(shape=case.labels.shape, spacing_mm=(1.0,) * 3))
    labels = make_predictor(spec, network, bench.device).predict_read(image).labels
    pairs = [(labels == value, case.labels == value) for value in spec.plan.labels.values]
    return float(np.mean([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in pairs]))


def check_prediction(bench: Bench) -> Found:
    """A small image on device and CPU, and a large one on the device under 8 GB."""
    plan, configuration = made_plans(replace(bench, small=True))["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration, "float32", mirroring=True))
    rng = np.random.default_rng(0)
    small = Image(array=rng.standard_normal((1, 22, 30, 26)).astype(np.float32),
                  geometry=Geometry(shape=(22, 30, 26), spacing_mm=(1.0, 0.8, 0.8)))  # fmt: skip
    maps = []
    for device in (torch.device("cpu"), bench.device):
        network = make_network(configuration, spec.training, seed=1)
        maps.append(make_predictor(spec, network, device).predict_read(small).labels)
    apart = float((maps[0] != maps[1]).mean())
    faults = (
        [] if apart < 0.01 and len(np.unique(maps[0])) > 1 else [f"{apart:.2%} of the voxels differ from the CPU's"]
    )
    plan, configuration = made_plans(bench)["isotropic"]
    spec = make_spec(bench, plan, configuration, method_training(bench, configuration, mirroring=False))
    shape = (30, 40, 40) if bench.small else (400, 512, 512)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
        total = torch.cuda.get_device_properties(bench.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (CAP_GB - CONTEXT_GB) * GB / total), bench.device)
    image = Image(
        array=rng.standard_normal((1, *shape), dtype=np.float32),
        geometry=Geometry(shape=shape, spacing_mm=(1.0, 0.8, 0.8)),
    )
    predictor = make_predictor(spec, make_network(configuration, spec.training, seed=1), bench.device)
    started = time.perf_counter()
    labels = predictor.predict_read(image).labels
    figures = {"voxels_apart": apart, "large": {"shape": shape, "seconds": time.perf_counter() - started}}
    if bench.on_gpu:
        figures["large"]["peak_gb"] = torch.cuda.max_memory_reserved(bench.device) / GB
    return figures, [*faults, *([] if labels.shape == shape else [f"the large label map is {labels.shape}"])]


def check_folds(bench: Bench) -> Found:
    """Two folds at once, each on a device of its own, against one alone."""
    devices = (
        [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if bench.on_gpu else [bench.device] * 2
    )
    if len(devices) < 2:
        return {"skipped": "there is one device"}, []
    steps = 2 if bench.small else 150

    times = []
    for numbers in ((2,), (0, 1)):
        context, started = multiprocessing.get_context("spawn" if bench.on_gpu else "fork"), time.perf_counter()
        given = [(number, devices[number % 2]) for number in numbers]
        running = [context.Process(target=run_fold, args=(bench, steps, *each)) for each in given]
        for each in running:
            each.start()
        for each in running:
            each.join()
        times.append(time.perf_counter() - started)
    done = [(bench.folder / f"fold_{number}" / "final.safetensors").exists() for number in range(3)]
    faults = [] if all(done) else [f"folds that ended: {done}"]
    if bench.on_gpu and times[1] > 1.5 * times[0]:
        faults.append(f"two folds take {times[1]:.0f} s, one {times[0]:.0f} s")
    return {"one_s": times[0], "two_s": times[1]}, faults


def run_fold(bench: Bench, steps: int, number: int, device: torch.device) -> None:
    torch.set_num_threads(1)
    train_fold(phantom_spec(replace(bench, device=device), steps, number))


def check_run(bench: Bench) -> Found:
    """The product as it is called: the demo's phantoms with a budget, which must be kept, and scores that are no accident."""
    data, budget_s = bench.folder / "data", 20 if bench.small else 90
    make_phantom_dataset(data, num_training=4 if bench.small else 10, num_test=1)
    started = time.perf_counter()
    run = api.run(
        data, bench.folder / "run", budget=f"{budget_s}s", device=str(bench.device), folds=2, anyway=bench.small
    )
    spent = time.perf_counter() - started
    folder = RunFolder(bench.folder / "run")
    selection = json.loads(folder.selection.read_text())
    figures = {"budget_s": budget_s, "seconds": spent, "selection": {name: selection[name] for name in ("members", "folds")},
               "dice": selection.get("dice_after_postprocessing"), "device": str(run.device)}  # fmt: skip
    faults = [] if [*folder.predictions.glob("*.nii.gz")] else ["there is no prediction"]
    if not bench.small and spent > 1.1 * budget_s + 15:  # the report and the first use of a device are no part of it
        faults.append(f"took {spent:.0f} s of {budget_s} s")
    if not bench.small and (figures["dice"] or 0) < LEAST_DICE:
        faults.append(f"Dice {figures['dice']}")
    return figures, faults
