"""The folds of a run: the method's, or those that were asked for, and a word where they do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import Listening, begin, make_phantom, said

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.splits import find_leaks
from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings
from autoseg.stages.folds import find_splits, fold_inputs, groups_of, save_splits
from autoseg.stages.run import Run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetDescription:
    return discover_dataset(make_phantom(tmp_path_factory.mktemp("folds"), training=6, seed=3))


def wanted(dataset: DatasetDescription, **wishes: Any) -> Settings:
    return Settings(dataset=Path(dataset.root), **wishes)


def save(folder: Path, dataset: DatasetDescription, settings: Settings) -> Run:
    """A run whose folds were found and written."""
    run = Run(folder=RunFolder(folder / "run"), settings=settings, reporter=Listening())
    run.folder.root.mkdir()
    save_splits(run, dataset, find_splits(settings, dataset))
    return run


def test_any_number_of_folds(dataset: DatasetDescription, tmp_path: Path) -> None:
    assert len(find_splits(wanted(dataset), dataset).folds) == 5
    assert len(find_splits(wanted(dataset, folds=2), dataset, 4).folds) == 2
    run = save(tmp_path, dataset, wanted(dataset, folds=9))
    assert len(run.splits.folds) == 6
    assert said(run) == "6 folds instead of 9: there are no more cases or groups"
    (tmp_path / "one").mkdir()
    run = save(tmp_path / "one", dataset, wanted(dataset, folds=1))
    assert said(run) == "Hold-out: 4 cases for training, 2 for validation"


def test_groups_of_a_file_stay_together_and_can_be_left_out(dataset: DatasetDescription, tmp_path: Path) -> None:
    ids, groups = [case.case_id for case in dataset.training], tmp_path / "groups.csv"
    groups.write_text("case,group\n" + "".join(f"{case_id},p{i // 2}\n" for i, case_id in enumerate(ids)))
    pairs = [tuple(ids[i : i + 2]) for i in (0, 2, 4)]
    assert sorted(split.val for split in find_splits(wanted(dataset, groups=groups), dataset).folds) == pairs
    left_out = find_splits(wanted(dataset, groups=groups, leave_one_group_out=True), dataset)
    assert [split.val for split in left_out.folds] == pairs
    groups.write_text("case,group\n" + "".join(f"{case_id},p\n" for case_id in ids))
    with pytest.raises(AutosegError) as caught:
        find_splits(wanted(dataset, groups=groups, leave_one_group_out=True), dataset)
    assert caught.value.codes == ("folds.one_group",)


def test_one_fold_for_each_site_of_a_table(dataset: DatasetDescription, tmp_path: Path) -> None:
    ids, table = [case.case_id for case in dataset.training], tmp_path / "table.csv"
    table.write_text("case,site,age\n" + "".join(f"{each},{'ABC'[i % 3]},{i}\n" for i, each in enumerate(ids)))
    settings = wanted(dataset, groups_table=table, hold_out_groups="site")

    splits = find_splits(settings, dataset)
    assert [split.val for split in splits.folds] == [(ids[i], ids[i + 3]) for i in range(3)]
    assert fold_inputs(settings, dataset) != fold_inputs(wanted(dataset), dataset)
    table.write_text("case,site\n" + "".join(f"{each},{'ABC'[i % 3]}\n" for i, each in enumerate(ids[1:])))
    for column in ("site", "scanner"):
        with pytest.raises(AutosegError) as caught:
            find_splits(wanted(dataset, groups_table=table, hold_out_groups=column), dataset)
        assert caught.value.codes == ("folds.no_groups",)


def test_slices_of_a_patient_stay_together_unless_a_file_or_the_reference_decides(
    dataset: DatasetDescription, tmp_path: Path
) -> None:
    names = [f"p{i // 2}_slice{i % 2}" for i in range(6)]
    cases = tuple(each.model_copy(update={"case_id": name}) for each, name in zip(dataset.training, names, strict=True))
    sliced = dataset.model_copy(update={"training": cases})
    pairs = [tuple(names[i : i + 2]) for i in (0, 2, 4)]
    assert sorted(split.val for split in find_splits(wanted(sliced), sliced).folds) == pairs
    reference = wanted(sliced, strict_reference=True)
    assert len(find_splits(reference, sliced).folds) == 5
    assert find_leaks(find_splits(reference, sliced), groups_of(reference, sliced))
    (tmp_path / "groups.csv").write_text(f"case,group\n{names[0]},a\n")
    assert len(find_splits(wanted(sliced, groups=tmp_path / "groups.csv"), sliced).folds) == 5


def test_folds_of_a_file_are_used_and_their_leaks_reported(dataset: DatasetDescription, tmp_path: Path) -> None:
    ids = [case.case_id for case in dataset.training]
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ids[:4], "val": ids[4:]}]))
    (tmp_path / "groups.csv").write_text(f"case,group\n{ids[0]},p\n{ids[5]},p\n")
    run = save(tmp_path, dataset, wanted(dataset, splits=tmp_path / "splits.json", groups=tmp_path / "groups.csv"))
    assert [(split.train, split.val) for split in run.splits.folds] == [(tuple(ids[:4]), tuple(ids[4:]))]
    assert "no fold validates" in said(run)
    assert "trains and validates on cases of p" in said(run)


def test_files_may_name_cases_that_were_left_out_for_errors(dataset: DatasetDescription, tmp_path: Path) -> None:
    ids = [case.case_id for case in dataset.training]
    files = {"splits": tmp_path / "splits.json", "groups": tmp_path / "groups.csv"}
    files["splits"].write_text(json.dumps([{"train": ids[3:], "val": ids[:3]}, {"train": ids[:3], "val": ids[3:]}]))
    files["groups"].write_text("case,group\n" + "".join(f"{case_id},p\n" for case_id in ids))
    left = dataset.model_copy(update={"training": dataset.training[1:], "left_out": (ids[0],)})
    run = save(tmp_path, left, wanted(dataset, skip_bad=True, **files))
    assert [split.val for split in run.splits.folds] == [tuple(ids[1:3]), tuple(ids[3:])]
    notes = [line for line in said(run).splitlines() if line.startswith("Note")]
    assert [(str(path) in note, ids[0] in note) for path, note in zip(files.values(), notes, strict=True)] == [
        (True, True)
    ] * 2


def test_bad_folds_are_refused_with_all_faults_before_preprocessing(
    dataset: DatasetDescription, tmp_path: Path
) -> None:
    (tmp_path / "splits.json").write_text(
        json.dumps([{"train": ["phantom_001"], "val": ["phantom_001"]}, {"train": ["stranger"], "val": []}])
    )
    run = begin(Path(dataset.root), tmp_path / "run", {"splits": tmp_path / "splits.json"})
    with pytest.raises(AutosegError) as caught:
        run_stages(run, "preprocess")
    assert {"splits.overlap", "splits.empty_side", "case.unknown"} <= set(caught.value.codes)
    assert not run.folder.all_preprocessed.exists()


def test_a_schedule_depends_on_the_folds_only_where_some_were_requested(dataset: DatasetDescription) -> None:
    assert fold_inputs(wanted(dataset), dataset) == {}
    three, four = (fold_inputs(wanted(dataset, folds=n), dataset) for n in (3, 4))
    assert three != four
