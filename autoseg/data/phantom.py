"""A small synthetic dataset on which everything can be tried within minutes."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import Orientation, canonical_geometry, to_canonical
from autoseg.imaging.readers import write_image, write_label_map
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import write_error

Array = NDArray[np.float64]

SHAPE_RANGE = (40, 56)
SPACING_RANGE_MM = (0.9, 1.15)
CLASS_NAMES = ("bean", "ring")
BODY, STRUCTURE = 300.0, 480.0
"""Mean intensities of the surroundings and of both structures: only their shapes tell them apart."""


@dataclass(frozen=True, slots=True)
class _Shapes:
    """Where the structures of one case are, in mm from the middle of the volume, axes (z, y, x)."""

    bean_mm: Array
    ring_mm: Array
    bean_rotation: Array
    ring_rotation: Array
    size: float


def make_phantom_dataset(folder: Path, *, num_training: int = 12, num_test: int = 3, seed: int = 0) -> None:
    """Write a generated dataset in the Decathlon layout to ``folder``, which must not exist or be empty.

    Each volume is 40 to 56 voxels a side at about 1 mm and shows a bent ellipsoid (``bean``, 1) and a torus (``ring``, 2)
    of the same brightness in a brighter-than-air body, blurred, under a bias field, with noise. Files are stored with
    axes permuted and flipped from case to case, with the corresponding direction: in canonical orientation the bean is on
    the same side in all. ``imagesTs`` holds ``num_test`` images; their true labels are in ``labelsTs``.
    The same ``seed`` gives the same volumes, whatever the numbers of cases. The folder is written atomically. Raises
    `AutosegError` for a folder that is not empty or cannot be written, `ValueError` for less than one training case.
    """
    if num_training < 1 or num_test < 0:
        raise ValueError(f"needs at least one training case, found {num_training} training and {num_test} test cases")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "choose another folder, or empty it"
        raise AutosegError(Issue(code="output.not_empty", where=str(folder), message="is not empty", fix=fix))
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        _write_all(part, num_training, num_test, seed)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_all(folder: Path, num_training: int, num_test: int, seed: int) -> None:
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    names = [f"phantom_{number:03d}.nii.gz" for number in range(1, num_training + num_test + 1)]
    for number, name in enumerate(names):
        part = "Tr" if number < num_training else "Ts"
        image, labels, geometry = make_phantom_case(seed=seed, number=number)
        write_image(folder / f"images{part}" / name, image[0], geometry)
        write_label_map(folder / f"labels{part}" / name, labels, geometry)
    training, test = names[:num_training], names[num_training:]
    description = {
        "name": "Phantom",
        "description": "Synthetic volumes with a bean and a ring, for trying things out",
        "licence": "CC0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", **{str(value): name for value, name in enumerate(CLASS_NAMES, 1)}},
        "numTraining": num_training,
        "numTest": num_test,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in training],
        "test": [f"./imagesTs/{name}" for name in test],
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def make_phantom_case(*, seed: int, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8], Geometry]:
    """Image (1, Z, Y, X), labels (Z, Y, X) with values 0, 1, 2, and their geometry, as they are stored.

    Made in axes that run to the head, the back and the left, then reoriented to the axes of the file.
    """
    random = np.random.default_rng((seed, number))
    points, geometry = _draw_grid(random)
    labels = _draw_labels(points, _draw_shapes(random))
    image = _draw_image(points, labels, random)
    first, second, third = (int(axis) for axis in random.permutation(3))
    a, b, c = (bool(flip) for flip in random.integers(0, 2, 3))
    orientation = Orientation((first, second, third), (a, b, c))
    return (
        np.ascontiguousarray(to_canonical(image[None], orientation)),
        np.ascontiguousarray(to_canonical(labels, orientation)),
        canonical_geometry(geometry, orientation),
    )


def _draw_grid(random: np.random.Generator) -> tuple[Array, Geometry]:
    """Positions of all voxels, (3, Z, Y, X) in mm from the middle of the volume, and its geometry: identity direction."""
    z, y, x = (int(size) for size in random.integers(*SHAPE_RANGE, 3, endpoint=True))
    step_z, step_y, step_x = (round(float(step), 3) for step in random.uniform(*SPACING_RANGE_MM, 3))
    sides = ((z, step_z), (y, step_y), (x, step_x))
    lines = [(np.arange(size) - (size - 1) / 2) * step for size, step in sides]
    origin = (float(lines[2][0]), float(lines[1][0]), float(lines[0][0]))
    geometry = Geometry(shape=(z, y, x), spacing_mm=(step_z, step_y, step_x), origin_mm=origin)
    return np.stack(np.meshgrid(*lines, indexing="ij")), geometry


def _draw_shapes(random: np.random.Generator) -> _Shapes:
    return _Shapes(
        bean_mm=np.array([0.0, 0.0, -9.0]) + random.uniform(-2, 2, 3),
        ring_mm=np.array([0.0, 0.0, 9.0]) + random.uniform(-2, 2, 3),
        bean_rotation=_rotation(random.uniform(-25, 25, 3)),
        ring_rotation=_rotation(random.uniform(-25, 25, 3)),
        size=float(random.uniform(0.95, 1.15)),
    )


def _rotation(degrees: Array) -> Array:
    """Matrix of rotations about the three axes, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        rotation = np.eye(3)
        one, other = [index for index in range(3) if index != axis]
        rotation[one, one] = rotation[other, other] = np.cos(angle)
        rotation[one, other], rotation[other, one] = -np.sin(angle), np.sin(angle)
        matrix = rotation @ matrix
    return matrix


def _draw_labels(points: Array, shapes: _Shapes) -> NDArray[np.uint8]:
    z, y, x = (
        np.einsum("ij,jklm->iklm", shapes.bean_rotation, points - shapes.bean_mm[:, None, None, None]) / shapes.size
    )
    bent = x - 0.03 * z**2 + 2.0
    bean = (z / 11) ** 2 + (y / 5.5) ** 2 + (bent / 4.5) ** 2 < 1
    z, y, x = (
        np.einsum("ij,jklm->iklm", shapes.ring_rotation, points - shapes.ring_mm[:, None, None, None]) / shapes.size
    )
    ring = (np.hypot(z, y) - 8.0) ** 2 + x**2 < 3.2**2
    return np.where(ring, 2, np.where(bean, 1, 0)).astype(np.uint8)


def _draw_image(points: Array, labels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
    half_mm = np.abs(points).max(axis=(1, 2, 3), keepdims=True)
    relative = points / half_mm
    body = (relative**2).sum(axis=0) < 1.1
    clean = np.where(labels > 0, STRUCTURE, np.where(body, BODY, 20.0)) * random.uniform(0.8, 1.25)
    blurred = ndimage.gaussian_filter(clean, 0.8)
    texture = ndimage.gaussian_filter(random.standard_normal(labels.shape), 2.0)
    bias = np.exp(np.einsum("i,iklm->klm", random.uniform(-0.2, 0.2, 3), relative))
    noise = random.normal(0.0, 25.0, labels.shape)
    image: NDArray[np.float32] = (blurred * bias + 150.0 * texture + noise).clip(0).astype(np.float32)
    return image
