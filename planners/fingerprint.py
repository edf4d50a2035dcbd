"""What a planner may know of a dataset: sizes, spacings, intensities, channels and labels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from planners.document import Document

PositiveFloat = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Shape3 = tuple[PositiveInt, PositiveInt, PositiveInt]
Spacing3 = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class LabelClass(Document):
    """A foreground class or, with several values, a region that is the union of labels."""

    name: str
    values: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Internal label values (consecutive from 1 over the dataset; background is 0)."""


class Labels(Document):
    """What is to be told apart, in declaration order, by internal label values.

    Internal values are consecutive; the values in the user's files are kept by the dataset.
    """

    classes: Annotated[tuple[LabelClass, ...], Field(min_length=1)]
    ignore: PositiveInt | None = None
    """Internal value of voxels that nobody annotated; the highest of all."""
    region_order: tuple[PositiveInt, ...] | None = None
    """Regions only: the value each region writes, in the order in which they are written (later ones win)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [label.name for label in self.classes]
        if len(set(names)) != len(names):
            raise ValueError(f"class names must differ from each other, found {names}")
        values = self.values
        if values != tuple(range(1, len(values) + 1)):
            raise ValueError(f"internal values must be 1, 2, 3 ... without a gap, found {values}")
        if self.ignore is not None and self.ignore != len(values) + 1:
            raise ValueError(f"the ignore value must be {len(values) + 1}, one above the others, found {self.ignore}")
        if self.has_regions and (self.region_order is None or len(self.region_order) != len(self.classes)):
            raise ValueError(f"region_order must name one value for each of the {len(self.classes)} regions")
        if not self.has_regions and self.region_order is not None:
            raise ValueError("region_order is only for regions, but every class has a single value")
        return self

    @property
    def values(self) -> tuple[int, ...]:
        """All foreground values, ascending, the ignore value left out."""
        return tuple(sorted({value for label in self.classes for value in label.values}))

    @property
    def has_regions(self) -> bool:
        """Whether classes may overlap, so that the network ends in a sigmoid for each."""
        return any(len(label.values) > 1 for label in self.classes)

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: background and classes, or one for each region."""
        return len(self.classes) if self.has_regions else len(self.classes) + 1

    @property
    def num_entries(self) -> int:
        """Background, classes or regions, and the ignore entry: what method section 3.8 counts."""
        return 1 + len(self.classes) + (self.ignore is not None)


class IntensityStatistics(Document):
    """Intensities of one channel inside the foreground of all training cases (method section 2)."""

    mean: float
    median: float
    std: Annotated[float, Field(ge=0)]
    minimum: float
    maximum: float
    percentile_00_5: float
    percentile_99_5: float


class CaseSize(Document):
    """Size of one training case after cropping to its non-zero box, in source axes (z, y, x)."""

    case_id: str
    shape: Shape3
    spacing_mm: Spacing3


class Fingerprint(Document):
    """All that planning depends on. Axes are source axes, (z, y, x)."""

    schema_version: Literal[1] = 1
    dataset_name: str
    cases: Annotated[tuple[CaseSize, ...], Field(min_length=1)]
    """Sizes of the cases that were looked at, sorted by case id."""
    num_training_cases: PositiveInt
    """Number of training cases; equals ``len(cases)`` except in fingerprints made elsewhere."""
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Channel names in order; the name chooses the normalisation (method section 3.11)."""
    labels: Labels
    intensities: tuple[IntensityStatistics, ...]
    """One entry a channel."""
    median_relative_size_after_cropping: Annotated[float, Field(gt=0, le=1)]
    sided_axis: Literal[0, 1, 2] | None = None
    """Source axis along which paired left and right structures mirror each other; none: no such pair is known."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.intensities) != len(self.channels):
            raise ValueError(
                f"intensities has {len(self.intensities)} entries but channels has {len(self.channels)}; "
                "each channel needs one"
            )
        ids = [case.case_id for case in self.cases]
        if len(set(ids)) != len(ids):
            raise ValueError("case ids must differ from each other")
        return self
