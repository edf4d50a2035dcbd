"""Read thousands of broken image files of every format and count what comes of it.

    python benchmarks/fuzz.py --number 10000 [--seed 0] [--real-data DIR] [--only dicom]

Small files of every format (and, with --real-data, real DICOM) are cut, have bits flipped, numbers of their headers set to
extremes, parts removed, doubled, swapped or filled with noise. Each is read as header, image and label map in a child
process, so that a crash is seen as one. Allowed are an `AutosegError` and a read; a cut file must be refused or read whole.
Faults, each kept in --keep DIR with what it did: another exception, a crash, more than `MOST_SECONDS`, more than
`MOST_BYTES` of memory beyond that of the start, a cut file read as if it were whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import SimpleITK
import tifffile
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
    SegmentationStorage,
)

from autoseg.imaging.readers import (
    files_of,
    is_segmentation,
    list_segments,
    read_header,
    read_image,
    read_label_map,
    read_segments,
    split_part,
)
from autoseg.issues import AutosegError, Issue

MOST_SECONDS = 20
"""Of processor time. A read of these small files takes milliseconds; a worker that decodes has a limit of its own."""
MOST_BYTES = 2 * 10**9
BATCH = 100
"""Reads by one child: more hide which of them took the memory, fewer cost time for forks."""
PROGRESS = 1000
SHAPE = (5, 24, 20)
SLOW = (
    "dicom-jpeg2000",
    "dicom-rle",
    "dicom-jpeg",
    "dicom-lossless",
    "dicom-jpegls",
    "dicom-htj2k",
    "tif-zstd",
    "tif-jpeg",
)
"""Seeds whose decoding starts a process each time."""


# --- sound files ---

DICOM = {
    "dicom": ExplicitVRLittleEndian,
    "dicom-big": ExplicitVRBigEndian,
    "dicom-rle": RLELossless,
    "dicom-jpeg": JPEGExtended12Bit,
    "dicom-lossless": JPEGLosslessSV1,
    "dicom-jpegls": JPEGLSLossless,
    "dicom-htj2k": HTJ2KLossless,
}
ENCODE: dict[str, Callable[[NDArray], bytes]] = {
    JPEGExtended12Bit: lambda plane: imagecodecs.jpeg8_encode(plane, bitspersample=12, level=100),
    JPEGLosslessSV1: lambda plane: imagecodecs.ljpeg_encode(plane, bitspersample=12),
    JPEGLSLossless: lambda plane: imagecodecs.jpegls_encode(plane),
    HTJ2KLossless: lambda plane: imagecodecs.htj2k_encode(plane, reversible=True),
}


def make_seeds(folder: Path, real_data: Path | None) -> dict[str, Path]:
    """Sound files by format: name of the seed, and the path that is read. Each lies in a folder of its own."""
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 7, SHAPE).astype(np.int16)
    flat = rng.integers(0, 255, (24, 20)).astype(np.uint8)
    colours = rng.integers(0, 255, (24, 20, 3)).astype(np.uint8)
    made: dict[str, Path] = {}

    def place(name: str, file: str) -> Path:
        made[name] = folder / name / file
        made[name].parent.mkdir(parents=True)
        return made[name]

    def itk(name: str, file: str, array: NDArray, *, compress: bool, vector: bool = False) -> None:
        image = SimpleITK.GetImageFromArray(array, isVector=vector)
        SimpleITK.WriteImage(image, str(place(name, file)), useCompression=compress)

    for ending in ("nii.gz", "nii", "nrrd", "nhdr", "mha", "mhd", "gipl"):
        itk(ending, f"a.{ending}", volume, compress=ending != "nii")
    itk("nrrd-raw", "a.nrrd", volume, compress=False)
    itk("mha-raw", "a.mha", volume, compress=False)
    itk("nii.gz-4d", "a.nii.gz", np.stack([volume] * 2).astype(np.float32), compress=True)
    itk("nrrd-channels", "a.nrrd", rng.normal(size=(*SHAPE, 2)), compress=True, vector=True)
    segments = SimpleITK.Compose([SimpleITK.GetImageFromArray((volume > k).astype(np.uint8)) for k in (2, 4)])
    for number, text in enumerate(("Name=liver", "Name=vessel")):
        for entry in (text, f"Layer={number}", "LabelValue=1"):
            key, _, value = entry.partition("=")
            segments.SetMetaData(f"Segment{number}_{key}", value)
    SimpleITK.WriteImage(segments, str(place("seg.nrrd", "a.seg.nrrd")), useCompression=True)
    for ending in ("png", "bmp", "jpg", "tif"):
        itk(ending, f"a.{ending}", flat, compress=ending == "png")
        itk(f"{ending}-colours", f"a.{ending}", colours, compress=True, vector=True)
    itk("png-16", "a.png", flat.astype(np.uint16) * 200, compress=True)
    itk("tif-pages", "a.tif", volume.astype(np.uint16), compress=True)
    pictures(place, flat, colours)
    for name, syntax in DICOM.items():
        series = place(name, "s").parent
        made[name] = series
        for z, plane in enumerate(volume):
            write_slice(series / f"{z}.dcm", plane, z, syntax)
    write_enhanced(place("dicom-enhanced", "a.dcm"), volume)
    contours = place("dicom-rtstruct", "rt.dcm")
    for z, plane in enumerate(volume):
        write_slice(contours.parent / f"{z}.dcm", plane, z, ExplicitVRLittleEndian)
    write_contours(contours)
    write_segmentation(place("dicom-seg", "a.dcm"), volume)
    if real_data is not None:
        add_real(real_data, place)
    return made


def pictures(place: Callable[[str, str], Path], flat: NDArray, colours: NDArray) -> None:
    """What tifffile, Pillow and imagecodecs read in different ways."""
    pages = np.stack([flat] * 5).astype(np.uint16)
    tifffile.imwrite(place("tif-lzw", "a.tif"), pages, compression="lzw", predictor=True)
    tifffile.imwrite(place("tif-zstd", "a.tif"), flat, compression="zstd")
    tifffile.imwrite(place("tif-jpeg", "a.tif"), colours, compression="jpeg", photometric="rgb")
    tifffile.imwrite(
        place("tif-tiles", "a.tif"), pages, planarconfig="separate", photometric="minisblack", tile=(16, 16)
    )
    tifffile.imwrite(place("tif-imagej", "a.tif"), pages, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(place("tif-ome", "a.ome.tif"), pages, metadata={"axes": "CYX"})
    tifffile.imwrite(place("tif-big", "a.tif"), pages, bigtiff=True, compression="zlib", byteorder=">")
    PIL.Image.fromarray(np.stack([flat, flat], -1), mode="LA").save(place("png-alpha", "a.png"))
    palette = PIL.Image.fromarray(flat % 4, mode="P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 9, 9, 9])
    palette.save(place("png-palette", "a.png"))
    palette.save(place("bmp-palette", "a.bmp"))
    PIL.Image.fromarray(flat > 99).save(place("bmp-1bit", "a.bmp"))
    runs = bytes([20, 7, 0, 0]) * 24 + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 20, 24, 1, 8, 1, len(runs), 0, 0, 0, 0)
    start = struct.pack("<2sIHHI", b"BM", 54 + 1024 + len(runs), 0, 0, 54 + 1024)
    place("bmp-runs", "a.bmp").write_bytes(start + head + bytes(range(256)) * 4 + runs)


def add_real(real_data: Path, place: Callable[[str, str], Path]) -> None:
    jpeg2000 = sorted((real_data / "dicom_series" / "ct_body_jpeg2000" / "dicom").iterdir())[:2]
    slices = place("dicom-jpeg2000", jpeg2000[0].name)
    for file in jpeg2000:
        shutil.copy(file, slices.parent)
    shutil.copy(real_data / "dicom_seg_ct3slice" / "liver.dcm", place("dicom-seg-real", "a.dcm"))


def _dataset(storage: str, syntax: str, rows: int, columns: int) -> Dataset:
    tags = Dataset()
    tags.file_meta = FileMetaDataset()
    tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = storage
    tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    tags.file_meta.TransferSyntaxUID = syntax
    tags.StudyInstanceUID, tags.SeriesInstanceUID = "1.2", "1.2.3"
    tags.Rows, tags.Columns, tags.SamplesPerPixel, tags.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
    tags.PixelRepresentation = 0
    return tags


def write_slice(path: Path, plane: NDArray[np.int16], z: int, syntax: str) -> None:
    tags = _dataset(CTImageStorage, ExplicitVRLittleEndian if syntax == RLELossless else syntax, *plane.shape)
    tags.Modality, tags.ImagePositionPatient, tags.ImageOrientationPatient = "CT", [0, 0, 2.5 * z], [1, 0, 0, 0, 1, 0]
    tags.PixelSpacing, tags.RescaleSlope, tags.RescaleIntercept = [0.5, 0.75], 1, -3
    tags.BitsAllocated, tags.BitsStored, tags.HighBit = 16, 12, 11
    tags.PixelData = plane.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    if syntax == RLELossless:
        tags.compress(RLELossless)
    if syntax in ENCODE:
        tags.PixelData = encapsulate([ENCODE[syntax](plane.astype(np.uint16))])
        tags["PixelData"].is_undefined_length = True
    tags.save_as(path, enforce_file_format=True)


def write_enhanced(path: Path, volume: NDArray[np.int16]) -> None:
    """All slices of ``volume`` (Z, Y, X) as frames of one file."""
    tags = _dataset(EnhancedCTImageStorage, ExplicitVRLittleEndian, *volume.shape[1:])
    tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.NumberOfFrames = 16, 16, 15, len(volume)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = [0.5, 0.75], [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    tags.SharedFunctionalGroupsSequence, tags.PerFrameFunctionalGroupsSequence = [shared], []
    for z in range(len(volume)):
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, values.RescaleSlope, values.RescaleIntercept = [0, 0, 2.5 * z], 1 + z, -3
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [values]
        tags.PerFrameFunctionalGroupsSequence.append(frame)
    tags.PixelData = volume.astype("<u2").tobytes()
    tags.save_as(path, enforce_file_format=True)


def write_contours(path: Path) -> None:
    """Two structures, drawn in the slices of `write_slice`."""
    tags = _dataset(RTStructureSetStorage, ExplicitVRLittleEndian, 0, 0)
    del tags.Rows, tags.Columns
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, study.RTReferencedSeriesSequence = tags.SeriesInstanceUID, [series]
    frame.RTReferencedStudySequence = [study]
    tags.ReferencedFrameOfReferenceSequence, tags.SeriesInstanceUID = [frame], "1.2.4"
    tags.StructureSetROISequence, tags.ROIContourSequence = [], []
    for number in (1, 2):
        structure, drawn = Dataset(), Dataset()
        structure.ROINumber, structure.ROIName, drawn.ReferencedROINumber = number, f"class {number}", number
        drawn.ContourSequence = []
        for z in range(1, 4):
            contour, first = Dataset(), 4.0 * number
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 3
            contour.ContourData = [first, 1, 2.5 * z, first + 3, 1.2, 2.5 * z, first + 2, 7.3, 2.5 * z]
            drawn.ContourSequence.append(contour)
        tags.StructureSetROISequence.append(structure)
        tags.ROIContourSequence.append(drawn)
    tags.save_as(path, enforce_file_format=True)


def write_segmentation(path: Path, labels: NDArray[np.int16]) -> None:
    """Segments 1 and 2 of ``labels`` (Z, Y, X)."""
    tags = _dataset(SegmentationStorage, ExplicitVRLittleEndian, *labels.shape[1:])
    tags.Modality, tags.SegmentationType, tags.BitsAllocated, tags.BitsStored, tags.HighBit = "SEG", "BINARY", 1, 1, 0
    tags.NumberOfFrames = 2 * len(labels)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SpacingBetweenSlices = [0.5, 0.75], 2.5
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    tags.SharedFunctionalGroupsSequence, tags.SegmentSequence, frames, bits = [shared], [], [], []
    for number in (1, 2):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, f"class {number}"
        tags.SegmentSequence.append(segment)
        for z in range(len(labels)):
            place, owner, frame = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient, owner.ReferencedSegmentNumber = [0, 0, 2.5 * z], number
            frame.PlanePositionSequence, frame.SegmentIdentificationSequence = [place], [owner]
            frames.append(frame)
            bits.append(labels[z] == number)
    tags.PerFrameFunctionalGroupsSequence = frames
    tags.PixelData = np.packbits(np.array(bits).ravel(), bitorder="little").tobytes()
    tags.save_as(path, enforce_file_format=True)


# --- broken files ---

EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 30_000, 10**6)
WORDS = ("0", "-1", "nan", "inf", "1e300", "99999999999999999999", "30000", "2147483648", "", "none", "(", "3 3", "\0")
HEAD = 1200
"""Headers lie here; extremes are set here."""


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_header(content: bytes, rng: random.Random) -> bytes:
    return flip(content[:HEAD], rng) + content[HEAD:]


def extreme(content: bytes, rng: random.Random) -> bytes:
    """Numbers in the header set to extremes: binary ones anywhere, written ones where they stand."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:HEAD]))
    if numbers and rng.random() < 0.5:
        match = rng.choice(numbers)
        return content[: match.start()] + rng.choice(WORDS).encode() + content[match.end() :]
    size, value = rng.choice((1, 2, 4, 8)), rng.choice(EXTREMES)
    place = rng.randrange(max(1, min(HEAD, len(content)) - size))
    word = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return content[:place] + word + content[place + size :]


def noise(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    length = rng.choice((1, 4, 32, 400))
    return content[:start] + rng.randbytes(length) + content[start + length :]


def remove(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.choice((1, 2, 16, 200)) :]


def double(content: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:end] + content[start:end] + content[end:]


def swap(content: bytes, rng: random.Random) -> bytes:
    """Head and tail in the wrong order, behind a sound beginning."""
    start, end = sorted(rng.randrange(len(content)) for _ in range(2))
    return content[:start] + content[end:] + content[start:end]


WAYS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut,
    cut,
    flip,
    flip,
    flip_header,
    flip_header,
    extreme,
    extreme,
    extreme,
    noise,
    remove,
    double,
    swap,
)


@dataclass(frozen=True, slots=True)
class Broken:
    """One broken file: which seed, which way, and the random numbers that made it."""

    seed: str
    way: str
    number: int


def plan(seeds: Sequence[str], number: int, start: int) -> list[Broken]:
    """``number`` broken files, every seed as often as any other, those that need a worker a tenth as often."""
    turns = [seed for turn in range(10) for seed in seeds if turn == 0 or seed not in SLOW]
    return [
        Broken(
            seed=turns[i % len(turns)],
            way=random.Random(f"{start} {i}").choice(WAYS).__name__,
            number=start * 10**8 + i,
        )
        for i in range(number)
    ]


def break_file(broken: Broken, seed: Path, folder: Path) -> Path:
    """A copy of the seed's folder in which one file is broken; the path to read."""
    source = seed if seed.is_dir() else seed.parent
    target = folder / "broken"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    rng = random.Random(broken.number)
    victim = rng.choice(sorted(target.iterdir()))
    victim.write_bytes(globals()[broken.way](victim.read_bytes(), rng))
    return target if seed.is_dir() else target / seed.name


# --- reading ---


@dataclass(slots=True)
class Result:
    """What came of one file."""

    outcome: str
    """refused, same (as the sound file), other (read, but different), or a fault."""
    detail: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0


def read_all(path: Path) -> list[NDArray]:
    """Everything that reading gives; `AutosegError` when both ways of reading refuse."""
    files_of(path)
    read_header(path)
    results: list[NDArray] = []
    refusals = []
    if is_segmentation(path):
        list_segments(path)
    for read in (lambda: read_image([path]).array, lambda: read_label_map(path).array, lambda: read_masks(path)):
        try:
            results.append(read())
        except AutosegError as error:
            refusals.append(error)
    if not results:
        raise refusals[0]
    return results


def read_masks(path: Path) -> NDArray:
    """All segments of a file of segments as masks; `AutosegError` for other files."""
    if not is_segmentation(path):
        raise AutosegError(Issue(code="reader.no_segments", where=str(path), message="it holds no segments"))
    return np.array([segment.mask for segment in read_segments(path).segments])


def processor_seconds() -> float:
    """Processor time of this process and of the workers that it waited for."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def judge(path: Path, broken: Broken, sound: Sequence[NDArray]) -> Result:
    begin = processor_seconds()
    try:
        found = read_all(path)
    except AutosegError as error:
        (issue,) = error.issues
        is_sound = split_part(Path(issue.where))[0].is_relative_to(path.parent) and "\n" not in str(error)
        outcome = "refused" if is_sound else "a message without its file"
        return Result(outcome, f"{issue.code} {error}"[:300], processor_seconds() - begin)
    except Exception as error:
        return Result(f"raised {type(error).__name__}", traceback.format_exc()[-1500:], processor_seconds() - begin)
    same = any(np.array_equal(a, b, equal_nan=True) for a in found for b in sound)
    outcome = "same" if same else "cut, but read" if broken.way == "cut" else "other"
    return Result(outcome, "", processor_seconds() - begin)


ALLOWED = {"refused", "same", "other"}


def peak() -> int:
    """Most memory that this process had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_batch(batch: Sequence[Broken], seeds: dict[str, Path], sound: dict[str, list[NDArray]]) -> Iterator[Result]:
    """Results of ``batch``, from a child process; when it dies, that is the result and another child goes on."""
    done = 0
    while done < len(batch):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(batch[done:], seeds, sound, writing)
        os.close(writing)
        with os.fdopen(reading) as stream:
            for line in stream:
                done += 1
                yield Result(**json.loads(line))
        _, status = os.waitpid(child, 0)
        if done < len(batch):
            cause = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
            done += 1
            yield Result("hung" if cause == "SIGPROF" else f"crashed ({cause})")


def _child(batch: Sequence[Broken], seeds: dict[str, Path], sound: dict[str, list[NDArray]], writing: int) -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with os.fdopen(writing, "w") as stream, tempfile.TemporaryDirectory() as folder:
        for broken in batch:
            path = break_file(broken, seeds[broken.seed], Path(folder))
            before = peak()
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            result = judge(path, broken, sound[broken.seed])
            signal.setitimer(signal.ITIMER_PROF, 0)
            result.peak_bytes = peak() - before
            if result.peak_bytes > MOST_BYTES:
                result = Result(
                    "took too much memory", f"{result.outcome}: {result.detail}", result.seconds, result.peak_bytes
                )
            stream.write(json.dumps({name: getattr(result, name) for name in Result.__slots__}) + "\n")
            stream.flush()
    os._exit(0)


@dataclass(slots=True)
class Summary:
    """Counts of a whole run."""

    outcomes: Counter = field(default_factory=Counter)
    by_seed: dict[str, Counter] = field(default_factory=dict)
    faults: list[tuple[Broken, Result]] = field(default_factory=list)
    slowest: float = 0.0
    largest: int = 0

    def add(self, broken: Broken, result: Result) -> None:
        self.outcomes[result.outcome] += 1
        self.by_seed.setdefault(broken.seed, Counter())[result.outcome] += 1
        self.slowest, self.largest = max(self.slowest, result.seconds), max(self.largest, result.peak_bytes)
        if result.outcome not in ALLOWED:
            self.faults.append((broken, result))


def fuzz(
    number: int, *, start: int = 0, real_data: Path | None = None, keep: Path | None = None, only: str | None = None
) -> Summary:
    """Break and read ``number`` files."""
    summary = Summary()
    with tempfile.TemporaryDirectory() as folder:
        seeds = make_seeds(Path(folder), real_data)
        seeds = {name: path for name, path in seeds.items() if name.startswith(only or "")}
        sound = {name: read_all(path) for name, path in seeds.items()}
        broken = plan(sorted(seeds), number, start)
        for first in range(0, number, BATCH):
            if first and first % PROGRESS == 0:
                print(f"{first} so far: {dict(summary.outcomes)}", flush=True)
            batch = broken[first : first + BATCH]
            for one, result in zip(batch, run_batch(batch, seeds, sound), strict=True):
                summary.add(one, result)
                if result.outcome not in ALLOWED:
                    print(f"FAULT {one}: {result.outcome} {result.detail}", flush=True)
                if keep is not None and result.outcome not in ALLOWED:
                    break_file(one, seeds[one.seed], keep / f"{one.seed}_{one.way}_{one.number}")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real-data", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", help="seeds whose names begin so")
    options = parser.parse_args()
    begin = time.perf_counter()
    summary = fuzz(
        options.number, start=options.seed, real_data=options.real_data, keep=options.keep, only=options.only
    )
    for name, counts in sorted(summary.by_seed.items()):
        print(f"{name:16}", ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    print(
        f"{options.number} broken files in {time.perf_counter() - begin:.0f} s: {dict(summary.outcomes)}; slowest "
        f"{summary.slowest:.1f} s, largest growth {summary.largest / 1e6:.0f} MB; {len(summary.faults)} faults"
    )
    sys.exit(bool(summary.faults))


if __name__ == "__main__":
    main()
