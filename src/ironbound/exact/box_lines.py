"""Linear bounds pushed forward: for boxes with few varied elements, every value between two linear functions of these.

A value is held as M ± D with linear functions M and D of e in [-1, 1]^d, where e places a point in its box. An affine
operator A takes them to A M + b and |A| D, so two plain runs serve a whole layer; a relaxed operator takes the upper
line at M + D and the lower line at M - D. The cost per box is that of 2 (d + 1) runs of the network, and all bounds
of a layer come at once, where the backward walk pays for every open neuron.

Source: the forward mode of linear relaxation (Xu et al. 2020, section 3), with the lines of CROWN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.lines import LinesState, walked_bounds
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine, Lines
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Box


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear functions of e in [-1, 1]^d, one per element of a value.

    Attributes:
        slopes: [boxes, d, *shape].
        middle: value at e = 0, [boxes, *shape].
    """

    slopes: Tensor
    middle: Tensor

    def reach(self) -> Tensor:
        """Largest difference from the middle, [boxes, *shape]."""
        return self.slopes.abs().sum(1)

    def times(self, factor: Tensor) -> Linear:
        """Each function times its own factor, [boxes, *shape]."""
        return Linear(self.slopes * factor.unsqueeze(1), self.middle * factor)

    def plus(self, other: Linear, sign: int = 1) -> Linear:
        """The sum, or the difference."""
        return Linear(self.slopes.add(other.slopes, alpha=sign), self.middle.add(other.middle, alpha=sign))


@dataclass(frozen=True, eq=False)
class Between:
    """A value between M - D and M + D; without D, equal to M."""

    main: Linear
    spread: Linear | None

    def lower(self) -> Linear:
        """M - D."""
        return self.main if self.spread is None else self.main.plus(self.spread, -1)

    def upper(self) -> Linear:
        """M + D."""
        return self.main if self.spread is None else self.main.plus(self.spread)

    @staticmethod
    def of(lower: Linear, upper: Linear) -> Between:
        """From both sides."""
        main, spread = lower.plus(upper), upper.plus(lower, -1)
        return Between(Linear(main.slopes / 2, main.middle / 2), Linear(spread.slopes / 2, spread.middle / 2))

    def ends(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value over the box, each [boxes, *shape]."""
        lower, upper = self.lower(), self.upper()
        return lower.middle - lower.reach(), upper.middle + upper.reach()


@dataclass(frozen=True, eq=False)
class BoxLines:
    """A network over boxes.

    Attributes:
        output: linear bounds of the output.
        lines: the relaxation of every relaxed node, by its index.
    """

    output: Between
    lines: dict[int, Lines]


def box_lines(graph: Graph, region: Box, varied: Tensor, walk: bool, memory: int | None = None) -> BoxLines:
    """Pushes linear bounds through a network.

    Args:
        graph: the network.
        region: the boxes.
        varied: flat indices of the input elements that vary in some box, int64 [d].
        walk: whether neurons that the forward bounds leave open are bounded by a backward walk too: tighter, and
            several times slower.
        memory: bytes for the rows of the walk, or None for the default.

    Returns:
        Bounds of the output, and the relaxations.
    """
    values = [Between(Linear(_identity(region, varied), region.center), None)]
    state = LinesState(graph, region, {}, {}, {})
    for index, node in enumerate(graph.nodes[1:], start=1):
        sources, operator = [values[source] for source in node.inputs], node.operator
        if isinstance(operator, Affine):
            values.append(_affine(operator, sources))
            continue
        low, high = _ordered(*sources[0].ends())
        if walk and state.lines:
            below, above = walked_bounds(state, node.inputs[0], operator, (low, high), memory)
            low, high = _ordered(torch.maximum(low, below), torch.minimum(high, above))
        if isinstance(operator, Maximum):
            state.lines[index] = operator.lines(low, high)
            values.append(_constant(*operator.interval(low, high), len(varied)))
        else:
            assert isinstance(operator, Activation)
            state.lines[index] = operator.adaptive_lines(low, high)
            values.append(_relaxed(state.lines[index], sources[0]))
    return BoxLines(values[-1], state.lines)


def influence(graph: Graph, region: Box, lines: dict[int, Lines], varied: Tensor) -> Tensor:
    """How far each varied element can move each output through its single paths, none of which cancel.

    This guides the search, it bounds nothing ("smear": Wang et al. 2018, ReluVal, section 4.3).

    Args:
        graph: the network.
        region: the boxes.
        lines: the relaxation of every relaxed node.
        varied: flat indices of the input elements that vary in some box, int64 [d].

    Returns:
        [boxes, d, outputs].
    """
    shape = (len(region), len(varied))
    values = [_identity(region, varied)]
    for index, node in enumerate(graph.nodes[1:], start=1):
        sources = [values[source] for source in node.inputs]
        if isinstance(node.operator, Affine):
            moved = node.operator.magnitude(*(value.flatten(0, 1) for value in sources))
            values.append(moved.unflatten(0, shape))
        else:
            line = lines[index]
            steepest = torch.maximum(line.lower_slope.abs(), line.upper_slope.abs())
            moved = sources[0] * steepest.unsqueeze(1)
            values.append(moved.amax(-1) if isinstance(node.operator, Maximum) else moved)
    return values[-1].flatten(2)


def _identity(region: Box, varied: Tensor) -> Tensor:
    """Slopes of the input itself, [boxes, d, *shape]."""
    radius = region.sets()[0].radius.flatten(1)
    slopes = radius.new_zeros((len(region), len(varied), radius.shape[1]))
    slopes[:, torch.arange(len(varied), device=radius.device), varied] = radius[:, varied]
    return slopes.reshape(len(region), len(varied), *region.shape)


def _ordered(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.minimum(low, high), torch.maximum(low, high)  # rounding may cross the ends of a constant


def _affine(operator: Affine, sources: list[Between]) -> Between:
    boxes, count = sources[0].main.slopes.shape[:2]
    shapes = tuple(tuple(value.main.middle.shape[1:]) for value in sources)
    constant = operator.constant(shapes, sources[0].main.middle)
    slopes = operator.forward(*(value.main.slopes.flatten(0, 1) for value in sources)) - constant
    main = Linear(slopes.unflatten(0, (boxes, count)), operator.forward(*(value.main.middle for value in sources)))
    if all(value.spread is None for value in sources):
        return Between(main, None)
    spreads = [value.spread or value.main.times(torch.zeros_like(value.main.middle)) for value in sources]
    slopes = operator.magnitude(*(spread.slopes.flatten(0, 1) for spread in spreads))
    middle = operator.magnitude(*(spread.middle for spread in spreads))
    return Between(main, Linear(slopes.unflatten(0, (boxes, count)), middle))


def _relaxed(lines: Lines, value: Between) -> Between:
    lower, upper = value.lower(), value.upper()
    below = _line(lines.lower_slope, lines.lower_intercept, lower, upper)
    above = _line(lines.upper_slope, lines.upper_intercept, upper, lower)
    return Between.of(below, above)


def _line(slope: Tensor, intercept: Tensor | None, rising: Linear, falling: Linear) -> Linear:
    """A line of z at the side of z that bounds it: one for slopes >= 0, the other for those below."""
    if (slope < 0).any():
        found = rising.times(slope.clamp(min=0)).plus(falling.times(slope.clamp(max=0)))
    else:
        found = rising.times(slope)
    return found if intercept is None else Linear(found.slopes, found.middle + intercept)


def _constant(low: Tensor, high: Tensor, count: int) -> Between:
    flat = low.new_zeros((len(low), count, *low.shape[1:]))
    return Between.of(Linear(flat, low), Linear(flat, high))
