"""Put made faults into copies of real datasets, one case each, and count what the check finds, misses and blames wrongly.

    python benchmarks/faults.py --real-data ../shared/data --trials 3

Each trial copies a dataset, breaks one case drawn at random, and runs the check. Found: an error or a warning that names
the case and was not there before. A false alarm is such a finding on any other case.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.data.checks import check_dataset
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_image, read_label_map, write_image, write_label_map
from autoseg.issues import Issue
from autoseg.tracking.progress import SilentReporter

DATASETS = {"Task04_Hippocampus": 24, "ms_flair_thick": None, "ms_multichannel_thick": None}
"""Folders, and how many of their cases are used."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case to break: its files in the copy, and another case."""

    case: Case
    other: Case
    rng: np.random.Generator

    @property
    def image(self) -> Path:
        return Path(self.case.images[int(self.rng.integers(len(self.case.images)))])

    @property
    def label(self) -> Path:
        return Path(self.case.label or "")


Fault = Callable[[Trial], object]


def change_image(change: Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]) -> Fault:
    def apply(trial: Trial) -> None:
        path = trial.image
        volume = read_image([path])
        write_image(path, change(volume.array[0].astype(np.float32), trial.rng), volume.geometry)

    return apply


def change_label(change: Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]) -> Fault:
    def apply(trial: Trial) -> None:
        found = read_label_map(trial.label)
        write_label_map(trial.label, np.ascontiguousarray(change(found.array, trial.rng)), found.geometry)

    return apply


def one_nan(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    array = array.copy()
    array[tuple(int(rng.integers(size)) for size in array.shape)] = np.nan
    return array


def shifted(part: float) -> Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]:
    def change(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        axis = 1 + int(rng.integers(2))
        moved = np.zeros_like(array)
        step = max(1, round(part * array.shape[axis]))
        source, target = [slice(None)] * 3, [slice(None)] * 3
        source[axis], target[axis] = slice(0, -step), slice(step, None)
        moved[tuple(target)] = array[tuple(source)]
        return moved

    return change


def half(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    array, axis = array.copy(), int(rng.integers(3))
    middle = int(np.median(np.nonzero(array)[axis]))
    where: list[slice] = [slice(None)] * 3
    where[axis] = slice(0, middle) if rng.integers(2) else slice(middle, None)
    array[tuple(where)] = 0
    return array


def fitted(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Cut or padded at the end to another shape."""
    result = np.zeros(shape, array.dtype)
    common = tuple(slice(0, min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    result[common] = array[common]
    return result


def foreign_label(trial: Trial) -> None:
    """The label map of a case that is not there otherwise, on the grid of this one."""
    found, other = read_label_map(trial.label), read_label_map(Path(trial.other.label or ""))
    write_label_map(trial.label, fitted(other.array, found.array.shape), found.geometry)
    remove(trial.other)


def copied_label(trial: Trial) -> None:
    found, other = read_label_map(trial.label), read_label_map(Path(trial.other.label or ""))
    if found.array.shape != other.array.shape:  # then the other's image comes along, on its grid
        for own, image in zip(trial.case.images, trial.other.images, strict=True):
            volume = read_image([image])
            noise = trial.rng.normal(0, float(volume.array.std()), volume.array[0].shape)
            write_image(Path(own), volume.array[0][::-1] + noise, volume.geometry)
    write_label_map(trial.label, other.array, other.geometry)


def duplicate(trial: Trial) -> None:
    for own, image in zip(
        (*trial.case.images, trial.label), (*trial.other.images, trial.other.label or ""), strict=True
    ):
        volume = read_image([image])
        write_image(Path(own), volume.array[0], volume.geometry)


def remove(case: Case) -> None:
    for path in (*case.images, case.label or ""):
        Path(path).unlink()


def with_spacing(trial: Trial, geometry: Callable[[Geometry], Geometry], *, label_only: bool = False) -> None:
    for path in trial.case.images if not label_only else ():
        volume = read_image([path])
        write_image(Path(path), volume.array[0], geometry(volume.geometry))
    found = read_label_map(trial.label)
    write_label_map(trial.label, found.array, geometry(found.geometry))


def in_metres(geometry: Geometry) -> Geometry:
    z, y, x = (mm / 1000 for mm in geometry.spacing_mm)
    return geometry.model_copy(update={"spacing_mm": (z, y, x)})


def resampled_label(trial: Trial) -> None:
    found = read_label_map(trial.label)
    z, y, x = found.geometry.spacing_mm
    array = found.array[:, ::2, ::2]
    shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
    grid = found.geometry.model_copy(update={"shape": shape, "spacing_mm": (z, 2 * y, 2 * x)})
    write_label_map(trial.label, np.ascontiguousarray(array), grid)


def swapped_channels(trial: Trial) -> None:
    first, second = (Path(path) for path in trial.rng.choice(trial.case.images, 2, replace=False))
    first.rename(first.with_name("swap.tmp"))
    second.rename(first)
    first.with_name("swap.tmp").rename(second)


def greys(trial: Trial) -> None:
    found, volume = read_label_map(trial.label), read_image([trial.case.images[0]])
    low, high = np.percentile(volume.array[0], (1, 99))
    grey = np.clip((volume.array[0] - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    write_label_map(trial.label, grey, found.geometry)


def truncated(trial: Trial) -> None:
    path = trial.image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS: dict[str, Fault] = {
    "truncated image": truncated,
    "image without label map": lambda trial: trial.label.unlink(),
    "one NaN voxel": change_image(one_nan),
    "constant image": change_image(lambda array, _: np.full_like(array, 7)),
    "intensities x 1000": change_image(lambda array, _: array * 1000),
    "channels swapped": swapped_channels,
    "spacing in metres": lambda trial: with_spacing(trial, in_metres),
    "label map resampled": resampled_label,
    "label map on another origin": lambda trial: with_spacing(
        trial, lambda g: g.model_copy(update={"origin_mm": (g.origin_mm[0] + 5, *g.origin_mm[1:])}), label_only=True
    ),
    "label map of greys": greys,
    "undeclared value": change_label(lambda array, _: np.where(array == 1, 9, array).astype(np.uint8)),
    "empty label map": change_label(lambda array, _: np.zeros_like(array)),
    "half of the label map": change_label(half),
    "flipped, head to foot": change_label(lambda array, _: array[::-1]),
    "flipped, front to back": change_label(lambda array, _: array[:, ::-1]),
    "flipped, left to right": change_label(lambda array, _: array[:, :, ::-1]),
    "shifted by 8 % of the image": change_label(shifted(0.08)),
    "shifted by 15 % of the image": change_label(shifted(0.15)),
    "label map of a missing case": foreign_label,
    "label map of another case": copied_label,
    "case twice": duplicate,
}


def copy_dataset(source: Path, target: Path, keep: int | None) -> None:
    """A copy with the first ``keep`` cases (None: all); files can be written."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / path.relative_to(source))
    if keep is not None:
        for case in discover_dataset(target).training[keep:]:
            remove(case)


def alarms(dataset: DatasetDescription) -> list[Issue]:
    found = check_dataset(dataset, num_workers=1, reporter=SilentReporter())
    return [finding for finding in found if finding.severity != "note" and finding.case is not None]


def try_fault(
    clean: Path, fault: Fault, known: set[tuple[str | None, str]], rng: np.random.Generator
) -> tuple[list[Issue], int]:
    """Findings on the broken case, and the number of new ones on others."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / clean.name
        shutil.copytree(clean, copy)
        cases = discover_dataset(copy).training
        own, other = (cases[int(index)] for index in rng.choice(len(cases), 2, replace=False))
        fault(Trial(own, other, rng))
        new = [f for f in alarms(discover_dataset(copy)) if (f.case, f.code) not in known]
    named = [f for f in new if own.case_id in (f.case or "") or own.case_id in f.message]
    return named, len({f.case for f in new if f not in named})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real-data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(DATASETS))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS))
    arguments = parser.parse_args()
    started = time.perf_counter()
    sys.stdout.write("| dataset | fault | found (as errors) | false alarms |\n|---|---|---|---|\n")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            clean = Path(folder) / name
            copy_dataset(arguments.real_data / name, clean, DATASETS[name])
            dataset = discover_dataset(clean)
            before = alarms(dataset)
            sys.stdout.write(f"| {name} | none ({len(dataset.training)} cases) | | {len(before)} |\n")
            known = {(f.case, f.code) for f in before}
            for title in arguments.faults:
                if title == "channels swapped" and len(dataset.training[0].images) < 2:
                    continue
                rng = np.random.default_rng(len(title))
                results = [try_fault(clean, FAULTS[title], known, rng) for _ in range(arguments.trials)]
                found = sum(bool(named) for named, _ in results)
                errors = sum(any(f.severity == "error" for f in named) for named, _ in results)
                wrong = sum(others for _, others in results)
                sys.stdout.write(f"| {name} | {title} | {found}/{arguments.trials} ({errors}) | {wrong} |\n")
                sys.stdout.flush()
    sys.stdout.write(f"\n{time.perf_counter() - started:.0f} s, {os.cpu_count()} cores shared with other work.\n")


if __name__ == "__main__":
    main()
