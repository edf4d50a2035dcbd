"""Public datasets, recognised by the names of their cases, unless their images or descriptions say otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoseg.data.dataset import DatasetDescription
from autoseg.data.discovery.declarations import declared_by_layout, read_decathlon
from autoseg.data.discovery.layouts import NUM_TRIED, Match
from autoseg.imaging.readers import read_image, read_label_map
from autoseg.issues import AutosegError, Issue
from datasets_spec import Layout

NOT_CT = re.compile(r"(?i)(?!ct\b)(?:.* )?(?:mri?|t1\w*|t2\w*|flair|adc)")
"""Names of channels that are magnetic resonance."""


def choose_known(root: Path, match: Match, matches: Iterable[Match]) -> Match:
    """The public dataset among ``matches`` that finds as many cases as ``match``, the best of all layouts; else ``match``.

    Cases that are test images of the public dataset may have labels elsewhere. All case ids must match those of the dataset,
    and the folder's own description must not contradict it, nor its images, which is said, unless the dataset was asked for
    by name (`match` is then one of it). Of several the one with the most cases is taken, then the one
    that has fewer images without labels; of equal ones those that have the values of the first label maps, then the one with
    the most specific case ids, with a note that names the others.
    """
    fitting = [
        ((len(each.paired), -len(each.images)), len(known.case), each)
        for each in matches
        if (known := each.layout.known) is not None
        and each.paired
        and (len(each.paired) >= len(match.paired) or set(match.paired) <= {*each.paired, *each.test})
        and all(re.fullmatch(known.case, case_id) for case_id in each.paired)
        and _agrees_with_description(root, each)
    ]
    most = max((count for count, *_ in fitting), default=None)
    equal = sorted((each for each in fitting if each[0] == most), key=lambda each: each[1], reverse=True)
    others = [] if match.layout.known is not None else [each for *_, each in equal if _shows_another(root, each)]
    same = _with_found_values(root, [each for *_, each in equal if each not in others])
    if others and not same:
        return replace(match, issues=(*match.issues, _contradicted(root, others[0].layout)))
    if len(same) > 1:
        names = " or ".join(each.layout.title for each in same[1:])
        message = f"recognised as {same[0].layout.title}, but it may also be {names}, which has other classes"
        fix = f"pass --layout {same[1].layout.name} if it is that dataset"
        note = Issue(code="known.ambiguous", severity="warning", where=str(root), message=message, fix=fix)
        return replace(same[0], issues=(*same[0].issues, note))
    return same[0] if same else match


def _contradicted(root: Path, layout: Layout) -> Issue:
    channels = declared_by_layout(layout).channels or ()
    found = "no CT" if any(map(_is_ct, channels)) else "CT"
    return Issue(
        code="known.contradicted",
        severity="warning",
        where=str(root),
        message=f"the cases have the names of {layout.title}, which is {' and '.join(channels)}, but its images are {found}: "
        "its known description is not used",
        fix=f"pass --layout {layout.name} if it is that dataset",
    )


def _is_ct(channel: str) -> bool | None:
    """Whether a channel is CT, by its name; None if that does not tell."""
    return True if channel.casefold() == "ct" else False if NOT_CT.fullmatch(channel) else None


def _shows_another(root: Path, match: Match) -> bool:
    """Whether the first images are CT and the public dataset is not, or the other way round.

    The folder's own description is believed where it tells.
    """
    known = {_is_ct(each) for each in declared_by_layout(match.layout).channels or ()}
    if len(known) != 1 or None in known:
        return False
    description = match.layout.description
    if description is not None and (root / description.file).is_file():
        own = {_is_ct(each) for each in read_decathlon(root / description.file).channels or ("",)}
        if None not in own:
            return own != known
    first = [min(match.images[case_id], key=lambda file: file.path) for case_id in match.paired[:NUM_TRIED]]
    return all(_shows_ct(root / file.path) is (False in known) for file in first)


def _shows_ct(file: Path) -> bool | None:
    """Whether an image is CT, by its tag or intensities; None where that is not sure, as for a CT that was windowed."""
    with suppress(AutosegError):  # the check tells what is wrong with it
        image = read_image(file)
        kind, is_told = image.ct_evidence()[0]
        return kind if kind or is_told else None
    return None


def _with_found_values(root: Path, matches: Sequence[Match]) -> list[Match]:
    """The first match and those that give its files other classes, without those that lack values of the first label maps."""
    values = {each.layout.name: declared_by_layout(each.layout).label_values for each in matches}
    differing = [each for each in matches[1:] if values[each.layout.name] != values[matches[0].layout.name]]
    if not differing:
        return list(matches[:1])
    found: set[int] = set()
    for file in sorted(matches[0].label_files)[:NUM_TRIED]:
        with suppress(AutosegError):  # the check tells what is wrong with it
            found |= set(np.unique(read_label_map(root / file).array).tolist())
    kept = [
        each
        for each in matches
        if (known := values[each.layout.name]) and found <= {*known.file_values, *known.dropped}
    ]
    return [each for each in kept if each in (matches[0], *differing)] or list(matches[:1])


def _agrees_with_description(root: Path, match: Match) -> bool:
    """Whether the folder's own description, if any, has the channels and labels of the public dataset."""
    description = match.layout.description
    if description is None or not (root / description.file).is_file():
        return True
    own, known = read_decathlon(root / description.file), declared_by_layout(match.layout)
    if own.channels and known.channels and len(own.channels) != len(known.channels):
        return False
    if own.label_values is None or known.label_values is None:
        return True
    return set(own.label_values.file_values[1:]) == set(known.label_values.file_values[1:])


def compare_with_known(dataset: DatasetDescription, layout: Layout) -> list[Issue]:
    """Numbers of cases that differ from those of the public dataset: fewer are a note, more are a warning."""
    known = layout.known
    if known is None:
        return []
    issues = []
    for kind, found, expected in (
        ("labelled", len(dataset.training), known.training),
        ("test", len(dataset.test), known.test),
    ):
        if expected is None or found == expected or (kind == "test" and found == 0):
            continue
        more = found > expected
        issues.append(
            Issue(
                code="known.more_cases" if more else "known.fewer_cases",
                severity="warning" if more else "note",
                where=dataset.root,
                message=f"found {found} {kind} cases, but {layout.title} has {expected}",
                fix="remove copies and cases of other datasets"
                if more
                else "ignore this if you use only some of its cases",
            )
        )
    return issues
