"""What every region says of itself: the sets it is made of, its box, projections and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Set:
    """{center + offset + d : ||d / radius||_p <= 1}, one convex set per example; its support is a (dual) norm.

    Attributes:
        dual: the order q of the dual norm, 1 / p + 1 / q = 1: 1 for boxes, 2 for l2, inf for l1 balls.
        radius: broadcastable to [batch, *shape].
        offset: middle of the set minus the region's center, [batch, *shape], or None for 0.
    """

    dual: float
    radius: Tensor
    offset: Tensor | None = None


class Region:
    """A convex set of inputs around each example of a batch.

    Every bound needs only the support function: for coefficients c, how far can c · (x' - center) fall and rise?

    Attributes:
        center: [batch, *shape].
        norm: "linf", "l2", "l1" or "box".
        clip: range that every input element is limited to, or None.
    """

    norm: str

    def __init__(self, center: Tensor, clip: tuple[float, float] | None) -> None:
        self.center = center
        self.clip = clip

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.center.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the center."""
        return self.center.dtype

    def __len__(self) -> int:
        return len(self.center)

    def sets(self) -> tuple[Set, ...]:
        """Sets whose intersection contains the region (for most regions, exactly one, and equal to it)."""
        raise NotImplementedError

    def box(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end, [batch, *shape], of the smallest box around the region of each example."""
        raise NotImplementedError

    def __getitem__(self, index: slice | Tensor) -> Region:
        """The region of some of the examples."""
        raise NotImplementedError

    def to(self, *args: Any, **kwargs: Any) -> Region:
        """The same region in another dtype or on another device (arguments of `torch.Tensor.to`)."""
        raise NotImplementedError

    def project(self, points: Tensor) -> Tensor:
        """A point of the region near each of `points` [batch, *shape]; the nearest one where no clipping is set."""
        raise NotImplementedError

    def contains(self, points: Tensor) -> Tensor:
        """Whether each point lies in the region, bool [batch]; NaN never does.

        Boxes are exact: an element may reach the end of the range as computed in the points' dtype, never pass it. For
        l2 and l1 the norm is computed in float64 and may exceed the radius by a relative 1e-6, the rounding of float32
        points.

        Args:
            points: [batch, *shape].

        Returns:
            bool [batch].
        """
        raise NotImplementedError

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random point of the region of each example, [batch, *shape]."""
        raise NotImplementedError

    def ascent(self, gradient: Tensor, step: float) -> Tensor:
        """The change of length `step` (a fraction of the radius) raising a linear function most, [batch, *shape]."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Norm, ε, clipping and unit, for reports."""
        raise NotImplementedError
