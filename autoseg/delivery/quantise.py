"""ONNX graphs whose convolutions compute in 8 bits, by ONNX Runtime's static quantisation."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.inference.engines import INPUT

Windows = NDArray[np.float32]
"""(1, C, patch...)."""


class _Calibration:
    """Windows, one after the other, as the quantisation asks for them."""

    def __init__(self, windows: Sequence[Windows]) -> None:
        self._left = iter(windows)

    def get_next(self) -> dict[str, Windows] | None:
        window = next(self._left, None)
        return None if window is None else {INPUT: window}


def quantise(graph: bytes, windows: Sequence[Windows]) -> bytes:
    """The float32 ``graph`` with its convolutions in 8 bits, whose ranges are those that ``windows`` of training cases have.

    Weights have a scale for each output channel. The last convolution stays as it is: its logits are compared. Norms and
    transposed convolutions have no 8-bit form in the runtimes. Inputs and outputs stay float32.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    last = next(node.name for node in reversed(model.graph.node) if node.op_type == "Conv")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "graph.onnx"
        quantize_static(
            model,
            str(path),
            _Calibration(windows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=[last],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return path.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the runtime's advice on how it could be called otherwise."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
