"""Laws of regions: what is inside, where the support function is attained, what is refused."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from ironbound.errors import InputError
from ironbound.regions import REGIONS, Box, L1Ball, L2Ball, LinfBall, Region, ball

NORMS = sorted(REGIONS)
RADII = ("number", "example", "element")
CLIPS = (None, (0.0, 1.0), (0.1, 0.9))
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def make(norm: str, eps: str | float, clip: tuple[float, float] | None, dtype: torch.dtype = torch.float32) -> Region:
    generator = torch.Generator().manual_seed(3)
    low, high = clip or (0.0, 1.0)
    x = (torch.rand((20, 2, 3, 3), generator=generator, dtype=dtype) * 1.4 - 0.2).clamp(0, 1) * (high - low) + low
    radius: float | Tensor = eps if isinstance(eps, float) else 0.3
    if eps == "example":
        radius = torch.rand(20, generator=generator, dtype=dtype)
    if eps == "element":
        radius = torch.rand(x.shape, generator=generator, dtype=dtype) - 0.2
        radius = radius.clamp(min=0)  # some elements cannot move at all
    return ball(norm, x.clamp(low, high), radius, clip)


def make_box() -> Box:
    lower = torch.randn(20, 2, 3, 3)
    return Box(lower, lower + torch.rand_like(lower).round(decimals=1))


def regions() -> list[Region]:
    found = [make(norm, eps, clip) for norm in NORMS for eps in (*RADII, 1e-3, 0.0) for clip in CLIPS]
    return [*found, make_box()]


@pytest.mark.parametrize("region", regions(), ids=lambda region: f"{region.norm}-{region.clip}")
def test_samples_and_projections_are_inside(region: Region) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sample = region.sample(generator)
        assert region.contains(sample).all()
        noise = torch.randn(region.center.shape, generator=generator) * 10 ** (
            4 * torch.rand((), generator=generator) - 3
        )
        projected = region.project(region.center + noise)
        assert projected.dtype == region.dtype
        assert region.contains(projected).all()
        assert region.contains(region.project(region.center + region.ascent(noise, 1.0))).all()
    assert region.contains(region.center).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_projection_never_leaves_the_exact_ball(norm: str, dtype: torch.dtype) -> None:
    """Not by one rounding error: computed in float64 without the tolerance of `contains`."""
    region = make(norm, 1e-3, None, dtype)
    delta = (region.project(region.center + torch.randn_like(region.center)).double() - region.center.double()).flatten(
        1
    )
    radius = torch.tensor(1e-3, dtype=dtype).item()
    assert (delta.norm(p=ORDER[norm], dim=1) <= radius * (1 + 1e-12)).all()
    assert (delta.norm(p=ORDER[norm], dim=1) >= radius * (1 - 1e-3)).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_points_outside_are_rejected(norm: str, eps: float) -> None:
    region = make(norm, eps, None)
    direction = torch.randn(region.center.shape)
    unit = direction / direction.flatten(1).norm(p=ORDER[norm], dim=1).reshape(-1, 1, 1, 1)
    assert region.contains(region.center + unit * eps * (1 - 1e-4)).all()
    assert not region.contains(region.center + unit * eps * (1 + 1e-4)).any()


@pytest.mark.parametrize("region", [make(norm, 0.5, (0.0, 1.0)) for norm in NORMS], ids=NORMS)
def test_points_outside_the_clipping_range_are_rejected(region: Region) -> None:
    points = region.center.clone()
    points[::2, 0, 0, 0] = 1 + 1e-4
    points[1::2, 0, 0, 0] = -1e-4
    assert not region.contains(points).any()


@pytest.mark.parametrize("region", [*(make(norm, "number", clip) for norm in NORMS for clip in CLIPS), make_box()])
def test_nan_and_infinity_are_never_inside(region: Region) -> None:
    for value in (math.nan, math.inf, -math.inf):
        points = region.center.clone()
        points[:, 1, 2, 2] = value
        assert not region.contains(points).any()


@pytest.mark.parametrize("norm", NORMS)
def test_an_element_without_radius_cannot_move(norm: str) -> None:
    region = ball(norm, torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
    assert not region.contains(torch.tensor([[1e-4, 0.0]])).item()
    assert region.contains(torch.tensor([[0.0, 1.0]])).item()
    assert region.project(torch.tensor([[5.0, 5.0]])).tolist() == [[0.0, 1.0]]


def test_boxes_contain_their_ends_and_nothing_beyond() -> None:
    box = make_box()
    assert box.contains(box.lower).all() and box.contains(box.upper).all()
    beyond = box.upper.clone()
    beyond[:, 0, 0, 0] = torch.nextafter(beyond[:, 0, 0, 0], torch.tensor(math.inf))
    assert not box.contains(beyond).any()


def test_projection_onto_the_l1_ball_is_the_nearest_point() -> None:
    """Against brute force: no point of a dense grid of the ball's border is nearer."""
    region = L1Ball(torch.zeros(1, 2), 1.0)
    side = torch.linspace(0, 1, 2001)
    border = torch.cat([torch.stack([s * side, t * (1 - side)], 1) for s in (-1, 1) for t in (-1, 1)])
    for point in torch.randn(50, 2) * 2:
        if point.abs().sum() > 1:
            distance = (region.project(point[None]) - point).norm()
            assert distance <= (border - point).norm(dim=1).min() + 1e-6


# --- support functions: closed forms written down again, sampling, and the maximiser ---


def support(region: Region, c: Tensor) -> Tensor:
    """Largest c · (x' - center) by the sets of a region: the least over its sets."""
    values = []
    for part in region.sets():
        radius = part.radius.expand(c.shape)
        reach = (c * radius).flatten(1).norm(p=part.dual, dim=1)
        values.append(reach if part.offset is None else reach + (c * part.offset).flatten(1).sum(1))
    return torch.stack(values).amin(0)


@pytest.mark.parametrize("region", regions(), ids=lambda region: f"{region.norm}-{region.clip}")
def test_no_point_passes_the_support_function(region: Region) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        c = torch.randn(region.center.shape, generator=generator)
        limit = support(region, c)
        best = region.project(region.center + region.ascent(c, 1.0))
        corner = region.project(region.center + 100 * c)
        for points in (best, corner, region.sample(generator)):
            reached = (c * (points - region.center)).flatten(1).sum(1)
            assert (reached <= limit + 1e-5).all()


@pytest.mark.parametrize("region", [*(make(norm, eps, None) for norm in NORMS for eps in RADII), make_box()])
def test_the_support_function_is_attained(region: Region) -> None:
    c = torch.randn(region.center.shape)
    if region.norm == "l1":  # `ascent` shares the step among nearly equal elements: leave no ties
        c[:, 0, 0, 0] = 1e3 * (region.box()[1] > region.center)[:, 0, 0, 0] + c[:, 0, 0, 0]
    points = region.center + region.ascent(c, 1.0)
    assert region.contains(region.project(points)).all()
    reached = (c * (region.project(points) - region.center)).flatten(1).sum(1)
    torch.testing.assert_close(reached, support(region, c), rtol=1e-3, atol=1e-5)


def test_support_functions_equal_their_closed_forms() -> None:
    x, c = torch.tensor([[0.5, 0.2]]), torch.tensor([[3.0, -4.0]])
    assert support(LinfBall(x, 0.1), c).item() == pytest.approx(0.7)
    assert support(L2Ball(x, 0.1), c).item() == pytest.approx(0.5)
    assert support(L1Ball(x, 0.1), c).item() == pytest.approx(0.4)
    assert support(Box(x - torch.tensor([[0.1, 0.0]]), x + 0.3), c).item() == pytest.approx(3 * 0.2 + 4 * 0.15)
    # the second element may fall by 0.2 only, so the box contributes 3 * 0.4 + 4 * 0.2
    assert support(LinfBall(x, 0.4, (0, 1)), c).item() == pytest.approx(2.0)
    assert support(L2Ball(x, 0.4, (0, 1)), c).item() == pytest.approx(2.0)
    assert support(L1Ball(x, 0.4, (0, 1)), c).item() == pytest.approx(1.6)
    assert support(L2Ball(x, torch.tensor([[1.0, 0.5]])), c).item() == pytest.approx(math.hypot(3, 2))


@pytest.mark.parametrize("eps", [0.1, 0.4, 0.9])
def test_clipped_linf_is_exact(eps: float) -> None:
    """Against the maximum over the corners, element by element."""
    region = make("linf", eps, (0.0, 1.0))
    c = torch.randn(region.center.shape)
    corner = torch.where(c > 0, (region.center + eps).clamp(max=1), (region.center - eps).clamp(min=0))
    assert region.contains(corner).all()
    torch.testing.assert_close(support(region, c), (c * (corner - region.center)).flatten(1).sum(1))


@pytest.mark.parametrize("region", regions(), ids=lambda region: f"{region.norm}-{region.clip}")
def test_the_box_is_the_smallest_around_the_region(region: Region) -> None:
    lower, upper = region.box()
    for _ in range(5):
        sample = region.sample()
        assert ((sample >= lower - 1e-6) & (sample <= upper + 1e-6)).all()
    for end, sign in ((lower, -1.0), (upper, 1.0)):  # each end is reached, one element at a time
        reach = torch.zeros_like(region.center)
        reach[:, 1, 1, 1] = sign * 1e4
        reached = region.project(region.center + reach)[:, 1, 1, 1]
        torch.testing.assert_close(reached, end[:, 1, 1, 1], rtol=0, atol=1e-5)


@given(
    norm=st.sampled_from(NORMS),
    x=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6),
    eps=st.floats(0, 2, width=32, allow_subnormal=False),
    scale=st.floats(1e-3, 1e3),
    clipped=st.booleans(),
)
def test_projection_lands_inside_and_keeps_what_is_inside(
    norm: str, x: list[float], eps: float, scale: float, clipped: bool
) -> None:
    center = torch.tensor([x])
    region = ball(norm, center, eps, (0, 1) if clipped else None)
    projected = region.project(center + scale * torch.randn_like(center))
    assert region.contains(projected).all()
    torch.testing.assert_close(region.project(projected), projected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("region", [make(norm, eps, (0.0, 1.0)) for norm in NORMS for eps in RADII] + [make_box()])
def test_a_part_of_a_region_is_the_region_of_the_part(region: Region) -> None:
    mask = torch.arange(20) % 3 == 0
    for index in (slice(4, 9), torch.tensor([7, 7, 0]), mask, torch.zeros(20, dtype=torch.bool)):
        part = region[index]
        assert len(part) == len(region.center[index])
        assert type(part) is type(region) and part.clip == region.clip
        for have, want in zip(part.box(), region.box(), strict=True):
            assert torch.equal(have, want[index])


@pytest.mark.parametrize("region", [make(norm, eps, (0.0, 1.0)) for norm in NORMS for eps in RADII] + [make_box()])
def test_conversion_keeps_the_region(region: Region) -> None:
    other = region.to(torch.float64)
    assert other.dtype == torch.float64
    for have, want in zip(other.box(), region.box(), strict=True):
        torch.testing.assert_close(have, want.double(), rtol=0, atol=1e-6)


def test_a_description_names_norm_radius_clipping_and_unit() -> None:
    x = torch.zeros(2, 3)
    described = L2Ball(x, 0.5, (0, 1)).describe()
    assert {"norm": "l2", "eps": 0.5, "clip": [0.0, 1.0]}.items() <= described.items() and described["unit"]
    assert LinfBall(x, torch.tensor([0.25, 0.5])).describe()["eps"] == [0.25, 0.5]
    assert Box(x, x).describe()["norm"] == "box"


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_tiny_gradient_makes_a_full_step(norm: str) -> None:
    region = ball(norm, torch.zeros(1, 50), 0.5)
    gradient = torch.randn(1, 50)
    torch.testing.assert_close(region.ascent(gradient * 1e-30, 1.0), region.ascent(gradient, 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_makes_no_step(norm: str) -> None:
    assert torch.equal(ball(norm, torch.ones(2, 3), 0.5).ascent(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))


X = torch.full((4, 3), 0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("x", "eps", "clip", "message"),
    [
        (X, -0.1, None, "negative"),
        (X, math.nan, None, "NaN"),
        (X, math.inf, None, "infinite"),
        (X, 1e9, None, "huge"),
        (X, torch.tensor([0.1, 0.1, -0.1, 0.1]), None, "negative"),
        (X, torch.tensor([0.1, 0.1, math.nan, 0.1]), None, "NaN"),
        (X, torch.zeros(3), None, "one per example"),
        (X, torch.zeros(4, 2), None, "one per element"),
        (X, torch.zeros(4, 3, 1), None, "one per element"),
        (X.long(), 0.1, None, "floating point"),
        (X.bool(), 0.1, None, "floating point"),
        (X[0], 0.1, None, "batch axis"),
        (X / 0, 0.1, None, "NaN or infinity"),
        (X * math.nan, 0.1, None, "NaN or infinity"),
        (X, 0.1, (0.6, 1.0), "leave the clipping range"),
        (X, 0.1, (0.0, 0.4), "leave the clipping range"),
        (X, 0.1, (1.0, 0.0), "low < high"),
        (X, 0.1, (0.5, 0.5), "low < high"),
        (X, 0.1, (0.0, math.nan), "low < high"),
        (X, 0.1, (0.0,), "low < high"),
    ],
)
def test_what_does_not_fit_is_refused(norm: str, x: Tensor, eps: float | Tensor, clip: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ball(norm, x, eps, clip)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [(X, X - 0.1), (X, X[:2]), (X.long(), X), (X, X * math.nan), (X, X / 0), (X.double(), X), (X[0], X[0])],
)
def test_a_box_that_is_none_is_refused(lower: Tensor, upper: Tensor) -> None:
    with pytest.raises(InputError):
        Box(lower, upper)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(InputError, match="l1, l2|linf, l2"):
        ball("l3", X, 0.1)
