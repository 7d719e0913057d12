"""From the cases of a property to queries of exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironbound.exact.query import Clauses, Query
from ironbound.graph import Graph
from ironbound.spec import Case, Property


@dataclass(frozen=True, eq=False)
class Scale:
    """What guards are measured by.

    Attributes:
        guard: share of the magnitude that a bound may be off by rounding.
        outputs: largest magnitude of each output that was seen, [outputs], float64.
    """

    guard: float
    outputs: Tensor


def clauses_of(prop: Property, case: Case, kept: Sequence[int], scale: Scale, dtype: torch.dtype) -> Clauses:
    """Clauses of a case as rows.

    A clause without constraints always holds; it becomes the row -1.

    Args:
        prop: the property.
        case: one of its cases.
        kept: which of the case's clauses.
        scale: for the guards: a share of 1 + |constant| + the magnitudes of all terms.
        dtype: of the rows.

    Returns:
        The rows, numbered by position in `kept`.
    """
    farthest = torch.from_numpy(np.maximum(np.abs(case.lower), np.abs(case.upper)))
    inputs, outputs, constants, numbers, guards = [], [], [], [], []
    for number, which in enumerate(kept):
        clause = case.clauses[which]
        a, b, bound = (torch.from_numpy(part) for part in clause.matrices(prop.inputs, prop.outputs))
        if not clause.constraints:
            a, b, bound = a.new_zeros(1, prop.inputs), b.new_zeros(1, prop.outputs), bound.new_ones(1)
        magnitude = 1 + bound.abs() + a.abs() @ farthest + b.abs() @ scale.outputs
        inputs.append(a)
        outputs.append(b)
        constants.append(-bound)
        numbers.append(torch.full((len(bound),), number, dtype=torch.int64))
        guards.append((scale.guard * magnitude.amax()).expand(len(bound)))
    reads = any(case.clauses[which].reads_inputs for which in kept)
    return Clauses(
        torch.cat(outputs).to(dtype),
        torch.cat(inputs).to(dtype) if reads else None,
        torch.cat(constants).to(dtype),
        torch.cat(numbers),
        torch.cat(guards).to(dtype),
    )


def query_of(graph: Graph, prop: Property, case: Case, kept: Sequence[int], scale: Scale, dtype: torch.dtype) -> Query:
    """A case as a query, its box rounded outward.

    Args:
        graph: the network in `dtype`.
        prop: the property.
        case: one of its cases, not empty.
        kept: which of the case's clauses.
        scale: for the guards.
        dtype: of the search.

    Returns:
        The query.
    """
    return Query(graph, case.box(graph.input_shape, dtype), clauses_of(prop, case, kept, scale, dtype))
