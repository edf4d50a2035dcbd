"""A model in one file predicts as its run does; a file that was changed, or made up, is refused with a message."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from whole_volume import mean_probabilities

import autoseg
from autoseg.cli import app
from autoseg.data.dataset import Case, DatasetDescription
from autoseg.data.phantom import make_phantom_dataset
from autoseg.evaluation.label_maps import (
    FillHoles,
    KeepLargestComponent,
    RemoveSmallComponents,
    apply_postprocessing,
    probability_slabs,
)
from autoseg.evaluation.rankseg import rank_labels
from autoseg.evaluation.selection import Selection
from autoseg.inference.bundle import MANIFEST, ModelDescription, ModelFiles, weights_name, write_bundle
from autoseg.inference.model import bundle_run, keep_model, load_model, open_model
from autoseg.inference.predictor import Prediction, Predictor
from autoseg.issues import AutosegError
from autoseg.networks.build import build_network
from autoseg.networks.weights import save_weights
from autoseg.run_folder import RunFolder
from planners import (
    CaseSize,
    Conditions,
    Fingerprint,
    IntensityStatistics,
    LabelClass,
    Labels,
    Measurement,
    plan_dataset,
    plan_schedule,
    with_width,
)

CPU = torch.device("cpu")
LABELS = Labels(classes=(LabelClass(name="Anterior", values=(1,)), LabelClass(name="Posterior", values=(2,))))
STATISTICS = IntensityStatistics(
    mean=1.0, median=1.0, std=1.0, minimum=0.0, maximum=4.0, percentile_00_5=0.1, percentile_99_5=3.0
)
MEMBERS = ("2d", "3d_fullres")
FOLDS = (0, 1)
KEYS = {name: [f"{name} {fold}" for fold in FOLDS] for name in MEMBERS}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What prediction needs of a finished run that ensembles two configurations; the networks are drawn, not trained."""
    run = RunFolder(tmp_path_factory.mktemp("secret_place") / "run")
    size = CaseSize(case_id="secret_case", shape=(36, 50, 35), spacing_mm=(1.0, 1.0, 1.0))
    plan = plan_dataset(
        Fingerprint(
            dataset_name="Hippocampus",
            cases=(size,),
            num_training_cases=60,
            channels=("MRI",),
            labels=LABELS,
            intensities=(STATISTICS,),
            median_relative_size_after_cropping=1.0,
        )
    )
    measurements = tuple(
        Measurement(configuration=name, base_features=4, batch_size=2, precision="float32", step_s=0.01, case_s=0.1)
        for name in MEMBERS
    )
    schedule = plan_schedule(
        plan,
        Conditions(
            device="cpu",
            num_threads=1,
            budget_s=100_000,
            elapsed_s=1.0,
            num_folds=5,
            num_training_cases=60,
            num_test_cases=0,
            cross_validated=True,
            measurements=measurements,
            seed=0,
        ),
    )
    dataset = DatasetDescription(
        name="Hippocampus",
        root=str(run.root),
        layout="msd",
        channels=("MRI",),
        labels=LABELS,
        file_values=(0, 3, 7),
        file_ending=".nii.gz",
        training=(Case(case_id="secret_case", images=(str(run.root / "a.nii.gz"),)),),
    )
    selection = Selection(
        members=MEMBERS,
        folds=FOLDS,
        postprocessing=(KeepLargestComponent(classes=("Anterior",)),),
        cross_validated=False,
        reason="a test",
        candidates=(),
        dice_before_postprocessing=None,
        dice_after_postprocessing=None,
    )
    for name in MEMBERS:
        network = with_width(plan.configuration(name).network, schedule.training(name).base_features)
        for fold in FOLDS:
            weights = build_network(network, seed=fold).state_dict()
            save_weights(run.fold(name, fold) / "final.safetensors", weights, key=f"{name} {fold}")
    model = ModelDescription(
        origin="autoseg", dataset=dataset, plan=plan, selection=selection, trainings=schedule.trainings
    )
    assert keep_model(run, model, KEYS, None) is None
    return run.root


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """The run as a bundle."""
    return bundle_run(run, run.parent / "model.zip")


def rewritten(bundle: Path, to: Path, change: Callable[[dict[str, bytes]], None], *, listed: bool = True) -> Path:
    """A copy of a bundle with its parts changed; ``listed``: the manifest tells of the changed parts, as a forger would."""
    with zipfile.ZipFile(bundle) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    if listed:
        manifest = json.loads(parts[MANIFEST])
        manifest["files"] = [
            {"name": name, "size": len(content), "sha256": sha256(content).hexdigest()}
            for name, content in parts.items()
            if name != MANIFEST
        ]
        parts[MANIFEST] = json.dumps(manifest).encode()
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return to


def refused(call: Callable[[], object]) -> AutosegError:
    with pytest.raises(AutosegError) as caught:
        call()
    return caught.value


def faults(path: Path) -> list[str]:
    error = refused(lambda: load_model(path, device=CPU))
    assert set(error.codes) == {"bundle.damaged"}
    return [issue.message for issue in error.issues]


def test_a_bundle_predicts_as_its_run(run: Path, bundle: Path, real_data: Path) -> None:
    image = next((real_data / "Task04_Hippocampus" / "imagesTr").glob("hippocampus_*.nii.gz"))
    expected, found = (
        Predictor.load(model, device="cpu", mirroring=False).predict_image([image], probabilities=True)
        for model in (run, bundle)
    )
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert set(np.unique(found.labels)) <= {0, 3, 7}


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": (0.25, 0.75)},
        {"weights": (0.25, 0.75), "decoder": "rankseg"},
        {
            "members": ("3d_fullres",),
            "decoder": "rankseg",
            "postprocessing": (
                RemoveSmallComponents(classes=("Posterior",), smallest_mm3=5.0),
                FillHoles(classes=("Anterior",)),
            ),
        },
    ],
    ids=["weights", "weights and RankSEG", "one configuration by RankSEG"],
)
def test_everything_that_is_selected_is_done_in_prediction(
    run: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    image = np.random.default_rng(0).normal(2, 1, (10, 20, 24)).astype(np.float32)

    def predict(**changes: object) -> tuple[Prediction, ModelFiles]:
        copy = RunFolder(shutil.copytree(run, tmp_path / str(len(list(tmp_path.iterdir())))))
        about = open_model(copy.root).description
        selection = about.selection.model_copy(update={"postprocessing": (), **changes})
        keep_model(copy, about.model_copy(update={"selection": selection}), KEYS, None)
        packed = bundle_run(copy.root, copy.root / "packed.zip")
        predictor = Predictor.load(packed, device="cpu", mirroring=False)
        place = {"spacing_mm": (1.0, 1.0, 1.0), "axes": "SPL"}
        return predictor.predict_image(image, probabilities=True, **place), open_model(packed)  # type: ignore[arg-type]

    alone = [predict(members=(name,))[0].probabilities for name in changes.get("members", MEMBERS)]  # type: ignore[attr-defined]
    scores = mean_probabilities(alone, changes.get("weights", ()))  # type: ignore[arg-type]
    plain, ranked = rank_labels(probability_slabs(scores), scores.shape[1:], LABELS, are_logits=False)
    decided = ranked if "decoder" in changes else plain
    expected = apply_postprocessing(decided, changes.get("postprocessing", ()), LABELS, voxel_mm3=1.0)  # type: ignore[arg-type]

    found, files = predict(**changes)

    np.testing.assert_allclose(found.probabilities, scores, atol=1e-6)
    differs = found.labels != np.array([0, 3, 7])[expected]
    assert np.count_nonzero(differs) <= 2  # ties to the last digit between logits and probabilities
    assert files.key != open_model(run).key


def test_a_bundle_is_the_same_model_and_the_same_bytes(run: Path, bundle: Path, tmp_path: Path) -> None:
    assert open_model(bundle).key == open_model(run).key
    assert bundle_run(run, tmp_path / "again.zip").read_bytes() == bundle.read_bytes()


def test_nothing_of_the_cases_is_in_a_bundle(bundle: Path) -> None:
    assert b"secret" not in bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        assert {part.compress_type for part in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_bundle_replaces_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    assert refused(lambda: bundle_run(run, tmp_path / "mine")).codes == ("bundle.exists",)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_model_needs_nothing_else_of_its_run_and_damaged_it_is_not_bundled(run: Path, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    other.root.mkdir()
    content = RunFolder(run).model.read_bytes()
    other.model.write_bytes(content)
    assert open_model(other.root).key == open_model(run).key
    place = content.index(b"safetensors") + 5000
    other.model.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert refused(lambda: bundle_run(other.root, tmp_path / "model.zip")).codes == ("bundle.damaged",)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_model_before_is_kept_and_only_trained_weights_replace_it(run: Path, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(run, tmp_path / "run"))
    before, about = copy.model.read_bytes(), open_model(run).description
    assert keep_model(copy, about, KEYS, None) is None  # the same one again
    error = refused(lambda: keep_model(copy, about, {**KEYS, "2d": ["2d 0", "others"]}, None))
    assert error.codes == ("weights.replaced",)
    assert copy.model.read_bytes() == before
    shutil.rmtree(copy.previous)
    selection = about.selection.model_copy(update={"postprocessing": ()})
    kept = keep_model(copy, about.model_copy(update={"selection": selection}), KEYS, None)
    assert kept is not None
    assert kept.parent == copy.previous
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d{6}_2d\+3d_fullres\.zip", kept.name)
    assert kept.read_bytes() == before
    assert open_model(copy.root).description.selection == selection


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_refused_or_changes_nothing(bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Some bytes of a zip, like dates, mean nothing here."""
    content = bytearray(bundle.read_bytes())
    with zipfile.ZipFile(bundle) as archive:
        weights = archive.getinfo(weights_name("3d_fullres", 0))
    # most of the bytes are numbers of networks: half of the examples look elsewhere
    places = (
        st.integers(0, len(content) - 1)
        | st.integers(-3000, -1)
        | st.integers(weights.header_offset, weights.header_offset + 200)
    )
    place = data.draw(places)
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    changed = tmp_path / "changed.zip"
    changed.write_bytes(content)
    try:
        files = open_model(changed)
        found = {name: files.weights(*name) for name in ((member, fold) for member in MEMBERS for fold in FOLDS)}
    except AutosegError:
        return
    whole = open_model(bundle)
    assert files.description == whole.description
    assert files.key == whole.key
    assert all(
        torch.equal(tensor, whole.weights(*name)[key]) for name, kept in found.items() for key, tensor in kept.items()
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(bundle: Path, tmp_path: Path, share: float) -> None:
    whole = bundle.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: int(len(whole) * share)])
    assert refused(lambda: load_model(tmp_path / "cut.zip", device=CPU)).codes == ("bundle.not_a_bundle",)


def test_other_zips_and_missing_files_are_distinguished(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    codes = {name: refused(lambda name=name: open_model(tmp_path / name)).codes for name in ("other.zip", "absent.zip")}
    assert codes == {"other.zip": ("bundle.not_a_bundle",), "absent.zip": ("model.not_found",)}


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/outside.txt", "a/../../b", "C:/b", "a\\..\\b", "models/./b", "a//b"]
)
def test_names_that_lead_out_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    path = rewritten(bundle, tmp_path / "evil.zip", lambda parts: parts.update({name: b"evil"}))
    assert any("is not a valid name" in fault for fault in faults(path))


def test_all_faults_of_a_bundle_are_reported(bundle: Path, tmp_path: Path) -> None:
    def change(parts: dict[str, bytes]) -> None:
        del parts[weights_name("2d", 0)]
        parts["extra.txt"] = b"more"
        parts["model.json"] += b" "

    odd, forged = (
        [fault.split(" ")[0] for fault in faults(rewritten(bundle, tmp_path / f"{listed}.zip", change, listed=listed))]
        for listed in (False, True)
    )
    assert odd == [weights_name("2d", 0), "extra.txt", "model.json"]
    assert forged == [weights_name("2d", 0), "extra.txt"]


def test_compressed_parts_are_refused_before_they_are_read(bundle: Path, tmp_path: Path) -> None:
    """A few kilobytes may unpack to all the memory there is."""
    with zipfile.ZipFile(bundle) as archive, zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name) if name != MANIFEST else b" " * 100_000_000)
    assert f"{MANIFEST} is compressed" in faults(tmp_path / "bomb.zip")


def test_weights_of_other_numbers_are_refused_by_their_hash(bundle: Path, tmp_path: Path) -> None:
    name = weights_name("3d_fullres", 1)

    def change(parts: dict[str, bytes]) -> None:
        parts[name] = parts[name][:-4] + np.float32(9).tobytes()

    assert faults(rewritten(bundle, tmp_path / "odd.zip", change, listed=False)) == [
        f"{name} has another SHA-256 than the manifest lists"
    ]


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_code_in_place_of_weights_is_refused(bundle: Path, tmp_path: Path) -> None:
    name = weights_name("2d", 0)
    path = rewritten(bundle, tmp_path / "evil.zip", lambda parts: parts.update({name: pickle.dumps(Evil())}))
    with pytest.raises(AutosegError, match=rf"{name}: no readable weights"):
        load_model(path, device=CPU)


def test_weights_of_another_network_are_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    first, second = weights_name("2d", 0), weights_name("3d_fullres", 0)
    path = rewritten(bundle, tmp_path / "odd.zip", lambda parts: parts.update({first: parts[second]}))
    with pytest.raises(AutosegError, match=rf"{first}: made for another network"):
        load_model(path, device=CPU)


def test_half_a_write_leaves_no_file(run: Path, tmp_path: Path) -> None:
    def weights(name: str, fold: int) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "model.zip", open_model(run).description, weights, key="k", version=autoseg.__version__)
    assert not list(tmp_path.iterdir())


def test_a_model_computes_in_float32_where_a_machine_has_nothing_faster(run: Path) -> None:
    """float16 is for GPUs; a CPU would emulate it."""
    from autoseg.compute.device import usable_precision

    assert usable_precision("float16", CPU) == "float32"
    assert usable_precision("float32", CPU) == "float32"
    assert {member.training.precision for member in load_model(run, device=CPU).members} == {"float32"}


def test_datasets_and_unfinished_runs_are_not_models(tmp_path: Path) -> None:
    data, begun = tmp_path / "data", tmp_path / "begun"
    make_phantom_dataset(data, num_training=1, num_test=0, seed=0)
    assert refused(lambda: open_model(data)).codes == ("model.not_a_run",)
    for folder in (begun / "stages", begun / "locks"):
        folder.mkdir(parents=True)
    error = refused(lambda: open_model(begun))
    assert (error.codes, error.issues[0].fix) == (("model.unfinished",), f"resume it: autoseg run {begun}")
    (begun / "selection.json").touch()  # as version 0.2 leaves it
    error = refused(lambda: open_model(begun))
    assert (error.codes, error.issues[0].fix) == (("model.unfinished",), f"write it: autoseg select {begun}")


def test_no_message_says_to_delete_the_description_of_a_dataset(tmp_path: Path) -> None:
    make_phantom_dataset(tmp_path / "data", num_training=1, num_test=0, seed=0)
    done = CliRunner().invoke(app, ["submit", str(tmp_path / "data")])
    assert isinstance(done.exception, AutosegError)
    assert "delete it" not in str(done.exception)
