"""Windows are a compact way to write dense rows: every operation gives the same functionals, for any convolution."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ironbound.bounding import bounds, parallel, sieve, spread, windows
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.windows import Windows, one_hot_windows, unit_windows
from ironbound.capture import capture
from ironbound.ops.affine import BatchNorm, Convolution, Reshape, Scale, Shift, WeightedSum, transposed_2d
from ironbound.ops.operator import Lines
from ironbound.regions import Set, ball
from laws.families import Mixed


@dataclass(frozen=True)
class Layer:
    """A convolution's attributes, and the shapes of its input and its output."""

    shape: tuple[int, int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def out(self) -> tuple[int, int, int]:
        extents = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.shape[1:], self.padding, self.dilation, self.kernel, self.stride, strict=True)
        ]
        return self.channels, extents[0], extents[1]

    def operator(self) -> Convolution:
        weight = torch.randn(self.channels, self.shape[0], *self.kernel, dtype=torch.float64)
        bias = torch.randn(self.channels, dtype=torch.float64)
        return Convolution(weight, bias, self.stride, self.padding, self.dilation)


def _pair(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def _layer(draw: st.DrawFn, shape: tuple[int, int, int]) -> Layer:
    layer = Layer(
        shape, draw(st.integers(1, 3)), draw(_pair(1, 4)), draw(_pair(1, 3)), draw(_pair(0, 3)), draw(_pair(1, 2))
    )
    return layer if min(layer.out) > 0 else Layer(shape, 2, (1, 1), (1, 1), (0, 0), (1, 1))


@st.composite
def _two_layers(draw: st.DrawFn) -> tuple[Layer, Layer]:
    first = draw(_layer((draw(st.integers(1, 2)), *draw(_pair(2, 7)))))
    return first, draw(_layer(first.out))


def _same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _check_functionals(rows: Windows, batch: int) -> None:
    dense = rows.dense()
    for count in {1, batch}:
        value = _random(count, *rows.shape)
        _same(rows.dot(value), dense.dot(value))
    gap, slope = _random(batch, *rows.shape).abs(), _random(batch, *rows.shape)
    _same(rows.scaled(slope).dense().coefficients, dense.scaled(slope).coefficients)
    _same(rows.widening(gap), dense.widening(gap))
    low = _random(batch, *rows.shape)
    for lines in (
        Lines(slope, low, slope, low + gap),
        Lines(slope, low, _random(*slope.shape), low + gap),
        Lines(slope, None, _random(*slope.shape), gap),
    ):
        pull, dense_pull = rows.pull_lines(lines, False), dense.pull_lines(lines, False)
        _same(pull.lower, dense_pull.lower)
        _same(pull.rows.dense().coefficients, dense_pull.rows.dense().coefficients)
    for order in (1, 2, float("inf")):
        for radius in (gap, gap[:1, :1, :1, :1], gap[:, :1, :1, :1]):
            _same(rows.norm(Set(order, radius)), dense.norm(Set(order, radius)))


def _check_pulls(rows: Windows) -> None:
    dense = rows.dense()
    channels = rows.shape[0]
    statistics = (_random(channels), _random(channels).abs() + 0.5, _random(channels), _random(channels))
    for operator in (
        BatchNorm(*statistics, 1e-3),
        BatchNorm(*statistics[:2], None, None, 1e-3),
        Scale(_random(*rows.shape)),
        Scale(_random(channels, 1, 1)),
        Scale(torch.tensor(-1.5, dtype=torch.float64)),
        Shift(_random(*rows.shape)),
        WeightedSum((1.0, -0.5)),
        Reshape(rows.shape),
    ):
        shapes = (rows.shape,) * (2 if isinstance(operator, WeightedSum) else 1)
        for found, expected in zip(
            rows.pull_affine(operator, shapes), dense.pull_affine(operator, shapes), strict=True
        ):
            _same(found.dense().coefficients, expected.coefficients)


@settings(max_examples=60)
@given(layers=_two_layers(), seed=st.integers(0, 1000), lines=st.booleans())
def test_every_operation_agrees_with_dense_rows(layers: tuple[Layer, Layer], seed: int, lines: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:  # both ways to compose windows, whatever the number of channels
        patch.setattr(windows, "FEW_CHANNELS", 1000 if lines else 0)
        _check_layers(layers, seed)


def _check_layers(layers: tuple[Layer, Layer], seed: int) -> None:
    torch.manual_seed(seed)
    (first, second), batch = layers, 2
    operator, below = second.operator(), first.operator()
    neuron = torch.randint(second.out[0] * second.out[1] * second.out[2], (7,))
    example = torch.randint(batch, (7,))
    one_hot = F.one_hot(neuron, second.out[0] * second.out[1] * second.out[2]).double().reshape(-1, *second.out)
    shown = one_hot_windows(one_hot, neuron, example, second.out)
    _same(shown.dense().coefficients, one_hot)
    rows = unit_windows(operator, neuron, example, (second.out, first.out))
    (expected,) = DenseRows(one_hot, example).pull_affine(operator, (first.out,))
    _same(rows.dense().coefficients, expected.coefficients)
    (again,) = shown.pull_affine(operator, (first.out,))
    _same(again.dense().coefficients, expected.coefficients)
    for part in (shown, rows, again):
        if isinstance(part, Windows):
            _check_functionals(part, batch)
            _check_pulls(part)
    # two convolutions in a row: what a window reads outside the map between them must not reach the input
    for part in (rows, again):
        _same(
            part.pull_affine(below, (first.shape,))[0].dense().coefficients,
            expected.pull_affine(below, (first.shape,))[0].coefficients,
        )
    slope = _random(batch, *first.out)
    relaxed, dense = rows.scaled(slope), expected.scaled(slope)
    (found,), (expected,) = relaxed.pull_affine(below, (first.shape,)), dense.pull_affine(below, (first.shape,))
    _same(found.dense().coefficients, expected.coefficients)
    if isinstance(found, Windows):
        _check_functionals(found, batch)


@settings(max_examples=40)
@given(layer=_layer((2, 6, 5)), seed=st.integers(0, 1000))
def test_sums_of_rows_agree_with_dense_rows(layer: Layer, seed: int) -> None:
    # a residual block: the map is read through a convolution, through another one of the same stride, and as it is
    torch.manual_seed(seed)
    other = Layer(layer.shape, layer.channels, (1, 1), layer.stride, (0, 0), (1, 1))
    if other.out != layer.out:
        other = layer
    neuron, example = torch.randint(layer.out[0] * layer.out[1] * layer.out[2], (5,)), torch.randint(2, (5,))
    shown = one_hot_windows(_random(1), neuron, example, layer.out)
    (one,) = shown.pull_affine(layer.operator(), (layer.shape,))
    (two,) = shown.pull_affine(other.operator(), (layer.shape,))
    expected = one.dense().coefficients + two.dense().coefficients
    for left in (one, one.dense()):
        for right in (two, two.dense()):
            _same((left + right).dense().coefficients, expected)
            _same((right + left).dense().coefficients, expected)
    if layer.out == layer.shape:
        _same((one + shown).dense().coefficients, one.dense().coefficients + shown.dense().coefficients)


@settings(max_examples=100)
@given(layer=st.one_of(_layer((2, 7, 6)), _layer((6, 7, 6))), seed=st.integers(0, 1000))  # few and many channels
def test_transposed_convolution_is_the_vector_jacobian_product(layer: Layer, seed: int) -> None:
    torch.manual_seed(seed)
    operator, rows = layer.operator(), _random(3, *layer.out)
    _, pull = torch.func.vjp(operator.forward, _random(3, *layer.shape))
    expected = pull(rows)[0]
    found = transposed_2d(rows, operator.weight, layer.stride, layer.padding, layer.dilation, layer.shape[1:])
    _same(found, expected)
    _same(operator.adjoint(rows, (layer.shape,))[0], expected)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_adjoint_of_grouped_and_other_convolutions(axes: int) -> None:
    for stride, padding, dilation in ((1, 0, 1), (2, 1, 1), (3, 2, 2), (2, 0, 2)):
        weight = _random(4, 1, *(3, 2, 2)[:axes])
        operator = Convolution(weight, None, (stride,) * axes, (padding,) * axes, (dilation,) * axes, 2)
        shape = (2, *(7, 6, 5)[:axes])
        value, pull = torch.func.vjp(operator.forward, _random(2, *shape))
        rows = _random(*value.shape)
        _same(operator.adjoint(rows, (shape,))[0], pull(rows)[0])


def test_padding_is_not_perturbed() -> None:
    # every output of the first convolution is exact, so at the border the radius counts the elements on the image only
    convolution = nn.Conv2d(1, 2, 3, padding=2).double()
    model = nn.Sequential(
        convolution, nn.ReLU(), nn.Conv2d(2, 1, 3, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(49, 2)
    )
    model = model.double().eval()
    x = torch.rand(1, 1, 3, 3, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(convolution, x).detach().reshape(2 * 25, 9)
    center = convolution(x).detach().flatten()
    for norm, order in (("linf", 1), ("l2", 2)):
        low, high = next(iter(bounds(model, ball(norm, x, 0.1)).layers.values()))
        radius = 0.1 * torch.linalg.vector_norm(matrix, order, dim=1)
        _same(low.detach().flatten(), center - radius)
        _same(high.detach().flatten(), center + radius)


# --- the sieve by kernel position ------------------------------------------------------------------------------------


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 12, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3)
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["plain", "scaled", "one position"])
def test_the_sieve_changes_no_number(norm: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _convolutional()
    if kind == "scaled":
        model = nn.Sequential(nn.BatchNorm2d(1), *model)
    if kind == "one position":  # then there is nothing to add up and the sieve's radius is the exact one, or nearly
        model = nn.Sequential(
            nn.Conv2d(1, 3, 4, 4), nn.ReLU(), nn.Conv2d(3, 30, 1), nn.ReLU(), nn.Flatten(), nn.Linear(270, 3)
        )
    model = model.double().eval()
    x = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    eps = {"linf": 0.03, "l2": 0.25, "l1": 0.9}[norm] * (0.5 + torch.rand(x.shape, dtype=torch.float64))
    if kind == "one position":
        eps = torch.where(torch.arange(12) < 4, 2 * eps.amax(), eps)  # the radius is the largest all over some windows
    region = ball(norm, x, eps)
    sieved: list[int] = []
    original = parallel.position_sieve

    def watched(state, target, index, operator):
        kept, radius = original(state, target, index, operator)
        sieved.append(len(index) - len(kept))
        # it never closes what the exact bound leaves open
        down, up = spread.exact_rows(state, target, index, None)
        middle = state.reached[target].center.flatten()[index]
        is_open = index[~operator.linear_on(middle - down, middle + up)]
        assert set(is_open.tolist()) <= set(kept.tolist())
        reach = radius.flatten()[index]
        assert bool((reach >= torch.maximum(down, up) - 1e-12).all())
        return kept, radius

    with torch.no_grad():
        graph = capture(model, x)
        monkeypatch.setattr(parallel, "position_sieve", watched)
        with_sieve = bounds(graph, region)
        assert len(sieved) == 1 + (norm == "l1")
        assert (
            sum(sieved) > 0 or norm == "l1" or kind == "one position"
        )  # a sum of maxima is far from the maximum of a sum
        monkeypatch.setattr(parallel, "position_sieve", original)
        monkeypatch.setattr(sieve, "_SIEVE_ROWS", 10**9)
        without = bounds(graph, region)
    _same(with_sieve.lower, without.lower)
    _same(with_sieve.upper, without.upper)


def test_windows_and_dense_rows_meet_in_any_order() -> None:
    # a grouped convolution makes dense rows, the plain ones windows; they meet again at the map that all read
    model = Mixed().double().eval()
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    region = ball("linf", x, 0.3)
    dense = Mixed().double().eval()
    dense.load_state_dict(model.state_dict())
    for part in (dense.stem, dense.narrow, dense.broad):  # the same values; a flip makes every row dense
        part.register_forward_hook(lambda module, inputs, output: output.flip(-1).flip(-1))
    for method in ("dual", "crown"):
        with torch.no_grad():
            one, two = bounds(model, region, method), bounds(dense, region, method)
        _same(one.lower, two.lower)
        _same(one.upper, two.upper)
