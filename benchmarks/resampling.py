"""Resampling by axis operators beside scikit-image, in one run: time, memory, largest difference.

    python benchmarks/resampling.py [--shape 150 512 512] [--label-shape 75 256 256] [--classes 30] [--out FILE.json]

The reference way is what method section 4.4 describes: ``skimage.transform.resize`` of every channel or class in double
precision, slice by slice where the coarse axis goes on its own. Both use the same threads (set OMP_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from autoseg.imaging.resampling import resample_image, resample_labels
from planners import Resampling

SPACING_MM = (2.5, 0.8, 0.8)
TARGETS_MM = ((1.0, 0.8, 0.8), (2.5, 1.0, 1.0))
IMAGE = Resampling(order=3, order_z=0)
LABELS = Resampling(order=1, order_z=0)
CLEAR = 1e-5
"""Voxels whose two best label scores differ by more must get the same label."""


def new_shape(shape: tuple[int, ...], target_mm: tuple[float, ...]) -> tuple[int, int, int]:
    z, y, x = (round(old / new * n) for n, old, new in zip(shape, SPACING_MM, target_mm, strict=True))
    return z, y, x


def reference(array: np.ndarray, shape: tuple[int, ...], order: int, separate_axis: int | None) -> np.ndarray:
    """The method's resampling of one channel, separate along axis 0 or not at all."""
    array = array.astype(np.float64)
    if separate_axis is None:
        return resize(array, shape, order, mode="edge", anti_aliasing=False, clip=True)
    slices = np.stack(
        [resize(one, shape[1:], order, mode="edge", anti_aliasing=False, clip=True) for one in array]
        if shape[1:] != array.shape[1:]
        else list(array)
    )
    if shape[0] == len(slices):
        return slices
    z = (np.arange(shape[0]) + 0.5) * len(slices) / shape[0] - 0.5
    positions = np.stack(np.meshgrid(z, *(np.arange(n) for n in shape[1:]), indexing="ij"))
    return map_coordinates(slices, positions, order=0, mode="nearest")


def made_labels(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    """Ellipsoids at random places, later ones over earlier ones."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape, np.int16)
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    for value in range(1, classes + 1):
        centre, radius = rng.uniform(0.1, 0.9, 3) * shape, rng.uniform(0.05, 0.16, 3) * shape
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
        labels[distance < 1] = value
    return labels


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_bytes(work: Callable[[], np.ndarray]) -> int:
    """Largest amount that ``work`` holds at once, its result included; not timed, for tracing slows."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def compare_image(shape: tuple[int, int, int], target: tuple[int, int, int], axis: int | None) -> dict[str, Any]:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)

    def ours() -> np.ndarray:
        return resample_image(image, target, resampling=IMAGE, separate_axis=axis)

    ours()  # first touch of memory and libraries
    mine, seconds = timed(ours)
    theirs, reference_seconds = timed(lambda: reference(image[0], target, IMAGE.order, axis))
    return {
        "what": "image, order 3",
        "difference": float(np.abs(mine[0] - theirs).max() / np.ptp(image)),
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "memory": peak_bytes(ours) / (image.nbytes + mine.nbytes) + image.nbytes / (image.nbytes + mine.nbytes),
    }


def compare_labels(
    shape: tuple[int, int, int], target: tuple[int, int, int], axis: int | None, classes: int
) -> dict[str, Any]:
    labels = made_labels(shape, classes)
    values = np.unique(labels)

    def ours() -> np.ndarray:
        return resample_labels(labels, target, resampling=LABELS, separate_axis=axis)

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        voted = target if axis is None else (shape[0], *target[1:])
        best, second = np.full((2, *voted), -np.inf, np.float32)
        winner = np.zeros(voted, np.int16)
        for value in values:
            scores = reference(labels == value, voted, LABELS.order, axis).astype(np.float32)
            better = scores > best
            second = np.where(better, best, np.maximum(second, scores))
            winner[better] = value
            best = np.maximum(best, scores)
        if axis is None:
            return winner, best - second
        # slices are voted on, the label map is then sampled along the axis; the margins go along for the comparison
        return tuple(reference(one, target, 0, axis) for one in (winner, best - second))

    ours()
    mine, seconds = timed(ours)
    start = time.perf_counter()
    winner, margin = theirs()
    reference_seconds = time.perf_counter() - start
    clear = margin > CLEAR
    return {
        "what": f"label map, {classes} classes",
        "difference": int((mine != winner)[clear].sum()),
        "seconds": seconds,
        "reference_seconds": reference_seconds,
        "memory": (peak_bytes(ours) + labels.nbytes) / (labels.nbytes + mine.nbytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(150, 512, 512))
    parser.add_argument("--label-shape", type=int, nargs=3, default=(75, 256, 256))
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for target_mm in TARGETS_MM:
        for axis in (None, 0):
            for is_image in (True, False):
                shape = tuple(arguments.shape if is_image else arguments.label_shape)
                target = new_shape(shape, target_mm)
                row = (
                    compare_image(shape, target, axis)
                    if is_image
                    else compare_labels(shape, target, axis, arguments.classes)
                )
                row = {"shape": shape, "new_shape": target, "separate_z": axis is not None, **row}
                row["times_faster"] = row["reference_seconds"] / row["seconds"]
                rows.append(row)
                sys.stdout.write(
                    f"{row['what']}, {shape} to {target}, separate z {row['separate_z']}: {row['seconds']:.2f} s against "
                    f"{row['reference_seconds']:.2f} s, {row['times_faster']:.1f} times; difference {row['difference']:.2g}; "
                    f"memory {row['memory']:.2f} times input and output\n"
                )
                sys.stdout.flush()
    result = {
        "date": date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
