"""Ranges of slopes hold every chord."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from ironbound.errors import InputError
from ironbound.ops.operator import Activation
from ironbound.ops.piecewise import PiecewiseLinear, ReLU
from ironbound.ops.smooth import GELU, Sigmoid, SiLU, Tanh
from ironbound.semidefinite.slopes import chord_range, slope_range

HARDTANH = PiecewiseLinear((-1.0, 0.5), (0.0, 1.0, 0.0), -1.0)
UNEVEN = PiecewiseLinear((-0.3, 0.1, 0.7), (0.1, 0.7, 0.3, 0.9), 0.2)
SHRINK = PiecewiseLinear((-0.5, 0.5), (1.0, 0.0, 1.0), 0.0)
ALL: dict[str, Activation] = {
    "relu": ReLU(), "leaky": PiecewiseLinear((0.0,), (0.1, 1.0)), "abs": PiecewiseLinear((0.0,), (-1.0, 1.0)),
    "hardtanh": HARDTANH, "shrink": SHRINK, "uneven": UNEVEN, "sigmoid": Sigmoid(), "tanh": Tanh(), "gelu": GELU(),
    "gelu-tanh": GELU("tanh"), "silu": SiLU(),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_derivative_lies_in_the_whole_range(name: str) -> None:
    low, high = slope_range(ALL[name])
    z = torch.linspace(-12, 12, 40001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(ALL[name].forward(z).sum(), z)
    assert low <= float(slope.min()) and float(slope.max()) <= high
    assert float(slope.min()) - low < 1e-5 and high - float(slope.max()) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_every_chord_lies_in_its_range(name: str) -> None:
    torch.manual_seed(0)
    start = 3 * torch.randn(400, dtype=torch.float64)
    reach = 10 ** (4 * torch.rand(400, dtype=torch.float64) - 3)
    low, high = chord_range(ALL[name], start, torch.zeros_like(start), reach)
    share = torch.linspace(-1, 1, 201, dtype=torch.float64)
    end = start[:, None] + reach[:, None] * share
    change = ALL[name].forward(end) - ALL[name].forward(start[:, None])
    length = end - start[:, None]
    slope = (change / length)[length.abs() > 0]
    rounding = 1e-14 / length.abs()[length.abs() > 0]
    assert (slope >= low[:, None].expand_as(end)[length.abs() > 0] - rounding).all()
    assert (slope <= high[:, None].expand_as(end)[length.abs() > 0] + rounding).all()
    least, most = slope_range(ALL[name])
    assert (low >= least).all() and (high <= most).all() and (low <= high).all()


@pytest.mark.parametrize("share", [0.0, 1e-3])
@pytest.mark.parametrize("name", ["relu", "abs", "leaky", "hardtanh", "shrink", "uneven"])
def test_chords_of_uncertain_points_in_exact_arithmetic(name: str, share: float) -> None:
    activation = ALL[name]
    assert isinstance(activation, PiecewiseLinear)

    def run(z: Fraction) -> Fraction:
        knots, value = [Fraction(knot) for knot in activation.knots], Fraction(activation.anchor)
        value += Fraction(activation.slopes[0]) * (min(z, knots[0]) - knots[0])
        for place, knot in enumerate(knots):
            end = min(z, knots[place + 1]) if place + 1 < len(knots) else z
            value += Fraction(activation.slopes[place + 1]) * max(end - knot, Fraction(0))
        return value

    torch.manual_seed(0)
    start = torch.randn(300, dtype=torch.float64)
    error = share * torch.rand(300, dtype=torch.float64)
    reach = torch.rand(300, dtype=torch.float64) ** 4
    bounds = chord_range(activation, start, error, reach)
    for z, e, r, low, high in zip(*(part.tolist() for part in (start, error, reach, *bounds)), strict=True):
        for shift in (-1, 0, 1):
            for side in (-1, 1):
                begin = Fraction(z) + shift * Fraction(e)
                slope = (run(begin + side * Fraction(r)) - run(begin)) / (side * Fraction(r))
                assert Fraction(low) <= slope <= Fraction(high)


def test_relu_has_the_closed_form() -> None:
    start = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.25, -1.0, -3.0], dtype=torch.float64)
    low, high = chord_range(ReLU(), start, torch.zeros(7), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(low, torch.tensor([1.0, 1.0, 0.5, 0, 0, 0, 0], dtype=torch.float64), atol=1e-14)
    assert torch.allclose(high, torch.tensor([1.0, 1, 1, 1, 0.75, 0, 0], dtype=torch.float64), atol=1e-14)
    assert low[0] == high[0] == 1 and low[-1] == high[-1] == 0  # closed neurons have exactly one slope


def test_a_neuron_that_stays_where_it_is() -> None:
    for activation in ALL.values():
        low, high = chord_range(activation, torch.tensor([0.3]).double(), torch.zeros(1), torch.zeros(1).double())
        assert bool(low <= high)


def test_nan_stays() -> None:
    bad, fine = torch.tensor([torch.nan]).double(), torch.ones(1).double()
    for activation in ALL.values():
        for start, reach in ((bad, fine), (fine, bad)):
            low, high = chord_range(activation, start, torch.zeros(1), reach)
            assert bool(torch.isnan(low + high))


def test_unknown_activations_are_refused() -> None:
    class Odd(Activation):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return inputs[0] ** 3

        def stationary(self, slope: torch.Tensor) -> list[torch.Tensor]:
            return []

        def tangents(self, lower: torch.Tensor, upper: torch.Tensor) -> list[torch.Tensor]:
            return []

    with pytest.raises(InputError, match="no range of slopes is known of Odd"):
        slope_range(Odd())
