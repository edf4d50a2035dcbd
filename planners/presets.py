"""What sets the presets apart: topology, memory reference, and share of the dataset in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from planners.plan import Family, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetRules:
    """Constants of one preset (method section 3.1)."""

    family: Family
    feature_maps_3d: int
    """Feature-map values of one training batch of 2 that fit into ``reference_gb``, 3D."""
    feature_maps_2d: int
    """The same for a batch of 12 in 2D."""
    reference_gb: float
    """Memory that the references stand for, and the preset's own target."""
    batch_share: float
    """Largest share of the dataset's voxels in one batch."""
    patch_yields_to_batch: bool
    """2D patches shrink until 12 fit at once, not just 2."""


PRESETS: dict[Preset, PresetRules] = {
    "default": PresetRules(
        family="unet", feature_maps_3d=560_000_000, feature_maps_2d=85_000_000, reference_gb=8.0,
        batch_share=0.05, patch_yields_to_batch=False,
    ),
    "resenc": PresetRules(
        family="residual_unet", feature_maps_3d=680_000_000, feature_maps_2d=135_000_000, reference_gb=8.0,
        batch_share=0.05, patch_yields_to_batch=True,
    ),
    "resenc_m": PresetRules(
        family="residual_unet", feature_maps_3d=680_000_000, feature_maps_2d=135_000_000, reference_gb=8.0,
        batch_share=1.0, patch_yields_to_batch=True,
    ),
    "resenc_l": PresetRules(
        family="residual_unet", feature_maps_3d=2_100_000_000, feature_maps_2d=380_000_000, reference_gb=24.0,
        batch_share=1.0, patch_yields_to_batch=True,
    ),
    "resenc_xl": PresetRules(
        family="residual_unet", feature_maps_3d=3_600_000_000, feature_maps_2d=560_000_000, reference_gb=40.0,
        batch_share=1.0, patch_yields_to_batch=True,
    ),
    "vnet": PresetRules(
        family="vnet", feature_maps_3d=560_000_000, feature_maps_2d=85_000_000, reference_gb=8.0,
        batch_share=0.05, patch_yields_to_batch=False,
    ),
}  # fmt: skip
