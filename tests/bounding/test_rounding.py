"""Outward rounded bounds against rational arithmetic: never inside what is true, and every term of them is needed."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bounding.rational import constant, graph_of, matrices, rational, reach, values
from ironbound.attacks import pgd
from ironbound.bounding import METHODS as KNOWN
from ironbound.bounding import bounds, margins, rounding
from ironbound.bounding.precision import sums_in_float32
from ironbound.bounding.rounding import Ledger
from ironbound.capture.live import Division
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.graph import Graph
from ironbound.ops.affine import (
    BatchNorm,
    Convolution,
    Linear,
    Reshape,
    Scale,
    Shift,
    Structural,
    TransposedConvolution,
    WeightedSum,
)
from ironbound.ops.operator import Activation
from ironbound.ops.piecewise import Maximum, PiecewiseLinear, ReLU
from ironbound.ops.smooth import GELU, Sigmoid, SiLU, Tanh
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region

METHODS = sorted(KNOWN)
in_float32 = pytest.mark.skipif(not sums_in_float32(torch.device("cpu")), reason="float32 proves on x86 only")


def numbers(seed: int) -> Callable[..., Tensor]:
    """Float32 numbers as float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).double()


def chain(seed: int, scale: float = 1.0, cancelling: int | None = None) -> Graph:
    """Three linear layers; in one of them large weights can cancel to nearly nothing."""
    draw, widths = numbers(seed), (4, 6, 5, 3)
    layers = []
    for place, (inside, outside) in enumerate(zip(widths, widths[1:], strict=False)):
        weight = scale * draw(outside, inside)
        if place == cancelling:
            weight = weight + 2.0**26 * draw(outside, 1).round() * torch.tensor([1.0, -1.0] * 3)[:inside]
        layers += [Linear(weight.float().double(), (scale * draw(outside)).float().double()), ReLU()]
    return graph_of((4,), *layers[:-1])


def convolutional(seed: int) -> Graph:
    """Everything that works on maps: both convolutions, batch norm, a residual sum, pooling, constants."""
    draw = numbers(seed)
    norm = BatchNorm(draw(3), draw(3) ** 2 // 0.25 / 4 + 0.5, draw(3), draw(3), 1e-5)
    tiles = Structural(lambda v: v.unflatten(-1, (3, 2)).unflatten(-3, (3, 2)).transpose(-2, -3).flatten(-2), "windows")
    return graph_of(
        (2, 5, 5),
        Convolution(draw(3, 2, 3, 3), draw(3), (1, 1), (1, 1), (1, 1)),
        norm,
        ReLU(),
        Convolution(draw(3, 3, 3, 3), draw(3), (1, 1), (1, 1), (1, 1)),
        (WeightedSum((1.0, -0.7)), (4, 3)),
        PiecewiseLinear((0.0,), (0.1, 1.0), 0.0),
        TransposedConvolution(draw(3, 2, 2, 2), draw(2), (1, 1), (0, 0), (0, 0), (1, 1)),
        (tiles, (7,)),
        Maximum(),
        Structural(lambda v: v.mean(-1), "mean"),
        Shift(torch.tensor(0.3, dtype=torch.float64)),
        Division(torch.tensor(3.0, dtype=torch.float64)),
        Scale(torch.tensor(-1.7, dtype=torch.float64)),
        PiecewiseLinear((-1.0, 1.0), (0.0, 1.0, 0.0), -1.0),
        Structural(lambda v: F.pad(v, (1, 0), value=0.5), "pad"),
        Reshape((8,)),
        Linear(draw(3, 8), draw(3)),
    )


def small_convolutional(seed: int) -> Graph:
    """Two convolutions, batch norm and a residual sum, all with parallel lines."""
    draw = numbers(seed)
    return graph_of(
        (2, 6, 6),
        Convolution(draw(3, 2, 3, 3), draw(3), (1, 1), (1, 1), (1, 1)),
        BatchNorm(draw(3), draw(3) ** 2 // 0.25 / 4 + 0.5, draw(3), draw(3), 1e-5),
        ReLU(),
        Convolution(draw(3, 3, 3, 3) / 4, draw(3), (1, 1), (1, 1), (1, 1)),
        (WeightedSum((1.0, -0.5)), (4, 3)),
        ReLU(),
        Structural(lambda v: F.avg_pool2d(v, 2), "pool"),
        Reshape((27,)),
        Linear(draw(5, 27) / 4, draw(5)),
        PiecewiseLinear((0.0,), (0.125, 1.0), 0.0),
        Linear(draw(3, 5), draw(3)),
    )


def curved(seed: int) -> Graph:
    """Every smooth activation, between layers that use both their bent and their flat parts."""
    draw, widths = numbers(seed), (4, 6, 6, 5, 5, 5, 3)
    layers = [
        Linear((1.5 * draw(outside, inside)).float().double(), draw(outside))
        for inside, outside in zip(widths, widths[1:], strict=False)
    ]
    bends = (Sigmoid(), GELU(), Tanh(), SiLU(), GELU("tanh"))
    return graph_of((4,), *(part for pair in zip(layers, bends, strict=False) for part in pair), layers[-1])


def regions(x: Tensor, eps: float) -> list[Region]:
    clip = (float(x.min()) - 0.01, float(x.max()) + 0.01)
    return [
        LinfBall(x, eps),
        LinfBall(x, eps, clip),
        L2Ball(x, eps),
        L2Ball(x, eps, clip),
        L1Ball(x, eps),
        Box(x - eps, x + eps / 3),
    ]


def inside(ends: tuple[Tensor, Tensor], value: np.ndarray) -> bool:
    low, high = (rational(end[0]).reshape(-1) for end in ends)
    return bool((low <= value).all() and (value <= high).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [chain, convolutional, curved])
@pytest.mark.no_cover
def test_what_the_network_has_in_real_arithmetic_is_never_outside(build: Callable[[int], Graph], method: str) -> None:
    """Without a radius the bounds are as narrow as their rounding; points at the ends of the region elsewhere."""
    for seed in range(1 if build is convolutional else 2):
        graph = build(seed)
        x = numbers(100 + seed)(1, *graph.input_shape)
        for eps in (0.0, 0.03):
            for region in regions(x, eps):
                found = bounds(graph, region, method, arithmetic="real")
                points = x if eps == 0 else region.project(x + eps * numbers(seed)(1, *x.shape[1:]).sign())
                everything = values(graph, rational(points[0]))
                assert inside((found.lower, found.upper), everything[-1])
                for index, node in enumerate(graph.nodes):
                    if node.name in found.layers:
                        assert inside(found.layers[node.name], everything[graph.nodes[index].inputs[0]])
                if eps == 0:
                    assert (found.upper - found.lower).max() < 1e-9


def exact_dual(graph: Graph, layers: dict, region: Region, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 1 of Wong and Kolter (2018) for every element of a node of a chain, all in fractions.

    The slopes are the floats that the method uses; the offset of the upper line is the least sound one.
    """
    nu = np.diag(np.full(graph.nodes[target].size, Fraction(1)))
    low = high = np.full(len(nu), Fraction(0))
    for index in range(target, 0, -1):
        node = graph.nodes[index]
        if not isinstance(node.operator, ReLU):
            at = nu @ constant(graph, index)
            (matrix,) = matrices(graph, index)
            low, high, nu = low + at, high + at, nu @ matrix
            continue
        ends = layers[node.name]
        slope = rational(ReLU().parallel_lines(*ends).lower_slope[0])
        below, above = (rational(end[0]) for end in ends)
        offset = np.maximum(np.maximum((1 - slope) * above, -slope * below), 0)
        offset[(below >= 0) | (above <= 0)] = Fraction(0)
        low, high = low + np.minimum(nu, 0) @ offset, high + np.maximum(nu, 0) @ offset
        nu = nu * slope
    center, far = rational(region.center[0]), reach(nu, region)
    return low + nu @ center - far, high + nu @ center + far


def assert_outside(graph: Graph, region: Region) -> None:
    """Neither the output's bounds nor those of the layers are inside the exact ones for the same relaxation."""
    computing = graph if region.dtype == torch.float64 else single_of(graph)
    found = bounds(computing, region, "dual", arithmetic="real")
    for index, node in enumerate(graph.nodes):
        if node.name in found.layers or index == len(graph.nodes) - 1:
            target = index if index == len(graph.nodes) - 1 else node.inputs[0]
            ends = (found.lower, found.upper) if target == index else found.layers[node.name]
            low, high = exact_dual(graph, found.layers, region, target)
            assert inside((ends[0], torch.full_like(ends[1], torch.finfo(region.dtype).max)), low), node.name
            assert inside((torch.full_like(ends[0], torch.finfo(region.dtype).min), ends[1]), high), node.name


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1.0, 1e-30, 1e30, 1e-10]),
    cancelling=st.sampled_from([None, 0, 1, 2]),
    norm=st.sampled_from([LinfBall, L2Ball, L1Ball]),
    eps=st.sampled_from([0.0, 1e-30, 1e-3, 0.2, 10.0]),
)
def test_dual_bounds_are_never_inside_the_exact_ones(seed, scale, cancelling, norm, eps) -> None:
    graph = chain(seed, scale, cancelling)
    x = numbers(seed + 1)(1, 4)
    x = x if cancelling is None else x.abs().mean() + 1e-3 * x
    assert_outside(graph, norm(x, eps))


@in_float32
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1.0, 1e-12, 1e3, 1e-3]),
    cancelling=st.sampled_from([None, 0, 1, 2]),
    norm=st.sampled_from([LinfBall, L2Ball, L1Ball]),
    eps=st.sampled_from([0.0, 1e-30, 1e-3, 0.2, 10.0]),
)
def test_dual_bounds_in_float32_are_never_inside_the_exact_ones(seed, scale, cancelling, norm, eps) -> None:
    graph = chain(seed, scale, cancelling)
    x = numbers(seed + 1)(1, 4).float()
    x = x if cancelling is None else x.abs().mean() + 1e-3 * x
    assert_outside(graph, norm(x, eps))


@in_float32
@pytest.mark.parametrize("mode", ["real", "float32"])
@pytest.mark.no_cover
def test_dual_bounds_in_float32_hold_what_those_in_float64_hold(mode: str) -> None:
    """On maps, with every kind of region: the network's own values, and its runs."""
    for seed in range(3):
        for graph in (small_convolutional(seed), chain(seed), curved(seed)):
            single = single_of(graph)
            x = numbers(100 + seed)(1, *graph.input_shape).float()
            for eps in (0.0, 0.03):
                for region in regions(x, eps):
                    found = bounds(single, region, "dual", arithmetic=mode)  # type: ignore[arg-type]
                    points = x if eps == 0 else region.project(x + eps * numbers(seed)(1, *x.shape[1:]).float().sign())
                    everything = values(graph, rational(points[0]))
                    assert inside((found.lower, found.upper), everything[-1])
                    for index, node in enumerate(graph.nodes):
                        if node.name in found.layers:
                            assert inside(found.layers[node.name], everything[graph.nodes[index].inputs[0]])
                    run = single(points)
                    if mode == "float32":
                        assert (found.lower <= run).all() and (run <= found.upper).all()
                    if eps == 0:
                        wide = found.upper - found.lower
                        assert (wide < 0.05 * (1 + run.abs().max())).all()


@in_float32
@pytest.mark.parametrize("norm", [LinfBall, L2Ball, L1Ball])
def test_no_attack_gets_below_a_proof_in_float32(norm: Callable[..., Region]) -> None:
    """On a network with every shortcut: the sieve by kernel position, pruned channels, rows that are dropped."""
    for seed in range(4):
        draw = numbers(30 + seed)
        graph = single_of(
            graph_of(
                (1, 10, 10),
                Convolution(draw(8, 1, 3, 3), draw(8), (1, 1), (2, 2), (1, 1)),
                ReLU(),
                Convolution(draw(6, 8, 3, 3) / 4, draw(6), (2, 2), (1, 1), (1, 1)),
                ReLU(),
                Reshape((216,)),
                Linear(draw(20, 216) / 10, draw(20) - 1),
                ReLU(),
                Linear(draw(3, 20), draw(3)),
            )
        )
        x = draw(5, 1, 10, 10).float()
        labels = graph(x).argmax(1)
        for eps in (0.002, 0.05):
            region = norm(x, eps)
            lower = margins(graph, region, labels, arithmetic="real")
            found = pgd(graph, region, labels, steps=40, restarts=2, targeted=True).points.detach()
            logits = graph(found)
            attained = logits.gather(1, labels[:, None]) - logits
            assert (lower <= attained + 1e-5 * (1 + logits.abs().amax())).all()
            proved = (lower.scatter(1, labels[:, None], 1.0) > 0).all(1)
            assert not (proved & (logits.argmax(1) != labels)).any()


def forgetful(layer: int) -> Callable[[Ledger, int], None]:
    plain = Ledger.affine

    def affine(self: Ledger, index: int) -> None:
        plain(self, index)
        if index == 2 * layer + 1:
            self.charge[index] = torch.zeros_like(self.most[index])

    return affine


@pytest.mark.parametrize(
    ("layer", "name", "bug"),
    [
        (0, "affine", forgetful(0)),
        (1, "affine", forgetful(1)),
        (0, "outward", lambda self, index, radius, which=None: radius),
        (2, "below", lambda self, index, rows, lower: lower),
    ],
)
@pytest.mark.parametrize("single", [False, pytest.param(True, marks=in_float32)], ids=["float64", "float32"])
def test_each_term_is_needed(
    layer: int, name: str, bug: Callable, single: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what pays for the layer that rounds most, some bound is inside the exact one."""
    graphs = [chain(seed) for seed in range(6)]
    for graph in graphs:
        graph.nodes[2 * layer + 1].operator.bias.add_(2.0**13 if single else 2.0**26)
    x = numbers(9)(1, 4)
    x = x.float() if single else x
    everything = [(graph, LinfBall(x, eps)) for graph in graphs for eps in (0.0, 1e-3)]
    for graph, region in everything:
        assert_outside(graph, region)
    monkeypatch.setattr(Ledger, name, bug)
    with pytest.raises(AssertionError):
        for graph, region in everything:
            assert_outside(graph, region)


def test_the_noise_of_the_run_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "executed_noise", lambda node, inputs, constant, most: torch.zeros_like(most))
    with pytest.raises(AssertionError):
        test_runs_in_float32_stay_inside_what_is_said_of_them("dual")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.no_cover
def test_runs_in_float32_stay_inside_what_is_said_of_them(method: str) -> None:
    """And not always inside what is said of real arithmetic."""
    strays = 0
    for seed in range(3):
        for graph in (chain(seed), chain(seed, cancelling=seed % 3), convolutional(seed), curved(seed)):
            x = 0.7 + 0.1 * numbers(50 + seed)(1, *graph.input_shape).float().double()
            single = single_of(graph)
            for eps in (0.0, 0.01):
                region = LinfBall(x, eps)
                found = bounds(graph, region, method, arithmetic="float32")
                real = bounds(graph, region, method, arithmetic="real")
                assert (found.lower <= real.lower).all() and (found.upper >= real.upper).all()
                for batch in (1, 7):
                    points = region.project(x + eps * numbers(seed)(batch, *x.shape[1:]).sign())
                    points = torch.where(points.float().double() == points, points, x)  # float32 inputs of the region
                    run = single(points.float()).double()
                    assert (found.lower <= run).all() and (run <= found.upper).all()
                    strays += int(((run < real.lower) | (run > real.upper)).sum())
    assert strays > 0


@pytest.mark.parametrize("method", METHODS)
def test_smooth_functions_as_executed_in_float32(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sums around them, whose rounding would hide theirs."""

    def outside() -> int:
        count = 0
        for operator in (Sigmoid(), Tanh(), GELU(), GELU("tanh"), SiLU()):
            graph = graph_of((400,), operator, Reshape((400,)))
            x = torch.linspace(-9, 9, 400).double()[None]
            found = bounds(graph, LinfBall(x, 0.0), method, arithmetic="float32")
            run = single_of(graph)(x.float()).double()
            count += int(((run < found.lower) | (run > found.upper)).sum())
        return count

    assert outside() == 0
    noise = Ledger._noise
    monkeypatch.setattr(Ledger, "_noise", lambda self, operator, ends: 0 * noise(self, operator, ends))
    assert outside() > 100


@pytest.mark.parametrize("method", ["dual", "crown"])
def test_lines_through_wrong_points_are_moved_outside(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """f(z) - a z with the chord's slope a: its bounds are the lines' intercepts."""
    for operator in (Sigmoid(), Tanh(), GELU(), GELU("tanh"), SiLU()):
        honest = type(operator).stationary
        monkeypatch.setattr(
            type(operator), "stationary", lambda self, slope, honest=honest: [0.97 * z for z in honest(self, slope)]
        )

    def outside() -> int:
        count = 0
        for operator in (Sigmoid(), Tanh(), GELU(), GELU("tanh"), SiLU()):
            for low, high in ((-3.0, 2.0), (-1.2, 2.5), (0.5, 4.0)):
                ends = torch.tensor([[low]]).double(), torch.tensor([[high]]).double()
                slope = operator.chord(*ends).item()
                graph = graph_of((1,), operator, (WeightedSum((1.0, -slope)), (1, 0)))
                found = bounds(graph, Box(*ends), method, arithmetic="real")
                run = graph(torch.linspace(low, high, 5000).double()[:, None])
                count += int((run.min() < found.lower - 1e-12) | (run.max() > found.upper + 1e-12))
        return count

    assert outside() == 0
    monkeypatch.setattr(rounding, "_outside", lambda operator, ends, lines: torch.zeros_like(ends[0]))
    assert outside() > 0


def single_of(graph: Graph) -> Callable[[Tensor], Tensor]:
    """The same network with float32 tensors."""
    nodes = []
    for node in graph.nodes:
        operator = node.operator
        kept = {name: value.float() if isinstance(value, Tensor) else value for name, value in vars(operator).items()}
        other = object.__new__(type(operator))
        for name, value in kept.items():
            object.__setattr__(other, name, value)
        nodes.append(type(node)(node.name, other, node.inputs, node.shape))
    return Graph(tuple(nodes))


def test_shortcuts_pay_for_their_own_sums() -> None:
    """The sieve by kernel position on padded maps, pruned channels, and rows that are dropped on their way."""
    draw = numbers(3)
    graph = graph_of(
        (1, 10, 10),
        Convolution(draw(8, 1, 3, 3) * 1e6, draw(8), (1, 1), (2, 2), (1, 1)),
        ReLU(),
        Convolution(draw(6, 8, 3, 3) / 1e6, draw(6), (2, 2), (1, 1), (1, 1)),
        ReLU(),
        Reshape((216,)),
        Linear(draw(20, 216) / 10, draw(20) - 1),
        ReLU(),
        Linear(draw(3, 20), draw(3)),
    )
    x = draw(1, 1, 10, 10)
    region = LinfBall(x, torch.rand(1, 1, 10, 10, dtype=torch.float64) * 0.05)
    plain, found = bounds(graph, region, "dual"), bounds(graph, region, "dual", arithmetic="real")
    assert (found.lower < plain.lower).all() and (found.upper > plain.upper).all()
    assert torch.allclose(found.lower, plain.lower, rtol=0, atol=1e-7)
    for name, (low, high) in found.layers.items():
        opened = (plain.layers[name][0] < 0) & (plain.layers[name][1] > 0)
        assert (low <= plain.layers[name][0])[opened].all() and (high >= plain.layers[name][1])[opened].all()
    lower = margins(graph, region, torch.tensor([1]), arithmetic="real")
    assert (lower[0, [0, 2]] < margins(graph, region, torch.tensor([1]))[0, [0, 2]]).all()


@in_float32
def test_float32_proves_nothing_where_products_may_be_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, region = single_of(chain(0)), LinfBall(torch.ones(1, 4), 0.1)
    bounds(graph, region, "dual", arithmetic="real")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(InputError, match="float64"):
        bounds(graph, region, "dual", arithmetic="real")


class Cube(Activation):
    """Its rounding has no bound."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return inputs[0] ** 3

    def stationary(self, slope: Tensor) -> list[Tensor]:
        return [(slope.clamp(min=0) / 3).sqrt(), -(slope.clamp(min=0) / 3).sqrt()]

    def tangents(self, lower: Tensor, upper: Tensor) -> list[Tensor]:
        return [3 * lower**2]


def test_what_cannot_be_proved_is_refused() -> None:
    graph, x = chain(0), torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="milp"):
        bounds(graph, LinfBall(x, 0.1), "milp", arithmetic="real")
    with pytest.raises(InputError, match="exact"):
        bounds(graph, LinfBall(x, 0.1), arithmetic="exact")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="float64"):
        bounds(single_of(graph), LinfBall(x.float(), 0.1), "crown", arithmetic="real")
    unknown = graph_of((4,), Linear(torch.ones(3, 4, dtype=torch.float64)), Cube())
    with pytest.raises(UnsupportedOperatorError, match="Cube"):
        bounds(unknown, LinfBall(x, 0.1), arithmetic="real")
    wide = graph_of((4,), Linear(torch.full((3, 4), 1 / 3, dtype=torch.float64)))
    with pytest.raises(InputError, match="float32"):
        bounds(wide, LinfBall(x, 0.1), arithmetic="float32")
