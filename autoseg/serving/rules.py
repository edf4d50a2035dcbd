"""Decisions of the service: what an upload is, which archives are refused, which status an error gets, what is removed when. Pure."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from autoseg.issues import Issue

Kind = Literal[".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".zip"]
"""An upload by its content. Names that clients give are not looked at."""
HEAD_BYTES = 1024
"""Of a file, to tell its kind."""
IMAGES: tuple[Kind, ...] = (".nii.gz", ".nii", ".nrrd", ".mha")
METAIMAGE = re.compile(rb"\s*(?:ObjectType|NDims|Comment)\s*=", re.IGNORECASE)
NIFTI_SIZES = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
DICOM_MAGIC = slice(128, 132)
MOST_FILES = 20_000
"""In an archive."""
UNPACKED = 8
"""Times the largest upload that an archive may hold: slices of 16 bits pack to a half or a third."""
ENCRYPTED = 0x1
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
MOST_STARTS = 2
"""A job that was running when the service died is tried once more."""
ZIP_FIX = "pack the files of one DICOM series, or one image per channel, into a plain zip"
STATUSES = {
    "serve.too_large": 413,
    "serve.queue_full": 503,
    "serve.slow_upload": 408,
    "serve.unknown_kind": 415,
    "serve.multipart": 415,
    "serve.unknown_job": 404,
    "serve.not_found": 404,
    "serve.no_file": 404,
    "serve.not_done": 409,
    "serve.no_method": 405,
    "serve.no_token": 401,
    "serve.other_site": 403,
    "serve.other_host": 421,
    "serve.stopping": 503,
    "file.not_written": 507,
    "serve.failed": 500,
}
"""HTTP statuses of issue codes; all others are faults of the request or its image: 422."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the service takes, and for how long it keeps answers."""

    queue: int = 16
    """Jobs that wait or are being uploaded."""
    upload_bytes: int = 1_000_000_000
    timeout_s: float = 1800.0
    """For an upload, and for a job from its start."""
    keep_s: float = 86_400.0
    """Age from which an answer is removed."""
    keep_bytes: int = 20_000_000_000
    """All answers together; the oldest go first."""

    @property
    def unpacked_bytes(self) -> int:
        """What an archive may hold."""
        return UNPACKED * self.upload_bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A finished job in the state folder."""

    finished: float
    """Seconds since 1970."""
    num_bytes: int


def kind_of(head: bytes) -> Kind | None:
    """What a file is that begins with ``head`` (`HEAD_BYTES`); none: nothing that the service takes."""
    if head.startswith(b"\x1f\x8b"):
        return ".nii.gz"
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return ".zip"
    if head.startswith(b"NRRD"):
        return ".nrrd"
    if head[DICOM_MAGIC] == b"DICM":
        return ".dcm"
    if head[:4] in NIFTI_SIZES:
        return ".nii"
    return ".mha" if METAIMAGE.match(head) else None


def archive_faults(entries: Sequence[zipfile.ZipInfo], most_bytes: int) -> list[Issue]:
    """Everything that forbids to unpack an archive, whatever its files are."""
    faults: list[Issue] = []
    if len(entries) > MOST_FILES:
        faults.append(zip_issue(code="serve.zip_files", message=f"it has {len(entries)} files, more than {MOST_FILES}"))
    total = sum(entry.file_size for entry in entries)
    if total > most_bytes:
        message = f"it unpacks to {total / 1e6:.0f} MB, more than {most_bytes / 1e6:.0f}"
        faults.append(zip_issue(code="serve.zip_too_large", message=message))
    if odd := [each.filename for each in entries if not stays_inside(each.filename)]:
        faults.append(zip_issue(code="serve.zip_name", message=f"{_first(odd)} would leave the archive"))
    if odd := [each.filename for each in entries if not is_plain(each)]:
        faults.append(zip_issue(code="serve.zip_link", message=f"{_first(odd)} is a link or a device"))
    if odd := [each.filename for each in entries if is_odd(each)]:
        faults.append(
            zip_issue(code="serve.zip_form", message=f"{_first(odd)} is encrypted or packed in an unusual way")
        )
    return faults


def _first(names: Sequence[str]) -> str:
    return f"{names[0][:80]!r}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def zip_issue(*, code: str, message: str) -> Issue:
    """What is wrong with an archive."""
    return Issue(code=code, where="zip", message=message, fix=ZIP_FIX)


def stays_inside(name: str) -> bool:
    """Whether a name of an archive leads to a place below the folder that it would be unpacked to, on any system."""
    path = PurePosixPath(name)
    return not any(c in name for c in "\\:\0") and not path.is_absolute() and ".." not in path.parts


def is_plain(entry: zipfile.ZipInfo) -> bool:
    """Whether it is a file or a folder, no link and no device."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    return kind in (0, stat.S_IFREG, stat.S_IFDIR)


def is_odd(entry: zipfile.ZipInfo) -> bool:
    """Whether it is encrypted, or packed by what is not unpacked here."""
    return bool(entry.flag_bits & ENCRYPTED) or entry.compress_type not in PACKED


def status_of(issues: Iterable[Issue]) -> int:
    """The HTTP status of a request that failed: that of its first error."""
    first = next((issue.code for issue in issues if issue.severity == "error"), "")
    return STATUSES.get(first, 422)


def expired(kept: Mapping[str, Kept], now: float, limits: Limits) -> list[str]:
    """Jobs whose answers are to be removed, oldest first: those that are too old, then as many as are too large together."""
    total, found = sum(each.num_bytes for each in kept.values()), []
    for job_id, each in sorted(kept.items(), key=lambda item: item[1].finished):
        if now - each.finished <= limits.keep_s and total <= limits.keep_bytes:
            break
        total -= each.num_bytes
        found.append(job_id)
    return found


def retry_after(waiting: int, running: int, devices: int, mean_s: float) -> int:
    """Seconds after which a place in the queue should be free: those of one job, on whichever device ends first."""
    return max(1, min(3600, round(mean_s / max(1, min(devices, running + waiting)))))
