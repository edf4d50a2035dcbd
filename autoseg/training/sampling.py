"""Which patches a training sees: drawn by counter, cut from the cases, and put together to batches (method sections 6.1, 7.2).

Every draw follows from what it is for, so any number of workers gives the same batches and there is no state to save. Crops are
read, and in training drawn at random, by workers; they are augmented on the device that trains. Shapes of volumes are those of
preprocessed ones, (a0, a1, a2) in plan axes; a 2D patch is cut as (1, a1, a2).
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from autoseg.compute.executor import batches_ahead
from autoseg.compute.workarounds import raise_file_limit
from autoseg.issues import AutosegError, Issue
from autoseg.training.augmentation import OUTSIDE_LABEL, Parameters, Recipe, augment, draw_noise, draw_parameters
from autoseg.training.batch_augmentation import augment_batch, make_tables, send
from autoseg.training.previous_stage import (
    Disturbance,
    disturb_batch,
    disturbance_tables,
    draw_disturbance,
    previous_classes,
)

logger = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""A batch that takes longer is worth a word: it takes seconds from a slow disk."""
LOOK_S = 5.0
"""Between checks of the workers while no batch arrives."""
SOUGHT_SHARE = 1 / 3
"""Of all samples, drawn around classes that were not learned."""
SCARCE_SHARE = 1 / 5
"""Of the cases; a class in fewer cases is scarce. Those of the usual datasets are in most cases."""
ANNOTATED = "annotated"
"""Key of locations of voxels that carry any annotation; only datasets with an ignore label have it."""
Batch = tuple[Tensor, Tensor]
"""float32 (N, C, patch...) and int64 (N, patch...)."""


class PatchSource(Protocol):
    """A preprocessed case as the sampler sees it; arrays read a slice without the whole."""

    @property
    def image(self) -> Sliceable:
        """float32 (C, a0, a1, a2)."""

    @property
    def labels(self) -> Sliceable:
        """int16 (a0, a1, a2)."""

    @property
    def locations(self) -> Mapping[str, NDArray[np.int32]]:
        """Some voxels (N, 3) of each class."""


class CascadeSource(PatchSource, Protocol):
    """A case with the label map that a first stage predicted."""

    @property
    def previous(self) -> Sliceable:
        """Integers (a0, a1, a2)."""


class Sliceable(Protocol):
    """An array on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any) -> NDArray[np.generic]: ...


def is_forced(sample: int, *, batch_size: int, foreground_share: float) -> bool:
    """Whether this sample of a batch must hold foreground (method section 7.2)."""
    return sample >= round(batch_size * (1 - foreground_share))


def draw_patch(
    rng: np.random.Generator,
    shape: Sequence[int],
    *,
    patch: Sequence[int],
    crop: Sequence[int],
    locations: Mapping[str, NDArray[np.int32]],
    forced: bool,
) -> tuple[int, int, int]:
    """Start of a crop of size ``crop`` around a patch of size ``patch`` in a volume of size ``shape``.

    A forced crop is centred on a voxel of a class that is drawn uniformly among the classes present; with an ignore
    label the others are centred on any annotated voxel. Unlike the reference, the upper border is kept as well as the
    lower one, so that no crop misses the image.
    """
    needs = [max(outer - inner, outer - size) for size, inner, outer in zip(shape, patch, crop, strict=True)]
    lowest = [-((need + 1) // 2) for need in needs]  # both ends included (method section 7.2)
    highest = [max(low, size - low - outer) for low, size, outer in zip(lowest, shape, crop, strict=True)]
    present = [name for name, voxels in locations.items() if len(voxels)]
    classes = [name for name in present if name != ANNOTATED]
    shown = classes[int(rng.integers(len(classes)))] if forced and classes else ANNOTATED
    if shown not in present:
        start = [int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    else:
        centre = locations[shown][int(rng.integers(len(locations[shown])))]
        start = [
            min(max(low, int(c) - size // 2), high)
            for c, size, low, high in zip(centre, crop, lowest, highest, strict=True)
        ]
    return start[0], start[1], start[2]


def cut(array: Sliceable, start: Sequence[int], size: Sequence[int], *, outside: float) -> NDArray[np.generic]:
    """The box of ``size`` at ``start`` of the last three axes; voxels outside the array get ``outside``."""
    shape = array.shape[-3:]
    channels = array.shape[:-3]
    inside: list[slice] = [
        slice(min(max(0, s), n), max(0, min(n, s + k))) for s, k, n in zip(start, size, shape, strict=True)
    ]
    piece: NDArray[np.generic] = np.asarray(array[(*(slice(None) for _ in channels), *inside)])
    if piece.shape == (*channels, *size):
        return piece
    result = np.full((*channels, *size), outside, dtype=piece.dtype)
    target = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))
    if piece.size:
        result[(slice(None),) * len(channels) + target] = piece
    return result


def crop_size(patch: Sequence[int], *, rotation: float, dummy_2d: bool) -> tuple[int, ...]:
    """Size of the crop that is loaded so that a rotated patch finds its corners in it (method section 6.1).

    ``rotation`` is the largest rotation angle in radians. ``patch`` has 2 or 3 axes.
    """
    angle = min(math.pi / 2, abs(rotation))
    c, s = math.cos(angle), math.sin(angle)
    if len(patch) == 2:
        x, y = patch
        spread = [max(x, x * c + y * s), max(y, abs(y * c - x * s))]
    else:
        x, y, z = patch
        spread = [
            max(x, x * c + y * s, abs(x * c - z * s)),
            max(y, y * c + z * s, abs(y * c - x * s)),
            max(z, x * s + z * c, abs(z * c - y * s)),
        ]
    size = [int(length / 0.85) for length in spread]
    if dummy_2d:
        size[0] = patch[0]
    return tuple(size)


def generator(seed: int, configuration: str, fold: int, step: int, sample: int, purpose: str) -> np.random.Generator:
    """The generator of one sample of one step.

    The same arguments give the same numbers in any process, on any machine, in any order.
    ``purpose`` separates draws that must not depend on each other, e.g. ``patch`` and ``augmentation``.
    """
    key = (seed, zlib.crc32(configuration.encode()), fold, step, sample, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One sample before its augmentation."""

    image: Tensor
    """float32 (C, crop...)."""
    labels: Tensor
    """int16 (1, crop...); of a cascade (2, crop...), the second as the first stage predicted it."""
    parameters: Parameters
    noise: Tensor | None
    """(C, patch...), what `draw_noise` gives."""
    previous_values: tuple[int, ...] = ()
    """Of a cascade: values of the first stage's classes."""
    disturbance: Disturbance = Disturbance()  # noqa: RUF009  # a frozen value
    """What is done to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """The crops of a batch in two tensors: every tensor that another process sends costs descriptors, and a copy to the device.

    Samples that will be rotated or scaled come first, all with crops of one shape; then the others, with crops of the patch's.
    """

    numbers: Tensor
    """float32 (n,): all images, then all noise."""
    labels: Tensor
    """int16 (m,)."""
    patch: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    """Of each sample's image, (C, crop...)."""
    places: tuple[int, ...]
    """Of each sample in the batch."""
    parameters: tuple[Parameters, ...]
    disturbances: tuple[Disturbance, ...]
    previous_values: tuple[int, ...]

    def pin_memory(self) -> PackedBatch:
        """A copy in pinned memory; a DataLoader calls it by this name."""
        return replace(self, numbers=self.numbers.pin_memory(), labels=self.labels.pin_memory())

    def to(self, device: torch.device) -> PackedBatch:
        """The same on a device; from pinned memory nothing waits for the copies."""
        numbers, labels = (each.to(device, non_blocking=True) for each in (self.numbers, self.labels))
        return replace(self, numbers=numbers, labels=labels)

    def stacks(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Views: images (n, C, crop...) and labels (n, M, crop...), those that move apart from the others; noise (n, C, patch...)."""
        moves = [sample.moves for sample in self.parameters]  # small crops of both kinds may have the same shape
        same = [(key[1], len([*each])) for key, each in groupby(zip(moves, self.shapes, strict=True))]
        maps = 2 if self.previous_values else 1
        noisy = sum(sample.noise_sigma is not None for sample in self.parameters)
        noise_shape = (noisy, self.shapes[0][0], *self.patch)
        *images, noise = _views(self.numbers, [*((count, *shape) for shape, count in same), noise_shape])
        labels = _views(self.labels, [(count, maps, *shape[1:]) for shape, count in same])
        return [*zip(images, labels, strict=True)], noise if noisy else None

    def tensors(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Views of each sample: image (C, crop...), labels (M, crop...) and noise (C, patch...), if there is any."""
        stacks, noise = self.stacks()
        left = iter(() if noise is None else noise)
        samples = (pair for stack in stacks for pair in zip(*stack, strict=True))
        for (image, labels), parameters in zip(samples, self.parameters, strict=True):
            yield image, labels, None if parameters.noise_sigma is None else next(left)

    def crops(self) -> list[Crop]:
        """The samples as they were packed, in order."""
        crops = [
            Crop(
                image=image,
                labels=labels,
                parameters=parameters,
                noise=noise,
                previous_values=self.previous_values,
                disturbance=disturbance,
            )
            for (image, labels, noise), parameters, disturbance in zip(
                self.tensors(), self.parameters, self.disturbances, strict=True
            )
        ]
        return [crop for _, crop in sorted(zip(self.places, crops, strict=True), key=lambda pair: pair[0])]


def pack(crops: Sequence[Crop], patch: tuple[int, ...]) -> PackedBatch:
    """The crops of a batch of patches of that shape, copied into two tensors."""
    places = sorted(range(len(crops)), key=lambda i: not crops[i].parameters.moves)
    ordered = [crops[i] for i in places]
    noise = [crop.noise for crop in ordered if crop.noise is not None]
    return PackedBatch(
        numbers=torch.cat([each.flatten() for each in (*(crop.image for crop in ordered), *noise)]),
        labels=torch.cat([crop.labels.flatten() for crop in ordered]),
        patch=patch,
        shapes=tuple(tuple(crop.image.shape) for crop in ordered),
        places=tuple(places),
        parameters=tuple(crop.parameters for crop in ordered),
        disturbances=tuple(crop.disturbance for crop in ordered),
        previous_values=ordered[0].previous_values,
    )


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSource(Dataset[list[Crop]]):
    """The crops of batch number ``step`` of one fold; they depend on nothing but these fields and the step."""

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
    """Classes to draw more patches around, each with the numbers of the cases that contain it; other draws stay the same."""
    scarce: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Classes in few cases, each with the numbers of these; forced samples draw their class before their case."""
    num_classes: int = 0
    """Classes in any case, scarce ones included."""
    previous_values: tuple[int, ...] = ()
    """Of a cascade: foreground values of the first stage's label maps, which ``cases`` then have (`CascadeSource`)."""
    share: range | None = None
    """The samples that this process computes, where several share a batch; none: all. Each is the same whoever draws it."""

    def __getitem__(self, step: int) -> list[Crop]:
        return [self.sample(step, i) for i in (range(self.batch_size) if self.share is None else self.share)]

    def choose(self, step: int, index: int) -> tuple[np.random.Generator, int, str | None]:
        """The generator of a sample's place, the number of its case, and the class that it must contain, if one was drawn."""
        rng = self._rng(step, index, f"{self.purpose}-patch")
        number = int(rng.integers(len(self.cases)))
        if self.sought:
            seeking = self._rng(step, index, "sought")
            if seeking.random() < SOUGHT_SHARE:
                return rng, *_draw_containing(seeking, self.sought, int(seeking.integers(len(self.sought))))
        if self.scarce and self._is_forced(index):
            drawing = self._rng(step, index, "scarce")
            place = int(drawing.integers(self.num_classes))
            if place < len(self.scarce):
                return rng, *_draw_containing(drawing, self.scarce, place)
        return rng, number, None

    def _rng(self, step: int, index: int, purpose: str) -> np.random.Generator:
        return generator(self.seed, self.configuration, self.fold, step, index, purpose)

    def _is_forced(self, index: int) -> bool:
        return is_forced(index, batch_size=self.batch_size, foreground_share=self.foreground_share)

    def sample(self, step: int, index: int) -> Crop:
        """One crop: larger than the patch if it will be rotated or scaled."""
        rng, number, shown = self.choose(step, index)
        case = self.cases[number]
        label_map, locations = case.labels, case.locations  # once: each access opens a file
        changes, disturbance = Parameters(), Disturbance()
        if self.purpose == "training":
            changes = draw_parameters(self._rng(step, index, "augmentation"), self.recipe)
            if self.previous_values and self.recipe.augment:
                disturbance = draw_disturbance(self._rng(step, index, "previous-stage"), len(self.previous_values))
        crop = patch = self.recipe.patch
        if changes.moves:
            crop = crop_size(patch, rotation=self.recipe.rotation, dummy_2d=self.recipe.dummy_2d)
        flat = (1,) * (3 - len(patch))
        start = draw_patch(
            rng,
            label_map.shape,
            patch=(*flat, *patch),
            crop=(*flat, *crop),
            locations=locations if shown is None else {shown: locations[shown]},
            forced=shown is not None or self._is_forced(index),
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
            disturbance=disturbance,
        )


def _draw_containing(rng: np.random.Generator, classes: Mapping[str, Sequence[int]], place: int) -> tuple[int, str]:
    """A case that contains the class at a place of the sorted ones, and that class."""
    name = sorted(classes)[place]
    return classes[name][int(rng.integers(len(classes[name])))], name


def cases_by_class(cases: Sequence[PatchSource]) -> dict[str, list[int]]:
    """Numbers of the cases that contain each class."""
    showing: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        for name, voxels in case.locations.items():
            if len(voxels) and name != ANNOTATED:
                showing.setdefault(name, []).append(number)
    return showing


def with_sought(source: BatchSource, names: Sequence[str]) -> BatchSource:
    """The source with more patches around the classes of these names, if cases contain them."""
    if not names:
        return source
    showing = cases_by_class(source.cases)
    return replace(source, sought={name: showing[name] for name in names if name in showing})


def with_scarce(source: BatchSource) -> BatchSource:
    """The source that draws scarce classes as often as others; if there are none, the same (decision 0117)."""
    showing = cases_by_class(source.cases)
    few = SCARCE_SHARE * len(source.cases)
    scarce = {name: numbers for name, numbers in showing.items() if len(numbers) < few}
    return replace(source, scarce=scarce, num_classes=len(showing)) if scarce else source


def finish(crops: Sequence[Crop] | PackedBatch, recipe: Recipe, device: torch.device) -> Batch:
    """The batch of augmented crops, on ``device``; classes of a first stage are channels behind those of the image."""
    if device.type == "cuda":
        return finish_together(crops if isinstance(crops, PackedBatch) else pack(crops, recipe.patch), recipe, device)
    done = []
    for crop in crops.crops() if isinstance(crops, PackedBatch) else crops:
        image, labels = (each.to(device, non_blocking=True) for each in (crop.image, crop.labels))
        noise = None if crop.noise is None else crop.noise.to(device, non_blocking=True)
        image, labels = augment(crop.parameters, recipe, image, labels, noise)
        if crop.previous_values:
            found = previous_classes(labels[1], crop.previous_values, crop.disturbance)
            image = torch.cat([image, found.float()])
        done.append((image, labels))
    return torch.stack([image for image, _ in done]), torch.stack([labels[0] for _, labels in done]).long()


def finish_together(packed: PackedBatch, recipe: Recipe, device: torch.device) -> Batch:
    """The same with all samples in the same kernels, and labels that may differ where two tie (decision 0217)."""
    tables = make_tables(packed.parameters, recipe, packed.shapes[0][1:])
    tables["order"] = np.argsort(packed.places)
    if packed.previous_values:
        tables |= disturbance_tables(packed.disturbances, packed.previous_values, len(recipe.patch))
    sent = send(tables, device)
    stacks, noise = packed.to(device).stacks()
    images, labels = augment_batch(stacks, noise, packed.parameters, sent, recipe)
    if packed.previous_values:
        found = disturb_batch(labels[:, 1], packed.disturbances, sent)
        images = torch.cat([images, found.float()], 1)
    return images.index_select(0, sent["order"]), labels[:, 0].index_select(0, sent["order"]).long()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Messenger(Dataset[PackedBatch | Exception]):
    """A source for workers: errors with a message come back as values.

    Raised there, they would arrive as a traceback in a message instead of an `AutosegError`.
    """

    source: BatchSource

    def __getitem__(self, step: int) -> PackedBatch | Exception:
        try:
            return pack(self.source[step], self.source.recipe.patch)
        except (AutosegError, MemoryError) as error:
            return error


def load_crops(
    source: BatchSource,
    steps: range,
    *,
    num_workers: int,
    device: torch.device,
    say: Callable[[Issue], None] = lambda issue: logger.warning("%s", issue),
    patience_s: float = PATIENCE_S,
) -> Generator[Sequence[Crop] | PackedBatch, None, None]:
    """The crops of the batches of ``steps`` in order, read by ``num_workers`` workers (0: this process), for `finish`.

    What a case's arrays raise is raised here, in any worker; see `worker_died` for a worker that was killed. ``say`` is called
    whenever no batch came for ``patience_s`` seconds.
    """
    if not num_workers and device.type != "cuda":
        yield from map(source.__getitem__, steps)
        return
    raise_file_limit()
    loader: DataLoader[PackedBatch | Exception] = DataLoader(
        _Messenger(source=source),
        batch_size=None,
        sampler=steps,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=batches_ahead(num_workers) if num_workers else None,
        timeout=min(LOOK_S, patience_s) if num_workers else 0,
    )
    batches = iter(loader)
    while (crops := _next_batch(batches, patience_s, say)) is not None:
        if isinstance(crops, Exception):
            raise crops
        yield crops


def _next_batch(
    batches: Iterator[PackedBatch | Exception], patience_s: float, say: Callable[[Issue], None]
) -> PackedBatch | Exception | None:
    """The next one however long it takes, None at the end; ``say`` is called after each time of that length."""
    began, told = time.monotonic(), 0
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:  # a worker that was killed is seen by now, too
            if not str(error).startswith("DataLoader timed out"):
                raise
        waited = time.monotonic() - began
        if waited < (told + 1) * patience_s:
            continue
        told += 1
        message = f"no batch came for {waited:.0f} s; the processes that read patches are slow or hang"
        fix = "look at the disk's load, or interrupt and resume with --workers 1"
        say(Issue(code="training.no_batch", severity="warning", where="reading patches", message=message, fix=fix))


def worker_died(error: BaseException) -> bool:
    """Whether an error is torch's for a worker that was killed; it is raised wherever training then is."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
