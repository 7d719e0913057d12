"""Searches by name: from a label's margins to a decision, one example at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.exact.query import Budget, Clauses, Outcome, Query
from ironbound.graph import Graph
from ironbound.regions import Region

SEARCHES = ("split", "milp")
"""`split` proves by bounds that hold for any multipliers; `milp` is right up to the solver's tolerances."""


def search(name: str, query: Query, budget: Budget) -> Outcome:
    """Runs a search.

    Args:
        name: one of `SEARCHES`.
        query: what is asked.
        budget: when to end.

    Returns:
        Bounds that hold whenever it ends, and a candidate where it met one.
    """
    if name == "split":
        from ironbound.exact.split import split

        return split(query, budget)
    from ironbound.exact.mixed import milp

    return milp(query, budget)


def label_query(graph: Graph, region: Region, label: int, targets: Tensor, guard: float) -> Query:
    """The query whose clauses are margins: logit[label] - logit[k] for some classes k.

    Args:
        graph: a classifier.
        region: one example.
        label: its class.
        targets: the classes k, int64 [clauses].
        guard: what a bound must exceed to count as above 0.

    Returns:
        One clause of one row for each class.
    """
    center = region.center
    eye = torch.eye(graph.output_shape[0], dtype=center.dtype, device=center.device)
    zeros = center.new_zeros(len(targets))
    number = torch.arange(len(targets), device=center.device)
    return Query(graph, region, Clauses(eye[label] - eye[targets], None, zeros, number, zeros + guard))
