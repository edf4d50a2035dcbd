"""Networks that were exported as ONNX graphs, computed by another runtime than torch.

A graph is data: only operators of the ONNX standard are let in, nothing that a runtime would load code or other files for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from autoseg.issues import AutosegError, Issue
from planners import Registry

INPUT = "image"
"""Name of a graph's input, float32 (N, C, patch...)."""
OUTPUT = "logits"
"""Name of its output, float32 (N, K, patch...)."""
STANDARD = {"", "ai.onnx"}
"""Domains of operators that come with every runtime."""
AGAIN = "export the model again: autoseg export MODEL OUT"


class Network(Protocol):
    """What prediction needs of a network: a torch module is one, and a graph that another runtime computes."""

    def __call__(self, windows: Tensor, /) -> Tensor:
        """Logits (N, K, patch...) of windows float32 (N, C, patch...), each window on its own."""


class Engine(Protocol):
    """Makes a network of an ONNX graph."""

    def __call__(self, graph: bytes, *, num_threads: int) -> Network: ...


ENGINES: Registry[Engine] = Registry(
    group="autoseg.engines",
    noun="engine",
    own={
        "onnxruntime": "autoseg.inference.engines:by_onnxruntime",
        "openvino": "autoseg.inference.engines:by_openvino",
        "openvino-bfloat16": "autoseg.inference.engines:by_openvino_bfloat16",
    },
)
"""Runtimes for exported models on CPUs, by the name that ``--engine`` takes; packages add theirs as entry points."""


def by_onnxruntime(graph: bytes, *, num_threads: int) -> Network:
    """ONNX Runtime on the CPU, in the precision of the graph."""
    runtime = _need("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads sleep while they wait (0200)
    session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def compute(windows: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: windows.contiguous().numpy()})[0])

    return compute


def by_openvino(graph: bytes, *, num_threads: int, precision: str = "f32") -> Network:
    """OpenVINO on the CPU; in float32, where it would choose bfloat16 itself on processors that have it."""
    openvino = _need("openvino", extra="openvino")
    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", options)

    def compute(windows: Tensor) -> Tensor:
        found = compiled({INPUT: windows.contiguous().numpy()}, share_inputs=True)[OUTPUT]
        return torch.from_numpy(found.copy())  # its own memory is used again for the next windows

    return compute


def by_openvino_bfloat16(graph: bytes, *, num_threads: int) -> Network:
    """OpenVINO on the CPU, in bfloat16 with sums in float32."""
    return by_openvino(graph, num_threads=num_threads, precision="bf16")


def require_data_only(graph: bytes, where: str, *, inputs: int, outputs: int) -> None:
    """Raise `AutosegError` for a graph that is damaged, or asks for anything but standard operators on ``inputs`` and ``outputs`` channels."""
    onnx = _need("onnx", extra="onnx")
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as error:  # protobuf's own, which differ between its versions
        issue = Issue(code="onnx.damaged", where=where, message=f"no ONNX graph: {type(error).__name__}", fix=AGAIN)
        raise AutosegError(issue) from error
    issues = [
        Issue(
            code="onnx.not_standard",
            where=where,
            message=fault,
            fix="use only models from people you trust, and " + AGAIN,
        )
        for fault in dict.fromkeys(_faults(model, onnx))
    ]
    channels = [
        (each.name, each.type.tensor_type.shape.dim[1].dim_value if len(each.type.tensor_type.shape.dim) > 1 else 0)
        for each in (*model.graph.input, *model.graph.output)
    ]
    if channels != [(INPUT, inputs), (OUTPUT, outputs)]:
        message = (
            f"has {channels} instead of {[(INPUT, inputs), (OUTPUT, outputs)]} as input and output with their channels"
        )
        issues.append(Issue(code="onnx.damaged", where=where, message=message, fix=AGAIN))
    if issues:
        raise AutosegError(*issues)


def _faults(model: Any, onnx: Any) -> Iterator[str]:
    """What a runtime would need code or files for."""
    if model.functions:
        yield f"defines operators of its own: {', '.join(sorted(each.name for each in model.functions))}"
    graphs = [model.graph]
    for graph in graphs:
        for node in graph.node:
            if node.domain not in STANDARD:
                yield f"uses the operator {node.domain}.{node.op_type}, which is not in the ONNX standard"
            for attribute in node.attribute:
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                if _is_external(attribute.t, onnx) or any(_is_external(each, onnx) for each in attribute.tensors):
                    yield "refers to another file"
        sparse = [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
        if any(_is_external(each, onnx) for each in (*graph.initializer, *sparse)):
            yield "refers to another file"


def _is_external(tensor: Any, onnx: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data)


def require_engine(name: str) -> Engine:
    """The engine of that name; raises `AutosegError` for one that is not known."""
    if name not in ENGINES.names():
        message, fix = f"is no engine: {name}", f"choose {', '.join(ENGINES.names())}"
        raise AutosegError(Issue(code="onnx.engine", where="--engine", message=message, fix=fix))
    return ENGINES.get(name)


def _need(package: str, *, extra: str) -> Any:
    """A package of an extra; raises `AutosegError` where it is not installed."""
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        fix = f"pip install 'autoseg[{extra}]'"
        raise AutosegError(Issue(code="onnx.missing", where=package, message="is not installed", fix=fix)) from error
