"""Finds structures with a left and a right form: by their names, or because they mirror each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.storage.cache import KEPT
from planners import LabelClass

Pair = tuple[str, str]
"""Names of two classes, (left, right) if their names tell."""

LEFT = frozenset({"left", "l", "lt", "lh", "sinister", "sin", "links", "gauche"})
RIGHT = frozenset({"right", "r", "rt", "rh", "dexter", "dex", "rechts", "droit", "droite"})
SHORT = 2
"""Abbreviations of up to so many letters count only as the first or the last word: ``kidney_l``, ``L Kidney``."""
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

LEFT_TO_RIGHT: Literal[2] = 2
"""The canonical axis x."""
MIN_CASES = 3
"""In fewer cases a mirrored place can be chance."""
MAX_SLANT = 0.5
"""Distance along the other axes, as a share of that from left to right: patients lie tilted, organs differ in height."""
MAX_VOLUME_RATIO = 1.5
"""Of the two forms; liver and spleen, which also lie on two sides, differ by more."""
MAX_OFF_CENTRE = 0.25
"""Distance of the middle between the two from the centre of the foreground, as a share of the distance between them."""
MAX_COUNTED = 2**21
"""Voxels of a label map that are used; of larger ones every n-th along each axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the classes of one case are."""

    volumes: Annotated[NDArray[np.float64], KEPT]
    """(K,) voxels of each class, (K + 1,) with all of the foreground last."""
    centres_mm: Annotated[NDArray[np.float64], KEPT]
    """(K + 1, 3) z, y, x from the corner of the image; NaN for a class that the case lacks."""


def find_places(labels: NDArray[np.integer[Any]], spacing_mm: Sequence[float], classes: Sequence[LabelClass]) -> Places:
    """Places of ``classes`` in a label map (Z, Y, X) with internal values, in canonical axes."""
    step = max(1, int(np.ceil((labels.size / MAX_COUNTED) ** (1 / 3))))
    picked = labels[::step, ::step, ::step]
    size = max(int(picked.max(initial=0)), max(value for label in classes for value in label.values)) + 1
    flat = picked.ravel().astype(np.int64)
    counts = np.bincount(flat, minlength=size).astype(np.float64)
    sums = np.stack(
        [
            np.bincount(flat, weights=np.broadcast_to(_along(axis, picked.shape), picked.shape).ravel(), minlength=size)
            for axis in range(3)
        ],
        axis=1,
    )
    groups = [list(label.values) for label in classes]
    groups.append(sorted({value for values in groups for value in values}))
    volumes = np.array([counts[values].sum() for values in groups])
    with np.errstate(invalid="ignore", divide="ignore"):
        centres = np.stack([sums[values].sum(axis=0) for values in groups]) / volumes[:, None]
    return Places(volumes=volumes * step**3, centres_mm=centres * step * np.asarray(spacing_mm))


def paired_names(names: Sequence[str]) -> tuple[Pair, ...]:
    """Pairs of names that differ only in a word for left and one for right, in order of the left one."""
    sides = {name: _split_side(name) for name in names}
    return tuple(
        (left, right)
        for left in names
        for right in names
        if sides[left][0] == "left" and sides[right][0] == "right" and sides[left][1] == sides[right][1]
    )


def mirrored_pairs(names: Sequence[str], cases: Sequence[Places], *, axis: int = LEFT_TO_RIGHT) -> tuple[Pair, ...]:
    """Pairs of classes of like volume that in every case lie beside each other along ``axis``, the same one always first.

    Cases that lack one of the two do not count; `MIN_CASES` must have both. The first of a pair is the one further left
    (canonical x runs to the left).
    """
    if not cases:
        return ()
    volumes = np.stack([case.volumes for case in cases])
    centres = np.stack([case.centres_mm for case in cases])
    pairs = []
    for a, b in combinations(range(len(names)), 2):
        both = (volumes[:, a] > 0) & (volumes[:, b] > 0)
        if both.sum() < MIN_CASES:
            continue
        apart = centres[both, a] - centres[both, b]
        beside = np.abs(apart[:, axis])
        slant = np.linalg.norm(np.delete(apart, axis, axis=1), axis=1)
        ratio = np.exp(abs(float(np.median(np.log(volumes[both, a] / volumes[both, b])))))
        off = np.abs((centres[both, a, axis] + centres[both, b, axis]) / 2 - centres[both, -1, axis])
        same_side = abs(int(np.sign(apart[:, axis]).sum())) == len(apart)
        if (
            same_side
            and (slant <= MAX_SLANT * beside).all()
            and ratio <= MAX_VOLUME_RATIO
            and (off <= MAX_OFF_CENTRE * beside).all()
        ):
            pairs.append((names[a], names[b]) if apart[0, axis] > 0 else (names[b], names[a]))
    return tuple(pairs)


def find_pairs(classes: Sequence[LabelClass], cases: Sequence[Places]) -> tuple[Pair, ...]:
    """Paired structures by their names and, for other classes, by their places."""
    names = [label.name for label in classes]
    named = paired_names(names)
    taken = {name for pair in named for name in pair}
    placed = tuple(pair for pair in mirrored_pairs(names, cases) if not taken & set(pair))
    return (*named, *placed)


def _along(axis: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Indices along an axis, ready to be broadcast to ``shape``."""
    return np.arange(shape[axis], dtype=np.float64).reshape([-1 if each == axis else 1 for each in range(3)])


def _split_side(name: str) -> tuple[str | None, tuple[str, ...]]:
    """The side in a name, if it has exactly one, and its other words."""
    words = [word.lower() for word in WORDS.findall(name)]
    found = [
        (place, "left" if word in LEFT else "right")
        for place, word in enumerate(words)
        if word in LEFT | RIGHT and (len(word) > SHORT or place in (0, len(words) - 1)) and len(words) > 1
    ]
    if len(found) != 1:
        return None, tuple(words)
    ((place, side),) = found
    return side, tuple(words[:place] + words[place + 1 :])
