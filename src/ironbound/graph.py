"""A network as a graph: nodes in topological order, a shape on each, the module's live tensors inside the operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ironbound.errors import InputError
from ironbound.ops.operator import Input, Operator


@dataclass(frozen=True)
class Node:
    """One value of the network.

    Attributes:
        name: unique name, as a person would look for it.
        operator: the rule that computes the value.
        inputs: indices of the nodes that the operator reads, in its order.
        shape: shape of the value without the batch axis.
        source: the user's line that made the node, for error messages.
    """

    name: str
    operator: Operator
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    source: str = ""

    @cached_property
    def size(self) -> int:
        """Number of elements of the value, without the batch axis."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class Graph:
    """A feed-forward network: `nodes[0]` is the input, the last node the output; inputs come before their readers."""

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0].operator, Input):
            raise InputError("a graph starts with its Input node")
        for index, node in enumerate(self.nodes):
            if any(not 0 <= source < index for source in node.inputs):
                raise InputError(f"node {node.name!r} reads a node that does not come before it")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input example."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output example."""
        return self.nodes[-1].shape

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the indices of the nodes that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                readers[source].append(index)
        return tuple(tuple(row) for row in readers)

    def parameters(self) -> list[Tensor]:
        """The live tensors of all operators, in order of the nodes."""
        return [tensor for node in self.nodes for tensor in node.operator.tensors()]

    def __call__(self, x: Tensor) -> Tensor:
        """Runs the network on `x` of shape [batch, *input_shape]; returns [batch, *output_shape]."""
        values: list[Tensor] = [x]
        for node in self.nodes[1:]:
            values.append(node.operator.forward(*(values[source] for source in node.inputs)))
        return values[-1]
