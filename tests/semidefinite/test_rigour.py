"""The bounds hold in exact arithmetic: checked with fractions, on data for which rounding matters."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from ironbound.errors import InputError
from ironbound.ops.piecewise import ReLU
from ironbound.semidefinite.bilinear import Bilinear, Weights, dual_bound
from ironbound.semidefinite.network import Layer, TwoLayer
from ironbound.semidefinite.problems import linear_reach, problems
from ironbound.semidefinite.rounding import gamma, lowered, raised
from ironbound.semidefinite.solving import Effort, solved
from ironbound.semidefinite.verified import largest_eigenvalue
from semidefinite.sdp_cases import Exact, fractions, is_positive_semidefinite, network

NEURONS, INPUTS, OUTPUTS = 5, 4, 3


def delicate(seed: int, inputs: int = INPUTS) -> TwoLayer:
    """Second-layer weights that cancel in float64: v_0 W_0 + v_1 W_1 keeps few of its digits."""
    torch.manual_seed(seed)
    weight = torch.randn(NEURONS, inputs, dtype=torch.float64)
    last = torch.randn(OUTPUTS, NEURONS, dtype=torch.float64)
    weight[1] = -weight[0] * (1 + 1e-9 * torch.rand(inputs, dtype=torch.float64))
    last[:, 0] = last[:, 1] = 1e9 * torch.randn(OUTPUTS, dtype=torch.float64)
    return TwoLayer(_layer(weight), ReLU(), _layer(last), 2)


def _layer(weight: Tensor, bias: Tensor | None = None) -> Layer:
    zeros = torch.zeros(len(weight), dtype=torch.float64)
    return Layer(weight, zeros if bias is None else bias, 0, zeros)


def exact_coupling(net: TwoLayer, row: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Exact:
    """B = diag(r) W^T diag(v) [mid | diag(half)], without rounding, [inputs][1 + neurons]."""
    assert net.output is not None
    g, last, weight = fractions(row[None])[0], fractions(net.output.weight), fractions(net.hidden.weight)
    v = [sum((a * last[k][j] for k, a in enumerate(g)), Fraction(0)) for j in range(len(weight))]
    ends, r = list(zip(fractions(low[None])[0], fractions(high[None])[0], strict=True)), fractions(radius[None])[0]
    result = []
    for i, reach in enumerate(r):
        column = [reach * weight[j][i] * v[j] for j in range(len(weight))]
        first = sum((c * (a + b) / 2 for c, (a, b) in zip(column, ends, strict=True)), Fraction(0))
        result.append([first, *(c * (b - a) / 2 for c, (a, b) in zip(column, ends, strict=True) if a != b)])
    return result


def holds(coupling: Exact, posed: Bilinear, place: int, weights: Weights, bound: float) -> bool:
    """Whether bound² / (sum a sum b) diag(b) - B^T diag(a)^{-1} B is positive semidefinite, which proves the bound."""
    a = [Fraction(value) ** 2 for value in weights.rows[place].tolist()]
    b = [Fraction(value) ** 2 for value in weights.columns[place].tolist()]
    share = Fraction(bound) ** 2 / (sum(a) * sum(b))
    matrix = []
    for j, own in enumerate(b):
        inner = (
            sum((row[j] * row[k] / w for row, w in zip(coupling, a, strict=True)), Fraction(0)) for k in range(len(b))
        )
        matrix.append([(share * own if j == k else Fraction(0)) - value for k, value in enumerate(inner)])
    return is_positive_semidefinite(matrix)


@pytest.mark.parametrize("kind", ["whole", "narrow", "mixed"])
@pytest.mark.parametrize("inputs", [4, 8])  # fewer and more than columns: the smaller Gram matrix is taken
@pytest.mark.parametrize("seed", range(6))
def test_dual_bounds_hold_in_exact_arithmetic(kind: str, inputs: int, seed: int) -> None:
    net = delicate(seed, inputs)
    low, high = torch.zeros(NEURONS, dtype=torch.float64), torch.ones(NEURONS, dtype=torch.float64)
    if kind == "narrow":  # the cancelling linear term is nearly all of the problem
        low, high = 1 / 3 - 1e-13 * high, 1 / 3 + 1e-13 * high
    elif kind == "mixed":
        low[:2], high[2] = 1.0, 0.0
    rows = torch.tensor([[1.0, -1.0, 0.0], [0.3, 0.1, -0.7]], dtype=torch.float64)
    radius = torch.rand(inputs, dtype=torch.float64)
    posed = problems(net, rows, (low, high), radius)
    found = solved(posed, Effort(gap=1e-3, rank=6, rounds=3))
    for place, row in enumerate(rows):
        bound = dual_bound(posed, place, found.weights)
        assert bound == pytest.approx(float(found.dual[place]), rel=1e-9)
        coupling = exact_coupling(net, row, low, high, radius)
        assert holds(coupling, posed, place, found.weights, bound)


def test_the_check_by_fractions_can_fail() -> None:
    net = delicate(0)
    low, high = torch.zeros(NEURONS, dtype=torch.float64), torch.ones(NEURONS, dtype=torch.float64)
    row, radius = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64), torch.ones(INPUTS, dtype=torch.float64)
    posed = problems(net, row[None], (low, high), radius)
    found = solved(posed, Effort(gap=1e-3, rank=6, rounds=3))
    coupling = exact_coupling(net, row, low, high, radius)
    assert holds(coupling, posed, 0, found.weights, float(found.dual[0]))
    assert not holds(coupling, posed, 0, found.weights, float(found.dual[0]) * (1 - 1e-7))


@pytest.mark.parametrize("seed", range(20))
def test_eigenvalues_hold_in_exact_arithmetic(seed: int) -> None:
    torch.manual_seed(seed)
    factor = torch.randn(6, 3, dtype=torch.float64) * 10.0 ** torch.randint(-6, 6, (6, 1), dtype=torch.float64)
    matrix = factor @ factor.T
    matrix = (matrix + matrix.T) / 2
    bound = Fraction(largest_eigenvalue(matrix, 0.0))
    exact = [
        [(bound if i == j else 0) - value for j, value in enumerate(row)] for i, row in enumerate(fractions(matrix))
    ]
    assert is_positive_semidefinite(exact)
    assert float(bound) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-8)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.999999, 1 - 1e-8])
def test_a_wrong_estimate_of_the_eigenvalue_proves_nothing(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    factor = torch.randn(6, 3, dtype=torch.float64)
    matrix = factor @ factor.T
    exact = torch.linalg.eigvalsh(matrix)
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: share * exact)
    assert largest_eigenvalue(matrix, 0.0) >= float(exact[-1]) * (1 - 1e-14)


def test_eigenvalues_of_matrices_that_prove_nothing() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    assert largest_eigenvalue(eye * torch.nan, 0.0) == torch.inf
    assert largest_eigenvalue(eye * torch.inf, 0.0) == torch.inf
    assert largest_eigenvalue(eye, torch.inf) == torch.inf
    assert largest_eigenvalue(eye, torch.nan) == torch.inf
    assert 0 < largest_eigenvalue(-eye, 0.0) < 1e-12
    assert largest_eigenvalue(eye, 0.5) >= 1.5


def exact_logits(net: TwoLayer, x: list[Fraction]) -> list[Fraction]:
    """The network in fractions."""
    value = x
    for layer in (net.hidden, net.output):
        assert layer is not None
        rows, bias = fractions(layer.weight), fractions(layer.bias[None])[0]
        value = [sum((a * b for a, b in zip(row, value, strict=True)), c) for row, c in zip(rows, bias, strict=True)]
        if layer is net.hidden:
            value = [max(part, Fraction(0)) for part in value]
    return value


def test_functionals_are_lower_bounds_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    strict = 0
    for seed in range(20):
        net = delicate(seed)
        bias = torch.randn(OUTPUTS, dtype=torch.float64)
        assert net.output is not None
        net = TwoLayer(net.hidden, net.activation, _layer(net.output.weight, bias), 2)
        x = torch.randn(3, INPUTS, dtype=torch.float64)
        rows = torch.randn(3, OUTPUTS, dtype=torch.float64)
        lower = net.functionals(x, rows, torch.arange(3))
        for point, row, bound in zip(x, rows, lower.tolist(), strict=True):
            logits = exact_logits(net, fractions(point[None])[0])
            exact = sum((a * b for a, b in zip(fractions(row[None])[0], logits, strict=True)), Fraction(0))
            assert Fraction(bound) <= exact
            strict += float(exact) - bound > 1e-3 * abs(float(exact))
    assert strict < 30  # not by being useless


@pytest.mark.parametrize("where", ["hidden", "output"])
def test_functionals_where_a_layer_cancels(where: str) -> None:
    torch.manual_seed(0)
    wide, narrow = 1e8 * torch.randn(6, 1, dtype=torch.float64), torch.randn(6, INPUTS, dtype=torch.float64)
    x = 1 + torch.rand(40, INPUTS, dtype=torch.float64)
    if where == "hidden":  # wide (x_0 - x_1) with x_0 near x_1: the neurons' values keep half of their digits
        weight = torch.cat([wide, -wide, narrow[:, 2:]], 1)
        x[:, 1] = x[:, 0] + 1e-8 * torch.rand(40, dtype=torch.float64)
        last = torch.randn(OUTPUTS, 6, dtype=torch.float64)
    else:  # equal neurons with opposite large weights
        weight = narrow.abs()
        weight[1] = weight[0] * (1 + 1e-8)
        last = torch.randn(OUTPUTS, 6, dtype=torch.float64)
        last[:, 0], last[:, 1] = wide[:OUTPUTS, 0], -wide[:OUTPUTS, 0]
    net = TwoLayer(_layer(weight), ReLU(), _layer(last), 2)
    rows = torch.eye(OUTPUTS, dtype=torch.float64).repeat(14, 1)[:40]
    lower = net.functionals(x, rows, torch.arange(40))
    for point, row, bound in zip(x, rows.argmax(1).tolist(), lower.tolist(), strict=True):
        exact = exact_logits(net, fractions(point[None])[0])[row]
        assert Fraction(bound) <= exact
        assert float(exact) - bound < 1e-5 * (1 + abs(float(exact)))


def test_linear_reach_holds_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        weight = torch.randn(3, 5, dtype=torch.float64)
        weight[1] = weight[0] * (1 + 1e-12 * torch.randn(5, dtype=torch.float64))
        row, radius = torch.tensor([1.1, -1.1, 0.0], dtype=torch.float64), torch.rand(5, dtype=torch.float64)
        bound = linear_reach(TwoLayer(_layer(weight)), row[None], radius)
        g, w, r = fractions(row[None])[0], fractions(weight), fractions(radius[None])[0]
        exact = sum(
            (abs(sum((a * w[k][i] for k, a in enumerate(g)), Fraction(0))) * r[i] for i in range(5)), Fraction(0)
        )
        assert Fraction(float(bound)) >= exact


def test_folded_normalisation_counts_its_rounding() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first((x - 0.1307) / 0.3081) * 1.7 + 0.3)) * 0.9

    torch.manual_seed(0)
    module = Normalised().eval()
    net = network(module)
    assert net.output is not None and net.hidden.roundings >= 2 and net.output.roundings == 1
    x = torch.randn(50, 4)
    with torch.no_grad():
        logits = module.double()(x.double())
    rows = torch.randn(50, 3, dtype=torch.float64)
    exact = (rows * logits).sum(1)
    lower = net.functionals(x.double(), rows, torch.arange(50))
    assert torch.allclose(lower, exact, atol=1e-5)  # the constants are float64 here and float32 in the captured network


def test_conversions_round_outward() -> None:
    values = torch.randn(1000, dtype=torch.float64)
    assert (lowered(values, torch.float32).double() <= values).all()
    assert (raised(values, torch.float32).double() >= values).all()
    assert torch.allclose(lowered(values, torch.float32).double(), values, rtol=2e-7)
    assert torch.equal(lowered(values, torch.float64), values)


def test_sums_longer_than_the_error_bounds_are_refused() -> None:
    assert gamma(10) >= 10 * 2.0**-53
    with pytest.raises(InputError, match="longer"):
        gamma(5_000_000)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_bound_of_what_is_not_finite(bad: float) -> None:
    net = delicate(0)
    ones = torch.ones(NEURONS, dtype=torch.float64)
    radius = torch.ones(INPUTS, dtype=torch.float64)
    radius[1] = bad
    row = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
    posed = problems(net, row, (0 * ones, ones), radius)
    assert solved(posed, Effort(rounds=2)).dual.tolist() == [torch.inf]
    assert solved(
        problems(net, row, (bad * ones, ones), torch.ones(INPUTS, dtype=torch.float64)), Effort(rounds=2)
    ).dual.tolist() == [torch.inf]
