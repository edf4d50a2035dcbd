"""What the checks of a GPU are made on: a device, and made-up plans, cases and folds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.compute.device import fast_precision
from autoseg.data.phantom import make_phantom_case
from autoseg.imaging.orientation import canonical_orientation, to_canonical
from autoseg.preprocessing.prepare import class_locations
from autoseg.training.fold_spec import FoldSpec, batch_source
from autoseg.training.sampling import Batch, finish
from planners import (
    CaseSize,
    Configuration,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Plan,
    Training,
    plan_dataset,
    trial_training,
)

Found = tuple[dict[str, Any], list[str]]
"""Figures of a check, and what is wrong."""
GB = 1e9
CAP_GB, CONTEXT_GB = 8.0, 0.6
"""What the usual plan is made for, and what of it a driver keeps for itself."""
LEAST_COSINE, LEAST_COSINE_FLOAT32 = 0.99, 0.9999
"""Of each parameter's gradient in the fast precision and in float32 with that of a CPU in float32."""
MARGIN = 1.4
"""Volumes are so much longer than the patch on every axis."""
BLOCK = 8
"""Edge of the blocks of one label, in voxels: classes of the size of small organs."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What checks are made on."""

    device: torch.device
    small: bool
    folder: Path
    """For files of this check."""

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        return fast_precision(self.device)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, action: Callable[[], object], times: int) -> float:
        """Seconds of each of so many calls, after one that is not counted."""
        action()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            action()
        self.wait()
        return (time.perf_counter() - started) / times


@dataclass(frozen=True, slots=True)
class MadeCase:
    """A preprocessed case in memory."""

    image: NDArray[np.float32]
    labels: NDArray[np.int16]
    locations: dict[str, NDArray[np.int32]]


def make_plan(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *, channels: int = 1, classes: int = 2
) -> Plan:
    """The plan of twenty such cases."""
    values = range(1, classes + 1)
    statistics = {"mean": 0.0, "median": 0.0, "std": 1.0, "minimum": -3.0, "maximum": 3.0}
    intensities = IntensityStatistics(**statistics, percentile_00_5=-2.0, percentile_99_5=2.0)
    cases = tuple(CaseSize(case_id=str(i), shape=shape, spacing_mm=spacing_mm) for i in range(20))
    return plan_dataset(
        Fingerprint(
            dataset_name="made",
            cases=cases,
            num_training_cases=len(cases),
            channels=tuple(f"MRI {i}" for i in range(channels)),
            labels=Labels(classes=tuple(LabelClass(name=f"class {value}", values=(value,)) for value in values)),
            intensities=(intensities,) * channels,
            median_relative_size_after_cropping=1.0,
        )
    )


def made_plans(bench: Bench) -> dict[str, tuple[Plan, Configuration]]:
    """A large isotropic one, like that of liver or torso, an anisotropic one of two channels, and slices."""
    if bench.small:
        plan, flat = make_plan((20, 24, 20), (1.0,) * 3), make_plan((8, 40, 40), (4.0, 1.0, 1.0), channels=2)
    else:
        plan = make_plan((300, 300, 300), (1.0,) * 3, classes=14)
        flat = make_plan((20, 320, 320), (3.6, 0.6, 0.6), channels=2)
    return {
        "isotropic": (plan, plan.configuration("3d_fullres")),
        "anisotropic": (flat, flat.configuration("3d_fullres")),
        "2d": (plan, plan.configuration("2d")),
    }


def make_case(plan: Plan, configuration: Configuration, seed: int) -> MadeCase:
    """Noise in blocks of random labels, on the configuration's grid."""
    rng, patch = np.random.default_rng(seed), configuration.patch_shape
    shape = tuple(math.ceil(MARGIN * n) for n in ((8, *patch) if len(patch) == 2 else patch))
    values = [value for label in plan.labels.classes for value in label.values]
    blocks = rng.choice([0, *values], [math.ceil(n / BLOCK) for n in shape])
    labels = np.kron(blocks, np.ones((BLOCK,) * 3, np.int16))[tuple(slice(n) for n in shape)].astype(np.int16)
    image = rng.standard_normal((len(configuration.normalization), *shape), dtype=np.float32) + labels
    return MadeCase(image.astype(np.float32), labels, class_locations(labels, plan.labels))


def make_phantom(number: int, labels: Labels, *, small: bool) -> MadeCase:
    """A case of the demo, standardised, in canonical axes; ``small``: its middle."""
    image, label_map, geometry = make_phantom_case(seed=0, number=number)
    orientation = canonical_orientation(geometry)
    image, found = to_canonical(image, orientation), to_canonical(label_map[None], orientation)[0].astype(np.int16)
    if small:
        middle = tuple(slice(n // 2 - 8, n // 2 + 8) for n in found.shape)
        image, found = image[(slice(None), *middle)], found[middle]
    image = (image - image.mean()) / image.std()
    return MadeCase(image, found, class_locations(found, labels))


def method_training(bench: Bench, configuration: Configuration, precision: str = "", **changes: Any) -> Training:
    """nnU-Net's own: width and batch of the plan under momentum, all heads."""
    features, batch_size = (4, 2) if bench.small else (configuration.network.features[0], configuration.batch_size)
    precision = precision or bench.precision
    trial = trial_training(configuration, base_features=features, batch_size=batch_size, precision=precision)
    method = {
        "optimiser": "sgd",
        "momentum": 0.99,
        "deep_supervision": configuration.deep_supervision,
        "mirroring": True,
    }
    return trial.model_copy(update={**method, **changes})


def make_spec(bench: Bench, plan: Plan, configuration: Configuration, training: Training) -> FoldSpec:
    """A fold of two made cases."""
    cases = [make_case(plan, configuration, seed) for seed in range(2)]
    return FoldSpec(
        plan=plan, configuration=configuration, training=training, fold=0, seed=0, training_cases=cases,
        validation_cases=cases[:1], folder=bench.folder, key="made", device=bench.device,
    )  # fmt: skip


def draw_batch(spec: FoldSpec) -> Batch:
    """The first batch of a fold, on its device."""
    source = batch_source(spec, purpose="training")
    return finish(source[0], source.recipe, spec.device)


def cosine(one: Tensor, other: Tensor) -> float:
    """0 where either is 0 or not finite."""
    product = float((one * other).sum() / (one.norm() * other.norm()))
    return product if math.isfinite(product) else 0.0
