"""A stage is done again only if what it consumed has changed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from autoseg.pipeline.contents import read_contents, trained_on
from autoseg.pipeline.freshness import digest, open_stage

from autoseg.compute import locks
from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import files_of, read_header, write_label_map
from autoseg.issues import AutosegError
from autoseg.run_folder import RunFolder
from autoseg.storage.locks import hold_lock
from planners import DecisionRecord


def record(reason: str = "because", value: int = 1) -> DecisionRecord:
    return DecisionRecord(rule="r", configuration=None, value=value, reason=reason, source="s")


def test_rewording_a_reason_changes_no_digest() -> None:
    assert digest(record()) == digest(record(reason="for another reason"))
    assert digest(record()) != digest(record(value=2))


def do(run: RunFolder, consumed: str, said: list[str] | None = None) -> bool:
    """Whether the stage had to be done."""
    output = run.root / "output"
    say = (said if said is not None else []).append
    inputs = {"dataset": "same", "budget": consumed}
    with open_stage(run, "stage", inputs, [output], what="the stage", say=say) as to_do:
        if to_do:
            output.write_text(consumed)
        return to_do


def test_a_stage_is_done_once(tmp_path) -> None:
    run = RunFolder(tmp_path)
    assert [do(run, "a"), do(run, "a"), do(run, "b"), do(run, "b")] == [True, False, True, False]


def test_what_changed_is_said(tmp_path) -> None:
    run, said = RunFolder(tmp_path), []
    do(run, "a", said)
    do(run, "b", said)
    (tmp_path / "output").unlink()
    assert do(run, "b", said)
    assert said == ["Doing the stage again: the budget changed", "Doing the stage again: output is gone"]


def test_a_wish_that_is_dropped_is_a_change(tmp_path) -> None:
    run = RunFolder(tmp_path)
    for consumed, to_be_done in (({"a": "1", "folds": "2"}, True), ({"a": "1"}, True), ({"a": "1"}, False)):
        with open_stage(run, "stage", consumed, [], what="it", say=print) as to_do:
            assert to_do is to_be_done


def test_a_damaged_record_means_that_the_stage_is_done_again(tmp_path) -> None:
    run = RunFolder(tmp_path)
    do(run, "a")
    run.stage("stage").write_text("{")
    assert do(run, "a")


def test_a_stage_that_failed_is_not_done(tmp_path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="broken"), open_stage(run, "stage", {}, [], what="it", say=print):
        raise ValueError("broken")
    assert do(run, "a")


def made_dataset(folder: Path) -> DatasetDescription:
    make_phantom_dataset(folder, num_training=2, num_test=0, seed=0)
    return discover_dataset(folder)


def test_files_count_by_their_content(tmp_path) -> None:
    dataset, run = made_dataset(tmp_path / "data"), RunFolder(tmp_path / "run")
    before = read_contents(run, dataset, num_workers=1).content
    file = dataset.training[0].image_paths[0]
    os.utime(file, ns=(1, 1))
    assert read_contents(run, dataset, num_workers=1).content == before
    file.write_bytes(file.read_bytes() + b"x")
    assert read_contents(run, dataset, num_workers=1).content != before


def test_trainings_depend_on_labelled_cases_wherever_they_lie(tmp_path) -> None:
    make_phantom_dataset(tmp_path / "here", num_training=2, num_test=1, seed=0)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    next((tmp_path / "there" / "imagesTs").iterdir()).unlink()
    found = [
        read_contents(RunFolder(tmp_path / "run"), discover_dataset(tmp_path / name), num_workers=1)
        for name in ("here", "there")
    ]
    assert trained_on(found[0]) == trained_on(found[1])
    label = Path(found[1].training[0].label_files[0])
    label.write_bytes(Path(found[1].training[1].label_files[0]).read_bytes())
    assert trained_on(read_contents(RunFolder(tmp_path / "run"), found[1], num_workers=1)) != trained_on(found[0])


def test_voxels_beside_their_header_count(tmp_path) -> None:
    data, grid = tmp_path / "data", Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
        write_label_map(data / folder / "a.mhd", np.resize([0, 1], grid.shape), grid)
    run, dataset = RunFolder(tmp_path), discover_dataset(data)
    before = read_contents(run, dataset, num_workers=1).content
    voxels = next(file for file in (data / "labelsTr").iterdir() if file.suffix != ".mhd")
    write_label_map(data / "labelsTr" / "a.mhd", np.resize([1, 0], grid.shape), grid)
    os.utime(voxels, ns=(1, 1))
    assert read_contents(run, dataset, num_workers=1).content != before


@pytest.mark.parametrize("beside", [".DS_Store", "Thumbs.db", "notes.xml", "adc.nii.gz"])
def test_what_lies_beside_slices_changes_nothing(tmp_path: Path, real_data: Path, beside: str) -> None:
    slices = tmp_path / "data" / "scan"
    shutil.copytree(real_data / "dicom_series" / "mr_prostatex_adc", slices)
    geometry = read_header(slices).geometry
    write_label_map(tmp_path / "data" / "seg.nii.gz", np.resize([0, 1], geometry.shape), geometry)
    (tmp_path / "data" / "cases.csv").write_text("image,label\nscan,seg.nii.gz\n")
    run, dataset = RunFolder(tmp_path), discover_dataset(tmp_path / "data")
    before = read_contents(run, dataset, num_workers=1)
    (slices / beside).write_bytes(bytes(300))
    assert read_contents(run, dataset, num_workers=1) == before
    files_of(slices)[0].unlink()
    assert read_contents(run, dataset, num_workers=1).content != before.content


def test_unchanged_files_are_not_read_again(tmp_path) -> None:
    dataset, run = made_dataset(tmp_path / "data"), RunFolder(tmp_path / "run")
    before = read_contents(run, dataset, num_workers=1).content
    for case in dataset.training:
        for path in case.image_paths:
            status = path.stat()
            path.write_bytes(bytes(status.st_size))  # other content, but size and time say that nothing happened
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_contents(run, dataset, num_workers=1).content == before


def test_a_lock_names_its_owner_and_ends_with_it(tmp_path) -> None:
    path = tmp_path / "locks" / "x.lock"
    call = (
        "import sys, time, pathlib; from autoseg.storage.locks import hold_lock\n"
        f"with hold_lock(pathlib.Path({str(path)!r}), what='it'):\n    print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(AutosegError, match=rf"the fold is being worked on by process {owner.pid} on"),
            hold_lock(path, what="the fold"),
        ):
            pass
    finally:
        owner.kill()
        owner.communicate()
    with hold_lock(path, what="the fold"):
        assert Path(path).exists()


FORKING_OWNER = """
import os, pathlib, sys, time
from autoseg.storage.locks import hold_lock
with hold_lock(pathlib.Path(sys.argv[1]), what="it"):
    if os.fork() == 0:
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def kill_owner(path: Path, *, outlived_s: float) -> int:
    """Kill the owner of a lock, which a process that it started has for so much longer; returns its pid."""
    command = [sys.executable, "-c", FORKING_OWNER, str(path), str(outlived_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        owner.kill()
        return owner.pid


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_that_outlives_its_owner_for_a_moment_is_taken_without_a_word(tmp_path: Path, wait: bool) -> None:
    said: list[str] = []
    kill_owner(tmp_path / "x.lock", outlived_s=2.0)
    with hold_lock(tmp_path / "x.lock", what="the fold", wait=wait, say=said.append):
        assert said == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_lock_that_outlives_its_owner_for_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "OUTLIVED_S", 0.3)
    pid = kill_owner(tmp_path / "x.lock", outlived_s=3.0)
    with (
        pytest.raises(AutosegError, match=f"worked on by process {pid} on"),
        hold_lock(tmp_path / "x.lock", what="the fold"),
    ):
        pass


DISK_FULL = """
import pathlib, resource, signal, sys
from autoseg.storage.locks import hold_lock
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
with hold_lock(pathlib.Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file size to be had")
def test_a_lock_is_held_on_a_full_disk_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path / "x.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with (
            pytest.raises(AutosegError, match="worked on by another process"),
            hold_lock(tmp_path / "x.lock", what="the fold"),
        ):
            pass
        owner.communicate("")
    assert owner.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_a_file_system_without_locks_is_told_from_a_lock_that_is_held(tmp_path, monkeypatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "fcntl", SimpleNamespace(flock=refuse, LOCK_EX=2, LOCK_NB=4))
    with (
        pytest.raises(
            AutosegError, match=r"x\.lock cannot be locked \(No locks available\): its file system has no locks"
        ),
        hold_lock(tmp_path / "x.lock", what="it", wait=True),
    ):
        pass
