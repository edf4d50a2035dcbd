"""How many feature-map values a training batch may have, from the memory it is planned for."""

from __future__ import annotations

from dataclasses import dataclass

from planners.decision import Decision
from planners.topology import PresetRules

REFERENCE_BATCH = {3: 2, 2: 12}
"""Batch size that the feature-map references stand for, by dimensions (method section 3.1)."""
SMALLEST_BATCH = 2
"""Smaller batches make gradients too noisy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Feature-map values that fit, for one configuration."""

    feature_maps: float
    """Of one image where ``batch`` of them fit."""
    batch: int
    fitting_images: int
    """How many images must fit at once before a patch is small enough."""

    def is_exceeded_by(self, estimate: int) -> bool:
        """Whether a patch with this estimate must shrink (method section 3.9)."""
        if self.fitting_images == self.batch:
            return estimate > self.feature_maps
        return estimate / self.batch * self.fitting_images > self.feature_maps

    def fitting_batch(self, estimate: int) -> int:
        """How many patches with this estimate fit, ties to even (method section 3.9)."""
        return round(self.feature_maps / estimate * self.batch)


def memory_budget(preset: PresetRules, target_gb: float, *, dimensions: int) -> MemoryBudget:
    """The budget of a 2D or 3D configuration (method section 3.1, last line)."""
    reference = preset.feature_maps_3d if dimensions == 3 else preset.feature_maps_2d
    batch = REFERENCE_BATCH[dimensions]
    return MemoryBudget(
        feature_maps=reference * (target_gb / preset.reference_gb),
        batch=batch,
        fitting_images=batch if preset.patch_yields_to_batch else SMALLEST_BATCH,
    )


def decide_memory_target(
    preset: PresetRules, *, requested_gb: float | None, device_gb: float | None
) -> Decision[float]:
    """Memory in GB (1e9 bytes) that training is planned for.

    As requested; else the preset's default, capped by a smaller device. A larger device changes nothing, so the same dataset
    gives the same plan on every sufficient machine.
    """
    own = preset.reference_gb
    if requested_gb is not None:
        value, why = requested_gb, f"{requested_gb:g} GB were requested (the preset's default is {own:g} GB)"
    elif device_gb is not None and device_gb < own:
        value, why = device_gb, f"the device has {device_gb:.3g} GB, less than the preset's {own:g} GB"
    else:
        value, why = own, f"{own:g} GB is the preset's default"
    return Decision(
        rule="memory.target",
        value=value,
        reason=why,
        source="method 3.1",
        change="more memory (--memory) allows larger patches or batches",
    )
