"""The folds of a run: the method's, or those that were asked for, and a word where they do not go together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from autoseg.pipeline.options import Options
from autoseg.pipeline.splitting import find_splits, split_inputs, splits_stage
from autoseg.pipeline.stages import preprocess_stage

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.tracking.progress import SilentReporter


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("splitting")
    make_phantom_dataset(path / "Task99_Phantom", num_training=6, num_test=0, seed=3)
    return path


@pytest.fixture
def options(folder, tmp_path) -> Options:
    return Options(
        dataset=folder / "Task99_Phantom",
        run=RunFolder(tmp_path / "run"),
        device_name="cpu",
        num_threads=1,
        num_workers=1,
        reporter=Listening(),
    )


@pytest.fixture
def dataset(options) -> DatasetDescription:
    return discover_dataset(options.dataset)


def test_any_number_of_folds(options, dataset) -> None:
    assert len(find_splits(options, dataset).folds) == 5
    assert len(find_splits(replace(options, folds=2), dataset, 4).folds) == 2
    assert len(splits_stage(replace(options, folds=9), dataset).folds) == 6
    assert options.reporter.said == ["6 instead of 9 folds: there are no more cases or groups"]


def test_groups_of_a_file_stay_together_and_can_be_left_out(options, dataset, tmp_path) -> None:
    ids = [case.case_id for case in dataset.training]
    groups = tmp_path / "groups.csv"
    groups.write_text("case,group\n" + "".join(f"{case_id},p{i // 2}\n" for i, case_id in enumerate(ids)))
    pairs = [tuple(ids[i : i + 2]) for i in (0, 2, 4)]
    assert sorted(split.val for split in find_splits(replace(options, groups=groups), dataset).folds) == pairs
    left_out = find_splits(replace(options, groups=groups, leave_one_group_out=True), dataset)
    assert [split.val for split in left_out.folds] == pairs


def test_folds_of_a_file_are_taken_and_their_leaks_told(options, dataset, tmp_path) -> None:
    ids = [case.case_id for case in dataset.training]
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ids[:4], "val": ids[4:]}]))
    (tmp_path / "groups.csv").write_text(f"case,group\n{ids[0]},p\n{ids[5]},p\n")
    wanted = replace(options, splits=tmp_path / "splits.json", groups=tmp_path / "groups.csv")
    splits = splits_stage(wanted, dataset)
    assert [(split.train, split.val) for split in splits.folds] == [(tuple(ids[:4]), tuple(ids[4:]))]
    assert any("no fold validates" in line for line in options.reporter.said)
    assert any("trains and validates on cases of p" in line for line in options.reporter.said)


def test_files_may_name_cases_that_were_left_out_for_errors(options, dataset, tmp_path) -> None:
    ids = [case.case_id for case in dataset.training]
    (tmp_path / "splits.json").write_text(
        json.dumps([{"train": ids[3:], "val": ids[:3]}, {"train": ids[:3], "val": ids[3:]}])
    )
    (tmp_path / "groups.csv").write_text("case,group\n" + "".join(f"{case_id},p\n" for case_id in ids))
    wanted = replace(options, splits=tmp_path / "splits.json", groups=tmp_path / "groups.csv", skip_bad=True)
    left = dataset.model_copy(update={"training": dataset.training[1:], "left_out": (ids[0],)})
    splits = splits_stage(wanted, left)
    assert [split.val for split in splits.folds] == [tuple(ids[1:3]), tuple(ids[3:])]
    notes = [line for line in options.reporter.said if line.startswith("Note")]
    assert notes == [
        f"Note: {tmp_path / name}: passed over, since left out for errors (--skip-bad): {ids[0]}"
        for name in ("splits.json", "groups.csv")
    ]


def test_wishes_that_contradict_each_other_are_refused_together(options, dataset, tmp_path) -> None:
    with pytest.raises(AutosegError) as raised:
        find_splits(replace(options, splits=tmp_path / "s.json", folds=3, leave_one_group_out=True), dataset)
    assert [problem.where for problem in raised.value.problems] == ["--folds", "--leave-one-group-out"]
    with pytest.raises(AutosegError, match="each group a fold"):
        find_splits(replace(options, folds=3, leave_one_group_out=True), dataset)
    with pytest.raises(AutosegError, match="two at least"):
        find_splits(replace(options, folds=1), dataset)
    with pytest.raises(AutosegError, match=r"needs groups.*--groups"):
        find_splits(replace(options, leave_one_group_out=True), dataset)


def test_bad_folds_are_refused_before_preprocessing(options, tmp_path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps([{"train": ["stranger"], "val": []}]))
    with pytest.raises(AutosegError, match="stranger"):
        preprocess_stage(replace(options, splits=tmp_path / "splits.json"))
    assert not (options.run.root / "preprocessed").exists()


def test_a_schedule_depends_on_the_folds_only_where_some_were_asked_for(options, dataset) -> None:
    assert split_inputs(options, dataset) == {}
    three, four = (split_inputs(replace(options, folds=n), dataset) for n in (3, 4))
    assert three != four
