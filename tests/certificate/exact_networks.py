"""Random networks of every layer kind that the checker reads, and the same networks in rational arithmetic.

The rational side is a second writing from the definitions: loops over single elements, dense matrices of fractions.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

GAMMA_UNIT = Fraction(1, 2**24)


def exact(array) -> np.ndarray:
    """An array of fractions."""
    flat = [Fraction(float(value)) for value in np.asarray(array).reshape(-1)]
    return np.array(flat, dtype=object).reshape(np.shape(array))


def zeros(*shape: int) -> np.ndarray:
    return np.full(shape, Fraction(0), dtype=object)


def root(value: Fraction) -> Fraction:
    """The square root, right to 200 bits."""
    shift = 400
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))


class Builder:
    """Collects the arrays and the description of a network file."""

    def __init__(self, shape, dtype, rng, spread=1.0):
        self.arrays, self.nodes, self.shapes = {}, [], [list(shape)]
        self.dtype, self.rng, self.spread = np.dtype(dtype), rng, spread

    def array(self, value) -> str:
        name = f"a{len(self.arrays):03d}"
        kind = self.dtype if np.asarray(value).dtype.kind == "f" else np.int64
        self.arrays[name] = np.ascontiguousarray(np.asarray(value).astype(kind))
        return name

    def normal(self, *shape):
        return self.spread * self.rng.standard_normal(shape)

    def add(self, op, inputs, out, **options) -> int:
        self.nodes.append({"op": op, "in": list(inputs), **options})
        self.shapes.append([int(extent) for extent in out])
        return len(self.nodes)

    def linear(self, source, width, bias=True):
        n = self.shapes[source][0]
        options = {"weight": self.array(self.normal(width, n) / math.sqrt(n))}
        if bias:
            options["bias"] = self.array(self.normal(width) / 4)
        return self.add("linear", [source], [width], **options)

    def conv(self, source, outputs, kernel, stride, padding, dilation, groups=1, bias=True):
        channels, *extents = self.shapes[source]
        weight = self.normal(outputs, channels // groups, *kernel) / math.sqrt(channels // groups * math.prod(kernel))
        options = {"weight": self.array(weight), "groups": groups}
        options |= {"stride": list(stride), "padding": list(padding), "dilation": list(dilation)}
        if bias:
            options["bias"] = self.array(self.normal(outputs) / 4)
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(extents, kernel, stride, padding, dilation, strict=True)
        ]
        return self.add("conv", [source], [outputs, *out], **options)

    def batch_norm(self, source):
        channels = self.shapes[source][0]
        options = {key: self.array(self.normal(channels)) for key in ("mean", "weight", "bias")}
        options["variance"] = self.array(0.2 + self.rng.random(channels))
        return self.add("batch_norm", [source], self.shapes[source], epsilon=1e-3, **options)

    def scale(self, source):
        shape = self.shapes[source]
        options = {"factor": self.array(self.normal(*shape)), "offset": self.array(self.normal(*shape) / 4)}
        options["divisor"] = self.array(0.5 + self.rng.random(shape))
        return self.add("scale", [source], shape, **options)

    def sum(self, sources, factors):
        return self.add("sum", sources, self.shapes[sources[0]], factors=self.array(np.array(factors, float)))

    def relu(self, source):
        return self.add("relu", [source], self.shapes[source])

    def reshape(self, source, shape):
        return self.add("reshape", [source], shape, shape=list(shape))

    def pool(self, source, kernel):
        """Average pooling with stride 2, padded by one element at the end that is not counted, plus a constant."""
        channels, *extents = self.shapes[source]
        out = [(n + 1) // 2 for n in extents]
        numbers = np.arange(math.prod(self.shapes[source])).reshape(self.shapes[source])
        index = np.full((channels * math.prod(out), kernel ** len(out)), numbers.size)
        divisor = np.ones(len(index))
        places = itertools.product(range(channels), *map(range, out))
        for row, (channel, *place) in enumerate(places):
            window = tuple(slice(2 * at, 2 * at + kernel) for at in place)
            found = numbers[(channel, *window)].reshape(-1)
            index[row, : len(found)], divisor[row] = found, len(found)
        options = {"index": self.array(index), "divisor": self.array(divisor)}
        options["constant"] = self.array(self.normal(len(index)) / 4)
        return self.add("mean", [source], [channels, *out], shape=[channels, *out], **options)

    def file(self) -> dict[str, np.ndarray]:
        text = {"format": "ironbound-network/1", "shape": self.shapes[0], "nodes": self.nodes}
        return {"network": np.frombuffer(json.dumps(text).encode(), np.uint8), **self.arrays}


def _mlp(b: Builder) -> None:
    last = b.relu(b.linear(0, 7))
    last = b.relu(b.linear(last, 6, bias=False))
    b.linear(last, 3)


def _conv(b: Builder) -> None:
    last = b.relu(b.conv(0, 3, (3, 2), (2, 1), (1, 1), (1, 1)))
    last = b.relu(b.conv(last, 4, (2, 2), (1, 1), (1, 0), (1, 1), bias=False))
    last = b.reshape(last, [math.prod(b.shapes[last])])
    b.linear(last, 3)


def _dilated(b: Builder) -> None:
    last = b.relu(b.conv(0, 4, (2, 2), (1, 2), (2, 1), (2, 1), groups=2))
    last = b.relu(b.conv(last, 2, (2, 2), (1, 1), (0, 1), (2, 1), groups=2))
    last = b.conv(last, 2, (2, 1), (2, 2), (0, 0), (1, 1))  # no activation between the two
    last = b.relu(b.conv(last, 2, (1, 2), (1, 1), (0, 1), (1, 1)))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


def _line(b: Builder) -> None:
    last = b.relu(b.conv(0, 2, (3,), (2,), (1,), (1,)))
    last = b.relu(b.batch_norm(b.conv(last, 3, (2,), (1,), (0,), (2,), bias=False)))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


def _volume(b: Builder) -> None:
    last = b.relu(b.conv(0, 2, (2, 1, 2), (1, 1, 1), (0, 0, 1), (1, 1, 1)))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


def _norms(b: Builder) -> None:
    last = b.relu(b.batch_norm(b.conv(b.scale(0), 2, (2, 2), (1, 1), (0, 0), (1, 1))))
    last = b.relu(b.batch_norm(b.conv(last, 2, (2, 2), (1, 1), (1, 1), (1, 1))))
    last = b.relu(b.batch_norm(b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 5)))
    b.linear(last, 3)


def _residual(b: Builder) -> None:
    stem = b.relu(b.conv(0, 2, (2, 2), (1, 1), (0, 0), (1, 1)))
    stem = b.relu(b.conv(stem, 2, (3, 3), (1, 1), (1, 1), (1, 1)))
    inner = b.conv(stem, 2, (3, 3), (1, 1), (1, 1), (1, 1))
    last = b.relu(b.sum([stem, inner, stem], [1.0, 1.0, -0.75]))
    last = b.relu(b.sum([last, stem], [1.0, -1.0]))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


def _pooled(b: Builder) -> None:
    last = b.pool(b.relu(b.conv(0, 2, (2, 2), (1, 1), (1, 1), (1, 1))), 3)
    last = b.relu(last)
    last = b.relu(b.conv(last, 2, (2, 2), (1, 1), (0, 0), (1, 1)))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


def _reshaped(b: Builder) -> None:
    last = b.relu(b.conv(0, 2, (1, 2), (1, 1), (0, 0), (1, 1)))
    last = b.relu(b.conv(b.reshape(last, [4, 2, 3]), 2, (2, 2), (1, 1), (0, 0), (1, 1), groups=2))
    last = b.relu(b.conv(b.reshape(last, [1, 4]), 2, (2,), (1,), (0,), (1,)))
    b.linear(b.reshape(last, [math.prod(b.shapes[last])]), 3)


FAMILIES = {
    "reshaped": (_reshaped, (1, 3, 5)),
    "mlp": (_mlp, (5,)),
    "conv": (_conv, (2, 4, 3)),
    "dilated": (_dilated, (2, 3, 3)),
    "line": (_line, (2, 9)),
    "volume": (_volume, (2, 2, 2, 2)),
    "norms": (_norms, (1, 3, 3)),
    "residual": (_residual, (1, 3, 3)),
    "pooled": (_pooled, (1, 4, 4)),
}


def build(family: str, dtype, seed: int, spread: float = 1.0):
    """Arrays of a network file and an input of it."""
    rng = np.random.default_rng([seed, *family.encode()])
    make, shape = FAMILIES[family]
    builder = Builder(shape, dtype, rng, spread)
    make(builder)
    x = rng.random(shape).astype(dtype)
    return builder.file(), x


@dataclass
class ExactNode:
    """A node as the checker counts them: matrices by input, the bias, what the bias is computed from."""

    kind: str
    inputs: list[int]
    matrices: list[np.ndarray]
    bias: np.ndarray
    spread: np.ndarray
    extra: int


def exact_network(arrays) -> list[ExactNode]:
    """The nodes in rational arithmetic; a reshape is its source."""
    text = json.loads(arrays["network"].tobytes())
    size = math.prod(text["shape"])
    nodes = [ExactNode("input", [], [], zeros(size), zeros(size), 0)]
    place, shapes = [0], [text["shape"]]
    for entry in text["nodes"]:
        source, shape = place[entry["in"][0]], shapes[entry["in"][0]]
        get = {key: exact(arrays[value]) for key, value in entry.items() if isinstance(value, str) and key != "op"}
        inputs = [place[i] for i in entry["in"]]
        n = math.prod(shape)
        if entry["op"] == "reshape":
            place.append(source)
            shapes.append(entry["shape"])
            continue
        if entry["op"] == "relu":
            node, out = ExactNode("relu", inputs, [], zeros(n), zeros(n), 0), shape
        elif entry["op"] == "linear":
            bias = get.get("bias", zeros(len(get["weight"])))
            node, out = ExactNode("affine", inputs, [get["weight"]], bias, abs(bias), 1), [len(bias)]
        elif entry["op"] == "conv":
            matrix, bias, out = _exact_conv(entry, get, shape)
            node = ExactNode("affine", inputs, [matrix], bias, abs(bias), 1)
        elif entry["op"] == "scale":
            factor, offset = (get["factor"] / get["divisor"]).reshape(-1), get["offset"].reshape(-1)
            node, out = ExactNode("affine", inputs, [_diagonal(factor)], offset, abs(offset), 4), shape
        elif entry["op"] == "batch_norm":
            deviation = np.array([root(v + Fraction(entry["epsilon"])) for v in get["variance"]], dtype=object)
            factor = get["weight"] / deviation
            repeat = n // shape[0]
            offset, spread = get["bias"] - get["mean"] * factor, abs(get["bias"]) + abs(get["mean"] * factor)
            matrix = _diagonal(np.repeat(factor, repeat))
            node = ExactNode("affine", inputs, [matrix], np.repeat(offset, repeat), np.repeat(spread, repeat), 16)
            out = shape
        elif entry["op"] == "mean":
            matrix, index = zeros(len(arrays[entry["index"]]), n), arrays[entry["index"]]
            for row, found in enumerate(index):
                for element in found[found < n]:
                    matrix[row, element] += 1 / get["divisor"][row]
            node, out = ExactNode("affine", inputs, [matrix], get["constant"], abs(get["constant"]), 3), entry["shape"]
        else:
            assert entry["op"] == "sum"
            matrices = [_diagonal(np.array([factor] * n, dtype=object)) for factor in get["factors"]]
            node, out = ExactNode("affine", inputs, matrices, zeros(n), zeros(n), 1), shape
        place.append(len(nodes))
        nodes.append(node)
        shapes.append(out)
    return nodes


def _diagonal(values: np.ndarray) -> np.ndarray:
    matrix = zeros(len(values), len(values))
    matrix[np.arange(len(values)), np.arange(len(values))] = values
    return matrix


def _exact_conv(entry, get, shape):
    weight, groups = get["weight"], entry["groups"]
    outputs, inner, *kernel = weight.shape
    extents = shape[1:]
    out = []
    for n, k, s, p, d in zip(extents, kernel, entry["stride"], entry["padding"], entry["dilation"], strict=True):
        out.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
    matrix = zeros(outputs * math.prod(out), math.prod(shape))
    for row, (o, *place) in enumerate(itertools.product(range(outputs), *map(range, out))):
        for i, *tap in itertools.product(range(inner), *map(range, kernel)):
            channel = o // (outputs // groups) * inner + i
            axes = zip(place, entry["stride"], entry["padding"], tap, entry["dilation"], strict=True)
            at = [a * s - p + t * d for a, s, p, t, d in axes]
            if all(0 <= a < n for a, n in zip(at, extents, strict=True)):
                column = np.ravel_multi_index((channel, *at), shape)
                matrix[row, column] += weight[(o, i, *tap)]
    bias = np.repeat(get.get("bias", zeros(outputs)), math.prod(out))
    return matrix, bias, [outputs, *out]


def exact_run(nodes: list[ExactNode], x: np.ndarray) -> np.ndarray:
    """The network's output at a rational input."""
    values = [x.reshape(-1)]
    for node in nodes[1:]:
        if node.kind == "relu":
            values.append(np.maximum(values[node.inputs[0]], Fraction(0)))
        else:
            parts = [matrix @ values[i] for matrix, i in zip(node.matrices, node.inputs, strict=True)]
            values.append(sum(parts) + node.bias)
    return values[-1]


def exact_dual(nodes, start, row, lines, region, noise=None, holds=None) -> Fraction:
    """The dual bound of one functional below: any lines (lower slope, upper slope, intercept), any noise per node."""
    pending, value = {start: row}, Fraction(0)
    for n in range(start, -1, -1):
        if n not in pending:
            continue
        c, node = pending.pop(n), nodes[n]
        if noise is not None and noise[n] is not None:
            value -= abs(c) @ noise[n]
        if node.kind == "input":
            return value + exact_least(c, region)
        if node.kind == "relu":
            lower, upper, top = lines[n]
            positive, negative = np.maximum(c, Fraction(0)), np.minimum(c, Fraction(0))
            value += negative @ top
            part = positive * lower + negative * upper
            parts = [(node.inputs[0], part if holds is None else part + holds[n])]
        else:
            value += c @ node.bias
            parts = [(i, c @ matrix) for i, matrix in zip(node.inputs, node.matrices, strict=True)]
        for source, part in parts:
            pending[source] = pending[source] + part if source in pending else part
    raise AssertionError("no input")


def exact_least(c, region) -> Fraction:
    """The least value of c over the region; for l2 right to 200 bits."""
    norm, x, eps, clip = region
    found = []
    if norm == "linf" or clip is not None:
        low, high = x - eps, x + eps
        if clip is not None:
            low, high = np.maximum(low, clip[0]), np.minimum(high, clip[1])
        found.append(np.minimum(c * low, c * high).sum())
    if norm == "l2":
        found.append(c @ x - eps * root((c * c).sum()))
    if norm == "l1":
        found.append(c @ x - eps * abs(c).max())
    return max(found)
