"""Preprocessing, from files to stored arrays and back to the geometry of the file."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.dataset import Case, DatasetDescription, MaskFile
from autoseg.imaging.image import Geometry, Image
from autoseg.imaging.placement import restore_labels
from autoseg.imaging.readers import read_label_map, write_image, write_label_map
from autoseg.imaging.resampling import decide_separate_axis, resample_labels
from autoseg.issues import AutosegError
from autoseg.preprocessing.prepare import ANNOTATED, class_locations, prepare_image
from autoseg.preprocessing.preprocess import Target, preprocess_case, preprocess_dataset, stored_key
from autoseg.preprocessing.store import open_case
from autoseg.tracking.progress import SilentReporter
from planners import (
    ChannelNormalization,
    Configuration,
    IntensityStatistics,
    LabelClass,
    Labels,
    Loss,
    Network,
    Plan,
    Resampling,
)

LABELS = Labels(classes=(LabelClass(name="head", values=(1,)), LabelClass(name="tail", values=(2,))))
STATISTICS = IntensityStatistics(
    mean=10, median=9, std=4, minimum=-50, maximum=90, percentile_00_5=-2, percentile_99_5=30
)


def configuration(spacing_mm: tuple[float, ...], scheme: str = "zscore", *, use_mask: bool = False) -> Configuration:
    axes = len(spacing_mm)
    network = Network(
        family="unet",
        num_inputs=1,
        num_outputs=3,
        features=(8, 16),
        kernels=((3,) * axes,) * 2,
        strides=((1,) * axes, (2,) * axes),
        blocks=(2, 2),
        decoder_blocks=(2,),
    )
    return Configuration(
        name=f"{axes}d",
        dimensions=2 if axes == 2 else 3,
        data=f"{axes}d",
        spacing_mm=spacing_mm,
        median_shape=(20.0,) * axes,
        patch_shape=(16,) * axes,
        batch_size=2,
        normalization=(ChannelNormalization(scheme=scheme, use_mask=use_mask),),  # type: ignore[arg-type]
        resample_image=Resampling(order=3, order_z=0),
        resample_labels=Resampling(order=1, order_z=0),
        resample_logits=Resampling(order=1, order_z=0),
        network=network,
        loss=Loss(batch_dice=False),
        deep_supervision=True,
        mirror_axes=(),
    )


def plan(
    *configurations: Configuration,
    transpose: tuple[int, int, int] = (0, 1, 2),
    labels: Labels = LABELS,
    strict: bool = False,
) -> Plan:
    return Plan(
        dataset_name="made",
        preset="default",
        strict_reference=strict,
        memory_target_gb=8.0,
        channels=("MRI",),
        labels=labels,
        transpose_forward=transpose,  # type: ignore[arg-type]
        transpose_backward=tuple(int(axis) for axis in np.argsort(transpose)),  # type: ignore[arg-type]
        original_median_spacing_mm=(1.0, 1.0, 1.0),
        original_median_shape=(20, 20, 20),
        intensities=(STATISTICS,),
        configurations=configurations or (configuration((1.0, 1.0, 1.0)),),
    )


def volume(array: np.ndarray, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), **changes: object) -> Image:
    geometry = Geometry(shape=array.shape, spacing_mm=spacing_mm, **changes)  # type: ignore[arg-type]
    return Image(array=array[None].astype(np.float32), geometry=geometry)


def framed(shape: tuple[int, int, int] = (8, 10, 12)) -> np.ndarray:
    """Random positive voxels with a frame of zeros, of different width on each side."""
    image = np.zeros(shape)
    image[1:-2, 2:-1, 3:-1] = np.random.default_rng(0).uniform(1, 100, (shape[0] - 3, shape[1] - 3, shape[2] - 4))
    return image


@pytest.mark.parametrize("shape", [(7, 1, 1), (1, 7, 1), (1, 1, 7), (1, 1, 1), (1, 7, 7)])
@pytest.mark.parametrize("scheme", ["ct", "zscore", "rescale_to_0_1", "none"])
@pytest.mark.parametrize("use_mask", [False, True])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0)])
def test_boxes_of_any_shape_are_prepared(
    shape: tuple[int, int, int], scheme: str, use_mask: bool, spacing_mm: tuple[float, ...]
) -> None:
    image = np.zeros((12, 13, 14))
    image[tuple(slice(3, 3 + size) for size in shape)] = np.arange(1, np.prod(shape) + 1).reshape(shape)
    chosen = configuration(spacing_mm, scheme, use_mask=use_mask)
    labels = np.ones(image.shape, np.int16)
    for millimetres in (1.0, 3.0, 0.001):
        got = prepare_image(volume(image, (millimetres,) * 3), plan(chosen), chosen, labels=labels)
        assert got.placement.shape_after_cropping == shape
        assert got.image.shape[1:] == got.placement.resampled_shape
        assert min(got.placement.resampled_shape) >= 1
        assert np.isfinite(got.image).all()
    inside = prepare_image(volume(image), plan(chosen), chosen).image
    if scheme == "zscore" and np.prod(shape) > 1:
        np.testing.assert_allclose((inside.mean(), inside.std()), (0, 1), atol=1e-5)


def test_memory_is_asked_for_only_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 x 20 x 20 voxels of 2 mm become 40 x 40 x 40, of 8 bytes each."""
    image, chosen = np.ones((20, 20, 20)), configuration((1.0, 1.0, 1.0))
    for free, is_enough in ((8 * 40**3, True), (8 * 40**3 - 1, False)):
        monkeypatch.setattr("autoseg.preprocessing.prepare.free_memory_bytes", lambda free=free: free)
        if is_enough:
            prepare_image(volume(image, (2.0,) * 3), plan(), chosen)
            continue
        with pytest.raises(AutosegError) as caught:
            prepare_image(volume(image, (2.0,) * 3), plan(), chosen)
        assert caught.value.codes == ("image.too_large",)


def test_the_box_is_cropped_and_outside_is_marked() -> None:
    image = framed()
    image[1, 2, 3:9] = 0  # an open dent: inside the box, outside the mask
    labels = np.zeros(image.shape, np.int16)
    labels[3, 4, 5] = 2
    labels[1, 2, 4] = 1  # labelled though it is zero
    got = prepare_image(volume(image), plan(), configuration((1.0, 1.0, 1.0)), labels=labels)
    assert got.placement.box == ((1, 6), (2, 9), (3, 11))
    assert got.labels is not None
    assert got.labels.shape == got.image.shape[1:] == (5, 7, 8)
    assert got.labels[0, 0, :7].tolist() == [-1, 1, -1, -1, -1, -1, 0]
    assert got.labels[2, 2, 2] == 2


def test_masked_normalisation_uses_the_nonzero_mask_with_and_without_labels() -> None:
    image = framed()
    image[1, 2, 3:9] = 0
    masked = configuration((1.0, 1.0, 1.0), use_mask=True)
    without = prepare_image(volume(image), plan(masked), masked)
    with_labels = prepare_image(volume(image), plan(masked), masked, labels=np.zeros(image.shape, np.int16))
    assert without.labels is None
    assert np.array_equal(without.image, with_labels.image)
    assert (without.image[0, 0, 0, :6] == 0).all()
    inside = without.image[without.image != 0]
    assert inside.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)  # subtracted in single precision


def test_values_whose_squares_are_beyond_single_precision_are_normalised() -> None:
    chosen = configuration((1.0, 1.0, 1.0))
    usual, huge = (
        prepare_image(volume(framed() * np.float32(scale)), plan(chosen), chosen).image for scale in (1, 1e25)
    )
    assert usual.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(huge, usual, rtol=1e-4, atol=1e-5)  # single precision


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_axes_follow_the_plan(transpose: tuple[int, int, int]) -> None:
    got = prepare_image(volume(framed(), (1.0, 2.0, 3.0)), plan(transpose=transpose), configuration((1.0, 1.0, 1.0)))
    spacing = tuple((1.0, 2.0, 3.0)[axis] for axis in transpose)
    box = tuple(((1, 6), (2, 9), (3, 11))[axis] for axis in transpose)
    assert got.placement.spacing_mm == spacing
    assert got.placement.box == box
    expected = tuple(round(mm * (stop - start)) for mm, (start, stop) in zip(spacing, box, strict=True))
    assert got.image.shape[1:] == got.placement.resampled_shape == expected


def test_a_flat_configuration_keeps_its_slices() -> None:
    got = prepare_image(volume(framed(), (5.0, 2.0, 2.0)), plan(), configuration((1.0, 1.0)))
    assert got.image.shape == (1, 5, 14, 16)
    assert got.placement.resampled_spacing_mm == (5, 1, 1)


@pytest.mark.parametrize(("depth", "transpose"), [(20, (0, 1, 2)), (20, (1, 2, 0)), (1, (0, 1, 2))])
def test_a_picture_is_one_slice_of_the_volumes_a_plan_is_for(depth: int, transpose: tuple[int, int, int]) -> None:
    """Its thickness is unknown: the 999 pixels that stand for it would become as many slices."""
    made = plan(transpose=transpose).model_copy(
        update={"original_median_shape": tuple((depth, 20, 20)[axis] for axis in transpose)}
    )
    chosen = configuration((2.0, 2.0, 2.0))
    picture = volume(framed()[3:4], (999.0, 1.0, 1.0), dimensions=2, has_orientation=False)
    got = prepare_image(picture, made, chosen).placement
    assert min(got.resampled_shape) == (1 if depth > 1 else 4)
    assert max(got.resampled_shape) == (4 if depth > 1 else 500)


def test_an_empty_image_is_kept_whole() -> None:
    got = prepare_image(
        volume(np.zeros((4, 5, 6))), plan(), configuration((1.0, 1.0, 1.0)), labels=np.zeros((4, 5, 6), int)
    )
    assert got.image.shape == (1, 4, 5, 6)
    assert got.labels is not None
    assert (got.labels == -1).all()
    assert np.isfinite(got.image).all()


def directions() -> list[np.ndarray]:
    return [np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def turned_copy(image: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same object, stored with axes along the columns of ``direction`` (x, y, z) instead of the world's."""
    axes = [int(np.argmax(np.abs(direction[:, j]))) for j in range(3)]
    turned = image.transpose(2, 1, 0).transpose(axes)
    flips = tuple(slice(None, None, -1) if direction[axes[j], j] < 0 else slice(None) for j in range(3))
    return turned[flips].transpose(2, 1, 0), direction


@pytest.mark.parametrize("direction", directions())
def test_every_orientation_of_a_file_gives_the_same_case_and_its_own_labels_back(direction: np.ndarray) -> None:
    """Canonical orientation: the network sees one array, the file gets labels in its own axes."""
    settings = configuration((1.0, 1.0, 1.0))
    image = framed()
    labels = (image > 50).astype(np.int16)
    expected = prepare_image(volume(image), plan(), settings, labels=labels)
    stored, _ = turned_copy(image, direction)
    rows = tuple(tuple(float(value) for value in row) for row in direction)
    got = prepare_image(volume(stored, direction=rows), plan(), settings, labels=turned_copy(labels, direction)[0])
    assert np.allclose(got.image, expected.image, atol=1e-6)  # the mean is summed in another order
    assert got.labels is not None
    assert np.array_equal(got.labels, expected.labels)
    restored = restore_labels(np.maximum(got.labels, 0), got.placement)
    assert np.array_equal(restored, turned_copy(labels, direction)[0])


def test_strict_reference_keeps_the_axes_of_the_file() -> None:
    flipped = ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    got = prepare_image(volume(framed(), direction=flipped), plan(strict=True), configuration((1.0, 1.0, 1.0)))
    assert got.placement.flips == (False, False, False)


def test_labels_survive_the_way_to_the_plan_and_back() -> None:
    z, y, x = np.ogrid[:24, :40, :40]
    ball = (((z - 11) * 2.5) ** 2 + (y - 20.0) ** 2 + (x - 18.0) ** 2 < 15**2).astype(np.int16)
    image = 10 + ball * 5.0 + np.random.default_rng(0).uniform(size=ball.shape)
    got = prepare_image(volume(image, (2.5, 1.0, 1.0)), plan(), configuration((1.0, 0.8, 0.8)), labels=ball)
    assert got.labels is not None
    placement = got.placement
    axis = decide_separate_axis(placement.resampled_spacing_mm, placement.spacing_mm, None)
    back = resample_labels(
        got.labels, placement.shape_after_cropping, resampling=Resampling(order=1, order_z=0), separate_axis=axis
    )
    restored = restore_labels(back, placement)
    dice = 2 * (restored & ball).sum() / (restored.sum() + ball.sum())
    assert dice > 0.97  # only voxels at the surface may change in two resamplings


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_counted_and_placed(bad: float) -> None:
    image = framed()
    image[2, 3, 4] = image[3, 3, 3] = bad
    with pytest.raises(AutosegError, match=r"channel 0 has 2 voxels .*\(2, 3, 4\)") as caught:
        prepare_image(volume(image), plan(), configuration((1.0, 1.0, 1.0)))
    assert caught.value.codes == ("image.not_finite",)


def test_wrong_channels_and_shapes_are_refused() -> None:
    two = replace(volume(framed()), array=np.zeros((2, 8, 10, 12), np.float32))
    with pytest.raises(AutosegError) as channels:
        prepare_image(two, plan(), configuration((1.0, 1.0, 1.0)))
    with pytest.raises(AutosegError) as shape:
        prepare_image(volume(framed()), plan(), configuration((1.0, 1.0, 1.0)), labels=np.zeros((8, 10, 11), int))
    assert channels.value.codes + shape.value.codes == ("image.channels", "labels.shape_differs")


# --- class locations ---


def test_every_voxel_of_a_small_class_is_kept() -> None:
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1, 2, 3] = labels[0, 0, 5] = 1
    got = class_locations(labels, LABELS)
    assert sorted(map(tuple, got["head"].tolist())) == [(0, 0, 5), (1, 2, 3)]
    assert got["tail"].shape == (0, 3)
    assert got["head"].dtype == np.int32


def test_of_a_large_class_some_are_drawn_without_repeats() -> None:
    labels = np.zeros((30, 40, 50), np.int16)
    labels[5:, :, 10:] = 1
    got = class_locations(labels, LABELS)["head"]
    assert len(got) == len(np.unique(got, axis=0)) == 10_000
    assert (labels[tuple(got.T)] == 1).all()
    assert np.array_equal(got, class_locations(labels, LABELS)["head"])
    assert np.ptp(got, axis=0).tolist() == [24, 39, 39]  # spread over the whole class


def test_one_per_cent_of_a_very_large_class_is_kept() -> None:
    labels = np.ones((110, 100, 100), np.int16)
    assert len(class_locations(labels, LABELS)["head"]) == 11_000


def test_regions_are_unions_and_annotated_leaves_out_the_ignored() -> None:
    regions = Labels(
        classes=(LabelClass(name="whole", values=(1, 2)), LabelClass(name="core", values=(2,))),
        ignore=3,
        region_order=(1, 2),
    )
    labels = np.array([-1, 0, 1, 2, 3], np.int16).reshape(1, 1, 5)
    got = {name: sorted(array[:, 2].tolist()) for name, array in class_locations(labels, regions).items()}
    assert got == {"whole": [2, 3], "core": [3], ANNOTATED: [0, 1, 2, 3]}


# --- whole cases ---


def describe(folder: Path, names: list[str], file_values: tuple[int, ...] = (0, 1, 2)) -> DatasetDescription:
    cases = tuple(
        Case(case_id=name, images=(str(folder / f"{name}.nii.gz"),), label=str(folder / f"{name}_label.nii.gz"))
        for name in names
    )
    return DatasetDescription(
        name="made",
        root=str(folder),
        layout="made",
        channels=("MRI",),
        labels=LABELS,
        file_values=file_values,
        file_ending=".nii.gz",
        training=cases,
    )


@pytest.fixture
def made(tmp_path: Path) -> DatasetDescription:
    folder = tmp_path / "data"
    for i, name in enumerate(["a", "b", "c"]):
        image = framed() + i
        geometry = Geometry(shape=image.shape, spacing_mm=(1.0, 1.0, 1.0))  # type: ignore[arg-type]
        write_image(folder / f"{name}.nii.gz", image, geometry)
        write_label_map(
            folder / f"{name}_label.nii.gz", np.where(image > 60, 255, np.where(image > 40, 10, 0)), geometry
        )
    return describe(folder, ["a", "b", "c"], (0, 10, 255))


def test_file_values_become_internal_ones(made: DatasetDescription, tmp_path: Path) -> None:
    settings = configuration((1.0, 1.0, 1.0))
    preprocess_case(made.training[0], made, plan(), [Target(settings, tmp_path / "out")])
    stored = open_case(tmp_path / "out", "a")
    assert set(np.unique(stored.labels[:])) <= {-1, 0, 1, 2}
    inside = np.maximum(stored.labels[:], 0).astype(np.uint8)
    source = read_label_map(Path(str(made.training[0].label))).array
    assert np.array_equal(np.array([0, 10, 255])[restore_labels(inside, stored.placement)], source)
    assert set(stored.locations) == {"head", "tail"}


def test_undeclared_values_are_refused_with_their_file(made: DatasetDescription, tmp_path: Path) -> None:
    other = made.model_copy(update={"file_values": (0, 10, 20)})
    with pytest.raises(AutosegError) as caught:
        preprocess_case(made.training[0], other, plan(), [Target(configuration((1.0, 1.0, 1.0)), tmp_path / "out")])
    (issue,) = caught.value.issues
    assert issue.case == "a"
    assert issue.where.endswith("a_label.nii.gz")
    assert not list((tmp_path / "out").glob("*.case.json"))


def test_a_label_in_another_orientation_is_reoriented_to_its_image(made: DatasetDescription, tmp_path: Path) -> None:
    settings = configuration((1.0, 1.0, 1.0))
    case = made.training[0]
    preprocess_case(case, made, plan(), [Target(settings, tmp_path / "before")])
    label = read_label_map(Path(str(case.label)))
    flipped = Geometry(
        shape=label.geometry.shape,
        spacing_mm=label.geometry.spacing_mm,
        origin_mm=(float(label.geometry.shape[2] - 1), 0.0, 0.0),
        direction=((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    )
    write_label_map(Path(str(case.label)), label.array[:, :, ::-1], flipped)
    preprocess_case(case, made, plan(), [Target(settings, tmp_path / "after")])
    assert np.array_equal(open_case(tmp_path / "before", "a").labels[:], open_case(tmp_path / "after", "a").labels[:])


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.case.json")}


def test_only_cases_whose_inputs_changed_are_redone(made: DatasetDescription, tmp_path: Path) -> None:
    out, settings = tmp_path / "out", configuration((1.0, 1.0, 1.0))

    def go(settings: Configuration, plan: Plan) -> dict[str, int]:
        preprocess_dataset(made, plan, [Target(settings, out)], num_workers=1, reporter=SilentReporter())
        return written(out)

    first = go(settings, plan())
    assert len(first) == 3
    assert go(settings, plan()) == first
    prose = plan().model_copy(update={"dataset_name": "another", "memory_target_gb": 24.0})
    assert go(settings, prose) == first
    os.utime(made.training[1].images[0], ns=(1, 1))  # nobody has read the content: the time stands for it
    second = go(settings, plan())
    assert {name for name in first if first[name] != second[name]} == {"b.case.json"}
    (out / "c.image.b2nd").unlink()
    third = go(settings, plan())
    assert {name for name in third if third[name] != second[name]} == {"c.case.json"}
    coarser = configuration((2.0, 1.0, 1.0))
    fourth = go(coarser, plan(coarser))
    assert all(fourth[name] != third[name] for name in third)


def test_all_bad_cases_are_named_and_good_ones_are_kept(made: DatasetDescription, tmp_path: Path) -> None:
    image = framed()
    image[2, 3, 4] = np.nan
    write_image(Path(made.training[0].images[0]), image, Geometry(shape=image.shape, spacing_mm=(1.0, 1.0, 1.0)))  # type: ignore[arg-type]
    Path(made.training[2].images[0]).write_bytes(b"broken")
    with pytest.raises(AutosegError) as caught:
        preprocess_dataset(
            made,
            plan(),
            [Target(configuration((1.0, 1.0, 1.0)), tmp_path / "out")],
            num_workers=1,
            reporter=SilentReporter(),
        )
    assert [(issue.case, Path(issue.where).name) for issue in caught.value.issues] == [
        ("a", "a.nii.gz"),
        ("c", "c.nii.gz"),
    ]
    assert set(written(tmp_path / "out")) == {"b.case.json"}


def test_a_key_depends_on_the_content_of_files_not_their_path(made: DatasetDescription, tmp_path: Path) -> None:
    settings, case = configuration((1.0, 1.0, 1.0)), made.training[0].model_copy(update={"content": "abc"})
    elsewhere = case.model_copy(update={"images": ("elsewhere.nii.gz",), "label": "elsewhere_label.nii.gz"})
    assert stored_key(case, made, plan(), settings) == stored_key(elsewhere, made, plan(), settings)
    changed = case.model_copy(update={"content": "abd"})
    assert stored_key(case, made, plan(), settings) != stored_key(changed, made, plan(), settings)


def test_workers_give_what_one_process_gives(made: DatasetDescription, tmp_path: Path) -> None:
    settings = configuration((0.7, 0.9, 1.1))
    for name, workers in (("one", 1), ("two", 2)):
        preprocess_dataset(
            made, plan(), [Target(settings, tmp_path / name)], num_workers=workers, reporter=SilentReporter()
        )
    for case in made.training:
        one, two = (open_case(tmp_path / name, case.case_id) for name in ("one", "two"))
        assert np.allclose(one.image[:], two.image[:], atol=1e-5)  # products may be split over threads in one of them
        assert np.array_equal(one.labels[:], two.labels[:])
        assert one.record == two.record


def test_real_cases_are_stored(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    source = real_data / "Task04_Hippocampus"
    for name in ("hippocampus_003", "hippocampus_004"):
        shutil.copy(source / "imagesTr" / f"{name}.nii.gz", folder / f"{name}.nii.gz")
        shutil.copy(source / "labelsTr" / f"{name}.nii.gz", folder / f"{name}_label.nii.gz")
    dataset = describe(folder, ["hippocampus_003", "hippocampus_004"])
    settings = configuration((1.0, 1.0, 1.0))
    preprocess_dataset(dataset, plan(), [Target(settings, tmp_path / "out")], num_workers=1, reporter=SilentReporter())
    for case in dataset.training:
        stored = open_case(tmp_path / "out", case.case_id)
        assert abs(float(stored.image[:].mean())) < 1e-4  # single precision over the whole image
        restored = restore_labels(np.maximum(stored.labels[:], 0), stored.placement)
        assert np.array_equal(restored, read_label_map(Path(str(case.label))).array)
        for value, name in enumerate(("head", "tail"), start=1):
            assert (stored.labels[:][tuple(stored.locations[name].T)] == value).all()


def test_other_files_next_to_slices_do_not_outdate_a_stored_case(tmp_path: Path, real_data: Path) -> None:
    slices = tmp_path / "scan"
    shutil.copytree(real_data / "dicom_series" / "mr_prostatex_adc", slices)
    case = Case(case_id="a", images=(str(slices),), label=None)
    dataset = DatasetDescription(
        name="made",
        root=str(tmp_path),
        layout="made",
        channels=("MRI",),
        labels=LABELS,
        file_values=(0, 1, 2),
        file_ending=".nii.gz",
        training=(case,),
    )

    def now() -> str:
        return stored_key(case, dataset, plan(), plan().configurations[0])

    before = now()
    (slices / ".DS_Store").write_bytes(bytes(300))
    assert now() == before
    os.utime(sorted(slices.glob("*.dcm"))[0], ns=(1, 1))
    assert now() != before


def test_another_segment_for_a_class_makes_a_stored_case_outdated(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "Task04_Hippocampus"
    image, file = (
        source / "imagesTr" / "hippocampus_003.nii.gz",
        shutil.copy(source / "labelsTr" / "hippocampus_003.nii.gz", tmp_path),
    )
    dataset = describe(source, ["hippocampus_003"])
    digests = set()
    for parts in ((1, 2), (2, 1), (1, 2)):
        masks = tuple(
            MaskFile(label=name, file=f"{file}#{part}") for name, part in zip(("head", "tail"), parts, strict=True)
        )
        taken = Case(case_id="a", images=(str(image),), label=None, masks=masks)
        digests.add(stored_key(taken, dataset, plan(), plan().configurations[0]))
    assert len(digests) == 2
