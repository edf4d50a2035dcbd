"""Case names that suggest one patient, where nothing keeps their cases in one fold."""

from __future__ import annotations

import re
from collections.abc import Iterable

from autoseg.data.dataset import Case
from autoseg.issues import UNNAMED, Issue

REPEATED = re.compile(
    r"(?i)(?P<patient>.*[a-z0-9])[-_. ]+(?:"
    r"(?:s|t|tp|v|ses|session|scan|study|time|timepoint|visit|frame|phase|fu|followup|rep|repeat|run)[-_]?\d+"
    r"|left|right|od|os|pre|post|baseline|followup)"
)
"""A name that ends in a repeat of the patient: ``ms01_s2``, ``P7-visit3``, ``0012_left``."""
NUM_SHOWN = 3


def patient_of(case_id: str) -> str | None:
    """The part of a case's name that would be the patient, where the rest numbers scans of one; else None."""
    match = REPEATED.fullmatch(case_id)
    return match["patient"] if match else None


def leaking_patients(cases: Iterable[Case], where: str) -> list[Issue]:
    """One warning with the patients that, by their names, have several cases, which are not grouped."""
    named: dict[str, list[Case]] = {}
    for case in cases:
        patient = patient_of(case.case_id)
        if patient is not None:
            named.setdefault(patient, []).append(case)
    apart = {
        patient: sorted(case.case_id for case in of_patient)
        for patient, of_patient in sorted(named.items())
        if len(of_patient) > 1 and len({case.group or case.case_id for case in of_patient}) > 1
    }
    if not apart:
        return []
    shown = "; ".join(" and ".join(cases[:NUM_SHOWN]) for cases in list(apart.values())[:NUM_SHOWN])
    more = f" and {len(apart) - NUM_SHOWN} more patients" if len(apart) > NUM_SHOWN else ""
    return [
        Issue(
            code=UNNAMED,
            severity="warning",
            case=None,
            where=where,
            message=f"by their names these cases are of one patient, but they may come into different folds: {shown}{more}",
            fix="describe the folder with a spec file whose pattern has {patient} (--spec), or take the scores with care",
        )
    ]
