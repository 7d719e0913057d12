"""`minimal_perturbation`: how far an input has to be changed to change the answer, by mixed-integer programs.

Source: Wong & Kolter (2017), arXiv v1, section 2.1, equation (6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ironbound.bounding.alpha import optimised, output_rows, proof_threshold
from ironbound.bounding.alpha_rows import Functionals
from ironbound.bounding.api import prepared
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.precision import full_precision
from ironbound.certified_radius import radius
from ironbound.exact.highs import Solver
from ironbound.exact.linear import polytope_region, raised_state
from ironbound.exact.mixed import MixedSearch, last_column
from ironbound.exact.polytope import Polytope
from ironbound.exact.program import Program, Sparse
from ironbound.exact.query import Budget
from ironbound.graph import Graph
from ironbound.regions import Region, ball

_ORDERS = {"linf": float("inf"), "l1": 1.0}
_PUSHES = (1e-6, 1e-5, 1e-4, 1e-3)  # the optimum is a tie: shares by which to go beyond it


@dataclass(frozen=True, eq=False)
class MinimalPerturbation:
    """The smallest change of each input that changes the answer lies between `lower` and `upper`.

    Attributes:
        certified: within this distance nothing changes the answer: a proof, as `radius` gives it, float64 [n].
        lower: the same up to the mixed-integer solver's tolerances, float64 [n].
        upper: the distance of a point at which the network, run on it, gives another answer; infinite where none is
            known; 0 for misclassified examples, float64 [n].
        points: those points, [n, *shape]; the example itself where there is none.
        labels: int64 [n].
        nodes: of the solver's searches, int64 [n].
    """

    certified: Tensor
    lower: Tensor
    upper: Tensor
    points: Tensor
    labels: Tensor
    nodes: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def closed(self, tolerance: float = 1e-3) -> Tensor:
        """Whether both ends agree up to a relative tolerance, bool [n]."""
        return torch.isfinite(self.upper) & (self.upper - self.lower <= tolerance * self.upper)


@torch.no_grad()
def minimal_perturbation(
    model: nn.Module | Graph,
    x: Tensor,
    labels: Tensor | None = None,
    norm: str = "linf",
    *,
    clip: Sequence[float] | None = None,
    seconds: float = 60.0,
    method: str = "dual",
    memory: int | None = None,
) -> MinimalPerturbation:
    """The smallest l-inf or l1 change of each input that changes the class, with ε a variable of the program.

    `ib.radius` brackets it first; the neurons' bounds are those at the attacked radius. One program for each class that
    optimised slopes do not exclude there. A network that is not piecewise linear keeps a gap.

    Args:
        model: a classifier in evaluation mode, or its graph.
        x: [n, *shape].
        labels: int64 [n]; None takes each prediction.
        norm: "linf" or "l1".
        clip: (low, high) that every input element is limited to, or None.
        seconds: for the programs of each example; stopped early, the bracket is wider.
        method: of the certified radius.
        memory: bytes that a method may take, see `ironbound.margins`.

    Returns:
        Brackets and points.

    Raises:
        InputError: an argument does not fit, or the norm is not "linf" or "l1".
        LabelError: labels do not fit.
        CaptureError: the network cannot be captured.
        SoundnessError: a bound and a run of the network contradict each other.
        MemoryLimitError: one example alone does not fit into memory.
    """
    start = ball(norm, x, 0.0, clip)
    polytope_region(start)
    graph = prepared(model, start, method)
    found = radius(model, x, norm, method, labels, clip=clip, memory=memory)
    lower, upper, points = found.certified.clone(), found.attacked.clone(), found.adversarial.clone()
    nodes = torch.zeros_like(found.labels)
    for example in torch.nonzero((upper > 0) & torch.isfinite(upper)).flatten().tolist():
        one = slice(example, example + 1)
        with full_precision(x.device):
            region = ball(norm, x[one], float(upper[example]) * (1 + 1e-6), clip)
            search = _Smallest(graph, region, int(found.labels[example]), Budget.of(seconds, memory))
            bound = search.run(float(lower[example]))
        lower[example] = max(float(lower[example]), min(bound, float(upper[example])))
        nodes[example] = search.nodes
        runnable = model if isinstance(model, nn.Module) else graph
        for candidate in search.points:
            distance = float(torch.linalg.vector_norm((candidate.double() - x[one].double()).flatten(), _ORDERS[norm]))
            if distance < upper[example] and bool(runnable(candidate).argmax(1) != found.labels[example]):
                upper[example], points[one] = distance, candidate
    return MinimalPerturbation(found.certified, lower, upper, points, found.labels, nodes)


class _Smallest:
    """The programs of one example.

    Args:
        graph: the network.
        region: the ball that reaches a known adversarial point.
        label: the example's class.
        budget: for all programs.
    """

    def __init__(self, graph: Graph, region: Region, label: int, budget: Budget) -> None:
        self.state = raised_state(graph, region, budget.memory)
        self.region, self.budget = region, budget
        self.reach = float(region.eps.max())  # type: ignore[attr-defined]
        eye = torch.eye(graph.output_shape[0], dtype=region.dtype, device=region.center.device)
        others = torch.tensor([k for k in range(len(eye)) if k != label], device=region.center.device)
        coefficients = eye[label] - eye[others]
        rows = output_rows(self.state, DenseRows(coefficients, torch.zeros_like(others)))
        self.guard = float(proof_threshold(graph, region)[0])
        known, _ = optimised(self.state, rows)
        left = torch.nonzero(~(known > self.guard)).flatten()
        self.rows: Functionals = rows.take(left[torch.argsort(known[left])])
        chosen = coefficients[left[torch.argsort(known[left])]]
        self.search = MixedSearch(self.state, self.rows, lambda x: graph(x).flatten(1) @ chosen.T, budget)
        self.points: list[Tensor] = []

    @property
    def nodes(self) -> int:
        """Of all searches so far."""
        return self.search.nodes

    def run(self, certified: float) -> float:
        """A lower bound of the distance, up to the solver's tolerances; candidates gather in `points`."""
        found = self.search.exact_polytope()
        if not found.program.is_finite() or not self.search.agrees():
            return certified
        costs, constants = found.costs(self.rows)
        lower = best = self.reach
        for row, (cost, constant) in enumerate(zip(costs, constants, strict=True)):
            program = self._program(found, cost, constant, certified / self.reach)
            goal = last_column(program)
            result = Solver(program, relaxed=False).mixed_minimum(
                goal, self.budget.left(), enough=best / self.reach - 1e-9
            )
            self.search.nodes += result.nodes
            if result.status == "infeasible":  # believed only with a bound of the margin
                index = torch.tensor([row], device=self.rows.example.device)
                margin, _ = self.search.solve(index, self.guard, exact=True)
                lower = min(lower, self.reach if bool(margin > self.guard) else certified)
                continue
            lower = min(lower, max(certified, result.lower * self.reach))
            if result.values is not None:
                best = min(best, result.objective * self.reach)
                self._gather(found, program, result.values, cost)
        return lower

    def _gather(self, found: Polytope, program: Program, values: np.ndarray, cost: np.ndarray) -> None:
        """The optimum, and where the margin is least in the same linear piece a little further away."""
        self.points.append(found.point(values[:-1], self.region))
        whole = program.integral
        low, high = np.where(whole, values.round(), program.lower), np.where(whole, values.round(), program.upper)
        for push in _PUSHES:
            high[-1] = min(1.0, max(low[-1], values[-1]) * (1 + push))
            piece = replace(program, lower=low, upper=high)
            best = Solver(piece).minimum(np.append(cost, 0.0))
            if best.status == "optimal" and best.values is not None:
                self.points.append(found.point(best.values[:-1], self.region))

    def _program(self, found: Polytope, cost: np.ndarray, constant: float, least: float) -> Program:
        """The polytope within a variable share of the ball, where one other class is at least as high.

        Args:
            found: the exact polytope of the ball.
            cost: of the margin.
            constant: of the margin.
            least: share that is certified.

        Returns:
            The program; the share is its last column.
        """
        entry, width = found.entry, len(found.program.lower)
        x = self.region.center.flatten().double().cpu().numpy()
        if entry.ball is None:
            part: Sparse = sparse.coo_matrix(entry.steps / self.reach)
            across = sparse.csr_matrix((part.data, (part.row, entry.columns[part.col])), shape=(len(x), width))
            away = (x - entry.middle) / self.reach
            within: Sparse = sparse.vstack([across, -across])
            sides = np.concatenate([away, -away])
        else:
            ones = np.ones(len(entry.columns))
            within = sparse.csr_matrix((ones, (0 * entry.columns, entry.columns)), shape=(1, width))
            sides = np.zeros(1)
        share = sparse.csr_matrix(-np.ones((within.shape[0], 1)))
        margin = sparse.csr_matrix(np.append(cost, 0.0)[None])
        rows: Sparse = sparse.vstack([sparse.hstack([within, share]), margin])
        return found.program.extended(
            (min(least, 1.0), 1.0), rows, np.full(rows.shape[0], -np.inf), np.append(sides, -constant)
        )
