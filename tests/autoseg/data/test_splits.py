"""Every case validates once, patients stay together, and the folds are the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autoseg.data.splits import (
    Split,
    Splits,
    find_gaps,
    find_leaks,
    leave_one_group_out,
    make_splits,
    maybe_of_one_patient,
    patients_by_name,
    read_groups,
    read_splits,
)
from autoseg.issues import AutosegError

ids = st.lists(st.text("abc123_", min_size=1, max_size=6), min_size=1, max_size=40, unique=True)


def reference_folds(case_ids, num_folds=5):
    """Method section 7.9 by hand: shuffle sorted ids with seed 12345, cut into nearly equal parts, larger ones first."""
    names = np.array(sorted(case_ids))
    order = np.random.RandomState(12345).permutation(len(names))
    return [sorted(names[part].tolist()) for part in np.array_split(order, num_folds)]


@given(ids.filter(lambda ids: len(ids) >= 5))
def test_folds_are_those_of_the_reference(case_ids):
    assert [list(split.val) for split in make_splits(case_ids).folds] == reference_folds(case_ids)


def test_folds_of_known_names_do_not_change():
    folds = make_splits([f"case_{number:02d}" for number in range(10)]).folds
    assert [split.val for split in folds] == [
        ("case_00", "case_07"),
        ("case_03", "case_09"),
        ("case_04", "case_06"),
        ("case_01", "case_08"),
        ("case_02", "case_05"),
    ]


@given(ids.filter(lambda ids: len(ids) >= 2), st.integers(2, 7), st.integers(0, 2**31))
def test_every_case_validates_once_whatever_the_order(case_ids, num_folds, seed):
    splits = make_splits(case_ids, num_folds=num_folds)
    assert len(splits.folds) == min(num_folds, len(case_ids))
    assert sorted(case for split in splits.folds for case in split.val) == sorted(case_ids)
    for split in splits.folds:
        assert sorted(split.train + split.val) == sorted(case_ids)
    assert splits.cross_validated
    shuffled = np.random.default_rng(seed).permutation(case_ids).tolist()
    assert make_splits(shuffled, num_folds=num_folds) == splits


@given(ids.filter(lambda ids: len(ids) >= 2), st.data())
def test_cases_of_one_patient_are_never_on_both_sides(case_ids, data):
    groups = {case: data.draw(st.sampled_from(["p1", "p2", "p3", "p4", None])) for case in case_ids}
    splits = make_splits(case_ids, groups=groups)
    patients = {groups[case] or ("alone", case) for case in case_ids}
    assert len(splits.folds) == (min(5, len(patients)) if len(patients) > 1 else 1)
    for split in splits.folds:
        assert not {groups[c] for c in split.train if groups[c]} & {groups[c] for c in split.val if groups[c]}
    if splits.cross_validated:
        assert sorted(case for split in splits.folds for case in split.val) == sorted(case_ids)


def test_patients_with_one_case_each_change_nothing():
    case_ids = [f"c{number}" for number in range(12)]
    assert make_splits(case_ids, groups={case: f"patient of {case}" for case in case_ids}) == make_splits(case_ids)


def test_a_patient_named_like_a_case_is_not_that_case():
    assert len(make_splits(["a", "b", "c"], groups={"b": "a", "c": "a"}).folds) == 2


@pytest.mark.parametrize("groups", [None, {"only": "p"}])
def test_single_case_trains_on_itself_and_validates_nothing(groups):
    splits = make_splits(["only"], groups=groups)
    assert splits.folds == (Split(train=("only",), val=()),)
    assert not splits.cross_validated


@pytest.mark.parametrize("groups", [None, {f"case_{i}": f"p{i // 2}" for i in range(12)}])
def test_a_single_fold_is_a_hold_out_the_first_of_the_five(groups):
    ids = [f"case_{i}" for i in range(12)]
    held_out = make_splits(ids, num_folds=1, groups=groups)
    assert held_out.folds == make_splits(ids, groups=groups).folds[:1]
    assert held_out.is_hold_out
    assert held_out.validated == held_out.folds[0].val
    assert not make_splits(ids, num_folds=2, groups=groups).is_hold_out
    assert not make_splits(["only"], num_folds=1).is_hold_out


def test_single_patient_is_not_cross_validated():
    assert not make_splits(["a", "b"], groups={"a": "p", "b": "p"}).cross_validated


@pytest.mark.parametrize(("case_ids", "num_folds"), [([], 5), (["a", "a"], 5), (["a", "b"], 0)])
def test_invalid_arguments_are_refused(case_ids, num_folds):
    with pytest.raises(ValueError, match="at least one fold"):
        make_splits(case_ids, num_folds=num_folds)


def test_a_fold_never_validates_on_what_it_trains_on():
    with pytest.raises(ValidationError, match="meaningless"):
        Split(train=("a", "b"), val=("b",))


def test_splits_survive_being_written():
    splits = make_splits(["a", "b", "c"])
    assert Splits.model_validate_json(splits.model_dump_json()) == splits


# --- files ---

CASES = [f"la_{number:03d}" for number in range(8)]


def codes(call) -> list[str]:
    """Codes of the error that ``call`` raises."""
    with pytest.raises(AutosegError) as raised:
        call()
    return list(raised.value.codes)


def written(folder: Path, content: object, name: str = "splits_final.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_nnunet_and_own_split_files_are_read(tmp_path) -> None:
    made = make_splits(CASES, num_folds=3)
    folds = [{"train": list(split.train)[::-1], "val": list(split.val)} for split in made.folds]
    assert read_splits(written(tmp_path, folds), CASES) == made
    assert read_splits(written(tmp_path, made.model_dump_json(), "splits.json"), CASES) == made


def test_one_fold_may_train_on_everything(tmp_path) -> None:
    splits = read_splits(written(tmp_path, [{"train": CASES}]), CASES)
    assert splits.folds == (Split(train=tuple(CASES), val=()),)
    assert not splits.cross_validated


def test_all_errors_are_reported_at_once_with_their_places(tmp_path) -> None:
    folds = [
        {"train": ["la_001", "la_001", "la_002"], "val": ["la_002", "la_003"]},
        {"train": [], "val": ["la_003"]},
        {"train": ["la_0004.nii.gz", "la_005.nii.gz"], "val": []},
    ]
    with pytest.raises(AutosegError) as raised:
        read_splits(written(tmp_path, folds), CASES)
    found = {(issue.code, issue.where.partition(", ")[2]) for issue in raised.value.issues}
    assert found == {
        ("splits.repeated_case", "fold 0, train"),
        ("splits.overlap", "fold 0"),
        ("splits.empty_side", "fold 1"),
        ("splits.empty_side", "fold 2"),
        ("splits.validated_twice", ""),
        ("case.unknown", "fold 2, train"),
    }
    fixes = [issue.fix for issue in raised.value.issues if issue.code == "case.unknown"]
    assert ["la_004" in fixes[0], "la_005" in fixes[1]] == [True, True]


def test_cases_that_were_left_out_of_the_dataset_are_skipped(tmp_path) -> None:
    splits = make_splits(CASES, num_folds=3)
    folds = [{"train": list(split.train), "val": list(split.val)} for split in splits.folds]
    kept = [case for case in CASES if case not in splits.folds[1].val]
    path = written(tmp_path, folds[::2])
    assert [
        case for split in read_splits(path, kept, splits.folds[1].val).folds for case in split.train if case not in kept
    ] == []
    whole = written(tmp_path, folds, "whole.json")
    assert codes(lambda: read_splits(whole, kept, splits.folds[1].val)) == ["splits.all_left_out"]
    assert set(codes(lambda: read_splits(whole, CASES[1:], ["another"]))) == {"case.unknown"}
    one = written(tmp_path, [{"train": CASES[1:], "val": CASES[:1]}], "one.json")
    assert codes(lambda: read_splits(one, CASES[1:], CASES[:1])) == ["splits.all_left_out"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", ["splits.unreadable"]),
        ("[" * 100_000, ["splits.unreadable"]),
        ([], ["splits.no_folds"]),
        ({"train": ["a"]}, ["splits.no_folds"]),
        ("7", ["splits.no_folds"]),
        (["la_001"], ["splits.invalid_fold"]),
        ([{"train": "la_001", "val": [3], "test": []}], ["splits.invalid_fold"] * 3),
    ],
)
def test_other_files_are_refused(tmp_path, content, expected) -> None:
    assert codes(lambda: read_splits(written(tmp_path, content), CASES)) == expected
    assert codes(lambda: read_splits(tmp_path / "absent.json", CASES)) == ["splits.unreadable"]


def test_gaps_and_leaks_are_reported(tmp_path) -> None:
    splits = Splits(
        folds=(
            Split(train=("la_000", "la_001", "la_002"), val=("la_003",)),
            Split(train=("la_003", "la_004"), val=("la_000",)),
        )
    )
    gaps = find_gaps(splits, CASES[:5])
    assert [(issue.code, issue.where) for issue in gaps] == [
        ("splits.never_validated", "splits"),
        ("splits.unused_cases", "fold 0"),
        ("splits.unused_cases", "fold 1"),
    ]
    assert "uses 3 of 5 cases, without la_001, la_002" in gaps[2].message
    groups = {"la_000": "anna", "la_001": "berta", "la_003": "anna", "la_004": None}
    assert [(issue.code, issue.message.split()[1]) for issue in find_leaks(splits, groups)] == [
        ("scores.leaking_groups", "0"),
        ("scores.leaking_groups", "1"),
    ]
    whole = make_splits(CASES)
    assert not find_gaps(whole, CASES)
    assert not find_leaks(whole, {})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_groups_are_read_whatever_separates_the_columns(tmp_path, separator: str) -> None:
    rows = [("case", "site", "group"), ("la_000", "x", "anna"), ("la_003", "x", " anna "), ("la_000", "y", "anna")]
    path = written(tmp_path, "\ufeff" + "\n".join(separator.join(row) for row in rows), "groups.csv")
    assert read_groups(path, CASES) == {"la_000": "anna", "la_003": "anna"}
    assert read_groups(path, CASES[1:], CASES[:1]) == {"la_003": "anna"}


def test_wrong_groups_are_reported_line_by_line(tmp_path) -> None:
    path = written(tmp_path, "case,group\nla_000,anna\nla_9,berta\nla_001,\nla_000,berta\nla_002\n", "groups.csv")
    with pytest.raises(AutosegError) as raised:
        read_groups(path, CASES)
    assert [(issue.code, issue.where.rsplit(" ", 1)[1]) for issue in raised.value.issues] == [
        ("case.unknown", "3"),
        ("groups.no_group", "4"),
        ("groups.contradiction", "5"),
        ("groups.no_group", "6"),
    ]


def test_a_quote_that_is_not_closed_takes_no_other_lines(tmp_path: Path) -> None:
    lines = ["case,group", 'la_000,"A', "la_001,A", 'la_002,"B" x', 'la_003,"C, D"', f"la_004,{'E' * 200_000}"]
    path = written(tmp_path, "\n".join(lines), "groups.csv")
    with pytest.raises(AutosegError) as raised:
        read_groups(path, CASES)
    assert [problem.where for problem in raised.value.issues] == [f"{path}, line {number}" for number in (2, 4, 6)]
    assert set(raised.value.codes) == {"groups.invalid_line"}
    two = written(tmp_path, 'case,group\nla_000,"A\nla_001,"\n', "two.csv")  # two that are not closed make one that is
    assert set(codes(lambda: read_groups(two, CASES))) == {"groups.invalid_line"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "groups.columns"),
        ("id,patient\n", "groups.columns"),
        ("case,group\n\n,\n", "groups.empty"),
        ("case,group,Group\nla_000,A,B\n", "groups.columns"),
        ("case,group,case,group\nla_000,A,la_001,B\n", "groups.columns"),
    ],
)
def test_tables_without_groups_or_with_more_than_one_of_a_case_are_refused(
    tmp_path: Path, text: str, code: str
) -> None:
    assert codes(lambda: read_groups(written(tmp_path, text, "groups.csv"), CASES)) == [code]


def test_capitals_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = written(tmp_path, '\n" Case"; GROUP\n\nla_000;A\n   \n;\nla_001; "A"\nla_9;A\n', "groups.csv")
    assert read_groups(path, [*CASES, "la_9"]) == dict.fromkeys(["la_000", "la_001", "la_9"], "A")
    with pytest.raises(AutosegError) as raised:
        read_groups(path, CASES)
    assert [(i.code, i.where) for i in raised.value.issues] == [("case.unknown", f"{path}, line 8")]


@given(st.dictionaries(st.sampled_from(CASES), st.sampled_from(["p", "q", "r"])))
def test_each_group_is_left_out_once_and_whole(groups) -> None:
    splits = leave_one_group_out(CASES, groups)
    assert sorted(case for split in splits.folds for case in split.val) == CASES
    for split in splits.folds:
        assert sorted(split.train + split.val) == CASES
        assert len({groups.get(case) or ("alone", case) for case in split.val}) == 1
    assert not find_leaks(splits, groups)


def test_a_single_group_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="at least two groups"):
        leave_one_group_out(CASES, dict.fromkeys(CASES, "p"))


# --- patients in names


@pytest.mark.parametrize(
    ("first", "second", "other", "patient"),
    [
        ("pat01_slice003", "pat01_slice004", "pat02_slice003", "pat01"),
        ("sub-01_z3", "sub-01_z4", "sub-02_z3", "sub-01"),
        ("pat01slice003", "pat01slice004", "pat02slice003", "pat01"),
        ("volume-0_slice_10", "volume-0_slice_11", "volume-1_slice_10", "volume-0"),  # LiTS in slices
        ("patient001_frame01", "patient001_frame12", "patient002_frame01", "patient001"),  # ACDC
        ("patient0001_2CH_ED", "patient0001_4CH_ES", "patient0002_2CH_ED", "patient0001"),  # CAMUS
        ("P_00001_LEFT_CC", "P_00001_RIGHT_MLO", "P_00002_LEFT_CC", "P_00001"),  # CBIS-DDSM
        ("010_HC", "010_2HC", "011_HC", "010"),  # HC18
        ("Patient-001_week-000-1", "Patient-001_week-044", "Patient-002_week-000", "Patient-001"),  # LUMIERE
        ("OAS1_0001_MR1", "OAS1_0001_MR2", "OAS1_0002_MR1", "OAS1_0001"),  # OASIS
        ("pat01_20190304", "pat01_2020-01-01", "pat02_20200101", "pat01"),
        ("P7", "P7_followup", "P8", "P7"),
        ("anna-visit1", "anna-visit2", "bert-visit1", "anna"),
        ("9001104_L", "9001104_R", "9002411_L", "9001104"),
        ("9001104_00m", "9001104_12m", "9002411_00m", "9001104"),  # OAI
        ("sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "sub-02_ses-1_T1w", "sub-01"),
        ("TCGA-18-5592-01Z-00-DX1", "TCGA-18-5592-01Z-00-DX2", "TCGA-21-5784-01Z-00-DX1", "TCGA-18-5592"),
        ("P01_preop", "P01_postop", "P02_preop", "P01"),
        ("12345_01-03-2021", "12345_02-03-2022", "23456_01-03-2021", "12345"),
        ("img01", "img01_aug2", "img02", "img01"),
        ("slice1_pat0", "slice2_pat0", "slice1_pat1", "pat0"),
        ("z1_sub0", "z2_sub0", "z1_sub1", "sub0"),
        ("visit1_slice3_case-7", "visit2_slice3_case-7", "visit1_slice3_case-8", "case-7"),
        ("img01", "img01 (1)", "img02", "img01"),
        ("P001-t2", "P001-t3", "P002-t2", "P001"),
        ("Patient 1 Visit 2", "Patient 1 Visit 3", "Patient 2 Visit 2", "Patient 1"),
        ("pat01_CT", "pat01_MR", "pat02_CT", "pat01"),
        ("1_T1DUAL", "1_T2SPIR", "2_T1DUAL", "1"),  # CHAOS
        ("UCSF-PDGM-0004_T1", "UCSF-PDGM-0004_FLAIR", "UCSF-PDGM-0005_T1", "UCSF-PDGM-0004"),
        ("LIDC-IDRI-0001_nodule1", "LIDC-IDRI-0001_nodule2", "LIDC-IDRI-0002_nodule1", "LIDC-IDRI-0001"),
        ("OAS2_0001_MR1_mpr-1", "OAS2_0001_MR2_mpr-1", "OAS2_0002_MR1_mpr-1", "OAS2_0001"),
        ("005_S_0223_I1", "005_S_0223_I2", "006_S_0498_I3", "005_S_0223"),  # ADNI
        ("case_001_insp", "case_001_exp", "case_002_insp", "case_001"),
        ("pat01_series002", "pat01_series005", "pat02_series002", "pat01"),
        ("video01_frame_80_endo", "video01_frame_81_endo", "video09_frame_80_endo", "video01"),  # CholecSeg8k
        (
            "case1_day2_slice_0001_266_266_1.50_1.50",  # UW-Madison
            "case1_day20_slice_0001_266_266_1.50_1.50",
            "case2_day1_slice_0001_266_266_1.50_1.50",
            "case1",
        ),
        ("S01_r0_c1", "S01_r1_c1", "S02_r0_c0", "S01"),
    ],
)
def test_scans_and_slices_of_a_patient_are_known_by_their_names(
    first: str, second: str, other: str, patient: str
) -> None:
    assert patients_by_name([first, second, other]) == {first: patient, second: patient}


@pytest.mark.parametrize(
    ("first", "second", "other"),
    [
        ("LIDC-IDRI-0001_1", "LIDC-IDRI-0001_2", "LIDC-IDRI-0002_1"),
        ("Image_01L", "Image_01R", "Image_02L"),
        ("HN001T0", "HN001T1", "HN002T0"),
        ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"),
        ("hospital1_001", "hospital1_002", "hospital2_001"),
        ("ms01_s1", "ms01_s2", "c02"),
        ("P7a", "P7b", "P8a"),
        ("000-01-A", "000-02-A", "001-01-A"),
        ("1_pat0", "2_pat0", "1_pat1"),
        ("left_knee001", "right_knee001", "left_knee002"),
        ("img1_pat0", "img2_pat0", "img1_pat1"),
        ("slice1_A04", "slice2_A04", "slice1_B04"),
        ("p1_slice1", "p1_slice2", "p1_slice3"),  # all of one patient: no folds without it on both sides
    ],
)
def test_names_that_may_be_of_one_patient_are_not_grouped(first: str, second: str, other: str) -> None:
    assert patients_by_name([first, second, other]) == {}
    assert {first, second} <= maybe_of_one_patient([first, second, other]).keys()


@pytest.mark.parametrize(
    "names",
    [
        ("hippocampus_001", "hippocampus_003"),
        ("BraTS20_Training_001", "BraTS20_Training_002"),
        ("2007_000032", "2007_000033", "2008_000001"),
        ("LIDC-IDRI-0001", "LIDC-IDRI-0002"),
        ("img_s", "img_t", "img_u"),
        ("Case00", "Case01"),
        ("case_001", "case_002"),
        ("IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI013-HH-1212-T1"),
        ("hippocampus_001_A", "hippocampus_002_A", "hippocampus_003_B"),
        ("img01_grade2", "img02_grade2", "img03_grade3"),
        ("image_01_liver", "image_02_liver", "image_03_spleen"),
        ("slice1_left", "slice2_left", "slice3_t2"),
        ("left", "right"),
        ("benign (1)", "benign (2)", "malignant (1)", "malignant (2)"),  # BUSI
        ("train_img001", "train_img002", "val_img003", "val_img004"),
        ("center1_scan001", "center1_scan002", "center2_scan001", "center2_scan002"),
        ("liver_ct_1", "liver_ct_2", "spleen_ct_1"),
    ],
)
def test_numbers_of_cases_are_no_patients(names: tuple[str, ...]) -> None:
    assert patients_by_name(names) == maybe_of_one_patient(names) == {}


def test_most_cases_are_not_one_patient_that_has_no_number() -> None:
    names = [f"scan_slice{i}" for i in range(4)]
    assert patients_by_name([*names, "b1", "b2", "b3"]) == {}
    assert len(patients_by_name([*names, "b1", "b2", "b3", "b4"])) == 4
