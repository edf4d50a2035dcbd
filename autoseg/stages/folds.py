"""The folds of a run: made by the method's rule, or as the user wants them."""

from __future__ import annotations

from collections.abc import Sequence

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import (
    FOLDS,
    Splits,
    cases_of_groups,
    cases_of_splits,
    find_gaps,
    find_leaks,
    leave_one_group_out,
    make_splits,
    patients_by_name,
    read_groups,
    read_splits,
)
from autoseg.data.tables import Grouping, groupings_of, read_groups_table
from autoseg.issues import AutosegError, Issue
from autoseg.settings import Settings
from autoseg.stages.run import Run
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from autoseg.wording import count_noun, shorten


def folds_given(settings: Settings) -> bool:
    """Whether the user asked for certain folds, which no schedule may reduce."""
    by_group = settings.leave_one_group_out or settings.hold_out_groups is not None
    return settings.splits is not None or settings.folds is not None or by_group


def refuse_bad_folds(settings: Settings, dataset: DatasetDescription) -> None:
    """Refuse folds that cannot be used before hours are spent on preprocessing."""
    if folds_given(settings) or settings.groups is not None:
        find_splits(settings, dataset)
    groupings(settings, dataset)


def find_splits(settings: Settings, dataset: DatasetDescription, num_folds: int | None = None) -> Splits:
    """The folds that were asked for; else ``num_folds`` by the method's rule, or fewer if there are fewer cases.

    Raises `AutosegError` with all that is wrong with files and groups, before anything is computed.
    """
    case_ids = [case.case_id for case in dataset.training]
    if settings.splits is not None:
        return read_splits(settings.splits, case_ids, dataset.left_out)
    if settings.hold_out_groups is not None:
        return leave_one_group_out(case_ids, held_out_groups(settings, dataset))
    groups = groups_of(settings, dataset)
    if settings.strict_reference and settings.groups is None:
        groups = {case.case_id: case.group for case in dataset.training}  # the reference knows no patients in names
    if not settings.leave_one_group_out:
        return make_splits(case_ids, num_folds=settings.folds or num_folds or FOLDS, groups=groups)
    if not any(groups.values()):
        raise AutosegError(
            Issue(
                code="folds.no_groups",
                where="--leave-one-group-out",
                message=f"no case of {dataset.root} has a group",
                fix="list groups in a CSV file with the columns case and group (--groups), or describe the folder with a spec "
                "file whose pattern has {patient} (--spec)",
            )
        )
    if len({groups.get(case_id) or ("alone", case_id) for case_id in case_ids}) < 2:
        raise AutosegError(
            Issue(
                code="folds.one_group",
                where="--leave-one-group-out",
                message=f"all {len(case_ids)} cases are of one group",
                fix="omit the option, or use groups of at least two patients or sites",
            )
        )
    return leave_one_group_out(case_ids, groups)


def groupings(settings: Settings, dataset: DatasetDescription) -> tuple[tuple[Grouping, ...], tuple[Issue, ...]]:
    """Columns of ``--groups-table`` as groups of the training cases, and notes on them; nothing without a table."""
    if settings.groups_table is None:
        return (), ()
    return groupings_of(read_groups_table(settings.groups_table), groups_of(settings, dataset))


def held_out_groups(settings: Settings, dataset: DatasetDescription) -> dict[str, str]:
    """Group of every case in the column of ``--hold-out-groups``.

    Raises `AutosegError` for a column that makes no groups, and where cases have no value.
    """
    column, where = settings.hold_out_groups, f"--hold-out-groups {settings.hold_out_groups}"
    found = {each.column: each.of_case for each in groupings(settings, dataset)[0]}
    if column not in found:
        message = f"is no column of groups; the table has {', '.join(found) or 'none'}"
        fix = "name a column of --groups-table with at least two groups"
        raise AutosegError(Issue(code="folds.no_groups", where=where, message=message, fix=fix))
    if missing := [case.case_id for case in dataset.training if case.case_id not in found[column]]:
        message, fix = (
            f"{shorten(missing)} without a value",
            "fill it in the table, or leave these cases out (--exclude)",
        )
        raise AutosegError(Issue(code="folds.no_groups", where=where, message=message, fix=fix))
    return dict(found[column])


def groups_of(settings: Settings, dataset: DatasetDescription) -> dict[str, str | None]:
    """Group of each case: from the file with groups, else from the dataset, else the patient that the names suggest."""
    if settings.groups is None:
        named = patients_by_name([case.case_id for case in dataset.training if case.group is None])
        return {case.case_id: case.group or named.get(case.case_id) for case in dataset.training}
    return dict(read_groups(settings.groups, [case.case_id for case in dataset.training], dataset.left_out))


def units_of(settings: Settings, dataset: DatasetDescription, case_ids: Sequence[str]) -> tuple[str, ...]:
    """What counts once in an interval: the group of each case, or the case itself."""
    groups = groups_of(settings, dataset)
    return tuple(groups.get(case_id) or f"case {case_id}" for case_id in case_ids)


def save_splits(run: Run, dataset: DatasetDescription, splits: Splits) -> None:
    """Write ``splits.json`` and say what users should know about their own folds."""
    settings = run.settings
    save_document(run.folder.splits, splits)
    case_ids = [case.case_id for case in dataset.training]
    for path, named in ((settings.splits, cases_of_splits), (settings.groups, cases_of_groups)):
        skipped = [] if path is None else sorted(named(path) & set(dataset.left_out) - set(case_ids))
        if skipped:
            run.say(f"Note: {path}: skipped cases that were left out of the dataset: {', '.join(skipped)}")
    if settings.splits is not None:
        leaks = find_leaks(splits, groups_of(settings, dataset))
        for issue in (*find_gaps(splits, case_ids), *leaks):
            run.say(f"Warning: {settings.splits}: {issue}")
    elif settings.hold_out_groups is not None:
        for issue in find_leaks(splits, groups_of(settings, dataset)):
            run.say(f"Warning: --hold-out-groups {settings.hold_out_groups}: {issue}")
    elif settings.folds is not None and len(splits.folds) < settings.folds:
        run.say(f"{len(splits.folds)} folds instead of {settings.folds}: there are no more cases or groups")
    if splits.is_hold_out:
        (split,) = splits.folds
        run.say(f"Hold-out: {count_noun(len(split.train), 'case')} for training, {len(split.val)} for validation")


def fold_inputs(settings: Settings, dataset: DatasetDescription) -> dict[str, str]:
    """What a schedule depends on besides the dataset; nothing where no folds or groups were asked for."""
    if not folds_given(settings) and settings.groups is None:
        return {}
    return {"choice of folds": key_of(find_splits(settings, dataset), folds_given(settings))}


def always_trained_on(splits: Splits) -> tuple[str, ...]:
    """Cases that every fold trains on, sorted: a first stage has no unseen predictions of them."""
    case_ids = sorted({case_id for split in splits.folds for case_id in (*split.train, *split.val)})
    return tuple(case_id for case_id in case_ids if not folds_without(splits, case_id))


def folds_without(splits: Splits, case_id: str) -> tuple[int, ...]:
    """Folds whose networks did not train on a case: the one that validates it, and with folds from a file perhaps more."""
    return tuple(k for k, split in enumerate(splits.folds) if case_id not in split.train)


def require_unseen(splits: Splits, name: str) -> None:
    """Raise `AutosegError` where a cascade ``name`` cannot be trained because no fold leaves some case out."""
    if seen := always_trained_on(splits):
        raise AutosegError(
            Issue(
                code="folds.cascade_needs_unseen",
                where=name,
                message="starts from predictions of its first stage for cases that it did not train on, but every fold trains "
                f"on {', '.join(seen)}",
                fix="use folds that validate each case once (--folds 2 or more), or train another configuration",
            )
        )


def require_fold(fold: int, num_folds: int) -> None:
    """Refuse a fold that is not one of 0 ... ``num_folds`` - 1."""
    if not 0 <= fold < num_folds:
        available = "0" if num_folds == 1 else f"0 to {num_folds - 1}"
        message = f"fold {fold} does not exist (available: {available})"
        raise AutosegError(Issue(code="folds.no_such_fold", where="--fold", message=message, fix="choose one of these"))
