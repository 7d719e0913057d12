"""The sieve per kernel position: cheap radii for the neurons of a convolution on a convolution of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.bounding.backward import unit_rows
from ironbound.bounding.functionals import row_norm
from ironbound.bounding.memory import chunk_length
from ironbound.bounding.state import ParallelState
from ironbound.bounding.windows import Windows, is_windowed
from ironbound.ops.affine import Convolution
from ironbound.ops.operator import Activation

_SIEVE_ROWS = 64  # fewer open rows than this are not worth a second sieve


def position_sieve(state: ParallelState, target: int, index: Tensor, operator: Activation) -> tuple[Tensor, Tensor]:
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
    taps = first.operator.weight.flatten(1)
    room = band.gap
    if (
        state.ledger is not None
    ):  # pieces read the whole kernel and the largest radius: more terms than the walk pays for
        reads = taps.abs().sum(1).reshape(1, -1, 1, 1) * largest.reshape(-1, 1, 1, 1)
        room = room + state.ledger.whole * band.slope.abs() * reads
    widened = node.operator.magnitude(room).flatten()
    center = value.center.flatten()
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
        outer = state.outward(target, reach, part)
        kept.append(part[~operator.linear_on(center[part] - outer, center[part] + outer)])
        reaches.append(reach)
    radius = value.radius.flatten().index_put((index,), torch.cat(reaches)).reshape(value.radius.shape)
    return torch.cat(kept), radius
