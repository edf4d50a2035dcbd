"""A model that is kept loaded: arrays or files in, label maps out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.compute.device import choose_device
from autoseg.compute.memory import is_out_of_memory, micro_batch_sizes, release_memory
from autoseg.compute.workarounds import kept_heap
from autoseg.data.labels import to_file_values
from autoseg.evaluation.postprocessing import apply_postprocessing
from autoseg.evaluation.selection import labels_from_probabilities, mean_probabilities
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.placement import Placement
from autoseg.imaging.readers import read_image
from autoseg.inference.export import labels_for_next_stage, labels_from_logits, probabilities_from_logits
from autoseg.inference.model import Member, Model, load_model
from autoseg.inference.sliding_window import predict_logits, predict_logits_in_half
from autoseg.issues import AutosegError
from autoseg.preprocessing.cascade import with_classes
from autoseg.preprocessing.prepare import prepare_image
from planners import estimate_configuration_memory, estimate_volume_memory, with_width

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model says of one image, in the axes of the image."""

    labels: NDArray[np.integer]
    """(Z, Y, X), with the label values of the dataset's own files."""
    probabilities: Floats | None
    """(K, Z, Y, X), if asked for; channels are background and classes, or regions."""
    geometry: Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A loaded model."""

    model: Model
    mirroring: bool = True
    """Average over mirror images where training mirrored; without, prediction is up to eight times faster."""

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto", mirroring: bool = True) -> Self:
        """The model of a run folder or bundle on ``device`` (``auto``, ``cpu``, ``cuda`` ...)."""
        return cls(model=load_model(Path(path), device=choose_device(device)), mirroring=mirroring)

    def predict(self, image: NDArray[np.floating], *, spacing_mm: Sequence[float]) -> NDArray[np.integer]:
        """Label map (Z, Y, X), with the dataset's own label values, of an image (C, Z, Y, X) or (Z, Y, X).

        ``spacing_mm`` is (z, y, x). The axes must run as in canonical orientation: z up, y to the back, x to the
        left of the patient.
        """
        channels = image[None] if image.ndim == 3 else image
        if channels.ndim != 4 or len(spacing_mm) != 3:
            raise AutosegError(
                f"found an image of shape {image.shape} with spacing {tuple(spacing_mm)}; give (C, Z, Y, X) or (Z, Y, X) "
                "and three spacings (z, y, x) in mm"
            )
        z, y, x = channels.shape[1:]
        geometry = Geometry(
            shape=(z, y, x), spacing_mm=(float(spacing_mm[0]), float(spacing_mm[1]), float(spacing_mm[2]))
        )
        return self.predict_volume(Image(array=channels.astype(np.float32), geometry=geometry)).labels

    def predict_files(self, paths: Sequence[Path], *, probabilities: bool = False) -> Prediction:
        """Prediction for the image in ``paths``: one file for each channel, or one with all channels."""
        return self.predict_volume(read_image(paths), probabilities=probabilities)

    def predict_volume(self, volume: Image, *, probabilities: bool = False) -> Prediction:
        """Prediction for an image in memory; its geometry decides how it is turned."""
        model, expected = self.model, self.model.plan.channels
        if len(volume.array) != len(expected):
            raise AutosegError(
                f"the image has {len(volume.array)} channels, but the model was trained on {len(expected)}: "
                f"{', '.join(expected)}; give one file for each, in this order"
            )
        scores: Floats | None = None
        if probabilities or len(model.members) > 1:
            scores = mean_probabilities(self._member_probabilities(member, volume) for member in model.members)
            labels: NDArray[np.integer] = labels_from_probabilities(scores, model.plan.labels)
        else:
            member = model.members[0]
            logits, placement = self._logits(member, volume)
            labels = labels_from_logits(logits, placement, member.configuration, model.plan.labels)
        labels = apply_postprocessing(labels, model.selection.postprocessing, model.plan.labels)
        return Prediction(
            labels=to_file_values(labels, model.dataset.file_values),
            probabilities=scores if probabilities else None,
            geometry=volume.geometry,
        )

    def _member_probabilities(self, member: Member, volume: Image) -> Floats:
        logits, placement = self._logits(member, volume)
        return probabilities_from_logits(logits, placement, member.configuration, self.model.plan.labels)

    def _logits(self, member: Member, volume: Image) -> tuple[Floats, Placement]:
        plan = self.model.plan
        prepared = prepare_image(volume, plan, member.configuration)
        image, placement = prepared.image, prepared.placement
        if member.previous is not None:
            image = with_classes(image, self._previous_labels(member.previous, volume, placement), plan.labels.values)
        axes = member.mirror_axes if self.mirroring else ()
        return member_logits(member, image, mirror_axes=axes, device=self.model.device), placement

    def _previous_labels(self, previous: Member, volume: Image, following: Placement) -> NDArray[np.integer]:
        """What the first stage says, on the grid of the second."""
        logits, placement = self._logits(previous, volume)
        return labels_for_next_stage(logits, placement, following, previous.configuration, self.model.plan.labels)


def member_logits(member: Member, image: Floats, *, mirror_axes: Sequence[int], device: torch.device) -> Floats:
    """Mean logits (K, a0, a1, a2) of a member's networks for a preprocessed image (C, a0, a1, a2).

    Where memory is not enough, fewer windows go through the network at once, and at last sums are gathered in main
    memory; raises `AutosegError` where that is not enough either.
    """
    with kept_heap(device, lambda: held_bytes(member, image)):
        for size, gathered_on in _frugal_ways(member.training.batch_size, device):
            logits = _try_logits(member, image, mirror_axes, device, size=size, gathered_on=gathered_on)
            if logits is not None:
                return logits
    raise _refuse_for_memory(member, image, device)


def _frugal_ways(batch_size: int, device: torch.device) -> list[tuple[int, torch.device]]:
    """Windows at once and where their sums are gathered, each way with less memory than the one before."""
    ways = [(size, device) for size in micro_batch_sizes(batch_size)]
    return ways if device.type == "cpu" else [*ways, (1, torch.device("cpu"))]


def _try_logits(
    member: Member,
    image: Floats,
    mirror_axes: Sequence[int],
    device: torch.device,
    *,
    size: int,
    gathered_on: torch.device,
) -> Floats | None:
    """`member_logits` in one way; None where memory was not enough, with all given back that the attempt took."""
    predict = predict_logits_in_half if member.window_sums == "float16" else predict_logits
    try:
        logits = predict(
            torch.from_numpy(np.ascontiguousarray(image)),
            member.networks,
            patch=member.configuration.patch_shape,
            mirror_axes=mirror_axes,
            precision=member.training.precision,
            device=device,
            batch_size=size,
            gathered_on=gathered_on,
        )
        result: Floats = logits.numpy()
        return result
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("%d windows at once with sums on %s do not fit: %s", size, gathered_on, error)
    release_memory(device)  # not before: the error holds on to what the attempt had taken
    return None


def _refuse_for_memory(member: Member, image: Floats, device: torch.device) -> AutosegError:
    """The error where memory is not enough for one window at a time."""
    shape = " x ".join(map(str, image.shape[1:]))
    windows, sums = (needed / GB for needed in _needed_bytes(member, image, batch_size=1))
    main = (
        f" on {device} and {sums:.1f} GB of main memory"
        if device.type != "cpu"
        else f" and {sums:.1f} GB for their sums"
    )
    elsewhere = "" if device.type == "cpu" else ", or predict with --device cpu"
    return AutosegError(
        f"{member.configuration.name}: memory is not enough to predict an image of {shape} voxels (as preprocessed), not even "
        f"one window at a time, which takes about {windows:.1f} GB{main}; close what else uses it{elsewhere}"
    )


def held_bytes(member: Member, image: Floats) -> int:
    """Main memory for the windows and the logits of an image, where nothing that is freed is given back."""
    return sum(_needed_bytes(member, image, batch_size=member.training.batch_size, keeps_freed=True))


def _needed_bytes(member: Member, image: Floats, *, batch_size: int, keeps_freed: bool = False) -> tuple[int, int]:
    """Memory for so many windows at once, and for the logits of an image."""
    training, configuration = member.training, member.configuration
    windows = estimate_configuration_memory(
        configuration,
        dtype=training.precision,
        window_batch_size=batch_size,
        network=with_width(configuration.network, training.base_features),
        keeps_freed=keeps_freed,
    )
    return windows.inference_bytes, estimate_volume_memory(configuration, math.prod(image.shape[1:]))
