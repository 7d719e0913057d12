"""Which neuron to split: a score picks a few of them, and bounding a side of each decides."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ironbound.exact.split_bounds import Multipliers, Slopes, Walk, fixed, gradient, walk
from ironbound.exact.split_relaxation import Relaxation

CANDIDATES = 8


def splittable(net: Relaxation, signs: Tensor) -> Tensor:
    """Which neurons of subproblems may still be split, bool [n, columns]."""
    return net.splittable & (signs == 0)


def scores(net: Relaxation, at: Multipliers, found: Walk, there: Slopes) -> Tensor:
    """How much the bound owes to each neuron's relaxation.

    The coefficient of the neuron's output times the distance of the line that it took from the neuron itself, at the
    point where the bound is taken and, should that be a point where the line is exact, at the kink. The part of the
    coefficient that cuts took counts with their distance.

    Args:
        net: the relaxed network.
        at: the subproblems.
        found: their walk.
        there: its gradient.

    Returns:
        [n, columns]; -inf at neurons that cannot be split.
    """
    low = net.lower
    exact = torch.maximum(*_pieces(net, there.reached))
    gap = found.slope * there.reached + found.height - exact
    at_kink = found.slope * net.knot + found.height - (low[0] * net.knot + low[2])
    score = found.met.abs() * (gap.abs() + at_kink.abs())
    if len(net.cuts):
        column = net.cuts.shares.column
        over = (there.out - exact)[:, column] - there.cuts
        chord = (net.upper[0] * net.knot + net.upper[2] - (low[0] * net.knot + low[2]))[column]
        score = score.index_add(1, column, at.cuts * (over.clamp(min=0) + chord))
    return score.masked_fill(~splittable(net, at.signs), -torch.inf)


def _pieces(net: Relaxation, reached: Tensor) -> tuple[Tensor, Tensor]:
    """The neurons' lines below and above their kinks, each [n, columns]."""
    slope, step, height, rise = net.lower
    left = slope * reached + height
    return left, left + step * reached + rise


def _better_side(net: Relaxation, at: Multipliers, found: Walk, reached: Tensor) -> Tensor:
    """The sign that each neuron's split gains more with, to first order, [n, columns]."""
    left, right = _pieces(net, reached)
    met = found.met.index_add(1, net.cuts.shares.column, at.cuts, alpha=-1)  # what is left when its cuts are dropped
    return torch.where(met * right > met * left, 1.0, -1.0).to(left)


def _side(net: Relaxation, at: Multipliers, column: Tensor, sign: Tensor) -> Multipliers:
    """A side of a split of each subproblem, by columns and signs [n, 1]; cuts of a neuron that is split are dropped."""
    cuts = at.cuts.masked_fill(net.cuts.shares.column == column, 0.0)
    return replace(at, signs=at.signs.scatter(1, column, sign), beta=at.beta.scatter(1, column, 0.0), cuts=cuts)


def halves(net: Relaxation, at: Multipliers, column: Tensor) -> Multipliers:
    """Both sides of a split of each subproblem: the upper sides, then the lower ones.

    Args:
        net: the relaxed network.
        at: the subproblems.
        column: which neuron of each, int64 [n].

    Returns:
        2 n subproblems that go on from the multipliers of the one that they come from.
    """
    place = column.unsqueeze(1)
    sides = [_side(net, at, place, torch.full_like(at.signs[:, :1], sign)) for sign in (1.0, -1.0)]
    return Multipliers(*(torch.cat(pair) for pair in zip(*(side.parts() for side in sides), strict=True)))


def chosen(net: Relaxation, at: Multipliers, clause: Tensor, candidates: int = CANDIDATES) -> Tensor:
    """The neuron that each subproblem is split at.

    The side that gains more counts, its gain up to the guard: one that closes, or nearly so, leaves a single subproblem
    to go on with. The usual choice, the gain of the worse side, takes about twice as many subproblems on oval21. The
    side that gains more is told to first order: to bound both finds no better neurons.

    Source: De Palma et al. (2021), "Improved branch and bound for neural network verification via Lagrangian
    decomposition", section 4 (filtered smart branching); Bunel et al. (2020) for the score's idea.

    Args:
        net: the relaxed network.
        at: the subproblems, each with a neuron left to split.
        clause: of each, int64 [n].
        candidates: how many neurons are bounded.

    Returns:
        Columns, int64 [n].
    """
    lines = fixed(net, at.signs)
    found = walk(net, lines, at)
    there = gradient(net, lines, found)
    best = torch.topk(scores(net, at, found, there), min(candidates, net.width), 1)
    side = _better_side(net, at, found, there.reached)
    gains = []
    for column in best.indices.split(1, 1):
        one = _side(net, at, column, side.gather(1, column))
        after = walk(net, fixed(net, one.signs), one).value
        gains.append(torch.minimum(after, net.rows.guard[clause]) - found.value)
    rank = torch.where(torch.isfinite(best.values), torch.stack(gains, 1), -torch.inf).argmax(1, keepdim=True)
    return best.indices.gather(1, rank).squeeze(1)
