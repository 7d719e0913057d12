"""Complete branch and bound on the signs of open neurons.

Each subproblem holds some neurons to one side of their kink. Its bound is the dual of the relaxed network, maximised
over slopes and the multipliers of the splits; one above the guard closes it, any other is split once more. What is left
with nothing to split is linear, and a linear program decides it.

Where hardly any subproblem closes, the bounds of the neurons are too wide for the relaxation to be worth splitting:
they are tightened by a search of their own (`split_tightening.py`), and the search begins anew.

Source: Bunel et al. (2020), "Branch and bound for piecewise linear neural network verification"; Wang et al. (2021),
"Beta-CROWN".
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
from ironbound.exact.split_tightening import Effort, tightened
from ironbound.exact.split_tree import Tightening, Tree

_LAYERS = Ascent(20)
_PATIENCE = 1.0  # least seconds of a search before neurons are tightened
_ROUNDS, _MORE = 16, 3  # splits of each neuron's bounds the first time, and how many times more each time after
_GAIN = 0.05  # share of the neurons' ranges that a tightening must take off to be followed by another
_SHARE = 0.5  # of the time left that a tightening may take

Accept = Callable[[Tensor], bool]


@dataclass(frozen=True, eq=False)
class SplitOutcome(Outcome):
    """What branch and bound found.

    Attributes:
        tree: the closed leaves; those of a proved clause cover the region.
    """

    tree: Tree | None


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
    return SplitOutcome(clauses.constant.new_full((len(clauses),), -torch.inf), None, 0, why, None)


class _Campaign:
    """Searches in turn with tightenings."""

    def __init__(self, query: Query, budget: Budget, accept: Accept | None) -> None:
        self.query, self.budget, self.accept = query, budget, accept
        self.lower = query.clauses.constant.new_full((len(query.clauses),), -torch.inf)
        self.nodes = 0
        self.steps: tuple[Tightening, ...] = ()
        self.memory = MEMORY if budget.memory is None else budget.memory
        self.useful = True

    def run(self, net: Relaxation) -> SplitOutcome:
        """Until a search decides, or the budget is spent.

        Args:
            net: the relaxed network.

        Returns:
            The outcome.
        """
        patience, rounds = _PATIENCE, _ROUNDS
        while True:
            search = SignSearch(self.query, self._left(), net, self.accept)
            why = search.run(patience if self._worth(net) else None)
            self.nodes += search.nodes
            self.lower = torch.fmax(self.lower, search.lower().to(self.lower))
            if why != "hopeless":
                tree = search.leaves.tree(self.steps)
                return SplitOutcome(self.lower, search.candidate, self.nodes, why, tree)
            begin = time.monotonic()
            net = self._tightened(net, rounds)
            patience, rounds = max(patience, time.monotonic() - begin), _MORE * rounds

    def _left(self) -> Budget:
        """What is left for a search."""
        nodes, kept = self.budget.nodes, sum(step.bytes() for step in self.steps)
        return replace(
            self.budget,
            memory=max(0, self.memory - kept),
            nodes=None if nodes is None else max(0, nodes - self.nodes),
        )

    def _worth(self, net: Relaxation) -> bool:
        """Whether there are neurons above the first level to tighten, and reason to expect that it helps."""
        room = 4 * sum(step.bytes() for step in self.steps) < self.memory
        return self.useful and room and self.query.region.dtype == torch.float64 and len(net.levels) > 1

    def _tightened(self, net: Relaxation, rounds: int) -> Relaxation:
        until = Budget() if self.budget.deadline is None else Budget.of(_SHARE * self.budget.left())
        better, steps = tightened(net, Effort(rounds, torch.float32, self.memory // 4), until)
        self.steps += tuple(steps)
        self.useful = _ranges(better) < (1 - _GAIN) * _ranges(net)
        return better


def _ranges(net: Relaxation) -> float:
    """The sum of the ranges of the open neurons."""
    return float((net.high - net.low)[net.splittable].sum())
