"""Projected gradient descent on a property: look for inputs at which some clause of some case holds.

A clause is a conjunction of constraints a x + b f(x) <= c, so the function to minimise is the largest of its rows
a x + b f(x) - c: not above 0 means a counterexample. Steps by the gradient's sign suit single rows of many inputs;
where rows pull in different directions they only oscillate, and Adam (Kingma & Ba 2015) finds the corner between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.attacks.logits import CHUNK_ELEMENTS, Network
from ironbound.spec import Property

POINTS = 512  # most points that the network sees at once
LAST_STEP = 0.002  # of half the width of the box
Goal = tuple[int, int]  # a case, and one of its clauses


@dataclass(frozen=True)
class Effort:
    """How hard to attack.

    Attributes:
        steps: of each run; 1 is FGSM.
        restarts: runs per goal: from the middle, from both ends, then from random points and corners in turn.
        first: length of the first step in half widths of the box; 2 is FGSM's, to a corner from anywhere.
        adam: Adam's steps instead of the gradient's sign.
        seed: of the random starts.
        deadline: a value of `time.monotonic()`, or None.
    """

    steps: int = 40
    restarts: int = 4
    first: float = 2.0
    adam: bool = False
    seed: int = 0
    deadline: float | None = None

    def over(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, eq=False)
class _Goals:
    """Boxes and rows of all goals; clauses of fewer rows repeat their first.

    Attributes:
        lower, upper: [goals, inputs].
        inputs: [goals, rows, inputs], or None where no clause reads them.
        outputs: [goals, rows, outputs].
        bound: [goals, rows].
    """

    lower: Tensor
    upper: Tensor
    inputs: Tensor | None
    outputs: Tensor
    bound: Tensor

    def loss(self, goal: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The largest row of each point's goal, [points]."""
        rows = torch.einsum("pro,po->pr", self.outputs[goal], y) - self.bound[goal]
        if self.inputs is not None:
            rows = rows + torch.einsum("pri,pi->pr", self.inputs[goal], x)
        return rows.amax(1)


def attack_property(
    model: Network,
    prop: Property,
    shape: tuple[int, ...],
    accept: Callable[[Tensor], bool],
    goals: Sequence[Goal],
    effort: Effort = Effort(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
) -> Tensor | None:
    """Looks for a counterexample.

    Args:
        model: any callable from [batch, *shape] to [batch, *output shape].
        prop: the property.
        shape: of an input example.
        accept: what decides about a candidate [1, *shape]; the search ends with the first that it accepts.
        goals: the (case, clause) to try; no case's box is empty.
        effort: how hard.
        dtype: that the network computes in.

    Returns:
        The accepted candidate, or None.
    """
    if not goals:
        return None
    table = _table(prop, goals, dtype)
    generator = torch.Generator().manual_seed(effort.seed)
    runs = torch.arange(len(goals)).repeat(effort.restarts)
    starts = torch.arange(effort.restarts).repeat_interleave(len(goals))
    size = max(1, min(POINTS, CHUNK_ELEMENTS // prop.inputs))
    for goal, start in zip(runs.split(size), starts.split(size), strict=True):
        if effort.over():
            return None
        points = _starts(table, goal, start, generator)
        found = _descend(model, table, goal, points, shape, accept, effort)
        if found is not None:
            return found
    return None


def _table(prop: Property, goals: Sequence[Goal], dtype: torch.dtype) -> _Goals:
    rows = max(1, *(len(prop.cases[case].clauses[clause].constraints) for case, clause in goals))
    inputs = torch.zeros(len(goals), rows, prop.inputs) if _reads_inputs(prop, goals) else None
    outputs, bound = torch.zeros(len(goals), rows, prop.outputs), torch.ones(len(goals), rows)
    for place, (case, clause) in enumerate(goals):
        a, b, c = (
            torch.from_numpy(part) for part in prop.cases[case].clauses[clause].matrices(prop.inputs, prop.outputs)
        )
        if len(c):  # without constraints the row is -1, which always holds
            index = torch.arange(rows).clamp(max=len(c) - 1)
            outputs[place], bound[place] = b[index].float(), c[index].float()
            if inputs is not None:
                inputs[place] = a[index].float()
    lower, upper = (
        torch.stack([torch.from_numpy(getattr(prop.cases[case], name)) for case, _ in goals]).to(dtype)
        for name in ("lower", "upper")
    )
    read = None if inputs is None else inputs.to(dtype)
    return _Goals(lower, upper, read, outputs.to(dtype), bound.to(dtype))


def _reads_inputs(prop: Property, goals: Sequence[Goal]) -> bool:
    return any(prop.cases[case].clauses[clause].reads_inputs for case, clause in goals)


def _starts(table: _Goals, goal: Tensor, start: Tensor, generator: torch.Generator) -> Tensor:
    """Starting points [points, inputs]: the middle, the lower ends, the upper ends, random points and corners."""
    lower, upper = table.lower[goal], table.upper[goal]
    share = torch.rand(lower.shape, generator=generator, dtype=lower.dtype)
    share = torch.where((start % 2 == 0)[:, None], share.round(), share)
    for place, value in enumerate((0.5, 0.0, 1.0)):
        share = torch.where((start == place)[:, None], value, share)
    return torch.minimum(lower + share * (upper - lower), upper)


def _descend(
    model: Network,
    table: _Goals,
    goal: Tensor,
    points: Tensor,
    shape: tuple[int, ...],
    accept: Callable[[Tensor], bool],
    effort: Effort,
) -> Tensor | None:
    """All runs of a chunk side by side."""
    lower, upper = table.lower[goal], table.upper[goal]
    direction = _Adam() if effort.adam else torch.sign
    for step in range(effort.steps + 1):
        with torch.enable_grad():
            x = points.detach().requires_grad_(step < effort.steps)
            loss = table.loss(goal, x, model(x.reshape(-1, *shape)).flatten(1))
        for place in (loss <= 0).nonzero()[:, 0][:8].tolist():
            candidate = points[place].reshape(1, *shape)
            if accept(candidate):
                return candidate
        if step == effort.steps or effort.over() or not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        half = (upper - lower) / 2
        share = effort.first * (LAST_STEP / effort.first) ** (step / max(1, effort.steps - 1))
        moved = points - share * half * direction(gradient.nan_to_num() * half)
        points = torch.minimum(torch.maximum(moved, lower), upper)
    return None


class _Adam:
    """The direction of Adam's steps, element by element."""

    def __init__(self) -> None:
        self._steps, self._mean, self._square = 0, 0.0, 0.0

    def __call__(self, gradient: Tensor) -> Tensor:
        self._steps += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.99 * self._square + 0.01 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.99**self._steps)
        return mean / (square.sqrt() + torch.finfo(gradient.dtype).tiny)
