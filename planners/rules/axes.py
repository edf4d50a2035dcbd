"""Axes: whether images are reoriented, in which order axes are taken, whether there are slices enough for 3D, and mirroring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planners.decision import Decision, counted, millimetres, voxels
from planners.fingerprint import CaseSize
from planners.geometry import Axis, Permutation, SourceShape, SourceSpacing, inverse, transpose
from planners.plan import SourceAxes
from planners.rules.spacing import ANISOTROPY

AGREEMENT = 0.9
"""Share of the cases with a coarse axis that must have it along the same anatomical axis."""


def decide_source_axes(cases: Sequence[CaseSize], *, sided_axis: Axis | None) -> Decision[SourceAxes]:
    """Anatomical axes, unless that would put the coarse axis of different cases on different axes (decision record 0080).

    Considered are cases with a single coarsest axis, more than `ANISOTROPY` times coarser than the finest. If they were acquired
    in different planes, no target spacing suits all of them in anatomical axes; those of the files agree better and are only
    flipped. Left and right labels need a fixed left-right axis, which takes precedence.
    """
    thick = [case for case in cases if case.file_axes is not None and _coarse_axis(case) is not None]
    body = _largest_share([_coarse_axis(case) for case in thick])
    files = _largest_share([case.file_axes[_coarse_axis(case) or 0] for case in thick if case.file_axes is not None])
    scattered = body < AGREEMENT and files > body
    if not thick:
        reason = f"no case has an axis more than {ANISOTROPY} times coarser than the others"
    elif not scattered:
        reason = (
            f"{body:.0%} of the {counted(len(thick), 'case')} with a coarse axis have it along the same anatomical axis"
        )
        reason += f" ({files:.0%} along the same axis of their files)" if body < AGREEMENT else ""
    elif sided_axis is not None:
        reason = "cases were acquired in different planes, but left and right labels need a fixed left-right axis"
    else:
        return Decision(
            rule="axes.acquisition",
            value="acquisition",
            reason=f"cases were acquired in different planes: only {body:.0%} of the {counted(len(thick), 'case')} with a coarse "
            f"axis have it along the same anatomical axis, but {files:.0%} along the same axis of their files, so images keep "
            "the axes of their acquisition and are only flipped",
            source="decision record 0080",
            change=f"with {AGREEMENT:.0%} or more along one anatomical axis all images would be reoriented",
        )
    return Decision(
        rule="axes.source",
        value="anatomical",
        reason=f"{reason}; all images are reoriented to the same anatomical axes",
        source="decision record 0080",
        change="if coarse axes differed anatomically but agreed in the files, images would keep the axes of their acquisition",
    )


def _coarse_axis(case: CaseSize) -> int | None:
    """The one axis that is coarse."""
    coarsest = max(case.spacing_mm)
    if coarsest <= ANISOTROPY * min(case.spacing_mm) or case.spacing_mm.count(coarsest) > 1:
        return None
    return case.spacing_mm.index(coarsest)


def _largest_share(axes: Sequence[int | None]) -> float:
    return max(Counter(axes).values()) / len(axes) if axes else 1.0


def in_acquisition_axes(case: CaseSize) -> CaseSize:
    """The size along the axes of the file; unchanged where they are not known."""
    if case.file_axes is None:
        return case
    backward = inverse(case.file_axes)
    return case.model_copy(
        update={
            "shape": transpose(case.shape, backward),
            "spacing_mm": transpose(case.spacing_mm, backward),
            "file_axes": (0, 1, 2),
        }
    )


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


def decide_volumetric(shape: Sequence[float]) -> Decision[bool]:
    """Whether 3D configurations are planned: not for a single slice along the first of the plan axes (method 3.5)."""
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
