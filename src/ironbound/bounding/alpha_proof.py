"""Bounds of `alpha` that are proofs: the slopes that an ascent has found, walked again with every rounding paid for.

Slopes are numbers, whatever rounding did while they were sought: the walk takes them as they are, on lines moved apart
by the ledger, and row by row, because each row has slopes of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ironbound.bounding.alpha_rows import OpenLayer, choices, neuron_rows
from ironbound.bounding.backward import Range, lower_bound
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import chunk_length, in_chunks
from ironbound.bounding.rounding import Ledger, moved_apart
from ironbound.bounding.spread import row_bytes
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Lines
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region

_COPIES = 6  # tensors of the size of a relaxed node's value that a row takes: its lines, and how they are made


@dataclass(frozen=True, eq=False)
class _Relaxation:
    """A relaxed node: what closed neurons do, the room that rounding needs, and the open neurons.

    `lines` are those at t = 0: slope and intercept of the lower one, then of the upper one.
    """

    lines: tuple[Tensor, Tensor, Tensor, Tensor]
    room: Tensor
    layer: OpenLayer


@dataclass(frozen=True, eq=False)
class Proof:
    """What is proved of a batch of regions, filled bottom up beside the relaxed network that slopes are sought in.

    Attributes:
        graph: the network.
        region: the inputs.
        ledger: the account of rounding.
        budget: bytes for the rows of one chunk.
        relaxed: by relaxed node.
    """

    graph: Graph
    region: Region
    ledger: Ledger
    budget: int | None
    relaxed: dict[int, _Relaxation] = field(default_factory=dict)

    def enter(self, index: int, layer: OpenLayer, ends: Range) -> None:
        """Enters a relaxed node.

        Args:
            index: of the node.
            layer: its open neurons, on `ends`.
            ends: proved bounds of what it reads.
        """
        operator = self.graph.nodes[index].operator
        if isinstance(operator, Maximum):
            lines = operator.lines(*ends)
            room = self.ledger.room(index, ends, (lines,))
        else:
            assert isinstance(operator, Activation)
            lines, last = choices(operator, *ends)
            room = self.ledger.room(index, ends, (lines, last))
        below = torch.zeros_like(lines.upper_intercept) if lines.lower_intercept is None else lines.lower_intercept
        parts = lines.lower_slope, below, lines.upper_slope, lines.upper_intercept
        self.relaxed[index] = _Relaxation(parts, room, layer)

    def neurons(self, target: int, which: Tensor, slopes: dict[int, Tensor]) -> Range:
        """Bounds of single neurons.

        Args:
            target: the node.
            which: flat indices into its value [batch, *shape], int64 [rows].
            slopes: t by relaxed node, those of the lower bounds and then those of the upper ones, [2 rows, width].

        Returns:
            Lower and upper bounds, [rows].
        """
        size, like = self.graph.nodes[target].size, self.region.center
        sides = [{node: t.chunk(2)[side] for node, t in slopes.items()} for side in (0, 1)]

        def work(piece: slice) -> Range:
            part = which[piece]
            found, start, constant = neuron_rows(self.graph, target, part % size, part // size, like)
            rows = found.dense()
            flipped = DenseRows(-rows.coefficients, rows.example)
            below, minus_above = (
                self._walk(start, one, {node: t[piece] for node, t in side.items()})
                for one, side in zip((rows, flipped), sides, strict=True)
            )
            below, above = self.ledger.apart(target, (below + constant, constant - minus_above), part)
            return torch.minimum(below, above), torch.maximum(below, above)

        return in_chunks(work, len(which), self._length(target))

    def outputs(self, rows: DenseRows, slopes: dict[int, Tensor]) -> Tensor:
        """Lower bounds of functionals of the output.

        Args:
            rows: the functionals.
            slopes: t by relaxed node, [rows, width].

        Returns:
            [rows].
        """
        last = len(self.graph.nodes) - 1

        def work(piece: slice) -> Tensor:
            part = DenseRows(rows.coefficients[piece], rows.example[piece])
            found = self._walk(last, part, {node: t[piece] for node, t in slopes.items()})
            return self.ledger.below(last, part, found)

        return in_chunks(work, len(rows), self._length(last))

    def _length(self, start: int) -> int:
        """How many rows of a node to walk at a time."""
        center = self.region.center
        held = _COPIES * center.element_size() * sum(self.graph.nodes[node].size for node in self.relaxed)
        each = row_bytes(self.graph, start, center.element_size()) + held
        return chunk_length(each, self.budget, center.device)

    def _walk(self, start: int, rows: DenseRows, slopes: dict[int, Tensor]) -> Tensor:
        """The bounds of a walk as computed, [rows]; for it, each row is an example of its own."""
        lines = {node: self._lines(one, rows.example, slopes.get(node)) for node, one in self.relaxed.items()}
        own = DenseRows(rows.coefficients, torch.arange(len(rows), device=rows.example.device))
        return lower_bound(self.graph, lines, self.region[rows.example], start, own, {})

    def _lines(self, one: _Relaxation, example: Tensor, t: Tensor | None) -> Lines:
        """The lines of every row, [rows, *shape], with its slopes t [rows, width]."""
        parts = [part.index_select(0, example) for part in one.lines]
        if t is not None:
            row, slot = one.layer.valid[example].nonzero(as_tuple=True)
            place = row, one.layer.neurons[example[row], slot]
            own, chosen = (example[row], slot), t[row, slot].clamp(0, 1)  # no line is valid beyond; NaN stays NaN
            low, high = one.layer.choice.lower, one.layer.choice.upper
            ways = ((low[0], low[1]), (low[2], low[3]), (high[0], high[1]), (high[2], high[3]))
            parts = [
                part.flatten(1).index_put(place, begin[own] + chosen * step[own]).reshape(part.shape)
                for part, (begin, step) in zip(parts, ways, strict=True)
            ]
        return moved_apart(Lines(*parts), one.room.index_select(0, example))
