"""A query whose rows read inputs, as one whose rows read outputs only: the network also hands on its input."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.exact.query import Clauses, Query
from ironbound.graph import Graph, Node
from ironbound.ops.affine import Reshape, Structural


def with_inputs(query: Query) -> Query:
    """Appends the inputs to the network's outputs where the clauses read them.

    A method then bounds both parts of a row together, which is tighter than the sum of their bounds.

    Args:
        query: any query.

    Returns:
        The query itself, or an equal one with `clauses.inputs` None.
    """
    clauses = query.clauses
    if clauses.inputs is None:
        return query
    joined = torch.cat([clauses.outputs, clauses.inputs], dim=1)
    plain = Clauses(joined, None, clauses.constant, clauses.clause, clauses.guard)
    return Query(appended(query.graph), query.region, plain)


def appended(graph: Graph) -> Graph:
    """The graph of x -> (outputs, inputs), both flat.

    Args:
        graph: a network.

    Returns:
        Its graph with one output axis.
    """
    last, names = len(graph.nodes) - 1, {node.name for node in graph.nodes}
    inputs, outputs = graph.nodes[0].size, graph.nodes[-1].size

    def node(name: str, operator: Reshape | Structural, sources: tuple[int, ...], size: int) -> Node:
        while name in names:
            name += "_"
        return Node(name, operator, sources, (size,))

    flat = [
        node("flat_output", Reshape((outputs,)), (last,), outputs),
        node("flat_input", Reshape((inputs,)), (0,), inputs),
    ]
    joined = node("output_and_input", Structural(_joined, "concatenation"), (last + 1, last + 2), outputs + inputs)
    return Graph((*graph.nodes, *flat, joined))


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1)
