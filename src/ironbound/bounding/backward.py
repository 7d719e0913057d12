"""The backward walk: linear functionals of one node, carried through the relaxed network down to the input.

This is the dual network of Wong & Kolter (2018), Theorem 1, run for a flat list of rows: nu_hat = W^T nu and
nu = slope * nu_hat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.windows import Windows, is_windowed, one_hot_windows, unit_windows
from ironbound.graph import Graph
from ironbound.ops.affine import Convolution, Linear
from ironbound.ops.operator import Affine, Lines
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region, Set

Rows = DenseRows | Windows
Range = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Band:
    """Parallel lines seen from their middle: f(z) lies within slope * z + middle ± gap, element by element.

    Attributes:
        slope, middle, gap: each [batch, *shape].
    """

    slope: Tensor
    middle: Tensor
    gap: Tensor

    @staticmethod
    def of(lines: Lines) -> Band:
        """The band of a parallel relaxation."""
        if lines.lower_intercept is None:
            half = lines.upper_intercept / 2
            return Band(lines.lower_slope, half, half)
        middle = (lines.lower_intercept + lines.upper_intercept) / 2
        return Band(lines.lower_slope, middle, (lines.upper_intercept - lines.lower_intercept) / 2)


def unit_rows(graph: Graph, target: int, neuron: Tensor, example: Tensor, like: Tensor) -> tuple[Rows, int]:
    """One functional per neuron of a node, begun one affine operator lower where that costs nothing.

    Args:
        graph: the network.
        target: index of the node.
        neuron: flat indices into the node's value, int64 [rows].
        example: the example of each row, int64 [rows].
        like: a tensor of the dtype and on the device to use.

    Returns:
        The rows, and the index of the node that they read.
    """
    node = graph.nodes[target]
    operator = node.operator
    if isinstance(operator, Linear) and len(node.shape) == 1:
        return DenseRows(operator.weight.index_select(0, neuron), example), node.inputs[0]
    if isinstance(operator, Convolution) and is_windowed(operator):
        shapes = (node.shape, graph.nodes[node.inputs[0]].shape)
        return unit_windows(operator, neuron, example, shapes), node.inputs[0]
    if len(node.shape) == 3:
        return one_hot_windows(like, neuron, example, node.shape), target
    rows = like.new_zeros((len(neuron), node.size))
    rows[torch.arange(len(neuron), device=neuron.device), neuron] = 1
    return DenseRows(rows.reshape(-1, *node.shape), example), target


def reach(rows: Rows, sets: tuple[Set, ...]) -> Range:
    """How far each functional of the input can fall below and rise above its value at the center.

    Over an intersection of sets the smallest reach of all of them holds.

    Args:
        rows: functionals of the input.
        sets: the sets whose intersection contains the region.

    Returns:
        (down, up), each [rows], >= 0.
    """
    down = up = None
    for part in sets:
        radius = rows.norm(part)
        middle = None if part.offset is None else rows.dot(part.offset)
        fall = radius if middle is None else radius - middle
        rise = radius if middle is None else radius + middle
        down = fall if down is None else torch.minimum(down, fall)
        up = rise if up is None else torch.minimum(up, rise)
    assert down is not None and up is not None
    return down, up


def spread(graph: Graph, bands: Mapping[int, Band], sets: tuple[Set, ...], start: int, rows: Rows) -> Range:
    """How far functionals of node `start` can fall below and rise above their value in the middle of all bands.

    The middle is the forward pass of the centre through slope * z + middle, so no constant term is carried here: one
    walk serves the lower and the upper bound (parallel slopes).

    Args:
        graph: the network.
        bands: the parallel relaxation of every relaxed node below `start`.
        sets: the region's sets, offsets relative to the centre that was passed forward.
        start: the node that the rows read.
        rows: the functionals.

    Returns:
        (down, up), each [rows], >= 0.
    """
    pending: dict[int, Rows] = {start: rows}
    total: Tensor | None = None
    down = up = None
    for index in range(start, -1, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        if index == 0:
            down, up = reach(current, sets)
        elif isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            for source, part in zip(node.inputs, current.pull_affine(node.operator, shapes), strict=True):
                pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]
        else:
            part, widened = current.spread(bands[index].gap, bands[index].slope)
            total = widened if total is None else total + widened
            source = node.inputs[0]
            pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]
    zero = rows.coefficients.new_zeros(len(rows))
    total = zero if total is None else total
    return total + (zero if down is None else down), total + (zero if up is None else up)


def lower_bound(
    graph: Graph, lines: Mapping[int, Lines], region: Region, start: int, rows: Rows, known: Mapping[int, Range]
) -> Tensor:
    """Lower bound of functionals of node `start`, with a line per sign (adaptive slopes); upper = -lower of -rows.

    Args:
        graph: the network.
        lines: the relaxation of every relaxed node below `start` that is not in `known`.
        region: the inputs.
        start: the node that the rows read.
        rows: the functionals.
        known: nodes at which the walk stops, with bounds of their values [batch, *shape].

    Returns:
        [rows].
    """
    pending: dict[int, Rows] = {start: rows}
    total = rows.coefficients.new_zeros(len(rows))

    def push(source: int, part: Rows) -> None:
        pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]

    for index in range(start, -1, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        if index in known:
            low, high = known[index]
            total = total + current.dot((low + high) / 2) - current.norm(Set(1, (high - low) / 2))
        elif index == 0:
            down, _ = reach(current, region.sets())
            total = total + current.dot(region.center) - down
        elif isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            total = total + current.dot(node.operator.constant(shapes, region.center))
            for source, part in zip(node.inputs, current.pull_affine(node.operator, shapes), strict=True):
                push(source, part)
        else:
            pull = current.pull_lines(lines[index], isinstance(node.operator, Maximum))
            total = total + pull.lower
            push(node.inputs[0], pull.rows)  # type: ignore[arg-type]
    return total
