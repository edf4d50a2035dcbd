"""More time for a run (``--budget +1h``): more steps for what is not trained yet, or a warm restart where all is trained."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from autoseg.evaluation.selection import Selection
from autoseg.inference.bundle import open_bundle
from autoseg.inference.model import final_weights
from autoseg.issues import AutosegError, Issue
from autoseg.networks.weights import key_within, read_key, read_weights, unpack_weights
from autoseg.run_folder import RunFolder
from autoseg.settings import as_duration, sets_steps
from autoseg.stages.pace import fold_s
from autoseg.stages.run import Run, require_redo
from autoseg.stages.schedule import Prepared, edited_by_user, follows_file, read_prepared, with_changes
from autoseg.stages.train import all_jobs, first_stages, fold_inputs, fold_key, is_trained, names_of
from autoseg.stages.work import read_record
from autoseg.storage.atomic import load_or_none
from autoseg.tracking.callbacks import HISTORY_FILE, read_history
from autoseg.training.checkpoints import CHECKPOINT_FILE, load_latest
from autoseg.wording import count_noun
from planners import (
    FEWEST_STEPS,
    Plan,
    Schedule,
    Start,
    continue_schedule,
    expected_step_s,
    revise,
    steps_left_s,
    with_revisions,
)


def schedule_with_more_time(run: Run, plan: Plan) -> Schedule:
    """The run's schedule with the time that this call adds to the budget.

    Raises `AutosegError` where folds were trained from something else than now, where the steps are the user's, and where the
    time is too short to learn anything.
    """
    root, where = run.folder.root, f"--budget +{as_duration(run.added_s or 0.0)}"
    if not run.trains:
        message, fix = "adds time for training, and this command trains nothing", f"use it with autoseg run {root}"
        raise AutosegError(Issue(code="run.trains_nothing", where=where, message=message, fix=fix))
    schedule = run.schedule
    prepared = read_prepared(run)
    kept = [job for job in names_of(all_jobs(schedule)) if schedule.steps_of(*job)]
    _refuse_other_inputs(run, prepared, kept)
    finished = [job for job in kept if read_record(run.folder, "train-{}-fold_{}".format(*job)) is not None]
    finished = [job for job in finished if final_weights(run.folder, *job).is_file()]
    if len(finished) < len(kept):
        if follows_file(run) or edited_by_user(run) is not None or sets_steps(run.settings):
            message = "adds time to a training that is not finished, whose steps the user set"
            fix = f"finish it first with autoseg run {root}, or change the steps"
            raise AutosegError(Issue(code="schedule.steps_are_set", where=where, message=message, fix=fix))
        return _extended(run, prepared)
    longer = continue_schedule(
        plan,
        schedule,
        [_start(run, schedule, *job) for job in kept],
        step_s={each.configuration: _step_s(run, schedule, each.configuration) for each in schedule.trainings},
        added_s=run.added_s or 0.0,
        elapsed_s=run.elapsed_s,
        num_threads=run.num_threads,
        num_devices=run.num_devices,
    )
    longer = with_changes(run, longer)
    fewest = min(each.num_steps for each in longer.trainings)
    if fewest < FEWEST_STEPS and not (run.settings.anyway or sets_steps(run.settings)):
        message = f"adds {count_noun(fewest, 'step')} to each fold; at least {FEWEST_STEPS} are needed"
        fix = "add more time, or pass --anyway to train all the same"
        raise AutosegError(Issue(code="schedule.budget_too_short", where=where, message=message, fix=fix))
    return longer


def _refuse_other_inputs(run: Run, prepared: Prepared, jobs: list[tuple[str, int]]) -> None:
    """Refuse to go on from weights that were trained from something else than now, schedules aside."""
    changed: dict[tuple[str, int], list[str]] = {}
    for name, fold in jobs:
        record = read_record(run.folder, f"train-{name}-fold_{fold}")
        if record is not None:
            inputs = fold_inputs(run, prepared, prepared.schedule.training(name), fold)
            names = [
                each for each in inputs if each not in ("schedule", "start") and inputs[each] != record.inputs.get(each)
            ]
            changed |= {(name, fold): names} if names else {}
    reasons = dict.fromkeys(f"the {each} changed" for names in changed.values() for each in names)
    require_redo(run, list(reasons), code="run.trained_from_other", folds=list(changed))


def _start(run: Run, schedule: Schedule, name: str, fold: int) -> Start:
    """The weights of a trained fold."""
    before = schedule.start_of(name, fold)
    num_steps = schedule.steps_of(name, fold) + (0 if before is None else before.num_steps)
    return Start(
        configuration=name, fold=fold, key=read_key(final_weights(run.folder, name, fold)), num_steps=num_steps
    )


def _step_s(run: Run, schedule: Schedule, name: str) -> float:
    """What a step of a configuration took while its folds were trained."""
    seconds, steps = 0.0, 0
    for fold in schedule.folds:
        history, _ = read_history(run.folder.fold(name, fold) / HISTORY_FILE)
        seconds += sum(epoch.seconds for epoch in history)
        steps += history[-1].step if history else 0
    return seconds / steps if seconds else expected_step_s(schedule, name)


def _extended(run: Run, prepared: Prepared) -> Schedule:
    """The schedule with more steps for the folds that are not trained yet, from the checkpoint of the first one on."""
    schedule = prepared.schedule
    keys = {job: fold_key(run, prepared, schedule.training(job[0]), job[1]) for job in names_of(all_jobs(schedule))}
    left = [job for job, key in keys.items() if not is_trained(final_weights(run.folder, *job), key)]
    while not schedule.steps_of(*left[0]):
        left = left[1:]
    first = left[0]
    checkpoint, _ = load_latest(run.folder.fold(*first) / CHECKPOINT_FILE, key=keys[first])
    done = 0 if checkpoint is None else checkpoint.step
    # those after the checkpoint were made by steps that are lost
    past = [revision for revision in schedule.revisions_of(*first) if revision.step <= done]
    schedule = with_revisions(schedule, past, all_of=first)
    each_s, rest_s = fold_s(schedule), schedule.expected_rest_s
    kept = sum(schedule.steps_of(*job) > 0 for job in left)
    expected_s = steps_left_s(schedule, left, done=done) + kept * each_s + rest_s
    revisions = revise(
        schedule,
        left,
        done=done,
        step_s=expected_step_s(schedule, first[0]),
        left_s=expected_s + (run.added_s or 0.0) * min(run.num_devices, kept),
        rest_s=rest_s,
        fold_s=each_s,
        whole=first_stages(prepared),
        most_departure=0.0,
    )
    reason = f"--budget +{as_duration(run.added_s or 0.0)}"
    longer = with_revisions(schedule, [each.model_copy(update={"reason": reason}) for each in revisions])
    before, now = (sum(each.steps_of(*job) for job in left) for each in (schedule, longer))
    run.say(f"{now - done} training steps are left instead of {before - done}")
    return longer


def find_start(folder: RunFolder, start: Start) -> dict[str, Tensor]:
    """The weights that a fold goes on from: in its place, where it was kept, or in a model. Raises `AutosegError` where they are gone."""
    name, fold = start.configuration, start.fold
    kept = folder.kept_fold(name, fold, start.key) / final_weights(folder, name, fold).name
    for path in (final_weights(folder, name, fold), kept):
        if is_trained(path, start.key):
            return read_weights(path, key=start.key)
    for path in (folder.model, *sorted(folder.previous.glob("*.zip"))):
        with suppress(AutosegError, StopIteration):
            files = open_bundle(path)
            content = files.packed_weights(name, fold)
            if key_within(content) == start.key:
                return unpack_weights(content, where=files.where(name, fold))
    raise AutosegError(
        Issue(
            code="schedule.start_missing",
            where=f"{name}, fold {fold}",
            message=f"the schedule goes on from weights that {folder.root} does not have",
            fix="use the schedule in the run folder that it was made in, or remove its starts to train from the beginning",
        )
    )


def require_starts(folder: RunFolder, schedule: Schedule) -> None:
    """Raise `AutosegError` where a fold that is not trained goes on from weights that are gone."""
    for start in schedule.starts:
        if not final_weights(folder, start.configuration, start.fold).is_file():
            find_start(folder, start)


def describe_continuing(run: Run, schedule: Schedule) -> str:
    """What is about to be trained for longer, and what it scored so far."""
    steps = sorted({each.num_steps for each in schedule.starts})
    trained = " to ".join(str(each) for each in dict.fromkeys((steps[0], steps[-1])))
    networks = count_noun(len(schedule.starts), "trained network")
    text = f"Going on from the weights of {networks}, after {trained} steps"
    selection = load_or_none(Selection, run.folder.selection)
    if selection is not None and selection.dice_after_postprocessing is not None:
        scored = f"scored Dice {selection.dice_after_postprocessing:.3f} {selection.scored_how}"
        text += f"; the present model {scored}, and stays in use until the new one is selected"
    return text
