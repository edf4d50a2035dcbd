"""Prediction on a CPU as whole processes: autoseg in each precision and by each runtime, and nnU-Net, with the same weights.

    python benchmarks/cpu_prediction.py --nnunet VENV/bin/python --work DIR --hippocampus IMAGES --ct FILE.nii.gz [--rounds 3]

VENV has nnunetv2 installed; without --nnunet its column is left out. Two models are made in nnU-Net's format with drawn weights and imported: the network that
nnU-Net plans for the hippocampus, for 20 of its images, and one of five stages for a CT, which is tiled to --ct-size voxels. Speed does not depend on weights.
All processes have the same cores, threads and images; they take turns, and wall and processor time of each (children included) are kept. 8-bit graphs are calibrated on
windows of the same images. What differs from nnU-Net's label maps is told.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

import autoseg
from autoseg.delivery.export import graph_of, write_export
from autoseg.delivery.quantise import quantise
from autoseg.inference.bundle import write_bundle
from autoseg.inference.model import assemble, open_member_network, open_model
from autoseg.inference.predictor import Predictor
from autoseg.interop.nnunet_model import import_nnunet
from autoseg.stages.export import Recorder
from autoseg.tracking.progress import SilentReporter

CT = {
    "mean": 100.0,
    "median": 100.0,
    "std": 150.0,
    "min": -1000.0,
    "max": 2000.0,
    "percentile_00_5": -900.0,
    "percentile_99_5": 1000.0,
}
MRI = {**CT, "min": 0.0, "percentile_00_5": 0.0}
MAKE_WEIGHTS = """
import json, sys, torch
from collections import OrderedDict
from pathlib import Path
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
folder = Path(sys.argv[1]); plans = json.loads((folder / "plans.json").read_text())
made = plans["configurations"]["3d_fullres"]["architecture"]
labels = json.loads((folder / "dataset.json").read_text())["labels"]
for fold in range(int(sys.argv[2])):
    torch.manual_seed(fold)
    network = get_network_from_plans(made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], 1, len(labels), deep_supervision=True)
    (folder / f"fold_{fold}").mkdir(exist_ok=True)
    torch.save({"network_weights": OrderedDict(network.state_dict()), "optimizer_state": {}, "grad_scaler_state": None, "logging": {}, "_best_ema": None,
        "current_epoch": 1000, "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": fold, "dataset_json": {}}, "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2)}, folder / f"fold_{fold}" / "checkpoint_final.pth")
"""
PREDICT = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as main; main()"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network and the images that it predicts."""

    name: str
    patch: list[int]
    features: list[int]
    classes: list[str]
    scheme: str
    statistics: dict[str, float]
    spacing: list[float]
    folds: int
    mirroring: bool
    images: Path
    """With names as nnU-Net wants them, CASE_0000.nii.gz."""


def plans_of(task: Task) -> dict[str, Any]:
    """As nnU-Net writes them."""
    stages = len(task.features)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    architecture = {
        "n_stages": stages, "features_per_stage": task.features, "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)], "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2, "patch_size": task.patch,
        "median_image_size_in_voxels": [float(each) for each in task.patch], "spacing": task.spacing, "normalization_schemes": [task.scheme], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1}, "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1}, "batch_dice": False,
        "architecture": {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet", "arch_kwargs": architecture,
                         "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"]},
    }  # fmt: skip
    return {
        "dataset_name": f"Dataset001_{task.name}", "plans_name": "nnUNetPlans", "original_median_spacing_after_transp": task.spacing,
        "original_median_shape_after_transp": task.patch, "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration}, "experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": task.statistics},
    }  # fmt: skip


def make_model(task: Task, work: Path, nnunet: str) -> Path:
    """nnU-Net's folder of a model, with drawn weights."""
    folder = work / f"{task.name}_nnunet"
    if not (folder / f"fold_{task.folds - 1}" / "checkpoint_final.pth").exists():
        folder.mkdir(parents=True, exist_ok=True)
        labels = {"background": 0, **{name: i + 1 for i, name in enumerate(task.classes)}}
        dataset = {
            "channel_names": {"0": "CT" if task.scheme == "CTNormalization" else "MRI"},
            "labels": labels,
            "numTraining": 60,
            "file_ending": ".nii.gz",
        }
        (folder / "plans.json").write_text(json.dumps(plans_of(task)))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        subprocess.run([nnunet, "-c", MAKE_WEIGHTS, str(folder), str(task.folds)], check=True)
    return folder


def make_ours(task: Task, work: Path, folder: Path) -> dict[str, Path]:
    """The same weights as bundles of two precisions, as float32 graphs and as 8-bit ones."""
    bundle, plain, small = (work / f"{task.name}{ending}" for ending in (".zip", ".onnx", "_int8.onnx"))
    precisions = {each: work / f"{task.name}_{each}.zip" for each in ("bfloat16", "float32")}
    if not bundle.exists():
        import_nnunet(folder, bundle, say=print)
    files = open_model(bundle)
    for precision, path in precisions.items():
        trainings = tuple(each.model_copy(update={"precision": precision}) for each in files.description.trainings)
        about = files.description.model_copy(update={"trainings": trainings})
        write_bundle(path, about, files.packed_weights, key=files.key + precision, version=autoseg.__version__)
    make = partial(graph_of, files)
    if not plain.exists():
        write_export(plain, files.description, make, key=files.key + "onnx", reporter=SilentReporter())
    if not small.exists():
        recorders: dict[tuple[str, int], Recorder] = {}

        def recorder(name: str, fold: int) -> Recorder:
            return recorders.setdefault((name, fold), Recorder(open_member_network(files, name, fold).eval()))

        model = assemble(files.description, recorder, device=torch.device("cpu"), key="", precision="float32")
        image = autoseg.read_image(min(task.images.iterdir()))
        Predictor(model=model, mirroring=False).predict_read(image)
        for each in recorders.values():
            each.next_case()
        kept = {pair: each.kept for pair, each in recorders.items()}
        write_export(
            small, files.description, lambda name, fold: quantise(make(name, fold), kept[name, fold]), key=files.key + "int8",
            reporter=SilentReporter(), precision="int8",
        )  # fmt: skip
    return {**precisions, "onnx": plain, "int8": small}


def commands_of(
    task: Task, models: dict[str, Path], folder: Path, nnunet: str | None, threads: int
) -> dict[str, list[str]]:
    """Each variant as a command without its output folder, which comes last."""
    ours = [sys.executable, "-m", "autoseg", "predict"]
    images = str(task.images)
    mirroring = [] if task.mirroring else ["--no-mirroring"]
    how = ["--device", "cpu", "--threads", str(threads), *mirroring]
    variants = {
        "torch bfloat16": [*ours, *how, str(models["bfloat16"]), images],
        "torch float32": [*ours, *how, str(models["float32"]), images],
        "ONNX Runtime": [*ours, *how, str(models["onnx"]), images],
        "OpenVINO": [*ours, *how, "--engine", "openvino", str(models["onnx"]), images],
        "OpenVINO bfloat16": [*ours, *how, "--engine", "openvino-bfloat16", str(models["onnx"]), images],
        "int8, ONNX Runtime": [*ours, *how, str(models["int8"]), images],
        "int8, OpenVINO": [*ours, *how, "--engine", "openvino", str(models["int8"]), images],
    }
    if nnunet is not None:
        folds = [str(fold) for fold in range(task.folds)]
        tta = [] if task.mirroring else ["--disable_tta"]
        variants["nnU-Net"] = [
            nnunet,
            "-c",
            PREDICT,
            "-i",
            images,
            "-m",
            str(folder),
            "-f",
            *folds,
            "-device",
            "cpu",
            *tta,
            "-o",
        ]
    return variants


def run(command: Sequence[str], out: Path, threads: int) -> tuple[float, float]:
    """Wall and processor seconds of a process and its children."""
    shutil.rmtree(out, ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    wait = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # busy waiting would count as work
    done = subprocess.run([*command, str(out)], env={**os.environ, **wait}, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def difference(found: Path, expected: Path) -> float | None:
    """Share of voxels with another label."""
    pairs = [(path, expected / path.name) for path in found.glob("*.nii.gz") if (expected / path.name).exists()]
    if not pairs:
        return None
    labels = [[np.asarray(nibabel.load(path).dataobj) for path in pair] for pair in pairs]
    return sum(int((a != b).sum()) for a, b in labels) / sum(a.size for a, _ in labels)


def measure(task: Task, work: Path, arguments: argparse.Namespace) -> None:
    folder = make_model(task, work, arguments.nnunet)
    commands = commands_of(
        task,
        make_ours(task, work, folder),
        folder,
        None if arguments.ours_only else arguments.nnunet,
        arguments.threads,
    )
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            if arguments.only and not any(each in name for each in arguments.only):
                continue
            times[name].append(run(command, work / f"{task.name}_out" / name.replace(" ", "_"), arguments.threads))
            print(
                f"{task.name}: {name:<20} wall {times[name][-1][0]:7.1f} s, processor {times[name][-1][1]:7.1f} s",
                flush=True,
            )
    base = times.get("nnU-Net")
    print(
        f"\n### {task.name}\n\n| | wall s | processor s | times nnU-Net (wall) | (processor) | other labels than nnU-Net |\n|---|---|---|---|---|---|"
    )
    for name in (each for each in commands if times[each]):
        wall, cpu = (statistics.median(column) for column in zip(*times[name], strict=True))
        ratios = (
            ["", ""]
            if not base
            else [
                f"{statistics.median(c) / own:.1f}" for c, own in zip(zip(*base, strict=True), (wall, cpu), strict=True)
            ]
        )
        share = difference(work / f"{task.name}_out" / name.replace(" ", "_"), work / f"{task.name}_out" / "nnU-Net")
        print(
            f"| {name} | {wall:.1f} | {cpu:.1f} | {ratios[0]} | {ratios[1]} | {'' if share is None or name == 'nnU-Net' else f'{share:.1e}'} |"
        )


def link_images(source: Path, folder: Path, number: int) -> Path:
    """The first images of a folder, under nnU-Net's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("[!.]*.nii.gz"))[:number]:
        shutil.copy(path, folder / path.name.replace(".nii.gz", "_0000.nii.gz"))
    return folder


def tile_ct(source: Path, folder: Path, size: Sequence[int], spacing: float) -> Path:
    """A CT repeated, mirrored at the seams, to ``size`` voxels (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.asarray(nibabel.load(source).dataobj).astype(np.int16)
    tiled = np.pad(array, [(0, max(0, n - own)) for n, own in zip(size, array.shape, strict=True)], mode="reflect")
    tiled = tiled[tuple(slice(n) for n in size)]
    nibabel.save(
        nibabel.Nifti1Image(tiled, np.diag([spacing * 1.25, spacing * 1.25, spacing, 1.0])), folder / "ct_0000.nii.gz"
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", required=True, help="Python with nnunetv2, which also draws the weights")
    parser.add_argument("--ours-only", action="store_true", help="do not time nnU-Net")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--hippocampus", type=Path)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--ct-size", type=int, nargs=3, default=(320, 320, 320))
    parser.add_argument("--ct-patch", type=int, nargs=3, default=(96, 128, 128))
    parser.add_argument("--ct-features", type=int, nargs="+", default=(32, 64, 128, 256, 320))
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--folds", type=int, default=1, help="networks of each model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", help="variants whose name has one of these words")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.hippocampus:
        images = link_images(arguments.hippocampus, arguments.work / "hippocampus_images", arguments.cases)
        measure(
            Task(name="hippocampus", patch=[40, 56, 40], features=[32, 64, 128, 256], classes=["Anterior", "Posterior"], scheme="ZScoreNormalization",
                 statistics=MRI, spacing=[1.0] * 3, folds=arguments.folds, mirroring=True, images=images),
            arguments.work, arguments,
        )  # fmt: skip
    if arguments.ct:
        images = tile_ct(arguments.ct, arguments.work / "ct_images", arguments.ct_size, 1.5)
        measure(
            Task(name="ct", patch=list(arguments.ct_patch), features=list(arguments.ct_features), classes=["spleen", "kidney", "liver", "aorta"], scheme="CTNormalization",
                 statistics=CT, spacing=[1.5] * 3, folds=arguments.folds, mirroring=False, images=images),
            arguments.work, arguments,
        )  # fmt: skip


if __name__ == "__main__":
    main()
