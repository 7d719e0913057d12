"""One bound for a conjunction: the best convex combination of its rows.

A clause is refuted where one of its rows is above 0 at every point, and no single row needs to be so everywhere. With
linear lower bounds k_r + g_r · e of the rows over e in [-1, 1]^d, any weights w >= 0 with sum 1 give
max_r row_r >= Σ w_r k_r - ||Σ w_r g_r||_1, and the best weights give min_e max_r (k_r + g_r · e) exactly (duality of
linear programming). The weights are found by exponentiated ascent; each iterate is a valid bound, the best is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ITERATIONS = 25
_RATE = 3.0  # of the first step, in units of the largest difference between the rows of a box


@dataclass(frozen=True, eq=False)
class Mixed:
    """Bounds of clauses.

    Attributes:
        bound: [boxes, clauses].
        slopes: of the clause's best single row, [boxes, clauses, d].
        weight: the rows' slopes without their signs, mixed as the bound is, [boxes, clauses, d]: the mixture's own
            slopes vanish at its best, and say nothing of which element matters.
    """

    bound: Tensor
    slopes: Tensor
    weight: Tensor


def mixed(constants: Tensor, slopes: Tensor, clause: Tensor) -> Mixed:
    """Bounds of clauses from linear bounds of their rows.

    Args:
        constants: k, [boxes, rows].
        slopes: g, [boxes, rows, d].
        clause: the clause of each row, int64 [rows].

    Returns:
        The best bounds found.
    """
    values = constants - slopes.abs().sum(2)
    count = int(clause[-1]) + 1
    index = clause.expand(values.shape)
    best = values.new_full((len(values), count), -torch.inf).scatter_reduce(1, index, values, "amax")
    row = _first_row(values, best, clause, count)
    direction = slopes.gather(1, row.unsqueeze(2).expand(-1, -1, slopes.shape[2]))
    if count == len(clause):
        return Mixed(best, direction, direction.abs())
    weight, sizes = direction.abs(), slopes.abs()
    logits = torch.zeros_like(constants)
    for step in range(ITERATIONS):
        share = _softmax(logits, index, count)
        total = slopes.new_zeros((len(values), count, slopes.shape[2]))
        total = total.index_add(1, clause, share.unsqueeze(2) * slopes)
        value = best.new_zeros(best.shape).index_add(1, clause, share * constants) - total.abs().sum(2)
        gain = value > best
        best = torch.where(gain, value, best)
        sizes_mixed = torch.zeros_like(total).index_add(1, clause, share.unsqueeze(2) * sizes)
        weight = torch.where(gain.unsqueeze(2), sizes_mixed, weight)
        ascent = constants - (slopes * total.sign()[:, clause]).sum(2)
        top = torch.full_like(best, -torch.inf).scatter_reduce(1, index, ascent, "amax").gather(1, index)
        spread = torch.zeros_like(best).scatter_reduce(1, index, top - ascent, "amax").gather(1, index)
        logits = logits + _RATE / (1 + step) ** 0.5 * (ascent - top) / torch.where(spread > 0, spread, 1.0)
    return Mixed(best, direction, weight)


def _first_row(values: Tensor, best: Tensor, clause: Tensor, count: int) -> Tensor:
    """A row of each clause that attains its best value, int64 [boxes, clauses]."""
    rows = torch.arange(len(clause), device=clause.device).expand(values.shape)
    rows = rows.masked_fill(values != best[:, clause], len(clause) - 1)
    start = rows.new_full((len(values), count), len(clause) - 1)
    return start.scatter_reduce(1, clause.expand(values.shape), rows, "amin")


def _softmax(logits: Tensor, index: Tensor, count: int) -> Tensor:
    """Exponentials that sum to 1 in each clause, [boxes, rows]."""
    top = logits.new_full((len(logits), count), -torch.inf).scatter_reduce(1, index, logits, "amax")
    powers = (logits - top.gather(1, index)).exp()
    return powers / logits.new_zeros((len(logits), count)).scatter_add(1, index, powers).gather(1, index)
