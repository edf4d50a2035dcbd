"""Tiny datasets in the real layouts of challenges, and predictions of their test images, from pieces of real volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from dicom_files import write_study
from pydicom.uid import MRImageStorage

from autoseg.data.discovery import discover_dataset
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import (
    image_ending,
    read_header,
    read_image,
    read_label_map,
    write_image,
    write_label_map,
)
from autoseg.run_folder import RunFolder
from autoseg.storage.atomic import save_document

SIDE = 6
"""Voxels of a piece along each axis."""
BRATS = Geometry(shape=(155, 240, 240), spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, -239.0, 0.0))
"""The template of BraTS until 2023, in LPS."""
FLAT = Geometry(shape=(1, SIDE, SIDE), spacing_mm=(1.0, 1.0, 1.0), dimensions=2, has_orientation=False)
"""Of a picture."""


@dataclass(frozen=True)
class Tiny:
    """How a challenge's folder looks: files of labelled cases and of test images, by number."""

    training: tuple[str, ...]
    """Images of a labelled case; ``{n:03}`` is its number."""
    label: str
    test: tuple[str, ...]
    numbers: Sequence[int]
    """Of the test images."""
    values: tuple[int, ...]
    labelled: Sequence[int] = (1, 2)
    others: tuple[str, ...] = ()
    """Other test images that do not belong to the challenge."""
    more_labels: tuple[str, ...] = ()
    """Other label files of a labelled case."""
    texts: dict[str, str] = field(default_factory=dict)
    """Text files, by the pattern of their path, for each test image."""
    grid: Geometry | None = None
    coarser: str = ""
    """In the name of images that lie on a grid of their own."""


FOLDERS = {
    "kits19": Tiny(
        ("data/case_{n:05}/imaging.nii.gz",),
        "data/case_{n:05}/segmentation.nii.gz",
        ("data/case_{n:05}/imaging.nii.gz",),
        range(210, 300),
        (0, 1, 2),
    ),
    "amos22-task1": Tiny(
        ("imagesTr/amos_{n:04}.nii.gz",),
        "labelsTr/amos_{n:04}.nii.gz",
        ("imagesVa/amos_{n:04}.nii.gz",),
        range(8, 108),
        tuple(range(16)),
        others=("imagesVa/amos_0507.nii.gz", "imagesTs/amos_0300.nii.gz"),
    ),
    "acdc": Tiny(
        ("training/patient{n:03}/patient{n:03}_frame01.nii.gz",),
        "training/patient{n:03}/patient{n:03}_frame01_gt.nii.gz",
        ("testing/patient{n:03}/patient{n:03}_frame01.nii.gz", "testing/patient{n:03}/patient{n:03}_frame12.nii.gz"),
        range(101, 151),
        (0, 1, 2, 3),
        texts={"testing/patient{n:03}/Info.cfg": "ED: 1\nES: 12\nGroup: NOR\n"},
    ),
    "promise12": Tiny(
        ("training_data/Case{n:02}.mha",),
        "training_data/Case{n:02}_segmentation.mha",
        ("test_data/Case{n:02}.mha",),
        range(30),
        (0, 1),
    ),
    "lits": Tiny(
        ("Training Batch 1/volume-{n}.nii",),
        "Training Batch 1/segmentation-{n}.nii",
        ("Test-Data/test-volume-{n}.nii",),
        range(70),
        (0, 1, 2),
    ),
    "segthor": Tiny(
        ("train/Patient_{n:02}/Patient_{n:02}.nii.gz",),
        "train/Patient_{n:02}/GT.nii.gz",
        ("test/Patient_{n:02}.nii.gz",),
        range(41, 61),
        (0, 1, 2, 3, 4),
    ),
    "btcv": Tiny(
        ("RawData/Training/img/img{n:04}.nii.gz",),
        "RawData/Training/label/label{n:04}.nii.gz",
        ("RawData/Testing/img/img{n:04}.nii.gz",),
        range(61, 81),
        tuple(range(14)),
    ),
    "flare23": Tiny(
        ("imagesTr2200/FLARE23_{n:04}_0000.nii.gz",),
        "labelsTr2200/FLARE23_{n:04}.nii.gz",
        ("validation/FLARE23Ts_{n:04}_0000.nii.gz",),
        (1, 2),
        tuple(range(15)),
    ),
    "flare24-task1": Tiny(
        ("Train-Labeled/KiTS23-488/case_{n:05}_0000.nii.gz",),
        "Train-Labeled/labelsTr/case_{n:05}.nii.gz",
        ("Validation-Hidden/FLARE24Val_{n:04}_0000.nii.gz",),
        (1, 2),
        (0, 1),
    ),
    "flare24-task3": Tiny(
        ("train_CT_gt_label/imagesTr/FLARE22_Tr_{n:04}_0000.nii.gz",),
        "train_CT_gt_label/labelsTr/FLARE22_Tr_{n:04}.nii.gz",
        ("validation/MRI_imagesVal/amos_{n:04}_0000.nii.gz",),
        (7296, 7297),
        tuple(range(14)),
    ),
    "crossmoda22": Tiny(
        ("training_source/crossmoda2022_etz_{n}_ceT1.nii.gz",),
        "training_source/crossmoda2022_etz_{n}_Label.nii.gz",
        ("validation/crossmoda2022_etz_{n}_hrT2.nii.gz",),
        (200, 201),
        (0, 1, 2),
    ),
    "hecktor22": Tiny(
        ("imagesTr/CHUM-{n:03}__CT.nii.gz", "imagesTr/CHUM-{n:03}__PT.nii.gz"),
        "labelsTr/CHUM-{n:03}.nii.gz",
        ("imagesTs/MDA-{n:03}__CT.nii.gz", "imagesTs/MDA-{n:03}__PT.nii.gz"),
        (3, 4),
        (0, 1, 2),
        coarser="__PT",
    ),
    "topcow24": Tiny(
        ("imagesTr/topcow_ct_{n:03}_0000.nii.gz",),
        "cow_seg_labelsTr/topcow_ct_{n:03}.nii.gz",
        ("imagesTs/topcow_mr_{n:03}_0000.nii.gz",),
        (126, 127),
        (0, 1, 12, 15),
    ),
    "abcs2020": Tiny(
        tuple(f"{{n:03}}_{c}.mha" for c in ("ct", "t1", "t2")),
        "{n:03}_labelmap_task1.mha",
        tuple(f"testing/{{n:03}}_{c}.mha" for c in ("ct", "t1", "t2")),
        range(46, 61),
        (0, 1, 2, 3, 4, 5),
    ),
    "isbi-ms-2015": Tiny(
        tuple(
            f"training/training{{n:02}}/preprocessed/training{{n:02}}_01_{c}_pp.nii"
            for c in ("flair", "mprage", "pd", "t2")
        ),
        "training/training{n:02}/masks/training{n:02}_01_mask1.nii",
        tuple(
            f"testdata_website/test{{n:02}}/preprocessed/test{{n:02}}_01_{c}_pp.nii"
            for c in ("flair", "mprage", "pd", "t2")
        ),
        (1, 2),
        (0, 1),
    ),
    "segrap25": Tiny(
        ("training/segrap_{n:04}/image.nii.gz", "training/segrap_{n:04}/image_contrast.nii.gz"),
        "training/segrap_{n:04}/GTVp.nii.gz",
        ("validation/segrap_{n:04}/image.nii.gz", "validation/segrap_{n:04}/image_contrast.nii.gz"),
        (120, 121),
        (0, 1),
        more_labels=("training/segrap_{n:04}/GTVnd.nii.gz",),
    ),
    "totalsegmentator": Tiny(
        ("s{n:04}/ct.nii.gz",),
        "s{n:04}/segmentations/liver.nii.gz",
        (),
        (),
        (0, 1),
        more_labels=("s{n:04}/segmentations/spleen.nii.gz",),
    ),
    "msd": Tiny(
        ("Task09_Spleen/imagesTr/spleen_{n}.nii.gz",),
        "Task09_Spleen/labelsTr/spleen_{n}.nii.gz",
        ("Task09_Spleen/imagesTs/spleen_{n}.nii.gz",),
        range(3, 23),
        (0, 1),
    ),
    "brats2021": Tiny(
        tuple(f"Training/BraTS2021_{{n:05}}/BraTS2021_{{n:05}}_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")),
        "Training/BraTS2021_{n:05}/BraTS2021_{n:05}_seg.nii.gz",
        tuple(f"Validation/BraTS2021_{{n:05}}/BraTS2021_{{n:05}}_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")),
        (1,),
        (0, 1, 2, 4),
        labelled=(2, 3),
        grid=BRATS,
    ),
    "brats2023-gli": Tiny(
        tuple(
            f"TrainingData/BraTS-GLI-{{n:05}}-000/BraTS-GLI-{{n:05}}-000-{c}.nii.gz"
            for c in ("t1n", "t1c", "t2w", "t2f")
        ),
        "TrainingData/BraTS-GLI-{n:05}-000/BraTS-GLI-{n:05}-000-seg.nii.gz",
        tuple(
            f"ValidationData/BraTS-GLI-{{n:05}}-000/BraTS-GLI-{{n:05}}-000-{c}.nii.gz"
            for c in ("t1n", "t1c", "t2w", "t2f")
        ),
        (1,),
        (0, 1, 2, 3),
        labelled=(2, 3),
        grid=BRATS,
    ),
}


@dataclass(frozen=True)
class Challenger:
    """A participant's folder of the challenge, and a run folder that holds its description and predictions."""

    folder: Path
    run: Path
    truth: Path
    """The label map that all predictions are."""

    @property
    def predictions(self) -> Path:
        return RunFolder(self.run).predictions


def write_tiny(root: Path, tiny: Tiny, real_data: Path) -> Path:
    """The folder of a challenge, with the voxels of two hippocampi; equal files are one file with several names."""
    source = real_data / "Task04_Hippocampus"
    sources = sorted((source / "imagesTr").glob("*.nii.gz"))[:2]
    labels = [source / "labelsTr" / path.name for path in sources]
    pieces = root.parent / f"{root.name} pieces"
    pieces.mkdir(parents=True)
    links: dict[tuple[str, int], Path] = {}

    def put(pattern: str, number: int, which: int, *, is_label: bool) -> None:
        path = root / pattern.format(n=number)
        ending = path.name[path.name.index(".") :]
        is_coarse = bool(tiny.coarser) and tiny.coarser in path.name
        key = (f"{is_label}{is_coarse}{ending}", which)
        if key not in links:
            links[key] = pieces / f"{which}{is_label}{is_coarse}{ending}"
            _piece((labels if is_label else sources)[which], links[key], tiny, is_label=is_label)
            if is_coarse:
                _coarsen(links[key])
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(links[key], path)

    for number, which in zip(tiny.labelled, cycle((0, 1)), strict=False):
        for pattern in tiny.training:
            put(pattern, number, which, is_label=False)
        for pattern in (tiny.label, *tiny.more_labels):
            put(pattern, number, which, is_label=True)
    for number, which in zip(tiny.numbers, cycle((0, 1)), strict=False):
        for pattern in tiny.test:
            put(pattern, number, which, is_label=False)
        for pattern, text in tiny.texts.items():
            (root / pattern.format(n=number)).write_text(text)
    for pattern in tiny.others:
        put(pattern, 0, 0, is_label=False)
    return root


def _piece(source: Path, path: Path, tiny: Tiny, *, is_label: bool) -> None:
    """A block of a real volume around its labels, on the challenge's grid if there is one; labels spread over its values."""
    whole = read_label_map(source).array if is_label else read_image(source).array[0]
    middle = tuple(slice(side // 2 - SIDE // 2, side // 2 + SIDE // 2) for side in whole.shape)
    piece = whole[middle]
    if is_label:
        numbers = np.arange(piece.size).reshape(piece.shape) + piece
        piece = np.asarray(tiny.values)[numbers % len(tiny.values)]
    grid = tiny.grid or Geometry(shape=piece.shape, spacing_mm=(3.0, 0.8, 0.8), origin_mm=(-12.5, 7.25, 100.0))
    if tiny.grid is not None:
        placed = np.zeros(grid.shape, piece.dtype)
        placed[tuple(slice(70, 70 + SIDE) for _ in range(3))] = piece
        piece = placed
    if is_label:
        write_label_map(path, piece, grid)
    else:
        write_image(path, piece.astype(np.float32), grid)


def _coarsen(path: Path) -> None:
    """Every second voxel of an image, on a grid that begins and ends elsewhere."""
    image = read_image(path)
    z, y, x = image.geometry.spacing_mm
    kept = image.array[0, 1::2, ::2, ::2]
    origin = tuple(np.add(image.geometry.origin_mm, (0.0, 0.0, z)).tolist())
    update = {"shape": kept.shape, "spacing_mm": (2 * z, 2 * y, 2 * x), "origin_mm": origin}
    path.unlink()
    write_image(path, kept, image.geometry.model_copy(update=update))


GREYS = (0, 63, 126, 189, 252)
"""Of the label pictures of CHAOS."""


def write_chaos(root: Path, real_data: Path) -> Path:
    """CHAOS as it is unpacked: DICOM series and label pictures, one patient to train on whose files run from the head down, one to test."""
    source = real_data / "Task04_Hippocampus"
    files = sorted((source / "imagesTr").glob("*.nii.gz"))[:4]
    places = [
        f"{kind}/MR/{number}/{s}"
        for kind, number in (("Train_Sets", 1), ("Test_Sets", 4))
        for s in ("T1DUAL", "T2SPIR")
    ]
    for number, (place, file) in enumerate(zip(places, files, strict=True)):
        middle = tuple(slice(side // 2 - SIDE // 2, side // 2 + SIDE // 2) for side in read_header(file).geometry.shape)
        voxels = read_image(file).array[0][middle].astype(np.int16)
        for phase in ("InPhase", "OutPhase") if place.endswith("T1DUAL") else ("",):
            tags = {
                "Modality": "MR",
                "SOPClassUID": MRImageStorage,
                "SeriesInstanceUID": f"1.2.{number + 1}{len(phase)}",
            }
            write_study(root / place / "DICOM_anon" / phase, voxels, plane=np.eye(3)[:2], reverse=number < 2, **tags)
        if number < 2:
            labels = (
                np.arange(voxels.size).reshape(voxels.shape) // 7
                + read_label_map(source / "labelsTr" / file.name).array[middle]
            ) % 5
            (root / place / "Ground").mkdir()
            for i, piece in enumerate(labels[::-1]):
                write_label_map(root / place / f"Ground/IMG-0004-{i + 1:05}.png", np.array(GREYS)[piece[None]], FLAT)
    return root


def make_challenger(root: Path, name: str | Tiny, real_data: Path) -> Challenger:
    """A challenge's folder as it comes, found without an option, and predictions of all its test images."""
    tiny = FOLDERS[name] if isinstance(name, str) else name
    folder = write_tiny(root / "dataset", tiny, real_data)
    dataset = discover_dataset(folder)
    run = RunFolder(root / "run")
    run.predictions.mkdir(parents=True)
    save_document(run.dataset, dataset)
    truth = folder / tiny.label.format(n=tiny.labelled[0])
    for case in dataset.test:
        os.link(truth, run.predictions / f"{case.case_id}{image_ending(truth)}")
    return Challenger(folder=folder, run=run.root, truth=truth)


def rewrite(path: Path, **update: Any) -> None:
    """Replace a label map, which may have other names, by one with another ``array`` or another grid."""
    found = read_label_map(path)
    path.unlink()
    array = np.asarray(update.pop("array", found.array))
    write_label_map(path, array, found.geometry.model_copy(update=update))
