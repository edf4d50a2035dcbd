"""Batches for training and online validation: drawn by counter, so any number of workers gives the same ones.

Crops are read, and in training drawn at random, by workers; they are augmented on the device that trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoseg.issues import AutosegError
from autoseg.training.augmentation import augment, draw_noise
from autoseg.training.augmentation_parameters import Parameters, Recipe, draw_parameters
from autoseg.training.patches import (
    OUTSIDE_LABEL,
    CascadeSource,
    PatchSource,
    crop_size,
    cut,
    draw_patch,
    is_forced,
)
from autoseg.training.previous_stage import Disturbance, draw_disturbance, previous_classes
from autoseg.training.randomness import generator

SOUGHT_SHARE = 1 / 3
"""Of all samples, drawn around classes that are sought."""
Batch = tuple[Tensor, Tensor]
"""float32 (N, C, patch...) and int64 (N, patch...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One sample before its augmentation."""

    image: Tensor
    """float32 (C, crop...)."""
    labels: Tensor
    """int16 (1, crop...); of a cascade (2, crop...), the second as the first stage found it."""
    parameters: Parameters
    noise: Tensor | None
    """(C, patch...), what `draw_noise` gives."""
    previous_values: tuple[int, ...] = ()
    """Of a cascade: values of the first stage's classes."""
    disturbance: Disturbance = Disturbance()  # noqa: RUF009  # a frozen value
    """What is done to them."""

    def pin_memory(self) -> Crop:
        """The same in memory that a GPU copies from without waiting; a DataLoader asks for it by this name."""
        noise = None if self.noise is None else self.noise.pin_memory()
        return replace(self, image=self.image.pin_memory(), labels=self.labels.pin_memory(), noise=noise)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource(Dataset[list[Crop]]):
    """The crops of batch number ``step`` of one fold; the same for the same arguments, whoever asks and when."""

    cases: Sequence[PatchSource]
    recipe: Recipe
    batch_size: int
    foreground_share: float
    seed: int
    configuration: str
    fold: int
    purpose: str
    """``training`` or ``validation``; keeps their draws apart. Validation patches are never augmented."""
    sought: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Classes to draw more patches around, each with the numbers of the cases that show it; others are drawn as without."""
    scarce: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Classes that few cases show, each with the numbers of these; forced samples draw their class before their case."""
    num_classes: int = 0
    """Classes that any case shows, scarce ones among them."""
    previous_values: tuple[int, ...] = ()
    """Of a cascade: foreground values of the first stage's label maps, which ``cases`` then have (`CascadeSource`)."""

    def __getitem__(self, step: int) -> list[Crop]:
        return [self.sample(step, i) for i in range(self.batch_size)]

    def choose(self, step: int, index: int) -> tuple[np.random.Generator, int, str | None]:
        """The generator of a sample's place, the number of its case, and the class that it must show, if one was drawn."""
        rng = generator(self.seed, self.configuration, self.fold, step, index, f"{self.purpose}-patch")
        number = int(rng.integers(len(self.cases)))
        if self.sought:
            seeking = generator(self.seed, self.configuration, self.fold, step, index, "sought")
            if seeking.random() < SOUGHT_SHARE:
                return rng, *_draw_showing(seeking, self.sought, int(seeking.integers(len(self.sought))))
        if self.scarce and is_forced(index, batch_size=self.batch_size, foreground_share=self.foreground_share):
            drawing = generator(self.seed, self.configuration, self.fold, step, index, "scarce")
            place = int(drawing.integers(self.num_classes))
            if place < len(self.scarce):
                return rng, *_draw_showing(drawing, self.scarce, place)
        return rng, number, None

    def sample(self, step: int, index: int) -> Crop:
        """One crop: larger than the patch where it will be turned or scaled."""
        rng, number, shown = self.choose(step, index)
        case = self.cases[number]
        label_map, locations = case.labels, case.locations  # opened once: each asking opens a file
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
            label_map.shape,
            patch=(*flat, *patch),
            crop=(*flat, *crop),
            locations=locations if shown is None else {shown: locations[shown]},
            forced=shown is not None
            or is_forced(index, batch_size=self.batch_size, foreground_share=self.foreground_share),
        )
        image = cut(case.image, start, (*flat, *crop), outside=0).astype(np.float32)
        labels = cut(label_map, start, (*flat, *crop), outside=OUTSIDE_LABEL).astype(np.int16)
        maps = [labels]
        if self.previous_values:
            maps.append(cut(cast(CascadeSource, case).previous, start, (*flat, *crop), outside=0).astype(np.int16))
        return Crop(
            image=torch.from_numpy(image).reshape(-1, *crop),
            labels=torch.from_numpy(np.stack(maps)).reshape(len(maps), *crop),
            parameters=changes,
            noise=draw_noise(changes, self.recipe),
            previous_values=self.previous_values,
            disturbance=self._disturbance(step, index),
        )

    def _disturbance(self, step: int, index: int) -> Disturbance:
        """Of what the first stage found; none in validation, and none where nothing is augmented."""
        if not self.previous_values or self.purpose != "training" or not self.recipe.augment:
            return Disturbance()
        draws = generator(self.seed, self.configuration, self.fold, step, index, "previous-stage")
        return draw_disturbance(draws, len(self.previous_values))


def _draw_showing(rng: np.random.Generator, classes: Mapping[str, Sequence[int]], place: int) -> tuple[int, str]:
    """A case that shows the class at a place of the sorted ones, and that class."""
    name = sorted(classes)[place]
    return classes[name][int(rng.integers(len(classes[name])))], name


def finish(crops: Sequence[Crop], recipe: Recipe, device: torch.device) -> Batch:
    """The batch of augmented crops, on ``device``; classes of a first stage are channels behind those of the image."""
    done = []
    for crop in crops:
        image, labels = (each.to(device, non_blocking=True) for each in (crop.image, crop.labels))
        noise = None if crop.noise is None else crop.noise.to(device, non_blocking=True)
        image, labels = augment(crop.parameters, recipe, image, labels, noise)
        if crop.previous_values:
            found = previous_classes(labels[1], crop.previous_values, crop.disturbance)
            image = torch.cat([image, found.float()])
        done.append((image, labels))
    return torch.stack([image for image, _ in done]), torch.stack([labels[0] for _, labels in done]).long()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Messenger(Dataset[list[Crop] | Exception]):
    """A source for processes that read: errors with a message come back as values.

    Raised there, they would arrive as a traceback in a message, and `AutosegError` is what a person reads.
    """

    source: BatchSource

    def __getitem__(self, step: int) -> list[Crop] | Exception:
        try:
            return self.source[step]
        except (AutosegError, MemoryError) as error:
            return error


def load_batches(source: BatchSource, steps: range, *, num_workers: int, device: torch.device) -> Iterator[Batch]:
    """The batches of ``steps`` in order, on ``device``, from crops that ``num_workers`` processes read (0: this one).

    What a case's arrays raise is raised here, whoever read them; see `worker_died` for a process that was killed.
    """
    loader: DataLoader[list[Crop] | Exception] = DataLoader(
        _Messenger(source=source),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if num_workers else None,
    )
    return (finish(_or_raise(crops), source.recipe, device) for crops in loader)


def _or_raise(crops: list[Crop] | Exception) -> list[Crop]:
    if isinstance(crops, Exception):
        raise crops
    return crops


def worker_died(error: BaseException) -> bool:
    """Whether an error says that a process that reads was ended from outside; torch raises it wherever training then is."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
