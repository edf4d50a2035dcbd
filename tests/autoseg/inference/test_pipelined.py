"""Cases are read, computed and written side by side; what goes wrong with one ends no other, and leaves no claim."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.dataset import DatasetDescription
from autoseg.imaging.image import Geometry
from autoseg.inference.pipelined import side_by_side
from autoseg.inference.predictions import Job, PredictionFolder
from autoseg.inference.predictor import Prediction
from autoseg.issues import AutosegError, Issue
from planners import LabelClass, Labels

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
DATASET = DatasetDescription(
    name="made", root="", layout="nnunet", channels=("CT",), labels=Labels(classes=(LabelClass(name="a", values=(1,)),)),
    file_values=(0, 1), file_ending=".nii.gz", training=(),
)  # fmt: skip


def made(given: str) -> Prediction:
    if given == "bad":
        raise AutosegError(Issue(code="image.channels", where="", message="2 channels", fix="pass one"))
    if given == "broken":
        raise ZeroDivisionError("division by zero")
    return Prediction(labels=np.ones(GRID.shape, np.uint8), probabilities=None, geometry=GRID)


def unreadable() -> str:
    raise ValueError("no such thing")


@pytest.fixture
def sink(tmp_path: Path) -> PredictionFolder:
    return PredictionFolder(folder=tmp_path / "out", dataset=DATASET, made_from="x", say=lambda text: None)


def claims(sink: PredictionFolder) -> list[Path]:
    return [path for path in sink.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("reads_ahead", [True, False])
def test_a_case_that_fails_at_any_step_ends_no_other(sink: PredictionFolder, reads_ahead: bool) -> None:
    jobs = [
        Job(case_id=name, predict=made, prepare=lambda name=name: name) for name in ("a", "bad", "b", "broken", "c")
    ]
    jobs.insert(1, Job(case_id="unread", predict=made, prepare=unreadable))
    blocked = Job(case_id="blocked", predict=made, prepare=lambda: "d")
    jobs.insert(3, blocked)
    sink.begin(jobs)
    (sink.folder / "blocked.nii.gz").mkdir()  # nothing can be written under its name
    done = {job.case_id: outcome for job, outcome in side_by_side(jobs, sink, reads_ahead=reads_ahead)}
    assert [name for name, outcome in done.items() if outcome == "predicted"] == ["a", "b", "c"]
    errors = {name: outcome.codes for name, outcome in done.items() if isinstance(outcome, AutosegError)}
    assert errors.pop("blocked")
    assert errors == {
        "unread": ("predict.failed",),
        "bad": ("image.channels",),
        "broken": ("predict.failed",),
    }
    assert not claims(sink)
    assert [outcome for _, outcome in side_by_side(jobs[:1], sink)] == ["already there"]


def test_the_next_case_is_read_and_the_last_one_written_while_one_is_computed(sink: PredictionFolder) -> None:
    """The second is computed only when the third has been read, which is read only when the first was computed."""
    read = {name: threading.Event() for name in "abcd"}
    computed: list[tuple[str, int]] = []

    def prepare(name: str) -> str:
        read[name].set()
        return name

    def predict(name: str) -> Prediction:
        following = chr(ord(name) + 1)
        assert following not in read or read[following].wait(timeout=60)
        computed.append((name, sum(event.is_set() for event in read.values())))
        return made(name)

    jobs = [Job(case_id=name, predict=predict, prepare=lambda name=name: prepare(name)) for name in "abcd"]
    sink.begin(jobs)
    assert [outcome for _, outcome in side_by_side(jobs, sink)] == ["predicted"] * 4
    assert computed == [("a", 2), ("b", 3), ("c", 4), ("d", 4)]  # one ahead, never two


def test_a_call_that_is_interrupted_leaves_no_claim(sink: PredictionFolder) -> None:
    def predict(given: str) -> Prediction:
        raise KeyboardInterrupt

    jobs = [Job(case_id=name, predict=predict, prepare=lambda: "x") for name in "ab"]
    sink.begin(jobs)
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(jobs, sink))
    assert not claims(sink)
