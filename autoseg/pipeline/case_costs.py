"""Times what a case costs beside training: the network over all its windows, export and scoring, reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from autoseg.data.dataset import Case
from autoseg.evaluation.scoring import reference_labels, score_cases
from autoseg.imaging.readers import read_image, write_label_map
from autoseg.inference.export import labels_from_logits
from autoseg.inference.sliding_window import count_windows
from autoseg.inference.validation import prediction_path
from autoseg.networks.build import build_network
from autoseg.pipeline.bench import Bench
from autoseg.preprocessing.prepare import prepare_image
from autoseg.preprocessing.store import open_case
from autoseg.storage.atomic import temporary_folder
from autoseg.training.loop import run_network
from autoseg.training.trial import kept_heap_for
from planners import Configuration, Training, with_width

SAMPLED_CASES = 25
"""Cases whose sizes stand for all."""
TIMED_SCORES = 50_000_000
"""Voxels times classes that are resampled to time the export; cost is linear in both."""


def measure_network(bench: Bench, configuration: Configuration, training: Training) -> float:
    """Seconds that one network takes for a case of mean size, from timed windows."""
    device = bench.options.device
    network = build_network(with_width(configuration.network, training.base_features)).to(device).eval()
    window = torch.zeros((1, configuration.network.num_inputs, *configuration.patch_shape), device=device)

    def run() -> None:
        with torch.inference_mode():
            run_network(network, window, training.precision)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    with kept_heap_for(configuration, training, device):
        durations = [seconds(run)]
        if durations[0] < bench.longest_s / 4:
            durations = [seconds(run) for _ in range(3)]
    windows = fmean(count_windows(shape, configuration.patch_shape) for shape in stored_shapes(bench, configuration))
    return median(durations) * windows


def measure_export(bench: Bench, configuration: Configuration) -> float:
    """Seconds to bring logits of a case of median size to the image's grid, to write and to score its label map."""
    case = median_case(bench, configuration)
    stored = open_case(bench.options.run.preprocessed(configuration.data), case.case_id)
    labels = bench.plan.labels
    voxels = int(np.prod(stored.labels.shape))
    needed = configuration.network.num_outputs
    timed = needed if labels.has_regions else min(needed, max(2, TIMED_SCORES // voxels))
    logits = np.zeros((timed, *stored.labels.shape), dtype=np.float32)
    resampling_s = seconds(lambda: labels_from_logits(logits, stored.placement, configuration, labels))
    reference = reference_labels(bench.dataset, case.case_id)

    def write_and_score(folder: Path) -> None:
        path = prediction_path(folder, case.case_id, bench.dataset)
        write_label_map(path, reference.array, reference.geometry)
        score_cases(bench.dataset, [(case.case_id, path)])

    with temporary_folder(bench.options.run.root / "export") as folder:
        return resampling_s * needed / timed + seconds(lambda: write_and_score(folder))


def measure_preparation(bench: Bench, configuration: Configuration) -> float:
    """Seconds to read and preprocess an image of median size; 0 where there are no test images to prepare."""
    if not bench.dataset.test:
        return 0.0
    paths = median_case(bench, configuration).image_paths
    return seconds(lambda: prepare_image(read_image(paths), bench.plan, configuration))


def seconds(action: Callable[[], object]) -> float:
    """How long ``action`` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def sampled_cases(bench: Bench) -> Sequence[Case]:
    """At most `SAMPLED_CASES`, evenly spread."""
    every = -(-len(bench.cases) // SAMPLED_CASES)
    return bench.cases[::every]


def stored_shapes(bench: Bench, configuration: Configuration) -> list[tuple[int, ...]]:
    """Shapes of preprocessed cases in voxels."""
    folder = bench.options.run.preprocessed(configuration.data)
    return [tuple(open_case(folder, case.case_id).labels.shape) for case in sampled_cases(bench)]


def median_case(bench: Bench, configuration: Configuration) -> Case:
    """The sampled case of median number of voxels."""
    shapes = stored_shapes(bench, configuration)
    ranked = sorted(
        zip(shapes, sampled_cases(bench), strict=True), key=lambda pair: (np.prod(pair[0]), pair[1].case_id)
    )
    return ranked[len(ranked) // 2][1]
