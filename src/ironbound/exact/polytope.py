"""The adversarial polytope of a network, relaxed or exact, as a program: inputs and open neurons are its columns.

Closed neurons are affine, so that they take part in the coefficients only; the maps of the open neurons come from
`bounding/alpha.py`. An open neuron has a column for what it reads, one for its value, and rows between the two: the
lines of its relaxation, and for the exact polytope a column with the values 0 and 1 per kink inside its bounds.

Source: Wong & Kolter (2017), arXiv v1, equations (4) and (12) to (15).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ironbound.bounding.alpha import AlphaState
from ironbound.bounding.alpha_rows import Functionals, carried, joined_rows, neuron_rows, shifted
from ironbound.bounding.memory import chunk_length
from ironbound.bounding.spread import row_bytes
from ironbound.errors import InputError
from ironbound.exact.program import Builder, Program
from ironbound.ops.operator import Activation
from ironbound.ops.piecewise import Maximum, PiecewiseLinear, ReLU
from ironbound.regions import Region

Line = tuple[np.ndarray, np.ndarray]  # slope, intercept
_ROUNDING = 16.0  # units in the last place of a sum's size by which its bounds are taken wider


@dataclass(frozen=True, eq=False)
class Entry:
    """How the input is written in columns: middle + steps · v.

    Attributes:
        middle: [input elements].
        steps: [input elements, columns of the input].
        columns: their numbers.
        ball: the row that holds an l1 ball together, or None.
    """

    middle: np.ndarray
    steps: sparse.csr_matrix
    columns: np.ndarray
    ball: int | None


@dataclass(frozen=True, eq=False)
class Polytope:
    """A program whose points are the network's values over a region, and the way back from its columns.

    Attributes:
        program: without an objective.
        entry: the input.
        before, after: columns of what the open neurons of a node read, and of their values, by relaxed node.
        exact: whether no point of the program is beyond the network.
    """

    program: Program
    entry: Entry
    before: dict[int, np.ndarray]
    after: dict[int, np.ndarray]
    exact: bool

    def costs(self, rows: Functionals) -> tuple[np.ndarray, np.ndarray]:
        """Functionals as linear functions of the columns: coefficients [rows, columns], constants [rows]."""
        found = np.zeros((len(rows), len(self.program.lower)))
        terms, constant = _expression(self.entry, self.after, rows)
        for coefficients, columns in terms:
            found[:, columns] += coefficients.toarray() if sparse.issparse(coefficients) else coefficients  # type: ignore[union-attr]
        return found, constant

    def point(self, values: np.ndarray, region: Region) -> Tensor:
        """The input at a point of the program, moved into the region by what rounding took it out, [1, *shape]."""
        inside = np.clip(values, self.program.lower, self.program.upper)[self.entry.columns]
        flat = torch.from_numpy(self.entry.middle + self.entry.steps @ inside)
        return region.project(flat.to(region.center).reshape(1, *region.shape))


def entry_of(region: Region, build: Builder) -> Entry:
    """Columns for the input: a box has one per element, in units of its radius; an l1 ball two, up and down.

    Args:
        region: one example.
        build: gets the columns.

    Returns:
        The input.

    Raises:
        InputError: the region's sides are not flat.
    """
    parts = region.sets()
    kinds = {part.dual for part in parts}
    if not kinds <= {1, float("inf")}:
        raise InputError(
            f"linear and mixed-integer programs need a region with flat sides (linf, l1, Box), not {region.norm!r}; "
            "use the method 'alpha'"
        )
    size = region.center[0].numel()
    balls = [part for part in parts if part.dual != 1]
    if not balls:
        radius = _flat(parts[0].radius.expand(1, *region.shape))
        middle = _flat(region.center) + (0.0 if parts[0].offset is None else _flat(parts[0].offset))
        columns = build.columns(-np.ones(size), np.ones(size))
        return Entry(middle, sparse.csr_matrix(sparse.diags(radius)), columns, None)
    radius, middle = _flat(balls[0].radius.expand(1, *region.shape)), _flat(region.center)
    below, above = (_flat(end) for end in region.box())
    unit = np.where(radius > 0, radius, 1.0)
    most = [np.clip(reach / unit, 0, 1) for reach in (above - middle, middle - below)]
    columns = build.columns(np.zeros(2 * size), np.concatenate(most))
    build.constrain([(np.ones((1, 2 * size)), columns)], -np.inf, 1.0)
    steps = sparse.hstack([sparse.diags(radius), sparse.diags(-radius)], format="csr")
    return Entry(middle, sparse.csr_matrix(steps), columns, build.rows - 1)


def polytope(state: AlphaState, integral: bool) -> Polytope:
    """The relaxed or the exact polytope of one example.

    Args:
        state: the network as seen from its open neurons, for one example.
        integral: whether kinks get columns of 0 and 1: equation (4); else the relaxation (13).

    Returns:
        The polytope. Activations that are not piecewise linear keep their lines in either.
    """
    build = Builder()
    entry = entry_of(state.region, build)
    before: dict[int, np.ndarray] = {}
    after: dict[int, np.ndarray] = {}
    exact = integral or not state.maps
    for node in sorted(state.maps):
        operator = state.graph.nodes[node].operator
        if isinstance(operator, Maximum):
            before[node], after[node] = _maximum(state, node, (build, entry, after), integral)
            continue
        assert isinstance(operator, Activation)
        neurons = state.opened[node].neurons[0]
        low, high = (end.detach().flatten()[neurons].double() for end in state.layers[node])
        before[node], (low, high) = _read(build, entry, after, state.maps[node], (low, high))
        least, most = _widened(*operator.interval(low, high))
        after[node] = build.columns(least.numpy(), most.numpy())
        below, above = lines_of(operator, low, high)
        for slope, intercept in below:
            build.constrain([(1.0, after[node]), (-slope, before[node])], intercept, np.inf)
        for slope, intercept in above:
            build.constrain([(1.0, after[node]), (-slope, before[node])], -np.inf, intercept)
        if integral and isinstance(operator, PiecewiseLinear):
            _kinks(build, operator, (low, high), before[node], after[node])
        elif integral:
            exact = False
    return Polytope(build.program(), entry, before, after, exact)


def _flat(value: Tensor) -> np.ndarray:
    return value.detach().flatten().double().cpu().numpy()


def _widened(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Room at the ends of a range that its lines hold anyway: ends that nearly coincide mislead solvers."""
    room = 1e-7 * torch.maximum(low.abs(), high.abs())
    return low - room, high + room


def _expression(entry: Entry, after: dict[int, np.ndarray], rows: Functionals) -> tuple[list, np.ndarray]:
    """Functionals as terms of a constraint, and their constants."""
    through = sparse.csr_matrix(rows.input.detach().double().cpu().numpy())
    terms: list = [(sparse.csr_matrix(through @ entry.steps), entry.columns)]
    for node, columns in after.items():
        part = rows.parts[node][:, : len(columns)].detach().double().cpu().numpy()
        terms.append((sparse.csr_matrix(part), columns))
    return terms, _flat(rows.constant) + through @ entry.middle


def _read(
    build: Builder, entry: Entry, after: dict[int, np.ndarray], rows: Functionals, ends: tuple[Tensor, Tensor]
) -> tuple[np.ndarray, tuple[Tensor, Tensor]]:
    """Columns that equal functionals of what lies below, and their bounds with room for the rounding of both.

    Without it a region as small as the rounding would leave no point, and no point is no counterexample.

    Returns:
        The columns, and their bounds.
    """
    terms, constant = _expression(entry, after, rows)
    reach = build.reach()
    size = np.abs(constant) + sum(abs(part) @ reach[where] for part, where in terms)
    room = torch.from_numpy(_ROUNDING * torch.finfo(rows.input.dtype).eps * size)
    low, high = ends[0] - room, ends[1] + room
    columns = build.columns(low.numpy(), high.numpy())
    build.constrain([(1.0, columns), *((-part, where) for part, where in terms)], constant, constant)
    return columns, (low, high)


def lines_of(operator: Activation, low: Tensor, high: Tensor) -> tuple[list[Line], list[Line]]:
    """Lines below and above an activation on its bounds: its convex hull where there is one kink.

    Source: Wong & Kolter (2017), arXiv v1, equation (12), for ReLU.

    Args:
        operator: the activation.
        low: lower bounds of open neurons, float64 [neurons].
        high: upper bounds, likewise.

    Returns:
        Lines (slope, intercept), each [neurons].
    """
    chord = operator.chord(low, high)
    single = isinstance(operator, PiecewiseLinear) and len(operator.knots) == 1
    slopes = [chord] if single else [chord, *operator.tangents(low, high)]
    bands = [(slope, *operator.band(low, high, slope)) for slope in slopes]
    below = [(slope.numpy(), bottom.numpy()) for slope, bottom, _ in bands]
    above = [(slope.numpy(), top.numpy()) for slope, _, top in bands]
    if single:
        assert isinstance(operator, PiecewiseLinear)
        ones = np.ones(len(low))
        pieces = [(slope * ones, (operator.anchor - slope * operator.knots[0]) * ones) for slope in operator.slopes]
        return (pieces, above) if operator.slopes[0] < operator.slopes[1] else (below, pieces)
    return below, above


def _kinks(
    build: Builder, operator: PiecewiseLinear, ends: tuple[Tensor, Tensor], before: np.ndarray, after: np.ndarray
) -> None:
    """The exact graph of a piecewise linear function: its first piece plus a rectified part for every kink inside.

    Rectified parts r = max(z - knot, 0) are those of equation (4), with the tightest constants that the bounds allow.
    """
    low, high = (end.numpy() for end in ends)
    first = np.full(len(low), operator.slopes[0])
    terms: list = [(1.0, after)]
    size = len(after)
    for place, knot in enumerate(operator.knots):
        first = np.where(low >= knot, operator.slopes[place + 1], first)
        inside = np.flatnonzero((low < knot) & (high > knot))
        if not len(inside):
            continue
        under, over = knot - low[inside], high[inside] - knot
        rise = build.columns(np.zeros(len(inside)), over)
        on = build.columns(np.zeros(len(inside)), np.ones(len(inside)), integral=True)
        z = before[inside]
        build.constrain([(1.0, rise), (-1.0, z)], -knot, np.inf)
        build.constrain([(1.0, rise), (-over, on)], -np.inf, 0.0)
        build.constrain([(1.0, rise), (-1.0, z), (under, on)], -np.inf, under - knot)
        step = operator.slopes[place + 1] - operator.slopes[place]
        entries = (np.full(len(inside), -step), (inside, np.arange(len(inside))))
        terms.append((sparse.coo_matrix(entries, shape=(size, len(inside))), rise))
    constant = operator.forward(ends[0]).numpy() - first * low
    build.constrain([*terms, (-first, before)], constant, constant)


def _maximum(
    state: AlphaState, node: int, place: tuple[Builder, Entry, dict[int, np.ndarray]], integral: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Columns for the open maxima of a node: those of the elements that may be largest, and of the maxima.

    The largest element is chosen by a column of 0 and 1 each, which sum up to 1.

    Returns:
        The columns of both.
    """
    build, entry, after = place
    layer = state.opened[node]
    neurons = layer.neurons[0, : layer.neurons.shape[1] // 2]  # an open maximum stands there twice
    low, high = (end.detach().flatten(0, -2)[neurons].double() for end in state.layers[node])
    floor, best = low.max(-1, keepdim=True)
    rival = (high > floor).scatter(-1, best, True)
    which, element = rival.nonzero(as_tuple=True)
    rows = _elements(state, node, neurons[which] * low.shape[-1] + element)
    columns, (least, most) = _read(build, entry, after, rows, (low[rival], high[rival]))
    low, high = low.masked_scatter(rival, least), high.masked_scatter(rival, most)
    floor = low.amax(-1, keepdim=True)
    owner = which.numpy()
    top = high.amax(-1).numpy()
    largest = build.columns(floor.squeeze(-1).numpy(), top)
    build.constrain([(1.0, largest[owner]), (-1.0, columns)], 0.0, np.inf)
    # max z = L + max relu(z - L) where L is the largest lower bound, and the maximum is at most the sum
    _, ((slope, intercept),) = lines_of(ReLU(), (low - floor)[rival], (high - floor)[rival])
    shape, each = (len(neurons), len(owner)), (owner, np.arange(len(owner)))
    height = floor.squeeze(-1).numpy() + np.bincount(owner, intercept - slope * floor.numpy()[owner, 0])
    build.constrain([(1.0, largest), (sparse.coo_matrix((-slope, each), shape), columns)], -np.inf, height)
    if integral:
        chosen = build.columns(np.zeros(len(owner)), np.ones(len(owner)), integral=True)
        gap = top[owner] - low[rival].numpy()
        build.constrain([(1.0, largest[owner]), (-1.0, columns), (gap, chosen)], -np.inf, gap)
        build.constrain([(sparse.coo_matrix((np.ones(len(owner)), each), shape), chosen)], 1.0, 1.0)
    return columns, largest


def _elements(state: AlphaState, node: int, index: Tensor) -> Functionals:
    """Single elements of what a node reads, as seen from the open neurons below."""
    graph, like = state.graph, state.region.center
    source = graph.nodes[node].inputs[0]
    length = chunk_length(row_bytes(graph, source, like.element_size()), state.budget, like.device)
    pieces = []
    for part in index.split(length):
        rows, start, constant = neuron_rows(graph, source, part, torch.zeros_like(part), like)
        pieces.append(shifted(carried(graph, state.opened, start, rows, like), constant))
    return joined_rows(pieces)
