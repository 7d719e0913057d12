"""What every activation's rules promise, checked on dense grids: lines enclose, bands touch, ranges are exact."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ironbound.ops.operator import Activation, Lines
from ironbound.ops.piecewise import PiecewiseLinear, ReLU
from ironbound.ops.smooth import GELU, Gated, Sigmoid, SiLU, Smooth, Tanh

ACTIVATIONS: dict[str, Activation] = {
    "relu": ReLU(),
    "leaky": PiecewiseLinear((0.0,), (0.1, 1.0)),
    "steep": PiecewiseLinear((0.0,), (1.7, 1.0)),
    "abs": PiecewiseLinear((0.0,), (-1.0, 1.0)),
    "hardtanh": PiecewiseLinear((-0.5, 0.7), (0.0, 1.0, 0.0), -0.5),
    "hardsigmoid": PiecewiseLinear((-3.0, 3.0), (0.0, 1 / 6, 0.0)),
    "softshrink": PiecewiseLinear((-0.5, 0.5), (1.0, 0.0, 1.0)),
    "zigzag": PiecewiseLinear((-1.0, 0.2, 0.9), (-0.5, 2.0, -1.0, 0.3), 0.4),
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "gelu": GELU(),
    "gelu-tanh": GELU("tanh"),
    "silu": SiLU(),
}
EVERY = pytest.mark.parametrize("name", ACTIVATIONS)


@dataclass(frozen=True, eq=False)
class Range:
    """Many intervals [lower, upper] and a grid of points [points, intervals] in each, its ends included."""

    lower: Tensor
    upper: Tensor
    grid: Tensor


def _ranges(dtype: torch.dtype, widest: float) -> Range:
    generator = torch.Generator().manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(150, generator=generator, dtype=torch.float64)

    knots = torch.tensor([-3, -1, -0.5, 0, 0.2, 0.5, 0.7, 0.9, 1.4142135, 2.399357, 3], dtype=torch.float64)
    starts, widths = [], []
    for middle, width in (
        (uniform(-4, 4), uniform(0, 4)),
        (uniform(-1, 1), uniform(0, 1e-3)),
        (uniform(-12, 12), uniform(0, 20)),
        (uniform(-widest, widest), uniform(0, 2 * widest)),
        (knots, torch.full_like(knots, 0.5)),
        (knots, torch.full_like(knots, 1e-4)),
        (knots, torch.zeros_like(knots)),
        (torch.cat([knots, uniform(-30, 30)]), torch.zeros(161, dtype=torch.float64)),
        (knots + 0.3, torch.full_like(knots, 0.6)),  # begins at the knot
        (knots - 0.3, torch.full_like(knots, 0.6)),  # ends at the knot
    ):
        starts.append(middle - width / 2)
        widths.append(width)
    lower, width = torch.cat(starts), torch.cat(widths)
    share = torch.linspace(0, 1, 801, dtype=torch.float64).unsqueeze(1)
    low, high = lower.to(dtype), torch.maximum(lower.to(dtype), (lower + width).to(dtype))
    grid = (low + share * (high.double() - low.double())).to(dtype)
    return Range(low, high, torch.minimum(torch.maximum(grid, low), high))


MODERATE, FAR, SINGLE = _ranges(torch.float64, 8), _ranges(torch.float64, 1e6), _ranges(torch.float32, 100)


def _at(slope: Tensor, intercept: Tensor | None, points: Tensor) -> Tensor:
    return slope * points + (0.0 if intercept is None else intercept)


def _check_enclosed(activation: Activation, lines: Lines, where: Range) -> None:
    values = activation.forward(where.grid)
    scale = 1 + values.abs() + (lines.upper_slope * where.grid).abs() + (lines.lower_slope * where.grid).abs()
    slack = 8 * torch.finfo(where.grid.dtype).eps * scale
    below, above = (
        _at(lines.lower_slope, lines.lower_intercept, where.grid),
        _at(lines.upper_slope, lines.upper_intercept, where.grid),
    )
    assert bool((below <= values + slack).all()), (below - values).max()
    assert bool((above >= values - slack).all()), (values - above).max()


@EVERY
@pytest.mark.parametrize("kind", ["parallel_lines", "adaptive_lines"])
@pytest.mark.parametrize("where", [MODERATE, FAR, SINGLE], ids=["moderate", "far", "float32"])
def test_lines_enclose_the_function(name: str, kind: str, where: Range) -> None:
    activation = ACTIVATIONS[name]
    lines = getattr(activation, kind)(where.lower, where.upper)
    assert lines.upper_slope.shape == lines.upper_intercept.shape == where.lower.shape
    assert bool(torch.isfinite(lines.lower_slope).all()) and bool(torch.isfinite(lines.upper_intercept).all())
    _check_enclosed(activation, lines, where)
    assert lines.parallel == (kind == "parallel_lines")


@EVERY
def test_parallel_band_has_the_chords_slope_and_touches(name: str) -> None:
    activation, where = ACTIVATIONS[name], MODERATE
    lines = activation.parallel_lines(where.lower, where.upper)
    values, width = activation.forward(where.grid), where.upper - where.lower
    wide = width > 1e-3
    rise = values[-1] - values[0]
    torch.testing.assert_close(lines.upper_slope[wide] * width[wide], rise[wide], rtol=1e-9, atol=1e-9)
    step = width / (len(where.grid) - 1)  # a point of contact lies at most one step from the grid
    slack = 1e-9 + 2.5 * step
    # for a smooth function the distance grows with the square only
    slack = slack if isinstance(activation, PiecewiseLinear) else 1e-9 + step**2
    over = (_at(lines.upper_slope, lines.upper_intercept, where.grid) - values).amin(0)
    under = (values - _at(lines.lower_slope, lines.lower_intercept, where.grid)).amin(0)
    assert bool((over <= slack).all()), over.max()
    assert bool((under <= slack).all()), under.max()


@EVERY
def test_interval_is_the_range_on_the_grid(name: str) -> None:
    for where in (MODERATE, FAR):
        activation = ACTIVATIONS[name]
        low, high = activation.interval(where.lower, where.upper)
        values = activation.forward(where.grid)
        assert bool((low <= values.amin(0) + 1e-12).all()) and bool((high >= values.amax(0) - 1e-12).all())
        step = (where.upper - where.lower) / (len(where.grid) - 1)
        slack = 1e-9 * (1 + where.upper.abs() + where.lower.abs()) + 2 * step
        assert bool((values.amin(0) - low <= slack).all()) and bool((high - values.amax(0) <= slack).all())


@EVERY
def test_degenerate_intervals_are_exact(name: str) -> None:
    activation = ACTIVATIONS[name]
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)
    value = activation.forward(z)
    for lines in (activation.parallel_lines(z, z), activation.adaptive_lines(z, z)):
        torch.testing.assert_close(_at(lines.lower_slope, lines.lower_intercept, z), value, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(_at(lines.upper_slope, lines.upper_intercept, z), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.stack(activation.interval(z, z)), torch.stack([value, value]))


@EVERY
def test_closed_means_affine_and_then_the_lines_are_the_function(name: str) -> None:
    activation, where = ACTIVATIONS[name], MODERATE
    closed = activation.linear_on(where.lower, where.upper)
    lower, upper, grid = where.lower[closed], where.upper[closed], where.grid[:, closed]
    values = activation.forward(grid)
    for lines in (activation.parallel_lines(lower, upper), activation.adaptive_lines(lower, upper)):
        assert bool((_at(lines.upper_slope, lines.upper_intercept, grid) <= values + 1e-9).all())
        assert bool((_at(lines.lower_slope, lines.lower_intercept, grid) >= values - 1e-9).all())
    if isinstance(activation, PiecewiseLinear):
        inside = torch.zeros_like(closed)
        for knot in activation.knots:
            inside |= (where.lower < knot - 1e-3) & (where.upper > knot + 1e-3)
        assert bool(closed.any()) and not bool((closed & inside).any())
        lines = activation.parallel_lines(where.lower[inside], where.upper[inside])
        below = 0.0 if lines.lower_intercept is None else lines.lower_intercept
        assert bool((lines.upper_intercept - below > 1e-6).all())  # an open neuron has a gap


@EVERY
def test_adaptive_lines_are_no_worse_than_the_chords_band_at_the_middle(name: str) -> None:
    activation, where = ACTIVATIONS[name], MODERATE
    middle = (where.lower + where.upper) / 2
    one, two = activation.adaptive_lines(where.lower, where.upper), activation.parallel_lines(where.lower, where.upper)
    upper_gain = _at(two.upper_slope, two.upper_intercept, middle) - _at(one.upper_slope, one.upper_intercept, middle)
    lower_gain = _at(one.lower_slope, one.lower_intercept, middle) - _at(two.lower_slope, two.lower_intercept, middle)
    assert bool((upper_gain >= -1e-9).all()) and bool((lower_gain >= -1e-9).all())


@pytest.mark.parametrize("name", ["relu", "leaky", "abs"])
def test_lower_line_of_a_convex_function_supports_it(name: str) -> None:
    activation, where = ACTIVATIONS[name], MODERATE
    assert isinstance(activation, PiecewiseLinear)
    lines = activation.adaptive_lines(where.lower, where.upper)
    least, most = activation.slopes
    assert bool(((lines.lower_slope >= least - 1e-9) & (lines.lower_slope <= most + 1e-9)).all())
    points = torch.cat([where.grid, torch.zeros_like(where.lower).clamp(where.lower, where.upper).unsqueeze(0)])
    gap = activation.forward(points) - _at(lines.lower_slope, lines.lower_intercept, points)
    assert bool((gap.amin(0).abs() <= 1e-9).all())
    # above, the chord is the best line
    chord = activation.parallel_lines(where.lower, where.upper)
    for end in (where.lower, where.upper):
        expected = _at(chord.upper_slope, chord.upper_intercept, end)
        torch.testing.assert_close(_at(lines.upper_slope, lines.upper_intercept, end), expected, rtol=1e-9, atol=1e-9)


def test_relu_closed_forms_equal_the_general_rule() -> None:
    relu, general = ReLU(), PiecewiseLinear((0.0,), (0.0, 1.0))
    lower, upper = MODERATE.lower, MODERATE.upper
    torch.testing.assert_close(torch.stack(relu.interval(lower, upper)), torch.stack(general.interval(lower, upper)))
    for kind in ("parallel_lines", "adaptive_lines"):
        fast, slow = getattr(relu, kind)(lower, upper), getattr(general, kind)(lower, upper)
        proper = upper > lower
        torch.testing.assert_close(fast.upper_slope[proper], slow.upper_slope[proper], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast.upper_intercept, slow.upper_intercept, rtol=1e-9, atol=1e-9)
        assert fast.lower_intercept is None
        torch.testing.assert_close(slow.lower_intercept, torch.zeros_like(lower), rtol=1e-9, atol=1e-9)
        tie = ((upper + lower).abs() < 1e-9) | (upper - lower < 1e-9)  # then several slopes are equally good
        torch.testing.assert_close(fast.lower_slope[~tie], slow.lower_slope[~tie], rtol=1e-9, atol=1e-9)


def test_relu_slopes_are_the_papers() -> None:
    lower = torch.tensor([-1.0, -3.0, -1.0, 0.5, -2.0, 0.0, -1.0, 0.0], dtype=torch.float64)
    upper = torch.tensor([3.0, 1.0, 1.0, 2.0, -0.5, 1.0, 0.0, 0.0], dtype=torch.float64)
    parallel, adaptive = ReLU().parallel_lines(lower, upper), ReLU().adaptive_lines(lower, upper)
    alpha = torch.tensor([0.75, 0.25, 0.5, 1, 0, 1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(parallel.upper_slope, alpha)
    torch.testing.assert_close(parallel.upper_intercept, torch.tensor([0.75, 0.75, 0.5, 0, 0, 0, 0, 0]).double())
    torch.testing.assert_close(adaptive.upper_slope, alpha)
    expected = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(adaptive.lower_slope, expected)


@EVERY
def test_not_a_number_stays_one(name: str) -> None:
    activation = ACTIVATIONS[name]
    nan, inf = float("nan"), float("inf")
    lower = torch.tensor([nan, nan, -1.0, nan, 1.0, -inf], dtype=torch.float64)
    upper = torch.tensor([nan, 2.0, nan, -1.0, nan, inf], dtype=torch.float64)
    low, high = activation.interval(lower[:5], upper[:5])
    assert bool((torch.isnan(low) | torch.isnan(high)).all())
    for lines in (activation.parallel_lines(lower, upper), activation.adaptive_lines(lower, upper)):
        for c in (1.0, -1.0, 0.0):  # what any functional makes of it, whatever the sign of its coefficient
            chosen = lines.upper_slope if c < 0 else lines.lower_slope
            bound = c * chosen + min(c, 0.0) * lines.upper_intercept
            if lines.lower_intercept is not None:
                bound = bound + max(c, 0.0) * lines.lower_intercept
            assert bool(torch.isnan(bound).all()), (c, bound)


def test_an_overflow_proves_nothing() -> None:
    # u - l is infinite in float32: a slope of 0 would make the upper line of ReLU 0
    lower, upper = torch.tensor([-3e38]), torch.tensor([3e38])
    for activation in (ReLU(), PiecewiseLinear((0.0,), (0.1, 1.0))):
        for lines in (activation.parallel_lines(lower, upper), activation.adaptive_lines(lower, upper)):
            above = _at(lines.upper_slope, lines.upper_intercept, upper)
            assert not bool(above < upper)


@pytest.mark.parametrize("name", [name for name, one in ACTIVATIONS.items() if isinstance(one, Smooth)])
def test_derivative_is_the_derivative(name: str) -> None:
    activation = ACTIVATIONS[name]
    assert isinstance(activation, Smooth)
    z = torch.linspace(-6, 6, 241, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(activation.forward(z).sum(), z)
    torch.testing.assert_close(activation.derivative(z.detach()), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gelu", "gelu-tanh", "silu"])
def test_the_derivative_is_monotone_between_the_bends(name: str) -> None:
    activation = ACTIVATIONS[name]
    assert isinstance(activation, Gated)
    for left, right, sign in (
        (-30, -activation.bend, -1),
        (-activation.bend, activation.bend, 1),
        (activation.bend, 30, -1),
    ):
        slopes = activation.derivative(torch.linspace(left, right, 4001, dtype=torch.float64))
        assert bool((sign * slopes.diff() >= -1e-14).all())


@EVERY
@given(middle=st.floats(-5, 5), width=st.floats(1e-3, 10), slope=st.floats(-2, 2))
def test_band_of_any_slope_is_the_tightest(name: str, middle: float, width: float, slope: float) -> None:
    activation = ACTIVATIONS[name]
    lower, upper, incline = torch.tensor([[middle - width / 2], [middle + width / 2], [slope]], dtype=torch.float64)
    low, high = activation.band(lower, upper, incline)
    points = torch.linspace(lower.item(), upper.item(), 2001, dtype=torch.float64)
    rest = activation.forward(points) - slope * points
    step = width / 2000
    assert rest.min() - 4 * step <= low + 1e-12 and low <= rest.min() + 1e-9
    assert rest.max() + 4 * step >= high - 1e-12 and high >= rest.max() - 1e-9
