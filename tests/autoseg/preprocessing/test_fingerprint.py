"""The fingerprint is the reference's, exact where the reference samples, and in canonical axes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from builders import Listening
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import measure

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_image, read_label_map, write_image, write_label_map
from autoseg.issues import AutosegError
from autoseg.preprocessing.fingerprint import (
    MANY_COMPONENTS,
    TINY_SHARE,
    describe_unusual_classes,
    measure_classes,
    pool_class_sizes,
    pool_intensities,
    summarise_intensities,
    take_fingerprint,
)
from autoseg.tracking.progress import SilentReporter
from planners import (
    CaseSize,
    ClassSize,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    PlanningError,
    nnunet_plans,
    plan_dataset,
)

SILENT = SilentReporter()


def geometry(shape, spacing_mm=(1.0, 1.0, 1.0), **fields):
    return Geometry(shape=shape, spacing_mm=spacing_mm, **fields)


def make_dataset(folder, cases, labels=None):
    """``cases``: name -> (image, labels, geometry)."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for name, (image, label, grid) in cases.items():
        write_image(folder / "imagesTr" / f"{name}.nii.gz", np.asarray(image, float), grid)
        write_label_map(folder / "labelsTr" / f"{name}.nii.gz", np.asarray(label), grid)
    content = {"modality": {"0": "MRI"}, "labels": labels or {"background": 0, "a": 1}}
    (folder / "dataset.json").write_text(json.dumps(content))
    return discover_dataset(folder)


def case(shape, foreground, values):
    """An image of ones with ``values`` in the foreground, all in the first row of voxels."""
    image, labels = np.ones(shape), np.zeros(shape, np.uint8)
    image.flat[:foreground], labels.flat[:foreground] = values, 1
    return image, labels, geometry(shape)


def fingerprint(dataset, **options):
    return take_fingerprint(dataset, num_workers=1, reporter=SILENT, **options)


def test_every_case_weighs_the_same_however_large_its_foreground(tmp_path):
    dataset = make_dataset(tmp_path, {"a": case((4, 5, 5), 60, 1.0), "b": case((4, 5, 5), 1, 3.0)})
    (found,) = fingerprint(dataset).intensities
    assert (found.mean, found.std, found.minimum, found.maximum) == (2.0, 1.0, 1.0, 3.0)
    assert (found.percentile_00_5, found.median, found.percentile_99_5) == (1.0, 1.0, 3.0)


def test_sizes_are_those_of_the_non_zero_box(tmp_path):
    image, labels = np.zeros((10, 10, 10)), np.zeros((10, 10, 10), np.uint8)
    image[2:7, 1:9, 3:6], labels[3, 3, 4] = 5.0, 1
    whole = case((4, 5, 6), 3, 2.0)
    dataset = make_dataset(tmp_path, {"b": (image, labels, geometry(image.shape, (3.0, 1.0, 0.5))), "a": whole})
    found = fingerprint(dataset)
    # NIfTI keeps single precision; 3, 1 and 0.5 are exact in it
    assert found.cases == (
        CaseSize(case_id="a", shape=(4, 5, 6), spacing_mm=(1.0, 1.0, 1.0), file_axes=(0, 1, 2)),
        CaseSize(case_id="b", shape=(5, 8, 3), spacing_mm=(3.0, 1.0, 0.5), file_axes=(0, 1, 2)),
    )
    assert found.median_relative_size_after_cropping == pytest.approx((1 + 120 / 1000) / 2)
    assert found.num_training_cases == 2


def test_foreground_outside_the_box_is_cut_away(tmp_path):
    image, labels = np.zeros((6, 6, 6)), np.ones((6, 6, 6), np.uint8)
    image[2:4, 2:4, 2:4] = 8.0
    (found,) = fingerprint(make_dataset(tmp_path, {"a": (image, labels, geometry(image.shape))})).intensities
    assert (found.minimum, found.mean) == (8.0, 8.0)


def test_ignored_voxels_count_as_foreground(tmp_path):
    image, labels, grid = case((4, 4, 4), 2, (1.0, 3.0))
    labels.flat[1] = 5
    dataset = make_dataset(tmp_path, {"a": (image, labels, grid)}, {"background": 0, "a": 1, "ignore": 5})
    assert fingerprint(dataset).intensities[0].mean == 2.0


def test_cases_without_foreground_give_sizes_but_no_intensities(tmp_path):
    dataset = make_dataset(tmp_path, {"a": case((4, 4, 4), 0, []), "b": case((4, 4, 4), 5, 7.0)})
    found = fingerprint(dataset)
    assert (len(found.cases), found.intensities[0].mean, found.intensities[0].std) == (2, 7.0, 0.0)


def test_without_foreground_non_zero_voxels_count_with_a_message(tmp_path):
    image = np.zeros((4, 4, 4))
    image[1:3, 1:3, 1:3] = np.arange(1, 9).reshape(2, 2, 2)
    image[1, 1, 1] = 0.0
    dataset = make_dataset(tmp_path, {"a": (image, np.zeros(image.shape, np.uint8), geometry(image.shape))})
    reporter = Listening()
    (found,) = take_fingerprint(dataset, num_workers=1, reporter=reporter).intensities
    assert (found.minimum, found.maximum, found.mean) == (2.0, 8.0, 5.0)
    assert ["No label map has any foreground" in text for text in reporter.lines] == [True]


def test_image_of_zeros_is_not_cropped(tmp_path):
    zeros = np.zeros((3, 4, 5))
    found = fingerprint(make_dataset(tmp_path, {"a": (zeros, zeros.astype(np.uint8), geometry(zeros.shape))}))
    assert found.cases[0].shape == (3, 4, 5)
    assert found.intensities[0].mean == 0.0


def test_axes_are_canonical_unless_file_axes_are_requested(tmp_path):
    # stored array axes (z, y, x) run towards right, head, back in the world: left-right is the first
    image, labels, _ = case((4, 5, 6), 3, 2.0)
    sideways = geometry((4, 5, 6), (4.0, 2.0, 1.0), direction=((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    dataset = make_dataset(tmp_path, {"a": (image, labels, sideways)})
    assert fingerprint(dataset).cases[0] == CaseSize(
        case_id="a", shape=(5, 6, 4), spacing_mm=(2.0, 1.0, 4.0), file_axes=(1, 2, 0)
    )
    own = fingerprint(dataset, canonical=False)
    assert own.cases[0] == CaseSize(case_id="a", shape=(4, 5, 6), spacing_mm=(4.0, 2.0, 1.0))
    assert own.intensities == fingerprint(dataset).intensities


def test_non_finite_foreground_names_the_case(tmp_path):
    dataset = make_dataset(tmp_path, {"a": case((4, 4, 4), 3, 2.0), "b": case((4, 4, 4), 2, (1.0, np.nan))})
    with pytest.raises(AutosegError) as caught:
        fingerprint(dataset)
    assert [(issue.case, issue.code) for issue in caught.value.issues] == [("b", "image.not_finite")]


def test_undeclared_value_names_the_case(tmp_path):
    image, labels, grid = case((4, 4, 4), 3, 2.0)
    with pytest.raises(AutosegError) as caught:
        fingerprint(make_dataset(tmp_path, {"a": (image, labels * 3, grid)}))
    assert [(issue.case, issue.code) for issue in caught.value.issues] == [("a", "labels.undeclared_value")]


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=5),
    st.integers(16, 64),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 6]),
)
def test_percentiles_of_what_is_kept_are_off_by_less_than_a_share_of_the_voxels(sizes, num_values, seed, decimals):
    random = np.random.default_rng(seed)
    cases = [random.lognormal(sigma=2, size=size).round(decimals).astype(np.float32) for size in sizes]
    found = pool_intensities([summarise_intensities(values, num_values=num_values) for values in cases])
    for share, value in ((0.005, found.percentile_00_5), (0.5, found.median), (0.995, found.percentile_99_5)):
        # a kept value stands for one of num_values shares, and any of its voxels may be the one kept
        slack = 1 / num_values + 1e-9
        assert np.mean([np.mean(values <= value) for values in cases]) >= share - slack
        assert np.mean([np.mean(values < value) for values in cases]) <= share + slack
    assert found.minimum == min(values.min() for values in cases)
    assert found.maximum == max(values.max() for values in cases)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_moments_are_those_of_a_sample_with_equal_weights(sizes, seed):
    random = np.random.default_rng(seed)
    cases = [random.normal(1000, 1 + 100 * random.random(), size).astype(np.float32) for size in sizes]
    common = math.lcm(*sizes)
    if common > 100_000:
        return
    pooled = np.concatenate([np.repeat(values.astype(float), common // len(values)) for values in cases])
    found = pool_intensities([summarise_intensities(values, num_values=1024) for values in cases])
    assert found.mean == pytest.approx(pooled.mean(), rel=1e-12)
    # variance as a difference of squares near 1e6 leaves 1e-16 * 1e6 absolute in the comparison
    assert found.std == pytest.approx(pooled.std(), rel=1e-9, abs=1e-6)
    assert found.median == np.quantile(pooled, 0.5, method="inverted_cdf")


@pytest.fixture(scope="module")
def hippocampus(real_data):
    return discover_dataset(real_data / "Task04_Hippocampus")


def sample_like_the_reference(dataset, num_samples):
    """Method section 2, step 6, with fewer samples a case."""
    pooled = []
    for each in dataset.training:
        image = read_image(each.image_paths).array[0]
        voxels = image[read_label_map(each.label).array > 0]  # no hippocampus volume is cropped
        pooled.append(np.random.RandomState(1234).choice(voxels, num_samples, replace=True))
    return np.concatenate(pooled).astype(np.float64)


def test_statistics_agree_with_the_sampling_of_the_reference(hippocampus):
    samples = sample_like_the_reference(hippocampus, 20_000)
    (found,) = fingerprint(hippocampus).intensities
    n = len(samples)
    # Sampling errors of the reference's way; 5 standard errors are passed by chance once in a million.
    centred = samples - samples.mean()
    assert found.mean == pytest.approx(samples.mean(), abs=5 * samples.std() / math.sqrt(n))
    assert found.std**2 == pytest.approx(samples.var(), abs=5 * (centred**2).std() / math.sqrt(n))
    shares = ((0.005, found.percentile_00_5), (0.5, found.median), (0.995, found.percentile_99_5))
    for share, value in shares:
        slack = 5 * math.sqrt(share * (1 - share) / n)
        assert np.mean(samples <= value) >= share - slack
        assert np.mean(samples < value) <= share + slack
    assert found.minimum <= samples.min()
    assert found.maximum >= samples.max()


def test_workers_change_nothing(hippocampus):
    few = hippocampus.model_copy(update={"training": hippocampus.training[:6]})
    assert take_fingerprint(few, num_workers=2, reporter=SILENT) == fingerprint(few)


def test_channels_of_a_4d_file_have_separate_statistics(real_data):
    found = fingerprint(discover_dataset(real_data / "ms_lesion_4ch"))
    assert found.channels == ("FLAIR", "T1", "T1POST", "T2")
    assert len({statistics.mean for statistics in found.intensities}) == 4
    assert [size.spacing_mm for size in found.cases] == [(1.0, 1.0, 1.0)] * 2


def test_axes_of_flat_images_are_no_directions_of_the_body(tmp_path):
    image, labels, _ = case((1, 5, 6), 3, 2.0)
    dataset = make_dataset(tmp_path, {"a": (image, labels, geometry((1, 5, 6), dimensions=2))})
    assert fingerprint(dataset).cases[0].file_axes is None
    assert "axes.source" not in [record.rule for record in plan_dataset(fingerprint(dataset)).decisions]


# --- class sizes ---

REGIONS = Labels(
    classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))),
    region_order=(1, 2),
    ignore=3,
)


@settings(max_examples=50, deadline=None)
@given(arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(-1, 3)))
def test_pieces_are_those_of_scikit_image(labels: np.ndarray) -> None:
    measured = measure_classes(labels, REGIONS, voxel_volume_ml=0.5)
    for entry, got in zip(REGIONS.classes, measured, strict=True):
        mask = np.isin(labels, entry.values)
        assert got.num_voxels == mask.sum()
        assert got.volume_ml == mask.sum() / 2
        assert got.share == mask.mean()
        assert got.num_components == measure.label(mask, connectivity=3, return_num=True)[1]


def test_medians_are_over_the_cases_that_have_a_class() -> None:
    cases = [np.zeros((4, 5, 5), np.int16) for _ in range(3)]
    cases[0][0, 0, :2] = 1
    cases[1][0, 0, :4] = 1
    cases[1][2, 0, 0] = 1
    whole, core = pool_class_sizes(REGIONS, [measure_classes(case, REGIONS, voxel_volume_ml=1.0) for case in cases])
    assert whole == ClassSize(
        name="whole", num_cases=2, median_volume_ml=3.5, median_share=0.035, median_components=1.5
    )
    assert core == ClassSize(name="core", num_cases=0, median_volume_ml=0, median_share=0, median_components=0)


def with_sizes(*sizes: ClassSize) -> Fingerprint:
    return Fingerprint(
        dataset_name="made",
        cases=tuple(CaseSize(case_id=name, shape=(9, 9, 9), spacing_mm=(1.0, 1.0, 1.0)) for name in "ab"),
        num_training_cases=2,
        channels=("MRI",),
        labels=REGIONS,
        intensities=(
            IntensityStatistics(mean=0, median=0, std=1, minimum=0, maximum=1, percentile_00_5=0, percentile_99_5=1),
        ),
        median_relative_size_after_cropping=1.0,
        class_sizes=sizes,
    )


def size(name: str, num_cases: int, share: float, components: float) -> ClassSize:
    return ClassSize(
        name=name, num_cases=num_cases, median_volume_ml=3.0, median_share=share, median_components=components
    )


def test_absent_tiny_and_fragmented_classes_are_noted():
    classes = [size("gone", 0, 0, 0), size("dot", 2, TINY_SHARE * 0.99, 1), size("rash", 1, 0.01, MANY_COMPONENTS + 1)]
    usual = [size("liver", 2, TINY_SHARE, MANY_COMPONENTS)]
    found = describe_unusual_classes(with_sizes(*classes, *usual))
    assert [(note.where, note.code) for note in found] == [
        ("gone", "class.absent"),
        ("dot", "class.tiny"),
        ("rash", "class.fragmented"),
    ]
    assert {note.severity for note in found} == {"note"}


@pytest.mark.parametrize("name", ["hippocampus_003", "hippocampus_004"])
def test_real_classes_are_one_piece_of_known_volume(real_data, name) -> None:
    read = read_label_map(real_data / "Task04_Hippocampus" / "labelsTr" / f"{name}.nii.gz")
    labels = Labels(classes=(LabelClass(name="Anterior", values=(1,)), LabelClass(name="Posterior", values=(2,))))
    for value, got in enumerate(
        measure_classes(read.array, labels, voxel_volume_ml=read.geometry.voxel_volume_ml), start=1
    ):
        assert got.volume_ml == pytest.approx((read.array == value).sum() / 1000)
        assert 1 <= got.num_components <= 3


def test_ct_among_others_is_counted_and_its_intensities_kept_apart(tmp_path):
    def body(air, tissue):
        image, labels, grid = case((10, 10, 10), 0, 0.0)
        image[:], image[3:7], labels[4:6, 4:6, 4:6] = air, tissue, 1
        return image, labels, grid

    cases = {"ct0": body(-1000.0, 40.0), "ct1": body(-1000.0, 60.0), "unclear": body(-400.5, 50.0)}
    mixed = fingerprint(make_dataset(tmp_path, {**cases, "mr": body(0.0, 900.0)}))
    (evidence,) = mixed.ct_evidence
    assert (evidence.num_ct, evidence.num_other, evidence.num_unclear) == (2, 1, 1)
    assert evidence.intensities is not None
    assert (evidence.intensities.minimum, evidence.intensities.maximum) == (40.0, 60.0)
    assert mixed.intensities[0].maximum == 900.0
    named = mixed.model_copy(update={"channels": ("CT or MR",)})
    plan = plan_dataset(named)
    assert {c.normalization[0].scheme for c in plan.configurations} == {"ct_or_zscore"}
    assert plan.intensities == (evidence.intensities,)
    strict = plan_dataset(named, strict_reference=True)
    assert (strict.configurations[0].normalization[0].scheme, strict.intensities) == ("zscore", mixed.intensities)
    with pytest.raises(PlanningError) as caught:
        nnunet_plans(plan)
    assert [issue.code for issue in caught.value.issues] == ["plan.not_in_nnunet"]


def test_without_others_there_are_no_intensities_apart(tmp_path):
    found = fingerprint(make_dataset(tmp_path, {"a": case((4, 5, 5), 60, 1.0)}))
    assert found.ct_evidence[0].num_other == 1
    assert found.ct_evidence[0].intensities is None
