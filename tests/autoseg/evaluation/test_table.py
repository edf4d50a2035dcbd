"""The long table of scores, and what is made of it: means, ranks, ``summary.json``, text."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.tables import Grouping
from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.evaluation.table import (
    METRICS,
    CaseResult,
    Summary,
    case_ranks,
    class_statistics,
    format_table,
    long_table,
    read_summary,
    score_notes,
    summarize,
    with_groups,
    write_summary,
)

CLASSES = (EvaluatedClass(name="head", values=(1,)), EvaluatedClass(name="tail", values=(2,)))


def case(name: str, prediction: list[int], reference: list[int]) -> CaseResult:
    arrays = (np.array(row, dtype=np.uint8).reshape(1, 1, -1) for row in (prediction, reference))
    metrics = compare(*arrays, classes=CLASSES, spacing_mm=(1.0, 1.0, 2.0))
    return CaseResult(
        case_id=name,
        metrics={each.key: metrics[each.name] for each in CLASSES},
        prediction_file="p",
        reference_file="r",
    )


@pytest.fixture
def summary() -> Summary:
    """Dice of the head: 1, 2/3, 0 (missed). The tail is in one reference only, where it is found."""
    cases = [
        case("perfect", [1, 1, 0, 2], [1, 1, 0, 2]),
        case("half", [1, 0, 0, 0], [1, 1, 0, 0]),
        case("missed", [0, 0, 0, 0], [1, 1, 0, 0]),
    ]
    return summarize(cases, CLASSES)


def test_long_table_has_a_row_for_each_case_class_and_metric(summary: Summary) -> None:
    table = long_table(summary.metric_per_case, CLASSES)

    assert list(table.columns) == ["case", "class", "metric", "value"]
    assert len(table) == 3 * 2 * len(METRICS)
    rows = table.set_index(["case", "class", "metric"])["value"]
    assert (rows["half", "head", "Dice"], rows["half", "head", "n_ref"]) == (pytest.approx(2 / 3), 2)
    assert math.isnan(rows["half", "tail", "Dice"])


def test_summary_derives_means_and_counts_from_the_table(summary: Summary) -> None:
    assert summary.mean["1"]["Dice"] == pytest.approx(5 / 9)
    assert summary.mean["2"]["Dice"] == 1.0
    assert summary.mean_dice == pytest.approx((5 / 9 + 1) / 2)
    assert summary.mean["1"]["n_pred"] == 1.0
    tail = summary.counts["2"]
    assert (tail.cases, tail.both_empty, tail.missed, tail.false_positive) == (3, 2, 0, 0)
    assert (tail.in_mean["Dice"], tail.in_mean["TP"]) == (1, 3)


def test_summary_of_no_case_has_no_mean() -> None:
    nothing = summarize([], CLASSES)

    assert (nothing.mean_dice, nothing.mean["1"]["Dice"], nothing.counts["1"].cases) == (None, None, 0)
    assert nothing.counts["1"].in_mean["Dice"] == nothing.foreground_classes["Dice"] == 0
    assert case_ranks(nothing).empty


def test_statistics_of_a_class(summary: Summary) -> None:
    head, tail = (class_statistics(summary).loc[name] for name in ("head", "tail"))

    assert head["mean"] == pytest.approx(5 / 9)
    assert head["sd"] == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert (head["worst"], head["worst_case"], head["cases"]) == (0.0, "missed", 3)
    assert (tail["mean"], tail["cases"]) == (1.0, 1)
    assert math.isnan(tail["sd"])


def test_worst_distance_is_the_largest(summary: Summary) -> None:
    head = class_statistics(summary, "hausdorff95_mm").loc["head"]

    assert (head["worst"], head["worst_case"]) == (2.0, "half")
    assert head["cases"] == 2  # the missed one has no distance


def test_worst_error_of_volume_is_the_one_farthest_from_0() -> None:
    cases = [case("more", [1, 1, 0, 0], [1, 0, 0, 0]), case("less", [0, 0, 0, 0], [1, 1, 0, 0])]
    head = class_statistics(summarize(cases, CLASSES), "volume_error_ml").loc["head"]

    assert (head["worst"], head["worst_case"]) == (pytest.approx(-0.004), "less")
    assert head["mean"] == pytest.approx(-0.001)


def test_no_column_of_intervals_without_one(summary: Summary) -> None:
    two = summarize(summary.metric_per_case[:2], CLASSES)

    assert "±" not in format_table(two)


def test_class_that_is_nowhere_has_no_worst_case() -> None:
    tail = class_statistics(summarize([case("a", [1, 0], [1, 0])], CLASSES)).loc["tail"]

    assert math.isnan(tail["mean"])
    assert tail["cases"] == 0
    assert tail["worst_case"] != tail["worst_case"]


def test_cases_are_ranked_from_the_worst_on_and_undefined_ones_last(summary: Summary) -> None:
    ranks = case_ranks(summarize([case("empty", [0, 0], [0, 0]), *summary.metric_per_case], CLASSES))

    assert list(ranks.index) == ["missed", "half", "perfect", "empty"]
    assert ranks["half"] == pytest.approx(2 / 3)
    assert math.isnan(ranks["empty"])


def test_summary_has_the_fields_of_nnunet_and_survives_storage(summary: Summary, tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", summary)

    stored = json.loads((tmp_path / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(stored)
    assert set(stored["mean"]) == {"1", "2"}
    assert stored["mean"]["1"]["Dice"] == pytest.approx(5 / 9)
    half = stored["metric_per_case"][1]
    assert (half["case_id"], half["prediction_file"], half["reference_file"]) == ("half", "p", "r")
    assert (
        half["metrics"]["1"] | {"Dice": 2 / 3, "IoU": 0.5, "TP": 1, "FP": 0, "FN": 1, "TN": 2, "n_pred": 1, "n_ref": 2}
        == half["metrics"]["1"]
    )
    assert half["metrics"]["2"]["Dice"] is None
    assert list(stored) == sorted(stored)
    assert read_summary(tmp_path / "summary.json") == summary
    for counts in stored["counts"].values():
        counts["invented"] = counts.pop("false_positive")  # the name that version 0.2 wrote
    (tmp_path / "old.json").write_text(json.dumps(stored))
    assert read_summary(tmp_path / "old.json") == summary


def test_text_lines_up_and_says_what_was_left_out(summary: Summary) -> None:
    lines = format_table(summary).splitlines()

    head = ["class", "Dice", "±", "HD95", "mm", "NSD", "1", "mm", "±", "sd", "cases", "worst", "case"]
    assert lines[0].split() == head
    assert lines[1].split() == [
        "head",
        "0.556",
        "1.265",
        "1.00",
        "0.500",
        "1.242",
        "0.509",
        "3",
        "0.000",
        "missed",
    ]
    assert lines[2].split() == ["tail", "1.000", "-", "0.00", "1.000", "-", "-", "1", "1.000", "perfect"]
    assert lines[3].split()[:4] == ["mean", "of", "classes", "0.778"]
    assert lines[4] == "head: of 3 cases, 1 missed (Dice 0, no distance)"
    assert lines[5] == "tail: of 3 cases, 2 without it in prediction and reference (not in the means)"
    assert lines[6].startswith("± is half of the 95 % interval of the mean over 3 cases (Student's t); with fewer")
    assert lines[0].index("Dice") + len("Dice") == lines[1].index("0.556") + len("0.556")


@pytest.mark.parametrize(("dice", "is_said"), [(0.1, False), (0.0999, True), (None, False)])
def test_a_class_that_is_hardly_found_is_named(summary: Summary, dice: float | None, is_said: bool) -> None:
    mean = summary.mean | {"1": summary.mean["1"] | {"Dice": dice}}

    found = [issue for issue in score_notes(summary.model_copy(update={"mean": mean})) if issue.severity == "warning"]

    assert [(issue.code, issue.where) for issue in found] == [("scores.hardly_found", "head")] * is_said


@pytest.mark.parametrize(
    ("both_empty", "false_positive", "advice"),
    [
        (2, 0, "train for longer, or add cases with this class"),
        (2, 1, "add cases with this class: only 1 of 4 cases has it"),
        (2, 2, "add cases with this class: none of 4 cases has it"),
    ],
)
def test_longer_training_is_not_advised_for_what_was_not_there(
    summary: Summary, both_empty: int, false_positive: int, advice: str
) -> None:
    counts = summary.counts["1"].model_copy(
        update={"cases": 4, "both_empty": both_empty, "false_positive": false_positive}
    )
    low = summary.mean["1"] | {"Dice": 0.05}
    made = summary.model_copy(update={"mean": summary.mean | {"1": low}, "counts": summary.counts | {"1": counts}})
    assert [issue.fix for issue in score_notes(made) if issue.code == "scores.hardly_found"] == [advice]


@pytest.mark.parametrize(
    ("references", "is_said"), [(("a.png", "b.PNG"), True), (("a.tif", "b.nii.gz"), False), (("a.nii", "b.mha"), False)]
)
def test_pixels_are_not_called_millimetres(references: tuple[str, str], is_said: bool) -> None:
    cases = [
        case(name, [1, 2, 0], [1, 2, 2]).model_copy(update={"reference_file": f"/labels/{name}"}) for name in references
    ]
    codes = [issue.code for issue in score_notes(summarize(cases, CLASSES))]
    assert ("scores.no_spacing" in codes) == is_said


def test_pandas_waits_for_the_first_table() -> None:
    call = "import sys, autoseg.evaluation.folders, autoseg.evaluation.selection; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == 0


def test_scores_by_group_are_shown_and_kept(summary: Summary, tmp_path: Path) -> None:
    sites = Grouping(column="site", groups=("A", "B"), of_case={"perfect": "A", "half": "A", "missed": "B"})
    found = with_groups(summary, [sites], held_out="site")
    write_summary(tmp_path / "summary.json", found)

    assert read_summary(tmp_path / "summary.json") == found
    text = format_table(found)
    assert "Dice by site, each case by networks that saw no case of its group" in text
    assert "  B  mean 0.000  head 0.000  tail -  (1 case; no interval from so few)" in text
    assert "site: too few cases in its groups to compare them" in text
