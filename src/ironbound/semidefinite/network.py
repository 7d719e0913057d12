"""Linear classifiers and two-layer networks as float64 matrices, evaluated with a bound of the rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.graph import Graph, Node
from ironbound.ops.affine import Linear, Reshape, Scale, Shift
from ironbound.ops.operator import Activation
from ironbound.ops.piecewise import PiecewiseLinear
from ironbound.semidefinite.rounding import COVER, UNIT, gamma
from ironbound.semidefinite.slopes import slope_range

# An activation's value is computed with a few roundings of numbers like its argument and its value. This is taken from
# the libraries' documentation for sigmoid, tanh, GELU and SiLU; ReLU is exact.
_ACTIVATION_ROUNDINGS = 32


@dataclass(frozen=True, eq=False)
class Layer:
    """An affine map x -> W x + b of flat values, in float64.

    Attributes:
        weight: [outputs, inputs].
        bias: [outputs].
        roundings: relative roundings that each weight went through: 0 where it is the network's own.
        bias_error: what the bias is off by at most, [outputs].
    """

    weight: Tensor
    bias: Tensor
    roundings: int
    bias_error: Tensor

    def run(self, x: Tensor, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Runs the map and bounds the rounding.

        Args:
            x: [batch, inputs].
            error: what x is off by at most, or None for 0.

        Returns:
            The value and what it is off by at most, each [batch, outputs].
        """
        size = self.weight.abs()
        value = x @ self.weight.T + self.bias
        scale = x.abs() @ size.T + self.bias.abs()
        off = gamma(self.weight.shape[1] + 2 + self.roundings) * scale + self.bias_error
        if error is not None:
            off = off + (1 + gamma(self.roundings + 1)) * (error @ size.T)
        return value, off * COVER


@dataclass(frozen=True, eq=False)
class TwoLayer:
    """logits = V f(W x + b) + a, or W x + b where there is no activation.

    Attributes:
        hidden: W and b, or the only layer.
        activation: f, or None for a linear classifier.
        output: V and a, or None for a linear classifier.
        place: the activation's index in the graph.
    """

    hidden: Layer
    activation: Activation | None = None
    output: Layer | None = None
    place: int = -1

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return len((self.output or self.hidden).bias)

    def neurons(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the activation reads at points [batch, inputs], and what it is off by; each [batch, neurons]."""
        return self.hidden.run(x)

    def functionals(self, x: Tensor, rows: Tensor, point: Tensor) -> Tensor:
        """Lower bounds of functionals of the output at single points.

        Args:
            x: float64 [batch, inputs].
            rows: coefficients [n, outputs].
            point: the point that each row belongs to, int64 [n].

        Returns:
            What the network has in exact arithmetic, or less, [n].
        """
        value, error = self.hidden.run(x)
        if self.activation is not None:
            assert self.output is not None
            value, error = _activated(self.activation, value, error)
            value, error = self.output.run(value, error)
        value, error = value[point], error[point]
        size = (rows * value).abs().sum(1)
        off = (rows.abs() * error).sum(1) + gamma(rows.shape[1] + 2) * size
        return (rows * value).sum(1) - off * COVER


def _activated(activation: Activation, value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    lipschitz = max(abs(slope) for slope in slope_range(activation))
    after = activation.forward(value)
    scale = after.abs() + lipschitz * value.abs()
    if isinstance(activation, PiecewiseLinear):
        scale = scale + abs(activation.anchor) + lipschitz * sum(abs(knot) for knot in activation.knots)
    return after, (lipschitz * error + _ACTIVATION_ROUNDINGS * UNIT * scale) * COVER


def two_layer(graph: Graph) -> TwoLayer:
    """Reads a linear classifier or a two-layer network.

    Flattening and normalisation (multiplying and adding, element by element) may stand anywhere in it.

    Args:
        graph: the network.

    Returns:
        Its matrices in float64, without gradients.

    Raises:
        InputError: the network is another one, or its activation's slopes are not known.
    """
    reader = _Reader(graph)
    for index, node in enumerate(graph.nodes[1:], 1):
        reader.read(index, node)
    return reader.network()


class _Reader:
    """Folds a chain of nodes into layers.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.layers: list[Layer | None] = [None]
        self.activations: list[tuple[int, Activation]] = []
        self.before = _identity(graph.nodes[0])

    def read(self, index: int, node: Node) -> None:
        """Takes in the next node."""
        operator = node.operator
        if node.inputs != (index - 1,):
            raise _refusal(node, "reads something else than the value before it")
        if isinstance(operator, Activation):
            self._activation(index, node, operator)
        elif isinstance(operator, Linear):
            self._linear(index, node, operator)
        elif isinstance(operator, Scale | Shift):
            layer = self.layers[-1]
            if layer is None:
                self.before = _elementwise(self.before, operator, node)
            else:
                self.layers[-1] = _elementwise(layer, operator, node)
        elif not isinstance(operator, Reshape):
            raise _refusal(node, f"is a {type(operator).__name__}")

    def _activation(self, index: int, node: Node, operator: Activation) -> None:
        if self.activations or self.layers[-1] is None:
            raise _refusal(node, "does not stand between two linear layers, alone")
        slope_range(operator)
        self.activations.append((index, operator))
        self.layers.append(None)
        self.before = _identity(node)

    def _linear(self, index: int, node: Node, operator: Linear) -> None:
        if self.layers[-1] is not None:
            raise _refusal(node, "follows another linear layer")
        if len(self.graph.nodes[index - 1].shape) != 1:
            raise _refusal(node, "reads values with more than one axis; flatten them first")
        self.layers[-1] = _linear(self.before, operator)

    def network(self) -> TwoLayer:
        """What was read."""
        first, last = self.layers[0], self.layers[-1]
        if first is None or last is None:
            raise _refusal(self.graph.nodes[-1], "is not followed by a linear layer")
        if not self.activations:
            return TwoLayer(first)
        place, activation = self.activations[0]
        return TwoLayer(first, activation, last, place)


def _refusal(node: Node, why: str) -> InputError:
    return InputError(
        "the semidefinite certificate is made for linear classifiers and for two linear layers around one activation; "
        f"node {node.name!r} {why}. Use method 'dual', 'crown' or 'alpha'."
    )


def _identity(node: Node) -> Layer:
    """An element-wise map: its weight holds the diagonal alone, as [1, n]."""
    ones = torch.ones(1, node.size, dtype=torch.float64)
    return Layer(ones, torch.zeros_like(ones[0]), 0, torch.zeros_like(ones[0]))


def _linear(before: Layer, operator: Linear) -> Layer:
    weight = operator.weight.detach().double().cpu()
    plain = bool((before.weight == 1).all()) and before.roundings == 0
    bias = torch.zeros(len(weight), dtype=torch.float64)
    layer = Layer(weight, bias if operator.bias is None else operator.bias.detach().double().cpu(), 0, bias)
    moved, error = layer.run(before.bias[None], before.bias_error[None])
    shifted = bool((before.bias != 0).any() or (before.bias_error != 0).any())
    layer = replace(layer, bias=moved[0], bias_error=error[0]) if shifted else layer
    if plain:
        return layer
    return replace(layer, weight=weight * before.weight, roundings=before.roundings + 1)


def _elementwise(layer: Layer, operator: Scale | Shift, node: Node) -> Layer:
    value = operator.factor if isinstance(operator, Scale) else operator.offset
    value = value.detach().double().cpu().expand(node.shape).flatten()
    if isinstance(operator, Shift):
        bias = layer.bias + value
        return replace(layer, bias=bias, bias_error=(layer.bias_error + UNIT * bias.abs()) * COVER)
    bias = layer.bias * value
    error = (layer.bias_error * value.abs() + UNIT * bias.abs()) * COVER
    one_row = len(layer.weight) == 1 and len(layer.bias) != 1
    weight = layer.weight * (value if one_row else value[:, None])
    return replace(layer, weight=weight, bias=bias, bias_error=error, roundings=layer.roundings + 1)
