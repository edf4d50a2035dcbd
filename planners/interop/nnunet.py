"""nnU-Net's fingerprint and dataset files, read as a `Fingerprint` (method sections 1.2 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from planners.decision import counted
from planners.document import Document, DocumentError, Issue, issues_of, within
from planners.fingerprint import (
    MOST_CASES,
    SPACING_MM,
    CaseSize,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Shape3,
    Voxels,
)
from planners.plan import SourceAxes

READERS: dict[str, SourceAxes | None] = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NaturalImage2DIO": None,
    "Tiff3DIO": None,
    "SimpleITKIOWithReorient": "ras",
    "NibabelIOWithReorient": "ras",
}
"""nnU-Net's readers, and the axes to which they reorient images; none: those of the file (method section 1.5)."""
BACKGROUND = "background"
IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class NnunetDataset:
    """A dataset as described by nnU-Net's two files."""

    fingerprint: Fingerprint
    """Label values are internal ones; see ``file_values``."""
    file_values: tuple[int, ...]
    """Value in the label files of each internal value; index 0 is the background."""
    file_ending: str
    reader: str | None
    """nnU-Net's class that reads the images, where the dataset file names a known one."""


def read_nnunet_dataset(
    fingerprint: str | bytes,
    dataset: str | bytes,
    *,
    fingerprint_where: str = "dataset_fingerprint.json",
    dataset_where: str = "dataset.json",
) -> NnunetDataset:
    """The dataset that nnU-Net's ``dataset_fingerprint.json`` and ``dataset.json`` (their texts) describe.

    Accepts what nnU-Net's planner accepts: ``modality`` for ``channel_names``, label values with gaps, regions, an
    ignore label, and a number of training cases other than the fingerprint's. Names that share one value become one
    class, regions lose value 0, and a missing ``regions_class_order`` is filled with the value that is each region's
    own; planning counts the entries of ``labels`` as they are. Other fields of the dataset file are not read.

    Raises `DocumentError` with all issues of both files, each with its place.
    """
    sizes, size_issues = read_part(_FingerprintFile, fingerprint, fingerprint_where)
    description, issues = read_part(DatasetFile, dataset, dataset_where)
    issues = size_issues + issues
    if description is not None:
        issues += within(dataset_where, label_issues(description))
    if sizes is not None and description is not None:
        issues += within(fingerprint_where, _channel_issues(sizes, description))
    if issues or sizes is None or description is None:
        raise DocumentError(f"{fingerprint_where} with {dataset_where}", issues)
    labels, file_values = internal_labels(description.labels, description.regions_class_order)
    return NnunetDataset(
        fingerprint=_fingerprint(sizes, description, labels),
        file_values=file_values,
        file_ending=description.file_ending,
        reader=description.reader,
    )


def internal_labels(
    labels: dict[str, int | tuple[int, ...]], order: Sequence[int] | None
) -> tuple[Labels, tuple[int, ...]]:
    """Labels by internal values, and the file's value of each internal value (0 first); regions stay in their order.

    ``labels`` and ``order`` are nnU-Net's ``labels`` and ``regions_class_order``, already checked.
    """
    entries = {name: _foreground(value) for name, value in labels.items() if name not in (BACKGROUND, IGNORE)}
    entries = {name: values for name, values in entries.items() if values}
    file_values = tuple(sorted({0, *(value for values in entries.values() for value in values)}))
    internal = {value: index for index, value in enumerate(file_values)}
    has_regions = any(len(values) > 1 for values in entries.values())
    if not has_regions:
        entries = _one_name_a_value(entries)
        entries = dict(sorted(entries.items(), key=lambda entry: entry[1]))  # a network's outputs are in this order
    classes = tuple(
        LabelClass(name=name, values=tuple(internal[value] for value in values)) for name, values in entries.items()
    )
    ignore = len(file_values) if IGNORE in labels else None
    region_order = None
    if has_regions:
        written = tuple(order) if order is not None else _own_values(list(entries.values()))
        region_order = tuple(internal[value] for value in written)
    file_ignore = () if ignore is None else (file_values[-1] + 1,)
    return Labels(classes=classes, ignore=ignore, region_order=region_order), (*file_values, *file_ignore)


class StatisticsFile(Document):
    """Intensities of one channel."""

    mean: float
    median: float
    std: Annotated[float, Field(ge=0)]
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


_Millimetres = Annotated[float, Field(ge=SPACING_MM[0], le=SPACING_MM[1])]


class _FingerprintFile(Document):
    """Bounds are those of planning (`planners.fingerprint`), reported by the file's own names."""

    spacings: Annotated[tuple[tuple[_Millimetres, _Millimetres, _Millimetres], ...], Field(min_length=1)]
    shapes_after_crop: Annotated[tuple[tuple[Voxels, Voxels, Voxels], ...], Field(min_length=1)]
    foreground_intensity_properties_per_channel: Annotated[dict[str, StatisticsFile], Field(min_length=1)]
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]

    @field_validator("shapes_after_crop")
    @classmethod
    def _check_lengths(cls, shapes: tuple[Shape3, ...], info: ValidationInfo) -> tuple[Shape3, ...]:
        spacings = info.data.get("spacings")
        if spacings is not None and len(spacings) != len(shapes):
            raise ValueError(f"{len(shapes)} shapes but {len(spacings)} spacings; each case needs one of both")
        return shapes


def _label_entry(entry: Any) -> int | tuple[int, ...]:
    values: list[int] = entry if isinstance(entry, list) else [entry]
    if not values or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError("must be a non-negative integer or a list of them")
    return tuple(values) if values is entry else values[0]


LabelEntry = Annotated[int | tuple[int, ...], PlainValidator(_label_entry)]
"""One type, so that a fault is reported once: a union would report it for each of its members."""


class DatasetFile(BaseModel):
    """``dataset.json``. Unknown fields are ignored, as nnU-Net does."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    name: str | None = None
    channel_names: Annotated[dict[str, str] | None, Field(min_length=1)] = None
    modality: Annotated[dict[str, str] | None, Field(min_length=1)] = None
    labels: dict[str, LabelEntry]
    numTraining: Annotated[int, Field(gt=0, le=MOST_CASES)]  # noqa: N815  # the file's own spelling
    file_ending: str = ".nii.gz"
    regions_class_order: tuple[int, ...] | None = None
    overwrite_image_reader_writer: str | None = None

    @property
    def reader(self) -> str | None:
        """The reader that the file names; unknown names, such as "None", are ignored as in nnU-Net."""
        return self.overwrite_image_reader_writer if self.overwrite_image_reader_writer in READERS else None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names in the order of the file, which is the order of the channels."""
        return tuple((self.channel_names or self.modality or {}).values())


M = TypeVar("M", bound=BaseModel)


def read_part(model: type[M], text: str | bytes, where: str) -> tuple[M | None, list[Issue]]:
    """The file's content, or none and its issues."""
    try:
        return model.model_validate_json(text), []
    except ValidationError as error:
        return None, within(where, issues_of(error))


def fault(where: str, message: str, *, fix: str) -> Issue:
    """Something in a file of nnU-Net that cannot be used."""
    return Issue(code="nnunet.invalid", where=where, message=message, fix=fix)


def label_issues(dataset: DatasetFile) -> list[Issue]:
    """Issues of channels, labels and regions of a dataset file."""
    issues = []
    if not dataset.channels:
        issues.append(fault("channel_names", "missing", fix="name the channels, e.g. {'0': 'CT'}"))
    labels = dataset.labels
    if BACKGROUND not in labels or _flat(labels[BACKGROUND]) != (0,):
        found = f"must be 0 (found {labels.get(BACKGROUND)!r})"
        issues.append(fault(f"labels.{BACKGROUND}", found, fix="declare the background"))
    values = sorted({value for name, entry in labels.items() if name != IGNORE for value in _flat(entry)})
    if not any(values):
        found = "no entry has a value above 0, so there is nothing to segment"
        issues.append(fault("labels", found, fix="declare a class"))
    if IGNORE in labels and labels[IGNORE] != max(values, default=0) + 1:
        found = f"must be {max(values, default=0) + 1}, one above the highest (found {labels[IGNORE]!r})"
        issues.append(fault(f"labels.{IGNORE}", found, fix="give the ignore label that value"))
    return issues + _region_issues(dataset, values)


def _region_issues(dataset: DatasetFile, values: Sequence[int]) -> list[Issue]:
    order = dataset.regions_class_order
    if order is None or not _has_regions(dataset.labels):
        return []
    regions = [name for name, entry in dataset.labels.items() if name != IGNORE and any(_flat(entry))]
    issues = []
    if len(order) != len(regions):
        found = f"{counted(len(order), 'value')} for {counted(len(regions), 'region')} ({', '.join(regions)})"
        issues.append(fault("regions_class_order", found, fix="give one value for each region"))
    unknown = [value for value in order if value not in values or value == 0]
    if unknown:
        found = f"{unknown} are not label values above 0"
        issues.append(fault("regions_class_order", found, fix=f"choose from {list(values)}"))
    return issues


def _channel_issues(sizes: _FingerprintFile, dataset: DatasetFile) -> list[Issue]:
    found = sizes.foreground_intensity_properties_per_channel
    expected = {str(index) for index in range(len(dataset.channels))}
    if set(found) == expected or not expected:
        return []
    message = f"has channels {sorted(found)} but the dataset has {sorted(expected)}"
    fix = "extract the fingerprint again"
    return [fault("foreground_intensity_properties_per_channel", message, fix=fix)]


def _fingerprint(sizes: _FingerprintFile, dataset: DatasetFile, labels: Labels) -> Fingerprint:
    statistics = sizes.foreground_intensity_properties_per_channel
    digits = len(str(len(sizes.spacings)))
    return Fingerprint(
        dataset_name=dataset.name or "dataset",
        cases=tuple(
            CaseSize(case_id=f"case_{index:0{digits}d}", shape=shape, spacing_mm=spacing)
            for index, (shape, spacing) in enumerate(zip(sizes.shapes_after_crop, sizes.spacings, strict=True))
        ),
        num_training_cases=dataset.numTraining,
        channels=dataset.channels,
        labels=labels,
        intensities=tuple(read_statistics(statistics[str(index)]) for index in range(len(dataset.channels))),
        median_relative_size_after_cropping=sizes.median_relative_size_after_cropping,
        label_entries=len(dataset.labels),
    )


def read_statistics(entry: StatisticsFile) -> IntensityStatistics:
    """The same by our names."""
    return IntensityStatistics(minimum=entry.min, maximum=entry.max, **entry.model_dump(exclude={"min", "max"}))


def _flat(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _foreground(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({entry for entry in _flat(value) if entry > 0}))


def _has_regions(labels: dict[str, int | tuple[int, ...]]) -> bool:
    """One entry of several values makes all entries regions; a list of one does not."""
    return any(len(_flat(value)) > 1 for name, value in labels.items() if name != IGNORE)


def _one_name_a_value(entries: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The first name of each value."""
    first = {values: name for name, values in reversed(entries.items())}
    return {name: values for name, values in entries.items() if first[values] == name}


def _own_values(regions: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """For each region the value that no later region has, so that later ones written over it leave it standing."""
    written = []
    for index, values in enumerate(regions):
        later = {value for other in regions[index + 1 :] for value in other}
        own = [value for value in values if value not in later]
        written.append((own or list(values))[0])
    return tuple(written)
