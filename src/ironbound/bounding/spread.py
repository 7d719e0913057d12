"""How far functionals can move from their value in the middle of all bands: Theorem 1 of Wong & Kolter (2018) by rows.

Functionals of a node are carried to the input, and what every band and the region add on the way is summed up. Where
only the side of a kink is asked, a functional is dropped on the way as soon as what is known of the layers below
closes it: the sum so far and the radii of the value it then reads bound the rest, since the radius is sub-additive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ironbound.bounding.backward import Range, Rows, descend, reach, unit_rows
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import DEFAULT_BUDGET, chunk_length, in_chunks
from ironbound.bounding.shared_maps import combined_spread, narrow_layer, shared_maps
from ironbound.bounding.state import ParallelState
from ironbound.graph import Graph
from ironbound.ops.affine import Convolution
from ironbound.ops.operator import Affine

# (which rows, how far each may move at most) -> whether that closes it, bool
Closes = Callable[[Tensor, Tensor], Tensor]

_WORTH = 8  # rows are copied without the closed ones where those are one in so many


class _Spreading:
    """Sums up what a walk meets; `down` and `up` hold the results, [rows]."""

    def __init__(self, state: ParallelState, start: int, rows: Rows, closes: Closes | None) -> None:
        self.state, self.start, self.closes = state, start, closes
        self.total = rows.coefficients.new_zeros(len(rows))
        self.down = self.up = self.total
        self.open: Tensor | None = None  # the rows still carried; None: all

    def visit(self, index: int, current: Rows, alone: bool) -> Rows | None:
        """One stop of the walk: adds what the band, or the region, lets the functionals move."""
        state = self.state
        if index == 0:
            self._finish(*reach(current, state.sets))
            return None
        if self.closes is not None and alone and index != self.start:
            left = self._without_closed(index, current)
            if left is None:
                return None
            current = left
        self.total = self.total + current.widening(state.bands[index].gap)
        maps = state.shared.get((index, torch.is_grad_enabled()))
        if maps is None:
            return current
        below = current.dense().scaled(state.bands[index].slope)
        self._finish(*combined_spread(maps, below, state.sets, state.graph.input_shape))
        return None

    def _without_closed(self, index: int, current: Rows) -> Rows | None:
        assert self.closes is not None
        bound = self.total + current.widening(self.state.radii[index])
        which = torch.arange(len(bound), device=bound.device) if self.open is None else self.open
        closed = self.closes(which, bound)
        count = int(closed.sum())
        if count * _WORTH < len(bound):
            return current
        self._write(which[closed], bound[closed], bound[closed])
        kept = torch.nonzero(~closed).squeeze(1)
        self.open, self.total = which[kept], self.total[kept]
        return current.take(kept) if len(kept) else None

    def _write(self, which: Tensor, down: Tensor, up: Tensor) -> None:
        self.down = self.down.index_put((which,), down)
        self.up = self.up.index_put((which,), up)

    def _finish(self, down: Tensor, up: Tensor) -> None:
        down, up = self.total + down, self.total + up
        if self.open is None:
            self.down, self.up = down, up
        else:
            self._write(self.open, down, up)


def spread(state: ParallelState, start: int, rows: Rows, closes: Closes | None = None) -> Range:
    """How far functionals of node `start` can fall below and rise above their value in the middle of all bands.

    The middle is the forward pass of the centre through slope * z + middle, so no constant term is carried here: one
    walk serves the lower and the upper bound (parallel slopes).

    Args:
        state: relaxations of all nodes below.
        start: the node that the rows read.
        rows: the functionals.
        closes: says which rows need not be known more exactly; those may get a larger, still sound, result.

    Returns:
        (down, up), each [rows], >= 0.
    """
    walk = _Spreading(state, start, rows, closes)
    descend(state.graph, state.bands, start, rows, walk.visit)
    return walk.down, walk.up


def exact_rows(
    state: ParallelState, target: int, index: Tensor, budget: int | None, closes: Closes | None = None
) -> Range:
    """Exact distances that neurons of node `target` can move from the centre.

    Args:
        state: relaxations of all nodes below.
        target: index of the node.
        index: flat indices into [batch, *shape], int64 [rows].
        budget: bytes for the rows of one chunk.
        closes: says which of the rows need not be known more exactly; those may get a larger, still sound, result.

    Returns:
        (down, up), each [rows], >= 0.
    """
    center = state.reached[0].center
    if len(index) == 0:
        return center.new_zeros(0), center.new_zeros(0)
    size = state.graph.nodes[target].size
    length = chunk_length(row_bytes(state.graph, target, center.element_size()), budget, center.device)
    _share(state, target, len(index), length, budget)

    def work(piece: slice) -> Range:
        part = index[piece]
        rows, start = unit_rows(state.graph, target, part % size, part // size, center)
        return spread(state, start, rows, None if closes is None else _shifted(closes, piece.start))

    return in_chunks(work, len(index), length)


def _shifted(closes: Closes, first: int) -> Closes:
    return lambda which, bound: closes(which + first, bound)


def _share(state: ParallelState, target: int, count: int, length: int, budget: int | None) -> None:
    """Computes the maps of the narrow layer below a node, where that is less work than `count` functionals of it."""
    if state.ledger is not None:  # combinations cancel what each neuron's walk has paid for its rounding
        return
    relaxed = narrow_layer(state.graph, state.bands, target)
    with_gradients = torch.is_grad_enabled()  # maps made without gradients would silently cut them off
    if relaxed is None or (relaxed, with_gradients) in state.shared:
        return
    live = state.bands[relaxed].slope != 0
    layer = state.graph.nodes[relaxed].inputs[0]
    if count > int(live.sum()) and _map_bytes(state, layer, live) <= (DEFAULT_BUDGET if budget is None else budget) / 4:
        state.shared[relaxed, with_gradients] = shared_maps(state.graph, state.bands, layer, live, length)


def _map_bytes(state: ParallelState, layer: int, live: Tensor) -> int:
    """Bytes of the maps of all live neurons, bool [batch, neurons]: an entry per open neuron below and per input."""
    entries = torch.full((len(live),), state.graph.nodes[0].size, device=live.device)
    for index, band in state.bands.items():
        if index < layer:
            entries = entries + (band.gap != 0).flatten(1).sum(1)
    return int((entries * live.sum(1)).sum()) * state.reached[0].center.element_size()


def output_spread(state: ParallelState, rows: DenseRows, budget: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of functionals of the network's output, and how far they can move from it.

    Args:
        state: relaxations of all nodes.
        rows: the functionals.
        budget: bytes for the rows of one chunk.

    Returns:
        (centre, down, up), each [rows].
    """
    last = len(state.graph.nodes) - 1
    center = state.reached[last].center
    length = chunk_length(row_bytes(state.graph, last, center.element_size()), budget, center.device, rows.group)
    _share(state, last, len(rows), length, budget)

    def work(piece: slice) -> Range:
        return spread(state, last, rows.part(piece))

    down, up = in_chunks(work, len(rows), length)
    return rows.dot(center), down, up


def row_bytes(graph: Graph, target: int, element_size: int) -> int:
    """Bytes that one functional of node `target` takes at the widest point of the walk, with intermediate results."""
    window: tuple[int, int] | None = (1, 1) if len(graph.nodes[target].shape) == 3 else None
    widest, index = 1, target
    while index > 0:
        node = graph.nodes[index]
        source = graph.nodes[node.inputs[0]]
        if window is not None and isinstance(node.operator, Convolution):
            kernel, step = node.operator.weight.shape[2:], node.operator.stride
            window = ((window[0] - 1) * step[0] + kernel[0], (window[1] - 1) * step[1] + kernel[1])
        elif isinstance(node.operator, Affine) and not node.operator.diagonal() or len(source.shape) != 3:
            window = None
        area = window[0] * window[1] * source.shape[0] if window is not None else source.size
        widest = max(widest, min(area, 2 * source.size))
        index = node.inputs[0]
    return 4 * element_size * widest
