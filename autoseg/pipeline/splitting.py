"""The folds of a run: made by the method's rule, or as a person wants them."""

from __future__ import annotations

from autoseg.data.dataset import DatasetDescription
from autoseg.data.splits import (
    Splits,
    cases_of_groups,
    cases_of_splits,
    describe_gaps,
    describe_leaks,
    leave_one_group_out,
    make_splits,
    read_groups,
    read_splits,
)
from autoseg.issues import UNNAMED, AutosegError, Issue
from autoseg.pipeline.options import Options
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from autoseg.wording import count_noun

FOLDS = 5
"""Of a cross-validation with enough cases and time (method section 7.9)."""


def folds_given(options: Options) -> bool:
    """Whether a person asked for certain folds, of which no schedule may take any away."""
    return options.splits is not None or options.folds is not None or options.leave_one_group_out


def refuse_bad_files(options: Options) -> None:
    """Wishes that contradict each other and files that cannot be read are refused before images are; see `refuse_bad_folds`."""
    _refuse_mixed(options)
    for path, named in ((options.splits, cases_of_splits), (options.groups, cases_of_groups)):
        if path is not None:
            named(path)


def refuse_bad_folds(options: Options, dataset: DatasetDescription) -> None:
    """Folds that cannot be used are refused before hours go into preprocessing."""
    if folds_given(options) or options.groups is not None:
        find_splits(options, dataset)


def find_splits(options: Options, dataset: DatasetDescription, num_folds: int | None = None) -> Splits:
    """The folds that were asked for; else ``num_folds`` by the method's rule, or fewer if there are fewer cases.

    Raises `AutosegError` with all that is wrong with options, files and groups, before anything is computed.
    """
    _refuse_mixed(options)
    case_ids = [case.case_id for case in dataset.training]
    if options.splits is not None:
        return read_splits(options.splits, case_ids, dataset.left_out)
    groups = groups_of(options, dataset)
    if not options.leave_one_group_out:
        return make_splits(case_ids, num_folds=max(2, options.folds or num_folds or FOLDS), groups=groups)
    if not any(groups.values()):
        raise AutosegError(
            f"--leave-one-group-out needs groups, but no case of {dataset.root} has one; list them in a CSV file with the "
            "columns case and group (--groups), or describe the folder with a spec file whose pattern has {patient} (--spec)"
        )
    if len({groups.get(case_id) or ("alone", case_id) for case_id in case_ids}) < 2:
        raise AutosegError(f"all {len(case_ids)} cases are of one group; without a second one none can be left out")
    return leave_one_group_out(case_ids, groups)


def groups_of(options: Options, dataset: DatasetDescription) -> dict[str, str | None]:
    """Group of each case: as the file says, else as the dataset tells."""
    if options.groups is None:
        return {case.case_id: case.group for case in dataset.training}
    return dict(read_groups(options.groups, [case.case_id for case in dataset.training], dataset.left_out))


def splits_stage(options: Options, dataset: DatasetDescription, num_folds: int = FOLDS) -> Splits:
    """Find the folds (see `find_splits`) and save them."""
    splits = find_splits(options, dataset, num_folds)
    save_splits(options, dataset, splits)
    return splits


def save_splits(options: Options, dataset: DatasetDescription, splits: Splits) -> None:
    """Write ``splits.json`` and say what a person should know of folds of their own."""
    save_document(options.run.splits, splits)
    case_ids = [case.case_id for case in dataset.training]
    for path, named in ((options.splits, cases_of_splits), (options.groups, cases_of_groups)):
        passed_over = [] if path is None else sorted(named(path) & set(dataset.left_out) - set(case_ids))
        if passed_over:
            options.reporter.say(
                f"Note: {path}: passed over, since left out for errors (--skip-bad): {', '.join(passed_over)}"
            )
    if options.splits is not None:
        leaks = describe_leaks(splits, groups_of(options, dataset))
        for line in (*describe_gaps(splits, case_ids), *leaks):
            options.reporter.say(f"Warning: {options.splits}: {line}")
    elif options.folds is not None and len(splits.folds) < options.folds:
        options.reporter.say(f"{len(splits.folds)} instead of {options.folds} folds: there are no more cases or groups")


def split_inputs(options: Options, dataset: DatasetDescription) -> dict[str, str]:
    """What a schedule depends on besides the dataset; nothing where nobody asked for certain folds or groups."""
    if not folds_given(options) and options.groups is None:
        return {}
    return {"choice of folds": key_of(find_splits(options, dataset), folds_given(options))}


def _refuse_mixed(options: Options) -> None:
    """Wishes that contradict each other, all at once."""
    if options.folds is not None and options.folds < 2:
        raise AutosegError(
            f"{count_noun(options.folds, 'fold')} cannot be cross-validated; ask for two at least, or name one with --splits"
        )
    wishes = {"--folds": options.folds is not None, "--leave-one-group-out": options.leave_one_group_out}
    others = [name for name, given in wishes.items() if given]
    problems = []
    if options.splits is not None:
        problems = [_contradiction(name, f"the folds of --splits {options.splits} are fixed") for name in others]
    elif len(others) > 1:
        problems = [_contradiction("--folds", "--leave-one-group-out gives each group a fold")]
    if problems:
        raise AutosegError(*problems, headline=("these options contradict each other"))


def _contradiction(option: str, because: str) -> Issue:
    return Issue(code=UNNAMED, where=option, message=because, fix="leave one of the two away")
