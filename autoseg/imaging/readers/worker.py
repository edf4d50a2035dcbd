"""The worker of `guarded`: decodes image files under limits of memory and time, and writes their pixels as a numpy file.

Run as a script, so that it loads nothing but what it needs: ``worker.py MAX_BYTES MAX_SECONDS DECODER OUT`` with the names of the
files, separated by NUL, on the standard input. What went wrong is the last line of the standard output.
"""

from __future__ import annotations

import resource
import sys

import numpy as np


def limit(num_bytes: int, seconds: int) -> None:
    """Let this process take no more address space and processor time."""
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def decode_slices(files: list[str], out: str) -> None:
    """Write the pixels of DICOM ``files`` in that order as float32 (C, Z, Y, X) to ``out``."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    planes = []
    for file in files:
        reader.SetFileName(file)
        reader.SetOutputPixelType(SimpleITK.sitkUnknown)
        image = reader.Execute()
        plane = SimpleITK.GetArrayFromImage(image).astype(np.float32)
        channels = image.GetNumberOfComponentsPerPixel()
        planes.append(np.moveaxis(plane.reshape(*plane.shape[-3 if channels > 1 else -2 :][:2], channels), -1, 0))
    np.save(out, np.stack(planes, axis=1))


def decode_tiff(files: list[str], out: str) -> None:
    """Write the pixels of the one TIFF file with the axes of its first series to ``out``."""
    import tifffile

    with tifffile.TiffFile(files[0], _multifile=False) as file:
        np.save(out, file.series[0].asarray(maxworkers=1))


def main() -> int:
    """Exit status: 0 done, 1 failed."""
    limit(int(sys.argv[1]), int(sys.argv[2]))
    try:
        {"slices": decode_slices, "tiff": decode_tiff}[sys.argv[3]](sys.stdin.read().split("\0"), sys.argv[4])
    except MemoryError:
        sys.stdout.write("it needs more memory than its header declares\n")
        return 1
    except Exception as error:  # each decoder has its own errors
        lines = [line for line in str(error).splitlines() if line.strip() and ".cxx" not in line]
        sys.stdout.write(f"\n{lines[-1] if lines else type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
