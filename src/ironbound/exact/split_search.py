"""One search: a queue of open subproblems, the leaves that are closed, and rounds that split the worst."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ironbound.bounding.threads import Result, over_examples
from ironbound.exact.query import Budget, Query
from ironbound.exact.split_ascent import CHILD, WITH_CUTS, Best, Pace, climbed, climbed_on
from ironbound.exact.split_attack import POINTS, counterexample, steps_of_round
from ironbound.exact.split_bounds import Multipliers, confirmed, points
from ironbound.exact.split_branching import chosen, halves, splittable
from ironbound.exact.split_leaf import solved
from ironbound.exact.split_pool import Batch, Pool
from ironbound.exact.split_relaxation import Relaxation
from ironbound.exact.split_separation import Cutting, with_cuts
from ironbound.exact.split_tightening import roots, step_length
from ironbound.exact.split_tree import Leaves

MEMORY = 1 << 30  # bytes of open subproblems and leaves, by default
_ROOT = Pace(iterations=60)
_LAST = Pace(iterations=40)
_WORST = 4  # subproblems that cuts are looked for in at a time
_REST = 2.0  # times as long as the last cuts took to find a search goes on before it looks for more
_WORTH = 0.2  # share of what the bounds of these lack that the cuts should make good
_SECONDS = 1.0  # that a step should take at most
_FEW = 16  # subproblems that a thread should have at least
_HOPE = 0.35  # share of the subproblems that should be closed, unless what the bounds lack has halved


class SignSearch:
    """The state of one search. Ascents are in float32; what they find is bounded again in float64.

    Args:
        query: the network, the region and the clauses.
        budget: when to end.
        net: the relaxed network.
        accept: what a candidate [1, *shape] must pass; None accepts all.
        start: every clause without splits, to begin with; None: from the usual slopes.
    """

    def __init__(
        self,
        query: Query,
        budget: Budget,
        net: Relaxation,
        accept: Callable[[Tensor], bool] | None = None,
        start: Batch | None = None,
    ) -> None:
        self.query, self.budget, self.accept = query, budget, accept
        self.net, self.exact = net.to(torch.float32), net.to(torch.float64)
        self.memory = MEMORY if budget.memory is None else budget.memory
        self.leaves = Leaves(self.net, self.memory // 4)
        clauses = len(query.clauses)
        self.done = self.exact.constant.new_full((clauses,), torch.inf)  # the lowest bound of each clause's leaves
        self.stuck = torch.zeros(clauses, dtype=torch.bool, device=net.constant.device)
        self.nodes = self.rounds = 0
        self.candidate: Tensor | None = None
        self._piece = 2 * step_length(self.net)
        self.most = self._piece // 2 * torch.get_num_threads()
        self.length = 16
        self._start = roots(self.net) if start is None else start
        self.pool = Pool(self._start)
        self._begun = False
        self._sharpened, self.pause = time.monotonic(), 1.0  # when cuts were found last, and how long it took

    def run(self, patience: float | None = None, cutting: Cutting | None = None) -> str:
        """Searches to the end.

        Args:
            patience: seconds after which a search is given up that gets nowhere; None: never. One that goes on is
                looked at again after twice as long.
            cutting: how cuts are looked for on the way; None: they are not.

        Returns:
            Why it ended: "proved", "candidate", "time", "memory", "nodes", "stuck" or "hopeless".
        """
        first = begin = time.monotonic()
        if not self._begun:
            self._enter(self._start, *self._bounded(self._start, _ROOT))
            self.nodes, self._begun = len(self._start), True
        lack = self._lack()
        while (why := self._stop()) is None:
            begin = time.monotonic()
            if patience is not None and begin - first > patience:
                before, lack = lack, self._lack()
                if self.closed() < _HOPE and lack > before / 2:
                    return "hopeless"
                patience *= 2
            if cutting is not None and begin > self._sharpened + _REST * self.pause:
                first += self._sharpen(cutting)
            self._step()
            slow = time.monotonic() - begin > _SECONDS
            self.length = max(4, self.length // 2) if slow else min(self.most, 2 * self.length)
        return why

    def lower(self) -> Tensor:
        """Bounds of the clauses as they are, float64 [clauses]."""
        return torch.minimum(self.done, self.pool.least(len(self.done)))

    def closed(self) -> float:
        """The share of the leaves that are closed."""
        return len(self.leaves) / max(1, len(self.leaves) + len(self.pool))

    def _sharpen(self, cutting: Cutting) -> float:
        """Cuts for the worst subproblems, which help those that are like them: the seconds that it took."""
        begin = time.monotonic()
        worst = self.pool.take(_WORST)
        net, found = with_cuts(self.exact, worst, cutting, self.budget)
        if len(net.cuts) == len(self.net.cuts):
            self.pause = float("inf")  # no room for more
        self.net, self.exact, self.leaves.net = net.to(torch.float32), net, net
        self.pool.widen(len(net.cuts))
        value = torch.maximum(confirmed(self.exact, found.at), worst.lower)
        self._enter(found, value, Best(value.to(found.at.t), found.at))
        before = self.exact.rows.guard[worst.clause] - worst.lower
        made_good = float((torch.minimum(value - worst.lower, before) / before).mean())
        took = time.monotonic() - begin
        # more seldom where it helps little
        self.pause = max(took, self.pause if made_good > _WORTH else 2 * self.pause)
        self._sharpened = time.monotonic()
        return took

    def _lack(self) -> float:
        """How far the lowest bound is from its guard."""
        return float((self.exact.rows.guard - self.lower()).max())

    def _stop(self) -> str | None:
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
        return self.net.cuts.bytes + self.leaves.bytes + self.pool.bytes_each * len(self.pool)

    def _step(self) -> None:
        """Splits some subproblems and bounds both sides of each."""
        count = self.length
        if self.budget.nodes is not None:
            count = min(count, (self.budget.nodes - self.nodes) // 2)
        parents = self.pool.take(count, worst=2 * self._used() < self.memory)
        can = splittable(self.net, parents.at.signs).any(1)
        for index in torch.nonzero(~can).flatten():
            self._last(parents.take(index.unsqueeze(0)))
        parents = parents.take(can)
        if len(parents) == 0:
            return
        column = self._in_threads(lambda part: chosen(self.net, part.at, part.clause), parents)
        both = Batch(parents.lower.repeat(2), parents.clause.repeat(2), halves(self.net, parents.at, column))
        self._enter(both, *self._bounded(both, WITH_CUTS if len(self.net.cuts) else CHILD))
        self.nodes += len(both)

    def _bounded(self, batch: Batch, pace: Pace) -> tuple[Tensor, Best]:
        """Bounds of subproblems in float64, and what gives them."""

        def work(part: Batch) -> tuple[Tensor, ...]:
            best = climbed_on(self.net, part.at, part.clause, part.lower, pace)
            at = best.at
            return confirmed(self.exact, at), best.value, *at.parts()

        exact, value, *at = self._in_threads(work, batch)
        return exact, Best(value, Multipliers(*at))

    def _in_threads(self, work: Callable[[Batch], Result], batch: Batch) -> Result:
        length = min(self._piece, max(_FEW, -(-len(batch) // torch.get_num_threads())))
        index = torch.arange(len(batch), device=batch.clause.device)
        return over_examples(lambda part: work(batch.take(index[part])), len(batch), length, index.device)

    def _enter(self, batch: Batch, value: Tensor, best: Best) -> None:
        """Closes what is above its guard and queues the rest, after a look for counterexamples."""
        closed = value > self.exact.rows.guard[batch.clause]
        self._close(batch.clause[closed], value[closed], best.at.take(closed))
        # a side of a split is part of the whole, whose bound holds for it as well
        left = Batch(torch.maximum(value, batch.lower), batch.clause, best.at).take(~closed)
        self.rounds += 1
        self._attack_near(left)
        self.pool.add(left)

    def _attack_near(self, open_ones: Batch) -> None:
        """Looks for a counterexample near the points where the lowest bounds are taken."""
        worst = torch.topk(open_ones.lower, min(POINTS, len(open_ones)), largest=False).indices
        if len(worst):
            one = open_ones.take(worst)
            self._attack(points(self.net, one.at), one.clause, one.lower, steps_of_round(self.rounds))

    def _attack(self, near: Tensor, clause: Tensor, value: Tensor, steps: int) -> None:
        """Looks for a counterexample near points, until there is one."""
        if self.candidate is None:
            found = counterexample(self.query, near.to(self.query.region.dtype), clause, value, steps)
            if found is not None and (self.accept is None or self.accept(found)):
                self.candidate = found

    def _close(self, clause: Tensor, value: Tensor, at: Multipliers) -> None:
        self.done = self.done.scatter_reduce(0, clause, value, "amin")
        self.leaves.add(clause, at)

    def _last(self, one: Batch) -> None:
        """Decides a subproblem with nothing left to split, or gives it up; all in float64."""
        at = one.at.to(torch.float64)
        leaf = solved(self.exact, at, int(one.clause))
        best = climbed(self.exact, at if leaf is None else leaf.at, one.clause, _LAST)
        near = points(self.exact, best.at)
        near = near if leaf is None else torch.cat([leaf.point, near])
        value = confirmed(self.exact, best.at)
        if bool(value > self.exact.rows.guard[one.clause]):
            self._close(one.clause, value, best.at)
            return
        self.done = self.done.scatter_reduce(0, one.clause, torch.maximum(value, one.lower), "amin")
        self.stuck[one.clause] = True
        clause, values = (part.expand(len(near)) for part in (one.clause, value))
        self._attack(near, clause, values, 40)
