"""What a killed process leaves is removed, what a living one writes is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoseg.storage import atomic as half_written
from autoseg.storage.atomic import atomic_write, remove_orphans, temporary_folder, write_together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
WRITER = """
import sys, time
from pathlib import Path
from autoseg.storage.atomic import temporary_folder
from autoseg.storage.atomic import atomic_write
target = Path(sys.argv[1])
with atomic_write(target / "deep" / "a.json") as file, temporary_folder(target / "b.nii.gz") as folder:
    file.write(b"half")
    file.flush()
    (folder / "b.nii.gz").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_only_what_the_dead_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_written, "SETTLED_S", 0.0)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        written = sorted(tmp_path.rglob("*.part"))
        assert len(written) == 2
        assert remove_orphans(tmp_path) == []
        assert sorted(tmp_path.rglob("*.part")) == written
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    assert sorted(remove_orphans(tmp_path)) == written
    assert [path.name for path in tmp_path.rglob("*")] == ["deep"]


def test_files_of_one_folder_are_written_together(tmp_path: Path) -> None:
    contents = {tmp_path / "new" / name: name.encode() for name in ("labels.b2nd", "image.b2nd", "case.json")}
    write_together(contents)
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == contents


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a list of open files")
def test_a_folder_is_not_held_open_for_ever(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with temporary_folder(tmp_path / "x"):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_that_were_just_made_are_left_alone(tmp_path: Path) -> None:
    """They may lie between their creation and their lock."""
    orphan = tmp_path / ".x.json.00000000.part"
    orphan.write_bytes(b"")
    assert remove_orphans(tmp_path) == []
    then = time.time() - 5
    os.utime(orphan, (then, then))
    assert remove_orphans(tmp_path) == [orphan]


def test_finished_files_are_no_orphans(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "whole") as file:
        file.write(b"whole")
    with temporary_folder(tmp_path / "y") as folder:
        assert folder.is_dir()
    assert remove_orphans(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_what_others_named_in_their_way_is_left_alone(tmp_path: Path) -> None:
    theirs, ours = (
        [tmp_path / name for name in (".mozilla.part", ".a.0123456z.part")],
        tmp_path / "deep" / ".a.json.0123abcd.part",
    )
    for path in (*theirs, ours):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (1, 1))
    assert remove_orphans(tmp_path, below=False) == []
    assert remove_orphans(tmp_path) == [ours]
    assert all(path.exists() for path in theirs)


def orphan_in(folder: Path) -> Path:
    """A file in ``folder`` that no process writes any more."""
    folder.mkdir()
    path = folder / ".x.json.0123abcd.part"
    path.write_bytes(b"")
    os.utime(path, (1, 1))
    return path


def test_folders_that_vanish_on_the_way_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others finish what they write at any moment, and remove the folder that it lay in."""
    orphans = [orphan_in(tmp_path / name) for name in "ab"]
    is_orphan = half_written._is_orphan

    def look_while_the_other_folder_vanishes(path: Path) -> bool:
        shutil.rmtree(next(orphan.parent for orphan in orphans if orphan != path))
        return is_orphan(path)

    monkeypatch.setattr(half_written, "_is_orphan", look_while_the_other_folder_vanishes)
    assert len(remove_orphans(tmp_path)) == 1
    assert not any(orphan.exists() for orphan in orphans)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_cannot_be_removed_stays(tmp_path: Path) -> None:
    orphan = orphan_in(tmp_path / "read_only")
    orphan.parent.chmod(0o500)
    remove_orphans(tmp_path)
    assert orphan.exists()
