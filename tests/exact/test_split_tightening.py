"""Bounds of neurons by a search of their own: those of enumeration, never beyond a run of the network, found again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from exact.split_cases import Problem, exact_minimum, near, problem
from ironbound.bounding.alpha_dual import Ascent
from ironbound.exact import split as campaign
from ironbound.exact import split_search
from ironbound.exact.query import Budget, Query
from ironbound.exact.split import SplitOutcome, split
from ironbound.exact.split_bounds import Multipliers, fixed, walk
from ironbound.exact.split_columns import below, bounded, is_open, pruned
from ironbound.exact.split_recheck import recheck
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_separation import Cutting
from ironbound.exact.split_tightening import Effort, tightened
from ironbound.exact.split_tree import Tightening, Tree

FULL = Effort(64, torch.float64, 1 << 20)


def _network(seed: int, ascent: Ascent | None = None) -> tuple[Problem, Query, Relaxation]:
    one = problem(seed, "three layers", (2,))
    with torch.no_grad():
        return one, one.query(), relaxed(one.query(), ascent, None)


def _inputs(query: Query, x: Tensor, nodes: Tensor, neurons: Tensor) -> Tensor:
    """What neurons read at points, [points, neurons]."""
    values = [x]
    for node in query.graph.nodes[1:]:
        values.append(node.operator.forward(*(values[source] for source in node.inputs)))
    pairs = zip(nodes.tolist(), neurons.tolist(), strict=True)
    return torch.stack([values[query.graph.nodes[n].inputs[0]].flatten(1)[:, k] for n, k in pairs], 1)


@pytest.mark.parametrize("seed", range(6))
def test_a_closed_neuron_taken_out_changes_no_bound(seed: int) -> None:
    _, _, net = _network(seed)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    choice = torch.randint(3, (net.width,), generator=generator)
    low = torch.where(choice == 1, net.knot, net.low)
    high = torch.where(choice == 2, net.knot, net.high)
    closed = bounded(net, low, high)
    small = pruned(closed)
    kept = choice == 0
    assert small.width == int(kept.sum()) and bool(is_open(small).all())
    signs = torch.where(kept, (3 * uniform(5, net.width)).floor() - 1, 0.0)
    weight = uniform(5, 2)
    share = weight / weight.sum(1, keepdim=True)
    at = Multipliers(signs, uniform(5, net.width), uniform(5, net.width), share, signs[:, :0])
    other = Multipliers(signs[:, kept], at.t[:, kept], at.beta[:, kept], at.weight, at.cuts)
    whole, part = walk(closed, fixed(closed, signs), at), walk(small, fixed(small, other.signs), other)
    torch.testing.assert_close(part.value, whole.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(part.reads, whole.reads)


def test_new_bounds_give_the_lines_of_a_fresh_relaxation() -> None:
    compared = 0
    for seed in range(4):
        _, _, loose = _network(seed)
        _, _, tight = _network(seed, Ascent(20))
        low, high = torch.full_like(loose.low, -torch.inf), torch.full_like(loose.high, torch.inf)
        for column in range(tight.width):
            place = (loose.nodes == tight.nodes[column]) & (loose.neurons == tight.neurons[column])
            low[place], high[place] = tight.low[column], tight.high[column]
        found = bounded(loose, low, high)
        for column in range(tight.width):
            place = (found.nodes == tight.nodes[column]) & (found.neurons == tight.neurons[column])
            for ours, theirs in zip((*found.lower, *found.upper), (*tight.lower, *tight.upper), strict=True):
                torch.testing.assert_close(ours[place][0], theirs[column], rtol=1e-10, atol=1e-10)
            compared += bool((tight.low[column] > loose.low[place]).any())
    assert compared


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_long_search_finds_the_bounds_of_enumeration(dtype: torch.dtype) -> None:
    closed = gained = 0
    for seed in range(3):
        one, query, net = _network(seed)
        with torch.no_grad():
            found, steps = tightened(net, replace(FULL, dtype=dtype), Budget())
        assert all(isinstance(step, Tightening) and len(step.tree) >= len(step.neurons) for step in steps)
        points = torch.cat([query.region.sample() for _ in range(1000)])
        z = _inputs(query, points, found.nodes, found.neurons)
        assert bool((z >= found.low).all()) and bool((z <= found.high).all())
        for column in range(found.width):
            before = (net.nodes == found.nodes[column]) & (net.neurons == found.neurons[column])
            depth = sorted(set(net.nodes.tolist())).index(int(found.nodes[column]))
            low, high = _exact_ends(one, 2 * depth + 1, int(found.neurons[column]))
            if depth:
                near_by = 0.1 * (high - low)  # a leaf with nothing left to split ends after a few steps of ascent
                assert low - near_by <= float(found.low[column]) <= low
                assert high <= float(found.high[column]) <= high + near_by
            gained += float(found.low[column]) > float(net.low[before]) + 1e-3
        closed += net.width - found.width
    assert closed and gained


def _exact_ends(one: Problem, length: int, neuron: int) -> tuple[float, float]:
    """The least and the largest input of a neuron, by enumeration."""
    model = nn.Sequential(*list(one.model)[:length])
    last = model[-1]
    assert isinstance(last, nn.Linear)
    row = torch.eye(last.out_features, dtype=torch.float64)[neuron : neuron + 1]
    zero = torch.zeros(1, dtype=torch.float64)
    none = torch.zeros(1, one.lower.shape[1], dtype=torch.float64)
    ends = [exact_minimum(replace(one, model=model, clauses=((none, sign * row, zero),)), 0) for sign in (1, -1)]
    return ends[0], -ends[1]


def test_no_time_changes_nothing() -> None:
    _, _, net = _network(1)
    found, steps = tightened(net, FULL, Budget.of(0.0))
    assert found is net and steps == []


def test_the_clauses_below_a_level_are_its_neurons() -> None:
    one, query, net = _network(2)
    last = int(net.nodes[-1])
    which = torch.nonzero(net.nodes == last).flatten()
    sub = below(net, which)
    x = torch.cat([query.region.sample() for _ in range(50)])
    z = _inputs(query, x, net.nodes, net.neurons)
    out = torch.relu(z[:, : sub.width])
    rows = sub.rows.constant + out @ sub.rows.parts.T + x @ sub.rows.input.T
    torch.testing.assert_close(rows, torch.cat([z[:, which], -z[:, which]], 1))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first searches of each `split` end at once; neurons are tightened, and the last one goes on to the end."""
    plain = split_search.SignSearch.run

    def run(self: split_search.SignSearch, patience: float | None = None, *_: object) -> str:
        return plain(self, patience) if patience is None else plain(self, -1.0)

    monkeypatch.setattr(split_search, "_HOPE", 2.0)
    monkeypatch.setattr(split_search.SignSearch, "_lack", lambda self: 1.0)
    monkeypatch.setattr(split_search.SignSearch, "run", run)
    monkeypatch.setattr(campaign, "_FIRST", 1)
    monkeypatch.setattr(campaign, "_BRIEF", -1.0)
    monkeypatch.setattr(
        campaign, "Cutting", lambda memory: Cutting(1, 1, memory)
    )  # more would leave nothing to tighten
    first = campaign._Campaign._worth
    monkeypatch.setattr(campaign._Campaign, "_worth", lambda self, net: not self.steps and first(self, net))
    yield


def _decided(seed: int, slack: float, rows: tuple[int, ...]) -> tuple[Query, SplitOutcome]:
    query = near(problem(seed, "three layers", rows), slack).query()
    return query, split(query, Budget())


@pytest.mark.parametrize("slack", [0.02, -0.02, 1e-4])
@pytest.mark.usefixtures("impatient")
@pytest.mark.no_cover
def test_a_search_after_tightening_gives_the_same_answers(slack: float) -> None:
    used = 0
    for seed in range(4):
        for rows in ((1,), (1, 2)):
            query, found = _decided(seed, slack, rows)
            assert bool((found.lower <= slack + 1e-7).all())
            assert found.why == ("proved" if slack > 0 else "candidate"), seed
            used += sum(len(proof.tree.tightenings) for proof in found.proofs)
            if slack > 0:
                again = recheck(query, found.proofs)
                assert bool((again > 1e-6).all()) and bool((again <= slack + 1e-7).all())
    assert used or slack < 0


@pytest.mark.usefixtures("impatient")
def test_leaves_of_a_tightening_that_are_missing_prove_nothing() -> None:
    lost = 0
    for seed in range(3):
        query, found = _decided(seed, 1e-4, (1,))
        (proof,) = found.proofs
        for place, step in enumerate(proof.tree.tightenings):
            for leaf in range(0, len(step.tree), 1 + len(step.tree) // 3):
                rest = _without(step.tree, leaf)
                steps = list(proof.tree.tightenings)
                steps[place] = replace(step, tree=rest)
                again = recheck(query, (replace(proof, tree=replace(proof.tree, tightenings=tuple(steps))),))
                assert bool((again <= 1e-4 + 1e-7).all())
                lost += bool((again <= 1e-6).any())
    assert lost


def _without(tree: Tree, leaf: int) -> Tree:
    rest = torch.arange(len(tree)) != leaf
    slopes = rest[: len(tree.t)]
    return replace(
        tree,
        clause=tree.clause[rest],
        signs=tree.signs[rest],
        t=tree.t[slopes],
        beta=tree.beta[slopes],
        weight=tree.weight[slopes],
        cuts=tree.cuts[slopes],
    )


def test_a_candidate_that_is_not_accepted_does_not_end_the_search() -> None:
    for seed in range(4):
        query = near(problem(seed), -0.02).query()
        offered: list[Tensor] = []

        def refuse(point: Tensor, offered: list[Tensor] = offered) -> bool:
            offered.append(point)
            return False

        found = split(query, Budget(), refuse)
        assert offered and found.candidate is None and found.why == "stuck"
        assert bool((found.lower <= -0.02 + 1e-7).all())
