"""Bounds of tiny networks and the exact answer: bound <= triangle LP on its inner bounds <= exact <= any point."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.regions import ball as region_ball
from laws.exact import exact_minimum, triangle_minimum
from laws.writeup import ball, dense_layers, interval_bounds

TINY = {
    "dense": (lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), (2,)),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 1, 3, 2, 1), nn.ReLU(), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)
        ),
        (1, 3, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "clipped", "l1"])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.no_cover
def test_bound_relaxation_exact_point_are_in_order(name: str, norm: str) -> None:
    build, shape = TINY[name]
    gaps = []
    for seed in range(4):
        torch.manual_seed(seed)
        model = build().double().eval()
        for tensor in model.parameters():
            tensor.data.mul_(2 if tensor.dim() > 1 else 0.2)
        layers = dense_layers(model, shape)
        x = torch.rand(1, *shape, dtype=torch.float64) * 0.6
        eps, clip = {"linf": (0.3, None), "clipped": (0.5, (0.0, 1.0)), "l1": (0.6, None)}[norm]
        kind = "l1" if norm == "l1" else "linf"
        region = region_ball(kind, x, eps, clip)
        one = ball(kind, x.flatten(), torch.full((x[0].numel(),), eps, dtype=torch.float64), clip)
        graph = capture(model, x)
        many = region[torch.zeros(4000, dtype=torch.int64)]
        logits = graph(many.sample()).detach()
        inner = interval_bounds(layers, one)
        eye = torch.eye(3, dtype=torch.float64)
        exact = torch.tensor(
            [0.0, *(exact_minimum(layers, one, inner, eye[0] - eye[k]) for k in (1, 2))], dtype=torch.float64
        )
        sampled = (logits[:, :1] - logits).amin(0)
        assert bool((exact <= sampled + 1e-7).all())
        for method in METHODS:
            with torch.no_grad():
                found = margins(graph, region, torch.tensor([0]), method)[0]
                layer_bounds = bounds(graph, region, method).layers.values()
            assert bool((found <= exact + 1e-7).all()), method
            flat = [(low.flatten(), high.flatten()) for low, high in layer_bounds]
            relaxed = torch.tensor(
                [0.0, *(triangle_minimum(layers, one, flat, eye[0] - eye[k]) for k in (1, 2))], dtype=torch.float64
            )
            assert bool((found <= relaxed + 1e-7).all()), method
            assert bool((relaxed <= exact + 1e-7).all()), method
            gaps.append((exact - found).max().item())
    assert max(gaps) > 1e-3  # the networks are not so easy that every bound is exact


def test_bounds_without_open_neurons_are_exact() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    x = torch.rand(1, 3, dtype=torch.float64)
    layers = dense_layers(model, (3,))
    for kind in ("linf", "l1"):
        region, one = region_ball(kind, x, 1e-3), ball(kind, x[0], torch.full((3,), 1e-3, dtype=torch.float64), None)
        inner = interval_bounds(layers, one)
        assert all(bool(((low >= 0) | (high <= 0)).all()) for low, high in inner[:-1])
        for target in (1, 2):
            c = torch.eye(3, dtype=torch.float64)[0] - torch.eye(3, dtype=torch.float64)[target]
            exact = exact_minimum(layers, one, inner, c)
            for method in ("dual", "dual+interval", "crown", "crown-ibp"):
                found = margins(model, region, torch.tensor([0]), method)[0, target]
                assert abs(found.item() - exact) < 1e-8, (kind, method)
