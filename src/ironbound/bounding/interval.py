"""Interval arithmetic, node by node (naive layer-wise bounds; Gowal et al. 2018)."""

from __future__ import annotations

from torch import Tensor

from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region, Set


def ball_radius(part: Set, center: Tensor) -> Tensor:
    """The semi-axes of a set, [batch, *shape], or [1, *shape] where the examples share them: one image serves all."""
    return part.radius.expand(len(part.radius), *center.shape[1:])


def interval_bounds(graph: Graph, region: Region) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper bound of every node.

    A ball stays exact up to and through the first affine operator that mixes elements; from there on boxes are used.

    Args:
        graph: the network.
        region: the inputs.

    Returns:
        For each node (lower, upper), both [batch, *shape].
    """
    results: list[tuple[Tensor, Tensor]] = [region.box()]
    sets = region.sets()
    balls: dict[int, tuple[Tensor, Tensor]] = {}
    if len(sets) == 1 and sets[0].offset is None:
        balls[0] = (region.center, ball_radius(sets[0], region.center))
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator, sources = node.operator, node.inputs
        inputs = [results[source] for source in sources]
        if isinstance(operator, Activation | Maximum):
            results.append(operator.interval(*inputs[0]))
            continue
        assert isinstance(operator, Affine)
        exact = None
        if len(sources) == 1 and sources[0] in balls:
            middle, radius = balls[sources[0]]
            if operator.diagonal():
                balls[index] = (operator.forward(middle), operator.magnitude(radius))
            exact = operator.response(radius, sets[0].dual) if not operator.diagonal() else None
            if exact is not None:
                value = operator.forward(middle)
                results.append((value - exact, value + exact))
                continue
        value = operator.forward(*((lower + upper) / 2 for lower, upper in inputs))
        radius = operator.magnitude(*((upper - lower) / 2 for lower, upper in inputs))
        results.append((value - radius, value + radius))
    return results
