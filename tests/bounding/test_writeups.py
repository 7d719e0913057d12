"""Every method equals a dense write-up of its paper, in float64, on dense and on convolutional networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.regions import Box, Region
from ironbound.regions import ball as region_ball
from laws.writeup import Input, Layers, Set, ball, dense_layers, objective

NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "narrow": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)), (6,)),
    "wide": (lambda: nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 14), nn.ReLU(), nn.Linear(14, 4)), (3,)),
    "normalised": (
        lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)),
        (4,),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 4),
        ),
        (1, 8, 8),
    ),
    "deep": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), nn.ReLU(),
            nn.Conv2d(4, 4, 3, 1, 2, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
        ),
        (2, 7, 5),
    ),
}  # fmt: skip
WRITTEN_UP = tuple(method for method in METHODS if not method.startswith("alpha"))  # those have other formulas
KINDS = ("linf", "linf clipped", "linf per example", "linf per element", "l2", "l2 clipped", "l2 per element")
KINDS += ("l1", "l1 clipped", "l1 per example", "box")


def _network(name: str) -> tuple[nn.Sequential, tuple[int, ...], Layers]:
    build, shape = NETWORKS[name]
    model = build().double().eval()
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -4, 4)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model, shape, dense_layers(model, shape)


def _regions(kind: str, shape: tuple[int, ...]) -> tuple[Region, list[Input]]:
    """A region of two examples and each of them for the write-up."""
    x = torch.rand(2, *shape, dtype=torch.float64)
    flat = x.flatten(1)
    if kind == "box":
        lower, upper = x - torch.rand_like(x) * 0.4, x + torch.rand_like(x) * 0.4
        ends = list(zip(lower.flatten(1), upper.flatten(1), strict=True))
        return Box(lower, upper), [Input([Set((a + b) / 2, (b - a) / 2, 1)], a, b) for a, b in ends]
    norm, _, how = kind.partition(" ")
    eps: float | Tensor = {"linf": 0.08, "l2": 0.3, "l1": 0.8}[norm] * (1 if len(shape) == 3 else 3)
    clip = (0.0, 1.0) if how == "clipped" else None
    if how == "per example":
        eps = torch.tensor([0.5, 1.5], dtype=torch.float64) * eps
    elif how == "per element":
        eps = 2 * torch.rand_like(x) * eps * (torch.rand_like(x) > 0.2)
    full = torch.as_tensor(eps, dtype=torch.float64)
    full = full.reshape(-1, *(1,) * len(shape)) if full.dim() == 1 else full
    full = full.expand(x.shape).flatten(1)
    return region_ball(norm, x, eps, clip), [ball(norm, a, e, clip) for a, e in zip(flat, full, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_method_equals_its_writeup(name: str, kind: str) -> None:
    model, shape, layers = _network(name)
    region, inputs = _regions(kind, shape)
    graph = capture(model, region.center)
    classes = len(layers[-1][1])
    labels = torch.tensor([0, classes - 1])
    was_open = 0
    for method in WRITTEN_UP:
        with torch.no_grad():
            found = bounds(graph, region, method)
            margin = margins(graph, region, labels, method)
        for example, one in enumerate(inputs):
            expected, lower_bound = objective(method, layers, one)
            eye = torch.eye(classes, dtype=torch.float64)
            torch.testing.assert_close(found.lower[example], lower_bound(eye), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.upper[example], -lower_bound(-eye), rtol=1e-9, atol=1e-9)
            differences = eye[labels[example]] - eye
            torch.testing.assert_close(margin[example], lower_bound(differences), rtol=1e-9, atol=1e-9)
            assert len(found.layers) == len(expected) - 1
            for (low, high), (lower, upper) in zip(found.layers.values(), expected, strict=False):
                low, high = low[example].flatten(), high[example].flatten()
                is_open = (lower < 0) & (upper > 0)
                was_open += int(is_open.sum())
                torch.testing.assert_close(low[is_open], lower[is_open], rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(high[is_open], upper[is_open], rtol=1e-9, atol=1e-9)
                # closed neurons: perhaps wider, but closed on the same side
                assert bool((low <= lower + 1e-9).all()) and bool((high >= upper - 1e-9).all())
                assert bool(((low >= 0) == (lower >= 0)).all()) and bool(((high <= 0) == (upper <= 0)).all())
    assert was_open >= 5  # else the comparison says nothing


def test_two_affine_layers_in_a_row_leave_the_ball() -> None:
    # the rows of the first layer are equal: what they do adds up, as it would not for independent directions
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 2.0]]).expand(4, 3))
        model[1].weight.fill_(1.0)
    for method in METHODS:
        found = bounds(model, region_ball("l2", torch.zeros(1, 3, dtype=torch.float64), 0.5), method)
        low, high = next(iter(found.layers.values()))
        torch.testing.assert_close(high - low, torch.full((1, 2), 2 * 4 * 3 * 0.5, dtype=torch.float64))


def test_what_the_sieves_close_is_what_the_writeup_closes() -> None:
    # large enough for the sieve by kernel position: more than 64 neurons are open after the first one
    model = nn.Sequential(
        nn.Conv2d(1, 6, 4, 2, 1), nn.ReLU(), nn.Conv2d(6, 10, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 3)
    ).double().eval()  # fmt: skip
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    layers = dense_layers(model, (1, 12, 12))
    for norm, eps in (("linf", 0.02), ("l2", 0.2), ("l1", 0.7)):
        region = region_ball(norm, x, eps)
        with torch.no_grad():
            (_, (low, high)) = bounds(model, region).layers.values()
        expected, _ = objective(
            "dual", layers, ball(norm, x.flatten(), torch.full((144,), eps, dtype=torch.float64), None)
        )
        lower, upper = expected[1]
        is_open = (lower < 0) & (upper > 0)
        assert 0 < int(is_open.sum()) < 90
        torch.testing.assert_close(low.flatten()[is_open], lower[is_open], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(high.flatten()[is_open], upper[is_open], rtol=1e-9, atol=1e-9)
        assert bool((((low < 0) & (high > 0)).flatten() == is_open).all())
