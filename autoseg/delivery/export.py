"""A model as ONNX graphs and one JSON, for programs without torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import autoseg
from autoseg.inference.bundle import ModelDescription, ModelFiles, without_cases
from autoseg.inference.engines import INPUT, OUTPUT
from autoseg.inference.exported import ExportedModel, Graph, GraphPrecision, graph_name
from autoseg.inference.model import fewer_folds, open_member_network, open_model
from autoseg.inference.ways import MeasuredWay
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import EXPORT, check_free
from autoseg.storage.atomic import save_document, temporary_folder, write_error
from autoseg.storage.cache import key_of
from autoseg.tracking.progress import Reporter

OPSET = 18
"""Of ONNX: has all that the networks need, and all runtimes since 2023 have it."""
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MakeGraph = Callable[[str, int], bytes]
"""The graph of a configuration's fold."""


def export_model(model: Path, out: Path, *, num_folds: int | None = None, reporter: Reporter) -> Path:
    """Write the model of a run folder or bundle as the folder ``out``: a graph for each network, and ``model.json``; returns ``out``.

    ``num_folds``: the networks of the first folds only. Raises `AutosegError` if ``out`` exists, and without the extra ``onnx``.
    """
    require_exportable(out)
    files = open_model(model)
    about, key = fewer_folds(files.description, files.key, num_folds)
    write_export(out, about, partial(graph_of, files), key=key_of(key, "onnx"), reporter=reporter)
    return out


def graph_of(files: ModelFiles, name: str, fold: int) -> bytes:
    """The graph of one network of a model."""
    about = files.description.plan.configuration(name)
    return to_graph(open_member_network(files, name, fold).eval(), (about.network.num_inputs, *about.patch_shape))


def require_exportable(out: Path) -> None:
    """Raise `AutosegError` where ``out`` exists, or packages are missing."""
    check_free(out)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        message, fix = f"not installed: {', '.join(missing)}", "pip install 'autoseg[onnx]'"
        raise AutosegError(Issue(code="onnx.missing", where="export", message=message, fix=fix))


def write_export(
    out: Path,
    description: ModelDescription,
    graph: MakeGraph,
    *,
    key: str,
    reporter: Reporter,
    precision: GraphPrecision = "float32",
    measured: tuple[MeasuredWay, ...] = (),
) -> None:
    """Write the folder ``out``, which appears when it is complete: nothing of the cases is in it."""
    private: dict[str, Any] = {"dataset": without_cases(description.dataset), "seen_before": (), "options": None}
    about = description.model_copy(update=private)
    pairs = [(name, fold) for name in about.stages for fold in about.selection.folds]
    try:
        with temporary_folder(out) as folder, reporter.track("Exporting networks", len(pairs)) as tracker:
            graphs = []
            for name, fold in pairs:
                content, file = graph(name, fold), graph_name(name, fold)
                (folder / file).write_bytes(content)
                digest = sha256(content).hexdigest()
                graphs.append(Graph(configuration=name, fold=fold, file=file, size=len(content), sha256=digest))
                tracker.advance(note=file)
            exported = ExportedModel(
                autoseg_version=autoseg.__version__,
                key=key,
                precision=precision,
                graphs=tuple(graphs),
                model=about,
                measured=measured,
            )
            save_document(folder / EXPORT, exported)
            folder.rename(out)
    except OSError as error:
        raise write_error(out, error) from error


def to_graph(network: nn.Module, shape: tuple[int, ...]) -> bytes:
    """The ONNX graph of a network in evaluation mode for windows of ``shape`` (C, patch...), any number of them at once."""
    windows = torch.zeros((2, *shape))
    quiet = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript")
    levels = [each.level for each in quiet]
    for each in quiet:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's exporter about its own parts
            program: Any = torch.onnx.export(
                network,
                (windows,),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("windows")},),
                opset_version=OPSET,
            )
    finally:
        for each, level in zip(quiet, levels, strict=True):
            each.setLevel(level)
    model = program.model_proto
    _forget_source(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _forget_source(model: Any) -> None:
    """Take out what the exporter notes about source files, which are paths of this machine."""
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info,
                 *model.graph.input, *model.graph.output):  # fmt: skip
        part.ClearField("doc_string")
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
