"""Exported models: they predict what the run predicts, their JSON says all, and 8 bits are measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import onnx
import onnx_client
import pytest
import torch
from builders import Job
from typer.testing import CliRunner

import autoseg
from autoseg.cli import app
from autoseg.compute.device import set_threads
from autoseg.inference.exported import open_exported
from autoseg.inference.model import load_model
from autoseg.inference.predictor import Predictor
from autoseg.issues import AutosegError

CPU = torch.device("cpu")
FEW = 1e-5
"""Share of voxels whose label may change by another order of float32 sums."""


@pytest.fixture(scope="module")
def exported(finished: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run as graphs."""
    out = tmp_path_factory.mktemp("exported") / "phantom.onnx"
    autoseg.export(finished.root, out, threads=1)
    return out


@pytest.fixture(scope="module")
def images(real_data: Path) -> list[Path]:
    """A real image."""
    hippocampus = sorted((real_data / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))
    return hippocampus[:1]


def share_of_others(run: Path, exported: Path, images: list[Path], **how: object) -> float:
    set_threads(1)
    ours = Predictor(model=load_model(run, device=CPU))
    other = Predictor(model=load_model(exported, device=CPU, **how))  # type: ignore[arg-type]
    differ = voxels = 0
    for path in images:
        expected, found = (
            ours.predict_read(autoseg.read_image(path)).labels,
            other.predict_read(autoseg.read_image(path)).labels,
        )
        differ, voxels = differ + int((expected != found).sum()), voxels + found.size
        assert len(np.unique(found)) > 1  # else equality would mean nothing
    return differ / voxels


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_labels_are_those_of_the_run(finished: Job, exported: Path, images: list[Path], engine: str) -> None:
    assert {member.training.precision for member in load_model(finished.root, device=CPU).members} == {"float32"}
    assert share_of_others(finished.root, exported, images, engine=engine) <= FEW


def test_a_client_written_from_the_guide_finds_the_same(
    finished: Job, exported: Path, images: list[Path], tmp_path: Path
) -> None:
    """In another orientation and with another spacing, so that nothing of the JSON is left out."""
    nifti = nibabel.load(images[0])
    turned = nibabel.Nifti1Image(
        np.ascontiguousarray(nifti.get_fdata(dtype=np.float32)[:, ::-1].transpose(2, 0, 1)),
        np.diag([1.3, 0.9, 1.1, 1.0]),
    )
    turned.affine[:3, :3] = np.array([[0, 0.9, 0], [0, 0, -1.1], [1.3, 0, 0]])
    turned = nibabel.Nifti1Image(turned.get_fdata(dtype=np.float32), turned.affine)
    nibabel.save(turned, path := tmp_path / "turned.nii.gz")
    found = onnx_client.predict(exported, path)
    expected = Predictor(model=load_model(finished.root, device=CPU)).predict_read(autoseg.read_image(path)).labels
    assert found.shape == expected.shape
    assert (found != expected).mean() <= 1e-3  # its splines reach further than ours, whose far weights are cut at 1e-9
    assert len(np.unique(expected)) > 1


def test_nothing_of_cases_or_machine_is_in_it(finished: Job, exported: Path) -> None:
    content = b"".join(path.read_bytes() for path in exported.iterdir())
    for word in (str(finished.root), str(finished.dataset), "phantom_00", "site-packages", "autoseg/networks"):
        assert word.encode() not in content, word


def test_changed_graphs_and_lists_are_refused(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy.onnx"))
    graph = next(copy.glob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(AutosegError, match="SHA-256"):
        load_model(copy, device=CPU)
    about = json.loads((copy / "model.json").read_text())
    for change, told in (
        ({"graphs": about["graphs"][:1]}, "other graphs"),
        ({"graphs": [{**each, "file": "../" + each["file"]} for each in about["graphs"]]}, "file"),
    ):
        (copy / "model.json").write_text(json.dumps(about | change))
        with pytest.raises(AutosegError, match=told):
            load_model(copy, device=CPU)


def test_engines_are_for_exported_models_on_cpus(finished: Job, exported: Path) -> None:
    with pytest.raises(AutosegError, match="exported"):
        load_model(finished.root, device=CPU, engine="onnxruntime")
    with pytest.raises(AutosegError, match="--device cpu"):
        load_model(exported, device=torch.device("cuda"))
    one, all_folds = load_model(exported, device=CPU, num_folds=1), load_model(exported, device=CPU)
    assert (len(one.members[0].networks), len(all_folds.members[0].networks)) == (1, 2)
    assert len({one.key, all_folds.key, load_model(exported, device=CPU, engine="openvino").key}) == 3


def test_eight_bits_are_measured_and_told(job: Job, tmp_path: Path, images: list[Path]) -> None:
    out = tmp_path / "small.onnx"
    called = CliRunner().invoke(
        app, ["export", str(job.root), str(out), "--quantise", "int8", "--folds", "1", "--threads", "1"]
    )
    assert called.exit_code == 0, called.output
    plain, small = open_exported(out).measured
    assert (plain.precision, small.precision, plain.cases, small.cases) == ("float32", "int8", 2, 2)
    assert small.difference is not None
    assert small.dice == pytest.approx(plain.dice + small.difference.mean, abs=1e-6)
    assert "int8" in called.output
    assert "times as fast" in called.output
    operators = [node.op_type for node in onnx.load(next(out.glob("*.onnx"))).graph.node]
    assert "QuantizeLinear" in operators
    predictor = Predictor(model=load_model(out, device=CPU))
    assert predictor.predict_read(autoseg.read_image(images[0])).labels.shape == nibabel.load(images[0]).shape[::-1]


def test_eight_bits_need_a_run(exported: Path, tmp_path: Path) -> None:
    called = CliRunner().invoke(app, ["export", str(exported), str(tmp_path / "x"), "--cases", "5"])
    assert isinstance(called.exception, AutosegError)
    assert "--quantise" in str(called.exception)
    with pytest.raises(AutosegError, match="run folder"):
        autoseg.export(exported, tmp_path / "x", quantise="int8")
