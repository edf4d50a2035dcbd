"""Cascade: passes the first stage's prediction of every training case to the second stage (method section 8.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from autoseg.data.splits import Splits
from autoseg.imaging.placement import Placement
from autoseg.inference.model import Member, final_weights, load_network
from autoseg.inference.predict import complete_jobs
from autoseg.inference.predictions import Job
from autoseg.inference.predictor import LabelMap, StoredImage, run_member
from autoseg.preprocessing.prepare import has_previous, store_previous
from autoseg.preprocessing.store import open_case
from autoseg.stages.run import Run
from autoseg.stages.schedule import folds_without, require_unseen
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from planners import Configuration, Plan, Training

VERSION = 1
"""Raised when the same networks and cases would give other label maps, so that older ones are made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A first stage whose folds are all trained, and the stage that needs its label maps."""

    plan: Plan
    training: Training
    """Of the first stage."""
    keys: Sequence[str]
    """Of the weights of its folds."""
    following: Configuration
    splits: Splits


def hand_over(run: Run, handover: Handover) -> Path:
    """The folder with a label map of every case of the splits, on the grid of the following stage.

    Each is made by the networks of the folds that did not train on the case, and only where it is missing or what it was
    made from has changed. Processes that need them at once wait for the one that makes them.
    """
    first, following = handover.training.configuration, handover.following.name
    folder = run.folder.next_stage(first, following)
    require_unseen(handover.splits, following)
    what = f"prediction of {first} for {following}"
    with hold_lock(run.folder.lock(f"hand-over-{first}"), what=what, wait=True, say=run.say):
        jobs = [job for job in _jobs(run, handover) if not has_previous(folder, job.case_id, job.made_from)]

        def complete(job: Job) -> None:
            labels, patch = job.predict(), handover.following.patch_shape
            store_previous(folder, job.case_id, labels, made_from=job.made_from, patch_shape=patch)

        if jobs:
            with run.reporter.track(f"Predicting with {first} for {following}", len(jobs)) as tracker:
                complete_jobs(jobs, complete, tracker)
    return folder


def _jobs(run: Run, handover: Handover) -> list[Job]:
    """One for each case, those of the same networks together: one set of networks is loaded at a time."""
    first, following = handover.plan.configuration(handover.training.configuration), handover.following
    load = lru_cache(maxsize=1)(partial(_load_member, run, handover, first))
    jobs = []
    for case_id in sorted({each for split in handover.splits.folds for each in (*split.train, *split.val)}):
        folds = folds_without(handover.splits, case_id)
        own = open_case(run.folder.preprocessed(first.data), case_id).record
        other = open_case(run.folder.preprocessed(following.data), case_id).record
        image = StoredImage(folder=run.folder.preprocessed(first.data), case_id=case_id, made_from=own.made_from)
        keys = [handover.keys[fold] for fold in folds]
        made_from = key_of(VERSION, keys, own.made_from, other.made_from)
        predict = partial(_predict, run, handover, image, other.placement, load=partial(load, folds))
        jobs.append((folds, Job(case_id=case_id, predict=predict, made_from=made_from)))
    return [job for _, job in sorted(jobs, key=lambda entry: entry[0])]


def _load_member(run: Run, handover: Handover, configuration: Configuration, folds: tuple[int, ...]) -> Member:
    networks = tuple(
        load_network(
            final_weights(run.folder, configuration.name, fold),
            configuration,
            handover.training,
            device=run.device,
            key=handover.keys[fold],
        )
        for fold in folds
    )
    return Member(configuration=configuration, training=handover.training, networks=networks)


def _predict(
    run: Run, handover: Handover, image: StoredImage, following: Placement, *, load: Callable[[], Member]
) -> LabelMap:
    """The label map of the first stage on the grid of the following one."""
    output = run_member(load(), image, handover.plan.labels, device=run.device)
    return output.next_stage(following, handover.plan.labels)
