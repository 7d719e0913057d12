"""Networks are written as ONNX so that the runtime and the importer compute what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.capture.onnx import load, save_onnx
from ironbound.errors import UnsupportedOperatorError, WeightsError


class Block(nn.Module):
    """A residual sum, a difference with a factor, and arithmetic with constants on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(torch.rand(2, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.one(x)))
        y = torch.sub(x, y, alpha=0.5) + x
        return (0.3 - y * self.scale) / self.scale - self.scale


class Clips(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-0.5, 0.25) + x.clamp(min=0.1) + x.clamp(max=0.2) + x.abs()


MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3, bias=False), nn.Tanh()), (4,)),
    "last axis": (nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False)), (2, 4)),
    "convolutions": (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1),
            nn.Conv2d(3, 2, (1, 2), dilation=2, bias=False),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(2 * 6 * 4, 3),
        ),
        (2, 6, 6),
    ),
    "block": (Block(), (2, 4, 4)),
    "clips": (Clips(), (5,)),
    "identity": (nn.Identity(), (5,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_a_written_network_computes_the_same_everywhere(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, shape = MODELS[name]
    model = model.to(dtype).eval()
    x = torch.randn(3, *shape, dtype=dtype)
    path = tmp_path / "net.onnx"
    save_onnx(model, path, x)
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)
    with torch.no_grad():
        expected = model(x)
    if dtype == torch.float32:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        value = np.asarray(session.run(None, {"input": x.numpy()})[0])
        np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5, atol=1e-5)
    if name == "identity":
        return
    network = load(path)
    assert network.input_shape == shape
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(capture(network, x)(x), expected, rtol=1e-5, atol=1e-5)


def test_a_graph_is_written_compressed_and_reproducibly(tmp_path: Path) -> None:
    model = MODELS["dense"][0].float().eval()
    x = torch.randn(2, 4)
    one, two = tmp_path / "one.onnx.gz", tmp_path / "two.onnx.gz"
    save_onnx(model, one, x)
    save_onnx(capture(model, x), two, x)
    assert one.read_bytes() == two.read_bytes()
    with torch.no_grad():
        torch.testing.assert_close(load(one)(x), model(x))


def test_what_is_not_written_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    for layer, shape, reason in (
        (nn.GELU(), (4,), "'GELU' of the node 'gelu' is not written"),
        (nn.Hardsigmoid(), (4,), "only leaky ReLU, absolute value and clip"),
        (nn.MaxPool2d(2), (1, 4, 4), "'Structural windows'"),
    ):
        with pytest.raises(UnsupportedOperatorError, match=reason):
            save_onnx(layer.eval(), path, torch.zeros(1, *shape))
    with pytest.raises(UnsupportedOperatorError, match="bfloat16"):
        save_onnx(nn.ReLU().eval(), path, torch.zeros(1, 4, dtype=torch.bfloat16))
    with pytest.raises(WeightsError, match="cannot be written"):
        save_onnx(nn.ReLU().eval(), tmp_path / "nowhere" / "net.onnx", torch.zeros(1, 4))
