"""Functionals seen from the open neurons: what a walk leaves behind when it goes through closed neurons only.

Between open neurons a relaxed network is linear, and that part does not depend on the slopes that are being chosen. So
each functional is carried to the input once; what it reads of every open neuron on the way is kept. Afterwards a bound
for any slopes is a few small matrix products (`alpha_dual.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.bounding.backward import Range, Rows, unit_rows
from ironbound.bounding.functionals import DenseRows
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine, Lines
from ironbound.ops.piecewise import Maximum, PiecewiseLinear


@dataclass(frozen=True, eq=False)
class Choice:
    """The lines that slopes t in [0, 1] choose, neuron by neuron; each tensor [examples, width].

    Positive coefficients take the line (slope + t * slope_step) z + intercept + t * intercept_step of `lower`, negative
    ones that of `upper`, each a tuple (slope, slope_step, intercept, intercept_step).

    Attributes:
        lower, upper: the lines.
        starts: slopes t to begin with: the parallel line's, the adaptive line's.
    """

    lower: tuple[Tensor, Tensor, Tensor, Tensor]
    upper: tuple[Tensor, Tensor, Tensor, Tensor]
    starts: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class OpenLayer:
    """One relaxed node: what its closed neurons do, and which are open.

    Attributes:
        slope: of the closed neurons, 0 at the open ones, [batch, *shape] (with one more axis for a maximum).
        intercept: of the closed neurons, 0 at the open ones, [batch, *shape], or None for 0.
        neurons: flat indices of the open neurons, int64 [batch, width], filled up with 0.
        valid: which of them are no filling, bool [batch, width].
        choice: lines of the open neurons.
        window: coefficients of the two functionals of a maximum's input, [batch, width, window]; else None.
    """

    slope: Tensor
    intercept: Tensor | None
    neurons: Tensor
    valid: Tensor
    choice: Choice
    window: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Functionals:
    """Rows as seen from the open neurons.

    Attributes:
        example: int64 [rows].
        parts: coefficients at the open neurons, [rows, width], by relaxed node.
        input: coefficients of the input, [rows, input elements].
        constant: [rows].
    """

    example: Tensor
    parts: dict[int, Tensor]
    input: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.example)

    def take(self, index: Tensor) -> Functionals:
        """Some of the rows, by int64 [rows kept]."""
        parts = {node: part[index] for node, part in self.parts.items()}
        return Functionals(self.example[index], parts, self.input[index], self.constant[index])

    def flipped(self) -> Functionals:
        """The negative of every row."""
        parts = {node: -part for node, part in self.parts.items()}
        return Functionals(self.example, parts, -self.input, -self.constant)

    def detached(self) -> Functionals:
        """The same values without gradients."""
        parts = {node: part.detach() for node, part in self.parts.items()}
        return Functionals(self.example, parts, self.input.detach(), self.constant.detach())


def joined_rows(pieces: list[Functionals]) -> Functionals:
    """Functionals one after another."""
    if len(pieces) == 1:
        return pieces[0]
    parts = {node: torch.cat([piece.parts[node] for piece in pieces]) for node in pieces[0].parts}
    return Functionals(
        torch.cat([piece.example for piece in pieces]),
        parts,
        torch.cat([piece.input for piece in pieces]),
        torch.cat([piece.constant for piece in pieces]),
    )


def padded_index(is_open: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of the true entries of each line of a bool [batch, size], filled up with 0.

    Args:
        is_open: bool [batch, size].

    Returns:
        Indices, int64 [batch, width], and which of them are no filling, bool [batch, width].
    """
    count = is_open.sum(1)
    width = int(count.max()) if len(count) else 0
    valid = torch.arange(width, device=is_open.device) < count.unsqueeze(1)
    index = torch.zeros(valid.shape, dtype=torch.int64, device=is_open.device)
    index[valid] = is_open.nonzero()[:, 1]
    return index, valid


def open_layer(operator: Activation, low: Tensor, high: Tensor) -> OpenLayer:
    """What an activation does on given bounds, with the lines that slopes can choose.

    The kink of ReLU, leaky ReLU or |z| supports every lower line between its two slopes (0 <= alpha <= 1 in equation
    (22)); other activations choose between their parallel and their adaptive lines and everything in between, which
    are lines too.

    Source: Wong & Kolter (2017), arXiv v1, equations (21) and (22).

    Args:
        operator: the activation.
        low: lower bounds of its input, [batch, *shape].
        high: upper bounds, likewise.

    Returns:
        The layer.
    """
    is_open = ~operator.linear_on(low, high)
    parallel, adaptive = operator.parallel_lines(low, high), operator.adaptive_lines(low, high)
    slope = torch.where(is_open, 0.0, parallel.lower_slope)
    intercept = None if parallel.lower_intercept is None else torch.where(is_open, 0.0, parallel.lower_intercept)
    neurons, valid = padded_index(is_open.flatten(1))

    def at(value: Tensor | None) -> Tensor:
        if value is None:
            return low.new_zeros(neurons.shape)
        return value.flatten(1).gather(1, neurons) * valid

    first, last = choices(operator, low, high)
    sides = []
    for side in ("lower", "upper"):
        begin, height = at(getattr(first, f"{side}_slope")), at(getattr(first, f"{side}_intercept"))
        end, top = at(getattr(last, f"{side}_slope")), at(getattr(last, f"{side}_intercept"))
        sides.append((begin, end - begin, height, top - height))
    ends = _kink_slopes(operator)
    if ends is None:
        zero = low.new_zeros(neurons.shape)
        starts = zero, torch.ones_like(zero)
    else:
        flat, steep = ends
        near, far = (((at(lines.lower_slope) - flat) / (steep - flat)).clamp(0, 1) for lines in (parallel, adaptive))
        starts = near, far
    return OpenLayer(slope, intercept, neurons, valid, Choice(sides[0], sides[1], starts))


def _kink_slopes(operator: Activation) -> tuple[float, float] | None:
    """The slopes left and right of a convex kink: those of ReLU, leaky ReLU and |z|; None for other activations."""
    if not isinstance(operator, PiecewiseLinear) or len(operator.knots) != 1:
        return None
    left, right = operator.slopes
    return (left, right) if left < right else None


def choices(operator: Activation, low: Tensor, high: Tensor) -> tuple[Lines, Lines]:
    """The lines of the slopes t = 0 and t = 1; those in between are their means. Closed neurons have one line.

    Args:
        operator: the activation.
        low: lower bounds of its input, [batch, *shape].
        high: upper bounds, likewise.

    Returns:
        Both, with slopes [batch, *shape].
    """
    parallel = operator.parallel_lines(low, high)
    ends = _kink_slopes(operator)
    if ends is None:
        return parallel, operator.adaptive_lines(low, high)
    assert isinstance(operator, PiecewiseLinear)
    is_open = ~operator.linear_on(low, high)
    knot, anchor = operator.knots[0], operator.anchor
    beside = torch.zeros_like(low) if parallel.lower_intercept is None else parallel.lower_intercept
    flat, steep = (
        Lines(
            torch.where(is_open, slope, parallel.lower_slope),
            torch.where(is_open, anchor - slope * knot, beside),
            parallel.upper_slope,
            parallel.upper_intercept,
        )
        for slope in ends
    )
    return flat, steep


def open_maximum(operator: Maximum, low: Tensor, high: Tensor) -> OpenLayer:
    """What a maximum does on given bounds. An open one is seen as two neurons, its lower and its upper line.

    Args:
        operator: the maximum.
        low: lower bounds of its input, [batch, *shape, window].
        high: upper bounds, likewise.

    Returns:
        The layer; its lines are fixed.
    """
    lines = operator.lines(low, high)
    assert lines.lower_intercept is not None
    same = (lines.lower_slope == lines.upper_slope).all(-1) & (lines.upper_intercept == lines.lower_intercept)
    slope = torch.where(same.unsqueeze(-1), lines.lower_slope, 0.0)
    neurons, valid = padded_index(~same.flatten(1))

    def at(value: Tensor) -> Tensor:
        return value.flatten(1).gather(1, neurons) * valid

    one = valid.to(low.dtype)
    zero = torch.zeros_like(one)
    nothing = torch.cat([zero, zero], 1)
    below = (torch.cat([one, zero], 1), nothing, torch.cat([at(lines.lower_intercept), zero], 1), nothing)
    above = (torch.cat([zero, one], 1), nothing, torch.cat([zero, at(lines.upper_intercept)], 1), nothing)
    index = neurons.unsqueeze(-1).expand(-1, -1, low.shape[-1])
    window = torch.cat([side.flatten(1, -2).gather(1, index) for side in (lines.lower_slope, lines.upper_slope)], 1)
    choice = Choice(below, above, (nothing, nothing))
    return OpenLayer(slope, None, neurons.repeat(1, 2), valid.repeat(1, 2), choice, window)


def carried(graph: Graph, layers: Mapping[int, OpenLayer], start: int, rows: Rows, like: Tensor) -> Functionals:
    """Carries functionals of node `start` to the input through closed neurons, and notes what they read of open ones.

    Args:
        graph: the network.
        layers: every relaxed node below `start`.
        start: the node that the rows read.
        rows: the functionals.
        like: a tensor of the dtype and on the device to use.

    Returns:
        The rows as seen from the open neurons.
    """
    pending: dict[int, Rows] = {start: rows}
    constant = like.new_zeros(len(rows))
    parts = {index: like.new_zeros((len(rows), layer.valid.shape[1])) for index, layer in layers.items()}
    result = like.new_zeros((len(rows), graph.nodes[0].size))
    for index in range(start, -1, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        if index == 0:
            result = current.dense().coefficients.flatten(1)
            continue
        if isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            constant = constant + current.dot(node.operator.constant(shapes, like))
            pulled = current.pull_affine(node.operator, shapes)
        else:
            layer = layers[index]
            parts[index] = _at_open(current, layer)
            if layer.intercept is not None:
                constant = constant + current.dot(layer.intercept)
            pulled = (_through_closed(current, layer),)
        for source, part in zip(node.inputs, pulled, strict=True):
            pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]
    return Functionals(rows.example, parts, result, constant)


def _through_closed(rows: Rows, layer: OpenLayer) -> Rows:
    if layer.window is None:
        return rows.scaled(layer.slope)
    dense = rows.dense()
    slope = layer.slope.index_select(0, dense.example)
    return DenseRows(dense.coefficients.unsqueeze(-1) * slope, dense.example)


def _at_open(rows: Rows, layer: OpenLayer) -> Tensor:
    """Coefficients at the open neurons of each row's example, [rows, width]; 0 at the filling."""
    dense = rows.dense().coefficients.flatten(1)
    return dense.gather(1, layer.neurons[rows.example]) * layer.valid[rows.example]


def neuron_rows(graph: Graph, target: int, neuron: Tensor, example: Tensor, like: Tensor) -> tuple[Rows, int, Tensor]:
    """One functional per neuron of a node.

    Args:
        graph: the network.
        target: index of the node.
        neuron: flat indices, int64 [rows].
        example: int64 [rows].
        like: a tensor of the dtype and on the device to use.

    Returns:
        The rows, the node that they read, and the constant that is left out where they begin lower, [rows].
    """
    rows, start = unit_rows(graph, target, neuron, example, like)
    if start == target:
        return rows, start, like.new_zeros(len(neuron))
    node = graph.nodes[target]
    assert isinstance(node.operator, Affine)
    shapes = tuple(graph.nodes[source].shape for source in node.inputs)
    return rows, start, node.operator.constant(shapes, like).expand(1, *node.shape).flatten()[neuron]


def maximum_rows(layer: OpenLayer, shape: tuple[int, ...]) -> DenseRows:
    """The functionals of a maximum's input that its open neurons stand for, example after example.

    Args:
        layer: of the maximum.
        shape: of the maximum's input, (*shape, window).

    Returns:
        One row per open neuron that is no filling.
    """
    assert layer.window is not None
    example, slot = layer.valid.nonzero(as_tuple=True)
    rows = layer.window.new_zeros((len(example), layer.slope[0].numel() // shape[-1], shape[-1]))
    neuron = layer.neurons[example, slot]
    rows = rows.index_put((torch.arange(len(example), device=rows.device), neuron), layer.window[example, slot])
    return DenseRows(rows.reshape(-1, *shape), example)


def shifted(rows: Functionals, constant: Tensor) -> Functionals:
    """The rows plus constants [rows]."""
    return replace(rows, constant=rows.constant + constant)


def met(first: Range, second: Range) -> Range:
    """The intersection of two enclosures; rounding may cross those of a constant, which are then put in order."""
    low, high = torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1])
    return torch.minimum(low, high), torch.maximum(low, high)
