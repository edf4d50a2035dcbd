"""The worker of `guarded`: decodes image files under limits of memory and time, and writes their pixels as a numpy file.

Run as a script, so that it loads nothing but what it needs: ``worker.py MAX_BYTES MAX_SECONDS DECODER OUT`` with the names of the
files, separated by NUL, on the standard input. What went wrong is the last line of the standard output.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

FRAME_TAGS = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration NumberOfFrames BitsAllocated BitsStored HighBit "
    "PixelRepresentation ExtendedOffsetTable ExtendedOffsetTableLengths PixelData FloatPixelData DoubleFloatPixelData"
)
"""What decoding the pixels of a DICOM file needs."""


def limit(num_bytes: int, seconds: int) -> None:
    """Let this process take no more address space and processor time."""
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def complete(tags: Any) -> None:
    """Fill in what old DICOM files leave out because there was no other way: one grey sample in all of its bits."""
    usual = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsStored": tags.get("BitsAllocated")}
    for name, value in usual.items():
        if tags.get(name) in (None, ""):
            setattr(tags, name, value)


def decode_dicom(files: list[str], out: str) -> None:
    """Write the stored values of all frames of DICOM ``files`` in that order, (frames, Y, X, samples), to ``out``."""
    import warnings

    import pydicom
    from pydicom.pixels.decoders.base import get_decoder

    warnings.simplefilter("ignore")
    frames = []
    for file in files:
        tags = pydicom.dcmread(file, specific_tags=FRAME_TAGS.split(), force=True)
        complete(tags)
        decoder = get_decoder(tags.file_meta.TransferSyntaxUID)
        if decoder.UID.keyword != "JPEGBaseline8Bit" and PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))
        # Pillow knows the colours of JPEG, and imagecodecs all else; without a choice pydicom tries one after the other
        plugin = "" if decoder.UID.keyword in ("JPEGBaseline8Bit", "JPEGExtended12Bit") else PLUGIN
        options: Any = {"allow_excess_frames": False}
        try:
            pixels, _ = decoder.as_array(tags, decoding_plugin=plugin, **options)
        except Exception as error:  # of one slice among many: which one
            if isinstance(error, MemoryError) or len(files) == 1:
                raise
            raise ValueError(f"{Path(file).name}: {last_line(error)}") from error
        frames.append(pixels.reshape(-1, tags.Rows, tags.Columns, tags.SamplesPerPixel))
    np.save(out, np.concatenate(frames))


# --- a plugin of pydicom: its own decoders leave out lossless JPEG (GPL), JPEG of 12 bits and HTJ2K, and are slow for run lengths ---

PLUGIN = "imagecodecs"
CODECS = (("JPEGLS", "jpegls"), ("JPEG2000", "jpeg2k"), ("HTJ2K", "htj2k"), ("JPEG", "jpeg8"))
"""Codec of imagecodecs by how the keyword of a transfer syntax begins; the first that fits."""

END_OF_IMAGE, PADDING = b"\xff\xd9", b"\0\xff"
"""The last marker of every kind of JPEG, and what encoders put after it."""


def is_available(_syntax: str) -> bool:
    """Pydicom asks this of a plugin."""
    return True


def decode_frame(packed: bytes, runner: Any) -> bytes:
    """The bytes of one frame, as pydicom asks them of a plugin."""
    import imagecodecs

    keyword = runner.transfer_syntax.keyword
    if keyword == "RLELossless":
        runner.set_option("planar_configuration", 1)
        return bytes(imagecodecs.dicomrle_decode(packed, f"<u{runner.bits_allocated // 8}"))
    if not packed.rstrip(PADDING).endswith(END_OF_IMAGE):  # most decoders fill in what is missing, and say nothing
        raise ValueError("its compressed pixels are cut off: they have no end marker")
    codec = next(codec for begin, codec in CODECS if keyword.startswith(begin))
    pixels = getattr(imagecodecs, f"{codec}_decode")(packed)
    size = max(pixels.dtype.itemsize, runner.bits_allocated // 8)
    runner.set_option("bits_allocated", size * 8)
    runner.set_option("planar_configuration", 0)
    if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
        runner.set_option("photometric_interpretation", "RGB")
    return bytes(pixels.astype(f"<{pixels.dtype.kind}{size}").tobytes())


def tiff_images(file: Any) -> list[Any]:
    """The series of a TIFF file, without thumbnails and lower resolutions; pages that were written one by one are one stack."""
    import tifffile

    images = [series for series in file.series if not series.keyframe.is_reduced and not series.keyframe.is_subifd]
    alike = {(series.kind, series.shape, series.dtype, series.axes, len(series.pages)) for series in images}
    if len(images) < 2 or len(alike) > 1 or images[0].kind != "shaped" or len(images[0].pages) > 1:
        return images
    first, pages = images[0], [series.pages[0] for series in images]
    shape = (len(pages), *first.shape)
    return [tifffile.TiffPageSeries(pages, shape, first.dtype, f"I{first.axes}", parent=file, kind="stack")]


def decode_tiff(files: list[str], out: str) -> None:
    """Write the pixels of the one image of a TIFF file to ``out``."""
    import tifffile

    with tifffile.TiffFile(files[0], _multifile=False) as file:
        np.save(out, tiff_images(file)[0].asarray(maxworkers=1))


def last_line(error: Exception) -> str:
    """Of what a decoder says; its kind where it says nothing."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def main() -> int:
    """Exit status: 0 done, 1 failed."""
    limit(int(sys.argv[1]), int(sys.argv[2]))
    try:
        {"dicom": decode_dicom, "tiff": decode_tiff}[sys.argv[3]](sys.stdin.read().split("\0"), sys.argv[4])
    except MemoryError:
        sys.stdout.write("it needs more memory than its header declares\n")
        return 1
    except Exception as error:  # each decoder has its own errors
        sys.stdout.write(f"\n{last_line(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
