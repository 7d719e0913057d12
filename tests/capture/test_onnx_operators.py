"""Every ONNX operator and spelling computes what the runtime does, for any batch, before and after capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from capture_laws import check_affine
from ironbound.capture import capture
from ironbound.capture.onnx import load
from onnx_cases import CASES, Case, written


def reference(model: onnx.ModelProto, x: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_computes_what_the_runtime_does(case: Case, tmp_path: Path) -> None:
    model = case.model()
    network = load(written(tmp_path, model))
    assert network.input_shape == case.shape
    assert not network.training
    x = torch.randn(3, *case.shape)
    with torch.no_grad():
        value = network(x)
    assert value.shape == (3, *network.output_shape)
    for index in range(3):
        expected = reference(model, x[index : index + 1])
        np.testing.assert_allclose(value[index : index + 1].numpy(), expected, rtol=1e-5, atol=1e-5)
    graph = capture(network, x)
    assert graph.output_shape == network.output_shape
    with torch.no_grad():
        torch.testing.assert_close(graph(x), value, rtol=1e-5, atol=1e-5)
    network = network.double()
    check_affine(capture(network, x.double()), torch.Generator().manual_seed(3))
