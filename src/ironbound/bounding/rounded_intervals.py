"""Interval arithmetic that is a proof: every end is moved outward by what rounding can do."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.bounding.interval import Interval, Range, ball_radius, interval_bounds
from ironbound.bounding.rounding import Arithmetic, Ledger
from ironbound.graph import Graph
from ironbound.ops.operator import Affine
from ironbound.regions import Region


def intervals_for(graph: Graph, region: Region, arithmetic: Arithmetic | None) -> tuple[list[Interval], Ledger | None]:
    """The range of every node, as computed (None), or moved outward and with the ledger."""
    if arithmetic is None:
        return interval_bounds(graph, region), None
    return rounded_intervals(graph, region, arithmetic)


def rounded_intervals(graph: Graph, region: Region, arithmetic: Arithmetic) -> tuple[list[Interval], Ledger]:
    """`interval_bounds` with every rounding paid for.

    Args:
        graph: the network.
        region: the inputs.
        arithmetic: what the intervals are proofs for.

    Returns:
        For each node an interval per element, and the ledger.

    Raises:
        UnsupportedOperatorError: the rounding of an operator has no bound.
    """
    ledger = Ledger(graph, region, arithmetic == "float32")
    low, high = (end.expand(region.center.shape) for end in region.box())
    infinity = torch.full_like(low, torch.inf)
    results = [Interval((torch.nextafter(low, -infinity), torch.nextafter(high, infinity)))]
    sets = region.sets()
    balls: dict[int, Range] = {}
    if len(sets) == 1 and sets[0].offset is None:
        balls[0] = (region.center, ball_radius(sets[0], region.center))
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator, sources = node.operator, node.inputs
        if not isinstance(operator, Affine):
            results.append(Interval(ledger.interval(index, results[sources[0]].ends())))
            continue
        ledger.affine(index)
        if len(sources) == 1 and sources[0] in balls:
            middle, radius = balls[sources[0]]
            if operator.diagonal():
                balls[index] = (operator.forward(middle), operator.magnitude(radius))
            exact = None if operator.diagonal() else operator.response(radius, sets[0].dual)
            if exact is not None:
                reach = ledger.outward(index, exact)
                center = operator.forward(middle)
                results.append(Interval((center - reach, center + reach)))
                continue
        results.append(_through(ledger, index, [results[source].ends() for source in sources]))
    return results, ledger


def _through(ledger: Ledger, index: int, inputs: list[Range]) -> Interval:
    """An affine node, from intervals that pay for everything below."""
    operator = ledger.graph.nodes[index].operator
    assert isinstance(operator, Affine)
    middles: list[Tensor] = [low / 2 + high / 2 for low, high in inputs]
    radii = [torch.maximum(high - at, at - low) for (low, high), at in zip(inputs, middles, strict=True)]
    center = operator.forward(*middles)
    reach = ledger.outward(index, operator.magnitude(*radii))
    return Interval((center - reach, center + reach))
