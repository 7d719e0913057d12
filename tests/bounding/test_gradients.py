"""Bounds are differentiable: analytic gradients equal differences, and asking for them changes no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import Case
from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.regions import L1Ball, L2Ball, LinfBall, ball
from laws.families import FAMILIES, TwoReaders


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 2, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
    )  # fmt: skip


def _dense() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 8), nn.LeakyReLU(0.2), nn.Linear(8, 3))


NETWORKS = {"convolutional": (_convolutional, (1, 4, 4)), "dense": (_dense, (2,)), "two-readers": (TwoReaders, (4,))}


@pytest.mark.parametrize("method", ["interval", "dual", "dual+interval", "crown", "crown-ibp"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_differences(name: str, method: str) -> None:
    build, shape = NETWORKS[name]
    model = build().double().eval()
    x = torch.rand(2, *shape, dtype=torch.float64, requires_grad=True)
    graph = capture(model, x)
    parameters = list(model.parameters())
    mix = torch.randn(2, 3, dtype=torch.float64)
    for norm, eps in (("linf", 0.11), ("l2", 0.3), ("l1", 0.4)):

        def value(center: Tensor, *_: Tensor, norm: str = norm, eps: float = eps) -> Tensor:
            region = ball(norm, center, eps)
            found = bounds(graph, region, method)
            margin = margins(graph, region, torch.tensor([0, 2]), method)
            return (margin * mix).sum() + (found.lower * mix).sum() - (found.upper * mix).sum()

        # one random direction in all parameters and the center at once
        directions = [torch.randn_like(tensor) for tensor in (x, *parameters)]
        gradients = torch.autograd.grad(value(x), [x, *parameters])
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        step, ends = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for tensor, direction in zip(parameters, directions[1:], strict=True):
                    tensor.add_(sign * step * direction)
                ends.append(value(x.detach() + sign * step * directions[0]))
                for tensor, direction in zip(parameters, directions[1:], strict=True):
                    tensor.sub_(sign * step * direction)
        torch.testing.assert_close(torch.as_tensor(slope), (ends[0] - ends[1]) / (2 * step), rtol=2e-5, atol=2e-5)


def test_gradcheck_of_dual_margins() -> None:
    model = _convolutional().double().eval()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    eps = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    graph = capture(model, x)

    def value(center: Tensor, radius: Tensor, *_: Tensor) -> Tensor:
        return margins(graph, LinfBall(center, radius), torch.tensor([1]))

    assert torch.autograd.gradcheck(value, (x, eps, *model.parameters()), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@pytest.mark.no_cover
def test_values_are_the_same_with_and_without_gradients(case: Case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    region, labels = LinfBall(x, 0.1), torch.tensor([0, 1, 2])
    for method in METHODS:
        with_gradients = margins(model, region, labels, method)
        assert with_gradients.requires_grad
        with torch.no_grad():
            without = margins(model, region, labels, method)
            assert not without.requires_grad
        with torch.inference_mode():
            inferred = margins(model, region, labels, method)
        torch.testing.assert_close(with_gradients.detach(), without, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(inferred.clone(), without, rtol=1e-10, atol=1e-10)
        gradients = torch.autograd.grad(with_gradients.sum(), list(model.parameters()), allow_unused=True)
        assert all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite_at_radius_zero_and_at_rows_of_zeros(method: str) -> None:
    # an ε ramp begins at 0, and pruned rows are 0: the square root of the l2 norm has no derivative there
    for model, shape in ((_dense(), (2,)), (_convolutional(), (1, 4, 4))):
        model = model.double().eval()
        with torch.no_grad():
            model[0].weight[0] = 0
            model[0].bias[1] = 0
            model[0].weight[1] = 0
        x = torch.rand(2, *shape, dtype=torch.float64)
        for region in (L2Ball(x, 0.0), L2Ball(x, 0.2), LinfBall(x, 0.0), L1Ball(x, 0.0), L2Ball(x, 0.3, (0.0, 1.0))):
            margin = margins(model, region, torch.tensor([0, 1]), method)
            for gradient in torch.autograd.grad(margin.sum(), list(model.parameters())):
                assert bool(torch.isfinite(gradient).all())
