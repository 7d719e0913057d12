"""A classifier as the cascade uses it: the network, its graph, and its copy in float64."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.errors import IronboundError
from ironbound.graph import Graph

if TYPE_CHECKING:
    from ironbound.certificate.network_file import Arrays


CHECKED = 1 << 15  # values of a network up to which proofs are done again by the checker, which walks densely


class Network:
    """A classifier with its graph and its float64 copy, each made once.

    Shards may share a network over several threads after `prepare`.

    Args:
        model: a network in evaluation mode, or its graph.
        example: [1, *shape], an input that it reads.
    """

    def __init__(self, model: nn.Module | Graph, example: Tensor) -> None:
        self.model = model
        self.example = example

    @cached_property
    def graph(self) -> Graph:
        """The captured graph."""
        return capture(self.model, self.example)

    @cached_property
    def double(self) -> Network | None:
        """The same network in float64; None for one that is tied to float32."""
        try:
            model = (
                _graph_in_double(self.model) if isinstance(self.model, Graph) else copy.deepcopy(self.model).double()
            )
            double = Network(model, self.example.double())
            if any(tensor.dtype == torch.float32 for tensor in double.graph.parameters() if tensor.dim()):
                return None
        except (IronboundError, RuntimeError, TypeError):
            return None
        return double

    @cached_property
    def same_numbers(self) -> bool:
        """Whether the float64 copy computes with the same constants, but for one rounding of each to float32."""
        double = self.double
        if double is None:
            return False
        own, others = self.graph.parameters(), double.graph.parameters()
        return [tensor.shape for tensor in own] == [tensor.shape for tensor in others] and all(
            bool(((single.double() - exact).abs() <= 2.0**-23 * exact.abs()).all())
            for single, exact in zip(own, others, strict=True)
        )

    @cached_property
    def plain(self) -> Arrays | None:
        """The network as the checker of certificates reads it; None where it cannot, or would take long."""
        from ironbound.certificate.network_file import network_arrays

        if sum(node.size for node in self.graph.nodes) > CHECKED:
            return None
        try:
            return network_arrays(self.graph)
        except IronboundError:
            return None

    def prepare(self) -> None:
        """Captures both graphs; capture patches parts of torch, so that nothing else may run beside it."""
        _ = self.graph
        if self.example.dtype == torch.float32:
            _ = self.same_numbers

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        """Runs the network on [batch, *shape]; returns [batch, classes]."""
        return self.model(points)


def _graph_in_double(graph: Graph) -> Graph:
    """A copy of a graph with its tensors in float64; those that an operator makes anew each time stay as they are."""
    singles = {id(tensor): tensor for tensor in graph.parameters() if tensor.dtype == torch.float32}
    return copy.deepcopy(graph, {place: tensor.detach().double() for place, tensor in singles.items()})
