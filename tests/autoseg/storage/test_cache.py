"""Results of a case from before a kill are used again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.data.checks import case as case_checks
from autoseg.data.checks import check_dataset
from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery import discover_dataset
from autoseg.data.phantom import make_phantom_dataset
from autoseg.evaluation.scoring import score_cases
from autoseg.imaging.readers import file_states
from autoseg.issues import AutosegError, Issue
from autoseg.preprocessing import fingerprint as fingerprinting
from autoseg.preprocessing.fingerprint import take_fingerprint
from autoseg.storage.cache import KEPT, Cached
from autoseg.tracking.progress import SilentReporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    values: Annotated[NDArray[np.float16], KEPT]
    nothing: Annotated[NDArray[np.int8] | None, KEPT] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    counts: dict[int, int]
    number: float
    digest: bytes
    finding: Issue


def make(path: Path, *, number: float = 0.1 + 0.2) -> Outer:
    with open(path.parent / "calls", "a") as file:
        file.write(".")
    return Outer(
        inner=(
            Inner(values=np.array([[1, np.nan], [-np.inf, 0.1]], np.float16)),
            Inner(values=np.zeros((0, 3), np.float16)),
        ),
        counts={-1: 2, 7: 3},
        number=number,
        digest=b"\xff\x00",
        finding=Issue(code="test.issue", severity="note", case="ä", where=str(path), message=path.read_text(), fix="–"),
    )


def remember(folder: Path, **settings: float) -> Cached[Path, Outer]:
    return Cached(
        function=partial(make, **settings), kind=Outer, state=lambda path: file_states([path]), folder=folder / "kept"
    )


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text())


@pytest.fixture
def item(tmp_path: Path) -> Path:
    (tmp_path / "case").write_text("one")
    return tmp_path / "case"


def test_results_come_back_as_they_were_and_are_made_once(item: Path, tmp_path: Path) -> None:
    first, again = remember(tmp_path)(item), remember(tmp_path)(item)
    assert calls(tmp_path) == 1
    np.testing.assert_array_equal(again.inner[0].values, first.inner[0].values)
    assert again.inner[0].values.dtype == np.float16
    assert again.inner[0].values.flags.writeable
    assert again.inner[1].values.shape == (0, 3)
    assert (again.inner[0].nothing, again.counts, again.number, again.digest, again.finding) == (
        None, first.counts, first.number, first.digest, first.finding,
    )  # fmt: skip
    assert np.isnan(remember(tmp_path, number=float("nan"))(item).number)
    assert np.isnan(remember(tmp_path, number=float("nan"))(item).number)
    assert calls(tmp_path) == 2


@pytest.mark.parametrize("change", [
    lambda item, kept: item.write_text("two"),
    lambda item, kept: os.utime(item, ns=(1, 1)),
    lambda item, kept: kept.write_bytes(kept.read_bytes()[:-9]),
    lambda item, kept: kept.write_bytes(kept.read_bytes().replace(b"<f2", b"|O8")),
    lambda item, kept: kept.write_bytes(b"[]"),
])  # fmt: skip
def test_changed_files_and_damaged_results_are_redone(
    item: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    remember(tmp_path)(item)
    (kept,) = (tmp_path / "kept").iterdir()
    change(item, kept)
    assert remember(tmp_path)(item).finding.message == item.read_text()
    assert calls(tmp_path) == 2


def test_other_settings_are_another_result_and_a_full_disk_loses_none(item: Path, tmp_path: Path) -> None:
    assert [remember(tmp_path, number=number)(item).number for number in (1.0, 2.0)] == [1.0, 2.0]
    (tmp_path / "full").write_text("a file where the folder should be")
    assert Cached(function=make, kind=Outer, state=str, folder=tmp_path / "full" / "kept")(item).number == 0.1 + 0.2


def test_quick_results_are_not_kept(item: Path, tmp_path: Path) -> None:
    wanted = replace(remember(tmp_path), worth_keeping=lambda made: made.finding.message == "one")
    for text, expected in (("bad", 1), ("bad", 2), ("one", 3), ("one", 3)):  # of one size and time, so of one state
        item.write_text(text)
        os.utime(item, ns=(1, 1))
        assert wanted(item).finding.message == text
        assert calls(tmp_path) == expected


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetDescription:
    folder = tmp_path_factory.mktemp("data") / "Task99_Phantom"
    make_phantom_dataset(folder, num_training=5, num_test=1, seed=1)
    return discover_dataset(folder, reporter=SilentReporter())


def killed(*_: object, **__: object) -> None:
    raise AssertionError("a case was looked at again")


def test_check_fingerprint_and_scores_resume_after_a_kill(
    dataset: DatasetDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = SilentReporter()
    paths = [(case.case_id, Path(case.label_files[0])) for case in dataset.training]
    findings = check_dataset(dataset, num_workers=1, reporter=quiet)
    fingerprint = take_fingerprint(dataset, num_workers=1, reporter=quiet)
    scores = score_cases(dataset, paths)
    assert check_dataset(dataset, num_workers=1, reporter=quiet, keep_in=tmp_path / "check") == findings
    assert take_fingerprint(dataset, num_workers=2, reporter=quiet, keep_in=tmp_path / "print") == fingerprint
    assert score_cases(dataset, paths, keep_in=tmp_path / "scores") == scores
    for room in (case_checks, fingerprinting):  # from here on no voxel of an image can be read
        monkeypatch.setattr(room, "read_image", killed)
    monkeypatch.setattr("autoseg.evaluation.scoring.read_label_map", killed)
    assert check_dataset(dataset, num_workers=1, reporter=quiet, keep_in=tmp_path / "check") == findings
    assert take_fingerprint(dataset, num_workers=1, reporter=quiet, keep_in=tmp_path / "print") == fingerprint
    assert score_cases(dataset, paths, keep_in=tmp_path / "scores") == scores
    with pytest.raises(AutosegError, match="looked at again"):
        score_cases(dataset, paths)


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_file_that_could_not_be_read_is_read_again_though_it_looks_unchanged(
    dataset: DatasetDescription, tmp_path: Path, part: str, num_workers: int
) -> None:
    """As after a lack of memory, or of a network drive: size and time are as before, but now the file can be read."""
    folder = tmp_path / "data"
    shutil.copytree(dataset.root, folder)
    case = discover_dataset(folder).training[2]
    path = Path(case.images[0] if part == "imagesTr" else case.label_files[0])
    content, status = path.read_bytes(), path.stat()

    def found(content: bytes) -> tuple[Issue, ...]:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return check_dataset(
            discover_dataset(folder), num_workers=num_workers, reporter=SilentReporter(), keep_in=tmp_path / "kept"
        )

    error = next(finding for finding in found(content[:-100] + bytes(100)) if finding.severity == "error")
    assert error.where == str(path)
    assert error.code.startswith("reader.")
    assert not [finding for finding in found(content) if finding.severity == "error"]
