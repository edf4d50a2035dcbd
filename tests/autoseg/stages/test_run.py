"""How a call finds or starts its run, and what it refuses to overwrite."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from builders import Job, begin, contents, make_phantom, said, short_schedule
from typer.testing import CliRunner

from autoseg import api
from autoseg.cli import app
from autoseg.inference.model import load_model
from autoseg.issues import AutosegError
from autoseg.pipeline import run_stages
from autoseg.run_folder import RunFolder, require_place_for_predictions
from autoseg.settings import Settings
from autoseg.stages.begin import find_run, logger, require_free, start_log
from autoseg.storage.atomic import load_document, save_document


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("data"), training=2)


def test_a_folder_with_settings_is_a_run_and_any_other_a_dataset(tmp_path: Path, data: Path) -> None:
    run = begin(data, tmp_path / "run")
    assert find_run(data, None) == (data, Path("run"))
    assert find_run(run.folder.root, None) == (None, run.folder.root)
    assert find_run(run.folder.root, run.folder.root) == (None, run.folder.root)
    with pytest.raises(AutosegError) as caught:
        find_run(run.folder.root, tmp_path / "other")
    assert caught.value.codes == ("run.two_folders",)
    run_stages(run, "check")
    run.folder.settings.unlink()
    with pytest.raises(AutosegError) as caught:
        begin(run.folder.root)
    assert caught.value.codes == ("run.no_dataset",)
    assert begin(data, run.folder.root).settings.dataset == data


def test_options_need_not_be_repeated(tmp_path: Path, data: Path) -> None:
    begin(data, tmp_path / "run", {"budget": "1h", "seed": 3})
    later = begin(tmp_path / "run", None, {"folds": 2})
    assert (later.settings.budget, later.settings.seed, later.settings.folds) == (3600, 3, 2)
    assert said(later).splitlines()[0] == "Changed since the last call: --folds was not given and is 2"
    assert said(later).splitlines()[1].startswith("Device: CPU, 1 thread, ")
    assert load_document(Settings, later.folder.settings).folds is None  # it is kept once it was followed
    run_stages(later, "plan")
    assert load_document(Settings, later.folder.settings) == later.settings


def test_a_dataset_that_does_not_exist_makes_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        begin(tmp_path / "absent", tmp_path / "run")
    assert caught.value.codes == ("dataset.missing",)
    assert not (tmp_path / "run").exists()


def test_the_description_of_a_dataset_or_a_run_stands_for_its_folder(tmp_path: Path, data: Path) -> None:
    run = run_stages(begin(data / "dataset.json", tmp_path / "run"), "check")
    assert run.settings.dataset == data
    assert find_run(run.folder.dataset, None) == (None, run.folder.root)


def test_a_list_replaces_the_earlier_one_and_says_so(tmp_path: Path, data: Path) -> None:
    run_stages(begin(data, tmp_path / "run", {"exclude": "phantom_001"}), "check")
    later = begin(tmp_path / "run", None, {"exclude": "phantom_002"})
    assert later.settings.exclude == ("phantom_002",)
    assert "--exclude was phantom_001 and is phantom_002 (a list replaces the earlier one)" in said(later)


def test_predictions_are_not_put_into_a_run(tmp_path: Path, data: Path) -> None:
    run = run_stages(begin(data, tmp_path / "run"), "check")
    for folder in (run.folder.root, run.folder.predictions, run.folder.models / "deep" / "inside"):
        with pytest.raises(AutosegError) as caught:
            api.predict("model", "image", folder)
        assert (caught.value.codes, caught.value.issues[0].where) == (("predict.into_a_run",), str(folder))
    require_place_for_predictions(run.folder.root / "mine")


def test_a_refused_change_does_not_affect_later_calls(tmp_path: Path, data: Path) -> None:
    for number, path in ((0, "plan.4d.batch_size"), (1, "plan.2d.batch_size")):
        run = begin(data, tmp_path / "run", {"set": f"{path}=3"})
        if number:
            run_stages(run, "plan")
            assert run.plan.configuration("2d").batch_size == 3
        else:
            with pytest.raises(AutosegError):
                run_stages(run, "plan")


@pytest.mark.parametrize(
    ("given", "code"), [({"exclude": "nope"}, "case.unknown"), ({"layout": "nope"}, "layout.unknown")]
)
def test_a_refused_first_call_is_not_remembered(tmp_path: Path, data: Path, given: dict[str, str], code: str) -> None:
    run = begin(data, tmp_path / "run", given)
    with pytest.raises(AutosegError) as caught:
        run_stages(run, "check")
    assert caught.value.codes == (code,)
    assert not run.folder.settings.exists()
    run_stages(begin(data, tmp_path / "run"), "check")
    stored = load_document(Settings, run.folder.settings)
    assert (stored.exclude, stored.layout) == ((), None)


def test_names_that_exist_are_remembered_once_they_were_found(tmp_path: Path, data: Path) -> None:
    run = begin(data, tmp_path / "run", {"layout": "msd"})
    assert not run.folder.settings.exists()
    run_stages(run, "check")
    assert load_document(Settings, run.folder.settings).layout == "msd"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"exclude": "nope"}, "case.unknown"),
        ({"layout": "nope"}, "layout.unknown"),
        ({"configurations": "nope"}, "plan.no_configuration"),
        ({"exclude": "phantom_001"}, "run.option_differs"),
    ],
)
def test_unknown_names_are_refused_before_the_cost_of_training_again(
    tmp_path: Path, data: Path, given: dict[str, str], code: str
) -> None:
    run = run_stages(begin(data, tmp_path / "run"), "plan")
    weights = run.folder.fold("3d_fullres", 0) / "final.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    with pytest.raises(AutosegError) as caught:
        begin(run.folder.root, None, given)
    assert caught.value.codes == (code,)


def test_a_given_schedule_that_is_the_own_one_trains_nothing_again(tmp_path: Path, data: Path) -> None:
    run, copy = run_stages(begin(data, tmp_path / "run"), "plan"), tmp_path / "copy.json"
    schedule = short_schedule(run.plan, num_folds=2, cases=3)
    for path in (run.folder.schedule, copy):
        save_document(path, schedule)
    weights = run.folder.fold(schedule.trainings[0].configuration, 0) / "final.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert begin(run.folder.root, None, {"schedule": copy}).settings.schedule == copy
    longer = schedule.trainings[0].model_copy(update={"num_steps": 7})
    save_document(copy, schedule.model_copy(update={"trainings": (longer,)}))
    with pytest.raises(AutosegError) as caught:
        begin(run.folder.root, None, {"schedule": copy})
    assert caught.value.codes == ("run.option_differs",)


def test_configurations_that_no_plan_has_are_refused_before_images_are_read(tmp_path: Path, data: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        begin(data, tmp_path / "run", {"configurations": "2d,3d_fulres"})
    (issue,) = caught.value.issues
    assert (issue.code, issue.where) == ("plan.no_configuration", "--configurations")
    assert issue.message == "unknown configuration 3d_fulres"
    assert not (tmp_path / "run").exists()
    assert begin(data, tmp_path / "run", {"configurations": "2d,3d_lowres"}).settings.configurations[1] == "3d_lowres"


def test_contradictions_are_refused_together_before_a_run_folder_is_made(tmp_path: Path, data: Path) -> None:
    wishes = {"splits": tmp_path / "s.json", "folds": 3, "leave_one_group_out": True}
    for given, where in (
        (wishes, ["--folds", "--leave-one-group-out"]),
        ({**wishes, "splits": None}, ["--folds"]),
        ({"hold_out_groups": "site"}, ["--hold-out-groups"]),
        ({"pretrained": tmp_path, "preset": "vnet", "memory_gb": 4}, ["--preset", "--memory-gb"]),
    ):
        with pytest.raises(AutosegError) as caught:
            begin(data, tmp_path / "run", given)
        assert [(issue.code, issue.where) for issue in caught.value.issues] == [
            ("settings.contradiction", each) for each in where
        ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wish", ["schedule", "splits", "groups", "groups_table"])
@pytest.mark.parametrize("content", [None, "[7]"])
def test_files_that_cannot_be_read_are_refused_before_images_are(
    tmp_path: Path, data: Path, wish: str, content: str | None
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AutosegError, match="given"):
        begin(data, tmp_path / "run", {wish: path})
    assert not (tmp_path / "run").exists()


def test_the_dataset_itself_is_no_run_folder(tmp_path: Path, data: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(AutosegError) as caught:
        begin(data, tmp_path / "link")
    assert caught.value.codes == ("run.folder_not_free",)


def test_documents_of_others_are_not_written_over(tmp_path: Path, data: Path) -> None:
    described = Path(shutil.copytree(data, tmp_path / "other"))  # with the dataset.json of another program
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "splits.json").write_text("[]")
    before = contents(tmp_path)
    for folder, place in ((described, described / "dataset.json"), (tmp_path / "mine", tmp_path / "mine")):
        with pytest.raises(AutosegError) as caught:
            begin(data, folder)
        assert [(issue.code, issue.where) for issue in caught.value.issues] == [("run.folder_not_free", str(place))]
    assert contents(tmp_path) == before


def test_a_run_resumes_even_if_its_description_is_damaged(tmp_path: Path, data: Path) -> None:
    run = run_stages(begin(data, tmp_path / "run"), "check")
    run.folder.settings.unlink()
    run.folder.dataset.write_bytes(run.folder.dataset.read_bytes()[:100])
    require_free(run.folder, data)


def test_a_model_of_nnunet_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "plans.json").write_text("{}")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0}}))
    with pytest.raises(AutosegError, match="autoseg import-nnunet"):
        load_model(tmp_path, device=torch.device("cpu"))


def test_scores_of_a_run_are_not_replaced_by_those_against_other_references(job: Job) -> None:
    labels, evaluate = job.dataset / "labelsTr", CliRunner().invoke
    folders = (job.folder.cross_validation, job.folder.validation("2d", 0))
    before = {folder: (folder / "summary.json").read_bytes() for folder in folders}
    for folder in folders:
        link = job.root.parent / folder.name
        link.symlink_to(folder)
        for given in ([folder], [link], [labels, "--out", folder / "summary.json"]):
            words = ["evaluate", str(given[0]), str(labels), *map(str, given[1:])]
            error = evaluate(app, words).exception
            assert isinstance(error, AutosegError)
            assert error.codes == ("scores.of_a_run",)
    assert {folder: (folder / "summary.json").read_bytes() for folder in folders} == before
    for given in (
        [job.folder.cross_validation, labels, "--out", job.root / "other.json"],
        [job.folder.predictions, job.dataset / "labelsTs"],
    ):
        done = evaluate(app, ["evaluate", *map(str, given), "--workers", "1"])
        assert done.exit_code == 0, done.output
    assert (job.root / "other.json").is_file()
    plan = job.folder.plan.read_bytes()
    error = evaluate(app, ["evaluate", str(labels), str(labels), "--out", str(job.folder.plan)]).exception
    assert isinstance(error, AutosegError)
    assert error.codes == ("scores.not_free",)
    assert job.folder.plan.read_bytes() == plan
    assert (job.folder.predictions / "summary.json").is_file()


def test_scores_are_refused_a_folder_as_their_place_before_anything_is_scored(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path), str(tmp_path), "--out", "."])
    assert isinstance(done.exception, AutosegError)
    assert done.exception.issues[0].where == "." or str(done.exception).startswith(". ")


def test_preprocessed_data_is_not_put_into_the_dataset(tmp_path: Path) -> None:
    dataset = make_phantom(tmp_path)
    with pytest.raises(AutosegError) as caught:
        begin(dataset, tmp_path / "run", {"work": dataset})
    assert caught.value.codes == ("run.folder_not_free",)
    assert caught.value.issues[0].fix.endswith("--work")


def test_no_line_of_a_signal_handler_is_lost_from_the_log(tmp_path: Path) -> None:
    """Ctrl-C is told by its handler, whatever line is being written when it comes."""
    start_log(RunFolder(tmp_path))
    handled, written = [], 0

    def handle(number: int, _: object) -> None:
        logger.debug("interrupted")
        handled.append(number)

    def interrupt() -> None:
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.001)

    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Thread(target=interrupt)
    sender.start()
    while sender.is_alive():
        logger.debug("a line")
        written += 1
    sender.join()
    signal.signal(signal.SIGUSR1, before)
    text = (tmp_path / "log.txt").read_text()
    assert (text.count("interrupted"), text.count("a line")) == (len(handled), written)
    assert handled
