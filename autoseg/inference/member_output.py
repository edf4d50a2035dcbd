"""What the networks of one configuration say about an image: logits on the preprocessed grid, and label maps decided from them.

Logits are computed while they are read, and every slab of them is resampled, decided and forgotten before the next one.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.compute.memory import available_bytes
from autoseg.compute.workarounds import kept_heap
from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import Placement, restore_labels
from autoseg.imaging.resampling import (
    Scores,
    decide_separate_axis,
    reads_twice,
    resample_argmax,
    resample_regions,
    resample_slabs,
)
from autoseg.inference.model import Member
from autoseg.inference.needs import GB, MemberNeeds, Use, member_needs
from autoseg.inference.sliding_window import STEP
from autoseg.inference.window_logits import DTYPES, HalfPrecisionOverflowError, NoWindowFitsError, WindowLogits
from autoseg.inference.window_sums import Room
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.prepare import with_classes
from autoseg.preprocessing.store import scratch_array
from planners import Configuration, Labels

Floats = NDArray[np.float32]
LabelMap = NDArray[np.integer]
Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInput:
    """An image, preprocessed for one configuration."""

    image: Floats
    """(C, a0, a1, a2)."""
    placement: Placement
    previous: LabelMap | None = None
    """Label map (a0, a1, a2) of a cascade's first stage if it was predicted before."""


class ImageSource(Protocol):
    """An image that can be preprocessed."""

    @property
    def geometry(self) -> Geometry: ...

    def prepare(self, configuration: Configuration) -> NetworkInput: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a model's networks are used; the label map hardly depends on it."""

    device: torch.device
    mirroring: bool = True
    """Average over mirror images if training mirrored; without, prediction is up to eight times faster."""
    step: float = STEP
    """Largest distance of windows, as a share of the patch; larger ones are faster."""
    every_window: bool = False
    """Compute windows without contrast, all air of a CT, each time anew."""
    memory_bytes: int | None = None
    """Main memory that the process may take; none: what is free."""
    folder: Path | None = None
    """For temporary files; none: that of the system."""
    parts: int = 1
    """Configurations whose networks compute side by side, and share what memory there is."""
    kept_bytes: int = 0
    """Of memory that is needed for something else: label maps."""

    @property
    def available_bytes(self) -> int:
        """Main memory that one configuration may take."""
        return max(0, available_bytes(self.memory_bytes) - self.kept_bytes) // self.parts

    def use(self, member: Member) -> Use:
        """Of a configuration."""
        return Use(
            configuration=member.configuration,
            training=member.training,
            networks=len(member.networks),
            mirror_axes=len(member.mirror_axes) if self.mirroring else 0,
            step=self.step,
            half_sums=member.window_sums == "float16",
            on_cpu=self.device.type == "cpu",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberOutput:
    """What the networks of one configuration compute for an image, on the preprocessed grid."""

    logits: Scores
    """(K, a0, a1, a2), mean over networks, windows and mirror images."""
    placement: Placement
    configuration: Configuration
    needs: MemberNeeds | None = None
    """What computing them takes; none: they are in memory."""
    folder: Path | None = None
    """For temporary files; none: that of the system."""

    def label_map(self, labels: Labels) -> LabelMap:
        """(Z, Y, X), internal values, in the axes of the source image (method section 8.2)."""
        shape, spacing_mm = self.placement.shape_after_cropping, self.placement.spacing_mm
        decided = consume([self], lambda: self._decide(shape, spacing_mm, labels))
        return restore_labels(decided, self.placement)

    def next_stage(self, following: Placement, labels: Labels) -> LabelMap:
        """(a0, a1, a2), internal values, on the grid of a cascade's next stage (method section 8.4).

        ``following`` is the placement of the same case there, so both fill the same box of the image. Training and
        prediction share this. Raises `ValueError` if the boxes differ.
        """
        own = self.placement
        if own.box != following.box or own.transpose_forward != following.transpose_forward:
            raise ValueError("the two stages see different parts of the image")
        shape, spacing_mm = following.resampled_shape, own.resampled_spacing_mm
        return consume([self], lambda: self._decide(shape, spacing_mm, labels))

    def slabs(self) -> Iterator[tuple[slice, list[Floats]]]:
        """Logits on the grid of the cropped image, plan axes: rows of the first axis, and for each class (rows, a1, a2)."""
        shape, resampling = self.placement.shape_after_cropping, self.configuration.resample_logits
        axis = self._separate_axis(self.placement.spacing_mm)
        with self._readable(shape) as logits:
            yield from resample_slabs(logits, shape, resampling=resampling, separate_axis=axis)

    def _decide(self, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], labels: Labels) -> LabelMap:
        """Internal label values on a grid of ``shape`` voxels."""
        resampling, axis = self.configuration.resample_logits, self._separate_axis(spacing_mm)
        with self._readable(shape) as logits:
            if labels.region_order is None:
                return resample_argmax(logits, shape, resampling=resampling, separate_axis=axis)
            return resample_regions(
                logits, shape, labels.region_order, resampling=resampling, separate_axis=axis, overlaps=labels.overlaps
            )

    def _separate_axis(self, spacing_mm: tuple[float, ...]) -> int | None:
        own_mm, separate_z = self.placement.resampled_spacing_mm, self.configuration.resample_logits.separate_z
        return decide_separate_axis(own_mm, spacing_mm, separate_z)

    @contextmanager
    def _readable(self, shape: tuple[int, int, int]) -> Iterator[Scores]:
        """The logits, in a temporary file if they are read more than once."""
        old, resampling = self.logits.shape[1:], self.configuration.resample_logits
        if not isinstance(self.logits, WindowLogits) or not reads_twice(old, shape, resampling):
            yield self.logits
            return
        with scratch_array(self.logits.shape, np.float32, folder=self.folder) as kept:
            for row in range(old[0]):
                kept[:, row : row + 1] = self.logits[:, row : row + 1]
            yield kept


def consume(outputs: Sequence[MemberOutput], use: Callable[[], T]) -> T:
    """What ``use`` makes of outputs, whose logits are computed meanwhile.

    Where sums overflow half precision it is called again, with single precision. Raises `AutosegError` if not even one window fits
    into memory.
    """
    computed = [each.logits for each in outputs if isinstance(each.logits, WindowLogits)]
    if not computed:
        return use()
    for each in computed:
        each.restart()
    kept = [math.inf if each.needs is None or each.needs.disk_bytes else each.needs.memory_bytes for each in outputs]
    with kept_heap(computed[0].device, lambda: sum(kept)):
        try:
            while True:
                try:
                    return use()
                except HalfPrecisionOverflowError as error:
                    for each in computed:
                        each.restart(torch.float32 if each is error.logits else None)
        except NoWindowFitsError as error:
            one = next(each for each in outputs if each.logits is error.logits)
            raise _out_of_memory(one, computed[0].device) from error
        finally:
            for each in computed:
                each.close()


def run_member(
    member: Member, source: ImageSource, labels: Labels, how: How, *, progress: Progress | None = None
) -> MemberOutput:
    """The output of one configuration's networks for an image; the first stage of a cascade runs before, if needed."""
    found = source.prepare(member.configuration)
    image, previous = found.image, found.previous
    stages = 1 + (previous is None and member.previous is not None)
    if previous is None and member.previous is not None:
        first = run_member(member.previous, source, labels, how, progress=part_of(progress, 0, stages))
        previous = first.next_stage(found.placement, labels)
    if previous is not None:
        image = with_classes(image, previous, labels.values)
    told = part_of(progress, stages - 1, stages)
    logits, needs = open_logits(member, image, how, progress=told)
    return MemberOutput(
        logits=logits,
        placement=found.placement,
        configuration=member.configuration,
        needs=needs,
        folder=how.folder,
    )


def open_logits(
    member: Member, image: Floats, how: How, *, progress: Progress = lambda done, total: None
) -> tuple[WindowLogits, MemberNeeds]:
    """Logits of a preprocessed image (C, a0, a1, a2), to be computed, and what that takes.

    Raises `AutosegError` where memory or disk would not be enough.
    """
    free = how.available_bytes  # once: sums fill what is free to the last byte, and a moment later there may be less
    needs = member_needs(how.use(member), image.shape, free)
    _require(needs, member.configuration, image.shape, how, free)
    logits = WindowLogits(
        image=torch.from_numpy(np.ascontiguousarray(image)),
        networks=member.networks,
        num_outputs=member.configuration.network.num_outputs,
        patch=member.configuration.patch_shape,
        mirror_axes=member.mirror_axes if how.mirroring else (),
        precision=member.training.precision,
        device=how.device,
        batch_size=needs.batch_size,
        step=how.step,
        sums=DTYPES[member.window_sums],
        room=Room(memory_bytes=needs.sums_bytes if needs.disk_bytes else None, folder=how.folder),
        every_window=how.every_window,
        remembers=needs.remembered_bytes > 0 or how.device.type != "cpu",
        progress=progress,
    )
    return logits, needs


def part_of(progress: Progress | None, i: int, number: int) -> Progress:
    """Progress in the part ``i`` of ``number`` equal ones."""
    return lambda done, total: None if progress is None else progress(i * total + done, number * total)


def _require(needs: MemberNeeds, configuration: Configuration, shape: Sequence[int], how: How, free: int) -> None:
    """Raise `AutosegError` before memory or disk is asked for that is not there, and the system ends the process."""
    needed = needs.memory_bytes if how.memory_bytes is not None else needs.memory_bytes - needs.network_bytes
    if how.device.type == "cpu" and needed > free:
        raise _too_little_memory(configuration, shape, needs, free)
    folder = how.folder or Path(tempfile.gettempdir())
    if needs.disk_bytes > (left := shutil.disk_usage(folder).free):
        message = f"sums of windows take {needs.disk_bytes / GB:.1f} GB there, since memory is short; {left / GB:.1f} GB are free"
        fix = "free some disk space, or let prediction use more memory"
        raise AutosegError(Issue(code="predict.disk", where=str(folder), message=message, fix=fix))


def _out_of_memory(output: MemberOutput, device: torch.device) -> AutosegError:
    """The error when not even one window fits."""
    network = 0 if output.needs is None else output.needs.network_bytes
    needed = f", which takes about {network / GB:.1f} GB" if network else f" on {device}"
    message = f"out of memory for an image of {_sizes(output.logits.shape[1:])} voxels (as preprocessed) even with one window at a time{needed}"
    return AutosegError(
        Issue(code="predict.out_of_memory", where=output.configuration.name, message=message, fix=_less_memory(device))
    )


def _too_little_memory(
    configuration: Configuration, shape: Sequence[int], needs: MemberNeeds, free: int
) -> AutosegError:
    message = (
        f"an image of {_sizes(shape[1:])} voxels (as preprocessed) needs {needs.memory_bytes / GB:.1f} GB of memory; "
        f"{free / GB:.1f} GB may be used"
    )
    fix = _less_memory(torch.device("cpu"))
    return AutosegError(Issue(code="predict.out_of_memory", where=configuration.name, message=message, fix=fix))


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _less_memory(device: torch.device) -> str:
    other = "" if device.type == "cpu" else ", or predict with --device cpu"
    return f"check the spacing of the image, or close other programs{other}"
