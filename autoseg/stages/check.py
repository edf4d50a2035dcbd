"""Check: what is in the dataset's folder, and whether it can be used."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Set
from contextlib import suppress
from functools import partial
from pathlib import Path

from autoseg.compute.executor import run_jobs, workers_worth_starting
from autoseg.data.checks import examine_dataset, require_clean
from autoseg.data.dataset import Case, DatasetDescription, describe_dataset, errors_of_dataset, leave_out_bad
from autoseg.imaging.readers import file_states, files_of
from autoseg.issues import AutosegError
from autoseg.stages.run import Run, discover, keep_first_settings, require_redo, trained_folds
from autoseg.stages.work import Work, read_record, reads_as
from autoseg.storage.atomic import load_or_none, save_document
from autoseg.storage.cache import Cached, key_of, read_content
from autoseg.wording import count_noun, grouped, shorten

BYTE_S = 1e-9
"""Processor time to hash a byte."""
Contents = tuple[tuple[str, ...], ...]
"""Hash of each file of each image of a case, in the order of its channels, then of its labels."""


def check(run: Run) -> Generator[Work, None, None]:
    """Find the dataset's cases and check them; raises `AutosegError` with all errors at once.

    With ``skip_bad`` cases that have an error are left out, and only errors of the dataset as a whole raise.
    """
    found = find_dataset(run)
    if not run.settings.set:
        keep_first_settings(run)
    run.say(f"Found {describe_dataset(found)}")
    yield Work(
        name="check",
        what="the check",
        inputs=lambda: {
            "dataset": key_of(found),
            "handling of bad cases (--skip-bad)": key_of(run.settings.skip_bad),
        },
        outputs=[run.folder.dataset],
        is_whole=reads_as(DatasetDescription),
        do=partial(_check, run, found),
        keeps_record=True,
    )
    refuse_other_dataset(run, run.dataset)
    if run.settings.select_by is not None:
        from autoseg.stages.challenge import challenge_for

        challenge_for(run.settings.select_by, run.dataset)


def find_dataset(run: Run) -> DatasetDescription:
    """The dataset as it is now, with hashes of its files."""
    return with_contents(discover(run), cache=run.folder.cache("contents"), num_workers=run.num_workers)


def _check(run: Run, found: DatasetDescription) -> None:
    issues, hashes = examine_dataset(
        found, num_workers=run.num_workers, reporter=run.reporter, keep_in=run.folder.cache("check")
    )
    training = (
        case.model_copy(update={"image_contents": (*case.image_contents, *hashes.get(case.case_id, ()))})
        for case in found.training
    )
    found = found.model_copy(update={"training": tuple(training)})
    if run.settings.skip_bad:
        require_clean(errors_of_dataset(issues))
        checked = leave_out_bad(found, issues)
    else:
        require_clean(issues)
        checked = found.model_copy(update={"issues": tuple(issues)})
    refuse_other_dataset(run, checked)
    save_document(run.folder.dataset, checked)
    noted = [issue for issue in checked.issues if issue.severity != "error"]
    warnings = [issue for issue in noted if issue.severity == "warning"]
    left_out = checked.left_out
    errors = f"{len(left_out)} left out ({', '.join(left_out)})" if left_out else "no errors"
    run.say(
        f"Check: {errors}, {count_noun(len(warnings), 'warning')}, {count_noun(len(noted) - len(warnings), 'note')}"
    )
    for issue in grouped(warnings):
        run.say(f"  {issue}")


def refuse_other_dataset(run: Run, dataset: DatasetDescription) -> None:
    """Raise `AutosegError` where networks were trained on another dataset, unless they may be trained again.

    What counts is what each training was made from; for one that is not finished it is the fingerprint of the run.
    """
    now, measured = trained_on(dataset), read_record(run.folder, "fingerprint")
    folds = trained_folds(run.folder)
    records = [read_record(run.folder, f"train-{name}-fold_{fold}") or measured for name, fold in folds]
    made_from = [now if record is None else record.inputs["dataset"] for record in records]
    others = {fold: key for fold, key in zip(folds, made_from, strict=True) if key != now}
    if not others:
        return
    beside = run.folder.root.with_name(f"{run.folder.root.name}_2")
    words = ("autoseg", "run", run.settings.dataset, "--out", beside, "--pretrained", run.folder.root)
    instead = f"go on from its weights in a new run ({shlex.join(map(str, words))})"
    change = describe_change(_dataset_of(run, set(others.values())), dataset)
    require_redo(run, [change], code="run.dataset_changed", folds=list(others), dataset=dataset, instead=instead)


def _dataset_of(run: Run, keys: Set[str]) -> DatasetDescription | None:
    """The dataset that trainings were made from, by `trained_on`: that of the run, or of its model; None if it is unknown."""
    from autoseg.inference.bundle import open_bundle

    known = [load_or_none(DatasetDescription, run.folder.dataset)]
    with suppress(AutosegError):
        known.append(open_bundle(run.folder.model).description.dataset)
    return next((each for each in known if each is not None and trained_on(each) in keys), None)


def trained_on(dataset: DatasetDescription) -> str:
    """Key of all of a dataset that trainings depend on: not its place, its test images or the name of its layout."""
    return key_of(dataset.channels, dataset.coding, [_trained_parts(case) for case in dataset.training])


def _trained_parts(case: Case) -> list[object]:
    known = [case.modality] if case.modality else []
    return [case.case_id, case.content, case.annotated, case.group, case.parts, *known]


def describe_change(before: DatasetDescription | None, now: DatasetDescription) -> str:
    """How the training cases of a dataset changed."""
    known, found = ({case.case_id: case for case in each.training} if each else {} for each in (before, now))
    shared = known.keys() & found.keys()
    parts = {
        "added": found.keys() - known.keys(),
        "removed": known.keys() - found.keys(),
        "changed": {each for each in shared if _trained_parts(known[each]) != _trained_parts(found[each])},
    }
    named = [f"{shorten(sorted(names))} {verb}" for verb, names in parts.items() if before is not None and names]
    if before is not None and (before.channels, before.coding) != (now.channels, now.coding):
        named.append("channels or classes changed")
    details = f" ({'; '.join(named)})" if named else ""
    return f"the dataset changed since its networks were trained{details}"


def with_contents(dataset: DatasetDescription, *, cache: Path, num_workers: int) -> DatasetDescription:
    """The dataset with the hash of what is in the files of each case.

    Files whose sizes and times are those of the last call are not read again; touching, moving or copying them back
    changes nothing. Raises `AutosegError` that names a file which cannot be read.
    """
    cases = [*dataset.training, *dataset.test]
    hashes = Cached(function=_contents, kind=Contents, state=_state, folder=cache)
    size = sum(bytes_ for case in cases for _, bytes_, _ in _state(case))
    workers = workers_worth_starting(num_workers, BYTE_S * size) if not cache.is_dir() else 1
    found = run_jobs(hashes, cases, name=lambda case: f"case {case.case_id}", num_workers=workers)
    read = [
        case.model_copy(
            update={
                "content": key_of([sha256 for of_path in of_case for sha256 in of_path]),
                "image_contents": tuple(key_of(sorted(of_path)) for of_path in of_case[: len(case.images)]),
            }
        )
        for case, of_case in zip(cases, found, strict=True)
    ]
    num_training, content = len(dataset.training), key_of([[case.case_id, case.content] for case in read])
    return dataset.model_copy(
        update={"training": tuple(read[:num_training]), "test": tuple(read[num_training:]), "content": content}
    )


def _paths(case: Case) -> tuple[str, ...]:
    return (*case.images, *case.label_files)


def _state(case: Case) -> tuple[tuple[str, int, int], ...]:
    return file_states(_paths(case))


def _contents(case: Case) -> Contents:
    return tuple(tuple(read_content(file, None).sha256 for file in files_of(path)) for path in _paths(case))
