"""Codes of classes: public ones as DICOM lists them, private ones for the rest, and tables of users."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr import _concepts_dict

from datasets_spec import coded_classes, load_structures, read_structures
from planners import DocumentError


def test_every_public_code_is_one_that_dicom_lists_with_that_wording() -> None:
    known = {(code, text) for found in _concepts_dict.concepts["SCT"].values() for code, (text, _) in found.items()}
    rows = load_structures().values()
    assert len(rows) > 200
    assert [row for row in rows if (row.code, row.meaning) not in known or row.scheme != "SCT"] == []


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("Kidney_Left", "Kidney", "left"),
        ("right kidney", "Kidney", "right"),
        ("lung-upper-lobe_left", "Upper lobe of lung", "left"),
        ("left ventricle", "Left ventricle", None),  # has a code of its own
        ("vertebrae_L5", "L5 vertebra", None),
        ("rib_left_4", "Rib", "left"),
        ("R-ACA", "Anterior Cerebral Artery", "right"),
    ],
)
def test_usual_names_have_public_codes(name: str, meaning: str, side: str | None) -> None:
    (found,) = coded_classes((name,))
    assert (found.name, found.meaning, found.side, found.scheme) == (name, meaning, side, "SCT")


@pytest.mark.parametrize(
    "name", ["liver vessels of mine", "left", "left right kidney", "kidney l", "no\\code", "x" * 70]
)
def test_other_names_have_private_codes(name: str) -> None:
    (found,) = coded_classes((name,))
    assert found.is_private
    assert found.side is None
    assert 0 < len(found.code) <= 16
    assert "\\" not in found.code


def test_colours_without_a_row_differ() -> None:
    found = coded_classes(tuple(f"class {k}" for k in range(120)))
    assert len({each.rgb for each in found}) > 115
    (liver,) = coded_classes(("liver",))
    assert liver.rgb == (0xB5, 0x65, 0x1D)


HEAD = "name,category,scheme,code,meaning,colour\n"


def test_rows_of_a_user_come_first(tmp_path: Path) -> None:
    path = tmp_path / "terms.csv"
    path.write_text(HEAD + "Liver,object,99ME,7,My liver,\nflux capacitor,object,99ME,8,Flux capacitor,#010203\n")
    mine, other = coded_classes(("liver", "flux_capacitor"), read_structures(path))
    assert (mine.scheme, mine.code, mine.meaning, mine.category) == ("99ME", "7", "My liver", "object")
    assert other.rgb == (1, 2, 3)


def test_all_faults_of_a_table_are_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "terms.csv"
    path.write_text(
        HEAD
        + "a,organ,SCT,1,A,\nb,anatomy,SCT,12345678901234567,B,\nc,anatomy,SCT,1,C,red\nd,anatomy,SCT,1,D,\nD,anatomy,SCT,2,D,\n"
    )
    with pytest.raises(DocumentError) as caught:
        read_structures(path)
    assert [issue.where for issue in caught.value.issues] == ["line 2", "line 3", "line 4", "line 6"]
    path.write_text("name,code\nliver,1\n")
    with pytest.raises(DocumentError) as caught:
        read_structures(path)
    assert [issue.code for issue in caught.value.issues] == ["structures.bad_row"]
