"""Layer-wise bounds with parallel slopes: Algorithm 1 of Wong & Kolter (2018), by rows.

Every node has a centre (the forward pass through the middles of the bands) and a radius. The radius is first taken from
the layer below by |W| (the sieve), then exactly, by the backward walk, for the neurons that the sieve leaves open. With
parallel slopes the walk's result is a sub-additive function of the functional (a sum of norms), so the sieve's radius
is never smaller than Algorithm 1's: what the sieve closes, Algorithm 1 closes too, with the same slope and no gap.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ironbound.bounding.backward import Band, Range
from ironbound.bounding.interval import ball_radius
from ironbound.bounding.pruning import without_dead_channels
from ironbound.bounding.rounded_intervals import intervals_for
from ironbound.bounding.rounding import Arithmetic, Ledger
from ironbound.bounding.sieve import position_sieve
from ironbound.bounding.spread import exact_rows
from ironbound.bounding.state import ParallelState, Reached
from ironbound.errors import UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine
from ironbound.regions import Region, Set


def parallel_state(
    graph: Graph,
    region: Region,
    meet_interval: bool = False,
    budget: int | None = None,
    arithmetic: Arithmetic | None = None,
) -> ParallelState:
    """Bounds of every relaxed node's input, layer by layer, and the bands that follow from them.

    Args:
        graph: the network.
        region: the inputs.
        meet_interval: whether to meet the bounds with interval arithmetic ("dual+interval").
        budget: bytes for the rows of one chunk.
        arithmetic: what the bounds are proofs for; None: they are as computed.

    Returns:
        Bands, and bounds [batch, *shape] of the value read, of every relaxed node; what is known of every node.

    Raises:
        UnsupportedOperatorError: a relaxation that has no parallel lines (maximum), or an operator without a bound of
            its rounding.
    """
    ledger = Ledger.of(graph, region, arithmetic, carried=True)
    intervals = intervals_for(graph, region, arithmetic)[0] if meet_interval else None
    center, sets = _centered(region)
    lower, upper = region.box()
    radius = torch.maximum(upper - center, center - lower)
    ball = (sets[0].dual, ball_radius(sets[0], center)) if len(sets) == 1 else None
    state = ParallelState(graph, sets, [Reached(center, radius, ball, True)], {}, {}, ledger=ledger)
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator = node.operator
        if isinstance(operator, Affine):
            state.reached.append(_through_affine(operator, [state.reached[source] for source in node.inputs]))
            if ledger is not None:
                ledger.affine(index)
            continue
        if not isinstance(operator, Activation):
            raise UnsupportedOperatorError(f"{node.name}: {type(operator).__name__} has no parallel relaxation")
        source = node.inputs[0]
        low, high = layer_range(state, source, operator, budget)  # another reader may leave other neurons open
        if intervals is not None:
            lower, upper = intervals[source].ends()
            low, high = torch.maximum(low, lower), torch.minimum(high, upper)
            low, high = torch.minimum(low, high), torch.maximum(low, high)  # rounding may cross bounds of a constant
        band = Band.of(operator.parallel_lines(low, high))
        state.layers[index] = (low, high)
        center = state.reached[source].center
        value = band.slope * center + band.middle
        if ledger is not None:
            band = ledger.band(index, band, (low, high), (center, value))
        with torch.no_grad():
            moved = torch.maximum(high - center, center - low)
            radius = band.slope.abs() * moved + band.gap
        pruned, kept = without_dead_channels(state.graph, index, band)
        state = replace(state, graph=pruned)
        state.bands[index] = band if kept is None else band.channels(kept)
        state.radii[index] = radius if kept is None else radius.index_select(1, kept)
        state.reached.append(Reached(value, radius))
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
        radius = state.outward(target, radius)
        return center - radius, center + radius
    outer = state.outward(target, radius)
    with torch.no_grad():
        closed = operator.linear_on(center - outer, center + outer)
        index = torch.nonzero(~closed.flatten()).squeeze(1)
        index, radius = position_sieve(state, target, index, operator)
        outer = state.outward(target, radius)
        middle = center.flatten()[index]

        def closes(which: Tensor, bound: Tensor) -> Tensor:
            bound = state.outward(target, bound, index[which])
            return operator.linear_on(middle[which] - bound, middle[which] + bound)

        down, up = (state.outward(target, part, index) for part in exact_rows(state, target, index, budget, closes))
        low = (center - outer).flatten().index_put((index,), middle - down)
        high = (center + outer).flatten().index_put((index,), middle + up)
    if torch.is_grad_enabled():
        index = index[~operator.linear_on(middle - down, middle + up)]
        down, up = exact_rows(state, target, index, budget)
        middle = center.flatten()[index]
        low, high = low.index_put((index,), middle - down), high.index_put((index,), middle + up)
    return low.reshape(center.shape), high.reshape(center.shape)
