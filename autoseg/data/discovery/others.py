"""Files of a dataset's folder that are not read, told by their ending: other formats, and annotations that are no label maps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from autoseg.data.discovery.files import compile_pattern
from autoseg.imaging.readers import WAYS_OUT, image_ending, image_endings, image_stem, is_debris, split_part
from autoseg.issues import Issue, Severity
from autoseg.wording import count_noun, shorten
from datasets_spec import Layout

FOREIGN = "dataset.foreign_format"
MOST_LISTED = 20_000
MOST_NESTED = 4
"""Entries and levels of folders that are looked through."""
LARGEST_JSON = 2**26
VOLUMES = (".mgz", ".mgh", ".img", ".mnc", ".rec", ".brik", ".nii.zst", ".nii.bz2", ".nii.xz", ".nii.zip")
"""Endings of volumes in formats that are not read: a case may be missing."""
YOLO = re.compile(r"\d+(?:\s+(?:0?\.\d+|[01](?:\.0*)?)(?:e-\d+)?){4,}\s*")
"""A line of a YOLO label: class, then a box or the corners of a polygon, as shares of the image."""


def files_below(folder: Path, depth: int = MOST_NESTED) -> Iterator[Path]:
    """Files below a folder, and folders whose name ends as such a file does; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if is_debris(entry.name):
            continue
        if not entry.is_dir(follow_symlinks=False) or path.suffix.lower() in WAYS_OUT:
            yield path
        elif depth:
            yield from files_below(path, depth - 1)


def foreign_ending(path: Path) -> str:
    """The ending of a format that is not read here, but known; else empty."""
    name = path.name.lower()
    return "" if image_ending(path) else next((ending for ending in WAYS_OUT if name.endswith(ending)), "")


def _json_kind(path: Path) -> str:
    if path.stat().st_size > LARGEST_JSON:
        return ""
    content = json.loads(path.read_text("utf-8-sig"))
    first = next(iter(content.values() if isinstance(content, dict) else content), None) if content else None
    named = [set(each) if isinstance(each, dict) else set() for each in (content, first)]
    if isinstance(content, dict) and content.get("type") in ("FeatureCollection", "Feature"):
        return "GeoJSON (QuPath)"
    return next((kind for kind, place, keys in JSON_KEYS if keys <= named[place]), "")


def _text_kind(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        lines = list(islice(file, 20))
    return "YOLO" if lines and all(map(YOLO.fullmatch, lines)) else ""


def _xml_kind(path: Path) -> str:
    with open(path, encoding="utf-8") as file:
        element = FIRST_ELEMENT.search(file.read(2000))
    return XML_ELEMENTS.get(element[1], "") if element else ""


def _table_kind(path: Path) -> str:
    with open(path, encoding="utf-8-sig") as file:
        names = {name.strip(' "\n').lower() for name in re.split("[,;\t]", file.readline(2000))}
    return next((kind for kind, columns in TABLE_COLUMNS.items() if any(each <= names for each in columns)), "")


JSON_KEYS = (
    ("COCO", 0, {"images", "annotations"}),
    ("COCO", 1, {"image_id", "category_id"}),
    ("LabelMe", 0, {"shapes", "imagePath"}),
    ("VIA", 0, {"_via_img_metadata"}),
    ("VIA", 1, {"filename", "regions"}),
    ("Label Studio", 1, {"annotations", "data"}),
    ("Supervisely", 0, {"objects", "size"}),
    ("GeoJSON (QuPath)", 1, {"geometry", "type"}),
)
"""Keys of the whole (0), or of its first entry (1)."""
FIRST_ELEMENT = re.compile(r"<([A-Za-z_]\w*)")
XML_ELEMENTS = {
    "annotation": "Pascal VOC",
    "annotations": "CVAT",
    "ASAP_Annotations": "ASAP",
    "Annotations": "ImageScope",
}
TABLE_COLUMNS: dict[str, tuple[set[str], ...]] = {
    "VIA": ({"region_shape_attributes"},),
    "run length": (
        {"encodedpixels"},
        {"encoded_pixels"},
        {"rle"},
        {"mask_rle"},
        {"rle_mask"},
        {"id", "class", "segmentation"},
    ),
    "box": ({"xmin", "ymin", "xmax", "ymax"}, {"x1", "y1", "x2", "y2"}, {"coordx", "coordy", "coordz"}),
}
KINDS = {".json": _json_kind, ".geojson": _json_kind, ".txt": _text_kind, ".xml": _xml_kind, ".csv": _table_kind}
MOST_OPENED = 10
"""Files of one ending in a folder that are opened; further ones are of the kind of the last."""


def _annotation_kind(path: Path) -> str:
    """The program or format whose annotations a file holds; empty for other files."""
    try:
        return KINDS[path.suffix.lower()](path)
    except (OSError, ValueError, RecursionError):
        return ""


OF_LABELS = re.compile(r"(?i)labels?|masks?|gt|segs?|segmentations?")
"""How names of folders with label maps begin."""


def unused_images(root: Path, layout: Layout, used: Iterable[str], test: Collection[str] = ()) -> list[Issue]:
    """A note on images below ``root`` that fit no pattern of ``layout``; those that do are cases, or named otherwise.

    ``used``: other images of cases. What the layout skips by name is left out, and so are label maps of the cases ``test`` in a
    folder such as ``labelsTs``, which serve to evaluate.
    """
    patterns = [compile_pattern(each, fields=layout.fields, endings=image_endings()) for each in layout.patterns]
    series = [re.compile(f"{each.pattern}.*") for each in patterns if each.pattern.endswith("/")]
    taken = {*used}
    folders = {split_part(Path(each))[0] for each in taken}
    unused = []
    for path in islice(files_below(root), MOST_LISTED):
        place = path.relative_to(root).as_posix()
        if (
            image_ending(path)
            and str(path) not in taken
            and path.parent not in folders
            and not (image_stem(path) in test and OF_LABELS.match(path.parent.name))
            and not any(each.fullmatch(place) for each in (*patterns, *series))
            and not any(fnmatchcase(part, name) for part in place.split("/") for name in layout.skip)
        ):
            unused.append(place)
    if not unused:
        return []
    folder = os.path.commonpath([Path(place).parent.parent for place in unused])
    message = (
        f"{count_noun(len(unused), 'image file')} not used, {layout.title} has no place for them: {shorten(unused)}"
    )
    # most of a dataset was left out: what was found is a part of it, or another one
    severity: Severity = "warning" if len(unused) > len(taken) else "note"
    instead = f"pass {root / folder} to use these, " if folder else ""
    fix = f"if they belong to the dataset, move them to the others, {instead}or describe the folder in a spec file (--spec)"
    return [Issue(code="layout.unused_files", severity=severity, where=str(root), message=message, fix=fix)]


def unread_files(root: Path) -> list[Issue]:
    """One issue for each other format and each kind of annotations among the files below ``root``.

    Volumes are a warning, since they may be cases, the others a note. Of each folder the first
    `MOST_OPENED` JSON, text, XML and CSV files are opened.
    """
    foreign: list[Path] = []
    kinds: dict[tuple[Path, str], list[str]] = {}
    annotations: dict[str, list[Path]] = {}
    for path in islice(files_below(root), MOST_LISTED):
        if foreign_ending(path):
            foreign.append(path)
        elif path.suffix.lower() in KINDS:
            opened = kinds.setdefault((path.parent, path.suffix.lower()), [])
            if len(opened) < MOST_OPENED:
                opened.append(_annotation_kind(path))
            if opened[-1]:
                annotations.setdefault(opened[-1], []).append(path)
    issues = [
        Issue(
            code="labels.annotation_files",
            severity="note",
            where=str(paths[0]),
            message=f"{count_noun(len(paths), 'file')} of {kind} annotations not used: labels are images of voxel values",
            fix="draw the boxes or polygons into label maps to train on them",
        )
        for kind, paths in sorted(annotations.items())
    ]
    return [*foreign_formats(foreign), *issues]


def foreign_formats(paths: Iterable[Path]) -> list[Issue]:
    """One issue for each ending of files that have a `foreign_ending`."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(foreign_ending(path), []).append(path)
    return [
        Issue(
            code=FOREIGN,
            severity="warning" if ending in VOLUMES else "note",
            where=str(paths[0]),
            message=f"{count_noun(len(paths), f'{ending} file')}: a format that is not read",
            fix=WAYS_OUT[ending].format(f"the {ending} files"),
        )
        for ending, paths in sorted(found.items())
    ]
