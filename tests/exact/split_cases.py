"""Tiny networks and queries whose exact answer is known by enumeration of activation patterns."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.exact.query import Clauses, Query
from ironbound.exact.split_columns import is_open
from ironbound.exact.split_cuts import Shares
from ironbound.exact.split_relaxation import Relaxation
from ironbound.exact.split_separation import cuts_of
from ironbound.graph import Graph
from ironbound.regions import Box

SIZES = {"two layers": (2, 5, 4), "three layers": (2, 4, 3, 3), "wide input": (4, 6, 3)}


@dataclass(frozen=True, eq=False)
class Problem:
    """A network as matrices, a box, and clauses as (A, B, c): rows A x + B y + c."""

    model: nn.Sequential
    lower: Tensor
    upper: Tensor
    clauses: tuple[tuple[Tensor, Tensor, Tensor], ...]
    slopes: tuple[float, float] = (0.0, 1.0)

    def query(self, dtype: torch.dtype = torch.float64, guard: float = 1e-6) -> Query:
        region = Box(self.lower.to(dtype), self.upper.to(dtype))
        inputs, outputs, constant = (torch.cat(parts).to(dtype) for parts in zip(*self.clauses, strict=True))
        number = torch.cat([torch.full((len(c),), k) for k, (_, _, c) in enumerate(self.clauses)])
        graph = _graph(self.model, dtype, self.lower.shape[1])
        some = bool(inputs.any())
        clauses = Clauses(
            outputs, inputs if some else None, constant, number, torch.full((len(number),), guard, dtype=dtype)
        )
        return Query(graph, region, clauses)

    def layers(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (part.weight.detach().double().numpy(), part.bias.detach().double().numpy())
            for part in self.model
            if isinstance(part, nn.Linear)
        ]


@cache
def _graph(model: nn.Sequential, dtype: torch.dtype, width: int) -> Graph:
    return capture(copy.deepcopy(model).to(dtype), torch.zeros(1, width, dtype=dtype))


@cache
def problem(seed: int, size: str = "two layers", rows: tuple[int, ...] = (1,), inputs: bool = False) -> Problem:
    """A random problem; its offsets are such that both answers come up."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 64).round() / 64  # exact in float32

    widths = SIZES[size]
    parts: list[nn.Module] = []
    for first, second in zip(widths, (*widths[1:], 3), strict=True):
        linear = nn.Linear(first, second).double()
        linear.weight.data = normal(second, first) * (0.75 if first > 3 else 1.0)
        linear.bias.data = 0.25 * normal(second)
        parts += [linear, nn.ReLU()]
    model = nn.Sequential(*parts[:-1]).eval()
    center = normal(1, widths[0])
    clauses = tuple(
        (normal(n, widths[0]) if inputs else torch.zeros(n, widths[0]).double(), normal(n, 3), normal(n) + 1.5)
        for n in rows
    )
    return Problem(model, center - 0.75, center + 0.75, clauses)


@cache
def exact_minimum(one: Problem, clause: int) -> float:
    """The least, over the region, of the largest row of a clause: one linear program per activation pattern.

    A neuron whose affine function, given the pattern below, keeps its sign over the whole box has one state only.
    """
    layers, (a, b, c) = one.layers(), (part.numpy() for part in one.clauses[clause])
    size = one.lower.shape[1]
    limits = [*zip(one.lower[0].tolist(), one.upper[0].tolist(), strict=True), (None, None)]
    middle, radius = ((one.upper + s * one.lower)[0].numpy() / 2 for s in (1, -1))
    goal = np.zeros(size + 1)
    goal[-1] = 1

    def least(place: int, matrix: np.ndarray, constant: np.ndarray, above: list, ends: list) -> float:
        weight, bias = layers[place]
        matrix, constant = weight @ matrix, weight @ constant + bias
        if place == len(layers) - 1:
            rows = np.hstack([a + b @ matrix, -np.ones((len(c), 1))])
            found = linprog(
                goal,
                np.vstack([*above, rows]),
                np.concatenate([*ends, -(b @ constant + c)]),
                bounds=limits,
                method="highs",
            )
            return float(found.fun) if found.status == 0 else np.inf
        reach, at = np.abs(matrix) @ radius, matrix @ middle + constant
        states = [(1,) if v - r > 0 else (0,) if v + r < 0 else (0, 1) for v, r in zip(at, reach, strict=True)]
        best = np.inf
        for pattern in product(*states):
            active = np.array(pattern)
            sign = np.where(active, -1.0, 1.0)
            factor = np.where(active, one.slopes[1], one.slopes[0])
            half_spaces = np.hstack([sign[:, None] * matrix, np.zeros((len(bias), 1))])
            next_above, next_ends = [*above, half_spaces], [*ends, -sign * constant]
            best = min(best, least(place + 1, factor[:, None] * matrix, factor * constant, next_above, next_ends))
        return best

    return least(0, np.eye(size), np.zeros(size), [], [])


def near(one: Problem, slack: float) -> Problem:
    """The problem with every clause moved so that its exact minimum is `slack`."""
    clauses = []
    for number, (a, b, c) in enumerate(one.clauses):
        clauses.append((a, b, c - exact_minimum(one, number) + slack))
    return replace(one, clauses=tuple(clauses))


def cut(net: Relaxation, count: int, seed: int) -> Relaxation:
    """The relaxation with cuts of random shares."""
    generator = torch.Generator().manual_seed(seed)
    some = torch.nonzero(is_open(net)).squeeze(1)
    column = some[torch.randint(len(some), (count,), generator=generator)]
    high, low, rest = torch.rand(count, 3, generator=generator, dtype=torch.float64).softmax(1).unbind(1)
    input_, parts = (
        rest.unsqueeze(1) * (2 * torch.rand(count, size, generator=generator, dtype=torch.float64)).clamp(max=1)
        for size in (net.input.shape[1], net.width)
    )
    return replace(net, cuts=cuts_of(net, Shares(column, high, low, input_, parts)))
