"""Complete branch and bound on the signs of open neurons.

Each subproblem holds some neurons to one side of their kink. Its bound is the dual of the relaxed network, maximised
over slopes and the multipliers of the splits; one above the guard closes it, any other is split once more. What is left
with nothing to split is linear, and a linear program decides it.

What is open after a moment is searched again clause by clause, the hardest first, with cuts that make its relaxation
tighter (`split_separation.py`). Where such a search gets nowhere, the bounds of the neurons are too wide for the
relaxation to be worth splitting: they are tightened by a search of their own (`split_tightening.py`).

Source: Bunel et al. (2020), "Branch and bound for piecewise linear neural network verification"; Wang et al. (2021),
"Beta-CROWN"; Zhang et al. (2022), "General cutting planes for bound-propagation-based neural network verification".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.precision import full_precision
from ironbound.errors import MemoryLimitError
from ironbound.exact.query import Budget, Outcome, Query
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_search import MEMORY, SignSearch
from ironbound.exact.split_separation import Cutting, with_cuts
from ironbound.exact.split_tightening import Effort, roots, tightened
from ironbound.exact.split_tree import Proof, Tightening

_LAYERS = Ascent(20)
_FIRST, _BRIEF = 256, 0.5  # subproblems and seconds of a search before cuts are looked for
_HOPE = 0.5  # share of the leaves that such a search should have closed to go on
_LATER, _EACH = 4, 100  # rounds of cuts within a search, and new ones of a subproblem in each
_PATIENCE = 1.0  # least seconds of a search before neurons are tightened
_ROUNDS, _MORE = 16, 3  # splits of each neuron's bounds the first time, and how many times more each time after
_GAIN = 0.05  # share of the neurons' ranges that a tightening must take off to be followed by another
_SHARE = 0.5  # of the time left that a tightening may take

Accept = Callable[[Tensor], bool]


@dataclass(frozen=True, eq=False)
class SplitOutcome(Outcome):
    """What branch and bound found.

    Attributes:
        proofs: for each clause that is proved, the leaves that cover the region.
    """

    proofs: tuple[Proof, ...]


@torch.no_grad()
def split(query: Query, budget: Budget, accept: Accept | None = None) -> SplitOutcome:
    """Searches for a counterexample of any clause, until none is left.

    Args:
        query: the network, the region and the clauses.
        budget: when to end.
        accept: what a candidate [1, *shape] must pass; the search goes on where it does not. None accepts all.

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
        return _Campaign(query, budget, accept).run(net)


def _nothing(query: Query, why: str) -> SplitOutcome:
    clauses = query.clauses
    return SplitOutcome(clauses.constant.new_full((len(clauses),), -torch.inf), None, 0, why, ())


class _Campaign:
    """Searches in turn with cuts and tightenings."""

    def __init__(self, query: Query, budget: Budget, accept: Accept | None) -> None:
        self.query, self.budget, self.accept = query, budget, accept
        self.lower = query.clauses.constant.new_full((len(query.clauses),), -torch.inf)
        self.nodes = self.kept = 0
        self.memory = MEMORY if budget.memory is None else budget.memory
        self.candidate: Tensor | None = None
        self.proofs: list[Proof] = []
        self.steps: tuple[Tightening, ...] = ()
        self.useful = True
        self.patience, self.rounds = _PATIENCE, _ROUNDS

    def run(self, net: Relaxation) -> SplitOutcome:
        """Until a search decides, or the budget is spent.

        Args:
            net: the relaxed network.

        Returns:
            The outcome.
        """
        why = self._without_cuts(net)
        if why == "time" and self._exact():
            left = torch.nonzero(~(self.lower > net.rows.guard)).squeeze(1)
            why = self._each(net, left[torch.argsort(self.lower[left])])
        return SplitOutcome(self.lower, self.candidate, self.nodes, why, tuple(self.proofs))

    def _without_cuts(self, net: Relaxation) -> str:
        """A search of all clauses, a short one where cuts may follow; why it ended."""
        search = SignSearch(self.query, self._left(), net, self.accept)
        if self._exact():
            begin = time.monotonic()
            limits = [number for number in (_FIRST, self.budget.nodes) if number is not None]
            search.budget = replace(search.budget, nodes=min(limits))
            search.run()
            search.budget = self._left(begin + _BRIEF - time.monotonic())
            while search.run() == "time" and search.closed() > _HOPE and self.budget.left() > 0:
                search.budget = self._left(time.monotonic() - begin)
        return self._run(search, torch.arange(len(self.query.clauses), device=self.lower.device))

    def _each(self, net: Relaxation, left: Tensor) -> str:
        """Searches the clauses one after another; why it ended."""
        ended, number = "proved", 0
        while number < len(left):
            if (short := self._short()) is not None:
                return short
            others = len(left) - number - 1
            seconds = self.budget.left() * (1 - 0.5 * others / (others + 1))  # half of it at least for the hardest
            why = self._one(net, left[number : number + 1], seconds)
            if why == "hopeless":
                net = self._tightened(net)
                continue
            if why == "candidate":
                return why
            ended = ended if why == "proved" else why
            number += 1
        return ended

    def _one(self, net: Relaxation, clause: Tensor, seconds: float) -> str:
        """Searches one clause with cuts."""
        begin, end = time.monotonic(), self._left(seconds)
        cutting = Cutting(memory=2 * self.memory // 5)
        one = net.clauses(clause)
        cut, start = with_cuts(one, roots(one.to(torch.float32)), cutting, end)
        took = time.monotonic() - begin
        self.patience = max(self.patience, took)
        query = replace(self.query, clauses=self.query.clauses.take(clause))
        search = SignSearch(query, end, cut, self.accept, start)
        search.pause = max(search.pause, took)
        more = replace(cutting, rounds=_LATER, each=_EACH)
        return self._run(search, clause, self.patience if self._worth(net) else None, more)

    def _run(
        self, search: SignSearch, clauses: Tensor, patience: float | None = None, cutting: Cutting | None = None
    ) -> str:
        why = search.run(patience, cutting)
        lower = search.lower()
        proved = torch.nonzero(lower > search.exact.rows.guard).squeeze(1)
        if len(proved):
            rows = torch.nonzero(torch.isin(search.net.rows.clause, proved)).squeeze(1)
            self.proofs.append(Proof(clauses[proved], search.leaves.tree(self.steps).take(proved, rows)))
            self.kept += search.leaves.bytes
        self.nodes += search.nodes
        self.candidate = search.candidate
        self.lower[clauses] = torch.fmax(self.lower[clauses], lower.to(self.lower))
        return why

    def _left(self, seconds: float | None = None) -> Budget:
        """What is left for a search, of so many seconds at most."""
        nodes, kept = self.budget.nodes, self.kept + sum(step.bytes() for step in self.steps)
        end = Budget.of(None if seconds is None else min(seconds, self.budget.left()))
        return replace(
            end,
            deadline=self.budget.deadline if seconds is None else end.deadline,
            memory=max(0, self.memory - kept),
            nodes=None if nodes is None else max(0, nodes - self.nodes),
        )

    def _short(self) -> str | None:
        """What is missing for another search, if anything."""
        left = self._left()
        if left.left() <= 0:
            return "time"
        if left.nodes is not None and left.nodes <= 2:
            return "nodes"
        return "memory" if left.memory == 0 else None

    def _worth(self, net: Relaxation) -> bool:
        """Whether there are neurons above the first level to tighten, and reason to expect that it helps."""
        room = 4 * sum(step.bytes() for step in self.steps) < self.memory
        return self.useful and room and self._exact() and len(net.levels) > 1

    def _exact(self) -> bool:
        """Whether the arithmetic is good enough to build bounds on bounds."""
        return self.query.region.dtype == torch.float64

    def _tightened(self, net: Relaxation) -> Relaxation:
        begin = time.monotonic()
        until = Budget() if self.budget.deadline is None else Budget.of(_SHARE * self.budget.left())
        better, steps = tightened(net, Effort(self.rounds, torch.float32, self.memory // 4), until)
        self.steps += tuple(steps)
        self.useful = _ranges(better) < (1 - _GAIN) * _ranges(net)
        self.patience, self.rounds = max(self.patience, time.monotonic() - begin), _MORE * self.rounds
        return better


def _ranges(net: Relaxation) -> float:
    """The sum of the ranges of the open neurons."""
    return float((net.high - net.low)[net.splittable].sum())
