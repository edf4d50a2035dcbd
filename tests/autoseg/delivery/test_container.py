"""A container is complete, and its program reads, predicts and writes as the platform wants it, both ways."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from autoseg import api
from autoseg.delivery.container.context import (
    ContainerWishes,
    assign_channels,
    find_table,
    image_config,
    read_program,
    requirements,
    value_issues,
)
from autoseg.delivery.container.program import (
    choose_interface,
    find_work,
    load_container,
    make_server,
    read_channels,
    read_sockets,
    run_task,
)
from autoseg.delivery.container.rules import lay_out, output_issues, strays
from autoseg.imaging.image import Geometry
from autoseg.imaging.readers import read_header, read_image, read_label_map, write_image, write_label_map, write_masks
from autoseg.inference.bundle import open_bundle
from autoseg.issues import AutosegError
from datasets_spec.container import Input, Interface, Output, load_container_tables, read_container_table
from planners import DocumentError

TABLE = """
schema_version = 1
name = "phantom"
title = "Phantom"
source = "this test"
memory_gb = 2

[[interfaces]]
inputs = [{ slug = "t1-brain-mri", path = "images/t1-brain-mri" }, { slug = "about", path = "about.json" }]
outputs = [
  { slug = "stroke-lesion-segmentation", path = "images/stroke-lesion-segmentation", values = [1], remap = { 2 = 1 } },
  { slug = "lesion-probability-map", path = "images/lesion-probability-map", kind = "probability" },
  { slug = "both", path = "images/both", kind = "masks", num_masks = 2 },
  { slug = "told", path = "told.json", kind = "json", value = false },
]
"""
GRID = Geometry(shape=(3, 4, 5), spacing_mm=(2.0, 1.0, 0.5), origin_mm=(1.0, 2.0, 3.0))


@pytest.fixture(scope="module")
def context(finished, tmp_path_factory) -> Path:
    """A build context with the finished model; not to be changed."""
    folder = tmp_path_factory.mktemp("containers")
    (folder / "table.toml").write_text(TABLE)
    lines = api.container(finished.root, folder / "made", interface=str(folder / "table.toml"), num_folds=1, tag="team")
    assert "Note: told.json is always false: it is not predicted" in lines
    return folder / "made"


def lay(context: Path, root: Path, images: list[Path]) -> None:
    """A root folder as the program sees it, with a case of these images."""
    shutil.rmtree(root / "input", ignore_errors=True)
    (root / "input").mkdir(parents=True)
    (root / "output").mkdir(exist_ok=True)
    (root / "opt/ml").mkdir(parents=True, exist_ok=True)
    if not (root / "opt/ml/model").exists():
        (root / "opt/ml/model").symlink_to(context / "model")
    lay_out(read_program(context), 0, "patient", images, root / "input")


def test_the_context_has_all_that_docker_needs(context, finished):
    names = {path.name for path in context.iterdir()}
    scripts = {"do_build.sh", "do_test_run.sh", "do_save.sh"}
    assert names == {
        *scripts,
        "Dockerfile",
        ".dockerignore",
        "README.md",
        "requirements.txt",
        "app",
        "model",
        "model.tar.gz",
        "test",
    }
    assert all(os.access(context / name, os.X_OK) for name in scripts)
    for name in scripts:
        assert subprocess.run(["bash", "-n", context / name], check=False).returncode == 0
    with tarfile.open(context / "model.tar.gz") as archive:
        assert [(member.name, member.mtime, member.uid) for member in archive] == [("model.zip", 0, 0)]
    about = open_bundle(context / "model" / "model.zip").description
    assert about.selection.folds == (0,)  # of two, as was asked for
    assert not about.dataset.training
    dockerfile = (context / "Dockerfile").read_text()
    for line in (
        "--platform=linux/amd64",
        "USER 1000:1000",
        'LABEL org.grand-challenge.api-method="invoke"',
        "EXPOSE 4743",
    ):
        assert line in dockerfile
    # nothing in the image is left of this machine
    assert str(finished.root) not in "".join(
        path.read_text() for path in context.glob("*") if path.suffix in (".sh", ".md")
    )
    assert not list((context / "app").rglob("__pycache__"))


def test_packages_are_pinned_to_what_is_installed():
    lines = requirements().splitlines()
    pins = dict(line.split("==") for line in lines)
    assert pins["numpy"] == version("numpy")
    assert pins["torch"] == version("torch").partition("+")[0]
    assert {"simpleitk", "pydantic", "pynrrd", "scipy"} <= pins.keys()
    assert not {"autoseg", "pytest", "mlflow-skinny"} & pins.keys()  # itself, and extras


def test_exec_writes_every_output_in_the_geometry_of_the_image(context, finished, tmp_path):
    (image, *_) = sorted((finished.dataset / "imagesTs").glob("*.nii.gz"))
    lay(context, tmp_path, [image])
    words = [sys.executable, "-m", "autoseg.delivery.container.program", "exec", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(context / "app"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "output"
    assert output_issues(read_program(context).table, 0, "patient", out, read_header(image).geometry) == []
    assert json.loads((out / "told.json").read_text()) is False
    labels = SimpleITK.ReadImage(out / "images/stroke-lesion-segmentation/output.mha")
    source = SimpleITK.ReadImage(image)
    assert labels.GetPixelID() == SimpleITK.sitkUInt8
    for of in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(labels, of)() == pytest.approx(getattr(source, of)())
    scores = SimpleITK.ReadImage(out / "images/lesion-probability-map/output.mha")
    assert scores.GetPixelID() == SimpleITK.sitkFloat32
    masks = SimpleITK.ReadImage(out / "images/both/output.mha")
    assert (masks.GetDimension(), masks.GetSize()[3], masks.GetSpacing()[3]) == (4, 2, 1.0)
    # the label map is that of autoseg predict, and the others agree with it
    (predicted,) = api.predict(context / "model/model.zip", image, tmp_path / "plain", device="cpu", threads=1)
    truth, both = read_label_map(predicted).array, SimpleITK.GetArrayFromImage(masks)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(labels), truth > 0)
    np.testing.assert_array_equal(both, np.stack([truth == 1, truth == 2]))


def test_invoke_serves_case_after_case_and_outlives_a_broken_one(context, finished, tmp_path, caplog):
    container = load_container(tmp_path, home=prepared(context, finished, tmp_path), threads=1)
    server = make_server(container, port=0)

    def ask(method: str, path: str) -> int:
        """The status of a call; the system keeps what is sent until the server answers."""
        call = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=600)
        call.request(method, path)
        server.handle_request()
        status = call.getresponse().status
        call.close()
        return status

    images = sorted((finished.dataset / "imagesTs").glob("*.nii.gz"))
    try:
        assert [ask("GET", "/health"), ask("GET", "/"), ask("POST", "/predict")] == [200, 404, 404]
        assert ask("POST", "/invoke") == 201
        broken = read_image(images[0])
        voxels = broken.array[0].copy()
        voxels[0] = np.nan
        write_image(tmp_path / "broken.mha", voxels, broken.geometry)
        lay(context, tmp_path, [tmp_path / "broken.mha"])
        assert ask("POST", "/invoke") == 500
        lay(context, tmp_path, images[1:2])
        assert ask("POST", "/invoke") == 201
    finally:
        server.server_close()
    assert "patient.mha: failed" in caplog.text
    # an empty label map by choice, on the right grid and with a loud line
    lay(context, tmp_path, [tmp_path / "broken.mha"])
    lenient = replace(container, program=container.program.model_copy(update={"empty_if_failing": True}))
    assert run_task(lenient) == 1
    assert "EMPTY LABEL MAP for patient.mha" in caplog.text
    assert output_issues(container.program.table, 0, "patient", tmp_path / "output", broken.geometry) == []
    assert not read_label_map(tmp_path / "output/images/stroke-lesion-segmentation/output.mha").array.any()


def prepared(context: Path, finished, root: Path) -> Path:
    """A root folder with the first test image laid down; the folder of the program."""
    lay(context, root, sorted((finished.dataset / "imagesTs").glob("*.nii.gz"))[:1])
    return context / "app"


def test_handlers_are_chosen_by_the_sockets(context, tmp_path):
    program = read_program(context)
    ask = tmp_path / "inputs.json"
    ask.write_text(json.dumps([{"interface": {"slug": "b"}, "image": {"name": "x.mha"}}, {"socket": {"slug": "a"}}]))
    assert read_sockets(ask) == (("a", "b"), "x.mha")
    assert choose_interface(program, ("about", "t1-brain-mri"), lambda path: False) == 0
    assert choose_interface(program, ("more", "t1-brain-mri"), lambda path: True) == 0  # what it needs is there
    with pytest.raises(AutosegError) as caught:
        choose_interface(program, ("head-ct",), lambda path: False)
    assert caught.value.codes == ("container.unknown_sockets",)
    ask.write_text("{}")
    assert read_sockets(ask) == ((), "case")
    ask.write_text('[{"socket": 3}]')
    with pytest.raises(AutosegError) as caught:
        read_sockets(ask)
    assert caught.value.codes == ("container.inputs_unreadable",)


@pytest.mark.parametrize(
    ("files", "code"), [((), "container.no_input"), (("a.mha", "b.mha"), "container.several_images")]
)
def test_a_socket_has_one_image(context, tmp_path, files, code):
    folder = tmp_path / "images" / "t1-brain-mri"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()
    with pytest.raises(AutosegError) as caught:
        list(find_work(read_program(context), tmp_path, tmp_path))
    assert caught.value.codes == (code,)


def test_flare_and_brats_take_all_cases_of_a_folder(finished, tmp_path):
    for kind, table in (("flare", "flare"), ("brats25", "brats25")):
        channels = {"MRI": "{case}/{case}-t1n.nii.gz"} if kind == "brats25" else {}
        api.container(finished.root, tmp_path / kind, kind=kind, interface=table, channels=channels)
        program, folder = read_program(tmp_path / kind), tmp_path / f"{kind}_cases"
        assert (tmp_path / kind / "app" / program.model).is_file()
        write_image(tmp_path / "a.nii.gz", np.zeros(GRID.shape), GRID)
        for name in ("case_1", "case_2"):
            lay_out(program, 0, name, [tmp_path / "a.nii.gz"], folder)
        works = list(find_work(program, folder, tmp_path / "out"))
        assert [work.name for work in works] == ["case_1", "case_2"]
        assert [work.targets[0].path.name for work in works] == ["case_1.nii.gz", "case_2.nii.gz"]
        assert all(path.is_file() for work in works for path in work.images)
    assert image_config("brats25", "invoke").cmd == ("exec",)  # the two ways are those of grand-challenge
    assert image_config("grand-challenge", "invoke").cmd == ("invoke",)
    assert (tmp_path / "flare" / "predict.sh").is_file()
    assert "ENTRYPOINT" not in (tmp_path / "flare" / "Dockerfile").read_text()


def world_sum(grid: Geometry) -> np.ndarray:
    """An image whose voxels are the sum of their place in the world: linear, so that resampling keeps it."""
    places = grid.affine[:3, :3] @ np.indices(grid.shape).reshape(3, -1) + grid.affine[:3, 3:]
    return places.sum(axis=0).reshape(grid.shape)


def test_channels_of_other_grids_are_brought_to_that_of_the_outputs(tmp_path, caplog):
    # inside of GRID, with other voxels
    fine = Geometry(shape=(2, 5, 4), spacing_mm=(1.5, 0.5, 0.25), origin_mm=(1.5, 2.5, 3.5))
    for name, grid in (("coarse", GRID), ("fine", fine)):
        write_image(tmp_path / f"{name}.mha", world_sum(grid), grid)
    image = read_channels([tmp_path / "coarse.mha", tmp_path / "fine.mha"], 1)
    assert image.geometry == read_header(tmp_path / "fine.mha").geometry
    np.testing.assert_allclose(image.array, np.stack([world_sum(fine)] * 2), atol=1e-5)
    assert "resampled to that of" in caplog.text
    # as a dataset's reader does it, of files with several channels, too
    write_image(tmp_path / "two.nrrd", np.stack([world_sum(GRID), 2 * world_sum(GRID)]), GRID)
    image = read_channels([tmp_path / "two.nrrd", tmp_path / "fine.mha"], 1)
    np.testing.assert_allclose(image.array, np.stack([world_sum(fine) * each for each in (1, 2, 1)]), atol=1e-4)
    hecktor = find_table("grand-challenge", "hecktor25").interfaces[0]
    assert hecktor.grid_of(("images/pet", "images/ct")) == 1
    assert hecktor.grid_of(("images/pet",)) == 0


# --- decisions ---


def test_channels_are_found_by_name_or_asked_for():
    table = find_table("grand-challenge", "hecktor25")
    assert assign_channels(table, ("PT", "CT"), {}) == (("images/pet", "images/ct"),)
    isles = find_table("grand-challenge", "isles22")
    assert assign_channels(isles, ("DWI", "ADC"), {}) == (("images/dwi-brain-mri", "images/adc-brain-mri"),)
    with pytest.raises(AutosegError) as caught:
        assign_channels(isles, ("MRI",), {})
    assert caught.value.codes == ("container.channels",)
    assert assign_channels(isles, ("MRI",), {"MRI": "adc-brain-mri"}) == (("images/adc-brain-mri",),)
    with pytest.raises(AutosegError) as caught:  # one input cannot be two channels
        assign_channels(isles, ("A", "B"), {"A": "adc-brain-mri", "B": "adc-brain-mri"})
    assert caught.value.codes == ("container.channels",)
    with pytest.raises(AutosegError) as caught:
        assign_channels(isles, ("DWI",), {"T9": "adc-brain-mri"})
    assert caught.value.codes == ("container.unknown_channel",)
    assert assign_channels(find_table("brats25", None), ("FLAIR", "T1", "T1ce", "T2"), {})[0][0].endswith("t2f.nii.gz")


def test_values_that_the_challenge_does_not_know_are_refused_before_anything_is_built():
    table = find_table("grand-challenge", "isles26")
    assert value_issues(table, (0, 1)) == []
    assert [issue.code for issue in value_issues(table, (0, 1, 2))] == ["container.values"]
    assert len(value_issues(table, (0, 2))) == 2  # the label map, and the probability of class 1
    organs = find_table("grand-challenge", "segrap23_gtv")
    assert value_issues(organs, (0, 1, 2)) == []
    assert len(value_issues(organs, (0, 1))) == 1
    any_byte = find_table("flare", None)
    assert value_issues(any_byte, (0, 255)) == []
    assert len(value_issues(any_byte, (0, 256))) == 1


def test_an_unknown_interface_is_refused_with_the_known_ones(finished, tmp_path):
    for interface in (None, "isles99"):
        with pytest.raises(AutosegError) as caught:
            api.container(finished.root, tmp_path / "made", interface=interface)
        assert caught.value.codes == ("container.no_interface",)
        assert "isles26" in caught.value.issues[0].fix
    assert not (tmp_path / "made").exists()
    wishes = ContainerWishes(kind="grand-challenge", channels={})
    assert wishes.mirroring


def test_tables_are_whole_and_sockets_of_the_platform_are_read(tmp_path):
    tables = load_container_tables()
    assert {"isles26", "topcow24", "toothfairy2", "hecktor26", "segrap23_organs", "autopet3", "flare", "brats25"} <= {
        table.name for table in tables
    }
    assert all(table.source for table in tables)
    sockets = {
        "challenge": {
            "phases": [
                {
                    "algorithm_interfaces": [
                        {
                            "inputs": [{"slug": "ct", "relative_path": "images/ct", "super_kind": "Image"}],
                            "outputs": [
                                {"slug": "seg", "relative_path": "images/seg", "kind": "Segmentation"},
                                {"slug": "map", "relative_path": "images/map", "kind": "Heat Map"},
                                {"slug": "n", "relative_path": "n.json", "kind": "Integer", "example_value": 3},
                            ],
                        }
                    ]
                }
            ]
        }
    }
    (tmp_path / "phase.json").write_text(json.dumps(sockets))
    (interface,) = read_container_table(tmp_path / "phase.json").interfaces
    assert interface.inputs == (Input(slug="ct", path="images/ct"),)
    assert [output.kind for output in interface.outputs] == ["labels", "probability", "json"]
    assert interface.outputs[2].value == 3


# --- what platforms refuse ---


def fault_of(tmp_path: Path, write, **output) -> list[str]:
    """Codes of what is wrong with the output that ``write`` makes in the folder of its socket."""
    told = Output.model_validate({"path": "images/seg", "values": (1, 2), **output})
    interface = Interface(inputs=(Input(path="images/ct"),), outputs=(told,))
    table = find_table("grand-challenge", "isles26").model_copy(update={"interfaces": (interface,)})
    (tmp_path / "images/seg").mkdir(parents=True)
    write(tmp_path / "images/seg")
    return [issue.code.removeprefix("container.output_") for issue in output_issues(table, 0, "a", tmp_path, GRID)]


LABELS = np.arange(60).reshape(GRID.shape) % 3


def write_long(folder: Path) -> None:
    image = SimpleITK.GetImageFromArray(LABELS.astype(np.int64))
    image.SetSpacing(GRID.spacing_mm[::-1])
    image.SetOrigin(GRID.origin_mm)
    SimpleITK.WriteImage(image, folder / "output.mha")


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda folder: write_label_map(folder / "a.mha", LABELS, GRID), []),
        (lambda folder: write_label_map(folder / "a.mhd", LABELS, GRID), []),
        (lambda folder: None, ["missing"]),
        (lambda folder: write_label_map(folder / "a.nii.gz", LABELS, GRID), ["format"]),
        (lambda folder: [write_label_map(folder / name, LABELS, GRID) for name in ("a.mha", "b.mha")], ["several"]),
        (write_long, ["type"]),
        (lambda folder: write_image(folder / "a.mha", LABELS, GRID), ["type"]),
        (lambda folder: write_label_map(folder / "a.mha", LABELS + 1, GRID), ["values"]),
        (lambda folder: write_label_map(folder / "a.mha", LABELS, GRID.model_copy(update={"origin_mm": (1.0, 2.0, 3.01)})), ["grid"]),
        (lambda folder: write_label_map(folder / "a.mha", LABELS, GRID.model_copy(update={"origin_mm": (1.0, 2.0, 3.0001)})), []),
    ],
)  # fmt: skip
def test_label_maps_that_the_platform_refuses(tmp_path, write, expected):
    assert fault_of(tmp_path, write) == expected


@pytest.mark.parametrize(("number", "expected"), [(64, []), (65, ["masks"])])
def test_a_file_of_masks_has_at_most_64(tmp_path, number, expected):
    masks = np.zeros((number, *GRID.shape), bool)
    assert fault_of(tmp_path, lambda folder: write_masks(folder / "a.mha", masks, GRID), kind="masks") == expected


@pytest.mark.parametrize(("high", "expected"), [(1.0, []), (1.5, ["values"]), (np.nan, ["values"])])
def test_probabilities_lie_between_0_and_1(tmp_path, high, expected):
    def write(folder: Path) -> None:
        write_image(folder / "a.mha", np.full(GRID.shape, high), GRID)

    assert fault_of(tmp_path, write, kind="probability") == expected


def test_files_that_belong_to_no_output_are_named(context, tmp_path):
    for name in ("images/both/output.mha", "told.json", "notes.txt", "images/other/a.mha"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    table = read_program(context).table
    assert strays(table, 0, ["a"], tmp_path) == ["images/other/a.mha", "notes.txt"]


@pytest.mark.parametrize("content", [b"name = ", b"name = '\xff'", b"name = 'a'"])
def test_a_file_that_is_no_table_is_refused_with_its_name(tmp_path, content):
    (tmp_path / "table.toml").write_bytes(content)
    with pytest.raises(DocumentError, match=r"table\.toml"):
        read_container_table(tmp_path / "table.toml")
