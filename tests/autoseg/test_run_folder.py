"""Files appear whole or not at all, and documents return exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.issues import AutosegError, Issue
from autoseg.storage.atomic import atomic_write, load_document, save_document
from autoseg.wording import format_duration
from planners import LabelClass, Labels

LABELS = Labels(classes=(LabelClass(name="a", values=(1,)),))


def test_an_interrupted_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"new and half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_place_that_cannot_be_written_is_named_with_a_fix_for_every_command(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AutosegError, match=r"file/x: could not be written.*another place") as caught,
        atomic_write(tmp_path / "file" / "x"),
    ):
        pass
    assert "--" not in str(caught.value), "predict and bundle take the place as an argument, and only runs have --work"


@pytest.mark.parametrize("path", [".", "", "..", "/", "folder"])
def test_no_file_is_put_in_the_place_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(AutosegError, match=r"is a folder.*pass a file name"), atomic_write(Path(path)):
        pass
    assert [found.name for found in tmp_path.rglob("*")] == ["here", "folder"]


def test_a_full_disk_is_reported(tmp_path) -> None:
    with pytest.raises(AutosegError, match="No space left"), atomic_write(tmp_path / "x") as file:
        raise OSError(28, "No space left on device")
    assert file.closed
    assert not list(tmp_path.iterdir())


def test_documents_return_exactly(tmp_path) -> None:
    save_document(tmp_path / "d.json", LABELS)
    assert load_document(Labels, tmp_path / "d.json") == LABELS


def test_every_fault_of_a_document_is_reported_with_its_place(tmp_path) -> None:
    (tmp_path / "d.json").write_text('{"classes": [{"name": 3, "values": [0]}], "colour": "red"}')
    with pytest.raises(AutosegError) as caught:
        load_document(Labels, tmp_path / "d.json")
    text = str(caught.value)
    assert "classes.0.name" in text
    assert "classes.0.values.0" in text
    assert "colour" in text


def test_a_missing_document_says_what_writes_it(tmp_path) -> None:
    with pytest.raises(AutosegError, match="earlier stage"):
        load_document(Labels, tmp_path / "absent.json")


def test_issues_are_listed_one_per_line() -> None:
    error = AutosegError(
        *[
            Issue(code="test.issue", where="a", message="b", fix="c"),
            Issue(code="test.issue", where="d", message="e", fix="f"),
        ],
        headline=("two faults"),
    )
    assert str(error).splitlines() == ["two faults", "  - a: b; c", "  - d: e; f"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7380, "2 h 03 min"), (-5, "0 s")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
