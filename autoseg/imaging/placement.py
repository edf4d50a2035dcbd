"""How a preprocessed array lies in the image it came from, so that everything done to it can be undone."""

from __future__ import annotations

from autoseg.imaging.volume import Geometry
from planners import Document

Triple = tuple[int, int, int]


class Placement(Document):
    """The way from source to preprocessed array, in the order it was gone.

    1. canonical orientation: axis i of the turned array is source axis ``permutation[i]``, then flipped where ``flips[i]``;
    2. plan axes: axis i is canonical axis ``transpose_forward[i]``;
    3. crop: the half-open ``box`` of plan-axis indices, one (start, end) per axis;
    4. resample to ``resampled_shape`` at ``resampled_spacing_mm``.
    """

    source: Geometry
    permutation: Triple
    flips: tuple[bool, bool, bool]
    transpose_forward: Triple
    shape_before_cropping: Triple
    """Plan axes."""
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    spacing_mm: tuple[float, float, float]
    """Of the cropped array before resampling, plan axes."""
    resampled_shape: Triple
    resampled_spacing_mm: tuple[float, float, float]

    @property
    def shape_after_cropping(self) -> Triple:
        """Voxels inside the box, plan axes."""
        (a, b), (c, d), (e, f) = self.box
        return b - a, d - c, f - e
