"""The exact polytope's optimum ("milp"): a query decided by mixed-integer programs.

**What the answer rests on.** Bounds by a linear program hold whatever the solver did (weak duality, `program.py`). A
bound by a mixed-integer program is HiGHS's own, less what its tolerances can do to the bound of a node
(`highs.tolerance`); its presolve, its cuts and its statements that a node is infeasible are trusted in float64. That is
no proof in the sense of the other methods, and whoever reports it has to say "up to the solver's tolerances".

Source: Wong & Kolter (2017), arXiv v1, section 2, equations (3) to (5).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ironbound.bounding.alpha import AlphaState, optimised, output_rows, proof_threshold
from ironbound.bounding.alpha_rows import Functionals
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import Relaxed
from ironbound.errors import MemoryLimitError, SoundnessError
from ironbound.exact.highs import Solver
from ironbound.exact.linear import Run, by_examples, polytope_region, raised_state, rounded_down
from ironbound.exact.polytope import Polytope, polytope
from ironbound.exact.program import Program
from ironbound.exact.query import Budget, Clauses, Outcome, Query
from ironbound.graph import Graph
from ironbound.regions import Region

SECONDS = 60.0  # for each functional, where a method has no budget of its own
_AGREE = 1e-3  # relative difference between the program and a run of the network that is no rounding any more


@torch.no_grad()
def milp(query: Query, budget: Budget = Budget()) -> Outcome:  # noqa: B008
    """Decides a query by mixed-integer programs: optimised bounds first, then linear programs, and these for the rest.

    The minimum over the region of the largest row of each clause, exact for piecewise linear networks. A clause is done
    with when its bound is above the guard, the search when a point of the program is a counterexample of the network.
    Bounds rest on the solver's tolerances where neither the optimised slopes nor a linear program decide (see above).

    Args:
        query: a network, a region with flat sides, and clauses.
        budget: when to stop; bounds hold then too.

    Returns:
        Bounds of the clauses, and a candidate that was run through the network, or None.

    Raises:
        InputError: the region's sides are not flat.
        SoundnessError: the program and a run of the network contradict each other.
    """
    polytope_region(query.region)
    clauses = query.clauses
    try:
        state = raised_state(query.graph, query.region, budget.memory)
    except MemoryLimitError:
        return Outcome(clauses.constant.new_full((len(clauses),), -torch.inf), None, 0, "memory")
    rows = clause_rows(state, clauses)

    def run(points: Tensor) -> Tensor:
        return clauses.values(points, query.graph(points))

    search = MixedSearch(state, rows, run, budget)
    known, _ = optimised(state, rows)
    lower = clauses.best(torch.where(torch.isfinite(known), known, -torch.inf))
    guard = clauses.best(clauses.guard)
    stopped = ""
    for exact in (False, True):
        for clause in torch.nonzero(~(lower > guard)).flatten().tolist():
            mine = torch.nonzero(clauses.clause == clause).flatten()
            stopped = search.over()
            if stopped:
                break
            bound, point = search.solve(mine, float(guard[clause]), exact)
            lower[clause] = torch.fmax(lower[clause], bound)
            if point is not None and is_counterexample(query, point):
                return Outcome(lower, point, search.nodes, "candidate")
    why = "proved" if bool((lower > guard).all()) else stopped or search.over() or "stuck"
    return Outcome(lower, None, search.nodes, why)


def clause_rows(state: AlphaState, clauses: Clauses) -> Functionals:
    """The rows of clauses as seen from the open neurons."""
    nobody = torch.zeros(len(clauses.outputs), dtype=torch.int64, device=clauses.outputs.device)
    rows = output_rows(state, DenseRows(clauses.outputs.reshape(-1, *state.graph.output_shape), nobody))
    inputs = rows.input if clauses.inputs is None else rows.input + clauses.inputs
    return replace(rows, input=inputs, constant=rows.constant + clauses.constant)


def is_counterexample(query: Query, point: Tensor) -> bool:
    """Whether a point lies in the region and the network, run on it, has every row of some clause at most 0."""
    values = query.clauses.values(point, query.graph(point))
    inside = bool(query.region.contains(point).all())
    return inside and bool((query.clauses.best(values) <= 0).any())  # never for NaN: its maximum is NaN


class MixedSearch:
    """Programs of one example: the relaxed and the exact polytope, each made once.

    Args:
        state: the network as seen from its open neurons.
        rows: functionals.
        run: what the network itself has there.
        budget: when to stop.
    """

    def __init__(self, state: AlphaState, rows: Functionals, run: Run, budget: Budget) -> None:
        self.state, self.rows, self.run, self.budget = state, rows, run, budget
        self.nodes = 0
        self._polytopes: dict[bool, Polytope] = {}
        self._agreed: bool | None = None

    def over(self) -> str:
        """Why the search has to stop, or ""."""
        if self.budget.left() <= 0:
            return "time"
        if self.budget.nodes is not None and self.nodes >= self.budget.nodes:
            return "nodes"
        return ""

    def solve(self, mine: Tensor, guard: float, exact: bool, seconds: float = np.inf) -> tuple[Tensor, Tensor | None]:
        """A lower bound of the largest of some rows, and the point where the program takes its minimum.

        Args:
            mine: which rows, int64.
            guard: a bound above this is enough.
            exact: whether to solve the mixed-integer program, else its relaxation.
            seconds: limit besides the budget's.

        Returns:
            The bound, a scalar, and a point of the region [1, *shape], or None where there is none.
        """
        like = self.state.region.center
        nothing = like.new_full((), -torch.inf)
        found = self._polytope(exact)
        if not found.program.is_finite():
            return nothing, None
        program = found.program.worst(*found.costs(self.rows.take(mine)))
        if not program.is_finite():
            return nothing, None
        limit = min(seconds, self.budget.left())
        goal = last_column(program)
        if not exact:
            solution = Solver(program).minimum(goal, limit)
            bound, values = solution.lower, solution.values
        elif not self.agrees():
            return nothing, None
        else:
            left = None if self.budget.nodes is None else max(0, self.budget.nodes - self.nodes)
            # one point below the guard refutes; deep enough below 0 for the network to agree
            target = min(0.0, guard) - 1e-6 if np.isfinite(guard) else -np.inf
            result = Solver(program, relaxed=False).mixed_minimum(goal, limit, target, guard, left)
            self.nodes += result.nodes
            bound, values = result.lower, result.values
        point = None if values is None else found.point(values[:-1], self.state.region)
        return rounded_down(bound, like), point

    def agrees(self) -> bool:
        """Whether the network's own values at the centre are a point of the program, found out once.

        A program without that point would call anything proved. Rounding may take it out where a region is as small as
        the rounding; then no mixed-integer program is believed.

        Returns:
            False where the program has no point above the centre.

        Raises:
            SoundnessError: the program's value there is another than the network's.
        """
        if self._agreed is None:
            found = self._polytope(True)
            program = found.program.worst(*found.costs(self.rows))
            lower, upper = program.lower.copy(), program.upper.copy()
            lower[found.entry.columns] = upper[found.entry.columns] = 0.0  # the middle, see `Entry`
            pinned = replace(program, lower=lower, upper=upper)
            seen = Solver(pinned, relaxed=False).mixed_minimum(last_column(program))
            middle = torch.from_numpy(found.entry.middle).to(self.state.region.center)
            run = float(self.run(middle.reshape(1, *self.state.region.shape)).amax())
            room = _AGREE * (1 + abs(run) + float(self.rows.constant.abs().max()))
            if seen.status == "optimal" and (
                seen.objective > run + room or found.exact and seen.objective < run - room
            ):
                raise SoundnessError(
                    f"the mixed-integer program gives {seen.objective:g} at the centre of the region, the network "
                    f"{run:g}; nothing is proved by it: please report it"
                )
            self._agreed = seen.status == "optimal"
        return self._agreed

    def exact_polytope(self) -> Polytope:
        """The exact polytope."""
        return self._polytope(True)

    def _polytope(self, exact: bool) -> Polytope:
        if exact not in self._polytopes:
            self._polytopes[exact] = polytope(self.state, integral=exact)
        return self._polytopes[exact]


def last_column(program: Program) -> np.ndarray:
    """The objective that is the last column."""
    return np.append(np.zeros(len(program.lower) - 1), 1.0)


def mixed(graph: Graph, region: Region, budget: int | None, seconds: float = SECONDS) -> Relaxed:
    """The exact optimum, up to the solver's tolerances: of functionals that "alpha" and a linear program do not prove.

    Where only lower bounds are asked they are margins: a row is left as soon as it is proved.

    Args:
        graph: the network.
        region: the inputs.
        budget: bytes for rows.
        seconds: time for each functional; what the solver has proved by then is the bound.

    Returns:
        The method.
    """

    def bound(state: AlphaState, rows: Functionals, known: Tensor, run: Run, both: bool) -> Tensor:
        enough = torch.full_like(known, torch.inf) if both else proof_threshold(graph, state.region).expand(len(known))
        search = MixedSearch(state, rows, run, Budget())
        best = known.clone()
        for exact in (False, True):
            for row in torch.nonzero(~(best > enough)).flatten():
                found, _ = search.solve(row.reshape(1), float(enough[row]), exact, seconds)
                best[row] = torch.fmax(best[row], found)
        return best

    return by_examples(graph, region, budget, bound)
