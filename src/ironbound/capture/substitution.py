"""Captures of a module while some of its layers compute with other operators, without a new trace."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from ironbound.capture.export import CACHE, cache_key
from ironbound.graph import Graph
from ironbound.ops.operator import Operator


@contextmanager
def captured_as(model: nn.Module, example: Tensor, graph: Graph) -> Generator[None]:
    """While it is open, `capture` returns the graph for this module and this shape of input.

    It is served as long as the module stays as it is on entry. Afterwards the cache is as it was before.

    Args:
        model: the module.
        example: as for `capture`.
        graph: what the module computes.

    Yields:
        Nothing.
    """
    key = cache_key(example)
    before = CACHE.entry(model, key)
    CACHE.keep(model, key, graph, constants_of(model, example))
    try:
        yield
    finally:
        CACHE.restore(model, key, before)


def constants_of(model: nn.Module, example: Tensor) -> list[Tensor]:
    """The module's tensors that constants of its stored capture were computed from."""
    entry = CACHE.entry(model, cache_key(example))
    return [tensor for kept, _ in entry.folded if (tensor := kept()) is not None] if entry else []


def with_operators(graph: Graph, change: Callable[[Operator], Operator]) -> Graph:
    """The graph with each operator replaced by `change` of it, which must read and return the same shapes."""
    return Graph(tuple(replace(node, operator=change(node.operator)) for node in graph.nodes))
