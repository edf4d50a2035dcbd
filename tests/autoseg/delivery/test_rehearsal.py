"""A rehearsal runs containers as a platform does, and tells rightly what each of them does wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faulty_container import make_faulty

from autoseg import api
from autoseg.delivery.container.boxes import Limits, Meter, namespaces_fault
from autoseg.delivery.container.context import read_program
from autoseg.delivery.container.docker import has_docker
from autoseg.delivery.container.rehearse import Wishes, limits_of, parse_size
from autoseg.delivery.container.verdict import CaseReport, Rehearsal, advice, busy_machine, judge
from autoseg.issues import AutosegError
from datasets_spec.container import load_container_tables

NO_NAMESPACES = "no namespaces: this machine lets nobody make them"
"""`conftest.py` counts the tests that this skips."""
TABLE = Path("datasets_spec/containers/isles26.toml")
ROOT = Path(__file__).parents[3]
METHODS = pytest.mark.parametrize("method", ["exec", "invoke"])


@pytest.fixture(scope="module")
def context(finished, tmp_path_factory) -> Path:
    """A build context like that of ISLES'26; not to be changed."""
    folder = tmp_path_factory.mktemp("containers")
    text = (ROOT / TABLE).read_text().replace("values = [1] }", "values = [1], remap = { 2 = 1 } }")
    (folder / "isles.toml").write_text(text)
    api.container(finished.root, folder / "made", interface=str(folder / "isles.toml"))
    return folder / "made"


@pytest.fixture(scope="module")
def one_case(finished, tmp_path_factory) -> Path:
    """A dataset of one labelled case."""
    folder = tmp_path_factory.mktemp("cases")
    for kind, here in (("images", "imagesTr"), ("labels", "labelsTr")):
        (folder / kind).mkdir()
        shutil.copy(finished.dataset / here / "phantom_001.nii.gz", folder / kind)
    return folder


@pytest.fixture
def boxes() -> None:
    """Skips where no container can be run in namespaces."""
    if namespaces_fault() is not None or has_docker():
        pytest.skip(NO_NAMESPACES)


def go(context: Path, tmp_path: Path, fault: str, cases: Path, method: str, **limits: str) -> Rehearsal:
    made = make_faulty(context, tmp_path / "made", fault)
    found, _ = api.rehearse(made, cases, method=method, **{"memory": "300m", **limits})
    return found


@METHODS
def test_a_good_container_passes(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "none", one_case, method)
    assert found.passes, found.verdict
    assert found.verdict.startswith("Would pass: 1 case, at most ")
    assert found.broken is not None
    assert found.broken.outcome == "done"
    assert (found.start_seconds is not None) == (method == "invoke")
    assert found.outside == ()
    assert {issue.code for issue in found.issues} <= {"container.busy_machine"}  # other tests may run beside
    assert found.cases[0].dice == 0.0  # it finds nothing, and both classes are one here


@METHODS
def test_the_memory_limit_is_told(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "memory", one_case, method)
    (case,) = found.cases
    if found.cases[0].peak_bytes is None:  # no control groups here: the program itself is refused memory
        assert case.outcome == "failed"
        return
    assert case.outcome == "memory"
    assert "exit code 137" in case.message
    assert case.peak_bytes == 300 * 1024**2
    assert not found.passes


def test_the_peak_of_memory_counts_the_moment_of_asking(tmp_path):
    """However short the time between two samples was."""
    (tmp_path / "memory.stat").write_text("anon 5\nfile 100\nshmem 2\n")
    meter = Meter(tmp_path)
    meter.end()
    assert meter.reset() == 7
    (tmp_path / "memory.stat").write_text("anon 1\nfile 100\n")
    assert meter.reset() == 1
    assert Meter(None).reset() is None


@METHODS
def test_the_time_limit_is_told(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "time", one_case, method, time="1s")
    (case,) = found.cases
    assert case.outcome == "time"
    assert "ime limit exceeded" in case.message
    assert case.message in found.verdict


@METHODS
def test_a_broken_case_is_told_and_does_not_fail_the_others(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "broken", one_case, method)
    assert found.broken is not None
    assert found.broken.outcome == "failed"
    assert "no numbers" in found.broken.message
    assert found.passes
    assert "--empty-if-failing" in found.verdict


@METHODS
def test_stray_files_are_told(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "stray", one_case, method)
    assert found.cases[0].stray == ("notes.txt",)
    assert found.outside == ("home/user/left",)
    assert found.passes


@METHODS
def test_int64_is_told(boxes, context, one_case, tmp_path, method):
    found = go(context, tmp_path, "int64", one_case, method)
    assert [issue.code for issue in found.cases[0].issues] == ["container.output_type"]
    assert "uint8" in found.verdict
    assert not found.passes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("redirect", "redirect (302)"),
        ("no start", "the weights are not there"),
        ("two hundred", "answered 200, not 201"),
    ],
)
def test_servers_that_do_not_keep_the_contract(boxes, context, one_case, tmp_path, fault, words):
    found = go(context, tmp_path, fault, one_case, "invoke")
    assert words in found.verdict
    assert not found.passes


@pytest.mark.slow
@pytest.mark.parametrize(("method", "number"), [("exec", 1), ("invoke", 6)])
def test_a_real_model_passes_and_is_scored(boxes, context, finished, one_case, method, number):
    """A process for each case takes seconds to start, so one stands for all."""
    found, lines = api.rehearse(context, one_case if number == 1 else finished.dataset, method=method)
    assert found.passes, lines
    assert [case.case for case in found.cases] == [f"phantom_{k:03}" for k in range(1, number + 1)]
    assert all(case.dice is not None for case in found.cases[:4])
    assert found.broken is not None
    assert found.broken.outcome == "failed"


# --- decisions ---


def report(*cases: CaseReport, **changes: object) -> Rehearsal:
    fields = {
        "container": "a", "way": "b", "method": "exec", "memory_bytes": 10**10, "shm_bytes": 1, "seconds": 100.0, "cases": cases,
    }  # fmt: skip
    return Rehearsal.model_validate({**fields, **changes})


def case(outcome: str = "done", seconds: float = 10.0, peak: int = 10**9) -> CaseReport:
    return CaseReport.model_validate({"case": "x", "outcome": outcome, "seconds": seconds, "peak_bytes": peak})


@pytest.mark.parametrize(
    ("found", "passes", "words"),
    [
        (report(case()), True, "Would pass: 1 case, at most 10 s of 1 min 40 s, 1.0 of 10.0 GB"),
        (report(), False, "no case"),
        (report(case(seconds=80.0)), True, "GB"),
        (report(case(seconds=80.1)), True, "close to the time limit"),
        (report(case(peak=8 * 10**9)), True, "GB"),
        (report(case(peak=8 * 10**9 + 1)), True, "close to the memory limit"),
        (report(case(), case("time")), False, "1 of 2 cases fail"),
        (report(case(), broken=case("failed")), True, "--empty-if-failing"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_decides(context, found, passes, words):
    told, line = judge(found, read_program(context))
    assert told == passes
    assert words in line
    assert ("close" in line) == ("close" in words)


@pytest.mark.parametrize(("load", "codes"), [(4.0, []), (4.1, ["container.busy_machine"])])
def test_times_on_a_busy_machine_are_doubted(load, codes):
    assert [issue.code for issue in busy_machine(load, 2)] == codes


def test_advice_names_what_is_left_to_leave_out(context):
    program = read_program(context).model_copy(update={"networks": 5, "mirrored": 8})
    assert "--no-mirroring (networks run once instead of 8 times) and fewer folds" in advice("time", program)
    assert "--no-mirroring" not in advice("time", program.model_copy(update={"mirrored": 1}))
    assert "--folds 1" in advice("memory", program)
    assert "--folds" not in advice("memory", program.model_copy(update={"networks": 1}))
    assert "smaller network" in advice("time", program.model_copy(update={"networks": 1, "mirrored": 1}))


@pytest.mark.parametrize(("text", "size"), [("15g", 15 * 1024**3), ("128m", 128 * 1024**2), ("1.5kb", 1536), ("7", 7)])
def test_sizes_are_those_of_docker(text, size):
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "0g", "-1g", "15 gigabytes"])
def test_sizes_that_are_none(text):
    with pytest.raises(AutosegError) as caught:
        parse_size(text, "--memory")
    assert caught.value.codes == ("settings.size",)


def test_limits_are_those_of_the_challenge():
    tables = {table.name: table for table in load_container_tables()}
    assert limits_of(Wishes(), tables["hecktor25"]).memory_bytes == 15 * 1024**3  # one of 16 is the platform's
    assert limits_of(Wishes(), tables["hecktor25"]).seconds == 600
    assert limits_of(Wishes(), tables["hecktor25"]).shm_bytes == 128 * 1024**2
    assert limits_of(Wishes(), tables["brats25"]).shm_bytes == 4 * 1024**3
    assert limits_of(Wishes(), tables["flare"]) == Limits(
        memory_bytes=28 * 1024**3, shm_bytes=28 * 1024**3, seconds=600
    )
    wishes = Wishes(memory_bytes=2, shm_bytes=1, seconds=5.0)
    assert limits_of(wishes, tables["flare"]) == Limits(memory_bytes=2, shm_bytes=1, seconds=5.0)
    with pytest.raises(AutosegError) as caught:
        api.rehearse("nothing", Path("."), time="soon")
    assert caught.value.codes == ("settings.duration",)
