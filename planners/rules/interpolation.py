"""With which splines images, label maps and logits are brought to another grid."""

from __future__ import annotations

from dataclasses import dataclass

from planners.decision import Decision
from planners.plan import Resampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolation:
    """One choice for each kind of array."""

    image: Resampling
    labels: Resampling
    logits: Resampling


def decide_interpolation() -> Decision[Interpolation]:
    """Spline orders (method section 3.12); whether the coarse axis goes alone is seen in each case (4.4)."""
    return Decision(
        rule="interpolation.orders",
        value=Interpolation(
            image=Resampling(order=3, order_z=0),
            labels=Resampling(order=1, order_z=0),
            logits=Resampling(order=1, order_z=0),
        ),
        reason="images by cubic splines, label maps and logits linearly; where slices are more than 3 times thicker "
        "than in-plane voxels each slice is resampled by itself and the nearest slice is taken across, "
        "because nothing true can be interpolated between distant slices",
        source="method 3.12 and 4.4",
    )
