"""One fold from the user's file is trained unchanged, with the schedule measured on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import begin, crop_images, make_phantom, said

from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages


def test_one_given_fold_is_trained_and_others_are_not_made_up(tmp_path: Path) -> None:
    dataset, splits = make_phantom(tmp_path, seed=5), tmp_path / "splits_final.json"
    crop_images(dataset, 32)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").glob("*.nii.gz"))
    splits.write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))
    wishes = {"budget": "5s", "splits": splits, "configurations": "2d", "set": "schedule.num_steps=10"}
    run = run_stages(begin(dataset, tmp_path / "run", wishes), "validate")
    assert "no fold validates" in said(run)
    assert [(split.train, split.val) for split in run.splits.folds] == [(tuple(names[:2]), tuple(names[2:]))]
    assert run.schedule.num_folds == 1
    assert [folder.name for folder in (run.folder.models / "2d").iterdir()] == ["fold_0"]
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(run.folder.root, fold=1), "train")
    assert caught.value.codes == ("folds.no_such_fold",)
