"""A captured network as a plain file of arrays that the stand-alone checker reads: never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.capture.live import Division, Subtraction
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.graph import Graph, Node
from ironbound.ops.affine import BatchNorm, Convolution, Linear, Reshape, Scale, Shift, Structural, WeightedSum
from ironbound.ops.operator import Input
from ironbound.ops.piecewise import ReLU

FORMAT = "ironbound-network/1"
_CHUNK = 1 << 24  # elements of a structural operator's matrix at a time

Arrays = dict[str, np.ndarray]
Described = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def network_arrays(model: nn.Module | Graph, example: Tensor | None = None) -> Arrays:
    """The network as arrays, one of them (`network`) a description in JSON.

    Args:
        model: a network in evaluation mode, or its graph.
        example: an input [batch, *shape], needed for a module.

    Returns:
        The arrays of the file, by name; `docs/certificates.md` describes them.

    Raises:
        InputError: a module without an example, or weights that are not finite.
        UnsupportedOperatorError: the checker has no rule for a layer.
    """
    graph = _graph(model, example)
    # a number of the code has no type of its own: in a float32 network it is rounded to float32, as torch does
    wide = any(tensor.dim() and tensor.dtype == torch.float64 for tensor in graph.parameters())
    arrays: Arrays = {}
    nodes = []
    for number, node in enumerate(graph.nodes[1:], 1):
        shapes = [graph.nodes[source].shape for source in node.inputs]
        op, options, tensors = _describe(node, shapes)
        names = {}
        for key, array in tensors.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"the weights of {node.name!r} hold NaN or infinity: nothing can be proved of them")
            names[key] = f"{number:04d}.{key}"
            dtype = np.float32 if array.dtype.kind == "f" and not wide else array.dtype
            arrays[names[key]] = np.ascontiguousarray(array).astype(np.dtype(dtype).newbyteorder("<"))
        nodes.append({"op": op, "in": list(node.inputs), **options, **names})
    text = json.dumps({"format": FORMAT, "nodes": nodes, "shape": list(graph.input_shape)}, sort_keys=True)
    return {"network": np.frombuffer(text.encode(), np.uint8), **arrays}


def save_network(model: nn.Module | Graph, path: str | os.PathLike[str], example: Tensor | None = None) -> Arrays:
    """Writes the file that `ironbound check --network` reads.

    Args:
        model: a network in evaluation mode, or its graph.
        path: of the file, ending in .npz.
        example: an input [batch, *shape], needed for a module.

    Returns:
        The arrays written.
    """
    arrays = network_arrays(model, example)
    save_arrays(arrays, path)
    return arrays


def save_arrays(arrays: Arrays, path: str | os.PathLike[str]) -> None:
    """Writes arrays as a compressed npz file, whole or not at all."""
    part = Path(f"{os.fspath(path)}.part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def _graph(model: nn.Module | Graph, example: Tensor | None) -> Graph:
    if isinstance(model, Graph):
        return model
    if example is None:
        raise InputError("a module needs an example input, [batch, *shape], to be written as a network file")
    return capture(model, example)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _present(**tensors: Tensor | None) -> dict[str, np.ndarray]:
    return {key: _array(tensor) for key, tensor in tensors.items() if tensor is not None}


def _linear(operator: Linear, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    if len(shapes[0]) != 1:
        raise _unsupported(node, "on inputs of more than one axis")
    return "linear", {}, _present(weight=operator.weight, bias=operator.bias)


def _convolution(operator: Convolution, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    options = {key: list(getattr(operator, key)) for key in ("stride", "padding", "dilation")}
    return "conv", {**options, "groups": operator.groups}, _present(weight=operator.weight, bias=operator.bias)


def _batch_norm(operator: BatchNorm, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    tensors = _present(mean=operator.mean, variance=operator.variance, weight=operator.weight, bias=operator.bias)
    return "batch_norm", {"epsilon": operator.epsilon}, tensors


def _scale(operator: Scale, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    return "scale", {}, {"factor": _array(operator.factor.expand(node.shape))}


def _shift(operator: Shift, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    offset = _array(operator.offset.expand(node.shape))
    return "scale", {}, {"factor": np.ones_like(offset), "offset": offset}


def _division(operator: Division, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    divisor = _array(operator.divisor.expand(node.shape))
    return "scale", {}, {"factor": np.sign(divisor), "divisor": np.abs(divisor)}


def _sum(operator: WeightedSum, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    return "sum", {}, {"factors": np.array(operator.factors, np.float64)}


def _structural(operator: Structural, node: Node, shapes: list[tuple[int, ...]]) -> Described:
    """The matrix of a structural operator: every output is a sum of inputs over a whole number, plus a constant."""
    like = torch.zeros(1, dtype=torch.float64)
    sizes = [int(np.prod(shape)) for shape in shapes]
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    length = max(1, _CHUNK // max(1, sum(sizes)))
    with torch.no_grad():
        constant = _array(operator.constant(tuple(shapes), like)).reshape(-1)
    for first in range(0, node.size, length):
        outputs = torch.arange(first, min(first + length, node.size))
        unit = torch.zeros((len(outputs), node.size), dtype=torch.float64)
        unit[torch.arange(len(outputs)), outputs] = 1.0
        parts = operator.adjoint(unit.reshape(-1, *node.shape), tuple(shapes))
        matrix = _array(torch.cat([part.reshape(len(unit), -1) for part in parts], 1))
        everything += [(np.flatnonzero(row), row[row != 0]) for row in matrix]
    divisor = np.ones(node.size)
    index = np.full((node.size, max(1, max(len(found) for found, _ in everything))), sum(sizes), np.int64)
    for output, (found, values) in enumerate(everything):
        if len(found) == 0:
            continue
        divisor[output] = np.round(1 / values.max())
        if not np.allclose(values * divisor[output], 1, rtol=0, atol=1e-12):
            raise _unsupported(node, "with weights that are no shares of a whole number")
        index[output, : len(found)] = found
    tensors = {"index": index, "divisor": divisor}
    if constant.any():
        tensors["constant"] = constant
    return "mean", {"shape": list(node.shape)}, tensors


_RULES: dict[type, Callable[[Any, Node, list[tuple[int, ...]]], Described]] = {
    Linear: _linear,
    Convolution: _convolution,
    BatchNorm: _batch_norm,
    Scale: _scale,
    Shift: _shift,
    Subtraction: _shift,
    Division: _division,
    WeightedSum: _sum,
    Structural: _structural,
    Reshape: lambda operator, node, shapes: ("reshape", {"shape": list(node.shape)}, {}),
    ReLU: lambda operator, node, shapes: ("relu", {}, {}),
}


def _describe(node: Node, shapes: list[tuple[int, ...]]) -> Described:
    rule = None if isinstance(node.operator, Input) else _RULES.get(type(node.operator))
    if rule is None:
        raise _unsupported(node, "")
    return rule(node.operator, node, shapes)


def _unsupported(node: Node, how: str) -> UnsupportedOperatorError:
    where = f" ({node.source})" if node.source else ""
    kind = type(node.operator).__name__
    return UnsupportedOperatorError(
        f"the certificate checker has no rule for {kind} {how + ' ' if how else ''}in {node.name!r}{where}; "
        "it reads linear, convolution, batch norm, average pooling, sums, reshapes and ReLU."
    )
