from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from capture_laws import Apply, captured
from ironbound.ops.piecewise import Maximum

EXTENTS = (7, 6, 5)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [(2,), (3, 2, 1), (3, 2, 1, True), (2, 2, 0, True, False), (3, 1, 1, False, False)],
    ids=str,
)
def test_average_pool(axes: int, options: tuple) -> None:
    layer = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
    graph = captured(layer(*options), (2, *EXTENTS[:axes]))
    assert len(graph.nodes) == 2


def test_average_pool_with_another_divisor() -> None:
    captured(nn.AvgPool2d(2, divisor_override=3), (2, 4, 4))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_adaptive_pools(axes: int, size: int) -> None:
    shape = (2, *EXTENTS[:axes])
    captured((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1](size), shape)
    graph = captured((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[axes - 1](size), shape)
    assert isinstance(graph.nodes[-1].operator, Maximum)


@settings(max_examples=40)
@given(data=st.data(), axes=st.integers(1, 3), ceil_mode=st.booleans())
def test_any_max_pool(data: st.DataObject, axes: int, ceil_mode: bool) -> None:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, dilation, extent = each(1, 3), each(1, 3), each(1, 2), each(4, 7)
    padding = tuple(data.draw(st.integers(0, size // 2)) for size in kernel)
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(extent, padding, dilation, kernel, strict=True)))
    layer = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    graph = captured(layer, (2, *extent))
    assert isinstance(graph.nodes[-1].operator, Maximum)
    assert len(graph.nodes) == 3


@pytest.mark.parametrize("kernel", [2, (3, 2)])
def test_max_pool_that_tiles_the_image(kernel: int | tuple[int, int]) -> None:
    captured(nn.MaxPool2d(kernel), (2, 6, 6))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.amax(1),
        lambda x: x.amax((1, 3), keepdim=True),
        lambda x: x.amin(-1),
        lambda x: x.max(2).values,
        lambda x: x.min(2, keepdim=True)[0],
        lambda x: torch.maximum(x, -x),
        lambda x: torch.minimum(x, x[:, :1]),
        lambda x: torch.max(x, 2 * x + 1),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    ],
)
def test_maxima(function) -> None:
    captured(Apply(function), (2, 3, 4))
