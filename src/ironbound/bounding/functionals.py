"""Linear functionals of a node's value, one per row, each belonging to one example of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.ops.operator import Affine, Lines
from ironbound.regions import Set


def row_norm(rows: Tensor, order: float) -> Tensor:
    """Norm of order 1, 2 or inf over the last axis; for order 1 several times faster than `torch.linalg.vector_norm` on a CPU."""
    if order == 1:
        return rows.abs().sum(-1)
    return torch.linalg.vector_norm(rows, order, dim=-1)


def total(values: Tensor) -> Tensor:
    """Sum over all axes but the first, without a copy where the layout is channels last."""
    return values.sum(dim=tuple(range(1, values.dim()))) if values.dim() > 1 else values


def take(value: Tensor, example: Tensor) -> Tensor:
    """value[example] for [batch or 1, *shape]; feature maps come channels last, as convolutions run fastest."""
    if len(value) == 1:
        return value
    if value.dim() == 4:
        return value.permute(0, 2, 3, 1).contiguous().index_select(0, example).permute(0, 3, 1, 2)
    return value.index_select(0, example)


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
        return total(self.coefficients * take(value, self.example))

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
        low, high = take(lines.lower_intercept, example), take(lines.upper_intercept, example)
        lower = total(positive * low + negative * high)
        if lines.parallel:
            upper = total(positive * high + negative * low)
            return Pull(DenseRows(c * take(lines.lower_slope, example), example), lower, upper)
        if window:
            positive, negative = positive.unsqueeze(-1), negative.unsqueeze(-1)
        pulled = positive * take(lines.lower_slope, example) + negative * take(lines.upper_slope, example)
        return Pull(DenseRows(pulled, example), lower, None)

    def spread(self, gap: Tensor, slope: Tensor) -> tuple[DenseRows, Tensor]:
        """Goes through parallel lines seen from their middle: returns the pulled rows and sum |c| gap, [rows].

        Args:
            gap: half the distance of the two lines, [batch, *shape].
            slope: their slope, [batch, *shape].
        """
        widened = total(self.coefficients.abs() * take(gap, self.example))
        return DenseRows(self.coefficients * take(slope, self.example), self.example), widened

    def norm(self, region_set: Set) -> Tensor:
        """The support function of a centered set, [rows]."""
        scaled = self.coefficients * take(region_set.radius, self.example)
        return total(scaled.abs()) if region_set.dual == 1 else row_norm(scaled.flatten(1), region_set.dual)
