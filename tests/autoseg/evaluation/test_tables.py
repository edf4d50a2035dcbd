"""Tables of scores: their numbers, their gaps, their text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.evaluation.summary import CaseResult, Summary, summarize
from autoseg.evaluation.tables import case_table, footnotes, format_table, score_statistics, summary_table

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


def test_statistics_of_a_class(summary: Summary) -> None:
    got = score_statistics(summary, "1", "dice")

    assert got.mean == pytest.approx(5 / 9)
    assert got.sd == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert (got.worst, got.worst_case, got.cases, got.left_out) == (0.0, "missed", 3, 0)


def test_worst_distance_is_the_largest(summary: Summary) -> None:
    got = score_statistics(summary, "1", "hausdorff95_mm")

    assert (got.worst, got.worst_case) == (pytest.approx(0.95 * 2), "half")
    assert (got.cases, got.left_out) == (2, 1)  # the missed one has no distance


def test_single_case_has_no_deviation(summary: Summary) -> None:
    got = score_statistics(summary, "2", "dice")

    assert (got.mean, got.sd, got.cases, got.left_out) == (1.0, None, 1, 2)


def test_table_marks_gaps_and_averages_none(summary: Summary) -> None:
    table = summary_table(summary)

    assert list(table.columns) == ["mean", "sd", "worst", "worst_case", "cases", "left_out"]
    assert len(table) == 8
    assert math.isnan(table.loc[("tail", "Dice"), "sd"])
    assert table.loc[("tail", "Dice"), "cases"] == 1


def test_table_of_cases_has_one_row_each(summary: Summary) -> None:
    table = case_table(summary)

    assert list(table.index) == ["perfect", "half", "missed"]
    assert list(table.columns) == ["head", "tail", "mean"]
    assert math.isnan(table.loc["half", "tail"])
    assert table.loc["half", "mean"] == pytest.approx(2 / 3)


def test_text_lines_up_and_says_what_was_left_out(summary: Summary) -> None:
    lines = format_table(summary).splitlines()

    assert lines[0].split() == [
        "class",
        "Dice",
        "sd",
        "worst",
        "case",
        "HD95",
        "mm",
        "surface",
        "Dice",
        "1",
        "mm",
        "cases",
    ]
    assert lines[2].split() == ["head", "0.556", "0.509", "0.000", "missed", "0.95", "0.556", "3"]
    assert lines[3].split() == ["tail", "1.000", "-", "1.000", "perfect", "0.00", "1.000", "1"]
    assert lines[4].split()[:4] == ["mean", "of", "classes", "0.778"]
    assert lines[5] == "head: of 3 cases, 1 missed entirely (Dice 0, no distance)"
    assert lines[6] == "tail: of 3 cases, 2 without it in prediction and reference (in no mean)"
    assert lines[0].index("Dice") + len("Dice") == lines[2].index("0.556") + len("0.556")


def test_a_class_that_is_as_good_as_not_found_is_named(summary: Summary) -> None:
    assert not any("hardly found" in line for line in footnotes(summary))
    poor = summarize([case("poor", [1, 0, 2, 0], [0, 1, 2, 0]), case("none", [0, 0, 0, 0], [1, 0, 0, 0])], CLASSES)
    assert footnotes(poor)[0] == "head is hardly found (Dice 0.000): label maps of it are of no use as they are"
    assert sum("hardly found" in line for line in footnotes(poor)) == 1
    unseen = summarize([case("empty", [0, 0, 0, 0], [0, 0, 0, 0])], CLASSES)
    assert not any("hardly found" in line for line in footnotes(unseen))


@pytest.mark.parametrize(
    ("references", "said"), [(("a.png", "b.PNG"), True), (("a.tif", "b.nii.gz"), False), (("a.nii", "b.mha"), False)]
)
def test_pixels_are_not_called_millimetres_without_a_word(references: tuple[str, str], said: bool) -> None:
    cases = [
        case(name, [1, 2, 0], [1, 2, 2]).model_copy(update={"reference_file": f"/labels/{name}"}) for name in references
    ]
    assert ("no spacing: mm stands for pixels" in format_table(summarize(cases, CLASSES))) == said
