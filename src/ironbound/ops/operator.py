"""What every operator declares: how it runs, and whether it is affine or relaxed by lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor


class Operator(ABC):
    """A rule that computes one node of a graph from others; all tensors carry a leading batch axis."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Runs the operator as the network does."""

    def tensors(self) -> list[Tensor]:
        """The live tensors (parameters, buffers, constants) that the operator holds."""
        values = (getattr(self, field.name) for field in fields(self)) if hasattr(self, "__dataclass_fields__") else ()  # type: ignore[arg-type]
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True, eq=False)
class Input(Operator):
    """The input of the network."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns its only argument."""
        return inputs[0]


class Affine(Operator):
    """An operator f(x) = A x + b. One rule serves all of them: the adjoint of A is a vector-Jacobian product.

    A subclass states `forward` and `magnitude`; it may state a faster `adjoint`, tested equal to this one.
    """

    def constant(self, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
        """The constant term b = f(0).

        Args:
            shapes: the shapes of the inputs, without the batch axis.
            like: a tensor whose dtype and device are used.

        Returns:
            [1, *output shape].
        """
        return self.forward(*(like.new_zeros((1, *shape)) for shape in shapes))

    def adjoint(self, rows: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        """Applies the adjoint of A to linear functionals of the output.

        Args:
            rows: coefficients [rows, *output shape].
            shapes: the shapes of the inputs, without the batch axis.

        Returns:
            For each input the coefficients [rows, *input shape].
        """
        zeros = tuple(rows.new_zeros((len(rows), *shape)) for shape in shapes)
        pull = torch.func.vjp(self.forward, *zeros)[1]
        return pull(rows)

    @abstractmethod
    def magnitude(self, *radii: Tensor) -> Tensor:
        """|A| r: the largest change of each output when input element j moves by at most r_j (interval arithmetic)."""

    def image(self, centers: tuple[Tensor, ...], radii: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Middle and radius of the image of a box: `forward` and `magnitude`; a subclass may join their gradients.

        Args:
            centers: of each input, [batch, *input shape].
            radii: of each input, [batch or 1, *input shape].

        Returns:
            The image's centre [batch, *output shape] and radius [batch or 1, *output shape].
        """
        return self.forward(*centers), self.magnitude(*radii)

    def response(self, radius: Tensor, order: float) -> Tensor | None:
        """The exact change of each output over {d : ||d / radius||_p <= 1}, for the dual norm of the given order.

        Args:
            radius: [batch, *input shape], the semi-axes of the ball.
            order: 1 for a box, 2 for l2, inf for l1.

        Returns:
            [batch, *output shape], or None where only the general rule (one functional per output) is exact.
        """
        return self.magnitude(radius) if order == 1 else None

    def diagonal(self) -> bool:
        """Whether each output element reads exactly one input element (so that balls stay balls)."""
        return False


@dataclass(frozen=True, eq=False)
class Lines:
    """Two lines per neuron that enclose an activation on [lower, upper], element by element.

    lower_slope * z + lower_intercept <= f(z) <= upper_slope * z + upper_intercept; each of shape [batch, *shape]. A
    lower intercept of None is 0 everywhere (ReLU's).
    The relaxation is parallel when both slopes are one and the same tensor: then one backward pass serves both bounds.
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor

    @property
    def parallel(self) -> bool:
        """Whether both lines have the same slope by construction."""
        return self.lower_slope is self.upper_slope


class Activation(Operator):
    """A scalar function applied to every element. It declares facts once; intervals and lines are derived from them.

    Facts: `forward`, `tangents`, and `stationary(slope)`: all points where f(z) - slope * z can have an extremum inside
    an interval (kinks included). With those, the tightest parallel band for any slope is a maximum over a few
    candidates.
    """

    @abstractmethod
    def stationary(self, slope: Tensor) -> list[Tensor]:
        """Points, each broadcastable to `slope`, that contain every interior extremum of f(z) - slope * z."""

    @abstractmethod
    def tangents(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """Slopes worth trying for the one-sided lines on [lower, upper], besides the chord's."""

    def linear_on(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where the activation is affine on [lower, upper] ("closed" neurons), bool of the same shape."""
        return torch.zeros_like(lower, dtype=torch.bool)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The exact range of f on [lower, upper], element by element."""
        low, high = self.band(lower, upper, torch.zeros_like(lower))
        return low, high

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Slope of the line through both end points; where they coincide, the slope of the function there."""
        width = upper - lower
        proper = width > 0
        rise = self.forward(upper) - self.forward(lower)
        # NaN bounds must stay NaN: they take the first branch because `proper` alone would send them to the second
        proper = proper | torch.isnan(width)
        slope = rise / torch.where(proper, width, torch.ones_like(width))
        return torch.where(proper, slope, self.tangents(lower, upper)[0])

    def band(self, lower: Tensor, upper: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Intercepts of the tightest lower and upper line of the given slope on [lower, upper]."""
        points = [lower, upper]
        points += [torch.minimum(torch.maximum(point, lower), upper) for point in self.stationary(slope)]
        low = high = None
        for point in points:
            value = self.forward(point) - slope * point
            low = value if low is None else torch.minimum(low, value)
            high = value if high is None else torch.maximum(high, value)
        assert low is not None and high is not None
        return low, high

    def parallel_lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """Two lines with the chord's slope; for ReLU alpha = u / (u - l) (Wong & Kolter 2018, Theorem 1)."""
        slope = self.chord(lower, upper)
        low, high = self.band(lower, upper, slope)
        return Lines(slope, low, slope, high)

    def adaptive_lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """For each side the line, among the candidate slopes, that is tightest at the middle of the interval.

        For ReLU: the chord above; below slope 1 where u > -l, else 0 (CROWN, Zhang et al. 2018).

        Args:
            lower: [batch, *shape].
            upper: [batch, *shape].

        Returns:
            Lines of shape [batch, *shape].
        """
        middle = (lower + upper) / 2
        chord = self.chord(lower, upper)
        low, high = self.band(lower, upper, chord)
        best = Lines(chord, low, chord, high)
        lower_slope, lower_intercept = chord, low
        upper_slope, upper_intercept = chord, high
        for slope in self.tangents(lower, upper):
            low, high = self.band(lower, upper, slope)
            gain = slope * middle + low > lower_slope * middle + lower_intercept
            lower_slope = torch.where(gain, slope, lower_slope)
            lower_intercept = torch.where(gain, low, lower_intercept)
            gain = slope * middle + high < upper_slope * middle + upper_intercept
            upper_slope = torch.where(gain, slope, upper_slope)
            upper_intercept = torch.where(gain, high, upper_intercept)
        if lower_slope is chord and upper_slope is chord:
            return best
        return Lines(lower_slope, lower_intercept, upper_slope, upper_intercept)
