"""From a folder of labelled volumes to a trained, cross-validated segmentation model.

Every stage is a function: ``autoseg.Options`` says what to do, ``autoseg.run_all`` does it, ``autoseg.Predictor`` uses what
comes out. They are loaded when first asked for, so that ``import autoseg`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.2.0"

_HOMES = {
    "Options": "autoseg.pipeline.options",
    "Predictor": "autoseg.inference.predictor",
    "RunFolder": "autoseg.run_folder",
    "check_stage": "autoseg.pipeline.stages",
    "fingerprint_stage": "autoseg.pipeline.stages",
    "plan_stage": "autoseg.pipeline.stages",
    "predict_stage": "autoseg.pipeline.predicting",
    "preprocess_stage": "autoseg.pipeline.stages",
    "run_all": "autoseg.pipeline.run",
    "schedule_stage": "autoseg.pipeline.training",
    "select_stage": "autoseg.pipeline.selecting",
    "train_stage": "autoseg.pipeline.training",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"autoseg has no {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(_HOMES[name]), name)
