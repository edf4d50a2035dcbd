"""Along which axes of the patch training and prediction may mirror."""

from __future__ import annotations

from collections.abc import Sequence

from planners.decision import Decision
from planners.geometry import Axis, Permutation

NUM_SHOWN = 3
"""Pairs named in a reason."""


def decide_mirror_axes(
    dimensions: int,
    *,
    transpose_forward: Permutation,
    sided_axis: Axis | None,
    sided_pairs: Sequence[tuple[str, str]] = (),
) -> Decision[tuple[Axis, ...]]:
    """All axes (method section 6.1) but the left-right axis where there are left and right labels.

    ``sided_axis`` is a source axis, none without paired labels; ``sided_pairs`` are their names. Entries count the axes of the patch: in 2D the first is the second plan axis.
    """
    axes: tuple[Axis, ...] = (0, 1, 2) if dimensions == 3 else (0, 1)
    if sided_axis is None:
        return Decision(
            rule="mirroring.axes",
            value=axes,
            reason="no left and right labels were found, so images are mirrored along all axes",
            source="method 6.1",
            change="with labels such as left and right kidney the left-right axis would be excluded",
        )
    sided = transpose_forward.index(sided_axis) - (3 - dimensions)
    kept = tuple(axis for axis in axes if axis != sided)
    return Decision(
        rule="mirroring.sided_axis",
        value=kept,
        reason=f"there are left and right labels{_named(sided_pairs)}, which mirroring along axis {sided_axis} of the images would swap"
        + ("" if len(kept) < len(axes) else "; it is not an axis of the 2D slices, so all of theirs are mirrored"),
        source="method 12 and decision record 0012",
        change="without paired labels images would be mirrored along all axes",
    )


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    """The first pairs, in brackets."""
    shown = ", ".join(f"{left} and {right}" for left, right in pairs[:NUM_SHOWN])
    more = f", and {len(pairs) - NUM_SHOWN} more" if len(pairs) > NUM_SHOWN else ""
    return f" ({shown}{more})" if pairs else ""
