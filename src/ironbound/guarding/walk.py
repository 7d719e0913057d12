"""Functionals on their way to the input: dense rows, or patches of feature maps (Wong & Kolter 2018, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ironbound.guarding.layers import Convolution, Elementwise, Layer, Sum
from ironbound.guarding.program import Program
from ironbound.guarding.windows import Patch

MATRIX_LIMIT = 1 << 17  # elements of a patch-to-patch matrix; beyond it the parts that meet are gathered


@dataclass(frozen=True, eq=False)
class Reach:
    """How far functionals of the input can move over the region: ε times a dual norm, or a radius per element.

    Attributes:
        order: of the dual norm: 1, 2 or inf.
        eps: the radius.
        radius: value [n, size], the semi-axes of each example's box (order 1); None where all are ε.
    """

    order: float
    eps: float
    radius: str | None = None

    def of(self, p: Program, coefficients: str) -> str:
        """Of coefficients [rows, size] that need no semi-axes."""
        if self.order == 2:
            norm = p.total(coefficients, 1, "ReduceL2")
        else:  # onnxruntime's ReduceL1 takes several times as long as these two
            norm = p.total(p.op("Abs", coefficients), 1, "ReduceMax" if math.isinf(self.order) else "ReduceSum")
        return p.op("Mul", norm, p.hold(self.eps))


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Coefficients of every element of a node, [rows, size], and each row's example, int64 [rows]."""

    coefficients: str
    example: str

    def plus(self, p: Program, other: DenseRows) -> DenseRows:
        """Adds up what two readers of a node ask of it."""
        return DenseRows(p.op("Add", self.coefficients, other.coefficients), self.example)

    def times(self, p: Program, slope: str) -> DenseRows:
        """Times a value [n, size] of each row's example."""
        return DenseRows(p.op("Mul", self.coefficients, p.gather(slope, self.example)), self.example)

    def widening(self, p: Program, gap: str) -> str:
        """Sum of |coefficients| times a value of each row's example, [rows]."""
        size = p.op("Abs", self.coefficients)
        return p.total(p.op("Mul", size, p.gather(gap, self.example)), 1)

    def pull(self, p: Program, layer: Layer) -> list[DenseRows]:
        """Functionals of a layer's inputs."""
        return [DenseRows(part, self.example) for part in layer.adjoint(p, self.coefficients)]

    def reach(self, p: Program, reach: Reach) -> str:
        """How far the rows can move over the region, [rows]."""
        return self.widening(p, reach.radius) if reach.radius is not None else reach.of(p, self.coefficients)


@dataclass(frozen=True, eq=False)
class PatchRows:
    """Coefficients [rows, pixels * channels] of a patch of a map; `pixel` is each row's output pixel, int64 [rows]."""

    coefficients: str
    example: str
    pixel: str
    patch: Patch
    channels: int

    def _like(self, coefficients: str) -> PatchRows:
        return PatchRows(coefficients, self.example, self.pixel, self.patch, self.channels)

    def _size(self) -> int:
        return len(self.patch) * self.channels

    def at(self, p: Program, value: str) -> str:
        """The patches of a value [n, size], 0 outside the map: [rows, pixels * channels]."""
        positions = int(np.prod(self.patch.extents))
        padded = p.with_zero(p.reshape(value, -1, positions, self.channels))
        first = p.op("Mul", self.example, p.hold(np.array(positions + 1)))
        places = p.gather(p.hold(self.patch.table()), self.pixel)
        index = p.op("Add", places, p.op("Unsqueeze", first, p.hold(np.array([1]))))
        return p.reshape(p.gather(p.reshape(padded, -1, self.channels), index), -1, self._size())

    def inside(self, p: Program) -> str | None:
        """1 where the patch lies on the map, else 0; None where it never leaves it."""
        table = self.patch.table()
        on_map = table < int(np.prod(self.patch.extents))
        if on_map.all():
            return None
        return p.gather(p.hold(np.repeat(on_map, self.channels, 1).astype(np.float64)), self.pixel)

    def times(self, p: Program, slope: str) -> PatchRows:
        """Times a value [n, size] of each row's example; 0 outside the map."""
        return self._like(p.op("Mul", self.coefficients, self.at(p, slope)))

    def widening(self, p: Program, gap: str) -> str:
        """Sum of |coefficients| times a value of each row's example, [rows]."""
        return p.total(p.op("Mul", p.op("Abs", self.coefficients), self.at(p, gap)), 1)

    def pull(self, p: Program, layer: Layer) -> list[PatchRows]:
        """Functionals of the input of a convolution, or of a layer that works element by element."""
        if isinstance(layer, Elementwise):
            table = np.append(layer.factor.reshape(-1, self.channels), np.zeros((1, self.channels)), 0)
            factors = p.gather(p.hold(table[self.patch.table()].reshape(-1, self._size())), self.pixel)
            return [self._like(p.op("Mul", self.coefficients, factors))]
        assert isinstance(layer, Convolution)
        mask = self.inside(p)
        own = self.coefficients if mask is None else p.op("Mul", self.coefficients, mask)
        patch, meeting = self.patch.below(layer)
        channels = layer.orders[0].channels
        if self._size() * len(patch) * channels <= MATRIX_LIMIT:
            flat = p.op("MatMul", own, p.hold(layer.patch_matrix(meeting, len(self.patch))))
        else:
            rows = layer.scattered(p, p.reshape(own, -1, len(self.patch), self.channels), meeting)
            flat = p.reshape(rows, -1, len(patch) * channels)
        return [PatchRows(flat, self.example, self.pixel, patch, channels)]

    def reach(self, p: Program, reach: Reach) -> str:
        """How far the rows can move over the region, [rows]."""
        if reach.radius is not None:
            return self.widening(p, reach.radius)
        mask = self.inside(p)
        return reach.of(p, self.coefficients if mask is None else p.op("Mul", self.coefficients, mask))


AnyRows = DenseRows | PatchRows


def patches_fit(layers: list[Layer | None]) -> bool:
    """Whether rows of a convolution's output stay small patches down a chain of layers.

    Args:
        layers: from the top, the first a convolution; None stands for an activation.

    Returns:
        True where each layer reads one input and the patches stay smaller than their maps.
    """
    patch: Patch | None = None
    for layer in layers:
        if isinstance(layer, Convolution):
            patch = Patch.of(layer) if patch is None else patch.below(layer)[0]
            if not patch.fits():
                return False
        elif layer is not None and (isinstance(layer, Sum) or not isinstance(layer, Elementwise)):
            return False
    return patch is not None
