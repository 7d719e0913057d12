"""The attack on properties: it finds planted counterexamples, stays in the box, and decides nothing by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironbound.attacks.property_attack import Effort, attack_property
from ironbound.spec import Case, Clause, Constraint, Property
from verification_cases import chain

IDENTITY = nn.Flatten()


def prop(*clauses: Clause, lower: float = -1.0, upper: float = 1.0, inputs: int = 2) -> Property:
    """One case on a cube, as many outputs as inputs."""
    ends = np.full(inputs, lower), np.full(inputs, upper)
    return Property(inputs, inputs, (Case(*ends, clauses),))


def found(model: nn.Module, asked: Property, effort: Effort, clause: int = 0) -> Tensor | None:
    """Attacks one clause; accepts what the property accepts."""

    def accept(point: Tensor) -> bool:
        return bool(asked.counterexample(point, model(point))[0])

    return attack_property(model, asked, (asked.inputs,), accept, [(0, clause)], effort)


@pytest.mark.parametrize("adam", [False, True])
def test_finds_a_planted_minimum(adam: bool) -> None:
    model = chain(7, 2, 8, 8, 2)
    side = torch.linspace(-1, 1, 301)
    with torch.no_grad():
        low = float(model(torch.cartesian_prod(side, side))[:, 0].min())
    near = prop(Clause((Constraint((), ((0, 1.0),), low + 0.01),)))
    effort = Effort(60, 16, 0.3 if adam else 2.0, adam)
    assert found(model, near, effort) is not None
    assert found(model, prop(Clause((Constraint((), ((0, 1.0),), low - 0.05),))), effort) is None


def test_conjunctions_are_met_together() -> None:
    rows = (
        Constraint((), ((0, 1.0),), -0.4),
        Constraint((), ((0, -1.0),), 0.41),
        Constraint((), ((1, 1.0),), 0.71),
        Constraint((), ((1, -1.0),), -0.7),
    )
    point = found(IDENTITY, prop(Clause(rows)), Effort(200, 8, 0.1, True))
    assert point is not None
    assert -0.41 <= point[0, 0] <= -0.4
    assert 0.7 <= point[0, 1] <= 0.71


def test_inputs_in_constraints() -> None:
    rows = (Constraint(((0, 1.0),), ((1, 1.0),), -1.9),)  # x0 + y1 <= -1.9
    point = found(IDENTITY, prop(Clause(rows)), Effort(4, 1))
    assert point is not None
    assert point.tolist() == [[-1.0, -1.0]]


def test_a_clause_without_constraints_always_holds() -> None:
    assert found(IDENTITY, prop(Clause(())), Effort(1, 1)) is not None


def test_every_point_tried_lies_in_the_box() -> None:
    seen = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x

    asked = prop(Clause((Constraint((), ((0, 1.0),), -5.0),)), lower=0.1, upper=0.3)
    assert found(Watched(), asked, Effort(30, 8)) is None
    assert found(Watched(), asked, Effort(30, 8, 0.5, True)) is None
    points = torch.cat(seen)
    assert (points >= np.float32(0.1)).all()
    assert (points <= np.float32(0.3)).all()
    assert (points == np.float32(0.1)).any()


def test_only_what_is_accepted_counts() -> None:
    asked = prop(Clause((Constraint((), ((0, 1.0),), 5.0),)))
    tried = []
    assert attack_property(IDENTITY, asked, (2,), lambda point: tried.append(point) or False, [(0, 0)]) is None
    assert tried


def test_nan_is_no_candidate() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.nan

    asked = prop(Clause((Constraint((), ((0, 1.0),), 5.0),)))
    assert attack_property(Broken(), asked, (2,), lambda point: True, [(0, 0)], Effort(5, 4)) is None


def test_the_same_seed_finds_the_same_point() -> None:
    model = chain(7, 2, 8, 8, 2)
    asked = prop(Clause((Constraint((), ((0, 1.0),), -0.2), Constraint((), ((1, -1.0),), 0.3))))
    points = [found(model, asked, Effort(40, 16, 0.5, True, seed=3)) for _ in range(2)]
    assert (points[0] is None) == (points[1] is None)
    if points[0] is not None:
        assert torch.equal(points[0], points[1])
