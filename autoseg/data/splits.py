"""Which cases train and which validate in each fold of the cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from planners import Document

SHUFFLE_SEED = 12345
"""Seed of the shuffled folds (method section 7.9); the same case names get the same folds as in the reference."""


class Split(Document):
    """One fold: ids of the cases that train and of those that validate, each sorted."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    val: tuple[str, ...]
    """Empty where there is nothing to validate on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = sorted(set(self.train) & set(self.val))
        if both:
            raise ValueError(f"cases {both} train and validate in one fold; its score would be worth nothing")
        return self


class Splits(Document):
    """``splits.json`` of a run folder."""

    schema_version: Literal[1] = 1
    folds: Annotated[tuple[Split, ...], Field(min_length=1)]

    @property
    def cross_validated(self) -> bool:
        """Whether every fold validates on cases that it did not train on."""
        return all(split.val for split in self.folds)


def make_splits(
    case_ids: Sequence[str], *, num_folds: int = 5, groups: Mapping[str, str | None] | None = None
) -> Splits:
    """Folds in which every case validates exactly once (method section 7.9); the order of ``case_ids`` does not matter.

    ``groups`` maps case ids to patients: cases of one patient are never on both sides of a fold; a case that is missing
    there, or maps to None, stands alone. Without groups of two or more cases the folds are the reference's for the same
    names; with them, whole groups are dealt to the folds, the largest first, each to the fold with the fewest cases.
    There are as many folds as cases (groups) where these are fewer than ``num_folds``. A single case or group gives one
    fold that trains on it and validates on nothing. Raises `ValueError` for no case, ids that occur twice, or less than
    two folds.
    """
    # here, because it loads half a second's worth of statistics that no other stage needs
    from sklearn.model_selection import GroupKFold, KFold

    ids = sorted(case_ids)
    if not ids or len(set(ids)) != len(ids) or num_folds < 2:
        raise ValueError(
            f"need ids that differ from each other and two folds or more, found {ids} and {num_folds} folds"
        )
    of_case = _group_numbers(ids, groups or {})
    num_groups = len(set(of_case))
    if num_groups == 1:
        return Splits(folds=(Split(train=tuple(ids), val=()),))
    num_folds = min(num_folds, num_groups)
    if num_groups == len(ids):
        parts = KFold(num_folds, shuffle=True, random_state=SHUFFLE_SEED).split(ids)
    else:
        parts = GroupKFold(num_folds).split(ids, groups=of_case)
    return Splits(folds=tuple(Split(train=_pick(ids, train), val=_pick(ids, val)) for train, val in parts))


def leave_one_group_out(case_ids: Sequence[str], groups: Mapping[str, str | None]) -> Splits:
    """One fold for each group, in the order of their names; the group validates, all others train.

    A case without a group is one of its own. Raises `ValueError` for fewer than two groups, or ids that occur twice.
    """
    ids = sorted(case_ids)
    members: dict[tuple[str, str], list[str]] = {}
    for case_id in ids:
        group = groups.get(case_id)
        members.setdefault(("case", case_id) if group is None else ("group", group), []).append(case_id)
    if len(members) < 2 or len(set(ids)) != len(ids):
        found = f"{ids} in {len(members)} groups"
        raise ValueError(f"need ids that differ from each other and two groups or more, found {found}")
    parts = [members[key] for key in sorted(members, key=lambda key: (key[1], key[0]))]
    return Splits(folds=tuple(Split(train=tuple(sorted(set(ids) - set(part))), val=tuple(part)) for part in parts))


def _group_numbers(ids: Sequence[str], groups: Mapping[str, str | None]) -> list[int]:
    """A number for each case, equal for cases of one group, in order of first appearance."""
    keys = [("case", case_id) if groups.get(case_id) is None else ("group", groups[case_id]) for case_id in ids]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def _pick(ids: Sequence[str], indices: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted(ids[index] for index in indices))
