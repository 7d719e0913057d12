"""The image of a box under a linear layer, with a gradient that leaves out outputs on which nothing depends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class LinearImage(torch.autograd.Function):
    """(c, r, W, b) -> (c W^T + b, r |W|^T).

    Training for certified bounds leaves many units closed at 0 for a whole batch. Nothing flows back to them, so their
    rows are left out of all four products of the gradient.
    """

    @staticmethod
    def forward(ctx, center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Both products; |W| is made once and kept."""
        size = weight.abs()
        ctx.save_for_backward(center, radius, weight, size)
        return F.linear(center, weight, bias), F.linear(radius, size)

    @staticmethod
    def backward(ctx, middle: Tensor, half: Tensor):  # type: ignore[override]
        """The gradient of both at once."""
        center, radius, weight, size = ctx.saved_tensors
        needs = ctx.needs_input_grad
        offset = middle.sum_to_size(len(weight)) if needs[3] else None
        live = torch.nonzero(_any_row(middle) | _any_row(half)).squeeze(1)
        outputs = len(weight)
        if pruned := len(live) < outputs:
            middle, half = middle.index_select(-1, live), half.index_select(-1, live)
            weight, size = weight.index_select(0, live), size.index_select(0, live)
        slope = None
        if needs[2]:
            slope = torch.addcmul(_outer(middle, center), _outer(half, radius), weight.sgn())
            if pruned:
                slope = slope.new_zeros(outputs, slope.shape[1]).index_copy(0, live, slope)
        return middle @ weight if needs[0] else None, half @ size if needs[1] else None, slope, offset


def _any_row(gradient: Tensor) -> Tensor:
    """Which outputs have a gradient (NaN is one) in some row, bool [out features]."""
    return gradient.detach().flatten(0, -2).ne(0).any(0)


def _outer(gradient: Tensor, value: Tensor) -> Tensor:
    """The sum over all rows of their outer products, [out features, in features]."""
    return gradient.flatten(0, -2).t() @ value.flatten(0, -2)
