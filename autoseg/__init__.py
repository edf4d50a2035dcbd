"""From a folder of labelled volumes to a trained, cross-validated segmentation model.

``autoseg.run("folder", budget="2h")`` does everything, ``autoseg.Predictor`` uses what comes out; every other command is a
function, too. They are loaded when first asked for, so that ``import autoseg`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoseg.api import check as check
    from autoseg.api import check_submission as check_submission
    from autoseg.api import clean as clean
    from autoseg.api import compare as compare
    from autoseg.api import container as container
    from autoseg.api import evaluate as evaluate
    from autoseg.api import export as export
    from autoseg.api import fingerprint as fingerprint
    from autoseg.api import measure as measure
    from autoseg.api import plan as plan
    from autoseg.api import predict as predict
    from autoseg.api import preprocess as preprocess
    from autoseg.api import rehearse as rehearse
    from autoseg.api import report as report
    from autoseg.api import run as run
    from autoseg.api import schedule as schedule
    from autoseg.api import select as select
    from autoseg.api import serve as serve
    from autoseg.api import status as status
    from autoseg.api import submit as submit
    from autoseg.api import train as train
    from autoseg.imaging.image import Image as Image
    from autoseg.imaging.readers import read_image as read_image
    from autoseg.inference.predictor import Predictor as Predictor
    from autoseg.issues import AutosegError as AutosegError
    from autoseg.issues import Issue as Issue
    from autoseg.settings import Settings as Settings
    from autoseg.stages.run import Run as Run

__version__ = "0.2.0"

_HOMES = {
    "AutosegError": "autoseg.issues",
    "Image": "autoseg.imaging.image",
    "Issue": "autoseg.issues",
    "Predictor": "autoseg.inference.predictor",
    "Run": "autoseg.stages.run",
    "Settings": "autoseg.settings",
    "read_image": "autoseg.imaging.readers",
    **dict.fromkeys(
        ("check", "check_submission", "clean", "compare", "container", "evaluate", "export", "fingerprint"),
        "autoseg.api",
    ),
    **dict.fromkeys(
        (
            "measure",
            "plan",
            "predict",
            "preprocess",
            "rehearse",
            "report",
            "run",
            "schedule",
            "select",
            "serve",
            "status",
            "submit",
            "train",
        ),
        "autoseg.api",
    ),
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"autoseg has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
