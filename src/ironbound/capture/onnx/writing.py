"""Write a captured network of affine layers and simple activations as an ONNX file, for other tools to read."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironbound.capture.export import capture
from ironbound.capture.live import Division, Subtraction
from ironbound.errors import UnsupportedOperatorError, WeightsError
from ironbound.graph import Graph, Node
from ironbound.ops.affine import (
    BatchNorm,
    Convolution,
    Linear,
    Reshape,
    Scale,
    Shift,
    TransposedConvolution,
    WeightedSum,
)
from ironbound.ops.operator import Operator
from ironbound.ops.piecewise import PiecewiseLinear, ReLU
from ironbound.ops.smooth import Sigmoid, Tanh

if TYPE_CHECKING:
    import onnx

OPSET = 13
_TYPES = {torch.float32: 1, torch.float64: 11}


def save_onnx(model: nn.Module | Graph, path: str | os.PathLike[str], example: Tensor) -> None:
    """Writes a network as an ONNX file with an open batch axis, from "input" to "output".

    Linear layers, convolutions, batch normalisation, element-wise affine maps, sums, reshapes, ReLU, leaky ReLU, clip,
    absolute value, sigmoid and tanh are written.

    Args:
        model: the network in evaluation mode, or its graph.
        path: the file; compressed where it ends in .gz.
        example: [batch, *shape], for shape and dtype (float32 or float64).

    Raises:
        UnsupportedOperatorError: an operator, or a dtype, that is not written; the message names the node.
        CaptureError: the network cannot be captured.
        WeightsError: the file cannot be written.
    """
    if example.dtype not in _TYPES:
        raise UnsupportedOperatorError(f"networks are written in float32 or float64, not in {example.dtype}")
    graph = capture(model, example)
    content = _Writer(graph, example.dtype).model().SerializeToString()
    path = Path(path)
    try:
        path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror}); check the folder.") from error


class _Writer:
    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self._graph = graph
        self._dtype = dtype
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Tensor] = {}
        last = len(graph.nodes) - 1
        self._names = [
            "input" if index == 0 else "output" if index == last else f"value{index}" for index in range(last + 1)
        ]

    def model(self) -> onnx.ModelProto:
        """The file's content."""
        from onnx import helper, numpy_helper

        for index, node in enumerate(self._graph.nodes[1:], start=1):
            self._write(index, node)
        if len(self._graph.nodes) == 1:
            self._nodes.append(helper.make_node("Identity", ["input"], ["output"]))
        kind = _TYPES[self._dtype]
        shapes = (self._graph.input_shape, self._graph.output_shape)
        ends = [
            helper.make_tensor_value_info(name, kind, ["batch", *shape])
            for name, shape in zip(("input", "output"), shapes, strict=True)
        ]
        constants = [numpy_helper.from_array(value.numpy(), name) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, "network", ends[:1], ends[1:], constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, producer_name="ironbound", opset_imports=[opset], ir_version=8)

    def _write(self, index: int, node: Node) -> None:
        writer = next((_WRITERS[kind] for kind in type(node.operator).__mro__ if kind in _WRITERS), None)
        if writer is None:
            label = getattr(node.operator, "label", "")
            what = f"{type(node.operator).__name__} {label}".strip()
            raise UnsupportedOperatorError(
                f"the operator {what!r} of the node {node.name!r} is not written; torch.onnx.export may write it."
            )
        names = [self._names[source] for source in node.inputs]
        writer(_Place(self, node, names, self._names[index]), node.operator)

    def add(self, kind: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> str:
        """Adds a node."""
        from onnx import helper

        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output

    def hold(self, name: str, tensor: Tensor) -> str:
        """Adds a constant."""
        value = tensor.detach().cpu()
        value = value.to(self._dtype) if value.is_floating_point() else value
        self._constants[name] = value.contiguous().clone()
        return name


class _Place:
    """Where one node of the graph is written: its inputs, its output, and names for what lies between."""

    def __init__(self, writer: _Writer, node: Node, inputs: list[str], output: str) -> None:
        self.writer, self.node, self.inputs, self.output = writer, node, inputs, output

    def constant(self, role: str, tensor: Tensor) -> str:
        return self.writer.hold(f"{self.node.name}.{role}", tensor)

    def last(self, kind: str, *inputs: str, **attributes: Any) -> None:
        self.writer.add(kind, inputs, self.output, self.node.name, **attributes)

    def between(self, kind: str, *inputs: str, count: int = 0, **attributes: Any) -> str:
        name = f"{self.node.name}.{kind}{count}"
        return self.writer.add(kind, inputs, f"{self.output}.{kind}{count}", name, **attributes)

    def refuse(self, reason: str) -> None:
        kind = type(self.node.operator).__name__
        raise UnsupportedOperatorError(
            f"the operator {kind!r} of the node {self.node.name!r} is not written; {reason}."
        )


def _linear(place: _Place, operator: Linear) -> None:
    (x,) = place.inputs
    if len(place.node.shape) == 1:
        biases = [] if operator.bias is None else [place.constant("bias", operator.bias)]
        place.last("Gemm", x, place.constant("weight", operator.weight), *biases, transB=1)
        return
    weight = place.constant("weight", operator.weight.t())
    if operator.bias is None:
        place.last("MatMul", x, weight)
    else:
        place.last("Add", place.between("MatMul", x, weight), place.constant("bias", operator.bias))


def _convolution(place: _Place, operator: Convolution | TransposedConvolution) -> None:
    biases = [] if operator.bias is None else [place.constant("bias", operator.bias)]
    attributes: dict[str, Any] = {
        "strides": list(operator.stride),
        "pads": [*operator.padding, *operator.padding],
        "dilations": list(operator.dilation),
        "group": operator.groups,
        "kernel_shape": list(operator.weight.shape[2:]),
    }
    kind = "Conv"
    if isinstance(operator, TransposedConvolution):
        kind, attributes["output_padding"] = "ConvTranspose", list(operator.output_padding)
    place.last(kind, place.inputs[0], place.constant("weight", operator.weight), *biases, **attributes)


def _batch_norm(place: _Place, operator: BatchNorm) -> None:
    ones = torch.ones_like(operator.mean)
    weight = ones if operator.weight is None else operator.weight
    bias = torch.zeros_like(ones) if operator.bias is None else operator.bias
    parts = {"weight": weight, "bias": bias, "mean": operator.mean, "variance": operator.variance}
    constants = [place.constant(role, tensor) for role, tensor in parts.items()]
    place.last("BatchNormalization", *place.inputs, *constants, epsilon=operator.epsilon)


def _elementwise(kind: str, attribute: str) -> Callable[[_Place, Any], None]:
    def write(place: _Place, operator: Operator) -> None:
        place.last(kind, *place.inputs, place.constant(attribute, getattr(operator, attribute)))

    return write


def _sum(place: _Place, operator: WeightedSum) -> None:
    terms = [
        name
        if factor == 1
        else place.between(
            "Mul", name, place.constant(f"factor{at}", torch.tensor(factor, dtype=torch.float64)), count=at
        )
        for at, (name, factor) in enumerate(zip(place.inputs, operator.factors, strict=True))
    ]
    place.last("Sum", *terms)


def _reshape(place: _Place, operator: Reshape) -> None:
    place.last("Reshape", *place.inputs, place.constant("shape", torch.tensor([-1, *operator.shape])))


def _piecewise(place: _Place, operator: PiecewiseLinear) -> None:
    knots, slopes = operator.knots, operator.slopes
    at_zero = float(operator.forward(torch.zeros(1, 1, dtype=torch.float64)))
    if knots == (0.0,) and at_zero == 0 and slopes[1] == 1:
        kind = ("Abs", {}) if slopes[0] == -1 else ("LeakyRelu", {"alpha": float(slopes[0])})
        place.last(kind[0], *place.inputs, **kind[1])
        return
    ends = torch.tensor([[knots[0]], [knots[-1]]], dtype=torch.float64)
    kept = bool((operator.forward(ends) == ends).all())
    if not kept or slopes not in ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0, 0.0)):
        place.refuse("of functions of this kind only leaky ReLU, absolute value and clip are")
    low = place.constant("min", ends[0, 0]) if slopes[0] == 0 else ""
    high = [place.constant("max", ends[1, 0])] if slopes[-1] == 0 else []
    place.last("Clip", *place.inputs, low, *high)


_WRITERS: dict[type[Operator], Callable[[_Place, Any], None]] = {
    BatchNorm: _batch_norm,
    Convolution: _convolution,
    Division: _elementwise("Div", "divisor"),
    Linear: _linear,
    PiecewiseLinear: _piecewise,
    ReLU: lambda place, operator: place.last("Relu", *place.inputs),
    Reshape: _reshape,
    Scale: _elementwise("Mul", "factor"),
    Shift: _elementwise("Add", "offset"),
    Sigmoid: lambda place, operator: place.last("Sigmoid", *place.inputs),
    Subtraction: _elementwise("Sub", "subtrahend"),
    Tanh: lambda place, operator: place.last("Tanh", *place.inputs),
    TransposedConvolution: _convolution,
    WeightedSum: _sum,
}
