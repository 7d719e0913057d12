"""The relaxed polytope's optimum ("lp"): functionals of a network minimised by a linear program.

Source: Wong & Kolter (2017), arXiv v1, section 3.1, equations (14) and (15); (2018), ICML, equation (4), appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.bounding.alpha import AlphaState, alpha_state, groups, output_rows
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.alpha_rows import Functionals
from ironbound.bounding.api import check_labels, prepared
from ironbound.bounding.backward import Range
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS, Relaxed
from ironbound.bounding.precision import full_precision
from ironbound.errors import InputError
from ironbound.exact.highs import Solver
from ironbound.exact.polytope import entry_of, polytope
from ironbound.exact.program import Builder
from ironbound.graph import Graph
from ironbound.regions import Region

Minima = tuple[Tensor, Tensor, Tensor]
Run = Callable[[Tensor], Tensor]  # points [n, *input shape] -> what the network itself has of some rows, [n, rows]


@dataclass(frozen=True, eq=False)
class RelaxedOptimum:
    """The optimum of the linear program for n functionals of each example's output.

    Attributes:
        lower: a bound that holds whatever the solver did, by weak duality with its multipliers, [batch, n].
        objective: the optimum as the solver computed it, up to its tolerances; no bound, [batch, n].
        points: the inputs of the optima, inside the region: candidates of an attack, never verdicts,
            [batch, n, *input shape].
        attained: the network's own value of the functional there, [batch, n].
    """

    lower: Tensor
    objective: Tensor
    points: Tensor
    attained: Tensor


def relaxed_optimum(
    model: nn.Module | Graph,
    region: Region,
    labels: Tensor | None,
    method: str = "alpha",
    functionals: Tensor | None = None,
    memory: int | None = None,
) -> RelaxedOptimum:
    """The least value of functionals over the convex relaxation with a method's intermediate bounds, without gradients.

    Args:
        model: a network in evaluation mode, or its graph.
        region: the inputs; its sides are flat (linf, l1, Box).
        labels: int64 [batch]: functional k is logit[label] - logit[k]; None where `functionals` are given.
        method: whose bounds of the neurons the relaxation is made of, one of `ironbound.bounding.METHODS`.
        functionals: coefficients of the outputs, [batch, n, outputs], or None for the margins of `labels`.
        memory: bytes that the rows of one step may take (default 2 GiB).

    Returns:
        Bounds, optima and points; for margins n is the number of classes, and entry `label` is 0.

    Raises:
        InputError: arguments do not fit, or the region's sides are not flat.
        LabelError: labels do not fit.
        CaptureError: the network cannot be captured.
        MemoryLimitError: one example alone does not fit into memory.
    """
    graph = prepared(model, region, method)
    if (labels is None) == (functionals is None):
        raise InputError("give either labels or functionals")
    if functionals is None:
        given = check_labels(torch.as_tensor(labels), len(region), graph).to(region.center.device)
        eye = torch.eye(graph.nodes[-1].size, dtype=region.dtype, device=region.center.device)
        functionals = eye[given].unsqueeze(1) - eye
    size = graph.nodes[-1].size
    if functionals.dim() != 3 or functionals.shape[::2] != (len(region), size):
        raise InputError(
            f"functionals must have shape [{len(region)}, n, {size}], one coefficient per output, "
            f"got {tuple(functionals.shape)}"
        )
    found = []
    with torch.no_grad(), full_precision(region.center.device):
        for example in range(len(region)):
            one = region[example : example + 1]
            layers = METHODS[method](graph, one, memory).layers()
            state = one_state(graph, one, [layers], None, memory)
            minima = minimised(state, output_rows(state, _rows(functionals[example].to(one.dtype), graph)))
            found.append((*minima, graph(minima[1]).flatten(1)))
    lower, points, objective, outputs = (torch.stack(part) for part in zip(*found, strict=True))
    return RelaxedOptimum(lower, objective, points, (functionals.to(outputs) * outputs).sum(-1))


def _rows(coefficients: Tensor, graph: Graph) -> DenseRows:
    nobody = torch.zeros(len(coefficients), dtype=torch.int64, device=coefficients.device)
    return DenseRows(coefficients.reshape(-1, *graph.output_shape), nobody)


def one_state(
    graph: Graph, region: Region, known: list[dict[int, Range]], ascent: Ascent | None, memory: int | None
) -> AlphaState:
    """The relaxed network of one example.

    Args:
        graph: the network.
        region: one example.
        known: sound bounds of what every relaxed node reads.
        ascent: how they are raised; None: they are kept as they are.
        memory: bytes for rows, or None.

    Returns:
        The network as seen from its open neurons.

    Raises:
        MemoryLimitError: the open neurons' maps do not fit.
    """
    groups(graph, region, known, memory, torch.zeros(1, dtype=torch.int64))
    return alpha_state(graph, region, known, ascent, memory)


def raised_state(graph: Graph, region: Region, memory: int | None) -> AlphaState:
    """The relaxed network of one example with the bounds of method "alpha"."""
    known = [METHODS[start](graph, region, memory).layers() for start in ("dual", "crown")]
    return one_state(graph, region, known, Ascent(), memory)


def minimised(state: AlphaState, rows: Functionals, seconds: float = np.inf) -> Minima:
    """Functionals minimised over the relaxed polytope, one after another from the basis before.

    Args:
        state: the network, for one example.
        rows: the functionals.
        seconds: for each.

    Returns:
        Lower bounds [rows]; points of the region [rows, *input shape]; the solver's objectives [rows].
    """
    found = polytope(state, integral=False)
    like, shape = state.region.center, state.region.shape
    lower, objective = like.new_full((len(rows),), -torch.inf), like.new_full((len(rows),), torch.nan)
    points = state.region.project(like).expand(len(rows), *shape).clone()
    if not found.program.is_finite():
        return lower, points, objective
    costs, constants = found.costs(rows)
    solver = Solver(found.program)
    for place, (cost, constant) in enumerate(zip(costs, constants, strict=True)):
        if not (np.abs(cost) < 1e15).all() or not np.isfinite(constant):
            continue
        solution = solver.minimum(cost, seconds)
        lower[place], objective[place] = rounded_down(solution.lower + constant, like), solution.objective + constant
        if solution.values is not None:
            points[place] = found.point(solution.values, state.region)[0]
    return lower, points, objective


def rounded_down(value: float, like: Tensor) -> Tensor:
    """A bound in the dtype of a tensor, no larger."""
    wide = torch.tensor(value, dtype=torch.float64, device=like.device)
    near = wide.to(like.dtype)
    return torch.where(near.double() > wide, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)


def lp(graph: Graph, region: Region, budget: int | None) -> Relaxed:
    """The relaxation's optimum on the intermediate bounds of "alpha", or that method's bound where it is better."""
    return by_examples(graph, region, budget, lambda state, rows, *_: minimised(state, rows)[0])


def by_examples(
    graph: Graph,
    region: Region,
    budget: int | None,
    bound: Callable[[AlphaState, Functionals, Tensor, Run, bool], Tensor],
) -> Relaxed:
    """A method that bounds functionals of one example at a time, never worse than "alpha"; without gradients.

    Args:
        graph: the network.
        region: the inputs.
        budget: bytes for rows.
        bound: from the network of an example, functionals, known bounds of them, what the network itself has of them
            and whether upper bounds are asked too, to lower bounds [rows].

    Returns:
        The method.
    """
    polytope_region(region)
    start = METHODS["alpha"](graph, region, budget)

    def answer(rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            lower, upper = start.answer(rows, both)
            layers = start.layers()
            sides = [(rows, lower.detach().clone())]
            if both:
                assert upper is not None
                sides.append((replace(rows, coefficients=-rows.coefficients), -upper.detach()))
            for example in torch.unique(rows.example).tolist():
                one = slice(example, example + 1)
                known = {node: (low[one], high[one]) for node, (low, high) in layers.items()}
                state = one_state(graph, region[one], [known], None, budget)
                for side, best in sides:
                    index = torch.nonzero(side.example == example).squeeze(1)
                    part = DenseRows(side.coefficients[index], torch.zeros_like(index))
                    found = bound(state, output_rows(state, part), best[index], _runner(graph, part), both)
                    best[index] = torch.fmax(best[index], found)
        return sides[0][1], -sides[1][1] if both else None

    return Relaxed(answer, start.layers)


def _runner(graph: Graph, rows: DenseRows) -> Run:
    coefficients = rows.coefficients.flatten(1)
    return lambda points: graph(points).flatten(1) @ coefficients.T


def polytope_region(region: Region) -> None:
    """Refuses regions that are no polytopes, before any work."""
    entry_of(region[:1], Builder())
