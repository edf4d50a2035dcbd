"""Whether images are reoriented to anatomical axes or keep the axes of their acquisition."""

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
