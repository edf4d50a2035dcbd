"""Images and label maps: arrays of voxels and where they lie in the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autoseg.issues import Issue
from planners import Document

Vector = tuple[float, float, float]
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Geometry(Document):
    """Grid of an image file.

    ``shape`` and ``spacing_mm`` are (z, y, x). ``origin_mm`` and the rows of ``direction`` are world axes (x, y, z) of
    the LPS system that ITK and DICOM use; column j of ``direction`` is the unit vector along which index axis j of
    (x, y, z) grows. A 2D file has ``dimensions`` 2, z = 1, and the identity along z.
    """

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    origin_mm: Vector = (0.0, 0.0, 0.0)
    direction: tuple[Vector, Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    dimensions: Literal[2, 3] = 3
    has_orientation: bool = True
    """False for formats that store none (PNG, JPEG, TIFF): such images are never turned."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        matrix = np.array(self.direction)
        if not np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-3):
            raise ValueError(f"direction must be orthonormal, found {matrix.tolist()}")
        return self

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        z, y, x = self.spacing_mm
        return z * y * x / 1000

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): from voxel indices (z, y, x, 1) to world positions (x, y, z, 1) in mm, RAS; see `Image.affine`."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction)[:, ::-1] * np.array(self.spacing_mm)
        affine[:3, 3] = self.origin_mm
        affine[:2] *= -1
        return affine


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Intensities: ``array`` is float32 (C, Z, Y, X)."""

    array: NDArray[np.float32]
    geometry: Geometry
    notes: tuple[Issue, ...] = ()
    """What the reader repaired or left out."""

    @property
    def spacing_mm(self) -> Vector:
        """Distance of voxel centres along (z, y, x) in mm."""
        return self.geometry.spacing_mm

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): from voxel indices (z, y, x, 1) of ``array`` to world positions (x, y, z, 1) in mm, RAS.

        World axes run to Right, Anterior, Superior as in nibabel, MONAI and TorchIO, so
        ``nibabel.Nifti1Image(image.array[0], image.affine)`` is the image in its place. ITK and DICOM use LPS: negate
        the first two rows.
        """
        return self.geometry.affine


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMap:
    """Classes: ``array`` is integer (Z, Y, X), with the values of the file."""

    array: NDArray[np.integer]
    geometry: Geometry
    may_be_part: bool = False
    """The grid may be a part of the image's, background around it, as DICOM SEG stores it."""
