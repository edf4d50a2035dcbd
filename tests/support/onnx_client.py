"""A client of exported models written from the guide alone: numpy, scipy and ONNX Runtime, nothing of autoseg.

One configuration of one stage, `argmax`, no regions, images with directions: what most models are.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]


def predict(folder: Path, image: Path) -> Array:
    """Label map (z, y, x) of a NIfTI file, in the axes of the file."""
    export = json.loads((folder / "model.json").read_text())
    plan, selection = export["model"]["plan"], export["model"]["selection"]
    (name,) = selection["members"]
    configuration = next(each for each in plan["configurations"] if each["name"] == name)
    training = next(each for each in export["model"]["trainings"] if each["configuration"] == name)
    nifti = nibabel.load(image)
    array = nifti.get_fdata(dtype=np.float32).transpose(2, 1, 0)
    order, flips, spacing = towards_spl(nifti.affine)
    array = np.flip(array.transpose(order), [i for i in range(3) if flips[i]])
    forward = plan["transpose_forward"]
    array, spacing = array.transpose(forward), [spacing[i] for i in forward]
    box = nonzero_box(array)
    cropped = array[box]
    target = configuration["spacing_mm"]
    target = [spacing[0], *target] if len(target) == 2 else target
    shape = [max(1, round(n * own / wanted)) for n, own, wanted in zip(cropped.shape, spacing, target, strict=True)]
    (rule,) = configuration["normalization"]
    network_input = resample(
        normalise(cropped, rule, plan["intensities"][0]), shape, configuration["resample_image"]["order"], clip=True
    )
    axes = configuration["mirror_axes"] if training["mirroring"] else []
    sessions = [onnxruntime.InferenceSession(folder / each["file"]) for each in export["graphs"]]
    logits = slide(network_input, configuration["patch_shape"], axes, sessions, export["windows"])
    back = [resample(each, cropped.shape, configuration["resample_logits"]["order"], clip=False) for each in logits]
    labels = np.zeros(array.shape, np.uint8)
    labels[box] = np.argmax(back, axis=0)
    for step in selection["postprocessing"]:
        keep_largest(labels, step, plan["labels"])
    labels = labels.transpose(np.argsort(forward))
    labels = np.flip(labels, [i for i in range(3) if flips[i]]).transpose(np.argsort(order))
    return np.array(export["model"]["dataset"]["file_values"])[labels]


def towards_spl(affine: Array) -> tuple[tuple[int, ...], list[bool], list[float]]:
    """Axes (z, y, x) that run towards Superior, Posterior and Left, which of them are reversed, and their spacing in mm."""
    columns = affine[:3, :3][:, ::-1]  # of z, y, x
    spacing = np.linalg.norm(columns, axis=0)
    towards = (columns / spacing * np.array([[-1], [-1], [1]]))[::-1]  # RAS to superior, posterior, left
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(towards[i, p[i]]) for i in range(3)))
    return order, [bool(towards[i, order[i]] < 0) for i in range(3)], [float(spacing[axis]) for axis in order]


def nonzero_box(array: Array) -> tuple[slice, ...]:
    """Around all voxels that are not 0."""
    found = ndimage.find_objects((array != 0).astype(int))
    return found[0] if found else tuple(slice(0, n) for n in array.shape)


def normalise(array: Array, rule: dict[str, Any], statistics: dict[str, float]) -> Array:
    """A channel, float32."""
    if rule["scheme"] == "ct":
        clipped = np.clip(array, statistics["percentile_00_5"], statistics["percentile_99_5"])
        return (clipped - statistics["mean"]) / max(statistics["std"], 1e-8)
    assert rule["scheme"] == "zscore"
    assert not rule["use_mask"]
    return (array - array.mean(dtype=np.float64)) / max(float(array.std(dtype=np.float64)), 1e-8)


def resample(array: Array, shape: Any, order: int, *, clip: bool) -> Array:
    """Splines with half-pixel centres; the edge voxel goes on beyond the edge."""
    if tuple(shape) == array.shape:
        return array.astype(np.float32)
    places = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(array.shape, shape, strict=True)]
    grid = np.meshgrid(*places, indexing="ij")
    padded = np.pad(array.astype(np.float64), 24, mode="edge")
    found = ndimage.map_coordinates(padded, [each + 24 for each in grid], order=order)
    return (np.clip(found, array.min(), array.max()) if clip else found).astype(np.float32)


def slide(image: Array, patch: list[int], axes: list[int], sessions: list[Any], rule: dict[str, float]) -> Array:
    """Logits (K, a0, a1, a2), of overlapping windows, all networks and mirror images."""
    flat = len(patch) == 2
    patch = [1, *patch] if flat else patch
    missing = [max(0, p - n) for n, p in zip(image.shape, patch, strict=True)]
    padded = np.pad(image, [(m // 2, m - m // 2) for m in missing])
    weights = np.ones(())
    for size in patch[flat:]:
        impulse = np.zeros(size)
        impulse[size // 2] = 1
        weights = np.multiply.outer(weights, ndimage.gaussian_filter1d(impulse, rule["sigma"] * size, mode="constant"))
    weights = weights / weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    steps = [
        range(n) if flat and i == 0 else starts(n, p, rule["step"])
        for i, (n, p) in enumerate(zip(padded.shape, patch, strict=True))
    ]
    flips = [chosen for k in range(len(axes) + 1) for chosen in itertools.combinations(axes, k)]
    sums: Any = 0
    total = np.zeros(padded.shape)
    for corner in itertools.product(*steps):
        place = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
        window = padded[place][0] if flat else padded[place]
        mean: Any = 0
        for session, flip in itertools.product(sessions, flips):
            (found,) = session.run(["logits"], {"image": np.ascontiguousarray(np.flip(window, flip))[None, None]})
            mean = mean + np.flip(found[0], [axis + 1 for axis in flip]) / (len(sessions) * len(flips))
        if isinstance(sums, int):
            sums = np.zeros((len(mean), *padded.shape))
        sums[(slice(None), *place)] += (mean * weights)[:, None] if flat else mean * weights
        total[place] += weights
    inner = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, image.shape, strict=True))
    return (sums / total)[(slice(None), *inner)]


def starts(size: int, patch: int, step: float) -> list[int]:
    """First voxels of windows along an axis."""
    number = int(np.ceil((size - patch) / (patch * step))) + 1
    return [0] if number == 1 else [round(i * (size - patch) / (number - 1)) for i in range(number)]


def keep_largest(labels: Array, step: dict[str, Any], classes: dict[str, Any]) -> None:
    """Of some classes together, joined by faces, edges and corners; in place."""
    assert step["kind"] == "keep_largest_component"
    values = [each["values"] for each in classes["classes"] if each["name"] in step["classes"]]
    mask = np.isin(labels, list(itertools.chain(*values)))
    parts, number = ndimage.label(mask, np.ones((3, 3, 3)))
    if number:
        sizes = np.bincount(parts.ravel())[1:]
        labels[mask & (sizes[parts - 1] < sizes.max())] = 0
