"""Whole networks: the exporters' spellings of one layer agree, and the competition's networks open and capture."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cases import CASES, Case
from ironbound.bounding import bounds
from ironbound.capture import capture
from ironbound.capture.onnx import load, save_onnx
from ironbound.errors import UnsupportedOperatorError
from ironbound.regions import LinfBall
from onnx_cases import build, node, normal, whole, written

WEIGHT, BIAS = normal(4, 2, 3, 3), normal(4)
HEAD, OFFSET = normal(4 * 3 * 3, 5), normal(5)


def expected(x: Tensor) -> Tensor:
    """A strided convolution with TensorFlow's SAME padding (0 in front, 1 behind), ReLU, and a linear layer."""
    x = torch.relu(F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.from_numpy(WEIGHT), torch.from_numpy(BIAS), 2))
    return x.flatten(1) @ torch.from_numpy(HEAD) + torch.from_numpy(OFFSET)


def rows_last() -> np.ndarray:
    """The head's rows in the order of a flattened [height, width, channels] map."""
    return HEAD.reshape(4, 3, 3, 5).transpose(1, 2, 0, 3).reshape(-1, 5).copy()


SPELLINGS = {
    "pytorch": (
        [
            node("Pad", "x p", "a"),
            node("Conv", "a w b", "c", strides=[2, 2]),
            node("Relu", "c", "r"),
            node("Flatten", "r", "f"),
            node("Gemm", "f ht o", "y", transB=1),
        ],
        False,
    ),
    "asymmetric pads": (
        [
            node("Conv", "x w b", "c", strides=[2, 2], pads=[0, 0, 1, 1]),
            node("Relu", "c", "r"),
            node("Reshape", "r flat", "f"),
            node("MatMul", "f h", "m"),
            node("Add", "m o", "y"),
        ],
        False,
    ),
    "tensorflow": (
        [
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            node("Conv", "t w", "c", strides=[2, 2], auto_pad="SAME_UPPER"),
            node("Transpose", "c", "u", perm=[0, 2, 3, 1]),
            node("Add", "u b", "d"),
            node("Relu", "d", "r"),
            node("Reshape", "r flat", "f"),
            node("MatMul", "f hl", "m"),
            node("Add", "m o", "y"),
        ],
        True,
    ),
    "keras": (
        [
            node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
            node("Conv", "t w b", "c", strides=[2, 2], auto_pad="SAME_UPPER"),
            node("Relu", "c", "r"),
            node("Transpose", "r", "u", perm=[0, 2, 3, 1]),
            node("Shape", "u", "s"),
            node("Slice", "s zero one", "n"),
            node("Concat", "n minus", "k", axis=0),
            node("Reshape", "u k", "f"),
            node("Gemm", "f hl o", "y"),
        ],
        True,
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("batch", [1, "N"])
def test_the_exporters_spellings_agree(name: str, batch: int | str, tmp_path: Path) -> None:
    nodes, last = SPELLINGS[name]
    constants = {
        **{"w": WEIGHT, "b": BIAS, "h": HEAD, "ht": HEAD.T.copy(), "hl": rows_last(), "o": OFFSET},
        **{"p": whole(0, 0, 0, 0, 0, 0, 1, 1), "flat": whole(-1, 36) if batch == "N" else whole(1, 36)},
        **{"zero": whole(0), "one": whole(1), "minus": whole(-1)},
    }
    shape = (batch, 6, 6, 2) if last else (batch, 2, 6, 6)
    network = load(written(tmp_path, build(nodes, shape, constants)))
    x = torch.randn(3, 2, 6, 6)
    given = x.permute(0, 2, 3, 1).contiguous() if last else x
    with torch.no_grad():
        torch.testing.assert_close(network(given), expected(x), rtol=1e-5, atol=1e-5)
    result = bounds(network, LinfBall(given, 0.05), method="crown")
    noise = (torch.rand(200, *given.shape[1:]) * 2 - 1) * 0.05
    with torch.no_grad():
        values = network(given[:1] + noise)
    lower, upper = result.lower[:1], result.upper[:1]
    assert ((values >= lower - 1e-5) & (values <= upper + 1e-5)).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pytorchs_exporter_and_back(case: Case, tmp_path: Path) -> None:
    model, x, path = case.model(), case.inputs(), tmp_path / "net.onnx"
    names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "N"}}, "dynamo": False}
    with warnings.catch_warnings():  # this exporter will go; the other one needs a package more
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), **names)
    try:
        network = load(path)
    except UnsupportedOperatorError as error:
        assert not case.piecewise, error  # GELU and SiLU are exported as products of values
        return
    assert network.input_shape == case.shape
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(capture(network, x)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.shared
def test_the_competitions_networks_open_and_capture(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "vnncomp").glob("*/onnx/*.onnx*"))
    if not paths:
        pytest.skip("the shared folder has no competition networks")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    for path in paths:
        network = load(path)
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        x = torch.rand(2, *network.input_shape)
        graph = capture(network, x)
        with torch.no_grad():
            value, captured = network(x), graph(x)
        name = session.get_inputs()[0].name
        for index in range(2):
            reference = np.asarray(session.run(None, {name: x[index : index + 1].numpy()})[0])
            np.testing.assert_allclose(value[index : index + 1].numpy(), reference, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(captured, value, rtol=1e-4, atol=1e-4)
        if "ACASXU" not in path.name:
            save_onnx(graph, tmp_path / "again.onnx", x)
            with torch.no_grad():
                torch.testing.assert_close(load(tmp_path / "again.onnx")(x), value, rtol=1e-5, atol=1e-5)
