"""Cuts: no point of the network breaks one, the best one is that of enumeration, and searches with them are right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from exact.split_cases import cut, exact_minimum, near, problem
from ironbound.bounding.alpha_dual import Ascent
from ironbound.capture import capture
from ironbound.exact import split as campaign
from ironbound.exact import split_search
from ironbound.exact.query import Budget, Clauses, Query
from ironbound.exact.split import split
from ironbound.exact.split_ascent import Pace, climbed
from ironbound.exact.split_columns import bounded, is_open
from ironbound.exact.split_cuts import BYTES, Shares, no_cuts
from ironbound.exact.split_recheck import recheck
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_search import SignSearch
from ironbound.exact.split_separation import Cutting, cuts_of, separated, with_cuts
from ironbound.exact.split_tightening import roots
from ironbound.exact.split_tree import covers
from ironbound.regions import Box, L2Ball


@torch.no_grad()
def _relaxed(query: Query) -> Relaxation:
    return relaxed(query, Ascent(5), None)


def _run(net: Relaxation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of the open neurons at inputs [n, input elements], each [n, columns]."""
    z = net.constant + x @ net.input.T
    out = torch.empty_like(z)
    slope, step, height, rise = net.lower
    for columns, above in zip(net.levels, net.above, strict=True):
        left = slope * z + height
        out[:, columns] = torch.maximum(left, left + step * z + rise)[:, columns]
        z[:, columns.stop :] += out[:, columns] @ above.T
    return z, out


def _corners(region: Box, count: int) -> Tensor:
    size = region.lower.numel()
    pick = torch.rand(count, size, generator=torch.Generator().manual_seed(size)) < 0.5
    return torch.where(pick, region.lower.flatten(), region.upper.flatten())


@given(st.integers(0, 11), st.integers(0, 10**6), st.sampled_from(["two layers", "three layers", "wide input"]))
def test_no_point_breaks_a_cut(seed: int, other: int, size: str) -> None:
    query = problem(seed, size).query()
    net = _relaxed(query)
    if not bool(is_open(net).any()):
        return
    x = torch.cat([*(query.region.sample() for _ in range(200)), _corners(query.region, 200)]).flatten(1)
    z, out = _run(net, x)
    # bounds as tight as they may be for these points
    tight = bounded(net, (z.amin(0) - 1e-9).minimum(net.knot), (z.amax(0) + 1e-9).maximum(net.knot))
    for one in (net, tight):
        found = cut(one, 20, other).cuts
        assert len(found) == 20 and bool((found.values(x, out) <= 1e-9).all())


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.2), nn.ReLU(), nn.PReLU(init=-0.5)])
def test_no_point_of_a_network_of_any_kink_breaks_a_cut(layer: nn.Module) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), layer, nn.Linear(7, 6), layer, nn.Linear(6, 2)).double().eval()
    x = torch.randn(1, 5).double()
    radius = torch.tensor([[0.5, 0.0, 1.0, 0.2, 0.7]]).double()  # one input that does not vary
    rows = Clauses(torch.randn(1, 2).double(), None, torch.zeros(1).double(), torch.zeros(1).long(), torch.zeros(1))
    query = Query(capture(model, x), Box(x - radius, x + radius), rows)
    net = _relaxed(query)
    points = torch.cat([*(query.region.sample() for _ in range(500)), _corners(query.region, 500)])
    _, out = _run(net, points)
    # the columns are those of the network
    row = out @ net.rows.parts.T + points @ net.rows.input.T + net.rows.constant
    torch.testing.assert_close(row, rows.values(points, model(points)).detach())
    found = [cut(net, 30, seed).cuts.values(points, out) for seed in range(5)]
    assert all(bool((values <= 1e-9).all()) for values in found)
    assert any(bool((values > -1e-3).any()) for values in found)  # they are tight somewhere


def test_no_point_of_a_ball_breaks_a_cut() -> None:
    query = problem(2, "three layers").query()
    ball = L2Ball(query.region.center, 0.8)
    net = _relaxed(replace(query, region=ball))
    x = torch.cat([ball.sample() for _ in range(500)]).flatten(1)
    _, out = _run(net, x)
    for seed in range(5):
        assert bool((cut(net, 20, seed).cuts.values(x, out) <= 1e-9).all())


def test_any_numbers_give_a_cut() -> None:
    """Shares out of their range are brought into it; a cut found under other bounds may have such."""
    query = problem(1, "three layers").query()
    net = cut(_relaxed(query), 30, 0)
    shares = net.cuts.shares
    wild = replace(shares, input=3 * shares.input - 1, parts=3 * shares.parts - 1, high=4 * shares.high - 1)
    x = torch.cat([query.region.sample() for _ in range(500)]).flatten(1)
    assert bool((cuts_of(net, wild).values(x, _run(net, x)[1]) <= 1e-9).all())


def test_the_shares_of_the_chord_give_the_chord() -> None:
    query = problem(0, "three layers").query()
    net = _relaxed(query)
    which = torch.nonzero(is_open(net)).squeeze(1)
    low, high = net.low[which], net.high[which]
    none = no_cuts(net.place, net.input_place, net.constant).shares
    nothing = [part.new_zeros((len(which), part.shape[1])) for part in (none.input, none.parts)]
    shares = Shares(which, -low / (high - low), high / (high - low), *nothing)
    x = torch.cat([query.region.sample() for _ in range(50)]).flatten(1)
    z, out = _run(net, x)
    chord = net.upper[0] * z + net.upper[2]
    torch.testing.assert_close(cuts_of(net, shares).values(x, out), (out - chord)[:, which], rtol=1e-6, atol=1e-9)


def _one_neuron(seed: int, size: int, share: float) -> tuple[Relaxation, Tensor, Tensor]:
    """A network of one ReLU; its bounds take a share of what intervals say away."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, size, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(size, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    model[0].weight.data, model[0].bias.data = weight, 0.2 * torch.randn(1, generator=generator).double()
    x = torch.rand(1, size, generator=generator, dtype=torch.float64)
    query = Query(
        capture(model.eval(), x),
        Box(x - 0.5, x + 0.5),
        Clauses(-torch.ones(1, 1).double(), None, torch.ones(1).double(), torch.zeros(1).long(), torch.zeros(1)),
    )
    net = _relaxed(query)
    return bounded(net, net.low * (1 - share), net.high * (1 - share)), weight[0], model[0].bias.data


def _best_of_all_sets(net: Relaxation, weight: Tensor, bias: Tensor, x: Tensor) -> float:
    """The highest y for which some d fulfils every inequality of Anderson et al., one for each set of inputs."""
    low, high = float(net.low[0]), float(net.high[0])
    a, b, v = weight.numpy(), float(bias), x.numpy()
    ends = np.stack(
        [a * (net.sets[0][2] - net.sets[0][1])[0].numpy(), a * (net.sets[0][2] + net.sets[0][1])[0].numpy()]
    )
    least, most = ends.min(0), ends.max(0)
    w = float(a @ v + b)
    rows, right = [[1.0, -high], [1.0, -low]], [0.0, w - low]
    for chosen in product([False, True], repeat=len(a)):
        inside = np.array(chosen)
        rows.append([1.0, -(least[inside].sum() + most[~inside].sum() + b)])
        right.append((a * v - least)[inside].sum())
    found = linprog([-1.0, 0.0], rows, right, bounds=[(None, None), (0, 1)])
    assert found.status == 0
    return float(-found.fun)


def _over(net: Relaxation, shares: Shares, x: Tensor, out: Tensor) -> float:
    """By how much an output breaks the cut, if there is one."""
    return float(cuts_of(net, shares).values(x[None], out[None])) if len(shares) else 0.0


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_best_cut_is_that_of_enumeration(share: float) -> None:
    sharper = 0
    for seed in range(12):
        net, weight, bias = _one_neuron(seed, 5, share)
        if net.width == 0 or not bool(is_open(net).all()):
            continue
        _, radius, middle = net.sets[0]
        for number in range(6):
            x = (middle + radius * (2 * torch.rand(5, generator=torch.Generator().manual_seed(number)) - 1))[0]
            z = float(x @ weight + bias)
            if not float(net.low[0]) < z < float(net.high[0]):
                continue
            chord = net.upper[0] * z + net.upper[2]
            shares = separated(net, x, chord, torch.ones(1).double(), 4)
            value = float(chord) - _over(net, shares, x, chord)
            best = _best_of_all_sets(net, weight, bias, x)
            assert value == pytest.approx(best, abs=2e-4) and value >= best - 1e-9
            sharper += best < float(chord) - 1e-3
    assert sharper > 5


def test_the_best_cut_of_a_first_neuron_is_its_concave_envelope() -> None:
    """Over a box the hull of a ReLU's graph is that of its corners."""
    for seed in range(6):
        net, weight, bias = _one_neuron(seed, 4, 0.0)
        if net.width == 0:
            continue
        _, radius, middle = net.sets[0]
        corners = torch.tensor(list(product([-1.0, 1.0], repeat=4))).double() * radius + middle
        values = (corners @ weight + bias).clamp(min=0)
        x = (middle + 0.4 * radius * torch.tensor([1.0, -1.0, 0.5, 0.1]))[0]
        hull = linprog(
            -values.numpy(), A_eq=np.vstack([corners.numpy().T, np.ones(16)]), b_eq=[*x.tolist(), 1.0], bounds=(0, None)
        )
        chord = net.upper[0] * (x @ weight + bias) + net.upper[2]
        shares = separated(net, x, chord, torch.ones(1).double(), 4)
        value = float(chord) - float(cuts_of(net, shares).values(x[None], chord[None])) if len(shares) else float(chord)
        assert value == pytest.approx(-hull.fun, abs=2e-4) and value >= -hull.fun - 1e-9


def test_bounds_with_cuts_are_between_those_without_and_the_minimum() -> None:
    gains = 0
    for seed in range(8):
        one = problem(seed, "three layers", (1, 1))
        net = _relaxed(one.query())
        net = replace(net, rows=replace(net.rows, guard=torch.full((2,), 1e6).double()))
        better, start = with_cuts(net, roots(net.to(torch.float32)), Cutting(rounds=4, each=8), Budget())
        plain = climbed(net, roots(net).at, torch.arange(2), Pace(400)).value
        value = climbed(better.to(torch.float64), start.at.to(torch.float64), start.clause, Pace(200)).value
        for clause in range(2):
            assert float(value[clause]) <= exact_minimum(one, clause) + 1e-7
        assert bool((value >= plain - 1e-3).all())
        gains += int((value > plain + 1e-3).sum())
    assert gains >= 4


def test_what_float32_finds_is_never_a_bound() -> None:
    """The ascents that look for cuts are in float32: a search that starts from them bounds everything again."""
    query = near(problem(1, "three layers"), 0.1).query()
    net = _relaxed(query)
    first = roots(net.to(torch.float32))
    cut_net, start = with_cuts(net, first, Cutting(rounds=2, each=8), Budget())
    assert torch.equal(start.lower, first.lower)
    search = SignSearch(query, Budget(nodes=1), cut_net, None, start)
    assert search.run() in {"nodes", "proved"}
    again = climbed(cut_net.to(torch.float64), start.at.to(torch.float64), start.clause, Pace(300)).value
    assert float(search.lower()) <= float(again) + 1e-4
    worse = replace(start, at=replace(start.at, cuts=start.at.cuts + 1e30))  # nothing that float64 confirms
    search = SignSearch(query, Budget(nodes=1), cut_net, None, worse)
    search.run()
    assert float(search.lower()) <= 0.1 + 1e-7


def test_cuts_keep_to_their_memory() -> None:
    net = _relaxed(problem(3, "three layers").query())
    net = replace(net, rows=replace(net.rows, guard=torch.full((1,), 1e6).double()))
    each = BYTES * (net.input.shape[1] + net.width)
    better, _ = with_cuts(net, roots(net.to(torch.float32)), Cutting(rounds=6, each=8, memory=3 * each), Budget())
    assert 0 < len(better.cuts) <= 3 and better.cuts.bytes <= 3 * each


@pytest.fixture(params=["at the root", "at every step"])
def cutting(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Searches begin with cuts; or with few, and look for more before each step."""
    monkeypatch.setattr(campaign, "_FIRST", 1)
    monkeypatch.setattr(campaign, "_BRIEF", -1.0)
    if request.param == "at every step":
        monkeypatch.setattr(split_search, "_REST", -1e9)
        first = Cutting
        monkeypatch.setattr(campaign, "Cutting", lambda memory: first(1, 1, memory))
    yield


@pytest.mark.parametrize(
    "kind", [("two layers", (2, 3), False), ("three layers", (1, 1), False), ("wide input", (1,), True)]
)
@pytest.mark.parametrize("slack", [0.02, -0.02, 1e-4])
@pytest.mark.usefixtures("cutting")
def test_the_answer_with_cuts_is_that_of_enumeration(kind: tuple[str, tuple[int, ...], bool], slack: float) -> None:
    used = 0
    for seed in range(6):
        query = near(problem(seed, *kind), slack).query()
        found = split(query, Budget())
        assert bool((found.lower <= slack + 1e-7).all())
        assert found.why == ("proved" if slack > 0 else "candidate"), seed
        used += sum(len(proof.tree.shares) for proof in found.proofs)
        if slack > 0:
            assert sorted(torch.cat([proof.clauses for proof in found.proofs]).tolist()) == list(range(len(kind[1])))
            assert all(covers(proof.tree, k) for proof in found.proofs for k in range(len(proof.clauses)))
            again = recheck(query, found.proofs)
            assert bool((again > 1e-6).all()) and bool((again <= slack + 1e-7).all())
    assert used or slack < 0
