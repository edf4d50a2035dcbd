"""What no sensible dataset or plan exceeds, so that absurd numbers end in a message and not in endless arithmetic."""

from __future__ import annotations

SPACING_MM = (1e-6, 1e6)
"""From a nanometre to a kilometre."""
MOST_VOXELS = 1_000_000
"""Along one axis."""
MOST_CASES = 1_000_000_000
MOST_LABELS = 1_000_000
"""Entries of the label table."""
MEMORY_GB = (1e-3, 1e6)

MOST_PATCH_VOXELS = 2 * MOST_VOXELS
"""Along one axis; a patch may be longer than the longest case, since it is rounded up until the strides divide it."""
MOST_PATCHES = 10**12
"""In one batch; the smallest patch in the largest memory stays below."""
MOST_FEATURES = 100_000
MOST_BLOCKS = 100
"""In one stage."""
LARGEST_KERNEL = 31
LARGEST_STRIDE = 16
