"""Which layout a folder has: what each layout finds in it, and the best match."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoseg.data.discovery.files import FoundFile, find_list, list_files, match_files, read_case_list
from autoseg.data.place import is_list, require_dataset, unlisted
from autoseg.imaging.readers import (
    dicom_candidates,
    image_endings,
    image_stem,
    is_dicom,
    is_dicom_series,
    is_picture_stack,
    is_segmentation,
    read_label_map,
    require_text,
    series_uid,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import count_noun
from datasets_spec import CaseFiles, Layout, all_layouts, read_spec, unknown_layout
from datasets_spec.layout import CLASS, ENDING, FIELD
from planners import DocumentError


def candidate_layouts(
    folder: Path, layouts: Sequence[Layout] | None, name: str | None
) -> tuple[Path, Sequence[Layout]]:
    """The folder to search and the layouts to search for."""
    known = all_layouts() if layouts is None else layouts
    if is_list(folder):
        lists = [each for each in known if each.listing is not None]
        return folder.parent.resolve(), [
            each.model_copy(update={"listing": each.listing.model_copy(update={"files": (folder.name,)})})
            for each in lists
            if each.listing is not None
        ]
    require_dataset(folder)
    require_text([folder.resolve()])
    root = folder.resolve()
    if name is None:
        return root, known
    chosen = [each for each in known if each.name == name]
    if not chosen:
        raise AutosegError(unknown_layout(name, known))
    return root, chosen


def read_layout(path: Path) -> Layout:
    """The layout that a spec file describes."""
    try:
        return read_spec(path)
    except (DocumentError, OSError) as error:
        found = tuple(map(str, error.issues)) if isinstance(error, DocumentError) else (error.strerror or str(error),)
        fix = "see docs/guides/spec-files.md for how to write a spec file"
        raise AutosegError(
            *(Issue(code="spec.invalid", where=str(path), message=message, fix=fix) for message in found)
        ) from error


NUM_TRIED = 3
"""Cases whose files are read where any file beside the image may be a mask."""
SEGMENTS = ".seg.nrrd"
"""Ending of the segmentations of 3D Slicer: several of one case are one for each structure."""
SPLIT_NAME = re.compile(r"(?:(?!\{case\}).)*\{case\}\{\w+\}\{class\}.*")
"""A pattern in which the name of the case, which no folder gives, ends where that of the class begins."""
SEPARATOR = re.compile("[-_. ]+")
NO_CLASS = re.compile(
    r"(?i)(?:.*[-_ ])?(?:(?:r|v)[-_ ]?[0-9]+|(?:rater|reader|observer|obs|expert|annotator|manual|gt|version)[-_ ]?[0-9]*)|"
    r"[0-9]+(?:(?:st|nd|rd|th).*)?|"
    r"(?:pred(?:ict(?:ion|ed)?)?s?|results?|outputs?|test|val(?:id(?:ation)?)?|train(?:ing)?)(?:[-_ 0-9].*)?"
)
"""What stands where the name of a class could: raters, versions, predictions."""
Files = dict[str, list[FoundFile]]
SEARCHED = {"skip", "fields", "case_id", "training", "test", "listing", "without_label", "labels_by_content"}
"""What of a layout decides which files it finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a layout finds in a folder; keys are case ids, paths relative to the folder."""

    layout: Layout
    images: Files
    labels: Files
    test: Files
    issues: tuple[Issue, ...] = ()
    """Faulty entries of the list."""

    @property
    def paired(self) -> tuple[str, ...]:
        """Ids of cases with image and label, sorted."""
        return tuple(sorted(self.images.keys() & self.labels.keys()))

    @property
    def label_files(self) -> frozenset[str]:
        """Label files of paired cases."""
        return frozenset(file.path for case_id in self.paired for file in self.labels[case_id])


def match_layouts(root: Path, layouts: Iterable[Layout]) -> list[Match]:
    """What each layout finds; layouts with the same patterns are matched once."""
    found: dict[str, Match] = {}
    matches = []
    for layout in layouts:
        searched = layout.model_dump_json(include=SEARCHED)
        if searched not in found:
            found[searched] = match_layout(root, layout)
        matches.append(replace(found[searched], layout=layout))
    return matches


def match_layout(root: Path, layout: Layout, *, files: Sequence[str] | None = None, in_folder: bool = False) -> Match:
    """What ``layout`` finds in the folder ``root``, or among ``files`` below it, which are all of it if ``in_folder``.

    A layout of a last resort must find masks, except among given files: images to predict have none. Raises `AutosegError`
    where a folder cannot be listed.
    """
    if layout.listing is not None:
        return _match_list(root, layout)
    if files is None:
        try:
            listed = list_files(root, layout.patterns, fields=layout.fields, skip=layout.skip)
        except OSError as error:
            raise AutosegError(unlisted(Path(error.filename), error)) from error
        match = match_layout(root, layout, files=listed, in_folder=True)
        unsure = layout.last_resort and not _holds_masks(root, match)
        return Match(layout=layout, images={}, labels={}, test={}) if unsure else match
    training, test = layout.training or CaseFiles(images=("{case}{ending}",)), layout.test
    images = _found(files, training.images, layout)
    labels = _found(files, training.labels, layout, cases={file.fields.get("case", "") for file in images})
    if CLASS not in layout.fields:  # a class of any name must not take the image for a mask
        named = {(file.path, file.fields.get("case")): file.num_free for file in images}
        labels = [
            f
            for f in labels
            if CLASS not in f.fields or named.get((f.path, f.fields.get("case")), f.num_free) >= f.num_free
        ]
    if in_folder and layout.labels_by_content:
        labels = [*labels, *_drawn(root, images, labels, layout)]
    labels = list(_stacks(root, labels))
    taken = {file.path for file in labels}
    images = [file for file in images if file.path not in taken]
    test_images: list[FoundFile] = []
    if test is not None:
        taken = {file.path for file in _found(files, test.labels, layout)}
        test_images = [file for file in _found(files, test.images, layout) if file.path not in taken]
    match = Match(
        layout=layout,
        images=_by_case(_readable_series(root, images), layout),
        labels=_by_case(labels, layout),
        test=_apart(_by_case(_readable_series(root, test_images), layout)),
    )
    if _is_accident(match):
        return Match(layout=layout, images={}, labels={}, test={})
    # What lies where test images may be is one of them if it has no label map, else a training image.
    in_test = {file.path for found in match.test.values() for file in found}
    labelled = {case_id: _outside(found, in_test) for case_id, found in match.images.items() if case_id in match.labels}
    lone = {case_id: found for case_id, found in match.images.items() if case_id not in match.labels}
    used = {file.path for found in labelled.values() for file in found}
    unlabelled = _without_files(match.test, used)
    if layout.without_label == "test":
        return replace(match, images=labelled, test=lone | unlabelled)
    return replace(match, images=labelled | _without_files(lone, in_test), test=unlabelled)


def _is_accident(match: Match) -> bool:
    """Whether names of cases were taken for those of channels, or the folder is a collection of other things."""
    counts, paired = count_channels(match), match.paired
    # names that have nothing in common
    if counts and 2 * max(counts.values()) <= len(paired) and not match.layout.repeat_channel:
        return True
    lone = len(match.images.keys() - match.labels.keys())
    several = sum(sum(CLASS not in file.fields for file in match.labels[case_id]) > 1 for case_id in paired)
    if several > len(paired) - several and (lone > len(paired) - several or len(paired) == 1 < len(counts)):
        return True
    if "folder" not in FIELD.findall(match.layout.case_id):
        return False
    folders = {file.fields["folder"] for case_id in paired for file in match.images[case_id]}
    return len(folders) == 1 or lone > len(paired) or bool(match.labels.keys() - match.images.keys())


def _apart(files: Files) -> Files:
    """Files of equal names in several test folders are several cases, named after their folder, too."""
    result: Files = {}
    for case_id, found in files.items():
        folders: Files = {}
        for file in found:
            folders.setdefault(file.path.split("/")[0], []).append(file)
        channels = [{file.channel for file in each} for each in folders.values()]
        if len(set().union(*channels)) == sum(map(len, channels)):  # no channel twice
            result[case_id] = found
        else:
            result |= {f"{folder}_{case_id}": each for folder, each in folders.items()}
    return result


def _outside(found: list[FoundFile], in_test: Collection[str]) -> list[FoundFile]:
    """Images of a case without those of a test case of the same number, where all its channels are left."""
    left = [file for file in found if file.path not in in_test]
    return left if {file.channel for file in left} == {file.channel for file in found} else found


def _without_files(files: Files, paths: Collection[str]) -> Files:
    return {case_id: left for case_id, found in files.items() if (left := [f for f in found if f.path not in paths])}


def count_channels(match: Match) -> Counter[str]:
    """How many paired cases have each text of ``{channel}``."""
    return Counter(text for case_id in match.paired for text in {file.channel for file in match.images[case_id]})


TRAINING_FOLDER = re.compile(r"(?i).*train.*|.*(?:^|[_-])tr")


def find_test_beside(match: Match, root: Path) -> Files:
    """Test images in folders beside ``root``, if that is the training folder of a dataset and has none; absolute paths."""
    layout = match.layout
    if match.test or layout.test is None or "test" not in layout.fields or not TRAINING_FOLDER.fullmatch(root.name):
        return {}
    try:
        listed = list_files(root.parent, layout.test.images, fields=layout.fields, skip=layout.skip)
    except OSError:
        return {}
    files = [file for file in listed if re.fullmatch(layout.fields["test"], file.split("/")[0])]
    labels = {file.path for file in _found(files, layout.test.labels, layout)}
    beside = [
        replace(file, path=(root.parent / file.path).as_posix())
        for file in _found(files, layout.test.images, layout)
        if file.path not in labels and file.path.split("/")[0] != root.name
    ]
    return _by_case(_readable_series(root, beside), layout)


def best_match(matches: Sequence[Match]) -> Match:
    """The match with the most cases; of several the one that its layout prefers, then the first.

    One of a last resort only where no other has a case, or cases have several files of segments.
    """

    def fits(match: Match) -> bool:
        segments = [sum(f.path.lower().endswith(SEGMENTS) for f in match.labels[case_id]) for case_id in match.paired]
        several = 2 * sum(number > 1 for number in segments) > len(segments)
        return bool(match.paired) and not match.layout.last_resort and not several

    return max(matches, key=lambda m: (fits(m), len(m.paired), m.layout.last_resort, m.layout.preference))


def _holds_masks(root: Path, match: Match) -> bool:
    """Whether files of equal names recur in most cases, and those of the first cases have one value besides 0 at most."""
    names = Counter(file.fields.get(CLASS) for case_id in match.paired for file in match.labels[case_id])
    if 2 * max(names.values(), default=0) <= len(match.paired) or any(NO_CLASS.fullmatch(name or "") for name in names):
        return False
    files = [root / file.path for case_id in match.paired[:NUM_TRIED] for file in match.labels[case_id]]
    with suppress(AutosegError):
        return all(np.unique(array[array != 0]).size <= 1 for array in (read_label_map(file).array for file in files))
    return False


def without_cases(root: Path, match: Match, case_ids: Collection[str]) -> Match:
    """``match`` without these cases. Raises `AutosegError` where no labelled case is left."""
    images, labels, test = (
        {case_id: found for case_id, found in files.items() if case_id not in case_ids}
        for files in (match.images, match.labels, match.test)
    )
    left = replace(match, images=images, labels=labels, test=test)
    if not left.paired:
        message = f"all {count_noun(len(match.paired), 'labelled case')} are left out by --exclude"
        raise AutosegError(Issue(code="case.none_left", where=str(root), message=message, fix="exclude fewer cases"))
    return left


def rival_matches(matches: Iterable[Match], best: Match) -> tuple[Match, ...]:
    """Matches that would give other labels than ``best`` to at least half as many cases: the folder is ambiguous."""
    return tuple(
        match
        for match in matches
        if match is not best
        and not match.layout.last_resort
        and 2 * len(match.paired) >= len(best.paired)
        and not match.label_files <= best.label_files
    )


def _found(
    files: Sequence[str], patterns: Sequence[str], layout: Layout, *, cases: Collection[str] = ()
) -> Sequence[FoundFile]:
    """The files that match ``patterns``; where one has to split ``{case}`` from ``{class}``, by the names of ``cases``."""
    if not cases or "case" in layout.fields or not any(SPLIT_NAME.fullmatch(pattern) for pattern in patterns):
        return match_files(files, patterns, fields=layout.fields, endings=image_endings())
    # ``a_liver`` is no case but a mask of one if ``a`` is a case
    roots = {name for name in cases if not any(head in cases for head in _heads(name))}
    of_case: dict[str, list[str]] = {}
    for file in files:
        stem = image_stem(file)
        case = next((head for head in (*_heads(stem), stem) if head in roots), None)
        if case is not None:
            of_case.setdefault(case, []).append(file)
    found = (
        file
        for case, own in of_case.items()
        if len(own) > 1  # more than the image
        for file in match_files(
            own, patterns, fields={**layout.fields, "case": re.escape(case)}, endings=image_endings()
        )
    )
    return [replace(file, num_free=len(file.fields.keys() - {*layout.fields, ENDING})) for file in found]


def _heads(name: str) -> list[str]:
    return [name[: match.start()] for match in SEPARATOR.finditer(name)]


def _readable_series(root: Path, files: Sequence[FoundFile]) -> list[FoundFile]:
    """The files that are no DICOM SEG, and the folders that hold a DICOM series, without their last ``/``."""
    kept = []
    for file in files:
        if not file.path.endswith("/"):
            if not (file.path.lower().endswith(".dcm") and is_segmentation(root / file.path)):
                kept.append(file)
        elif holds_slices(root / file.path):
            kept.append(replace(file, path=file.path.rstrip("/")))
    return kept


def _stacks(root: Path, labels: Iterable[FoundFile]) -> Iterator[FoundFile]:
    """The label files; of folders those that hold pictures, without their last ``/``."""
    for file in labels:
        if not file.path.endswith("/"):
            yield file
        elif is_picture_stack(root / file.path):
            yield replace(file, path=file.path.rstrip("/"))


def _drawn(root: Path, images: Sequence[FoundFile], labels: Sequence[FoundFile], layout: Layout) -> Iterator[FoundFile]:
    """DICOM SEG and RTSTRUCT files of any name in the folders of ``images``, for cases that have no labels by name."""
    labelled = _by_case(labels, layout).keys()
    for case_id, folders in _by_case(images, layout).items():
        if case_id not in labelled:
            for folder in folders:
                for file in segmentations_in(root / folder.path):
                    yield replace(folder, path=f"{folder.path}{file.name}")


def segmentations_in(folder: Path) -> list[Path]:
    """DICOM SEG and RTSTRUCT files of a folder. Each is a series: of others, only the first file is opened for its kind."""
    by_series: dict[str, list[Path]] = {}
    with suppress(AutosegError):
        for file in dicom_candidates(folder):
            with suppress(AutosegError, OSError):
                if is_dicom(file):
                    by_series.setdefault(series_uid(file), []).append(file)
    return [file for files in by_series.values() if is_segmentation(files[0]) for file in files]


def holds_slices(folder: Path) -> bool:
    """Whether a folder has DICOM files other than segmentations."""
    return is_dicom_series(folder) and any(
        is_dicom(file) and not is_segmentation(file) for file in sorted(folder.iterdir()) if file.is_file()
    )


def _by_case(files: Sequence[FoundFile], layout: Layout) -> Files:
    cases: Files = {}
    for file in files:
        texts = FIELD.split(layout.case_id)  # plain text and names of fields in turn
        case_id = "".join(file.fields[text] if place % 2 else text for place, text in enumerate(texts))
        cases.setdefault(case_id, []).append(file)
    return cases


def _match_list(root: Path, layout: Layout) -> Match:
    assert layout.listing is not None
    path = find_list(root, layout.listing)
    if path is None:
        return Match(layout=layout, images={}, labels={}, test={})
    listed = read_case_list(path, layout.listing.form)
    return Match(
        layout=layout,
        images=_by_case(listed.images, layout),
        labels=_by_case(listed.labels, layout),
        test=_by_case(listed.test, layout),
        issues=tuple(listed.issues),
    )
