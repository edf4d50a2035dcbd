"""Train: every scheduled configuration on every fold, or those that a call asks for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from autoseg.compute.executor import available_cores, stop_requests
from autoseg.compute.ranks import Ranks
from autoseg.imaging.placement import Placement
from autoseg.inference.member_output import How, LabelMap, run_member
from autoseg.inference.model import Member, final_weights, load_network
from autoseg.inference.predict import complete_jobs
from autoseg.inference.predictions import JOURNAL, Job
from autoseg.inference.predictor import StoredImage
from autoseg.issues import AutosegError
from autoseg.networks.weights import Transfer, read_key
from autoseg.preprocessing.prepare import CascadeCase, has_previous, store_previous
from autoseg.preprocessing.preprocess import stored_key
from autoseg.preprocessing.store import StoredCase, open_case, require_cases
from autoseg.run_folder import RunFolder
from autoseg.stages.check import trained_on
from autoseg.stages.folds import folds_without, require_fold, require_unseen
from autoseg.stages.pace import Pacer, follows_clock
from autoseg.stages.plan import trained_by
from autoseg.stages.pretrained import fit_weights
from autoseg.stages.run import Run, require_redo
from autoseg.stages.schedule import Prepared, read_prepared, save_revisions
from autoseg.stages.work import GivenUpError, Work, changed_inputs
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock, owners_here
from autoseg.tracking.callbacks import MOMENT_FILE
from autoseg.tracking.progress import FoldProgress, MomentFile
from autoseg.training.fold import train_fold
from autoseg.training.fold_spec import FoldSpec
from autoseg.training.preflight import kept_heap_for, num_readers
from planners import (
    Configuration,
    Revision,
    Schedule,
    Training,
    steps_left_s,
)

FoldJob = tuple[Training, int]
"""A configuration and the fold that is trained."""
HANDOVER = 1
"""Raised when the same networks and cases would give other label maps to the next stage, so that older ones are made again."""


def train(run: Run) -> Generator[Work, None, None]:
    """Train what is asked for and not trained yet; the first stage of a cascade before it, on all folds.

    Where a time decides on the number of steps, each fold is validated at once, so that what predictions take is known.
    """
    from autoseg.stages.together import require_shares  # these build on this module
    from autoseg.stages.validate import validation_work

    take_in(run)
    prepared = read_prepared(run)
    asked = asked_jobs(run, prepared.schedule)
    jobs = with_stages_before(prepared, asked)
    refuse_trained_otherwise(run, prepared, jobs)
    keys = all_keys(run, prepared)
    left = _untrained(run, jobs, keys)
    if left and run.trains and (run.ddp or run.ranks is not None):
        require_shares(run, prepared)
    keeps_time = not prepared.replays and follows_clock(run)
    is_whole, whole = jobs == all_jobs(prepared.schedule), first_stages(prepared)
    if run.trains and min(run.num_devices, len(left)) > 1:
        from autoseg.stages.side_by_side import train_side_by_side  # likewise

        yield Work(name="train", what="the trainings", do=lambda: train_side_by_side(run, keeps_time and is_whole))
        prepared, left = read_prepared(run), _untrained(run, jobs, keys)
    if run.within_s is not None:
        whole = tuple(training.configuration for training, _ in jobs)  # others decide what is left out
    steps = sum(prepared.schedule.steps_of(*pair) for pair in names_of(jobs))
    with run.reporter.track("Training", steps) as tracker:
        pacer = Pacer(run=run, schedule=prepared.schedule, tracker=tracker, left=left, whole=whole)
        pacer.is_active = keeps_time and (is_whole or run.within_s is not None)
        for training, fold in jobs:
            pair = training.configuration, fold
            if not pacer.schedule.steps_of(*pair):
                continue
            slowdown = 1.0 if pacer.is_active else pacer.slowdown  # a schedule that is revised knows the pace
            run.reporter.expect(slowdown * expected_s(run, pacer.schedule, keys))
            final, key = final_weights(run.folder, *pair), keys[pair]
            if is_trained(final, key):
                tracker.found(prepared.schedule.steps_of(*pair))
            waits = run.waits or (training, fold) not in asked
            yield training_work(run, prepared, (training, fold), key, pacer, wait=waits)
            if pacer.is_active and prepared.splits.folds[fold].val and is_trained(final, key):
                started = time.monotonic()
                yield validation_work(run, prepared, (training, fold), key)
                pacer.predicted(time.monotonic() - started)


def _untrained(run: Run, jobs: Sequence[FoldJob], keys: Mapping[tuple[str, int], str]) -> list[tuple[str, int]]:
    """Folds without the weights that they should have."""
    return [pair for pair in names_of(jobs) if not is_trained(final_weights(run.folder, *pair), keys[pair])]


def take_in(run: Run) -> None:
    """Schedule a fold that was left out, where a call asks for it."""
    schedule = run.schedule
    if run.fold is None or run.fold >= schedule.num_folds:
        return
    for name in [training.configuration for training in schedule.trainings]:
        if run.configuration in (None, name) and not schedule.steps_of(name, run.fold):
            save_revisions(run, schedule.revisions_of(name, run.fold), all_of=(name, run.fold))


def first_stages(prepared: Prepared) -> tuple[str, ...]:
    """Scheduled configurations from whose predictions of all cases another one starts."""
    names = [training.configuration for training in prepared.schedule.trainings]
    return tuple(name for name in names if prepared.plan.configuration(name).next_stage in names)


def names_of(jobs: Sequence[FoldJob]) -> list[tuple[str, int]]:
    """Configuration names and folds of ``jobs``."""
    return [(training.configuration, fold) for training, fold in jobs]


def all_jobs(schedule: Schedule) -> list[FoldJob]:
    """Every scheduled configuration with every fold."""
    return [(training, fold) for training in schedule.trainings for fold in range(schedule.num_folds)]


def all_keys(run: Run, prepared: Prepared) -> dict[tuple[str, int], str]:
    """`fold_key` of every configuration and fold."""
    return {
        (training.configuration, k): fold_key(run, prepared, training, k) for training, k in all_jobs(prepared.schedule)
    }


def asked_jobs(run: Run, schedule: Schedule) -> list[FoldJob]:
    """What this call is about: all, or one configuration or fold. Raises `AutosegError` for a fold that does not exist."""
    if run.fold is not None:
        require_fold(run.fold, schedule.num_folds)
    return [
        (training, fold)
        for training, fold in all_jobs(schedule)
        if run.configuration in (None, training.configuration) and run.fold in (None, fold)
    ]


def with_stages_before(prepared: Prepared, asked: Sequence[FoldJob]) -> list[FoldJob]:
    """Jobs with, before each cascade, all folds of its first stage: every case needs a network that left it out."""
    jobs: list[FoldJob] = []
    for training, fold in asked:
        stages = prepared.plan.chain(training.configuration)[:-1]
        before = [prepared.schedule.training(stage.name) for stage in stages]
        jobs += [(first, k) for first in before for k in range(prepared.schedule.num_folds)]
        jobs.append((training, fold))
    return list(dict.fromkeys(jobs))


def expected_s(run: Run, schedule: Schedule, keys: Mapping[tuple[str, int], str]) -> float:
    """Seconds that the rest of the run takes, without what is done; ``keys`` are of the weights of all folds."""
    kept = [pair for pair in keys if schedule.steps_of(*pair)]
    trained = [pair for pair in kept if is_trained(final_weights(run.folder, *pair), keys[pair])]
    validated = [pair for pair in trained if (run.folder.validation(*pair) / "summary.json").exists()]
    return (
        steps_left_s(schedule, [pair for pair in kept if pair not in trained])
        + schedule.expected_validation_s * (len(kept) - len(validated)) / len(keys)
        + schedule.expected_rest_s
    )


def fold_inputs(run: Run, prepared: Prepared, training: Training, fold: int) -> dict[str, str]:
    """All that the weights of a fold depend on; a schedule for other hardware gives other bits."""
    plan, pretrained = prepared.plan, prepared.pretrained
    before = plan.configuration(training.configuration).previous_stage
    start = prepared.schedule.start_of(training.configuration, fold)
    return {
        **({} if before is None else {"previous stage": key_of(stage_keys(run, prepared, before))}),
        "dataset": trained_on(prepared.dataset),
        "plan": trained_by(plan, training.configuration),
        "schedule": key_of(
            training, prepared.schedule.conditions.num_threads, *replayed_revisions(prepared, training, fold)
        ),
        "split": key_of(prepared.splits.folds[fold]),
        "seed": key_of(run.settings.seed),
        **({} if pretrained is None else {"pretrained model": key_of(pretrained.key)}),
        **({} if start is None else {"start": key_of(start.key)}),
    }


def replayed_revisions(prepared: Prepared, training: Training, fold: int) -> tuple[Revision, ...]:
    """Revisions that are an input of a fold; those that a run made itself while it trained are a result of it."""
    return prepared.schedule.revisions_of(training.configuration, fold) if prepared.replays else ()


def fold_key(run: Run, prepared: Prepared, training: Training, fold: int) -> str:
    """One key for all of `fold_inputs`."""
    return key_of(fold, sorted(fold_inputs(run, prepared, training, fold).items()))


def stage_keys(run: Run, prepared: Prepared, name: str, folds: Sequence[int] | None = None) -> list[str]:
    """`fold_key` of ``folds`` of a configuration, or of every one."""
    training, folds = prepared.schedule.training(name), range(prepared.schedule.num_folds) if folds is None else folds
    return [fold_key(run, prepared, training, fold) for fold in folds]


def is_trained(final: Path, key: str) -> bool:
    """Whether whole weights are at ``final`` that were trained from what ``key`` stands for."""
    try:
        return read_key(final) == key
    except AutosegError:
        return False


def training_work(run: Run, prepared: Prepared, job: FoldJob, key: str, pacer: Pacer, *, wait: bool = False) -> Work:
    """The work of training one configuration on one fold; ``wait``: for another process that does the same."""
    training, fold = job
    name = training.configuration
    return Work(
        name=f"train-{name}-fold_{fold}",
        what=f"training of {name}, fold {fold}",
        inputs=partial(fold_inputs, run, prepared, training, fold),
        outputs=[final_weights(run.folder, name, fold)],
        is_whole=partial(is_trained, key=key),
        do=partial(train_one, run, prepared, job, key, pacer),
        wait=wait,
        keeps_record=True,
    )


def train_one(run: Run, prepared: Prepared, job: FoldJob, key: str, pacer: Pacer) -> float:
    """Train one configuration on one fold, from its checkpoint where there is one; returns the seconds of earlier calls.

    Patches are drawn in `autoseg.training.sampling`; the loss is that of the configuration in ``plan.json``.
    """
    from autoseg.stages.together import training_ranks  # it builds on this module

    training, fold = job
    name = training.configuration
    refuse_trained_otherwise(run, prepared, [job])
    for stage in ("train", "validate"):  # on a GPU the same training gives other bits
        run.folder.stage(f"{stage}-{name}-fold_{fold}").unlink(missing_ok=True)
    if exchange_training(run.folder, name, fold, key):
        run.say(f"Restored the training of {name}, fold {fold}, from {run.folder.previous}")
        pacer.tracker.found(run.schedule.steps_of(name, fold))
        return 0.0
    # At no moment may other weights and their predictions pass for those that are trained now.
    final_weights(run.folder, name, fold).unlink(missing_ok=True)
    (run.folder.validation(name, fold) / JOURNAL).unlink(missing_ok=True)
    configuration = prepared.plan.configuration(name)
    previous_labels(run, prepared, configuration)  # before others look for them
    with (
        training_ranks(run, name, fold) as ranks,
        stop_requests(run.say) as should_stop,
        kept_heap_for(configuration, training, run.device),
    ):
        spec = fold_spec(run, prepared, job, key, ranks)
        spec = replace(spec, revisions=run.schedule.revisions_of(name, fold), revise=pacer.revise)
        callbacks = (pacer, FoldProgress(pacer.tracker, run.say), MomentFile(spec.folder / MOMENT_FILE), *run.callbacks)
        try:
            applied = train_fold(spec, callbacks, should_stop=lambda: should_stop() or pacer.gives_up)
        except KeyboardInterrupt:
            if not pacer.gives_up:
                raise
            raise GivenUpError from None  # its checkpoint stays, for a call that asks for it
    if applied != run.schedule.revisions_of(name, fold):  # another process shortened it after it had begun
        save_revisions(run, applied, all_of=(name, fold))
    return pacer.earlier_s


def fold_spec(run: Run, prepared: Prepared, job: FoldJob, key: str, ranks: Ranks | None = None) -> FoldSpec:
    """What is trained, from what, where to; by one process, or by this one beside others."""
    training, fold = job
    name = training.configuration
    plan, split = prepared.plan, prepared.splits.folds[fold]
    configuration = plan.configuration(name)
    preprocessed = run.folder.preprocessed(configuration.data)
    previous = previous_labels(run, prepared, configuration)
    expected = expected_cases(prepared, configuration, (*split.train, *split.val))
    seed, start = starting_point(run, prepared, job)
    num_workers, most_workers = readers(run, configuration, training, ranks)
    return FoldSpec(
        plan=plan,
        configuration=configuration,
        training=training,
        fold=fold,
        seed=seed,
        training_cases=open_cases(preprocessed, split.train, previous),
        validation_cases=open_cases(preprocessed, split.val, previous),
        folder=run.folder.fold(name, fold),
        key=key,
        device=run.device,
        num_workers=num_workers,
        most_workers=most_workers,
        case_ids=split.train,
        start=start,
        require_cases=partial(require_cases, preprocessed, expected),
        ranks=ranks,
    )


def starting_point(run: Run, prepared: Prepared, job: FoldJob) -> tuple[int, Transfer | None]:
    """The seed of a fold's training, and the weights that it starts from; none: random ones.

    A training that goes on from its own weights draws other patches than the one before.
    """
    from autoseg.stages.more_time import find_start  # it builds on this module

    (training, fold), seed, files = job, run.settings.seed, prepared.pretrained
    if (start := prepared.schedule.start_of(training.configuration, fold)) is not None:
        return seed + start.num_steps, Transfer(weights=find_start(run.folder, start), notes=())
    return seed, None if files is None else fit_weights(files, prepared.plan, training, fold=fold, seed=seed + fold)


def goes_on(folder: RunFolder, schedule: Schedule, name: str, fold: int) -> bool:
    """Whether the weights in the place of a fold are those that its training starts from."""
    start = schedule.start_of(name, fold)
    return start is not None and is_trained(final_weights(folder, name, fold), start.key)


def readers(run: Run, configuration: Configuration, training: Training, ranks: Ranks | None = None) -> tuple[int, int]:
    """Processes that read patches, and how many there may be where the device waits for batches.

    Cores and memory are shared with other processes of this machine that train in the same run.
    """
    side_by_side = 1 if run.fold is None else run.schedule.conditions.num_devices  # others may not have begun
    together = 1 if ranks is None else ranks.count
    trainings = max(side_by_side, together, len(owners_here(run.folder.locks.glob("train-*.lock"))))
    now, most = (
        num_readers(configuration, training, run.device, cores, trainings=trainings)
        for cores in (run.num_workers, max(run.num_workers, available_cores()))
    )
    return now, most


def exchange_training(folder: RunFolder, name: str, fold: int, key: str) -> bool:
    """Keep the finished training of a fold that another one replaces; returns whether that one, by ``key``, was kept and is back.

    Checkpoints and probabilities, most of its bytes, are not kept.
    """
    place, kept = folder.fold(name, fold), folder.kept_fold(name, fold, key)
    with suppress(AutosegError):  # not finished
        before = read_key(final_weights(folder, name, fold))
        if before == key:
            return False
        for path in (*place.glob("*.pt"), *folder.validation(name, fold).glob("*.probabilities.*")):
            path.unlink()
        keep_as = folder.kept_fold(name, fold, before)
        keep_as.parent.mkdir(parents=True, exist_ok=True)
        if not keep_as.exists():
            place.replace(keep_as)
    if not is_trained(kept / final_weights(folder, name, fold).name, key):
        return False
    shutil.rmtree(place, ignore_errors=True)
    kept.replace(place)
    return True


def refuse_trained_otherwise(run: Run, prepared: Prepared, jobs: Sequence[FoldJob]) -> None:
    """Raise `AutosegError` where folds were trained from something else than now, unless they may be trained again."""
    changed = {
        (training.configuration, fold): changed_inputs(
            run.folder, f"train-{training.configuration}-fold_{fold}", fold_inputs(run, prepared, training, fold)
        )
        for training, fold in jobs
        if prepared.schedule.steps_of(training.configuration, fold)
        and final_weights(run.folder, training.configuration, fold).is_file()
        and not goes_on(run.folder, prepared.schedule, training.configuration, fold)
    }
    reasons = dict.fromkeys(f"the {each} changed" for names in changed.values() for each in names)
    folds = [job for job, names in changed.items() if names]
    trainings = prepared.schedule.trainings
    require_redo(run, list(reasons), code="run.trained_from_other", folds=folds, trainings=trainings)


def previous_labels(run: Run, prepared: Prepared, configuration: Configuration) -> Path | None:
    """Folder of the first stage's label maps, made where they are missing; None for a configuration that is not a cascade."""
    before = configuration.previous_stage
    return None if before is None else hand_over(run, prepared, configuration)


def hand_over(run: Run, prepared: Prepared, following: Configuration) -> Path:
    """The folder with the first stage's label map of every case of the splits, on the grid of the ``following`` stage.

    Each is made by the networks of the folds that did not train on the case, and only where it is missing or what it was
    made from has changed. Processes that need the maps at once wait for the one that makes them. Method section 8.4.
    """
    plan, splits = prepared.plan, prepared.splits
    first = plan.chain(following.name)[-2]
    keys = stage_keys(run, prepared, first.name)
    training, stored = prepared.schedule.training(first.name), run.folder.preprocessed(first.data)
    require_unseen(splits, following.name)

    @lru_cache(maxsize=1)  # cases of the same networks come one after the other
    def load(folds: tuple[int, ...]) -> Member:
        paths = {fold: final_weights(run.folder, first.name, fold) for fold in folds}
        networks = (
            load_network(path, first, training, device=run.device, key=keys[fold]) for fold, path in paths.items()
        )
        return Member(configuration=first, training=training, networks=tuple(networks))

    def predict(case_id: str, folds: tuple[int, ...], made_from: str, placement: Placement) -> LabelMap:
        image = StoredImage(folder=stored, case_id=case_id, made_from=made_from)
        output = run_member(load(folds), image, plan.labels, How(device=run.device))
        return output.next_stage(placement, plan.labels)

    def job(case_id: str, folds: tuple[int, ...]) -> Job:
        own, other = (open_case(run.folder.preprocessed(each.data), case_id).record for each in (first, following))
        return Job(
            case_id=case_id,
            predict=partial(predict, case_id, folds, own.made_from, other.placement),
            made_from=key_of(HANDOVER, [keys[fold] for fold in folds], own.made_from, other.made_from),
        )

    def complete(job: Job) -> None:
        patch = following.patch_shape
        store_previous(folder, job.case_id, job.predict(), made_from=job.made_from, patch_shape=patch)

    folder = run.folder.next_stage(first.name, following.name)
    what = f"prediction of {first.name} for {following.name}"
    with hold_lock(run.folder.lock(f"hand-over-{first.name}"), what=what, wait=True, say=run.say):
        case_ids = {case_id for split in splits.folds for case_id in (*split.train, *split.val)}
        ordered = sorted((folds_without(splits, case_id), case_id) for case_id in case_ids)
        jobs = [job(case_id, folds) for folds, case_id in ordered]
        if jobs := [each for each in jobs if not has_previous(folder, each.case_id, each.made_from)]:
            with run.reporter.track(f"Predicting with {first.name} for {following.name}", len(jobs)) as tracker:
                complete_jobs(jobs, complete, tracker)
    return folder


def expected_cases(prepared: Prepared, configuration: Configuration, case_ids: Sequence[str]) -> dict[str, str]:
    """What the stored arrays of a configuration's cases must have been made from, by case."""
    plan, dataset = prepared.plan, prepared.dataset
    source = plan.configuration(configuration.data)
    cases = {case.case_id: case for case in dataset.training}
    return {case_id: stored_key(cases[case_id], dataset, plan, source) for case_id in case_ids}


def open_cases(
    preprocessed: Path, case_ids: Sequence[str], previous: Path | None
) -> list[StoredCase] | list[CascadeCase]:
    """Stored cases; with the folder ``previous`` also what the first stage of a cascade says of them."""
    cases = [open_case(preprocessed, case_id) for case_id in case_ids]
    return cases if previous is None else [CascadeCase(case, previous) for case in cases]
