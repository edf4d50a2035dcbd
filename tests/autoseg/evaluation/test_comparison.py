"""Results beside each other: paired differences, public tables, and what folds and seeds account for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.data.splits import Split, Splits
from autoseg.evaluation import comparison
from autoseg.evaluation.comparison import (
    MEAN,
    Result,
    compare_results,
    fold_spread,
    format_comparison,
    read_public,
    read_result,
    seed_spread,
)
from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.evaluation.table import CaseResult, Summary, summarize, write_summary, write_table
from autoseg.issues import AutosegError
from autoseg.storage.atomic import save_document

CLASSES = (EvaluatedClass(name="head", values=(1,)), EvaluatedClass(name="tail", values=(2,)))
CASES = [f"case_{i}" for i in range(8)]


def result(name: str, dice: list[float], **known: object) -> Result:
    return Result(name=name, dice={case: {MEAN: value} for case, value in zip(CASES, dice, strict=False)}, **known)  # type: ignore[arg-type]


def summary_of(shift: int = 0, patients: bool = False) -> Summary:
    """Eight cases with a head of ten voxels, whose prediction is some voxels short."""
    cases = []
    for number, case in enumerate(CASES):
        reference = np.zeros((1, 1, 20), np.uint8)
        reference[..., :10], reference[..., 12:14] = 1, 2
        prediction = reference.copy()
        prediction[..., : number % 4 + shift] = 0
        found = compare(prediction, reference, classes=CLASSES, spacing_mm=(1.0, 1.0, 1.0))
        cases.append(
            CaseResult(
                case_id=case,
                metrics={each.key: found[each.name] for each in CLASSES},
                prediction_file="p",
                reference_file="r",
                patient=f"p{number // 2}" if patients else None,
            )
        )
    return summarize(cases, CLASSES)


def make_run(folder: Path, shift: int = 0, seed: int = 0, patients: bool = False) -> Path:
    """What a comparison reads of a finished run."""
    write_summary(folder / "cross_validation" / "summary.json", summary_of(shift, patients))
    folds = [Split(train=tuple(CASES[4:]), val=tuple(CASES[:4])), Split(train=tuple(CASES[:4]), val=tuple(CASES[4:]))]
    save_document(folder / "splits.json", Splits(folds=tuple(folds)))
    (folder / "settings.json").write_text(json.dumps({"seed": seed, "folds": 2}))
    return folder


def test_runs_are_compared_by_class_on_the_same_cases(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", shift=1, seed=1)]

    found, ranks = autoseg.compare(*runs)

    (compared,) = found.compared
    assert (found.first, compared.name, ranks) == ("a", "b", {})
    assert list(compared.classes) == ["head", "tail", MEAN]
    lost = [18 / 19, 16 / 18, 14 / 17, 12 / 16]
    expected = np.mean(np.array(lost) - np.array([1, *lost[:3]]))
    assert compared.classes["head"].mean == pytest.approx(expected)
    assert compared.classes["head"].is_sure
    assert (compared.classes["tail"].mean, compared.classes["tail"].wilcoxon_p) == (0.0, None)
    assert compared.classes["head"].wilcoxon_p == pytest.approx(0.0117, abs=0.02)


def test_patients_count_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", patients=True), make_run(tmp_path / "b", shift=1, patients=True)]

    difference = autoseg.compare(*runs)[0].compared[0].classes["head"]

    assert (difference.cases, difference.units, difference.wilcoxon_p) == (8, 4, None)


def test_folds_are_told_from_their_cases() -> None:
    """Means 0.9 and 0.7; the cases within a fold differ by 0.02, so that folds of them would differ by 0.014 / 1.41."""
    run = result("run", [0.91, 0.89, 0.71, 0.69], folds=(("case_0", "case_1"), ("case_2", "case_3")))

    spread = fold_spread(run)

    assert spread is not None
    assert spread.means == pytest.approx((0.9, 0.7))
    assert spread.sd == pytest.approx(np.std([0.9, 0.7], ddof=1))
    assert spread.expected_sd == pytest.approx(np.std([0.91, 0.89], ddof=1) / np.sqrt(2))
    assert fold_spread(result("one", [0.9, 0.8], folds=(("case_0", "case_1"),))) is None


@pytest.mark.parametrize(
    ("changed", "given"),
    [({"seed": 1}, True), ({"seed": 1, "threads": 3}, True), ({"seed": 1, "preset": "resenc_m"}, False), ({}, False)],
)
def test_runs_are_seeds_if_nothing_else_differs(changed: dict[str, object], given: bool) -> None:
    base = {"seed": 0, "preset": "default", "threads": 2}
    folds = (("case_0",), ("case_1",))
    runs = [
        result("a", [0.9, 0.8, 0.5], folds=folds, settings=base),
        result("b", [0.8, 0.8], folds=folds, settings=base | changed),
    ]

    spread = seed_spread(runs)

    assert (spread is not None) == given
    if spread is not None:
        assert spread.means == pytest.approx((0.85, 0.8))  # of cases that both have
        assert spread.sd == pytest.approx(np.std([0.85, 0.8], ddof=1))


def test_results_without_a_common_case_are_refused() -> None:
    other = Result(name="other", dice={"elsewhere": {MEAN: 0.5}})

    with pytest.raises(AutosegError) as caught:
        compare_results([result("run", [0.9]), other])
    assert caught.value.codes == ("compare.no_common_cases",)


def public_file(path: Path, dice: list[float]) -> Path:
    rows = [f"{case},{value},0.5" for case, value in zip(CASES, dice, strict=False)]
    path.write_text("\n".join(["case_id,argmax_foreground_mean_dice,other", *rows]) + "\n")
    return path


def test_public_table_is_known_by_its_cases_and_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = comparison.PublicTable(column="argmax_foreground_mean_dice", cases=2, mean=0.85, source="a page")
    monkeypatch.setitem(comparison.PUBLIC, "own", table)

    assert read_public("own", public_file(tmp_path / "a.csv", [0.9, 0.8])).dice["case_1"] == {MEAN: 0.8}
    for dice in ([0.9, 0.8, 0.85], [0.9, 0.8002]):
        with pytest.raises(AutosegError) as caught:
            read_public("own", public_file(tmp_path / "b.csv", dice))
        assert caught.value.codes == ("compare.other_table",)
    with pytest.raises(AutosegError, match="nnunet-v1-hippocampus") as caught:
        read_public("nobody", tmp_path / "a.csv")
    assert caught.value.codes == ("compare.unknown",)


def test_command_compares_a_run_with_a_table_and_a_public_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    write_table(tmp_path / "other.csv", summary_of(shift=1))
    table = comparison.PublicTable(column="argmax_foreground_mean_dice", cases=4, mean=0.75, source="a page")
    monkeypatch.setitem(comparison.PUBLIC, "published", table)
    public = public_file(tmp_path / "public.csv", [0.7, 0.7, 0.8, 0.8])

    words = [
        "compare",
        str(run),
        str(tmp_path / "other.csv"),
        "--with",
        "published",
        str(public),
        "--out",
        str(tmp_path / "c.json"),
    ]
    done = CliRunner().invoke(app, words)

    assert done.exit_code == 0, done.output
    assert "other.csv minus run, on 8 common cases" in done.output
    assert "not compared: 0 cases only here, 4 only in run" in done.output
    assert "Folds of run:" in done.output
    assert json.loads((tmp_path / "c.json").read_text())["first"] == "run"


@pytest.mark.parametrize("number", [0, 1])
def test_one_result_alone_is_nothing_to_compare(number: int, tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        autoseg.compare(*[make_run(tmp_path / "run")][:number])
    assert caught.value.codes == ("compare.too_few",)


def test_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        read_result(tmp_path)
    assert caught.value.codes == ("compare.no_scores",)


def test_text_says_where_a_difference_is_not_sure() -> None:
    found = compare_results([result("a", [0.5, 0.6, 0.7]), result("b", [0.6, 0.5, 0.7])])

    assert "(inconclusive)" in format_comparison(found)
