"""In which order the axes of the images are taken, and whether there are slices enough for 3D."""

from __future__ import annotations

from planners.decision import Decision
from planners.geometry import Permutation, PlanShape, SourceShape, SourceSpacing
from planners.wording import millimetres, voxels

_COARSEST_FIRST: tuple[Permutation, ...] = ((0, 1, 2), (1, 0, 2), (2, 0, 1))


def decide_axis_order(spacing_mm: SourceSpacing) -> Decision[Permutation]:
    """Plan axis i is source axis ``value[i]``: the coarsest first, the first of equals (method section 3.3)."""
    coarsest = spacing_mm.index(max(spacing_mm))
    equal = spacing_mm.count(max(spacing_mm)) > 1
    return Decision(
        rule="axes.order",
        value=_COARSEST_FIRST[coarsest],
        reason=f"of {millimetres(spacing_mm)}, axis {coarsest} is "
        + ("the first of the coarsest" if equal else "the coarsest")
        + "; 2D slices lie across it",
        source="method 3.3",
        change="another axis with larger spacing would come first",
    )


def find_single_slice_axis(shape: SourceShape, spacing_mm: SourceSpacing) -> int | None:
    """The source axis along which the median case has one voxel after resampling, or none.

    Of several such axes the coarsest counts, the first of equals.
    """
    thin = [axis for axis in range(3) if shape[axis] == 1]
    return max(thin, key=lambda axis: (spacing_mm[axis], -axis), default=None)


def put_single_slice_first(axis: int, shape: SourceShape, spacing_mm: SourceSpacing) -> Decision[Permutation]:
    """Departure: the axis with one voxel first, whatever its spacing (decision record 0010).

    nnU-Net looks only at the first of the coarsest axes and plans 2D networks with an axis of one voxel otherwise.
    """
    coarsest = spacing_mm[axis] == max(spacing_mm)
    return Decision(
        rule="axes.single_slice",
        value=_COARSEST_FIRST[axis],
        reason=f"the median case of {voxels(shape)} voxels is a single slice along axis {axis}, so this axis goes first"
        + ("" if coarsest else f" although {spacing_mm[axis]:.4g} mm is not the coarsest spacing")
        + "; 2D networks see the whole slice",
        source="method 3.5 and decision record 0010",
        change="volumes with several slices would be planned in 3D",
    )


def decide_volumetric(shape: PlanShape) -> Decision[bool]:
    """Whether 3D configurations are planned: not for a single slice along the first plan axis (method section 3.5)."""
    if shape[0] == 1:
        reason = (
            f"the median case of {voxels(shape)} voxels is a single slice along its first axis, so only 2D is planned"
        )
    else:
        reason = f"the median case has {shape[0]:g} slices, so 3D is planned in addition to 2D; cross-validation decides between them"
    return Decision(
        rule="candidates.volumetric",
        value=shape[0] != 1,
        reason=reason,
        source="method 3.5",
        change="single slices would be planned in 2D only" if shape[0] != 1 else "volumes would also be planned in 3D",
    )
