"""An imported model predicts as the reference describes it, computed here on its own; what cannot be imported says why."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from typer.testing import CliRunner

from autoseg.cli import app
from autoseg.evaluation.metrics import dice_coefficient
from autoseg.inference.model import open_model
from autoseg.inference.predictor import Predictor
from autoseg.interop.nnunet_model import import_nnunet
from autoseg.issues import AutosegError
from planners import Configuration, Network, read_nnunet_dataset, read_nnunet_plans

Layout = Callable[[Network], nn.Module]
PATCHES = {(0, 1, 2): [48, 64, 48], (2, 0, 1): [48, 48, 64], (1, 0, 2): [64, 48, 48]}
"""Larger than any hippocampus, so that there is one window; each with its order of axes."""
STATISTICS = {
    "max": 90.0,
    "mean": 35.0,
    "median": 34.0,
    "min": 1.0,
    "percentile_00_5": 10.0,
    "percentile_99_5": 70.0,
    "std": 11.0,
}
FOLDS = (0, 1)
WIDTHS = (6, 8)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A folder as the reference leaves it, and its networks."""

    folder: Path
    configuration: Configuration
    networks: list[nn.Module]


def make_plans(
    *,
    order: tuple[int, int, int] = (0, 1, 2),
    family: str = "unet",
    scheme: str = "ZScoreNormalization",
    reader: str = "SimpleITKIO",
) -> dict[str, Any]:
    """A plans file for voxels of 1 mm with a small network."""
    residual = family == "residual_unet"
    arguments = {
        "n_stages": 2,
        "features_per_stage": list(WIDTHS),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 2,
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [1, 2],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": [36, 50, 35],
        "image_reader_writer": reader,
        "transpose_forward": list(order),
        "transpose_backward": [order.index(axis) for axis in range(3)],
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": PATCHES[order],
                "median_image_size_in_voxels": [36.0, 50.0, 35.0],
                "spacing": [1.0] * 3,
                "normalization_schemes": [scheme],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
                    "arch_kwargs": arguments,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
    }


LABELS = {"background": 0, "Anterior": 1, "Posterior": 2}
REGIONS = {"background": 0, "whole": [1, 2], "Posterior": [2]}


def make_dataset(labels: dict[str, Any]) -> dict[str, Any]:
    regions = {"regions_class_order": [1, 2]} if labels is REGIONS else {}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 60, "file_ending": ".nii.gz", **regions}


def save_checkpoint(
    path: Path, network: nn.Module, plans: dict[str, Any], *, axes: Any = (0, 1, 2), configuration: str = "3d_fullres"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "network_weights": OrderedDict(network.state_dict()),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {"plans": plans, "configuration": configuration, "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": axes,
    }
    torch.save(content, path)


def train(
    folder: Path, layout: Layout, *, labels: dict[str, Any] = LABELS, axes: Any = (0, 1, 2), **given: Any
) -> Trained:
    """A model folder with drawn weights: two folds, final and best checkpoints, and a pickled postprocessing."""
    plans, dataset = make_plans(**given), make_dataset(labels)
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    sizes = {
        "spacings": [[1.0] * 3],
        "shapes_after_crop": [[36, 50, 35]],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": STATISTICS},
    }
    known = read_nnunet_dataset(json.dumps(sizes), json.dumps(dataset))
    configuration = read_nnunet_plans(json.dumps(plans), known).configuration("3d_fullres")
    networks = []
    for fold in FOLDS:
        generator = torch.Generator().manual_seed(fold)
        network = layout(configuration.network).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.3, generator=generator)
        save_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth", network, plans, axes=axes)
        networks.append(network)
    (folder / "crossval_results_folds_0_1").mkdir()
    (folder / "crossval_results_folds_0_1" / "postprocessing.pkl").write_bytes(b"never read")
    return Trained(folder=folder, configuration=configuration, networks=networks)


def gaussian_map(patch: tuple[int, ...]) -> np.ndarray:
    """The importance of a window's voxels, float16."""
    impulse = np.zeros(patch)
    impulse[tuple(size // 2 for size in patch)] = 1
    smooth = gaussian_filter(impulse, [size / 8 for size in patch], mode="constant")
    rounded = (10 * smooth / smooth.max()).astype(np.float16)
    return np.maximum(rounded, rounded[rounded > 0].min())


def expected_logits(trained: Trained, array: np.ndarray, *, axes: tuple[int, ...], ct: bool) -> np.ndarray:
    """Method sections 4.1, 4.2 and 8.1 for one window and no resampling; ``array`` is in transposed order."""
    inside = np.argwhere(array != 0)
    low, high = inside.min(0), inside.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    values = array[box].astype(np.float64)
    if ct:
        values = (
            np.clip(values, STATISTICS["percentile_00_5"], STATISTICS["percentile_99_5"]) - STATISTICS["mean"]
        ) / STATISTICS["std"]
    else:
        values = (values - values.mean()) / values.std()
    patch = trained.configuration.patch_shape
    before = [(p - n) // 2 for p, n in zip(patch, values.shape, strict=True)]
    padded = np.pad(values, [(b, p - n - b) for b, p, n in zip(before, patch, values.shape, strict=True)])
    image = torch.from_numpy(padded.astype(np.float32))[None, None]
    importance = gaussian_map(patch)
    flips = [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
    summed = np.zeros((), np.float16)
    with torch.inference_mode():
        for network in trained.networks:
            total = torch.zeros(1)
            for chosen in flips:
                turned = [axis + 2 for axis in chosen]
                total = total + network(image.flip(turned))[0].flip(turned)
            window = ((total / len(flips))[0].numpy() * importance.astype(np.float32)).astype(np.float16)
            summed = summed + window / importance
    logits = (summed / np.float16(len(trained.networks))).astype(np.float32)
    cut = tuple(slice(b, b + n) for b, n in zip(before, values.shape, strict=True))
    whole = np.zeros((len(logits), *array.shape), np.float32)
    whole[(slice(None), *box)] = logits[(slice(None), *cut)]
    return whole


def expected_labels(logits: np.ndarray, *, regions: bool) -> np.ndarray:
    if not regions:
        return logits.argmax(0)
    labels = np.zeros(logits.shape[1:], int)
    for value, channel in zip((1, 2), logits, strict=True):
        labels[channel > 0] = value
    return labels


@pytest.fixture
def image(real_data: Path) -> Path:
    return real_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_003.nii.gz"


@pytest.mark.parametrize(
    ("given", "axes", "labels"),
    [
        ({}, (0, 1, 2), LABELS),
        ({"order": (2, 0, 1), "family": "residual_unet"}, (1,), LABELS),
        ({"order": (1, 0, 2), "scheme": "CTNormalization"}, None, REGIONS),
        ({"reader": "NibabelIOWithReorient"}, (0, 2), LABELS),
    ],
    ids=["plain", "transposed residual", "ct regions", "reoriented"],
)
def test_label_maps_are_those_of_the_reference(
    given: dict[str, Any], axes: Any, labels: dict[str, Any], image: Path, tmp_path: Path, reference_layout: Layout
) -> None:
    trained = train(
        tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres", reference_layout, labels=labels, axes=axes, **given
    )
    bundle = import_nnunet(trained.folder, tmp_path / "model.zip", say=lambda _: None)
    found = Predictor.load(bundle, device="cpu").predict_image([image]).labels

    stored = nibabel.load(image)
    turned = nibabel.as_closest_canonical(stored) if "reader" in given else stored
    order = given.get("order", (0, 1, 2))
    array = np.asarray(turned.dataobj, np.float32).T.transpose(order)
    logits = expected_logits(trained, array, axes=axes or (), ct="scheme" in given)
    expected = expected_labels(logits, regions=labels is REGIONS).transpose([order.index(axis) for axis in range(3)])
    if "reader" in given:
        back = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(turned.affine), nibabel.io_orientation(stored.affine)
        )
        expected = nibabel.orientations.apply_orientation(expected.T, back).T
    assert len(np.unique(expected)) > 1
    # the same float32 sums in other orders may be rounded to half precision the other way: then either class may win
    assert (found != expected).mean() < 1e-3
    for value in np.unique(expected)[1:]:
        a, b = found == value, expected == value
        assert dice_coefficient(int((a & b).sum()), int(a.sum()), int(b.sum())) > 0.998


def test_imported_folds_are_reported(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    said: list[str] = []
    bundle = import_nnunet(trained.folder, tmp_path / "model.zip", folds=[1], say=said.append)
    assert said[0] == "Dataset004_Hippocampus: 3d_fullres, fold 1, nnUNetTrainer, 3 epochs"
    assert "postprocessing.pkl" in said[1]
    about = open_model(bundle).description
    assert about.origin == "nnU-Net v2, nnUNetTrainer, 3 epochs"
    assert about.selection.folds == (1,)
    assert about.dataset.file_values == (0, 1, 2)


def test_the_command_imports_the_given_folds(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    out = tmp_path / "model.zip"
    done = CliRunner().invoke(app, ["import-nnunet", str(trained.folder), str(out), "--fold", "1", "--fold", "0"])
    assert done.exit_code == 0, done.output
    assert f"Bundle: {out}" in done.output
    assert open_model(out).description.selection.folds == FOLDS


def test_the_same_model_has_the_same_key_and_other_weights_another(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    first, again = (import_nnunet(trained.folder, tmp_path / f"{name}.zip", say=lambda _: None) for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    one = import_nnunet(trained.folder, tmp_path / "one.zip", folds=[0], say=lambda _: None)
    other = trained.folder / "fold_1" / "checkpoint_best.pth"
    save_checkpoint(trained.folder / "fold_0" / "checkpoint_best.pth", trained.networks[1], make_plans())
    save_checkpoint(other, trained.networks[1], make_plans())
    best = import_nnunet(trained.folder, tmp_path / "best.zip", folds=[0], checkpoints="best", say=lambda _: None)
    assert len({open_model(path).key for path in (first, again, one, best)}) == 3


def test_one_network_on_all_cases_becomes_a_fold(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    (trained.folder / "fold_0").rename(trained.folder / "fold_all")
    (trained.folder / "fold_1" / "checkpoint_final.pth").unlink()
    (trained.folder / "fold_1").rmdir()
    said: list[str] = []
    bundle = import_nnunet(trained.folder, tmp_path / "model.zip", say=said.append)
    assert said[0] == "Dataset004_Hippocampus: 3d_fullres, fold all, nnUNetTrainer, 3 epochs"
    assert open_model(bundle).description.selection.folds == (0,)


def test_fold_all_is_used_only_if_folds_are_unfinished(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    save_checkpoint(trained.folder / "fold_all" / "checkpoint_final.pth", trained.networks[1], make_plans())
    said: list[str] = []
    bundle = import_nnunet(trained.folder, tmp_path / "folds.zip", say=said.append)
    assert open_model(bundle).description.selection.folds == FOLDS
    assert "3d_fullres, folds 0, 1, " in said[0]
    assert "fold_all, one network trained on all cases, in favour of" in said[1]
    (trained.folder / "fold_0" / "checkpoint_final.pth").unlink()
    said.clear()
    bundle = import_nnunet(trained.folder, tmp_path / "all.zip", say=said.append)
    assert "fold_all, one network trained on all cases: not all" in said[1]
    network, files = trained.networks[1], open_model(bundle)
    head = files.weights("3d_fullres", 0)["heads.0.weight"]
    assert torch.equal(head, network.state_dict()["decoder.seg_layers.0.weight"])
    assert refused(trained, tmp_path / "0.zip", folds=[0]) == [
        "fold_0: fold 0 has no checkpoint_final.pth: its training was not finished"
    ]


def refused(trained: Trained, out: Path, **given: Any) -> list[str]:
    with pytest.raises(AutosegError) as caught:
        import_nnunet(trained.folder, out, say=lambda _: None, **given)
    assert not out.exists()
    return [f"{Path(problem.where).name}: {problem.message}" for problem in caught.value.issues]


def test_all_errors_are_reported_before_anything_is_written(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    plans = make_plans()
    (trained.folder / "fold_0" / "checkpoint_final.pth").unlink()
    other = reference_layout(trained.configuration.network.model_copy(update={"features": (6, 9)}))
    save_checkpoint(trained.folder / "fold_1" / "checkpoint_final.pth", other, plans)
    (trained.folder / "fold_2").mkdir()
    (trained.folder / "fold_2" / "checkpoint_final.pth").write_bytes(b"damaged")
    save_checkpoint(trained.folder / "fold_3" / "checkpoint_final.pth", trained.networks[0], plans, configuration="2d")
    found = refused(trained, tmp_path / "model.zip")
    for word in (
        "fold 0 has no checkpoint_final.pth",
        "tensors of another shape",
        "could not be read",
        "trained as 2d",
    ):
        assert any(word in problem for problem in found), (word, found)
    assert any("fold 7 does not exist" in problem for problem in refused(trained, tmp_path / "model.zip", folds=[1, 7]))


def test_folders_that_are_no_model_are_refused(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    with pytest.raises(AutosegError, match=r"plans\.json.*pass one of its subfolders: model"):
        import_nnunet(tmp_path, tmp_path / "model.zip", say=lambda _: None)
    (trained.folder / "dataset.json").unlink()
    (trained.folder / "plans.json").write_text("{")
    assert len(refused(trained, tmp_path / "model.zip")) >= 1
    (tmp_path / "there.zip").write_text("mine")
    with pytest.raises(AutosegError, match="exists"):
        import_nnunet(trained.folder, tmp_path / "there.zip", say=lambda _: None)


def test_plans_that_cannot_be_followed_are_refused(tmp_path: Path, reference_layout: Layout) -> None:
    trained = train(tmp_path / "model", reference_layout)
    plans = make_plans(scheme="MyNormalization", reader="MyReader")
    (trained.folder / "plans.json").write_text(json.dumps(plans))
    found = refused(trained, tmp_path / "model.zip")
    assert any("MyReader" in problem for problem in found)


@pytest.mark.parametrize(
    ("field", "value", "place"),
    [
        ("kernel_sizes", [[3, 3, 3], [2**53 + 1, 3, 3]], "kernel_sizes.1.0"),
        ("n_conv_per_stage", [1, 10**9], "n_conv_per_stage.1"),
    ],
)
def test_absurd_networks_are_refused_before_they_are_built(
    tmp_path: Path, reference_layout: Layout, field: str, value: Any, place: str
) -> None:
    trained = train(tmp_path / "model", reference_layout)
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"][field] = value
    (trained.folder / "plans.json").write_text(json.dumps(plans))
    (found,) = refused(trained, tmp_path / "model.zip")
    assert f"configurations.3d_fullres.architecture.arch_kwargs.{place}: " in found


def train_cascade(where: Path, layout: Layout) -> tuple[Trained, Path, dict[str, Any]]:
    """A trained second stage, the folder beside for its first one, without checkpoints, and the plans of both."""
    trained = train(where / "T__P__3d_cascade_fullres", layout)
    plans = make_plans()
    whole = plans["configurations"]["3d_fullres"]
    plans["configurations"] = {
        "3d_fullres": whole,
        "3d_lowres": {**whole, "spacing": [2.0] * 3, "patch_size": [16, 24, 16], "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    low = where / "T__P__3d_lowres"
    for folder in (trained.folder, low):
        folder.mkdir(exist_ok=True)
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(make_dataset(LABELS)))
    more = trained.configuration.network.model_copy(update={"num_inputs": 3})
    for fold in FOLDS:
        second = trained.folder / f"fold_{fold}" / "checkpoint_final.pth"
        save_checkpoint(second, layout(more), plans, configuration="3d_cascade_fullres")
    return trained, low, plans


def test_a_cascade_takes_its_first_stage_from_the_folder_beside(
    image: Path, tmp_path: Path, reference_layout: Layout
) -> None:
    trained, low, plans = train_cascade(tmp_path, reference_layout)
    assert any(
        "3d_lowres" in problem or "fold 0 does not exist" in problem
        for problem in refused(trained, tmp_path / "model.zip")
    )
    for fold in FOLDS:
        first = low / f"fold_{fold}" / "checkpoint_final.pth"
        save_checkpoint(first, trained.networks[fold], plans, configuration="3d_lowres", axes=(0,))
    bundle = import_nnunet(trained.folder, tmp_path / "model.zip", say=lambda _: None)
    predictor = Predictor.load(bundle, device="cpu", mirroring=False)
    (member,) = predictor.model.members
    assert member.previous is not None
    assert (member.mirror_axes, member.previous.mirror_axes) == ((0, 1, 2), (0,))
    assert predictor.predict_image([image]).labels.shape == nibabel.load(image).shape[::-1]


def test_a_missing_first_stage_is_reported(tmp_path: Path, reference_layout: Layout) -> None:
    trained, low, plans = train_cascade(tmp_path, reference_layout)
    for fold in FOLDS:
        save_checkpoint(low / f"fold_{fold}" / "checkpoint_final.pth", trained.networks[fold], plans)
    assert refused(trained, tmp_path / "model.zip") == [
        "T__P__3d_lowres: trained as 3d_fullres, not as 3d_lowres, the first stage of 3d_cascade_fullres"
    ]
    renamed = replace(trained, folder=trained.folder.rename(tmp_path / "mine"))
    (problem,) = refused(renamed, tmp_path / "model.zip")
    assert "mine: trained as 3d_cascade_fullres, which its name does not contain" in problem
