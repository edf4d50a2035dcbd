"""Predictions of DICOM series as DICOM objects, and what every folder of predictions says of where they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from builders import Job as FinishedJob
from builders import Listening
from dicom_files import write_study
from numpy.typing import NDArray
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.imaging.readers import read_image
from autoseg.inference.bundle import open_bundle
from autoseg.issues import AutosegError
from autoseg.run_folder import find_model
from autoseg.storage.journal import Entry

PLANE = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@dataclass(frozen=True)
class Clinic:
    model: Path
    scans: Path
    out: Path
    reporter: Listening = field(default_factory=Listening)

    @property
    def series(self) -> Path:
        return self.scans / "patient"

    def predict(self, source: Path, out: Path | None = None, **options: Any) -> list[Path]:
        how = {"device": "cpu", "threads": 1, "mirroring": False, "reporter": self.reporter, **options}
        return autoseg.predict(self.model, source, out or self.out, **how)

    def entry(self, out: Path | None = None) -> Entry:
        _, line = filter(None, ((out or self.out) / "predictions.jsonl").read_text().split("\n"))
        return Entry.model_validate_json(line)


@pytest.fixture
def clinic(finished: FinishedJob, tmp_path: Path) -> Clinic:
    image = sorted((finished.dataset / "imagesTr").glob("*.nii.gz"))[0]
    array = read_image(image).array[0]
    scaled = (array * (1000 / np.abs(array).max())).astype(np.int16)
    write_study(tmp_path / "scans" / "patient", scaled[12:20, 4:28, 2:30], plane=PLANE, Modality="OT")
    return Clinic(model=finished.root, scans=tmp_path / "scans", out=tmp_path / "out")


def segments(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Numbers of segments by highdicom, as an array and its affine in RAS as nibabel has them."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, rescale_fractional=False)
    return volume.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine


def test_segments_lie_where_the_label_map_does(clinic: Clinic) -> None:
    (label_map,) = clinic.predict(clinic.series)
    plain = nibabel.load(label_map)
    expected = np.asarray(plain.dataobj)
    assert len(np.unique(expected)) > 2
    for kind in ("dicom-seg", "dicom-labelmap"):
        (path,) = clinic.predict(clinic.series, clinic.out / kind, kind=kind)
        assert path == clinic.out / kind / "patient.dcm"
        array, affine = segments(path)
        places = np.argwhere(array)
        moved = np.linalg.solve(plain.affine, affine @ np.column_stack([places, np.ones(len(places))]).T)[:3].T
        assert np.abs(moved - np.rint(moved)).max() < 1e-3
        assert np.count_nonzero(expected) == len(places)
        assert np.array_equal(expected[tuple(np.rint(moved).astype(int).T)], array[tuple(places.T)])


def test_objects_are_kept_as_they_are_on_the_second_call(clinic: Clinic) -> None:
    (path,) = clinic.predict(clinic.scans, kind="rtstruct")
    before = path.read_bytes()
    assert clinic.predict(clinic.scans, kind="rtstruct") == [path]
    assert path.read_bytes() == before
    assert clinic.reporter.lines[-1] == "0 predicted, 1 already there"
    tags = pydicom.dcmread(path)
    tags.StructureSetName = "corrected"
    tags.save_as(path)
    clinic.predict(clinic.scans, kind="rtstruct")
    assert pydicom.dcmread(path).StructureSetName == "corrected"
    path.write_bytes(before[:2000])
    clinic.predict(clinic.scans, kind="rtstruct")
    assert pydicom.dcmread(path).StructureSetName == "autoseg Phantom"
    assert (clinic.out / "volumes.csv").read_text().startswith("case,")
    for other in ({"kind": "dicom-seg"}, {}):
        with pytest.raises(AutosegError) as caught:
            clinic.predict(clinic.scans, **other)
        assert caught.value.codes == ("predict.other_model",)


def test_what_is_no_series_is_refused_before_anything_is_predicted(clinic: Clinic, finished: FinishedJob) -> None:
    image = sorted((finished.dataset / "imagesTr").glob("*.nii.gz"))[0]
    (clinic.scans / image.name).write_bytes(image.read_bytes())
    write_study(
        clinic.scans / "torn", np.zeros((4, 20, 20), np.int16), plane=PLANE, leave_out=(1,), SeriesInstanceUID="1.2.7"
    )
    with pytest.raises(AutosegError) as caught:
        clinic.predict(clinic.scans, kind="dicom-seg")
    assert sorted(caught.value.codes) == ["dicom.no_series", "dicom.uneven_slices"]
    assert not clinic.out.exists()
    assert clinic.predict(clinic.scans, kind="dicom-seg", skip_bad=True) == [clinic.out / "patient.dcm"]
    with pytest.raises(AutosegError) as caught:
        clinic.predict(read_image(image), clinic.out / "a.dcm", kind="dicom-seg")  # type: ignore[arg-type]
    assert caught.value.codes == ("dicom.no_series",)


def test_one_object_as_a_file(clinic: Clinic) -> None:
    for name, kind in (("a.dcm", None), ("a.nii.gz", "dicom-seg")):
        with pytest.raises(AutosegError) as caught:
            clinic.predict(clinic.series, clinic.out / name, kind=kind)
        assert caught.value.codes == ("predict.one_file",)
    assert clinic.predict(clinic.series, clinic.out / "a.dcm", kind="dicom-seg") == [clinic.out / "a.dcm"]
    assert pydicom.dcmread(clinic.out / "a.dcm").Modality == "SEG"


def test_own_codes_come_before_those_of_the_package(clinic: Clinic, tmp_path: Path) -> None:
    table = tmp_path / "terms.csv"
    table.write_text("name,category,scheme,code,meaning,colour\nRING,abnormality,SCT,4147007,Mass,#102030\n")
    runner = CliRunner()
    call = ["predict", str(clinic.model), str(clinic.series), str(clinic.out), "--device", "cpu", "--no-mirroring"]
    result = runner.invoke(app, [*call, "--as", "dicom-seg", "--terms", str(table)])
    assert result.exit_code == 0, result.output
    segments = pydicom.dcmread(clinic.out / "patient.dcm").SegmentSequence
    (found,) = (each for each in segments if each.SegmentLabel == "ring")
    assert found.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Mass"
    assert runner.invoke(app, [*call, "--as", "pdf"]).exit_code == 1


def test_each_case_has_a_line_that_says_where_it_came_from(clinic: Clinic) -> None:
    (label_map,) = clinic.predict(clinic.series)
    entry, model = clinic.entry(), open_bundle(find_model(clinic.model))
    assert entry.item == "patient"
    assert {each.path: each.sha256 for each in entry.inputs} == {
        file.name: sha256(file.read_bytes()).hexdigest() for file in clinic.series.iterdir()
    }
    assert [(each.path, each.sha256) for each in entry.files] == [
        ("patient.nii.gz", sha256(label_map.read_bytes()).hexdigest())
    ]
    made = entry.provenance
    assert made is not None
    assert (made.version, made.model) == (autoseg.__version__, model.key)
    assert made.options["mirroring"] == "off"
    assert made.options["device"].startswith("CPU")
    assert 0 < made.seconds < 600
    assert made.peak_memory_bytes is None or made.peak_memory_bytes > 2**20
    assert made.flags == ()
    description = bytes(nibabel.load(label_map).header["descrip"]).rstrip(b"\0").decode()
    assert description == f"autoseg {autoseg.__version__}, model {model.key[:16]}"


def test_flags_say_what_of_an_image_is_unlike_training(clinic: Clinic) -> None:
    wide = {"PixelSpacing": [9.0, 9.0]}
    bright = np.full((8, 20, 20), 900, np.int16)
    bright[:, :2] = 0
    flags = {"bright": {"predict.far_from_training", "predict.unlike_training"}}
    flags["constant"] = {"image.constant", "predict.far_from_training"}  # its voxels can say nothing more
    for name, array in {"bright": bright, "constant": np.zeros_like(bright)}.items():
        series = write_study(clinic.scans.parent / name, array, plane=PLANE, **wide)
        clinic.predict(series, clinic.out / name, kind="dicom-seg")
        made = clinic.entry(clinic.out / name).provenance
        assert made is not None
        assert set(made.flags) == flags[name]


def test_label_maps_have_the_same_bytes_each_time(clinic: Clinic) -> None:
    first, second = (clinic.predict(clinic.series, clinic.out / name)[0].read_bytes() for name in "ab")
    assert first == second
