"""The guard as an ONNX file: inputs in, logits and margins out, the guarantee in its metadata."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import ironbound
from ironbound.certificate.checker import CertificateError, digest
from ironbound.certificate.checker.files import network as read_network
from ironbound.certificate.checker.layers import Affine, Arithmetic
from ironbound.certificate.network_file import Arrays
from ironbound.errors import InputError, UnsupportedOperatorError, WeightsError
from ironbound.guarding.bounds import DualProgram, Network
from ironbound.guarding.layers import Layer, Order, layer_of
from ironbound.guarding.program import Program
from ironbound.guarding.walk import DenseRows, Reach

if TYPE_CHECKING:
    import onnx

FORMAT = "ironbound-guard/1"
_ORDERS = {"linf": 1, "l2": 2, "l1": math.inf}
_TYPES = {"float32": 1, "float64": 11}


@dataclass(frozen=True)
class Promise:
    """What the program promises.

    Attributes:
        norm: "linf", "l2" or "l1".
        eps: radius in the units of the data.
        clip: range of the inputs, or None.
    """

    norm: str
    eps: float
    clip: tuple[float, float] | None

    def text(self) -> str:
        """The guarantee, for the file's metadata."""
        within = "" if self.clip is None else f" with all elements in [{self.clip[0]:g}, {self.clip[1]:g}]"
        return (
            f"margin > 0: every input{within} within {self.norm} distance {self.eps:g} of x has the same largest logit "
            "as x, in real arithmetic and in this program; so x is no perturbation of that size of an input that is "
            "classified otherwise (Wong & Kolter 2018, Corollary 2). margin <= 0, NaN or -inf: flagged, nothing is "
            "claimed. Rounding is accounted for."
        )


def write_guard(arrays: Arrays, promise: Promise, path: str | os.PathLike[str], dtype: str) -> Path:
    """Writes the program.

    Args:
        arrays: the network, as `network_arrays` makes them.
        promise: the query.
        path: the file.
        dtype: of the inputs, "float32" or "float64".

    Returns:
        The path.

    Raises:
        InputError: the network or the query cannot be written as a program.
        UnsupportedOperatorError: a layer cannot.
        WeightsError: the file cannot be written.
    """
    path = Path(path)
    content = guard_program(arrays, promise, dtype).SerializeToString()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); check the folder.") from error
    return path


def guard_program(arrays: Arrays, promise: Promise, dtype: str = "float32") -> onnx.ModelProto:
    """The program as an ONNX model; arguments and errors as for `write_guard`."""
    from onnx import checker, helper

    if promise.clip is not None and promise.norm != "linf":
        raise InputError(
            "a guard with a clip is exported for norm 'linf' only; leave clip out, which is sound as well."
        )
    if dtype not in _TYPES:
        raise InputError(f"guards are exported for inputs in float32 or float64, not in {dtype}.")
    shape, network = _network(arrays)
    p = Program()
    logits, margin = _emit(p, network, promise, shape)
    ends = [
        helper.make_tensor_value_info("x", _TYPES[dtype], ["n", *shape]),
        helper.make_tensor_value_info("logits", 11, ["n", network.nodes[-1].size]),
        helper.make_tensor_value_info("margin", 11, ["n"]),
    ]
    p.op("Identity", logits, name="logits")
    p.op("Identity", margin, name="margin")
    model = p.model(ends[:1], ends[1:])
    helper.set_model_props(model, _metadata(arrays, network, promise))
    checker.check_model(model, full_check=True)
    return model


def _metadata(arrays: Arrays, network: Network, promise: Promise) -> dict[str, str]:
    return {
        "ironbound.format": FORMAT,
        "ironbound.version": ironbound.__version__,
        "ironbound.guarantee": promise.text(),
        "ironbound.norm": promise.norm,
        "ironbound.eps": repr(promise.eps),
        "ironbound.clip": json.dumps(promise.clip),
        "ironbound.method": "dual",
        "ironbound.arithmetic": "float64, rounding bounded and subtracted",
        "ironbound.slack": repr(network.slack()),
        "ironbound.network_sha256": digest(arrays).hex(),
    }


def _network(arrays: Arrays) -> tuple[tuple[int, ...], Network]:
    """Shape of the input, and the network in the layout of programs."""
    try:
        nodes = read_network(arrays, Arithmetic())
    except CertificateError as error:
        raise UnsupportedOperatorError(f"the network cannot be exported as a guard: {error}.") from error
    text = json.loads(arrays["network"].tobytes())
    entries = _entries(text, arrays)
    layers: list[Layer | None] = [None]
    orders = [Order.of(text["shape"])]
    for node, (entry, own, below) in zip(nodes[1:], entries, strict=True):
        sources = [orders[source] for source in node.inputs]
        if isinstance(node, Affine):
            layer = layer_of(node, entry, sources, [*below, own])
            layers.append(layer)
            orders.append(layer.order)
        else:
            layers.append(None)
            orders.append(sources[0])
    return tuple(text["shape"]), Network(nodes, layers, orders)


def _entries(text: dict, arrays: Arrays) -> list[tuple[dict, list[int], list[list[int]]]]:
    """Description, shape and the shapes read, of every node but the input and reshapes."""
    shapes, found = [text["shape"]], []
    for entry in text["nodes"]:
        below = [shapes[source] for source in entry["in"]]
        if entry["op"] == "conv":
            weight = arrays[entry["weight"]].shape
            entry = {**entry, "kernel": weight[2:]}
            axes = zip(below[0][1:], weight[2:], entry["stride"], entry["padding"], entry["dilation"], strict=True)
            own = [weight[0], *((n + 2 * pad - d * (k - 1) - 1) // s + 1 for n, k, s, pad, d in axes)]
        elif entry["op"] == "linear":
            own = [len(arrays[entry["weight"]])]
        else:
            own = entry.get("shape", below[0])
        shapes.append(own)
        found += [] if entry["op"] == "reshape" else [(entry, own, below)]
    return found


def _emit(p: Program, network: Network, promise: Promise, shape: tuple[int, ...]) -> tuple[str, str]:
    """Emits everything; names of the logits [n, classes] and the margins [n]."""
    count = p.op("Shape", "x", start=0, end=1)
    spare = p.op("Cast", p.op("Equal", count, p.hold(np.array([0]))), to=7)  # one input of zeros where there is none
    zeros = p.op(
        "Expand", p.hold(np.zeros((1,) * (len(shape) + 1))), p.op("Concat", spare, p.hold(np.array(shape)), axis=0)
    )
    x = p.op("Concat", p.op("Cast", "x", to=11), zeros, axis=0)
    if len(shape) > 1 and shape[0] > 1:
        x = p.op("Transpose", x, perm=[0, *range(2, len(shape) + 1), 1])
    size = network.nodes[0].size
    x = p.reshape(x, -1, size)
    middle, radius, valid = _region(p, promise, x)
    exact = promise.clip is not None
    dual = DualProgram(p, network, Reach(_ORDERS[promise.norm], promise.eps, radius if exact else None))
    dual.run(x, middle, radius)
    logits = dual.known[-1].value
    margin = _margin(p, dual, logits)
    valid = p.op("And", valid, p.op("Less", dual.total(), p.hold(network.limit())))  # NaN is not less
    margin = p.op("Where", valid, margin, p.hold(-math.inf))
    first = p.hold(np.array([0]))
    logits, margin = (p.op("Slice", value, first, count, first) for value in (logits, margin))
    return logits, margin


def _region(p: Program, promise: Promise, x: str) -> tuple[str, str, str]:
    """Middle and semi-axes of each example's box, and whether the input is finite and in its range."""
    rest = p.total(p.op("Mul", x, p.hold(0.0)), 1)
    valid = p.op("Equal", rest, p.hold(0.0))  # NaN and infinity times 0 are NaN
    if promise.clip is None:
        return x, p.op("Expand", p.hold(np.array([[promise.eps]])), p.op("Shape", x)), valid
    low, high = (p.hold(end) for end in promise.clip)
    within = (
        p.op("GreaterOrEqual", p.total(x, 1, "ReduceMin"), low),
        p.op("LessOrEqual", p.total(x, 1, "ReduceMax"), high),
    )
    eps = p.hold(promise.eps)
    lower, upper = p.op("Max", p.op("Sub", x, eps), low), p.op("Min", p.op("Add", x, eps), high)
    middle = p.op("Mul", p.op("Add", lower, upper), p.hold(0.5))
    radius = p.op("Max", p.op("Sub", upper, middle), p.op("Sub", middle, lower))
    return middle, radius, p.op("And", valid, p.op("And", *within))


def _margin(p: Program, dual: DualProgram, logits: str) -> str:
    """The least margin of the predicted class, less the rounding, [n]."""
    last, classes = len(dual.network.nodes) - 1, dual.network.nodes[-1].size
    eye = np.eye(classes)
    pairs = np.stack([np.delete(eye[label] - eye, label, 0) for label in range(classes)])
    chosen = p.gather(p.hold(pairs), p.op("ArgMax", logits, axis=1, keepdims=0))  # [n, classes - 1, classes]
    count = p.op("Squeeze", p.op("Shape", logits, start=0, end=1), p.hold(np.array([0])))
    numbers = p.op("Range", p.hold(np.array(0)), count, p.hold(np.array(1)))
    each = p.op("Concat", p.op("Shape", logits, start=0, end=1), p.hold(np.array([classes - 1])), axis=0)
    example = p.reshape(p.op("Expand", p.op("Unsqueeze", numbers, p.hold(np.array([1]))), each), -1)
    moved = dual.spread(DenseRows(p.reshape(chosen, -1, classes), example), last)
    value = dual.known[last]
    middle = p.op("MatMul", chosen, p.op("Unsqueeze", value.middle, p.hold(np.array([2]))))
    lower = p.op("Sub", p.reshape(middle, -1, classes - 1), p.reshape(moved, -1, classes - 1))
    rounding = p.op("Mul", p.total(value.most, 1, "ReduceMax"), p.hold(2 * dual.slack))
    return p.op("Sub", p.total(lower, 1, "ReduceMin"), rounding)
