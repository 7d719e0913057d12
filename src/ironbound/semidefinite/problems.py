"""From functionals of a network's output to bilinear problems."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.semidefinite.bilinear import Bilinear
from ironbound.semidefinite.network import TwoLayer
from ironbound.semidefinite.rounding import COVER, gamma, up

Slopes = tuple[Tensor, Tensor]


def problems(network: TwoLayer, rows: Tensor, slopes: Slopes, radius: Tensor) -> Bilinear:
    """How far functionals of a two-layer network can move: one problem for each.

    With s in [low, high], s = mid + half w, and x' = x + r t: g V (f(Wx' + b) - f(Wx + b)) = sum_j v_j s_j W_j (r t),
    v = g V. So q = r W^T (v mid) and f = v half; neurons without a choice of slope (half = 0) drop out.

    Args:
        network: two layers.
        rows: functionals g, [n, outputs].
        slopes: low and high of the neurons' chords, [neurons], the same for all rows.
        radius: r, [inputs].

    Returns:
        The problems.
    """
    assert network.output is not None
    hidden, output = network.hidden, network.output
    low, high = slopes
    mid = (low + high) / 2
    half = torch.maximum(high - mid, mid - low)
    half = torch.where(half > 0, up(half), half)
    active = half != 0  # NaN stays: its problem has no finite bound
    through, size = rows @ output.weight, rows.abs() @ output.weight.abs()
    linear = (through * mid) @ hidden.weight * radius
    linear_size = (size * mid.abs()) @ hidden.weight.abs() * radius
    roundings = len(mid) + rows.shape[1] + hidden.roundings + output.roundings + 8
    half = half[active]
    return Bilinear(
        weight=hidden.weight[active],
        factor=through[:, active] * half,
        factor_size=size[:, active] * half * COVER,
        linear=linear,
        linear_size=linear_size * COVER,
        radius=radius[None],
        roundings=roundings,
    )


def linear_reach(network: TwoLayer, rows: Tensor, radius: Tensor) -> Tensor:
    """How far functionals of a linear classifier can move: sum_i r_i |g W|_i, which is attained.

    Source: Raghunathan et al. (2018), equation (2).

    Args:
        network: a linear classifier.
        rows: functionals g, [n, outputs].
        radius: r, [inputs].

    Returns:
        Rounded upward, [n].
    """
    layer = network.hidden
    moved = ((rows @ layer.weight).abs() * radius).sum(1)
    size = ((rows.abs() @ layer.weight.abs()) * radius).sum(1)
    return up(moved + gamma(rows.shape[1] + len(radius) + layer.roundings + 4) * size * COVER)
