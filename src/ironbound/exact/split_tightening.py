"""Tighter bounds of the open neurons themselves, level by level, by a short branch and bound for each of them.

A neuron's lower and upper bound are clauses like any other. All neurons of a level are searched side by side, on the
bounds that the levels below have by then. A search of a neuron need not end: the least bound of its leaves holds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.memory import CACHE
from ironbound.bounding.threads import over_examples
from ironbound.exact.query import Budget
from ironbound.exact.split_ascent import CHILD, Pace, climbed_on
from ironbound.exact.split_bounds import Multipliers, confirmed, fixed, walk
from ironbound.exact.split_branching import chosen, halves, splittable
from ironbound.exact.split_columns import GUARD, below, bounded, is_open, pruned
from ironbound.exact.split_pool import Batch
from ironbound.exact.split_relaxation import Relaxation
from ironbound.exact.split_tree import Leaves, Tightening

_COPIES = 24  # tensors of the size of a subproblem's columns that the first bounds hold at a time
_ROOT = Pace(iterations=40)


def roots(net: Relaxation) -> Batch:
    """Every clause without splits, from the better one of the usual choices of slopes; the bounds are still -inf."""
    clause = torch.arange(len(net.rows.guard), device=net.constant.device)
    rows = net.rows.membership()
    weight = rows / rows.sum(1, keepdim=True)
    none = net.constant.new_zeros((len(clause), net.width))
    lines = fixed(net, none)
    cuts = none.new_zeros((len(clause), len(net.cuts)))
    starts = [Multipliers(none, t.expand_as(none), none, weight, cuts) for t in net.starts]
    first, second = (walk(net, lines, start).value for start in starts)
    t = torch.where((second > first).unsqueeze(1), starts[1].t, starts[0].t)
    lower = torch.full_like(first, -torch.inf, dtype=torch.float64)
    return Batch(lower, clause, Multipliers(none, t, none, weight, cuts))


def step_length(net: Relaxation) -> int:
    """How many subproblems fit the cache at a time."""
    each = net.constant.element_size() * (12 * net.width + 6 * net.input.shape[1])
    return max(16, min(1024, CACHE // each))


class SideBySide:
    """A branch and bound for each bound of some neurons; each round splits the worst subproblem of every open one.

    Args:
        exact: the network in float64, with the clauses of `below`.
        dtype: of the ascents.
        budget: when to end.
        memory: bytes of leaves' slopes to keep.
    """

    def __init__(self, exact: Relaxation, dtype: torch.dtype, budget: Budget, memory: int) -> None:
        self.exact, self.net, self.budget = exact, exact.to(dtype), budget
        self.leaves = Leaves(self.net, memory)
        self.closed = exact.constant.new_full((len(exact.rows.guard),), torch.inf)
        self.open = self._bounded(roots(self.net), _ROOT)

    def lower(self) -> Tensor:
        """The bound of each clause, float64 [clauses]."""
        return self.closed.scatter_reduce(0, self.open.clause, self.open.lower, "amin")

    def bytes(self) -> int:
        """Bytes of the open subproblems, once more while they are split."""
        return 8 * self.net.constant.element_size() * self.net.width * len(self.open)

    def finish(self) -> None:
        """Makes leaves of what is open."""
        self.leaves.add(self.open.clause, self.open.at)

    def _bounded(self, batch: Batch, pace: Pace) -> Batch:
        """What stays open of subproblems; where the time is up they keep the bounds that they have."""

        def work(part: slice) -> tuple[Tensor, ...]:
            one = batch.take(index[part])
            if self.budget.left() <= 0:
                return one.lower, *one.at.parts()
            at = climbed_on(self.net, one.at, one.clause, one.lower, pace).at
            return torch.maximum(confirmed(self.exact, at), one.lower), *at.parts()

        index = torch.arange(len(batch), device=batch.clause.device)
        value, *rest = over_examples(work, len(batch), step_length(self.net), index.device)
        found = Batch(value, batch.clause, Multipliers(*rest))
        done = value > self.exact.rows.guard[found.clause]
        self.closed = self.closed.scatter_reduce(0, found.clause[done], value[done], "amin")
        self.leaves.add(found.clause[done], found.at.take(done))
        return found.take(~done)

    def step(self) -> bool:
        """Splits the worst subproblem of each open clause; whether there was any to split."""
        taken = self._worst()
        parents, rest = self.open.take(taken), self.open.take(~taken)
        if len(parents) == 0:
            return False
        index = torch.arange(len(parents), device=taken.device)
        column = over_examples(
            lambda part: chosen(self.net, parents.at.take(index[part]), parents.clause[part]),
            len(parents),
            step_length(self.net),
            index.device,
        )
        both = Batch(parents.lower.repeat(2), parents.clause.repeat(2), halves(self.net, parents.at, column))
        self.open = Batch.join([rest, self._bounded(both, CHILD)])
        return True

    def _worst(self) -> Tensor:
        """The subproblem with the lowest bound of each clause, unless it has nothing to split, bool [open]."""
        clause, lower = self.open.clause, self.open.lower
        order = torch.argsort(lower, stable=True)
        order = order[torch.argsort(clause[order], stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = clause[order[1:]] != clause[order[:-1]]
        taken = torch.zeros_like(first)
        taken[order[first]] = True
        # a neuron that is closed to one side needs no bound on the other
        proved = torch.ones_like(self.closed, dtype=torch.bool).index_fill(0, clause, False)
        other = proved.roll(len(proved) // 2)
        return taken & ~other[clause] & splittable(self.net, self.open.at.signs).any(1)


@dataclass(frozen=True)
class Effort:
    """How long neurons are searched.

    Attributes:
        rounds: most splits of each of their bounds.
        dtype: of the ascents.
        memory: bytes of open subproblems; the leaves' slopes of all levels take a quarter of it.
    """

    rounds: int
    dtype: torch.dtype
    memory: int


def tightened(net: Relaxation, effort: Effort, budget: Budget) -> tuple[Relaxation, list[Tightening]]:
    """Bounds the open neurons of every level but the first, whose bounds are exact on a box.

    Args:
        net: the relaxed network in float64.
        effort: how long.
        budget: when to end; what is found by then counts.

    Returns:
        The network with those bounds, without the neurons that they close; and the leaves that they rest on.
    """
    steps = []
    nodes = [int(net.nodes[columns.start]) for columns in net.levels]
    for place, node in enumerate(nodes[1:]):
        which = _affordable(net, torch.nonzero(is_open(net) & (net.nodes == node)).squeeze(1), effort)
        if len(which) == 0 or budget.left() <= 0:
            continue
        end = Budget.of(budget.left() / (len(nodes) - 1 - place) * 1.5 if budget.deadline is not None else None)
        search = SideBySide(below(net, which), effort.dtype, end, effort.memory // (4 * len(nodes)))
        for _ in range(effort.rounds):
            if end.left() <= 0 or search.bytes() > effort.memory or not search.step():
                break
        search.finish()
        neurons = net.neurons[which]
        net = pruned(bounded(net, *bounds_of(net, which, search.lower())))
        steps.append(Tightening(node, neurons, search.leaves.tree()))
    return net, steps


def _affordable(net: Relaxation, which: Tensor, effort: Effort) -> Tensor:
    """As many neurons as can be searched at a time within memory, those with the widest bounds first."""
    if len(which) == 0:
        return which
    columns = int((net.nodes < net.nodes[which[0]]).sum())
    each = 2 * torch.finfo(effort.dtype).bits // 8 * (_COPIES * columns + 2 * net.input.shape[1])
    count = min(len(which), effort.memory // each)
    widest = torch.topk((net.high - net.low)[which], count).indices
    return which[widest.sort().values]


def bounds_of(net: Relaxation, which: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """What bounds of some neurons' clauses say of their inputs.

    Args:
        net: the relaxed network.
        which: columns, int64 [neurons].
        lower: bounds of the clauses of `below`, float64 [2 * neurons].

    Returns:
        Lower and upper bounds, [columns]; infinite for the other neurons.
    """
    over, under = (part.to(net.knot) for part in lower.chunk(2))
    low, high = torch.full_like(net.low, -torch.inf), torch.full_like(net.high, torch.inf)
    room = GUARD * (1 + net.high[which] - net.low[which])  # for rounding
    low[which] = net.knot[which] + over - room
    high[which] = net.knot[which] - under + room
    return low, high
