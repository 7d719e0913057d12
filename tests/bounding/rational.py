"""Small graphs, evaluated in rational arithmetic: by loops over fractions, from the definition of each operator."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from bounding.precise import smooth_fraction
from ironbound.capture.live import Division
from ironbound.graph import Graph, Node
from ironbound.ops.affine import BatchNorm, Scale, Shift, Structural, WeightedSum
from ironbound.ops.operator import Affine, Input, Operator
from ironbound.ops.piecewise import Maximum, PiecewiseLinear
from ironbound.ops.smooth import Smooth
from ironbound.regions import L1Ball, L2Ball, LinfBall

exactly = np.vectorize(lambda value: Fraction(float(value)), otypes=[object])


def rational(tensor: Tensor) -> np.ndarray:
    """The numbers that floats stand for."""
    return exactly(tensor.detach().double().numpy())


def root(value: Fraction) -> Fraction:
    """The square root, rounded down after 300 bits behind its first."""
    shift = 600 + 2 * max(0, value.denominator.bit_length() - value.numerator.bit_length())
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << (shift // 2))


def reach(nu: np.ndarray, region: LinfBall | L2Ball | L1Ball) -> np.ndarray:
    """How far rows of fractions can fall below their value at the centre of one ball."""
    scaled = abs(nu) * rational(region.eps.expand_as(region.center)[0])
    if region.norm == "l2":
        return np.array([root(value) if value else value for value in (scaled * scaled).sum(1)])
    return scaled.sum(1) if region.norm == "linf" else scaled.max(1)


def graph_of(shape: tuple[int, ...], *operators: Operator | tuple[Operator, tuple[int, ...]]) -> Graph:
    """A graph whose nodes read the node before, or those that are named beside the operator."""
    nodes, values = [Node("input", Input(), (), shape)], [torch.zeros(1, *shape, dtype=torch.float64)]
    for entry in operators:
        operator, inputs = entry if isinstance(entry, tuple) else (entry, (len(nodes) - 1,))
        values.append(operator.forward(*(values[source] for source in inputs)))
        nodes.append(Node(f"{len(nodes)}", operator, inputs, tuple(values[-1].shape[1:])))
    return Graph(tuple(nodes))


def matrices(graph: Graph, index: int) -> list[np.ndarray]:
    """The exact matrix of an affine node for each input, [outputs, inputs]."""
    node = graph.nodes[index]
    operator, shapes = node.operator, tuple(graph.nodes[source].shape for source in node.inputs)
    assert isinstance(operator, Affine)
    if isinstance(operator, BatchNorm):
        factor = np.array([1 / root(Fraction(float(v)) + Fraction(operator.epsilon)) for v in operator.variance])
        factor = factor if operator.weight is None else factor * rational(operator.weight)
        return [np.diag(np.repeat(factor, node.size // len(factor)))]
    if isinstance(operator, Division):
        return [np.diag(1 / rational(operator.divisor.expand(node.shape)).reshape(-1))]
    if isinstance(operator, Scale):
        return [np.diag(rational(operator.factor.expand(node.shape)).reshape(-1))]
    if isinstance(operator, WeightedSum):
        return [np.diag(np.full(node.size, Fraction(factor))) for factor in operator.factors]
    unit = torch.eye(node.size, dtype=torch.float64).reshape(-1, *node.shape)
    parts = [rational(part).reshape(node.size, -1) for part in operator.adjoint(unit, shapes)]
    if isinstance(operator, Structural):  # shares of a whole number
        share = np.vectorize(lambda v: Fraction(1, round(1 / v)) if v else v, otypes=[object])
        parts = [share(part) for part in parts]
    return parts


def constant(graph: Graph, index: int) -> np.ndarray:
    """The exact constant of an affine node, [outputs]."""
    node = graph.nodes[index]
    operator, shapes = node.operator, tuple(graph.nodes[source].shape for source in node.inputs)
    assert isinstance(operator, Affine)
    if isinstance(operator, BatchNorm):
        each = node.size // len(operator.mean)
        (matrix,) = matrices(graph, index)
        bias = 0 if operator.bias is None else np.repeat(rational(operator.bias), each)
        return bias - matrix @ np.repeat(rational(operator.mean), each)
    if isinstance(operator, Shift):
        return rational(operator.offset.expand(node.shape)).reshape(-1)
    return rational(operator.constant(shapes, torch.zeros(1, dtype=torch.float64)).expand(1, *node.shape)).reshape(-1)


def piecewise(operator: PiecewiseLinear, value: Fraction) -> Fraction:
    """The function, from its knots and slopes."""
    knots, slopes = ([Fraction(number) for number in part] for part in (operator.knots, operator.slopes))
    result = Fraction(operator.anchor) + slopes[0] * (min(value, knots[0]) - knots[0])
    for place, (left, slope) in enumerate(zip(knots, slopes[1:], strict=True)):
        right = max(left, min(value, knots[place + 1] if place + 1 < len(knots) else value))
        result += slope * (right - left)
    return result


def values(graph: Graph, x: np.ndarray) -> list[np.ndarray]:
    """Every node's value at one input (fractions), flat; after smooth functions right to 50 digits."""
    found = [x.reshape(-1)]
    for index, node in enumerate(graph.nodes[1:], start=1):
        inputs = [found[source] for source in node.inputs]
        if isinstance(node.operator, PiecewiseLinear):
            found.append(np.array([piecewise(node.operator, value) for value in inputs[0]], dtype=object))
        elif isinstance(node.operator, Smooth):
            found.append(np.array([smooth_fraction(node.operator, value) for value in inputs[0]], dtype=object))
        elif isinstance(node.operator, Maximum):
            found.append(inputs[0].reshape(-1, graph.nodes[node.inputs[0]].shape[-1]).max(1))
        else:
            products = (matrix @ value for matrix, value in zip(matrices(graph, index), inputs, strict=True))
            found.append(sum(products, constant(graph, index)))
    return found
