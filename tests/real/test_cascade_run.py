"""A cascade on real hippocampus volumes, planned for so little memory that a patch sees too little: a few steps of each stage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autoseg.pipeline.measured_schedule import rule_configurations
from autoseg.pipeline.options import Options
from autoseg.pipeline.run import run_all
from autoseg.pipeline.scheduling import Prepared, schedule_stage
from autoseg.pipeline.stages import all_configurations, plan_stage
from autoseg.pipeline.training import fold_inputs, previous_labels, train_stage, with_stages_before

from autoseg.evaluation.selection import Selection
from autoseg.imaging.readers import read_label_map
from autoseg.inference.export import labels_for_next_stage
from autoseg.inference.model import Member, load_network
from autoseg.inference.predictor import Predictor, member_logits
from autoseg.issues import AutosegError
from autoseg.preprocessing.cascade import open_previous
from autoseg.preprocessing.store import open_case
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import load_document, save_document
from autoseg.tracking.progress import SilentReporter
from planners import Conditions, Measurement, Plan, Schedule, budgeted_training

LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
MEMORY_GB = 0.02
"""Patches of 16x24x16 voxels then, of cases of about 36x50x35."""
STEPS = 16
COMPARED = ("*.safetensors", "*.nii.gz", "*.b2nd", "selection.json", "summary.json")


@dataclass(frozen=True)
class Job:
    """A finished run and what it came from."""

    dataset: Path
    schedule: Path
    options: Options

    @property
    def run(self) -> RunFolder:
        return self.options.run

    def prepared(self) -> Prepared:
        return schedule_stage(self.options)


def make_options(dataset: Path, out: Path, schedule: Path | None = None) -> Options:
    return Options(
        dataset=dataset,
        run=RunFolder(out),
        device_name="cpu",
        num_threads=1,
        num_workers=1,
        reporter=SilentReporter(),
        schedule=schedule,
        memory_gb=MEMORY_GB,
    )


def make_schedule(plan: Plan, names: tuple[str, ...]) -> Schedule:
    measured = {
        name: Measurement(
            configuration=name, base_features=8, batch_size=2, precision="float32", step_s=0.1, case_s=0.1
        )
        for name in names
    }
    conditions = Conditions(
        device="cpu",
        num_threads=1,
        budget_s=60.0,
        elapsed_s=0.0,
        num_folds=2,
        num_training_cases=4,
        num_test_cases=1,
        cross_validated=True,
        measurements=tuple(measured.values()),
        seed=0,
    )
    trainings = [
        budgeted_training(plan.configuration(name), each, STEPS, mirroring=False) for name, each in measured.items()
    ]
    return Schedule(
        conditions=conditions,
        num_folds=2,
        trainings=tuple(t.model_copy(update={"steps_per_epoch": 8}) for t in trainings),
        expected_training_s=1.0,
        expected_validation_s=1.0,
        expected_rest_s=1.0,
        decisions=(),
    )


@pytest.fixture(scope="module")
def job(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Four cases and a test image; both stages trained on two folds, one thread."""
    folder = tmp_path_factory.mktemp("cascade")
    source, dataset = real_data / "Task04_Hippocampus", folder / "Task04_Hippocampus"
    names = [path.name for path in sorted((source / "imagesTr").glob("hippocampus_*.nii.gz"))[:5]]
    for part, chosen in (("imagesTr", names[:4]), ("labelsTr", names[:4]), ("imagesTs", names[4:])):
        (dataset / part).mkdir(parents=True)
        for name in chosen:
            shutil.copy(source / part.replace("Ts", "Tr") / name, dataset / part / name)
    _, plan = plan_stage(make_options(dataset, folder / "run"))
    schedule = folder / "schedule.json"
    save_document(schedule, make_schedule(plan, (LOW, CASCADE)))
    options = make_options(dataset, folder / "run", schedule)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run_all(options)
    yield Job(dataset, schedule, options)
    torch.set_num_threads(before)


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.rglob(pattern)}
    name = str(run).encode()
    return {str(path.relative_to(run)): path.read_bytes().replace(name, b"RUN") for path in sorted(files)}


def test_every_candidate_is_cross_validated(job: Job) -> None:
    selection = load_document(Selection, job.run.selection)
    assert {candidate.name for candidate in selection.candidates} == {LOW, CASCADE, f"{LOW} + {CASCADE}"}
    assert all(candidate.num_cases == 4 for candidate in selection.candidates)
    assert len(list(job.run.predictions.glob("*.nii.gz"))) == 1


def test_each_case_is_handed_over_by_the_networks_that_never_saw_it(job: Job) -> None:
    prepared = job.prepared()
    low, cascade = (prepared.plan.configuration(name) for name in (LOW, CASCADE))
    training, cpu = prepared.schedule.training(LOW), torch.device("cpu")
    folder = job.run.next_stage(LOW, CASCADE)
    assert len(list(folder.glob("*.b2nd"))) == 4
    for fold, split in enumerate(prepared.splits.folds):
        for case_id in split.val:
            case, following = (open_case(job.run.preprocessed(name), case_id) for name in (LOW, "3d_fullres"))
            maps = []
            for each in range(2):
                network = load_network(job.run.fold(LOW, each) / "final.safetensors", low, training, device=cpu)
                member = Member(configuration=low, training=training, networks=(network,))
                logits = member_logits(member, case.image[:], mirror_axes=(), device=cpu)
                labels = prepared.plan.labels
                maps.append(labels_for_next_stage(logits, case.placement, following.placement, low, labels))
            stored = open_previous(folder, following)[:]
            np.testing.assert_array_equal(stored, maps[fold])
            assert (maps[0] != maps[1]).any()  # so it would be noticed
    assert cascade.network.num_inputs == 3


def test_prediction_goes_the_way_of_validation(job: Job, tmp_path: Path) -> None:
    """With the networks of one fold alone, a case that it validates gets the very label map of its validation."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(job.run.root, run.root, ignore=shutil.ignore_patterns("preprocessed"))
    selection = load_document(Selection, run.selection)
    alone = {"members": (CASCADE,), "folds": (0,), "postprocessing": (), "made_from": None}
    save_document(run.selection, selection.model_copy(update=alone))
    prepared = job.prepared()
    predictor = Predictor.load(run.root, device="cpu")
    for case_id in prepared.splits.folds[0].val:
        case = next(case for case in prepared.dataset.training if case.case_id == case_id)
        got = predictor.predict_files(case.image_paths)
        validated = read_label_map(job.run.validation(CASCADE, 0) / f"{case_id}.nii.gz")
        np.testing.assert_array_equal(got.labels, validated.array)


def test_a_second_call_does_nothing_again(job: Job) -> None:
    written = {path: path.stat().st_mtime_ns for path in job.run.models.rglob("*") if path.is_file()}
    train_stage(job.options)
    assert {path: path.stat().st_mtime_ns for path in job.run.models.rglob("*") if path.is_file()} == written


def test_only_what_is_missing_or_stale_is_handed_over_again(job: Job) -> None:
    prepared, folder = job.prepared(), job.run.next_stage(LOW, CASCADE)
    lost, damaged, *others = sorted(folder.glob("*.b2nd"))
    before = {path: path.read_bytes() for path in (lost, damaged)}
    times = {path: path.stat().st_mtime_ns for path in others}
    lost.unlink()
    damaged.write_bytes(before[lost] + b"x")
    previous_labels(job.options, prepared, prepared.plan.configuration(CASCADE))
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in others} == times


def test_all_folds_of_the_first_stage_come_before_one_of_the_second(job: Job) -> None:
    prepared = job.prepared()
    low, cascade = (prepared.schedule.training(name) for name in (LOW, CASCADE))
    assert with_stages_before(prepared, [(cascade, 1)]) == [(low, 0), (low, 1), (cascade, 1)]
    assert with_stages_before(prepared, [(low, 1)]) == [(low, 1)]


def test_a_gpu_without_a_budget_trains_the_cascade_and_its_data_are_prepared_for_any_machine(job: Job) -> None:
    dataset, plan = job.prepared().dataset, job.prepared().plan
    gpu = replace(job.options, device_name="cuda:0")
    assert [c.name for c in rule_configurations(gpu, plan)] == ["3d_fullres", "2d", LOW, CASCADE]
    for other in (job.options, replace(gpu, budget_s=3600.0)):
        assert not {LOW, CASCADE} & {c.name for c in rule_configurations(other, plan)}
    assert {c.data for c in all_configurations(dataset, plan)} == {"3d_fullres", "2d", LOW}


def test_another_first_stage_makes_the_second_one_stale(job: Job) -> None:
    prepared = job.prepared()
    trainings = tuple(
        t.model_copy(update={"num_steps": 17}) if t.configuration == LOW else t for t in prepared.schedule.trainings
    )
    other = replace(prepared, schedule=prepared.schedule.model_copy(update={"trainings": trainings}))
    inputs = [fold_inputs(job.options, each, each.schedule.training(CASCADE), 0) for each in (prepared, other)]
    assert {name for name in inputs[0] if inputs[0][name] != inputs[1][name]} == {"previous stage"}


def test_killed_between_the_stages_it_ends_with_the_same_bytes(job: Job, tmp_path: Path) -> None:
    """Killed (-9) when the first label map is handed over, by a process of its own; the same command then goes on."""
    run = tmp_path / "run"
    call = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "run",
        str(job.dataset),
        "--out",
        str(run),
        "--schedule",
        str(job.schedule),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "1",
        "--memory-gb",
        str(MEMORY_GB),
    ]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    handed, deadline = RunFolder(run).next_stage(LOW, CASCADE), time.monotonic() + 180
    while not list(handed.glob("*.b2nd")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (RunFolder(run).fold(CASCADE, 0) / "final.safetensors").exists()
    run_all(make_options(job.dataset, run, job.schedule))
    assert contents(run) == contents(job.run.root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configuration": "3d_fullres"}, "does not train 3d_fullres; it trains 3d_lowres, 3d_cascade_fullres"),
        ({"configuration": "4d"}, "the plan has no configuration '4d'; it has 2d, 3d_lowres"),
        ({"fold": 7}, "there is no fold 7"),
    ],
)
def test_what_cannot_be_trained_is_said(job: Job, change: dict[str, object], message: str) -> None:
    with pytest.raises(AutosegError, match=message):
        train_stage(job.options, **change)


def test_a_schedule_without_the_first_stage_is_refused(job: Job, tmp_path: Path) -> None:
    schedule = load_document(Schedule, job.schedule)
    save_document(tmp_path / "half.json", schedule.model_copy(update={"trainings": schedule.trainings[1:]}))
    with pytest.raises(
        AutosegError, match="trains 3d_cascade_fullres without 3d_lowres, from whose predictions it starts"
    ):
        schedule_stage(make_options(job.dataset, tmp_path / "run", tmp_path / "half.json"))


def test_folds_that_leave_no_case_out_are_refused(job: Job, tmp_path: Path) -> None:
    folds = [split.model_dump(mode="json") for split in job.prepared().splits.folds]
    kept = folds[0]["val"][0]
    folds[0]["val"].remove(kept)
    folds[0]["train"].append(kept)
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    options = replace(make_options(job.dataset, tmp_path / "run", job.schedule), splits=tmp_path / "splits.json")
    with pytest.raises(AutosegError, match=f"every fold trains on {kept}; give folds that validate each case once"):
        schedule_stage(options)


@pytest.mark.slow
def test_a_cascade_that_is_asked_for_is_added_to_the_schedule(job: Job, tmp_path: Path) -> None:
    """By the command: the rule alone chooses full resolution; the budget is spent again on both stages of the cascade."""
    run = tmp_path / "run"
    call = [
        sys.executable,
        "-c",
        "from autoseg.cli import main; main()",
        "train",
        str(job.dataset),
        "--out",
        str(run),
        "--device",
        "cpu",
        "--threads",
        "1",
        "--workers",
        "1",
        "--memory-gb",
        str(MEMORY_GB),
        "--budget",
        "10s",
        "--fold",
        "0",
        "--configuration",
        CASCADE,
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Adding {LOW} and {CASCADE} to the schedule" in done.stderr
    schedule = load_document(Schedule, RunFolder(run).schedule)
    assert [training.configuration for training in schedule.trainings] == ["3d_fullres", LOW, CASCADE]
    trained = {
        path.parent.relative_to(run / "models").as_posix() for path in (run / "models").rglob("final.safetensors")
    }
    assert trained == {f"{CASCADE}/fold_0", *(f"{LOW}/fold_{fold}" for fold in range(schedule.num_folds))}
    assert (RunFolder(run).validation(CASCADE, 0) / "summary.json").exists()
