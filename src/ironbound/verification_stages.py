"""The stages of `verify`, cheapest first; each works on the cases and clauses that are still open."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ironbound.attacks.property_attack import Effort, Goal, attack_property
from ironbound.bounding import METHODS
from ironbound.bounding.api import piece_length, prepared
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import is_out_of_memory
from ironbound.bounding.precision import full_precision
from ironbound.cascade import COARSE, FINE
from ironbound.errors import InputError, IronboundError, UnsupportedOperatorError
from ironbound.exact.query import FEW, SOME, Budget, Outcome, Query
from ironbound.exact.with_inputs import with_inputs
from ironbound.graph import Graph
from ironbound.regions import Box
from ironbound.spec import Property
from ironbound.verdicts import Proved, Refuted, Unknown, Verdict
from ironbound.verification_queries import Scale, query_of
from ironbound.verification_recheck import Recheck

MARGIN = 0.02  # share of the time kept for what a step overruns
QUICK, STRONG = (Effort(4, 4),), (Effort(50, 8), Effort(80, 24, 0.5, adam=True))
# where few elements vary, long walks cost less than a search; the longest begin where a brief search has not decided
LONG = (Effort(400, 256, 0.1, adam=True),)
LONGEST = (Effort(400, 2048, 0.1, adam=True), Effort(400, 2048, 0.03, adam=True))
BRIEF = 0.05  # share of the time

Search = Callable[[Query, Budget], Outcome]


@dataclass(eq=False)
class Verification:
    """One question, and what is known of it while the stages run.

    Attributes:
        model: the network, in its own dtype.
        prop: the property.
        shape: of an input example.
        start: when the question was put, a value of `time.monotonic()`.
        timeout: seconds from then, or None.
        memory: bytes for a step of the bounds, or None.
        seed: of the attacks.
        path: of the ONNX file, or None.
    """

    model: nn.Module
    prop: Property
    shape: tuple[int, ...]
    start: float
    timeout: float | None
    memory: int | None
    seed: int
    path: Path | None
    lower: dict[Goal, float] = field(default_factory=dict)  # of open goals: the best bound, the guard taken off
    nodes: int = 0
    why: str = "stuck"
    method: str = "an empty box"

    def __post_init__(self) -> None:
        kept = 0.0 if self.timeout is None else min(1.0, MARGIN * self.timeout)
        end = None if self.timeout is None else self.start + self.timeout - kept
        self.budget = Budget(end, self.memory)
        for case, one in enumerate(self.prop.cases):
            if not one.empty:
                self.lower.update({(case, clause): -math.inf for clause in range(len(one.clauses))})

    def run(self) -> Verdict:
        """Stage after stage, until one decides."""
        if not self.lower:
            return self._proved()
        for stage in self._stages():
            try:
                stage()
            except (RuntimeError, MemoryError, IronboundError) as error:
                if not is_out_of_memory(error):
                    raise
                self.why = "memory"
            if self._recheck.found is not None:
                return self._refuted()
            if not self.lower:
                return self._proved()
            if self.budget.left() <= 0:
                self.why = "time"
                break
        return self._unknown()

    # --- what the stages share ---------------------------------------------------------------------------------------

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        found = {tensor.dtype for tensor in self.model.parameters() if tensor.is_floating_point()}
        if len(found) > 1:
            raise InputError(f"the network's parameters are of several types, {sorted(map(str, found))}; convert it")
        return found.pop() if found else torch.float32

    @cached_property
    def graph(self) -> Graph:
        """The network in float64, or in its own dtype where it is tied to that."""
        example = torch.zeros(1, *self.shape, dtype=torch.float64)
        if self.dtype != torch.float64:
            try:
                return prepared(copy.deepcopy(self.model).double(), Box(example, example), "crown")
            except (IronboundError, RuntimeError, TypeError):
                example = example.to(self.dtype)  # an error that has nothing to do with the dtype comes again
        return prepared(self.model, Box(example, example), "crown")

    @cached_property
    def searched(self) -> torch.dtype:
        """The dtype of all bounds."""
        tensors = [tensor.dtype for tensor in self.graph.parameters() if tensor.dim() and tensor.is_floating_point()]
        return tensors[0] if tensors else torch.float64

    @cached_property
    def scale(self) -> Scale:
        """Magnitudes of the outputs at middles and ends of all boxes."""
        cases = [self.prop.cases[case] for case in sorted({case for case, _ in self.lower})]
        ends = [
            torch.from_numpy(end) for case in cases for end in (case.lower, case.upper, case.lower / 2 + case.upper / 2)
        ]
        with torch.no_grad():
            y = self.graph(torch.stack(ends).to(self.searched).reshape(-1, *self.shape)).flatten(1).double()
        return Scale(FINE if self.searched == torch.float64 else COARSE, y.abs().nan_to_num(torch.inf).amax(0))

    @cached_property
    def _recheck(self) -> Recheck:
        return Recheck(self.model, self.prop, self.shape, self.dtype, self.path)

    def _open(self) -> dict[int, list[int]]:
        """The open clauses of each open case."""
        found: dict[int, list[int]] = {}
        for case, clause in self.lower:
            found.setdefault(case, []).append(clause)
        return found

    def _varied(self, case: int) -> int:
        """How many elements of a case's box vary."""
        return int((self.prop.cases[case].lower < self.prop.cases[case].upper).sum())

    def _enter(self, case: int, clauses: list[int], excess: Tensor, method: str) -> None:
        """Notes bounds of some clauses, their guards taken off; above 0 is proved, NaN and infinity never are."""
        for clause, value in zip(clauses, excess.tolist(), strict=True):
            if 0 < value < math.inf:
                del self.lower[case, clause]
                self.method = method
            elif self.lower[case, clause] < value <= 0:
                self.lower[case, clause] = value

    # --- stages ------------------------------------------------------------------------------------------------------

    def _attack(self, efforts: tuple[Effort, ...], name: str) -> None:
        self.method = name
        for effort in efforts:
            if self._recheck.found is None:
                effort = replace(effort, seed=self.seed, deadline=self.budget.deadline)
                goals = list(self.lower)
                attack_property(self.model, self.prop, self.shape, self._recheck, goals, effort, self.dtype)

    def _quick_attack(self) -> None:
        with torch.no_grad():
            y = self.model(torch.zeros(1, *self.shape, dtype=self.dtype))
        if y[:1].numel() != self.prop.outputs:
            raise InputError(f"the network has {y[:1].numel()} outputs, the property {self.prop.outputs}")
        self._attack(QUICK, "a quick attack")

    def _stages(self) -> Iterator[Callable[[], None]]:
        """What to do next, cheapest first."""
        yield self._quick_attack
        yield self._bounds
        few = all(self._varied(case) <= SOME for case in self._open())
        yield lambda: self._attack(STRONG + LONG if few else STRONG, "an attack")
        if few and self.timeout is not None:
            yield lambda: self._search(BRIEF)
            yield lambda: self._attack(LONGEST, "a long attack")
        yield self._search

    def _bounds(self) -> None:
        """One bound of every open clause, the cases as one batch."""
        cases = list(self._open().items())
        first = self.prop.cases[cases[0][0]].box(self.shape, self.searched)
        length = piece_length(self.graph, first, self.memory)

        with torch.no_grad(), full_precision(torch.device("cpu")):
            for start in range(0, len(cases), length):
                part = cases[start : start + length]
                for (case, clauses), excess in zip(part, self._bounded(part), strict=True):
                    self._enter(case, clauses, excess, "crown")
                if self.budget.left() <= 0:
                    return

    def _bounded(self, cases: list[tuple[int, list[int]]]) -> list[Tensor]:
        """For each case the bounds of its clauses, the guards taken off."""
        queries = [self._query(case, clauses) for case, clauses in cases]
        if any(query.clauses.inputs is not None for query in queries):
            return [excess for query in queries for excess in _crown([with_inputs(query)], self.memory)]
        return _crown(queries, self.memory)

    def _query(self, case: int, clauses: list[int]) -> Query:
        return query_of(self.graph, self.prop, self.prop.cases[case], clauses, self.scale, self.searched)

    def _search(self, share: float = 1.0) -> None:
        """Complete search, case after case; each gets its part of a share of the time that is left."""
        cases = list(self._open().items())
        end = Budget.of(share * self.budget.left())
        for place, (case, clauses) in enumerate(cases):
            self._search_case(case, clauses, end.left() / (len(cases) - place))
            if self._recheck.found is not None or self.budget.left() <= 0:
                return

    def _search_case(self, case: int, clauses: list[int], seconds: float) -> None:
        end = Budget.of(None if math.isinf(seconds) else seconds)
        for name, search, share in self._plan(self._varied(case)):
            budget = Budget.of(None if math.isinf(seconds) else share * end.left(), self.memory)
            query = self._query(case, clauses)
            try:
                outcome = search(query, budget)
            except UnsupportedOperatorError:  # an activation without kinks: only the box can be split
                continue
            self.nodes += outcome.nodes
            if outcome.candidate is not None and self._recheck.found is None:
                self._recheck(outcome.candidate)
            self.method = name
            self._enter(case, clauses, outcome.lower - query.clauses.best(query.clauses.guard), name)
            self.why = "unconfirmed" if outcome.why == "candidate" else outcome.why
            clauses = [clause for clause in clauses if (case, clause) in self.lower]
            if self._recheck.found is not None or not clauses:
                return

    def _plan(self, varied: int) -> list[tuple[str, Search, float]]:
        """Searches for a case with so many varied elements, each with its share of the time then left."""
        from ironbound.exact.input_split import input_split
        from ironbound.exact.split import split

        box: tuple[str, Search] = ("input split", lambda query, budget: input_split(query, budget, self._recheck))
        signs: tuple[str, Search] = ("split", lambda query, budget: split(query, budget, self._recheck))
        if varied <= FEW:
            return [(*box, 1.0)]
        if varied <= SOME:
            return [(*box, 0.2), (*signs, 0.5), (*box, 1.0)]
        return [(*signs, 1.0), (*box, 1.0)]

    # --- verdicts ----------------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        return time.monotonic() - self.start

    def _proved(self) -> Proved:
        arithmetic = str(self.searched if self.method != "an empty box" else torch.float64).removeprefix("torch.")
        return Proved(self.method, self._seconds(), self.nodes, arithmetic)

    def _refuted(self) -> Refuted:
        assert self._recheck.found is not None
        x, y = self._recheck.found
        return Refuted(x, y, self.method, self._seconds(), self._recheck.checked_by, self.nodes)

    def _unknown(self) -> Unknown:
        gap = -min(self.lower.values())
        return Unknown(gap, self.why, self._seconds(), self.nodes, len(self._open()))


def _crown(queries: list[Query], memory: int | None) -> list[Tensor]:
    """Bounds of queries of one network, as one batch: for each the largest row of every clause, the guard taken off."""
    graph = queries[0].graph
    lower, upper = (torch.cat(ends) for ends in zip(*(query.region.box() for query in queries), strict=True))
    counts = torch.tensor([len(query.clauses.outputs) for query in queries])
    rows = torch.cat([query.clauses.outputs for query in queries]).reshape(-1, *graph.output_shape)
    state = METHODS["crown"](graph, Box(lower, upper), memory)
    found, _ = state.answer(DenseRows(rows, torch.arange(len(queries)).repeat_interleave(counts)), False)
    parts = zip(queries, found.split(counts.tolist()), strict=True)
    return [query.clauses.best(part + query.clauses.constant - query.clauses.guard) for query, part in parts]
