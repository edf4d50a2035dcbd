"""What is trained for how long on which machine: the schedule, and what it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from planners.decision import DecisionRecord
from planners.document import ADDED, PROSE, Document
from planners.fingerprint import PositiveFloat, PositiveInt
from planners.plan import Network
from planners.registry import AUGMENTATIONS, require_installed

Precision = Literal["float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Measurement(Document):
    """Seconds that one width of one configuration was measured to take on this machine."""

    configuration: str
    base_features: PositiveInt
    batch_size: PositiveInt
    precision: Precision
    step_s: PositiveFloat
    """One training step with its data, median of several."""
    case_s: PositiveFloat
    """One network over a case of mean size, no mirroring."""
    export_s: Annotated[float, Field(ge=0)] = 0.0
    """Bringing the scores of a case to its image's grid, writing and scoring the label map."""
    prepare_s: Annotated[float, Field(ge=0)] = 0.0
    """Reading and preprocessing an unseen image."""
    compiled_step_s: PositiveFloat | None = None
    """One training step of the network compiled by `torch.compile`; none: not measured, or it does not work here."""
    compile_s: Annotated[float, Field(ge=0)] = 0.0
    """Compiling the network, once for each process that trains."""
    extrapolated: bool = False
    """Step and case were not timed: they follow from those of a narrower network."""


class Raced(Document):
    """What one candidate of a race has reached by the end of one round."""

    configuration: str
    base_features: PositiveInt
    reason: Annotated[str, PROSE]
    """Why it is a candidate."""
    steps: PositiveInt
    """Of its training so far, those of earlier rounds included."""
    seconds: PositiveFloat
    """That these steps took."""
    dice: tuple[Fraction | None, ...]
    """Of each case of the round, the mean over its classes; none where the case has no score."""
    difference: float | None = None
    """Mean over cases of its Dice less that of the favourite; none for the favourite, and where no case is scored. A case in
    which only one of both finds a class counts 1 for the other."""
    interval: tuple[float, float] | None = None
    """Of the difference: 95 %, Student t over cases, or over patients where they have several; none below three of them."""
    wilcoxon_p: Annotated[float | None, ADDED] = None
    """Of the signed-rank test of the same differences, which decides nothing; none below six that differ."""
    verdict: Literal["favourite", "goes on", "dropped", "won", "lost"]
    """``won`` and ``lost`` in the last round only, which decides whether the favourite is replaced."""


class Round(Document):
    """One round of a race: every candidate has trained for the same time, and is scored on the same whole cases."""

    cases: tuple[str, ...]
    """Validation cases of the first fold."""
    raced: Annotated[tuple[Raced, ...], Field(min_length=1)]
    """The favourite first."""


class Race(Document):
    """Candidates that were trained for a short time on one fold, to choose the one that is trained for the rest."""

    rounds: tuple[Round, ...] = ()
    note: str = ""
    """Why there was none, or why it ended early; the rule's favourite is trained then."""

    @property
    def favourite(self) -> Raced | None:
        """The rule's choice in the last round."""
        return self.rounds[-1].raced[0] if self.rounds else None

    @property
    def winner(self) -> Raced | None:
        """The challenger that replaces the favourite, if one does."""
        raced = self.rounds[-1].raced if self.rounds else ()
        return next((each for each in raced if each.verdict == "won"), None)


class Conditions(Document):
    """All that a schedule depends on besides the plan."""

    device: Literal["cpu", "cuda", "mps"]
    num_threads: PositiveInt
    budget_s: PositiveFloat | None
    """For the whole run; none: not given."""
    elapsed_s: Annotated[float, Field(ge=0)]
    """Of the budget, used before training."""
    num_folds: PositiveInt
    """Folds of the splits file."""
    folds_given: bool = False
    """The number of folds was given: the schedule keeps it."""
    configurations: tuple[str, ...] = ()
    """Configurations that were requested; empty: chosen by rule."""
    num_training_cases: PositiveInt
    num_test_cases: Annotated[int, Field(ge=0)]
    num_validated_cases: Annotated[int, Field(ge=0)] | None = None
    """Training cases that some fold validates; none: all of them."""
    cross_validated: bool
    """False: one case, none to validate on."""
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1), PROSE]
    race: Annotated[Race | None, PROSE] = None
    """None: none was held, as the user chose."""
    seed: Annotated[int, Field(ge=0)]
    num_devices: Annotated[PositiveInt, ADDED] = 1
    """Trainings that run side by side, each on a device of its own as fast as the measured one."""


class Training(Document):
    """How one configuration is trained; the same for each of its folds."""

    configuration: str
    base_features: PositiveInt
    batch_size: PositiveInt
    num_steps: PositiveInt
    steps_per_epoch: PositiveInt
    precision: Precision
    optimiser: Literal["sgd", "adamw"]
    peak_learning_rate: PositiveFloat
    momentum: Fraction
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: Annotated[int, Field(ge=0)]
    curve: Literal["polynomial", "cosine"]
    gradient_clip: PositiveFloat
    deep_supervision: bool
    mirroring: bool
    """Mirror in training, and then in prediction too."""
    augmentation: bool | tuple[Annotated[str, AfterValidator(partial(require_installed, AUGMENTATIONS))], ...]
    """Whether samples are augmented by the method's transforms; names of installed augmentations: by those too, after them."""
    foreground_share: Fraction
    compiled: bool = False
    """Training steps run through `torch.compile`."""
    averaged_share: Annotated[Fraction, ADDED] = 0.0
    """Last share of the training whose weights are averaged evenly to the final ones; 0: they are those of the last step."""
    validation_batches: Annotated[int, Field(ge=0)]
    """Batches for the pseudo-Dice after each epoch."""

    @field_validator("steps_per_epoch", "warmup_steps")
    @classmethod
    def _check_length(cls, steps: int, info: ValidationInfo) -> int:
        total = info.data.get("num_steps")
        if total is not None and (steps > total or (info.field_name == "warmup_steps" and steps == total)):
            raise ValueError(f"{steps} does not fit into the {total} steps of the training")
        return steps


class Revision(Document):
    """Another number of steps for one fold, decided while the run trained, because it was slower or faster than planned."""

    configuration: str
    fold: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    """Steps of the fold that were done when it was decided."""
    num_steps: Annotated[int, Field(ge=0)]
    """Steps of the fold in all, from then on; 0: it is left out, for want of time."""
    planned_steps: PositiveInt
    """`Training.num_steps` then; a revision of a training of another length is void."""
    step_s: PositiveFloat
    """What a step took at that time."""
    reason: Annotated[str, PROSE]

    @field_validator("num_steps")
    @classmethod
    def _check_steps(cls, steps: int, info: ValidationInfo) -> int:
        done = info.data.get("step")
        if done is not None and 0 < steps <= done:
            raise ValueError(f"{steps} steps in all, but {done} were done")
        return steps


class Start(Document):
    """What one fold starts from: its own weights at the end of an earlier training."""

    configuration: str
    fold: Annotated[int, Field(ge=0)]
    key: str
    """Of the weights: hash of all that they were trained from."""
    num_steps: PositiveInt
    """Steps that they were trained, in all."""


class Schedule(Document):
    """``schedule.json``: measured once, then an input."""

    schema_version: Literal[1] = 1
    conditions: Conditions
    num_folds: PositiveInt
    """Folds that are trained, 0 ... num_folds - 1 of splits with as many folds."""
    trainings: Annotated[tuple[Training, ...], Field(min_length=1)]
    expected_training_s: Annotated[PositiveFloat, PROSE]
    """All trainings, one after the other."""
    expected_validation_s: Annotated[float, Field(ge=0), PROSE]
    """Predicting and scoring every training case, likewise."""
    expected_rest_s: Annotated[float, Field(ge=0)]
    """Selection, test predictions and report."""
    decisions: Annotated[tuple[DecisionRecord, ...], PROSE]
    revisions: tuple[Revision, ...] = ()
    """In the order in which they take effect in each fold."""
    starts: tuple[Start, ...] = ()
    """Folds that go on from trained weights; others start from random ones."""

    @field_validator("trainings")
    @classmethod
    def _check_trainings(cls, trainings: tuple[Training, ...]) -> tuple[Training, ...]:
        names = [training.configuration for training in trainings]
        twice = dict.fromkeys(name for name in names if names.count(name) > 1)
        if twice:
            raise ValueError(f"trains {', '.join(twice)} more than once; leave one training of each configuration")
        return trainings

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if not self.folds:
            raise ValueError("its revisions leave out every fold; leave one in")
        return self

    @property
    def expected_s(self) -> float:
        """All that is left once the schedule is made, trainings side by side where there are several devices."""
        jobs = self.num_folds * len(self.trainings)
        share = rounds(jobs, self.conditions.num_devices) / jobs
        return (self.expected_training_s + self.expected_validation_s) * share + self.expected_rest_s

    @property
    def folds(self) -> tuple[int, ...]:
        """Folds that are trained in every configuration: none of them is left out."""
        names = [training.configuration for training in self.trainings]
        return tuple(fold for fold in range(self.num_folds) if all(self.steps_of(name, fold) for name in names))

    def revisions_of(self, configuration: str, fold: int) -> tuple[Revision, ...]:
        """Revisions of one fold that fit its training, in order, without those that leave it out."""
        return tuple(r for r in self._revisions_of(configuration, fold) if r.num_steps)

    def steps_of(self, configuration: str, fold: int) -> int:
        """Steps of one fold, after its revisions; 0: it is left out."""
        revisions = self._revisions_of(configuration, fold)
        return revisions[-1].num_steps if revisions else self.training(configuration).num_steps

    def _revisions_of(self, configuration: str, fold: int) -> list[Revision]:
        planned = self.training(configuration).num_steps
        return [
            r for r in self.revisions if (r.configuration, r.fold, r.planned_steps) == (configuration, fold, planned)
        ]

    def start_of(self, configuration: str, fold: int) -> Start | None:
        """The trained weights that one fold goes on from; None: it starts from random ones."""
        return next((each for each in self.starts if (each.configuration, each.fold) == (configuration, fold)), None)

    def training(self, configuration: str) -> Training:
        """The training of that configuration; `KeyError` lists the scheduled ones."""
        for training in self.trainings:
            if training.configuration == configuration:
                return training
        known = ", ".join(training.configuration for training in self.trainings)
        raise KeyError(f"the schedule does not train {configuration!r}; it trains: {known}")


def rounds(jobs: int, devices: int) -> int:
    """How many of ``jobs`` of equal length follow each other on the busiest of so many devices."""
    return -(-jobs // devices)


def with_width(network: Network, base_features: int) -> Network:
    """The same topology with ``base_features`` at full resolution instead of its own, all stages in proportion."""
    first = network.features[0]
    features = tuple(max(1, width * base_features // first) for width in network.features)
    return network.model_copy(update={"features": features})


def planned_position(training: Training, step: int, revisions: Sequence[Revision] = ()) -> float:
    """The step of the training as it was planned that stands where ``step`` of the revised one does (0-based).

    ``revisions`` are of this fold, in order. Each spreads what was left of the plan evenly over the steps that are left, so the
    position never jumps, and ends at the last planned step with the last step.
    """
    position, since, pace = 0.0, 0, 1.0
    for revision in revisions:
        if revision.step > step:
            break
        position, since = position + pace * (revision.step - since), revision.step
        pace = (training.num_steps - position) / (revision.num_steps - since)
    return position + pace * (step - since)


def learning_rate(training: Training, step: int, revisions: Sequence[Revision] = ()) -> float:
    """Learning rate of ``step`` (0-based): linear warm-up to the peak, then the curve down to about zero.

    The method's schedule changes it once an epoch (section 7.1), budgeted ones with every step. It follows the share of the
    training that is done: ``revisions`` of the fold's length bend the curve.
    """
    planned = planned_position(training, step, revisions) if revisions else step
    if planned < training.warmup_steps:
        return training.peak_learning_rate * min(1.0, (planned + 1) / training.warmup_steps)
    position, length = planned - training.warmup_steps, training.num_steps - training.warmup_steps
    if training.momentum > 0.95:  # nnU-Net's schedule
        position -= position % training.steps_per_epoch
    progress = position / length
    if training.curve == "cosine":
        return training.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    return float(training.peak_learning_rate * (1 - progress) ** 0.9)
