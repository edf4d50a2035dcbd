"""Images, label maps and segmentations: arrays of voxels and their place in the world."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    """False for formats that store none (PNG, JPEG, TIFF): such images keep their axes."""

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


CT = "CT"
AIR_HU = (-1100.0, -900.0)
"""Air in Hounsfield units, with noise; many scanners cut at -1024."""
LEAST_AIR = 0.01
"""Share of the voxels of a CT image that are air."""
NEGATIVE = -50.0
"""MR images have hardly a value below, though splines may undershoot; fat and air of CT are below."""


NOT_CT = frozenset(["MR", "PT", "NM", "US", "MG", "CR", "DX", "RF", "XA", "OP", "OPT", "SM", "ES", "XC", "GM"])
"""Modalities of DICOM that are not CT; others, such as OT and SC, say nothing about the voxels."""


def looks_like_ct(channel: NDArray[np.float32], modality: str = "") -> bool | None:
    """Whether one channel of an image is CT, in Hounsfield units: by its ``modality`` where that tells, else by its intensities.

    True: whole numbers, with air near -1000. False: less than one voxel in a hundred is negative. None: neither.
    """
    if modality == CT or modality in NOT_CT:
        return modality == CT
    picked = channel.flat[:: max(1, channel.size // 2**20)]  # of large images every n-th voxel
    if (picked < NEGATIVE).mean() < LEAST_AIR:
        return False
    has_air = ((picked > AIR_HU[0]) & (picked < AIR_HU[1])).mean() >= LEAST_AIR
    return True if has_air and (picked == np.round(picked)).all() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Intensities: ``array`` is float32 (C, Z, Y, X)."""

    array: NDArray[np.float32]
    geometry: Geometry
    notes: tuple[Issue, ...] = ()
    """What the reader repaired or left out."""
    modality: tuple[str, ...] = ()
    """Of each channel, as DICOM names it (``CT``, ``MR``); empty texts where it is not known, and nothing where none is."""

    def of_modality(self, modality: str) -> Image:
        """The image itself, or, where a ``modality`` is given, with that in all channels."""
        return replace(self, modality=(modality,) * len(self.array)) if modality else self

    def ct_evidence(self) -> tuple[tuple[bool | None, bool], ...]:
        """Of each channel whether it is CT, by `looks_like_ct`, and whether its modality says so, not its intensities."""
        told = self.modality or [""] * len(self.array)
        return tuple(
            (looks_like_ct(channel, each), each == CT or each in NOT_CT)
            for channel, each in zip(self.array, told, strict=True)
        )

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


# --- segmentations: named masks, which may overlap, as DICOM SEG and ``.seg.nrrd`` files hold them ---


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentNames:
    """What a file says of its segments, without their voxels."""

    by_number: Mapping[int, str]
    may_overlap: bool
    """False where the file holds one label map, in which numbers are values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One class of a file of segments."""

    number: int
    name: str
    slices: tuple[int, ...]
    """Slice of the grid that each frame of this segment lies in; the segment is empty elsewhere."""
    frames: NDArray[np.uint8]
    """(frames, bytes): a frame's voxels, row by row, eight to a byte: hundreds of organs would not fit otherwise."""
    geometry: Geometry

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Which voxels (Z, Y, X) belong to the segment."""
        mask = np.zeros(self.geometry.shape, bool)
        for index, frame in self.planes():
            mask[index] |= frame
        return mask

    def planes(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Slice index and mask (Y, X) of each frame."""
        _, rows, columns = self.geometry.shape
        for index, frame in zip(self.slices, self.frames, strict=True):
            yield index, np.unpackbits(frame, count=rows * columns).reshape(rows, columns).astype(bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """What a file of segments holds; ``geometry`` may be a part of the grid of the image."""

    segments: tuple[Segment, ...]
    """In the order of their numbers."""
    geometry: Geometry
    notes: tuple[Issue, ...] = ()

    def overlaps(self) -> dict[tuple[int, int], int]:
        """Voxels that two segments share, by their numbers, the smaller one first; pairs without any are left out."""
        shared: dict[tuple[int, int], int] = {}
        planes: dict[int, list[tuple[int, NDArray[np.bool_]]]] = {}
        for segment in self.segments:
            for index, frame in segment.planes():
                for other, earlier in planes.get(index, []):
                    count = int((frame & earlier).sum())
                    if count and other != segment.number:
                        shared[other, segment.number] = shared.get((other, segment.number), 0) + count
                planes.setdefault(index, []).append((segment.number, frame))
        return shared
