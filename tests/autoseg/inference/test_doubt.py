"""Doubt gathered from the stream of slabs: sampled voxels are where they say, label maps stay, maps are what viewers read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from builders import Job

from autoseg import api
from autoseg.evaluation.calibration import entropy
from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import Placement, inside_box
from autoseg.imaging.readers import read_label_map
from autoseg.inference.bundle import open_bundle
from autoseg.inference.doubt import MOST_VOXELS, EntropyMap, Features, Sample, disagreement
from autoseg.inference.kept import load_sample, sample_path
from autoseg.inference.predictions import JOURNAL, PredictionsHeader
from autoseg.storage.journal import Journal
from planners import LabelClass, Labels

LABELS = Labels(classes=(LabelClass(name="a", values=(1,)), LabelClass(name="b", values=(2,))))
GRID = Geometry(
    shape=(6, 7, 8), spacing_mm=(2.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0),
    direction=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), dimensions=3,
)  # fmt: skip
PLACEMENT = Placement(
    source=GRID, permutation=(2, 0, 1), flips=(False, True, False), transpose_forward=(1, 0, 2), shape_before_cropping=(6, 8, 7),
    box=((1, 5), (0, 8), (2, 7)), spacing_mm=(2.0, 1.0, 1.0), resampled_shape=(4, 8, 5), resampled_spacing_mm=(2.0, 1.0, 1.0),
)  # fmt: skip


@pytest.fixture
def whole() -> np.ndarray:
    """Probabilities (K, Z, Y, X) of the image."""
    return np.random.default_rng(0).dirichlet(np.ones(3), GRID.shape).transpose(3, 0, 1, 2).astype(np.float32)


def given_to(taker, whole: np.ndarray, *, rows: int = 3) -> None:
    """The crop by slabs, the first one twice, as after an overflow."""
    crop = inside_box(whole, PLACEMENT)
    for start in (0, *range(0, crop.shape[1], rows)):
        part = slice(start, min(start + rows, crop.shape[1]))
        taker(part, np.ascontiguousarray(crop[:, part]))


def test_sampled_voxels_are_where_they_say(whole: np.ndarray) -> None:
    sample = Sample(PLACEMENT, LABELS)
    given_to(sample, whole)
    assert sample.p.shape == (3, 4 * 8 * 5)
    assert sample.p == pytest.approx(whole.reshape(3, -1)[:, sample.voxels])


def test_large_images_are_sampled_evenly() -> None:
    shape = (200, 256, 256)
    large = PLACEMENT.__class__(
        source=GRID, permutation=(0, 1, 2), flips=(False, False, False), transpose_forward=(0, 1, 2), shape_before_cropping=shape,
        box=tuple((0, n) for n in shape), spacing_mm=(1.0, 1.0, 1.0), resampled_shape=shape, resampled_spacing_mm=(1.0, 1.0, 1.0),
    )  # fmt: skip
    places = Sample(large, LABELS).places
    columns = np.bincount(places % 256, minlength=256)
    assert MOST_VOXELS / 2 < len(places) <= MOST_VOXELS
    assert columns.min() > 0.9 * columns.mean()


def test_features_are_those_of_the_decided_classes(whole: np.ndarray) -> None:
    features = Features(PLACEMENT, LABELS, (0.0, 1.0, 2.0))
    given_to(features, whole)
    crop = inside_box(whole, PLACEMENT)
    mask, found = crop.argmax(axis=0) == 2, features.of_classes["b"]
    assert found.volume_ml == pytest.approx(mask.sum() * 2 / 1000)
    assert found.entropy == pytest.approx(entropy(crop, has_regions=False)[mask].mean(), rel=1e-5)
    assert found.expected_dice == pytest.approx(2 * crop[2][mask].sum() / (mask.sum() + crop[2].sum()), rel=1e-5)


def test_the_map_of_entropy_has_the_axes_of_the_image(whole: np.ndarray) -> None:
    taken = EntropyMap(PLACEMENT, LABELS, ())
    given_to(taken, whole)
    expected = inside_box(entropy(whole, has_regions=False), PLACEMENT)
    assert inside_box(taken.whole, PLACEMENT) == pytest.approx(expected)
    assert np.count_nonzero(taken.whole) == expected.size


def test_disagreement_is_the_share_that_decides_otherwise_than_most() -> None:
    maps = [np.array(values).reshape(1, 1, -1) for values in ([0, 1, 1, 1], [0, 1, 2, 1], [0, 1, 3, 2])]
    assert disagreement(maps).ravel() == pytest.approx([0, 0, 2 / 3, 1 / 3])


def test_a_finished_run_has_samples_and_temperatures(finished: Job) -> None:
    model = open_bundle(finished.folder.model).description
    assert model.calibration is not None
    assert model.calibration.cases == 4
    assert len(model.calibration.temperatures) == model.dataset.labels.num_outputs
    folder = finished.folder.validation("2d", 0)
    case = next(folder.glob("*.sample.npz")).name.removesuffix(".sample.npz")
    voxels, p, features = load_sample(folder, case)
    assert sample_path(folder, case).is_file()
    assert p.sum(axis=0) == pytest.approx(1, abs=0.01)
    predicted = read_label_map(next(path for path in folder.glob(f"{case}.*") if path.name.endswith(".nii.gz"))).array
    agrees = p.argmax(axis=0) == predicted.reshape(-1)[voxels]
    assert agrees.mean() > 0.99  # half precision may turn what is nearly equal
    assert set(features) == {each.name for each in model.dataset.labels.classes}


def test_maps_lie_beside_the_same_label_maps(finished: Job, tmp_path: Path) -> None:
    images = finished.dataset / "imagesTs"
    how = {"device": "cpu", "threads": 1}
    plain = api.predict(finished.root, images, tmp_path / "plain", **how)
    doubtful = api.predict(finished.root, images, tmp_path / "out", probabilities=True, doubt=True, **how)

    assert [path.name for path in plain] == [path.name for path in doubtful]
    for one, other in zip(plain, doubtful, strict=True):
        assert (read_label_map(one).array == read_label_map(other).array).all()
    maps = tmp_path / "out" / "_maps"
    about = json.loads((maps / "maps.json").read_text())
    case = doubtful[0].name.removesuffix(".nii.gz")
    image = nibabel.load(maps / f"{case}_probabilities.nii.gz")
    labels = nibabel.load(doubtful[0])
    assert image.shape == (*labels.shape, len(about["volumes"]))
    assert about["volumes"][0] == "background"
    assert image.affine == pytest.approx(labels.affine)
    p = image.get_fdata()
    assert p.sum(axis=-1) == pytest.approx(1, abs=len(about["volumes"]) / 32767)
    for kind in ("entropy", "disagreement"):
        found = SimpleITK.ReadImage(maps / f"{case}_{kind}.nii.gz")
        values = SimpleITK.GetArrayFromImage(found)
        assert found.GetSize() == labels.shape
        assert 0 <= values.min() <= values.max() <= 1 + 1e-6
    assert np.unique(np.round(values * 2, 3)).tolist() in ([0.0], [0.0, 1.0])  # two folds agree or not
    (entry,) = Journal(tmp_path / "out" / JOURNAL, PredictionsHeader).of(case)
    assert {file.path for file in entry.files} >= {f"{case}_entropy.nii.gz", f"{case}_probabilities.nii.gz"}
    assert entry.expected == {}  # four cases are too few
    before = (maps / f"{case}_entropy.nii.gz").stat().st_mtime_ns
    api.predict(finished.root, images, tmp_path / "out", probabilities=True, doubt=True, **how)
    assert (maps / f"{case}_entropy.nii.gz").stat().st_mtime_ns == before
    assert math.isfinite(p.max())
