"""Which prediction belongs to which reference, by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Collection

WORDS = (
    "labels?|masks?|gt|segs?|seg-manual|segmentations?|segmented|manual|annotations?|anno|truth|ground_?truth|ref|reference|"
    "preds?|predict(?:ed|ions?)|outputs?|img|images?"
)
AROUND_CASE = re.compile(rf"(?i)(?:(?:{WORDS})(?:[-_. ]+|(?=\d)))*(?P<case>.+?)(?:[-_. ]+(?:{WORDS}|0000))*")
"""What names say besides the case: ``label0001``, ``p1_mask``, ``p1_pred``, and the channel of the image, ``p1_0000``."""


def pair_names(predictions: Collection[str], references: Collection[str]) -> dict[str, str]:
    """The reference of each prediction that has one, by names without ending, sorted.

    Equal names belong together. Of the others those do that are equal without `AROUND_CASE`, where only one is on either
    side, and those of one side that all add the same ending to a name of the other (``p1_GTV``, ``p2_GTV``).
    """
    pairs = {name: name for name in set(predictions) & set(references)}
    sides: list[dict[str, list[str]]] = []
    for names in (set(predictions) - pairs.keys(), set(references) - pairs.keys()):
        sides.append({})
        for name in names:
            sides[-1].setdefault(case_in(name), []).append(name)
    for case, (name, *others) in sides[0].items():
        found = sides[1].get(case, [])
        if len(found) == 1 and not others:
            pairs[name] = found[0]
    left, right = set(predictions) - pairs.keys(), set(references) - set(pairs.values())
    pairs |= _pairs_of_one_suffix(left, right)
    pairs |= {prediction: reference for reference, prediction in _pairs_of_one_suffix(right, left).items()}
    return dict(sorted(pairs.items()))


def _pairs_of_one_suffix(names: Collection[str], longer: Collection[str]) -> dict[str, str]:
    """The one of ``longer`` that adds to each name an ending that is the same for all; none where endings or partners differ."""
    found = {name: [other for other in longer if re.match(re.escape(name) + "[-_. ]", other, re.I)] for name in names}
    found = {name: others for name, others in found.items() if others}
    endings = {other[len(name) :].lower() for name, others in found.items() for other in others}
    if len(endings) != 1 or any(
        len(others) > 1 or case_in(others[0]) == case_in(name) for name, others in found.items()
    ):
        return {}
    is_sure = len(found) > 1 or not any(map(str.isdigit, "".join(endings)))
    return {name: others[0] for name, others in found.items()} if is_sure else {}


def case_in(name: str) -> str:
    """What a name says of the case, in lower case."""
    match = AROUND_CASE.fullmatch(name)
    return match["case"].lower() if match else name
