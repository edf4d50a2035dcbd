"""The estimated memory of cases."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.dataset import Case
from autoseg.imaging.image import Geometry
from autoseg.imaging.placement import Placement
from autoseg.imaging.readers import list_series, write_image
from autoseg.issues import AutosegError
from autoseg.preprocessing.preprocess import BYTES_PER_VOXEL, largest_need, require_memory


def case(folder: Path, name: str, shape: tuple[int, int, int], channels: int = 1) -> Case:
    paths = []
    for channel in range(channels):
        paths.append(str(folder / f"{name}_{channel}.nii.gz"))
        voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        write_image(Path(paths[-1]), voxels, Geometry(shape=shape, spacing_mm=(1.0, 1.0, 1.0)))
    return Case(case_id=name, images=tuple(paths), label=None)


def test_the_largest_case_counts_with_all_its_channels(tmp_path: Path) -> None:
    cases = [case(tmp_path, "small", (5, 6, 7)), case(tmp_path, "large", (8, 6, 7), channels=2)]
    assert largest_need(cases) == BYTES_PER_VOXEL * 2 * 8 * 6 * 7


def test_what_cannot_be_read_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"broken")
    bad = Case(case_id="bad", images=(str(tmp_path / "bad.nii.gz"),), label=None)
    gone = Case(case_id="gone", images=(str(tmp_path / "gone.nii.gz"),), label=None)
    assert largest_need([bad, gone]) == 0
    assert largest_need([]) == 0


@pytest.mark.parametrize("name", ["ct_torso_partial"])
def test_real_needs_are_bytes_for_every_voxel(real_data: Path, name: str) -> None:
    files = sorted((real_data / name).rglob("*.nii.gz"), key=lambda path: path.stat().st_size)
    found = [Case(case_id=path.stem, images=(str(path),), label=None) for path in files]
    assert largest_need(found) >= BYTES_PER_VOXEL * 122 * 101 * 112


def test_a_series_of_a_folder_counts_with_its_slices(real_data: Path, tmp_path: Path) -> None:
    """Only the headers of cases with large files are read, so a series must not be taken for nothing."""
    small = [case(tmp_path, f"small{number}", (3, 4, 5)) for number in range(5)]
    (series,) = list_series(real_data / "dicom_series" / "mr_prostatex_adc")
    named = f"{real_data / 'dicom_series' / 'mr_prostatex_adc'}#{series.uid}"
    assert (
        largest_need([*small, Case(case_id="series", images=(named,), label=None)]) == BYTES_PER_VOXEL * 19 * 128 * 84
    )


@pytest.mark.parametrize(
    ("size", "free_voxels", "is_refused"), [(30, 28_000, False), (30, 27_999, True), (20, 1, False), (21, 1, True)]
)
def test_a_case_that_a_wrong_spacing_makes_too_large_is_refused(size: int, free_voxels: int, is_refused: bool) -> None:
    placement = Placement(
        source=Geometry(shape=(10, 10, 10), spacing_mm=(30.0, 30.0, 30.0)),
        permutation=(0, 1, 2),
        flips=(False, False, False),
        transpose_forward=(0, 1, 2),
        shape_before_cropping=(10, 10, 10),
        box=((0, 10), (0, 10), (0, 10)),
        spacing_mm=(30.0, 30.0, 30.0),
        resampled_shape=(size, size, size),
        resampled_spacing_mm=(10.0, 10.0, 10.0),
    )
    with pytest.raises(AutosegError) if is_refused else nullcontext() as caught:
        require_memory(placement, 2, free_bytes=2 * BYTES_PER_VOXEL * free_voxels)
    if caught is not None:
        assert caught.value.codes == ("preprocessing.too_large",)
