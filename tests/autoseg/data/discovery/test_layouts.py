"""Folders in all common layouts are recognised, each with its cases, channels and labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_files import write_series

from autoseg.data.dataset import describe_dataset
from autoseg.data.discovery import discover_dataset
from autoseg.data.discovery.cases import MOST_VALUES
from autoseg.data.discovery.layouts import match_layout
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import frame_path, write_label_map
from autoseg.issues import AutosegError
from datasets_spec import load_known, load_layouts

GRID = Geometry(shape=(2, 3, 4), spacing_mm=(1.0, 1.0, 1.0))
FLAT = Geometry(shape=(1, 4, 6), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)


def grid_of(path: str) -> Geometry:
    return FLAT if path.endswith((".png", ".bmp", ".tif")) else GRID


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = grid_of(path.name)
    write_label_map(
        path, np.arange(np.prod(grid.shape), dtype=np.uint8).reshape(grid.shape), grid
    )  # whole numbers, as in PNG


def write_labels(path: Path, values: Iterable[int] = (0, 1)) -> None:
    """A label map in which ``values`` follow each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = grid_of(path.name)
    array = np.resize(np.array(list(values)), grid.shape)
    if path.name.endswith(".seg.nrrd"):
        write_slicer(path, array, {f"class {value}": value for value in values if value})
    else:
        write_label_map(path, array, grid)


def write_slicer(path: Path, array: np.ndarray, values: Mapping[str, int]) -> None:
    """A label map as 3D Slicer writes it, with segments of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8))
    for number, (name, value) in enumerate(values.items()):
        image.SetMetaData(f"Segment{number}_ID", f"Segment_{number}")
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
        image.SetMetaData(f"Segment{number}_Layer", "0")
    SimpleITK.WriteImage(image, str(path))


def write_folder(root: Path, *, images: Iterable[str], labels: Mapping[str, Iterable[int]] | Iterable[str]) -> Path:
    for image in images:
        if image.endswith("/"):
            write_series(root / image, GRID.shape, [1.0, 0, 0, 0, 1, 0])
        else:
            write_image(root / image)
    for label in labels:
        values = labels[label] if isinstance(labels, Mapping) else (0, 1)
        if label.endswith("/"):
            for z in range(GRID.shape[0]):
                write_labels(root / label / f"IMG-{z:03}.png", values)
        else:
            write_labels(root / label, values)
    return root


FOLDERS = {
    "msd": (["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"], ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"]),
    "nnunet": (
        ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"],
        ["labelsTr/a.nii.gz", "labelsTr/b.nii.gz"],
    ),
    "paired_folders": (["images/a.png", "images/b.png"], ["masks/a.png", "masks/b.png"]),
    "paired_folders ": (["img/a.nii.gz", "img/b.nii.gz"], ["gt/a_gt.nii.gz", "gt/b_gt.nii.gz"]),
    "paired_folders  ": (
        ["train/images/a.png", "train/images/b.png"],
        ["train/labels/a_mask.png", "train/labels/b_mask.png"],
    ),
    "paired_folders   ": (
        ["Images/train/a.nrrd", "Images/train/b.nrrd"],
        ["Labels/train/a.nrrd", "Labels/train/b.nrrd"],
    ),
    "paired_channels": (
        ["images/a_0000.nii.gz", "images/a_0001.nii.gz", "images/b_0000.nii.gz", "images/b_0001.nii.gz"],
        ["labels/a.nii.gz", "labels/b_seg.nii.gz"],
    ),
    "paired_prefixes": (
        ["img/img0001.nii.gz", "img/img0002.nii.gz"],
        ["label/label0001.nii.gz", "label/label0002.nii.gz"],
    ),
    "paired_prefixes ": (["volume-1.nii", "volume-12.nii"], ["segmentation-1.nii", "segmentation-12.nii"]),
    "case_folders": (
        ["p1/p1_flair.nii.gz", "p1/p1_t1.nii.gz", "p2/p2_flair.nii.gz", "p2/p2_t1.nii.gz"],
        ["p1/p1_seg.nii.gz", "p2/p2_seg.nii.gz"],
    ),
    "case_folders ": (["a/image.nrrd", "b/image.nrrd"], ["a/segmentation.nrrd", "b/segmentation.nrrd"]),
    "case_masks": (
        ["a/ct.nii.gz", "b/ct.nii.gz"],
        ["a/masks/liver.nii.gz", "a/masks/spleen.nii.gz", "b/masks/liver.nii.gz"],
    ),
    "case_masks ": (["a/img.nrrd"], ["a/structures/Liver.nrrd", "a/structures/Vessel.nrrd"]),
    "case_classes": (["a/CT.nrrd", "b/CT.nrrd"], ["a/liver.nrrd", "a/vessel.nrrd", "b/liver.nrrd"]),
    "case_classes ": (["a/a_IMG_CT.nrrd"], ["a/a_OAR_Brainstem.seg.nrrd", "a/a_OAR_Cochlea_L.seg.nrrd"]),
    "case_classes  ": (["a/image.nii.gz"], ["a/mask_liver.nii.gz", "a/mask_vessel.nii.gz"]),
    "named_masks": (["images/a.png", "images/b_1.png"], ["masks/a_cup.png", "masks/a_disc.png", "masks/b_1_disc.png"]),
    "named_masks ": (["a_ct.nii.gz", "b_ct.nii.gz"], ["a_left lung_seg.nii.gz", "b_left lung_seg.nii.gz"]),
    "named_masks  ": (["a.nii.gz", "ab.nii.gz"], ["a_liver.nii.gz", "ab_liver.nii.gz"]),
    "named_masks    ": (["a_1_IMG_MR_T1.nrrd"], ["a_1_OAR_Brainstem.seg.nrrd", "a_1_OAR_Parotid_R.seg.nrrd"]),
    "named_masks   ": (["images/a.png", "images/b.png"], ["cup/a.png", "label_disc/a.png", "label_disc/b.png"]),
    "paired_masks": (["images/a.png", "images/b.png"], ["masks/a/cup.png", "masks/a/disc.png", "masks/b/disc.png"]),
    "class_folders": (["images/a.png", "images/b.png"], ["masks/cup/a.png", "masks/disc/a.png", "masks/disc/b.png"]),
    "flat": (["a.nii.gz", "b_image.nii.gz"], ["a_seg.nii.gz", "b-label.nii.gz"]),
    "flat ": (["a.nrrd", "b.nrrd"], ["a.seg.nrrd", "b.seg.nrrd"]),
    "paired_folders    ": (["images/a.nrrd", "images/b.nrrd"], ["labels/a.seg.nrrd", "labels/b.seg.nrrd"]),
    "case_folders  ": (["a/ct.nrrd", "b/ct.nrrd"], ["a/Segmentation.seg.nrrd", "b/Segment editor.seg.nrrd"]),
    "flat_folders": (
        ["p1/v1.nii.gz", "p1/v2_image.nii.gz", "p2/v1.nii.gz", "test/v3.nii.gz"],
        ["p1/v1_seg.nii.gz", "p1/v2_label.nii.gz", "p2/v1_seg.nii.gz"],
    ),
    "case_folders   ": (
        ["train/a/a.nii.gz", "train/b/b.nii.gz", "test/c.nii.gz"],
        ["train/a/GT.nii.gz", "train/b/GT.nii.gz"],
    ),
    "flat_channels": (["a_0000.nii.gz", "a_0001.nii.gz"], ["a_label.nii.gz"]),
    "bids": (
        ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/ses-1/anat/sub-2_ses-1_T1w.nii.gz", "sub-3/anat/sub-3_T1w.nii.gz"],
        [
            "derivatives/labels/sub-1/anat/sub-1_T1w_seg.nii.gz",
            "derivatives/x/sub-2/ses-1/anat/sub-2_ses-1_T1w_seg.nii.gz",
        ],
    ),
    "bids_derivatives ": (  # VerSe
        ["rawdata/sub-v4/sub-v4_ct.nii.gz", "rawdata/sub-v5/sub-v5_split-a_ct.nii.gz"],
        [
            "derivatives/sub-v4/sub-v4_seg-vert_msk.nii.gz",
            "derivatives/sub-v5/sub-v5_split-a_seg-vert_msk.nii.gz",
        ],
    ),
    "bids_derivatives": (
        ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/ses-1/anat/sub-2_ses-1_run-1_T1w.nii.gz", "sub-3/anat/sub-3_T1w.nii.gz"],
        ["derivatives/x/sub-1/anat/sub-1_dseg.nii.gz", "derivatives/x/sub-2/ses-1/anat/sub-2_ses-1_run-1_dseg.nii.gz"],
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_recognised_by_what_is_in_it(name, tmp_path):
    images, labels = FOLDERS[name]
    write_folder(tmp_path, images=images, labels=labels)
    found = discover_dataset(tmp_path)
    assert found.layout == name.strip()
    assert {file.removeprefix(f"{tmp_path.resolve()}/") for case in found.training for file in case.label_files} == set(
        labels
    )
    used = {
        file.removeprefix(f"{tmp_path.resolve()}/") for case in (*found.training, *found.test) for file in case.images
    }
    assert used == set(images)
    assert not [issue for issue in found.issues if issue.severity == "error"]
    assert describe_dataset(found).endswith(next(each.title for each in load_layouts() if each.name == name.strip()))


def test_every_layout_that_comes_with_the_package_has_an_example():
    tested = {name.strip() for name in FOLDERS} | {
        "nnunet_list",
        "json_list",
        "table",
        "dicom",
        "dicom_cases",
        "dicom_studies",
    }
    assert {layout.name for layout in load_layouts()} == tested


def test_channels_of_case_folders_are_named_by_their_suffix(tmp_path):
    images, labels = FOLDERS["case_folders"]
    write_folder(tmp_path, images=[*images, "p1/p1_note.nii.gz"], labels=labels)
    found = discover_dataset(tmp_path)
    # what one case of three has alone is no channel
    write_folder(tmp_path, images=["p3/p3_flair.nii.gz", "p3/p3_t1.nii.gz"], labels=["p3/p3_seg.nii.gz"])
    found = discover_dataset(tmp_path)
    assert found.channels == ("flair", "t1")
    assert [len(case.images) for case in found.training] == [2, 2, 2]
    (note,) = found.issues
    assert (note.severity, note.code) == ("note", "layout.ignored_files")


def test_bids_keeps_a_patient_together_and_predicts_what_has_no_label(tmp_path):
    images, labels = FOLDERS["bids"]
    write_folder(tmp_path, images=images, labels=labels)
    found = discover_dataset(tmp_path)
    assert [case.group for case in found.training] == ["sub-1", "sub-2"]
    assert [case.case_id for case in found.test] == ["sub-3_T1w"]


BIDS_TABLES = {
    "derivatives/dseg.tsv": "index\tname\tcolor\n0\tbackground\t#000\n1\tcord\t#00f\n7\tlesion\t#f00\n9\tnerve\t#0f0\n",
    "derivatives/x/sub-2/desc-b_dseg.tsv": "index\tname\n1\tdisc\n",
    "derivatives/x/sub-3_dseg.tsv": "index\tname\n1\tbone\n",
    "derivatives/probseg.tsv": "index\tname\n1\tfat\n",
}


def test_classes_of_bids_have_the_names_of_their_tables(tmp_path):
    """Tables of other subjects, descriptions and kinds of file do not count."""
    images, labels = FOLDERS["bids_derivatives"]
    write_folder(tmp_path, images=images, labels={label: (0, 1, 7, 8) for label in labels})
    for name, content in BIDS_TABLES.items():
        (tmp_path / name).write_text(content)
    found = discover_dataset(tmp_path)
    assert [(each.name, found.file_values[each.values[0]]) for each in found.labels.classes] == [
        ("cord", 1),
        ("lesion", 7),
        ("label_8", 8),
    ]
    assert [case.group for case in found.training] == ["sub-1", "sub-2"]
    assert found.channels == ("T1w",)


def test_classes_that_share_a_name_get_their_values_however_others_are_called(tmp_path):
    images, labels = FOLDERS["bids_derivatives"]
    write_folder(tmp_path, images=images, labels={label: (0, 1, 7, 8) for label in labels})
    (tmp_path / "derivatives/dseg.tsv").write_text("index\tname\n1\tcord\n7\tcord\n8\tcord_7\n")
    assert [each.name for each in discover_dataset(tmp_path).labels.classes] == ["cord_1", "cord_7_7", "cord_7_8"]


def test_bids_tables_that_disagree_are_an_error_and_broken_ones_a_warning(tmp_path):
    images, labels = FOLDERS["bids_derivatives"]
    write_folder(tmp_path, images=images, labels=labels)
    (tmp_path / "derivatives/x/sub-1/anat/sub-1_dseg.tsv").write_text("index\tname\n1\tcord\n")
    (tmp_path / "derivatives/x/dseg.tsv").write_text("index\tname\n1\tcanal\n")
    (issue,) = discover_dataset(tmp_path).issues
    assert (issue.severity, issue.code) == ("error", "description.label_names_differ")
    assert Path(issue.where).name == "sub-1_dseg.tsv"
    (tmp_path / "derivatives/x/dseg.tsv").write_text("number,name\n1,canal\n")
    found = discover_dataset(tmp_path)
    assert [(i.code, Path(i.where).name) for i in found.issues] == [("description.label_table", "dseg.tsv")]
    assert "no column index" in found.issues[0].message
    assert [each.name for each in found.labels.classes] == ["cord"]
    (tmp_path / "derivatives/x/dseg.tsv").write_text(f"index\tname\n1\t{'a' * 200_000}\n")
    assert [issue.code for issue in discover_dataset(tmp_path).issues] == ["description.label_table"]


def test_ambiguous_folder_is_reported_with_a_fix(tmp_path):
    write_folder(
        tmp_path,
        images=["images/a.png", "images/b.png"],
        labels={"masks/a.png": (0, 1), "masks/b.png": (0, 1), "labels/a_0.png": (0, 1), "img_a.png": (0, 1)},
    )
    write_folder(tmp_path, images=["a.png", "b.png"], labels=["a_seg.png", "b_seg.png"])
    found = discover_dataset(tmp_path)
    notes = [issue for issue in found.issues if issue.code == "layout.ambiguous"]
    assert len(notes) == 1
    assert "--layout flat" in notes[0].fix
    assert discover_dataset(tmp_path, layout="flat").layout == "flat"


def test_unknown_layout_name_lists_the_names(tmp_path):
    write_folder(tmp_path, images=["a.png"], labels=["a_seg.png"])
    with pytest.raises(AutosegError, match=r"available: .*bids.*flat") as caught:
        discover_dataset(tmp_path, layout="flatt")
    assert caught.value.codes == ("layout.unknown",)


# --- lists ---


def write_list_folder(tmp_path):
    return write_folder(
        tmp_path, images=["x/1.nii.gz", "y/2.nii.gz", "y/3.nii.gz"], labels=["l/one.nii.gz", "l/two.nii.gz"]
    )


def check_list(found, layout):
    assert found.layout == layout
    assert [case.case_id for case in found.training] == ["1", "2"]
    assert [case.label.rpartition("/")[2] for case in found.training] == ["one.nii.gz", "two.nii.gz"]
    assert [case.case_id for case in found.test] == ["3"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_table_of_cases(tmp_path, delimiter):
    rows = [
        "image,label,patient,split",
        "x/1.nii.gz,l/one.nii.gz,p,train",
        "y/2.nii.gz,l/two.nii.gz,p,train",
        "y/3.nii.gz,,q,test",
    ]
    (write_list_folder(tmp_path) / "cases.csv").write_text("\n".join(rows).replace(",", delimiter))
    for source in (tmp_path, tmp_path / "cases.csv"):
        found = discover_dataset(source)
        check_list(found, "table")
        assert [case.group for case in found.training] == ["p", "p"]


def test_table_with_columns_for_channels_and_classes(tmp_path):
    write_list_folder(tmp_path)
    (tmp_path / "t.csv").write_text(
        "case,image_T1,image_T2,mask_liver,mask_spleen\nc,x/1.nii.gz,y/2.nii.gz,l/one.nii.gz,\n"
    )
    found = discover_dataset(tmp_path)
    assert found.channels == ("T1", "T2")
    # the only class there is: its files are label maps
    assert found.training[0].label.endswith("/one.nii.gz")
    assert [label.name for label in found.labels.classes] == ["liver"]


def test_json_list(tmp_path):
    write_list_folder(tmp_path)
    listed = {
        "training": [
            {"image": "x/1.nii.gz", "label": "l/one.nii.gz"},
            {"image": "./y/2.nii.gz", "label": "l/two.nii.gz"},
        ],
        "test": ["y/3.nii.gz"],
    }
    (tmp_path / "list.json").write_text(json.dumps(listed))
    check_list(discover_dataset(tmp_path), "json_list")
    check_list(discover_dataset(tmp_path / "list.json"), "json_list")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    check_list(discover_dataset(tmp_path), "json_list")
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path / "deep.json")
    assert "deep.json" in str(caught.value)


def test_explicit_list_of_nnunet(tmp_path):
    write_list_folder(tmp_path)
    cases = {
        "1": {"images": ["x/1.nii.gz"], "label": "l/one.nii.gz"},
        "2": {"images": ["y/2.nii.gz"], "label": "l/two.nii.gz"},
    }
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1},
                "file_ending": ".nii.gz",
                "dataset": cases,
            }
        )
    )
    found = discover_dataset(tmp_path)
    assert (found.layout, found.channels) == ("nnunet_list", ("CT",))
    assert [case.case_id for case in found.training] == ["1", "2"]


def test_faulty_entries_of_a_list_are_errors_with_their_line(tmp_path):
    write_list_folder(tmp_path)
    (tmp_path / "c.csv").write_text(
        "image,label\nx/1.nii.gz,l/one.nii.gz\nx/9.nii.gz,l/two.nii.gz\nx/1.nii.gz,l/two.nii.gz\n,l/x\n"
    )
    found = discover_dataset(tmp_path)
    assert [case.case_id for case in found.training] == ["1"]
    errors = [(issue.code, issue.where.rpartition(", ")[2]) for issue in found.issues if issue.severity == "error"]
    assert errors == [("list.missing_file", "line 3"), ("list.repeated_case", "line 4"), ("list.no_image", "line 5")]


def test_old_list_beside_the_folders_does_not_win(tmp_path):
    write_folder(tmp_path, images=["imagesTr/a.nii.gz"], labels=["labelsTr/a.nii.gz"])
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "modality": {"0": "MRI"},
                "labels": {"0": "background", "1": "x"},
                "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
            }
        )
    )
    found = discover_dataset(tmp_path)
    assert (found.layout, found.issues) == ("msd", ())


# --- public datasets ---

KNOWN = {
    "acdc": (
        [
            "training/patient001/patient001_frame01.nii.gz",
            "training/patient001/patient001_frame12.nii.gz",
            "training/patient002/patient002_frame01.nii.gz",
            "testing/patient101/patient101_frame01.nii.gz",
        ],
        [
            "training/patient001/patient001_frame01_gt.nii.gz",
            "training/patient001/patient001_frame12_gt.nii.gz",
            "training/patient002/patient002_frame01_gt.nii.gz",
            "testing/patient101/patient101_frame01_gt.nii.gz",
        ],
    ),
    "brats2021": (
        [f"BraTS2021_0000{n}/BraTS2021_0000{n}_{c}.nii.gz" for n in (0, 2) for c in ("flair", "t1", "t1ce", "t2")],
        [f"BraTS2021_0000{n}/BraTS2021_0000{n}_seg.nii.gz" for n in (0, 2)],
    ),
    "brats2023_gli": (
        [
            f"T/BraTS-GLI-{n}/BraTS-GLI-{n}-{c}.nii.gz"
            for n in ("00005-000", "00005-001", "00006-000")
            for c in ("t1n", "t1c", "t2w", "t2f")
        ],
        [f"T/BraTS-GLI-{n}/BraTS-GLI-{n}-seg.nii.gz" for n in ("00005-000", "00005-001", "00006-000")],
    ),
    "brats2020": (
        [
            f"T/{folder}/{folder.split('/')[-1]}_{c}.nii"
            for folder in ("LGG/BraTS19_TCIA09_141_1", "HGG/Brats18_2013_0_1", "BraTS20_Training_355")
            for c in ("flair", "t1", "t1ce", "t2")
        ],
        [
            "T/LGG/BraTS19_TCIA09_141_1/BraTS19_TCIA09_141_1_seg.nii",
            "T/HGG/Brats18_2013_0_1/Brats18_2013_0_1_seg.nii",
            "T/BraTS20_Training_355/W39_1998.09.19_Segm.nii",
        ],
    ),
    "brats2024_gli": (
        [
            f"T/BraTS-GLI-{n}/BraTS-GLI-{n}-{c}.nii.gz"
            for n in ("00005-100", "00005-101")
            for c in ("t1n", "t1c", "t2w", "t2f")
        ],
        {f"T/BraTS-GLI-{n}/BraTS-GLI-{n}-seg.nii.gz": (0, 1, 2, 3, 4) for n in ("00005-100", "00005-101")},
    ),
    "kits19": (
        [f"data/case_00{n}/imaging.nii.gz" for n in (209, 210)],
        ["data/case_00209/segmentation.nii.gz"],
    ),
    "kits23": (
        [f"dataset/case_0000{n}/imaging.nii.gz" for n in (1, 2)],
        [f"dataset/case_0000{n}/segmentation.nii.gz" for n in (1, 2)],
    ),
    "amos22": (["imagesTr/amos_0001.nii.gz", "imagesTs/amos_0002.nii.gz"], ["labelsTr/amos_0001.nii.gz"]),
    "drive": (
        ["training/images/21_training.tif", "training/mask/21_training_mask.png", "test/images/01_test.tif"],
        ["training/1st_manual/21_manual1.png"],
    ),
    "promise12": (["Case00.mhd", "Case01.mhd"], ["Case00_segmentation.mhd", "Case01_segmentation.mhd"]),
    "flare22": (["images/FLARE22_Tr_0001_0000.nii.gz"], ["labels/FLARE22_Tr_0001.nii.gz"]),
    "flare24_task1": (
        ["Train-Labeled/KiTS23-488/case_1_0000.nii.gz", "Validation-Hidden/FLARE24Val_0001_0000.nii.gz"],
        ["Train-Labeled/labelsTr/case_1.nii.gz"],
    ),
    "flare24_task3": (
        ["train_CT_gt_label/imagesTr/FLARE22_Tr_0001_0000.nii.gz", "validation/MRI_imagesVal/amos_7296_0000.nii.gz"],
        ["train_CT_gt_label/labelsTr/FLARE22_Tr_0001.nii.gz"],
    ),
    "totalsegmentator": (
        ["s0000/ct.nii.gz", "s0004/ct.nii.gz"],
        ["s0000/segmentations/liver.nii.gz", "s0004/segmentations/spleen.nii.gz"],
    ),
    "lits": (
        ["Training Batch 1/volume-0.nii", "Training Batch 2/volume-28.nii", "Test-Data/test-volume-0.nii"],
        ["Training Batch 1/segmentation-0.nii", "Training Batch 2/segmentation-28.nii"],
    ),
    "btcv": (
        ["RawData/Training/img/img0001.nii.gz", "RawData/Testing/img/img0061.nii.gz"],
        ["RawData/Training/label/label0001.nii.gz"],
    ),
    "hecktor22": (
        [f"{f}/CHUM-00{n}__{c}.nii.gz" for f, n in (("imagesTr", 1), ("imagesTs", 2)) for c in ("CT", "PT")],
        ["labelsTr/CHUM-001.nii.gz"],
    ),
    "crossmoda22": (
        ["training_source/crossmoda2022_etz_0_ceT1.nii.gz", "validation/crossmoda2022_etz_200_hrT2.nii.gz"],
        ["training_source/crossmoda2022_etz_0_Label.nii.gz"],
    ),
    "segrap_gtv": (
        [f"segrap_000{n}/{c}.nii.gz" for n in (0, 1) for c in ("image", "image_contrast")],
        [f"segrap_000{n}/{c}.nii.gz" for n in (0, 1) for c in ("GTVp", "GTVnd")],
    ),
    **{
        f"abcs2020_task{n}": (
            [f"{case}_{c}.mha" for case in ("001", "004") for c in ("ct", "t1", "t2")],
            [f"{case}_labelmap_task{n}.mha" for case in ("001", "004")],
        )
        for n in (1, 2)
    },
    "isbi_ms_2015": (
        [
            f"{f}/{case}/preprocessed/{case}_0{n}_{c}_pp.nii"
            for f, case in (("training", "training01"), ("testdata_website", "test01"))
            for n in (1, 2)
            for c in ("flair", "mprage", "pd", "t2")
        ],
        [f"training/training01/masks/training01_0{n}_mask{rater}.nii" for n in (1, 2) for rater in (1, 2)],
    ),
    "segthor": (
        ["train/Patient_01/Patient_01.nii.gz", "train/Patient_02/Patient_02.nii.gz", "test/Patient_41.nii.gz"],
        ["train/Patient_01/GT.nii.gz", "train/Patient_02/GT.nii.gz"],
    ),
    "isles22": (
        [
            f"sub-strokecase000{n}/ses-0001/{f}/sub-strokecase000{n}_ses-0001_{c}.nii.gz"
            for n in (1, 2)
            for f, c in (("dwi", "dwi"), ("dwi", "adc"), ("anat", "FLAIR"))
        ],
        [f"derivatives/sub-strokecase000{n}/ses-0001/sub-strokecase000{n}_ses-0001_msk.nii.gz" for n in (1, 2)],
    ),
    "topcow24": (
        [f"imagesTr/topcow_{m}_001_0000.nii.gz" for m in ("ct", "mr")],
        {f"cow_seg_labelsTr/topcow_{m}_001.nii.gz": (0, 1, 12, 15) for m in ("ct", "mr")},
    ),
    "chaos_mr": (
        [
            "MR/1/T1DUAL/DICOM_anon/InPhase/",
            "MR/1/T1DUAL/DICOM_anon/OutPhase/",
            "MR/1/T2SPIR/DICOM_anon/",
            "CT/2/DICOM_anon/",
        ],
        {
            **{f"MR/1/{sequence}/Ground/": (0, 63, 126, 189, 252) for sequence in ("T1DUAL", "T2SPIR")},
            "CT/2/Ground/": (0, 255),
        },
    ),
    "chaos_ct": (["Train_Sets/CT/2/DICOM_anon/", "Test_Sets/CT/3/DICOM_anon/"], {"Train_Sets/CT/2/Ground/": (0, 255)}),
    "toothfairy2": (["imagesTr/ToothFairy2F_001_0000.mha"], {"labelsTr/ToothFairy2F_001.mha": (0, 1, 18, 21, 48)}),
    "flare23": (
        ["imagesTr2200/FLARE23_0001_0000.nii.gz", "validation/FLARE23Ts_0001_0000.nii.gz"],
        {"labelsTr2200/FLARE23_0001.nii.gz": (0, 1, 14)},
    ),
    **{
        name: (
            [f"T/BraTS-{n}/BraTS-{n}-{c}.nii.gz" for n in cases for c in ("t1n", "t1c", "t2w", "t2f")],
            {f"T/BraTS-{n}/BraTS-{n}-seg.nii.gz": values for n in cases},
        )
        for name, cases, values in (
            ("brats2023", ("SSA-00002-000", "SSA-00007-000"), (0, 1, 2, 3)),
            ("brats2023_ped", ("PED-00001-000", "PED-00002-000"), (0, 1, 2, 3)),
            ("brats2024_ped", ("PED-00001-000", "PED-00002-000"), (0, 1, 2, 3, 4)),
            ("brats2025_met", ("MET-00001-000", "MET-00002-001"), (0, 1, 2, 3, 4)),
        )
    },
    "brats2024_men_rt": (
        [f"T/BraTS-MEN-RT-000{n}-1/BraTS-MEN-RT-000{n}-1_t1c.nii.gz" for n in (1, 2)],
        [f"T/BraTS-MEN-RT-000{n}-1/BraTS-MEN-RT-000{n}-1_gtv.nii.gz" for n in (1, 2)],
    ),
    **{
        name: ([f"imagesTr/{case}.nii.gz"], [f"labelsTr/{case}.nii.gz"])
        for name, case in {
            "msd_task01": "BRATS_001",
            "msd_task02": "la_003",
            "msd_task03": "liver_0",
            "msd_task04": "hippocampus_001",
            "msd_task05": "prostate_00",
            "msd_task06": "lung_001",
            "msd_task07": "pancreas_001",
            "msd_task08": "hepaticvessel_001",
            "msd_task09": "spleen_8",
            "msd_task10": "colon_001",
        }.items()
    },
}


def test_amos_with_labelled_validation_cases_in_its_own_list_is_amos(tmp_path):
    folders = [("Tr", "0001"), ("Tr", "0507"), ("Va", "0008"), ("Ts", "0002")]
    files = {side: f"images{side}/amos_{number}.nii.gz" for side, number in folders}
    write_folder(
        tmp_path,
        images=[f"images{side}/amos_{number}.nii.gz" for side, number in folders],
        labels=[f"labels{side}/amos_{number}.nii.gz" for side, number in folders[:3]],
    )
    listed = {
        key: [
            {"image": f"./images{side}/amos_{number}.nii.gz", "label": f"./labels{side}/amos_{number}.nii.gz"}
            for side, number in folders
            if side == of
        ]
        for key, of in (("training", "Tr"), ("validation", "Va"))
    }
    names = {"0": "background", **{str(value): f"organ {value}" for value in range(1, 16)}}
    content = {"modality": {"0": "CT"}, "labels": names, **listed, "test": [{"image": f"./{files['Ts']}"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = discover_dataset(tmp_path)
    assert (found.layout, found.channels) == ("amos22", ("CT or MR",))
    assert {case.case_id: case.modality for case in found.training} == {"amos_0001": "CT", "amos_0507": "MR"}
    assert {case.case_id for case in found.test} >= {"amos_0002"}


@pytest.mark.parametrize("layout", load_known(), ids=lambda layout: layout.name)
def test_public_dataset_is_recognised_by_its_names(layout, tmp_path):
    images, labels = KNOWN[layout.name]
    found = discover_dataset(write_folder(tmp_path, images=images, labels=labels))
    assert (found.layout, found.known) == (layout.name, layout.title)
    names = layout.channels.values() if isinstance(layout.channels, dict) else layout.channels
    assert found.channels == tuple(names)
    assert layout.known.licence
    assert layout.known.source
    # so few cases are a part of it, which is no fault
    assert {issue.severity for issue in found.issues if issue.code == "known.fewer_cases"} <= {"note"}


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "values", "layout", "is_sure"),
    [
        (["00003"], ["00210"], (0, 1, 2), "kits19", True),
        (["00003"], [], (0, 1, 2, 3), "kits23", True),
        (["00003", "00210"], [], (0, 1, 2), "kits23", True),
        (["00003", "00400"], [], (0, 1, 2), "kits23", True),
        (["00003", "00209"], [], (0, 1, 2), "kits19", False),
    ],
)
def test_public_datasets_of_the_same_names_are_told_apart(tmp_path, labelled, unlabelled, values, layout, is_sure):
    """The folder `data` of KiTS19 itself looks like KiTS23."""
    images = [f"case_{number}/imaging.nii.gz" for number in (*labelled, *unlabelled)]
    labels = {f"case_{number}/segmentation.nii.gz": values for number in labelled}
    found = discover_dataset(write_folder(tmp_path / "data", images=images, labels=labels))
    assert (found.layout, len(found.training), len(found.test)) == (layout, len(labelled), len(unlabelled))
    (*ambiguous,) = (issue for issue in found.issues if issue.code == "known.ambiguous")
    assert [issue.fix for issue in ambiguous] == ([] if is_sure else ["pass --layout kits23 if it is that dataset"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ED: 1\nES: 3\n", ["patient102_frame01", "patient102_frame03"]), ("ED: 1\n", [])],
)
def test_test_patients_of_acdc_may_have_a_4d_file_only(tmp_path, text, expected):
    write_folder(tmp_path, images=KNOWN["acdc"][0], labels=KNOWN["acdc"][1])
    for patient in ("patient101", "patient102"):
        file = tmp_path / "testing" / patient / f"{patient}_4d.nii.gz"
        file.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4)), file)
        (file.parent / "Info.cfg").write_text(text)
    for acdc in (discover_dataset(tmp_path), discover_dataset(tmp_path / "training")):
        assert [case.case_id for case in acdc.test] == ["patient101_frame01", *expected]
        assert [case.images for case in acdc.test[1:]] == [
            (str(frame_path(file, int(name[-2:]))),) for name in expected
        ]
        unread = [issue.where for issue in acdc.issues if issue.code == "dataset.no_volumes"]
        assert unread == ([] if expected else [str(file)])


def test_what_is_known_gives_names_regions_and_patients(tmp_path):
    acdc = discover_dataset(write_folder(tmp_path / "a", images=KNOWN["acdc"][0], labels=KNOWN["acdc"][1]))
    assert [case.group for case in acdc.training] == ["patient001", "patient001", "patient002"]
    assert [label.name for label in acdc.labels.classes] == ["right ventricle", "myocardium", "left ventricle"]
    assert [case.case_id for case in acdc.test] == ["patient101_frame01"]
    brats = discover_dataset(write_folder(tmp_path / "b", images=KNOWN["brats2021"][0], labels=KNOWN["brats2021"][1]))
    assert [path.rpartition("_")[2] for path in brats.training[0].images] == [
        "t1.nii.gz",
        "t1ce.nii.gz",
        "t2.nii.gz",
        "flair.nii.gz",
    ]
    assert brats.file_values == (0, 1, 2, 4)
    assert [brats.file_values[value] for value in brats.labels.region_order] == [2, 1, 4]
    kits = discover_dataset(write_folder(tmp_path / "k", images=KNOWN["kits23"][0], labels=KNOWN["kits23"][1]))
    assert kits.labels.region_order == (1, 3, 2)
    visits = discover_dataset(
        write_folder(tmp_path / "v", images=KNOWN["brats2023_gli"][0], labels=KNOWN["brats2023_gli"][1])
    )
    assert [case.group for case in visits.training] == ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00006"]


def test_other_labels_under_the_same_names_are_another_dataset(tmp_path):
    write_folder(tmp_path, images=["imagesTr/liver_0.nii.gz"], labels=["labelsTr/liver_0.nii.gz"])
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "left lobe", "2": "right lobe", "3": "vessel"}}
        )
    )
    found = discover_dataset(tmp_path)
    assert (found.layout, found.known) == ("msd", None)


def test_more_cases_than_a_public_dataset_has_are_a_warning(tmp_path):
    cases = [f"la_{number:03d}.nii.gz" for number in range(21)]
    write_labels(tmp_path / "labelsTr" / cases[0])
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for case in cases:
            (tmp_path / folder / case).write_bytes((tmp_path / "labelsTr" / cases[0]).read_bytes())
    warnings = [issue.code for issue in discover_dataset(tmp_path).issues if issue.severity == "warning"]
    assert warnings == ["known.more_cases"]


def test_the_real_hippocampus_is_known(real_data):
    found = discover_dataset(real_data / "Task04_Hippocampus")
    assert found.known == "Medical Segmentation Decathlon, Task04 Hippocampus"
    assert [issue.severity for issue in found.issues] == ["note"]


BRATS = ("t1", "t1ce", "t2", "flair")
TEST_FOLDERS = {
    "AMOS": (
        ["imagesTr/amos_0001.nii.gz", "imagesVa/amos_0008.nii.gz", "imagesTs/amos_0002.nii.gz"],
        ["labelsTr/amos_0001.nii.gz", "labelsVa/amos_0008.nii.gz"],
        ["amos_0002", "amos_0008"],
    ),
    "nnU-Net": (["imagesTr/a_0000.nii.gz", "imagesVal/c_0000.nii.gz"], ["labelsTr/a.nii.gz"], ["c"]),
    "FLARE21": (
        ["TrainingImg/train_000_0000.nii.gz", "ValidationImg/validation_001_0000.nii.gz"],
        ["TrainingMask/train_000.nii.gz"],
        ["validation_001"],
    ),
    "FLARE22": (
        ["images/FLARE22_Tr_0001_0000.nii.gz", "ValidationImg/FLARETs_0001_0000.nii.gz"],
        ["labels/FLARE22_Tr_0001.nii.gz"],
        ["FLARETs_0001"],
    ),
    "FLARE22 with numbers twice": (
        [
            "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz",
            "Tuning/images/FLARETs_0001_0000.nii.gz",
            "Testing/FLARETs_0001_0000.nii.gz",
        ],
        ["Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz", "Tuning/labels/FLARETs_0001.nii.gz"],
        ["Testing_FLARETs_0001", "Tuning_FLARETs_0001"],
    ),
    "KiTS19": (
        ["data/case_00001/imaging.nii.gz", "data/case_00210/imaging.nii.gz"],
        ["data/case_00001/segmentation.nii.gz"],
        ["case_00210"],
    ),
    "TestData": (["TrainingData/images/a.nii.gz", "TestData/images/c.nii.gz"], ["TrainingData/labels/a.nii.gz"], ["c"]),
    "flat TestData": (["images/a.nii.gz", "TestData/c.nii.gz"], ["labels/a.nii.gz"], ["c"]),
    "prefixes": (
        ["image-001.mhd", "test/image-001.mhd", "test/image-100.mhd"],
        ["labels-001.mhd"],
        ["001", "100"],
    ),
    "LiTS": (
        ["Training Batch 1/volume-0.nii", "LITS-Challenge-Test-Data/test-volume-0.nii"],
        ["Training Batch 1/segmentation-0.nii"],
        ["test-volume-0"],
    ),
    "BTCV": (["Training/img0001.nii.gz", "Testing/img/img0061.nii.gz"], ["Training/label0001.nii.gz"], ["0061"]),
    "flat": (
        ["p1.nii.gz", "p2.nii.gz", "test/p5.nii.gz"],
        ["p1_seg.nii.gz", "p2_seg.nii.gz", "test/p5_seg.nii.gz"],
        ["p5"],
    ),
    "flat channels": (
        ["p1_0000.nii.gz", "p1_0001.nii.gz", "test/p5_0000.nii.gz", "test/p5_0001.nii.gz"],
        ["p1_seg.nii.gz"],
        ["p5"],
    ),
    "PROMISE12": (
        ["TrainingData/Case01.mhd", "TestData/Case01.mhd"],
        ["TrainingData/Case01_segmentation.mhd"],
        ["Case01"],
    ),
    "unlabelled validation": (["train/images/a.png", "val/images/c.png"], ["train/masks/a.png"], ["c"]),
    "labelled validation": (
        ["train/images/a.png", "val/images/c.png", "test/images/d.png"],
        ["train/masks/a.png", "val/masks/c.png"],
        ["d"],
    ),
    "BraTS 2021": (
        [
            f"{name}/BraTS2021_0000{i}/BraTS2021_0000{i}_{channel}.nii.gz"
            for i, name in enumerate(["Training", "RSNA_ValidationData"])
            for channel in BRATS
        ],
        ["Training/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"],
        ["BraTS2021_00001"],
    ),
    "BraTS 2020 unpacked into a folder of its own": (
        [
            f"{folder}/BraTS20_{name}_001/BraTS20_{name}_001_{channel}.nii"
            for folder, name in (("MICCAI_TrainingData", "Training"), ("ValidationData/MICCAI", "Validation"))
            for channel in BRATS
        ],
        ["MICCAI_TrainingData/BraTS20_Training_001/BraTS20_Training_001_seg.nii"],
        ["BraTS20_Validation_001"],
    ),
    "BraTS 2020": (
        [
            f"MICCAI_BraTS2020_{name}Data/BraTS20_{name}_001/BraTS20_{name}_001_{channel}.nii.gz"
            for name in ("Training", "Validation")
            for channel in BRATS
        ],
        ["MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_seg.nii.gz"],
        ["BraTS20_Validation_001"],
    ),
}


@pytest.mark.parametrize("name", TEST_FOLDERS)
def test_test_and_validation_folders_hold_test_images(name, tmp_path):
    images, labels, expected = TEST_FOLDERS[name]
    write_folder(tmp_path, images=images, labels=labels)
    found = discover_dataset(tmp_path)
    assert sorted(case.case_id for case in found.test) == expected
    of_test = {Path(file).relative_to(tmp_path.resolve()).as_posix() for case in found.test for file in case.images}
    of_training = {Path(file).relative_to(tmp_path.resolve()).as_posix() for c in found.training for file in c.images}
    assert of_test.isdisjoint(of_training)
    assert of_test | of_training == set(images)
    assert not [issue for issue in found.issues if issue.severity == "error"]


def test_test_folders_beside_the_training_folder_are_found(tmp_path):
    images, labels, expected = TEST_FOLDERS["BraTS 2020"]
    write_folder(tmp_path, images=images, labels=labels)
    found = discover_dataset(tmp_path / "MICCAI_BraTS2020_TrainingData")
    assert [case.case_id for case in found.test] == expected
    assert all(Path(file).is_file() for case in found.test for file in case.images)
    assert [issue.severity for issue in found.issues if issue.code == "dataset.test_beside"] == ["note"]
    (tmp_path / "MICCAI_BraTS2020_TrainingData").rename(tmp_path / "mine")
    assert not discover_dataset(tmp_path / "mine").test


@pytest.mark.parametrize("layout", ["case_folders", "case_masks"])
def test_label_maps_are_no_channels_unless_a_spec_file_names_them(tmp_path, layout):
    """``combined_labels`` beside the masks of AbdomenAtlas; networks would learn to copy it."""
    images = [f"p{n}/{name}.nii.gz" for n in (1, 2) for name in ("ct", "gt_image")]
    labels = [f"p{n}/{name}.nii.gz" for n in (1, 2) for name in ("brain_mask_2", "masks/liver", "seg")]
    write_folder(tmp_path, images=images, labels=labels)
    for name in ("gt_image", "ct"):  # named like a label map, but without whole numbers
        for n in (1, 2):
            path = tmp_path / f"p{n}" / f"{name}.nii.gz"
            SimpleITK.WriteImage(SimpleITK.Cast(SimpleITK.ReadImage(path), SimpleITK.sitkFloat32) / 7, path)
    found = discover_dataset(tmp_path, layout=layout)
    assert found.channels == ("ct", "gt_image")
    ignored = {issue.where.rpartition("/")[2] for issue in found.issues if issue.code == "layout.ignored_files"}
    assert ignored == {"brain_mask_2.nii.gz"} | ({"seg.nii.gz"} if layout == "case_masks" else set())
    spec = tmp_path / "spec.toml"
    spec.write_text(f'schema_version = 1\nextends = "{layout}"\nchannels = ["ct", "brain_mask_2"]\n')
    assert discover_dataset(tmp_path, spec=spec).channels == ("ct", "brain_mask_2")


@pytest.mark.parametrize(("num_values", "is_channel"), [(MOST_VALUES, False), (MOST_VALUES + 1, True)])
def test_a_channel_named_like_a_label_map_is_one_if_it_has_many_values(tmp_path, num_values, is_channel):
    for case in "ab":
        write_image(tmp_path / case / "ct.nii.gz")
        write_labels(tmp_path / case / "seg.nii.gz", (0, 1))
        values = np.resize(np.arange(num_values, dtype=np.int16), (8, 8, 8))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), tmp_path / case / "annotated.nii.gz")
    assert ("annotated" in discover_dataset(tmp_path, layout="case_folders").channels) == is_channel


def test_label_maps_of_test_cases_are_no_leftovers(tmp_path):
    write_folder(tmp_path, images=["imagesTr/a.nii.gz", "imagesTs/b.nii.gz"], labels=["labelsTr/a.nii.gz"])
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "MR"}, "labels": {"0": "background", "1": "x"}}')
    write_folder(tmp_path, images=[], labels=["labelsTs/b.nii.gz"])
    assert discover_dataset(tmp_path).issues == ()
    write_folder(tmp_path, images=[], labels=["labelsTs/c.nii.gz", "raw/b.nii.gz"])
    (issue,) = discover_dataset(tmp_path).issues
    assert "labelsTs/c.nii.gz, raw/b.nii.gz" in issue.message


@pytest.mark.parametrize(
    ("image", "label", "others"),
    [
        ("Training Set/{0}AB/lgemri.nrrd", "Training Set/{0}AB/laendo.nrrd", ()),  # LA 2018
        (
            "Training_Input/ISIC_{0}.bmp",
            "Part1_GroundTruth/ISIC_{0}_segmentation.png",
            ("Training_Input/ISIC_{0}_x.png",),
        ),
        (
            "eyes/{0}_eye.tif",
            "vessels/{0}_manual1.png",
            ("field/{0}_view_mask_b.png", "test/{0}_manual1.png"),
        ),  # as in DRIVE
        (
            "source/crossmoda_{0}_ceT1.nii.gz",
            "source/crossmoda_{0}_Label.nii.gz",
            ("target/crossmoda_9{0}_hrT2.nii.gz",),
        ),
    ],
)
def test_the_spec_file_that_an_unknown_layout_is_refused_with_reads_it(tmp_path, image, label, others):
    root = tmp_path / "data"
    for case in ("21", "22", "23"):
        write_folder(root, images=[image.format(case)], labels=[label.format(case)])
        write_folder(root, images=[other.format(case) for other in others], labels=[])
    with pytest.raises(AutosegError) as caught:
        discover_dataset(root)
    lines = caught.value.issues[0].fix.partition("the spec file is\n")[2]
    (tmp_path / "spec.toml").write_text(lines)
    found = discover_dataset(root, spec=tmp_path / "spec.toml")
    assert [case.image_paths[0] for case in found.training] == [root / image.format(n) for n in ("21", "22", "23")]
    assert [case.label for case in found.training] == [str(root / label.format(n)) for n in ("21", "22", "23")]


def test_channels_without_labels_are_offered_no_spec_file(tmp_path):
    write_folder(
        tmp_path, images=[f"{case}/{name}.nrrd" for case in ("p1", "p2") for name in ("pre", "post")], labels=[]
    )
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert "[training]" not in caught.value.issues[0].fix


def test_a_folder_too_high_of_which_most_is_left_out_is_a_warning(tmp_path):
    for number in (1, 2):
        for place in ("Validation", "Training/Labeled", "Training/Unlabeled"):
            case = f"{place[-3:]}{number}"
            write_folder(
                tmp_path, images=[f"{place}/{case}/{case}_sa.nii.gz"], labels=[f"{place}/{case}/{case}_sa_gt.nii.gz"]
            )
    issue = next(issue for issue in discover_dataset(tmp_path).issues if issue.code == "layout.unused_files")
    assert issue.severity == "warning"
    assert f"pass {tmp_path / 'Training'} " in issue.fix


def test_images_that_fit_no_pattern_of_the_layout_are_named(tmp_path):
    images = ["data/volume-1.nii.gz", "other/test-volume-0.nii.gz", "more/.hidden/a.nii.gz"]
    write_folder(tmp_path, images=images, labels=["data/segmentation-1.nii.gz"])
    (issue,) = discover_dataset(tmp_path).issues
    assert (issue.code, issue.severity) == ("layout.unused_files", "note")
    assert "1 image file " in issue.message
    assert "other/test-volume-0.nii.gz" in issue.message


def test_masks_whose_names_differ_in_spelling_are_one_class_unless_a_case_has_both(tmp_path):
    images = [f"p{n}/ct.nii.gz" for n in (1, 2, 3)]
    labels = ["p1/masks/left_lung.nii.gz", "p2/masks/Left Lung.nii.gz", "p3/masks/left_lung.nii.gz"]
    write_folder(tmp_path, images=images, labels=labels)
    found = discover_dataset(tmp_path)
    assert [each.name for each in found.labels.classes] == ["left_lung"]
    assert [issue.code for issue in found.issues] == ["labels.spelling"]
    write_folder(tmp_path, images=[], labels=["p1/masks/Left Lung.nii.gz"])
    found = discover_dataset(tmp_path)
    assert [each.name for each in found.labels.classes] == ["Left Lung", "left_lung"]


@pytest.mark.parametrize("name", ["r1", "reader2", "1stHO", "2", "t2_anatomy_reader1"])
def test_masks_of_raters_are_no_classes(tmp_path, name):
    write_folder(tmp_path, images=["images/a.png"], labels=["masks/a_GTV-1.png"])
    assert [each.name for each in discover_dataset(tmp_path).labels.classes] == ["GTV-1"]
    (tmp_path / "masks" / "a_GTV-1.png").rename(tmp_path / "masks" / f"a_{name}.png")
    with pytest.raises(AutosegError):
        discover_dataset(tmp_path)


@pytest.mark.parametrize("name", ["Parotid_R", "pulmonary_V", "valve", "testis", "trainer", "predentary bone"])
def test_classes_whose_names_only_resemble_those_of_raters_and_versions_are_found(tmp_path, name):
    masks = [f"a/a_OAR_{each}.seg.nrrd" for each in ("Brainstem", name)]
    write_folder(tmp_path, images=["a/a_IMG_MR_T1.nrrd"], labels=masks)
    found = discover_dataset(tmp_path)
    assert {each.name for each in found.labels.classes} == {"OAR_Brainstem", f"OAR_{name}"}
    write_folder(tmp_path / "plain", images=["images/a.png"], labels=[f"masks/a_{name}.png"])
    assert [each.name for each in discover_dataset(tmp_path / "plain").labels.classes] == [name]


@pytest.mark.parametrize("more", [["p1/c_seg.nii.gz"], []])
def test_a_few_label_maps_among_other_things_are_not_cases_of_their_own(tmp_path, more):
    """As in the examples of a toolbox, by contrast."""
    labelled = ["p1/a", "p1/b", "p2/a"]
    images = [f"{name}.nii.gz" for name in (*labelled, "p3/x0", "p3/x1", "p3/x2")]
    write_folder(tmp_path, images=images, labels=[f"{name}_seg.nii.gz" for name in labelled])
    assert discover_dataset(tmp_path).layout == "flat_folders"
    write_folder(tmp_path, images=[] if more else ["p3/x3.nii.gz"], labels=more)
    assert discover_dataset(tmp_path).layout == "case_folders", "whose errors say what is wrong"


def test_masks_beside_something_else_are_told_with_the_spec_file_that_reads_them(tmp_path):
    write_folder(
        tmp_path,
        images=[f"p{n}/{name}.nii.gz" for n in (1, 2) for name in ("ct", "dose")],
        labels=["p1/left lung.nii.gz", "p2/left lung.nii.gz"],
    )
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    text = caught.value.issues[0].fix.partition("the spec file is")[2]
    assert r"class = 'dose|left\ lung'" in text
    spec = tmp_path / "spec.toml"
    spec.write_text(text.replace("dose|", ""))
    found = discover_dataset(tmp_path, spec=spec)
    assert (len(found.training), [each.name for each in found.labels.classes]) == (2, ["left lung"])


def test_a_folder_of_many_cases_is_no_case(tmp_path):
    names = [f"source/crossmoda_{n}" for n in (1, 2)]
    write_folder(tmp_path, images=[f"{n}_ceT1.nii.gz" for n in names], labels=[f"{n}_Label.nii.gz" for n in names])
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes[0] == "dataset.unrecognised"


@pytest.mark.parametrize(("below", "is_found"), [("a/b/c", True), ("a/b/c/d", False)])
def test_datasets_up_to_three_folders_below_are_suggested(tmp_path, below, is_found):
    images, labels = FOLDERS["msd"]
    root = write_folder(tmp_path / below, images=images, labels=labels)
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert (f"pass {root} instead" in caught.value.issues[0].fix) == is_found


def test_numbers_at_the_end_of_names_are_no_channels_if_label_maps_have_them_too(tmp_path):
    names = [f"frame_{number:04d}" for number in range(3)]
    write_folder(tmp_path, images=[f"images/{n}.png" for n in names], labels=[f"masks/{n}.png" for n in names])
    found = discover_dataset(tmp_path)
    assert [case.case_id for case in found.training] == names


def test_files_beside_an_image_are_masks_only_if_they_hold_one_value(tmp_path):
    write_folder(
        tmp_path, images=["a/ct.nii.gz", "b/ct.nii.gz"], labels={"a/notes.nii.gz": (0, 1, 2), "b/notes.nii.gz": (0, 1)}
    )
    with pytest.raises(AutosegError) as caught:
        discover_dataset(tmp_path)
    assert caught.value.codes[0] == "dataset.unlabelled"


def test_class_of_any_name_does_not_swallow_the_image(tmp_path):
    write_folder(tmp_path / "data", images=["a/CT.nrrd", "b/CT.nrrd"], labels=["a/liver.nrrd", "b/vessel.nrrd"])
    spec = tmp_path / "s.toml"
    spec.write_text('[training]\nimages = ["{case}/CT{ending}"]\nlabels = ["{case}/{class}{ending}"]\n')
    found = discover_dataset(tmp_path / "data", spec=spec)
    assert [label.name for label in found.labels.classes] == ["liver", "vessel"]
    assert [Path(case.images[0]).name for case in found.training] == ["CT.nrrd", "CT.nrrd"]


def test_images_to_predict_need_no_masks_beside_them(tmp_path):
    layout = next(each for each in load_layouts() if each.name == "case_classes")
    match = match_layout(tmp_path, layout, files=["a/CT.nrrd", "a/T1.nrrd"])
    assert [file.channel for file in match.images["a"]] == ["CT", "T1"]
    write_folder(tmp_path, images=["a/CT.nrrd", "a/T1.nrrd"], labels=[])
    assert not match_layout(tmp_path, layout).images
