"""Folders of predicted label maps: what they were made from, what is up to date, and what a user has changed in them."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.data.dataset import DatasetDescription
from autoseg.evaluation.calibration import Calibration
from autoseg.evaluation.expected_quality import as_numbers
from autoseg.evaluation.folders import mask_stem
from autoseg.evaluation.metrics import EvaluatedClass, evaluated_classes
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import (
    files_of,
    image_ending,
    image_stem,
    is_segmentation,
    list_segments,
    read_image,
    read_label_map,
    split_frame,
    writable_ending,
    write_label_map,
)
from autoseg.inference.dicom_output import ENDING, DicomOutput
from autoseg.inference.kept import probabilities_path, ranked_path, sample_path, write_full, write_rounded, write_sample
from autoseg.inference.maps import FOLDER as MAPS
from autoseg.inference.maps import MapName, map_name, write_all_maps
from autoseg.inference.predictor import Prediction
from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, claimed_folder, sync_folder, write_error, write_text
from autoseg.storage.cache import FileContent, key_of
from autoseg.storage.journal import Entry, Journal, Provenance, file_names, file_state, named_contents
from planners import Document, Labels

JOURNAL = "predictions.jsonl"
VOLUMES = "volumes.csv"
NEW_FOLDER = "choose another output folder, or move the file"
PROBABILITIES = (".npz", ".npy", ".b2nd")
Outcome = Literal["predicted", "already there", "being predicted"]
Scores = Literal["full", "rounded"]
"""How probabilities are kept: ``CASE.npz`` in single precision, or ``CASE.probabilities.b2nd`` rounded, for ensembles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One case to predict."""

    case_id: str
    predict: Callable[..., Any]
    """Its `Prediction`, or what else is stored of it."""
    prepare: Callable[[], Any] | None = None
    """Reads what ``predict`` is given, perhaps while another case is computed; none: it is given nothing."""
    made_from: str = ""
    """Key of what it is made from besides the model and the content of ``inputs``."""
    inputs: tuple[Path, ...] = ()
    """Files that are read."""
    ending: str | None = None
    """Of the label map; none: that of the dataset's label files."""
    image: Path | None = None
    """File whose transforms the label map carries where both are NIfTI; none: the first of ``inputs``."""


class PredictionsHeader(Document):
    """First line of ``predictions.jsonl``: what made the label maps of a folder, and what their values mean."""

    format: Literal["autoseg predictions"] = "autoseg predictions"
    schema_version: Literal[1] = 1
    made_from: str
    """Key of the model and of how it was used."""
    labels: Labels
    """Classes of the internal label values."""
    file_values: tuple[int, ...]
    """Value in the label maps of each internal label value."""
    threshold: int | None = None
    """The dataset's masks hold grey values: from this one on a voxel belongs to the structure."""

    @property
    def classes(self) -> tuple[EvaluatedClass, ...]:
        """Classes with their values in the label maps."""
        return evaluated_classes(self.labels, self.file_values)

    @property
    def ignore_value(self) -> int | None:
        """Value of the ignore label in the label maps."""
        return None if self.labels.ignore is None else self.file_values[self.labels.ignore]


def read_predictions_header(folder: Path) -> PredictionsHeader | None:
    """How the predictions in ``folder`` were made; none for a folder that autoseg did not predict into."""
    return Journal(folder / JOURNAL, PredictionsHeader).header()


def prediction_path(folder: Path, case_id: str, dataset: DatasetDescription) -> Path:
    """Label map of a case of the dataset in one of a run's own folders."""
    return folder / f"{case_id}{writable_ending(dataset.file_ending)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files of one prediction."""

    label_map: Path
    """Or its path if classes had no separate masks."""
    masks: Mapping[Path, tuple[int, ...]]
    """Image files with the label values inside each; no values: the label map itself."""
    scores: Path | None
    ranked: Path | None
    sample: Path | None = None
    maps: Mapping[MapName, Path] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Path, ...]:
        others = (self.scores, self.ranked, self.sample, *self.maps.values())
        return (*self.masks, *(path for path in others if path is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is in the folder for a job, compared with the journal."""

    entries: Sequence[Entry]
    inputs: tuple[FileContent, ...]
    made_from: str
    incomplete: bool
    """A file is missing, truncated or outdated."""
    corrected: tuple[Path, ...]
    """Readable images that were not predicted: the user's corrections."""

    @property
    def same_inputs(self) -> bool:
        return bool(self.entries) and self.entries[-1].made_from == self.made_from


@dataclass(slots=True, kw_only=True)
class Begun:
    """A case that this process has claimed, and read."""

    job: Job
    found: _Found
    staged: Path
    given: tuple[Any, ...]
    """What its job prepared."""
    claim: ExitStack

    def compute(self) -> Any:
        """Its `Prediction`; what was read is forgotten."""
        given, self.given = self.given, ()
        return self.job.predict(*given)


@dataclass(frozen=True, kw_only=True)
class PredictionFolder:
    """Writes predictions into a folder, each once, and never over anything that is not known to be a prediction.

    Files are made in a hidden folder; a line of the journal lists their content; then they get their names. So a killed
    call leaves either no line, or a line whose files are missing or outdated, and the next call makes them. Corrected
    label maps are kept, changed images are predicted again, truncated files are made again. Several processes may predict
    into one folder. In a folder that ``is_own``, which only autoseg writes to, whatever does not fit is made again.
    """

    folder: Path
    dataset: DatasetDescription
    made_from: str
    """Key of the model and of how it is used."""
    say: Callable[[str], None]
    scores: Scores | None = None
    with_ranked: bool = False
    """Keep what RankSEG decides otherwise, too."""
    with_sample: bool = False
    """Keep a sample of probabilities, and features of the prediction."""
    maps: tuple[MapName, ...] = ()
    """To be written as NIfTI files, too."""
    calibration: Calibration | None = None
    """Of the probabilities in maps."""
    with_masks: bool = False
    """Write a folder ``CASE`` with a mask per class if the dataset has such files."""
    is_own: bool = False
    dicom: DicomOutput | None = None
    """Write a DICOM object per case instead of label map or masks."""
    description: str = ""
    """Written into the header of label maps in formats that have such a field."""
    provenance: Callable[[str], Provenance] | None = None
    """What is known of how a case was predicted, for the journal."""

    @cached_property
    def header(self) -> PredictionsHeader:
        """What the journal of this folder begins with."""
        dataset = self.dataset
        return PredictionsHeader(
            made_from=self.made_from,
            labels=dataset.labels,
            file_values=dataset.file_values if self.dicom is None else self.dicom.file_values(dataset),
            threshold=dataset.threshold,
        )

    @property
    def _classes(self) -> tuple[EvaluatedClass, ...]:
        """Classes with their values in the label maps that are predicted."""
        return evaluated_classes(self.dataset.labels, self.dataset.file_values)

    @cached_property
    def journal(self) -> Journal[PredictionsHeader]:
        """What is known of the files in the folder."""
        return Journal(self.folder / JOURNAL, PredictionsHeader)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Begin, or continue what the journal lists. In an own folder, predictions of other cases or of another model go.

        Raises `AutosegError` for predictions of another model, and with every file under the name of a prediction that is
        none.
        """
        if self.is_own:
            if self.journal.header() != self.header:
                self._clear()
            case_ids = {job.case_id for job in jobs}
            for item, entries in self.journal.entries().items():
                if item not in case_ids:
                    shutil.rmtree(self.folder / item, ignore_errors=True)
                    for name in file_names(entries):
                        (self.folder / name).unlink(missing_ok=True)
        else:
            self._refuse_foreign_files(jobs)
        self._require_same_model()

    def complete(self, job: Job) -> Outcome:
        """Predict and write what is not up to date, and not being predicted by another process.

        Raises `AutosegError` instead of overwriting the user's files.
        """
        begun = self.start(job)
        if not isinstance(begun, Begun):
            return begun
        try:
            prediction = begun.compute()
        except BaseException:
            begun.claim.close()
            raise
        return self.finish(begun, prediction)

    def start(self, job: Job) -> Begun | Outcome:
        """Claim a case that is not up to date and read it, or say why there is nothing to do. To be ended by `finish`, or by closing the claim.

        Raises `AutosegError` instead of overwriting the user's files.
        """
        self._require_same_model()  # each time: another process may have begun with another model
        files, found = self._files_of(job), self._look(job)
        if self._is_done(found):
            for path in found.corrected:
                self.say(f"Kept {path}: it was changed after prediction")
            return "already there"
        if not self.is_own:
            self._refuse_overwriting(job, files, found)
        with ExitStack() as stack:
            try:
                staged = stack.enter_context(claimed_folder(self.folder / job.case_id))
            except OSError as error:
                raise write_error(files.label_map, error) from error
            if staged is None:
                return "being predicted"
            found = self._look(job, found.inputs)
            if self._is_done(found):  # by another process, meanwhile
                return "already there"
            given = () if job.prepare is None else (job.prepare(),)
            return Begun(job=job, found=found, staged=staged, given=given, claim=stack.pop_all())
        raise AssertionError("an exit stack swallows nothing")

    def finish(self, begun: Begun, prediction: Any) -> Outcome:
        """Write a prediction, and release its claim."""
        job, staged, found = begun.job, begun.staged, begun.found
        files = self._files_of(job)
        try:
            with begun.claim:
                self._write(prediction, files, staged, job)
                made = [staged / path.relative_to(self.folder) for path in files.all]
                parts = [part for path in made for part in files_of(path)]
                if not self.is_own:  # the user may have put files here meanwhile
                    places = [self.folder / part.relative_to(staged) for part in parts]
                    self._refuse_overwriting(job, files, self._look(job, found.inputs), places=places)
                self.journal.add(
                    Entry(
                        item=job.case_id,
                        made_from=found.made_from,
                        origin=_origin(job.inputs),
                        inputs=found.inputs,
                        files=named_contents(parts),
                        volumes_ml=volumes_ml(prediction.labels, prediction.geometry, self._classes),
                        expected={} if prediction.doubt is None else as_numbers(prediction.doubt.expected),
                        provenance=None if self.provenance is None else self.provenance(job.case_id),
                    )
                )
                self._move(job, files, staged, made)
                return "predicted"
        except OSError as error:
            raise write_error(files.label_map, error) from error

    def has(self, job: Job) -> bool:
        """Whether something is there for a job already, up to date or not."""
        return any(path.exists() for path in self._files_of(job).all)

    def _is_done(self, found: _Found) -> bool:
        return found.same_inputs and not found.incomplete and not (found.corrected and self.is_own)

    def write_volumes(self) -> None:
        """Write ``volumes.csv``: the volume of each class in ml, for all volumes that the journal lists.

        Label maps that were corrected are measured again. A file of that name that is something else is left.
        """
        path, header = self.folder / VOLUMES, ["case", *(f"{each.name} (ml)" for each in self.header.classes)]
        before = path.read_text(errors="replace") if path.exists() else None
        if before is not None and not before.startswith(_csv([header])):
            self.say(f"Left {path} as it is: it does not list the volumes of this model's classes")
            return
        rows = []
        for case_id, entries in sorted(self.journal.entries().items()):
            folder = self.folder / case_id if self.dataset.classes_with_masks else self.folder
            paths = [folder / name for name in file_names(entries) if (folder / name).exists()]
            if paths and (found := self._measured(entries, paths)):
                rows.append([case_id, *(f"{found.get(each.name, 0.0):.6g}" for each in self.header.classes)])
        if (rows or before) and (text := _csv([header, *rows])) != before:
            write_text(path, text)

    def _measured(self, entries: Sequence[Entry], paths: Sequence[Path]) -> dict[str, float]:
        """Volumes of a case as predicted, or, where its label map or one of its masks was corrected, as it is now."""
        volumes, of_masks = (
            dict(entries[-1].volumes_ml),
            {mask_stem(each.name): each.name for each in self.header.classes},
        )
        for path in paths:
            if self.dicom is not None or not image_ending(path) or file_state(files_of(path), entries) != "unknown":
                continue
            with suppress(AutosegError):  # truncated, and made again when it is asked for
                drawn = read_label_map(path)
                if not self.dataset.classes_with_masks:
                    volumes = volumes_ml(drawn.array, drawn.geometry, self.header.classes)
                elif name := volumes and of_masks.get(image_stem(path)):
                    volumes[name] = float(np.count_nonzero(drawn.array)) * drawn.geometry.voxel_volume_ml
        return volumes

    def shown(self, job: Job) -> Path:
        """The path to show: the label map, or the folder of masks."""
        files = self._files_of(job)
        return files.label_map if files.label_map in files.masks else self.folder / job.case_id

    def _require_same_model(self) -> None:
        if self.journal.begin(self.header).made_from != self.header.made_from:
            message = "contains predictions of another model, or with another mirroring setting or format"
            fix = "choose another output folder, or empty this one"
            raise AutosegError(Issue(code="predict.other_model", where=str(self.folder), message=message, fix=fix))

    def _files_of(self, job: Job) -> _Files:
        ending = job.ending or writable_ending(self.dataset.file_ending)
        ending = ending if self.dicom is None else ENDING
        path, folder = self.folder / f"{job.case_id}{ending}", self.folder / job.case_id
        masks: dict[Path, tuple[int, ...]] = {path: ()}
        if self.with_masks and self.dataset.classes_with_masks and self.dicom is None:
            masks = {folder / f"{mask_stem(label.name)}{ending}": label.values for label in self.dataset.labels.classes}
        scores = {"full": self.folder / f"{job.case_id}.npz", "rounded": probabilities_path(self.folder, job.case_id)}
        return _Files(
            label_map=path,
            masks=masks,
            scores=scores[self.scores] if self.scores else None,
            ranked=ranked_path(self.folder, job.case_id) if self.with_ranked else None,
            sample=sample_path(self.folder, job.case_id) if self.with_sample else None,
            maps={kind: self.folder / MAPS / map_name(job.case_id, kind) for kind in self.maps},
        )

    def _look(self, job: Job, before: Sequence[FileContent] = ()) -> _Found:
        """``before``: inputs as an earlier look found them, which need not be read again."""
        entries = self.journal.of(job.case_id)
        inputs = [part for path in job.inputs for part in files_of(path)]
        contents = named_contents(inputs, before or (entries[-1].inputs if entries else ()))
        incomplete, corrected = False, []
        for path in self._files_of(job).all:
            state = file_state(files_of(path), entries)
            if state == "unknown" and _is_readable(path):
                corrected.append(path)
            elif state != "current":
                incomplete = True
        return _Found(
            entries=entries,
            inputs=contents,
            made_from=key_of(job.made_from, [content.sha256 for content in contents]),
            incomplete=incomplete,
            corrected=tuple(corrected),
        )

    def _refuse_overwriting(self, job: Job, files: _Files, found: _Found, *, places: Sequence[Path] = ()) -> None:
        """Raise `AutosegError` where files of the user would be overwritten; say what is predicted again.

        ``places``: where new files are about to be put, once they are made.
        """
        issues = [
            Issue(code="predict.corrected", where=str(path), message="changed after prediction", fix=NEW_FOLDER)
            for path in found.corrected
        ]
        names = file_names(found.entries)
        issues += [_foreign(path, job.inputs) for path in places if path.exists() and path.name not in names]
        exists = any(path.exists() for path in files.all)
        if found.entries and not found.same_inputs and exists and not places:
            if found.entries[-1].origin != _origin(job.inputs):
                message = "predicted from another image of that name, in another folder"
                issues = [
                    Issue(code="predict.other_image", where=str(self.shown(job)), message=message, fix=NEW_FOLDER)
                ]
            elif not issues:
                self.say(f"Predicting {self.shown(job)} again: its image has changed")
        if issues:
            raise AutosegError(*issues)

    def _refuse_foreign_files(self, jobs: Sequence[Job]) -> None:
        images = [image for job in jobs for image in job.inputs]
        issues = [
            _foreign(path, images)
            for job in jobs
            for path in self._files_of(job).all
            if path.exists() and path.name not in file_names(self.journal.of(job.case_id))
        ]
        if issues:
            raise AutosegError(*issues, headline=f"{self.folder} has files that would be overwritten")

    def _write(self, prediction: Prediction, files: _Files, staged: Path, job: Job) -> None:
        """Write all files of a prediction into the folder ``staged``, under their final names."""
        if files.scores is not None and prediction.probabilities is not None:
            write = write_full if self.scores == "full" else write_rounded
            write(staged / files.scores.name, prediction.probabilities)
        self._write_maps(prediction, staged, job)
        prediction.close()
        if files.ranked is not None and prediction.ranked is not None:
            differs = np.flatnonzero(prediction.ranked != prediction.labels)
            with atomic_write(staged / files.ranked.name) as file:
                np.save(file, np.stack([differs, prediction.ranked.reshape(-1)[differs]]), allow_pickle=False)
        if files.sample is not None and prediction.sample is not None:
            write_sample(staged / files.sample.name, prediction.sample, prediction.features or {})
        if self.dicom is not None:
            self.dicom.write(staged / files.label_map.name, prediction.labels, job.inputs)
            return
        image = job.image or next(iter(job.inputs), None)
        source = None if image is None else split_frame(image)[0]
        for target, values in files.masks.items():
            inside = np.isin(prediction.labels, values)
            array = np.where(inside, self.dataset.mask_value, 0) if values else prediction.labels
            path = staged / target.relative_to(self.folder)
            path.parent.mkdir(exist_ok=True)
            write_label_map(path, array, prediction.geometry, source=source, description=self.description)

    def _write_maps(self, prediction: Prediction, staged: Path, job: Job) -> None:
        """Write the maps that are asked for."""
        image = job.image or next(iter(job.inputs), None)
        source = None if image is None else split_frame(image)[0]
        if self.maps:
            labels, folder = self.dataset.labels, staged / MAPS
            write_all_maps(folder, job.case_id, prediction, self.maps, labels, self.calibration, source)

    def _move(self, job: Job, files: _Files, staged: Path, made: Sequence[Path]) -> None:
        """Give files their names, voxels before the header that names them; older probabilities are removed."""
        for name in file_names(self.journal.of(job.case_id)):
            if name.endswith(PROBABILITIES) and self.folder / name not in (
                files.scores,
                files.ranked,
                files.sample,
            ):
                (self.folder / name).unlink(missing_ok=True)
        for path in made:
            place = self.folder / path.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            for part in reversed(files_of(path)):
                os.replace(part, self.folder / part.relative_to(staged))
            sync_folder(place.parent)

    def _clear(self) -> None:
        """Empty the folder, the journal last: until then it lists the others."""
        try:
            for path in sorted(self.folder.glob("*"), key=lambda path: path.name == JOURNAL):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise write_error(self.folder, error) from error


def volumes_ml(labels: NDArray[np.integer], geometry: Geometry, classes: Sequence[EvaluatedClass]) -> dict[str, float]:
    """Volume in millilitres of each class in a label map (Z, Y, X); none for 2D images, which have no thickness."""
    if geometry.dimensions == 2:
        return {}
    known = 1 + max((value for each in classes for value in each.values), default=0)
    counts = np.zeros(known, np.int64)
    for part in labels:  # slice by slice: counting takes eight bytes a voxel
        counts += np.bincount(part[(part >= 0) & (part < known)], minlength=known)
    return {each.name: float(counts[list(each.values)].sum()) * geometry.voxel_volume_ml for each in classes}


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _origin(inputs: Sequence[Path]) -> str:
    """Hash of the paths of the inputs."""
    places = "\n".join(str(path.absolute()) for path in inputs)
    return sha256(places.encode("utf-8", errors="surrogateescape")).hexdigest()


def _foreign(path: Path, images: Sequence[Path]) -> Issue:
    is_input = any(image.exists() and os.path.samefile(image, path) for image in images)
    message = "an input image, which would be overwritten" if is_input else "not an autoseg prediction"
    return Issue(code="predict.foreign_file", where=str(path), message=message, fix=NEW_FOLDER)


def _is_readable(path: Path) -> bool:
    """Whether it is a complete image; probabilities are not corrected by hand."""
    if path.name.endswith(PROBABILITIES):
        return False
    try:
        list_segments(path) if is_segmentation(path) else read_image([path])
    except AutosegError:
        return False
    return True


def predictions_among(paths: Sequence[Path]) -> frozenset[Path]:
    """Those of ``paths`` that were predicted into their folder, or into the one above it as masks of a case."""
    folders = {folder for path in paths for folder in (path.parent, path.parent.parent)}
    entries = {folder: Journal(folder / JOURNAL, PredictionsHeader).entries() for folder in folders}
    names = {folder: frozenset(n for e in cases.values() for n in file_names(e)) for folder, cases in entries.items()}
    return frozenset(
        path
        for path in paths
        if path.name in names[path.parent]
        or path.name in file_names(entries[path.parent.parent].get(path.parent.name, []))
    )
