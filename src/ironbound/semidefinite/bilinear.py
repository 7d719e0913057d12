"""The bilinear problems whose semidefinite relaxation is solved, and dual bounds of them that hold in exact arithmetic.

A problem is max t^T (q | diag(r) W^T diag(f)) w over t in [-1, 1]^d and w in [-1, 1]^{1+k}. Its relaxation gives every
t_i and w_j a vector of length at most 1. See docs/sdp.md for the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.semidefinite.rounding import COVER, gamma
from ironbound.semidefinite.verified import largest_eigenvalue

_FLOOR = 1e-5  # of the mean: weights of a dual bound are raised to it


@dataclass(frozen=True, eq=False)
class Bilinear:
    """n problems on one matrix W; numbers are float64 and, except for rounding counted below, exact.

    Attributes:
        weight: W, [k, d].
        factor: f, [n, k].
        factor_size: what the rounding of f is relative to, at least |f|, [n, k].
        linear: q, [n, d].
        linear_size: likewise for q, [n, d].
        radius: r >= 0, [n or 1, d].
        roundings: that each entry of W, f and q went through together, besides the products here.
    """

    weight: Tensor
    factor: Tensor
    factor_size: Tensor
    linear: Tensor
    linear_size: Tensor
    radius: Tensor
    roundings: int

    def __len__(self) -> int:
        return len(self.factor)

    def __getitem__(self, index: Tensor) -> Bilinear:
        """Some of the problems."""
        radius = self.radius if len(self.radius) == 1 else self.radius[index]
        parts = (self.factor[index], self.factor_size[index], self.linear[index], self.linear_size[index])
        return Bilinear(self.weight, *parts, radius, self.roundings)

    def to(self, dtype: torch.dtype) -> Bilinear:
        """The same numbers in another dtype."""
        tensors = {name: value.to(dtype) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True, eq=False)
class Weights:
    """What a dual bound is made of: positive a_i = rows_i² for the rows (t), b_j = columns_j² for the columns (w).

    Attributes:
        rows: square roots of a, [n, d].
        columns: square roots of b, [n, 1 + k].
    """

    rows: Tensor
    columns: Tensor

    @staticmethod
    def of(rows: Tensor, columns: Tensor) -> Weights:
        """Weights near the given numbers >= 0, none of them tiny.

        Args:
            rows: a, [n, d].
            columns: b, [n, 1 + k].

        Returns:
            The weights.
        """
        return Weights(_floored(rows).sqrt(), _floored(columns).sqrt())


def _floored(values: Tensor) -> Tensor:
    floor = _FLOOR * values.mean(1, keepdim=True)
    return torch.where(floor > 0, torch.maximum(values, floor), torch.ones_like(values))


def dual_bound(problems: Bilinear, place: int, weights: Weights) -> float:
    """An upper bound of one problem's relaxation, whatever positive weights are given.

    With sigma the largest singular value of X = diag(a)^{-1/2} B diag(b)^{-1/2} the value is at most
    sigma sqrt(sum a sum b), by the Cauchy-Schwarz inequality; sigma² is bounded by a verified factorisation.

    Args:
        problems: the problems.
        place: which one.
        weights: of all of them.

    Returns:
        The bound, rounded upward; infinity where none is found.
    """
    rows, columns = weights.rows[place], weights.columns[place]
    square = largest_eigenvalue(*_scaled_gram(problems, place, rows, columns))
    total = ((rows**2).sum() * (columns**2).sum()).item()
    return (square * total) ** 0.5 * (1 + gamma(len(rows) + len(columns) + 16))


def _scaled_gram(problems: Bilinear, place: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, float]:
    """X^T X, or X X^T where that is smaller, and a bound of its error's spectral norm.

    Every entry is a sum of at most d or k products, whose factors went through fewer than N roundings in all: it is off
    by gamma_N times the same sum of absolute values. The norm of that matrix of absolute values, a Gram matrix itself,
    is at most its trace.

    Args:
        problems: the problems.
        place: which one.
        rows: square roots of a, [d].
        columns: square roots of b, [1 + k].

    Returns:
        The matrix and the bound.
    """
    radius = problems.radius[min(place, len(problems.radius) - 1)] / rows
    factor, size = problems.factor[place] / columns[1:], problems.factor_size[place] / columns[1:]
    linear, linear_size = (part[place] / (rows * columns[0]) for part in (problems.linear, problems.linear_size))
    scaled = problems.weight * radius
    if len(columns) <= len(rows):
        gram = torch.empty(len(columns), len(columns), dtype=torch.float64)
        gram[0, 0] = (linear * linear).sum()
        gram[0, 1:] = gram[1:, 0] = factor * (scaled @ linear)
        gram[1:, 1:] = scaled @ scaled.T * factor * factor[:, None]
    else:
        through = scaled * factor[:, None]
        gram = through.T @ through + linear * linear[:, None]
    trace = (linear_size * linear_size).sum() + (size * size * (scaled * scaled).sum(1)).sum()
    count = 2 * problems.roundings + max(len(rows), len(columns)) + 32
    return gram, gamma(count) * float(trace) * COVER
