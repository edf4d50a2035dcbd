"""A unit of work is redone only if its inputs changed or its outputs are lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from builders import Listening, make_phantom, said
from made_folds import make_plan

import autoseg
from autoseg.pipeline import DOING, do_work
from autoseg.run_folder import RunFolder
from autoseg.settings import Settings
from autoseg.stages.run import Run, StageRecord
from autoseg.stages.work import FILE_INPUT, Work, changed_inputs, is_edited, read_record
from autoseg.storage.atomic import save_document
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import SilentReporter
from planners import DecisionRecord, LabelClass, Labels, essence, trial_training


def record(reason: str = "because", value: int = 1) -> DecisionRecord:
    return DecisionRecord(rule="r", configuration=None, value=value, reason=reason, source="s")


def test_rewording_a_reason_changes_no_key() -> None:
    assert key_of(record()) == key_of(record(reason="for another reason"))
    assert key_of(record()) != key_of(record(value=2))


def test_a_field_that_older_documents_lack_changes_a_key_only_when_it_is_used() -> None:
    training = trial_training(make_plan().configurations[0], base_features=8, batch_size=2, precision="float32")
    plain = training.model_copy(update={"averaged_share": 0.0})
    assert "averaged_share" not in essence(plain)
    assert essence(training)["averaged_share"] == training.averaged_share > 0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=RunFolder(tmp_path), settings=Settings(dataset=tmp_path), reporter=Listening())


def do(run: Run, budget: str, **inputs: str) -> bool:
    """Whether the work had to be done."""
    output = run.folder.root / "output"
    work = Work(
        name="stage",
        what="the stage",
        inputs=lambda: {"dataset": "same", "budget": budget, **inputs},
        outputs=[output],
        do=lambda: output.write_text(budget) and None,
    )
    return do_work(run, work)


def test_work_is_done_once_for_the_same_inputs(run: Run) -> None:
    assert [do(run, each) for each in "aabb"] == [True, False, True, False]
    assert [do(run, "b", folds="2"), do(run, "b"), do(run, "b")] == [True, True, False]  # what is left out changed, too


def test_changes_are_reported(run: Run) -> None:
    do(run, "a")
    do(run, "b")
    (run.folder.root / "output").unlink()
    assert do(run, "b")
    assert said(run).splitlines() == [
        "Redoing the stage: the budget changed",
        "Redoing the stage: output is missing",
    ]


def test_what_earlier_calls_spent_counts(run: Run) -> None:
    work = Work(name="stage", what="the stage", inputs=dict, outputs=[], do=lambda: 100.0)
    assert do_work(run, work)
    record = read_record(run.folder, "stage")
    assert record is not None
    assert 100.0 < record.seconds < 200.0


def test_only_the_file_is_said_to_change_where_a_schedule_was_given_before(run: Run) -> None:
    measured = {"dataset": "same", "budget": "1h", "seed": "0"}
    given = {"dataset": "same", FILE_INPUT: "key"}
    for before, now in ((measured, given), (given, measured)):
        save_document(run.folder.stage("schedule"), StageRecord(inputs=before, seconds=1.0))
        assert changed_inputs(run.folder, "schedule", now) == (FILE_INPUT,)
        assert changed_inputs(run.folder, "schedule", {**now, "dataset": "other"}) == ("dataset", FILE_INPUT)
    assert changed_inputs(run.folder, "schedule", {**given, "budget": "2h"}) == ("budget",)


def test_a_damaged_record_means_that_the_work_is_redone(run: Run) -> None:
    do(run, "a")
    run.folder.stage("stage").write_text("{")
    assert do(run, "a")


@pytest.mark.parametrize("keeps_record", [False, True])
def test_work_that_failed_is_not_done(run: Run, keeps_record: bool) -> None:
    do(run, "a")
    before = run.folder.stage("stage").read_bytes()
    failing = Work(
        name="stage", what="it", inputs=dict, outputs=[], do=lambda: [][0], keeps_record=keeps_record
    )  # fmt: skip
    with pytest.raises(IndexError):
        do_work(run, failing)
    assert run.folder.stage("stage").is_file() == keeps_record  # kept for an input that comes back
    assert not keeps_record or run.folder.stage("stage").read_bytes() == before
    assert do(run, "a") is not keeps_record


def test_a_document_that_the_user_changed_is_kept_until_it_is_discarded(run: Run) -> None:
    path, own, other = (
        run.folder.root / "labels.json",
        *(Labels(classes=(LabelClass(name=name, values=(1,)),)) for name in "ab"),
    )

    def edited(run: Run, own: Labels | None = None) -> bool:
        return is_edited(run, "labels", path, Labels, own)

    assert not edited(run, own)
    save_document(path, other)
    assert edited(run, own)  # put there to be followed
    assert not edited(run)
    work = Work(
        name="labels",
        what="labels",
        inputs=dict,
        outputs=[path],
        do=lambda: save_document(path, own),
        edited={path: Labels},
    )
    do_work(run, work)
    assert not edited(run)
    path.write_text(path.read_text().replace("\n", "\n\n"))
    assert not edited(run)  # other spaces, same values
    save_document(path, other)
    assert edited(run)
    assert not edited(Run(folder=run.folder, settings=run.settings, replan=True))
    assert do_work(run, work)
    assert not edited(run)


def test_something_is_shown_from_the_start_of_a_call_to_its_end(tmp_path: Path) -> None:
    shown: list[str] = []

    class Showing(SilentReporter):
        @contextmanager
        def phase(self, title: str, at_most_s: float | None = None) -> Iterator[None]:
            shown.append(title)
            yield

    autoseg.fingerprint(make_phantom(tmp_path / "dataset"), tmp_path / "run", reporter=Showing())
    assert shown == ["Starting", DOING["check"], DOING["fingerprint"]]


LOADING = """
import sys
from contextlib import contextmanager
import autoseg
from autoseg.tracking.progress import SilentReporter

class Showing(SilentReporter):
    @contextmanager
    def phase(self, title, at_most_s=None):
        before = set(sys.modules)
        yield
        shown.update(set(sys.modules) - before)

for call, module in ((autoseg.run, "autoseg.stages.together"), (autoseg.predict, "autoseg.stages.predict_images")):
    shown = set()
    try:
        call("nothing", "nowhere", reporter=Showing())
    except autoseg.AutosegError:
        print(module in shown)
"""


def test_something_is_shown_while_torch_is_loaded(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOADING], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr
