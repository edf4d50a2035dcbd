"""Packs the model of a finished run into one file that travels."""

from __future__ import annotations

from pathlib import Path

import autoseg
from autoseg.inference.bundle import check_free, write_bundle
from autoseg.inference.description import without_cases
from autoseg.inference.model import open_member_network
from autoseg.inference.model_files import final_weights, open_run
from autoseg.run_folder import RunFolder


def bundle_run(folder: Path, out: Path) -> Path:
    """Write the model of the finished run in ``folder`` as the bundle ``out``, and return ``out``.

    Weights of the chosen configurations and of the stages that they build on, the plan, how they were trained, the
    selection with its postprocessing, channels and labels; nothing of the cases. Raises `AutosegError` for a run that is not
    finished, weights that do not fit the plan, and an ``out`` that exists.
    """
    check_free(out)
    files = open_run(folder)
    description = files.description.model_copy(update={"dataset": without_cases(files.description.dataset)})

    def weights(name: str, fold: int) -> bytes:
        open_member_network(files, name, fold)  # refuses weights of another network
        return final_weights(RunFolder(folder), name, fold).read_bytes()

    write_bundle(out, description, weights, key=files.key, version=autoseg.__version__)
    return out
