"""A challenge's own scores by hand: its classes, conventions, tolerances, slices, ranks and areas; through the command, too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.evaluation.challenge import (
    ChallengeScores,
    challenge_scores,
    find_challenge,
    format_challenge,
    lesion_rule,
    rank_teams,
    scored_classes,
    tolerance_of,
)
from autoseg.evaluation.measures import measure_classes
from autoseg.evaluation.metrics import compare
from autoseg.evaluation.resources import read_resources, resource_areas
from autoseg.evaluation.table import CaseResult, Summary, summarize
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import write_label_map
from autoseg.issues import AutosegError
from datasets_spec import Challenge, Scoring, load_challenges

SCORED = [each for each in load_challenges() if each.page and not each.name.startswith("totalsegmentator")]
CASES = {"msd": ["spleen_3"]}
"""Names of cases, where a challenge scores its parts apart."""
OWN = """
name = "own"
title = "Own"
[parts.cases]
file = "{case}.nii.gz"
[scoring.classes]
lesion = [1]
"""


@pytest.mark.parametrize("challenge", SCORED, ids=lambda challenge: challenge.name)
def test_metrics_of_every_challenge_are_recorded_and_can_be_computed(challenge: Challenge) -> None:
    found = find_challenge(challenge.name, CASES.get(challenge.name, ()))

    assert found.scoring is not None
    assert found.name == challenge.name
    got = scores(found, [(np.zeros((2, 3, 4), np.uint8),) * 2]) if found.scoring.classes else None
    assert got is None or len(got.metrics) == len(found.scoring.metrics)


def scores(
    challenge: Challenge, pairs: list[tuple[np.ndarray, np.ndarray]], spacing_mm: float = 1.0
) -> ChallengeScores:
    """Of label maps (Z, Y, X), prediction first."""
    return challenge_scores(summary_of(challenge, pairs, spacing_mm), challenge)


def summary_of(challenge: Challenge, pairs: list[tuple[np.ndarray, np.ndarray]], spacing_mm: float = 1.0) -> Summary:
    assert challenge.scoring is not None
    classes, rule = scored_classes(challenge.scoring), lesion_rule(challenge.scoring)
    cases = []
    for number, (prediction, reference) in enumerate(pairs):
        found = compare(
            prediction,
            reference,
            classes=classes,
            spacing_mm=(spacing_mm,) * 3,
            tolerance_mm=tolerance_of(challenge.scoring) or 1.0,
            lesions=rule,
        )
        metrics = {each.key: found[each.name] for each in classes}
        measures = measure_classes(prediction, reference, classes, (spacing_mm,) * 3)
        cases.append(
            CaseResult(
                case_id=f"case_{number}", metrics=metrics, measures=measures, prediction_file="p", reference_file="r"
            )
        )
    return summarize(cases, classes, lesions=rule)


def line(*values: int) -> np.ndarray:
    """A label map with values along z."""
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def test_kits_scores_nested_classes_and_counts_empty_ones() -> None:
    got = scores(find_challenge("kits23"), [(line(1, 1, 2, 0), line(1, 3, 2, 0)), (line(1, 0, 0, 2), line(1, 0, 0, 0))])

    dice = {name: [got.per_case[case][name]["dice"] for case in ("case_0", "case_1")] for name in got.per_class}
    assert dice == {
        "kidney and masses": [1.0, pytest.approx(2 / 3)],
        "masses": [pytest.approx(2 / 3), 0.0],  # a false positive in the second case
        "tumour": [1.0, 0.0],
    }
    both_empty = scores(find_challenge("kits23"), [(line(1), line(1))])
    assert both_empty.per_case["case_0"]["tumour"] == {"dice": 1.0, "surface_dice": 1.0}
    assert both_empty.overall["dice"].mean == 1.0


@pytest.mark.parametrize(("spacing_mm", "score"), [(1.03, 1.0), (1.04, 0.8)])
def test_kits_has_a_tolerance_for_each_class(spacing_mm: float, score: float) -> None:
    """1.033 mm for the kidney: one end of a line is off by a voxel; the surface of a line of voxels has elements along it."""
    got = scores(find_challenge("kits23"), [(line(0, 1, 1, 1, 1, 0), line(0, 1, 1, 1, 0, 0))], spacing_mm)

    surface = got.per_case["case_0"]["kidney and masses"]["surface_dice"]
    assert (surface == 1.0) == (score == 1.0)


def test_flare_scores_some_organs_between_their_slices_and_low_dice_has_no_surface() -> None:
    flare = find_challenge("flare22")
    aorta = scores(flare, [(line(5, 5, 5, 5, 0), line(0, 5, 5, 5, 0))]).per_case["case_0"]["aorta"]
    liver = scores(flare, [(line(1, 1, 1, 1, 0), line(0, 1, 1, 1, 0))]).per_case["case_0"]["liver"]

    assert (aorta["dice"], liver["dice"]) == (1.0, pytest.approx(6 / 7))
    for voxels, surface in ((1, 0.0), (2, 1.0)):  # Dice 2 / 11 and 4 / 12 within 5 mm
        prediction, reference = np.zeros((12, 1, 1), np.uint8), np.zeros((12, 1, 1), np.uint8)
        reference[:10], prediction[10 - voxels : 10] = 1, 1
        got = scores(flare, [(prediction, reference)], 0.1).per_case["case_0"]["liver"]
        assert (got["dice"], got["surface_dice"]) == (pytest.approx(2 * voxels / (10 + voxels)), surface)


def test_brats_penalises_missed_and_false_positive_lesions() -> None:
    brats = find_challenge("brats2023-gli")
    reference, prediction = (np.zeros((6, 12, 30), np.uint8) for _ in range(2))
    reference[:4, :4, :4] = 3  # 64 voxels: found
    prediction[:4, :4, :4] = 3
    reference[:4, :4, 20:24] = 3  # missed
    reference[0, 11, :2] = 3  # too small to count

    got = scores(brats, [(prediction, reference), (reference * 0, reference * 0)])

    region = got.per_case["case_0"]["enhancing tumour"]
    assert (region["lesion_dice"], region["lesion_hausdorff95_mm"]) == (0.5, 187.0)
    assert got.per_case["case_1"]["enhancing tumour"] == {
        "lesion_dice": 1.0,
        "lesion_hausdorff95_mm": 0.0,
        "dice": 1.0,
        "hausdorff95_mm": 0.0,
        "sensitivity": 1.0,
        "specificity": 1.0,
    }


def test_metastases_need_a_reference_lesion_and_a_dice() -> None:
    met = find_challenge("brats2025-met")
    lesion = np.zeros((3, 3, 12), np.uint8)
    lesion[:, :, :3] = 3  # 27 voxels
    part = lesion.copy()
    part[1:] = 0

    found = scores(met, [(part, lesion), (lesion, lesion * 0), (lesion * 0, lesion)]).per_case

    each = [found[f"case_{i}"]["enhancing tumour"] for i in range(3)]
    assert (each[0]["lesion_f1"], each[0]["lesion_dice"]) == (1.0, 0.5)
    assert (each[1]["lesion_f1"], each[1]["lesion_dice"], each[1]["lesion_hausdorff95_mm"]) == (None, None, None)
    assert (each[2]["lesion_f1"], each[2]["lesion_dice"], each[2]["lesion_hausdorff95_mm"]) == (0.0, 0.0, 373.0)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ('name = "nothing"', "metric nothing does not exist"),
        ('name = "dice"\nparameters = { tolerance_mm = 1 }', "parameter tolerance_mm of dice"),
        ('name = "dice"\nclasses = ["liver"]', "class liver of dice"),
        ('name = "lesion_f1"\nparameters = { connectivity = 7 }', "connectivity"),
        (
            'name = "lesion_f1"\n[[scoring.metrics]]\nname = "lesion_dice"\nparameters = { dilation = 1 }',
            "same parameters",
        ),
    ],
)
def test_faults_of_a_users_record_are_named(metric: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f"{OWN}[[scoring.metrics]]\n{metric}\n")

    with pytest.raises(AutosegError, match=said) as caught:
        find_challenge(str(file))
    assert caught.value.codes == ("challenge.metrics",)


@pytest.mark.parametrize(("name", "code"), [("kits24", "challenge.unknown"), ("folder", "challenge.no_metrics"), ("missing.toml", "challenge.unknown")])  # fmt: skip
def test_challenge_without_metrics_is_refused(name: str, code: str) -> None:
    with pytest.raises(AutosegError) as caught:
        find_challenge(name)
    assert caught.value.codes == (code,)


def test_parts_of_the_decathlon_have_tolerances_of_their_own() -> None:
    """A line that ends two voxels of 1 mm too early: within 7 mm for the liver, not within 1 mm for the hippocampus."""
    got = {}
    for cases in (["liver_1", "liver_9", "notes"], ["hippocampus_017"]):
        found = find_challenge("msd", cases)
        table = scores(found, [(line(1, 1, 1, 0, 0), line(1, 1, 1, 1, 1))])
        got[found.title] = next(iter(table.per_case["case_0"].values()))["surface_dice"]

    first, second = got
    assert first.endswith("Task03_Liver")
    assert second.endswith("Task04_Hippocampus")
    assert got[first] == 1.0
    assert got[second] < 1.0  # type: ignore[operator]
    with pytest.raises(AutosegError, match=r"BRATS_.number. or la_.number.") as caught:
        find_challenge("msd", ["case_1"])
    assert caught.value.codes == ("challenge.no_part",)


def test_hecktor_has_one_dice_for_all_cases() -> None:
    """A large and a small case: 2 (6 + 0) / (8 + 7 + 1 + 0), not the mean of 0.8 and 0."""
    first = np.zeros((2, 2, 4), np.uint8)
    first[:, :, :2] = 1
    second = first.copy()
    second[0, 0, :2] = 0  # 6 of 8 voxels
    second[0, 0, 3] = 1
    small = np.zeros((2, 2, 4), np.uint8)
    small[0, 0, 0] = 1
    got = scores(find_challenge("hecktor22"), [(second, first), (small * 0, small)])

    assert got.per_class["primary tumour"]["aggregated_dice"].mean == pytest.approx(12 / 16)
    assert got.per_class["lymph nodes"]["aggregated_dice"].mean is None
    assert got.overall["aggregated_dice"].mean == pytest.approx(12 / 16)
    assert got.per_case["case_0"]["primary tumour"] == {}
    assert find_challenge("hecktor22").scoring.metrics[0].parameters == {"by_volume": True}  # type: ignore[union-attr]


def test_dice_of_all_cases_weighs_voxels_or_volumes() -> None:
    """LiTS counts voxels, HECKTOR volumes: the second case has voxels of 8 mm³."""
    lits, hecktor = find_challenge("lits"), find_challenge("hecktor22")
    pair = (line(2, 2, 0), line(2, 2, 2)), (line(0, 2, 0), line(2, 0, 0))
    for challenge, wanted in ((lits, 4 / 7), (hecktor, 4 / (5 + 2 * 8))):
        assert challenge.scoring is not None
        cases = [
            case.model_copy(update={"case_id": f"case_{i}"})
            for i, spacing_mm in enumerate((1.0, 2.0))
            for case in summary_of(challenge, [pair[i]], spacing_mm).metric_per_case
        ]
        got = challenge_scores(summarize(cases, scored_classes(challenge.scoring)), challenge)
        of_class = got.per_class["tumour" if challenge is lits else "lymph nodes"]
        assert of_class["aggregated_dice"].mean == pytest.approx(wanted)


def test_crossmoda_gives_a_missing_structure_350_mm() -> None:
    got = scores(find_challenge("crossmoda22"), [(line(1, 1, 0, 0), line(0, 1, 1, 2))], 0.5).per_case["case_0"]

    assert got["schwannoma"] == {"dice": 0.5, "assd_mm": 0.25}  # each way one voxel in place and one 0.5 mm away
    assert got["cochlea"] == {"dice": 0.0, "assd_mm": 350.0}


def test_toothfairy_measures_in_voxels_and_gives_a_missing_tooth_the_diagonal() -> None:
    prediction, reference = np.zeros((3, 4, 12), np.uint8), np.zeros((3, 4, 12), np.uint8)
    prediction[0, 0, 0], reference[0, 0, 5], reference[1, 1, 1] = 11, 11, 12
    got = scores(find_challenge("toothfairy2"), [(prediction, reference)], 0.3).per_case["case_0"]

    assert got["upper right central incisor"] == {"dice": 0.0, "border_hausdorff95_voxels": 5.0}
    assert got["upper right lateral incisor"] == {"dice": 0.0, "border_hausdorff95_voxels": 13.0}
    assert got["crown"] == {"dice": 1.0, "border_hausdorff95_voxels": 0.0}
    assert len(got) == 42


def test_topcow_averages_each_case_and_counts_detections_over_cases() -> None:
    """The first case has two vessels, the second one; a vessel that neither label map has is no part of a mean."""
    topcow = find_challenge("topcow24")
    pairs = [(line(1, 1, 0, 8, 0, 0), line(1, 1, 0, 8, 8, 8)), (line(0, 0, 1, 0, 1, 0), line(0, 0, 1, 1, 1, 0))]
    got = scores(topcow, pairs)

    assert [got.per_case[case]["BA"]["dice"] for case in got.per_case] == [1.0, pytest.approx(0.8)]
    assert got.overall["dice"].mean == pytest.approx(((1 + 0.5) / 2 + 0.8) / 2)
    assert [got.per_case[case]["BA"]["absolute_lesion_count_error"] for case in got.per_case] == [0.0, 1.0]
    assert got.per_case["case_1"]["R-Pcom"]["dice"] is None
    assert got.per_class["R-Pcom"]["detection_f1"].mean == 1.0  # an IoU of 1/3
    assert got.per_class["Acom"]["detection_f1"].mean == 0.0
    assert got.overall["detection_f1"].mean == 0.25
    missed = scores(topcow, [(line(8, 0, 0, 0, 0), line(8, 8, 8, 8, 8)), (line(8), line(0))])
    assert missed.per_class["R-Pcom"]["detection_f1"].mean == 0.0  # an IoU of 1/5, and one invented
    assert missed.per_case["case_1"]["R-Pcom"]["contour_hausdorff95_mm"] == 90.0
    assert "topology" in format_challenge(got, topcow)


def test_centreline_dice_is_of_the_merged_vessels() -> None:
    """A thick tube and its thin middle: both skeletons lie in both."""
    prediction, reference = np.zeros((7, 7, 20), np.uint8), np.zeros((7, 7, 20), np.uint8)
    prediction[2:5, 2:5, 2:18], reference[3, 3, 2:10], reference[3, 3, 10:18] = 4, 4, 5
    topcow = find_challenge("topcow24")

    assert scores(topcow, [(prediction, reference)]).per_case["case_0"]["merged"]["centreline_dice"] > 0.9
    assert scores(topcow, [(prediction * 0, reference)]).per_case["case_0"]["merged"]["centreline_dice"] == 0.0
    shorter = reference.copy()
    shorter[:, :, 10:] = 0  # all of its skeleton inside, half of the other
    got = scores(topcow, [(shorter, reference)]).per_case["case_0"]["merged"]
    assert got["centreline_dice"] == pytest.approx(2 * 0.5 / 1.5, abs=0.03)


def test_brats_2024_joins_lesions_by_another_tissue() -> None:
    """Two enhancing lesions that are 14 voxels apart touch one necrosis between them, so they are one; resection cavities are not joined by oedema."""
    reference = np.zeros((6, 8, 40), np.uint8)
    reference[:3, :3, 2:8], reference[:3, :3, 8:22], reference[:3, :3, 22:28] = 3, 1, 3
    prediction = reference.copy()
    prediction[:, :, 22:28] = 0  # half of the joined lesion
    got = scores(find_challenge("brats2024-gli"), [(prediction, reference)]).per_case["case_0"]
    assert got["enhancing tumour"]["lesion_dice"] == pytest.approx(2 / 3)

    reference[reference == 1] = 2  # oedema joins nothing
    apart = scores(find_challenge("brats2024-gli"), [(prediction, reference)]).per_case["case_0"]
    assert apart["enhancing tumour"]["lesion_dice"] == 0.5
    assert apart["enhancing tumour"]["lesion_hausdorff95_mm"] == 337 / 2


def test_small_predicted_lesions_are_removed_in_brats_2024() -> None:
    """10 voxels of enhancing tumour are none, 11 are an invented lesion."""
    reference = np.zeros((4, 8, 40), np.uint8)
    reference[:3, :3, :3] = 3
    for voxels, dice in ((10, 1.0), (11, 0.5)):
        prediction = reference.copy()
        prediction[0, 7, 20 : 20 + voxels] = 3
        got = scores(find_challenge("brats2024-gli"), [(prediction, reference)]).per_case["case_0"]
        assert got["enhancing tumour"]["lesion_dice"] == dice


def test_meningiomas_before_radiotherapy_have_no_penalty_for_invented_lesions() -> None:
    reference, prediction = np.zeros((3, 4, 12), np.uint8), np.zeros((3, 4, 12), np.uint8)
    prediction[:, :, :5] = 1
    men_rt = find_challenge("brats2024-men-rt")

    assert scores(men_rt, [(prediction, reference)]).per_case["case_0"]["gross tumour volume"] == {
        "lesion_dice": 1.0,
        "lesion_hausdorff95_mm": 0.0,
    }
    missed = scores(men_rt, [(reference, prediction)]).per_case["case_0"]["gross tumour volume"]
    assert missed == {"lesion_dice": 0.0, "lesion_hausdorff95_mm": 13.0}  # the diagonal, in voxels


# --- ranks ---


def team(*values: float | None, metric: str = "dice") -> ChallengeScores:
    """Scores of one class, a case for each value."""
    isles = find_challenge("isles22")
    base = scores(isles, [(line(1), line(1))] * len(values))
    per_case = {f"case_{i}": {"lesion": {metric: value}} for i, value in enumerate(values)}
    mean = float(np.mean([value for value in values if value is not None]))
    overall = {metric: base.overall["dice"].model_copy(update={"mean": mean})}
    return base.model_copy(update={"metrics": (metric,), "per_case": per_case, "overall": overall})


def test_ranks_of_cases_differ_from_ranks_of_means() -> None:
    """The first is best in two of three cases, the second on average."""
    teams = {"often": team(0.9, 0.9, 0.1), "mostly": team(0.8, 0.8, 0.8), "lost": team(0.7, None, 0.7)}

    by_case = rank_teams(teams, Scoring(ranking="rank_then_mean"))
    by_mean = rank_teams(teams, Scoring(ranking="mean_then_rank"))

    assert by_case == {
        "often": (1, pytest.approx(5 / 3)),
        "mostly": (1, pytest.approx(5 / 3)),
        "lost": (3, pytest.approx(8 / 3)),
    }
    assert [name for name, (rank, _) in by_mean.items() if rank == 1] == ["mostly"]
    assert rank_teams(teams, Scoring(ranking="mean"))["mostly"] == (1, pytest.approx(0.8))


def test_lower_distances_rank_higher() -> None:
    teams = {"far": team(9.0, 9.0, metric="hausdorff95_mm"), "near": team(1.0, 2.0, metric="hausdorff95_mm")}

    for ranking in ("rank_then_mean", "mean_then_rank", "mean"):
        assert list(rank_teams(teams, Scoring(ranking=ranking))) == ["near", "far"]


def test_chaos_compares_volumes_by_their_share_of_the_reference() -> None:
    got = scores(find_challenge("chaos"), [(line(63, 0, 0, 0), line(63, 63, 63, 63)), (line(63, 0), line(0, 0))])

    errors = [got.per_case[case]["liver"]["absolute_relative_volume_error"] for case in ("case_0", "case_1")]
    assert errors == [0.75, None]


def test_errors_of_volume_are_ranked_by_their_size() -> None:
    teams = {"much less": team(-9.0, -9.0, metric="volume_error_ml"), "more": team(1.0, 2.0, metric="volume_error_ml")}

    for ranking in ("rank_then_mean", "mean_then_rank", "mean"):
        assert list(rank_teams(teams, Scoring(ranking=ranking))) == ["more", "much less"]


# --- resources ---


def test_areas_under_memory_and_time_are_those_of_flare() -> None:
    samples = {
        "gpu_memory": [1000.0] * 98 + [4000.0] * 2,  # a peak in 2 % of the samples does not count
        "cpu_list": [[20.0, 5.0, 75.0]] * 100,
        "RAM_list": [500.0] * 100,
    }

    got = resource_areas(samples)
    assert (got.seconds, got.gpu_mb, got.gpu_mb_s) == (10.0, 1000.0, pytest.approx(10_600))
    assert (got.cpu_percent_s, got.ram_mb_s) == (pytest.approx(250), pytest.approx(5000))
    samples["gpu_memory"] = [1000.0] * 97 + [4000.0] * 3
    assert resource_areas(samples | {"time": 12.5}).gpu_mb == 4000.0
    assert resource_areas(samples | {"gpu_memory": []}).gpu_mb is None


def test_files_that_are_none_of_flares_are_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match="no JSON files"):
        read_resources(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(AutosegError, match=r"a\.json: is no document of FLARE's monitor"):
        read_resources(tmp_path)


# --- the command ---


def test_command_gives_the_challenges_table_and_the_tools_own(tmp_path: Path) -> None:
    geometry = Geometry(shape=(4, 1, 1), spacing_mm=(1.0, 1.0, 1.0))
    for folder, rows in (("p", [(1, 1, 2, 0), (1, 0, 0, 2)]), ("r", [(1, 3, 2, 0), (1, 0, 0, 0)])):
        (tmp_path / folder).mkdir()
        for number, values in enumerate(rows):
            write_label_map(tmp_path / folder / f"case_0000{number}.nii.gz", line(*values), geometry)
    (tmp_path / "monitor").mkdir()
    text = json.dumps({"gpu_memory": [10.0], "cpu_list": [[1, 1, 98]], "RAM_list": [5.0], "time": 2.5})
    (tmp_path / "monitor" / "case_00000.json").write_text(text)

    options = ["--as", "kits23", "--metrics", "lesions", "--resources", str(tmp_path / "monitor"), "--workers", "1"]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "p"), str(tmp_path / "r"), *options])

    assert done.exit_code == 0, done.output
    assert "Scores of KiTS23" in done.output
    assert "time, s" in done.output and "2.5000" in done.output  # noqa: PT018
    rows = (tmp_path / "p" / "summary_kits23.csv").read_text().splitlines()
    assert rows[0] == "case,class,dice,surface_dice"
    assert rows[-1].startswith("mean,mean,")
    stored = json.loads((tmp_path / "p" / "summary.json").read_text())
    assert (stored["challenge"], stored["lesions"]["matching"]) == ("kits23", "overlap")
    assert [each["tolerance_mm"] for each in stored["classes"]] == [
        1.0330772532390826,
        1.1328796488598762,
        1.1498198361434828,
    ]
    assert stored["metric_per_case"][0]["metrics"]["2"]["lesion_f1"] == 1.0
    assert stored["estimates"]["foreground"]["Dice"]["low"] is None  # of two cases


def test_other_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AutosegError) as caught:
        autoseg.evaluate(tmp_path, tmp_path, metrics=["lesion"])
    assert caught.value.codes == ("settings.metrics",)
