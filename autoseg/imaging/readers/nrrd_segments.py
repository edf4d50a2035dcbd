"""Segments of NRRD files as 3D Slicer writes them (``.seg.nrrd``): a label map, or several in layers, with names in the header.

Each segment has keys ``Segment0_Name``, ``Segment0_Layer``, ``Segment0_LabelValue`` ...; older files have neither layers nor
values, but one mask for each segment in its order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.imaging.image import Geometry
from autoseg.imaging.readers.endings import NRRD, image_ending
from autoseg.imaging.readers.header import ImageHeader, damaged
from autoseg.imaging.readers.nrrd import nrrd_header, nrrd_pairs, nrrd_voxels
from autoseg.imaging.readers.segmentation import Segment, Segmentation, SegmentNames

KEY = re.compile(r"Segment(\d{1,5})_(ID|Name|Layer|LabelValue)")
MOST_NUMBERS = 2**16


def has_segments(file: Path) -> bool:
    """Whether ``file`` is an NRRD file whose header names segments."""
    return image_ending(file) in NRRD and bool(_entries(nrrd_pairs(file)))


def nrrd_segment_names(file: Path) -> SegmentNames:
    """Names of the segments of an NRRD file by their numbers.

    Numbers are the values in the file where no two segments share one, else places in the order of the file, from 1 on.
    Raises `AutosegError` when the header makes no sense or names no segments.
    """
    entries = _named(file, nrrd_header(file))
    are_values = all(each.number == each.value and each.layer == 0 for each in entries)
    return SegmentNames(by_number={each.number: each.name for each in entries}, may_overlap=not are_values)


def nrrd_segments(file: Path) -> Segmentation:
    """All segments of an NRRD file, numbered as by `nrrd_segment_names`, those without a voxel among them.

    Raises `AutosegError` when the file is damaged or names no segments.
    """
    header = nrrd_header(file)
    entries, layers = _named(file, header), nrrd_voxels(file)
    return Segmentation(
        segments=tuple(
            _segment(each.number, each.name, layers[each.layer] == each.value, header.geometry)
            for each in sorted(entries, key=lambda each: each.number)
        ),
        geometry=header.geometry,
    )


@dataclass(frozen=True, slots=True)
class _Named:
    number: int
    name: str
    layer: int
    value: int


def _named(file: Path, header: ImageHeader) -> list[_Named]:
    entries = _entries(nrrd_pairs(file))
    if not entries:
        raise damaged(file, "its header names no segments")
    places = [_place(file, order, entry, header.num_channels) for order, entry in enumerate(entries.values())]
    values = [value for _, value in places]
    numbers = values if len(set(values)) == len(values) else range(1, len(values) + 1)
    return [
        _Named(number, (entry.get("Name") or entry.get("ID") or f"segment_{number}").strip(), *place)
        for number, entry, place in zip(numbers, entries.values(), places, strict=True)
    ]


def _entries(pairs: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """What the header says of each segment, in its order."""
    found: dict[int, dict[str, str]] = {}
    for key, value in pairs.items():
        match = KEY.fullmatch(key)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = value
    return dict(sorted(found.items()))


def _place(file: Path, order: int, entry: Mapping[str, str], num_layers: int) -> tuple[int, int]:
    """Layer and value of a segment."""
    layer, value = entry.get("Layer", str(order if "LabelValue" not in entry else 0)), entry.get("LabelValue", "1")
    if not layer.strip().isdecimal() or int(layer) >= num_layers:
        raise damaged(file, f"its header places a segment in layer {layer[:20]!r}, but it has {num_layers}")
    if not value.strip().isdecimal() or not 0 < int(value) < MOST_NUMBERS:
        raise damaged(file, f"its header gives a segment the value {value[:20]!r}, expected a whole number from 1 on")
    return int(layer), int(value)


def _segment(number: int, name: str, mask: NDArray[np.bool_], geometry: Geometry) -> Segment:
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    _, rows, columns = mask.shape
    frames = np.packbits(mask[slices].reshape(len(slices), rows * columns), axis=1)
    return Segment(number=number, name=name, slices=tuple(int(z) for z in slices), frames=frames, geometry=geometry)
