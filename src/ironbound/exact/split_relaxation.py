"""The relaxed network of one example as a search sees it: matrices between its open neurons, shared by all subproblems.

A subproblem of branch and bound is no more than a sign per neuron that is split, and multipliers: nothing of the
network is carried backward again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ironbound.bounding.alpha import AlphaState, alpha_state, output_rows
from ironbound.bounding.alpha_dual import Ascent, Level
from ironbound.bounding.alpha_rows import Functionals
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS
from ironbound.exact.block_maps import BlockMap, places
from ironbound.exact.query import Clauses, Query
from ironbound.exact.split_cuts import Cuts, no_cuts
from ironbound.exact.split_rows import ClauseRows
from ironbound.ops.piecewise import PiecewiseLinear

Line = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Relaxation:
    """Rows of clauses, seen from the open neurons of one example, which are columns in the order of the levels.

    Attributes:
        levels: the columns of each level.
        above: what neurons above each level read of it, [columns above, columns of the level].
        input: what each neuron reads of the input, [columns, input elements].
        constant: [columns].
        lower, upper: lines (slope, slope step, intercept, intercept step) that slopes t choose, each [columns].
        starts: slopes t to begin with, each [columns].
        knot: where a neuron that can be split has its kink, [columns]; 0 elsewhere.
        splittable: which neurons can be split, bool [columns].
        low, high: bounds of what each neuron reads, [columns]; infinite where it cannot be split.
        nodes, neurons: the relaxed node of each column and the flat index of the neuron in it, int64 [columns].
        place, input_place: the region of its map or image that each column, each input element lies in, int64.
        sets: of the region, with flat radius and middle [1, input elements or 1].
        rows: what is bounded.
        cuts: that hold everywhere.
    """

    levels: tuple[slice, ...]
    above: tuple[Tensor, ...]
    input: Tensor
    constant: Tensor
    lower: Line
    upper: Line
    starts: tuple[Tensor, Tensor]
    knot: Tensor
    splittable: Tensor
    low: Tensor
    high: Tensor
    nodes: Tensor
    neurons: Tensor
    place: Tensor
    input_place: Tensor
    sets: tuple[tuple[float, Tensor, Tensor], ...]
    rows: ClauseRows
    cuts: Cuts

    @property
    def width(self) -> int:
        """The number of open neurons."""
        return len(self.constant)

    @cached_property
    def input_map(self) -> BlockMap:
        """`input` as a map."""
        return BlockMap(self.input, self.place, self.input_place)

    @cached_property
    def maps(self) -> tuple[BlockMap, ...]:
        """`above` as maps."""
        pairs = zip(self.levels, self.above, strict=True)
        return tuple(BlockMap(above, self.place[level.stop :], self.place[level]) for level, above in pairs)

    def to(self, dtype: torch.dtype) -> Relaxation:
        """The same numbers in another floating point type."""

        def one(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(one(part) for part in value)
            if isinstance(value, (Cuts, ClauseRows)):
                return value.to(dtype)
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        return Relaxation(**{field.name: one(getattr(self, field.name)) for field in fields(self)})

    def clauses(self, kept: Tensor) -> Relaxation:
        """The same network with some of its clauses, by int64 [clauses kept], ascending; they are numbered anew."""
        return replace(self, rows=self.rows.take(kept))


def relaxed(query: Query, ascent: Ascent | None, memory: int | None) -> Relaxation:
    """Bounds every layer and puts the open neurons' maps together.

    Args:
        query: the network, the region and the clauses.
        ascent: how the slopes of the intermediate bounds are chosen; None: those of `dual` and `crown`.
        memory: bytes that the rows of one step may take, or None.

    Returns:
        The relaxed network.
    """
    known = [METHODS[name](query.graph, query.region, memory).layers() for name in ("dual", "crown")]
    return of_state(alpha_state(query.graph, query.region, known, ascent, memory), query.clauses)


def of_state(state: AlphaState, clauses: Clauses) -> Relaxation:
    """The relaxation of one example, from its open neurons' functionals.

    Args:
        state: relaxations of every node.
        clauses: rows to bound.

    Returns:
        The relaxed network.
    """
    between = state.between()
    like = state.region.center
    first, levels = 0, []
    for level in between.levels:
        levels.append(slice(first, first + level.lower[0].shape[-1]))
        first = levels[-1].stop
    knots, splittable, nodes, neurons, place, ends = [], [], [], [], [], []
    for level, columns in zip(between.levels, levels, strict=True):
        knot, can = _kink(state, level)
        width = columns.stop - columns.start
        ends.append(
            _ends(state, level) if can else (like.new_full((width,), -torch.inf), like.new_full((width,), torch.inf))
        )
        knots.append(like.new_full((width,), knot))
        splittable.append(torch.full((width,), can, device=like.device))
        nodes.append(torch.full((width,), level.node, device=like.device))
        neurons.append(state.opened[level.node].neurons[0])
        place.append(places(state.graph.nodes[level.node].shape).to(like.device)[neurons[-1]])
    outputs = clauses.outputs.reshape(-1, *state.graph.output_shape)
    everyone = torch.zeros(len(outputs), dtype=torch.int64, device=like.device)

    def joined(name: str) -> tuple[Tensor, ...]:
        sides = zip(*(getattr(level, name) for level in between.levels), strict=True)
        found = tuple(torch.cat([part[0, 0] for part in parts]) for parts in sides)
        return found or (like.new_zeros(0),) * (2 if name == "starts" else 4)

    def flat(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=like.device)

    regions = flat(place, torch.int64), places(tuple(like.shape[1:])).to(like.device)
    return Relaxation(
        tuple(levels),
        tuple(level.above[0] for level in between.levels),
        between.input[0],
        between.constant[0],
        joined("lower"),  # type: ignore[arg-type]
        joined("upper"),  # type: ignore[arg-type]
        joined("starts"),  # type: ignore[arg-type]
        flat(knots, like.dtype),
        flat(splittable, torch.bool),
        flat([low for low, _ in ends], like.dtype),
        flat([high for _, high in ends], like.dtype),
        flat(nodes, torch.int64),
        flat(neurons, torch.int64),
        *regions,
        tuple((dual, radius[0], middle[0]) for dual, radius, middle in between.sets),
        _rows(output_rows(state, DenseRows(outputs, everyone)), clauses, [level.node for level in between.levels]),
        no_cuts(*regions, like),
    )


def _rows(rows: Functionals, clauses: Clauses, nodes: list[int]) -> ClauseRows:
    """The rows of clauses, with the columns of the nodes one after another."""
    parts = [rows.parts[node] for node in nodes]
    return ClauseRows(
        torch.cat(parts, 1) if parts else rows.input[:, :0],
        rows.input if clauses.inputs is None else rows.input + clauses.inputs,
        rows.constant + clauses.constant,
        clauses.clause,
        clauses.best(clauses.guard),
    )


def _kink(state: AlphaState, level: Level) -> tuple[float, bool]:
    """The kink of a level's neurons, and whether they can be split: convex, and linear on both sides of one kink."""
    operator = state.graph.nodes[level.node].operator
    if not isinstance(operator, PiecewiseLinear) or len(operator.knots) != 1:
        return 0.0, False
    return operator.knots[0], operator.slopes[0] < operator.slopes[1]


def _ends(state: AlphaState, level: Level) -> tuple[Tensor, Tensor]:
    """Bounds of what a level's neurons read, each [width]."""
    neurons = state.opened[level.node].neurons[0]
    low, high = (end.flatten()[neurons] for end in state.layers[level.node])
    return low, high
