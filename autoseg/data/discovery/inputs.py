"""What there is to predict in a file, a folder or a tree: cases by content and by the names a model was trained on.

Nothing is left out in silence: what is no case becomes an issue, an error where it should have been one, else a note.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.cases import channel_paths, frame_name, listed_volumes
from autoseg.data.discovery.files import match_files
from autoseg.data.discovery.layouts import (
    SEGMENTS,
    Match,
    best_match,
    candidate_layouts,
    holds_slices,
    match_layout,
    match_layouts,
    read_layout,
)
from autoseg.data.discovery.others import foreign_ending, foreign_formats
from autoseg.data.discovery.series import choose_series
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import (
    PART_MARK,
    frame_path,
    image_ending,
    image_endings,
    image_stem,
    is_debris,
    is_dicom_series,
    is_flat,
    is_segmentation,
    list_series,
    read_header,
    require_text,
    split_frame,
    split_part,
)
from autoseg.issues import AutosegError, Issue
from autoseg.wording import bare_name, count_noun, shorten
from datasets_spec import Layout, load_known, load_layouts
from datasets_spec.layout import FIELD, NamedVolumes

NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
"""``CASE_0000``: a channel, as in nnU-Net's folders, or simply the name of a case."""
UNOPENED = re.compile(
    r"(?i).*\.(?:zip|tar|tgz|tar\.(?:gz|bz2|xz)|7z|rar|part|partial|filepart|crdownload|download|aria2|tmp)"
)
"""Archives and unfinished downloads: what is in them may be images."""
MOST_NESTED = 10
"""Folders between the one given and an image; deeper ones are named, and not opened."""
CHANNEL = "channel"

NamedImage = tuple[str, Path]
"""Name and path of an image; the path may name one of several series of a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCase:
    """One image to predict."""

    case_id: str
    images: tuple[Path, ...]
    """One file or DICOM series with all channels, or one per channel in order."""
    geometry: Geometry | None = None
    """Of the first image, where its header was read."""
    modality: str = ""
    """Where it is known of the public dataset that the model was trained on."""
    is_beside_others: bool = field(default=False, compare=False)
    """Whether other images were found with it, so that it may be a label map of one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What there is to predict, sorted by case id."""

    cases: tuple[InputCase, ...]
    issues: tuple[Issue, ...] = ()
    """Errors: what should have been a case, with its id in ``case``; notes: what was left out."""


@dataclass(frozen=True, slots=True)
class LooseImages:
    """The images of a tree, sorted by path."""

    images: list[NamedImage] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    """Errors: links to nothing, folders that cannot be listed. Notes: what has a hidden name, or lies too deep."""
    foreign: list[Path] = field(default_factory=list)
    """Files of formats that are not read."""


def find_loose_images(source: Path) -> LooseImages:
    """The image ``source``, or all images and DICOM series in that folder and below.

    Images are named by the folders that lead to them from ``source``; several series in one folder by folder and
    SeriesInstanceUID. Links are followed. Names that `is_debris` are not looked at. Raises
    `AutosegError` with all names that are not text.
    """
    found = LooseImages()
    if source.is_dir():
        _walk(source, (), found, frozenset())
    elif foreign_ending(source):
        found.foreign.append(source)
    else:
        file, frame = split_frame(source)
        name = source.name.replace(PART_MARK, "_") if is_dicom_series(source) else image_stem(file)
        found.images.append((name if frame is None else frame_name(name, frame), source))
    require_text([path for _, path in found.images])
    found.images.sort(key=lambda named: named[1])
    return found


def _images_of(files: Sequence[Path]) -> LooseImages:
    each = [find_loose_images(file) for file in files]
    images, foreign = ([item for found in each for item in getattr(found, of)] for of in ("images", "foreign"))
    return LooseImages(sorted(images, key=lambda named: named[1]), foreign=foreign)


def _walk(folder: Path, above: tuple[str, ...], found: LooseImages, inside: frozenset[Path]) -> None:
    real = folder.resolve()
    if real in inside:
        message = f"skipped: a link to the folder {real}, which it lies in"
        found.issues.append(_note(code="predict.skipped", where=str(folder), message=message, fix="remove the link"))
        return
    try:
        entries = sorted(entry for entry in folder.iterdir() if not is_debris(entry))
    except OSError as error:
        message = f"could not be listed ({error.strerror or error})"
        found.issues.append(Issue(code="predict.unlisted", where=str(folder), message=message, fix="allow reading it"))
        return
    if is_series := is_dicom_series(folder):
        require_text([real])
        if holds_slices(folder):
            found.images.extend(_series(folder, "_".join(above) or real.name))
        else:
            message = "skipped: holds segmentations only"
            found.issues.append(_note(code="predict.skipped", where=str(folder), message=message, fix=""))
    hidden = [entry.name for entry in entries if entry.name.startswith("_") and (entry.is_dir() or image_ending(entry))]
    if hidden:
        message = f"skipped {shorten(hidden)}: a name that begins with _ marks what is no image"
        found.issues.append(
            _note(code="predict.hidden", where=str(folder), message=message, fix="rename what should be predicted")
        )
    found.issues.extend(_unopened(folder, entries))
    if not is_series:
        found.issues.extend(_unfetched(entries, "_".join(above) or real.name))
    for entry in (each for each in entries if not each.name.startswith("_")):
        if foreign_ending(entry):
            found.foreign.append(entry)
        elif entry.is_dir():
            _descend(entry, (*above, entry.name), found, inside | {real})
        elif image_ending(entry) and not (is_series and image_ending(entry) == ".dcm"):
            _take(entry, "_".join((*above, image_stem(entry))), found)


def _descend(folder: Path, above: tuple[str, ...], found: LooseImages, inside: frozenset[Path]) -> None:
    """`_walk` a folder below another, with a note where it lies too deep, or only its name is that of an image."""
    if len(above) > MOST_NESTED:
        message, fix = f"not opened: more than {MOST_NESTED} folders deep", "pass a folder nearer to the images"
        found.issues.append(_note(code="predict.too_deep", where=str(folder), message=message, fix=fix))
        return
    before = len(found.images) + len(found.issues) + len(found.foreign)
    _walk(folder, above, found, inside)
    if image_ending(folder) and before == len(found.images) + len(found.issues) + len(found.foreign):
        message = "skipped: a folder without images, though named like an image"
        found.issues.append(_note(code="predict.skipped", where=str(folder), message=message, fix=""))


def _unopened(folder: Path, entries: Sequence[Path]) -> Iterator[Issue]:
    """A note on archives and unfinished downloads in a folder."""
    names = [each.name for each in entries if UNOPENED.fullmatch(each.name) and each.is_file()]
    if names:
        message = f"skipped {count_noun(len(names), 'file')}, archives or unfinished downloads: {shorten(names)}"
        fix = "unpack or fetch what should be predicted"
        yield _note(code="predict.skipped", where=str(folder), message=message, fix=fix)


def _take(file: Path, name: str, found: LooseImages) -> None:
    """Add a file that has the ending of an image; broken links to slices are reported with their folder (`_unfetched`)."""
    if file.exists():
        found.images.append((name, file))
    elif image_ending(file) != ".dcm":
        message = f"a link to {os.readlink(file)}, which does not exist"
        fix = "fetch it (datalad get, git annex get), or remove the link"
        found.issues.append(Issue(code="predict.broken_link", where=str(file), message=message, fix=fix, case=name))


def _unfetched(entries: Sequence[Path], name: str) -> Iterator[Issue]:
    """Links to nothing that may be slices: an error where they are named so, or lead to the content of an annex."""
    links = [each for each in entries if image_ending(each) in ("", ".dcm") and each.is_symlink() and not each.exists()]
    if not links:
        return
    is_image = any(image_ending(link) or "annex" in Path(os.readlink(link)).parts for link in links)
    yield Issue(
        code="predict.broken_link",
        severity="error" if is_image else "note",
        where=str(links[0].parent),
        message=f"{count_noun(len(links), 'link')} to files that do not exist: {shorten([link.name for link in links])}",
        fix="fetch them (datalad get, git annex get), or remove the links",
        case=name if is_image else None,
    )


def _note(*, code: str, where: str, message: str, fix: str) -> Issue:
    return Issue(code=code, severity="note", where=where, message=message, fix=fix)


def _series(folder: Path, name: str) -> list[NamedImage]:
    """The series of a folder; a folder that cannot be read is one image, and reading it raises the error."""
    try:
        series = list_series(folder)
    except AutosegError:
        series = ()
    if len(series) <= 1:
        return [(name, folder)]
    return [(f"{name}_{each.uid}", each.path) for each in series]


def labels_beside_images(folder: Path) -> frozenset[Path]:
    """Label files of the cases that the best layout finds, symbolic links resolved.

    Empty if no image has a label, or if the folder cannot be listed, which reading its images reports.
    """
    try:
        root, layouts = candidate_layouts(folder, None, None)
        match = best_match(match_layouts(root, layouts))
    except AutosegError:
        return frozenset()
    images = {(root / file.path).resolve() for found in match.images.values() for file in found}
    return frozenset((root / path).resolve() for path in match.label_files) - images  # a link leads to an image itself


def find_inputs(
    source: Path,
    dataset: DatasetDescription,
    *,
    layout: str | None = None,
    spec: Path | None = None,
    only: Sequence[Path] = (),
    leave_out: Callable[[Sequence[NamedImage]], dict[str, list[Path]]] = lambda images: {},
) -> Inputs:
    """The cases in ``source``, or among the files ``only`` of that folder, for a model that was trained on ``dataset``.

    Files of a layout come first: of that by name, of the file ``spec``, or, if it tells channels or public names apart, of
    the model's own. All other images and DICOM series are cases by `group_channels`; with ``layout`` or ``spec`` they are
    left out. Of a folder label maps beside images are left out, and what ``leave_out`` finds among all images, by what it is.
    """
    loose, is_tree = _images_of(only) if only else find_loose_images(source), source.is_dir() and not only
    issues, asked = list(loose.issues), layout is not None or spec is not None
    issues += _foreign(loose.foreign, is_tree, leave_out)
    cases: list[InputCase] = []
    taken: set[Path] = set()
    own = _layout(source, dataset, layout, spec) if source.is_dir() else None
    if own is not None and (asked or _tells_apart(own, dataset)) and not (only and own.listing):
        cases, faults, taken = _layout_cases(*_match(source, loose.images, own), dataset)
        if not cases and not asked:
            own, faults, taken = None, [], set()
        issues += faults
    else:
        own = None
    images = [(name, path) for name, path in loose.images if taken.isdisjoint({path.resolve(), *_stack(path)})]
    if is_tree:
        skipped = leave_out(images)
        if own is not None:
            title = "the layout" if asked else own.title
            full = {path.parent for path in taken}
            unused = [
                path
                for _, path in images
                if asked or (_is_skipped(path.relative_to(source).as_posix(), own) and path.parent.resolve() in full)
            ]
            skipped[f"file that {title} does not use"] = unused
        made = {path for paths in skipped.values() for path in paths}
        left = [item for item in images if item[1] not in made]
        skipped["label map"] = sorted(_label_maps(source, left, dataset))
        issues += [_skipped(source, noun, paths) for noun, paths in skipped.items() if paths]
        without = {path for paths in skipped.values() for path in paths}
        images = [(name, path) for name, path in images if path not in without]
    others, faults = group_channels(images, dataset.channels, numbered=channels_are_numbered(dataset))
    known = next((each.known for each in load_known() if each.name == dataset.layout and each.known), None)
    found = sorted([*cases, *others], key=lambda case: case.case_id)
    if known is not None and known.modality:
        found = [replace(case, modality=known.modality_of(case.case_id)) for case in found]
    found = [replace(case, images=dataset.channel_paths(case.images)) for case in found]
    if known is not None and known.volumes is not None and is_tree:
        found, faults = _named_volumes(found, faults, known.volumes)
    return Inputs(cases=tuple(found), issues=(*issues, *faults))


def _named_volumes(
    cases: Sequence[InputCase], faults: Sequence[Issue], named: NamedVolumes
) -> tuple[list[InputCase], list[Issue]]:
    """Of each 4D image the volumes that the text file beside it names, as cases of the dataset; all where there is none."""
    kept: list[InputCase] = []
    chosen: dict[Path, tuple[int, ...]] = {}
    for case in cases:
        file, number = split_frame(case.images[0])
        if number is None or not (numbers := listed_volumes(file.parent / named.file, named.keys)):
            kept.append(case)
            continue
        chosen[file] = numbers
        if number in numbers:
            kept.append(replace(case, case_id=frame_name(image_stem(file).removesuffix(named.ending), number)))
    left = [fault for fault in faults if fault.code != "predict.volumes" or Path(fault.where) not in chosen]
    if chosen:
        message = f"of {count_noun(len(chosen), '4D image')} the volumes that {named.file} names are predicted ({', '.join(named.keys)})"
        fix = "pass one of the images alone to predict all of its volumes"
        left.append(_note(code="predict.volumes", where=str(next(iter(chosen)).parent), message=message, fix=fix))
    return sorted(kept, key=lambda case: case.case_id), left


def _skipped(source: Path, noun: str, paths: Sequence[Path]) -> Issue:
    first, _, rest = noun.partition(" that ")
    what = f"{count_noun(len(paths), first)}{' that ' if rest else ''}{rest}"
    names = list(dict.fromkeys(path.name for path in paths))
    message, fix = f"skipped {what}: {shorten(names)}", "pass one of them alone to predict it"
    return _note(code="predict.skipped", where=str(source), message=message, fix=fix)


def _foreign(
    files: Sequence[Path], is_tree: bool, leave_out: Callable[[Sequence[NamedImage]], dict[str, list[Path]]]
) -> list[Issue]:
    """Formats that are not read: an error where one was named alone, else as `foreign_formats` says it."""
    if not is_tree:
        found = [(path, issue) for path in files for issue in foreign_formats([path])]
        return [issue.model_copy(update={"severity": "error", "case": path.name}) for path, issue in found]
    made = {path for paths in leave_out([(path.name, path) for path in files]).values() for path in paths}
    return foreign_formats(path for path in files if path not in made)


def channels_are_numbered(dataset: DatasetDescription) -> bool | None:
    """Whether ``_0000`` at the end of the names of training images is a channel (true) or part of the case (false).

    None if no training image, or none that is known, ends so.
    """
    stems = [(case.case_id, image_stem(case.images[0])) for case in dataset.training]
    numbered = [(case_id, stem) for case_id, stem in stems if NUMBERED.fullmatch(stem)]
    return any(stem == f"{case_id}_0000" for case_id, stem in numbered) if numbered else dataset.numbered_channels


def group_channels(
    images: Sequence[NamedImage], channels: Sequence[str], *, numbered: bool | None = None
) -> tuple[list[InputCase], list[Issue]]:
    """The cases among ``images``, whose names may recur, and an error for each that lacks channels.

    What a file holds decides: one with all ``channels`` is a case, whatever number its name ends in; files ``CASE_0000``,
    ``CASE_0001`` ... with one channel each are the channels of a case. A lone ``CASE_0000`` with all channels is named
    ``CASE`` unless training cases had such numbers in their names (``numbered``).
    """
    groups: dict[str, dict[int | None, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for stem, path in images:
        match = NUMBERED.fullmatch(stem)
        key = (stem, None) if match is None else (match["case"], int(match["channel"]))
        groups[key[0]][key[1]].append(path)
    cases: list[InputCase] = []
    issues: list[Issue] = []
    for name, files in sorted(groups.items()):
        numbers = sorted(number for number in files if number is not None)
        single = {number: paths[0] for number, paths in files.items()}
        issues += [_same_name(path, paths[0], name) for paths in files.values() for path in paths[1:]]
        if any(len(paths) > 1 for paths in files.values()):
            continue
        if numbers and None in files:
            others = [single[number] for number in numbers]
            issues.append(_same_name(single[None], others[0], name))
        elif numbers and len(channels) > 1 and any(_num_channels(path) == 1 for path in single.values()):
            faults = _channel_issues(name, {number: single[number] for number in numbers}, channels)
            issues += faults
            if not faults:
                cases.append(InputCase(case_id=name, images=tuple(single[number] for number in numbers)))
        else:
            plain = not numbers or (numbers == [0] and numbered is not False)
            for number, path in single.items():
                case_id = name if plain else f"{name}_{number:04d}"
                whole, faults = _whole_cases(case_id, path, channels)
                issues += faults
                cases += whole
    return sorted(cases, key=lambda case: case.case_id), issues


def _same_name(path: Path, other: Path, case_id: str) -> Issue:
    message = f"same case as {other}"
    return Issue(code="predict.same_name", where=str(path), message=message, fix="rename one of them", case=case_id)


def _num_channels(path: Path) -> int | None:
    try:
        return read_header(path).num_channels
    except AutosegError:
        return None


def _channel_issues(case_id: str, files: dict[int, Path], channels: Sequence[str]) -> list[Issue]:
    where = str(next(iter(files.values())).parent)
    missing = [f"{case_id}_{i:04d} ({name})" for i, name in enumerate(channels) if i not in files]
    extra = [path.name for number, path in files.items() if number >= len(channels)]
    issues = []
    if missing:
        message = f"missing {', '.join(missing)}"
        issues.append(
            Issue(code="predict.missing_channel", where=where, message=message, fix="add these files", case=case_id)
        )
    if extra:
        message = f"{', '.join(extra)}, but the model has {count_noun(len(channels), 'channel')}"
        issues.append(
            Issue(code="predict.extra_channel", where=where, message=message, fix="remove them", case=case_id)
        )
    return issues


def _whole_cases(case_id: str, path: Path, channels: Sequence[str]) -> tuple[list[InputCase], list[Issue]]:
    """The case of a file with all channels, or why it is none; for models of one channel each volume of a file is a case."""
    try:
        header = read_header(path)
    except AutosegError as error:
        update = {"case": case_id}
        return [], [issue.model_copy(update=update | {"where": issue.where or str(path)}) for issue in error.issues]
    if header.num_channels == len(channels):
        return [InputCase(case_id=case_id, images=(path,), geometry=header.geometry)], []
    if len(channels) == 1 and header.num_volumes == header.num_channels:
        cases = [
            InputCase(case_id=frame_name(case_id, k), images=(frame_path(path, k),), geometry=header.geometry)
            for k in range(1, header.num_volumes + 1)
        ]
        message = f"{len(cases)} volumes, but the model takes one: predicted one by one as {cases[0].case_id} and so on"
        fix = f"pass {frame_path(path, 1)} to predict the first alone"
        return cases, [Issue(code="predict.volumes", severity="warning", where=str(path), message=message, fix=fix)]
    found = count_noun(header.num_channels, "channel")
    message = f"{found}, but the model needs {len(channels)}: {', '.join(channels)}"
    several = f"use one file with all of them, or {case_id}_0000 ... {case_id}_{len(channels) - 1:04d}"
    fix = several if len(channels) > 1 else "convert it to grey values"
    return [], [Issue(code="image.channels", where=str(path), message=message, fix=fix, case=case_id)]


def _label_maps(source: Path, images: Sequence[NamedImage], dataset: DatasetDescription) -> set[Path]:
    """Label maps that a layout finds beside their images, and files beside others that are named like a class."""
    labels = labels_beside_images(source)
    labels |= {path.resolve() for _, path in images if path.name.lower().endswith(SEGMENTS) or is_segmentation(path)}
    classes = {bare_name(label.name) for label in dataset.labels.classes}
    named = {path for _, path in images if bare_name(image_stem(path)) in classes}
    others = {path.parent for _, path in images if path not in named}
    return {
        path
        for _, path in images
        if not labels.isdisjoint({path.resolve(), *_stack(path)}) or (path in named and path.parent in others)
    }


def _stack(path: Path) -> tuple[Path, ...]:
    """The folder of a picture that may be one of a stack, links resolved."""
    return (path.parent.resolve(),) if is_flat(path) else ()


def _layout(source: Path, dataset: DatasetDescription, name: str | None, spec: Path | None) -> Layout | None:
    """The layout that was asked for, else that of the model, if it is an installed one."""
    if spec is not None:
        return read_layout(spec)
    if name is not None:
        return candidate_layouts(source, None, name)[1][0]
    known = (*load_layouts(), *load_known())
    return next((each for each in known if each.name == dataset.layout and each.training is not None), None)


def _tells_apart(layout: Layout, dataset: DatasetDescription) -> bool:
    """Whether a layout knows more of its files than that each is a case."""
    has_channels = any(CHANNEL in FIELD.findall(pattern) for pattern in layout.patterns)
    return layout.known is not None or (has_channels and len(dataset.channels) > 1)


def _match(source: Path, images: Sequence[NamedImage], layout: Layout) -> tuple[Match, Path, set[Path]]:
    """What the layout finds among ``images``, the folder that paths are relative to, and labels of test images.

    Parts of a dataset fit, too: where nothing is found, the folders above ``source`` are taken for the dataset's.
    """
    if layout.listing is not None:
        return match_layout(source, layout), source, set()
    match, whole = Match(layout=layout, images={}, labels={}, test={}), source.resolve()
    for root in (whole, *whole.parents[:2]):
        files = set()
        for _, path in images:
            place = whole / path.relative_to(source)
            folder, uid = split_part(place)
            inside = (place if uid is None else folder).relative_to(root).as_posix()
            files.add(f"{inside}/" if path.is_dir() or uid is not None else inside)
            files |= {f"{each.relative_to(root).as_posix()}/" for each in {place.parent} if is_flat(path)}
        used = sorted(file for file in files if not _is_skipped(file, layout))
        match = match_layout(root, layout, files=used)
        if match.images or match.test:
            labels = () if layout.test is None else layout.test.labels
            found = match_files(used, labels, fields=layout.fields, endings=image_endings())
            return match, root, {(root / file.path).resolve() for file in found}
    return match, whole, set()


def _is_skipped(file: str, layout: Layout) -> bool:
    return any(fnmatch.fnmatchcase(part, pattern) for part in file.split("/") for pattern in layout.skip)


def _layout_cases(
    match: Match, root: Path, test_labels: set[Path], dataset: DatasetDescription
) -> tuple[list[InputCase], list[Issue], set[Path]]:
    """The cases of a layout, the errors of those that lack channels, and all files that it knows, links resolved."""
    match, issues = choose_series(root, match, num_workers=1)
    cases = []
    taken = {(root / file.path).resolve() for files in match.labels.values() for file in files} | test_labels
    found = {
        case_id: match.images.get(case_id, []) + match.test.get(case_id, []) for case_id in match.images | match.test
    }
    texts = _texts(match.layout, dataset, {file.channel for files in found.values() for file in files})
    unused: list[Path] = []
    for case_id, files in found.items():
        by_text = {file.channel.casefold(): root / file.path for file in reversed(files)}
        missing, paths = [text for text in texts if text.casefold() not in by_text], []
        if len(files) == 1 and (not missing or _num_channels(root / files[0].path) == len(dataset.channels)):
            paths = [root / files[0].path]  # perhaps with all channels in it
        elif len(files) == 1 and match.layout.repeat_channel:
            paths = list(channel_paths(match.layout, [root / files[0].path], texts))
        elif missing:
            message = f"missing {', '.join(missing)}, found {', '.join(filter(None, by_text)) or files[0].path}"
            where = str((root / files[0].path).parent)
            issues.append(
                Issue(code="predict.missing_channel", where=where, message=message, fix="add these files", case=case_id)
            )
        else:
            paths = [by_text[text.casefold()] for text in texts]
        if paths:
            if len(paths) == len(dataset.channels) == 1 and not paths[0].is_dir() and paths[0].exists():
                whole, faults = _whole_cases(case_id, paths[0], dataset.channels)
            else:
                whole, faults = [InputCase(case_id=case_id, images=tuple(paths))], []
            cases += whole
            issues += faults
            unused += [root / file.path for file in files if root / file.path not in paths]
        taken |= {(root / file.path).resolve() for file in files}
    if unused:
        message = (
            f"skipped {count_noun(len(unused), 'file')}, no channel of the model: {shorten([p.name for p in unused])}"
        )
        issues.append(
            _note(code="predict.skipped", where=str(root), message=message, fix="pass one of them alone to predict it")
        )
    return cases, issues, taken


def _texts(layout: Layout, dataset: DatasetDescription, found: Iterable[str]) -> list[str]:
    """Texts of ``{channel}`` in the order of the model's channels."""
    if layout.channels is not None and len(layout.channels) == len(dataset.channels):
        named = list(layout.channels)
        return named if {text.casefold() for text in named} & {text.casefold() for text in found} else [""]
    if all(text.isdigit() for text in found if text):
        return [f"{number:04d}" for number in range(len(dataset.channels))] if any(found) else [""]
    return list(dataset.channels)
