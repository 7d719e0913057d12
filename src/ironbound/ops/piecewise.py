"""Piecewise linear operators: scalar functions with kinks, and the maximum over an axis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ironbound.ops.operator import Activation, Lines, Operator


@dataclass(frozen=True, eq=False)
class PiecewiseLinear(Activation):
    """A continuous piecewise linear scalar function: leaky ReLU, hard tanh, clamp, absolute value.

    Attributes:
        knots: where the slope changes, increasing.
        slopes: the slopes left of, between and right of the knots.
        anchor: the value at the first knot.
    """

    knots: tuple[float, ...]
    slopes: tuple[float, ...]
    anchor: float = 0.0

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function.

        Written as min/max pieces rather than sums over the knots, so that a flat piece is exactly flat in floats.

        Args:
            inputs: one tensor, [batch, *shape].

        Returns:
            [batch, *shape].
        """
        x = inputs[0]
        first = self.knots[0]
        value = self.anchor + self.slopes[0] * (x.clamp(max=first) - first)
        for index, (left, slope) in enumerate(zip(self.knots, self.slopes[1:], strict=True)):
            right = self.knots[index + 1] if index + 1 < len(self.knots) else None
            if slope != 0:
                value = value + slope * (x.clamp(min=left, max=right) - left)
        return value

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """The kinks."""
        return [torch.full_like(slope, knot) for knot in self.knots]

    def tangents(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """The slopes of the pieces that [lower, upper] touches come first; all of them are sound.

        Also the lines through an end point and a kink, which are the best ones for functions that are neither
        convex nor concave.

        Args:
            lower: [batch, *shape].
            upper: [batch, *shape].

        Returns:
            Slopes, each [batch, *shape].
        """
        at_lower = torch.full_like(lower, self.slopes[0])
        for knot, slope in zip(self.knots, self.slopes[1:], strict=True):
            at_lower = torch.where(lower >= knot, slope, at_lower)
        candidates = [at_lower, *(torch.full_like(lower, slope) for slope in self.slopes)]
        if len(self.knots) > 1:
            for knot in self.knots:
                for end in (lower, upper):
                    run = end - knot
                    proper = run.abs() > 1e-6
                    rise = self.forward(end) - self.forward(torch.full_like(end, knot))
                    candidates.append(
                        torch.where(proper, rise / torch.where(proper, run, torch.ones_like(run)), at_lower)
                    )
        return candidates

    def linear_on(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where no kink lies strictly inside."""
        closed = lower == lower
        for knot in self.knots:
            closed = closed & ((lower >= knot) | (upper <= knot))
        return closed


class _RectifiedInterval(torch.autograd.Function):
    """(c, r) -> middle m and radius of [max(c - r, 0), max(c + r, 0)], in place where it can: memory is what costs."""

    @staticmethod
    def forward(ctx, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        upper, lower = (center + radius).clamp_(min=0), (center - radius).clamp_(min=0)
        middle = lower.lerp_(upper, 0.5)
        half = upper.sub_(middle)
        ctx.save_for_backward(middle, half)
        ctx.shared = radius.shape
        return middle, half

    @staticmethod
    @once_differentiable
    def backward(ctx, middle: Tensor, half: Tensor):  # type: ignore[override]
        at, reach = ctx.saved_tensors
        rise, fall = middle + half, middle - half
        _pass_where_positive(rise, at)  # the upper end is positive where the middle is
        _pass_where_positive(fall, at - reach)
        center = fall.lerp_(rise, 0.5)
        return center, rise.sub_(center).sum_to_size(ctx.shared)


def _pass_where_positive(gradient: Tensor, value: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(gradient, value, 0, grad_input=gradient)


@dataclass(frozen=True, eq=False)
class ReLU(PiecewiseLinear):
    """max(z, 0), with the closed forms of the general rule (tested equal to it)."""

    knots: tuple[float, ...] = (0.0,)
    slopes: tuple[float, ...] = (0.0, 1.0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function."""
        return torch.relu(inputs[0])

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Monotone: the images of the ends."""
        return torch.relu(lower), torch.relu(upper)

    def middle_interval(self, center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """`interval` in another form, with fewer passes in training: middle and radius of the image of an interval.

        Args:
            center: of the interval, [batch, *shape].
            radius: [batch or 1, *shape].

        Returns:
            The image's centre and radius, each [batch, *shape].
        """
        return _RectifiedInterval.apply(center, radius)

    def parallel_lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Slope u / (u - l) on open neurons; the upper line passes through (l, 0), the lower one through the origin."""
        slope = _relu_chord(lower, upper)
        return Lines(slope, None, slope, -slope * lower.clamp(max=0))

    def adaptive_lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """The chord above; below, slope 1 where u > -l, else 0 (CROWN)."""
        slope = _relu_chord(lower, upper)
        below = torch.where(lower >= 0, 1.0, torch.where(upper <= 0, 0.0, (upper > -lower).to(slope.dtype)))
        return Lines(below, None, slope, -slope * lower.clamp(max=0))


def _relu_chord(lower: Tensor, upper: Tensor) -> Tensor:
    # relu(u) / (relu(u) + relu(-l)) is 0, 1 or u / (u - l) with neither a branch nor a NaN gradient
    return _share(upper.clamp(min=0), (-lower).clamp(min=0))


def _share(top: Tensor, bottom: Tensor) -> Tensor:
    """Slope top / (top + bottom): 0 where both are 0, NaN where the sum overflows (a 0 there would prove nonsense)."""
    width = top + bottom
    slope = top / torch.where(width == 0, 1.0, width)
    return torch.where(width == torch.inf, torch.nan, slope)


@dataclass(frozen=True, eq=False)
class Maximum(Operator):
    """Maximum over the last axis: the second half of max pooling, after a gather of the windows."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Takes the maximum."""
        return inputs[0].amax(-1)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The maximum is monotone in every element."""
        return lower.amax(-1), upper.amax(-1)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Two linear functions of the window's elements that enclose the maximum.

        Below: the element with the largest lower bound, which never exceeds the maximum. Above, with L that bound:
        either the constant max u, or L + sum_i chord_i(z_i), the sum of the chords of relu(z_i - L) on [l_i, u_i]
        (max z = L + max_i relu(z_i - L) because max z >= L); the lower of the two at the box's middle. Where one
        element is above all others, both are that element.

        Args:
            lower: [batch, *shape, window], bounds of the elements.
            upper: likewise.

        Returns:
            Lines whose slopes have the shape [batch, *shape, window] and whose intercepts have [batch, *shape].
        """
        floor, best = lower.max(-1, keepdim=True)
        choice = torch.zeros_like(lower).scatter(-1, best, 1.0)
        rivals = upper.masked_fill(choice > 0, -torch.inf).amax(-1, keepdim=True)
        decided = rivals <= floor
        top, bottom = (upper - floor).clamp(min=0), (floor - lower).clamp(min=0)
        slope = _share(top, bottom)
        middle = (lower + upper) / 2
        intercept = floor.squeeze(-1) - (slope * lower.minimum(floor)).sum(-1)
        # an element above L all the way (l = L) has slope 1 and contributes z - l
        ceiling = upper.amax(-1)
        flat = (slope * middle).sum(-1) + intercept > ceiling
        slope = torch.where(flat.unsqueeze(-1), torch.zeros_like(slope), slope)
        intercept = torch.where(flat, ceiling, intercept)
        slope = torch.where(decided, choice, slope)
        intercept = torch.where(decided.squeeze(-1), torch.zeros_like(intercept), intercept)
        broken = (torch.isnan(lower) | torch.isnan(upper)).any(-1)
        intercept = torch.where(broken, torch.nan, intercept)
        return Lines(choice, torch.where(broken, torch.nan, torch.zeros_like(intercept)), slope, intercept)
