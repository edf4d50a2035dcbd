"""A finished run folder after something in it was changed, lost or damaged: told, and mended by the same call."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autoseg.pipeline.bundling import bundle_run
from autoseg.pipeline.caveats import score_caveats
from autoseg.pipeline.freshness import StageRecord, digest
from autoseg.pipeline.options import Options
from autoseg.pipeline.predicting import predict_stage
from autoseg.pipeline.run import run_all
from autoseg.pipeline.scheduling import schedule_stage
from autoseg.pipeline.stages import plan_stage, preprocess_stage
from autoseg.pipeline.training import fold_inputs, train_one, train_stage, validate_one
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.cli.console import show_scores
from autoseg.data.phantom import make_phantom_dataset
from autoseg.inference.model import load_model, open_run
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import SilentReporter
from planners import Conditions, Measurement, Plan, Schedule, plan_schedule

CPU = torch.device("cpu")


class Listening(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Impatient(SilentReporter):
    """Somebody who presses Ctrl-C when a certain line comes."""

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning

    def say(self, text: str) -> None:
        if text.startswith(self.beginning):
            raise KeyboardInterrupt


def short_schedule(plan: Plan, *, num_folds: int = 2, steps: int = 2, cases: int = 4) -> Schedule:
    """A narrow 2D network for a few steps."""
    measured = Measurement(
        configuration="2d", base_features=4, batch_size=2, precision="float32", step_s=1.0, case_s=0.1
    )
    schedule = plan_schedule(
        plan,
        Conditions(
            device="cpu", num_threads=1, budget_s=600, elapsed_s=1.0, num_folds=num_folds, num_training_cases=cases,
            num_test_cases=1, cross_validated=True, measurements=(measured,), seed=0,
        ),
    )  # fmt: skip
    short = {"num_steps": steps, "steps_per_epoch": 1, "warmup_steps": 0, "validation_batches": 1}
    trainings = tuple(training.model_copy(update=short) for training in schedule.trainings)
    return schedule.model_copy(update={"trainings": trainings, "num_folds": num_folds})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of a run that has come to its end."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    make_phantom_dataset(folder / "Task99_Phantom", num_training=4, num_test=1, seed=3)
    options = Options(
        dataset=folder / "Task99_Phantom", run=RunFolder(folder / "run"), device_name="cpu", num_threads=1, num_workers=1,
        reporter=Listening(), schedule=folder / "schedule.json",
    )  # fmt: skip
    _, plan = plan_stage(options)
    save_document(folder / "schedule.json", short_schedule(plan))
    run_all(options)
    return options


@pytest.fixture
def options(finished: Options, tmp_path: Path) -> Options:
    """The same, with a run folder of its own."""
    shutil.copytree(finished.run.root, tmp_path / "run")
    return replace(finished, run=RunFolder(tmp_path / "run"), reporter=Listening())


def said(options: Options) -> str:
    assert isinstance(options.reporter, Listening)
    return "\n".join(options.reporter.said)


def test_weights_of_another_seed_are_not_mixed_in(options: Options, tmp_path: Path) -> None:
    key = load_model(options.run.root, device=CPU).key
    train_stage(replace(options, seed=1), fold=0)
    with pytest.raises(
        AutosegError, match=r"selection\.json was made from another plan, schedule or other weights.*repeat autoseg run"
    ):
        load_model(options.run.root, device=CPU)
    with pytest.raises(AutosegError, match="repeat autoseg run"):
        bundle_run(options.run.root, tmp_path / "model.zip")
    run_all(options)
    assert load_model(options.run.root, device=CPU).key == key
    bundle_run(options.run.root, tmp_path / "model.zip")
    assert load_model(tmp_path / "model.zip", device=CPU).key == key


def test_a_training_that_another_one_came_between_has_its_own_history(options: Options) -> None:
    fold = options.run.fold("2d", 0)
    before = {name: (fold / name).read_bytes() for name in ("history.jsonl", "final.safetensors")}
    train_stage(replace(options, seed=1), fold=0)
    assert (fold / "history.jsonl").read_bytes() != before["history.jsonl"]
    train_stage(options, fold=0)
    assert {name: (fold / name).read_bytes() for name in before} == before


def test_cases_that_another_process_preprocesses_anew_are_not_learned_from(options: Options) -> None:
    prepared, fold = schedule_stage(options), options.run.fold("2d", 0)
    training, final = prepared.schedule.training("2d"), (fold / "final.safetensors").read_bytes()
    shutil.rmtree(fold)
    preprocess_stage(replace(options, target_spacing_mm=(1.6, 1.4, 1.5)))  # before, or while this process trains
    with (
        SilentReporter().track("", 2) as tracker,
        pytest.raises(
            AutosegError, match=r"preprocessed anew by another process, .*: phantom_001, .*; repeat the call"
        ),
    ):
        train_one(options, prepared, training, 0, tracker)
    assert not list(fold.glob("*.pt")), "the checkpoint would be taken for one of the right cases"
    options.run.stage("validate-2d-fold_1").unlink()
    (options.run.validation("2d", 1) / "predictions.jsonl").unlink()
    with pytest.raises(AutosegError, match="preprocessed anew by another process"):
        validate_one(options, prepared, training, 1, prepared.splits.folds[1])
    run_all(options)
    assert (fold / "final.safetensors").read_bytes() == final


def test_a_fold_that_another_process_trained_anew_is_not_validated_in_its_place(options: Options) -> None:
    prepared = schedule_stage(options)
    train_stage(replace(options, seed=1), fold=0)  # while this process was at another fold
    (options.run.stage("validate-2d-fold_0")).unlink()
    with pytest.raises(
        AutosegError, match="trained anew with other options by another process meanwhile; repeat the call"
    ):
        validate_one(options, prepared, prepared.schedule.training("2d"), 0, prepared.splits.folds[0])


def test_a_target_spacing_that_is_left_out_is_told(options: Options) -> None:
    finer = replace(options, target_spacing_mm=(1.6, 1.4, 1.5))
    _, planned = plan_stage(finer)
    assert preprocess_stage(finer)[1] == planned
    told = replace(options, reporter=Listening())
    plan_stage(told)
    assert "Doing the plan again: the target spacing (--target-spacing) changed" in said(told)


def test_a_plan_that_was_made_anew_does_not_use_old_weights(options: Options) -> None:
    before = load_document(Plan, options.run.plan)
    plan_stage(replace(options, target_spacing_mm=(1.6, 1.4, 1.5)))
    assert load_document(Plan, options.run.plan) != before
    with pytest.raises(AutosegError, match="repeat autoseg run"):
        load_model(options.run.root, device=CPU)
    weights = options.run.fold("2d", 0) / "final.safetensors"
    written = weights.stat().st_mtime_ns
    run_all(options)
    load_model(options.run.root, device=CPU)
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "changes",
    [
        {"strict_reference": True},
        {"source_axes": "ras"},
        {"transpose_forward": (1, 0, 2), "transpose_backward": (1, 0, 2)},
    ],
)
def test_weights_of_otherwise_turned_images_are_stale(options: Options, changes: dict[str, object]) -> None:
    """All that cases are stored by counts, also where it changes no configuration."""
    prepared = train_stage(options)
    other = replace(prepared, plan=prepared.plan.model_copy(update=changes))
    inputs = [fold_inputs(options, each, each.schedule.training("2d"), 0) for each in (prepared, other)]
    assert {name for name in inputs[0] if inputs[0][name] != inputs[1][name]} == {"plan"}


def test_cut_weights_are_made_again_from_the_checkpoint(options: Options) -> None:
    final = options.run.fold("2d", 1) / "final.safetensors"
    whole = final.read_bytes()
    final.write_bytes(whole[: len(whole) // 2])
    run_all(options)
    assert final.read_bytes() == whole
    assert "final.safetensors does not fit" in said(options)


def test_a_refused_schedule_leaves_the_run_as_it_is(options: Options, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (options.run.schedule, options.run.splits)}
    save_document(tmp_path / "seven.json", short_schedule(load_document(Plan, options.run.plan), num_folds=7))
    save_document(tmp_path / "four.json", short_schedule(load_document(Plan, options.run.plan), num_folds=4))
    with pytest.raises(AutosegError, match="trains 7 folds, but 4 cases give 4"):
        train_stage(replace(options, schedule=tmp_path / "seven.json"))
    with pytest.raises(
        AutosegError, match="trains 4 folds, but --folds gives 3; leave --folds out, or take a schedule of 3 folds"
    ):
        train_stage(replace(options, folds=3, schedule=tmp_path / "four.json"))
    assert {path: path.read_bytes() for path in before} == before


def test_folds_that_are_not_those_of_the_schedule_are_made_again(options: Options) -> None:
    whole = options.run.splits.read_bytes()
    options.run.splits.write_bytes(whole[: len(whole) // 2])
    train_stage(options)
    assert options.run.splits.read_bytes() == whole
    plain = replace(options, schedule=None, budget_s=3.0)
    train_stage(plain, configuration="2d", fold=0)
    assert load_document(Schedule, options.run.schedule).conditions.budget_s == 3.0
    assert "Doing the schedule again: the budget changed, the schedule file (--schedule) changed" in said(options)
    made = {
        path: path.read_bytes() for path in (options.run.schedule, options.run.splits, options.run.stage("schedule"))
    }
    with pytest.raises(KeyboardInterrupt):
        train_stage(replace(plain, budget_s=4.0, reporter=Impatient("Precision")), configuration="2d", fold=0)
    train_stage(replace(plain, budget_s=None), configuration="2d", fold=0)
    assert "Budget: 3 s, as the run began" in said(options)
    assert {path: path.read_bytes() for path in made} == made, (
        "neither a slip that was stopped nor silence costs a schedule"
    )
    splits = json.loads(options.run.splits.read_text())
    splits["folds"].append(splits["folds"][0])
    options.run.splits.write_text(json.dumps(splits))
    train_stage(plain, configuration="2d", fold=0)
    assert [path.read_bytes() for path in (options.run.schedule, options.run.splits)] == list(made.values())[:2]
    options.run.schedule.unlink()
    weights = {path: path.read_bytes() for path in options.run.models.rglob("*.safetensors")}
    with pytest.raises(AutosegError, match=r"schedule\.json is gone.*, so that the schedule would be made again"):
        run_all(replace(plain, may_retrain=False))
    assert not options.run.schedule.exists()
    assert {path: path.read_bytes() for path in weights} == weights


def test_a_budget_beside_a_schedule_is_said_to_change_nothing(options: Options) -> None:
    train_stage(replace(options, budget_s=60.0))
    assert "--budget changes nothing here" in said(options)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"preset": "vnet"}, r"the preset \(--preset\) changed, so that the plan"),
        ({"strict_reference": True}, r"the orientation \(--strict-reference\) changed, so that the fingerprint"),
        ({"seed": 1}, "the seed changed, so that the schedule of .*"),
        (
            {"schedule": None, "budget_s": 3.0},
            "the budget changed and the schedule file .* changed, so that the schedule",
        ),
    ],
)
def test_who_asks_for_a_report_with_other_options_trains_nothing(
    options: Options, changes: dict[str, object], why: str
) -> None:
    before = documents_and_weights(options.run)
    with pytest.raises(AutosegError, match=f"{why} would be made again.*take autoseg run"):
        run_all(replace(options, **changes, may_retrain=False))
    assert documents_and_weights(options.run) == before
    as_it_was = replace(options, may_retrain=False, reporter=Listening())
    run_all(as_it_was)
    assert " again" not in said(as_it_was)
    assert json.loads(options.run.record.read_text())["state"] == "finished"


@pytest.mark.parametrize("command", ["select", "report"])
def test_commands_that_show_results_train_nothing_anew(options: Options, command: str) -> None:
    words = [
        "--schedule",
        options.schedule,
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "1",
        "--out",
        options.run.root,
    ]
    call = [command, str(options.dataset), *map(str, words)]
    refused = CliRunner().invoke(app, [*call, "--seed", "1"])
    assert isinstance(refused.exception, AutosegError)
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "called: autoseg" in options.run.log.read_text()


def documents_and_weights(run: RunFolder) -> dict[Path, bytes]:
    documents = (run.dataset, run.fingerprint, run.plan, run.schedule, run.splits, run.record)
    return {
        path: path.read_bytes()
        for path in (*documents, *run.models.rglob("*.safetensors"), *run.root.glob("stages/*.json"))
    }


def test_a_plan_of_another_origin_is_not_replaced_for_a_report(options: Options) -> None:
    """As the plan of a pretrained model is, where ``--pretrained`` is left out."""
    other = load_document(Plan, options.run.plan).model_copy(update={"source_axes": "ras"})
    save_document(options.run.plan, other)
    record = load_document(StageRecord, options.run.stage("schedule"))
    made_for_it = record.model_copy(update={"consumed": {**record.consumed, "plan": digest(other)}})
    save_document(options.run.stage("schedule"), made_for_it)
    with pytest.raises(
        AutosegError, match=r"the pretrained model \(--pretrained\) or the rules changed, so that the plan"
    ):
        run_all(replace(options, may_retrain=False))
    assert load_document(Plan, options.run.plan) == other


def test_a_plan_that_nothing_was_trained_by_is_taken_back_for_a_report(options: Options) -> None:
    before = documents_and_weights(options.run)
    plan_stage(replace(options, preset="vnet", target_spacing_mm=(1.6, 1.4, 1.5)))
    assert options.run.plan.read_bytes() != before[options.run.plan]
    run_all(replace(options, may_retrain=False))
    kept = {
        path for path in before if path.suffix == ".safetensors" or path in (options.run.plan, options.run.schedule)
    }
    assert {path: path.read_bytes() for path in kept} == {path: before[path] for path in kept}


def test_another_dataset_is_refused_for_a_report(options: Options, tmp_path: Path) -> None:
    before = documents_and_weights(options.run)
    make_phantom_dataset(tmp_path / "Task98_Other", num_training=3, num_test=0, seed=4)
    with pytest.raises(AutosegError, match=r"the dataset changed, so that the fingerprint would be made again"):
        run_all(replace(options, dataset=tmp_path / "Task98_Other", may_retrain=False))
    assert documents_and_weights(options.run) == before


def test_a_run_of_another_device_is_reported_where_nothing_is_left_to_train(options: Options) -> None:
    record = load_document(StageRecord, options.run.stage("schedule"))
    elsewhere = record.model_copy(update={"consumed": {**record.consumed, "device": digest("cuda")}})
    save_document(options.run.stage("schedule"), elsewhere)
    before = documents_and_weights(options.run)
    run_all(replace(options, may_retrain=False))
    assert {
        path: content for path, content in documents_and_weights(options.run).items() if path != options.run.record
    } == {path: content for path, content in before.items() if path != options.run.record}
    (options.run.fold("2d", 0) / "final.safetensors").unlink()
    with pytest.raises(AutosegError, match="the device changed, so that the schedule"):
        run_all(replace(options, may_retrain=False))


def test_what_is_missing_is_done_for_a_report(options: Options) -> None:
    shutil.rmtree(options.run.fold("2d", 0))
    run_all(replace(options, may_retrain=False))
    assert (options.run.fold("2d", 0) / "final.safetensors").is_file()


def test_folds_that_were_validated_otherwise_are_selected_from_again(options: Options) -> None:
    """As a fold is that was trained again from the same on another machine."""
    select, table = options.run.stage("select"), options.run.validation("2d", 0) / "summary.json"
    before, untouched = select.read_bytes(), select.stat().st_mtime_ns
    run_all(options)
    assert select.stat().st_mtime_ns == untouched
    scores = json.loads(table.read_text())
    scores["metric_per_case"][0]["metrics"]["1"]["Dice"] = 0.987
    table.write_text(json.dumps(scores))
    run_all(options)
    assert "Doing the selection again: the validation changed" in said(options)
    assert select.read_bytes() != before


def test_a_fold_that_is_trained_again_is_validated_again(options: Options) -> None:
    predicted = min(options.run.validation("2d", 0).glob("*.nii.gz"))
    written = predicted.stat().st_mtime_ns
    (options.run.fold("2d", 0) / "final.safetensors").unlink()
    run_all(options)
    assert predicted.stat().st_mtime_ns != written


def test_cross_validated_cases_are_those_of_the_dataset(options: Options, tmp_path: Path) -> None:
    smaller = tmp_path / "Task99_Phantom"
    shutil.copytree(options.dataset, smaller)
    for folder in ("imagesTr", "labelsTr"):
        next((smaller / folder).glob("phantom_004*")).unlink()
    description = json.loads((smaller / "dataset.json").read_text())
    description["training"] = [each for each in description["training"] if "phantom_004" not in str(each)]
    (smaller / "dataset.json").write_text(json.dumps(description | {"numTraining": 3}))
    run_all(replace(options, dataset=smaller))
    assert {path.name for path in options.run.cross_validation.glob("*.nii.gz")} == {
        f"phantom_00{i}.nii.gz" for i in (1, 2, 3)
    }


def test_scores_that_flatter_say_so_on_the_terminal_and_in_the_report(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, unseen = schedule_stage(options), "a model that had not seen it"
    assert unseen in run_all(options).report.read_text()
    assert not score_caveats(options, prepared)
    (known,) = score_caveats(options, replace(prepared, pretrained=open_run(options.run.root)))
    assert known.message.startswith("4 of 4 cases were among those that the pretrained model was trained on")
    cases = [case.case_id for case in prepared.dataset.training]
    folds = [{"train": cases[:2], "val": cases[2:]}, {"train": cases[2:], "val": cases[:2]}]
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    (tmp_path / "groups.csv").write_text("case,group\n" + "".join(f"{case},anna\n" for case in cases[1:3]))
    result = run_all(replace(options, splits=tmp_path / "splits.json", groups=tmp_path / "groups.csv"))
    assert result.selected.summary is not None
    show_scores(result.selected, result.selected.summary)
    for text in (capsys.readouterr().out, result.report.read_text()):
        assert "fold 1 trains and validates on cases of anna" in text
        assert "a fold that left it out" in text
    assert unseen not in result.report.read_text()


def test_predictions_without_a_record_are_not_taken_for_the_models(options: Options) -> None:
    (prediction,) = options.run.predictions.glob("*.nii.gz")
    whole = prediction.read_bytes()
    other = next(options.run.cross_validation.glob("*.nii.gz"))
    shutil.copy(other, prediction)
    (options.run.predictions / "predictions.jsonl").unlink()
    predict_stage(options)
    assert prediction.read_bytes() == whole
    prediction.write_bytes(b"")
    predict_stage(options)
    assert prediction.read_bytes() == whole


def test_only_folders_of_the_run_are_cleaned(options: Options) -> None:
    theirs, ours = options.run.root / "notes" / ".a.json.0123abcd.part", options.run.models / ".a.json.0123abcd.part"
    for path in (theirs, ours):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    run_all(options)
    assert theirs.exists()
    assert not ours.exists()


def test_lost_and_cut_files_are_made_again(options: Options) -> None:
    fold, data = options.run.fold("2d", 0), options.run.preprocessed("2d")
    validated = min((fold / "validation").glob("*.nii.gz"))
    lost = [validated, min(options.run.cross_validation.glob("*.nii.gz"))]
    cut = [min(data.glob("*.image.b2nd")), max(data.glob("*.locations.npz"))]
    before = {path: path.read_bytes() for path in (*lost, *cut)}
    for path in lost:
        path.unlink()
    for path in (*cut, options.run.stage("train-2d-fold_1"), options.run.stage("check"), fold / "history.jsonl"):
        path.write_bytes(path.read_bytes()[:-20])
    run_all(options)
    assert {path: path.read_bytes() for path in before} == before
    assert "history.jsonl is damaged from line 2 on" in said(options)
    assert json.loads(options.run.record.read_text())["state"] == "finished"


def test_other_threads_and_versions_are_said_and_nothing_is_done_again(options: Options) -> None:
    before = {path: path.stat().st_mtime_ns for path in options.run.models.rglob("*.safetensors")}
    record = json.loads(options.run.record.read_text())
    record["packages"]["torch"] = "2.0.0"
    options.run.record.write_text(json.dumps(record))
    run_all(replace(options, num_threads=2))
    told = said(options)
    assert f"torch was 2.0.0 and is {torch.__version__}" in told
    assert "made for 1 thread, here are 2" in told
    assert " again" not in told
    assert before == {path: path.stat().st_mtime_ns for path in options.run.models.rglob("*.safetensors")}


def test_other_test_images_and_another_place_train_nothing_again(options: Options, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(options.dataset, moved)
    before = {path: path.stat().st_mtime_ns for path in options.run.models.rglob("*.safetensors")}
    prediction = next(options.run.predictions.glob("*.nii.gz"))
    old = prediction.read_bytes()
    image = next((moved / "imagesTs").glob("*.nii.gz"))
    image.write_bytes(next((moved / "imagesTr").glob("*.nii.gz")).read_bytes())
    run_all(replace(options, dataset=moved))
    assert before == {path: path.stat().st_mtime_ns for path in options.run.models.rglob("*.safetensors")}
    assert prediction.read_bytes() != old
    again = prediction.stat().st_mtime_ns
    run_all(replace(options, dataset=moved))
    assert prediction.stat().st_mtime_ns == again
