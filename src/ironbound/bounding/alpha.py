"""The dual bound maximised over its slopes ("alpha"), intermediate bounds too.

Layer by layer: the neurons that a first method leaves open are carried to the input once, and both of their bounds are
raised over slopes of their own; what closes leaves the network, the rest are the open neurons of the layers above.
Own slopes for every row, because between open neurons (`alpha_rows.py`) a row costs little more than its slopes do, and
because the relaxation is monotone in its intermediate bounds: each bound's own optimum is best for all that follow.

Source: Wong & Kolter (2017), arXiv v1, section 3.2, equations (22) to (25), and section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import Ascent, Network, maximised, network, value_of
from ironbound.bounding.alpha_local import local, reached
from ironbound.bounding.alpha_proof import Proof
from ironbound.bounding.alpha_rows import (
    Functionals,
    OpenLayer,
    carried,
    joined_rows,
    maximum_rows,
    met,
    neuron_rows,
    open_layer,
    open_maximum,
    shifted,
)
from ironbound.bounding.backward import Range
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import DEFAULT_BUDGET, chunk_length
from ironbound.bounding.rounded_intervals import intervals_for
from ironbound.bounding.rounding import Arithmetic, Ledger
from ironbound.bounding.spread import row_bytes
from ironbound.errors import MemoryLimitError
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region

_COPIES = 12  # tensors of the size of a row's input that an iteration holds at a time


@dataclass(frozen=True, eq=False)
class AlphaState:
    """The relaxed network for a batch of regions, seen from its open neurons.

    Attributes:
        graph: the network.
        region: the inputs.
        ascent: how slopes are chosen.
        budget: bytes for the rows of one chunk, or None.
        opened: the relaxed nodes.
        maps: functionals of their open neurons.
        layers: bounds (lower, upper) of the value that each relaxed node reads.
        proof: what proves the bounds, where their rounding shall be paid for; else they are as computed.
    """

    graph: Graph
    region: Region
    ascent: Ascent
    budget: int | None
    opened: dict[int, OpenLayer]
    maps: dict[int, Functionals]
    layers: dict[int, Range]
    proof: Proof | None = None

    def between(self) -> Network:
        """The network between the open neurons found so far."""
        return network(self.opened, self.maps, self.region)


def alpha_state(
    graph: Graph,
    region: Region,
    known: list[dict[int, Range]],
    ascent: Ascent | None,
    budget: int | None,
    arithmetic: Arithmetic | None = None,
) -> AlphaState:
    """Relaxations of every node, bottom up, with optimised bounds.

    The inputs of a maximum keep the bounds of the methods before.

    Args:
        graph: the network.
        region: the inputs.
        known: sound bounds of what every relaxed node reads, by the node's index; the first decide which neurons are
            worth an ascent, all are met with each other and with intervals.
        ascent: how slopes are chosen for the neurons' bounds; None: the known bounds are kept as they are.
        budget: bytes for the rows of one chunk.
        arithmetic: what the bounds are proofs for, as the known ones are; None: they are as computed.

    Returns:
        The network, ready to bound functionals of its output.
    """
    intervals, _ = intervals_for(graph, region, arithmetic)
    ledger = Ledger.of(graph, region, arithmetic)
    proof = None if ledger is None else Proof(graph, region, ledger, budget)
    state = AlphaState(graph, region, ascent or Ascent(0), budget, {}, {}, {}, proof)
    for index, node in enumerate(graph.nodes[1:], start=1):
        operator = node.operator
        if isinstance(operator, Affine):
            if ledger is not None:
                ledger.affine(index)
            continue
        source = node.inputs[0]
        low, high = intervals[source].ends()
        for layers in known:
            low, high = met((low, high), layers[index])
        if isinstance(operator, Maximum):
            state.opened[index] = open_maximum(operator, low, high)
            rows = maximum_rows(state.opened[index], graph.nodes[source].shape)
            functionals = _functionals(state, source, len(rows), lambda piece, rows=rows: (rows.part(piece), None))
        else:
            assert isinstance(operator, Activation)
            (low, high), functionals = _activation(state, index, operator, (low, high), ascent is not None)
        state.layers[index] = (low, high)
        if proof is not None:
            proof.enter(index, state.opened[index], (low, high))
        if len(functionals):
            state.maps[index] = functionals
    return state


def _activation(
    state: AlphaState, index: int, operator: Activation, ends: Range, optimise: bool
) -> tuple[Range, Functionals]:
    """Bounds of what an activation reads, its layer, and the functionals of its open neurons."""
    source = state.graph.nodes[index].inputs[0]
    size = state.graph.nodes[source].size
    like = state.region.center
    with torch.no_grad():
        position = torch.nonzero(~operator.linear_on(*ends).flatten()).squeeze(1)

    def unit(piece: slice) -> tuple:
        part = position[piece]
        rows, start, constant = neuron_rows(state.graph, source, part % size, part // size, like)
        return rows, (start, constant)

    functionals = _functionals(state, source, len(position), unit)
    if optimise and len(position) and state.maps:
        values, slopes = optimised(state, functionals, both=True)
        below, above = sides_of(values)
        if state.proof is not None:
            below, above = state.proof.neurons(source, position, by_node(state, slopes))
        low, high = (end.flatten() for end in ends)
        low = low.index_put((position,), torch.maximum(low[position], below)).reshape(ends[0].shape)
        high = high.index_put((position,), torch.minimum(high[position], above)).reshape(ends[1].shape)
        ends = torch.minimum(low, high), torch.maximum(low, high)
    layer = open_layer(operator, *ends)
    state.opened[index] = layer
    with torch.no_grad():
        left = torch.nonzero(~operator.linear_on(*ends).flatten()[position]).squeeze(1)
    return ends, functionals if len(left) == len(position) else functionals.take(left)


def _functionals(state: AlphaState, target: int, count: int, unit: Callable[[slice], tuple]) -> Functionals:
    """Carries `count` functionals of a node down, some at a time."""
    graph, like = state.graph, state.region.center
    if count == 0:
        parts = {node: like.new_zeros((0, layer.valid.shape[1])) for node, layer in state.opened.items()}
        nobody = torch.zeros(0, dtype=torch.int64, device=like.device)
        return Functionals(nobody, parts, like.new_zeros((0, graph.nodes[0].size)), like.new_zeros(0))
    length = chunk_length(row_bytes(graph, target, like.element_size()), state.budget, like.device)
    pieces = []
    for first in range(0, count, length):
        rows, begun = unit(slice(first, min(first + length, count)))
        start, constant = (target, None) if begun is None else begun
        found = carried(graph, state.opened, start, rows, like)
        pieces.append(found if constant is None else shifted(found, constant))
    return joined_rows(pieces)


def sides_of(values: Tensor) -> Range:
    """Lower and upper bounds of rows, from lower bounds of the rows and then of their negatives."""
    below, minus_above = values.chunk(2)
    return below, -minus_above


def by_node(state: AlphaState, slopes: list[Tensor]) -> dict[int, Tensor]:
    """The slopes of each level by its relaxed node."""
    return dict(zip(sorted(state.maps), slopes, strict=True))


def optimised(
    state: AlphaState, rows: Functionals, enough: Tensor | None = None, both: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Lower bounds of rows with the best slopes found for each.

    Args:
        state: relaxations of all nodes below.
        rows: the functionals, as seen from the open neurons.
        enough: see `maximised`.
        both: whether the negatives of the rows follow the rows.

    Returns:
        The bounds [rows], with gradients where they are on, and the slopes of each level, [rows, width].
    """
    with torch.no_grad():
        net = network(state.opened, {node: part.detached() for node, part in state.maps.items()}, state.region)
        plain = rows.detached()
        each = _COPIES * rows.input.element_size() * (rows.input.shape[1] + net.input.shape[1])
        pieces = _pieces(rows.example, each * (2 if both else 1), state.budget)
        found = [
            _ascended(net, plain.take(piece), state, both, None if enough is None else enough[piece])
            for piece in pieces
        ]
        order = torch.argsort(torch.cat(pieces))
        if both:
            order = torch.cat([_sides(pieces, 0)[order], _sides(pieces, 1)[order]])
        best = torch.cat([part for part, _ in found])[order]
        chosen = [torch.cat(column)[order] for column in zip(*(kept for _, kept in found), strict=True)]
    if torch.is_grad_enabled():
        best = value_of(state.between(), joined_rows([rows, rows.flipped()]) if both else rows, chosen)
    return best, chosen


def _sides(pieces: list[Tensor], side: int) -> Tensor:
    """Where the results of one side stand when every piece returns one side after the other."""
    places, first = [], 0
    for piece in pieces:
        places.append(torch.arange(len(piece), device=piece.device) + first + side * len(piece))
        first += 2 * len(piece)
    return torch.cat(places)


def _ascended(
    net: Network, rows: Functionals, state: AlphaState, both: bool, enough: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    masks = reached(net, rows) if both else None
    if masks is None:
        return maximised(net, joined_rows([rows, rows.flipped()]) if both else rows, state.ascent, enough)
    small = local(net, rows, masks)
    best, kept = maximised(small.network, joined_rows([small.rows, small.rows.flipped()]), state.ascent, enough)
    sides = [small.spread(list(half), net) for half in zip(*(t.chunk(2) for t in kept), strict=True)]
    return best, [torch.cat(pair) for pair in zip(*sides, strict=True)]


def _pieces(example: Tensor, each: int, budget: int | None) -> list[Tensor]:
    """Cuts rows so that as many of every example fall into each piece; int64 indices."""
    everyone = torch.arange(len(example), device=example.device)
    limit = DEFAULT_BUDGET if budget is None else budget
    if example.device.type == "cpu":
        limit = min(limit, 64 << 20)
    count = -(-len(example) * each // limit)
    if count <= 1:
        return [everyone]
    _, local, counts = torch.unique(example, return_inverse=True, return_counts=True)
    order = torch.argsort(local, stable=True)
    first = counts.cumsum(0) - counts
    slot = torch.empty_like(local)
    slot[order] = everyone - first[local[order]]
    group = slot * count // counts.max()
    return [torch.nonzero(group == number).squeeze(1) for number in range(count) if bool((group == number).any())]


def output_rows(state: AlphaState, rows: DenseRows) -> Functionals:
    """Functionals of the network's output as seen from the open neurons."""
    last = len(state.graph.nodes) - 1
    return _functionals(state, last, len(rows), lambda piece: (replace(rows, layout=None).part(piece), None))


def groups(
    graph: Graph, region: Region, known: list[dict[int, Range]], budget: int | None, examples: Tensor
) -> list[Tensor]:
    """Cuts a batch so that the maps of the open neurons fit into memory, one example at the least.

    Args:
        graph: the network.
        region: the inputs.
        known: bounds of what every relaxed node reads.
        budget: bytes, or None for the default.
        examples: numbers of examples, int64.

    Returns:
        The numbers in pieces.

    Raises:
        MemoryLimitError: one example takes more than the budget and more than the default.
    """
    with torch.no_grad():
        count = torch.zeros(len(examples), dtype=torch.int64, device=examples.device)
        for node, (low, high) in known[0].items():
            operator = graph.nodes[node].operator
            if isinstance(operator, Activation):
                count += (~operator.linear_on(low, high)).flatten(1).sum(1)[examples]
            else:
                count += 2 * graph.nodes[node].size
    most = int(count.max()) if len(count) else 0
    # the maps as rows, and put together as a block
    each = max(1, 2 * region.center.element_size() * most * (most + region.center[0].numel()))
    limit = DEFAULT_BUDGET if budget is None else budget
    if each > max(limit, DEFAULT_BUDGET):
        raise MemoryLimitError(
            f"the maps of {most} open neurons take {each >> 20} MiB for one example, more than the budget of "
            f"{max(limit, DEFAULT_BUDGET) >> 20} MiB; give more memory or use a cheaper method"
        )
    return list(examples.split(max(1, limit // each)))


def proof_threshold(graph: Graph, region: Region) -> Tensor:
    """Margins above which no more work is worth it: well above the rounding that a verdict has to allow for.

    Args:
        graph: a network with outputs [batch, classes], or of any other shape.
        region: the inputs.

    Returns:
        [batch].
    """
    share = 3e-4 if region.dtype == torch.float32 else 1e-8
    with torch.no_grad():
        return share * (1 + graph(region.center).flatten(1).abs().amax(1))
