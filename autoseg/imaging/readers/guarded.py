"""Decoding in a worker process with limited memory and time, for decoders that cannot be trusted with broken files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.readers import worker
from autoseg.imaging.readers.header import damaged, reader_error

BASE_BYTES = 3 * 10**9
"""Address space of a worker before it reads anything: interpreter, libraries, stacks of their threads."""
COPIES = 6
"""Decoders hold the voxels a few times over: packed, unpacked, rescaled, transposed."""
BASE_SECONDS = 30
"""Of processor time, which does not depend on how busy the machine is; loading libraries takes one of them."""
BYTES_PER_SECOND = 10**6
"""Far slower than any decoder."""
MOST_WAITING = 100
"""Times the processor time after which a worker that does not even compute is given up."""


def decode(
    path: Path, files: Sequence[Path], shape: tuple[int, ...], decoder: Literal["dicom", "tiff"]
) -> NDArray[Any]:
    """Pixels of ``files``, an array of ``shape``, decoded in a worker: DICOM frames (frames, Y, X, samples), or one TIFF file.

    Raises `AutosegError` that names ``path`` when they cannot be decoded, or not within the worker's memory and time.
    """
    num_bytes = BASE_BYTES + COPIES * 4 * int(np.prod(shape, dtype=object))
    seconds = BASE_SECONDS + sum(file.stat().st_size for file in files) // BYTES_PER_SECOND
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "pixels.npy")
        # -P: nothing in the current folder is imported as a library
        command = [sys.executable, "-P", worker.__file__, str(num_bytes), str(seconds), decoder, str(out)]
        _run(
            path, command, files, seconds=seconds, limits=f"{seconds} s of processor time and {num_bytes / 1e9:.1f} GB"
        )
        try:
            pixels: NDArray[Any] = np.load(out, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise damaged(path, code="reader.corrupt", message=f"its decoder returned nothing: {error}") from None
    if pixels.shape != shape:
        raise damaged(
            path, code="reader.corrupt", message=f"the header declares {shape} voxels, but {pixels.shape} were read"
        )
    return pixels


def _run(path: Path, command: Sequence[str], files: Sequence[Path], *, seconds: int, limits: str) -> None:
    listed = "\0".join(str(file.absolute()) for file in files)  # absolute, for names may begin with a dash
    try:
        done = subprocess.run(
            command, input=listed.encode(), capture_output=True, timeout=seconds * MOST_WAITING, check=False
        )
    except subprocess.TimeoutExpired:
        raise damaged(
            path, code="reader.corrupt", message=f"its decoder did not finish within {seconds * MOST_WAITING} s"
        ) from None
    except OSError as error:
        raise reader_error(
            path,
            code="reader.no_worker",
            message=f"no process could be started to decode it ({error})",
            fix="close other programs",
        ) from None
    if done.returncode < 0:
        cause = f"its decoder was killed by signal {-done.returncode} (limits: {limits})"
        raise damaged(path, code="reader.corrupt", message=cause)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        raise damaged(
            path, code="reader.corrupt", message=lines[-1][:300] if lines else "its decoder failed without a message"
        )
