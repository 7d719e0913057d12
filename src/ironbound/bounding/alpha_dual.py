"""The dual bound of many rows for chosen slopes, its gradient, and the ascent over the slopes.

Source: Wong & Kolter (2017), arXiv v1, equations (22) to (24).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.alpha_rows import Functionals, OpenLayer
from ironbound.regions import Region, Set

_RATE, _LEFT = 0.25, 0.08  # of 20 steps: the first step of a slope, and what share of it the last one has
_MOMENTS = (0.7, 0.99)
_REGROUP = 5  # iterations after which proved rows are left out

Lines4 = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Level:
    """The open neurons of one relaxed node as the dual network sees them.

    Attributes:
        node: the relaxed node.
        lower, upper: lines, each [examples, 1, width] (see `Choice`).
        starts: slopes to begin with, each [examples, 1, width].
        above: what neurons above read of these, [examples, neurons above, width]; those in the order of the nodes.
    """

    node: int
    lower: Lines4
    upper: Lines4
    starts: tuple[Tensor, Tensor]
    above: Tensor


@dataclass(frozen=True, eq=False)
class Network:
    """The relaxed network between its open neurons.

    Attributes:
        levels: by node, ascending.
        input: what each open neuron reads of the input, [examples, neurons, input elements].
        constant: [examples, neurons].
        sets: of the region, with flat radius [examples or 1, 1, input elements or 1] and middle likewise.
    """

    levels: tuple[Level, ...]
    input: Tensor
    constant: Tensor
    sets: tuple[tuple[float, Tensor, Tensor], ...]

    def take(self, index: Tensor) -> Network:
        """The network of some of the examples, by int64 [examples kept]."""

        def some(value: Tensor) -> Tensor:
            return value if len(value) == 1 else value.index_select(0, index)

        def every(values: tuple[Tensor, ...]) -> tuple:
            return tuple(some(value) for value in values)

        levels = tuple(
            Level(one.node, every(one.lower), every(one.upper), every(one.starts), some(one.above))
            for one in self.levels
        )
        sets = tuple((dual, some(radius), some(middle)) for dual, radius, middle in self.sets)
        return Network(levels, some(self.input), some(self.constant), sets)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of the same number per example, filled up with zeros.

    Attributes:
        parts: coefficients at the open neurons of each level, [examples, rows, width].
        input: [examples, rows, input elements].
        constant: [examples, rows].
    """

    parts: tuple[Tensor, ...]
    input: Tensor
    constant: Tensor


class Layout:
    """Where rows of any examples stand in a block of as many rows for each of the examples that have any."""

    def __init__(self, example: Tensor) -> None:
        self.present, local, counts = torch.unique(example, return_inverse=True, return_counts=True)
        order = torch.argsort(local, stable=True)
        first = counts.cumsum(0) - counts
        slot = torch.empty_like(local)
        slot[order] = torch.arange(len(local), device=local.device) - first[local[order]]
        self.rows = int(counts.max()) if len(counts) else 0
        self.place = local * self.rows + slot

    def block(self, rows: Tensor) -> Tensor:
        """[rows, ...] -> [examples, rows per example, ...], zero where there is no row."""
        whole = rows.new_zeros((len(self.present) * self.rows, *rows.shape[1:]))
        return whole.index_put((self.place,), rows).unflatten(0, (len(self.present), self.rows))

    def flat(self, block: Tensor) -> Tensor:
        """The inverse."""
        return block.flatten(0, 1).index_select(0, self.place)


def network(layers: dict[int, OpenLayer], maps: dict[int, Functionals], region: Region) -> Network:
    """Puts the maps of the open neurons together.

    Args:
        layers: the relaxed nodes.
        maps: the functionals of the open neurons of each relaxed node that has any, example after example.
        region: the inputs.

    Returns:
        The network.
    """
    nodes = sorted(maps)
    center = region.center.flatten(1)

    def block(node: int, rows: Tensor) -> Tensor:
        example, slot = layers[node].valid.nonzero(as_tuple=True)
        whole = rows.new_zeros((*layers[node].valid.shape, *rows.shape[1:]))
        return whole.index_put((example, slot), rows)

    levels = []
    for place, node in enumerate(nodes):
        choice = layers[node].choice
        above = [block(other, maps[other].parts[node]) for other in nodes[place + 1 :]]
        width = layers[node].valid.shape[1]
        levels.append(
            Level(
                node,
                tuple(value.unsqueeze(1) for value in choice.lower),  # type: ignore[arg-type]
                tuple(value.unsqueeze(1) for value in choice.upper),  # type: ignore[arg-type]
                tuple(value.detach().unsqueeze(1) for value in choice.starts),  # type: ignore[arg-type]
                torch.cat(above, 1) if above else center.new_zeros((len(center), 0, width)),
            )
        )
    inputs = [block(node, maps[node].input) for node in nodes]
    constants = [block(node, maps[node].constant) for node in nodes]
    nothing = center.new_zeros((len(center), 0, center.shape[1]))
    return Network(
        tuple(levels),
        torch.cat(inputs, 1) if inputs else nothing,
        torch.cat(constants, 1) if constants else nothing[..., 0],
        tuple(_flat_set(part, region) for part in region.sets()),
    )


def _flat_set(part: Set, region: Region) -> tuple[float, Tensor, Tensor]:
    radius = part.radius.expand(len(part.radius), *region.shape).flatten(1).unsqueeze(1)
    middle = region.center if part.offset is None else region.center + part.offset
    return part.dual, radius, middle.flatten(1).unsqueeze(1)


def block_of(layout: Layout, rows: Functionals, levels: tuple[Level, ...]) -> Block:
    """Rows as a block for a network of the examples that have any."""
    parts = tuple(layout.block(rows.parts[level.node]) for level in levels)
    return Block(parts, layout.block(rows.input), layout.block(rows.constant))


def lowest(sets: tuple[tuple[float, Tensor, Tensor], ...], c: Tensor) -> tuple[Tensor, Tensor]:
    """The least value of functionals over each set, the largest over the sets, and the point where it is taken."""
    value = point = None
    for dual, radius, middle in sets:
        with torch.no_grad():
            scaled = c * radius
            if dual == 1:
                direction = c.sign()
            elif dual == 2:
                length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
                direction = scaled / torch.where(length > 0, length, 1.0)
            elif not c.shape[-1]:  # the rows read nothing of the input
                direction = c
            else:
                best = scaled.abs().argmax(-1, keepdim=True)
                direction = torch.zeros_like(c).scatter(-1, best, c.gather(-1, best).sign())
        here = middle - radius * direction
        low = (c * here).sum(-1)
        if value is None or point is None:
            value, point = low, here
        else:
            point = torch.where((low > value).unsqueeze(-1), here, point)
            value = torch.maximum(value, low)
    assert value is not None and point is not None
    return value, point


def dual_value(net: Network, block: Block, slopes: list[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """The dual network for chosen slopes: a lower bound of every row, whatever the slopes in [0, 1].

    Args:
        net: the relaxed network.
        block: the rows.
        slopes: t of each level, [examples, rows, width].

    Returns:
        The bounds [examples, rows]; the coefficients nu_hat of each level, [examples, rows, width]; the input where
        the bound is taken, [examples, rows, input elements].
    """
    total = block.constant
    above = block.input.new_zeros((*block.constant.shape, 0))
    met = []
    for level, base, t in zip(net.levels[::-1], block.parts[::-1], slopes[::-1], strict=True):
        c = torch.baddbmm(base, above, level.above) if above.shape[-1] else base
        positive, negative = c.clamp(min=0), c.clamp(max=0)
        below, up = level.lower, level.upper
        total = total + (positive * (below[2] + t * below[3]) + negative * (up[2] + t * up[3])).sum(-1)
        nu = positive * (below[0] + t * below[1]) + negative * (up[0] + t * up[1])
        above = torch.cat([nu, above], -1)
        met.append(c)
    c = torch.baddbmm(block.input, above, net.input)
    low, point = lowest(net.sets, c)
    return total + (above * net.constant.unsqueeze(1)).sum(-1) + low, met[::-1], point


def slope_gradient(net: Network, slopes: list[Tensor], met: list[Tensor], point: Tensor) -> list[Tensor]:
    """The gradient of the bounds in the slopes, by the relaxed network run forward from the worst input.

    The derivative of the bound in nu_hat is the value that the relaxed network has there at the point where the bound
    is taken, so that the backward pass of the dual network is a forward pass.

    Args:
        net: the relaxed network.
        slopes: t of each level, [examples, rows, width].
        met: coefficients, of `dual_value`.
        point: input, of `dual_value`.

    Returns:
        One gradient per level, [examples, rows, width].
    """
    value = torch.baddbmm(net.constant.unsqueeze(1), point, net.input.transpose(1, 2))
    gradients = []
    first = 0
    for level, t, c in zip(net.levels, slopes, met, strict=True):
        width = t.shape[-1]
        z = value[..., first : first + width]
        below, up = level.lower, level.upper
        positive = c > 0
        gradients.append(torch.where(positive, c * (below[1] * z + below[3]), c * (up[1] * z + up[3])))
        first += width
        if level.above.shape[1]:
            slope = torch.where(positive, below[0] + t * below[1], up[0] + t * up[1])
            height = torch.where(positive, below[2] + t * below[3], up[2] + t * up[3])
            value[..., first:] += torch.bmm(torch.addcmul(height, slope, z), level.above.transpose(1, 2))
    return gradients


@dataclass(frozen=True)
class Ascent:
    """How slopes are chosen.

    Attributes:
        iterations: steps of projected gradient ascent; 0 keeps the better of both starts.
        sign: instead one step from the slope 1/2 to 0 or 1 by the sign of the gradient (arXiv v1, section 3.2).
    """

    iterations: int = 20
    sign: bool = False


class _Climb:
    """An ascent for a block of rows; every tensor of its state has one entry per row of the block."""

    def __init__(self, net: Network, rows: Functionals, layout: Layout) -> None:
        self.layout = layout
        self.net = net if len(layout.present) == len(net.input) else net.take(layout.present)
        self.block = block_of(layout, rows, net.levels)
        self.best = torch.full_like(self.block.constant, -torch.inf)
        self.t = [torch.zeros_like(part) for part in self.block.parts]
        self.kept, self.mean, self.square = self.t, list(self.t), list(self.t)

    def begin(self) -> None:
        """Tries both usual choices, and goes on from the better one of each row."""
        for side in (0, 1) if self.t else (0,):
            levels = zip(self.net.levels, self.t, strict=True)
            self.look([level.starts[side].expand_as(t) for level, t in levels])
        self.t = self.kept

    def look(self, slopes: list[Tensor]) -> list[Tensor]:
        """Bounds for some slopes; keeps what is better, returns the gradient."""
        value, met, point = dual_value(self.net, self.block, slopes)
        better = (value > self.best) & torch.isfinite(value)  # an overflow is no bound
        self.best = torch.where(better, value, self.best)
        self.kept = [torch.where(better.unsqueeze(-1), t, kept) for t, kept in zip(slopes, self.kept, strict=True)]
        return slope_gradient(self.net, slopes, met, point)

    def step(self, count: int, of: int) -> None:
        """One step with moments per slope, projected onto [0, 1]: large ones first, and larger where they are few."""
        left = min(0.5, _LEFT * 20 / of)
        rate = _RATE * (20 / of) ** 0.5 * left ** ((count - 1) / of)
        bias, spread = 1 - _MOMENTS[0] ** count, 1 - _MOMENTS[1] ** count
        for i, g in enumerate(self.look(self.t)):
            self.mean[i] = torch.lerp(g, self.mean[i], _MOMENTS[0])
            self.square[i] = torch.lerp(g * g, self.square[i], _MOMENTS[1])
            size = (self.square[i] / spread).sqrt_().add_(torch.finfo(g.dtype).tiny ** 0.5)
            self.t[i] = torch.addcdiv(self.t[i], self.mean[i], size, value=rate / bias).clamp_(0, 1)

    def sign_step(self) -> None:
        """From the middle to 0 or 1 by the sign of the gradient."""
        gradients = self.look([torch.full_like(t, 0.5) for t in self.t])
        self.look([(g > 0).to(g.dtype) for g in gradients])

    def restricted(self, net: Network, rows: Functionals, chosen: Tensor) -> _Climb:
        """The same ascent for some of its rows.

        Args:
            net: the relaxed network of all examples.
            rows: the functionals of the chosen rows.
            chosen: which of the present rows, int64.

        Returns:
            The ascent, as far as it has come.
        """
        fewer = _Climb(net, rows, Layout(rows.example))

        def moved(value: Tensor) -> Tensor:
            return fewer.layout.block(self.layout.flat(value)[chosen])

        fewer.best = moved(self.best)
        for name in ("t", "kept", "mean", "square"):
            setattr(fewer, name, [moved(value) for value in getattr(self, name)])
        return fewer


def maximised(
    net: Network, rows: Functionals, ascent: Ascent, enough: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The best bound of each row over the slopes that an ascent visits: every iterate is a bound.

    Both usual choices come first, u / (u - l) everywhere (the dual) and 0 or 1 by the larger side (CROWN); the ascent
    starts from the better one of each row.

    Args:
        net: the relaxed network of all examples.
        rows: the functionals.
        ascent: how slopes are chosen.
        enough: bounds above which a row need not be bounded better, [rows], or None.

    Returns:
        Lower bounds [rows] and the slopes t that give them, [rows, width] for each level.
    """
    best = torch.full_like(rows.constant, -torch.inf)
    kept = [torch.zeros_like(rows.parts[level.node]) for level in net.levels]
    if len(rows) == 0:
        return best, kept
    index = torch.arange(len(rows), device=best.device)
    climb = _Climb(net, rows, Layout(rows.example))

    def enter() -> None:
        best[index] = climb.layout.flat(climb.best)
        for whole, part in zip(kept, climb.kept, strict=True):
            whole[index] = climb.layout.flat(part)

    climb.begin()
    if ascent.sign:
        climb.sign_step()
    steps = 0 if ascent.sign or not net.levels else ascent.iterations
    for count in range(1, steps + 1):
        if enough is not None and count % _REGROUP == 1:
            still = torch.nonzero(~(climb.layout.flat(climb.best) > enough[index])).squeeze(1)
            if 2 * len(still) <= len(index):  # fewer would not pay for the copies
                enter()
                index = index[still]
                if len(index) == 0:
                    return best, kept
                climb = climb.restricted(net, rows.take(index), still)
        climb.step(count, steps)
    if steps:
        climb.look(climb.t)
    enter()
    return best, kept


def value_of(net: Network, rows: Functionals, slopes: list[Tensor]) -> Tensor:
    """The bound of each row for given slopes, with gradients in everything but the slopes.

    Args:
        net: the relaxed network of all examples.
        rows: the functionals.
        slopes: t of each level, [rows, width].

    Returns:
        [rows].
    """
    if len(rows) == 0:
        return rows.constant
    layout = Layout(rows.example)
    some = net.take(layout.present)
    value, _, _ = dual_value(some, block_of(layout, rows, net.levels), [layout.block(t) for t in slopes])
    return layout.flat(value)
