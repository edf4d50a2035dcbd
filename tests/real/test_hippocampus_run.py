"""The main job on a few real hippocampus volumes, with too few steps to be good at it: enough to see that it learns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import SimpleITK
from builders import CPU_WORDS


def test_a_few_steps_on_six_real_cases_learn_and_keep_their_geometry(real_data, tmp_path) -> None:
    source, dataset, run = real_data / "Task04_Hippocampus", tmp_path / "Task04_Hippocampus", tmp_path / "run"
    names = [path.name for path in sorted((source / "imagesTr").glob("hippocampus_*.nii.gz"))[:8]]
    for folder, chosen in (("imagesTr", names[:6]), ("labelsTr", names[:6]), ("imagesTs", names[6:])):
        (dataset / folder).mkdir(parents=True)
        origin = source / ("labelsTr" if folder == "labelsTr" else "imagesTr")
        for name in chosen:
            shutil.copy(origin / name, dataset / folder / name)
    shutil.copy(source / "dataset.json", dataset)
    description = json.loads((dataset / "dataset.json").read_text())
    description.pop("training")
    (dataset / "dataset.json").write_text(json.dumps(description))

    call = [sys.executable, "-c", "from autoseg.cli import main; main()", "run", str(dataset), "--out", str(run)]
    few = ["--folds", "2", "--configurations", "3d_fullres", "--target-spacing", "1.6,1.6,1.6"]
    for field, value in (("schedule.num_steps", 20), ("schedule.base_features", 8), ("plan.3d_fullres.batch_size", 4)):
        few += ["--set", f"{field}={value}"]
    done = subprocess.run([*call, *few, *CPU_WORDS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = json.loads((run / "cross_validation" / "summary.json").read_text())
    assert scores["foreground_mean"]["Dice"] > 0.2  # about 0.05 without training
    for name in names[6:]:
        image = SimpleITK.ReadImage(dataset / "imagesTs" / name)
        prediction = SimpleITK.ReadImage(run / "predictions" / name)
        assert prediction.GetSize() == image.GetSize()
        assert prediction.GetSpacing() == image.GetSpacing()
        assert prediction.GetOrigin() == image.GetOrigin()
        np.testing.assert_allclose(prediction.GetDirection(), image.GetDirection(), atol=1e-6)
