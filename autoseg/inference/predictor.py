"""A loaded model: arrays, files or stored cases in, label maps out."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.compute.device import choose_device
from autoseg.compute.memory import free_memory_bytes, is_out_of_memory, micro_batch_sizes, release_memory
from autoseg.compute.workarounds import kept_heap
from autoseg.data.labels import to_file_values
from autoseg.evaluation.label_maps import (
    apply_postprocessing,
    labels_from_probabilities,
    mean_probabilities,
    probability_slabs,
    rank_labels,
)
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import canonical_geometry
from autoseg.imaging.placement import Placement, restore_labels, restore_probabilities
from autoseg.imaging.readers import Imagelike, as_image, is_picture
from autoseg.imaging.resampling import (
    decide_separate_axis,
    resample_argmax,
    resample_probabilities,
    resample_regions,
    resample_slabs,
)
from autoseg.inference.model import Member, Model, load_model
from autoseg.inference.sliding_window import predict_logits, predict_logits_in_half
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.prepare import open_previous, prepare_image, source_orientation, with_classes
from autoseg.preprocessing.store import open_case, require_cases
from planners import (
    Configuration,
    Labels,
    Plan,
    estimate_configuration_memory,
    estimate_volume_memory,
    transpose,
    with_width,
)

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
LabelMap = NDArray[np.integer]
NetworkInput = tuple[Floats, Placement, LabelMap | None]
"""An image (C, a0, a1, a2), preprocessed for one configuration; the label map (a0, a1, a2) of a cascade's first stage if it
was predicted before."""
GB = 1e9
FAR = 4.0
"""A spacing or extent that is this many times that of the median training case, or that fraction of it, gets a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpreparedImage:
    """An image in memory, preprocessed on demand."""

    image: Image
    plan: Plan

    @property
    def geometry(self) -> Geometry:
        """Of the image."""
        return self.image.geometry

    def prepare(self, configuration: Configuration) -> NetworkInput:
        """The image as ``configuration`` needs it. Raises `AutosegError` for an image that does not fit the plan."""
        prepared = prepare_image(self.image, self.plan, configuration)
        return prepared.image, prepared.placement, None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A case that was preprocessed before. Holds paths only."""

    folder: Path
    """Of the preprocessed cases of one configuration."""
    case_id: str
    made_from: str = ""
    """Key that the stored case must have; empty: any."""
    previous: Path | None = None
    """Of a cascade: folder of the first stage's label maps."""

    @property
    def geometry(self) -> Geometry:
        """Of the image before preprocessing."""
        return open_case(self.folder, self.case_id).placement.source

    def prepare(self, configuration: Configuration) -> NetworkInput:
        """The stored arrays, which must be those of ``configuration``.

        Raises `AutosegError` where they are missing or damaged, or another process has replaced them.
        """
        case = open_case(self.folder, self.case_id)
        image = np.asarray(case.image[:], dtype=np.float32)
        previous = None if self.previous is None else open_previous(self.previous, case)[:]
        if self.made_from:
            require_cases(self.folder, {self.case_id: self.made_from})
        return image, case.placement, previous


ImageSource = UnpreparedImage | StoredImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model predicts for one image, in the axes of the image."""

    labels: LabelMap
    """(Z, Y, X), with the label values of the dataset's own files."""
    probabilities: Floats | None
    """(K, Z, Y, X), 0 to 1, if asked for; channels are background and classes, or regions."""
    geometry: Geometry
    ranked: LabelMap | None = None
    """As ``labels``, by RankSEG instead of the largest probability, if asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A loaded model that predicts one image after another."""

    model: Model
    mirroring: bool = True
    """Average over mirror images if training mirrored; without, prediction is up to eight times faster."""

    @classmethod
    def load(cls, path: Path | str, *, device: str = "auto", mirroring: bool = True) -> Self:
        """The model of a run folder or bundle on ``device`` (``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...).

        Raises `AutosegError` for anything else, for an unfinished run, and for damaged files.
        """
        return cls(model=load_model(Path(path), device=choose_device(device)), mirroring=mirroring)

    @property
    def needs_directions(self) -> bool:
        """Whether an array needs its affine or axes: the training images had directions."""
        return not (self.model.plan.strict_reference or is_picture(f"a{self.model.dataset.file_ending}"))

    def predict(self, image: Imagelike, **place: Any) -> NDArray[np.integer]:
        """Label map of an image, with the dataset's own label values, in the axes of the image; see `predict_image`."""
        return self.predict_image(image, **place).labels

    def predict_image(
        self,
        image: Imagelike,
        *,
        affine: NDArray[np.floating] | None = None,
        spacing_mm: Sequence[float] | None = None,
        axes: str | None = None,
        probabilities: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Prediction for an image: a path or paths, an `Image`, a SimpleITK or nibabel image, or an array.

        Paths are those of one image: a file per channel, or one with all. Label map and probabilities have the axes of
        what was given: (Z, Y, X) of files, SimpleITK images and arrays, (X, Y, Z) of nibabel images. An array is
        (C, Z, Y, X) or (Z, Y, X), and needs its place: its ``affine`` (4, 4), from indices (z, y, x, 1) to RAS in mm as
        `Image.affine`; or ``spacing_mm`` (z, y, x) with ``axes``, the directions in which z, y and x run, such as "SPL":
        to Superior, Posterior, Left. Only models of images without directions need no ``axes``. ``progress`` is told how
        many windows are done, and how many there are.

        Raises `AutosegError` for other types, shapes, spacings and channels, and voxels that are not finite. Warns
        (`UserWarning`) of an image that is unlike the training cases: its spacing, its extent, or no CT where that was CT.
        """
        found, is_reversed = as_image(
            image, affine=affine, spacing_mm=spacing_mm, axes=axes, needs_directions=self.needs_directions
        )
        self._require_channels(found)
        far = far_from_training(found.geometry, self.model.plan)
        for reason in (*([far] if far else []), *not_ct(found, self.model.plan)):
            text = f"the image is unlike the training cases, predictions may be wrong: {reason}"
            warnings.warn(text, stacklevel=3)
        prediction = self.predict_read(found, probabilities=probabilities, progress=progress)
        if not is_reversed:
            return prediction
        scores = prediction.probabilities
        return replace(
            prediction,
            labels=prediction.labels.transpose(2, 1, 0),
            probabilities=None if scores is None else scores.transpose(0, 3, 2, 1),
        )

    def _require_channels(self, image: Image) -> None:
        expected, number = self.model.plan.channels, len(image.array)
        if number == len(expected):
            return
        message = f"{number} channels, but the model was trained on {len(expected)}: {', '.join(expected)}"
        fix = "pass one volume (of a file: FILE#frame1)"
        if image.array.shape[-1] == len(expected):
            message, fix = (
                f"an array of shape {image.array.shape}: {message}",
                "pass np.moveaxis(array, -1, 0): channels come first",
            )
        elif len(expected) > 1:
            fix = "pass (C, Z, Y, X), or one file per channel, in this order"
        raise AutosegError(Issue(code="image.channels", where="", message=message, fix=fix))

    def predict_read(
        self,
        image: Image,
        *,
        probabilities: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Prediction for an image that was read, without warnings. Raises `AutosegError` for other channels."""
        self._require_channels(image)
        source = UnpreparedImage(image=image, plan=self.model.plan)
        return self.predict_source(source, probabilities=probabilities, progress=progress)

    def predict_source(
        self,
        source: ImageSource,
        *,
        probabilities: bool = False,
        ranked: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Prediction for an image that is preprocessed already, or on demand.

        The label map of a single configuration is decided slab by slab; probabilities, if asked for or averaged over
        several configurations, are held at full size. With ``ranked`` the label maps of both decoders, whatever the model's is.
        """
        model, labels_of_plan = self.model, self.model.plan.labels
        outputs = (
            run_member(
                member,
                source,
                labels_of_plan,
                device=model.device,
                mirroring=self.mirroring,
                progress=_part_of(progress, i, len(model.members)),
            )
            for i, member in enumerate(model.members)
        )
        scores: Floats | None = None
        ranks, by_rank = ranked or model.decoder == "rankseg", None
        if len(model.members) == 1:
            output = next(outputs)
            if ranks:
                labels, by_rank = output.ranked_maps(labels_of_plan)
            else:
                labels = output.label_map(labels_of_plan)
            scores = output.probabilities(labels_of_plan) if probabilities else None
        else:
            scores = mean_probabilities((output.probabilities(labels_of_plan) for output in outputs), model.weights)
            if ranks:
                slabs = probability_slabs(scores)
                labels, by_rank = rank_labels(slabs, scores.shape[1:], labels_of_plan, are_logits=False)
            else:
                labels = labels_from_probabilities(scores, labels_of_plan)
        if not ranked and by_rank is not None:
            labels, by_rank = by_rank, None
        finish = partial(self._finish, voxel_mm3=1000 * source.geometry.voxel_volume_ml)
        return Prediction(
            labels=finish(labels),
            probabilities=scores if probabilities else None,
            geometry=source.geometry,
            ranked=None if by_rank is None else finish(by_rank),
        )

    def _finish(self, labels: LabelMap, *, voxel_mm3: float) -> LabelMap:
        """After postprocessing, with the values of the dataset's own files."""
        model = self.model
        done = apply_postprocessing(labels, model.postprocessing, model.plan.labels, voxel_mm3=voxel_mm3)
        return to_file_values(done, model.dataset.file_values)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberOutput:
    """What the networks of one configuration compute for an image, on the preprocessed grid."""

    logits: Floats
    """(K, a0, a1, a2), mean over networks, windows and mirror images."""
    placement: Placement
    configuration: Configuration

    def label_map(self, labels: Labels) -> LabelMap:
        """(Z, Y, X), internal values, in the axes of the source image (method section 8.2).

        One slab at a time is resampled and decided, so all classes are never held at full size.
        """
        decided = self._decide(self.placement.shape_after_cropping, self.placement.spacing_mm, labels)
        return restore_labels(decided, self.placement)

    def ranked_maps(self, labels: Labels) -> tuple[LabelMap, LabelMap]:
        """`label_map`, and the one by RankSEG."""
        shape, axis = self.placement.shape_after_cropping, self._separate_axis(self.placement.spacing_mm)
        slabs = resample_slabs(self.logits, shape, resampling=self.configuration.resample_logits, separate_axis=axis)
        plain, ranked = rank_labels(slabs, shape, labels, are_logits=True)
        return restore_labels(plain, self.placement), restore_labels(ranked, self.placement)

    def probabilities(self, labels: Labels) -> Floats:
        """(K, Z, Y, X), in the axes of the source image, all at full size; background outside the crop."""
        probabilities = resample_probabilities(
            self.logits,
            self.placement.shape_after_cropping,
            resampling=self.configuration.resample_logits,
            separate_axis=self._separate_axis(self.placement.spacing_mm),
            has_regions=labels.has_regions,
        )
        return restore_probabilities(probabilities, self.placement, has_regions=labels.has_regions)

    def next_stage(self, following: Placement, labels: Labels) -> LabelMap:
        """(a0, a1, a2), internal values, on the grid of a cascade's next stage (method section 8.4).

        ``following`` is the placement of the same case there, so both fill the same box of the image. Training and
        prediction share this. Raises `ValueError` if the boxes differ.
        """
        own = self.placement
        if own.box != following.box or own.transpose_forward != following.transpose_forward:
            raise ValueError("the two stages see different parts of the image")
        return self._decide(following.resampled_shape, own.resampled_spacing_mm, labels)

    def _decide(self, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], labels: Labels) -> LabelMap:
        """Internal label values on a grid of ``shape`` voxels."""
        resampling, axis = self.configuration.resample_logits, self._separate_axis(spacing_mm)
        if labels.region_order is None:
            return resample_argmax(self.logits, shape, resampling=resampling, separate_axis=axis)
        return resample_regions(
            self.logits, shape, labels.region_order, resampling=resampling, separate_axis=axis, overlaps=labels.overlaps
        )

    def _separate_axis(self, spacing_mm: tuple[float, ...]) -> int | None:
        own_mm, separate_z = self.placement.resampled_spacing_mm, self.configuration.resample_logits.separate_z
        return decide_separate_axis(own_mm, spacing_mm, separate_z)


def _part_of(progress: Callable[[int, int], None] | None, i: int, number: int) -> Callable[[int, int], None]:
    """Progress in the part ``i`` of ``number`` equal ones."""
    return lambda done, total: None if progress is None else progress(i * total + done, number * total)


def run_member(
    member: Member,
    source: ImageSource,
    labels: Labels,
    *,
    device: torch.device,
    mirroring: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> MemberOutput:
    """The output of one configuration's networks for an image; the first stage of a cascade runs before, if needed."""
    image, placement, previous = source.prepare(member.configuration)
    stages = 1 + (previous is None and member.previous is not None)
    if previous is None and member.previous is not None:
        own = _part_of(progress, 0, stages)
        first = run_member(member.previous, source, labels, device=device, mirroring=mirroring, progress=own)
        previous = first.next_stage(placement, labels)
    if previous is not None:
        image = with_classes(image, previous, labels.values)
    axes = member.mirror_axes if mirroring else ()
    told = _part_of(progress, stages - 1, stages)
    logits = member_logits(member, image, mirror_axes=axes, device=device, progress=told)
    return MemberOutput(logits=logits, placement=placement, configuration=member.configuration)


def member_logits(
    member: Member,
    image: Floats,
    *,
    mirror_axes: Sequence[int],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Floats:
    """Mean logits (K, a0, a1, a2) of a member's networks for a preprocessed image (C, a0, a1, a2).

    If memory runs out, fewer windows go through the network at once, and finally sums are kept in main memory. Raises
    `AutosegError` if that does not fit either.
    """
    batch_size = member.training.batch_size
    sums_bytes = 4 * member.configuration.network.num_outputs * math.prod(image.shape[1:])
    if device.type == "cpu" and sums_bytes > free_memory_bytes():
        raise _out_of_memory(member, image, device)  # before the system ends the process
    attempts = [(size, device) for size in micro_batch_sizes(batch_size)]  # each needs less memory than the one before
    if device.type != "cpu":
        attempts.append((1, torch.device("cpu")))
    with kept_heap(device, lambda: sum(_needed_bytes(member, image, batch_size=batch_size, keeps_freed=True))):
        for size, gathered_on in attempts:
            logits = _try_logits(member, image, mirror_axes, device, progress, size=size, gathered_on=gathered_on)
            if logits is not None:
                return logits
    raise _out_of_memory(member, image, device)


def _try_logits(
    member: Member,
    image: Floats,
    mirror_axes: Sequence[int],
    device: torch.device,
    progress: Callable[[int, int], None],
    *,
    size: int,
    gathered_on: torch.device,
) -> Floats | None:
    """`member_logits` in one attempt; None if memory was not enough, after freeing what the attempt took."""
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
            progress=progress,
        )
        result: Floats = logits.numpy()
        return result
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.debug("%d windows at once with sums on %s do not fit: %s", size, gathered_on, error)
    release_memory(device)  # only now: the error refers to what the attempt had taken
    return None


def _out_of_memory(member: Member, image: Floats, device: torch.device) -> AutosegError:
    """The error when not even one window fits."""
    shape = " x ".join(map(str, image.shape[1:]))
    windows, sums = (needed / GB for needed in _needed_bytes(member, image, batch_size=1))
    on_cpu = device.type == "cpu"
    where = f" and {sums:.1f} GB for their sums" if on_cpu else f" on {device} and {sums:.1f} GB of main memory"
    message = (
        f"out of memory for an image of {shape} voxels (as preprocessed) even with one window at a time, which takes about "
        f"{windows:.1f} GB{where}"
    )
    fix = "check the spacing of the image, or close other programs" + (
        "" if on_cpu else ", or predict with --device cpu"
    )
    return AutosegError(Issue(code="predict.out_of_memory", where=member.configuration.name, message=message, fix=fix))


def _needed_bytes(member: Member, image: Floats, *, batch_size: int, keeps_freed: bool = False) -> tuple[int, int]:
    """Memory for ``batch_size`` windows at once, and for the logits of an image."""
    training, configuration = member.training, member.configuration
    windows = estimate_configuration_memory(
        configuration,
        dtype=training.precision,
        window_batch_size=batch_size,
        network=with_width(configuration.network, training.base_features),
        keeps_freed=keeps_freed,
    )
    return windows.inference_bytes, estimate_volume_memory(configuration, math.prod(image.shape[1:]))


def not_ct(image: Image, plan: Plan) -> list[str]:
    """Why channels that are CT in training, in Hounsfield units, are not CT in ``image``."""
    normalization = plan.configurations[0].normalization
    modality = image.modality or [""] * len(image.array)
    channels = zip(plan.channels, image.ct_evidence(), modality, normalization, plan.intensities, strict=False)
    reasons = []
    for name, (is_ct, told), own, chosen, training in channels:
        if chosen.scheme == "ct" and is_ct is False and told:
            reasons.append(f"channel {name} is of modality {own}, in training it was CT")
        elif chosen.scheme == "ct" and is_ct is False and training.minimum < 0:
            reasons.append(
                f"channel {name} has hardly any negative values, so it is not CT in Hounsfield units as in training"
            )
    return reasons


def far_from_training(geometry: Geometry, plan: Plan) -> str:
    """What of an image's spacing and extent is far from the training cases', in words; empty if nothing is."""
    own = canonical_geometry(geometry, source_orientation(geometry, plan))
    usual_mm = transpose(plan.original_median_spacing_mm, plan.transpose_backward)
    usual_shape = transpose(plan.original_median_shape, plan.transpose_backward)
    words = []
    for axis, voxels, mm, usual_voxels, usual in zip(
        "zyx", own.shape, own.spacing_mm, usual_shape, usual_mm, strict=True
    ):
        if usual_voxels == 1:  # slices: spacing and extent across them mean nothing
            continue
        if voxels == 1:  # a photograph, or a slice on its own
            words.append(f"a single slice along {axis}, in training about {usual_voxels:g}")
            continue
        pairs = {"extent": (voxels * mm, usual_voxels * usual), "spacing": (mm, usual)}
        words += [
            f"{name} {found:.3g} mm along {axis}, in training about {expected:.3g}"
            for name, (found, expected) in pairs.items()
            if max(found / expected, expected / found) > FAR
        ]
    return ", ".join(words)
