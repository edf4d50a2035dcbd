"""Finds the cases, channels and labels of a dataset in a folder, or says why there are none."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.discovery.cases import (
    LABEL_WORD,
    channel_names,
    channel_texts,
    find_test_cases,
    folder_issues,
    make_case,
    with_all_segments,
)
from autoseg.data.discovery.classes import (
    FoundLabels,
    LabelReading,
    as_label_map,
    find_labels,
    one_spelling,
    only_class,
    replace_masks,
    resolve_channels,
    resolve_segments,
)
from autoseg.data.discovery.declarations import Declaration, find_label_names, read_declaration, with_defaults
from autoseg.data.discovery.files import FoundFile
from autoseg.data.discovery.known import choose_known, compare_with_known
from autoseg.data.discovery.layouts import (
    Files,
    Match,
    best_match,
    candidate_layouts,
    find_test_beside,
    match_layouts,
    read_layout,
    rival_matches,
    segmentations_in,
    without_cases,
)
from autoseg.data.discovery.others import FOREIGN, MOST_LISTED, files_below, foreign_ending, unread_files, unused_images
from autoseg.data.discovery.series import choose_series, find_flat, tell_apart
from autoseg.imaging.readers import (
    image_ending,
    image_stem,
    is_debris,
    is_dicom_series,
    list_series,
    read_label_map,
    referenced_series,
    require_text,
    writable_ending,
)
from autoseg.issues import AutosegError, Issue
from autoseg.tracking.progress import Reporter, SilentReporter
from autoseg.wording import count_noun, shorten, suggest
from datasets_spec import Layout, load_layouts
from planners import Labels

UNLABELLED = "dataset.unlabelled"
"""Code of the issue that a folder holds images but no labels."""
UNRECOGNISED = "dataset.unrecognised"
"""Code of the issue that the labels in a folder fit no layout."""
MOST_EXPECTED = 3
"""Layouts that an error describes; `expected_layouts` lists all."""
MOST_BELOW = 3
"""Levels of folders, and ..."""
MOST_AROUND = 50
"""... number of folders below, or entries of the parent folder, that are searched for the intended dataset."""


def explain_nothing(root: Path, matches: Sequence[Match]) -> AutosegError:
    """The error about a folder without a labelled case: what was looked for, and what was found.

    ``dataset.unlabelled``: nothing is named like labels, so that the images can be checked and predicted.
    ``dataset.unrecognised``: there are labels that fit no layout. Faults of a list of cases, and formats of which no file is
    read, are given instead.
    """
    faults = [issue for match in matches for issue in match.issues]
    if faults:
        return AutosegError(*faults, headline=f"{root} lists no usable case:")
    generic = [match for match in matches if match.layout.known is None]
    others = [] if is_dicom_series(root) else unread_files(root)
    foreign = [issue.model_copy(update={"severity": "error"}) for issue in others if issue.code == FOREIGN]
    if foreign and not any(match.images or match.labels or match.test for match in generic):
        return AutosegError(*foreign)
    if is_dicom_series(root) and (drawn := segmentations_in(root)):
        return AutosegError(_mixed_folder(root, drawn, generic))
    unlabelled = _is_unlabelled(root, generic)
    near = _suggestion(root, generic)
    issue = Issue(
        code=UNLABELLED if unlabelled else UNRECOGNISED,
        where=str(root),
        message=f"contains no labelled dataset: found {_summary(root)}"
        + "".join(f"\n{other.message}, e.g. {other.where}" for other in others),
        fix="; or ".join([*(other.fix for other in others), near or _advice(root, unlabelled=unlabelled)]),
    )
    return AutosegError(issue, *([] if near else [expected_layouts(generic, MOST_EXPECTED)]))


def with_all_layouts(folder: Path, error: AutosegError) -> AutosegError:
    """``error`` with a note that lists every layout, where nothing was recognised in ``folder``, nor datasets near it."""
    if "dataset.layouts" not in error.codes:
        return error
    return AutosegError(error.issues[0], expected_layouts(match_layouts(folder.resolve(), load_layouts())))


def _advice(root: Path, *, unlabelled: bool) -> str:
    if unlabelled:
        fix = "add label maps, or write a spec file that says where they are (--spec)"
    else:
        fix = f"use a layout that autoseg check {root} lists, describe yours in a spec file (--spec), or pass another folder"
    return fix + _example_spec(root)


def expected_layouts(matches: Sequence[Match], number: int | None = None) -> Issue:
    """A note on the first ``number`` layouts that were looked for, or all, by what was found of each."""
    order = sorted(
        matches,
        key=lambda m: (len(m.images) * len(m.labels), len(m.images) + len(m.labels), m.layout.preference),
        reverse=True,
    )
    shown = "".join(f"\n  - {_expectation(match)}" for match in order[:number])
    message = f"looked for {count_noun(len(order), 'layout')}{'' if number is None else ', among them'}:{shown}"
    return Issue(code="dataset.layouts", severity="note", where="layouts", message=message)


def _mixed_folder(root: Path, drawn: Sequence[Path], matches: Sequence[Match]) -> Issue:
    """The error about slices and files of segments in one folder, which could not be told apart by their series."""
    try:
        series = {each.uid: each for each in list_series(root)}
    except AutosegError as error:
        return error.issues[0]
    num_here = sum(not series.keys().isdisjoint(referenced_series(file)) for file in drawn)
    return Issue(
        code="dataset.one_folder",
        where=str(root),
        message=f"{len(series)} DICOM series and {count_noun(len(drawn), 'DICOM SEG or RTSTRUCT file')} in one folder, "
        f"{num_here} of them drawn on one of these series",
        fix=_suggestion(root, matches)
        or "make a folder for each case with its slices and its labels, and pass the folder of these folders",
    )


def _is_unlabelled(root: Path, generic: Sequence[Match]) -> bool:
    """Whether no file is named like labels. Beside folders of slices labels may have any name, and so may images."""
    if is_dicom_series(root):
        return True
    for match in generic:
        images = match.layout.training.images if match.layout.training is not None else ("",)
        takes_any_name = all(pattern.endswith("/") for pattern in images)
        paths = [file.path for files in match.labels.values() for file in files]
        if any(not takes_any_name or LABEL_WORD.search(path) for path in paths):
            return False
    return True


def _expectation(match: Match) -> str:
    images = f"{count_noun(len(match.images), 'image')} and {count_noun(len(match.labels), 'label map')}"
    seen = f" (found {images}, none of the same case)" if match.images or match.labels else ""
    return f"{match.layout.title}: {match.layout.expects}{seen}"


def _summary(root: Path) -> str:
    """The folders (with how many entries) and files of a folder, in a few words."""
    entries = sorted(entry for entry in root.iterdir() if not is_debris(entry))
    names = [f"{entry.name}/ ({_num_entries(entry)})" if entry.is_dir() else entry.name for entry in entries]
    return shorten(names) or "hidden files only"


def _num_entries(folder: Path) -> str:
    try:
        return count_noun(sum(1 for _ in folder.iterdir()), "file")
    except OSError:
        return "not readable"


def _suggestion(root: Path, matches: Sequence[Match]) -> str:
    """The fix if datasets lie in folders below, or one above; else empty."""
    layouts = [match.layout for match in matches]
    below = _datasets_below(root, layouts)
    if len(below) > 1:
        named = [f"{folder} ({count_noun(number, 'case')})" for folder, number in below.items()]
        return f"pass one of its folders that look like datasets: {shorten(named)}"
    folders = list(below)
    with suppress(OSError):
        if sum(1 for _ in islice(root.parent.iterdir(), MOST_AROUND + 1)) <= MOST_AROUND:
            folders += [root.parent for match in _matches_in(root.parent, layouts) if _is_part_of(match, root)]
    return f"pass {folders[0]} instead, which contains a dataset" if folders else ""


def _datasets_below(root: Path, layouts: Sequence[Layout]) -> dict[Path, int]:
    """Folders below ``root`` with the number of their labelled cases; none where each has a single one: they are cases."""
    found: dict[Path, int] = {}
    for folder in _folders_below(root):
        if found.keys().isdisjoint(folder.parents):
            number = max((len(match.paired) for match in _matches_in(folder, layouts)), default=0)
            found |= {folder: number} if number else {}
    return found if any(number > 1 for number in found.values()) else {}


def _larger_datasets_below(root: Path, match: Match, layouts: Sequence[Layout]) -> Issue | None:
    """The error that ``root`` is a folder of datasets, where one below it that has none of its cases has more cases than ``match``."""
    own = Counter(root / Path(match.images[case_id][0].path).parts[0] for case_id in match.paired)
    apart = [each for each in islice(_subfolders(root), MOST_AROUND) if each not in own]
    cases = {each: max((len(other.paired) for other in _matches_in(each, layouts)), default=0) for each in apart}
    if max(cases.values(), default=0) <= len(match.paired):
        return None
    named = [f"{folder} ({count_noun(number, 'case')})" for folder, number in sorted((own | cases).items()) if number]
    return Issue(
        code="dataset.several",
        where=str(root),
        message=f"several datasets: as {match.layout.title} it has {count_noun(len(match.paired), 'labelled case')}, but below it are more",
        fix=f"pass one of its folders: {shorten(named)}; or choose the layout with --layout {match.layout.name}",
    )


def _matches_in(folder: Path, layouts: Sequence[Layout]) -> list[Match]:
    with suppress(OSError, AutosegError):
        return match_layouts(folder, layouts)
    return []


IMAGE_NAME = re.compile(r"(?i)(?:.*[_-])?(?:images?|img|scan|vol(?:ume)?|ct|cbct|mri?|pet|t1\w*|t2\w*|flair)")


def _example_spec(root: Path) -> str:
    """The entries of a spec file for the files below ``root``, as far as their names tell; else empty."""
    return _spec_of_masks(root) or _spec_of_pairs(root)


MOST_LABELS = 20
"""Values of a file that is taken for a label map although its name does not say so."""
NUMBER = re.compile("[0-9]+")
SURE_WORD = re.compile("(?i)truth|manual|gt|label")
"""Masks may also be those of a field of view."""


def _spec_of_pairs(root: Path) -> str:
    """The entries of a spec file for images and label maps that have the same number in their names, or the same folder."""
    found: dict[str, dict[str, Path]] = {}
    for path in islice(files_below(root), MOST_LISTED):
        if not (ending := image_ending(path) or foreign_ending(path)):
            continue
        place, stem = path.relative_to(root), path.name[: -len(ending)]
        number = NUMBER.search(stem)
        case = number[0] if number else place.parent.name
        name = f"{stem[: number.start()]}{{case}}{stem[number.end() :]}" if number else stem
        folders = "".join(f"{'{case}' if part == case else part}/" for part in place.parts[:-1])
        if case and '"' not in f"{folders}{name}":
            found.setdefault(f"{folders}{name}{{ending}}", {})[case] = path
    many = {pattern: files for pattern, files in found.items() if len(files) > 1}
    named = [each for each in many if LABEL_WORD.search(each)]
    labels = min(named, key=lambda each: ("test" in each.casefold(), not SURE_WORD.search(each)), default=None)
    labels = labels or next(
        (each for each, files in islice(many.items(), MOST_AROUND) if _holds_labels(min(files.values()))), None
    )
    if labels is None:
        return ""
    shared = {each: len(files.keys() & many[labels].keys()) for each, files in many.items() if each != labels}
    images = max(shared, key=lambda each: (shared[each], -len(each)), default="")
    if 2 * shared.get(images, 0) <= len(many[labels]):
        return ""
    fields = "\n  [fields]\n  case = '[0-9]+'" if all(map(str.isdecimal, many[labels])) else ""
    image, label = (min(many[each].values()).relative_to(root) for each in (images, labels))
    return (
        f". If {image} is an image and {label} its label map, the spec file is\n  [training]\n"
        f'  images = ["{images}"]\n  labels = ["{labels}"]{fields}'
    )


def _holds_labels(file: Path) -> bool:
    with suppress(AutosegError):
        return len(np.unique(read_label_map(file).array)) <= MOST_LABELS
    return False


def _spec_of_masks(root: Path) -> str:
    """The entries of a spec file for masks beside the image in a folder for each case, if the folders look like it; else empty."""
    folders = islice(_subfolders(root), MOST_AROUND)
    names = [{image_stem(path) for path in folder.iterdir() if image_ending(path)} for folder in folders]
    common = sorted(set.intersection(*names)) if len(names) > 1 else []
    image = next((name for name in common if IMAGE_NAME.fullmatch(name)), None)
    masks = sorted(
        name for name in set().union(*names) - {image} if 2 * sum(name in each for each in names) > len(names)
    )
    if image is None or not masks:
        return ""
    return (
        f'. If all but {image} are masks, the spec file is\n  [training]\n  images = ["{{case}}/{image}{{ending}}"]\n  '
        'labels = ["{case}/{class}{ending}"]\n  [fields]\n  '
        f"class = '{'|'.join(map(re.escape, masks))}'"
    )


def _folders_below(root: Path) -> list[Path]:
    """The first `MOST_AROUND` folders below ``root``, nearest first."""
    found: list[Path] = []
    level = [root]
    for _ in range(MOST_BELOW):
        below = [entry for folder in level for entry in islice(_subfolders(folder), MOST_AROUND)]
        found, level = [*found, *below], below[:MOST_AROUND]
    return found[:MOST_AROUND]


def _subfolders(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(each for each in folder.iterdir() if each.is_dir() and not is_debris(each))


def _is_part_of(match: Match, folder: Path) -> bool:
    """Whether all images, or all labels, of several cases lie in ``folder``."""

    def all_inside(files: Mapping[str, Sequence[FoundFile]]) -> bool:
        return all(Path(file.path).parts[0] == folder.name for case_id in match.paired for file in files[case_id])

    return len(match.paired) > 1 and (all_inside(match.images) != all_inside(match.labels))


def discover_dataset(
    folder: Path,
    *,
    layouts: Sequence[Layout] | None = None,
    layout: str | None = None,
    spec: Path | None = None,
    exclude: Sequence[str] = (),
    cache: Path | None = None,
    num_workers: int = 1,
    reporter: Reporter | None = None,
) -> DatasetDescription:
    """The dataset in ``folder``, in any of ``layouts``.

    ``folder`` may also be a list of cases (CSV, TSV or JSON). The default is all known layouts; ``layout`` selects one by
    name, and ``spec`` is a file that describes another one. Of several that fit, the one with the most cases is taken; a
    note names the others.

    The files in the folder determine the cases; training and test cases in ``exclude`` are left out. Names of channels and
    classes come from, in this order: the layout itself (a spec file), the folder's ``dataset.json``, the known public
    dataset that it is, the names of files. Unnamed classes are named by the values in the label maps, which
    ``num_workers`` processes then read; so are masks of classes, to find those that overlap. The folder ``cache`` keeps
    what they found, and unchanged files are not read again. Images without labels, labels without an image and several
    files for one channel become ``issues``; they belong to no case. All paths are absolute.

    Raises `AutosegError` where the folder does not exist, is empty or cannot be read, where no layout fits
    (``dataset.unrecognised``) or nothing is labelled (``dataset.unlabelled``), for an unknown case in ``exclude``, and for
    a spec file or ``dataset.json`` that is invalid.
    """
    if spec is not None:
        layouts = (read_layout(spec),)
    root, candidates = candidate_layouts(folder, layouts, layout)
    matches = match_layouts(root, candidates)
    whole = _recognise(root, matches)
    beside = find_test_beside(whole, root)
    whole, apart_issues = tell_apart(root, replace(whole, test=whole.test | beside))
    match, series_issues = choose_series(root, without_cases(root, whole, exclude), num_workers=num_workers)
    declared, declaration_issues = read_declaration(root, match.layout)
    declaration = with_defaults(declared, match.layout)
    channels, dropped = channel_texts(root, match)
    test, test_issues = find_test_cases(root, match, declaration, channels)
    known = {*whole.images, *whole.labels, *whole.test, *(case.case_id for case in test)}
    test_issues += _excluded(root, exclude, known)
    test = tuple(case for case in test if case.case_id not in exclude)
    reading = LabelReading(cache=cache, num_workers=num_workers, reporter=reporter or SilentReporter())
    training, found = _training_cases(root, match, declaration, channels, reading=reading)
    issues = (
        *declaration_issues,
        *apart_issues,
        *series_issues,
        *found.issues,
        *folder_issues(root, match, whole, rival_matches(matches, whole), declaration, dropped),
        *test_issues,
        *_beside_issues(root, beside),
        *_resampling_issues(root, match.layout, declaration.channels or channels),
        *(_other_files(root, match.layout, training, test) if match.layout.listing is None else ()),
    )
    description = _describe(root, match, declaration, channels, training, test, found)
    issues += tuple(compare_with_known(description, match.layout))
    return description.model_copy(update={"issues": issues, "left_out": tuple(sorted(set(exclude)))})


def _other_files(root: Path, layout: Layout, training: Sequence[Case], test: Sequence[Case]) -> list[Issue]:
    """Notes on files that are in no case."""
    used = [path for case in (*training, *test) for path in case.images]
    return [*unread_files(root), *unused_images(root, layout, used, {case.case_id for case in test})]


def _beside_issues(root: Path, beside: Files) -> list[Issue]:
    if not beside:
        return []
    folders = sorted({Path(file.path).relative_to(root.parent).parts[0] for files in beside.values() for file in files})
    message = f"{count_noun(len(beside), 'test case')} taken from {shorten(folders)} beside it"
    fix = "move the folder elsewhere if they should not be predicted"
    return [Issue(code="dataset.test_beside", severity="note", where=str(root), message=message, fix=fix)]


def _resampling_issues(root: Path, layout: Layout, channels: Sequence[str]) -> list[Issue]:
    if not layout.resample_channels or len(channels) < 2:
        return []
    message = f"{shorten(list(channels[1:]))} is resampled onto the grid of {channels[0]} where theirs differ (linear)"
    fix = "give channels that you resampled yourself if you want another method"
    return [Issue(code="layout.resampled_channels", severity="note", where=str(root), message=message, fix=fix)]


def _describe(
    root: Path,
    match: Match,
    declaration: Declaration,
    channels: Sequence[str],
    training: tuple[Case, ...],
    test: tuple[Case, ...],
    found: FoundLabels,
) -> DatasetDescription:
    layout = match.layout
    endings = Counter(image_ending(file) for case in training for file in case.label_files[:1])
    return DatasetDescription(
        name=declaration.name or root.name,
        root=str(root),
        layout=layout.name,
        layout_title=layout.title,
        known=layout.title if layout.known is not None else None,
        channels=declaration.channels or channel_names(training, channels),
        labels=found.values.labels,
        file_values=found.values.file_values,
        classes_with_masks=found.classes,
        later_mask_wins=layout.overlap == "later",
        threshold=layout.threshold,
        dropped_values=found.values.dropped,
        mask_value=found.mask_value,
        resampled_channels=layout.resample_channels,
        file_ending=writable_ending(min(endings, key=lambda ending: (-endings[ending], ending))),
        training=training,
        test=test,
        unpaired_images=_paths(root, match.images, without=match.labels) if match.labels else (),
        unpaired_labels=_paths(root, match.labels, without=match.images),
        unions=_unions(layout, found.values.labels),
    )


def _unions(layout: Layout, labels: Labels) -> dict[str, tuple[str, ...]]:
    """Those of the layout whose classes the dataset has."""
    names = {each.name for each in labels.classes}
    return {name: members for name, members in layout.unions.items() if {*members} <= names and name not in names}


def _recognise(root: Path, matches: Sequence[Match]) -> Match:
    """The best match. Raises `AutosegError` where none has a labelled case, where names of files are not text, and for a folder of datasets,
    unless a single layout was chosen.
    """
    match = best_match([each for each in matches if each.layout.known is None] or matches)
    match = choose_known(root, match, matches)
    require_text(
        root / file.path
        for files in (match.images, match.labels, match.test)
        for found in files.values()
        for file in found
    )
    if not match.paired:
        match = find_flat(root, [each.layout for each in matches]) or match
    if not match.paired:
        raise explain_nothing(root, matches)
    if len(matches) > 1 and (several := _larger_datasets_below(root, match, [each.layout for each in matches])):
        raise AutosegError(several)
    return match


def _excluded(root: Path, exclude: Sequence[str], known: Collection[str]) -> list[Issue]:
    """A note about cases that were left out by name. Raises `AutosegError` for names of no case."""
    unknown = [
        Issue(code="case.unknown", where="--exclude", message=f"case {name} does not exist", fix=suggest(name, known))
        for name in dict.fromkeys(exclude)
        if name not in known
    ]
    if unknown:
        raise AutosegError(*unknown)
    if not exclude:
        return []
    names = sorted(set(exclude))
    message = f"{count_noun(len(names), 'case')} left out (--exclude): {', '.join(names)}"
    return [Issue(code="case.excluded", severity="note", where=str(root), message=message)]


def _paths(root: Path, files: Files, *, without: Files) -> tuple[str, ...]:
    """Files of the cases that have none in ``without``."""
    return tuple(sorted(str(root / file.path) for case_id in files.keys() - without.keys() for file in files[case_id]))


def _training_cases(
    root: Path, match: Match, declaration: Declaration, channels: Sequence[str], *, reading: LabelReading
) -> tuple[tuple[Case, ...], FoundLabels]:
    """The labelled cases, with the classes that each was annotated for, and the classes of the dataset.

    Segments of DICOM SEG files are masks; if there is only one class, its masks are label maps.
    """
    cases = tuple(
        make_case(root, match.layout, case_id, match.images[case_id], match.labels[case_id], channels).model_copy(
            update={"annotated": declaration.annotated_classes.get(case_id)}
        )
        for case_id in match.paired
    )
    joined: list[Issue] = []
    if not (match.layout.colours or match.layout.one_hot):
        cases, joined = with_all_segments(root, match, cases)
    cases, names = resolve_channels(cases, match.layout) or resolve_segments(cases)
    name = only_class(cases)
    if name is not None:
        cases = tuple(as_label_map(case) for case in cases)
    issues: list[Issue] = []
    if match.layout.labels is None:
        cases, issues = one_spelling(root, cases)
    if declaration.label_values is None:
        in_tables, found_issues = find_label_names(root, [Path(case.label) for case in cases if case.label is not None])
        names, issues = names | in_tables, [*issues, *found_issues]
    found = find_labels(cases, match.layout, declaration, name=name, names=names, reading=reading)
    if found.classes:
        cases = tuple(replace_masks(case, found.classes) for case in cases)
    return cases, replace(found, issues=(*joined, *issues, *found.issues))
