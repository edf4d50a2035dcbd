"""What a layout finds in a folder: which files belong to which case, and which layout fits best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.data.case_lists import find_list, read_case_list
from autoseg.data.patterns import FoundFile, list_files, match_files
from autoseg.imaging.readers import IMAGE_ENDINGS, is_dicom, is_dicom_series, is_segmentation
from autoseg.issues import AutosegError, Issue
from datasets_spec import CaseFiles, Layout
from datasets_spec.layout import FIELD

Files = dict[str, list[FoundFile]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a layout finds in a folder; keys are case ids, paths relative to the folder."""

    layout: Layout
    images: Files
    labels: Files
    test: Files
    list_file: Path | None = None
    """The list that was read."""
    problems: tuple[Issue, ...] = field(default=())
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
    """What each layout finds; those that look for the same files look once."""
    found: dict[str, Match] = {}
    matches = []
    for layout in layouts:
        looked_for = repr(
            [
                layout.skip,
                layout.fields,
                layout.case_id,
                layout.training,
                layout.test,
                layout.listing,
                layout.without_label,
            ]
        )
        if looked_for not in found:
            found[looked_for] = match_layout(root, layout)
        matches.append(replace(found[looked_for], layout=layout))
    return matches


def match_layout(root: Path, layout: Layout) -> Match:
    """What ``layout`` finds in the folder ``root``. Raises `AutosegError` where a folder cannot be listed."""
    if layout.listing is not None:
        return _match_list(root, layout)
    try:
        files = list_files(root, layout.patterns, fields=layout.fields, skip=layout.skip)
    except OSError as error:
        raise AutosegError(f"{error.filename} could not be listed ({error.strerror}); make it readable") from error
    training, test = layout.training or CaseFiles(images=("{case}{ending}",)), layout.test
    labels = _found(files, training.labels, layout)
    taken = {file.path for file in labels}
    images = [file for file in _found(files, training.images, layout) if file.path not in taken]
    test_images = (
        []
        if test is None
        else [
            file
            for file in _found(files, test.images, layout)
            if file.path not in {each.path for each in _found(files, test.labels, layout)}
        ]
    )
    match = Match(
        layout=layout,
        images=_by_case(_readable_series(root, images), layout),
        labels=_by_case(labels, layout),
        test=_by_case(_readable_series(root, test_images), layout),
    )
    if not _has_channels(match):
        return Match(layout=layout, images={}, labels={}, test={})
    return match if layout.without_label == "error" else _unlabelled_as_test(match)


def _has_channels(match: Match) -> bool:
    """Whether some ``{channel}`` is there in most cases; else names that have nothing in common were taken for channels."""
    counts = Counter(
        text for case_id in match.paired for text in {f.fields.get("channel") for f in match.images[case_id]}
    )
    return not counts or 2 * max(counts.values()) > len(match.paired)


def best_match(matches: Sequence[Match]) -> Match:
    """The match with the most cases; of several the one that its layout prefers, then the first."""
    return max(matches, key=lambda match: (len(match.paired), match.layout.preference))


def rival_matches(matches: Iterable[Match], best: Match) -> tuple[Match, ...]:
    """Matches that would give other labels than ``best`` to at least half as many cases: the folder is ambiguous."""
    return tuple(
        match
        for match in matches
        if match is not best and 2 * len(match.paired) >= len(best.paired) and not match.label_files <= best.label_files
    )


def _found(files: Sequence[str], patterns: Sequence[str], layout: Layout) -> tuple[FoundFile, ...]:
    return match_files(files, patterns, fields=layout.fields, endings=IMAGE_ENDINGS)


def _readable_series(root: Path, files: Sequence[FoundFile]) -> list[FoundFile]:
    """The files that are no DICOM SEG, and the folders that hold a DICOM series, without their last ``/``."""
    kept = []
    for file in files:
        if not file.path.endswith("/"):
            if not (file.path.lower().endswith(".dcm") and is_segmentation(root / file.path)):
                kept.append(file)
        elif _holds_slices(root / file.path):
            kept.append(replace(file, path=file.path.rstrip("/")))
    return kept


def _holds_slices(folder: Path) -> bool:
    """Whether a folder has DICOM files other than segmentations."""
    return is_dicom_series(folder) and any(
        is_dicom(file) and not is_segmentation(file) for file in sorted(folder.iterdir()) if file.is_file()
    )


def _by_case(files: Sequence[FoundFile], layout: Layout) -> Files:
    cases: Files = {}
    for file in files:
        cases.setdefault(_case_id(file, layout), []).append(file)
    return cases


def _case_id(file: FoundFile, layout: Layout) -> str:
    return FIELD.sub(lambda found: file.fields[found[1]], layout.case_id)


def _unlabelled_as_test(match: Match) -> Match:
    lone = {case_id: files for case_id, files in match.images.items() if case_id not in match.labels}
    images = {case_id: files for case_id, files in match.images.items() if case_id in match.labels}
    return replace(match, images=images, test=match.test | {k: v for k, v in lone.items() if k not in match.test})


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
        list_file=path,
        problems=listed.problems,
    )
