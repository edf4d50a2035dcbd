"""Schedule: what is trained for how long, by trial steps on this machine, from a file, or as the user edited it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import Splits
from autoseg.issues import AutosegError, Issue
from autoseg.settings import changes_of
from autoseg.stages.announce import announce, announce_trainings, short_budget_issue
from autoseg.stages.check import trained_on
from autoseg.stages.folds import (
    always_trained_on,
    find_splits,
    fold_inputs,
    folds_given,
    refuse_bad_folds,
    require_fold,
    require_unseen,
    save_splits,
)
from autoseg.stages.plan import is_trained_by, refuse_other_plan
from autoseg.stages.preprocess import candidates, preprocess_configurations
from autoseg.stages.pretrained import describe_start, open_pretrained
from autoseg.stages.run import (
    GIVE_ANOTHER,
    Run,
    StageRecord,
    keep_settings,
    require_planned,
    require_redo,
    trained_folds,
)
from autoseg.stages.work import (
    CORRECT,
    FILE_INPUT,
    Work,
    changed_inputs,
    document_of,
    is_edited,
    read_record,
    reads_as,
    written_document,
)
from autoseg.storage.atomic import load_document, load_or_none, save_document
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from autoseg.wording import count_noun
from planners import (
    Conditions,
    Edit,
    Plan,
    Revision,
    Schedule,
    edited_schedule,
    extend_schedule,
    find_edits,
    little_time_configurations,
    plan_schedule,
    starves,
    with_revisions,
)

if TYPE_CHECKING:
    from autoseg.inference.bundle import ModelFiles

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that training starts from, read once."""

    dataset: DatasetDescription
    plan: Plan
    schedule: Schedule
    splits: Splits
    pretrained: ModelFiles | None = None
    """The model that every fold starts from."""
    replays: bool = False
    """Revisions of the schedule are the user's: weights depend on them, and no others are made."""

    @property
    def validated(self) -> tuple[str, ...]:
        """Ids of all cases that a fold validates which is not left out, sorted."""
        return tuple(sorted(case_id for fold in self.schedule.folds for case_id in self.splits.folds[fold].val))


def read_prepared(run: Run) -> Prepared:
    """The results of the stages before training. Raises `AutosegError` if any is missing."""

    def has_other_revisions() -> bool:
        written = written_schedule(run)
        return written is not None and written.revisions != run.schedule.revisions

    replays = run.settings.schedule is not None or (
        has_other_revisions() and _when_nobody_writes(run, has_other_revisions)
    )
    return Prepared(
        dataset=run.dataset,
        plan=run.plan,
        schedule=run.schedule,
        splits=run.splits,
        pretrained=open_pretrained(run),
        replays=replays,
    )


def save_revisions(run: Run, revisions: Sequence[Revision], *, all_of: tuple[str, int] | None = None) -> Schedule:
    """Add ``revisions`` to ``schedule.json``, or replace all of a fold; no edits by the user. Returns the schedule with them."""
    with hold_lock(run.folder.lock("schedule"), what="the schedule", wait=True, say=run.say), _revisions_lock(run):
        schedule = with_revisions(run.schedule, revisions, all_of=all_of)
        record = read_record(run.folder, "schedule")
        save_document(run.folder.schedule, schedule)
        if record is not None and (written := written_schedule(run)) is not None:
            own = with_revisions(written, revisions, all_of=all_of).model_dump(mode="json")
            documents = {**record.documents, run.folder.schedule.name: own}
            save_document(run.folder.stage("schedule"), record.model_copy(update={"documents": documents}))
    return schedule


def schedule(run: Run) -> Generator[Work, None, None]:
    """Time a few steps, decide by rule, and apply what the user set (``--set schedule.…``).

    A schedule file is followed instead where one is given. A ``schedule.json`` that was edited since is kept until
    ``--replan``, which puts back what was written. Once it is there, the schedule holds on other devices and with other
    numbers of threads, too.
    """
    dataset, plan, given = run.dataset, run.plan, read_given(run)
    edited = edited_by_user(run)
    if edited is not None and (run.added_s is None or run.redo):
        splits = fitting_splits(run, dataset, plan, edited, where=str(run.folder.schedule))
        if not _belong_together(run) or run.splits != splits:
            save_splits(run, dataset, splits)
        changes = "; ".join(map(str, schedule_edits(run))) or "nothing that decides"
        run.say(f"schedule.json was edited: {changes}; keeping it (--replan discards the edits)")
    else:
        yield Work(
            name="schedule",
            what="the schedule",
            inputs=partial(_inputs, run, dataset, plan, given),
            outputs=[run.folder.schedule, run.folder.splits],
            edited={run.folder.schedule: Schedule},
            is_whole=lambda _: _belong_together(run),
            do=partial(_make, run, dataset, plan, given),
            keeps_record=True,
        )
    current = run.schedule
    if given is not None:
        run.reporter.expect(current.expected_s)
    if given is not None and run.settings.budget is not None:
        run.say(f"Warning: --budget has no effect: the run follows the schedule {run.settings.schedule}")
    if run.configuration is not None and run.configuration not in names_of(current):
        before = current.trainings
        current = add_training(run, dataset, plan, run.configuration)
        announce_trainings(run, current, current.trainings[len(before) :])
    if (made_for := current.conditions.num_threads) != run.num_threads:
        run.say(
            f"The schedule was made for {count_noun(made_for, 'thread')}, this call has {run.num_threads}: sums are "
            "rounded otherwise, and trainings differ by what comes of it"
        )
    preprocessed = {configuration.data for configuration in candidates(run, plan)}
    scheduled = [plan.configuration(name) for name in names_of(current)]
    if missing := [configuration for configuration in scheduled if configuration.data not in preprocessed]:
        # scheduled for another machine, or asked for
        yield Work(name="preprocess", what="preprocessing", do=partial(preprocess_configurations, run, plan, missing))
    describe_start(run, dataset, plan, current)


def preflight(run: Run, plan: Plan) -> None:
    """Refuse folds, files and configurations that no schedule could follow, before anything is preprocessed."""
    dataset, settings = run.dataset, run.settings
    require_planned(plan.names, run)
    given, edited = read_given(run), edited_by_user(run)
    refuse_other_plan(run, plan)
    refuse_bad_folds(settings, dataset)
    if edited is not None:
        fitting_splits(run, dataset, plan, edited, where=str(run.folder.schedule))
    elif given is not None:
        fitting_splits(run, dataset, plan, given, where=str(settings.schedule))
    if run.fold is not None:
        known = given or read_schedule(run)
        require_fold(run.fold, len(find_splits(settings, dataset, None if known is None else known.num_folds).folds))


def names_of(schedule: Schedule) -> list[str]:
    """Configurations that are trained."""
    return [training.configuration for training in schedule.trainings]


def read_given(run: Run) -> Schedule | None:
    """The schedule of the file that was given, with what the user set; None where none was given.

    Raises `AutosegError` where it cannot be read.
    """
    path = run.settings.schedule
    return None if path is None else with_changes(run, load_document(Schedule, path, fix=GIVE_ANOTHER))


def with_changes(run: Run, schedule: Schedule) -> Schedule:
    """A schedule with what the user set: ``--set schedule.…``, ``--no-mirroring``."""
    settings = run.settings
    changes = {**({} if settings.mirroring else {"mirroring": "false"}), **changes_of(settings, "schedule")}
    return edited_schedule(schedule, changes) if changes else schedule


def read_schedule(run: Run) -> Schedule | None:
    """The run's ``schedule.json``; None where there is none. Raises `AutosegError` where it cannot be read.

    With ``run.replan`` one that cannot be read counts as none.
    """
    path = run.folder.schedule
    if not path.is_file() or (run.replan and not reads_as(Schedule)(path)):
        return None
    return load_document(Schedule, path, fix=CORRECT)


def edited_by_user(run: Run) -> Schedule | None:
    """The run's ``schedule.json`` where the user edited it; not where another process just adds a revision."""

    def is_there() -> bool:
        return read_schedule(run) is not None and is_edited(run, "schedule", run.folder.schedule, Schedule)

    return read_schedule(run) if is_there() and _when_nobody_writes(run, is_there) else None


def _when_nobody_writes(run: Run, find: Callable[[], Found]) -> Found:
    """What is found of ``schedule.json`` and its record while no other process adds revisions to them."""
    with _revisions_lock(run):
        return find()


def _revisions_lock(run: Run) -> AbstractContextManager[None]:
    """Apart from the lock of the stage, which whoever looks for edits may hold."""
    return hold_lock(run.folder.lock("revisions"), what="the schedule's revisions", wait=True, say=run.say)


def written_schedule(run: Run) -> Schedule | None:
    """``schedule.json`` as this stage wrote it, whatever happened to it since; None if unknown."""
    return written_document(run.folder, "schedule", run.folder.schedule, Schedule)


def schedule_edits(run: Run) -> tuple[Edit, ...]:
    """What the user changed in ``schedule.json``, next to the values that were written."""

    def find() -> tuple[Edit, ...]:
        written = written_schedule(run)
        return () if written is None else find_edits(written, run.schedule)

    return find() and _when_nobody_writes(run, find)


def _belong_together(run: Run) -> bool:
    """Whether schedule and folds of the run can be read, and are of each other."""
    try:
        return len(run.splits.folds) == run.schedule.num_folds
    except AutosegError:
        return False  # `read_schedule` reports a schedule that cannot be read


def _inputs(
    run: Run, dataset: DatasetDescription, plan: Plan, given: Schedule | None, kept: Schedule | None = None
) -> dict[str, str]:
    """What the schedule depends on: that of the run, or the one that is ``kept`` of an earlier model."""
    settings = run.settings
    common = {
        "dataset": trained_on(dataset),
        **fold_inputs(settings, dataset),
        "plan": _plan_key(plan, given or kept or read_schedule(run) or written_schedule(run)),
    }
    record, folds = read_record(run.folder, "schedule"), trained_folds(run.folder)
    if kept is None and record is not None and folds and all(is_trained_by(run, plan, *fold) for fold in folds):
        common["plan"] = record.inputs["plan"]  # other configurations no longer matter
    if given is not None:
        return {**common, FILE_INPUT: key_of(given)}
    chosen = {
        "configurations (--configurations)": settings.configurations or None,
        "race (--no-race)": None if settings.race else False,
        "mirroring (--no-mirroring)": None if settings.mirroring else False,
        "changes (--set)": changes_of(settings, "schedule") or None,
    }
    return {
        **common,
        "budget": key_of(settings.budget),
        "seed": key_of(settings.seed),
        **{name: key_of(value) for name, value in chosen.items() if value is not None},
    }


def follows_file(run: Run) -> bool:
    """Whether the run's schedule was made from a file (``--schedule``), also where that is no option any more."""
    record = read_record(run.folder, "schedule")
    return record is not None and FILE_INPUT in record.inputs


def _plan_key(plan: Plan, schedule: Schedule | None) -> str:
    """Key of the configurations that a schedule trains or was chosen from."""
    if schedule is None:
        return key_of(plan)
    known = {m.configuration for m in schedule.conditions.measurements} | set(names_of(schedule))
    return key_of([configuration for configuration in plan.configurations if configuration.name in known])


def _make(run: Run, dataset: DatasetDescription, plan: Plan, given: Schedule | None) -> None:
    """Put back the schedule that was made from the same before; else make one, which trains everything again."""
    changed = changed_inputs(run.folder, "schedule", _inputs(run, dataset, plan, given))
    if not changed and (known := _known_schedule(run)) is not None:
        save_splits(run, dataset, find_splits(run.settings, dataset, known.num_folds))
        save_document(run.folder.schedule, known)
        return
    reasons = [f"the {name} changed" for name in changed] or ["schedule.json is missing or was edited"]
    known = _kept_schedule(run, dataset, plan) if given is None else given
    adds_time = run.added_s is not None and not run.redo
    if adds_time and (known is None or not known.starts):
        from autoseg.stages.more_time import schedule_with_more_time

        known = schedule_with_more_time(run, plan)
    if known is None:
        require_redo(run, reasons, code="run.schedule_changed")
        splits = find_splits(run.settings, dataset)
        schedule = measured_schedule(run, dataset, plan, splits)
        if not run.settings.anyway and (short := short_budget_issue(run, plan, schedule)) is not None:
            raise AutosegError(short)
        if schedule.num_folds < len(splits.folds):
            splits = find_splits(run.settings, dataset, schedule.num_folds)
    else:
        if given is not None:
            splits = fitting_splits(run, dataset, plan, given, where=str(run.settings.schedule))
        else:
            splits = find_splits(run.settings, dataset, known.num_folds)
        schedule = known
        if changed and not adds_time:  # a file is else just copied again
            refuse_other_trainings(run, dataset, plan, schedule, splits, reasons)
    # Until here the run has its former schedule: interrupted while it is measured, nothing is lost.
    if (record := read_record(run.folder, "schedule")) is not None:
        save_document(run.folder.kept_schedules / f"{key_of(record.inputs)[:16]}.json", record)
    run.folder.schedule.unlink(missing_ok=True)
    run.folder.stage("schedule").unlink(missing_ok=True)
    save_splits(run, dataset, splits)
    save_document(run.folder.schedule, schedule)
    if adds_time:  # killed from now on, the run goes on with the added time
        keep_settings(run)
    announce(run, plan, schedule, is_given=given is not None)


def refuse_other_trainings(
    run: Run, dataset: DatasetDescription, plan: Plan, schedule: Schedule, splits: Splits, reasons: Sequence[str]
) -> None:
    """Raise `AutosegError` where a known ``schedule`` would train folds again, or drop what is not finished."""
    from autoseg.stages.train import fold_inputs as inputs_of
    from autoseg.stages.train import goes_on

    prepared = Prepared(
        dataset=dataset,
        plan=plan,
        schedule=schedule,
        splits=splits,
        pretrained=open_pretrained(run),
        replays=run.settings.schedule is not None,
    )
    names, others = names_of(schedule), []
    for name, fold in trained_folds(run.folder):
        record = read_record(run.folder, f"train-{name}-fold_{fold}")
        stays = name in names and fold < schedule.num_folds
        inputs = inputs_of(run, prepared, schedule.training(name), fold) if stays else None
        if (record is None or record.inputs != inputs) and not goes_on(run.folder, schedule, name, fold):
            others.append((name, fold))
    require_redo(run, reasons, code="run.schedule_changed", folds=others)


def _known_schedule(run: Run) -> Schedule | None:
    """The schedule as it was written; without a record of that, the one that is there, once networks were trained by it."""
    if read_record(run.folder, "schedule") is not None:
        return written_schedule(run)
    return read_schedule(run) if trained_folds(run.folder) and not (run.redo or run.replan) else None


def _kept_schedule(run: Run, dataset: DatasetDescription, plan: Plan) -> Schedule | None:
    """The schedule that was made from the same before another one took its place."""
    for path in sorted(run.folder.kept_schedules.glob("*.json")):
        record = load_or_none(StageRecord, path)
        kept = document_of(record, run.folder.schedule.name, Schedule)
        if record is not None and kept is not None and _inputs(run, dataset, plan, None, kept) == record.inputs:
            return kept
    return None


def measured_schedule(run: Run, dataset: DatasetDescription, plan: Plan, splits: Splits) -> Schedule:
    """Time a few steps, let candidates race where that says something, apply the pure rule, then the user's changes."""
    from autoseg.stages.race import hold_race, may_race
    from autoseg.stages.trials import make_bench, measure_beside, measure_each, measure_steps, refine, try_compiling

    settings, bench, chosen = run.settings, make_bench(run, dataset, plan), list(candidates(run, plan))
    for cascade in [each for each in chosen if each.previous_stage is not None]:
        if settings.configurations:
            require_unseen(splits, cascade.name)
        elif always_trained_on(splits):  # its first stage has seen these cases
            chosen.remove(cascade)
    measure = measure_each if settings.configurations else measure_steps
    names = ", ".join(each.name for each in chosen)
    with run.reporter.phase(f"Timing {names}", max(0.0, bench.ends - time.monotonic())):
        measured = measure(bench, chosen, budgeted=not run.follows_method, num_folds=len(splits.folds))
    conditions = Conditions(
        device=run.device.type,  # type: ignore[arg-type]  # choose_device knows no others
        num_threads=run.num_threads,
        budget_s=settings.budget,
        num_folds=len(splits.folds),
        folds_given=folds_given(settings),
        configurations=tuple(settings.configurations),
        num_training_cases=len(dataset.training),
        num_test_cases=len(dataset.test),
        num_validated_cases=len(splits.validated),
        cross_validated=splits.cross_validated,
        measurements=measured,
        seed=settings.seed,
        elapsed_s=run.elapsed_s,
        num_devices=run.num_devices,
    )
    if starves(plan, conditions) and settings.pretrained is None:
        little = little_time_configurations(plan)
        preprocess_configurations(run, plan, little)
        beside = measure_beside(bench, conditions, [each.name for each in little])
        conditions = beside.model_copy(update={"elapsed_s": run.elapsed_s})
    if may_race(bench):
        began = time.monotonic()
        conditions = hold_race(bench, conditions, splits)
        bench = replace(bench, ends=bench.ends + time.monotonic() - began)
    planned = with_changes(run, plan_schedule(plan, conditions))
    for training in planned.trainings:
        planned_from, measured = (training.configuration, training.base_features), conditions.measurements
        mine = next((each for each in measured if (each.configuration, each.base_features) == planned_from), None)
        if mine is None:  # the user set another width
            continue
        refined = try_compiling(bench, refine(bench, mine, training), training, planned.num_folds)
        measurements = tuple(refined if each is mine else each for each in measured)
        conditions = conditions.model_copy(update={"measurements": measurements, "elapsed_s": run.elapsed_s})
    return with_changes(run, plan_schedule(plan, conditions))


def fitting_splits(run: Run, dataset: DatasetDescription, plan: Plan, schedule: Schedule, *, where: str) -> Splits:
    """The folds of a schedule that was not made for this very run. Raises `AutosegError` where it does not fit them or the plan."""
    _require_fitting(run, plan, schedule, where=where)
    settings = run.settings
    splits = find_splits(settings, dataset, schedule.num_folds)
    if (count := len(splits.folds)) != schedule.num_folds:
        asked = {
            "--splits": settings.splits is not None,
            "--leave-one-group-out": settings.leave_one_group_out,
            "--hold-out-groups": settings.hold_out_groups is not None,
            "--folds": settings.folds == count,
        }
        option = next((name for name, given in asked.items() if given), None)
        gives = f"{len(dataset.training)} cases give" if option is None else f"{option} gives"
        raise AutosegError(
            Issue(
                code="schedule.other_folds",
                where=where,
                message=f"trains {count_noun(schedule.num_folds, 'fold')}, but {gives} {count}",
                fix=f"use a schedule with {count_noun(count, 'fold')}, or other folds",
            )
        )
    for name in names_of(schedule):
        if plan.configuration(name).previous_stage is not None:
            require_unseen(splits, name)
    return splits


def _require_fitting(run: Run, plan: Plan, schedule: Schedule, *, where: str) -> None:
    """Refuse a schedule that trains other networks than those of the plan, or a stage without the one before it."""
    planned, scheduled = plan.names, names_of(schedule)
    issues = [
        Issue(
            code="schedule.unplanned",
            where=where,
            message=f"trains {name}, which the plan lacks; it has {', '.join(planned)}",
            fix="use a schedule of the same preset, or none",
        )
        for name in scheduled
        if name not in planned
    ]
    for name in scheduled:
        before = plan.chain(name) if name in planned else ()
        if missing := [stage.name for stage in before if stage.name not in scheduled]:
            message = f"trains {name} without {', '.join(missing)}, from whose predictions it starts"
            fix = "train both, or neither"
            issues.append(Issue(code="schedule.missing_stage", where=where, message=message, fix=fix))
    if run.settings.pretrained is not None and not issues:
        for training in schedule.trainings:
            own = plan.configuration(training.configuration).network.features[0]
            if training.base_features != own:
                message = f"trains {training.configuration} with {training.base_features} features, not {own} as the pretrained model"
                fix = "use a schedule that was made with --pretrained, or none"
                issues.append(Issue(code="schedule.other_width", where=where, message=message, fix=fix))
    if issues:
        raise AutosegError(*issues)
    if schedule.starts:
        from autoseg.stages.more_time import require_starts

        require_starts(run.folder, schedule)


def add_training(run: Run, dataset: DatasetDescription, plan: Plan, name: str) -> Schedule:
    """The run's schedule with the configuration ``name`` in it; missing data are preprocessed and the training is timed and added.

    Raises `AutosegError` for a configuration that a given schedule does not train, or that cannot be trained on these folds.
    """
    from autoseg.stages.trials import make_bench, measure_each

    with hold_lock(run.folder.lock("schedule"), what="the schedule", wait=True, say=run.say):
        schedule, splits = run.schedule, run.splits
        scheduled = names_of(schedule)
        if name in scheduled:  # another process was faster
            return schedule
        if run.settings.schedule is not None:
            where, fix = str(run.settings.schedule), "choose one of these, or use another schedule"
            message = f"does not train {name}; it trains {', '.join(scheduled)}"
            raise AutosegError(Issue(code="schedule.not_trained", where=where, message=message, fix=fix))
        chain = plan.chain(name)
        if len(chain) > 1:
            require_unseen(splits, name)
        missing = [configuration for configuration in chain if configuration.name not in scheduled]
        run.say(f"Adding {' and '.join(c.name for c in missing)} to the schedule")
        preprocess_configurations(run, plan, missing)
        measurements = measure_each(
            make_bench(run, dataset, plan),
            missing,
            budgeted=not run.follows_method,
            num_folds=schedule.num_folds,
            precision=schedule.trainings[0].precision,
        )
        elapsed_s = run.elapsed_s

        def extended(before: Schedule) -> Schedule:
            """``before`` with the added training, to which the options of the user apply too."""
            longer = with_changes(run, extend_schedule(plan, before, name, measurements, elapsed_s=elapsed_s))
            added = longer.trainings[len(before.trainings) :]
            return longer.model_copy(update={"trainings": (*before.trainings, *added)})

        record, written = read_record(run.folder, "schedule"), written_schedule(run)
        longer = extended(schedule)
        save_document(run.folder.schedule, longer)
        if record is not None:  # what autoseg adds is not an edit by the user, whose own edits stay edits
            own = extended(written) if written is not None and names_of(written) == scheduled else longer
            update = {
                "inputs": {**record.inputs, "plan": _plan_key(plan, longer)},
                "documents": {**record.documents, run.folder.schedule.name: own.model_dump(mode="json")},
            }
            save_document(run.folder.stage("schedule"), record.model_copy(update=update))
    return longer
