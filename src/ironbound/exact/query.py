"""What exact search is asked, and what it answers: one region, and clauses that no point of it may fulfil.

A point x of the region is a counterexample where all rows of some clause are at most 0:
inputs @ x + outputs @ f(x) + constant <= 0. A clause is proved where at every point one of its rows is above its guard.
A label's margins are clauses of one row each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.regions import Region

FEW = 8  # varied elements of the input up to which the box alone is split
SOME = 20  # up to which splitting the box takes turns with splitting ReLUs


@dataclass(frozen=True, eq=False)
class Clauses:
    """Linear functionals of inputs and outputs, grouped.

    Attributes:
        outputs: coefficients of the outputs, [rows, output elements].
        inputs: coefficients of the inputs, [rows, input elements], or None where no row reads them.
        constant: [rows].
        clause: the clause of each row, int64 [rows], ascending from 0 without gaps.
        guard: what a bound of a row must exceed to count as above 0: the rounding that it may hold, [rows].
    """

    outputs: Tensor
    inputs: Tensor | None
    constant: Tensor
    clause: Tensor
    guard: Tensor

    def __post_init__(self) -> None:
        rows = len(self.outputs)
        shapes = {tuple(value.shape) for value in (self.constant, self.clause, self.guard)}
        if shapes != {(rows,)} or (self.inputs is not None and len(self.inputs) != rows):
            raise InputError(f"clauses of {rows} rows need one constant, one guard and one clause number for each")
        if rows == 0:
            raise InputError("a query needs a clause; without any, nothing is to be proved")

    def __len__(self) -> int:
        """The number of clauses, not of rows."""
        return int(self.clause[-1]) + 1

    def take(self, clauses: Tensor) -> Clauses:
        """Some of the clauses, by int64 [clauses kept], ascending; they are numbered anew."""
        kept = torch.isin(self.clause, clauses)
        number = torch.searchsorted(clauses, self.clause[kept])
        inputs = None if self.inputs is None else self.inputs[kept]
        return Clauses(self.outputs[kept], inputs, self.constant[kept], number, self.guard[kept])

    def values(self, x: Tensor, y: Tensor) -> Tensor:
        """The rows at points.

        Args:
            x: inputs, [points, *input shape].
            y: outputs of the network there, [points, *output shape].

        Returns:
            [points, rows].
        """
        found = y.flatten(1) @ self.outputs.T + self.constant
        return found if self.inputs is None else found + x.flatten(1) @ self.inputs.T

    def best(self, values: Tensor) -> Tensor:
        """The largest row of each clause: [..., rows] -> [..., clauses]; above 0 means no counterexample there."""
        index = self.clause.expand(values.shape)
        start = values.new_full((*values.shape[:-1], len(self)), -torch.inf)
        return start.scatter_reduce(-1, index, values, "amax")


@dataclass(frozen=True, eq=False)
class Query:
    """A network, a region of one example, and the clauses that no point of it may fulfil.

    Attributes:
        graph: the network.
        region: one example; its dtype is that of the search.
        clauses: on the same device and of the same dtype.
    """

    graph: Graph
    region: Region
    clauses: Clauses

    def __post_init__(self) -> None:
        if len(self.region) != 1:
            raise InputError(f"a query has one example, the region has {len(self.region)}; take region[i : i + 1]")


@dataclass(frozen=True)
class Budget:
    """When a search has to end.

    Attributes:
        deadline: a value of `time.monotonic()`, or None for no limit.
        memory: bytes, or None for the default.
        nodes: most subproblems to bound, or None for no limit.
    """

    deadline: float | None = None
    memory: int | None = None
    nodes: int | None = None

    @staticmethod
    def of(seconds: float | None, memory: int | None = None, nodes: int | None = None) -> Budget:
        """A budget that ends so many seconds from now."""
        return Budget(None if seconds is None else time.monotonic() + seconds, memory, nodes)

    def left(self) -> float:
        """Seconds left, possibly negative; infinite without a limit."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search found.

    Attributes:
        lower: for each clause a number that its largest row exceeds at every point of the region, [clauses]; the clause
            is proved where it is above the guard. It holds whenever the search ends.
        candidate: a point of the region [1, *shape] at which the search found every row of a clause at most 0, or None.
            It is no verdict: run the network on it.
        nodes: subproblems bounded.
        why: "proved", "candidate", "time", "memory", "nodes", or "stuck" where nothing is left to split.
    """

    lower: Tensor
    candidate: Tensor | None
    nodes: int
    why: str
