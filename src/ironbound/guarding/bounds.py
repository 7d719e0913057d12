"""The dual bound (Wong & Kolter 2018, Algorithm 1, predicted class: Corollary 2) as a program, layer by layer.

As in the method "dual": a radius by |W| closes most neurons, and only those that it leaves open are carried to the
input. What a program knows of a node is its middle value, a radius, and `most`, which bounds the sum of the absolute
values of all products along all paths that any of the two is made of; `most` pays for rounding (docs/guard.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ironbound.certificate.checker.layers import Affine, Node
from ironbound.guarding.layers import Convolution, Dense, Elementwise, Layer, Order
from ironbound.guarding.program import Program
from ironbound.guarding.walk import AnyRows, DenseRows, PatchRows, Reach, patches_fit
from ironbound.guarding.windows import Patch

UNIT, UNIT32 = 2.0**-53, 2.0**-24  # unit roundoff of float64 and of float32
FLOOR, FLOOR32 = 2.0**-600, 2.0**-40  # least `most` and least `paths`: their share pays for what underflows


@dataclass(frozen=True, eq=False)
class Network:
    """A network as a program needs it.

    Attributes:
        nodes: as the certificate checker reads them; the first is the input.
        layers: the layer of each affine node, else None.
        orders: of each node's value.
    """

    nodes: list[Node]
    layers: list[Layer | None]
    orders: list[Order]

    def roundings(self) -> int:
        """K: no number is rounded more often on any path."""
        # one sum over all pixels of an upper kernel and all elements of the input that a lower one reads (`_by_pixels`)
        upper = [layer.taps for layer in self.layers if isinstance(layer, Convolution)]
        pairs = zip(self.nodes, self.layers, strict=True)
        lower = [len(layer.kernel) for node, layer in pairs if isinstance(layer, Convolution) and node.inputs == [0]]
        pixels = max(upper, default=0) * max(lower, default=0)
        layers = sum(layer.count + 16 if layer is not None else 16 for layer in self.layers)
        return pixels + layers + sum(node.size for node in self.nodes)

    def slack(self) -> float:
        """Share of `most` that covers the rounding of a bound: twice gamma_K for K roundings on any path."""
        return 4 * self.roundings() * UNIT

    def limit(self) -> float:
        """Sum of `most` over all nodes up to which the floors pay for underflow, in float64 and in float32."""
        return min(UNIT * FLOOR * 2.0**1022, UNIT32 * FLOOR32 * 2.0**126) / self.roundings()


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a node, each [n, size]: the network's own value at x, and what bounds it over the region.

    `paths` is the radius with each path by its absolute value.
    """

    value: str
    middle: str
    radius: str
    most: str
    paths: str


class DualProgram:
    """Emits the bounds of every layer.

    Args:
        p: the program.
        network: the network.
        reach: of the region.
    """

    def __init__(self, p: Program, network: Network, reach: Reach) -> None:
        self.p, self.network, self.reach = p, network, reach
        self.known: list[Known] = []
        self.lines: dict[int, tuple[str, str]] = {}  # slope and half the gap of each ReLU
        self.slack = network.slack()

    def run(self, x: str, middle: str, radius: str) -> None:
        """Runs the network at x and bounds all nodes, from the region's middle and its semi-axes, [n, size] each."""
        p = self.p
        most = p.op("Add", p.op("Add", p.op("Abs", middle), radius), p.hold(FLOOR))
        self.known.append(Known(x, middle, radius, most, p.op("Add", radius, p.hold(FLOOR32))))
        for index, node in enumerate(self.network.nodes[1:], start=1):
            layer = self.network.layers[index]
            self.known.append(self._relu(index, node) if layer is None else self._affine(index, layer, node))

    def _affine(self, index: int, layer: Layer, node: Node) -> Known:
        p, parts = self.p, [self.known[source] for source in node.inputs]
        value, middle = self._forward(layer, [[part.value, part.middle] for part in parts])
        value, middle = (layer.with_bias(p, one) for one in (value, middle))
        fixed = self._fixed_radius(index)
        read = [
            [part.most, part.paths] if fixed is not None else [part.most, part.paths, part.radius] for part in parts
        ]
        most, paths, *radius = self._forward(layer, read, absolute=True)
        if fixed is not None:
            radius = [p.op("Expand", p.hold(fixed[None]), p.op("Shape", middle))]
        most = p.op("Add", most, p.hold(layer.spread + FLOOR))
        return Known(value, middle, radius[0], most, p.op("Add", paths, p.hold(FLOOR32)))

    def _forward(self, layer: Layer, parts: list[list[str]], absolute: bool = False) -> list[str]:
        """Several values of each input through a layer without its constant: one pass over the weights for all."""
        p, count = self.p, len(parts[0])
        if all(len(set(values)) == 1 for values in parts):
            return [layer.forward(p, [values[0] for values in parts], absolute)] * count
        together = layer.forward(p, [p.op("Concat", *values, axis=0) for values in parts], absolute)
        return p.parts(together, count)

    def _fixed_radius(self, index: int) -> np.ndarray | None:
        """The exact radius where it is the same for all inputs: one layer that mixes elements of an unclipped ball."""
        nodes, layers, orders = self.network.nodes, self.network.layers, self.network.orders
        above, index = self._factors(index)
        node, layer = nodes[index], layers[index]
        if self.reach.radius is not None or not isinstance(layer, Convolution | Dense) or len(node.inputs) > 1:
            return None
        below, bottom = self._factors(node.inputs[0])
        if bottom:
            return None
        assert isinstance(node, Affine)
        natural = np.append(np.zeros(node.n), 0.0)
        natural[orders[0].natural] = below
        norms = _norms(node, natural, self.reach.order)
        return self.reach.eps * abs(above) * norms[orders[index].natural]

    def _factors(self, index: int) -> tuple[np.ndarray, int]:
        """The product of the factors of layers that work element by element, and the first node below them."""
        factor = np.ones(self.network.orders[index].size)
        while isinstance(layer := self.network.layers[index], Elementwise):
            factor, index = factor * layer.factor, self.network.nodes[index].inputs[0]
        return factor, index

    def _relu(self, index: int, node: Node) -> Known:
        """The two parallel lines of each neuron, slope high / (high - low), from bounds widened by the rounding."""
        p, source = self.p, node.inputs[0]
        value = self.known[source]
        spare = p.op("Mul", value.most, p.hold(self.slack))
        radius = self._walked(source, value, spare)
        reach = p.op("Add", radius, spare)
        high = p.op("Relu", p.op("Add", value.middle, reach))
        low = p.op("Relu", p.op("Sub", reach, value.middle))  # minus the lower bound, where that is negative
        width = p.op("Add", high, low)
        safe = p.op("Where", p.op("Equal", width, p.hold(0.0)), p.hold(1.0), width)
        slope = p.op("Div", high, safe)
        gap = p.op("Max", p.op("Mul", slope, low), p.op("Mul", p.op("Sub", p.hold(1.0), slope), high))
        half = p.op("Mul", gap, p.hold(0.5))
        self.lines[index] = slope, half
        middle = p.op("Add", p.op("Mul", slope, value.middle), half)
        radius, paths = (p.op("Add", p.op("Mul", slope, part), half) for part in (radius, value.paths))
        own, most = p.op("Relu", value.value), p.op("Add", value.most, gap)
        return Known(own, middle, radius, most, p.op("Add", paths, p.hold(FLOOR32)))

    def total(self) -> str:
        """The sum of `most` over all nodes, [n]."""
        return self.p.op("Sum", *(self.p.total(value.most, 1) for value in self.known))

    def _walked(self, source: int, value: Known, spare: str) -> str:
        """The radius, exact for the neurons that cheaper radii leave open."""
        if self._exact(source):
            return value.radius
        radius, opened = value.radius, self._open(value.middle, value.radius, spare)
        for better in (self._by_pixels if self._pixels(source) else self._by_rough_rows, self._by_rows):
            radius = self._put(source, radius, opened, better(source, *opened))
            opened = self._open(value.middle, radius, spare)
        return radius

    def _open(self, middle: str, radius: str, spare: str) -> tuple[str, str]:
        """Example and number of each neuron whose bounds have both signs, int64 [rows]; NaN opens nothing."""
        # the first neuron of the first example is always one of them: reshapes with an open extent refuse zero rows
        p = self.p
        opened = p.op("NonZero", p.op("Less", p.op("Abs", middle), p.op("Add", radius, spare)))
        opened = p.op("Concat", p.hold(np.zeros((2, 1), np.int64)), opened, axis=1)
        parts = [p.gather(opened, np.array([which])) for which in range(2)]
        example, neuron = (p.op("Squeeze", part, p.hold(np.array([0]))) for part in parts)
        return example, neuron

    def _put(self, source: int, radius: str, opened: tuple[str, str], found: str) -> str:
        """The radius with the values found put in where they are smaller."""
        p, place = self.p, self._place(source, *opened)
        flat = p.reshape(radius, -1)
        old = p.gather(flat, place)
        better = p.op("Where", p.op("Less", found, old), found, old)  # NaN of float32 that overflowed is left out
        return p.op("Reshape", p.op("ScatterElements", flat, place, better, axis=0), p.op("Shape", radius))

    def _by_rows(self, source: int, example: str, neuron: str) -> str:
        """The exact radius, by the walk."""
        return self.spread(*self.start(source, example, neuron))

    def _by_rough_rows(self, source: int, example: str, neuron: str) -> str:
        """The walk in float32, whose rounding is at most a share of `paths`: it closes most neurons."""
        p, kept = self.p, (self.lines, self.reach)
        with p.float32():
            self.lines = {index: (p.cast(slope), p.cast(half)) for index, (slope, half) in self.lines.items()}
            radius = self.reach.radius
            self.reach = replace(self.reach, radius=None if radius is None else p.cast(radius))
            found = self.spread(*self.start(source, example, neuron))
        self.lines, self.reach = kept
        return self._rounded_up(source, p.cast(found), example, neuron)

    def _rounded_up(self, source: int, found: str, example: str, neuron: str) -> str:
        p = self.p
        share = p.op("Mul", self.known[source].paths, p.hold(self.slack / UNIT * UNIT32))
        return p.op("Add", found, p.gather(p.reshape(share, -1), self._place(source, example, neuron)))

    def _place(self, source: int, example: str, neuron: str) -> str:
        """Flat indices into [n, size]."""
        p = self.p
        return p.op("Add", p.op("Mul", example, p.hold(np.array(self.network.orders[source].size))), neuron)

    def _pixels(self, source: int) -> tuple[Convolution, int, Convolution] | None:
        """A convolution on a relaxed convolution of the input: both, and the ReLU between them."""
        network, upper = self.network, self.network.layers[source]
        relaxed = network.nodes[source].inputs[0]
        if not isinstance(upper, Convolution) or relaxed not in self.lines:
            return None
        first = network.nodes[relaxed].inputs[0]
        lower = network.layers[first]
        if not isinstance(lower, Convolution) or network.nodes[first].inputs != [0]:
            return None
        return (upper, relaxed, lower) if Patch.of(upper).fits() else None

    def _by_pixels(self, source: int, example: str, neuron: str) -> str:
        """Each pixel of the upper kernel is carried to the input alone, in float32."""
        # never below the exact radius, which is sub-additive, and cheap: a pixel reads one patch of the input
        found = self._pixels(source)
        assert found is not None
        p, (upper, relaxed, lower) = self.p, found
        slope, half = self.lines[relaxed]
        with p.float32():
            channels = p.hold(np.array(upper.order.channels))
            unit, pixel = upper.unit_rows(p, p.op("Mod", neuron, channels)), p.op("Div", neuron, channels)
            rows = PatchRows(unit, example, pixel, Patch.of(upper), upper.orders[0].channels).times(p, p.cast(slope))
            pieces = p.op("MatMul", p.reshape(rows.coefficients, -1, rows.channels), lower.transposed(p))
            ball = Reach(self.reach.order, self.reach.eps)  # a clipped box is no larger
            if ball.order == 1:  # sums of sums
                reach = ball.of(p, p.reshape(pieces, -1, upper.taps * len(lower.kernel)))
            else:
                reach = p.total(p.reshape(ball.of(p, pieces), -1, upper.taps), 1)
        gaps = p.reshape(upper.forward(p, [half], absolute=True), -1)
        moved = p.op("Add", p.cast(reach), p.gather(gaps, self._place(source, example, neuron)))
        return self._rounded_up(source, moved, example, neuron)

    def _exact(self, index: int) -> bool:
        """Whether the radius by |W| is exact: one layer that mixes elements, on a box, or the radius is fixed."""
        if self.reach.radius is None:
            return self._fixed_radius(index) is not None
        below = self._factors(index)[1]
        return below == 0 or len(inputs := self.network.nodes[below].inputs) == 1 and not self._factors(inputs[0])[1]

    def start(self, target: int, example: str, neuron: str) -> tuple[AnyRows, int]:
        """Rows of single neurons of a node, as rows of a node below; both indices are int64 [rows]."""
        p, network = self.p, self.network
        factor, index = self._factors(target)
        layer = network.layers[index]
        order = network.orders[index]
        below = [index, *self._chain(network.nodes[index].inputs)]
        if isinstance(layer, Convolution) and patches_fit([network.layers[place] for place in below]):
            channels = p.hold(np.array(order.channels))
            rows: AnyRows = PatchRows(
                layer.unit_rows(p, p.op("Mod", neuron, channels)),
                example,
                p.op("Div", neuron, channels),
                Patch.of(layer),
                layer.orders[0].channels,
            )
            index = network.nodes[index].inputs[0]
        elif isinstance(layer, Dense) and len(layer.orders) == 1:
            rows, index = DenseRows(layer.unit_rows(p, neuron), example), network.nodes[index].inputs[0]
        else:
            one = p.op("Equal", p.op("Unsqueeze", neuron, p.hold(np.array([1]))), p.hold(np.arange(order.size)[None]))
            rows = DenseRows(p.cast(one), example)
        if not (factor == 1).all():
            scale = p.op("Unsqueeze", p.gather(p.hold(factor), neuron), p.hold(np.array([1])))
            scaled = p.op("Mul", rows.coefficients, scale)
            rows = (
                DenseRows(scaled, example)
                if isinstance(rows, DenseRows)
                else PatchRows(scaled, example, rows.pixel, rows.patch, rows.channels)
            )
        return rows, index

    def _chain(self, inputs: list[int]) -> list[int]:
        """The nodes below, down to the one that reads the input, while each reads one; the input alone else."""
        found = []
        while len(inputs) == 1 and inputs[0]:
            found.append(inputs[0])
            inputs = self.network.nodes[inputs[0]].inputs
        return found

    def spread(self, rows: AnyRows, start: int) -> str:
        """How far functionals of a node can move from their value in the middle, [rows]."""
        p, at, total = self.p, {start: rows}, []
        for index in range(start, 0, -1):
            if index not in at:
                continue
            own = at.pop(index)
            node, layer = self.network.nodes[index], self.network.layers[index]
            if layer is None:
                slope, half = self.lines[index]
                total.append(own.widening(p, half))
                parts: list[AnyRows] = [own.times(p, slope)]
            else:
                parts = list(own.pull(p, layer))
            for source, part in zip(node.inputs, parts, strict=True):
                met = at.get(source)
                at[source] = part if met is None else met.plus(p, part)  # type: ignore[union-attr, arg-type]
        total.append(at[0].reach(p, self.reach))
        return total[0] if len(total) == 1 else p.op("Sum", *total)


def _norms(node: Affine, factors: np.ndarray, order: float) -> np.ndarray:
    """A norm of each row of a layer's matrix, whose columns are multiplied by factors (the last is the padding's 0)."""
    read, weight = abs(factors[node.index]), abs(node.weights[0])  # [groups, positions, taps], [groups, outputs, taps]
    if math.isinf(order):
        norms = np.stack([(read * weight[:, [o]]).max(2) for o in range(weight.shape[1])], 1)
    else:
        norms = ((read**order) @ (weight**order).transpose(0, 2, 1)).transpose(0, 2, 1) ** (1 / order)
    return norms.reshape(-1)
