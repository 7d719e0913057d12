from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from capture_laws import Apply, captured
from ironbound.ops.affine import Convolution, Linear

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "stride": 2, "padding": 1},
        {"padding": 2, "dilation": 2, "groups": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "valid", "stride": 2},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate", "stride": 2},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_convolution(axes: int, options: dict) -> None:
    captured(CONVOLUTIONS[axes](2, 4, 3, **options), (2, *(7, 6, 5)[:axes]))


@pytest.mark.parametrize("kernel", [2, 4, (2, 3)])
def test_convolution_with_even_kernel_and_padding_same(kernel: int | tuple[int, int]) -> None:
    graph = captured(nn.Conv2d(1, 2, kernel, padding="same"), (1, 5, 6))
    assert [type(node.operator).__name__ for node in graph.nodes] == ["Input", "Structural", "Convolution"]


def test_convolution_with_zero_padding_is_one_node() -> None:
    graph = captured(nn.Conv2d(1, 2, 3, padding="same"), (1, 5, 6))
    (operator,) = (node.operator for node in graph.nodes[1:])
    assert isinstance(operator, Convolution)
    assert operator.padding == (1, 1)


@settings(max_examples=25)
@given(data=st.data(), axes=st.integers(1, 2))
def test_any_convolution(data: st.DataObject, axes: int) -> None:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, padding, dilation, groups = (
        each(1, 4),
        each(1, 3),
        each(0, 2),
        each(1, 3),
        data.draw(st.integers(1, 2)),
    )
    extent = each(3, 9)
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    layer = CONVOLUTIONS[axes](2, 2, kernel, stride, padding, dilation, groups, data.draw(st.booleans()))
    captured(layer, (2, *extent))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1, "output_padding": 1, "bias": False}, {"groups": 2, "dilation": 2}],
    ids=str,
)
def test_transposed_convolution(axes: int, options: dict) -> None:
    captured(TRANSPOSED[axes](2, 4, 3, **options), (2, *(4, 3, 3)[:axes]))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda own, x: F.linear(x, own.w, own.b), (4,)),
        (lambda own, x: F.linear(x, own.w), (2, 3, 4)),
        (lambda own, x: x @ own.w.t() + own.b, (4,)),
        (lambda own, x: torch.mm(x, own.w.T), (4,)),
        (lambda own, x: torch.addmm(own.b, x, own.w.t()), (4,)),
        (lambda own, x: torch.matmul(own.w, x), (4, 3)),
        (lambda own, x: x @ own.w[0], (4,)),
        (lambda own, x: x @ own.w[0], (3, 4)),
        (lambda own, x: own.w[1] @ x, (4, 3)),
    ],
)
def test_products_with_a_constant_are_linear(function, shape: tuple[int, ...]) -> None:
    own = {"w": nn.Parameter(torch.randn(5, 4)), "b": nn.Parameter(torch.randn(5))}
    model = Apply(function, **own)
    graph = captured(model, shape)
    assert sum(isinstance(node.operator, Linear) for node in graph.nodes) == 1
    graph(torch.randn(2, *shape, dtype=torch.float64)).sum().backward()
    assert model.w.grad is not None and model.w.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_a_view_of_a_parameter_stays_live_through_optimizer_steps() -> None:
    model = Apply(lambda own, x: x @ own.w.t(), w=nn.Parameter(torch.randn(5, 4)))
    graph = captured(model, (4,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(3, 4, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        graph(x).square().sum().backward()
        expected = torch.autograd.grad(model(x).square().sum(), model.w)[0]
        torch.testing.assert_close(model.w.grad, expected)
        optimizer.step()
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 4), (3, 2, 2, 2)])
def test_batch_norm(shape: tuple[int, ...], affine: bool) -> None:
    layer = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(shape) - 1]
    module = layer(3, affine=affine, eps=0.1)
    assert module.running_mean is not None and module.running_var is not None
    module.running_mean.normal_()
    module.running_var.uniform_(0.2, 3)
    graph = captured(module, shape)
    assert len(graph.nodes) == 2
