"""Which configurations are worth planning for a dataset."""

from __future__ import annotations

from planners.decision import Decision
from planners.geometry import PlanShape, PlanSpacing
from planners.wording import millimetres, voxels

NEAR_ISOTROPIC = 1.5
"""Largest spacing ratio at which a V-Net, whose kernels are large along all axes, is a candidate."""


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


def decide_vnet_candidate(spacing_mm: PlanSpacing) -> Decision[bool]:
    """Whether a V-Net is planned beside the U-Net, for volumes (decision record 0013)."""
    ratio = max(spacing_mm) / min(spacing_mm)
    near = ratio <= NEAR_ISOTROPIC
    return Decision(
        rule="candidates.vnet",
        value=near,
        reason=f"voxels of {millimetres(spacing_mm)} differ by a factor {ratio:.3g} between axes, "
        + (
            f"at most {NEAR_ISOTROPIC}, so a V-Net with its large kernels is a candidate"
            if near
            else f"more than {NEAR_ISOTROPIC}, too much for the large kernels of a V-Net"
        ),
        source="Milletari et al. 2016 and decision record 0013",
        change=f"a factor {'above' if near else 'of at most'} {NEAR_ISOTROPIC} would "
        + ("leave it out" if near else "make it a candidate"),
    )
