"""Primal values and dual bounds of many problems, to a gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.semidefinite.bilinear import Bilinear, Weights, dual_bound
from ironbound.semidefinite.mixing import Climb, random_vectors, values

_BYTES = 64 << 20  # of the vectors of the problems that are solved together, about


@dataclass(frozen=True)
class Effort:
    """How long to solve.

    Attributes:
        gap: dual / primal - 1 at which a problem is solved.
        rank: length of the vectors. From about sqrt(2 (rows + columns)) on no local optimum is left for almost all
            problems; fewer are enough as a rule.
        steps: of the iteration, between two dual bounds.
        rounds: most dual bounds of a problem.
    """

    gap: float = 1e-3
    rank: int = 32
    steps: int = 25
    rounds: int = 20


@dataclass(frozen=True, eq=False)
class Solution:
    """Values of n problems.

    Attributes:
        primal: attained by unit vectors, so no more than the relaxation's value up to rounding, [n].
        dual: upper bound in exact arithmetic; infinity where none was found, [n].
        weights: those of the dual bounds.
    """

    primal: Tensor
    dual: Tensor
    weights: Weights


# (primal, dual) of some problems and their numbers -> those whose question is answered, bool [n]
Enough = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.no_grad()
def solved(problems: Bilinear, effort: Effort, enough: Enough | None = None) -> Solution:
    """Solves problems until their gap is small, or another criterion is met.

    Args:
        problems: the problems.
        effort: how long.
        enough: ends problems earlier.

    Returns:
        Best values found.
    """
    neurons, inputs = problems.weight.shape
    length = max(1, _BYTES // (4 * effort.rank * (neurons + inputs)))
    parts = [_solved(problems, index, effort, enough) for index in torch.arange(len(problems)).split(length)]
    primal, dual, rows, columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Solution(primal, dual, Weights(rows, columns))


def _solved(
    whole: Bilinear, numbers: Tensor, effort: Effort, enough: Enough | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Primal values, dual bounds and the two weights of some of the problems."""
    problems = whole[numbers]
    n, k = problems.factor.shape
    vectors = random_vectors(problems, effort.rank, torch.float32)
    primal, dual = torch.zeros(n, dtype=torch.float64), torch.full((n,), torch.inf, dtype=torch.float64)
    rows, columns = torch.ones_like(problems.linear), torch.ones(n, k + 1, dtype=torch.float64)
    left = torch.arange(n)
    for _ in range(effort.rounds):
        part = problems[left]
        moving = Climb.of(part, torch.float32).run(vectors[left], effort.steps)
        vectors = vectors.put(left, moving)
        value, weights = values(part, moving)
        found = torch.tensor([dual_bound(part, place, weights) for place in range(len(left))], dtype=torch.float64)
        better = found < dual[left]
        dual[left[better]] = found[better]
        rows[left[better]], columns[left[better]] = weights.rows[better], weights.columns[better]
        primal[left] = torch.fmax(primal[left], value)
        done = dual[left] <= (1 + effort.gap) * primal[left]
        if enough is not None:
            done |= enough(primal[left], dual[left], numbers[left])
        left = left[~done]
        if len(left) == 0:
            break
    return primal, dual, rows, columns
