"""Complete branch and bound on the signs of open neurons.

Each subproblem holds some neurons to one side of their kink. Its bound is the dual of the relaxed network, maximised
over slopes and the multipliers of the splits; one above the guard closes it, any other is split once more. What is left
with nothing to split is linear, and a linear program decides it.

Source: Bunel et al. (2020), "Branch and bound for piecewise linear neural network verification"; Wang et al. (2021),
"Beta-CROWN".
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.memory import CACHE
from ironbound.bounding.precision import full_precision
from ironbound.errors import MemoryLimitError
from ironbound.exact.query import Budget, Outcome, Query
from ironbound.exact.split_ascent import Best, Pace, climbed
from ironbound.exact.split_attack import counterexample, steps_of_round
from ironbound.exact.split_bounds import Multipliers, confirmed, fixed, walk
from ironbound.exact.split_branching import chosen, halves, splittable
from ironbound.exact.split_leaf import solved
from ironbound.exact.split_pool import Batch, Pool
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_tree import Leaves, Tree

_MEMORY = 1 << 30  # bytes of open subproblems and leaves, by default
_LAYERS = Ascent(20)
_ROOT = Pace(iterations=60)
_CHILD = Pace(iterations=8, slope=0.1, beta=0.6)
_LAST = Pace(iterations=40)
_SECONDS = 1.0  # that a step should take at most


@dataclass(frozen=True, eq=False)
class SplitOutcome(Outcome):
    """What branch and bound found.

    Attributes:
        tree: the closed leaves; those of a proved clause cover the region.
    """

    tree: Tree | None


@torch.no_grad()
def split(query: Query, budget: Budget) -> SplitOutcome:
    """Searches for a counterexample of any clause, until none is left.

    Args:
        query: the network, the region and the clauses.
        budget: when to end.

    Returns:
        Bounds that hold whenever the search ends, a candidate where one was met, and the leaves.
    """
    with full_precision(query.region.center.device):
        if budget.left() <= 0:
            return _nothing(query, "time")
        try:
            net = relaxed(query, _LAYERS, budget.memory)
        except MemoryLimitError:
            return _nothing(query, "memory")
        return _Search(query, budget, net).run()


def _nothing(query: Query, why: str) -> SplitOutcome:
    clauses = query.clauses
    return SplitOutcome(clauses.constant.new_full((len(clauses),), -torch.inf), None, 0, why, None)


class _Search:
    """The state of one search.

    Args:
        query: the network, the region and the clauses.
        budget: when to end.
        net: the relaxed network.
    """

    def __init__(self, query: Query, budget: Budget, net: Relaxation) -> None:
        self.query, self.budget, self.net, self.double = query, budget, net, net.double()
        self.memory = _MEMORY if budget.memory is None else budget.memory
        self.leaves = Leaves(net, self.memory // 4)
        clauses = len(query.clauses)
        self.done = net.constant.new_full((clauses,), torch.inf)  # the lowest bound of the leaves of each clause
        self.stuck = torch.zeros(clauses, dtype=torch.bool, device=net.constant.device)
        self.nodes = self.rounds = 0
        self.candidate: Tensor | None = None
        each = net.constant.element_size() * (12 * net.width + 6 * net.input.shape[1])
        self.most = max(16, min(1024, CACHE // each))
        self.length = 16
        self.pool: Pool | None = None

    def run(self) -> SplitOutcome:
        """Searches to the end."""
        self.pool = self._root()
        why = self._stop()
        while why is None:
            begin = time.monotonic()
            self._step(self.pool)
            spent = time.monotonic() - begin
            self.length = max(4, self.length // 2) if spent > _SECONDS else min(self.most, 2 * self.length)
            why = self._stop()
        lower = torch.minimum(self.done, self.pool.least(len(self.done)))
        return SplitOutcome(lower, self.candidate, self.nodes, why, self.leaves.tree())

    def _stop(self) -> str | None:
        assert self.pool is not None
        limit = self.budget.nodes
        if self.candidate is not None:
            return "candidate"
        if len(self.pool) == 0:
            return "stuck" if bool(self.stuck.any()) else "proved"
        if self.budget.left() <= 0:
            return "time"
        if limit is not None and self.nodes + 2 > limit:
            return "nodes"
        return "memory" if self._used() > self.memory else None

    def _used(self) -> int:
        assert self.pool is not None
        return self.leaves.bytes + self.pool.bytes_each * len(self.pool)

    def _root(self) -> Pool:
        """Bounds every clause, from both usual choices of slopes."""
        net = self.net
        clause = torch.arange(len(self.done), device=net.constant.device)
        rows = net.membership()
        weight = rows / rows.sum(1, keepdim=True)
        none = net.constant.new_zeros((len(clause), net.width))
        signs = fixed(net, none)
        starts = [Multipliers(none, t.expand_as(none), none, weight) for t in net.starts]
        first, second = (walk(net, signs, start).value for start in starts)
        t = torch.where((second > first).unsqueeze(1), starts[1].t, starts[0].t)
        batch = Batch(torch.full_like(first, -torch.inf), clause, Multipliers(none, t, none, weight))
        pool = Pool(batch)
        self._enter(pool, batch, climbed(net, batch.at, clause, _ROOT))
        return pool

    def _step(self, pool: Pool) -> None:
        """Splits some subproblems and bounds both sides of each."""
        count = self.length
        if self.budget.nodes is not None:
            count = min(count, (self.budget.nodes - self.nodes) // 2)
        parents = pool.take(count, worst=2 * self._used() < self.memory)
        can = splittable(self.net, parents.at.signs).any(1)
        for index in torch.nonzero(~can).flatten():
            self._last(parents.take(index.unsqueeze(0)))
        parents = parents.take(can)
        if len(parents) == 0:
            return
        column = chosen(self.net, parents.at, parents.clause)
        both = Batch(parents.lower.repeat(2), parents.clause.repeat(2), halves(parents.at, column))
        self._enter(pool, both, climbed(self.net, both.at, both.clause, _CHILD))

    def _enter(self, pool: Pool, batch: Batch, best: Best) -> None:
        """Closes what is above its guard and queues the rest, after a look for counterexamples."""
        self.nodes += len(batch)
        value, closed = self._confirmed(best, batch.clause)
        self._close(batch.clause[closed], value[closed], best.at.take(closed))
        # a side of a split is part of the whole, whose bound holds for it as well
        left = Batch(torch.maximum(value, batch.lower), batch.clause, best.at).take(~closed)
        self.rounds += 1
        self._attack(best.point[~closed], left.clause, left.lower, steps_of_round(self.rounds))
        pool.add(left)

    def _attack(self, points: Tensor, clause: Tensor, value: Tensor, steps: int) -> None:
        """Looks for a counterexample near points, until there is one."""
        if self.candidate is None:
            self.candidate = counterexample(self.query, points, clause, value, steps)

    def _confirmed(self, best: Best, clause: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds, those above the guard computed again; and which of them are above it still."""
        guard = self.net.guard[clause]
        value = best.value.clone()
        above = torch.nonzero(value > guard).squeeze(1)
        if len(above):
            value[above] = confirmed(self.double, best.at.take(above)).to(value)
        return value, value > guard

    def _close(self, clause: Tensor, value: Tensor, at: Multipliers) -> None:
        self.done = self.done.scatter_reduce(0, clause, value, "amin")
        self.leaves.add(clause, at)

    def _last(self, one: Batch) -> None:
        """Decides a subproblem with nothing left to split, or gives it up."""
        leaf = solved(self.net, one.at, int(one.clause))
        best = climbed(self.net, one.at if leaf is None else leaf.at, one.clause, _LAST)
        points = best.point if leaf is None else torch.cat([leaf.point, best.point])
        value, closed = self._confirmed(best, one.clause)
        if bool(closed):
            self._close(one.clause, value, best.at)
            return
        self.done = self.done.scatter_reduce(0, one.clause, torch.maximum(value, one.lower), "amin")
        self.stuck[one.clause] = True
        clause, values = (part.expand(len(points)) for part in (one.clause, value))
        self._attack(points, clause, values, 40)
