"""Containers that do one thing wrong: the program inside is replaced by a small one, which knows the contract and breaks it."""

from __future__ import annotations

import shutil
from pathlib import Path

FAULTS = ("memory", "time", "broken", "stray", "int64")
PROGRAM = Path("app/autoseg/delivery/container/program.py")


def make_faulty(context: Path, folder: Path, fault: str) -> Path:
    """A copy of a build context in the new ``folder`` whose program has that fault; any other word: none."""
    shutil.copytree(context, folder)
    (folder / PROGRAM).write_text(SOURCE.replace("FAULT", repr(fault)))
    return folder


SOURCE = """
import http.server, pathlib, re, signal, sys, time, zlib

fault = FAULT
NAN = bytes.fromhex("0000c07f")


def end(*_):
    raise SystemExit(143)


def task():
    if fault == "memory":
        held = [b"x" * 2**20 for _ in range(2000)]
    if fault == "time":
        time.sleep(3600)
    if fault == "stray":
        pathlib.Path("/output/notes.txt").write_text("nobody asked for this")
        pathlib.Path("/home/user/left").write_text("nor for this")
    (image,) = pathlib.Path("/input/images/t1-brain-mri").glob("*.mha")
    header, _, data = image.read_bytes().partition(b"ElementDataFile = LOCAL\\n")
    voxels = zlib.decompress(data) if b"CompressedData = True" in header else data
    if fault == "broken" and NAN in voxels:
        raise ValueError("this image has voxels that are no numbers")
    size = len(voxels) // 4
    lines = [line for line in header.splitlines() if not re.match(b"Compressed|ElementType", line)]
    for name, kind, each in (
        ("stroke-lesion-segmentation", b"MET_LONG_LONG" if fault == "int64" else b"MET_UCHAR", 8 if fault == "int64" else 1),
        ("lesion-probability-map", b"MET_FLOAT", 4),
    ):
        folder = pathlib.Path("/output/images") / name
        folder.mkdir(parents=True, exist_ok=True)
        whole = [*lines, b"CompressedData = False", b"ElementType = " + kind, b"ElementDataFile = LOCAL", bytes(size * each)]
        (folder / "output.mha").write_bytes(b"\\n".join(whole))


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = {"redirect": 302, "slow": 503}.get(fault, 200)
        self.send_response(status)
        self.end_headers()

    def do_POST(self):
        status = 200 if fault == "two hundred" else 201
        try:
            task()
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
            status = 500
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if fault != "deaf":
        signal.signal(signal.SIGTERM, end)
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fault == "no start":
        raise SystemExit("the weights are not there")
    if sys.argv[1] == "exec":
        task()
    else:
        http.server.HTTPServer(("", 4743), Handler).serve_forever()
"""
