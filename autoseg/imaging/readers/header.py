"""What the header of an image file says, and the errors for files that cannot be read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.imaging.image import Geometry, Vector
from autoseg.issues import AutosegError, Issue
from planners import issues_of

STRAY_BYTE = re.compile("[\udc80-\udcff]")
"""What Python writes for a byte of a name that is not UTF-8."""
FLAT_SPACING_FACTOR = 999.0
"""A 2D image is this many times as thick as its larger pixel side, so that planning finds its slice axis coarsest
(method section 1.5)."""
UNNOTICED_SKEW = 1e-4
"""Directions this far from orthonormal are rounding of single precision and stay as they are."""
REPAIRABLE_SKEW = 0.05
"""Cosine between two axes, about 3 degrees, up to which a skewed grid is straightened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """An image file without its voxels."""

    geometry: Geometry
    num_channels: int
    """Components of a voxel times entries of a fourth axis."""
    pixel_type: str
    is_integer: bool
    notes: tuple[Issue, ...] = ()
    """What was repaired in the header or left out of the image."""
    may_be_part: bool = False
    """A label map whose grid may be a part of its image's, background around it, as DICOM SEG stores it."""


def damaged(path: Path | str, *, code: str = "reader.bad_header", message: str) -> AutosegError:
    """The error for a file that ends early, contradicts itself, or is not what its ending says."""
    return reader_error(
        path, code=code, message=message, fix="copy the file again from its source, or leave the case out"
    )


def unsupported(path: Path | str, *, code: str = "reader.unsupported", message: str, fix: str) -> AutosegError:
    """The error for a sound file that uses what no reader here understands."""
    return reader_error(path, code=code, message=message, fix=fix)


def unreadable(path: Path | str, error: OSError) -> AutosegError:
    """The error for a file or folder that the operating system refuses to give."""
    return reader_error(
        path,
        code="reader.missing" if isinstance(error, FileNotFoundError) else "reader.unreadable",
        message=f"could not be read ({error.strerror or error})",
        fix="check the path and its permissions",
    )


def reader_error(path: Path | str, *, code: str, message: str, fix: str) -> AutosegError:
    """An error of one issue that names ``path``."""
    return AutosegError(Issue(code=code, where=printable(path), message=" ".join(message.split()), fix=fix))


def make_geometry(
    path: Path,
    *,
    shape: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    origin_mm: tuple[float, ...],
    direction: NDArray[np.float64],
    has_orientation: bool,
) -> tuple[Geometry, tuple[Issue, ...]]:
    """Geometry, and a note of what was repaired in it, of a 2D or 3D grid given x first as ITK does.

    ``direction`` has one column an index axis. A slightly skewed direction is replaced by the nearest orthonormal
    one; `AutosegError` if it is skewed by more, or if sizes or spacings make no sense.
    """
    dimensions = len(shape)
    spacing = tuple(abs(value) for value in spacing_mm)
    matrix = np.eye(3)
    matrix[:dimensions, :dimensions] = direction
    matrix, notes = _orthonormal(path, matrix)
    if dimensions == 2:
        shape, origin_mm = (*shape, 1), (*origin_mm, 0.0)
        spacing = (*spacing, FLAT_SPACING_FACTOR * max(spacing))
    x, y, z = (_vector(row) for row in matrix)
    try:
        geometry = Geometry(
            shape=(shape[2], shape[1], shape[0]),
            spacing_mm=(spacing[2], spacing[1], spacing[0]),
            origin_mm=_vector(origin_mm),
            direction=(x, y, z),
            dimensions=2 if dimensions == 2 else 3,
            has_orientation=has_orientation,
        )
    except ValidationError as error:
        raise damaged(path, message=f"the header is invalid: {'; '.join(map(str, issues_of(error)))}") from error
    return geometry, notes


def _vector(values: Any) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _orthonormal(path: Path, direction: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[Issue, ...]]:
    """The direction itself, or the orthonormal one that is nearest to it (polar decomposition)."""
    if not np.isfinite(direction).all():
        raise damaged(path, message=f"the direction is not finite: {direction.tolist()}")
    skew = float(np.abs(direction.T @ direction - np.eye(3)).max())
    if skew <= UNNOTICED_SKEW:
        return direction, ()
    if skew > REPAIRABLE_SKEW:
        raise reader_error(
            path,
            code="reader.skewed_grid",
            message=f"the axes of the grid are not perpendicular (product of two unit axes {skew:.3g}, "
            f"direction {np.round(direction, 4).tolist()})",
            fix="resample the image to a rectangular grid",
        )
    left, _, right = np.linalg.svd(direction)
    degrees = math.degrees(math.asin(min(1.0, skew)))
    note = Issue(
        code="reader.straightened",
        severity="note",
        where=printable(path),
        message=f"its axes were {degrees:.2f} degrees from perpendicular and were straightened",
        fix="correct the header of the file",
    )
    return left @ right, (note,)


# --- names of files ---


def require_text(paths: Iterable[Path | str]) -> None:
    """Raise `AutosegError` with each of ``paths``, or the folder on the way to it, whose name is not valid UTF-8."""
    found = dict.fromkeys(_misnamed(Path(path)) for path in paths if not is_text(str(path)))
    if found:
        raise AutosegError(
            *[
                Issue(
                    code="reader.name_not_text",
                    where=printable(path),
                    message="its name is not valid UTF-8",
                    fix="rename it",
                )
                for path in found
            ]
        )


def printable(text: Path | str) -> str:
    r"""A path, or a text with paths in it, that can be printed and stored: bytes that are not UTF-8 are written as ``\xfc``."""
    escaped = STRAY_BYTE.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(text))
    return escaped.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _misnamed(path: Path) -> Path:
    """The outermost folder on the way whose name is not valid UTF-8, or the file itself: renaming it is enough for all below it."""
    return next(folder for folder in (*reversed(path.parents), path) if not is_text(str(folder)))
