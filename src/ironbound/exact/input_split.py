"""Complete search by splitting the box of inputs: for networks of any activation with few inputs that vary.

A box is bounded, and two points of it are run. What neither proves nor refutes it is cut along one element, chosen by
three shares that are added up: |coefficient| times width in the bounding functional ("smart branching", Wang et al.
2021, section 3.3), the smear (Wang et al. 2018), and a little of the width itself. Each alone starves elements that
matter: on some networks of ACAS Xu that costs a hundred times the boxes. Boxes are bounded many at a time, worst first;
for every clause the smallest bound of all boxes holds at any moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.bounding.backward import to_input
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import DEFAULT_BUDGET
from ironbound.bounding.methods import example_bytes
from ironbound.bounding.precision import full_precision
from ironbound.bounding.threads import over_examples
from ironbound.errors import SoundnessError
from ironbound.exact.box_lines import BoxLines, box_lines, influence
from ironbound.exact.query import Budget, Outcome, Query
from ironbound.exact.row_mixing import mixed
from ironbound.exact.with_inputs import with_inputs
from ironbound.regions import Box

Accept = Callable[[Tensor], bool]

STEP = 1024  # most boxes bounded at a time
STEP_BYTES = 128 << 20  # of the values of all boxes of a step, about
WIDTH_SHARE = 0.2  # weight of an element's share of the width


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes that are still open.

    Attributes:
        lower, upper: of the varied elements, [boxes, d].
        bound: for each clause the best lower bound so far, [boxes, clauses].
        open: which clauses are not proved on the box, bool [boxes, clauses].
    """

    lower: Tensor
    upper: Tensor
    bound: Tensor
    open: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, index: Tensor) -> Boxes:
        return Boxes(self.lower[index], self.upper[index], self.bound[index], self.open[index])

    @staticmethod
    def join(parts: list[Boxes]) -> Boxes:
        """All of them."""
        columns = zip(*((part.lower, part.upper, part.bound, part.open) for part in parts), strict=True)
        return Boxes(*(torch.cat(column) for column in columns))

    def middle(self) -> Tensor:
        """[boxes, d]."""
        return self.lower + (self.upper - self.lower) / 2

    def worst(self) -> Tensor:
        """The smallest bound of an open clause, [boxes]."""
        return self.bound.masked_fill(~self.open, torch.inf).amin(1)


def input_split(query: Query, budget: Budget, accept: Accept | None = None) -> Outcome:
    """Decides a query by splitting its box.

    Args:
        query: the network, a region that is a box, and the clauses. Its dtype is that of all bounds.
        budget: when to end.
        accept: what a candidate [1, *shape] must pass; the search goes on where it does not. None accepts all.

    Returns:
        What was found; `lower` holds for whatever reason the search ends.
    """
    with torch.no_grad(), full_precision(query.region.center.device):
        return _Search(query, budget, accept or (lambda point: True)).run()


class _Search:
    """The state of one search."""

    def __init__(self, query: Query, budget: Budget, accept: Accept) -> None:
        self._query = with_inputs(query)
        self._budget, self._accept = budget, accept
        lower, upper = query.region.box()
        self._base = lower
        self._varied = (lower < upper).flatten().nonzero()[:, 0]
        low, high = (end.reshape(1, -1)[:, self._varied] for end in (lower, upper))
        self._width = high - low
        each = example_bytes(self._query.graph, lower.element_size()) * 2 * (len(self._varied) + 1)
        self._fits = each <= (budget.memory or DEFAULT_BUDGET)
        self._size = max(1, min(STEP, min(STEP_BYTES, budget.memory or STEP_BYTES) // each))
        clauses = self._query.clauses
        self._guard = clauses.best(clauses.guard)
        unknown = lower.new_full((1, len(clauses)), -torch.inf)
        self._queue = Boxes(low, high, unknown, torch.ones_like(unknown, dtype=torch.bool))
        self._closed = torch.full_like(unknown[0], torch.inf)  # smallest bound of each clause over what left the queue
        self._stuck = False
        self._nodes = 0
        self._candidate: Tensor | None = None

    def run(self) -> Outcome:
        """Searches until the budget is spent, or nothing is open."""
        while (why := self._end()) is None:
            order = self._queue.worst().argsort()
            taken, rest = order[: self._size], order[self._size :]
            batch, self._queue = self._queue[taken], self._queue[rest]
            self._step(batch)
        lower = torch.minimum(self._closed, self._queue.bound.amin(0)) if len(self._queue) else self._closed
        return Outcome(lower, self._candidate, self._nodes, why)

    def _end(self) -> str | None:
        if self._candidate is not None:
            return "candidate"
        if not len(self._queue):
            return "stuck" if self._stuck else "proved"
        if self._budget.left() <= 0:
            return "time"
        if self._budget.nodes is not None and self._nodes >= self._budget.nodes:
            return "nodes"
        each = self._queue.lower.element_size() * (2 * self._queue.lower.shape[1] + 2 * self._queue.bound.shape[1])
        if not self._fits or len(self._queue) * each > (self._budget.memory or DEFAULT_BUDGET):
            return "memory"
        return None

    def _region(self, boxes: Boxes) -> Box:
        ends = []
        for end in (boxes.lower, boxes.upper):
            whole = self._base.flatten(1).expand(len(boxes), -1).clone()
            whole[:, self._varied] = end
            ends.append(whole.reshape(len(boxes), *self._base.shape[1:]))
        return Box(*ends)

    def _step(self, boxes: Boxes) -> None:
        """Bounds boxes, the open ones once more with walks, runs points of them, and cuts what stays open."""
        self._nodes += len(boxes)
        corner = weight = boxes.lower
        for walk in (False, True):
            boxes, corner, weight = self._bounded(boxes, walk)
            self._close(boxes, ~boxes.open)
            kept = boxes.open.any(1)
            boxes, corner, weight = boxes[kept], corner[kept], weight[kept]
            if not len(boxes):
                return
        self._run_points(boxes, corner)
        if self._candidate is None:
            self._cut(boxes, weight)
        else:
            self._close(boxes, boxes.open)

    def _close(self, boxes: Boxes, clauses: Tensor) -> None:
        """Enters bounds that will not be improved, those of `clauses` [boxes, clauses], into the result."""
        if len(boxes):
            self._closed = torch.minimum(self._closed, boxes.bound.masked_fill(~clauses, torch.inf).amin(0))

    def _bounded(self, boxes: Boxes, walk: bool) -> tuple[Boxes, Tensor, Tensor]:
        """Better bounds; and of each box's worst clause the corner where its best row is smallest, and the weights."""
        region = Box(self._points(boxes.lower), self._points(boxes.upper))
        graph, clause = self._query.graph, self._query.clauses.clause

        def work(piece: slice) -> tuple[Tensor, Tensor, Tensor]:
            part = region[piece]
            lines = box_lines(graph, part, self._varied, walk, self._budget.memory)
            found = mixed(*_linear(self._query, part, lines, self._varied), clause)
            weight = _share(found.weight) if not walk else _share(found.weight) + _share(self._smear(part, lines))
            return found.bound, found.slopes, weight

        length = -(-len(boxes) // torch.get_num_threads())
        values, slopes, weight = over_examples(work, len(boxes), length, self._base.device)
        bound = torch.maximum(boxes.bound, torch.where(values.isfinite(), values, -torch.inf))  # overflow is no bound
        fresh = replace(boxes, bound=bound, open=boxes.open & ~(bound > self._guard))
        worst = torch.arange(len(boxes), device=bound.device), bound.masked_fill(~fresh.open, torch.inf).argmin(1)
        return fresh, torch.where(slopes[worst] > 0, boxes.lower, boxes.upper), weight[worst].nan_to_num()

    def _smear(self, region: Box, lines: BoxLines) -> Tensor:
        """What each varied element may do to the rows of each clause, [boxes, clauses, d]."""
        clauses = self._query.clauses
        rows = influence(self._query.graph, region, lines.lines, self._varied) @ clauses.outputs.abs().T
        found = rows.new_zeros(*rows.shape[:2], len(clauses)).index_add(2, clauses.clause, rows)
        return found.transpose(1, 2)

    def _points(self, varied: Tensor) -> Tensor:
        """Inputs [points, *shape] from their varied elements, [points, d]."""
        whole = self._base.flatten(1).expand(len(varied), -1).clone()
        whole[:, self._varied] = varied
        return whole.reshape(len(varied), *self._base.shape[1:])

    def _run_points(self, boxes: Boxes, corner: Tensor) -> None:
        """Runs the middle of each box, and a corner [boxes, d]."""
        clauses = self._query.clauses
        points = self._points(torch.cat([boxes.middle(), corner]))
        values = clauses.best(clauses.values(points, self._query.graph(points)))
        if (boxes.bound.repeat(2, 1) > values + self._guard).any():
            raise SoundnessError("a bound of a box exceeds what the network does inside; please report it.")
        for place in (values <= 0).any(1).nonzero()[:, 0].tolist():
            if self._accept(points[place : place + 1]):
                self._candidate = points[place : place + 1]
                return

    def _cut(self, boxes: Boxes, weight: Tensor) -> None:
        """Puts the halves of the boxes into the queue; quarters or eighths while there are few."""
        for _ in range(1 if 4 * len(boxes) > self._size else 2 if 8 * len(boxes) > self._size else 3):
            middle, width = boxes.middle(), boxes.upper - boxes.lower
            possible = (middle > boxes.lower) & (middle < boxes.upper)
            whole = ~possible.any(1)
            if whole.any():  # the floating-point numbers are used up
                self._stuck = True
                self._close(boxes[whole], boxes.open[whole])
                boxes = boxes[~whole]
                weight, middle, width, possible = (part[~whole] for part in (weight, middle, width, possible))
            if not len(boxes):
                return
            share = weight + WIDTH_SHARE * _share(width / self._width)
            place = share.masked_fill(~possible, -1).argmax(1, keepdim=True)
            at = middle.gather(1, place)
            weight = weight.scatter(1, place, weight.gather(1, place) / 2).repeat(2, 1)
            below = replace(boxes, upper=boxes.upper.scatter(1, place, at))
            boxes = Boxes.join([below, replace(boxes, lower=boxes.lower.scatter(1, place, at))])
        self._queue = Boxes.join([self._queue, boxes])


def _share(parts: Tensor) -> Tensor:
    """Each part of the sum over the last axis; 0 where all are 0."""
    total = parts.sum(-1, keepdim=True)
    return parts / torch.where(total > 0, total, 1.0)


def _linear(query: Query, region: Box, lines: BoxLines, varied: Tensor) -> tuple[Tensor, Tensor]:
    """Linear lower bounds of all rows over each box: constants [boxes, rows] and weight [boxes, rows, d]."""
    outputs, count = query.clauses.outputs, len(query.clauses.outputs)
    rows = outputs.reshape(count, *query.graph.output_shape).repeat(len(region), *(1,) * len(query.graph.output_shape))
    example = torch.arange(len(region), device=rows.device).repeat_interleave(count)
    start = DenseRows(rows, example, (0, count))
    constant, at_input = to_input(query.graph, lines.lines, region, len(query.graph.nodes) - 1, start, {})
    assert at_input is not None
    constant = (constant + at_input.dot(region.center)).reshape(len(region), count)
    coefficients = at_input.dense().coefficients.reshape(len(region), count, -1)[:, :, varied]
    return constant + query.clauses.constant, coefficients * region.sets()[0].radius.flatten(1)[:, None, varied]
