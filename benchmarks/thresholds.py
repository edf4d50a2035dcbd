"""What a threshold reaches on a folder: the simple baseline that a trained network has to beat.

    python benchmarks/thresholds.py DATASET [DATASET ...] [--out FILE.md]

Everything that is not background is one foreground, all channels are averaged. Two baselines, each with the better of
bright and dark foreground: Otsu's threshold of each image, and the one threshold that is best for all images together, found
by trying 256 quantiles on the very images that are scored (so it flatters the baseline). Mean Dice over images; an image
without foreground counts only where something is predicted in it, as in the method (section 9.1).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.storage.atomic import write_text

QUANTILES = 256


def mean_dice(masks: list[NDArray[np.bool_]], references: list[NDArray[np.bool_]]) -> float:
    """Mean over images; images where both are empty are left out."""
    scores = []
    for mask, reference in zip(masks, references, strict=True):
        total = int(mask.sum()) + int(reference.sum())
        if total:
            scores.append(2 * int((mask & reference).sum()) / total)
    return float(np.mean(scores)) if scores else float("nan")


def baselines(folder: Path) -> tuple[int, float, float]:
    """Number of images, mean Dice of Otsu's threshold, mean Dice of the best common threshold."""
    dataset = discover_dataset(folder)
    images, references = [], []
    for case in dataset.training:
        images.append(read_image(case.image_paths).array.mean(0))
        references.append(read_label_map(Path(case.label or "")).array != dataset.file_values[0])
    otsu = [threshold_otsu(image) if np.ptp(image) else image.flat[0] for image in images]
    per_image = max(
        mean_dice([image > cut for image, cut in zip(images, otsu, strict=True)], references),
        mean_dice([image <= cut for image, cut in zip(images, otsu, strict=True)], references),
    )
    every = max(1, sum(image.size for image in images) // 2_000_000)
    values = np.concatenate([image.ravel()[::every] for image in images])
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES)))
    common = max(
        max(
            mean_dice([image > cut for image in images], references),
            mean_dice([image <= cut for image in images], references),
        )
        for cut in cuts
    )
    return len(images), per_image, common


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = ["| dataset | images | Otsu | best common threshold |", "|---|---|---|---|"]
    for folder in arguments.datasets:
        number, per_image, common = baselines(folder)
        lines.append(f"| {folder.name} | {number} | {per_image:.3f} | {common:.3f} |")
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if arguments.out is not None:
        write_text(arguments.out, text)


if __name__ == "__main__":
    main()
