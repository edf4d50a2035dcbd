"""The Dice that coarse voxels leave: balls brought to a grid twice as coarse and back, by their width in coarse voxels.

    python benchmarks/coarse_voxels.py

`hard`: labels on the coarse grid, as a network learns them. `soft`: the share of each coarse voxel, as the best probabilities would be. Both go back
linearly and are cut at one half. Forty balls of each width at random places.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import zoom

FACTOR = 2
FINER = 3
"""Samples along each axis of a fine voxel."""


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def back(coarse: np.ndarray) -> np.ndarray:
    """On the fine grid, cut at one half."""
    return np.asarray(zoom(coarse.astype(float), FACTOR, order=1, grid_mode=True, mode="nearest") >= 0.5)


def ceilings(width: float, random: np.random.Generator) -> tuple[float, float]:
    """Dice of one ball, `hard` and `soft`; ``width`` in coarse voxels."""
    size = 2 * FACTOR * (int(width / 2 * 1.6) + 3)
    z, y, x = (((np.arange(size * FINER) + 0.5) / FINER - size / 2 - shift) ** 2 for shift in random.uniform(-1, 1, 3))
    inside = z[:, None, None] + y[None, :, None] + x[None, None, :] < (FACTOR * width / 2) ** 2
    fine = inside.reshape((size, FINER) * 3).mean((1, 3, 5)) >= 0.5
    share = fine.reshape((size // FACTOR, FACTOR) * 3).mean((1, 3, 5))
    return dice(back(share >= 0.5), fine), dice(back(share), fine)


def main() -> None:
    random = np.random.default_rng(0)
    print("| coarse voxels across | hard | soft |\n|---|---|---|")
    for width in (2, 3, 4, 6, 8, 12, 16):
        hard, soft = np.mean([ceilings(width, random) for _ in range(40)], axis=0)
        print(f"| {width} | {hard:.3f} | {soft:.3f} |")


if __name__ == "__main__":
    main()
