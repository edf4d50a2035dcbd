"""Whether the axes of all cases mean directions of the body, or each case keeps the axes it was acquired in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from planners.decision import Decision
from planners.fingerprint import CaseSize
from planners.geometry import Axis, inverse, transpose
from planners.plan import SourceAxes
from planners.rules.spacing import ANISOTROPY
from planners.wording import counted

AGREEMENT = 0.9
"""Share of the cases with a coarse axis that must have it along one direction of the body."""


def decide_source_axes(cases: Sequence[CaseSize], *, sided_axis: Axis | None) -> Decision[SourceAxes]:
    """Directions of the body, unless that would scatter the coarse axis over several axes (decision record 0080).

    Cases count whose coarsest axis is more than `ANISOTROPY` times coarser than the finest, and alone. Where they were
    acquired in different planes, one voxel size cannot suit them all along the body: what is coarse in one is fine in the
    next. The axes of the files then agree better, and are only flipped. Paired left and right structures need a fixed
    left-right axis and outweigh that.
    """
    thick = [case for case in cases if case.file_axes is not None and _coarse_axis(case) is not None]
    body = _largest_share([_coarse_axis(case) for case in thick])
    files = _largest_share([case.file_axes[_coarse_axis(case) or 0] for case in thick if case.file_axes is not None])
    scattered = body < AGREEMENT and files > body
    if not thick:
        reason = f"no case has an axis more than {ANISOTROPY} times coarser than another"
    elif not scattered:
        reason = f"{body:.0%} of the {counted(len(thick), 'case')} with a coarse axis have it along the same direction of the body"
        reason += f" ({files:.0%} along the same axis of their files)" if body < AGREEMENT else ""
    elif sided_axis is not None:
        reason = "cases were acquired in different planes, but left and right structures are told apart only along a fixed axis"
    else:
        return Decision(
            rule="axes.acquisition",
            value="acquisition",
            reason=f"cases were acquired in different planes: only {body:.0%} of the {counted(len(thick), 'case')} with a coarse "
            f"axis have it along the same direction of the body, but {files:.0%} along the same axis of their files; so axes "
            "stay as acquired and are only flipped",
            source="decision record 0080",
            change=f"with {AGREEMENT:.0%} or more in one direction of the body all cases would be turned to the body's axes",
        )
    return Decision(
        rule="axes.source",
        value="anatomical",
        reason=f"{reason}; so all cases are turned until an axis means the same direction of the body in each",
        source="decision record 0080",
        change="coarse axes in different directions of the body, but along the same axis of the files, would keep the axes as "
        "they were acquired",
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
    """The size along the axes of the file, as the source axes of a plan that keeps them; the same where they are not known."""
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
