"""Bounds of a network's output by a named method; each method is a composition of a few parts.

To add one, write its composition here and one line in `METHODS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.alpha_margins import Optimised
from ironbound.bounding.backward import Range
from ironbound.bounding.forward import forward_pays, generator_state
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.lines import LinesState, interval_state, lines_state, output_lower
from ironbound.bounding.parallel import parallel_state
from ironbound.bounding.rounding import Arithmetic
from ironbound.bounding.spread import output_spread
from ironbound.bounding.state import ParallelState
from ironbound.graph import Graph
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region

# (functionals of the output, both) -> lower [rows], upper [rows] or None where only the lower was asked
Answer = Callable[[DenseRows, bool], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A relaxed network, ready to bound any functional of its output.

    Attributes:
        answer: bounds functionals.
        layers: makes the bounds (lower, upper) of the value that each relaxed node reads, by the node's index.
    """

    answer: Answer
    layers: Callable[[], dict[int, Range]]


def _by_lines(state: LinesState, budget: int | None) -> Relaxed:
    def answer(rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        lower = output_lower(state, rows, budget)
        flipped = replace(rows, coefficients=-rows.coefficients)
        return lower, -output_lower(state, flipped, budget) if both else None

    return Relaxed(answer, lambda: state.layers)


def _by_bands(state: ParallelState, budget: int | None) -> Relaxed:
    def answer(rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        center, down, up = output_spread(state, rows, budget)
        if state.ledger is None:
            return center - down, center + up
        lower, upper = (part * (1 + state.ledger.whole) for part in (down, up))
        last = len(state.graph.nodes) - 1
        return state.ledger.below(last, rows, center - lower), -state.ledger.below(last, rows, -(center + upper))

    return Relaxed(answer, lambda: state.layers)


def interval(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """Naive layer-wise bounds (Gowal et al. 2018)."""
    state, layers = interval_state(graph, region, arithmetic)
    return replace(_by_lines(state, budget), layers=layers)


def dual(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """The dual network with alpha = u / (u - l) (Wong & Kolter 2018, Algorithm 1), in the cheaper direction."""
    if any(isinstance(node.operator, Maximum) for node in graph.nodes):
        return _by_lines(lines_state(graph, region, "parallel", "walk", budget, arithmetic), budget)
    if arithmetic is None and forward_pays(graph, region):
        state = generator_state(graph, region)
        return Relaxed(state.answer, lambda: state.layers)
    return _by_bands(parallel_state(graph, region, False, budget, arithmetic), budget)


def dual_interval(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """The dual network with intermediate bounds met with interval arithmetic: often, not always, tighter."""
    if any(isinstance(node.operator, Maximum) for node in graph.nodes):
        return _by_lines(lines_state(graph, region, "parallel", "walk", budget, arithmetic), budget)
    return _by_bands(parallel_state(graph, region, True, budget, arithmetic), budget)


def crown(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """Adaptive lower slopes in every walk, intermediate ones included (Zhang et al. 2018)."""
    return _by_lines(lines_state(graph, region, "adaptive", "walk", budget, arithmetic), budget)


def crown_ibp(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """Adaptive lower slopes in one walk from the output, on interval bounds (Zhang et al. 2020)."""
    return _by_lines(lines_state(graph, region, "adaptive", "interval", budget, arithmetic), budget)


def alpha(
    graph: Graph,
    region: Region,
    budget: int | None,
    arithmetic: Arithmetic | None = None,
    ascent: Ascent = Ascent(),  # noqa: B008
) -> Relaxed:
    """The dual maximised over its slopes, begun at `dual` and `crown` (Wong & Kolter 2017, v1, section 3.2)."""
    starts = [method(graph, region, budget, arithmetic) for method in (dual, crown)]
    best = Optimised(graph, region, [(start.answer, start.layers()) for start in starts], ascent, budget, arithmetic)
    return Relaxed(best.answer, best.layers)


def alpha_sign(graph: Graph, region: Region, budget: int | None, arithmetic: Arithmetic | None = None) -> Relaxed:
    """As `alpha`, with one step of every slope from 1/2 to 0 or 1 by the sign of its gradient (the same section)."""
    return alpha(graph, region, budget, arithmetic, Ascent(sign=True))


Method = Callable[..., Relaxed]  # of (graph, region, budget), and `arithmetic` where `bounds_rounding`

METHODS: dict[str, Method] = {
    "interval": interval,
    "dual": dual,
    "dual+interval": dual_interval,
    "crown": crown,
    "crown-ibp": crown_ibp,
    "alpha": alpha,
    "alpha-sign": alpha_sign,
}


SHORT_SUMS = frozenset({"dual"})  # proofs in float32 too: only operators' own sums are priced by magnitudes

# what is built on bounds, named here and imported where it is used: (module, function)
EXACT: dict[str, tuple[str, str]] = {
    "lp": ("ironbound.exact.linear", "lp"),
    "milp": ("ironbound.exact.mixed", "mixed"),
    "split": ("ironbound.exact.bounded", "searched"),
    "sdp": ("ironbound.semidefinite.methods", "sdp"),
    "sdp-chord": ("ironbound.semidefinite.methods", "sdp_chord"),
}


def find_method(name: str) -> Method | None:
    """Looks a method up: one of `METHODS` or `EXACT`, or one with a number.

    Args:
        name: "alpha:100" is "alpha" with 100 iterations in place of 20; "split:10" and "milp:10" may take 10 seconds
            in place of 60 for an example, or a functional.

    Returns:
        The method, or None where there is none of this name.
    """
    plain, given, number = name.partition(":")
    counted = number.isascii() and number.isdigit() and int(number) > 0
    if given and not (counted and plain in ("alpha", "split", "milp")):
        return None
    if plain in EXACT:
        module, function = EXACT[plain]
        method = getattr(importlib.import_module(module), function)
        return partial(method, seconds=float(number)) if given else method
    return partial(alpha, ascent=Ascent(int(number))) if given else METHODS.get(plain)


def bounds_rounding(name: str) -> bool:
    """Whether a method's bounds can be moved outward by a bound of their rounding: those of `METHODS`, numbered too."""
    return name.partition(":")[0] in METHODS


def example_bytes(graph: Graph, element_size: int) -> int:
    """Bytes of all values of one example: the unit in which batches are cut."""
    return element_size * sum(node.size for node in graph.nodes)


def identity_rows(graph: Graph, batch: int, like: Tensor) -> DenseRows:
    """One functional per output element and example, [batch * outputs] rows."""
    size = graph.nodes[-1].size
    eye = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *graph.output_shape)
    coefficients = eye.repeat(batch, *(1,) * len(graph.output_shape))
    return DenseRows(coefficients, torch.arange(batch, device=like.device).repeat_interleave(size), (0, size))
