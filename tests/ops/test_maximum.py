"""The two linear functions that enclose a maximum: sound at every corner and inside, exact where one element wins."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ironbound.ops.operator import Lines
from ironbound.ops.piecewise import Maximum


def _points(lower: Tensor, upper: Tensor, count: int = 400) -> Tensor:
    """[points, windows, window]: all corners and random points."""
    window = lower.shape[-1]
    corners = torch.tensor(list(product((0.0, 1.0), repeat=window)), dtype=torch.float64).unsqueeze(1)
    inside = torch.rand(count, *lower.shape, dtype=torch.float64)
    share = torch.cat([corners.expand(-1, *lower.shape), inside])
    return lower + share * (upper - lower)


def _at(slope: Tensor, intercept: Tensor | None, points: Tensor) -> Tensor:
    return (slope * points).sum(-1) + (0.0 if intercept is None else intercept)


def _check(lower: Tensor, upper: Tensor) -> Lines:
    lines = Maximum().lines(lower, upper)
    assert lines.lower_slope.shape == lines.upper_slope.shape == lower.shape
    assert lines.upper_intercept.shape == lower.shape[:-1]
    points = _points(lower, upper)
    value = points.amax(-1)
    assert bool((_at(lines.lower_slope, lines.lower_intercept, points) <= value + 1e-9).all())
    assert bool((_at(lines.upper_slope, lines.upper_intercept, points) >= value - 1e-9).all())
    return lines


@pytest.mark.parametrize("window", [1, 2, 4, 6])
def test_lines_enclose_the_maximum(window: int) -> None:
    lower = torch.randn(300, window, dtype=torch.float64)
    for width in (0.0, 1e-6, 0.3, 3.0):
        _check(lower, lower + width * torch.rand(300, window, dtype=torch.float64))


def test_ties_and_duplicates() -> None:
    rows = [
        ([0.0, 0.0], [1.0, 1.0]),  # the same interval twice, as a gather on the border makes them
        ([0.0, 0.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 1.0]),
        ([0.0, -1.0], [1.0, 0.0]),  # decided, touching
        ([1.0, 0.0], [1.0, 1.0]),
        ([-2.0, -2.0], [-1.0, -1.0]),
        ([0.0, -5.0], [1.0, 9.0]),
    ]
    lower = torch.tensor([row[0] for row in rows], dtype=torch.float64)
    upper = torch.tensor([row[1] for row in rows], dtype=torch.float64)
    _check(lower, upper)
    # duplicates of one and the same element: the lines hold on the diagonal, and enclose it
    lines = Maximum().lines(lower[:1], upper[:1])
    z = torch.linspace(0, 1, 11, dtype=torch.float64)
    both = torch.stack([z, z], -1)
    assert bool((_at(lines.lower_slope, lines.lower_intercept, both) <= z + 1e-12).all())
    assert bool((_at(lines.upper_slope, lines.upper_intercept, both) >= z - 1e-12).all())


def test_a_decided_window_is_its_element() -> None:
    lower = torch.tensor([[0.0, -3.0, -2.0], [-1.0, 4.0, 0.0]], dtype=torch.float64)
    upper = torch.tensor([[1.0, -0.5, 0.0], [2.0, 6.0, 3.9]], dtype=torch.float64)
    lines = _check(lower, upper)
    winner = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(lines.upper_slope, winner)
    torch.testing.assert_close(lines.lower_slope, winner)
    torch.testing.assert_close(lines.upper_intercept, torch.zeros(2, dtype=torch.float64))


def test_two_elements_with_one_interval_have_the_relus_chord() -> None:
    # max(z1, z2) = z2 + relu(z1 - z2); for [0, 1]² the flat line 1 and the chord sum differ nowhere at the middle
    lower, upper = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    lines = _check(lower, upper)
    assert _at(lines.upper_slope, lines.upper_intercept, (lower + upper) / 2).item() <= 1 + 1e-12


def test_interval_is_exact() -> None:
    lower = torch.randn(50, 3, dtype=torch.float64)
    upper = lower + torch.rand(50, 3, dtype=torch.float64)
    low, high = Maximum().interval(lower, upper)
    points = _points(lower, upper, 10).amax(-1)
    torch.testing.assert_close(low, points.amin(0))
    torch.testing.assert_close(high, points.amax(0))


@pytest.mark.parametrize("broken", ["lower", "upper", "both"])
def test_not_a_number_stays_one(broken: str) -> None:
    lower, upper = torch.zeros(1, 3), torch.ones(1, 3)
    if broken != "upper":
        lower[0, 1] = float("nan")
    if broken != "lower":
        upper[0, 1] = float("nan")
    lines = Maximum().lines(lower, upper)
    assert bool(torch.isnan(lines.upper_intercept).all())
    assert lines.lower_intercept is not None and bool(torch.isnan(lines.lower_intercept).all())
    low, high = Maximum().interval(lower, upper)
    assert bool(torch.isnan(low + high).all())


def test_an_overflow_proves_nothing() -> None:
    lower, upper = torch.tensor([[-3e38, -1.0]]), torch.tensor([[3e38, 0.0]])
    lines = Maximum().lines(lower, upper)
    assert not bool(_at(lines.upper_slope, lines.upper_intercept, upper) < 3e38)
