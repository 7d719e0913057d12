"""Channels that a relaxation closes at zero leave the network before functionals are carried through it.

Where the slope and the gap of a channel are zero for every example and position, every functional loses its
coefficients there; the weights of that channel then only cost time. Networks trained to be certified have many.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ironbound.bounding.backward import Band
from ironbound.graph import Graph, Node
from ironbound.ops.affine import Convolution, Linear, Reshape

_WORTH = 7 / 8  # share of channels alive up to which new weights are worth making


def without_dead_channels(graph: Graph, index: int, band: Band) -> tuple[Graph, Tensor | None]:
    """Takes the channels out of a network that the relaxation of one node maps to zero.

    Nothing changes where the node's neighbours are not all convolutions or linear layers, or where it would not pay.

    Args:
        graph: the network.
        index: an activation.
        band: its relaxation.

    Returns:
        A network through which functionals of later nodes can be carried with the same result, and the channels of the
        node that are left in it, or None for all. Nodes keep their indices; their shapes may shrink.
    """
    source = graph.nodes[index].inputs[0]
    if band.slope.dim() < 2 or graph.readers[source] != (index,):
        return graph, None
    alive = ((band.slope != 0) | (band.gap != 0)).unsqueeze(2).flatten(2).any(2).any(0)  # NaN is not 0: it stays
    kept = torch.nonzero(alive).squeeze(1)
    if len(kept) == 0 or len(kept) > _WORTH * len(alive):
        return graph, None
    below = _fewer_outputs(graph.nodes[source], kept)
    above = _readers(graph, index, kept)
    if below is None or above is None:
        return graph, None
    nodes = list(graph.nodes)
    nodes[source] = below
    nodes[index] = replace(nodes[index], shape=(len(kept), *nodes[index].shape[1:]))
    for reader, node in above.items():
        nodes[reader] = node
    return Graph(tuple(nodes)), kept


def _fewer_outputs(node: Node, kept: Tensor) -> Node | None:
    """A layer with some of its output channels, or None where it is no such layer."""
    operator = node.operator
    plain = isinstance(operator, Linear) and len(node.shape) == 1
    if not plain and not (isinstance(operator, Convolution) and operator.groups == 1):
        return None
    assert isinstance(operator, Linear | Convolution)
    bias = None if operator.bias is None else operator.bias.index_select(0, kept)
    fewer = replace(operator, weight=operator.weight.index_select(0, kept), bias=bias)
    return replace(node, operator=fewer, shape=(len(kept), *node.shape[1:]))


def _readers(graph: Graph, index: int, kept: Tensor) -> dict[int, Node] | None:
    """The readers of a node with some of its channels, or None where one of them needs the others too."""
    shape = graph.nodes[index].shape
    changed: dict[int, Node] = {}
    for reader in graph.readers[index]:
        node = graph.nodes[reader]
        if isinstance(node.operator, Reshape) and len(shape) > 1 and node.shape == (graph.nodes[index].size,):
            each = node.shape[0] // shape[0]  # elements of one channel, side by side after flattening
            elements = (kept.unsqueeze(1) * each + torch.arange(each, device=kept.device)).flatten()
            behind = {further: _fewer_inputs(graph.nodes[further], elements) for further in graph.readers[reader]}
            flat = (len(elements),)
            if not behind:  # the network's output
                return None
            behind[reader] = replace(node, operator=Reshape(flat), shape=flat)
        else:
            behind = {reader: _fewer_inputs(node, kept)}
        if None in behind.values():
            return None
        changed.update(behind)  # type: ignore[arg-type]
    return changed or None


def _fewer_inputs(node: Node, kept: Tensor) -> Node | None:
    """A layer that reads some of its input channels, or None where it is no such layer."""
    operator = node.operator
    plain = isinstance(operator, Linear) and len(node.shape) == 1
    if not plain and not (isinstance(operator, Convolution) and operator.groups == 1):
        return None
    assert isinstance(operator, Linear | Convolution)
    return replace(node, operator=replace(operator, weight=operator.weight.index_select(1, kept)))
