"""Every labelled folder of the real data is recognised, or found with a spec file where it is ambiguous."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from autoseg.data.dataset import describe_dataset
from autoseg.data.discovery import discover_dataset

ROOT = Path(__file__).parents[2]
SENTENCES = {
    "Task04_Hippocampus": "60 labelled cases, 1 channel (MRI), labels Anterior and Posterior: "
    "Medical Segmentation Decathlon, Task04 Hippocampus",
    "ms_flair_thick": "6 labelled cases of 3 patients, 1 channel (FLAIR), label brain: spec file ms_flair_thick.toml",
    "ms_multichannel_thick": "4 labelled cases of 3 patients, 3 channels (FLAIR, T1W, T2W), regions whole_brain and "
    "lesion_change, an ignore label: spec file ms_multichannel_thick.toml",
    "ms_lesion_4ch": "2 labelled cases, 4 channels (FLAIR, T1, T1POST, T2), label lesion: Decathlon layout",
    "ct_torso_partial": "4 labelled cases, 1 channel (CT), labels spleen, kidney_right, kidney_left, liver and aorta, "
    "an ignore label: Decathlon layout",
    "ct_lung_patches2d": "130 labelled cases, 1 channel (CT), label lung_tumour: nnU-Net raw layout",
    "nuclei_grey2d": "40 labelled cases, 1 channel (fluorescence), label nucleus: nnU-Net raw layout",
    "nuclei_rgb2d": "28 labelled cases, 3 channels (R, G, B), label nucleus: nnU-Net raw layout",
    "bids_ivadomed/mri": "3 labelled cases of 1 patient, 6 test cases, 1 channel (channel_0), label seg-manual: "
    "spec file bids_mri.toml",
    "bids_ivadomed/microscopy_png": "5 labelled cases of 2 patients, 1 channel (SEM), labels seg-axon-manual and "
    "seg-myelin-manual: spec file microscopy_png.toml",
    "bids_ivadomed/ct_scan": "1 labelled case, 1 channel (CT), label seg-manual: BIDS with derivatives",
    "spinalcord_sct": "6 labelled cases, 1 channel (channel_0), label cord: spec file spinalcord_sct.toml",
    "nrrd_pyradiomics": "4 labelled cases, 1 channel (channel_0), labels label_1, label_7, label_8 and label_9: "
    "images and labels in one folder",
    "dicom_seg_ct3slice": "1 labelled case, 1 channel (CT), regions DARK_BLUE, GREEN, LIGHT_BLUE, ORANGE and PURPLE: "
    "spec file dicom_seg_ct3slice.toml",
    "dicom_series": "1 labelled case, 3 test cases, 1 channel (CT), 31 labels (label_1, label_5, label_6, label_7, label_8, "
    "label_20 and 25 more): one folder per case with a DICOM series and a label map",
    "dirty_ms/wrong_brain_mask": "1 labelled case, 1 channel (flair), label brain: spec file wrong_brain_mask.toml",
    "dirty_ms/channels_on_different_grids": "1 labelled case, 2 channels (channel_0, channel_1), label label_1: "
    "numbered channels and labels in one folder",
}


def load_benchmark():
    """The command that makes the table, as a module."""
    spec = importlib.util.spec_from_file_location("folders", ROOT / "benchmarks" / "folders.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["folders"] = module
    spec.loader.exec_module(module)
    return module


FOLDERS = load_benchmark().FOLDERS


def test_the_table_is_of_the_folders_tested_here():
    assert set(FOLDERS) == set(SENTENCES)


@pytest.mark.parametrize("folder", SENTENCES)
def test_folder_is_found_by_pointing_at_it(folder, real_data):
    spec = FOLDERS[folder]
    path = None if spec is None else ROOT / "tests" / "real" / "specs" / f"{spec}.toml"
    assert describe_dataset(discover_dataset(real_data / folder, spec=path)) == SENTENCES[folder]


def test_the_command_fills_a_row(real_data):
    benchmark = load_benchmark()
    row = benchmark.look_at(real_data, "bids_ivadomed/ct_scan", None, commands=("plan",))
    assert (row.sentence, row.failure) == (SENTENCES["bids_ivadomed/ct_scan"], "")
    assert set(row.seconds) == {"check", "plan"}
    assert row.findings["error"] == 0
    assert row.sentence in benchmark.table([row])
