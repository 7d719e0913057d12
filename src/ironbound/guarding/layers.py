"""Affine layers as parts of a program: each says how values go up through it, and how functionals come down.

Values are flat, [rows, size]. Elements of a feature map are kept channels last, so that a pixel is moved as one block:
`Order` says which element lies where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ironbound.certificate.checker.layers import Affine, Rows
from ironbound.errors import UnsupportedOperatorError
from ironbound.guarding.program import Program

DENSE_LIMIT = 1 << 23  # elements of the matrix of a layer that is neither a convolution nor element by element


@dataclass(frozen=True, eq=False)
class Order:
    """How the elements of a node are laid out.

    Attributes:
        natural: the natural (row-major) number of each element, in the order that it is kept in, int64 [size].
        positions: number of pixels; 1 where the value is no map.
    """

    natural: np.ndarray
    positions: int = 1

    @classmethod
    def of(cls, shape: Sequence[int]) -> Order:
        """Channels last for a map [channels, *extents], else the natural order."""
        size = math.prod(shape)
        if len(shape) < 2:
            return cls(np.arange(size))
        return cls(np.arange(size).reshape(shape[0], -1).T.reshape(-1), size // shape[0])

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.natural)

    @property
    def channels(self) -> int:
        """Elements of a pixel."""
        return self.size // self.positions

    def into(self, other: Order) -> np.ndarray | None:
        """Index that brings a value into another order; None where it is there already."""
        if np.array_equal(self.natural, other.natural):
            return None
        return np.argsort(self.natural)[other.natural]


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine layer A x + b.

    Attributes:
        orders: of its inputs.
        order: of its output.
        bias: [size], in the output's order.
        spread: [size], the magnitudes that the bias was computed from.
        count: no sum that the layer needs, upwards or downwards, has more terms.
    """

    orders: tuple[Order, ...]
    order: Order
    bias: np.ndarray
    spread: np.ndarray
    count: int

    def forward(self, p: Program, values: list[str], absolute: bool = False) -> str:
        """A x, or |A| x, without b, for values [rows, size]."""
        raise NotImplementedError

    def adjoint(self, p: Program, rows: str) -> list[str]:
        """Functionals of the output, [rows, size], as functionals of each input."""
        raise NotImplementedError

    def with_bias(self, p: Program, value: str) -> str:
        """Adds b."""
        return p.op("Add", value, p.hold(self.bias)) if self.bias.any() else value


def _weight(p: Program, matrix: np.ndarray, absolute: bool = False, transposed: bool = False) -> str:
    # the matrix is held once; what is made of it is folded when the program is loaded
    name = p.hold(matrix)
    name = p.op("Abs", name) if absolute else name
    return p.op("Transpose", name, perm=[1, 0]) if transposed else name


@dataclass(frozen=True, eq=False)
class Dense(Layer):
    """A matrix [outputs, inputs]."""

    matrix: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def forward(self, p: Program, values: list[str], absolute: bool = False) -> str:
        """A product."""
        # few values, a large matrix: as its left factor it is read once, and in the layout that the adjoint reads
        value = values[0] if len(values) == 1 else p.op("Concat", *values, axis=1)
        columns = p.op("Transpose", value, perm=[1, 0])
        return p.op("Transpose", p.op("MatMul", _weight(p, self.matrix, absolute), columns), perm=[1, 0])

    def adjoint(self, p: Program, rows: str) -> list[str]:
        """A product with the transposed matrix."""
        return p.split(p.op("MatMul", rows, _weight(p, self.matrix)), [order.size for order in self.orders])

    def unit_rows(self, p: Program, neuron: str) -> str:
        """Rows of single outputs."""
        return p.gather(_weight(p, self.matrix), neuron)


@dataclass(frozen=True, eq=False)
class Elementwise(Layer):
    """A factor for every element."""

    factor: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def forward(self, p: Program, values: list[str], absolute: bool = False) -> str:
        """A product with the factors."""
        return p.op("Mul", values[0], p.hold(abs(self.factor) if absolute else self.factor))

    def adjoint(self, p: Program, rows: str) -> list[str]:
        """The map is its own adjoint."""
        return [p.op("Mul", rows, p.hold(self.factor))]


@dataclass(frozen=True, eq=False)
class Sum(Layer):
    """Equally shaped values, each with a number as its factor."""

    factors: tuple[float, ...] = ()

    def forward(self, p: Program, values: list[str], absolute: bool = False) -> str:
        """Adds up, in the order of the first value."""
        terms = []
        for value, factor, order in zip(values, self.factors, self.orders, strict=True):
            index = order.into(self.order)
            value = value if index is None else p.gather(value, index, axis=1)
            terms.append(p.op("Mul", value, p.hold(abs(factor) if absolute else factor)))
        return terms[0] if len(terms) == 1 else p.op("Sum", *terms)

    def adjoint(self, p: Program, rows: str) -> list[str]:
        """Hands every input its share."""
        parts = []
        for factor, order in zip(self.factors, self.orders, strict=True):
            index = self.order.into(order)
            part = rows if index is None else p.gather(rows, index, axis=1)
            parts.append(p.op("Mul", part, p.hold(factor)))
        return parts


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """A convolution in one group.

    Attributes:
        kernel: [taps * input channels, output channels].
        index: the input pixel that each tap of each output pixel reads, [output pixels, taps]; the number of input
            pixels where it is padding.
        options: stride, padding, dilation and size of the kernel, per axis.
        extents: of the input and of the output map.
    """

    kernel: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    index: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    options: tuple[tuple[int, ...], ...] = ()
    extents: tuple[tuple[int, ...], tuple[int, ...]] = ((0,), (0,))

    @property
    def taps(self) -> int:
        """Elements of the kernel for one channel."""
        return self.index.shape[1]

    def forward(self, p: Program, values: list[str], absolute: bool = False) -> str:
        """Gathers the patches, and multiplies them by the kernel."""
        source = self.orders[0]
        value = p.reshape(values[0], -1, source.positions, source.channels)
        value = p.with_zero(value) if (self.index == source.positions).any() else value
        patches = p.reshape(p.gather(value, self.index.reshape(-1), axis=1), -1, len(self.index), len(self.kernel))
        return p.reshape(p.op("MatMul", patches, _weight(p, self.kernel, absolute)), -1, self.order.size)

    def adjoint(self, p: Program, rows: str) -> list[str]:
        """Multiplies by the kernel, and adds up what meets in each input pixel."""
        source, flat = self.orders[0], self.index.reshape(-1)
        counts = np.bincount(flat, minlength=source.positions + 1)[: source.positions]
        meeting = np.full((max(1, counts.max()), source.positions), flat.size)
        seen = np.zeros(source.positions + 1, np.int64)
        for place, pixel in enumerate(flat.tolist()):
            if pixel < source.positions:
                meeting[seen[pixel], pixel] = place
                seen[pixel] += 1
        rows = p.reshape(rows, -1, self.order.positions, self.order.channels)
        return [p.reshape(self.scattered(p, rows, meeting), -1, source.size)]

    def scattered(self, p: Program, rows: str, meeting: np.ndarray) -> str:
        """Products of pixels with the kernel, added up where they meet.

        Args:
            p: the program.
            rows: [rows, pixels, output channels].
            meeting: pixel * taps + tap of the products that meet, [most that meet, pixels below]; pixels * taps: none.

        Returns:
            [rows, pixels below, input channels].
        """
        channels = self.orders[0].channels
        products = p.op("MatMul", p.with_zero(rows), _weight(p, self.kernel, transposed=True))
        if channels == 1 and len(meeting) > 1:
            return self._scattered_alone(p, products, meeting)
        products = p.op("Reshape", products, p.batch_shape(products, -1, channels))
        parts = [p.gather(products, line, axis=1) for line in meeting]
        return parts[0] if len(parts) == 1 else p.op("Sum", *parts)

    def _scattered_alone(self, p: Program, products: str, meeting: np.ndarray) -> str:
        """For one channel below: all rows of a pixel move together, as single numbers would take long."""
        rows = p.op("Transpose", p.op("Flatten", products), perm=[1, 0])
        parts = p.reshape(p.gather(rows, meeting.reshape(-1)), *meeting.shape, -1)
        return p.op("Unsqueeze", p.op("Transpose", p.total(parts, 0), perm=[1, 0]), p.hold(np.array([2])))

    def patch_matrix(self, meeting: np.ndarray, pixels: int) -> np.ndarray:
        """What `scattered` does as one matrix, [pixels * output channels, pixels below * input channels]."""
        below, outputs = meeting.shape[1], self.order.channels
        kernel = self.kernel.T.reshape(outputs, self.taps, -1)
        matrix = np.zeros((pixels, outputs, below, kernel.shape[2]))
        for line in meeting:
            for place, number in enumerate(line.tolist()):
                if number < pixels * self.taps:
                    matrix[number // self.taps, :, place] = kernel[:, number % self.taps]
        return matrix.reshape(pixels * outputs, -1)

    def transposed(self, p: Program) -> str:
        """The kernel, [output channels, taps * input channels]."""
        return _weight(p, self.kernel, transposed=True)

    def unit_rows(self, p: Program, channel: str) -> str:
        """Kernels of single output channels, [rows, taps * input channels]."""
        return p.gather(self.transposed(p), channel)


def _constants(node: Affine, order: Order) -> tuple[np.ndarray, np.ndarray]:
    return node.bias[order.natural], node.spread[order.natural]


def layer_of(node: Affine, entry: dict[str, Any], orders: list[Order], shapes: list[Sequence[int]]) -> Layer:
    """The layer that a node of a network file describes.

    Args:
        node: as the certificate checker reads it.
        entry: its description in the file.
        orders: of its inputs.
        shapes: of its inputs, and of its output.

    Returns:
        The layer.

    Raises:
        UnsupportedOperatorError: the layer needs too large a matrix.
    """
    count = node.count + max(1, node.readers.shape[1])
    share = 1.0 if node.divisor is None else 1 / node.divisor
    if entry["op"] == "conv" and node.taps and orders[0].into(Order.of(shapes[0])) is None:
        order = Order.of(shapes[1])
        inner, outputs = shapes[0][0], shapes[1][0]
        kernel = node.weights[0][0].reshape(outputs, inner, node.taps).transpose(2, 1, 0).reshape(-1, outputs)
        index = np.minimum(node.index[0, :, : node.taps], orders[0].positions)
        extents = tuple(shapes[0][1:]), tuple(shapes[1][1:])
        size = tuple(int(extent) for extent in entry["kernel"])
        options = tuple(entry["stride"]), tuple(entry["padding"]), tuple(entry["dilation"]), size
        common = tuple(orders), order, *_constants(node, order), max(count, len(kernel), outputs * node.taps)
        return Convolution(*common, kernel, index, options, extents)
    if entry["op"] in ("scale", "batch_norm"):
        (order,) = orders
        factor = np.repeat(node.weights[0].reshape(-1), node.index.shape[1]) * share
        return Elementwise((order,), order, *_constants(node, order), 16, factor[order.natural])
    if entry["op"] == "sum":
        return Sum(
            tuple(orders),
            orders[0],
            *_constants(node, orders[0]),
            len(orders) + 2,
            tuple(node.weights[0].reshape(-1).tolist()),
        )
    if node.n * node.size > DENSE_LIMIT:
        raise UnsupportedOperatorError(
            f"a {entry['op']} layer from {node.n} to {node.size} values is exported as a matrix, too large here; "
            "guards are exported with convolutions in one group, linear layers, batch norm, sums and small pooling."
        )
    order = Order.of(shapes[-1])
    pulled = node.pull(Rows(np.eye(node.size)))
    rows = np.concatenate([part.coef[:, own.natural] for part, own in zip(pulled, orders, strict=True)], 1)
    return Dense(tuple(orders), order, *_constants(node, order), max(node.n, node.size) + 4, rows[order.natural])
