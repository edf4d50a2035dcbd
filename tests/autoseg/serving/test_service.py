"""The service as its clients see it: answers, refusals, a queue that is full, clients that leave, a process that dies."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pydicom
import pytest
import SimpleITK
from builders import Job as FinishedJob
from builders import Listening
from dicom_files import write_study
from live_service import LIMITS, PATIENCE_S, Live, answering
from typer.testing import CliRunner

from autoseg import api
from autoseg.cli import app
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.serving.app import Service
from autoseg.serving.documents import Ask, JobStatus
from autoseg.serving.jobs import ANSWER, REQUEST, UPLOAD, Job, Jobs, new_id
from autoseg.serving.rules import Limits
from autoseg.serving.server import Running, bound, make_server, named
from autoseg.serving.work import Served, do
from autoseg.storage.atomic import save_document, temporary_path


def codes(answer: httpx.Response) -> list[str]:
    return [issue["code"] for issue in answer.json()["issues"]]


def labels_in(content: bytes, folder: Path) -> np.ndarray:
    path = folder / "mask.nii.gz"
    path.write_bytes(content)
    return read_label_map(path).array


# --- answers ---


def test_a_volume_is_answered_with_its_mask(live: Live, image: Path, finished: FinishedJob, tmp_path: Path) -> None:
    answer = live.client.post("/jobs", params={"wait": 100}, content=image.read_bytes())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/gzip")
    api.predict(finished.root, image, tmp_path / "own", device="cpu", threads=1, mirroring=False)
    (expected,) = (tmp_path / "own").glob("*.nii.gz")
    assert answer.content == expected.read_bytes()
    status = live.client.get(answer.headers["location"]).json()
    assert (status["state"], status["progress"], status["files"].keys()) == ("done", 1.0, {"nifti"})
    values, counts = np.unique(read_label_map(expected).array, return_counts=True)
    ml = read_image(image).geometry.voxel_volume_ml
    for volume in status["volumes"]:
        (value,) = volume["values"]
        assert volume["volume_ml"] == pytest.approx(float(counts[values == value].sum()) * ml)
    job_id = status["id"]
    assert [name for name in live.files if job_id in name] == [
        job_id,
        f"{job_id}/answer.json",
        f"{job_id}/mask.nii.gz",
    ]
    assert live.client.delete(f"/jobs/{job_id}").status_code == 204
    assert not [name for name in live.files if job_id in name]
    assert codes(live.client.get(f"/jobs/{job_id}")) == ["serve.unknown_job"]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_give_the_same_mask(ending: str, live: Live, image: Path, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.ReadImage(image), tmp_path / f"a{ending}")
    wanted = live.client.post("/jobs", params={"wait": 100}, content=image.read_bytes())
    answer = live.client.post("/jobs", params={"wait": 100}, content=(tmp_path / f"a{ending}").read_bytes())
    assert np.array_equal(labels_in(answer.content, tmp_path), labels_in(wanted.content, tmp_path))


def test_a_zip_of_a_series_is_answered_with_dicom(live: Live, image: Path, tmp_path: Path) -> None:
    array = read_image(image).array[0]
    scaled = (array * (1000 / np.abs(array).max())).astype(np.int16)[12:20, 4:28, 2:30]
    write_study(
        tmp_path / "series", scaled, plane=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), Modality="OT", PatientName="A"
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "series").iterdir()):
            archive.write(path, f"A/{path.name}")
    wishes = {"format": ["dicom-seg", "nifti", "image", "rtstruct"], "wait": "100"}
    answer = live.client.post("/jobs", params=wishes, content=content.getvalue())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    found = pydicom.dcmread(io.BytesIO(answer.content))
    first = pydicom.dcmread(min((tmp_path / "series").iterdir()))
    assert (found.Modality, found.PatientName, found.StudyInstanceUID) == ("SEG", "A", first.StudyInstanceUID)
    mask = labels_in(live.client.get(f"{answer.headers['location']}/nifti").content, tmp_path)
    frames = found.pixel_array if found.NumberOfFrames > 1 else found.pixel_array[None]
    assert frames.sum() == np.count_nonzero(mask) > 0
    (tmp_path / "image.nii.gz").write_bytes(live.client.get(f"{answer.headers['location']}/image").content)
    shown = read_image(tmp_path / "image.nii.gz")
    assert np.array_equal(shown.array, read_image(tmp_path / "series").array)
    assert pydicom.dcmread(io.BytesIO(live.client.get(f"{answer.headers['location']}/rtstruct").content)).Modality == (
        "RTSTRUCT"
    )


def test_volumes_and_notes_as_json(live: Live, image: Path, tmp_path: Path) -> None:
    small = SimpleITK.ReadImage(image)
    small.SetSpacing([mm / 5 for mm in small.GetSpacing()])
    SimpleITK.WriteImage(small, tmp_path / "small.nrrd")
    content = (tmp_path / "small.nrrd").read_bytes()
    answer = live.client.post("/jobs", params={"wait": 100, "format": "json"}, content=content)
    status = answer.json()
    assert (answer.status_code, status["state"], status["files"]) == (200, "done", {})
    assert [(i["code"], i["severity"]) for i in status["issues"]] == [("predict.far_from_training", "warning")]
    assert codes(live.client.get(f"/jobs/{status['id']}/nifti")) == ["serve.no_file"]


def test_what_is_served_is_described(live: Live, finished: FinishedJob) -> None:
    (model,) = live.client.get("/models").json()
    assert model["channels"] == json.loads(finished.folder.plan.read_text())["channels"]
    assert [each["name"] for each in model["classes"]] == ["bean", "ring"]
    assert all(len(each["colour"]) == 7 for each in model["classes"])
    paths = live.client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/models", "/jobs", "/jobs/{job_id}", "/jobs/{job_id}/{format}"}
    for path in ("/", "/docs", *(f"/static/{name}" for name in ("page.js", "page.css", "docs.js", "niivue.umd.js"))):
        assert live.client.get(path).status_code == 200
        assert "default-src 'none'" in live.client.get(path).headers["content-security-policy"]


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "status", "code"),
    [
        ({"content": b"no image"}, 415, "serve.unknown_kind"),
        ({"content": b""}, 422, "serve.empty"),
        ({"content": b"\x1f\x8b" + bytes(1000)}, 422, "reader.corrupt"),
        ({"content": bytes(LIMITS.upload_bytes + 1)}, 413, "serve.too_large"),
        ({"content": iter([bytes(10**6)] * 3)}, 413, "serve.too_large"),
        ({"files": {"file": b"x"}}, 415, "serve.multipart"),
        ({"params": {"model": "other"}, "content": b"x"}, 422, "serve.unknown_model"),
        ({"params": {"format": "png"}, "content": b"x"}, 422, "serve.bad_value"),
        ({"params": {"series": "../x"}, "content": b"x"}, 422, "serve.bad_value"),
        ({"params": {"wait": -1}, "content": b"x"}, 422, "serve.bad_value"),
        ({"headers": {"host": "evil.example"}, "content": b"x"}, 421, "serve.other_host"),
        ({"headers": {"sec-fetch-site": "cross-site"}, "content": b"x"}, 403, "serve.other_site"),
    ],
)
def test_bad_requests_are_refused_and_leave_nothing(call: dict, status: int, code: str, live: Live) -> None:
    before = live.files
    answer = live.client.post("/jobs", **call)
    assert (answer.status_code, codes(answer)) == (status, [code])
    assert str(live.state) not in answer.text
    assert live.rests()
    assert live.files == before


def test_images_that_do_not_fit_are_refused(live: Live, image: Path, tmp_path: Path) -> None:
    before = live.files
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.ReadImage(image)] * 2), tmp_path / "two.nrrd", True)
    two = live.client.post("/jobs", content=(tmp_path / "two.nrrd").read_bytes())
    assert (two.status_code, codes(two)) == (422, ["image.channels"])
    flat = live.client.post("/jobs", params={"format": "dicom-seg"}, content=image.read_bytes())
    assert (flat.status_code, codes(flat)) == (422, ["dicom.no_series"])
    assert live.files == before
    cut = live.client.post("/jobs", params={"wait": 100}, content=image.read_bytes()[:-2000])  # its header is sound
    assert (cut.status_code, codes(cut)) == (422, ["reader.corrupt"])
    left = [name for name in live.files if name not in before]
    assert [name[32:] for name in left] == ["", f"/{ANSWER}"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "serve.not_found"),
        ("GET", "/static/../app.py", 404, "serve.not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "serve.not_found"),
        ("GET", "/static/%2Fetc%2Fpasswd", 404, "serve.not_found"),
        ("GET", f"/jobs/{'0' * 32}", 404, "serve.unknown_job"),
        ("GET", "/jobs/lock", 404, "serve.unknown_job"),
        ("GET", f"/jobs/{'0' * 32}/nifti", 404, "serve.unknown_job"),
        ("DELETE", f"/jobs/{'0' * 32}", 404, "serve.unknown_job"),
        ("DELETE", "/jobs/..", 405, "serve.no_method"),
        ("PUT", "/jobs", 405, "serve.no_method"),
    ],
)
def test_what_is_not_there(method: str, path: str, status: int, code: str, live: Live) -> None:
    answer = live.client.request(method, path)
    if path.endswith("/.."):  # the client itself goes up
        assert answer.status_code in (404, 405)
        return
    assert (answer.status_code, codes(answer)) == (status, [code])


@pytest.mark.parametrize("length", [1000, 5])
def test_a_client_that_lies_or_leaves_leaves_nothing(length: int, live: Live) -> None:
    before, url = live.files, httpx.URL(live.running.address)
    with socket.create_connection((url.host, url.port)) as line:
        head = f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n"
        line.sendall(head.encode() + bytes(500))  # fewer bytes than it says, or more
        if length < 500:
            assert b" 415 " in line.recv(1000)
        else:
            until(lambda: live.client.get("/health").json()["uploading"] == 1)
            assert live.files != before
    assert live.rests()
    assert live.files == before


def until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- a queue that nobody works on ---


@contextmanager
def idle(live: Live, root: Path, **changes: object) -> Iterator[tuple[httpx.Client, Jobs]]:
    """A service without a worker, whose jobs wait."""
    token = changes.pop("token", None)
    jobs = Jobs(root, replace(LIMITS, **changes))
    service = replace(live.running.service, jobs=jobs, token=token)
    with bound("127.0.0.1", 0) as listening:
        running = Running(service=service, listening=listening, server=make_server(service))
        with answering(running) as client:
            yield client, jobs


def test_a_full_queue_says_when_to_come_again(live: Live, image: Path, tmp_path: Path) -> None:
    with idle(live, tmp_path / "state", queue=2) as (client, jobs):
        first, second, third = (client.post("/jobs", content=image.read_bytes()) for _ in range(3))
        assert [each.status_code for each in (first, second, third)] == [202, 202, 503]
        assert codes(third) == ["serve.queue_full"]
        assert int(third.headers["retry-after"]) >= 1
        assert [client.get(each.headers["location"]).json()["ahead"] for each in (first, second)] == [0, 1]
        assert codes(client.get(f"{first.headers['location']}/nifti")) == ["serve.not_done"]
        assert client.delete(first.headers["location"]).status_code == 204
        assert client.get(second.headers["location"]).json()["ahead"] == 0
        assert client.post("/jobs", content=image.read_bytes()).status_code == 202
        late = client.post("/jobs", params={"wait": 0.05}, content=b"x")
        assert late.status_code == 503
        jobs.stop()
        assert codes(client.post("/jobs", content=image.read_bytes())) == ["serve.stopping"]


def test_a_wait_ends_with_the_state_of_the_job(live: Live, image: Path, tmp_path: Path) -> None:
    with idle(live, tmp_path / "state") as (client, _):
        answer = client.post("/jobs", params={"wait": 0.05}, content=image.read_bytes())
        assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
        assert client.get(answer.headers["location"], params={"wait": 0.05}).json()["state"] == "waiting"


def test_a_client_that_leaves_while_it_waits_cancels_its_job(live: Live, image: Path, tmp_path: Path) -> None:
    content = image.read_bytes()
    with idle(live, tmp_path / "state") as (client, jobs):
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as line:
            head = f"POST /jobs?wait=100 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
            line.sendall(head.encode() + content)
            until(lambda: jobs.counts() == (0, 1, 0))
        until(lambda: jobs.counts() == (0, 0, 0))
        until(lambda: not list(jobs.root.iterdir()))


def test_a_token_is_needed(live: Live, tmp_path: Path) -> None:
    with idle(live, tmp_path / "state", token="a secret of some length") as (client, _):
        refused = client.get("/models")
        assert (refused.status_code, codes(refused)) == (401, ["serve.no_token"])
        assert refused.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer a secret of some length"}
        assert client.get("/models", headers=headers).status_code == 200
        assert client.get("/health").status_code == 200


# --- jobs, without requests ---


def make_job(root: Path, image: Path, **values: object) -> Job:
    """A job in its folder, as an upload leaves it."""
    ask = Ask.model_validate({"model": "Phantom", "wishes": ("nifti",), "images": ("image.nii.gz",), **values})
    job_id = new_id()
    (root / job_id / UPLOAD).mkdir(parents=True)
    (root / job_id / UPLOAD / "image.nii.gz").write_bytes(image.read_bytes())
    save_document(root / job_id / REQUEST, ask)
    return Job(id=job_id, folder=root / job_id, ask=ask)


def ended(live: Live, job: Job, timeout_s: float = 100.0) -> JobStatus:
    return do(job, live.running.service.models, Event().is_set, timeout_s)


def test_a_job_that_takes_too_long_is_ended(live: Live, image: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, image)
    assert [issue.code for issue in ended(live, job, timeout_s=0.0).issues] == ["serve.timeout"]
    assert ended(live, job).state == "done"


def test_a_model_that_is_served_no_more(live: Live, image: Path, tmp_path: Path) -> None:
    found = ended(live, make_job(tmp_path, image, model="earlier"))
    assert (found.state, [issue.code for issue in found.issues]) == ("failed", ["serve.unknown_model"])


def test_a_full_disk_fails_the_job_only(live: Live, image: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "state", LIMITS)
    job = make_job(jobs.root, image)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # the mask does not fit, its answer does
    try:
        status = ended(live, job)
        jobs.finish(job, status)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [issue.code for issue in status.issues] == ["file.not_written"]
    assert jobs.status(job.id) == status
    assert sorted(path.name for path in job.folder.iterdir()) == [ANSWER]


def test_a_full_disk_refuses_an_upload(live: Live, image: Path) -> None:
    before = live.files
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        answer = live.client.post("/jobs", content=image.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (answer.status_code, codes(answer)) == (507, ["file.not_written"])
    assert live.files == before


def test_what_an_earlier_process_left_is_taken_up(image: Path, tmp_path: Path) -> None:
    waiting, crashing = make_job(tmp_path, image, starts=1), make_job(tmp_path, image, starts=2)
    done = make_job(tmp_path, image)
    save_document(done.folder / ANSWER, done.ended_as("done"))
    half = temporary_path(tmp_path / new_id())
    half.mkdir()
    (tmp_path / "of the user").mkdir()
    jobs = Jobs(tmp_path, LIMITS)
    assert jobs.counts() == (0, 1, 0)
    assert [jobs.status(job.id).state for job in (waiting, crashing, done)] == ["waiting", "failed", "done"]
    assert [issue.code for issue in jobs.status(crashing.id).issues] == ["serve.crashed"]
    assert [path.name for path in done.folder.iterdir()] == [ANSWER]
    assert not half.exists()
    assert (tmp_path / "of the user").is_dir()
    begun = jobs.next()
    assert begun is not None
    assert begun.ask.starts == 2
    jobs.hand_back(begun)
    assert Ask.model_validate_json((waiting.folder / REQUEST).read_bytes()).starts == 1


def test_old_answers_are_removed(image: Path, tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, replace(LIMITS, keep_s=1000.0))
    job = make_job(tmp_path, image)
    jobs.finish(job, job.ended_as("done"))
    jobs.sweep()
    assert jobs.status(job.id).state == "done"
    os.utime(job.folder / ANSWER, (0, 0))
    again = Jobs(tmp_path, replace(LIMITS, keep_s=1000.0))
    again.sweep()
    assert not job.folder.exists()


# --- the command ---


def test_a_killed_service_loses_no_answer_and_goes_on(finished: FinishedJob, image: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with command(finished, state) as (process, client):
        done = client.post("/jobs", params={"wait": 100}, content=image.read_bytes())
        left = [client.post("/jobs", content=image.read_bytes()).headers["location"] for _ in range(2)]
        line = socket.create_connection((client.base_url.host, client.base_url.port or 0))
        line.sendall(b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
        until(lambda: any(path.name.endswith(".part") for path in state.iterdir()))
        process.send_signal(signal.SIGKILL)
        process.wait()
        line.close()
    with command(finished, state) as (process, client):
        assert not [path for path in state.iterdir() if path.name.endswith(".part")]
        assert client.get(f"{done.headers['location']}/nifti").content == done.content
        for location in left:
            assert client.get(location, params={"wait": 100}).json()["state"] == "done"
            assert client.get(f"{location}/nifti").content == done.content
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert len([path for path in state.iterdir() if path.is_dir()]) == 3


@contextmanager
def command(finished: FinishedJob, state: Path) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """``autoseg serve`` as a process."""
    words = ["serve", str(finished.root), "--port", "0", "--state", str(state), "--device", "cpu", "--threads", "1"]
    call = [sys.executable, "-m", "autoseg", *words, "--no-mirroring"]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = next(line.split()[-1] for line in process.stderr if " Serving " in line)
        with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_what_cannot_be_served_is_said_at_once(finished: FinishedJob, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("1234")
    with bound("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for words, code in (
            ([str(tmp_path / "none")], "does not exist"),
            ([str(finished.root), "--port", port], "cannot be used"),
            ([str(finished.root), "--token-file", str(tmp_path / "short")], "no token"),
            ([str(finished.root), "--token-file", str(tmp_path / "none")], "does not exist"),
            ([str(finished.root), "--keep", "soon"], "not a duration"),
        ):
            done = CliRunner().invoke(app, ["serve", *words, "--state", str(tmp_path / "state")])
            assert code in str(done.exception), (words, done.exception)
    assert not (tmp_path / "state").exists()


def test_models_get_names_of_their_own(finished: FinishedJob) -> None:
    assert [info.name for _, info in named([finished.root, finished.folder.model])] == ["Phantom", "Phantom-2"]


def test_a_service_for_others_says_that_anyone_may_use_it(finished: FinishedJob, tmp_path: Path) -> None:
    from autoseg.serving.server import _say_what_is_served

    with bound("127.0.0.1", 0) as listening:
        jobs = Jobs(tmp_path / "state", Limits())
        service = Service(jobs=jobs, models=dict[str, Served](), devices=("cpu",), is_local=False)
        for token, expected in ((None, True), ("secret", False)):
            reporter = Listening()
            running = Running(service=replace(service, token=token), listening=listening, server=None)  # type: ignore[arg-type]
            _say_what_is_served(running, "0.0.0.0", reporter)
            assert ("Warning: --host 0.0.0.0: anyone" in reporter.text) is expected


def test_the_report_of_errors_is_json_of_issues(live: Live) -> None:
    (issue,) = json.loads(live.client.post("/jobs", content=b"no image").text)["issues"]
    assert issue.keys() == {"code", "severity", "where", "message", "fix", "case"}
