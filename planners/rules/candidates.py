"""Which configurations are worth planning for a dataset."""

from __future__ import annotations

from planners.decision import Decision
from planners.geometry import PlanShape
from planners.wording import voxels


def decide_volumetric(shape: PlanShape) -> Decision[bool]:
    """Whether 3D configurations are planned: not for a single slice along the first plan axis (method section 3.5)."""
    if shape[0] == 1:
        reason = (
            f"the median case of {voxels(shape)} voxels is a single slice along its first axis, so only 2D is planned"
        )
    else:
        reason = f"the median case has {shape[0]:g} slices, so 3D is planned beside 2D; cross-validation decides between them"
    return Decision(
        rule="candidates.volumetric",
        value=shape[0] != 1,
        reason=reason,
        source="method 3.5",
        change="single slices would be planned in 2D only" if shape[0] != 1 else "volumes would be planned in 3D too",
    )
