"""Layer-wise bounds with a line per side (CROWN, Zhang et al. 2018), and with any relaxation that is not parallel.

Lower and upper bounds take two walks. Intermediate bounds come from the walk itself or from interval arithmetic
(CROWN-IBP); a neuron that intervals close is not walked for: its relaxation is exact whatever its bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ironbound.bounding.backward import Range, Rows, lower_bound, unit_rows
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import chunk_length, in_chunks
from ironbound.bounding.rounded_intervals import intervals_for
from ironbound.bounding.rounding import Arithmetic, Ledger
from ironbound.bounding.spread import row_bytes
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine, Lines
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region

Slopes = Literal["parallel", "adaptive"]


@dataclass(frozen=True, eq=False)
class LinesState:
    """The relaxed network for a batch of regions.

    Attributes:
        graph: the network.
        region: the inputs.
        lines: the relaxation of each relaxed node.
        layers: bounds (lower, upper) of the value that each relaxed node reads, by the relaxed node's index.
        known: nodes at which walks stop, with centre and radius of their values.
        ledger: the account of rounding, where bounds are moved outward by it.
    """

    graph: Graph
    region: Region
    lines: dict[int, Lines]
    layers: dict[int, Range]
    known: dict[int, Range]
    ledger: Ledger | None = None


def interval_state(
    graph: Graph, region: Region, arithmetic: Arithmetic | None = None
) -> tuple[LinesState, Callable[[], dict[int, Range]]]:
    """Interval arithmetic everywhere.

    Functionals of the output are merged with the affine operators above the last relaxation.

    Args:
        graph: the network.
        region: the inputs.
        arithmetic: what the bounds are proofs for; None: they are as computed.

    Returns:
        A state whose walks stop at the relaxed nodes, and its layers, which a training step has no use for.
    """
    intervals, ledger = intervals_for(graph, region, arithmetic)
    relaxed = [index for index, node in enumerate(graph.nodes) if isinstance(node.operator, Activation | Maximum)]
    known = {index: intervals[index].middle() for index in relaxed}
    if ledger is not None:
        known = {index: ledger.ball(index, *ends) for index, ends in known.items()}
    return LinesState(graph, region, {}, {}, known, ledger), lambda: {
        index: intervals[graph.nodes[index].inputs[0]].ends() for index in relaxed
    }


def lines_state(
    graph: Graph,
    region: Region,
    slopes: Slopes,
    intermediate: Literal["walk", "interval"],
    budget: int | None,
    arithmetic: Arithmetic | None = None,
) -> LinesState:
    """Relaxations of every node, bottom up.

    Args:
        graph: the network.
        region: the inputs.
        slopes: "parallel" or "adaptive" lines.
        intermediate: where the bounds of inner nodes come from.
        budget: bytes for the rows of one chunk.
        arithmetic: what the bounds are proofs for; None: they are as computed.

    Returns:
        Lines, and bounds [batch, *shape] of the value read, of every relaxed node.
    """
    intervals, _ = intervals_for(graph, region, arithmetic)
    state = LinesState(graph, region, {}, {}, {}, Ledger.of(graph, region, arithmetic))
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator = node.operator
        if isinstance(operator, Affine):
            if state.ledger is not None:
                state.ledger.affine(index)
            continue
        source = node.inputs[0]
        low, high = intervals[source].ends()
        if intermediate == "walk":  # for each reader anew: another one may leave other neurons open
            low, high = walked_bounds(state, source, operator, (low, high), budget)
        if isinstance(operator, Maximum):
            state.lines[index] = operator.lines(low, high)
        else:
            assert isinstance(operator, Activation)
            make: Callable[[Tensor, Tensor], Lines] = (
                operator.parallel_lines if slopes == "parallel" else operator.adaptive_lines
            )
            state.lines[index] = make(low, high)
        state.layers[index] = (low, high)
        if state.ledger is not None:
            state.lines[index] = state.ledger.lines(index, state.lines[index], (low, high))
    return state


def walked_bounds(state: LinesState, target: int, operator: object, interval: Range, budget: int | None) -> Range:
    """Bounds of node `target` by walks, for the neurons that intervals leave open."""
    low, high = interval
    with torch.no_grad():
        closed = (
            operator.linear_on(low, high)
            if isinstance(operator, Activation)
            else torch.zeros_like(low, dtype=torch.bool)
        )
        index = torch.nonzero(~closed.flatten()).squeeze(1)
    if len(index) == 0:
        return interval
    size = state.graph.nodes[target].size
    length = chunk_length(row_bytes(state.graph, target, low.element_size()), budget, low.device)
    constant = _skipped_constant(state.graph, target, low)

    def work(piece: slice) -> Range:
        part = index[piece]
        rows, start = unit_rows(state.graph, target, part % size, part // size, low)
        below, above = _both(state, start, rows)
        below, above = below + constant[part % size], above + constant[part % size]
        return (below, above) if state.ledger is None else state.ledger.apart(target, (below, above), part)

    below, above = in_chunks(work, len(index), length)
    below, above = torch.minimum(below, above), torch.maximum(below, above)  # rounding may cross bounds of a constant
    low = low.flatten().index_put((index,), below).reshape(low.shape)
    return low, high.flatten().index_put((index,), above).reshape(high.shape)


def _skipped_constant(graph: Graph, target: int, like: Tensor) -> Tensor:
    """What `unit_rows` leaves out when it begins below the target's operator: its constant, [size of the node]."""
    node = graph.nodes[target]
    first = torch.zeros(1, dtype=torch.int64, device=like.device)
    _, start = unit_rows(graph, target, first, first, like)
    if start == target:
        return like.new_zeros(node.size)
    assert isinstance(node.operator, Affine)
    shapes = tuple(graph.nodes[source].shape for source in node.inputs)
    return node.operator.constant(shapes, like).expand(1, *node.shape).flatten()


def _both(state: LinesState, start: int, rows: Rows) -> Range:
    flipped = replace(rows, coefficients=-rows.coefficients)
    walk = (state.graph, state.lines, state.region, start)
    return lower_bound(*walk, rows, state.known), -lower_bound(*walk, flipped, state.known)


def output_lower(state: LinesState, rows: DenseRows, budget: int | None) -> Tensor:
    """Lower bounds, [rows], of functionals of the network's output."""
    last = len(state.graph.nodes) - 1
    bytes_each = row_bytes(state.graph, last, rows.coefficients.element_size())
    length = chunk_length(bytes_each, budget, rows.example.device, rows.group)

    def work(piece: slice) -> Tensor:
        part = rows.part(piece)
        lower = lower_bound(state.graph, state.lines, state.region, last, part, state.known)
        return lower if state.ledger is None else state.ledger.below(last, part, lower)

    return in_chunks(work, len(rows), length)
