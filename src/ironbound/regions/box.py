"""Boxes: an interval for each element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.regions.checks import check_finite
from ironbound.regions.region import Region, Set


class Box(Region):
    """All inputs between two ends, element by element.

    Args:
        lower, upper: [batch, *shape], finite, lower <= upper.

    Raises:
        InputError: shapes differ, ends are crossed or not finite.
    """

    norm = "box"

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        check_finite("lower", lower)
        check_finite("upper", upper)
        if lower.shape != upper.shape or lower.dtype != upper.dtype:
            raise InputError(
                f"lower {tuple(lower.shape)} and upper {tuple(upper.shape)} of a Box must have one shape and dtype"
            )
        if (lower > upper).any():
            raise InputError("a Box needs lower <= upper everywhere")
        super().__init__((lower + upper) / 2, None)
        self.lower, self.upper = lower, upper

    def sets(self) -> tuple[Set, ...]:
        """One box around its middle; the radius reaches the farther end, so that rounding the middle loses nothing."""
        return (Set(1, torch.maximum(self.upper - self.center, self.center - self.lower)),)

    def box(self) -> tuple[Tensor, Tensor]:
        """The ends."""
        return self.lower, self.upper

    def __getitem__(self, index: slice | Tensor) -> Box:
        return Box(self.lower[index], self.upper[index])

    def to(self, *args: Any, **kwargs: Any) -> Box:
        """The same box in another dtype or on another device."""
        return Box(self.lower.to(*args, **kwargs), self.upper.to(*args, **kwargs))

    def project(self, points: Tensor) -> Tensor:
        """Clamps every element."""
        return torch.minimum(torch.maximum(points, self.lower), self.upper)

    def contains(self, points: Tensor) -> Tensor:
        """Every element between the ends."""
        return ((points >= self.lower) & (points <= self.upper)).flatten(1).all(1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Uniform."""
        share = torch.rand(self.center.shape, generator=generator, dtype=self.dtype, device=self.center.device)
        return self.project(self.lower + share * (self.upper - self.lower))

    def ascent(self, gradient: Tensor, step: float) -> Tensor:
        """The sign of the gradient times the half width."""
        return step * (self.upper - self.lower) / 2 * gradient.sign()

    def describe(self) -> dict[str, Any]:
        """Norm and unit."""
        return {"norm": "box", "unit": "as the data is loaded"}
