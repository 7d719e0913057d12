"""`alpha` as a proof: chosen slopes walked again, against the same slopes in fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bounding.rational import constant, graph_of, matrices, rational, reach
from bounding.test_rounding import chain, convolutional, curved, numbers, small_convolutional
from ironbound.bounding import bounds, margins
from ironbound.bounding.alpha import alpha_state
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.rounding import Ledger
from ironbound.graph import Graph
from ironbound.ops.piecewise import ReLU
from ironbound.regions import L1Ball, L2Ball, LinfBall, Region

honest_room = Ledger.room


def exact_lower(graph: Graph, layers: dict[int, tuple], slopes: dict[int, Tensor], region: Region) -> np.ndarray:
    """Equations (22) and (23) of Wong and Kolter (2017, v1) in fractions, for every output, with slopes of its own."""
    nu = np.diag(np.full(graph.nodes[-1].size, Fraction(1)))
    low = np.full(len(nu), Fraction(0))
    for index in range(len(graph.nodes) - 1, 0, -1):
        if not isinstance(graph.nodes[index].operator, ReLU):
            low = low + nu @ constant(graph, index)
            (matrix,) = matrices(graph, index)
            nu = nu @ matrix
            continue
        below, above = (rational(end[0]) for end in layers[index])
        chord = rational(ReLU().parallel_lines(*layers[index]).upper_slope[0])
        closed = (below >= 0) | (above <= 0)
        offset = np.maximum(np.maximum((1 - chord) * above, -chord * below), 0)
        offset[closed] = Fraction(0)
        chosen = np.where(closed, chord, rational(slopes[index]))
        low = low + np.minimum(nu, 0) @ offset
        nu = np.maximum(nu, 0) * chosen + np.minimum(nu, 0) * chord
    center, far = rational(region.center[0]), reach(nu, region)
    return low + nu @ center - far


def excess(graph: Graph, region: Region, seed: int) -> Fraction:
    """How far the bounds for random slopes are above the exact ones; > 0 is wrong."""
    found = bounds(graph, region, "crown", arithmetic="real")
    layers = {
        index: found.layers[node.name] for index, node in enumerate(graph.nodes) if isinstance(node.operator, ReLU)
    }
    state = alpha_state(graph, region, [layers], None, None, "real")
    assert state.proof is not None
    size = graph.nodes[-1].size
    whole, chosen = {}, {}
    for place, (index, layer) in enumerate(state.opened.items()):
        full = torch.rand(size, graph.nodes[index].size, generator=torch.Generator().manual_seed(seed + place)).double()
        whole[index] = full
        if index in state.maps:
            chosen[index] = full.gather(1, layer.neurons.expand(size, -1)) * layer.valid
    rows = DenseRows(torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64))
    lower = rational(state.proof.outputs(rows, chosen))
    exact = exact_lower(graph, {index: state.layers[index] for index in layers}, whole, region)
    assert all(np.isfinite(float(value)) for value in lower)
    return max(lower - exact)


def middle(seed: int, cancelling: int | None) -> Tensor:
    x = numbers(seed + 1)(1, 4)
    return x if cancelling is None else x.abs().mean() + 1e-3 * x


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1.0, 1e-30, 1e30, 1e-10]),
    cancelling=st.sampled_from([None, 0, 1, 2]),
    norm=st.sampled_from([LinfBall, L2Ball, L1Ball]),
    eps=st.sampled_from([0.0, 1e-30, 1e-3, 0.2, 10.0]),
)
def test_bounds_for_chosen_slopes_are_never_above_the_exact_ones(seed, scale, cancelling, norm, eps) -> None:
    assert excess(chain(seed, scale, cancelling), norm(middle(seed, cancelling), eps), seed) <= 0


def test_slopes_that_no_ascent_should_give_prove_nothing_wrong() -> None:
    graph, region = chain(5), LinfBall(numbers(6)(1, 4), 0.3)
    known = bounds(graph, region, "crown", arithmetic="real").layers
    layers = {index: known[node.name] for index, node in enumerate(graph.nodes) if node.name in known}
    state = alpha_state(graph, region, [layers], None, None, "real")
    assert state.proof is not None and state.maps
    rows = DenseRows(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64))

    def lower(t: float) -> Tensor:
        slopes = {index: torch.full((3, *state.opened[index].valid.shape[1:]), t).double() for index in state.maps}
        return state.proof.outputs(rows, slopes)  # type: ignore[union-attr]

    assert torch.equal(lower(7.0), lower(1.0)) and torch.equal(lower(-3.0), lower(0.0))
    assert not (lower(float("nan")) > -torch.inf).any()


def single(seed: int) -> Graph:
    """One layer, whose terms may cancel: only the price of the output is paid."""
    return graph_of((4,), chain(seed, 1.0, 0).nodes[1].operator)


@pytest.mark.parametrize(
    ("build", "name", "bug"),
    [
        (single, "below", lambda self, index, rows, lower: lower),
        (lambda seed: chain(seed, 1.0, seed % 3), "room", lambda self, *given: 0 * honest_room(self, *given)),
    ],
)
def test_what_rounding_costs_is_needed(
    build: Callable[[int], Graph], name: str, bug: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, name, bug)
    assert any(excess(build(seed), LinfBall(middle(seed, 0), 1e-3), seed) > 0 for seed in range(60))


@pytest.mark.parametrize(("build", "eps"), [(chain, 0.3), (small_convolutional, 0.05), (curved, 0.1)])
@pytest.mark.parametrize("norm", [LinfBall, L2Ball])
def test_proofs_are_as_tight_as_the_bounds_and_tighter_than_where_they_begin(
    build: Callable[[int], Graph], eps: float, norm: Callable[..., Region]
) -> None:
    graph = build(3)
    region = norm(numbers(1)(3, *graph.input_shape), eps)
    plain, proved = bounds(graph, region, "alpha"), bounds(graph, region, "alpha", arithmetic="real")
    starts = [bounds(graph, region, name, arithmetic="real") for name in ("dual", "crown")]
    begun = torch.maximum(starts[0].lower, starts[1].lower)
    assert (proved.lower >= begun).all() and (proved.lower > begun + 1e-4).any()
    scale = 1 + plain.lower.abs().max()
    assert ((plain.lower - proved.lower).abs() < 1e-7 * scale).all()
    assert ((proved.upper - plain.upper).abs() < 1e-7 * scale).all()
    for name, (low, high) in plain.layers.items():
        below, above = proved.layers[name]
        assert (below <= low + 1e-7 * scale).all() and (above >= high - 1e-7 * scale).all()


@pytest.mark.parametrize(
    ("build", "eps"), [(chain, 0.3), (small_convolutional, 0.05), (convolutional, 0.03), (curved, 0.1)]
)
@pytest.mark.parametrize("norm", [LinfBall, L2Ball])
def test_no_attack_gets_below_a_proof(build: Callable[[int], Graph], eps: float, norm: Callable[..., Region]) -> None:
    for seed in range(2):
        graph = build(seed)
        region = norm(numbers(seed)(4, *graph.input_shape), eps)
        labels = graph(region.center).argmax(1)
        proved = margins(graph, region, labels, method="alpha:5", arithmetic="real")
        for target in range(graph.output_shape[0]):
            point = region.center.clone()
            for _ in range(20):
                point.requires_grad_(True)
                out = graph(point)
                margin = out.gather(1, labels[:, None])[:, 0] - out[:, target]
                (slope,) = torch.autograd.grad(margin.sum(), point)
                assert (margin >= proved[:, target]).all()
                point = region.project(point.detach() - eps / 4 * slope.sign())


def test_few_bytes_change_nothing() -> None:
    """Rows are walked in chunks."""
    graph = small_convolutional(0)
    region = LinfBall(numbers(2)(2, *graph.input_shape), 0.05)
    whole = margins(graph, region, torch.tensor([0, 1]), method="alpha:3", arithmetic="real")
    pieces = margins(graph, region, torch.tensor([0, 1]), method="alpha:3", arithmetic="real", memory=1 << 16)
    assert torch.allclose(whole, pieces, rtol=1e-9, atol=1e-9)
