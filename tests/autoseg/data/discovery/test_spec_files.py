"""Every example of the guide to spec files does what the guide says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoseg.data.dataset import describe_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.data.labels import read_file_labels
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, write_label_map
from autoseg.issues import AutosegError

GUIDE = Path(__file__).parents[4] / "docs" / "guides" / "spec-files.md"
EXAMPLE = re.compile(
    r"```text\n(?P<files>.*?)```\n```toml\n(?P<spec>.*?)```\n(?:```csv\n(?P<table>.*?)```\n)?> (?P<said>.*?)\n", re.S
)
EXAMPLES = list(EXAMPLE.finditer(GUIDE.read_text()))


def write(path: Path, values: list[int], grid: Geometry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, np.resize(np.array(values), grid.shape), grid)


def write_files(root: Path, listed: str, real_data: Path) -> None:
    """The files of an example: ``PATH [VALUE ...]``; a folder becomes a real DICOM series."""
    grid = Geometry(shape=(3, 4, 5), spacing_mm=(1.0, 1.0, 1.0))
    if "/\n" in listed:
        series = real_data / "dicom_seg_ct3slice" / "ct-3slice"
        grid = read_header(series).geometry
    for line in listed.splitlines():
        name, *values = line.split()
        flat = Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
            for file in series.iterdir():
                shutil.copyfile(file, root / name / file.name)
        else:
            write(root / name, [int(value) for value in values] or [0, 1], flat if name.endswith(".png") else grid)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["said"])
def test_example_of_the_guide(example, tmp_path, real_data):
    folder = tmp_path / "data"
    write_files(folder, example["files"], real_data)
    if example["table"]:
        (folder / "cases.csv").write_text(example["table"])
    spec = tmp_path / "folder.toml"
    spec.write_text(example["spec"])
    found = discover_dataset(folder, spec=spec)
    assert describe_dataset(found).rpartition(": ")[0] == example["said"]
    issues = [each for each in found.issues if each.code != "layout.resampled_channels"]
    assert not issues or "dataset.json" in issues[0].where
    for case in found.training:
        values = np.unique(read_file_labels(case, found.coding).array)
        assert set(values.tolist()) <= set(found.file_values)


def test_guide_has_an_example_for_each_section():
    assert len(EXAMPLES) == GUIDE.read_text().count("```toml")
    assert len(EXAMPLES) >= 14


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[training]\nimages = 3\nlabels = ['{case}']", "training.images"),
        ("extends = 'nothing'", "layout 'nothing' does not exist (available: bids"),
        ("[training]\nimages = ['a{ending}']\nlabels = ['b{ending}']", "has no field {case}"),
        ("case_id = 'x'", "either training or listing"),
        ("[training]\nimages = ['{case}']\nlabels = ['{case}']\n[fields]\ncase = '['", "not a regular expression"),
        ("a = = 1", "line 1"),
        (f"a = {'[' * 100_000}", "recursion"),
    ],
)
def test_faulty_spec_is_refused_with_its_place(tmp_path, text, said):
    spec = tmp_path / "bad.toml"
    spec.write_text(text)
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path, spec=spec)
    assert caught.value.codes == ("spec.invalid",)
    assert said in caught.value.issues[0].message
    assert caught.value.issues[0].where.endswith("bad.toml")


def test_contradictory_labels_of_a_spec_are_reported(tmp_path):
    write(
        tmp_path / "a.png",
        [0, 1],
        Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False),
    )
    spec = tmp_path / "twice.toml"
    spec.write_text("case_id = 'x'\n[training]\nimages = ['b.png']\nlabels = ['a.png']\n[labels]\na = 1\nb = 1\n")
    shutil.copyfile(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path, spec=spec)
    assert caught.value.codes == ("description.labels",)


SPECS = Path(__file__).parents[3] / "real" / "specs"
FOLDERS = {
    "bids_mri": ("bids_ivadomed/mri", 3, ("seg-manual",), {"sub-unf01"}),
    "microscopy_png": (
        "bids_ivadomed/microscopy_png",
        5,
        ("seg-axon-manual", "seg-myelin-manual"),
        {"sub-rat2", "sub-rat3"},
    ),
    "spinalcord_sct": ("spinalcord_sct", 6, ("cord",), {None}),
    "dicom_seg_ct3slice": ("dicom_seg_ct3slice", 1, ("DARK_BLUE", "GREEN", "LIGHT_BLUE", "ORANGE", "PURPLE"), {None}),
    "ms_flair_thick": ("ms_flair_thick", 6, ("brain",), {"ms01", "ms03", "ms12"}),
    "ms_multichannel_thick": ("ms_multichannel_thick", 4, ("whole_brain", "lesion_change"), {"ms01", "ms03", "ms12"}),
    "wrong_brain_mask": ("dirty_ms/wrong_brain_mask", 1, ("brain",), {None}),
}


@pytest.mark.parametrize("spec", sorted(SPECS.glob("*.toml")), ids=lambda path: path.stem)
def test_ambiguous_real_folder_is_found_with_its_spec_file(spec, real_data):
    assert len(spec.read_text().splitlines()) <= 10
    folder, number, labels, patients = FOLDERS[spec.stem]
    found = discover_dataset(real_data / folder, spec=spec)
    assert len(found.training) == number
    assert tuple(label.name for label in found.labels.classes) == labels
    assert {case.group for case in found.training} == patients
    assert not [issue for issue in found.issues if issue.severity == "error"]


def test_patients_of_a_spec_that_are_not_there_are_a_warning(tmp_path):
    flat = Geometry(shape=(1, 4, 5), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
    for name in ("x/1.png", "y/1.png"):
        write(tmp_path / name, [0, 1], flat)
    spec = tmp_path / "groups.toml"
    spec.write_text(
        '[training]\nimages = ["x/{case}{ending}"]\nlabels = ["y/{case}{ending}"]\n[groups]\nanna = ["1", "l"]\n'
    )
    (issue,) = discover_dataset(tmp_path, spec=spec).issues
    assert (issue.severity, issue.code) == ("warning", "spec.unknown_case")
