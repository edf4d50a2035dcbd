"""From the axes of a file to the source axes of a plan."""

from __future__ import annotations

from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import (
    UNTURNED,
    Orientation,
    acquisition_orientation,
    canonical_orientation,
    ras_orientation,
)
from planners import Plan


def source_orientation(geometry: Geometry, plan: Plan) -> Orientation:
    """The turn from the axes of a file to the source axes of ``plan``; undone on output by the case's `Placement`."""
    if plan.strict_reference:
        return UNTURNED
    turns = {"anatomical": canonical_orientation, "acquisition": acquisition_orientation, "ras": ras_orientation}
    return turns[plan.source_axes](geometry)
