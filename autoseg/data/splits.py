"""Folds of the cross-validation: made by the rule of the method, or read from a file of the user."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from autoseg.issues import UNNAMED, AutosegError, Issue
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


SIDES = ("train", "val")
NUM_SHOWN = 5
"""Cases that one line names."""


def read_splits(path: Path, case_ids: Sequence[str], left_out: Collection[str] = ()) -> Splits:
    """Folds from a JSON file: a list of ``{"train": [ids], "val": [ids]}``, as the reference's ``splits_final.json`` is, or
    a run's own ``splits.json``.

    Every case must be one of ``case_ids``, stand on one side of a fold, and validate in one fold at most; cases that were
    ``left_out`` of the dataset are passed over, unless a side is empty without them. A fold may leave cases out. A single
    fold may validate on nothing; of several each must validate. Raises `AutosegError` with all that is wrong.
    """
    listed = _read_folds(path)
    passed_over = set(left_out) - set(case_ids)
    folds = [{side: [i for i in fold.get(side, []) if i not in passed_over] for side in SIDES} for fold in listed]
    _refuse(
        path,
        [
            *_emptied_sides(path, listed, folds),
            *_unknown_cases(path, folds, case_ids),
            *(
                problem
                for k, fold in enumerate(listed)
                for problem in _fold_problems(f"{path}, fold {k}", fold, len(folds))
            ),
            *_validated_twice(path, folds),
        ],
    )
    return Splits(folds=tuple(Split(train=tuple(sorted(f["train"])), val=tuple(sorted(f["val"]))) for f in folds))


def read_groups(path: Path, case_ids: Sequence[str], left_out: Collection[str] = ()) -> dict[str, str]:
    """Group of each case from a CSV file whose header names ``case`` and ``group`` (other columns are not looked at).

    Cases that are not listed stand alone, those that were ``left_out`` of the dataset are passed over. Raises `AutosegError`
    with all lines that cannot be read, or all that name an unknown case, no group, or a second group for a case, and
    `AutosegError` for a file without such a header or any line below it.
    """
    groups: dict[str, str] = {}
    problems = []
    for number, case_id, group in _read_rows(path):
        where = f"{path}, line {number}"
        if case_id not in case_ids and case_id in left_out:
            continue
        if case_id not in case_ids:
            found = f"{case_id!r} is no case of the dataset"
            problems.append(Issue(code=UNNAMED, where=where, message=found, fix=_suggest(case_id, case_ids)))
        elif not group:
            problems.append(
                Issue(
                    code=UNNAMED,
                    where=where,
                    message=f"case {case_id} has no group",
                    fix="name one, or remove the line",
                )
            )
        elif groups.setdefault(case_id, group) != group:
            found = f"case {case_id} is put into group {group!r}, but was put into {groups[case_id]!r} before"
            problems.append(Issue(code=UNNAMED, where=where, message=found, fix="keep one of the two lines"))
    if problems:
        raise AutosegError(*problems, headline=(f"the groups of {path} cannot be used"))
    return groups


def cases_of_splits(path: Path) -> set[str]:
    """Every case that a file of splits names. Raises `AutosegError` for a file that holds something else."""
    return {case_id for fold in _read_folds(path) for side in SIDES for case_id in fold.get(side, [])}


def cases_of_groups(path: Path) -> set[str]:
    """Every case that a file of groups names. Raises `AutosegError` for a file that holds something else."""
    return {case_id for _, case_id, _ in _read_rows(path)}


def describe_gaps(splits: Splits, case_ids: Sequence[str]) -> list[str]:
    """Sentences for a person about cases that own splits do not use: never validated, or left out of a fold."""
    lines = []
    validated = {case_id for split in splits.folds for case_id in split.val}
    missing = sorted(set(case_ids) - validated)
    if missing and splits.cross_validated:
        lines.append(f"no fold validates {_name(missing)}, so they have no score")
    for k, split in enumerate(splits.folds):
        unused = sorted(set(case_ids) - {*split.train, *split.val})
        if unused:
            used = len(case_ids) - len(unused)
            lines.append(f"fold {k} uses {used} of {len(case_ids)} cases; left out: {_name(unused)}")
    return lines


def describe_leaks(splits: Splits, groups: Mapping[str, str | None]) -> list[str]:
    """A sentence for each fold that has cases of one group (patient) on both sides."""
    lines = []
    for k, split in enumerate(splits.folds):
        sides = [{groups.get(case_id) for case_id in side} - {None} for side in (split.train, split.val)]
        both = sorted(str(group) for group in sides[0] & sides[1])
        if both:
            lines.append(f"fold {k} trains and validates on cases of {_name(both)}, so its score may flatter")
    return lines


def _read_folds(path: Path) -> list[dict[str, list[str]]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise AutosegError(f"{path} could not be read ({reason}); give an existing file with --splits") from error
    except (ValueError, RecursionError) as error:  # the second one of nested brackets without end
        raise AutosegError(f"{path} is no JSON ({error}); mend it there") from error
    folds = content.get("folds") if isinstance(content, dict) else content
    if not isinstance(folds, list) or not folds:
        wanted = '{"train": [case ids], "val": [case ids]}'
        raise AutosegError(f"{path} holds no folds; write a list of {wanted}, one entry a fold")
    _refuse(path, [problem for k, fold in enumerate(folds) for problem in _shape_problems(f"{path}, fold {k}", fold)])
    return folds


def _refuse(path: Path, problems: Sequence[Issue]) -> None:
    if problems:
        raise AutosegError(*problems, headline=(f"the splits of {path} cannot be used"))


def _shape_problems(where: str, fold: object) -> list[Issue]:
    """Whether a fold is made of lists of names at all."""
    mend = 'write {"train": [case ids], "val": [case ids]}'
    if not isinstance(fold, dict):
        return [Issue(code=UNNAMED, where=where, message=f"is {fold!r:.60}", fix=mend)]
    problems = [
        Issue(code=UNNAMED, where=where, message=f"has an entry {name!r}", fix=mend)
        for name in fold
        if name not in SIDES
    ]
    for side in SIDES:
        ids = fold.get(side, [])
        if not isinstance(ids, list) or not all(isinstance(case_id, str) for case_id in ids):
            problems.append(
                Issue(code=UNNAMED, where=f"{where}, {side}", message=f"is {ids!r:.60}, no list of names", fix=mend)
            )
    return problems


def _emptied_sides(
    path: Path, listed: Sequence[dict[str, list[str]]], folds: Sequence[dict[str, list[str]]]
) -> list[Issue]:
    """Sides of which every case was left out of the dataset."""
    return [
        Issue(
            code=UNNAMED,
            where=f"{path}, {side} of fold {k}",
            message=f"no case is left, for {_name(sorted(whole[side]))} had errors (--skip-bad)",
            fix="mend one of them, list others, or remove the fold",
        )
        for k, (whole, fold) in enumerate(zip(listed, folds, strict=True))
        for side in SIDES
        if whole.get(side) and not fold[side]
    ]


def _unknown_cases(path: Path, folds: Sequence[dict[str, list[str]]], case_ids: Sequence[str]) -> list[Issue]:
    places: dict[str, list[str]] = {}
    for k, fold in enumerate(folds):
        for side in SIDES:
            for case_id in dict.fromkeys(fold.get(side, [])):
                if case_id not in case_ids:
                    places.setdefault(case_id, []).append(f"{side} of fold {k}")
    return [
        Issue(
            code=UNNAMED,
            where=f"{path}, {_name(where)}",
            message=f"{case_id!r} is no case of the dataset",
            fix=_suggest(case_id, case_ids),
        )
        for case_id, where in places.items()
    ]


def _fold_problems(where: str, fold: dict[str, list[str]], num_folds: int) -> list[Issue]:
    """What is wrong with one fold, whatever the others hold."""
    problems = []
    train, val = fold.get("train", []), fold.get("val", [])
    if not train:
        problems.append(
            Issue(code=UNNAMED, where=where, message="no case trains", fix="list cases under train, or remove the fold")
        )
    if not val and num_folds > 1:
        problems.append(
            Issue(
                code=UNNAMED, where=where, message="no case validates", fix="list cases under val, or remove the fold"
            )
        )
    for side, ids in zip(SIDES, (train, val), strict=True):
        repeated = sorted(case_id for case_id, count in Counter(ids).items() if count > 1)
        if repeated:
            found = f"{_name(repeated)} stands there twice"
            problems.append(Issue(code=UNNAMED, where=f"{where}, {side}", message=found, fix="name it once"))
    both = sorted({*train} & {*val})
    if both:
        found = f"{_name(both)} trains and validates; the score would be worth nothing"
        problems.append(Issue(code=UNNAMED, where=where, message=found, fix="keep it on one side"))
    return problems


def _validated_twice(path: Path, folds: Sequence[dict[str, list[str]]]) -> list[Issue]:
    folds_of: dict[str, list[int]] = {}
    for k, fold in enumerate(folds):
        for case_id in dict.fromkeys(fold.get("val", [])):
            folds_of.setdefault(case_id, []).append(k)
    return [
        Issue(
            code=UNNAMED,
            where=str(path),
            message=f"case {case_id} validates in folds {', '.join(map(str, where))}",
            fix="let it validate in one of them, or it counts more than others",
        )
        for case_id, where in folds_of.items()
        if len(where) > 1
    ]


def _read_rows(path: Path) -> list[tuple[int, str, str]]:
    """Line number, case and group of each line that is not blank; separated by commas, semicolons or tabs, whichever the header has.

    Each line is read by itself, so that a quote that is not closed takes nothing of the next ones.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AutosegError(f"{path} could not be read ({error}); give a CSV file in UTF-8 with --groups") from error
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    header = numbered[0][1] if numbered else ""
    separator = max(",;\t", key=header.count)
    rows, problems = [], []
    for number, line in numbered:
        try:
            (entries,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
        except csv.Error as error:
            mend = "correct it there: a quote must be closed in the line that it is opened in"
            problems.append(
                Issue(
                    code=UNNAMED, where=f"{path}, line {number}", message=f"is no line of a table ({error})", fix=mend
                )
            )
        else:
            rows.append((number, [entry.strip() for entry in entries]))
    if problems:
        raise AutosegError(*problems, headline=(f"the groups of {path} cannot be used"))
    columns = [name.lower() for name in rows[0][1]] if rows else []
    if not {"case", "group"} <= {*columns}:
        raise AutosegError(f"{path} begins with {header!r:.200}; its first line must name the columns case and group")
    repeated = [name for name in ("case", "group") if columns.count(name) > 1]
    if repeated:
        raise AutosegError(f"{path} has several columns {' and '.join(repeated)}; leave one of each")
    named = [(number, dict(zip(columns, entries, strict=False))) for number, entries in rows[1:] if any(entries)]
    if not named:
        raise AutosegError(
            f"{path} has no line below its first one, so no case has a group; write one line a case, or leave --groups out"
        )
    return [(number, row.get("case", ""), row.get("group", "")) for number, row in named]


def _suggest(case_id: str, case_ids: Sequence[str]) -> str:
    bare = [known for known in case_ids if case_id.startswith(f"{known}.")]
    close = bare or get_close_matches(case_id, case_ids, n=1)
    return f"did you mean {close[0]}?" if close else f"the dataset has {_name(sorted(case_ids))}"


def _name(names: Sequence[str]) -> str:
    """``a, b and c``; of many only the first."""
    *first, last = names if len(names) <= NUM_SHOWN else [*names[:NUM_SHOWN], f"{len(names) - NUM_SHOWN} more"]
    return f"{', '.join(first)} and {last}" if first else last
