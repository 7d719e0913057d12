"""The forward direction: the identity pushed through the relaxed network.

This is how Algorithm 1 of Wong & Kolter (2018) is printed. Every input element and every open neuron of an example is a
generator, a row that is pushed forward; a value's radius is the dual norm of the input's generators plus the sum of the
others' magnitudes. With parallel slopes these are the numbers of the backward walk; it wins where the input is small,
since one push serves every neuron of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.backward import Band, Range
from ironbound.bounding.functionals import DenseRows, row_norm
from ironbound.graph import Graph
from ironbound.ops.affine import Linear, Reshape
from ironbound.ops.operator import Activation, Affine
from ironbound.regions import Region


def forward_pays(graph: Graph, region: Region) -> bool:
    """Whether pushing the identity forward is likely cheaper: a small input, and layers at least four times as wide.

    Convolutions stay with the backward direction, whose rows are small windows.

    Args:
        graph: the network.
        region: the inputs.

    Returns:
        True where the forward direction applies and is likely cheaper.
    """
    if len(region.sets()) != 1 or len(graph.nodes) == 1:
        return False
    for node in graph.nodes[1:]:
        simple = isinstance(node.operator, Activation | Linear | Reshape) or (
            isinstance(node.operator, Affine) and node.operator.diagonal()
        )
        if not simple:
            return False
    hidden = [node.size for node in graph.nodes[1:] if isinstance(node.operator, Activation)]
    return bool(hidden) and 4 * graph.nodes[0].size <= min(hidden)


@dataclass(frozen=True, eq=False)
class Generators:
    """A node's value as centre + sum over the rows of one example.

    Attributes:
        center: [batch, *shape].
        inputs: [batch, input elements, *shape], what each (scaled) input element does.
        rows: [rows, *shape], what each open neuron's free term in [-1, 1] does.
        example: the example of each row, int64 [rows].
    """

    center: Tensor
    inputs: Tensor
    rows: Tensor
    example: Tensor

    def radius(self, order: float) -> Tensor:
        """Largest distance from the centre, [batch, *shape]."""
        own = torch.linalg.vector_norm(self.inputs, order, dim=1)
        return own.index_add(0, self.example, self.rows.abs())


@dataclass(frozen=True, eq=False)
class GeneratorState:
    """The output's generators and the bounds of every relaxed node's input.

    Attributes:
        output: generators of the network's output.
        order: order of the region's dual norm.
        layers: bounds (lower, upper) of the value that each relaxed node reads, by the node's index.
    """

    output: Generators
    order: float
    layers: dict[int, Range]

    def answer(self, functionals: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        """Lower and upper bound, [rows], of functionals of the output."""
        rows, example = functionals.coefficients.flatten(1), functionals.example
        center = (rows * self.output.center.flatten(1)[example]).sum(1)
        inputs = torch.einsum("ro,rio->ri", rows, self.output.inputs.flatten(2)[example])
        radius = row_norm(inputs, self.order)
        # rows of functionals meet the generators of their own example only
        product = (rows @ self.output.rows.flatten(1).T).abs()
        own = example.unsqueeze(1) == self.output.example.unsqueeze(0)
        radius = radius + torch.where(own, product, torch.zeros_like(product)).sum(1)
        return center - radius, center + radius


def generator_state(graph: Graph, region: Region) -> GeneratorState:
    """Pushes the generators of a region (one set) through the network.

    Args:
        graph: the network; every affine operator reads one input.
        region: the inputs.

    Returns:
        The output's generators, and bounds [batch, *shape] of every relaxed node's input.
    """
    (part,) = region.sets()
    center = region.center if part.offset is None else region.center + part.offset
    batch, size = len(center), graph.nodes[0].size
    eye = torch.eye(size, dtype=center.dtype, device=center.device).reshape(1, size, *graph.input_shape)
    inputs = eye * part.radius.expand(center.shape).unsqueeze(1)
    none = torch.zeros(0, dtype=torch.int64, device=center.device)
    values = [Generators(center, inputs, center.new_zeros(0, *graph.input_shape), none)]
    layers: dict[int, Range] = {}
    for index, node in enumerate(graph.nodes[1:], start=1):
        value = values[node.inputs[0]]
        if isinstance(node.operator, Affine):
            values.append(_push_affine(node.operator, value, batch))
            continue
        assert isinstance(node.operator, Activation)
        radius = value.radius(part.dual)
        low, high = value.center - radius, value.center + radius
        layers[index] = (low, high)
        values.append(
            _push_band(Band.of(node.operator.parallel_lines(low, high)), node.operator.linear_on(low, high), value)
        )
    return GeneratorState(values[-1], part.dual, layers)


def _push_affine(operator: Affine, value: Generators, batch: int) -> Generators:
    constant = operator.constant((tuple(value.center.shape[1:]),), value.center)
    inputs = operator.forward(value.inputs.flatten(0, 1)) - constant
    rows = operator.forward(value.rows) - constant
    return Generators(operator.forward(value.center), inputs.unflatten(0, (batch, -1)), rows, value.example)


def _push_band(band: Band, closed: Tensor, value: Generators) -> Generators:
    opened = torch.nonzero(~closed.flatten(1))
    example, neuron = opened[:, 0], opened[:, 1]
    fresh = torch.zeros((len(opened), closed[0].numel()), dtype=band.gap.dtype, device=band.gap.device)
    slot = torch.arange(len(opened), device=band.gap.device)
    fresh = fresh.index_put((slot, neuron), band.gap.flatten(1)[example, neuron]).reshape(-1, *closed.shape[1:])
    return Generators(
        band.slope * value.center + band.middle,
        band.slope.unsqueeze(1) * value.inputs,
        torch.cat([band.slope[value.example] * value.rows, fresh]),
        torch.cat([value.example, example]),
    )
