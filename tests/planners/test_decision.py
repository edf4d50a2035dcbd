"""Reasons: numbers as decisions say them."""

from __future__ import annotations

import pytest

from planners.decision import amount, counted, gigabytes, listed, millimetres, voxels


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (999, "999"),
        (0.25, "0.25"),
        (1000, "1 thousand"),
        (999_400, "999 thousand"),
        (999_500, "1000 thousand"),
        (1e6, "1 million"),
        (19_174_400, "19.2 million"),
        (-5e6, "-5 million"),
        (999_999_999, "1000 million"),
        (1e9, "1 billion"),
        (2_104_000_000, "2.1 billion"),
        (1e12, "1 trillion"),
        (4_321e12, "4321 trillion"),
    ],
)
def test_amounts_have_three_digits(number: float, text: str) -> None:
    assert amount(number) == text


def test_shapes_spacings_counts_and_lists() -> None:
    assert voxels((40, 56.5, 1_000_000)) == "40 x 56.5 x 1000000"
    assert millimetres((2.5, 0.80004, 1)) == "2.5 x 0.8 x 1 mm"
    assert gigabytes(2_149_000_000) == "2.1 GB"
    assert [counted(number, "case") for number in (0, 1, 2)] == ["0 cases", "1 case", "2 cases"]
    assert [listed(words) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
