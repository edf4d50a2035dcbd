"""Training starts from a finished run or its bundle, and says what is kept and what is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from builders import Job, begin, contents, crop_images, make_phantom, said, write_short_schedule

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.readers import read_image, write_image
from autoseg.inference.model import bundle_run, open_model
from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages
from autoseg.stages.check import with_contents
from autoseg.stages.pretrained import find_overlap
from autoseg.stages.run import Run
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.callbacks import read_history, read_issues
from planners import Schedule

NAME = "2d"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that has learnt something of one phantom dataset."""
    folder = tmp_path_factory.mktemp("pretrained")
    dataset = make_phantom(folder, seed=11)
    crop_images(dataset, 32)
    schedule = write_short_schedule(dataset, folder, steps=30)
    made = load_document(Schedule, schedule)
    trainings = tuple(
        each.model_copy(update={"steps_per_epoch": 15, "batch_size": 4, "precision": "float32", "mirroring": False})
        for each in made.trainings
    )
    save_document(schedule, made.model_copy(update={"trainings": trainings}))
    job = Job(dataset=dataset, schedule=schedule, root=folder / "run")
    job.call("select", dataset=dataset, schedule=schedule)
    return job


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Other phantoms, one class of which has another name."""
    folder = make_phantom(tmp_path / "target", seed=12)
    crop_images(folder, 32)
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"ring"', '"torus"'))
    return folder


def test_a_run_fine_tunes_another(pretrained: Job, target: Path, tmp_path: Path) -> None:
    about = open_model(pretrained.root).description
    mine = run_stages(begin(target, tmp_path / "run", {"pretrained": pretrained.root}), "plan")
    assert [configuration.name for configuration in mine.plan.configurations] == [NAME]
    assert mine.plan.configuration(NAME).patch_shape == about.plan.configuration(NAME).patch_shape
    runs = {}
    for name, wishes in (("run", {"pretrained": pretrained.root}), ("fresh", {})):
        call = begin(target, tmp_path / name, {**wishes, "schedule": pretrained.schedule}, fold=0)
        runs[name] = run_stages(call, "train")
    assert "Fine-tuning a model of " in said(runs["run"])
    assert "outputs: background, bean keep their layers, torus start from scratch" in said(runs["run"])
    folder = runs["run"].folder.fold(NAME, 0)
    assert any("torus start from scratch" in issue.message for issue in read_issues(folder))
    assert runs["run"].schedule.trainings[0].base_features == about.training(NAME).base_features
    begun, fresh = (read_history(run.folder.fold(NAME, 0) / "history.jsonl")[0][0] for run in runs.values())
    assert begun.loss < fresh.loss


def test_bundles_serve_as_well_and_other_things_are_refused(pretrained: Job, target: Path, tmp_path: Path) -> None:
    bundle = bundle_run(pretrained.root, tmp_path / "model.autoseg")
    run = run_stages(begin(target, tmp_path / "run", {"pretrained": bundle}), "plan")
    assert [configuration.name for configuration in run.plan.configurations] == [NAME]
    (tmp_path / "notes.txt").write_text("no model")
    for wrong in (tmp_path / "notes.txt", tmp_path / "absent", target):
        with pytest.raises(AutosegError, match=wrong.name):
            run_stages(begin(target, tmp_path / "other", {"pretrained": wrong}), "plan")


def test_a_given_schedule_of_another_width_is_refused_in_one_line(
    pretrained: Job, target: Path, tmp_path: Path
) -> None:
    schedule = load_document(Schedule, pretrained.schedule)
    wider = tuple(each.model_copy(update={"base_features": each.base_features + 1}) for each in schedule.trainings)
    save_document(tmp_path / "wider.json", schedule.model_copy(update={"trainings": wider}))
    wishes = {"pretrained": pretrained.root, "schedule": tmp_path / "wider.json"}
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(target, tmp_path / "run", wishes), "preprocess")
    assert [(issue.code, issue.where) for issue in caught.value.issues] == [
        ("schedule.other_width", str(tmp_path / "wider.json"))
    ]


def test_a_run_is_not_pretrained_by_itself(pretrained: Job, tmp_path: Path) -> None:
    shutil.copytree(pretrained.root, tmp_path / "run")
    before = contents(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(AutosegError) as caught:
        begin(tmp_path / "run", None, {"pretrained": tmp_path / "link"}, redo=True)
    assert caught.value.codes == ("settings.pretrained_is_run",)
    assert contents(tmp_path / "run") == before


def test_cases_that_the_model_has_seen_are_reported(pretrained: Job, tmp_path: Path) -> None:
    """In another format, too: voxels are compared."""
    copy = shutil.copytree(pretrained.dataset, tmp_path / "copy")
    for path in sorted((copy / "imagesTr").iterdir()):
        image = read_image(path)
        write_image(path.with_name(path.name.replace(".nii.gz", ".mha")), image.array[0], image.geometry)
        path.unlink()
    wishes = {"pretrained": pretrained.root, "schedule": pretrained.schedule}
    run: Run = run_stages(begin(copy, tmp_path / "run", wishes), "schedule")
    assert "4 of 4 cases were among those" in said(run)
    assert "too high" in said(run)


def test_copies_of_images_that_the_model_has_seen_are_found_by_content(
    pretrained: Job, target: Path, tmp_path: Path
) -> None:
    """In another folder, under other names, with other labels; a bundle does not know its cases."""
    copy = shutil.copytree(pretrained.dataset, tmp_path / "copy")
    for path in sorted((copy / "imagesTr").iterdir()):
        shutil.copy(
            copy / "labelsTr" / sorted(os.listdir(copy / "labelsTr"))[0], copy / "labelsTr" / f"new_{path.name}"
        )
        (copy / "labelsTr" / path.name).unlink()
        path.rename(path.with_name(f"new_{path.name}"))
    (copy / "dataset.json").unlink()
    found, others = (
        with_contents(discover_dataset(folder), cache=tmp_path / "cache", num_workers=1) for folder in (copy, target)
    )
    model = open_model(pretrained.root)
    seen = find_overlap(model, found)
    assert seen is not None
    assert (seen.code, seen.message[:6]) == ("scores.pretrained_saw_cases", "4 of 4")
    assert find_overlap(model, others.model_copy(update={"name": "other"})) is None
    bundle = open_model(bundle_run(pretrained.root, tmp_path / "model.autoseg"))
    unknown = find_overlap(bundle, found.model_copy(update={"name": "other"}))
    assert unknown is not None
    assert unknown.code == "scores.pretrained_cases_unknown"


def test_images_of_a_model_before_the_pretrained_one_are_remembered(
    pretrained: Job, target: Path, tmp_path: Path
) -> None:
    first = with_contents(discover_dataset(pretrained.dataset), cache=tmp_path / "cache", num_workers=1)
    first = first.model_copy(update={"name": "copy"})
    made = load_document(Schedule, pretrained.schedule)
    short = tuple(each.model_copy(update={"num_steps": 2, "steps_per_epoch": 1}) for each in made.trainings)
    save_document(tmp_path / "short.json", made.model_copy(update={"trainings": short}))
    for start, code in (
        (pretrained.root, "scores.pretrained_saw_cases"),
        (bundle_run(pretrained.root, tmp_path / "model.autoseg"), "scores.pretrained_cases_unknown"),
    ):
        wishes = {"pretrained": start, "schedule": tmp_path / "short.json"}
        second = run_stages(begin(target, tmp_path / code, wishes), "select")
        issue = find_overlap(open_model(second.folder.root), first)
        assert issue is not None
        assert issue.code == code
