"""Payloads that raise margins: lower slopes of the neurons that are open, and trees of splits into their signs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .claims import SLOPES
from .layers import Rows, need

LEAF = 0xFFFF
STEPS_LIMIT = 1 << 20  # nodes of a tree


class Payload:
    """Numbers in a row of bytes, never read past the end."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, dtype, count) -> Any:
        """The next numbers."""
        length = np.dtype(dtype).itemsize * int(count)
        need(length <= len(self.data) - self.at, "a payload is cut short")
        self.at += length
        return np.frombuffer(self.data[self.at - length : self.at], dtype)

    def one(self, dtype):
        """The next number."""
        return int(self.take(dtype, 1)[0])

    def shares(self, count, bits):
        """Numbers in [0, 1] as multiples of 1 / (2^bits - 1), packed from the highest bit on, to the end of a byte."""
        packed = np.unpackbits(self.take(np.uint8, (count * bits + 7) // 8), count=count * bits)
        return packed.reshape(count, bits) @ (1 << np.arange(bits)[::-1]) / (2**bits - 1)

    def end(self):
        """Refuses bytes that nothing has read."""
        need(self.at == len(self.data), "bytes follow a payload")


class Improvement:
    """Margins with what a payload adds: relaxations of its own for some classes.

    Args:
        analysis: bounds of every node.
        rows: the margins as functionals of the output, one for each class.
        base: what is added to the rows, one number for each; none: 0.
    """

    def __init__(self, analysis, rows, base=None):
        self.analysis, self.rows, self.nodes = analysis, rows, analysis.nodes
        self.base = np.zeros(len(rows), analysis.a.dtype) if base is None else base
        self.columns = analysis.open_neurons()

    def raise_(self, kind, payload, best):
        """Raises the margins that a payload is about."""
        data = Payload(payload)
        bits, count = data.one("u1"), data.one("<u2")
        need(1 <= bits <= 8 and count <= len(self.rows), "a payload's slopes or classes are impossible")
        for _ in range(count):
            target = data.one("<u2")
            need(target < len(self.rows), "a payload speaks of a class that is none")
            found = self._leaf(target, {}, data, bits) if kind == SLOPES else self._tree(target, data, bits)
            best[target] = np.maximum(best[target], found)
        data.end()

    def _tree(self, target, data, bits):
        """The least bound of a tree's leaves: they cover the region, as both sides follow a split."""
        lowest, open_sides, steps = math.inf, [{}], 0
        while open_sides:
            signs, steps = open_sides.pop(), steps + 1
            need(steps <= STEPS_LIMIT, "a tree is too large")
            column = data.one("<u2")
            if column == LEAF:
                lowest = np.minimum(lowest, self._leaf(target, signs, data, bits))  # NaN stays
                continue
            need(column < len(self.columns), "a tree splits a neuron that is not open")
            need(column not in signs, "a tree splits a neuron twice")
            open_sides += [{**signs, column: -1}, {**signs, column: 1}]  # the side of inputs >= 0 is read first
        return lowest

    def _leaf(self, target, signs, data, bits):
        """A lower bound over the inputs of the region that give the split neurons their signs."""
        shares, betas = data.shares(len(self.columns), bits), data.take("<f2", len(signs))
        need((betas >= 0).all(), "a multiplier is negative")
        dtype = self.analysis.a.dtype
        slopes = {n: np.ones(node.size, dtype) for n, node in enumerate(self.nodes) if node.kind == "relu"}
        for (node, neuron), share in zip(self.columns, shares, strict=True):
            slopes[node][neuron] = share
        lines, holds = self.analysis.with_slopes(slopes), {node: np.zeros_like(slopes[node]) for node in slopes}
        for (column, sign), beta in zip(signs.items(), betas, strict=True):
            node, neuron = self.columns[column]
            for part, value in zip(lines[node], (sign > 0, sign > 0, 0), strict=True):
                part[neuron] = value
            holds[node][neuron] = -sign * self.analysis.a.exact(beta)
        rows, base, holds = Rows(self.rows[[target]]), self.base[[target]], holds if signs else None
        return self.analysis.walk(len(self.nodes) - 1, rows, lines, base, holds=holds)[0][0]
