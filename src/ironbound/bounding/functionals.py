"""Linear functionals of a node's value, one per row, each belonging to one example of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.ops.operator import Affine, Lines
from ironbound.regions import Set


@dataclass(frozen=True, eq=False)
class Pull:
    """What a relaxation does to functionals of its output.

    Attributes:
        rows: functionals of its input.
        lower: what it adds to the lower bound, [rows].
        upper: what it adds to the upper bound, [rows] (parallel lines only; else None).
    """

    rows: DenseRows | object
    lower: Tensor
    upper: Tensor | None


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Functionals with a coefficient for every element of the node.

    Attributes:
        coefficients: [rows, *node shape].
        example: the example that each row belongs to, int64 [rows].
    """

    coefficients: Tensor
    example: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)

    def __add__(self, other: DenseRows) -> DenseRows:
        return DenseRows(self.coefficients + other.coefficients, self.example)

    def dense(self) -> DenseRows:
        """Itself."""
        return self

    def dot(self, value: Tensor) -> Tensor:
        """Applies each row to its example's `value` [batch or 1, *shape]; returns [rows]."""
        picked = value[self.example] if len(value) > 1 else value
        return (self.coefficients * picked).flatten(1).sum(1)

    def pull_affine(self, operator: Affine, shapes: tuple[tuple[int, ...], ...]) -> tuple[DenseRows, ...]:
        """Functionals of the operator's inputs."""
        return tuple(DenseRows(part, self.example) for part in operator.adjoint(self.coefficients, shapes))

    def pull_lines(self, lines: Lines, window: bool) -> Pull:
        """Goes through a relaxation: positive coefficients take the lower line, negative ones the upper line.

        Args:
            lines: slopes and intercepts per example.
            window: whether the slopes have one more axis than the rows (a maximum over it).
        """
        c, example = self.coefficients, self.example
        positive, negative = c.clamp(min=0), c.clamp(max=0)
        low, high = lines.lower_intercept[example], lines.upper_intercept[example]
        lower = (positive * low + negative * high).flatten(1).sum(1)
        if lines.parallel:
            upper = (positive * high + negative * low).flatten(1).sum(1)
            return Pull(DenseRows(c * lines.lower_slope[example], example), lower, upper)
        if window:
            positive, negative = positive.unsqueeze(-1), negative.unsqueeze(-1)
        pulled = positive * lines.lower_slope[example] + negative * lines.upper_slope[example]
        return Pull(DenseRows(pulled, example), lower, None)

    def spread(self, gap: Tensor, slope: Tensor) -> tuple[DenseRows, Tensor]:
        """Goes through parallel lines seen from their middle: returns the pulled rows and sum |c| gap, [rows].

        Args:
            gap: half the distance of the two lines, [batch, *shape].
            slope: their slope, [batch, *shape].
        """
        widened = (self.coefficients.abs() * gap[self.example]).flatten(1).sum(1)
        return DenseRows(self.coefficients * slope[self.example], self.example), widened

    def norm(self, region_set: Set) -> Tensor:
        """The support function of a centered set, [rows]."""
        radius = region_set.radius
        scaled = self.coefficients * (radius[self.example] if len(radius) > 1 else radius)
        return torch.linalg.vector_norm(scaled.flatten(1), region_set.dual, dim=1)
