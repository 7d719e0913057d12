"""Smooth activations: sigmoid, tanh, GELU, SiLU.

Facts: the function, its derivative and where the derivative is a given slope.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ironbound.ops.operator import Activation

GELU_TANH_BEND = 1.418504008790828


class Smooth(Activation):
    """A differentiable activation; candidate slopes are its derivatives at a few points of the interval."""

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x)."""
        raise NotImplementedError

    def tangents(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """The slopes at the ends, at the middle and at the quarters."""
        points = (lower, upper, (lower + upper) / 2, (3 * lower + upper) / 4, (lower + 3 * upper) / 4)
        return [self.derivative(point) for point in points]


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

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """The roots of s (1 - s) = slope are (1 ± sqrt(1 - 4 slope)) / 2; the points are symmetric about 0."""
        with torch.no_grad():  # f - slope z is stationary there: the points carry no gradient
            slope = slope.clamp(min=torch.finfo(slope.dtype).tiny, max=0.25)
            tail = 2 * slope / (1 + torch.sqrt(1 - 4 * slope))  # the smaller root without cancellation
            point = torch.log1p(-tail) - torch.log(tail)
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

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """1 - t² = slope has the roots ± sqrt(1 - slope)."""
        with torch.no_grad():
            slope = slope.clamp(min=torch.finfo(slope.dtype).tiny, max=1.0)
            tail = slope / (1 + torch.sqrt(1 - slope))  # 1 - t without cancellation
            point = (torch.log(2 - tail) - torch.log(tail)) / 2
        return [point, -point]


class Gated(Smooth):
    """z times a sigmoid-like gate: the derivative falls to -bend, rises to bend and falls again, monotone on each."""

    span = 30.0

    @property
    @abstractmethod
    def bend(self) -> float:
        """The positive zero of f''."""

    def stationary(self, slope: Tensor) -> list[Tensor]:
        """The roots of f' = slope on the three monotone pieces by bisection (an end of a piece where it has none)."""
        points = []
        with torch.no_grad():
            for left, right, rising in (
                (-self.span, -self.bend, False),
                (-self.bend, self.bend, True),
                (self.bend, self.span, False),
            ):
                low, high = torch.full_like(slope, left), torch.full_like(slope, right)
                for _ in range(60 if slope.dtype == torch.float64 else 32):
                    middle = (low + high) / 2
                    go_right = (self.derivative(middle) < slope) == rising
                    low, high = torch.where(go_right, middle, low), torch.where(go_right, high, middle)
                points.append((low + high) / 2)
        return points


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
        tanh = torch.tanh(inner)
        return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * 0.7978845608028654 * (1 + 0.134145 * x * x)


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
