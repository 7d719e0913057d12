"""What rounding can do to a bound, node by node, so that the bound can be moved outward by it.

The charge of a node is such that a functional c of its value pays |c| · charge for all the rounding between this node
and the relaxed nodes, or the input, right below it: in the walk of c, in the centre that was pushed forward, and, for
the network as executed in float32, in the network's own run. A relaxed node adds the charge of what it reads to its
lines; from there on, walks carry it like any other room between two lines. docs/arithmetic.md derives every term.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ironbound.bounding.backward import Band, Range, Rows
from ironbound.bounding.rounding_noise import SINGLE, executed_noise
from ironbound.errors import UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.affine import (
    BatchNorm,
    Convolution,
    Linear,
    Reshape,
    Scale,
    Shift,
    Structural,
    TransposedConvolution,
    WeightedSum,
)
from ironbound.ops.operator import Activation, Affine, Input, Lines, Operator
from ironbound.ops.piecewise import Maximum, PiecewiseLinear, ReLU
from ironbound.ops.smooth import LIBRARY, Smooth
from ironbound.regions import Region

Arithmetic = Literal["real", "float32"]
"""What bounds are proofs for: the network in real arithmetic, or any run of it in float32 (see docs/arithmetic.md)."""

_FLUSHED = 2.0**-126  # below this, float32 results may become 0
_PRODUCTS = Linear | Convolution | TransposedConvolution
_AFFINE = _PRODUCTS | Scale | Shift | BatchNorm | WeightedSum | Reshape | Structural
_RULES = _AFFINE | PiecewiseLinear | Smooth | Maximum | Input


class Ledger:
    """The account of rounding of one graph over one batch of regions; a driver fills it in the order of the nodes.

    Args:
        graph: the network, every operator with a rule.
        region: the inputs, in the dtype that bounds are computed in.
        executed: whether bounds shall hold for the network as executed in float32, not only in real arithmetic.
        carried: whether functionals are only carried down, and multiplied with no inner node's values: sums are then no
            longer than an operator's own, but for those of terms of one sign.

    Attributes:
        most: for each node a number that its value, and its centre, never exceed in magnitude; for affine nodes also
            no less than |A| · most + |b|, [batch, *shape].
        charge: see the module; None stands for 0, [batch, *shape].
        slack: what every functional pays for underflow, [batch].

    Raises:
        UnsupportedOperatorError: an operator has no rule, or its sums are too long for the dtype.
    """

    def __init__(self, graph: Graph, region: Region, executed: bool = False, carried: bool = False) -> None:
        for node in graph.nodes:
            if not isinstance(node.operator, _RULES):
                kind = type(node.operator).__name__
                raise UnsupportedOperatorError(f"{node.name}: the rounding of {kind} has no bound yet.")
        info = torch.finfo(region.dtype)
        self.graph, self.executed = graph, executed
        self.unit, self.tiny = info.eps / 2, 4 * math.sqrt(info.tiny)
        self.spare = len(graph.nodes) + max((len(readers) for readers in graph.readers), default=0)
        offset = any(part.offset is not None for part in region.sets())
        places = range(len(graph.nodes))
        self.lengths = [self._length(index, offset) if carried else self._terms(index) for index in places]
        self.whole = self.share(sum(self.lengths) + max(map(self._terms, places)))
        center = region.center.detach()
        most = center.abs()
        for part in region.sets():
            offset = 0 if part.offset is None else part.offset.abs()
            most = torch.maximum(most, center.abs() + offset + part.radius)
        share = self.share(self.lengths[0])
        self.most = [most * (1 + share)]
        self.charge: list[Tensor | None] = [share * self.most[0] + self.tiny]
        self.slack = center.new_zeros(len(center))
        self._underflow(0)

    @classmethod
    def of(cls, graph: Graph, region: Region, arithmetic: Arithmetic | None, carried: bool = False) -> Ledger | None:
        """A new ledger, or None where bounds are to stay as computed."""
        return None if arithmetic is None else cls(graph, region, arithmetic == "float32", carried)

    def share(self, count: int) -> float:
        """The relative error of sums of `count` products in a row, several times over: (6 n + 32) u."""
        if not count * self.unit <= 1 / 64:
            raise UnsupportedOperatorError(
                f"sums of {count} terms are too long for a bound of their rounding; compute in float64."
            )
        return (6 * count + 32) * self.unit

    def _terms(self, index: int) -> int:
        """More terms than any sum has that computes this node from those it reads, or carries functionals of it."""
        node = self.graph.nodes[index]
        return max(node.size, sum(self.graph.nodes[source].size for source in node.inputs)) + self.spare

    def _length(self, index: int, offset: bool) -> int:
        """More terms than any sum has that computes this node from those it reads, or its adjoint."""
        operator = self.graph.nodes[index].operator
        if index == len(self.graph.nodes) - 1 or index == 0 and offset:
            return self._terms(index)  # functionals of the output, and offsets of the input, are multiplied out
        if isinstance(operator, _PRODUCTS):
            groups = 1 if isinstance(operator, Linear) else operator.groups
            ends = operator.weight.shape
            return max(ends[0] // groups, ends[1]) * math.prod(ends[2:]) + self.spare
        return self._terms(index) if isinstance(operator, Structural) else self.spare

    def _underflow(self, index: int) -> None:
        parts = [self.most[source] for source in (index, *self.graph.nodes[index].inputs)]
        total = sum((part.flatten(1).sum(1) for part in parts), torch.ones_like(self.slack))
        self.slack = self.slack + 2 * (self._terms(index) + 8) * self.tiny * total

    def affine(self, index: int) -> None:
        """Enters an affine node."""
        node = self.graph.nodes[index]
        operator = node.operator
        assert isinstance(operator, Affine)
        share = self.share(self.lengths[index])
        inputs = [self.most[source] for source in node.inputs]
        constant = magnitude_of_constant(operator, tuple(self.graph.nodes[s].shape for s in node.inputs), inputs[0])
        most = (operator.magnitude(*inputs) + constant) * (1 + share)
        charge = share * most + self.tiny
        if self.executed:
            noise = executed_noise(node, inputs, constant, most) * (1 + share)
            most, charge = most + noise, charge + noise
        below = [self.charge[source] for source in node.inputs]
        if any(part is not None for part in below):
            filled = [torch.zeros_like(at) if part is None else part for part, at in zip(below, inputs, strict=True)]
            charge = charge + operator.magnitude(*filled)
        self.most.append(most)
        self.charge.append(charge * (1 + share))
        self._underflow(index)

    def band(self, index: int, band: Band, ends: Range, centers: Range) -> Band:
        """Enters a relaxed node with parallel lines.

        Args:
            index: of the node.
            band: its relaxation as computed on `ends`.
            ends: bounds of what it reads.
            centers: of what it reads, and of its own value, as computed.

        Returns:
            The band, wider by what rounding can do on it and right below it.
        """
        lines = Lines(band.slope, band.middle - band.gap, band.slope, band.middle + band.gap)
        room = self.room(index, ends, (lines,), centers)
        return replace(band, gap=(band.gap + room) * (1 + self.share(8)))

    def lines(self, index: int, lines: Lines, ends: Range) -> Lines:
        """Enters a relaxed node with a line per side.

        Args:
            index: of the node.
            lines: its relaxation as computed on `ends`.
            ends: bounds of what it reads.

        Returns:
            The lines, moved apart by what rounding can do on them and right below them.
        """
        return moved_apart(lines, self.room(index, ends, (lines,)))

    def room(self, index: int, ends: Range, choices: tuple[Lines, ...], centers: Range | None = None) -> Tensor:
        """Enters a relaxed node of which lines are chosen later.

        Args:
            index: of the node.
            ends: bounds of what it reads.
            choices: its relaxations as computed on `ends`; any mean of them may be taken, neuron by neuron.
            centers: of what it reads, and of its own value, as computed, where the method has any.

        Returns:
            By how much the chosen lines must move apart, [batch, *shape].
        """
        node = self.graph.nodes[index]
        source = node.inputs[0]
        share = self.share(self.lengths[index])
        read = self.most[source]
        slope = _largest(part for one in choices for part in (one.lower_slope, one.upper_slope))
        heights = (part for one in choices for part in (one.lower_intercept, one.upper_intercept))
        other = _largest(part for part in heights if part is not None)
        if centers is not None:
            read, other = torch.maximum(read, centers[0].abs()), torch.maximum(other, centers[1].abs())
        below = slope * (self.at(source) + share * read)
        below = below.sum(-1) if isinstance(node.operator, Maximum) else below
        fit = _largest(self._fit(node.operator, ends, one, slope, other) for one in choices)
        if len(choices) > 1:  # a mean of lines is computed, too
            assert isinstance(node.operator, Activation)
            mean = self.share(8) * (slope * torch.maximum(ends[0].abs(), ends[1].abs()) + other)
            fit = fit + torch.where(node.operator.linear_on(*ends), 0.0, mean)
        noise = self._noise(node.operator, ends)
        low, high = _image(node.operator, ends)
        most = torch.maximum(torch.maximum(low.abs(), high.abs()) + fit + noise, other)
        self.most.append(most * (1 + share))
        self.charge.append(None)
        self._underflow(index)
        least = torch.where(self.most[index] == 0, 0.0, self.tiny)  # a value that is 0 stays exactly 0
        return (below + share * self.most[index] + fit + noise + least) * (1 + share)

    def _fit(self, operator: Operator, ends: Range, lines: Lines, slope: Tensor, other: Tensor) -> Tensor:
        """How far computed lines can be off.

        Args:
            operator: of the node.
            ends: bounds of what it reads.
            lines: its relaxation.
            slope: the largest magnitude of its slopes.
            other: of its intercepts, and of the centre's value.

        Returns:
            Of the shape of the node's value, [batch, *shape].
        """
        low, high = ends
        if isinstance(operator, Smooth):
            return _outside(operator, ends, lines)
        if isinstance(operator, ReLU):
            return torch.where(operator.linear_on(low, high), 0.0, self.share(8) * (low.abs() + high.abs()))
        if isinstance(operator, Maximum):
            return self.share(4 * low.shape[-1]) * ((1 + slope) * (low.abs() + high.abs())).sum(-1)
        assert isinstance(operator, PiecewiseLinear)
        count, size, far = _pieces(operator, ends)
        return self.share(count) * (size + slope * far + other)

    def _noise(self, operator: Operator, ends: Range) -> Tensor:
        """How far the executed function can be off, of no axes or of the shape of the node's value."""
        if not self.executed or isinstance(operator, ReLU | Maximum):
            return ends[0].new_zeros(())
        if isinstance(operator, Smooth):
            size = torch.maximum(*map(operator.size, ends)) * (1 + self.share(8))
            return LIBRARY * SINGLE * size + 4 * math.sqrt(_FLUSHED)
        assert isinstance(operator, PiecewiseLinear)
        count, size, _ = _pieces(operator, ends)
        return count * SINGLE * 1.01 * size + _FLUSHED

    def interval(self, index: int, ends: Range) -> Range:
        """Enters a relaxed node of which only an interval is used; returns the interval of its value."""
        operator = self.graph.nodes[index].operator
        low, high = _image(operator, ends)
        room = self._noise(operator, ends)
        if isinstance(operator, PiecewiseLinear) and not isinstance(operator, ReLU):
            zero = torch.zeros_like(low)
            room = room + self._fit(operator, ends, Lines(zero, low, zero, high), zero, zero)
        low, high = low - room, high + room
        self.most.append(torch.maximum(low.abs(), high.abs()))
        self.charge.append(None)
        self._underflow(index)
        return low, high

    def at(self, index: int) -> Tensor:
        """The charge of a node, never 0: what the last product with a functional of it costs, too."""
        charge = self.charge[index]
        return self.share(self.lengths[index]) * self.most[index] if charge is None else charge

    def outward(self, index: int, radius: Tensor, which: Tensor | None = None) -> Tensor:
        """What a node's value can differ from its centre at most, where computed as `radius`.

        Args:
            index: of the node.
            radius: [batch or 1, *shape], or with `which` [rows].
            which: flat indices into [batch, *shape], int64 [rows].

        Returns:
            The radius with everything that rounding can have taken from it.
        """
        price = self.at(index)
        price = price + self.slack.reshape(-1, *(1,) * (price.dim() - 1))
        if which is not None:
            price = price.flatten()[which]
        return (radius + price) * (1 + self.whole)

    def price(self, index: int, rows: Rows) -> Tensor:
        """What functionals of a node pay, [rows]."""
        return (rows.widening(self.at(index)) + self.slack[rows.example]) * (1 + self.whole)

    def apart(self, index: int, ends: Range, which: Tensor) -> Range:
        """Bounds of single elements of a node, [rows], from computed ones; `which`: see `outward`."""
        price = self.outward(index, torch.zeros_like(ends[0]), which)
        low, high = ends
        return low - (price + self.share(8) * low.abs()), high + (price + self.share(8) * high.abs())

    def ball(self, index: int, center: Tensor, radius: Tensor) -> Range:
        """Centre and radius of a node's value such that products with them are paid for, too."""
        return center, (radius + self.at(index)) * (1 + self.whole)

    def below(self, index: int, rows: Rows, lower: Tensor) -> Tensor:
        """Lower bounds of functionals of a node, [rows], from computed ones."""
        return lower - (self.price(index, rows) + self.share(8) * lower.abs())


def moved_apart(lines: Lines, room: Tensor) -> Lines:
    """Lines with so much more room between them, [batch, *shape]."""
    lower = -room if lines.lower_intercept is None else lines.lower_intercept - room
    return replace(lines, lower_intercept=lower, upper_intercept=lines.upper_intercept + room)


def _largest(parts: Iterable[Tensor]) -> Tensor:
    """The largest magnitude, element by element; NaN stays NaN."""
    return reduce(torch.maximum, (part.abs() for part in parts))


def _pieces(operator: PiecewiseLinear, ends: Range) -> tuple[int, Tensor, Tensor]:
    """Operations of an evaluation, the magnitudes in them, and those of what is multiplied by a slope."""
    reach = torch.maximum(ends[0].abs(), ends[1].abs())
    steep, far = sum(map(abs, operator.slopes)), max(map(abs, operator.knots))
    return 8 * (len(operator.slopes) + 1), abs(operator.anchor) + steep * (reach + far) + far, reach + far


def _image(operator: Operator, ends: Range) -> Range:
    """The range of a relaxed node's value: exactly where that is computed without rounding, else outside of it."""
    if isinstance(operator, Smooth):
        return operator.enclosure(*ends, torch.zeros_like(ends[0]))
    assert isinstance(operator, Activation | Maximum)
    return operator.interval(*ends)


def _outside(operator: Smooth, ends: Range, lines: Lines) -> Tensor:
    """How far a smooth function can be outside its lines; NaN where that is not known."""
    least, most = operator.enclosure(*ends, lines.lower_slope)
    if not lines.parallel:
        _, most = operator.enclosure(*ends, lines.upper_slope)
    assert lines.lower_intercept is not None
    return torch.maximum(lines.lower_intercept - least, most - lines.upper_intercept).clamp(min=0)


def magnitude_of_constant(operator: Affine, shapes: tuple[tuple[int, ...], ...], like: Tensor) -> Tensor:
    """The sum of the magnitudes of the terms that an operator's constant is computed from, [1, *shape]."""
    if isinstance(operator, BatchNorm):
        still = like.new_zeros((1, *shapes[0]))
        ends = (operator.mean, operator.bias)
        terms = [None if end is None else end.abs().reshape(-1, *(1,) * (len(shapes[0]) - 1)) for end in ends]
        scaled = still if terms[0] is None else operator.magnitude(still + terms[0])
        return scaled if terms[1] is None else scaled + terms[1]
    return operator.constant(shapes, like).abs()
