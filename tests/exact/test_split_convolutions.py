"""Searches of convolutional networks: maps in blocks, and subproblems on several threads, change no bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from exact.split_cases import cut
from ironbound.bounding.alpha_dual import Ascent
from ironbound.capture import capture
from ironbound.exact.query import Budget, Clauses, Query
from ironbound.exact.split_ascent import Pace, climbed
from ironbound.exact.split_bounds import Multipliers, fixed, gradient, points, walk
from ironbound.exact.split_relaxation import Relaxation, relaxed
from ironbound.exact.split_search import SignSearch
from ironbound.exact.split_tightening import SideBySide
from ironbound.regions import Box


@cache
def _network() -> tuple[Query, Relaxation]:
    """Two convolutions over 3 x 16 x 16 pixels; two clauses of one row each."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    for part in model.parameters():
        part.data = torch.randn(part.shape, generator=generator, dtype=torch.float64) * 0.2
    image = torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    outputs = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]).double()
    constant = -(model.eval()(image) @ outputs.T)[0].detach() + 0.5
    clauses = Clauses(outputs, None, constant, torch.arange(2), torch.full((2,), 1e-6).double())
    query = Query(capture(model, image), Box((image - 0.15).clamp(0, 1), (image + 0.15).clamp(0, 1)), clauses)
    with torch.no_grad():
        return query, cut(relaxed(query, Ascent(5), None), 40, 0)


def _dense(net: Relaxation) -> Relaxation:
    nowhere = (torch.zeros_like(part) for part in (net.cuts.place, net.place, net.input_place))
    cuts = replace(net.cuts, **dict(zip(("place", "column_place", "input_place"), nowhere, strict=True)))
    place, input_place = torch.zeros_like(net.place), torch.zeros_like(net.input_place)
    return replace(net, place=place, input_place=input_place, cuts=cuts)


def _random(net: Relaxation, count: int) -> tuple[Multipliers, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    signs = torch.randint(-1, 2, (count, net.width), generator=generator).double()
    t, beta = (torch.rand(count, net.width, generator=generator, dtype=torch.float64) for _ in range(2))
    clause = torch.arange(count) % 2
    cuts = 0.01 * torch.rand(count, len(net.cuts), generator=generator, dtype=torch.float64)
    return Multipliers(signs * (t < 0.3), t, 0.1 * beta, net.rows.membership()[clause], cuts), clause


def test_bounds_and_gradients_are_those_of_dense_matrices() -> None:
    _, net = _network()
    assert net.input_map._forward is not None and net.input_map._adjoint is not None
    dense = _dense(net)
    assert dense.input_map._forward is None and dense.input_map._adjoint is None
    at, _ = _random(net, 30)
    lines = fixed(net, at.signs)
    found, plain = walk(net, lines, at), walk(dense, lines, at)
    torch.testing.assert_close(found.value, plain.value)
    slopes, others = gradient(net, lines, found), gradient(dense, lines, plain)
    for name in ("t", "beta", "weight", "cuts", "reached", "out", "point"):
        torch.testing.assert_close(getattr(slopes, name), getattr(others, name))


def test_no_point_is_below_the_bounds() -> None:
    query, net = _network()
    at, clause = _random(net, 30)
    at = replace(at, signs=torch.zeros_like(at.signs))
    best = climbed(net, at, clause, Pace(10))
    first = walk(net, fixed(net, at.signs), at).value
    x = torch.cat([query.region.sample() for _ in range(200)] + [points(net, best.at).reshape(-1, 3, 16, 16)])
    least = query.clauses.best(query.clauses.values(x, query.graph(x))).amin(0)[clause]
    assert bool((best.value >= first).all()) and bool((best.value > first).any())
    assert bool((best.value <= least + 1e-9).all())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _search(net: Relaxation) -> SignSearch:
    query, _ = _network()
    search = SignSearch(query, Budget(), net)
    start = search._start
    assert start is not None
    with torch.no_grad():
        search._enter(start, *search._bounded(start, Pace(iterations=60)))
        for _ in range(3):
            search.length = 64
            search._step()
    return search


@pytest.mark.usefixtures("threads")
@pytest.mark.no_cover
def test_two_threads_find_the_bounds_that_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from ironbound.exact import split_search

    _, net = _network()
    lengths: list[int] = []
    whole = split_search.climbed_on

    def counted(*given, **named):  # noqa: ANN002, ANN003, ANN202
        lengths.append(len(given[2]))
        return whole(*given, **named)

    monkeypatch.setattr(split_search, "climbed_on", counted)
    monkeypatch.setattr(split_search, "_FEW", 2)
    several = _search(net)
    assert max(lengths) < 2 * len(several.pool), lengths  # the last round was cut
    torch.set_num_threads(1)
    one = _search(net)
    assert several.nodes == one.nodes > 8
    torch.testing.assert_close(several.lower(), one.lower(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("threads")
def test_neurons_searched_on_two_threads_have_the_bounds_of_one() -> None:
    from ironbound.exact.split_columns import below, is_open

    _, net = _network()
    last = net.levels[-1]
    which = torch.nonzero(is_open(net)).squeeze(1)
    which = which[which >= last.start][:20]
    assert len(which) > 2

    def bounds() -> torch.Tensor:
        with torch.no_grad():
            search = SideBySide(below(net, which), torch.float64, Budget(), 1 << 20)
            for _ in range(3):
                search.step()
        return search.lower()

    several = bounds()
    torch.set_num_threads(1)
    torch.testing.assert_close(several, bounds())
