"""Folds of the cross-validation: made by the rule of the method, or read from a file of the user."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from autoseg.data.tables import read_lines, require_columns, require_entries
from autoseg.issues import AutosegError, Issue
from autoseg.wording import shorten, suggest
from planners import Document

SHUFFLE_SEED = 12345
"""Seed of the shuffled folds (method section 7.9); the same case names get the same folds as in the reference."""
FOLDS = 5
"""Of a cross-validation with enough cases and time (method section 7.9); a hold-out is the first of them."""


class Split(Document):
    """One fold: ids of the cases that train and of those that validate, each sorted."""

    train: Annotated[tuple[str, ...], Field(min_length=1)]
    val: tuple[str, ...]
    """Empty if there is nothing to validate on."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        both = sorted(set(self.train) & set(self.val))
        if both:
            raise ValueError(f"cases {both} in both training and validation: the score would be meaningless")
        return self


class Splits(Document):
    """``splits.json`` of a run folder."""

    schema_version: Literal[1] = 1
    folds: Annotated[tuple[Split, ...], Field(min_length=1)]

    @property
    def cross_validated(self) -> bool:
        """Whether every fold validates on cases that it did not train on."""
        return all(split.val for split in self.folds)

    @property
    def is_hold_out(self) -> bool:
        """Whether a single fold validates a part of the cases, and the others have no score."""
        return len(self.folds) == 1 and self.cross_validated

    @property
    def validated(self) -> tuple[str, ...]:
        """Ids of all cases that some fold validates, sorted."""
        return tuple(sorted(case_id for split in self.folds for case_id in split.val))


def make_splits(
    case_ids: Sequence[str], *, num_folds: int = FOLDS, groups: Mapping[str, str | None] | None = None
) -> Splits:
    """Folds in which every case validates exactly once (method section 7.9); the order of ``case_ids`` does not matter.

    A single fold is a hold-out: the first of the five.

    ``groups`` maps case ids to patients: cases of one patient are never on both sides of a fold; a case that is missing
    there, or maps to None, stands alone. Without groups of two or more cases the folds are the reference's for the same
    names; with them, whole groups are dealt to the folds, the largest first, each to the fold with the fewest cases.
    There are as many folds as cases (groups) where these are fewer than ``num_folds``. A single case or group gives one
    fold that trains on it and validates on nothing. Raises `ValueError` for no case, ids that occur twice, or no fold.
    """
    # here, because it loads half a second's worth of statistics that no other stage needs
    from sklearn.model_selection import GroupKFold, KFold

    ids = sorted(case_ids)
    if not ids or len(set(ids)) != len(ids) or num_folds < 1:
        raise ValueError(
            f"case ids must be distinct and there must be at least one fold, found {ids} and {num_folds} folds"
        )
    of_case = _group_numbers(ids, groups or {})
    num_groups = len(set(of_case))
    if num_groups == 1:
        return Splits(folds=(Split(train=tuple(ids), val=()),))
    count = min(num_folds if num_folds > 1 else FOLDS, num_groups)
    if num_groups == len(ids):
        parts = KFold(count, shuffle=True, random_state=SHUFFLE_SEED).split(ids)
    else:
        parts = GroupKFold(count).split(ids, groups=of_case)
    names = np.array(ids, object)  # `ids` and the indices of each part are ascending
    folds = [Split(train=tuple(names[train]), val=tuple(names[val])) for train, val in parts]
    return Splits(folds=tuple(folds[:num_folds]))


def leave_one_group_out(case_ids: Sequence[str], groups: Mapping[str, str | None]) -> Splits:
    """One fold for each group, in the order of their names; the group validates, all others train.

    A case without a group is its own group. Raises `ValueError` for fewer than two groups, or ids that occur twice.
    """
    ids = sorted(case_ids)
    members: dict[tuple[str, str], list[str]] = {}
    for case_id in ids:
        group = groups.get(case_id)
        members.setdefault(("case", case_id) if group is None else ("group", group), []).append(case_id)
    if len(members) < 2 or len(set(ids)) != len(ids):
        found = f"{ids} in {len(members)} groups"
        raise ValueError(f"case ids must be distinct and there must be at least two groups, found {found}")
    parts = [members[key] for key in sorted(members, key=lambda key: (key[1], key[0]))]
    return Splits(folds=tuple(Split(train=tuple(sorted(set(ids) - set(part))), val=tuple(part)) for part in parts))


def _group_numbers(ids: Sequence[str], groups: Mapping[str, str | None]) -> list[int]:
    """A number for each case, equal for cases of one group, in order of first appearance."""
    keys = [("case", case_id) if groups.get(case_id) is None else ("group", groups[case_id]) for case_id in ids]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


SIDES = ("train", "val")


def read_splits(path: Path, case_ids: Sequence[str], left_out: Collection[str] = ()) -> Splits:
    """Folds from a JSON file: a list of ``{"train": [ids], "val": [ids]}``, as in nnU-Net's ``splits_final.json``, or the
    ``splits.json`` of a run.

    Every case must be one of ``case_ids``, be on one side of a fold, and validate in one fold at most. Cases that were
    ``left_out`` of the dataset are skipped, unless a side is empty without them. A fold need not use all cases. Only a
    single fold may have no validation cases. Raises `AutosegError` with all that is wrong.
    """
    listed = _read_folds(path)
    skipped = set(left_out) - set(case_ids)
    folds = [{side: [i for i in fold.get(side, []) if i not in skipped] for side in SIDES} for fold in listed]
    issues = [
        Issue(
            code="splits.all_left_out",
            where=f"{path}, fold {k}, {side}",
            message=f"no cases left: {shorten(sorted(whole[side]))} left out of the dataset",
            fix="keep one of them, list others, or remove the fold",
        )
        for k, (whole, fold) in enumerate(zip(listed, folds, strict=True))
        for side in SIDES
        if whole.get(side) and not fold[side]
    ]
    places: dict[str, list[tuple[int, str]]] = {}
    for k, fold in enumerate(folds):
        for side in SIDES:
            for case_id in dict.fromkeys(fold[side]):
                places.setdefault(case_id, []).append((k, side))
    for case_id in [case_id for case_id in places if case_id not in case_ids]:
        where = " and ".join(f"fold {k}, {side}" for k, side in places[case_id])
        issues.append(_unknown_case(f"{path}, {where}", case_id, case_ids))
    issues += [issue for k, fold in enumerate(listed) for issue in _fold_issues(f"{path}, fold {k}", fold, len(folds))]
    for case_id, found in places.items():
        validating = [str(k) for k, side in found if side == "val"]
        if len(validating) > 1:
            message = f"case {case_id} validates in folds {', '.join(validating)}"
            fix = "validate it in only one of them, or it counts more than others"
            issues.append(Issue(code="splits.validated_twice", where=str(path), message=message, fix=fix))
    _refuse(path, issues)
    return Splits(folds=tuple(Split(train=tuple(sorted(f["train"])), val=tuple(sorted(f["val"]))) for f in folds))


NUMBERED = (
    "slices?|slc?|schicht|ebene|coupe|corte|fetta|z|frames?|fr|images?|img|im|bild|aufnahme|scan|time|timepoint|tp|zeitpunkt|visit|ses|session|study|phase|"
    "fu|followup|rep|repeat|run|echo|acq(?:uisition)?|ser(?:ies?)?|mpr|fx|fraction|day|week|wk|month|year|view|plane|level|layer|section|axial|coronal|sagittal|"
    "crop|patch|tile|block|part|roi|object|lesions?|nodules?|tumou?rs?|polyps?|tooth|stack|mr|ct|cbct|aug|augmented|rot|rotated|noise|copy"
)
NAMED = (
    "left|right|l|r|od|os|(?:pre|mid|post|intra)[-_]?(?:op|rt|tx|contrast|treatment|chemo|nac)?\\d*|baseline|bl|followup|follow-up|fu|ed|es|sa|la|[234]ch|"
    "cc|mlo|\\d?hc|ax|axial|cor|coronal|sag|sagittal|tra|arterial|venous|portal|delayed|native|orig|original|aug|augmented|[hv]?flip(?:ped)?|"
    "mirror(?:ed)?|rotated|copy|copie|kopie|\\(\\d+\\)|\\d+(?:m|mo|months?|w|weeks?|d|days?|y|years?|%)|x\\d+[-_]?y\\d+|r\\d+[-_]?c\\d+|row[-_]?\\d+[-_]?col[-_]?\\d+|"
    "t[12](?:w|c|ce|gd|n|f|km|dual|spir|star)?|[tv]\\d\\d?|flair|dwi|adc|pdw?|swi|dce|cta?|cect|nect|mri?|pet|cbct|img|image|insp(?:iration)?|exp(?:iration)?|inhale|exhale|[ei]bhct|"
    "rest|stress|systol(?:e|ic)|diastol(?:e|ic)|half[-_]sequence|retest|(?:rater|reader|observer|expert|annotator)\\d*"
)
DATE = r"(?:(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d|\d\d[-_.]\d\d[-_.](?:19|20)\d\d)"
FIRST = (
    "(?:slices?|slc?|schicht|coupe|z|frames?|fr|time|timepoint|tp|visit|ses|session|fu|followup|day|week|wk|month|year|view|plane)"
    r"[-_]?\d+[-_. ]+"
)
PATIENT = r"(?:pat|patient|pt|proband|person|sub|subj|subject|case|vol|volume)[-_]?\d+"
SCAN_OF_PATIENT = re.compile(
    rf"(?i)(?:{FIRST})+(?P<last>{PATIENT})|"
    rf"(?P<patient>sub-[a-z0-9]+|TCGA[-_][a-z0-9]{{2}}[-_][a-z0-9]{{4}}|(?:ADNI_)?\d{{3}}_S_\d{{4}})[-_].*|"
    rf"(?P<before>.*?[a-z0-9])(?:[-_. ]+(?:(?:{NUMBERED})[-_ ]?\d+(?:[-_]\d+)?|{NAMED}|{DATE})|(?:slice|frame|visit|timepoint|session)[-_]?\d+)+"
    r"(?:(?:_\d+){2}(?:_\d+\.\d+){2}|(?:(?<=\d)[-_. ]+[a-z]{2,})?)"
)
"""A name that says which scan, slice or copy of a patient it is: ``pat01_slice003``, ``sub-01_ses-2_T1w``, ``P7-visit3``, ``patient0001_2CH_ED``, ``z3_sub1``."""
MAYBE_OF_PATIENT = re.compile(
    rf"(?i)(?P<visit>.*\d)[-_. ]*[stvdwmy]\d+|(?P<numbered>.*\d.*?)[-_. ]+\d+(?:[-_. ]+[a-z])?|(?P<scan>.*\d)[-_]?[a-flr]|"
    rf"(?P<named>.+)[-_. ]+[stv]\d+|(?:{NUMBERED}|[stv])?[-_]?\d+[-_. ]+(?P<last>{PATIENT})|(?:{FIRST}|(?:left|right|pre|post|baseline)[-_. ]+)(?P<other>.*\d.*)"
)
"""A name that may say so: ``P7b``, ``ms01_s2``, ``3_sub1``; ``pat01_003`` and ``01-03-A`` may just as well be case 3 of hospital 1."""
COLLECTION = re.compile(
    r"(?i)(?:train(?:ing)?|test(?:ing)?|val(?:id(?:ation)?)?|benign|malignant|normal|healthy|control)s?|"
    r"(?:cent(?:er|re)|site|hosp(?:ital)?|clinic|institut(?:e|ion)|batch|data(?:set)?|cohort|group|fold|vendor|scanner|domain|task|class|grade|stage)[-_ ]?[a-z]?\d*"
)
"""Names of what holds many patients."""
COUNTED = re.compile(
    r"(?i)[-_. ]*(?:(?:images?|img|im|bild|aufnahme|scan|ct|mr|crop|patch|tile|object|lesions?|nodules?|tumou?rs?|polyps?|tooth)[-_ ]?\d+|\(\d+\))(?:[-_. ]+[a-z]+)?"
)
"""What only numbers the images of a collection, where no number stands before: ``benign (1)``, ``train_img003``."""
YEAR = re.compile(r"(?:19|20)\d\d")


def patients_by_name(case_ids: Sequence[str]) -> dict[str, str]:
    """Patient of each case whose name says that it is one of several scans or slices of a patient; others are left out.

    Nothing where all cases would be of one patient, or where one name without a number, such as that of the dataset, stands
    before most of them.
    """
    known = set(case_ids)
    found = {
        case_id: match["patient"] or match["before"] or match["last"]
        for case_id in case_ids
        if (match := SCAN_OF_PATIENT.fullmatch(case_id)) and not _is_of_collection(case_id, match["before"], known)
    }
    found |= {case_id: case_id for case_id in set(found.values()) & set(case_ids)}
    counts = Counter(found.values())
    kept = {
        case_id: patient
        for case_id, patient in sorted(found.items())
        if counts[patient] > 1
        and (len(counts) > 1 or 2 * counts[patient] <= len(case_ids) or re.search(r"\d", patient))
    }
    return {} if len(kept) == len(case_ids) and len(set(kept.values())) == 1 else kept


def _is_of_collection(case_id: str, before: str | None, known: Collection[str]) -> bool:
    """Whether what stands ``before`` the number of an image names a class, a part of the dataset or a hospital, no patient."""
    if not before or before in known:
        return False
    has_number = re.search(r"\d", before) is not None
    return bool(COLLECTION.fullmatch(before) or (not has_number and COUNTED.fullmatch(case_id.removeprefix(before))))


def maybe_of_one_patient(case_ids: Sequence[str]) -> dict[str, str]:
    """What may be the patient of each case whose name is not sure, of patients with several cases.

    Names that only end in a number count where different ones stand before the number.
    """
    found, sure, known = {}, False, set(case_ids)
    for case_id in case_ids:
        if match := SCAN_OF_PATIENT.fullmatch(case_id) or MAYBE_OF_PATIENT.fullmatch(case_id):
            (kind, patient), *_ = ((kind, name) for kind, name in match.groupdict().items() if name)
            if not (YEAR.fullmatch(patient) or (kind == "before" and _is_of_collection(case_id, patient, known))):
                found[case_id] = patient
                sure = sure or kind in ("patient", "before", "last", "visit", "scan")
    counts = Counter(found.values())
    return {case_id: patient for case_id, patient in found.items() if counts[patient] > 1 and (sure or len(counts) > 1)}


def read_groups(path: Path, case_ids: Sequence[str], left_out: Collection[str] = ()) -> dict[str, str]:
    """Group of each case, from a CSV file with columns ``case`` and ``group`` (other columns are ignored).

    Cases that are not listed are their own groups; those that were ``left_out`` of the dataset are skipped. Raises
    `AutosegError` with all lines that are invalid: unreadable, with an unknown case, without a group, or with a second
    group for a case.
    """
    groups: dict[str, str] = {}
    issues = []
    for number, case_id, group in _read_rows(path):
        where = f"{path}, line {number}"
        if case_id not in case_ids and case_id in left_out:
            continue
        if case_id not in case_ids:
            issues.append(_unknown_case(where, case_id, case_ids))
        elif not group:
            message, fix = f"case {case_id} has no group", "add one, or remove the line"
            issues.append(Issue(code="groups.no_group", where=where, message=message, fix=fix))
        elif groups.setdefault(case_id, group) != group:
            message = f"case {case_id} is in group {group!r}, but in {groups[case_id]!r} before"
            issues.append(Issue(code="groups.contradiction", where=where, message=message, fix="keep one of the lines"))
    _refuse(path, issues)
    return groups


def cases_of_splits(path: Path) -> set[str]:
    """Every case that a file of splits names. Raises `AutosegError` for a file that is not one."""
    return {case_id for fold in _read_folds(path) for side in SIDES for case_id in fold.get(side, [])}


def cases_of_groups(path: Path) -> set[str]:
    """Every case that a file of groups names. Raises `AutosegError` for a file that is not one."""
    return {case_id for _, case_id, _ in _read_rows(path)}


def find_gaps(splits: Splits, case_ids: Sequence[str]) -> list[Issue]:
    """Warnings about cases that are never validated, or not used in a fold."""
    issues = []
    validated = {case_id for split in splits.folds for case_id in split.val}
    missing = sorted(set(case_ids) - validated)
    if missing and splits.cross_validated:
        message = f"no fold validates {shorten(missing)}, so they have no score"
        issues.append(Issue(code="splits.never_validated", severity="warning", where="splits", message=message))
    for k, split in enumerate(splits.folds):
        unused = sorted(set(case_ids) - {*split.train, *split.val})
        if unused:
            message = f"uses {len(case_ids) - len(unused)} of {len(case_ids)} cases, without {shorten(unused)}"
            issues.append(Issue(code="splits.unused_cases", severity="warning", where=f"fold {k}", message=message))
    return issues


def find_leaks(splits: Splits, groups: Mapping[str, str | None]) -> list[Issue]:
    """A warning about each fold that has cases of one group (patient) on both sides."""
    issues = []
    for k, split in enumerate(splits.folds):
        sides = [{groups.get(case_id) for case_id in side} - {None} for side in (split.train, split.val)]
        both = sorted(str(group) for group in sides[0] & sides[1])
        if both:
            message = f"fold {k} trains and validates on cases of {shorten(both)}, so its score may be too high"
            issues.append(Issue(code="scores.leaking_groups", severity="warning", where="splits", message=message))
    return issues


def _read_folds(path: Path) -> list[dict[str, list[str]]]:
    wanted = 'write a list of {"train": [case ids], "val": [case ids]}, one entry per fold'
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        message = f"could not be read ({error.strerror or error})"
        raise _invalid(path, message, "pass an existing file with --splits", code="splits.unreadable") from error
    except (ValueError, RecursionError) as error:  # RecursionError: brackets nested without end
        raise _invalid(path, f"not valid JSON ({error})", wanted, code="splits.unreadable") from error
    folds = content.get("folds") if isinstance(content, dict) else content
    if not isinstance(folds, list) or not folds:
        raise _invalid(path, "contains no folds", wanted, code="splits.no_folds")
    _refuse(path, [issue for k, fold in enumerate(folds) for issue in _shape_issues(f"{path}, fold {k}", fold)])
    return folds


def _invalid(path: Path, message: str, fix: str, *, code: str) -> AutosegError:
    return AutosegError(Issue(code=code, where=str(path), message=message, fix=fix))


def _refuse(path: Path, issues: Sequence[Issue]) -> None:
    if issues:
        raise AutosegError(*issues, headline=f"{path} cannot be used:")


def _shape_issues(where: str, fold: object) -> list[Issue]:
    """Whether a fold consists of lists of names at all."""
    found = [(where, f"found {fold!r:.60}")]
    if isinstance(fold, dict):
        found = [(where, f"unknown entry {name!r}") for name in fold if name not in SIDES]
        for side in SIDES:
            ids = fold.get(side, [])
            if not isinstance(ids, list) or not all(isinstance(case_id, str) for case_id in ids):
                found.append((f"{where}, {side}", f"found {ids!r:.60}, not a list of names"))
    fix = 'write {"train": [case ids], "val": [case ids]}'
    return [Issue(code="splits.invalid_fold", where=place, message=message, fix=fix) for place, message in found]


def _unknown_case(where: str, case_id: str, case_ids: Sequence[str]) -> Issue:
    message = f"case {case_id!r} does not exist"
    return Issue(code="case.unknown", where=where, message=message, fix=suggest(case_id, case_ids))


def _fold_issues(where: str, fold: dict[str, list[str]], num_folds: int) -> list[Issue]:
    """What is wrong with one fold, regardless of the others."""
    issues = []
    train, val = fold.get("train", []), fold.get("val", [])
    for side, name, ids in (("train", "training", train), ("val", "validation", val)):
        if not ids and (side == "train" or num_folds > 1):
            fix = f"list cases under {side}, or remove the fold"
            issues.append(Issue(code="splits.empty_side", where=where, message=f"no {name} cases", fix=fix))
        if repeated := sorted(case_id for case_id, count in Counter(ids).items() if count > 1):
            message, fix = f"{shorten(repeated)} listed more than once", "list it once"
            issues.append(Issue(code="splits.repeated_case", where=f"{where}, {side}", message=message, fix=fix))
    if both := sorted({*train} & {*val}):
        message = f"{shorten(both)} in both training and validation, so the score would be meaningless"
        issues.append(Issue(code="splits.overlap", where=where, message=message, fix="keep it on one side"))
    return issues


def _read_rows(path: Path) -> list[tuple[int, str, str]]:
    """Line number, case and group of each line that is not blank."""
    columns, rows = read_lines(path, "--groups")
    require_columns(path, [name.lower() for name in columns], ("case", "group"))
    require_entries(path, rows, "--groups")
    lower = [(number, {name.lower(): entry for name, entry in row.items()}) for number, row in rows]
    return [(number, row.get("case", ""), row.get("group", "")) for number, row in lower]
