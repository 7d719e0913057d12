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
        self.data = data

    def take(self, dtype, count) -> Any:
        """The next numbers."""
        length = np.dtype(dtype).itemsize * int(count)
        need(length <= len(self.data), "a payload is cut short")
        found, self.data = np.frombuffer(self.data[:length], dtype), self.data[length:]
        return found

    def one(self, dtype):
        """The next number."""
        return int(self.take(dtype, 1)[0])

    def shares(self, count, bits):
        """Numbers in [0, 1] as multiples of 1 / (2^bits - 1), packed from the highest bit on, to the end of a byte."""
        packed = np.unpackbits(self.take(np.uint8, (count * bits + 7) // 8), count=count * bits)
        return packed.reshape(count, bits) @ (1 << np.arange(bits)[::-1]) / (2**bits - 1)


class Improvement:
    """Margins with what a payload adds: relaxations of its own for some classes.

    Args:
        analysis: bounds of every node.
        rows: the margins as functionals of the output, one for each class.
    """

    def __init__(self, analysis, rows):
        self.analysis, self.rows, self.nodes = analysis, rows, analysis.nodes
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
        need(not data.data, "bytes follow a payload")

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
        last = len(self.nodes) - 1
        return self.analysis.walk(last, Rows(self.rows[[target]]), lines, holds=holds if signs else None)[0][0]
