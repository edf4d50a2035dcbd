"""Read every medical file of any folder by the product and by other readers, and list where they differ.

    python benchmarks/foreign_files.py FOLDER... [--out FILE]
    python benchmarks/foreign_files.py --installed      # the test data of nibabel, pydicom, highdicom and scikit-image

Each file is read alone, in a child process of its own, by autoseg and by each of nibabel, SimpleITK, pydicom, highdicom, tifffile and
Pillow that claims it. A reader that ends its process has refused the file. Compared are the voxels, whatever the order of axes, and where readers tell it, the place of the corners in the
world. A difference is *silent* where autoseg reads a file otherwise than all others that read it, and has no note on it; the exit
status is then 1.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import permutations, product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import highdicom
import nibabel
import numpy as np
import PIL.Image
import pydicom
import SimpleITK
import tifffile
from numpy.typing import NDArray

from autoseg.imaging.readers import image_endings, is_dicom, read_header, read_image
from autoseg.issues import AutosegError

ROOT = Path(__file__).resolve().parents[1]
Result = TypeVar("Result")
PACKAGES = ("nibabel", "pydicom", "highdicom", "skimage")
MOST_SECONDS = 120
SAME_VALUE = 1e-5
"""Of the range of values: what single precision leaves."""
SAME_PLACE = 0.1
"""Of a voxel."""
NIBABEL = (".nii", ".nii.gz", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".par", ".rec", ".brik", ".head", ".brik.gz")
PILLOW = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
TIFFFILE = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader made of a file."""

    array: NDArray[Any] | None = None
    affine: NDArray[np.float64] | None = None
    """From the last three axes of the array (z, y, x) to RAS in mm, where the reader tells it."""
    said: str = ""
    """Why it refused, or which notes it has."""


# --- readers ---


def by_autoseg(path: Path) -> Reading:
    image = read_image(path)
    affine = image.affine if image.geometry.has_orientation and image.geometry.dimensions == 3 else None
    return Reading(image.array, affine, ", ".join(sorted({note.code for note in read_header(path).notes})))


def by_nibabel(path: Path) -> Reading:
    image: Any = nibabel.load(path)
    array = np.asarray(image.dataobj)
    if array.dtype.names:
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    array = array.T if array.ndim > 2 else array.T[None]
    return Reading(array, image.affine[:, [2, 1, 0, 3]])


def by_itk(path: Path) -> Reading:
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetDimension() < 3:
        return Reading(array)
    axes = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (axes, axes))[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:2] *= -1
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    return Reading(array, affine[:, [2, 1, 0, 3]])


def by_pydicom(path: Path) -> Reading:
    tags = pydicom.dcmread(path)
    pixels = tags.pixel_array
    if tags.get("PhotometricInterpretation") == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(pixels, tags)
    elif "DoseGridScaling" in tags:
        pixels = pixels * float(tags.DoseGridScaling)
    elif tags.get("SamplesPerPixel", 1) == 1 and not tags.get("SegmentSequence"):
        pixels = pydicom.pixels.apply_modality_lut(pixels, tags)
    return Reading(pixels)


def by_highdicom(path: Path) -> Reading:
    volume = highdicom.imread(path).get_volume(apply_real_world_transform=False, apply_modality_transform=None)
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    return Reading(volume.array, affine)


def by_tifffile(path: Path) -> Reading:
    return Reading(tifffile.imread(path))


def by_pillow(path: Path) -> Reading:
    with PIL.Image.open(path) as picture:
        frames = []
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            shown = {"P": "RGB", "1": "L"}.get(
                picture.mode
            )  # one bit is black and white, of which Pillow makes 0 and 1
            frames.append(np.asarray(picture.convert(shown) if shown else picture))
        return Reading(np.squeeze(np.stack(frames)))


READERS: dict[str, Callable[[Path], Reading]] = {
    "autoseg": by_autoseg,
    "nibabel": by_nibabel,
    "SimpleITK": by_itk,
    "pydicom": by_pydicom,
    "highdicom": by_highdicom,
    "tifffile": by_tifffile,
    "Pillow": by_pillow,
}


def claims(path: Path) -> list[str]:
    """Readers that may know the file; none for what is no image."""
    name = path.name.lower()
    if name.endswith(".dcm") or is_dicom(path):
        return ["autoseg", "SimpleITK", "pydicom", "highdicom"]
    found = [
        reader
        for reader, endings in (("nibabel", NIBABEL), ("tifffile", TIFFFILE), ("Pillow", PILLOW))
        if name.endswith(endings)
    ]
    if name.endswith(image_endings()):
        found.append("SimpleITK")
    return ["autoseg", *found] if found else []


# --- comparison ---


def same_values(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two arrays hold the same numbers in some order of their axes, those of length 1 left out."""
    first, second = np.squeeze(first), np.squeeze(second)
    if first.ndim != second.ndim or sorted(first.shape) != sorted(second.shape) or first.ndim > 5:
        return False
    first, second = first.astype(np.float64), second.astype(np.float64)
    finite = first[np.isfinite(first)]
    tolerance = SAME_VALUE * float(np.abs(finite).max(initial=0))
    return any(
        np.allclose(first, second.transpose(order), rtol=0, atol=tolerance, equal_nan=True)
        for order in permutations(range(second.ndim))
        if tuple(second.shape[axis] for axis in order) == first.shape
    )


def same_place(first: Reading, second: Reading) -> bool:
    """Whether the corners of two grids lie at the same places, whatever their order."""
    if first.affine is None or second.affine is None or first.array is None or second.array is None:
        return True

    def corners(reading: Reading) -> NDArray[np.float64]:
        assert reading.array is not None
        assert reading.affine is not None
        shape = reading.array.shape[-3:]
        return np.array([(reading.affine @ (*corner, 1))[:3] for corner in product(*((0, n - 1) for n in shape))])

    mine, others = corners(first), corners(second)
    apart = np.linalg.norm(mine[:, None] - others[None], axis=-1).min(axis=1).max()
    return bool(apart <= SAME_PLACE * np.linalg.norm(first.affine[:3, :3], axis=0).min())


def difference(mine: Reading, other: Reading) -> str:
    """What differs, in a word; empty if nothing does."""
    assert mine.array is not None
    assert other.array is not None
    if not same_values(mine.array, other.array):
        shapes = f"{tuple(mine.array.shape)} and {tuple(other.array.shape)}"
        return f"values, {shapes}" if np.squeeze(mine.array).size == other.array.size else f"shape, {shapes}"
    return "" if same_place(mine, other) else "place"


@dataclass(slots=True)
class Row:
    """One file."""

    path: Path
    kind: str
    """same, refused by all, only autoseg, refused, noted, readers disagree, or SILENT."""
    words: str = ""


def judge(path: Path, without: Collection[str] = ()) -> Row:
    """Read one file by all and compare."""
    readings = {name: attempt(READERS[name], path) for name in claims(path) if name not in without}
    mine = readings.pop("autoseg")
    others = {name: reading for name, reading in readings.items() if reading.array is not None}
    if mine.array is None:
        return Row(path, "refused" if others else "refused by all", f"{mine.said} ({', '.join(others) or 'as by all'})")
    if not others:
        return Row(path, "only autoseg", mine.said)
    found = {name: difference(mine, reading) for name, reading in others.items()}
    words = "; ".join(f"{name}: {what}" for name, what in found.items() if what)
    if not words:
        return Row(path, "same", mine.said)
    if mine.said:
        return Row(path, "noted", f"{mine.said}; {words}")
    agreeing = [name for name, what in found.items() if not what]
    if agreeing:
        return Row(path, "readers disagree", f"as {', '.join(agreeing)}; {words}")
    return Row(path, "SILENT", words)


def attempt(read: Callable[[Path], Reading], path: Path) -> Reading:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(path)
    except AutosegError as error:
        return Reading(said=", ".join(error.codes))
    except Exception as error:  # whatever they raise
        return Reading(said=f"{type(error).__name__}: {str(error)[:80]}")


def judge_alone(path: Path) -> Row:
    """`judge` in a child process: some readers end theirs, and are left out then."""
    row = in_child(lambda: judge(path))
    if row is not None:
        return row
    ended = [name for name in claims(path) if in_child(lambda name=name: bool(attempt(READERS[name], path))) is None]
    row = None if "autoseg" in ended else in_child(lambda: judge(path, without=ended))
    if row is None:
        return Row(path, "SILENT", f"autoseg ended the process, or took over {MOST_SECONDS} s")
    return Row(path, row.kind, "; ".join([*filter(None, [row.words]), f"{', '.join(ended)} ended the process"]))


def in_child(function: Callable[[], Result]) -> Result | None:
    """What ``function`` returns in a process of its own; None if that ended, or took too long."""

    def work(pipe: Connection) -> None:
        pipe.send(function())

    context: Any = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(sending,))
    child.start()
    sending.close()
    try:
        found: Result | None = receiving.recv() if receiving.poll(MOST_SECONDS) else None
    except EOFError:
        found = None
    child.kill()
    child.join()
    return found


def files_in(folder: Path) -> Iterator[Path]:
    """Files that at least one reader may know."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".py", ".pyc") and claims(path):
            yield path


# --- table ---


@dataclass(slots=True)
class Report:
    """The rows of one folder."""

    title: str
    folder: Path
    rows: list[Row] = field(default_factory=list)

    def text(self) -> str:
        """Counts, and a line for each file that is not simply the same."""
        counts = Counter(row.kind for row in self.rows)
        lines = [f"## {self.title}", "", f"{len(self.rows)} files: " + ", ".join(f"{n} {k}" for k, n in counts.items())]
        listed = [row for row in self.rows if row.kind not in ("same", "refused by all")]
        if listed:
            lines += ["", "| file | outcome | what |", "|---|---|---|"]
        for row in listed:
            lines.append(f"| `{row.path.relative_to(self.folder)}` | {row.kind} | {row.words} |")
        return "\n".join(lines) + "\n"


def main() -> int:
    """Exit status 1 where a difference is silent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--installed", action="store_true", help="the test data of " + ", ".join(PACKAGES))
    parser.add_argument("--out", type=Path, help="a Markdown file")
    given = parser.parse_args()
    reports = [Report(str(folder), folder) for folder in given.folders]
    for name in PACKAGES if given.installed else ():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            package = name.replace("skimage", "scikit-image")
            reports.append(Report(f"{package} {version(package)}", Path(spec.origin).parent))
    for report in reports:
        report.rows = [judge_alone(path) for path in files_in(report.folder)]
        sys.stdout.write(report.text() + "\n")
        sys.stdout.flush()
    if given.out is not None:
        given.out.write_text(page(sys.argv[1:], reports))
    return int(any(row.kind == "SILENT" for report in reports for row in report.rows))


def page(arguments: Sequence[str], reports: Sequence[Report]) -> str:
    """The whole table as Markdown."""
    command = " ".join(("python benchmarks/foreign_files.py", *(a for a in arguments)))
    readers = ", ".join(f"{name} {version(name)}" for name in READERS if name != "autoseg")
    legend = (
        "`same`: voxels and places agree with all readers. `readers disagree`: others do not agree among themselves, and autoseg agrees "
        "with those named first. `refused`: autoseg refuses with this code what the readers in brackets read. `noted`: it differs and "
        "has a note. `SILENT`: it differs from all and has no note."
    )
    head = f"# Files that others made\n\n`{command}`, {datetime.date.today()}; {readers}.\n\n{legend}\n\n"
    return head + "\n".join(report.text() for report in reports)


if __name__ == "__main__":
    sys.exit(main())
