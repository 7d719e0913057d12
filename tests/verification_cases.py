"""Tiny networks, properties of them, and their exact answers: one linear program per pattern of active neurons."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from ironbound.spec import Case, Clause, Constraint, Property
from ironbound.spec.constraints import terms


def chain(seed: int, *widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them, random weights, float32, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
            layer.bias.copy_(0.5 * torch.randn(outputs, generator=generator))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def random_property(seed: int, inputs: int, outputs: int, reads_inputs: bool = True) -> Property:
    """One to two cases of one to two clauses of one to three constraints."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(rng.integers(1, 3)):
        lower = rng.normal(size=inputs)
        upper = lower + rng.uniform(0.1, 2, size=inputs)
        upper[rng.random(inputs) < 0.1] = lower[0]  # now and then an element that does not vary, or an empty box
        clauses = []
        for _ in range(rng.integers(1, 3)):
            rows = []
            for _ in range(rng.integers(1, 4)):
                x = rng.normal(size=inputs) * (reads_inputs and rng.random() < 0.4)
                rows.append(
                    Constraint(terms(enumerate(x)), terms(enumerate(rng.normal(size=outputs))), float(rng.normal()))
                )
            clauses.append(Clause(tuple(rows)))
        cases.append(Case(lower, upper, tuple(clauses)))
    return Property(inputs, outputs, tuple(cases))


def shifted(prop: Property, by: float) -> Property:
    """The property with every bound moved: by > 0 makes counterexamples easier."""
    cases = tuple(
        Case(
            case.lower,
            case.upper,
            tuple(
                Clause(tuple(Constraint(one.inputs, one.outputs, one.bound + by) for one in clause.constraints))
                for clause in case.clauses
            ),
        )
        for case in prop.cases
    )
    return Property(prop.inputs, prop.outputs, cases)


def least(model: nn.Sequential, case: Case, clause: Clause) -> float:
    """The least, over the box, of the clause's largest row a x + b f(x) - c: not above 0 where it can be fulfilled."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [layer.weight.detach().double().numpy() for layer in linear]
    biases = [layer.bias.detach().double().numpy() for layer in linear]
    size = len(case.lower)
    a, b, c = clause.matrices(size, len(biases[-1]))
    best = float("inf")
    if case.empty:
        return best
    for pattern in product((0.0, 1.0), repeat=sum(len(bias) for bias in biases[:-1])):
        matrix, constant = np.eye(size), np.zeros(size)
        rows, ends, start = [], [], 0
        for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            matrix, constant = weight @ matrix, weight @ constant + bias
            if place < len(weights) - 1:
                active = np.array(pattern[start : start + len(bias)])
                start += len(bias)
                sign = 1 - 2 * active
                rows.append(sign[:, None] * matrix)
                ends.append(-sign * constant)
                matrix, constant = active[:, None] * matrix, active * constant
        left = np.vstack([np.hstack([row, np.zeros((len(row), 1))]) for row in rows])
        tops = np.hstack([a + b @ matrix, -np.ones((len(c), 1))])
        found = linprog(
            np.eye(size + 1)[-1],
            A_ub=np.vstack([left, tops]),
            b_ub=np.concatenate([*ends, c - b @ constant]),
            bounds=[*zip(case.lower, case.upper, strict=True), (None, None)],
            method="highs",
        )
        if found.status == 0:
            best = min(best, float(found.fun))
    return best


def least_of(model: nn.Sequential, prop: Property) -> float:
    """The least over all cases and clauses: the property holds where it is above 0."""
    return min((least(model, case, clause) for case in prop.cases for clause in case.clauses), default=float("inf"))
