"""Counterexamples on the way: the inputs where bounds are taken, run through the network and pushed on."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.exact.query import Query

POINTS = 8  # of the worst subproblems of a round
_FIRST, _LAST = 0.3, 0.006  # steps as shares of the radius


def steps_of_round(number: int) -> int:
    """How many steps by the gradient a round is worth: 40 in rounds 1, 2, 4, 8 and every 16th, else none."""
    return 40 if number & (number - 1) == 0 or number % 16 == 0 else 0


def counterexample(query: Query, points: Tensor, clause: Tensor, value: Tensor, steps: int) -> Tensor | None:
    """A point of the region with every row of some clause at most 0, or None.

    Args:
        query: the network, the region and the clauses.
        points: inputs, [n, input elements]; they are projected onto the region.
        clause: which clause each belongs to, int64 [n].
        value: bounds, [n]: the lowest are tried first.
        steps: by the gradient, ever smaller ones.

    Returns:
        [1, *shape].
    """
    if len(points) == 0:
        return None
    worst = torch.topk(value, min(POINTS, len(value)), largest=False).indices
    region = query.region[torch.zeros(len(worst), dtype=torch.int64, device=points.device)]
    x = region.project(points[worst].reshape(-1, *query.region.shape))
    aim = clause[worst].unsqueeze(1)
    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            x.requires_grad_(step < steps)
            best = query.clauses.best(query.clauses.values(x, query.graph(x)))
            slope = torch.autograd.grad(best.gather(1, aim).sum(), x)[0] if step < steps else None
        x = x.detach()
        hit = (best <= 0).any(1) & region.contains(x)
        if bool(hit.any()):
            return x[hit][:1]
        if slope is not None:
            x = region.project(x - region.ascent(slope, _FIRST * (_LAST / _FIRST) ** (step / steps)))
    return None
