"""Files that are not read are told by their ending or kind, with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.others import WAYS_OUT, unread_files
from autoseg.imaging.readers import image_endings
from autoseg.issues import AutosegError

LABELME = {"version": "5", "shapes": [], "imagePath": "a.png"}
COCO = {"images": [], "annotations": [], "categories": []}


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.MGHImage(np.zeros((2, 3, 4), np.float32), np.eye(4)), path)


def test_formats_that_are_read_are_not_listed() -> None:
    assert not WAYS_OUT.keys() & set(image_endings())


def test_folder_of_another_format_says_what_to_do(tmp_path: Path) -> None:
    for name in ("images/a.mgz", "images/b.mgz", "labels/a.mgz"):
        save(tmp_path / name)
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    (issue,) = caught.value.issues
    assert (issue.code, issue.severity) == ("dataset.foreign_format", "error")
    assert issue.message.startswith("3 .mgz files")
    assert issue.fix.startswith("convert the .mgz files, e.g. with nibabel")


def test_images_whose_labels_are_of_another_format_are_unlabelled(dataset: Path) -> None:
    (dataset / "labels" / "a.nii.gz").unlink()
    save(dataset / "labels" / "a.mgz")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(dataset)
    assert caught.value.codes[0] == "dataset.unlabelled"
    assert "1 .mgz file" in caught.value.issues[0].message


@pytest.mark.parametrize(("name", "severity"), [("b.mgz", "warning"), ("b.nii.zst", "warning"), ("b.npz", "note")])
def test_cases_of_another_format_are_said(tmp_path: Path, dataset: Path, name: str, severity: str) -> None:
    (dataset / "images" / name).touch()
    found = discover_dataset(dataset)
    assert [(i.code, i.severity) for i in found.issues] == [("dataset.foreign_format", severity)]


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("instances.json", json.dumps(COCO), "COCO"),
        ("labels/a.json", json.dumps(LABELME), "LabelMe"),
        ("labels/a.txt", "0 0.5 0.5 0.1 0.2\n1 0.1 0.1 0.2 0.1 0.3 0.3\n", "YOLO"),
        ("annotations/a.xml", "<annotation><object/></annotation>", "Pascal VOC"),
        ("via.json", json.dumps({"a.png12": {"filename": "a.png", "regions": []}}), "VIA"),
        ("via.json", json.dumps({"_via_settings": {}, "_via_img_metadata": {}}), "VIA"),
        ("via.csv", "filename,region_count,region_shape_attributes\na.png,0,{}\n", "VIA"),
        ("labels/a.geojson", json.dumps({"type": "FeatureCollection", "features": []}), "GeoJSON (QuPath)"),
        ("labels/a.json", json.dumps([{"type": "Feature", "geometry": {}}]), "GeoJSON (QuPath)"),
        ("annotations.xml", "<?xml version='1.0'?>\n<annotations><image/></annotations>", "CVAT"),
        ("train.csv", "ImageId,EncodedPixels\na,1 3 10 5\n", "run length"),
        ("boxes.csv", "filename,xmin,ymin,xmax,ymax,class\na,1,2,3,4,x\n", "box"),
        ("cases.csv", "patient,age\na,50\n", None),
        ("notes.txt", "0 cases are missing", None),
        ("bvals.txt", "0 1000 1000 1000 1000 1000", None),
        ("notes.json", '{"images": 3}', None),
        ("notes.xml", "<notes/>", None),
        ("broken.json", "{", None),
    ],
)
def test_annotations_are_said(dataset: Path, name: str, text: str, kind: str | None) -> None:
    (dataset / name).parent.mkdir(exist_ok=True)
    (dataset / name).with_stem("0").write_text("{}")
    (dataset / name).write_text(text)
    expected = [] if kind is None else [("labels.annotation_files", "note", True)]
    assert [(i.code, i.severity, f"of {kind} annotations" in i.message) for i in unread_files(dataset)] == expected
    assert len(discover_dataset(dataset).training) == 1


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 2
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / folder / "a.nii.gz")
    return tmp_path
