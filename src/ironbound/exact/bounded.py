"""Branch and bound as a method ("split"): functionals of the output, one example at a time, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.bounding.alpha import proof_threshold
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS, Relaxed
from ironbound.exact.query import Budget, Clauses, Query
from ironbound.exact.split import split
from ironbound.graph import Graph
from ironbound.regions import Region

SECONDS = 60.0  # for the functionals of one example, where a method has no budget of its own
_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-7}  # relative gap at which a minimum is found


def searched(graph: Graph, region: Region, budget: int | None, seconds: float = SECONDS) -> Relaxed:
    """Branch and bound on what "alpha" does not prove.

    Where only lower bounds are asked they are margins: a search ends with the first proof that one is above 0, or the
    first point where it is not. Where both bounds are asked each is brought to the optimum by bisection.

    Args:
        graph: the network.
        region: the inputs.
        budget: bytes for rows and subproblems.
        seconds: time for each example; what is proved by then is the bound.

    Returns:
        The method.
    """
    start = METHODS["alpha"](graph, region, budget)

    def answer(rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            lower, upper = start.answer(rows, both)
            lower = lower.detach().clone()
            higher = None if upper is None else -upper.detach()
            for example in torch.unique(rows.example).tolist():
                index = torch.nonzero(rows.example == example).squeeze(1)
                coefficients = rows.coefficients[index].flatten(1)
                end = Budget.of(seconds, budget)
                one = region[example : example + 1]
                if higher is None:
                    lower[index] = _raised(graph, one, coefficients, lower[index], end)
                else:
                    lower[index] = _minimum(graph, one, coefficients, lower[index], end)
                    higher[index] = _minimum(graph, one, -coefficients, higher[index], end)
        return lower, None if higher is None else -higher

    return Relaxed(answer, start.layers)


def _query(graph: Graph, region: Region, rows: Tensor, above: Tensor, guard: Tensor) -> Query:
    """One clause for each row: is it above a number?"""
    number = torch.arange(len(rows), device=rows.device)
    return Query(graph, region, Clauses(rows, None, -above, number, guard))


def _raised(graph: Graph, region: Region, rows: Tensor, known: Tensor, budget: Budget) -> Tensor:
    """Margins, raised until they are proved."""
    guard = proof_threshold(graph, region).expand(len(rows))
    left = torch.nonzero(~(known > guard)).squeeze(1)
    if len(left) == 0:
        return known
    outcome = split(_query(graph, region, rows[left], torch.zeros_like(known[left]), guard[left]), budget)
    return known.index_put((left,), torch.fmax(known[left], outcome.lower))


def _minimum(graph: Graph, region: Region, rows: Tensor, known: Tensor, budget: Budget) -> Tensor:
    """Lower bounds brought up to the least value that the network has, up to a relative gap."""
    best = known.clone()
    for row in range(len(rows)):
        one = rows[row : row + 1]
        high = float(graph(region.center).flatten(1) @ one.T)
        scale = _CLOSE[region.dtype] * (1 + abs(high))
        while budget.left() > 0 and high - float(best[row]) > scale:
            middle = best.new_tensor([(float(best[row]) + high) / 2])
            outcome = split(_query(graph, region, one, middle, torch.zeros_like(middle)), budget)
            best[row] = torch.fmax(best[row], outcome.lower[0] + middle[0])
            if outcome.candidate is not None:
                high = min(high, float(graph(outcome.candidate).flatten(1) @ one.T))
            elif outcome.why != "proved":
                break
    return best
