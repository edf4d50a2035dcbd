"""Graphs from elsewhere: what is let in, and what computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autoseg.inference.engines import ENGINES, require_data_only, require_engine
from autoseg.issues import AutosegError

WEIGHTS = np.random.default_rng(0).normal(0, 1, (3, 2, 3, 3, 3)).astype(np.float32)
SHAPE = ("windows", 2, 8, 8, 8)


def graph(change: Callable[[Any], object] = lambda model: None, *, domain: str = "", outputs: int = 3) -> bytes:
    """One convolution from 2 to 3 channels."""
    node = helper.make_node("Conv", ["image", "w"], ["logits"], pads=[1] * 6, domain=domain)
    model = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("windows", outputs, 8, 8, 8))],
            [numpy_helper.from_array(WEIGHTS, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])],
        ir_version=9,
    )
    change(model)
    return model.SerializeToString()


def refused(content: bytes) -> AutosegError:
    with pytest.raises(AutosegError) as caught:
        require_data_only(content, "a.onnx", inputs=2, outputs=3)
    return caught.value


@pytest.mark.parametrize("name", ENGINES.names())
def test_engines_compute_any_number_of_windows_as_torch_does(name: str) -> None:
    network = require_engine(name)(graph(), num_threads=1)
    windows = torch.randn((3, *SHAPE[1:]), generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.conv3d(windows, torch.from_numpy(WEIGHTS), padding=1)
    # sums of 54 products near 1: float32 rounds to 1e-6, bfloat16 each factor to 2**-9
    tolerance = 0.2 if name.endswith("bfloat16") else 1e-4
    for number in (1, 3):
        found = network(windows[:number].flip(2))
        torch.testing.assert_close(
            found, torch.nn.functional.conv3d(windows[:number].flip(2), torch.from_numpy(WEIGHTS), padding=1),
            atol=tolerance, rtol=0,
        )  # fmt: skip
    first = network(windows)
    network(windows + 1)
    torch.testing.assert_close(first, expected, atol=tolerance, rtol=0)  # not overwritten by the next windows


def test_standard_graphs_are_let_in() -> None:
    require_data_only(graph(), "a.onnx", inputs=2, outputs=3)


def other_file(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def other_file_in_a_branch(model: Any) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS, "c"))
    tensor = constant.attribute[0].t
    tensor.data_location = TensorProto.EXTERNAL
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)])
    model.graph.node.append(helper.make_node("If", ["image"], ["x"], then_branch=branch, else_branch=branch))


def own_operator(model: Any) -> None:
    model.functions.append(
        helper.make_function(
            "own", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 18)]
        )
    )


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (graph(domain="com.example"), "onnx.not_standard", "com.example.Conv"),
        (graph(other_file), "onnx.not_standard", "another file"),
        (graph(other_file_in_a_branch), "onnx.not_standard", "another file"),
        (graph(own_operator), "onnx.not_standard", "operators of its own: f"),
        (graph(outputs=4), "onnx.damaged", "('logits', 4)"),
        (b"not a graph", "onnx.damaged", "no ONNX graph"),
    ],
)
def test_graphs_that_are_more_than_data_are_refused(content: bytes, code: str, told: str) -> None:
    error = refused(content)
    assert code in error.codes
    assert told in str(error)


def test_the_fixture_is_a_valid_graph() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(graph()))


def test_engines_that_are_not_known_are_named() -> None:
    with pytest.raises(AutosegError, match=r"no-such.*onnxruntime"):
        require_engine("no-such")
