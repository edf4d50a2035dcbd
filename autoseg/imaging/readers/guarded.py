"""Reading through a worker process with limited memory and time, for files whose decoders cannot be trusted."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers import itk_worker
from autoseg.imaging.readers.header import damaged, reader_error

BASE_BYTES = 3 * 10**9
"""Address space of a worker before it reads anything: interpreter, libraries, stacks of their threads."""
COPIES = 6
"""Decoders hold the voxels a few times over: packed, unpacked, rescaled, turned."""
BASE_SECONDS = 30
"""Of processor time, which does not depend on how busy the machine is; loading ITK takes one of them."""
BYTES_PER_SECOND = 10**6
"""Far slower than any decoder."""
MOST_WAITING = 100
"""Times the processor time after which a worker that does not even compute is given up."""


def decode_slices(path: Path, files: Sequence[Path], shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Voxels of DICOM ``files`` in the order given, float32 of ``shape`` (C, Z, Y, X), decoded by ITK in a worker.

    Raises `AutosegError` that names ``path`` when they cannot be decoded, or not within the worker's memory and time.
    """
    held = sum(file.stat().st_size for file in files)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "voxels.npy")
        _run(
            path,
            out,
            files,
            num_bytes=BASE_BYTES + COPIES * 4 * math.prod(shape),
            seconds=BASE_SECONDS + held // BYTES_PER_SECOND,
        )
        try:
            voxels: NDArray[np.float32] = np.load(out, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(path, f"its decoder gave nothing: {error}", "corrupt") from None
    if voxels.shape != shape:
        raise damaged(
            path, f"its header says {shape} voxels (channel, z, y, x), but {voxels.shape} were read", "corrupt"
        )
    return voxels


def _run(path: Path, out: Path, files: Sequence[Path], *, num_bytes: int, seconds: int) -> None:
    # -P: nothing that lies in the current folder is taken for a library; absolute paths, for names may begin with a dash
    command = [sys.executable, "-P", itk_worker.__file__, str(num_bytes), str(seconds), str(out)]
    listed = "\0".join(str(file.absolute()) for file in files)
    try:
        done = subprocess.run(
            command, input=listed.encode(), capture_output=True, timeout=seconds * MOST_WAITING, check=False
        )
    except subprocess.TimeoutExpired:
        raise damaged(path, f"its decoder did not end within {seconds * MOST_WAITING} seconds", "corrupt") from None
    except OSError as error:
        raise reader_error(
            "reader.no_worker", path, f"no process could be started to decode it ({error})", "close other programs"
        ) from None
    if done.returncode < 0:
        cause = (
            f"signal {-done.returncode}; it may take {seconds} seconds of processor time and {num_bytes / 1e9:.1f} GB"
        )
        raise damaged(path, f"its decoder was ended by {cause}", "corrupt")
    if done.returncode:
        lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        raise damaged(path, lines[-1][:300] if lines else "its decoder failed without a message", "corrupt")
