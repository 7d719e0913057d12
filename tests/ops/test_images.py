"""The image of a box under a linear layer or a convolution: its own gradients equal those of the two plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ironbound.ops.affine import Convolution, Linear
from ironbound.ops.convolution_image import ConvolutionImage
from ironbound.ops.operator import Affine

# channels in, kernel, stride, padding, input extents; the input may go beyond what the stride reaches
STRIDED = [
    (3, (4, 4), 2, (1, 1), (14, 14)),
    (2, (2, 2), 2, (0, 0), (7, 9)),
    (3, (4, 2), 2, (3, 1), (9, 8)),
    (1, (6, 3), 3, (2, 0), (11, 10)),
    (2, (4, 4), 4, (0, 2), (9, 11)),
    (2, (2, 2), 2, (4, 5), (3, 2)),
]


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _compare(operator: Linear | Convolution, center: Tensor, radius: Tensor, closed: list[int]) -> None:
    """Values and all gradients against `Affine.image`; outputs `closed` (second axis) receive no gradient."""
    inputs = [center, radius, *operator.tensors()]
    for tensor in inputs:
        tensor.requires_grad_()
    found, wanted = operator.image((center,), (radius,)), Affine.image(operator, (center,), (radius,))
    upper = [_draw(*part.shape) for part in wanted]
    for part in upper:
        part[:, closed] = 0
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)
    some = torch.autograd.grad(found, inputs, upper)
    for one, two in zip(some, torch.autograd.grad(wanted, inputs, upper), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("closed", [[], [1, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("axes", [(), (3,)])
def test_linear(closed: list[int], shared: bool, axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    operator = Linear(_draw(5, 4), _draw(5))
    closed = [] if axes else closed  # the outputs are on the last axis
    _compare(operator, _draw(6, *axes, 4), _draw(1 if shared else 6, *axes, 4).abs(), closed)
    _compare(Linear(_draw(5, 4)), _draw(6, *axes, 4), _draw(6, *axes, 4).abs(), closed)


def test_linear_output_open_in_one_of_many_ways() -> None:
    """An output keeps its gradient if only the radius, or only one example, has one; NaN stays NaN."""
    weight = _draw(3, 2).requires_grad_()
    center, radius = _draw(4, 2), _draw(4, 2).abs()
    middle, half = Linear(weight).image((center,), (radius,))
    upper = [torch.zeros_like(middle), torch.zeros_like(half)]
    upper[0][2, 0], upper[1][3, 1] = torch.nan, 2.0
    (slope,) = torch.autograd.grad((middle, half), weight, upper)
    assert torch.isnan(slope[0]).all()
    torch.testing.assert_close(slope[1].detach(), 2 * radius[3] * weight[1].detach().sign())
    assert (slope[2] == 0).all()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", STRIDED)
def test_strided_convolution(case: tuple, shared: bool) -> None:
    torch.manual_seed(1)
    channels, kernel, stride, padding, extents = case
    weight = _draw(4, channels, *kernel)
    operator = Convolution(weight, _draw(4), (stride, stride), padding, (1, 1))
    center, radius = _draw(3, channels, *extents), _draw(1 if shared else 3, channels, *extents).abs()
    _compare(operator, center, radius, [1])
    middle, _ = operator.image((center,), (radius,))
    assert type(middle.grad_fn).__name__ == f"{ConvolutionImage.__name__}Backward"


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "kernel"),
    [
        ((1, 1), (1, 1), 1, 2),
        ((2, 2), (2, 2), 1, 2),
        ((2, 2), (1, 1), 2, 2),
        ((2, 2), (1, 1), 1, 3),
        ((2, 1), (1, 1), 1, 2),
    ],
)
def test_other_convolutions(stride: tuple, dilation: tuple, groups: int, kernel: int) -> None:
    torch.manual_seed(2)
    operator = Convolution(_draw(4, 2 // groups, kernel, kernel), None, stride, (1, 1), dilation, groups)
    _compare(operator, _draw(3, 2, 8, 7), _draw(3, 2, 8, 7).abs(), [])
