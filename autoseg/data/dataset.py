"""A dataset as it was found: its cases with their files, its channels and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from autoseg.imaging.readers import resampled_paths, split_part
from autoseg.issues import AutosegError, Issue
from autoseg.wording import NUM_SHOWN, count_noun, shorten
from planners import ADDED, PROSE, Document, Labels


class MaskFile(Document):
    """Mask of one class of one case: inside is everything but 0, or from the dataset's threshold on."""

    label: str
    """Name of the class."""
    file: str
    """A file, or one segment of a DICOM SEG file (``seg.dcm#3``)."""


class Case(Document):
    """Files of one case, as absolute paths."""

    case_id: str
    images: Annotated[tuple[str, ...], Field(min_length=1)]
    """One file a channel, in channel order; a single file may hold all channels (4D, RGB). A folder: a DICOM series."""
    label: str | None = None
    """The label map; none where there is none, or where classes have separate ``masks``."""
    masks: tuple[MaskFile, ...] = ()
    """One mask for each class that this case shows, in the order of classes; a class without one is absent."""
    annotated: tuple[str, ...] | None = None
    """Classes that were annotated in this case; none: all. The others may be present without being labelled."""
    group: str | None = None
    """Cases of one group (patient) stay together in splits."""
    modality: str = ""
    """``CT`` or ``MR`` where that is known of the public dataset; else empty: DICOM tags or intensities tell."""
    content: str | None = None
    """Hash of the content of all its files; none before they were read."""
    image_contents: tuple[str, ...] = ()
    """Hash of the content of each image, wherever it is and whatever its name, and, once it was checked, of the voxels of
    each channel, whatever their format; empty before they were read."""

    @property
    def is_labelled(self) -> bool:
        """Whether it has a label map or masks."""
        return self.label is not None or bool(self.masks)

    @property
    def label_files(self) -> tuple[str, ...]:
        """Files that the labels are read from, each once, without the names of segments."""
        named = [*([] if self.label is None else [self.label]), *(mask.file for mask in self.masks)]
        return tuple(dict.fromkeys(str(split_part(Path(name))[0]) for name in named))

    @property
    def parts(self) -> list[tuple[str, str | None]]:
        """For each channel and class, the part of its file that is used, such as a segment; none: all of it."""
        named = [*(("image", image) for image in self.images), *((mask.label, mask.file) for mask in self.masks)]
        return [(name, split_part(Path(path))[1]) for name, path in named]

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self.images)


class LabelCoding(Document):
    """How the labels of a case become internal values, and back."""

    labels: Labels
    file_values: tuple[int, ...]
    """Value in the user's files of each internal label value; index 0 is the background."""
    classes: tuple[str, ...] = ()
    """Classes that have their own mask files, in order; none where cases have label maps."""
    later_wins: bool = False
    """Where masks overlap, the later class wins; else every combination that occurs has its own value."""
    threshold: int | None = None
    """Label files hold grey values: from this one on a voxel belongs to the structure."""
    dropped: Annotated[tuple[int, ...], ADDED] = ()
    """Values in label files that count as background."""
    mask_value: int = 1
    """Value inside the user's mask files: predictions are written the same way."""


class DatasetDescription(Document):
    """``dataset.json`` of a run folder."""

    schema_version: Literal[1] = 1
    name: str
    root: str
    layout: str
    """Name of the layout, or of the spec file."""
    layout_title: str = ""
    """Its title."""
    known: str | None = None
    """Title, if it is a known public dataset."""
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Labels
    file_values: tuple[int, ...]
    """Value in the user's files of each internal label value; index 0 is the background. See also ``coding``."""
    classes_with_masks: tuple[str, ...] = ()
    """`LabelCoding.classes`; their file values are the internal ones."""
    later_mask_wins: bool = False
    threshold: int | None = None
    dropped_values: Annotated[tuple[int, ...], ADDED] = ()
    mask_value: int = 1
    resampled_channels: Annotated[bool, ADDED] = False
    """Whether all channels of a case are brought onto the grid of the first."""
    numbered_channels: bool | None = None
    """Where the cases are left out: `autoseg.data.discovery.inputs.channels_are_numbered`, which needs their names."""
    file_ending: str
    """Ending of label files, with the dot, e.g. ``.nii.gz``: predictions are written the same way."""
    training: tuple[Case, ...]
    """Labelled cases, sorted by id."""
    test: tuple[Case, ...] = ()
    """Unlabelled cases, sorted by id."""
    unpaired_images: tuple[str, ...] = ()
    """Training images without labels, as absolute paths: not cases, but checked with them."""
    unpaired_labels: tuple[str, ...] = ()
    """Label files without an image, as absolute paths: not cases, but compared with their labels."""
    issues: Annotated[tuple[Issue, ...], PROSE] = ()
    """Issues that discovery and check found."""
    left_out: tuple[str, ...] = ()
    """Ids of cases and names of files that are not used, because of an error (``--skip-bad``) or by name (``--exclude``), sorted."""
    content: str | None = None
    """Hash of the content of all cases; none before they were read."""
    unions: Annotated[dict[str, tuple[str, ...]], PROSE] = Field(default_factory=dict)
    """Classes that are scored together as well as alone, by the name of their union; they decide nothing."""

    @property
    def coding(self) -> LabelCoding:
        """How to read and write the labels of its cases."""
        return LabelCoding(
            labels=self.labels,
            file_values=self.file_values,
            classes=self.classes_with_masks,
            later_wins=self.later_mask_wins,
            threshold=self.threshold,
            dropped=self.dropped_values,
            mask_value=self.mask_value,
        )

    def channel_paths(self, paths: Sequence[Path]) -> tuple[Path, ...]:
        """The files of one image's channels, in order, as `read_image` takes them: marked where they are brought onto the first one's grid."""
        return resampled_paths(paths) if self.resampled_channels else tuple(paths)


def describe_dataset(dataset: DatasetDescription) -> str:
    """One sentence, e.g. ``60 labelled cases, 1 channel (MRI), labels Anterior and Posterior: Decathlon layout``."""
    cases = count_noun(len(dataset.training), "labelled case")
    test = f", {count_noun(len(dataset.test), 'test case')}" if dataset.test else ""
    channels = f"{count_noun(len(dataset.channels), 'channel')} ({', '.join(dataset.channels)})"
    names = [label.name for label in dataset.labels.classes]
    kind = "region" if dataset.labels.has_regions else "label"
    if len(names) > 2 * NUM_SHOWN:
        labels = f"{len(names)} {kind}s ({shorten(names)})"
    else:
        labels = f"{kind} {names[0]}" if len(names) == 1 else f"{kind}s {', '.join(names[:-1])} and {names[-1]}"
    ignore = ", an ignore label" if dataset.labels.ignore is not None else ""
    patients = {case.group or case.case_id for case in dataset.training}
    of = f" of {count_noun(len(patients), 'patient')}" if len(patients) < len(dataset.training) else ""
    return f"{cases}{of}{test}, {channels}, {labels}{ignore}: {dataset.layout_title or dataset.layout}"


def leave_out_bad(dataset: DatasetDescription, issues: Sequence[Issue]) -> DatasetDescription:
    """The dataset without the training and test cases that have an error; ``issues`` are kept with it.

    ``left_out`` names them, and files that belong to no case (an image without a label map) as well. Errors of the
    dataset as a whole remain: `errors_of_dataset`. Raises `AutosegError` where no labelled case is left.
    """
    bad = {issue.case for issue in issues if issue.severity == "error" and issue.case is not None}
    training = tuple(case for case in dataset.training if case.case_id not in bad)
    if not training:
        message = f"all {count_noun(len(dataset.training), 'labelled case')} have errors"
        fix = "fix the errors that autoseg check reports"
        raise AutosegError(Issue(code="case.none_left", where=dataset.root, message=message, fix=fix))
    note = Issue(
        code="case.left_out",
        severity="note",
        where=dataset.root,
        message=f"{count_noun(len(bad), 'case')} left out because of errors (--skip-bad): {', '.join(sorted(bad))}",
        fix="fix them and run without --skip-bad to use them",
    )
    return dataset.model_copy(
        update={
            "training": training,
            "test": tuple(case for case in dataset.test if case.case_id not in bad),
            "left_out": tuple(sorted({*dataset.left_out, *bad})),
            "issues": (*issues, note) if bad else tuple(issues),
        }
    )


def errors_of_dataset(issues: Sequence[Issue]) -> list[Issue]:
    """Errors of the dataset as a whole, which leaving cases out does not fix."""
    return [issue for issue in issues if issue.severity == "error" and issue.case is None]
