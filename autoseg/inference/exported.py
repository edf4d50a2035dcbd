"""Models that were exported for other runtimes: a folder with an ONNX graph for each network, and one JSON that says all the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from autoseg.inference.bundle import ModelDescription
from autoseg.inference.engines import AGAIN, INPUT, OUTPUT, Engine, Network, require_data_only
from autoseg.inference.sliding_window import SIGMA, STEP
from autoseg.inference.ways import MeasuredWay
from autoseg.issues import AutosegError, Issue
from autoseg.run_folder import EXPORT
from autoseg.storage.atomic import load_document
from planners import Document

GraphPrecision = Literal["float32", "int8"]


class Graph(Document):
    """One network as a file beside the JSON."""

    configuration: str
    fold: int
    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+\.onnx$")]
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    sha256: str


class WindowRule(Document):
    """How windows are laid over a preprocessed image, and weighted."""

    step: float = STEP
    """Largest distance of two windows, as a share of the patch."""
    sigma: float = SIGMA
    """Of the Gaussian weights, as a share of the patch."""


class ExportedModel(Document):
    """``model.json`` of an exported model: what a program needs to know besides the graphs."""

    format: Literal["autoseg onnx"] = "autoseg onnx"
    schema_version: Literal[1] = 1
    autoseg_version: str
    key: str
    """Of the model: changes when the graphs or their use change."""
    precision: GraphPrecision = "float32"
    """Of the graphs; their inputs and outputs are float32."""
    input: str = INPUT
    """Name of the input of each graph, float32 (N, C, patch...), any N."""
    output: str = OUTPUT
    """Name of the output, float32 (N, K, patch...)."""
    windows: WindowRule = WindowRule()
    graphs: tuple[Graph, ...]
    model: ModelDescription
    """Plan, channels, labels, selection."""
    measured: tuple[MeasuredWay, ...] = ()
    """Of 8-bit graphs: what they cost and gain against float32, on cases that the networks were not trained on."""


def graph_name(configuration: str, fold: int) -> str:
    """Name of the file of one network."""
    return f"{configuration}_fold_{fold}.onnx"


def open_exported(folder: Path) -> ExportedModel:
    """What the JSON of an exported model says; graphs are read later. Raises `AutosegError` for one that is damaged or incomplete."""
    path = folder / EXPORT
    found = load_document(ExportedModel, path, fix=AGAIN)
    have = {(each.configuration, each.fold) for each in found.graphs}
    need = {(name, fold) for name in found.model.stages for fold in found.model.selection.folds}
    if need != have:
        names = ", ".join(graph_name(*each) for each in sorted(need ^ have))
        message = f"lists other graphs than its selection needs: {names}"
        raise AutosegError(Issue(code="onnx.damaged", where=str(path), message=message, fix=AGAIN))
    return found


def open_networks(
    exported: ExportedModel, folder: Path, engine: Engine, *, folds: Sequence[int], num_threads: int
) -> Mapping[tuple[str, int], Network]:
    """The networks of ``folds`` by configuration and fold. Raises `AutosegError` for files that are missing, changed, or more than data."""
    networks = {}
    for graph in (each for each in exported.graphs if each.fold in folds):
        path, about = folder / graph.file, exported.model.plan.configuration(graph.configuration).network
        try:
            content = path.read_bytes() if path.stat().st_size == graph.size else b""
        except OSError as error:
            message = f"could not be read ({error.strerror})"
            raise AutosegError(Issue(code="onnx.damaged", where=str(path), message=message, fix=AGAIN)) from error
        if sha256(content).hexdigest() != graph.sha256:
            message = f"is not the file that {EXPORT} lists: another size or SHA-256"
            raise AutosegError(Issue(code="onnx.damaged", where=str(path), message=message, fix=AGAIN))
        require_data_only(content, str(path), inputs=about.num_inputs, outputs=about.num_outputs)
        networks[graph.configuration, graph.fold] = engine(content, num_threads=num_threads)
    return networks
