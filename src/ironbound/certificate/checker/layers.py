"""Number formats, and every layer as one kind of affine map with an exact account of what it reads."""

from __future__ import annotations

import math

import numpy as np

SIZE_LIMIT = 1 << 26  # elements of a value, a weight or an index


class CertificateError(ValueError):
    """A file is not well formed, or does not belong to what it is checked against."""


def need(condition, message):
    """Raises CertificateError unless the condition holds."""
    if not condition:
        raise CertificateError(message)


class Arithmetic:
    """Rounding to nearest in a number format. e(n) is at least twice gamma_n: the rest pays for computing charges."""

    def __init__(self, dtype=np.float64):
        info = np.finfo(dtype)
        self.dtype, self.u = np.dtype(dtype), float(info.eps) / 2
        # results below the normal range may be flushed to 0, except in float16, which is computed in float32
        self.tiny = float(info.smallest_subnormal if self.dtype.itemsize == 2 else info.tiny)
        self.top = self.dtype.type(np.inf)

    def e(self, n):
        """The relative error of a sum of n products and of a few operations around it."""
        if n * self.u > 1 / 8:
            raise CertificateError(f"sums of {n} terms are too long for {self.dtype}")
        return (2 * n + 8) * self.u

    def over(self, value, n):
        """An upper bound of an exact sum of n nonnegative products whose computed value is given."""
        return value * (1 + self.e(n)) + (n + 2) * self.tiny

    def exact(self, array):
        """The array in this format; refuses to round."""
        result = np.asarray(array).astype(self.dtype)
        need(np.isfinite(result).all() and (result == array).all(), f"a number is not finite, or not a {self.dtype}")
        return result


class Rows:
    """Linear functionals of a flat value: [rows, size], or [rows, entries] at the places `table[which]`.

    The place `size` is nowhere; rows share the lines of the table. `taps`: places of each channel of a map, see `pull`.
    """

    def __init__(self, coef, table=None, which=None, taps=0):
        self.coef, self.table, self.which, self.taps = coef, table, which, taps

    def like(self, coef):
        """Other coefficients at the same places."""
        return Rows(coef, self.table, self.which, self.taps)

    def at(self, value):
        """The value where the coefficients are."""
        return value if self.table is None else np.append(value, value.dtype.type(0))[self.table][self.which]

    def dot(self, value):
        """The rows' values at a value."""
        return self.coef @ value if self.table is None else np.einsum("rk,rk->r", self.coef, self.at(value))

    def magnitude(self, value):
        """The rows' absolute coefficients at a value."""
        return self.like(abs(self.coef)).dot(value)

    def dense(self, size):
        """All coefficients, [rows, size]."""
        if self.table is None:
            return self.coef
        full = np.zeros((len(self.coef), size + 1), self.coef.dtype)
        np.put_along_axis(full, self.table[self.which], self.coef, 1)
        return full[:, :-1]


class Node:
    """The input, or a ReLU; values are flat vectors."""

    def __init__(self, kind, inputs, size):
        need(0 < size <= SIZE_LIMIT, f"{kind} cannot have {size} elements")
        self.kind, self.inputs, self.size = kind, inputs, size


class Affine(Node):
    """y[g, o, p] = sum_k weight[g, o, k] x[index[g, p, k]] / divisor + bias: every affine layer there is.

    x is all inputs one after the other, and 0 at the end for padding. `spread` is what |bias| was computed from,
    `extra` the roundings that a float32 run puts on an output besides one for each input that is not 0.
    """

    def __init__(self, inputs, sizes, weight, index, bias=None, spread=None, divisor=None, extra=1, taps=0):
        super().__init__("affine", inputs, weight.shape[0] * weight.shape[1] * index.shape[1])
        self.n, self.sizes, self.index = sum(sizes), sizes, index
        self.divisor, self.extra, self.taps = divisor, extra, taps
        need(0 < max(weight.size, index.size) <= SIZE_LIMIT and len(sizes) == len(inputs), "a layer is too large")
        need(index.min() >= 0 and index.max() <= self.n, "an index leaves its input")
        self.weights = weight, abs(weight), np.ones_like(weight)
        self.bias = np.zeros(self.size, weight.dtype) if bias is None else bias
        self.spread = abs(self.bias if spread is None else spread)
        fit = all(part is None or part.shape == (self.size,) for part in (self.bias, divisor))
        need(fit, "a bias or divisor does not fit")
        self.count = max(self.size, weight.shape[2]) + 8  # terms of any sum, and single operations
        flat = index.reshape(-1)
        order = np.argsort(flat, kind="stable")[: np.count_nonzero(flat < self.n)]
        counts = np.bincount(flat[order], minlength=self.n)
        need(self.n * counts.max() <= SIZE_LIMIT, "a layer reads one element too often")
        self.readers = np.full((self.n, max(1, counts.max())), index.size)  # the places of each element in `index`
        slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.readers[flat[order], slot] = order
        self.direct = np.array_equal(self.readers[:, 0], np.arange(index.size)) and self.readers.shape[1] == 1

    def run(self, parts, which=0):
        """A x (0), |A| x (1), or how many entries of x each output reads, x being 0 or 1 (2)."""
        x = np.concatenate([*parts, np.zeros(1, parts[0].dtype)])[self.index]
        y = (x @ self.weights[which].transpose(0, 2, 1)).transpose(0, 2, 1).reshape(-1)
        return y if self.divisor is None or which == 2 else y / self.divisor

    def pull(self, rows):
        """The adjoint of A: rows of each input."""
        weight, (groups, outputs, width), count = self.weights[0], self.weights[0].shape, len(rows.coef)
        fits = groups == 1 and rows.taps * outputs == rows.coef.shape[1] and self.divisor is None
        if rows.table is not None and fits:
            # a patch of a map with `outputs` channels: the positions of the first channel serve all of them
            at = np.minimum(rows.table.reshape(-1, outputs, rows.taps)[:, 0], self.index.shape[1])
            taps = rows.coef.reshape(count, outputs, rows.taps).transpose(0, 2, 1).reshape(-1, outputs) @ weight[0]
            index = np.append(self.index[0], np.full((1, width), self.n), 0)[at].reshape(len(at), -1)[rows.which]
            index += np.arange(count)[:, None] * (self.n + 1)
            full = np.bincount(index.reshape(-1), taps.reshape(-1), count * (self.n + 1))
            full = full.astype(weight.dtype, copy=False).reshape(count, -1)[:, :-1]
        else:
            coef = rows.dense(self.size) if self.divisor is None else rows.dense(self.size) / self.divisor
            coef = coef.reshape(count, groups, outputs, -1).transpose(1, 0, 3, 2).reshape(groups, -1, outputs)
            full = (coef @ weight).reshape(groups, count, -1).transpose(1, 0, 2).reshape(count, -1)
            if not self.direct:
                full = np.append(full.T, np.zeros((1, count), full.dtype), 0)[self.readers].sum(1).T
        return [Rows(part) for part in np.split(full, np.cumsum(self.sizes)[:-1], 1)]

    def units(self, neurons):
        """Rows that pick single outputs, pulled already: nothing is rounded."""
        groups, outputs, width = self.weights[0].shape
        g, o, p = np.unravel_index(neurons, (groups, outputs, self.index.shape[1]))
        return Rows(self.weights[0][g, o], self.index.reshape(-1, width), g * self.index.shape[1] + p, self.taps)


def linear(inputs, shapes, weight, bias=None):
    """W x + b."""
    need(weight.ndim == 2 and tuple(shapes[0]) == weight.shape[1:], "a linear layer does not fit its input")
    index = np.arange(weight.shape[1])[None, None]
    return Affine(inputs, weight.shape[1:], weight[None], index, bias), weight.shape[:1]


def conv(inputs, shapes, weight, stride, padding, dilation, groups=1, bias=None):
    """Convolution over any number of axes, padded with zeros."""
    (channels, *extents), (_, inner, *kernel) = shapes[0], weight.shape
    counts = {len(part) for part in (extents, kernel, stride, padding, dilation)}
    need(counts == {len(extents)} and extents, "the axes of a convolution differ")
    need(min(*stride, *dilation, groups) > 0 <= min(padding), "a convolution has an impossible attribute")
    need(channels == inner * groups and len(weight) % groups == 0, "the channels of a convolution do not fit")
    axes = list(zip(extents, kernel, stride, padding, dilation, strict=True))
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    need(min(out) > 0 and math.prod([*out, channels, *kernel]) <= SIZE_LIMIT, "a convolution is empty or too large")
    line, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), bool)  # [positions, taps], axis by axis
    for (n, k, s, p, d), m in zip(axes, out, strict=True):
        at = (np.arange(m)[:, None] * s - p + np.arange(k) * d)[:, None]
        shape = len(line) * m, line.shape[1] * k
        line = (line[:, None, :, None] * n + at).reshape(shape)
        inside = (inside[:, None, :, None] & (at >= 0) & (at < n)).reshape(shape)
    size = math.prod(extents)
    index = np.arange(channels).reshape(groups, 1, inner, 1) * size + line[:, None]
    index = np.where(inside[:, None], index, channels * size).reshape(groups, len(line), -1)
    bias = None if bias is None else np.repeat(bias, len(line))
    kernels, taps = weight.reshape(groups, len(weight) // groups, -1), line.shape[1] if groups == 1 else 0
    return Affine(inputs, [channels * size], kernels, index, bias, taps=taps), (len(weight), *out)


def scale(inputs, shapes, factor, offset=None, divisor=None):
    """A factor times x, over a divisor, plus an offset: one number of each for each channel, or for each element."""
    need(divisor is None or divisor.min() > 0, "a divisor is not positive")
    return scaled(inputs, shapes, factor, offset, None, divisor, 4)


def scaled(inputs, shapes, factor, offset, spread, divisor, extra):
    """`scale` with what only batch norm says, too."""
    index = np.arange(math.prod(shapes[0])).reshape(factor.size, -1, 1)
    parts = [offset, spread, divisor]
    bias, spread, divisor = [None if part is None else np.repeat(part.reshape(-1), index.shape[1]) for part in parts]
    weight = factor.reshape(-1, 1, 1)
    return Affine(inputs, [index.size], weight, index, bias, spread, divisor, extra), shapes[0]


def batch_norm(inputs, shapes, mean, variance, epsilon, weight=None, bias=None):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias, channel by channel."""
    need(mean.shape == variance.shape == (shapes[0][0],) and min(variance) >= 0 < epsilon, "a batch norm does not fit")
    factor = 1 / np.sqrt(variance + variance.dtype.type(epsilon)) * (1 if weight is None else weight)
    bias = 0 * mean if bias is None else bias
    return scaled(inputs, shapes, factor, bias - mean * factor, abs(bias) + abs(mean * factor), None, 16)


def mean(inputs, shapes, shape, index, divisor, constant=None):
    """Sums of chosen elements over whole numbers: average pooling, pads, slices, transpositions, concatenation."""
    sizes, size = [math.prod(source) for source in shapes], math.prod(shape)
    need(index.ndim == 2 and len(index) == size and divisor.shape == (size,) and min(divisor) > 0, "a mean is wrong")
    ones = np.ones((1, 1, index.shape[1]), divisor.dtype)
    return Affine(inputs, sizes, ones, index[None], constant, divisor=divisor, extra=3), shape


def weighted_sum(inputs, shapes, factors):
    """A sum of equally shaped values with a factor for each."""
    need(len(factors) == len(inputs) and len({tuple(shape) for shape in shapes}) == 1, "the parts of a sum do not fit")
    size = math.prod(shapes[0])
    index = np.arange(len(inputs) * size).reshape(1, len(inputs), size).transpose(0, 2, 1)
    return Affine(inputs, [size] * len(inputs), factors[None, None], index), shapes[0]
