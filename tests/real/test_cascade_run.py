"""A cascade on real hippocampus volumes, planned for so little memory that a patch sees too little: a few steps of each stage."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import CPU, CPU_WORDS, Job, begin, said

from autoseg import api
from autoseg.evaluation.selection import Selection
from autoseg.imaging.readers import read_label_map
from autoseg.inference.member_output import How, run_member
from autoseg.inference.model import Member, final_weights, keep_model, load_network, open_model
from autoseg.inference.predictor import Predictor, StoredImage
from autoseg.issues import AutosegError
from autoseg.networks.weights import read_key
from autoseg.pipeline import run_stages
from autoseg.preprocessing.prepare import open_previous
from autoseg.preprocessing.store import open_case
from autoseg.run_folder import RunFolder
from autoseg.stages.run import Run
from autoseg.stages.schedule import Prepared, read_prepared
from autoseg.stages.train import fold_inputs, previous_labels, with_stages_before
from autoseg.storage.atomic import load_document, save_document
from planners import Conditions, Measurement, Plan, Schedule, budgeted_training

LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
MEMORY_GB = 0.02
"""Patches of 16x24x16 voxels then, of cases of about 36x50x35."""
STEPS = 8
COMPARED = ("*.safetensors", "*.nii.gz", "*.b2nd", "selection.json", "summary.json")


def prepared_of(job: Job) -> Prepared:
    return read_prepared(Run.open(job.root))


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
        trainings=tuple(t.model_copy(update={"steps_per_epoch": 4}) for t in trainings),
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
    job = Job(dataset=dataset, schedule=folder / "schedule.json", root=folder / "run")
    plan = api.plan(dataset, job.root, memory_gb=MEMORY_GB, **CPU).plan
    save_document(job.schedule, make_schedule(plan, (LOW, CASCADE)))
    before = torch.get_num_threads()
    job.call("report", schedule=job.schedule)
    yield job
    torch.set_num_threads(before)


def contents(run: Path) -> dict[str, bytes]:
    files = {path for pattern in COMPARED for path in run.rglob(pattern)}
    name = str(run).encode()
    return {str(path.relative_to(run)): path.read_bytes().replace(name, b"RUN") for path in sorted(files)}


def test_every_candidate_is_cross_validated(job: Job) -> None:
    selection = load_document(Selection, job.folder.selection)
    assert [candidate.name for candidate in selection.candidates[:3]] == [LOW, CASCADE, f"{LOW} + {CASCADE}"]
    assert len(selection.candidates) == 4  # and the best with other weights
    assert len(selection.members) == 1  # four cases are too few for anything else
    assert all(candidate.num_cases == 4 for candidate in selection.candidates)
    assert len(list(job.folder.predictions.glob("*.nii.gz"))) == 1


def test_each_case_is_handed_over_by_the_networks_that_never_saw_it(job: Job) -> None:
    prepared = prepared_of(job)
    low, cascade = (prepared.plan.configuration(name) for name in (LOW, CASCADE))
    training, cpu = prepared.schedule.training(LOW), torch.device("cpu")
    folder = job.folder.next_stage(LOW, CASCADE)
    assert len(list(folder.glob("*.b2nd"))) == 4
    for fold, split in enumerate(prepared.splits.folds):
        for case_id in split.val:
            case, following = (open_case(job.folder.preprocessed(name), case_id) for name in (LOW, "3d_fullres"))
            maps = []
            for each in range(2):
                network = load_network(final_weights(job.folder, LOW, each), low, training, device=cpu)
                member = Member(configuration=low, training=training, networks=(network,))
                image = StoredImage(
                    folder=job.folder.preprocessed(LOW), case_id=case_id, made_from=case.record.made_from
                )
                labels = prepared.plan.labels
                output = run_member(member, image, labels, How(device=cpu))
                maps.append(output.next_stage(following.record.placement, labels))
            stored = open_previous(folder, following)[:]
            np.testing.assert_array_equal(stored, maps[fold])
            assert (maps[0] != maps[1]).any()  # so it would be noticed
    assert cascade.network.num_inputs == 3


def test_prediction_agrees_with_validation(job: Job, tmp_path: Path) -> None:
    """With the networks of one fold alone, a case that it validates gets the very label map of its validation."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(job.root, run.root, ignore=shutil.ignore_patterns("preprocessed"))
    about = open_model(run.root).description
    alone = about.selection.model_copy(update={"members": (CASCADE,), "folds": (0,), "postprocessing": ()})
    keys = {name: [read_key(final_weights(run, name, 0))] for name in (LOW, CASCADE)}
    keep_model(run, about.model_copy(update={"selection": alone}), keys, None)
    prepared = prepared_of(job)
    predictor = Predictor.load(run.root, device="cpu")
    for case_id in prepared.splits.folds[0].val:
        case = next(case for case in prepared.dataset.training if case.case_id == case_id)
        got = predictor.predict_image(case.image_paths)
        validated = read_label_map(job.folder.validation(CASCADE, 0) / f"{case_id}.nii.gz")
        np.testing.assert_array_equal(got.labels, validated.array)


def test_a_second_call_does_nothing_again(job: Job) -> None:
    written = {path: path.stat().st_mtime_ns for path in job.folder.models.rglob("*") if path.is_file()}
    job.call("validate")
    assert {path: path.stat().st_mtime_ns for path in job.folder.models.rglob("*") if path.is_file()} == written


def test_only_what_is_missing_or_stale_is_handed_over_again(job: Job) -> None:
    prepared, folder = prepared_of(job), job.folder.next_stage(LOW, CASCADE)
    lost, damaged, *others = sorted(folder.glob("*.b2nd"))
    before = {path: path.read_bytes() for path in (lost, damaged)}
    times = {path: path.stat().st_mtime_ns for path in others}
    lost.unlink()
    damaged.write_bytes(before[lost] + b"x")
    previous_labels(Run.open(job.root), prepared, prepared.plan.configuration(CASCADE))
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.stat().st_mtime_ns for path in others} == times


def test_all_folds_of_the_first_stage_come_before_one_of_the_second(job: Job) -> None:
    prepared = prepared_of(job)
    low, cascade = (prepared.schedule.training(name) for name in (LOW, CASCADE))
    assert with_stages_before(prepared, [(cascade, 1)]) == [(low, 0), (low, 1), (cascade, 1)]
    assert with_stages_before(prepared, [(low, 1)]) == [(low, 1)]


def test_another_first_stage_makes_the_second_one_stale(job: Job) -> None:
    prepared = prepared_of(job)
    trainings = tuple(
        t.model_copy(update={"num_steps": 17}) if t.configuration == LOW else t for t in prepared.schedule.trainings
    )
    other = replace(prepared, schedule=prepared.schedule.model_copy(update={"trainings": trainings}))
    inputs = [fold_inputs(Run.open(job.root), each, each.schedule.training(CASCADE), 0) for each in (prepared, other)]
    assert {name for name in inputs[0] if inputs[0][name] != inputs[1][name]} == {"previous stage"}


def test_killed_between_the_stages_it_ends_with_the_same_bytes(job: Job, tmp_path: Path) -> None:
    """Killed (-9) when the first label map is handed over, by a process of its own; the same command then goes on."""
    run = tmp_path / "run"
    wishes = ("--schedule", str(job.schedule), "--memory-gb", str(MEMORY_GB))
    call = [sys.executable, "-c", "from autoseg.cli import main; main()", "run", str(job.dataset), "--out", str(run)]
    call += [*wishes, *CPU_WORDS]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    handed, deadline = RunFolder(run).next_stage(LOW, CASCADE), time.monotonic() + 180
    while not list(handed.glob("*.b2nd")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (RunFolder(run).fold(CASCADE, 0) / "final.safetensors").exists()
    replace(job, root=run).call()
    assert contents(run) == contents(job.root)


@pytest.mark.parametrize(
    ("context", "code"),
    [
        ({"configuration": "3d_fullres"}, "schedule.not_trained"),
        ({"configuration": "4d"}, "plan.no_configuration"),
        ({"fold": 7}, "folds.no_such_fold"),
    ],
)
def test_what_cannot_be_trained_is_refused(job: Job, context: dict[str, object], code: str) -> None:
    with pytest.raises(AutosegError) as caught:
        job.call("train", **context)
    assert caught.value.codes == (code,)


def test_a_schedule_without_the_first_stage_is_refused(job: Job, tmp_path: Path) -> None:
    schedule = load_document(Schedule, job.schedule)
    save_document(tmp_path / "half.json", schedule.model_copy(update={"trainings": schedule.trainings[1:]}))
    wishes = {"memory_gb": MEMORY_GB, "schedule": tmp_path / "half.json"}
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(job.dataset, tmp_path / "run", wishes), "schedule")
    assert caught.value.codes == ("schedule.missing_stage",)


def test_folds_that_leave_no_case_out_are_refused(job: Job, tmp_path: Path) -> None:
    folds = [split.model_dump(mode="json") for split in prepared_of(job).splits.folds]
    kept = folds[0]["val"][0]
    folds[0]["val"].remove(kept)
    folds[0]["train"].append(kept)
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    wishes = {"memory_gb": MEMORY_GB, "schedule": job.schedule, "splits": tmp_path / "splits.json"}
    with pytest.raises(AutosegError) as caught:
        run_stages(begin(job.dataset, tmp_path / "run", wishes), "schedule")
    assert caught.value.codes == ("folds.cascade_needs_unseen",)
    assert kept in caught.value.issues[0].message


@pytest.mark.slow
def test_a_cascade_that_is_asked_for_is_added_to_the_schedule(job: Job, tmp_path: Path) -> None:
    """The rule alone chooses full resolution; the budget is spent again on both stages of the cascade."""
    run = tmp_path / "run"
    wishes = {"memory_gb": MEMORY_GB, "budget": "10s", "folds": 2, "anyway": True}
    done = run_stages(begin(job.dataset, run, wishes, fold=0, configuration=CASCADE), "validate")
    assert f"Adding {LOW} and {CASCADE} to the schedule" in said(done)
    schedule = load_document(Schedule, RunFolder(run).schedule)
    assert [training.configuration for training in schedule.trainings] == ["3d_fullres", LOW, CASCADE]
    trained = {
        path.parent.relative_to(run / "models").as_posix() for path in (run / "models").rglob("final.safetensors")
    }
    assert trained == {f"{CASCADE}/fold_0", *(f"{LOW}/fold_{fold}" for fold in range(schedule.num_folds))}
    assert (RunFolder(run).validation(CASCADE, 0) / "summary.json").exists()
