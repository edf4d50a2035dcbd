"""What planning depends on: sizes, spacings, intensities, channels and labels, and which values are out of range."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from planners.decision import millimetres
from planners.document import Document, Issue
from planners.geometry import SourceShape, SourceSpacing

SPACING_MM = (1e-6, 1e6)
"""From a nanometre to a kilometre."""
MOST_VOXELS = 1_000_000
"""Along one axis."""
MOST_CASES = 1_000_000_000
MOST_LABELS = 1_000_000
"""Entries of the label table."""
MEMORY_GB = (1e-3, 1e6)

T = TypeVar("T")
PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Voxels = Annotated[int, Field(gt=0, le=MOST_VOXELS)]
"""Along one axis."""
Shape3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing3 = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class LabelClass(Document):
    """A foreground class or, with several values, a region that is the union of labels."""

    name: str
    values: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Internal label values (consecutive from 1 over the dataset; background is 0)."""


class Labels(Document):
    """Classes in declaration order, by internal label values.

    Internal values are consecutive; the values in the user's files are kept by the dataset.
    """

    classes: Annotated[tuple[LabelClass, ...], Field(min_length=1)]
    ignore: PositiveInt | None = None
    """Internal value of voxels that were not annotated; the highest of all."""
    region_order: Annotated[tuple[PositiveInt, ...] | None, Field(validate_default=True)] = None
    """Regions only: the value each region writes, in the order in which they are written (later ones win)."""

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[LabelClass, ...]) -> tuple[LabelClass, ...]:
        names = [label.name for label in classes]
        if len(set(names)) != len(names):
            raise ValueError(f"class names must differ from each other, found {names}")
        values = _values(classes)
        if values != tuple(range(1, len(values) + 1)):
            raise ValueError(f"internal values must be 1, 2, 3 ... without a gap, found {values}")
        return classes

    @field_validator("ignore")
    @classmethod
    def _check_ignore(cls, ignore: int | None, info: ValidationInfo) -> int | None:
        classes = info.data.get("classes")
        if classes is not None and ignore is not None and ignore != len(_values(classes)) + 1:
            raise ValueError(
                f"the ignore value must be {len(_values(classes)) + 1}, one above the others, found {ignore}"
            )
        return ignore

    @field_validator("region_order")
    @classmethod
    def _check_region_order(cls, order: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        classes = info.data.get("classes")
        if classes is None:
            return order
        has_regions = any(len(label.values) > 1 for label in classes)
        if has_regions and (order is None or len(order) != len(classes)):
            raise ValueError(f"region_order must name one value for each of the {len(classes)} regions")
        if not has_regions and order is not None:
            raise ValueError("region_order is only for regions, but every class has a single value")
        return order

    @property
    def values(self) -> tuple[int, ...]:
        """All foreground values, ascending, the ignore value left out."""
        return _values(self.classes)

    @property
    def has_regions(self) -> bool:
        """Whether classes may overlap, so that the network ends in a sigmoid for each."""
        return any(len(label.values) > 1 for label in self.classes)

    @property
    def overlaps(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Regions (their indices) that share a value which writing in ``region_order`` would lose, with that value.

        Of nested regions there are none: the last one that is written says which others hold the voxel.
        """
        if self.region_order is None:
            return ()
        holders = {
            value: tuple(i for i, label in enumerate(self.classes) if value in label.values) for value in self.values
        }
        twins = Counter(holders.values())
        return tuple(
            (regions, value)
            for value, regions in holders.items()
            if len(regions) > 1 and twins[regions] == 1 and holders.get(self.region_order[regions[-1]]) != regions
        )

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: background and classes, or one for each region."""
        return len(self.classes) if self.has_regions else len(self.classes) + 1

    @property
    def num_entries(self) -> int:
        """Background, classes or regions, and the ignore entry: what method section 3.8 counts."""
        return 1 + len(self.classes) + (self.ignore is not None)


def _values(classes: tuple[LabelClass, ...]) -> tuple[int, ...]:
    return tuple(sorted({value for label in classes for value in label.values}))


class IntensityStatistics(Document):
    """Intensities of one channel inside the foreground of all training cases (method section 2)."""

    mean: float
    median: float
    std: Annotated[float, Field(ge=0)]
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float


class CtEvidence(Document):
    """What the intensities of one channel say about its training cases."""

    num_ct: Annotated[int, Field(ge=0)]
    """CT by a DICOM tag, by what is known of the dataset, or by intensities in Hounsfield units: whole numbers, air near -1000."""
    num_other: Annotated[int, Field(ge=0)]
    """Not CT by tag or record, or with hardly a negative value, such as MR."""
    num_unclear: Annotated[int, Field(ge=0)]
    num_other_told: Annotated[int, Field(ge=0)] = 0
    """Of ``num_other`` those by tag or record, which are certain."""
    intensities: IntensityStatistics | None = None
    """Of all but the others, inside the foreground; none where there are no others, or nothing else."""


def count_ct(kinds: Iterable[tuple[bool | None, bool]]) -> CtEvidence:
    """Evidence of the cases of a channel: whether each is CT, and whether a tag or record says so."""
    count = Counter(kinds)
    by_kind = {kind: count[kind, True] + count[kind, False] for kind in (True, False, None)}
    return CtEvidence(
        num_ct=by_kind[True],
        num_other=by_kind[False],
        num_unclear=by_kind[None],
        num_other_told=count[False, True],
    )


LOOKED_AT = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
"""Shares of voxels of `CaseLook.quantiles`."""


class CaseSize(Document):
    """Size of one training case after cropping to its non-zero box, in source axes (z, y, x)."""

    case_id: str
    shape: Shape3
    spacing_mm: Spacing3
    file_axes: tuple[Literal[0, 1, 2], Literal[0, 1, 2], Literal[0, 1, 2]] | None = None
    """Source axis i is axis ``file_axes[i]`` of the file (z, y, x); none: not known, or source axes are those of the files."""

    @field_validator("file_axes")
    @classmethod
    def _check_file_axes(cls, axes: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if axes is not None and sorted(axes) != [0, 1, 2]:
            raise ValueError(f"file_axes must name each axis once, found {axes}")
        return axes


class ClassSize(Document):
    """How large one class or region is, over the training cases that have it."""

    name: str
    num_cases: Annotated[int, Field(ge=0)]
    """Training cases that have it. Where there is none, all that follows is 0."""
    median_volume_ml: Annotated[float, Field(ge=0)]
    median_share: Annotated[float, Field(ge=0, le=1)]
    """Of the voxels of its cases after cropping."""
    median_components: Annotated[float, Field(ge=0)]
    """Connected components in a case; voxels that share a corner are connected."""


class CaseLook(Document):
    """What one image looks like as a whole, to tell later ones that look otherwise."""

    tilt_deg: Annotated[float, Field(ge=0, le=90)]
    """Largest angle between an axis of its grid and the nearest axis of the body; 0 where directions are not known."""
    has_directions: bool
    """Whether its axes mean directions of the body."""
    means: tuple[float, ...]
    """Of each channel, over all voxels above its smallest value, which is mostly what surrounds the body."""
    stds: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]
    """Of the same voxels, at `LOOKED_AT`."""


class Fingerprint(Document):
    """All that planning depends on. Axes are source axes, (z, y, x)."""

    schema_version: Literal[1] = 1
    dataset_name: str
    cases: Annotated[tuple[CaseSize, ...], Field(min_length=1)]
    """Sizes of the cases, sorted by case id."""
    num_training_cases: PositiveInt
    """Number of training cases; equals ``len(cases)`` except in fingerprints made elsewhere."""
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Channel names in order; the name chooses the normalisation (method section 3.11)."""
    labels: Labels
    intensities: tuple[IntensityStatistics, ...]
    """One entry a channel."""
    ct_evidence: tuple[CtEvidence, ...] = ()
    """One entry a channel; none in fingerprints made elsewhere."""
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]
    sided_axis: Literal[0, 1, 2] | None = None
    """Source axis along which paired left and right structures mirror each other; none: no such pairs."""
    sided_pairs: tuple[tuple[str, str], ...] = ()
    """Names of the classes that are such pairs, the left one first."""

    looks: tuple[CaseLook, ...] = ()
    """One entry a case; none in fingerprints made elsewhere."""

    class_sizes: tuple[ClassSize, ...] = ()
    """One entry a class, in the order of ``labels``; none in fingerprints made elsewhere."""

    label_entries: PositiveInt | None = None
    """Entries of the label table of a fingerprint made elsewhere (method section 3.8); none: those of ``labels``."""

    @field_validator("cases")
    @classmethod
    def _check_cases(cls, cases: tuple[CaseSize, ...]) -> tuple[CaseSize, ...]:
        counts = Counter(case.case_id for case in cases)
        repeated = [case_id for case_id, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"case ids must differ from each other, found more than once: {repeated}")
        return cases

    @field_validator("intensities", "ct_evidence")
    @classmethod
    def _check_channels(cls, entries: tuple[T, ...], info: ValidationInfo) -> tuple[T, ...]:
        channels, name = info.data.get("channels"), info.field_name
        if channels is not None and len(entries) != len(channels) and (entries or name == "intensities"):
            raise ValueError(
                f"{name} has {len(entries)} entries but channels has {len(channels)}; each channel needs one"
            )
        return entries

    @property
    def num_label_entries(self) -> int:
        """What method section 3.8 counts: background, classes or regions, and the ignore entry."""
        return self.labels.num_entries if self.label_entries is None else self.label_entries


# --- limits ---


def find_issues(
    fingerprint: Fingerprint,
    *,
    memory_gb: float | None,
    device_memory_gb: float | None,
    target_spacing_mm: Sequence[float] | None,
) -> tuple[Issue, ...]:
    """One issue for each value out of range, with its place in the fingerprint or its argument."""
    issues = []
    for index, case in enumerate(fingerprint.cases):
        for axis, (voxels, mm) in enumerate(zip(case.shape, case.spacing_mm, strict=True)):
            issues += _spacing_issues(f"cases.{index}.spacing_mm.{axis}", mm, "check the image's spacing", case.case_id)
            if voxels > MOST_VOXELS:
                issues.append(
                    Issue(
                        code="plan.image_too_large",
                        where=f"cases.{index}.shape.{axis}",
                        message=f"{voxels} voxels are more than {MOST_VOXELS}",
                        fix="check the image",
                        case=case.case_id,
                    )
                )
    for place, number, most in (
        ("num_training_cases", fingerprint.num_training_cases, MOST_CASES),
        ("label_entries", fingerprint.num_label_entries, MOST_LABELS),
    ):
        if number > most:
            found = f"must be at most {most}"
            issues.append(Issue(code="plan.count_too_large", where=place, message=found, fix="check the dataset"))
    low, high = MEMORY_GB
    for name, gigabytes in (("memory_gb", memory_gb), ("device_memory_gb", device_memory_gb)):
        if gigabytes is not None and not low <= gigabytes <= high:
            found = f"{gigabytes} is not between {low:g} and {high:g}"
            issue = Issue(code="plan.memory_out_of_range", where=name, message=found, fix="give it in gigabytes")
            issues.append(issue)
    if target_spacing_mm is not None and len(target_spacing_mm) != 3:
        issues.append(
            Issue(
                code="plan.spacing_out_of_range",
                where="target_spacing_mm",
                message=f"{len(target_spacing_mm)} values were given",
                fix="give three, for axes z, y and x",
            )
        )
    elif target_spacing_mm is not None:
        for axis, mm in enumerate(target_spacing_mm):
            issues += _spacing_issues(f"target_spacing_mm.{axis}", mm, "give another --target-spacing")
    return tuple(issues)


def _spacing_issues(place: str, spacing_mm: float, fix: str, case: str | None = None) -> list[Issue]:
    low, high = SPACING_MM
    if math.isfinite(spacing_mm) and low <= spacing_mm <= high:
        return []
    found = f"{spacing_mm} mm is not between {low:g} and {high:g} mm"
    return [Issue(code="plan.spacing_out_of_range", where=place, message=found, fix=fix, case=case)]


def find_size_issues(shape: SourceShape, *, requested_mm: SourceSpacing | None = None) -> tuple[Issue, ...]:
    """One issue for each axis along which the resampled median case is too large.

    The cause is the spacing of the cases, or the target spacing where one was requested.
    """
    place, to, fix = "cases", "the target spacing", "check the spacings for mixed units"
    if requested_mm is not None:
        place, to, fix = "target_spacing_mm", millimetres(requested_mm), "give a coarser --target-spacing"
    return tuple(
        Issue(
            code="plan.image_too_large",
            where=place,
            message=f"resampled to {to}, the median case has {size:.3g} voxels along axis {axis}, more than {MOST_VOXELS}",
            fix=fix,
        )
        for axis, size in enumerate(shape)
        if size > MOST_VOXELS
    )
