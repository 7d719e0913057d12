"""Branch and bound: the answer of enumeration, bounds that hold whenever it ends, and no proof without cause."""

from __future__ import annotations

import copy
import dataclasses
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch
from torch import nn

from exact.split_cases import Problem, exact_minimum, near, problem
from ironbound.bounding.alpha_dual import Ascent
from ironbound.capture import capture
from ironbound.data import load
from ironbound.exact import split_branching, split_search
from ironbound.exact.query import Budget, Query
from ironbound.exact.search import label_query
from ironbound.exact.split import split
from ironbound.exact.split_recheck import recheck
from ironbound.exact.split_relaxation import relaxed
from ironbound.exact.split_search import SignSearch
from ironbound.exact.split_tree import covers
from ironbound.models import build, load_weights
from ironbound.regions import L1Ball, L2Ball, LinfBall

FREE = Budget()
KINDS = {
    "one row": ("two layers", (1,), False),
    "several clauses": ("three layers", (1, 1, 1), False),
    "conjunctions": ("two layers", (2, 3), False),
    "rows that read inputs": ("wide input", (1, 2), True),
}


def _is_counterexample(query: Query, point: torch.Tensor) -> bool:
    rows = query.clauses.values(point, query.graph(point))
    return bool((query.clauses.best(rows) <= 0).any()) and bool(query.region.contains(point).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slack", [0.02, -0.02, 1e-4, -1e-4])
@pytest.mark.no_cover
def test_the_answer_is_that_of_enumeration(kind: str, slack: float) -> None:
    size, rows, inputs = KINDS[kind]
    deep = 0
    for seed in range(4):
        one = near(problem(seed, size, rows, inputs), slack)
        query = one.query()
        found = split(query, FREE)
        assert bool((found.lower <= slack + 1e-7).all()), seed
        assert found.why == ("proved" if slack > 0 else "candidate"), (seed, found.why, found.lower)
        if found.why == "proved":
            assert found.candidate is None and bool((found.lower > 1e-6).all())
            assert sorted(torch.cat([proof.clauses for proof in found.proofs]).tolist()) == list(range(len(rows)))
            assert all(covers(proof.tree, k) for proof in found.proofs for k in range(len(proof.clauses)))
            assert bool((recheck(query, found.proofs) > 1e-6).all())
        else:
            assert found.candidate is not None and _is_counterexample(query, found.candidate)
        deep += found.nodes > 3 * len(rows)
    assert slack < 0 or deep >= 2  # some had to be searched


def test_the_order_of_the_methods() -> None:
    gains = 0
    for seed in range(3):
        query = near(problem(seed), 0.5).query(guard=1e3)  # nothing is proved: the search goes on to the last leaf
        with torch.no_grad():
            weak = [SignSearch(query, Budget(nodes=1), relaxed(query, ascent, None)) for ascent in (None, Ascent(20))]
            assert all(one.run() == "nodes" for one in weak)
            dual, alpha = (float(one.lower()) for one in weak)
        found = split(query, FREE)
        assert found.why == "stuck"
        assert dual <= alpha + 1e-3 and alpha <= float(found.lower) + 1e-9
        assert float(found.lower) == pytest.approx(0.5, abs=1e-6)  # in the end it is the exact minimum
        gains += float(found.lower) > alpha + 1e-3
    assert gains


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 20])
def test_whenever_it_ends_its_bounds_hold(nodes: int) -> None:
    ended = []
    for seed in range(4):
        one = near(problem(seed, "three layers", (1, 2)), 1e-3)
        query = one.query()
        found = split(query, Budget(nodes=nodes))
        assert found.nodes <= max(nodes, 2)  # the roots are always bounded
        assert bool((found.lower <= 1e-3 + 1e-9).all())
        assert found.why in ("proved", "nodes")
        assert (found.why == "proved") == bool((found.lower > 1e-6).all())
        ended.append(found.why)
    assert "nodes" in ended


def test_no_time_no_proof() -> None:
    query = problem(0).query()
    found = split(query, Budget.of(0.0))
    assert (found.why, found.nodes, found.candidate) == ("time", 0, None)
    assert bool((found.lower == -torch.inf).all())


def test_a_deadline_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    query = problem(3, "three layers").query(guard=1e3)
    left = chain([1.0, 1.0, 1.0], repeat(-1.0))
    monkeypatch.setattr(Budget, "left", lambda self: next(left))
    found = split(query, FREE)
    assert found.why == "time" and bool((found.lower < 1e3).all())


def test_memory_is_a_limit() -> None:
    for seed in range(4):
        query = near(problem(seed, "three layers"), 0.1).query(guard=1e3)
        found = split(query, Budget(memory=100))
        assert found.why == "memory"
        assert float(found.lower) <= 0.1 + 1e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, 1e30])
def test_numbers_out_of_range_are_never_proved(value: float) -> None:
    plain = problem(1)
    one = dataclasses.replace(plain, model=copy.deepcopy(plain.model))
    layer = one.model[2]
    assert isinstance(layer, nn.Linear)
    layer.weight.data[1, 2] = value
    layer.weight.data[0, 1] = -value
    found = split(one.query(torch.float32), Budget(nodes=50))
    assert found.why != "proved" or bool((found.lower > 1e-6).all() and exact_minimum(one, 0) > 0)
    if value != value or value == float("inf"):
        assert found.why != "proved"


def test_leaky_and_absolute_value_are_split_too() -> None:
    for seed in range(8):
        plain = problem(seed, "two layers", (2,))
        parts = [nn.LeakyReLU(0.3) if isinstance(part, nn.ReLU) else part for part in plain.model]
        one = Problem(nn.Sequential(*parts).eval(), plain.lower, plain.upper, plain.clauses, (0.3, 1.0))
        found = split(one.query(), FREE)
        assert found.why == ("proved" if exact_minimum(one, 0) > 0 else "candidate")


def test_a_kink_away_from_zero_is_split_at_the_kink() -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(x, min=0.4)

    for seed in range(8):
        plain = problem(seed, "two layers")
        shifted = nn.Sequential(plain.model[0], Shifted(), plain.model[2], Shifted(), plain.model[4]).eval()
        moved = []
        for place, part in enumerate(plain.model):
            if isinstance(part, nn.Linear):
                other = nn.Linear(part.in_features, part.out_features).double()
                other.weight.data = part.weight.data.clone()
                above = 0.4 * part.weight.data.sum(1) if place else 0.0
                below = 0.4 if place < 4 else 0.0
                other.bias.data = part.bias.data + above - below  # max(z, 0.4) = relu(z - 0.4) + 0.4
                moved.append(other)
            else:
                moved.append(nn.ReLU())
        same = Problem(nn.Sequential(*moved).eval(), plain.lower, plain.upper, plain.clauses)
        one = Problem(shifted, plain.lower, plain.upper, plain.clauses)
        torch.testing.assert_close(shifted(plain.lower), same.model(plain.lower))
        assert split(one.query(), FREE).why == ("proved" if exact_minimum(same, 0) > 0 else "candidate"), seed


def test_what_cannot_be_split_ends_as_stuck_or_answered() -> None:
    one = problem(2)
    smooth = nn.Sequential(*(nn.Tanh() if isinstance(part, nn.ReLU) else part for part in one.model)).eval()
    mixed = nn.Sequential(one.model[0], nn.ReLU(), one.model[2], nn.Tanh(), one.model[4]).eval()
    for model in (smooth, mixed):
        answers = set()
        for shift in (0.0, 0.3, 1.0, 5.0):
            a, b, c = one.clauses[0]
            query = dataclasses.replace(one, model=model, clauses=((a, b, c + shift),)).query()
            found = split(query, FREE)
            points = torch.cat([query.region.sample() for _ in range(500)])
            rows = query.clauses.values(points, query.graph(points))
            assert bool((rows.amin(0) >= found.lower - 1e-9).all())
            answers.add(found.why)
        assert answers <= {"proved", "stuck", "candidate"} and "proved" in answers


@pytest.mark.parametrize("ball", [LinfBall, L1Ball, L2Ball])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_every_region(ball: type, clip: tuple[float, float] | None) -> None:
    decided = 0
    for seed in range(6):
        one = problem(seed)
        base = one.query()
        region = ball(one.lower.clamp(-1, 1), 0.6, clip)
        query = Query(base.graph, region, base.clauses)
        found = split(query, Budget(nodes=400))
        points = torch.cat([region.sample() for _ in range(2000)])
        rows = query.clauses.values(points, query.graph(points)).amin(0)
        assert bool((rows >= found.lower - 1e-9).all())
        if found.candidate is not None:
            assert _is_counterexample(query, found.candidate)
        decided += found.why in ("proved", "candidate")
    assert decided >= 5


def test_one_search_splits_every_neuron_that_it_may() -> None:
    """With a guard that nothing reaches, every leaf has clamps enough that no neuron is left open."""
    query = near(problem(5), 0.2).query(guard=1e3)
    taken: list[int] = []
    plain = split_branching.chosen

    def spy(net, at, clause, *rest):
        column = plain(net, at, clause, *rest)
        assert bool((at.signs.gather(1, column.unsqueeze(1)) == 0).all())
        assert bool(net.splittable[column].all())
        taken.extend(column.tolist())
        return column

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_search, "chosen", spy)
        found = split(query, FREE)
    assert found.why == "stuck" and taken


def test_float32_ends_as_a_float64_proof() -> None:
    proofs = 0
    for seed in range(4):
        one = near(problem(seed, "wide input", (1, 2), True), 0.01)
        found = split(one.query(torch.float32, 1e-4), FREE)
        assert found.why == "proved"
        again = recheck(one.query(torch.float64, 1e-9), found.proofs)
        assert bool((again > 1e-9).all()) and bool((again <= 0.01 + 1e-7).all())
        proofs += len(found.proofs[0].tree) > 2
    assert proofs


def test_a_dropped_leaf_is_no_proof() -> None:
    query = near(problem(1, "two layers"), 0.01).query()
    proofs = split(query, FREE).proofs
    (proof,) = proofs
    tree = proof.tree
    assert len(tree) > 1 and bool((recheck(query, proofs) > 1e-6).all())
    for leaf in range(len(tree)):
        rest = torch.arange(len(tree)) != leaf
        fewer = dataclasses.replace(
            tree,
            clause=tree.clause[rest],
            signs=tree.signs[rest],
            t=tree.t[rest],
            beta=tree.beta[rest],
            weight=tree.weight[rest],
            cuts=tree.cuts[rest],
        )
        assert float(recheck(query, (dataclasses.replace(proof, tree=fewer),))) == -torch.inf


def test_deep_subproblems_do_not_stay_where_their_parents_were(shared: Path) -> None:
    """Image 4211 of the released network: a few steps for each side of a split left it open for an hour."""
    model = load_weights(build("small"), shared / "models" / "wong_kolter_mnist_small.pth").double().eval()
    image = load("mnist", "test", shared / "data" / "mnist", limit=4212)[4211:]
    x, label = image.inputs.double(), int(image.labels[0])
    query = label_query(capture(model, x), LinfBall(x, 0.1), label, torch.tensor([5]), 1e-8)
    found = split(query, Budget(nodes=20_000))
    assert found.why == "proved"
    assert float(found.lower) > 1e-8
