"""Layer-wise bounds with parallel slopes: Algorithm 1 of Wong & Kolter (2018), by rows.

Every node has a centre (the forward pass through the middles of the bands) and a radius. The radius is first taken from
the layer below by |W| (the sieve), then exactly, by the backward walk, for the neurons that the sieve leaves open. With
parallel slopes the walk's result is a sub-additive function of the functional (a sum of norms), so the sieve's radius
is never smaller than Algorithm 1's: what the sieve closes, Algorithm 1 closes too, with the same slope and no gap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.bounding.backward import Band, Range, spread, unit_rows
from ironbound.bounding.functionals import DenseRows, row_norm
from ironbound.bounding.interval import ball_radius, interval_bounds
from ironbound.bounding.memory import chunk_length, in_chunks
from ironbound.bounding.windows import Windows, is_windowed
from ironbound.errors import UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.affine import Convolution
from ironbound.ops.operator import Activation, Affine
from ironbound.regions import Region, Set

_SIEVE_ROWS = 64  # fewer open rows than this are not worth a second sieve


@dataclass(frozen=True, eq=False)
class Reached:
    """What is known of one node's value.

    Attributes:
        center: value in the middle of all bands, [batch, *shape].
        radius: largest distance from it, never below the exact one, [batch, *shape].
        ball: (order of the dual norm, radius) while the value is still a ball, else None.
        exact: whether `radius` is the exact one everywhere.
    """

    center: Tensor
    radius: Tensor
    ball: tuple[float, Tensor] | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class ParallelState:
    """The relaxed network for a batch of regions.

    Attributes:
        graph: the network.
        sets: the region's sets, offsets relative to the centre passed forward.
        reached: what is known of each node.
        bands: the relaxation of each relaxed node.
        layers: bounds (lower, upper) of the value that each relaxed node reads, by the relaxed node's index.
    """

    graph: Graph
    sets: tuple[Set, ...]
    reached: list[Reached]
    bands: dict[int, Band]
    layers: dict[int, Range]


def parallel_state(
    graph: Graph, region: Region, meet_interval: bool = False, budget: int | None = None
) -> ParallelState:
    """Bounds of every relaxed node's input, layer by layer, and the bands that follow from them.

    Args:
        graph: the network.
        region: the inputs.
        meet_interval: whether to meet the bounds with interval arithmetic ("dual+interval").
        budget: bytes for the rows of one chunk.

    Returns:
        Bands, and bounds [batch, *shape] of the value read, of every relaxed node; what is known of every node.

    Raises:
        UnsupportedOperatorError: a relaxation that has no parallel lines (maximum).
    """
    intervals = interval_bounds(graph, region) if meet_interval else None
    center, sets = _centered(region)
    lower, upper = region.box()
    radius = torch.maximum(upper - center, center - lower)
    ball = (sets[0].dual, ball_radius(sets[0], center)) if len(sets) == 1 else None
    state = ParallelState(graph, sets, [Reached(center, radius, ball, True)], {}, {})
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator = node.operator
        if isinstance(operator, Affine):
            state.reached.append(_through_affine(operator, [state.reached[source] for source in node.inputs]))
            continue
        if not isinstance(operator, Activation):
            raise UnsupportedOperatorError(f"{node.name}: {type(operator).__name__} has no parallel relaxation")
        source = node.inputs[0]
        low, high = layer_range(state, source, operator, budget)  # another reader may leave other neurons open
        if intervals is not None:
            low, high = torch.maximum(low, intervals[source][0]), torch.minimum(high, intervals[source][1])
        band = Band.of(operator.parallel_lines(low, high))
        state.bands[index] = band
        state.layers[index] = (low, high)
        center = state.reached[source].center
        with torch.no_grad():
            moved = torch.maximum(high - center, center - low)
            radius = band.slope.abs() * moved + band.gap
        state.reached.append(Reached(band.slope * center + band.middle, radius))
    return state


def _centered(region: Region) -> tuple[Tensor, tuple[Set, ...]]:
    sets = region.sets()
    if len(sets) == 1 and sets[0].offset is not None:
        return region.center + sets[0].offset, (replace(sets[0], offset=None),)
    return region.center, sets


def _through_affine(operator: Affine, inputs: list[Reached]) -> Reached:
    center = operator.forward(*(value.center for value in inputs))
    first = inputs[0]
    if len(inputs) == 1 and first.ball is not None:
        order, radius = first.ball
        if operator.diagonal():
            return Reached(center, operator.magnitude(first.radius), (order, operator.magnitude(radius)), True)
        exact = operator.response(radius, order)
        if exact is not None:
            return Reached(center, exact.expand_as(center), None, True)
    with torch.no_grad():  # only a sieve: it decides which rows are worth the exact radius
        return Reached(center, operator.magnitude(*(value.radius for value in inputs)))


def layer_range(state: ParallelState, target: int, operator: Activation, budget: int | None) -> Range:
    """Bounds of node `target`: exact where the activation on it is not affine.

    With gradients, the rows are first bounded without, and only the truly open ones again with: the closed ones carry
    none.

    Args:
        state: relaxations of all nodes below.
        target: index of the node.
        operator: the activation that reads it.
        budget: bytes for the rows of one chunk.

    Returns:
        (lower, upper), each [batch, *shape].
    """
    value = state.reached[target]
    center, radius = value.center, value.radius
    if value.exact:
        return center - radius, center + radius
    with torch.no_grad():
        closed = operator.linear_on(center - radius, center + radius)
        index = torch.nonzero(~closed.flatten()).squeeze(1)
        index, radius = _position_sieve(state, target, index, operator)
        down, up = exact_rows(state, target, index, budget)
        middle = center.flatten()[index]
        low = (center - radius).flatten().index_put((index,), middle - down)
        high = (center + radius).flatten().index_put((index,), middle + up)
    if torch.is_grad_enabled():
        index = index[~operator.linear_on(middle - down, middle + up)]
        down, up = exact_rows(state, target, index, budget)
        middle = center.flatten()[index]
        low, high = low.index_put((index,), middle - down), high.index_put((index,), middle + up)
    return low.reshape(center.shape), high.reshape(center.shape)


def exact_rows(state: ParallelState, target: int, index: Tensor, budget: int | None) -> Range:
    """Exact distances that neurons of node `target` can move from the centre.

    Args:
        state: relaxations of all nodes below.
        target: index of the node.
        index: flat indices into [batch, *shape], int64 [rows].
        budget: bytes for the rows of one chunk.

    Returns:
        (down, up), each [rows], >= 0.
    """
    center = state.reached[0].center
    if len(index) == 0:
        return center.new_zeros(0), center.new_zeros(0)
    size = state.graph.nodes[target].size
    length = chunk_length(row_bytes(state.graph, target, center.element_size()), budget, center.device)

    def work(piece: slice) -> Range:
        part = index[piece]
        rows, start = unit_rows(state.graph, target, part % size, part // size, center)
        return spread(state.graph, state.bands, state.sets, start, rows)

    return in_chunks(work, len(index), length)


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

    def work(piece: slice) -> Range:
        return spread(state.graph, state.bands, state.sets, last, rows.part(piece))

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


def _position_sieve(state: ParallelState, target: int, index: Tensor, operator: Activation) -> tuple[Tensor, Tensor]:
    """Bounds neurons per kernel position, so that fewer are left open for the exact walk.

    It applies to a convolution on a relaxed convolution of the input; elsewhere nothing changes.

    The functional is split by kernel position, each piece is carried to the input alone, and the pieces' norms are
    added up: never below the exact norm of the sum, and cheap, because a piece reads one window of the first kernel.

    Args:
        state: relaxations of all nodes below.
        target: index of the node.
        index: the open neurons, flat indices into [batch, *shape], int64 [rows].
        operator: the activation that reads the node.

    Returns:
        Those of `index` that stay open, and the radius [batch, *shape] with these bounds put in.
    """
    graph, value = state.graph, state.reached[target]
    node = graph.nodes[target]
    if len(index) < _SIEVE_ROWS or not isinstance(node.operator, Convolution) or not is_windowed(node.operator):
        return index, value.radius
    relaxed = node.inputs[0]
    first = graph.nodes[graph.nodes[relaxed].inputs[0]] if relaxed in state.bands else None
    if first is None or not isinstance(first.operator, Convolution) or not is_windowed(first.operator):
        return index, value.radius
    ball = state.reached[first.inputs[0]].ball
    if ball is None:
        return index, value.radius
    order, semi_axes = ball
    largest = semi_axes.flatten(1).amax(1)
    band = state.bands[relaxed]
    widened = node.operator.magnitude(band.gap).flatten()
    center = value.center.flatten()
    taps = first.operator.weight.flatten(1)
    pieces_each = node.operator.weight[0].numel() // len(taps) * taps.shape[1]
    length = chunk_length(3 * center.element_size() * pieces_each, None, center.device)
    kept, reaches = [], []
    for start in range(0, len(index), length):
        part = index[start : start + length]
        rows, _ = unit_rows(graph, target, part % node.size, part // node.size, center)
        assert isinstance(rows, Windows)
        pieces = (rows.coefficients * rows.gather(band.slope)).reshape(-1, len(taps)) @ taps
        if order == 1:
            norms = pieces.abs_().reshape(len(part), -1).sum(1)
        else:
            norms = row_norm(pieces, order).reshape(len(part), -1).sum(1)
        own = largest[rows.example] if len(largest) > 1 else largest
        reach = norms * own + widened[part]
        kept.append(part[~operator.linear_on(center[part] - reach, center[part] + reach)])
        reaches.append(reach)
    radius = value.radius.flatten().index_put((index,), torch.cat(reaches)).reshape(value.radius.shape)
    return torch.cat(kept), radius
