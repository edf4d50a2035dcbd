"""Real label maps as 3D Slicer stores them: numbered differently from case to case, cut to what they hold, named in the header."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import SimpleITK

from autoseg.data.checks import check_dataset
from autoseg.data.dataset import describe_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.preprocessing.fingerprint import take_fingerprint
from autoseg.tracking.progress import SilentReporter

CASES = 6


def write_segmentation(source: Path, target: Path, numbers: dict[str, int]) -> None:
    """Segments of these numbers in the smallest box that holds them."""
    whole = SimpleITK.ReadImage(str(source))
    array = SimpleITK.GetArrayFromImage(whole).astype(np.uint8)
    table = np.array([0, numbers["Anterior"], numbers["Posterior"]], np.uint8)
    z, y, x = (slice(int(axis.min()), int(axis.max()) + 1) for axis in np.nonzero(array))
    image = SimpleITK.GetImageFromArray(table[array])
    image.CopyInformation(whole)
    part = image[x, y, z]
    for index, (name, number) in enumerate(numbers.items()):
        part.SetMetaData(f"Segment{index}_Name", name)
        part.SetMetaData(f"Segment{index}_LabelValue", str(number))
        part.SetMetaData(f"Segment{index}_Layer", "0")
    SimpleITK.WriteImage(part, str(target), useCompression=True)


def test_segments_are_the_same_classes_as_in_the_label_maps(real_data, tmp_path):
    source = real_data / "Task04_Hippocampus"
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))[:CASES]
    for folder in ("plain", "slicer"):
        for kind in ("images", "labels"):
            (tmp_path / folder / kind).mkdir(parents=True)
    for number, name in enumerate(names):
        for folder in ("plain", "slicer"):
            shutil.copyfile(source / "imagesTr" / name, tmp_path / folder / "images" / name)
        shutil.copyfile(source / "labelsTr" / name, tmp_path / "plain" / "labels" / name)
        drawn_first = {"Anterior": 1, "Posterior": 2} if number % 2 else {"Posterior": 1, "Anterior": 2}
        write_segmentation(
            source / "labelsTr" / name,
            tmp_path / "slicer" / "labels" / name.replace(".nii.gz", ".seg.nrrd"),
            drawn_first,
        )
    plain, slicer = (discover_dataset(tmp_path / folder) for folder in ("plain", "slicer"))
    assert describe_dataset(slicer).startswith("6 labelled cases, 1 channel (channel_0), labels Anterior and Posterior")
    assert not [f for f in check_dataset(slicer, num_workers=1, reporter=SilentReporter()) if f.severity == "error"]
    expected, found = (take_fingerprint(each, num_workers=1, reporter=SilentReporter()) for each in (plain, slicer))
    assert found.cases == expected.cases
    assert found.intensities == expected.intensities
    assert [size.model_dump(exclude={"name"}) for size in found.class_sizes] == [
        size.model_dump(exclude={"name"}) for size in expected.class_sizes
    ]
