"""Hands what the first stage of a cascade says of every training case to the second (method section 8.4)."""

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
from autoseg.issues import AutosegError
from autoseg.pipeline.options import Options
from autoseg.preprocessing.cascade import has_previous, store_previous
from autoseg.preprocessing.store import StoredCase, open_case
from autoseg.storage.cache import key_of
from autoseg.storage.locks import hold_lock
from planners import Configuration, Plan, Training

VERSION = 1
"""Raised when the same networks and cases would give other label maps, so that older ones are made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A first stage whose folds are all trained, and the stage that waits for its label maps."""

    plan: Plan
    training: Training
    """Of the first stage."""
    keys: Sequence[str]
    """Of the weights of its folds."""
    following: Configuration
    splits: Splits


@dataclass(frozen=True, slots=True)
class _Pending:
    """A case whose label map is missing, in both stages, and the folds that never saw it."""

    folds: tuple[int, ...]
    case: StoredCase
    following: StoredCase
    consumed: str


def folds_without(splits: Splits, case_id: str) -> tuple[int, ...]:
    """Folds whose networks did not train on a case: the one that validates it, and with folds of one's own perhaps more."""
    return tuple(k for k, split in enumerate(splits.folds) if case_id not in split.train)


def always_trained_on(splits: Splits) -> tuple[str, ...]:
    """Cases that every fold trains on, sorted: of them a first stage could only say what it was told."""
    return tuple(case_id for case_id in _case_ids(splits) if not folds_without(splits, case_id))


def require_unseen(splits: Splits, name: str) -> None:
    """Raise `AutosegError` where a cascade ``name`` cannot be trained because no fold leaves some case out."""
    seen = always_trained_on(splits)
    if seen:
        raise AutosegError(
            f"{name} starts from predictions of its first stage for cases that it did not train on, but every fold trains on "
            f"{', '.join(seen)}; give folds that validate each case once (--folds), or train another configuration"
        )


def hand_over(options: Options, handover: Handover) -> Path:
    """The folder with a label map of every case of the splits, on the grid of the following stage.

    Each is made by the networks of the folds that did not train on the case, and only where it is not there yet or what it
    was made from has changed. Processes that need them at once wait for the one that makes them.
    """
    first, following = handover.training.configuration, handover.following.name
    folder = options.run.next_stage(first, following)
    require_unseen(handover.splits, following)
    what, say = f"prediction of {first} for {following}", options.reporter.say
    with hold_lock(options.run.lock(f"hand-over-{first}"), what=what, wait=True, say=say):
        pending = _pending(options, handover, folder)
        if pending:
            _predict(options, handover, pending, folder)
    return folder


def _pending(options: Options, handover: Handover, folder: Path) -> list[_Pending]:
    """What is missing, cases of the same folds together."""
    own = handover.plan.configuration(handover.training.configuration)
    cases = []
    for case_id in _case_ids(handover.splits):
        folds = folds_without(handover.splits, case_id)
        case = open_case(options.run.preprocessed(own.data), case_id)
        following = open_case(options.run.preprocessed(handover.following.data), case_id)
        keys = [handover.keys[fold] for fold in folds]
        consumed = key_of(VERSION, keys, case.record.made_from, following.record.made_from)
        if not has_previous(folder, case_id, consumed):
            cases.append(_Pending(folds, case, following, consumed))
    return sorted(cases, key=lambda each: (each.folds, each.case.case_id))


def _predict(options: Options, handover: Handover, pending: Sequence[_Pending], folder: Path) -> None:
    name = handover.training.configuration
    configuration = handover.plan.configuration(name)
    with options.reporter.track(f"Predicting with {name} for {handover.following.name}", len(pending)) as tracker:
        for folds, cases in groupby(pending, key=lambda each: each.folds):
            weights = {final_weights(options.run, name, fold): handover.keys[fold] for fold in folds}
            networks = tuple(
                load_network(path, configuration, handover.training, device=options.device, key=key)
                for path, key in weights.items()
            )
            member = Member(configuration=configuration, training=handover.training, networks=networks)
            for each in cases:
                image = np.asarray(each.case.image[:], dtype=np.float32)
                logits = member_logits(member, image, mirror_axes=member.mirror_axes, device=options.device)
                labels = labels_for_next_stage(
                    logits, each.case.placement, each.following.placement, configuration, handover.plan.labels
                )
                patch = handover.following.patch_shape
                store_previous(folder, each.case.case_id, labels, made_from=each.consumed, patch_shape=patch)
                tracker.advance(note=each.case.case_id)


def _case_ids(splits: Splits) -> list[str]:
    return sorted({case_id for split in splits.folds for case_id in (*split.train, *split.val)})
