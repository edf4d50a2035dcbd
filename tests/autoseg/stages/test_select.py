"""Evidence for a selection, counted from the files that validation leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from whole_volume import mean_probabilities

from autoseg.data.dataset import Case, DatasetDescription
from autoseg.evaluation.label_maps import (
    FillHoles,
    KeepLargestComponent,
    RemoveSmallComponents,
    apply_postprocessing,
    count_agreement,
    decide,
    probability_slabs,
)
from autoseg.evaluation.rankseg import rank_labels
from autoseg.evaluation.selection import Recipe
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_label_map, write_label_map
from autoseg.inference.kept import (
    STEPS,
    load_probabilities,
    load_ranked,
    probabilities_path,
    ranked_path,
    write_rounded,
)
from autoseg.inference.predictions import Job, PredictionFolder
from autoseg.inference.predictor import Prediction
from autoseg.stages.select import count_case_ensembles, count_case_steps
from autoseg.stages.validate import space_needed
from autoseg.stages.validated import ValidatedCase
from planners import LabelClass, Labels

LABELS = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
FILE_VALUES = (0, 7, 3)
GRID = Geometry(
    shape=(4, 6, 8),
    spacing_mm=(2.0, 1.0, 0.5),
    origin_mm=(0.0, 0.0, 0.0),
    direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    dimensions=3,
)
NAMES = ("2d", "3d")


def in_files(labels: np.ndarray) -> np.ndarray:
    return np.array(FILE_VALUES, dtype=np.uint8)[labels]


@pytest.fixture
def validated(tmp_path: Path) -> tuple[ValidatedCase, list[np.ndarray], np.ndarray]:
    """A case as two configurations left it, their probabilities as they are kept, and the reference."""
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 3, GRID.shape).astype(np.uint8)
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("image", "label")}
    write_label_map(files["image"], reference, GRID)
    write_label_map(files["label"], in_files(reference), GRID)
    case = Case(case_id="x", images=(str(files["image"]),), label=str(files["label"]))
    dataset = DatasetDescription(
        name="two",
        root=str(tmp_path),
        layout="msd",
        channels=("MRI",),
        labels=LABELS,
        file_values=FILE_VALUES,
        file_ending=".nii.gz",
        training=(case,),
    )
    kept = []
    for name in NAMES:
        powers = np.exp(2 * rng.normal(size=(3, *GRID.shape)) + 1.5 * (np.arange(3)[:, None, None, None] == reference))
        scores = (np.rint(powers / powers.sum(axis=0) * STEPS) / STEPS).astype(np.float32)
        kept.append(scores)
        plain, ranked = rank_labels(probability_slabs(scores), GRID.shape, LABELS, are_logits=False)
        prediction = Prediction(labels=in_files(plain), probabilities=scores, geometry=GRID, ranked=in_files(ranked))
        sink = PredictionFolder(
            folder=tmp_path / name,
            dataset=dataset,
            made_from="a test",
            say=print,
            scores="rounded",
            with_ranked=True,
            is_own=True,
        )
        job = Job(case_id="x", predict=partial(lambda made: made, prediction))
        sink.begin([job])
        assert sink.complete(job) == "predicted"
        assert sink.complete(job) == "already there"
    folders = {name: tmp_path / name for name in NAMES}
    return ValidatedCase(case_id="x", dataset=dataset, labels=LABELS, folders=folders), kept, reference


def test_probabilities_are_kept_to_a_few_thousandths_and_sure_voxels_take_no_space(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    p = np.zeros((3, 40, 256, 256), np.float32)
    p[0] = 1 - 1e-4
    p[1] = 1e-4
    p[:, 17:19, 50:90, 60:80] = rng.dirichlet([1, 1, 1], (2, 40, 20)).transpose(3, 0, 1, 2)
    path = probabilities_path(tmp_path, "x")
    write_rounded(path, p)

    found = load_probabilities(tmp_path, "x")

    assert found.shape == p.shape
    assert np.abs(found[:, 10:30] - p[:, 10:30]).max() <= 0.5 / STEPS + 1e-7
    assert path.stat().st_size < 2 * p.nbytes // 4 / 200, "of half precision"


def test_space_for_what_is_still_to_be_kept_is_that_of_what_is_there(tmp_path: Path) -> None:
    places = [tmp_path / str(i) for i in range(5)]
    assert space_needed(places, 1000.0) == 5000
    places[0].write_bytes(bytes(100))
    places[3].write_bytes(bytes(200))
    assert space_needed(places, 1000.0) == 3 * 150


def test_probabilities_of_earlier_versions_are_read(tmp_path: Path) -> None:
    p = np.random.default_rng(5).random((2, 3, 4, 5)).astype(np.float16)
    np.save(tmp_path / "x.probabilities.npy", p)
    assert np.array_equal(load_probabilities(tmp_path, "x")[:, 1:3], p[:, 1:3])


def test_only_what_rankseg_decides_otherwise_is_kept(
    validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray],
) -> None:
    case, kept, _ = validated
    plain, ranked = rank_labels(probability_slabs(kept[0]), GRID.shape, LABELS, are_logits=False)

    places, values = load_ranked(case.folders["2d"], "x")

    assert places.tolist() == np.flatnonzero(plain != ranked).tolist() != []
    assert values.tolist() == in_files(ranked).ravel()[places].tolist()
    assert np.array_equal(case.load(Recipe(members=("2d",))), plain)
    assert np.array_equal(case.load(Recipe(members=("2d",), decoder="rankseg")), ranked)


def test_a_missing_file_of_rankseg_is_made_again(validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray]) -> None:
    case, kept, _ = validated
    ranked_path(case.folders["2d"], "x").unlink()
    sink = PredictionFolder(
        folder=case.folders["2d"],
        dataset=case.dataset,
        made_from="a test",
        say=print,
        scores="rounded",
        with_ranked=True,
        is_own=True,
    )
    labels = in_files(kept[0].argmax(axis=0))
    made = Prediction(labels=labels, probabilities=kept[0], geometry=GRID, ranked=labels)

    assert sink.complete(Job(case_id="x", predict=lambda: made)) == "predicted"


@pytest.mark.parametrize("decoder", ["argmax", "rankseg"])
@pytest.mark.parametrize("weights", [(), (0.25, 0.75)])
def test_ensembles_are_those_of_the_kept_probabilities(
    validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray], weights: tuple[float, ...], decoder: str
) -> None:
    case, kept, _ = validated
    together = mean_probabilities([each.astype(np.float32) for each in kept], weights)
    expected = rank_labels(probability_slabs(together), GRID.shape, LABELS, are_logits=False)[decoder == "rankseg"]

    got = case.load(Recipe(members=NAMES, weights=weights, decoder=decoder))  # type: ignore[arg-type]

    assert np.count_nonzero(got != expected) <= 1  # a tie to the last digit


def test_all_weights_are_counted_at_once(validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray]) -> None:
    case, kept, reference = validated
    weights = ((0.5, 0.5), (0.25, 0.75), (1.0, 0.0))

    got = count_case_ensembles(case, names=NAMES, weights=weights)

    for counts, each in zip(got, weights, strict=True):
        together = mean_probabilities([one.astype(np.float32) for one in kept], each)
        expected = count_agreement(decide(together, LABELS), reference, LABELS)
        assert np.abs(counts - expected).max() <= 1


def test_steps_are_counted_in_the_volume_of_the_voxels(
    validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray],
) -> None:
    case, kept, reference = validated
    recipe = Recipe(members=("3d",), postprocessing=(KeepLargestComponent(classes=("a",)),))
    trials = (RemoveSmallComponents(classes=("b",), smallest_mm3=2.0), FillHoles(classes=("a",)))
    before = apply_postprocessing(kept[1].argmax(axis=0), recipe.postprocessing, LABELS, voxel_mm3=1.0)

    got = count_case_steps(case, recipe=recipe, trials=trials)

    for counts, steps in zip(got, [(), *((step,) for step in trials)], strict=True):
        after = apply_postprocessing(before, steps, LABELS, voxel_mm3=1.0)  # 2 x 1 x 0.5 mm
        assert np.array_equal(counts, count_agreement(after, reference, LABELS))


def test_classes_that_a_case_is_not_annotated_for_do_not_count(
    validated: tuple[ValidatedCase, list[np.ndarray], np.ndarray],
) -> None:
    case, _, _ = validated
    (own,) = case.dataset.training
    partly = case.dataset.model_copy(update={"training": (own.model_copy(update={"annotated": ("b",)}),)})
    partial_case = ValidatedCase(case_id="x", dataset=partly, labels=LABELS, folders=case.folders)

    whole, part = (count_case_steps(each, recipe=Recipe(members=("2d",)), trials=()) for each in (case, partial_case))

    assert part[0, 0].tolist() == [0, 0, 0]
    assert np.array_equal(part[0, 1], whole[0, 1])
    assert np.array_equal(read_label_map(case.label_map_path("2d")).array, in_files(case.load(Recipe(members=("2d",)))))
