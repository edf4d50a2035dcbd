"""Masks of classes in folders are paired, checked and scored each on its own, wherever the references keep theirs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.evaluation.mask_folders import evaluate_mask_folder, holds_masks
from autoseg.evaluation.metrics import EvaluatedClass, compare
from autoseg.imaging.image import Geometry
from autoseg.imaging.orientation import align_label_map
from autoseg.imaging.readers import read_header, read_label_map, read_segments, write_label_map
from autoseg.issues import AutosegError

GRID = Geometry(shape=(4, 5, 6), spacing_mm=(2.0, 1.0, 0.5), origin_mm=(10.0, -4.0, 7.0))
CLASSES = ("ball", "egg")


def masks(case: int, shift: int = 0) -> dict[str, np.ndarray]:
    """Two masks that overlap, 255 inside."""
    z, y, x = np.ogrid[:4, :5, :6]
    return {
        "ball": np.where((y + x - shift - case) % 4 < 2, 255, 0) * (z >= 0),
        "egg": np.where((y - x + shift) % 3 < 1, 255, 0) * (z > 0),
    }


def write_masks(folder: Path, pattern: str, shift: int, *, skip: frozenset[tuple[int, str]] = frozenset()) -> Path:
    """Masks of three cases under ``pattern``; 255 inside."""
    for case in range(3):
        for name, mask in masks(case, shift).items():
            path = folder / pattern.format(case=f"p{case}", name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if (case, name) not in skip:
                write_label_map(path, mask, GRID)
    return folder


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "predictions", "{case}/{name}.nii.gz", shift=1)


@pytest.mark.parametrize("pattern", ["{case}/{name}.nrrd", "{case}/segmentations/{name}.nii.gz", "{name}/{case}.mha"])
def test_each_class_is_scored_as_a_mask_of_its_own(predictions: Path, tmp_path: Path, pattern: str) -> None:
    references = write_masks(tmp_path / "references", pattern, shift=0)
    if pattern.startswith("{case}/seg"):  # the images of the dataset lie there, too
        for case in range(3):
            write_label_map(references / f"p{case}" / "ct.nii.gz", masks(case)["egg"], GRID)
    assert holds_masks(predictions)
    assert holds_masks(references)
    summary = evaluate_mask_folder(predictions, references)
    assert [each.name for each in summary.classes] == ["ball", "egg"]
    for case in range(3):
        found = summary.metric_per_case[case].metrics
        for number, name in enumerate(CLASSES, 1):
            whole = EvaluatedClass(name=name, values=(255,))
            expected = compare(masks(case, 1)[name], masks(case)[name], classes=[whole], spacing_mm=GRID.spacing_mm)
            assert found[str(number)] == expected[name]


def test_a_class_without_a_reference_is_absent_there(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0, skip=frozenset({(1, "egg")}))
    (absent,) = (case for case in evaluate_mask_folder(predictions, references).metric_per_case if case.case_id == "p1")
    assert (absent.metrics["2"].n_ref, absent.metrics["2"].dice) == (0, 0)
    assert absent.metrics["2"].n_pred == int((masks(1, 1)["egg"] > 0).sum())
    for name in CLASSES:
        (references / "p2" / f"{name}.nii.gz").unlink()
    absent = evaluate_mask_folder(predictions, references).metric_per_case[2]
    assert [absent.metrics[key].n_ref for key in "12"] == [0, 0]


def test_all_problems_come_in_one_list(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0)
    (predictions / "p0" / "egg.nii.gz").unlink()
    (predictions / "p1" / "ball.nii.gz").write_bytes(b"no image")
    shutil.rmtree(references / "p2")
    elsewhere = GRID.model_copy(update={"origin_mm": (90.0, -4.0, 7.0)})
    write_label_map(references / "p0" / "ball.nii.gz", masks(0)["ball"], elsewhere)
    with pytest.raises(AutosegError) as caught:
        evaluate_mask_folder(predictions, references)
    said = [str(problem).replace(str(tmp_path), "") for problem in caught.value.issues]
    assert len(said) == 4
    for words in (
        "predictions/p2: has no reference",
        "predictions/p0: has no mask of egg",
        "p1/ball.nii.gz: could not be read",
        "references/p0/ball.nii.gz: has origin",
    ):
        assert any(words in text for text in said), said


def test_label_maps_are_no_references_of_masks(predictions: Path, tmp_path: Path) -> None:
    for case in range(3):
        path = tmp_path / "references" / f"p{case}" / "seg.nii.gz"
        path.parent.mkdir(parents=True)
        write_label_map(path, masks(case)["ball"], GRID)
    with pytest.raises(AutosegError, match="holds no masks of ball, egg"):
        evaluate_mask_folder(predictions, tmp_path / "references")


def test_references_with_greys_need_the_threshold_of_the_dataset(predictions: Path, tmp_path: Path) -> None:
    references = write_masks(tmp_path / "references", "{case}/{name}.nii.gz", shift=0)
    grey = masks(0)["egg"]
    grey[1, 0, :3] = (120, 130, 140)
    write_label_map(references / "p0" / "egg.nii.gz", grey, GRID)
    with pytest.raises(AutosegError, match="greys between 0 and 255"):
        evaluate_mask_folder(predictions, references)
    scored = evaluate_mask_folder(predictions, references, threshold=128).metric_per_case[0].metrics["2"]
    assert scored.n_ref == int((grey >= 128).sum())


def test_real_segments_of_dicom_seg_are_references(real_data: Path, tmp_path: Path) -> None:
    """Masks written from a real DICOM SEG agree with it in every class, those that overlap, too."""
    source = real_data / "dicom_seg_ct3slice" / "partial_overlaps.dcm"
    image = read_header(source.parent / "ct-3slice").geometry
    (tmp_path / "predictions" / "p").mkdir(parents=True)
    (tmp_path / "references").mkdir()
    shutil.copyfile(source, tmp_path / "references" / "p.dcm")
    names = {segment.number: segment.name for segment in read_segments(source).segments}
    for number, name in names.items():
        mask = align_label_map(read_label_map(f"{source}#{number}"), image)
        write_label_map(tmp_path / "predictions" / "p" / f"{name}.nii.gz", mask, image)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "predictions"), str(tmp_path / "references")])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line.split() and line.split()[0] in names.values()]
    assert {line[0]: line[1] for line in lines} == dict.fromkeys(names.values(), "1.000")
