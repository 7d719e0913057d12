"""Input split against enumeration, sampling and linear programs; every way in which it can end."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from cases import CASES
from ironbound.capture import capture
from ironbound.exact.box_lines import box_lines, influence
from ironbound.exact.input_split import input_split
from ironbound.exact.query import Budget, Clauses, Outcome, Query
from ironbound.exact.row_mixing import mixed
from ironbound.regions import Box
from ironbound.spec import Case, Property
from ironbound.verification_queries import Scale, query_of
from verification_cases import chain, least, random_property

DOUBLE = torch.float64


def query(model: nn.Module, prop: Property, case: Case) -> Query:
    """A case of a property, all of its clauses."""
    graph = capture(model.double(), torch.zeros(1, prop.inputs, dtype=DOUBLE))
    scale = Scale(1e-9, torch.ones(prop.outputs, dtype=DOUBLE))
    return query_of(graph, prop, case, range(len(case.clauses)), scale, DOUBLE)


def margin_query(model: nn.Module, region: Box, outputs: list[list[float]], constant: float = 0.0) -> Query:
    """Each row a clause of its own: row · f(x) + constant <= 0."""
    rows = torch.tensor(outputs, dtype=region.dtype)
    clauses = Clauses(
        rows,
        None,
        rows.new_full((len(rows),), constant),
        torch.arange(len(rows)),
        rows.new_full((len(rows),), 1e-9),
    )
    return Query(capture(model, region.center), region, clauses)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_decides_as_enumeration_does(seed: int) -> None:
    inputs = 1 + seed % 3
    model = chain(seed, inputs, 3, 3, 2) if seed % 2 else chain(seed, inputs, 5, 2)
    prop = random_property(seed, inputs, 2)
    for case in prop.cases:
        if case.empty:
            continue
        exact = np.array([least(model, case, clause) for clause in case.clauses])
        asked = query(model, prop, case)
        outcome = input_split(asked, Budget(nodes=40_000))
        assert (outcome.lower.numpy() <= exact + 1e-7).all()
        if exact.min() > 1e-4:
            assert outcome.why == "proved"
            assert (outcome.lower > 0).all()
        elif exact.min() < -1e-4:
            assert outcome.why == "candidate"
            assert outcome.candidate is not None
            assert asked.region.contains(outcome.candidate)
            values = asked.clauses.values(outcome.candidate, asked.graph(outcome.candidate))
            assert (asked.clauses.best(values) <= 0).any()
        early = input_split(asked, Budget(nodes=1))
        assert (early.lower.numpy() <= exact + 1e-7).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("walk", [False, True])
def test_box_lines_enclose_every_value(case, walk: bool) -> None:
    model, x = case.model(dtype=DOUBLE), case.inputs(2, dtype=DOUBLE)
    varied = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(3))[:4].sort().values
    radius = torch.zeros_like(x).flatten(1)
    radius[:, varied] = torch.tensor([0.4, 0.05, 0.3, 0.7], dtype=DOUBLE)
    region = Box(x - radius.reshape(x.shape), x + radius.reshape(x.shape))
    graph = capture(model, x)
    with torch.no_grad():
        found = box_lines(graph, region, varied, walk)
        share = torch.rand(300, 2, len(varied), dtype=DOUBLE) * 2 - 1
        share[:100] = share[:100].sign()
        lower, upper = found.output.lower(), found.output.upper()
        influences = influence(graph, region, found.lines, varied)
        for e in share:
            points = region.center.flatten(1).clone()
            points[:, varied] += e * radius[:, varied]
            y = graph(points.reshape(x.shape))
            below = lower.middle + torch.einsum("bd,bd...->b...", e, lower.slopes)
            above = upper.middle + torch.einsum("bd,bd...->b...", e, upper.slopes)
            assert (below <= y + 1e-9).all()
            assert (y <= above + 1e-9).all()
    assert influences.shape == (2, len(varied), graph.nodes[-1].size)
    assert (influences >= 0).all()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU])
def test_smooth_activations_are_decided(activation: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 1)).double().eval()
    region = Box(-torch.ones(1, 2, dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE))
    side = torch.linspace(-1, 1, 201, dtype=DOUBLE)
    with torch.no_grad():
        values = model(torch.cartesian_prod(side, side))
    low = float(values.min())
    for shift, why in ((0.01, "proved"), (-0.01, "candidate")):
        outcome = input_split(margin_query(model, region, [[1.0]], -low + shift), Budget(nodes=100_000))
        assert outcome.why == why
        assert float(outcome.lower) <= float((values - low + shift).min()) + 1e-9


def test_rows_of_inputs_and_outputs_are_bounded_together() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.fill_(0.1)
    region = Box(-torch.ones(1, 2, dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE))
    rows = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    clauses = Clauses(rows, -rows, rows.new_zeros(1), torch.zeros(1, dtype=torch.int64), rows.new_full((1,), 1e-9))
    outcome = input_split(Query(capture(model, region.center), region, clauses), Budget(nodes=1))
    assert outcome.why == "proved"
    assert outcome.lower.item() == pytest.approx(0.1)


def test_mixing_comes_close_to_the_linear_program() -> None:
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows, size = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        constants, slopes = rng.normal(size=rows), rng.normal(size=(rows, size))
        best = linprog(
            np.eye(size + 1)[-1],
            A_ub=np.hstack([slopes, -np.ones((rows, 1))]),
            b_ub=-constants,
            bounds=[(-1, 1)] * size + [(None, None)],
        ).fun
        values = torch.from_numpy(np.append(constants, 7.0))[None]
        more = torch.from_numpy(np.vstack([slopes, np.zeros(size)]))[None]
        found = mixed(values, more, torch.tensor([0] * rows + [1])).bound[0]
        single = (constants - np.abs(slopes).sum(1)).max()
        assert single - 1e-12 <= found[0].item() <= best + 1e-9
        assert found[1].item() == pytest.approx(7.0)
        if best > single + 1e-6:
            shares.append((found[0].item() - single) / (best - single))
    assert len(shares) > 20
    assert np.mean(shares) > 0.9


def constant_model(value: float) -> nn.Sequential:
    """A ReLU network that always answers `value`."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double().eval()
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(value)
    return model


UNIT = Box(torch.zeros(1, 2, dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE))


@pytest.mark.parametrize(("value", "why"), [(0.5, "proved"), (0.0, "candidate"), (-0.5, "candidate")])
def test_a_constant(value: float, why: str) -> None:
    outcome = input_split(margin_query(constant_model(value), UNIT, [[1.0]]), Budget(nodes=1000))
    assert outcome.why == why
    assert outcome.lower.item() <= value + 1e-12


def test_within_rounding_of_the_border_is_neither() -> None:
    point = torch.full((1, 2), 0.5, dtype=DOUBLE)
    outcome = input_split(margin_query(constant_model(1e-12), Box(point, point), [[1.0]]), Budget(nodes=1000))
    assert outcome.why == "stuck"
    assert outcome.candidate is None
    narrow = Box(point, torch.nextafter(point, point + 1))
    assert input_split(margin_query(constant_model(1e-12), narrow, [[1.0]]), Budget(nodes=1000)).why == "stuck"


def test_a_rejected_candidate_is_no_result() -> None:
    tried = []

    def reject(point: torch.Tensor) -> bool:
        tried.append(point)
        return False

    outcome = input_split(margin_query(constant_model(-1.0), UNIT, [[1.0]]), Budget(nodes=500), reject)
    assert tried
    assert outcome.candidate is None
    assert outcome.why == "nodes"
    assert outcome.lower.item() <= -1


def test_budgets_end_the_search() -> None:
    asked = margin_query(chain(3, 2, 6, 1).double(), Box(-9 + torch.zeros(1, 2, dtype=DOUBLE), UNIT.upper), [[1.0]])
    late = input_split(asked, Budget(deadline=time.monotonic() - 1))
    assert (late.why, late.nodes) == ("time", 0)
    assert late.lower.item() == -np.inf
    assert input_split(asked, Budget(memory=64)).why == "memory"


def test_overflow_proves_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(1e200)
            layer.bias.fill_(1e200)
    outcome = input_split(margin_query(model, UNIT, [[1.0]]), Budget(nodes=50))
    assert outcome.why != "proved"
    assert outcome.candidate is None
    model = constant_model(0.0)
    with torch.no_grad():
        model[0].bias.fill_(1e308)
        model[2].weight.fill_(10.0)
    outcome = input_split(margin_query(model, UNIT, [[1.0]]), Budget(nodes=50))
    assert outcome.why != "proved"
    assert not (outcome.lower > 0).any()


def test_clauses_are_proved_one_by_one() -> None:
    model = chain(5, 2, 4, 2).double()
    asked = margin_query(model, UNIT, [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], 100.0)
    shift = torch.tensor([0.0, 0.0, -200.0], dtype=DOUBLE)
    clauses = Clauses(
        asked.clauses.outputs, None, asked.clauses.constant + shift, asked.clauses.clause, asked.clauses.guard
    )
    outcome: Outcome = input_split(Query(asked.graph, asked.region, clauses), Budget(nodes=100))
    assert outcome.why == "candidate"
    assert (outcome.lower[:2] > 0).all()
    assert outcome.lower[2] <= 0
