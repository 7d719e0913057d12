"""Interval arithmetic, node by node (naive layer-wise bounds; Gowal et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine
from ironbound.ops.piecewise import Maximum, ReLU
from ironbound.regions import Region, Set

Range = tuple[Tensor, Tensor]


def ball_radius(part: Set, center: Tensor) -> Tensor:
    """The semi-axes of a set, [batch, *shape], or [1, *shape] where the examples share them: one image serves all."""
    return part.radius.expand(len(part.radius), *center.shape[1:])


class Interval:
    """An interval per element: its ends (or what makes them), or its middle and radius; the other form on demand."""

    def __init__(self, ends: Range | Callable[[], Range] | None = None, middle: Range | None = None) -> None:
        self._ends, self._middle = ends, middle

    def ends(self) -> Range:
        """(lower, upper), each [batch, *shape]."""
        if self._ends is None:
            assert self._middle is not None
            center, radius = self._middle
            self._ends = (center - radius, center + radius)
        elif callable(self._ends):
            self._ends = self._ends()
        return self._ends

    def middle(self) -> Range:
        """(center, radius), each [batch, *shape]."""
        if self._middle is None:
            lower, upper = self.ends()
            self._middle = ((lower + upper) / 2, (upper - lower) / 2)
        return self._middle


def interval_bounds(graph: Graph, region: Region) -> list[Interval]:
    """The range of every node.

    A ball stays exact up to and through the first affine operator that mixes elements; from there on boxes are used.

    Args:
        graph: the network.
        region: the inputs.

    Returns:
        For each node an interval per element.
    """
    results = [Interval(region.box)]
    sets = region.sets()
    balls: dict[int, Range] = {}
    if len(sets) == 1 and sets[0].offset is None:
        balls[0] = (region.center, ball_radius(sets[0], region.center))
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator, sources = node.operator, node.inputs
        inputs = [results[source] for source in sources]
        if isinstance(operator, ReLU):
            results.append(Interval(middle=operator.middle_interval(*inputs[0].middle())))
            continue
        if isinstance(operator, Activation | Maximum):
            results.append(Interval(operator.interval(*inputs[0].ends())))
            continue
        assert isinstance(operator, Affine)
        exact = None
        if len(sources) == 1 and sources[0] in balls:
            middle, radius = balls[sources[0]]
            if operator.diagonal():
                balls[index] = (operator.forward(middle), operator.magnitude(radius))
            exact = operator.response(radius, sets[0].dual) if not operator.diagonal() else None
            if exact is not None:
                results.append(Interval(middle=(operator.forward(middle), exact)))
                continue
        centers, radii = zip(*(value.middle() for value in inputs), strict=True)
        results.append(Interval(middle=operator.image(centers, radii)))
    return results
