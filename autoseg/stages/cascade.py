"""Cascade: hands what the first stage says of every training case to the second (method section 8.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from autoseg.data.splits import Splits
from autoseg.inference.export import labels_for_next_stage
from autoseg.inference.model import Member, load_network
from autoseg.inference.model_files import final_weights
from autoseg.inference.predictor import member_logits
from autoseg.preprocessing.cascade import has_previous, store_previous
from autoseg.preprocessing.store import StoredCase, open_case
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


@dataclass(frozen=True, slots=True)
class _Pending:
    """A case whose label map is missing, in both stages, and the folds that did not train on it."""

    folds: tuple[int, ...]
    case: StoredCase
    following: StoredCase
    made_from: str


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
        pending = _find_pending(run, handover, folder)
        if pending:
            _predict(run, handover, pending, folder)
    return folder


def _find_pending(run: Run, handover: Handover, folder: Path) -> list[_Pending]:
    """What is missing, cases of the same folds together."""
    own = handover.plan.configuration(handover.training.configuration)
    pending = []
    for case_id in sorted({each for split in handover.splits.folds for each in (*split.train, *split.val)}):
        folds = folds_without(handover.splits, case_id)
        case = open_case(run.folder.preprocessed(own.data), case_id)
        following = open_case(run.folder.preprocessed(handover.following.data), case_id)
        keys = [handover.keys[fold] for fold in folds]
        made_from = key_of(VERSION, keys, case.record.made_from, following.record.made_from)
        if not has_previous(folder, case_id, made_from):
            pending.append(_Pending(folds, case, following, made_from))
    return sorted(pending, key=lambda each: (each.folds, each.case.case_id))


def _predict(run: Run, handover: Handover, pending: Sequence[_Pending], folder: Path) -> None:
    name = handover.training.configuration
    configuration = handover.plan.configuration(name)
    with run.reporter.track(f"Predicting with {name} for {handover.following.name}", len(pending)) as tracker:
        for folds, cases in groupby(pending, key=lambda each: each.folds):
            weights = {final_weights(run.folder, name, fold): handover.keys[fold] for fold in folds}
            networks = tuple(
                load_network(path, configuration, handover.training, device=run.device, key=key)
                for path, key in weights.items()
            )
            member = Member(configuration=configuration, training=handover.training, networks=networks)
            for each in cases:
                image = np.asarray(each.case.image[:], dtype=np.float32)
                logits = member_logits(member, image, mirror_axes=member.mirror_axes, device=run.device)
                labels = labels_for_next_stage(
                    logits, each.case.placement, each.following.placement, configuration, handover.plan.labels
                )
                patch = handover.following.patch_shape
                store_previous(folder, each.case.case_id, labels, made_from=each.made_from, patch_shape=patch)
                tracker.advance(note=each.case.case_id)
