"""The backward walk: linear functionals of one node, carried through the relaxed network down to the input.

This is the dual network of Wong & Kolter (2018), Theorem 1, run for a flat list of rows: nu_hat = W^T nu and
nu = slope * nu_hat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
Visit = Callable[[int, Rows, bool], Rows | None]


@dataclass(frozen=True, eq=False)
class Band:
    """Parallel lines seen from their middle: f(z) lies within slope * z + middle ± gap, element by element.

    Attributes:
        slope, middle, gap: each [batch, *shape].
    """

    slope: Tensor
    middle: Tensor
    gap: Tensor

    def channels(self, kept: Tensor) -> Band:
        """The band of some channels, int64 [channels kept]."""
        return Band(*(part.index_select(1, kept) for part in (self.slope, self.middle, self.gap)))

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


def descend(graph: Graph, bands: Mapping[int, Band], start: int, rows: Rows, visit: Visit) -> None:
    """Carries functionals of node `start` down to the input, through lines that are parallel.

    Args:
        graph: the network.
        bands: the parallel relaxation of every relaxed node below `start`.
        start: the node that the rows read.
        rows: the functionals.
        visit: called at every relaxed node on the way and last at the input (0) with the functionals of its value, and
            whether nothing else is on its way; it returns the functionals to go on with, or None to stop.
    """
    pending: dict[int, Rows] = {start: rows}
    for index in range(start, -1, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        if isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            parts = current.pull_affine(node.operator, shapes)
        else:
            current = visit(index, current, not pending)
            if current is None or index == 0:
                return
            parts = (current.scaled(bands[index].slope),)
        for source, part in zip(node.inputs, parts, strict=True):
            pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]


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
        known: nodes at which the walk stops, with centre and radius of their values, each [batch, *shape].

    Returns:
        [rows].
    """
    total, at_input = to_input(graph, lines, region, start, rows, known)
    if at_input is None:
        return total
    down, _ = reach(at_input, region.sets())
    return total + at_input.dot(region.center) - down


def to_input(
    graph: Graph, lines: Mapping[int, Lines], region: Region, start: int, rows: Rows, known: Mapping[int, Range]
) -> tuple[Tensor, Rows | None]:
    """The walk of `lower_bound` up to the input: there each functional is above a linear function of the input.

    Args:
        graph: the network.
        lines: the relaxation of every relaxed node below `start` that is not in `known`.
        region: the inputs.
        start: the node that the rows read.
        rows: the functionals.
        known: nodes at which the walk stops, with centre and radius of their values, each [batch, *shape].

    Returns:
        Constants [rows], and functionals of the input, or None where the walk stopped above it.
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
            center, radius = known[index]
            total = total + current.dot(center) - current.norm(Set(1, radius))
        elif index == 0:
            return total, current
        elif isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            total = total + current.dot(node.operator.constant(shapes, region.center))
            for source, part in zip(node.inputs, current.pull_affine(node.operator, shapes), strict=True):
                push(source, part)
        else:
            pull = current.pull_lines(lines[index], isinstance(node.operator, Maximum))
            total = total + pull.lower
            push(node.inputs[0], pull.rows)  # type: ignore[arg-type]
    return total, None
