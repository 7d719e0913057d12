"""`alpha` as a method: answers over a batch, cut into groups of examples, the best of it and of where it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ironbound.bounding.alpha import (
    AlphaState,
    alpha_state,
    by_node,
    groups,
    optimised,
    output_rows,
    proof_threshold,
    sides_of,
)
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.backward import Range
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.rounding import Arithmetic
from ironbound.graph import Graph
from ironbound.regions import Region

Answer = Callable[[DenseRows, bool], tuple[Tensor, Tensor | None]]


class Optimised:
    """Bounds of functionals of the output: the best of other methods and of an ascent over the slopes.

    Where only lower bounds are asked they are margins: a row that is proved is not worked on further, and the
    intermediate bounds are optimised only for the examples that the ascent over the last slopes leaves open.

    Args:
        graph: the network.
        region: the inputs.
        starts: the answers of other methods, and their bounds of what every relaxed node reads.
        ascent: how slopes are chosen.
        budget: bytes for the rows of one chunk.
        arithmetic: what the bounds are proofs for, as those of the other methods are; None: they are as computed.
    """

    def __init__(
        self,
        graph: Graph,
        region: Region,
        starts: list[tuple[Answer, dict[int, Range]]],
        ascent: Ascent,
        budget: int | None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        self.graph, self.region, self.ascent, self.budget = graph, region, ascent, budget
        self.arithmetic: Arithmetic | None = arithmetic
        self.answers = [answer for answer, _ in starts]
        self.known = [layers for _, layers in starts]
        self._layers: dict[int, Range] | None = None

    def layers(self) -> dict[int, Range]:
        """Bounds of what every relaxed node reads."""
        if self._layers is None:
            everyone = torch.arange(len(self.region), device=self.region.center.device)
            self._layers = _joined_layers([state.layers for _, state in self._states(everyone, self.ascent)])
        return self._layers

    def answer(self, rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        """Lower bounds of functionals, and with `both` upper bounds."""
        found = [answer(rows, both) for answer in self.answers]
        lower = torch.stack([low for low, _ in found]).amax(0)
        if not both:
            return self._raised(rows, lower), None
        upper = torch.stack([high for _, high in found if high is not None]).amin(0)
        layers = []
        everyone = torch.arange(len(self.region), device=self.region.center.device)
        for present, state in self._states(everyone, self.ascent):
            layers.append(state.layers)
            index, part = _rows_of(rows, present)
            if len(index):
                below, above = sides_of(_bounded(state, part, both=True))
                lower = lower.index_put((index,), torch.maximum(lower[index], below))
                upper = upper.index_put((index,), torch.minimum(upper[index], above))
        self._layers = _joined_layers(layers)
        return lower, upper

    def _raised(self, rows: DenseRows, lower: Tensor) -> Tensor:
        """Raises the margins that are not proved, first over their own slopes alone, then over all."""
        enough = proof_threshold(self.graph, self.region)[rows.example]
        for ascent in (None, self.ascent):
            left = torch.nonzero(~(lower > enough)).squeeze(1)
            if len(left) == 0:
                break
            some = rows.take(left)
            for present, state in self._states(torch.unique(some.example), ascent):
                inside, part = _rows_of(some, present)
                index = left[inside]
                better = _bounded(replace(state, ascent=self.ascent), part, enough[index])
                lower = lower.index_put((index,), torch.maximum(lower[index], better))
        return lower

    def _states(self, examples: Tensor, ascent: Ascent | None) -> Iterator[tuple[Tensor, AlphaState]]:
        """The networks of some examples, as many at a time as fit; int64 [examples], and their network."""
        for piece in groups(self.graph, self.region, self.known, self.budget, examples):
            known = [{node: (low[piece], high[piece]) for node, (low, high) in layers.items()} for layers in self.known]
            yield piece, alpha_state(self.graph, self.region[piece], known, ascent, self.budget, self.arithmetic)


def _bounded(state: AlphaState, rows: DenseRows, enough: Tensor | None = None, both: bool = False) -> Tensor:
    """Lower bounds of output rows, with `both` of their negatives after them; proofs where the state has to prove."""
    values, slopes = optimised(state, output_rows(state, rows), enough, both)
    if state.proof is None:
        return values
    if both:
        rows = DenseRows(torch.cat([rows.coefficients, -rows.coefficients]), rows.example.repeat(2))
    return state.proof.outputs(rows, by_node(state, slopes))


def _rows_of(rows: DenseRows, present: Tensor) -> tuple[Tensor, DenseRows]:
    """Which rows belong to some examples (ascending), and those rows, numbered by the examples' places."""
    place = torch.searchsorted(present, rows.example).clamp(max=len(present) - 1)
    index = torch.nonzero(present[place] == rows.example).squeeze(1)
    return index, DenseRows(rows.coefficients[index], place[index])


def _joined_layers(parts: list[dict[int, Range]]) -> dict[int, Range]:
    return {
        node: (torch.cat([part[node][0] for part in parts]), torch.cat([part[node][1] for part in parts]))
        for node in parts[0]
    }
