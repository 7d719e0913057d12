"""Slopes of activations: the range of all chords, and of the chords that begin at a given point."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.ops.operator import Activation
from ironbound.ops.piecewise import PiecewiseLinear
from ironbound.ops.smooth import Gated, Sigmoid, Tanh
from ironbound.semidefinite.rounding import UNIT

# derivatives of smooth activations lie in [-0.2, 1.2] and are computed with a handful of roundings of such numbers
_DERIVATIVE_ERROR = 1e-12
_QUOTIENT_ERROR = 8 * UNIT  # of (z - knot) / r where it lies in [-1, 2]


def slope_range(activation: Activation) -> tuple[float, float]:
    """The least and the largest slope of any chord of an activation.

    Args:
        activation: the operator.

    Returns:
        (low, high), rounded outward: (0, 1) for ReLU and tanh, (0, 1/4) for the sigmoid.

    Raises:
        InputError: no range is known.
    """
    if isinstance(activation, PiecewiseLinear):
        return min(activation.slopes), max(activation.slopes)
    if isinstance(activation, Sigmoid):
        return 0.0, 0.25
    if isinstance(activation, Tanh):
        return 0.0, 1.0
    if isinstance(activation, Gated):
        # the derivative's extrema lie where f'' = 0, at ± bend: an error of the bend counts only squared
        bend = torch.tensor([-activation.bend, activation.bend], dtype=torch.float64)
        low, high = activation.derivative(bend).tolist()
        return low - _DERIVATIVE_ERROR, high + _DERIVATIVE_ERROR
    raise InputError(
        f"no range of slopes is known of {type(activation).__name__}; use method 'dual', 'crown' or 'alpha'."
    )


def chord_range(activation: Activation, start: Tensor, error: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges that hold the slopes of all chords that begin at a point and end at most `reach` away.

    For every z' in [z - r, z + r] there is an s in the range with f(z') - f(z) = s (z' - z). For ReLU it is
    [min(1, z / r), 1] where z >= 0 and [0, max(0, 1 + z / r)] where z < 0: clamp(z / r, 0, 1) below and
    clamp(1 + z / r, 0, 1) above. A piecewise linear function is a sum of a line and of ReLUs, one for each kink.

    Args:
        activation: the operator.
        start: z, float64 [...].
        error: what the true z is off by at most, [...].
        reach: r >= 0, [...].

    Returns:
        (low, high), rounded outward, within `slope_range`; NaN where z or r is.

    Raises:
        InputError: no range is known.
    """
    least, most = slope_range(activation)
    if isinstance(activation, PiecewiseLinear):
        low, high = _sum_of_kinks(activation, start, error, reach)
    else:
        low, high = _derivatives(activation, start - error - reach, start + error + reach)
    return low.clamp(min=least, max=most), high.clamp(min=least, max=most)


def _sum_of_kinks(activation: PiecewiseLinear, start: Tensor, error: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.full_like(start, activation.slopes[0])
    high = low.clone()
    unit = torch.where(reach == 0, 1.0, reach)  # where the reach is 0 any slope serves; NaN stays
    noise = 0.0
    for knot, before, after in zip(activation.knots, activation.slopes, activation.slopes[1:], strict=False):
        least = ((start - knot - error) / unit - _QUOTIENT_ERROR).clamp(0.0, 1.0)
        most = (1 + (start - knot + error) / unit + _QUOTIENT_ERROR).clamp(0.0, 1.0)
        bend = after - before
        low = low + bend * (least if bend > 0 else most)
        high = high + bend * (most if bend > 0 else least)
        noise += abs(bend) + abs(before) + abs(after)
    if activation.slopes == (0.0, 1.0):
        return low, high  # of 0 and one share: nothing is rounded, and closed neurons stay exactly closed
    noise *= 8 * UNIT * len(activation.slopes)
    return low - noise, high + noise


def _derivatives(activation: Activation, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """By the mean value theorem a chord's slope is a derivative within its ends."""
    assert isinstance(activation, Sigmoid | Tanh | Gated)
    ends = activation.derivative(lower), activation.derivative(upper)
    low, high = torch.minimum(*ends), torch.maximum(*ends)
    turns = (-activation.bend, activation.bend) if isinstance(activation, Gated) else (0.0,)
    for turn in turns:
        # a little wider than the interval: a turn just outside does no harm
        inside = (lower <= turn + 1e-9) & (upper >= turn - 1e-9)
        value = activation.derivative(torch.full_like(lower, turn))
        low = torch.where(inside, torch.minimum(low, value), low)
        high = torch.where(inside, torch.maximum(high, value), high)
    return low - _DERIVATIVE_ERROR, high + _DERIVATIVE_ERROR
