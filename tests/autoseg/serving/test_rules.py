"""Decisions of the service, each on both sides of its limit."""

from __future__ import annotations

import stat
import zipfile
from pathlib import PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from autoseg.issues import Issue
from autoseg.serving.guard import is_loopback, refusal
from autoseg.serving.rules import (
    MOST_FILES,
    Kept,
    Limits,
    archive_faults,
    expired,
    kind_of,
    retry_after,
    status_of,
    stays_inside,
)


def entry(name: str, size: int = 1, mode: int = 0, **values: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.file_size, made.external_attr = size, mode << 16
    for each, value in values.items():
        setattr(made, each, value)
    return made


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x1f\x8b\x08", ".nii.gz"),
        (b"PK\3\4rest", ".zip"),
        (b"PK\5\6", ".zip"),
        (b"NRRD0004\n", ".nrrd"),
        (b"ObjectType = Image\n", ".mha"),
        (b"  ndims=3\n", ".mha"),
        ((348).to_bytes(4, "little"), ".nii"),
        ((540).to_bytes(4, "big"), ".nii"),
        (bytes(128) + b"DICM", ".dcm"),
        (bytes(127) + b"DICM", None),
        (b"<html>", None),
        (b"", None),
        (b"\x89PNG", None),
    ],
)
def test_an_upload_is_told_by_its_first_bytes(head: bytes, kind: str | None) -> None:
    assert kind_of(head) == kind


@pytest.mark.parametrize(
    ("odd", "code"),
    [
        (entry("../a.dcm"), "serve.zip_name"),
        (entry("a/../../b.dcm"), "serve.zip_name"),
        (entry("/etc/passwd"), "serve.zip_name"),
        (entry("C:/a.dcm"), "serve.zip_name"),
        (entry("..\\a.dcm"), "serve.zip_name"),
        (entry("a.dcm", mode=stat.S_IFLNK | 0o777), "serve.zip_link"),
        (entry("a.dcm", mode=stat.S_IFIFO), "serve.zip_link"),
        (entry("a.dcm", flag_bits=1), "serve.zip_form"),
        (entry("a.dcm", compress_type=zipfile.ZIP_LZMA), "serve.zip_form"),
        (entry("a.dcm", size=101), "serve.zip_too_large"),
    ],
)
def test_archives_that_would_do_harm_are_refused(odd: zipfile.ZipInfo, code: str) -> None:
    assert [issue.code for issue in archive_faults([entry("b.dcm", size=0), odd], 100)] == [code]


def test_sound_archives_are_taken_up_to_the_limits() -> None:
    sound = [
        entry("scan/1.dcm", size=60, mode=stat.S_IFREG | 0o644),
        entry("scan/", mode=stat.S_IFDIR),
        entry("2..dcm", size=39),
    ]
    assert archive_faults(sound, 100) == []
    many = [entry(f"{i}", size=0) for i in range(MOST_FILES)]
    assert archive_faults(many, 100) == []
    assert [issue.code for issue in archive_faults([*many, entry("more", size=0)], 100)] == ["serve.zip_files"]


@given(st.text(alphabet="ab./\\:\0", max_size=12))
def test_no_name_leads_out_of_an_archive(name: str) -> None:
    if stays_inside(name):
        depth = 0
        for part in PureWindowsPath(name).parts:
            depth += -1 if part == ".." else 1
            assert depth >= 0
        assert not name.startswith("/")
        assert not PureWindowsPath(name).drive


def test_errors_have_the_status_of_their_code() -> None:
    first = Issue(code="serve.too_large", where="", message="")
    note = Issue(code="serve.unknown_job", severity="note", where="", message="")
    other = Issue(code="reader.truncated", where="", message="")
    assert [status_of(each) for each in ([first], [note, first], [other, first], [])] == [413, 413, 422, 422]


def test_answers_go_when_they_are_too_old_or_too_large_together() -> None:
    limits = Limits(keep_s=10, keep_bytes=100)
    kept = {"young": Kept(20.0, 60), "old": Kept(9.9, 1), "older": Kept(5.0, 1), "last": Kept(25.0, 40)}
    assert expired(kept, 20.0, limits) == ["older", "old"]
    assert expired(kept, 19.9, limits) == ["older", "old"]
    assert expired(kept, 30.0, limits) == ["older", "old"]
    assert expired(kept, 30.1, limits) == ["older", "old", "young"]
    assert expired(kept | {"last": Kept(25.0, 41)}, 20.0, limits) == ["older", "old", "young"]
    assert expired(kept, 15.0, limits) == ["older", "old"]  # together they were too large
    assert expired({}, 0.0, limits) == []


def test_a_client_comes_again_after_a_job() -> None:
    assert retry_after(4, 1, 1, 20.4) == 20
    assert retry_after(4, 2, 2, 20.0) == 10
    assert retry_after(0, 0, 1, 0.1) == 1
    assert retry_after(1, 1, 1, 1e9) == 3600


@pytest.mark.parametrize(
    ("headers", "token", "is_local", "code"),
    [
        ({"host": "127.0.0.1:8000"}, None, True, None),
        ({"host": "LOCALHOST"}, None, True, None),
        ({"host": "[::1]:8000"}, None, True, None),
        ({"host": "evil.example"}, None, True, "serve.other_host"),
        ({"host": "evil.example:8000"}, None, True, "serve.other_host"),
        ({}, None, True, "serve.other_host"),
        ({"host": "seg.example"}, None, False, None),
        ({"host": "127.0.0.1", "sec-fetch-site": "same-origin"}, None, True, None),
        ({"host": "127.0.0.1", "sec-fetch-site": "cross-site"}, None, True, "serve.other_site"),
        ({"host": "127.0.0.1", "sec-fetch-site": "same-site"}, None, True, "serve.other_site"),
        ({"host": "seg.example", "authorization": "Bearer secret"}, "secret", True, None),
        ({"host": "seg.example", "authorization": "Bearer other"}, "secret", True, "serve.no_token"),
        ({"host": "seg.example"}, "secret", False, "serve.no_token"),
    ],
)
def test_who_may_ask(headers: dict[str, str], token: str | None, is_local: bool, code: str | None) -> None:
    found = refusal("POST", "/jobs", Headers(headers), token=token, is_local=is_local)
    assert (found and found.code) == code


def test_what_is_about_no_image_needs_no_token() -> None:
    def code(path: str) -> str | None:
        found = refusal("GET", path, Headers({"host": "a.example"}), token="secret", is_local=False)
        return found and found.code

    assert [code(path) for path in ("/", "/health", "/docs", "/openapi.json", "/static/page.js")] == [None] * 5
    assert [code(path) for path in ("/models", "/jobs/x", "/static", "//")] == ["serve.no_token"] * 4


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("example", False)],
)
def test_addresses_of_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
