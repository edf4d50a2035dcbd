"""Cases that occur twice, and cases of one patient that may come into different folds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from autoseg.data.checks.case import CaseMeasures
from autoseg.data.dataset import Case
from autoseg.data.splits import maybe_of_one_patient, patients_by_name
from autoseg.issues import Issue, Severity
from autoseg.wording import NUM_SHOWN, count_noun, shorten

MIN_LABEL_VOXELS = 20
"""Label maps with less foreground may be equal by chance."""
NEARLY_SAME = 0.999
"""Correlation of two images of one size. Two scans of one patient, registered to each other, reach 0.97."""


def find_duplicates(cases: Sequence[CaseMeasures]) -> list[Issue]:
    """Issues about cases with the same voxels.

    The same image with different labels is an error: one of them is wrong. Warnings: the same image and label map twice, a
    label map of two different images, two images that differ by little more than scale, a training image among the test
    images. Duplicates in one group cannot be in both training and validation, but are still warnings.
    """
    same_image = _alike(cases, lambda case: case.channel_digests)
    issues = [_same_image(first, second) for first, second in same_image]
    reported = {frozenset((a.case_id, b.case_id)) for a, b in same_image}
    with_labels = [case for case in cases if case.num_foreground >= MIN_LABEL_VOXELS]
    for first, second in _alike(with_labels, lambda case: case.label_digest):
        if (pair := frozenset((first.case_id, second.case_id))) not in reported:
            message = f"the same label map as case {first.case_id}, but another image{_across(first, second)}"
            fix = "find out which image it belongs to, and give the other its own label map"
            issues.append(_issue(second, message, fix, where=second.label_path or "", code="labels.duplicate"))
            reported.add(pair)
    for first, second in _nearly_same_images(cases):
        if frozenset((first.case_id, second.case_id)) not in reported:
            message = f"nearly the same image as case {first.case_id}{_across(first, second)}"
            fix = "remove one of them, or list both under one patient to keep them in one fold"
            issues.append(_issue(second, message, fix, code="case.near_duplicate"))
    return [*issues, *_repeated_channels(cases)]


def _alike(
    cases: Iterable[CaseMeasures], key: Callable[[CaseMeasures], object]
) -> list[tuple[CaseMeasures, CaseMeasures]]:
    """Each case with the first one of the same key."""
    first: dict[object, CaseMeasures] = {}
    pairs = [(first.setdefault(value, case), case) for case in cases if (value := key(case)) is not None]
    return [(kept, case) for kept, case in pairs if kept is not case]


def _same_image(first: CaseMeasures, second: CaseMeasures) -> Issue:
    if first.is_training != second.is_training:
        message = f"the test image is the training image of case {first.case_id}"
        fix = "remove one of them: a score on a training image says nothing about new images"
        return _issue(second, message, fix, code="case.test_in_training")
    if first.is_training and first.label_digest != second.label_digest:
        message = f"the same image as case {first.case_id}, but with another label map"
        fix = "find out which label map is correct, and remove the other case"
        return _issue(second, message, fix, severity="error", code="case.contradictory_labels")
    message = f"the same image as case {first.case_id}{_across(first, second)}"
    fix = "remove one of them" + (": in different folds they inflate the score" if first.is_training else "")
    return _issue(second, message, fix, code="case.duplicate")


def _across(first: CaseMeasures, second: CaseMeasures) -> str:
    if first.group is None or second.group is None or first.group == second.group:
        return ""
    return f", from another patient ({first.group} and {second.group})"


def _nearly_same_images(cases: Sequence[CaseMeasures]) -> list[tuple[CaseMeasures, CaseMeasures]]:
    """Pairs of images of one size that differ by little more than scale and noise."""
    by_shape: dict[tuple[int, ...], list[CaseMeasures]] = {}
    for case in cases:
        by_shape.setdefault(case.thumbnail.image.shape, []).append(case)
    pairs = []
    for alike in by_shape.values():
        flat = np.stack(
            [case.thumbnail.image.astype(np.float32).reshape(len(case.thumbnail.image), -1) for case in alike]
        )
        rows = (flat - flat.mean(axis=2, keepdims=True)).reshape(len(flat), -1)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, lengths, out=rows, where=lengths > 0)
        for index, row in enumerate(rows):
            close = np.flatnonzero(rows[:index] @ row > NEARLY_SAME)
            if close.size:
                pairs.append((alike[int(close[0])], alike[index]))
    return pairs


def _repeated_channels(cases: Sequence[CaseMeasures]) -> list[Issue]:
    """Two channels of a case that hold the same image, if most cases have two different ones."""
    issues = []
    num_channels = len(cases[0].channel_digests) if cases else 0
    for a, b in combinations(range(num_channels), 2):
        digests = [(case, case.channel_digests) for case in cases if not case.repeats_file]
        same = [case for case, each in digests if len(each) > b and each[a] == each[b]]
        if 2 * len(same) < len(digests):
            message = f"channels {a} and {b} are the same image"
            fix = "use a different file for each channel, or remove the case"
            issues += [_issue(case, message, fix, severity="error", code="image.repeated_channel") for case in same]
    return issues


def _issue(
    case: CaseMeasures, message: str, fix: str, *, code: str, severity: Severity = "warning", where: str | None = None
) -> Issue:
    path = case.image_path if where is None else where
    return Issue(code=code, severity=severity, case=case.case_id, where=path, message=message, fix=fix)


def patients_in_names(cases: Iterable[Case], where: str) -> list[Issue]:
    """A note about cases that the folds keep together by their names, and a warning about names that only may tell patients."""
    ids = [case.case_id for case in cases if case.group is None]
    kept = patients_by_name(ids)
    apart = maybe_of_one_patient([case_id for case_id in ids if case_id not in kept])
    issues = []
    if kept:
        shown, num = _show_patients(kept), len(set(kept.values()))
        message = (
            f"by their names, scans or slices of {count_noun(num, 'patient')}, which the folds keep together: {shown}"
        )
        fix = "list the patients in a file if the names mean something else (--groups)"
        issues.append(
            Issue(code="case.grouped_by_name", severity="note", where=where, message=message, fix=fix),
        )
    if apart:
        message = f"by their names, perhaps several cases of one patient, which may be in both training and validation: {_show_patients(apart)}"
        fix = "list the patients in a file (--groups), or use a spec file whose pattern has {patient} (--spec)"
        issues.append(
            Issue(code="case.ungrouped_patient", severity="warning", where=where, message=message, fix=fix),
        )
    return issues


def _show_patients(patients: Mapping[str, str]) -> str:
    cases: dict[str, list[str]] = {}
    for case_id, patient in sorted(patients.items()):
        cases.setdefault(patient, []).append(case_id)
    return shorten([" and ".join(ids[:NUM_SHOWN]) for ids in cases.values()])
