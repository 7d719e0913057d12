"""Bounds of every node over a region, by induction with the dual network (Wong and Kolter 2018, Theorem 1)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .layers import Affine, Arithmetic, Node, Rows, need

CHUNK = 1 << 23  # elements of a chunk of rows


class Region:
    """A norm ball around x, cut off at the ends of the clip: a box around all of it, and the ball."""

    def __init__(self, a: Arithmetic, x, norm, eps, clip):
        self.a, self.norm, self.clipped, self.x = a, norm, not math.isnan(clip[0]), a.exact(x.reshape(-1))
        self.eps = a.dtype.type(eps)
        inside = not self.clipped or ((clip[0] <= self.x) & (self.x <= clip[1])).all()
        need(inside, "an input lies outside the clip")
        if float(self.eps) < eps:
            self.eps = np.nextafter(self.eps, a.top)
        self.middle, self.radius = self.x, 0 * self.x + self.eps
        if self.clipped:
            low = np.maximum(np.nextafter(self.x - self.eps, -a.top), a.exact(clip[0]))
            high = np.minimum(np.nextafter(self.x + self.eps, a.top), a.exact(clip[1]))
            self.middle = (low + high) / 2
            self.radius = a.over(np.maximum(high - self.middle, self.middle - low), 1)

    def values(self, rows):
        """Pairs of a middle value of each row, and how far the inputs can move it; all of them hold."""
        if self.norm == "linf" or self.clipped:
            yield rows.dot(self.middle), self.a.over(rows.magnitude(self.radius), len(self.x))
        if self.norm != "linf":
            coef = rows.dense(len(self.x))
            reach = abs(coef).max(1) if self.norm == "l1" else np.sqrt(self.a.over((coef * coef).sum(1), len(self.x)))
            yield coef @ self.x, self.a.over(reach * self.eps, 4)


class Analysis:
    """Bounds of every node, bottom up; `sharp` takes the best of several relaxations on the way.

    For each node: `low` and `high` of its value; `most`, of its magnitude and of |A| |x| + |b|; what a functional c of
    it pays for rounding and noise, |c| charge + slack; `depth` 0 for the input's box, 1 where intervals are exact.
    """

    def __init__(self, nodes: list[Node], a: Arithmetic, region: Region, mode="real", sharp=False):
        self.nodes, self.a, self.region, self.mode, self.sharp = nodes, a, region, mode, sharp
        self.low, self.high, self.most, self.rounding, self.charge, self.slack, self.depth = ([] for _ in range(7))
        self.lines = {}
        for n, node in enumerate(nodes):
            if isinstance(node, Affine):
                self._affine(node)
            elif node.kind == "input":
                ends = (np.nextafter(region.middle + sign * region.radius, sign * a.top) for sign in (-1, 1))
                low, high = ends
                self._append(node, low, high, a.over(abs(region.middle) + region.radius, 2), 0, node.size, 0)
            else:
                source = node.inputs[0]
                self._tighten(source)
                self.lines[n] = self._line(self.low[source], self.high[source])
                low, high = np.maximum(self.low[source], 0), np.maximum(self.high[source], 0)
                self._append(node, low, high, high, 0, 1, 2)

    def _append(self, node, low, high, most, noise, count, depth):
        rounding = self.a.over(self.a.e(count) * most, 4)
        below = sum(self.most[i].sum() for i in node.inputs)
        slack = self.a.over((count + 8) * self.a.tiny * (1 + most.sum() + below), 2 * node.size)
        columns = self.low, self.high, self.most, self.rounding, self.charge, self.slack, self.depth
        values = low, high, most, rounding, self.a.over(rounding + noise, 1), slack, depth
        for column, value in zip(columns, values, strict=True):
            column.append(value)

    def _affine(self, node):
        """Interval arithmetic, and the largest magnitudes."""
        a, inputs, count = self.a, node.inputs, node.count
        most = a.over(node.run([self.most[i] for i in inputs], 1) + node.spread, count)
        noise = 0 * most if self.mode == "real" else self._noise(node, most)
        middle = [(self.low[i] + self.high[i]) / 2 for i in inputs]
        radius = [a.over(np.maximum(self.high[i] - m, m - self.low[i]), 1) for i, m in zip(inputs, middle, strict=True)]
        at_middle = a.over(node.run([abs(m) for m in middle], 1) + node.spread, count)
        underflow = (count + 8) * a.tiny * (1 + max(abs(m).max() for m in middle))
        reach = a.over(node.run(radius, 1), count) + a.over(a.e(count) * at_middle, 1) + noise + underflow
        center, reach = node.run(middle) + node.bias, a.over(reach, 4)
        depth = max(self.depth[i] for i in inputs) + (node.weights[0].shape[2] > 1) + 2 * (len(inputs) > 1)
        low, high = np.nextafter(center - reach, -a.top), np.nextafter(center + reach, a.top)
        self._append(node, low, high, most, noise, count, depth)

    def _noise(self, node, most):
        """How far a float32 run is off: gamma_k M for k roundings, one for each input that can be other than 0."""
        parts = [self.most[i] for i in node.inputs]
        share = (node.run([(part > 0).astype(self.a.dtype) for part in parts], 2) + node.extra) * 2.0**-24
        need(share.max() < 1 / 8, "sums of the network are too long for float32")
        flushed = (node.count + 8) * 2.0**-126 * (1 + max(part.max() for part in parts))
        return self.a.over(self.a.over(share / (1 - share), 4) * most, 1) + flushed

    def _line(self, low, high, slope=None):
        """Lower slope, upper slope, upper intercept of ReLU on [low, high]: any slope in [0, 1] gives sound lines."""
        on, closed = low >= 0, (low >= 0) | (high <= 0)
        chord = np.where(closed, on, np.clip(high / np.where(closed, 1, high - low), 0, 1)).astype(low.dtype)
        top = np.where(closed, 0, self.a.over(np.maximum((1 - chord) * high, -chord * low), 4)).astype(low.dtype)
        return (chord if slope is None else np.where(closed, chord, slope)), chord, top

    def with_slopes(self, slopes=None):
        """The lines with given lower slopes for some nodes; without them 0 or 1, whichever leaves less room."""
        ends = {n: (self.low[self.nodes[n].inputs[0]], self.high[self.nodes[n].inputs[0]]) for n in self.lines}
        if slopes is None:
            slopes = {n: (high > -low).astype(low.dtype) for n, (low, high) in ends.items()}
        return {n: self._line(low, high, slopes.get(n)) for n, (low, high) in ends.items()}

    def open_neurons(self):
        """The neurons that the bounds leave open, in order: (node, flat index)."""
        ends = [(n, self.low[self.nodes[n].inputs[0]], self.high[self.nodes[n].inputs[0]]) for n in self.lines]
        return [(n, int(neuron)) for n, low, high in ends for neuron in np.flatnonzero((low < 0) & (high > 0))]

    def _tighten(self, source):
        """Bounds by rows for the neurons of a node that intervals leave open, where intervals are not exact."""
        low, high = self.low[source].copy(), self.high[source].copy()
        neurons = np.flatnonzero(~((low >= 0) | (high <= 0)))
        if len(neurons) == 0 or (self.region.norm == "linf" and self.depth[source] <= 1):
            return
        for part in np.array_split(neurons, len(neurons) * max(node.size for node in self.nodes) // CHUNK + 1):
            below, above = self.bound(source, part, self.lines)
            if self.sharp:
                lines = self.with_slopes()
                below = np.maximum.reduce([below, low[part], self.bound(source, part, lines)[0]])
                above = np.minimum.reduce([above, high[part], -self.bound(source, part, lines, -1)[0]])
            low[part], high[part] = below, above
        self.low[source], self.high[source] = low, high

    def bound(self, source, neurons, lines, sign=1):
        """Bounds of single values (times a sign) of a node; the upper ones hold for lines with one slope only."""
        node = self.nodes[source]
        if isinstance(node, Affine) and len(node.inputs) == 1 and node.divisor is None:
            rows, base = node.units(neurons), sign * node.bias[neurons]
            rows.coef = sign * rows.coef
            return self.walk(node.inputs[0], rows, lines, base, self.charge[source][neurons] + self.slack[source])
        unit = np.zeros((len(neurons), node.size), self.a.dtype)
        unit[np.arange(len(neurons)), neurons] = sign
        return self.walk(source, Rows(unit), lines)

    def output(self, rows, base: Any = 0):
        """Lower bounds of rows of the output, by the better of both kinds of slopes."""
        start, kinds = len(self.nodes) - 1, (self.lines, self.with_slopes())
        return np.maximum(*(self.walk(start, Rows(rows), lines, base)[0] for lines in kinds))

    def walk(self, start, rows, lines, base: Any = 0, error: Any = 0, holds=None):
        """Lower bounds of rows of a node, and upper bounds if every line has one slope: equations (6) and (7).

        Args:
            start: the node.
            rows: functionals of its value.
            lines: of every ReLU below.
            base: what is added to the rows' values.
            error: what the rows have paid already.
            holds: for every ReLU what splits add to the coefficients of its inputs.

        Returns:
            Lower bounds and upper bounds, [rows].
        """
        a, low, high, pending = self.a, base, base, {start: [rows]}
        for n in range(start, -1, -1):
            parts, node = pending.pop(n, None), self.nodes[n]
            if parts is None:
                continue
            rows = parts[0]
            if len(parts) > 1:  # every part was rounded, and so are their sums
                dense = [part.dense(node.size) for part in parts]
                rows, weight = Rows(sum(dense)), sum(abs(part) for part in dense)
                error = error + len(parts) * a.over(weight @ self.rounding[n], node.size + len(parts))
            error = error + a.over(rows.magnitude(self.charge[n]), node.size) + self.slack[n]
            if isinstance(node, Affine):
                constant = rows.dot(node.bias)
                low, high = low + constant, high + constant
                for source, part in zip(node.inputs, node.pull(rows), strict=True):
                    pending.setdefault(source, []).append(part)
            elif node.kind == "relu":
                lower, upper, top = lines[n]
                under, over, top = np.minimum(rows.coef, 0), np.maximum(rows.coef, 0), rows.at(top)
                low = low - a.over(-(under * top).sum(1), node.size)
                high = high + a.over((over * top).sum(1), node.size)
                parallel = lower is upper
                part = rows.coef * rows.at(upper) if parallel else over * rows.at(lower) + under * rows.at(upper)
                part = rows.like(part)
                part = part if holds is None else Rows(part.dense(node.size) + holds[n])
                pending.setdefault(node.inputs[0], []).append(part)
            else:
                found = [(low + middle, high + middle, reach) for middle, reach in self.region.values(rows)]
                error = error + sum(a.e(0) * (abs(below) + abs(above)) for below, above, _ in found)
                low = np.maximum.reduce([below - reach for below, _, reach in found])
                high = np.minimum.reduce([above + reach for _, above, reach in found])
            error = error + a.e(0) * (abs(low) + abs(high))
        error = a.over(error, 8 * len(self.nodes))
        return np.nextafter(low - error, -a.top), np.nextafter(high + error, a.top)
