"""Batches for training and online validation: drawn by counter, so any number of workers gives the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoseg.training.augmentation import augment
from autoseg.training.augmentation_parameters import Parameters, Recipe, draw_parameters
from autoseg.training.patches import OUTSIDE_LABEL, PatchSource, crop_size, cut, draw_patch, is_forced
from autoseg.training.randomness import generator

Batch = tuple[Tensor, Tensor]
"""float32 (N, C, patch...) and int64 (N, patch...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource(Dataset[Batch]):
    """Batch number ``step`` of one fold; the same for the same arguments, whoever asks and when."""

    cases: Sequence[PatchSource]
    recipe: Recipe
    batch_size: int
    foreground_share: float
    seed: int
    configuration: str
    fold: int
    purpose: str
    """``training`` or ``validation``; keeps their draws apart. Validation patches are never augmented."""

    def __getitem__(self, step: int) -> Batch:
        samples = [self.sample(step, i) for i in range(self.batch_size)]
        images = torch.from_numpy(np.stack([image for image, _ in samples]))
        labels = torch.from_numpy(np.stack([labels for _, labels in samples]).astype(np.int64))
        return images, labels

    def sample(self, step: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One sample: image float32 (C, patch...), label map int16 (patch...)."""
        rng = generator(self.seed, self.configuration, self.fold, step, index, f"{self.purpose}-patch")
        case = self.cases[int(rng.integers(len(self.cases)))]
        changes = Parameters()
        if self.purpose == "training":
            draws = generator(self.seed, self.configuration, self.fold, step, index, "augmentation")
            changes = draw_parameters(draws, self.recipe)
        patch = self.recipe.patch
        crop = patch
        if changes.angles is not None or changes.scale is not None:
            crop = crop_size(patch, rotation=self.recipe.rotation, dummy_2d=self.recipe.dummy_2d)
        flat = (1,) * (3 - len(patch))
        start = draw_patch(
            rng,
            case.labels.shape,
            patch=(*flat, *patch),
            crop=(*flat, *crop),
            locations=case.locations,
            forced=is_forced(index, batch_size=self.batch_size, foreground_share=self.foreground_share),
        )
        image = cut(case.image, start, (*flat, *crop), outside=0)
        labels = cut(case.labels, start, (*flat, *crop), outside=OUTSIDE_LABEL)
        if flat:
            image, labels = image[:, 0], labels[0]
        return augment(changes, self.recipe, image.astype(np.float32), labels.astype(np.int16))


def load_batches(source: BatchSource, steps: range, *, num_workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches of ``steps`` in order, made by ``num_workers`` processes (0: in this one)."""
    loader: DataLoader[Batch] = DataLoader(
        source,
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)
