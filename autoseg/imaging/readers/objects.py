"""Images that are in memory already: of SimpleITK and nibabel, and arrays with a place in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.readers.reading import read_image
from autoseg.issues import AutosegError, Issue

Imagelike: TypeAlias = Any
"""A path or several, an `Image`, a SimpleITK or nibabel image, or an array."""
LPS = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
KINDS = "a path, a list of paths, an autoseg.Image, a SimpleITK or nibabel image, or a numpy array with its affine"
PLACE = "pass affine= (4 x 4, as read_image(path).affine), or the image itself instead of its array"


def as_image(
    source: Imagelike,
    *,
    affine: Any = None,
    spacing_mm: Sequence[float] | None = None,
    axes: str | None = None,
    needs_directions: bool = True,
) -> tuple[Image, bool]:
    """The image of any object that holds one, and whether its own axes are (x, y, z), as in nibabel.

    ``affine``, or ``spacing_mm`` and ``axes``, place an array (`autoseg.Predictor.predict_image`) and nothing else. Raises
    `AutosegError` with a code ``image.*`` that says what does not fit.
    """
    placed = affine is not None or spacing_mm is not None or axes is not None
    module = type(source).__module__.partition(".")[0]
    source = _array_of_tensor(source) if module == "torch" else source
    is_array = isinstance(source, np.ndarray)
    if placed and not is_array:
        message = f"a {type(source).__name__} has its own place"
        raise _error(code="image.type", message=message, fix="pass affine, spacing_mm and axes with arrays")
    if isinstance(source, Image):
        return _checked(source), False
    if isinstance(source, str | Path):
        return read_image(source), False
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | Path) for each in source):
        return read_image(source), False
    if module == "SimpleITK" and hasattr(source, "GetDirection"):
        return _of_simpleitk(source), False
    if module == "nibabel" and hasattr(source, "dataobj") and hasattr(source, "affine"):
        array = np.asanyarray(source.dataobj)
        if array.ndim not in (3, 4):
            raise _error(
                code="image.shape", message=f"an image of shape {array.shape}", fix="pass (X, Y, Z) or (X, Y, Z, C)"
            )
        channels = array.T if array.ndim == 4 else array.T[None]
        return Image(array=_numbers(channels), geometry=_placed(source.affine, channels.shape[1:], reverse=True)), True
    if not is_array:
        raise _error(code="image.type", message=f"a {type(source).__name__}", fix=f"pass {KINDS}")
    array = np.asarray(source)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise _error(
            code="image.shape", message=f"an array of shape {array.shape}", fix="pass (C, Z, Y, X) or (Z, Y, X)"
        )
    channels = _numbers(array if array.ndim == 4 else array[None])
    shape = channels.shape[1:]
    if affine is not None:
        if spacing_mm is not None or axes is not None:
            raise _error(
                code="image.affine", message="affine and spacing_mm or axes", fix="pass the affine alone: it has both"
            )
        return Image(array=channels, geometry=_placed(affine, shape, reverse=False)), False
    return Image(array=channels, geometry=_of_spacing(shape, spacing_mm, axes, needs_directions)), False


def _array_of_tensor(tensor: Any) -> Any:
    """Numbers of a PyTorch tensor, wherever it lies and whatever its precision; other objects of PyTorch as they are."""
    return (
        tensor.detach().cpu().float().numpy() if hasattr(tensor, "is_complex") and not tensor.is_complex() else tensor
    )


def _checked(image: Image) -> Image:
    """An `Image` built by hand may hold anything."""
    shape = np.shape(image.array)
    if not isinstance(image.geometry, Geometry) or len(shape) != 4 or shape[1:] != image.geometry.shape:
        grid = image.geometry.shape if isinstance(image.geometry, Geometry) else image.geometry
        message = f"an Image with an array of shape {shape} on a grid of shape {grid}"
        raise _error(code="image.shape", message=message, fix="pass (C, Z, Y, X), and (Z, Y, X) as its grid")
    return replace(image, array=_numbers(np.asarray(image.array)))


def _of_simpleitk(source: Any) -> Image:
    import SimpleITK

    kind = SimpleITK.GetPixelIDValueAsString(source.GetPixelID())
    if "label" in kind:  # asking for its voxels would end the process
        raise _error(code="image.type", message=f"an image of type {kind}", fix="pass SimpleITK.LabelMapToLabel(image)")
    if not all(source.GetSize()):
        message = f"an image of size {source.GetSize()}"
        raise _error(code="image.shape", message=message, fix="pass a volume or a slice")
    array = SimpleITK.GetArrayFromImage(source)
    if source.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None] if source.GetDimension() < 4 else array
    flat = source.GetDimension() == 2
    if flat:
        array = array[:, None]
    if array.ndim != 4:
        raise _error(
            code="image.shape",
            message=f"an image of {source.GetDimension()} dimensions",
            fix="pass a volume or a slice",
        )
    spacing, origin = ([*values, 1.0][:3] for values in (source.GetSpacing(), source.GetOrigin()))
    size = source.GetDimension()
    direction = np.eye(3)
    direction[: min(size, 3), : min(size, 3)] = np.reshape(source.GetDirection(), (size, size))[:3, :3]
    if flat:
        origin[2], direction = 0.0, np.eye(3)
    return Image(
        array=_numbers(array),
        geometry=_geometry(array.shape[1:], spacing[::-1], origin, direction, dimensions=2 if flat else 3),
    )


def _placed(affine: Any, shape: tuple[int, ...], *, reverse: bool) -> Geometry:
    """The grid of an affine to RAS from indices (z, y, x, 1), or, with ``reverse``, (x, y, z, 1)."""
    matrix = _float64(affine)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise _error(
            code="image.affine",
            message=f"an affine of shape {matrix.shape}: {matrix.tolist()}",
            fix="pass 4 x 4 finite numbers whose axes are independent",
        )
    columns = matrix[:3, :3] if reverse else matrix[:3, 2::-1]
    columns, origin = columns * [[-1], [-1], [1]], matrix[:3, 3] * (-1, -1, 1)
    spacing = np.linalg.norm(columns, axis=0)
    if not spacing.all():
        raise _error(
            code="image.affine", message=f"the affine {matrix.tolist()} has no spacing along an axis", fix="correct it"
        )
    return _geometry(shape, spacing[::-1], origin, columns / spacing)


def _of_spacing(
    shape: tuple[int, ...], spacing_mm: Sequence[float] | None, axes: str | None, needs_directions: bool
) -> Geometry:
    spacing = np.ravel(_float64((1.0, 1.0, 1.0) if spacing_mm is None else spacing_mm))
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        message = f"spacing_mm {spacing_mm}"
        raise _error(code="image.spacing", message=message, fix="pass three positive numbers (z, y, x) in mm")
    if axes is None:
        if needs_directions:
            message = "an array alone does not say which way its axes run in the body, and how far apart its voxels are"
            raise _error(code="image.no_place", message=message, fix=f"{PLACE}, or spacing_mm= and axes=")
        return _geometry(shape, spacing, (0.0, 0.0, 0.0), np.eye(3), has_orientation=False)
    letters = str(axes).upper()
    known = [np.abs(LPS.get(letter, (0, 0, 0))) for letter in letters]
    if len(letters) != 3 or spacing_mm is None or not np.sum(known, axis=0).all():
        message = f"axes {axes!r} with spacing_mm {spacing_mm}"
        raise _error(
            code="image.axes",
            message=message,
            fix='pass spacing_mm and one letter each for where z, y and x run, such as "SPL"',
        )
    direction = np.array([LPS[letter] for letter in letters[::-1]], np.float64).T
    return _geometry(shape, spacing, (0.0, 0.0, 0.0), direction)


def _geometry(shape: Any, spacing_mm: Any, origin_mm: Any, direction: NDArray[np.floating], **others: Any) -> Geometry:
    try:
        return Geometry(
            shape=tuple(map(int, shape)),  # type: ignore[arg-type]  # three axes
            spacing_mm=tuple(map(float, spacing_mm)),  # type: ignore[arg-type]
            origin_mm=tuple(map(float, origin_mm)),  # type: ignore[arg-type]
            direction=tuple(tuple(map(float, row)) for row in direction),  # type: ignore[arg-type]
            **others,
        )
    except ValidationError as error:
        message = "; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors())
        raise _error(code="image.affine", message=message, fix="resample it to a grid of right angles") from error


def _numbers(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype.kind not in "biuf":
        raise _error(code="image.type", message=f"an image of type {array.dtype}", fix="pass real numbers")
    with np.errstate(over="ignore"):  # values beyond single precision become infinite, which prediction refuses
        return np.ascontiguousarray(array, np.float32)


def _float64(given: Any) -> NDArray[np.float64]:
    """What was given as numbers; not a number where it is something else."""
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        return np.array(np.nan)


def _error(*, code: str, message: str, fix: str) -> AutosegError:
    return AutosegError(Issue(code=code, where="", message=message, fix=fix))
