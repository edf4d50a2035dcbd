"""A loaded model: arrays, files or stored cases in, label maps out."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.compute.device import choose_device
from autoseg.compute.memory import available_bytes, is_out_of_memory, resident_bytes
from autoseg.data.labels import to_file_values
from autoseg.evaluation.expected_quality import ClassFeatures, ExpectedClass, expect, mean_features
from autoseg.evaluation.label_maps import apply_postprocessing
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.orientation import canonical_geometry
from autoseg.imaging.placement import Placement, inside_box
from autoseg.imaging.readers import Imagelike, as_image, is_picture
from autoseg.imaging.resampling import resample_argmax
from autoseg.inference.doubt import EntropyMap, Features, Sample, Taker, disagreement
from autoseg.inference.member_output import How, ImageSource, NetworkInput, Progress, run_member
from autoseg.inference.model import Member, Model, load_model
from autoseg.inference.needs import CaseNeeds, case_needs, label_bytes
from autoseg.inference.slabs import KeptVolumes, blank_probabilities, decide_together
from autoseg.inference.sliding_window import STEP
from autoseg.inference.window_logits import mean_logits
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing.looks import look_at, unlike
from autoseg.preprocessing.prepare import open_previous, place_whole, prepare_image, source_orientation
from autoseg.preprocessing.store import open_case, require_cases
from planners import Configuration, Plan, transpose

Floats = NDArray[np.float32]
LabelMap = NDArray[np.integer]
UNLIKE = "predict.unlike_training"
TIMED_CLASSES, TIMED_SHAPE, FINER_SHAPE = 8, (64, 96, 96), (80, 120, 120)
"""Logits that are timed outside the networks: more than caches hold, in less than a tenth of a second."""
FAR = 4.0
"""A spacing or extent that is this many times that of the median training case, or that fraction of it, gets a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpreparedImage:
    """An image in memory, preprocessed on demand."""

    image: Image
    plan: Plan

    @property
    def geometry(self) -> Geometry:
        """Grid of the image."""
        return self.image.geometry

    def prepare(self, configuration: Configuration) -> NetworkInput:
        """The image as ``configuration`` needs it. Raises `AutosegError` for an image that does not fit the plan."""
        prepared = prepare_image(self.image, self.plan, configuration)
        return NetworkInput(image=prepared.image, placement=prepared.placement)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedImage:
    """An image that was preprocessed for all configurations of a model, and is needed no more itself."""

    geometry: Geometry
    inputs: Mapping[str, NetworkInput]
    """What networks are given, by configuration."""

    def prepare(self, configuration: Configuration) -> NetworkInput:
        """What the networks of one of the configurations are given."""
        return self.inputs[configuration.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A case that was preprocessed before. Holds paths only."""

    folder: Path
    """Folder of the preprocessed cases of one configuration."""
    case_id: str
    made_from: str = ""
    """Key that the stored case must have; empty: any."""
    previous: Path | None = None
    """Folder of the label maps of a cascade's first stage; none: not a cascade."""

    @property
    def geometry(self) -> Geometry:
        """Grid of the image before preprocessing."""
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
        return NetworkInput(image=image, placement=case.placement, previous=previous)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model predicts for one image, in the axes of the image."""

    labels: LabelMap
    """(Z, Y, X), with the label values of the dataset's own files."""
    probabilities: Any
    """float32 (K, Z, Y, X), 0 to 1, if asked for, else None; channels are background and classes, or regions. Of a `Predictor` with a
    folder for temporary files `KeptVolumes`, to be closed."""
    geometry: Geometry
    ranked: LabelMap | None = None
    """As ``labels``, by RankSEG instead of the largest probability, if asked for."""
    sample: Sample | None = None
    features: Mapping[str, ClassFeatures] | None = None
    """Of each class, if asked for; see `Doubt` for those of an unseen case."""
    doubt: Doubt | None = None

    def close(self) -> None:
        """Remove the temporary file of probabilities, if they are in one."""
        if isinstance(self.probabilities, KeptVolumes):
            self.probabilities.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """How sure a model is of an image, in its axes."""

    entropy: Floats
    """(Z, Y, X), 0 to 1, of calibrated probabilities."""
    disagreement: Floats
    """(Z, Y, X), share of the networks of folds that decide otherwise than most."""
    features: Mapping[str, ClassFeatures]
    """Means of what single networks say: out of fold, too, a case is seen by one."""
    expected: Mapping[str, ExpectedClass]
    """Ranges of Dice and volume; empty where the model knows nothing of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A loaded model that predicts one image after another."""

    model: Model
    mirroring: bool = True
    """Whether to average over mirror images if training mirrored; without, prediction is up to eight times faster."""
    step: float = STEP
    """Largest distance of windows, as a share of the patch; larger ones are faster."""
    every_window: bool = False
    """Whether to compute windows without contrast, all air of a CT, each time anew; otherwise their logits are computed once."""
    memory_bytes: int | None = None
    """Main memory that the process may take; none: what is free."""
    folder: Path | None = None
    """Folder for temporary files where memory is short; none: that of the system."""
    strict: bool = False
    """Refuse images that are unlike those of training, instead of a warning."""

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
        progress: Progress | None = None,
    ) -> Prediction:
        """Prediction for an image: a path or paths, an `Image`, a SimpleITK or nibabel image, or an array.

        Paths are those of one image: a file per channel, or one with all. Label map and probabilities have the axes of
        what was given: (Z, Y, X) of files, SimpleITK images and arrays, (X, Y, Z) of nibabel images. An array is
        (C, Z, Y, X) or (Z, Y, X), and needs its place: its ``affine`` (4, 4), from indices (z, y, x, 1) to RAS in mm as
        `Image.affine`; or ``spacing_mm`` (z, y, x) with ``axes``, the directions in which z, y and x run, such as "SPL":
        to Superior, Posterior, Left. Only models of images without directions need no ``axes``. ``progress`` is told how
        many windows are done, and how many there are.

        Raises `AutosegError` for other types, shapes, spacings and channels, and voxels that are not finite. Warns
        (`UserWarning`) of an image that is unlike the training cases: voxels, field of view, tilt, intensities, order of channels, one value in all
        voxels, no CT where that was CT; a ``strict`` predictor refuses it.
        """
        if isinstance(image, list | tuple) and image and all(isinstance(each, str | Path) for each in image):
            image = self.model.dataset.channel_paths([Path(each) for each in image])
        found, is_reversed = as_image(
            image, affine=affine, spacing_mm=spacing_mm, axes=axes, needs_directions=self.needs_directions
        )
        self._require_channels(found)
        far, prepared = far_from_training(found.geometry, self.model.plan), self.prepare(found)
        odd = unlike_training(self.model, found, prepared, is_far=bool(far))
        for reason in (
            *([far] if far else []),
            *without_contrast(found, self.model.plan),
            *not_ct(found, self.model.plan),
            *odd,
        ):
            if self.strict:
                raise AutosegError(unlike_issue(UNLIKE, "", reason))
            text = f"the image is unlike the training cases, predictions may be wrong: {reason}"
            warnings.warn(text, stacklevel=3)
        prediction = self.predict_source(prepared, probabilities=probabilities, progress=progress)
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
        doubt: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Prediction for an image that was read, without warnings. Raises `AutosegError` for other channels."""
        self._require_channels(image)
        source = UnpreparedImage(image=image, plan=self.model.plan)
        return self.predict_source(source, probabilities=probabilities, doubt=doubt, progress=progress)

    def prepare(self, image: Image) -> PreparedImage:
        """The image as all configurations of the model need it. Raises `AutosegError` for an image that does not fit them."""
        self._require_channels(image)
        source = UnpreparedImage(image=image, plan=self.model.plan)
        chains = (chain for member in self.model.members for chain in member.chain)
        inputs = {each.configuration.name: source.prepare(each.configuration) for each in chains}
        return PreparedImage(geometry=image.geometry, inputs=inputs)

    def predict_source(
        self,
        source: ImageSource,
        *,
        probabilities: bool = False,
        ranked: bool = False,
        sampled: bool = False,
        doubt: bool = False,
        progress: Progress | None = None,
    ) -> Prediction:
        """Prediction for an image that is preprocessed already, or on demand.

        ``sampled``: with a sample of probabilities, and features of its classes. ``doubt``: with maps and expected quality, for which
        the networks of each fold predict once more alone; the label map is the same.

        Slab by slab, the logits of all configurations are computed, resampled, averaged and decided, and forgotten. Only probabilities,
        if asked for, are held at full size. With ``ranked`` the label maps of both decoders, whatever the model's is.
        """
        model, labels = self.model, self.model.plan.labels
        how = self.how(source.geometry)
        together = Together(progress, len(model.members))
        outputs = [
            run_member(member, source, labels, how, progress=together.of(i)) for i, member in enumerate(model.members)
        ]
        takers = self._takers(source, outputs[0].placement, sampled=sampled, doubt=doubt)
        ranks = ranked or model.decoder == "rankseg"
        scores: Floats | KeptVolumes | None = None
        by_rank: LabelMap | None = None
        if len(outputs) == 1 and not ranks and not probabilities and not takers:
            plain = outputs[0].label_map(labels)
        else:
            placement = outputs[0].placement
            target: Any = None
            if probabilities and self.folder is not None:
                scores = KeptVolumes(placement, labels, self.folder)
                target = scores.inside
            elif probabilities:
                scores = blank_probabilities(placement, labels)
                target = inside_box(scores, placement)
            room = self.needs(source.geometry, ranked=True).ranked_bytes if ranks else None
            how_kept: dict[str, Any] = {"target": target, "ranked_bytes": room, "folder": self.folder, "takers": takers}
            plain, by_rank = decide_together(outputs, labels, model.weights, ranks=ranks, **how_kept)
        if not ranked and by_rank is not None:
            plain, by_rank = by_rank, None
        finish = partial(self._finish, voxel_mm3=1000 * source.geometry.voxel_volume_ml)
        return Prediction(
            labels=finish(plain),
            probabilities=scores,
            geometry=source.geometry,
            ranked=None if by_rank is None else finish(by_rank),
            sample=next((each for each in takers if isinstance(each, Sample)), None),
            features=next((each.of_classes for each in takers if isinstance(each, Features)), None),
            doubt=self._doubt(source, takers) if doubt else None,
        )

    def _takers(self, source: ImageSource, placement: Placement, *, sampled: bool, doubt: bool) -> list[Taker]:
        """What gathers from the slabs of an image."""
        takers: list[Taker] = []
        labels, calibration = self.model.plan.labels, self.model.calibration
        if sampled:
            image = source.prepare(self.model.members[0].configuration).image
            likeness = float(image.mean()), float(image.std()), math.log(math.prod(placement.source.shape))
            takers += [Sample(placement, labels), Features(placement, labels, likeness)]
        if doubt:
            takers.append(EntropyMap(placement, labels, () if calibration is None else calibration.temperatures))
        return takers

    def _doubt(self, source: ImageSource, takers: Sequence[Taker]) -> Doubt:
        """The map that was gathered, and what the networks of single folds say."""
        whole = next(each.whole for each in takers if isinstance(each, EntropyMap))
        label_maps, features = [], []
        for model in self.model.alone():
            alone = replace(self, model=model).predict_source(source, sampled=True)
            label_maps.append(alone.labels)
            features.append(alone.features or {})
        found, known = mean_features(features), self.model.expected
        return Doubt(
            entropy=whole,
            disagreement=disagreement(label_maps),
            features=found,
            expected={} if known is None else expect(known, found),
        )

    def how(self, geometry: Geometry) -> How:
        """How the networks are used for an image."""
        voxels = math.prod(geometry.shape)
        return How(
            device=self.model.device,
            mirroring=self.mirroring,
            step=self.step,
            every_window=self.every_window,
            memory_bytes=self.memory_bytes,
            folder=self.folder,
            parts=len(self.model.members),
            kept_bytes=label_bytes(voxels, postprocesses=bool(self.model.postprocessing)),
        )

    def needs(self, geometry: Geometry, *, probabilities: bool = False, ranked: bool = False) -> CaseNeeds:
        """What an image needs, as far as its header tells: of memory at most that of an image without a background that is cropped."""
        plan, how = self.model.plan, self.how(geometry)
        chains = [member.chain for member in self.model.members]
        shapes = [
            [
                (
                    each.configuration.network.num_inputs,
                    *place_whole(geometry, plan, each.configuration).resampled_shape,
                )
                for each in chain
            ]
            for chain in chains
        ]
        return case_needs(
            [[how.use(each) for each in chain] for chain in chains],
            shapes,
            channels=len(plan.channels),
            voxels=math.prod(geometry.shape),
            resident_bytes=resident_bytes() or 0,
            available_bytes=available_bytes(self.memory_bytes),
            postprocesses=bool(self.model.postprocessing),
            kept_classes=plan.labels.num_outputs if probabilities else 0,
            ranked_classes=plan.labels.num_outputs if ranked or self.model.decoder == "rankseg" else 0,
        )

    def time_passes(self) -> dict[str, float] | None:
        """Seconds of one window through one network of each configuration; none where memory is not enough for one."""
        members = {each.configuration.name: each for member in self.model.members for each in member.chain}
        try:
            return {name: self._time_pass(member) for name, member in members.items()}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _time_pass(self, member: Member) -> float:
        network, precision = member.configuration.network, member.training.precision
        window = torch.zeros((1, network.num_inputs, *member.configuration.patch_shape), device=self.model.device)
        started = 0.0
        with torch.inference_mode():
            for _ in range(2):  # during the first one kernels are made and chosen, which may take many times as long
                started = time.monotonic()
                logits = mean_logits(window, member.networks[:1], mirror_axes=(), precision=precision)
                logits.flatten()[0].item()  # waits for the device
        return time.monotonic() - started

    def time_voxel(self) -> float:
        """Seconds of one voxel of an image outside the networks: logits of all classes summed, resampled and compared."""
        return sum(self._time_voxel(member) for member in self.model.members)

    def _time_voxel(self, member: Member) -> float:
        sums = torch.zeros((TIMED_CLASSES, *TIMED_SHAPE))
        started = time.monotonic()
        for _ in range(2 ** len(TIMED_SHAPE)):  # so many windows cover a voxel, half a patch apart
            sums.addcmul_(sums, sums)
        resampling = member.configuration.resample_logits
        resample_argmax(sums.numpy(), FINER_SHAPE, resampling=resampling, separate_axis=None)
        seconds = time.monotonic() - started
        return seconds * member.configuration.network.num_outputs / (TIMED_CLASSES * math.prod(FINER_SHAPE))

    def _finish(self, labels: LabelMap, *, voxel_mm3: float) -> LabelMap:
        """The label map after postprocessing, with the values of the dataset's own files."""
        model = self.model
        done = apply_postprocessing(labels, model.postprocessing, model.plan.labels, voxel_mm3=voxel_mm3)
        return to_file_values(done, model.dataset.file_values)


class Together:
    """Progress of several configurations whose windows are computed by turns."""

    def __init__(self, progress: Progress | None, number: int) -> None:
        self.progress = progress
        self.shares = [0.0] * number

    def of(self, i: int) -> Progress | None:
        """The progress of configuration ``i``."""
        return self.progress if len(self.shares) == 1 else partial(self._tell, i)

    def _tell(self, i: int, done: int, total: int) -> None:
        self.shares[i] = done / total
        if self.progress is not None:
            self.progress(round(sum(self.shares) * total), len(self.shares) * total)


def without_contrast(image: Image, plan: Plan) -> list[str]:
    """Which channels of ``image`` have one value in all voxels, in words."""
    lows = [float(channel.min()) for channel in image.array]
    same = [low == float(channel.max()) for low, channel in zip(lows, image.array, strict=True)]
    return [
        f"all voxels of channel {name} are {low:g}"
        for name, low, is_same in zip(plan.channels, lows, same, strict=False)  # their number is checked later
        if is_same
    ]


def unlike_training(model: Model, image: Image, prepared: PreparedImage, *, is_far: bool) -> list[str]:
    """In which ways an image is unlike all those of training, in words; with ``is_far`` its voxels and field of view were named before.

    Nothing more is said of an image with a channel of one value (`without_contrast`).
    """
    if model.usual is None or without_contrast(image, model.plan):
        return []
    placement = next(iter(prepared.inputs.values())).placement
    spacing_mm, extent_mm = [0.0] * 3, [0.0] * 3
    for axis, voxels, mm in zip(
        placement.transpose_forward, placement.shape_after_cropping, placement.spacing_mm, strict=True
    ):
        spacing_mm[axis], extent_mm[axis] = mm, mm * voxels
    place = None if is_far else (spacing_mm, extent_mm)
    return unlike(model.usual, look_at(image), model.plan, place=place)


def unlike_issue(code: str, case_id: str, reason: str) -> Issue:
    """The refusal of an image that is unlike those of training."""
    fix = "correct the image, or predict it without --strict"
    return Issue(code=code, where=case_id, message=f"unlike the training cases: {reason}", fix=fix)


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
