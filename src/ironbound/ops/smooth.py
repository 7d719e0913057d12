"""Smooth activations: sigmoid, tanh, GELU, SiLU.

Facts: the function, its derivative, where the derivative is a given slope, and between which points it is monotone.
`enclosure` bounds what rounding can do to the lines; docs/arithmetic.md derives it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.ops.operator import Activation

GELU_TANH_BEND = 1.418504008790828
_S_SHAPED = ((0.0, math.inf, False), (-math.inf, 0.0, True))
LIBRARY = 16  # units of rounding that an evaluation by torch may be off; 4 were the most that was seen


class Smooth(Activation):
    """A differentiable activation; candidate slopes are its derivatives at a few points of the interval."""

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x)."""
        raise NotImplementedError

    def tangents(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """The slopes at the ends, at the middle and at the quarters."""
        points = (lower, upper, (lower + upper) / 2, (3 * lower + upper) / 4, (lower + 3 * upper) / 4)
        return [self.derivative(point) for point in points]

    @property
    @abstractmethod
    def pieces(self) -> tuple[tuple[float, float, bool], ...]:
        """(left, right, whether f is convex between them), in the order of `stationary`'s points, one in each."""

    def size(self, x: Tensor) -> Tensor:
        """What `forward` is off by at most LIBRARY units of rounding of; in an interval it is largest at an end."""
        return self.forward(x).abs()

    def growth(self, x: Tensor) -> Tensor | float:
        """What `derivative` is off by at most 4 LIBRARY units of rounding of."""
        return 1.0

    @torch.no_grad()
    def enclosure(self, lower: Tensor, upper: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of f(z) - slope z over [lower, upper] in real arithmetic: `band` with all that rounding can do paid.

        Where f is convex, a maximum is at an end, and any tangent is below: also one at a point that is only near the
        stationary one, whose slope is not quite 0. Where f is concave, the other way round.

        Args:
            lower: [batch, *shape].
            upper: likewise.
            slope: likewise.

        Returns:
            The bounds, each [batch, *shape]; NaN where an argument is.
        """
        found = []
        for (left, right, convex), point in zip(self.pieces, self.stationary(slope), strict=True):
            low, high = lower.clamp(left, right), upper.clamp(left, right)
            sign = 1.0 if convex else -1.0
            points = (low, high, torch.minimum(torch.maximum(point, low), high))
            values = [self._value(at, slope, sign) for at in points]
            falls = [self._fall(at, slope, sign, low, high) for at in points]
            tangents = [value + fall - off for (value, off), fall in zip(values, falls, strict=True)]
            below = torch.maximum(torch.maximum(tangents[0], tangents[1]), tangents[2])
            above = torch.maximum(*(value + off for value, off in values[:2]))
            below, above = (below, above) if convex else (-above, -below)
            absent = (lower > right) | (upper < left)
            found.append((below.masked_fill(absent, torch.inf), above.masked_fill(absent, -torch.inf)))
        least, most = zip(*found, strict=True)
        return reduce(torch.minimum, least), reduce(torch.maximum, most)

    def _value(self, at: Tensor, slope: Tensor, sign: float) -> tuple[Tensor, Tensor]:
        """f(z) - slope z, or its negative, as computed, and how far that and the next two sums can be off."""
        info = torch.finfo(at.dtype)
        value, line = self.forward(at), slope * at
        off = info.eps / 2 * (LIBRARY * self.size(at) + 8 * (value.abs() + line.abs())) + 4 * math.sqrt(info.tiny)
        return sign * (value - line), off

    def _fall(self, at: Tensor, slope: Tensor, sign: float, low: Tensor, high: Tensor) -> Tensor:
        """How far the tangent falls, at most, between the point where it touches and the ends: 0 or less."""
        unit = torch.finfo(at.dtype).eps / 2
        steep = self.derivative(at)
        rise, off = sign * (steep - slope), unit * (4 * LIBRARY * self.growth(at) + 8 * (steep.abs() + slope.abs()))
        left, right = (at - low) * (1 + 8 * unit), (high - at) * (1 + 8 * unit)
        return torch.minimum(-(rise + off).clamp(min=0) * left, (rise - off).clamp(max=0) * right)


@dataclass(frozen=True, eq=False)
class Sigmoid(Smooth):
    """1 / (1 + exp(-z))."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function."""
        return torch.sigmoid(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative s (1 - s), with s = sigmoid(z)."""
        value = torch.sigmoid(x)
        return value * (1 - value)

    @property
    def pieces(self) -> tuple[tuple[float, float, bool], ...]:
        """Concave on the right, convex on the left."""
        return _S_SHAPED

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """The roots of s (1 - s) = slope are (1 ± sqrt(1 - 4 slope)) / 2; the points are symmetric about 0."""
        with torch.no_grad():  # f - slope z is stationary there: the points carry no gradient
            slope = slope.clamp(min=torch.finfo(slope.dtype).tiny, max=0.25)
            tail = 2 * slope / (1 + torch.sqrt(1 - 4 * slope))  # the smaller root without cancellation
            point = (torch.log1p(-tail) - torch.log(tail)).clamp(min=0)
        return [point, -point]


@dataclass(frozen=True, eq=False)
class Tanh(Smooth):
    """Hyperbolic tangent."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function."""
        return torch.tanh(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        """1 - tanh²."""
        return 1 - torch.tanh(x) ** 2

    @property
    def pieces(self) -> tuple[tuple[float, float, bool], ...]:
        """Concave on the right, convex on the left."""
        return _S_SHAPED

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """1 - t² = slope has the roots ± sqrt(1 - slope)."""
        with torch.no_grad():
            slope = slope.clamp(min=torch.finfo(slope.dtype).tiny, max=1.0)
            tail = slope / (1 + torch.sqrt(1 - slope))  # 1 - t without cancellation
            point = ((torch.log(2 - tail) - torch.log(tail)) / 2).clamp(min=0)
        return [point, -point]


class Gated(Smooth):
    """z times a sigmoid-like gate: the derivative falls to -bend, rises to bend and falls again, monotone on each."""

    span = 30.0

    @property
    @abstractmethod
    def bend(self) -> float:
        """The positive zero of f''."""

    @property
    def pieces(self) -> tuple[tuple[float, float, bool], ...]:
        """Convex between the bends, concave outside."""
        return (-math.inf, -self.bend, False), (-self.bend, self.bend, True), (self.bend, math.inf, False)

    def size(self, x: Tensor) -> Tensor:
        """|z|: the function is smaller, but not at the ends, and the gate may be computed from a sum with 1."""
        return x.abs()

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """The roots of f' = slope on the three monotone pieces by bisection (an end of a piece where it has none)."""
        with torch.no_grad():
            axis = (3, *[1] * slope.dim())  # the pieces side by side
            low = slope.new_tensor((-self.span, -self.bend, self.bend)).reshape(axis).expand(3, *slope.shape)
            high = slope.new_tensor((-self.bend, self.bend, self.span)).reshape(axis).expand(3, *slope.shape)
            rising = torch.tensor((False, True, False), device=slope.device).reshape(axis)
            for _ in range(60 if slope.dtype == torch.float64 else 32):
                middle = (low + high) / 2
                go_right = (self.derivative(middle) < slope) == rising
                low, high = torch.where(go_right, middle, low), torch.where(go_right, high, middle)
            return list(((low + high) / 2).unbind())


@dataclass(frozen=True, eq=False)
class GELU(Gated):
    """z Φ(z), exact or with the tanh approximation.

    Attributes:
        approximate: "none" or "tanh", as in torch.
    """

    approximate: str = "none"

    @property
    def bend(self) -> float:
        """√2, since f'' = φ(z) (2 - z²); a little more for the tanh form (found numerically)."""
        return 1.4142135623730951 if self.approximate == "none" else GELU_TANH_BEND

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function."""
        return F.gelu(inputs[0], approximate=self.approximate)

    def derivative(self, x: Tensor) -> Tensor:
        """Φ(z) + z φ(z), or the derivative of the tanh form."""
        if self.approximate == "none":
            return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * torch.exp(-x * x / 2) * 0.3989422804014327
        inner = 0.7978845608028654 * (x + 0.044715 * x**3)
        fall = torch.exp(-2 * inner.abs())  # 1 - tanh² without cancellation
        steep = 4 * fall / (1 + fall) ** 2
        return 0.5 * (1 + torch.tanh(inner)) + 0.5 * x * steep * 0.7978845608028654 * (1 + 0.134145 * x * x)


@dataclass(frozen=True, eq=False)
class SiLU(Gated):
    """z sigmoid(z)."""

    @property
    def bend(self) -> float:
        """The root of z tanh(z / 2) = 2."""
        return 2.3993572805154676

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluates the function."""
        return F.silu(inputs[0])

    def derivative(self, x: Tensor) -> Tensor:
        """The derivative s + z s (1 - s), with s = sigmoid(z)."""
        gate = torch.sigmoid(x)
        return gate + x * gate * (1 - gate)

    def growth(self, x: Tensor) -> Tensor:
        """1, and far out to the right more: there 1 - s keeps few digits."""
        return 1 + x.clamp(min=0)
