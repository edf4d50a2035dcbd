"""What is trained for how long: measured once on this machine, given by a file, or what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.inference.model_files import ModelFiles
from autoseg.issues import AutosegError
from autoseg.networks.transfer import describe_transfer
from autoseg.pipeline.cascading import require_unseen
from autoseg.pipeline.finetuning import describe_overlap, interface, open_pretrained
from autoseg.pipeline.freshness import (
    open_stage,
    refuse_redoing,
    what_changed,
)
from autoseg.pipeline.measured_schedule import announce, make_schedule, rule_configurations
from autoseg.pipeline.options import Options
from autoseg.pipeline.own_schedule import (
    GIVEN,
    followed_schedule,
    keep_budget,
    read_scheduled,
    schedule_inputs,
)
from autoseg.pipeline.splitting import find_splits, refuse_bad_files, save_splits
from autoseg.pipeline.stages import preprocess_configurations, preprocess_stage
from autoseg.storage.atomic import load_document, save_document
from autoseg.storage.cache import key_of
from autoseg.wording import count_noun
from planners import Configuration, Plan, Schedule

GIVE_ANOTHER = "give another file with --schedule, or none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All that training starts from."""

    dataset: DatasetDescription
    plan: Plan
    schedule: Schedule
    splits: Splits
    pretrained: ModelFiles | None = None
    """The model that every fold begins from."""


def schedule_stage(options: Options, *, asked: str | None = None, fold: int | None = None) -> Prepared:
    """Measure this machine once and decide what is trained for how long; ``schedule.json`` is an input from then on.

    A configuration that was ``asked`` for and is not planned, and a ``fold`` that no schedule could have, are refused before
    anything is preprocessed.
    """
    prepared = find_schedule(options, asked, fold)
    pretrained = open_pretrained(options)
    if pretrained is None:
        return prepared
    for line in describe_start(prepared, pretrained):
        options.reporter.say(line)
    return replace(prepared, pretrained=pretrained)


def find_schedule(options: Options, asked: str | None, fold: int | None) -> Prepared:
    """The schedule that was given, that is there and fits, or that is made now; with all that comes before it."""
    refuse_bad_files(options)
    given = read_given(options)
    options = keep_budget(options)

    def choose(dataset: DatasetDescription, plan: Plan) -> Sequence[Configuration]:
        require_planned(plan, asked)
        if given is not None:
            fitting_splits(options, dataset, plan, given)
        require_possible_fold(options, dataset, plan, fold, given)
        return rule_configurations(options, plan)

    dataset, plan = preprocess_stage(options, choose=choose)
    if given is not None:
        return given_schedule(options, dataset, plan, given)
    consumed, outputs, say = (
        schedule_inputs(options, dataset, plan),
        [options.run.schedule, options.run.splits],
        options.reporter.say,
    )

    def fits(_: Path) -> bool:
        return read_scheduled(options) is not None

    with open_stage(
        options.run,
        "schedule",
        consumed,
        outputs,
        what="the schedule",
        say=say,
        fits=fits,
        forget=False,
        may_redo=options.may_retrain,
    ) as to_do:
        followed = followed_schedule(options, dataset, plan)
        if followed is not None:
            if to_do:  # only its folds are lost
                save_splits(options, dataset, find_splits(options, dataset, followed.num_folds))
            say_other_threads(options, followed)
            preprocess_scheduled(options, dataset, plan, followed)
            return Prepared(
                dataset=dataset, plan=plan, schedule=followed, splits=load_document(Splits, options.run.splits)
            )
        if not options.may_retrain and any(options.run.models.glob("*/fold_*/final.safetensors")):
            refuse_redoing(
                options.run, what_changed(options.run, "schedule", consumed, outputs, fits), what="the schedule"
            )
        splits = find_splits(options, dataset)
        schedule = make_schedule(options, dataset, plan, splits)
        if schedule.num_folds < len(splits.folds):
            splits = find_splits(options, dataset, schedule.num_folds)
        # Until here the run has its former schedule: whoever measured by mistake and stops loses nothing.
        options.run.stage("schedule").unlink(missing_ok=True)
        save_splits(options, dataset, splits)
        save_document(options.run.schedule, schedule)
    announce(options, plan, schedule)
    return Prepared(dataset=dataset, plan=plan, schedule=schedule, splits=splits)


def read_given(options: Options) -> Schedule | None:
    """The schedule of the file that was given; None where there is none. Raises `AutosegError` where it cannot be read."""
    return None if options.schedule is None else load_document(Schedule, options.schedule, mend=GIVE_ANOTHER)


def describe_start(prepared: Prepared, pretrained: ModelFiles) -> list[str]:
    """What a person should know of a training that begins from another model."""
    about = pretrained.description
    lines = [f"Training goes on from a model of {about.dataset.name}, with its plan: {', '.join(about.stages)}"]
    for training in prepared.schedule.trainings:
        before, after = (
            interface(plan, plan.configuration(training.configuration)) for plan in (about.plan, prepared.plan)
        )
        lines += [f"  {training.configuration}, {note}" for note in describe_transfer(before, after)]
    overlap = describe_overlap(pretrained, prepared.dataset)
    return [*lines, *([] if overlap is None else [f"Warning: {overlap}"])]


def require_planned(plan: Plan, asked: str | None) -> None:
    """Refuse a configuration that the plan lacks."""
    planned = [configuration.name for configuration in plan.configurations]
    if asked not in (None, *planned):
        raise AutosegError(f"the plan has no configuration {asked!r}; it has {', '.join(planned)}")


def require_possible_fold(
    options: Options, dataset: DatasetDescription, plan: Plan, fold: int | None, given: Schedule | None
) -> None:
    """Refuse a fold that there will not be; a schedule that is still to be made may leave some of these out, but adds none."""
    if fold is None:
        return
    known = followed_schedule(options, dataset, plan) if given is None else given
    require_fold(options, fold, len(find_splits(options, dataset, None if known is None else known.num_folds).folds))


def require_fold(options: Options, fold: int, num_folds: int) -> None:
    """Refuse a fold that is not one of 0 ... ``num_folds`` - 1."""
    if 0 <= fold < num_folds:
        return
    fixed = options.splits is not None or options.leave_one_group_out or options.schedule is not None
    more = "" if fixed else ", or ask for more with --folds"
    raise AutosegError(f"there is no fold {fold}; there are folds 0 to {num_folds - 1}: choose one of these{more}")


def preprocess_scheduled(options: Options, dataset: DatasetDescription, plan: Plan, schedule: Schedule) -> None:
    """Preprocessed data of trainings that the rule would not choose: asked for, or scheduled for another machine."""
    there = {configuration.data for configuration in rule_configurations(options, plan)}
    scheduled = [plan.configuration(training.configuration) for training in schedule.trainings]
    missing = [configuration for configuration in scheduled if configuration.data not in there]
    if missing:
        preprocess_configurations(options, dataset, plan, missing)


def fitting_splits(options: Options, dataset: DatasetDescription, plan: Plan, schedule: Schedule) -> Splits:
    """The folds of a schedule from a file. Raises `AutosegError` where it does not fit them or the plan."""
    file = options.schedule
    require_planned_trainings(options, plan, schedule)
    splits = find_splits(options, dataset, schedule.num_folds)
    if len(splits.folds) != schedule.num_folds:
        raise AutosegError(
            f"{file} trains {count_noun(schedule.num_folds, 'fold')}, but {describe_other_folds(options, dataset, splits)}"
        )
    for training in schedule.trainings:
        if plan.configuration(training.configuration).previous_stage is not None:
            require_unseen(splits, training.configuration)
    return splits


def given_schedule(options: Options, dataset: DatasetDescription, plan: Plan, schedule: Schedule) -> Prepared:
    """Follow a schedule from a file, for instance another run's; see `fitting_splits` for what is refused."""
    file, splits = options.schedule, fitting_splits(options, dataset, plan, schedule)
    preprocess_scheduled(options, dataset, plan, schedule)
    consumed = schedule_inputs(options, dataset, plan) | {GIVEN: key_of(schedule)}
    outputs, what, say = [options.run.schedule, options.run.splits], f"the schedule of {file}", options.reporter.say

    def fits(_: Path) -> bool:
        return read_scheduled(options) == (schedule, splits)

    redo = options.may_retrain
    with open_stage(options.run, "schedule", consumed, outputs, what=what, say=say, fits=fits, may_redo=redo) as to_do:
        if to_do:
            save_splits(options, dataset, splits)
            save_document(options.run.schedule, schedule)
    if options.budget_s is not None:
        say(f"Warning: --budget changes nothing here: the schedule of {file} is followed")
    say_other_threads(options, schedule)
    announce(options, plan, schedule)
    return Prepared(dataset=dataset, plan=plan, schedule=schedule, splits=splits)


def require_planned_trainings(options: Options, plan: Plan, schedule: Schedule) -> None:
    """Refuse a schedule from a file that trains other networks than those of the plan, or a stage without the one before it."""
    file = options.schedule
    planned = [configuration.name for configuration in plan.configurations]
    scheduled = [training.configuration for training in schedule.trainings]
    unknown = [name for name in scheduled if name not in planned]
    if unknown:
        raise AutosegError(
            f"{file} trains {', '.join(unknown)}, which the plan lacks; it has {', '.join(planned)}: take a schedule of the "
            "same preset, or none"
        )
    for name in scheduled:
        untrained = [stage.name for stage in plan.chain(name) if stage.name not in scheduled]
        if untrained:
            raise AutosegError(
                f"{file} trains {name} without {', '.join(untrained)}, from whose predictions it starts; take a schedule that "
                "trains both, or none"
            )
    if options.pretrained is None:
        return
    widths = [
        (training, plan.configuration(training.configuration).network.features[0]) for training in schedule.trainings
    ]
    others = [
        f"{t.configuration} with {t.base_features} features, not {own}" for t, own in widths if t.base_features != own
    ]
    if others:
        raise AutosegError(
            f"{file} trains {', '.join(others)} as the networks of --pretrained {options.pretrained}; take a schedule that was "
            "made with --pretrained, or none"
        )


def describe_other_folds(options: Options, dataset: DatasetDescription, splits: Splits) -> str:
    """Half a sentence: where folds come from that are not as many as a given schedule trains, and how to mend that."""
    count = len(splits.folds)
    asked = {
        "--splits": options.splits is not None,
        "--leave-one-group-out": options.leave_one_group_out,
        "--folds": options.folds == count,
    }
    option = next((name for name, given in asked.items() if given), None)
    if option is not None:
        return f"{option} gives {count}; leave {option} out, or take a schedule of {count_noun(count, 'fold')}"
    return f"{len(dataset.training)} cases give {count}; take a schedule that was made for this dataset, or none"


def say_other_threads(options: Options, schedule: Schedule) -> None:
    """Say where results need not be those that the machine of the schedule would give."""
    if schedule.conditions.num_threads != options.num_threads:
        options.reporter.say(
            f"The schedule was made for {count_noun(schedule.conditions.num_threads, 'thread')}, here are {options.num_threads}: results may "
            "differ in the last digits"
        )
