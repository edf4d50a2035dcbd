"""What is chosen, and what the evidence for it must be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from autoseg.evaluation.label_maps import (
    Counts,
    FillHoles,
    KeepLargestComponent,
    RemoveSmallComponents,
    Step,
    apply_postprocessing,
    count_agreement,
    count_trials,
)
from autoseg.evaluation.selection import (
    LEAST_CASES,
    Recipe,
    Selection,
    Trial,
    candidate_name,
    candidate_recipes,
    choose,
    class_means,
    corrected_dices,
    dice_of,
    judge,
    mean_dice,
    paired_gain,
    without_comparison,
)
from planners import DocumentError, LabelClass, Labels, read_document, write_document

TWO = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
ONE = Labels(classes=TWO.classes[:1])
REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))), region_order=(1, 2)
)


@dataclass(kw_only=True)
class MapEvidence:
    """`Evidence` of label maps in memory: of every candidate's name and case, and of RankSEG under the name ``ranked``."""

    labels: Labels
    references: Mapping[str, np.ndarray]
    predictions: Mapping[str, Mapping[str, np.ndarray]]
    names: Sequence[str] = ("3d",)
    asked: list[Recipe] = field(default_factory=list)

    @property
    def candidates(self) -> tuple[Recipe, ...]:
        return candidate_recipes(self.names)

    @property
    def has_ranked(self) -> bool:
        return "ranked" in self.predictions

    def of_candidates(self, cases: Sequence[str]) -> Counts:
        return np.array(
            [
                [
                    count_agreement(
                        self.predictions.get(each.name, self.predictions[self.names[0]])[case],
                        self.references[case],
                        self.labels,
                    )
                    for each in self.candidates
                ]
                for case in cases
            ]
        )

    def of_steps(self, recipe: Recipe, trials: Sequence[Step], cases: Sequence[str]) -> Counts:
        self.asked.append(recipe)
        found = self.predictions["ranked" if recipe.decoder == "rankseg" else recipe.name]
        return np.array(
            [
                count_trials(
                    apply_postprocessing(found[case], recipe.postprocessing, self.labels, voxel_mm3=1.0),
                    self.references[case],
                    trials,
                    self.labels,
                    voxel_mm3=1.0,
                )
                for case in cases
            ]
        )


def row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(1, 1, -1)


CASES = tuple(f"case{i}" for i in range(12))
PERFECT = row(1, 1, 1, 1, 0, 2, 2, 2, 0, 0, 0, 0)
STRAY = row(1, 1, 1, 1, 0, 2, 2, 2, 0, 0, 1, 0)


def everywhere(array: np.ndarray, *, except_in: Mapping[str, np.ndarray] = {}) -> dict[str, np.ndarray]:
    return {case: except_in.get(case, array) for case in CASES}


# --- candidates ---


def test_candidates_are_singles_then_plain_means_then_quarters() -> None:
    two = candidate_recipes(("2d", "3d"))
    assert [each.name for each in two] == ["2d", "3d", "2d + 3d", "0.25 2d + 0.75 3d", "0.75 2d + 0.25 3d"]
    three = candidate_recipes(("a", "b", "c"))
    assert [each.name for each in three[:7]] == ["a", "b", "c", "a + b", "a + c", "b + c", "a + b + c"]
    assert {each.weights for each in three[7:]} == {
        (0.25, 0.75), (0.75, 0.25), (0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.25, 0.25, 0.5)
    }  # fmt: skip
    assert [each.name for each in candidate_recipes(("2d",))] == ["2d"]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
def test_no_candidate_comes_twice_and_weights_add_up_to_one(number: int) -> None:
    recipes = candidate_recipes([str(i) for i in range(number)])

    whole = [dict(zip(each.members, each.weights or [1 / len(each.members)] * 9, strict=False)) for each in recipes]
    assert len({tuple(sorted(each.items())) for each in whole}) == len(recipes)
    assert all(sum(each.values()) == pytest.approx(1) for each in whole)


def test_names_say_weights() -> None:
    assert candidate_name(("2d",)) == "2d"
    assert candidate_name(("2d", "3d"), (0.25, 0.75)) == "0.25 2d + 0.75 3d"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("2d", "3d_lowres", "3d_fullres"), "3d_fullres"),
        (("2d", "3d_lowres"), "3d_lowres"),
        (("2d_vnet", "3d_fullres_vnet"), "2d_vnet"),  # none is known: the first
    ],
)
def test_without_scores_the_usual_best_is_taken(names: tuple[str, ...], chosen: str) -> None:
    name, reason = without_comparison(names, False)

    assert name == chosen
    assert "no fold validates on any case, so nothing was cross-validated" in reason


# --- means and gains ---

NAN = float("nan")


def test_mean_is_over_cases_first_and_over_classes_then() -> None:
    assert mean_dice(np.array([[1.0, NAN], [0.0, 0.9]])) == pytest.approx(0.7)  # not (1 + 0 + 0.9) / 3
    assert mean_dice(np.array([[0.5, NAN]])) == 0.5
    assert mean_dice(np.array([[NAN, NAN]])) is None
    assert class_means(np.array([[1.0, NAN], [0.0, 0.9]])) == pytest.approx([0.5, 0.9])


def test_dice_comes_from_counts() -> None:
    assert dice_of(np.array([[3, 4, 4], [0, 0, 2]])) == pytest.approx([0.75, 0])
    assert np.isnan(dice_of(np.array([0, 0, 0])))


@given(
    scores=st.integers(2, 30).flatmap(lambda n: st.tuples(*[arrays(np.float64, (n, 2), elements=st.floats(0, 1))] * 2))
)
def test_interval_is_that_of_the_paired_t_test(scores: tuple[np.ndarray, np.ndarray]) -> None:
    before, after = scores
    differences = (after - before).mean(axis=1)

    found = paired_gain(before, after, [str(i) for i in range(len(before))])

    assert found is not None
    assert (found.cases, found.units) == (len(before), len(before))
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low is None) == (len(before) < 3)
    if differences.std() > 1e-9 and len(before) > 2:
        expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_cases_of_one_patient_count_as_one() -> None:
    before, after = np.zeros((4, 1)), np.array([[0.1], [0.3], [0.2], [0.4]])

    found = paired_gain(before, after, ["p", "p", "q", "r"])

    assert found is not None
    assert (found.cases, found.units) == (4, 3)
    assert found.mean == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    assert found.low == pytest.approx(stats.ttest_1samp([0.2, 0.2, 0.4], 0).confidence_interval(0.95).low)


def test_a_class_that_is_rightly_not_found_any_more_is_a_gain_of_one() -> None:
    before, after = np.array([[0.0], [NAN], [0.5]]), np.array([[NAN], [NAN], [0.5]])

    found = paired_gain(before, after, ["p", "q", "r"])

    assert found is not None
    assert (found.mean, found.cases) == (0.5, 2)
    assert paired_gain(before[1:2], after[1:2], ["q"]) is None


GAINS = np.linspace(0.01, 0.03, LEAST_CASES)[:, None]


@pytest.mark.parametrize(("number", "accepted"), [(LEAST_CASES, True), (LEAST_CASES - 1, False)])
def test_few_cases_are_no_evidence(number: int, accepted: bool) -> None:
    before = np.full((number, 1), 0.5)
    trial = judge("this", before, before + GAINS[:number], [str(i) for i in range(number)], [0])

    assert trial.accepted == accepted
    assert trial.low is not None and trial.low > 0  # noqa: PT018
    assert trial.reason == ("" if accepted else "fewer than 10 cases")


def test_few_patients_are_no_evidence_either() -> None:
    before = np.full((LEAST_CASES, 1), 0.5)
    trial = judge("this", before, before + GAINS, [str(i // 2) for i in range(LEAST_CASES)], [0])

    assert (trial.accepted, trial.reason) == (False, "fewer than 10 patients")


@pytest.mark.parametrize(("shift", "accepted"), [(1e-4, True), (-1e-4, False)])
def test_the_end_of_the_interval_decides(shift: float, accepted: bool) -> None:
    noise = np.array([0.02, -0.02] * 6)[:, None]
    half = stats.t.ppf(0.975, 11) * noise.std(ddof=1) / np.sqrt(12)
    before = np.full((12, 1), 0.5)

    trial = judge("this", before, before + noise + half + shift, CASES, [0])

    assert trial.accepted == accepted
    assert trial.low == pytest.approx(shift)


def test_a_class_that_falls_forbids_what_must_harm_none() -> None:
    before = np.full((12, 2), 0.5)
    after = before + np.array([0.1, -0.001])

    assert judge("this", before, after, CASES, [0, 1]).accepted
    trial = judge("this", before, after, CASES, [0], ("a", "b"))
    assert (trial.accepted, trial.reason) == (False, "the mean Dice of b falls")


def test_what_changes_nothing_is_not_accepted() -> None:
    same = np.full((12, 1), 0.5)

    trial = judge("this", same, same, CASES, [0])

    assert (trial.accepted, trial.reason, trial.gain) == (False, "changes no score", 0)


def test_trials_say_gain_and_interval() -> None:
    trial = Trial(what="largest component of Liver", accepted=True, gain=0.021, low=0.004, high=0.038, num_cases=60)

    assert str(trial) == "largest component of Liver: +0.0210 [+0.0040, +0.0380] over 60 cases"
    assert str(Trial(what="this", accepted=False)) == "this"


# --- choosing ---


def test_the_best_single_configuration_is_the_start_and_of_equals_the_first() -> None:
    evidence = MapEvidence(
        labels=TWO,
        names=("2d", "3d", "low"),
        references=everywhere(PERFECT),
        predictions={"2d": everywhere(STRAY), "3d": everywhere(PERFECT), "low": everywhere(PERFECT)},
    )

    recipe, trials = choose(evidence, CASES, CASES)

    assert recipe == Recipe(members=("3d",))
    assert not any(trial.accepted for trial in trials)


@pytest.mark.parametrize("cases", [CASES, CASES[: LEAST_CASES - 1]])
def test_an_ensemble_needs_evidence_and_weights_more_of_it(cases: tuple[str, ...]) -> None:
    worse = row(1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0)
    evidence = MapEvidence(
        labels=TWO,
        names=("2d", "3d"),
        references=everywhere(PERFECT),
        predictions={
            "2d": everywhere(row(1, 1, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0)),
            "3d": everywhere(row(1, 1, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0)),
            "2d + 3d": everywhere(worse, except_in={"case0": PERFECT}),
            "0.25 2d + 0.75 3d": everywhere(PERFECT, except_in={"case0": worse, "case1": worse}),
        },
    )

    recipe, trials = choose(evidence, cases, cases)

    assert trials[0].what == "2d + 3d instead of 2d"
    if cases == CASES:
        assert recipe == Recipe(members=("2d", "3d"), weights=(0.25, 0.75))
        assert trials[1].what == "0.25 2d + 0.75 3d instead of 2d + 3d"
    else:
        assert recipe == Recipe(members=("2d",))
        assert trials[0].reason == "fewer than 10 cases"


def test_rankseg_is_taken_where_it_gains_and_what_follows_is_on_top_of_it() -> None:
    evidence = MapEvidence(
        labels=TWO,
        references=everywhere(PERFECT),
        predictions={
            "3d": everywhere(row(1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0)),
            "ranked": everywhere(row(1, 1, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0)),
        },
    )

    recipe, trials = choose(evidence, CASES, CASES)

    assert recipe.decoder == "argmax"
    assert (trials[0].what, trials[0].accepted) == ("RankSEG", False)

    evidence.predictions = {**evidence.predictions, "ranked": everywhere(PERFECT)}
    recipe, trials = choose(evidence, CASES, CASES)
    assert recipe == Recipe(members=("3d",), decoder="rankseg")
    assert evidence.asked[-1].decoder == "rankseg"


def test_without_its_label_maps_rankseg_is_not_tried() -> None:
    evidence = MapEvidence(labels=TWO, references=everywhere(PERFECT), predictions={"3d": everywhere(PERFECT)})

    assert "RankSEG" not in [trial.what for trial in choose(evidence, CASES, CASES)[1]]


def test_largest_component_of_all_is_tried_first_and_classes_on_top_of_it() -> None:
    """The stray voxel is its own component, so with the first step nothing is left for the others."""
    joined = row(1, 1, 1, 1, 2, 2, 2, 0, 0, 1, 0, 0)
    truth = row(1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0)
    evidence = MapEvidence(labels=TWO, references=everywhere(truth), predictions={"3d": everywhere(joined)})

    recipe, trials = choose(evidence, CASES, CASES)

    assert recipe.postprocessing == (KeepLargestComponent(classes=("a", "b")),)
    assert [trial.accepted for trial in trials] == [True, *[False] * 6]
    assert {trial.reason for trial in trials[1:]} == {"changes no score"}


def test_of_largest_and_large_components_the_one_that_gains_more_is_kept() -> None:
    """Two true components of a, and strays of one voxel: keeping the largest would lose one of them."""
    truth = row(1, 1, 1, 0, 1, 1, 0, 0, 0, 2, 0, 0)
    found = row(1, 1, 1, 0, 1, 1, 0, 1, 0, 2, 0, 0)
    evidence = MapEvidence(labels=TWO, references=everywhere(truth), predictions={"3d": everywhere(found)})

    recipe, trials = choose(evidence, CASES, CASES)

    assert recipe.postprocessing == (RemoveSmallComponents(classes=("a",), smallest_mm3=2.0),)
    assert [trial.what for trial in trials if trial.accepted] == ["components of a from 2 mm³"]
    assert len(trials) == 1 + 3 + 3


def test_holes_are_filled_after_components_are_removed() -> None:
    truth = row(1, 1, 1, 1, 1, 0, 0, 0)
    found = row(1, 1, 0, 1, 1, 0, 0, 1)
    evidence = MapEvidence(labels=ONE, references=everywhere(truth), predictions={"3d": everywhere(found)})
    wider = {case: np.repeat(found, 5, axis=1) for case in CASES}
    for array in wider.values():
        array[0, [0, 4]] = [1, 1, 1, 1, 1, 0, 0, 1]
    evidence.predictions = {"3d": wider}
    evidence.references = {case: np.repeat(truth, 5, axis=1) for case in CASES}

    recipe, _ = choose(evidence, CASES, CASES)

    assert [type(step) for step in recipe.postprocessing] == [KeepLargestComponent, FillHoles]


def test_true_scattered_lesions_forbid_any_step() -> None:
    scattered = row(1, 0, 1, 0, 2, 0, 1, 1, 0, 2)
    evidence = MapEvidence(labels=TWO, references=everywhere(scattered), predictions={"3d": everywhere(scattered)})

    assert choose(evidence, CASES, CASES)[0].postprocessing == ()


def test_a_step_on_a_region_may_harm_no_other() -> None:
    """The stray part of the whole holds a true voxel of the core."""
    truth = row(1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2)
    found = row(1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 2)
    evidence = MapEvidence(labels=REGIONS, references=everywhere(truth), predictions={"3d": everywhere(found)})

    _, trials = choose(evidence, CASES, CASES)

    of_whole = next(trial for trial in trials if trial.what == "largest component of whole")
    assert (of_whole.accepted, of_whole.reason) == (False, "the mean Dice of core falls")


# --- correcting ---


def test_choices_for_a_fold_are_made_on_the_others() -> None:
    """A stray voxel in fold 0 only: there it is not removed when fold 0 decides nothing about itself."""
    first = dict.fromkeys(CASES[:6], STRAY)
    evidence = MapEvidence(
        labels=TWO, references=everywhere(PERFECT), predictions={"3d": everywhere(PERFECT, except_in=first)}
    )
    more = [f"more{i}" for i in range(12)]
    evidence.references = {**evidence.references, **dict.fromkeys(more, PERFECT)}
    evidence.predictions = {"3d": {**evidence.predictions["3d"], **dict.fromkeys(more, PERFECT)}}
    parts = [CASES[:6], (*CASES[6:], *more)]
    cases = [case for part in parts for case in part]
    chosen = Recipe(members=("3d",), postprocessing=(KeepLargestComponent(classes=("a",)),))
    perfect = np.ones((len(cases), 2))

    dices, same = corrected_dices(evidence, parts, cases, chosen, perfect)

    assert same == 0  # six cases of the first fold are too few for the second
    assert dices[:6, 0] == pytest.approx(8 / 9)
    assert np.array_equal(dices[6:], perfect[6:])


def test_folds_that_agree_keep_their_scores() -> None:
    evidence = MapEvidence(labels=TWO, references=everywhere(PERFECT), predictions={"3d": everywhere(PERFECT)})
    scores = np.random.default_rng(0).random((12, 2))

    dices, same = corrected_dices(evidence, [CASES[:4], CASES[4:8], CASES[8:]], CASES, Recipe(members=("3d",)), scores)

    assert same == 3
    assert np.array_equal(dices, scores)


# --- documents ---


def selection(**changes: object) -> Selection:
    fields: dict[str, object] = {
        "members": ("2d", "3d_fullres"),
        "weights": (0.25, 0.75),
        "decoder": "rankseg",
        "folds": (0, 1),
        "postprocessing": (
            KeepLargestComponent(classes=("a",)),
            RemoveSmallComponents(classes=("b",), smallest_mm3=20.0),
            FillHoles(classes=("b",)),
        ),
        "cross_validated": True,
        "reason": "best",
        "candidates": (),
        "dice_before_postprocessing": 0.9,
        "dice_after_postprocessing": 0.91,
        "dice_corrected": 0.905,
        "trials": (Trial(what="this", accepted=True, gain=0.01, low=0.005, high=0.015, num_cases=12),),
    }
    return Selection(**(fields | changes))  # type: ignore[arg-type]


def test_selection_survives_storage() -> None:
    stored = selection()

    assert read_document(Selection, write_document(stored), where="selection.json") == stored
    assert stored.name == "0.25 2d + 0.75 3d_fullres"


@pytest.mark.parametrize(("folds", "how"), [((0,), "in a hold-out"), ((0, 1), "in cross-validation")])
def test_scores_of_one_fold_are_those_of_a_hold_out(folds: tuple[int, ...], how: str) -> None:
    assert selection(folds=folds).scored_how == how


def test_selections_of_version_0_2_are_read() -> None:
    earlier = json.loads(write_document(selection(weights=(), postprocessing=(KeepLargestComponent(classes=("a",)),))))
    for name in ("weights", "decoder", "dice_corrected", "correction", "trials"):
        del earlier[name]
    step = {"kind": "keep_largest_component", "classes": ["a"]}
    earlier["postprocessing_trials"] = [
        {"step": step, "accepted": True, "dice_before": 0.9, "dice_after": 0.91, "reason": "rises"}
    ]

    got = read_document(Selection, json.dumps(earlier), where="selection.json")

    assert (got.decoder, got.weights, got.dice_corrected) == ("argmax", (), None)
    assert got.postprocessing == (KeepLargestComponent(classes=("a",)),)
    assert [str(trial) for trial in got.postprocessing_trials] == ["largest component of a"]


@pytest.mark.parametrize("weights", [(0.5,), (0.5, 0.25), (0.5, 0.25, 0.25)])
def test_weights_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    text = write_document(selection()).replace(
        '"weights": [\n  0.25,\n  0.75\n ]', f'"weights": {json.dumps(weights)}', 1
    )

    with pytest.raises(DocumentError, match="as many weights that add up to 1"):
        read_document(Selection, text, where="selection.json")


def test_score_without_cross_validation_is_refused() -> None:
    scores = ("dice_before_postprocessing", "dice_after_postprocessing", "dice_corrected")
    for kept in scores:
        others = {name: None for name in scores if name != kept}
        text = write_document(selection(**others)).replace('"cross_validated": true', '"cross_validated": false')

        with pytest.raises(DocumentError, match="nothing was cross-validated"):
            read_document(Selection, text, where="selection.json")
