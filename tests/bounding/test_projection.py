"""Random projections: estimates that come to the exact dual bound as k grows, and that are no bounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from ironbound.bounding import bounds, margins
from ironbound.bounding.projection import Estimate, _Noise, estimate_margins, projected_state
from ironbound.capture import capture
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region
from laws.families import FAMILIES
from laws.writeup import ball, dense_layers, dual_objective


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 3, 4, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3),
    ).double().eval()  # fmt: skip


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _has_maximum(case: Case) -> bool:
    graph = capture(case.model(), case.inputs())
    return any(type(node.operator).__name__ == "Maximum" for node in graph.nodes)


def _regions(x: Tensor) -> list[Region]:
    each = torch.linspace(0.05, 0.15, len(x), dtype=x.dtype)
    return [
        LinfBall(x, 0.1), LinfBall(x, each), LinfBall(x.sigmoid(), 0.3, (0.0, 1.0)), Box(x - 0.05, x + 0.1),
        L2Ball(x, 0.3), L2Ball(x, 0.3 * torch.rand_like(x)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_many_projections_give_the_dual_bound(case: Case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(2, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    if _has_maximum(case):
        with pytest.raises(UnsupportedOperatorError, match="no parallel relaxation"):
            estimate_margins(model, LinfBall(x, 0.1), labels, 10)
        return
    for number, region in enumerate(_regions(x)):
        with torch.no_grad():
            exact = margins(model, region, labels)
            scale = (margins(model, LinfBall(region.center, 0.0), labels) - exact).abs().max()
            found = estimate_margins(model, region, labels, 4000, generator=_seeded(number)).values
        assert float((found - exact).abs().max()) < 0.15 * float(scale)
        assert bool((found[torch.arange(2), labels] == 0).all())


@pytest.mark.parametrize("estimator", ["median", "geometric"])
@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_the_error_falls_like_one_over_the_root_of_k(make: Callable[..., Region], estimator: str) -> None:
    model, x = _network(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    region, labels = make(x, 0.2 if make is LinfBall else 0.8), torch.arange(4) % 3
    generator, errors = _seeded(), []
    with torch.no_grad():
        exact = margins(model, region, labels)
        for k in (25, 250, 2500):
            off = [
                estimate_margins(model, region, labels, k, None, generator, estimator).values - exact  # type: ignore[arg-type]
                for _ in range(8)
            ]
            errors.append(torch.stack(off).square().mean().sqrt().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_the_scale_of_a_layer_has_the_known_spread() -> None:
    # median of k half-Cauchy samples: standard deviation pi / (2 sqrt k) of the scale (Li et al. 2007); one layer's
    # radius here is the l1 norm of the input's and the first band's shares together
    k, trials = 100, 400
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    x = torch.rand(1, 6, dtype=torch.float64)
    region = LinfBall(x.expand(trials, -1), torch.full((trials,), 0.3, dtype=torch.float64))  # each with its own noise
    graph = capture(model, region.center)
    with torch.no_grad():
        exact = list(projected_state(graph, LinfBall(x, 0.3), 200_001, generator=_seeded(5)).layers.values())[1]
        for estimator in ("median", "geometric"):
            state = projected_state(graph, region, k, None, _seeded(), estimator)  # type: ignore[arg-type]
            first, second = state.layers.values()
            reference = bounds(model, LinfBall(x, 0.3)).layers
            low, high = next(iter(reference.values()))
            torch.testing.assert_close(first[0], low.expand(trials, -1))  # layers on the input are exact
            torch.testing.assert_close(first[1], high.expand(trials, -1))
            ratio = (second[1] - second[0]) / (exact[1] - exact[0])
            spread = math.pi / 2 / math.sqrt(k)
            assert ratio.std(0).mean().item() == pytest.approx(spread, rel=0.1)
            bias = {"median": 0.03, "geometric": 0.015}[estimator]
            assert abs(ratio.mean().item() - 1) < bias


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_the_median_is_that_of_numpy(k: int) -> None:
    samples = torch.randn(3, k, 4, dtype=torch.float64)
    found = _Noise(k, "cauchy", "median", None).radius(samples)
    np.testing.assert_allclose(found.numpy(), np.median(np.abs(samples.numpy()), 1))


@pytest.mark.parametrize("k", [4, 9])
def test_the_geometric_mean_has_no_bias(k: int) -> None:
    samples = 3 * torch.empty(400_000, k, dtype=torch.float64).cauchy_(generator=_seeded())
    found = _Noise(k, "cauchy", "geometric", None).radius(samples)
    assert found.mean().item() == pytest.approx(3, rel=0.02)


def test_an_l2_radius_is_the_root_mean_square() -> None:
    # no band is open: only the input's normal noise counts, and k times its mean square is chi squared
    k, trials = 50, 400
    model = nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    x = torch.rand(1, 6, dtype=torch.float64)
    region = L2Ball(x.expand(trials, -1), torch.full((trials,), 0.3, dtype=torch.float64))
    with torch.no_grad():
        ((low, high),) = projected_state(capture(model, x), region, k, "normal", _seeded()).layers.values()
        exact = 0.3 * (model[2].weight @ model[0].weight).norm(dim=1)
    squares = k * ((high - low) / 2 / exact) ** 2
    assert squares.mean().item() == pytest.approx(k, rel=0.02)
    assert squares.var(0).mean().item() == pytest.approx(2 * k, rel=0.15)


def test_the_last_step_is_the_exact_walk_on_estimated_bounds() -> None:
    model, x = _network(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    layers, labels = dense_layers(model, (1, 8, 8)), torch.tensor([0, 2])
    eye = torch.eye(3, dtype=torch.float64)
    for norm, region in (("linf", LinfBall(x, 0.1)), ("l2", L2Ball(x, 0.3))):
        with torch.no_grad():
            state = projected_state(capture(model, x), region, 11, generator=_seeded(3))
            found = estimate_margins(model, region, labels, 11, generator=_seeded(3)).values
        eps = 0.1 if norm == "linf" else 0.3
        for example in range(2):
            inner = [(low[example].flatten(), high[example].flatten()) for low, high in state.layers.values()]
            one = ball(norm, x[example].flatten(), torch.full((64,), eps, dtype=torch.float64), None)
            inner.append((eye[0], eye[0]))  # of the output, which no formula reads
            expected = dual_objective(layers, one, inner, eye[labels[example]] - eye)
            torch.testing.assert_close(found[example], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["median", "geometric"])
@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_gradients_equal_differences(make: Callable[..., Region], estimator: str) -> None:
    model, x = _network(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    parameters, mix = list(model.parameters()), torch.randn(2, 3, dtype=torch.float64)
    region = make(x, 0.05 if make is LinfBall else 0.2)

    def value() -> Tensor:
        found = estimate_margins(model, region, torch.tensor([0, 2]), 10, None, _seeded(4), estimator)  # type: ignore[arg-type]
        return (found.values * mix).sum()

    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((g * v).sum() for g, v in zip(torch.autograd.grad(value(), parameters), directions, strict=True))
    ends = []
    with torch.no_grad():
        for step in (1e-7, -2e-7):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(step * direction)
            ends.append(value())
    torch.testing.assert_close(torch.as_tensor(slope), (ends[0] - ends[1]) / 2e-7, rtol=1e-4, atol=1e-4)


def test_one_seed_gives_one_result_with_and_without_gradients() -> None:
    model, x, labels = _network(), torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    region = LinfBall(x, 0.1)
    with_gradients = estimate_margins(model, region, labels, 7, generator=_seeded(1)).values
    with torch.no_grad():
        without = estimate_margins(model, region, labels, 7, generator=_seeded(1)).values
        other = estimate_margins(model, region, labels, 7, generator=_seeded(2)).values
    torch.testing.assert_close(with_gradients.detach(), without)
    assert float((other - without).abs().max()) > 1e-3


@pytest.mark.parametrize("make", [LinfBall, L2Ball])
def test_radius_zero_is_the_network_itself(make: Callable[..., Region]) -> None:
    model, x, labels = _network(), torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    for estimator in ("median", "geometric"):
        found = estimate_margins(model, make(x, 0.0), labels, 4, None, None, estimator).values  # type: ignore[arg-type]
        logits = model(x)
        torch.testing.assert_close(found, logits.gather(1, labels.unsqueeze(1)) - logits)
        for gradient in torch.autograd.grad(found.sum(), list(model.parameters())):
            assert bool(torch.isfinite(gradient).all())


def test_an_estimate_is_not_a_bound() -> None:
    # some estimate exceeds what the exact method proves: it must not pass for a bound
    model, x, labels = _network(), torch.rand(8, 1, 8, 8, dtype=torch.float64), torch.arange(8) % 3
    region = LinfBall(x, 0.2)
    with torch.no_grad():
        found = estimate_margins(model, region, labels, 25, generator=_seeded())
        assert bool((found.values > margins(model, region, labels) + 1e-6).any())
    assert type(found) is Estimate and not isinstance(found, Tensor)
    assert (found.projections, found.kind, found.estimator) == (25, "cauchy", "median")
    for name in ("lower", "upper", "layers"):
        assert not hasattr(found, name)
    with pytest.raises(TypeError):
        bool(found > 0)  # type: ignore[operator]


def test_refusals() -> None:
    case = CASES[0]
    model, x, labels = case.model(), case.inputs(), torch.tensor([0, 1, 2])
    for region in (L1Ball(x, 0.1), L2Ball(x.sigmoid(), 0.1, (0.0, 1.0)), L1Ball(x.sigmoid(), 0.1, (0.0, 1.0))):
        with pytest.raises(InputError, match="exact dual bound"):
            estimate_margins(model, region, labels, 10)
    with pytest.raises(InputError, match="needs kind='cauchy'"):
        estimate_margins(model, LinfBall(x, 0.1), labels, 10, "normal")
    with pytest.raises(InputError, match="needs kind='normal'"):
        estimate_margins(model, L2Ball(x, 0.1), labels, 10, "cauchy")
    for k, estimator in ((0, "median"), (-3, "median"), (1, "geometric")):
        with pytest.raises(InputError, match="number of random vectors"):
            estimate_margins(model, LinfBall(x, 0.1), labels, k, None, None, estimator)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not known"):
        estimate_margins(model, LinfBall(x, 0.1), labels, 5, None, None, "mean")  # type: ignore[arg-type]


def test_estimates_of_a_broken_network_are_nan() -> None:
    model = _network().float()
    with torch.no_grad():
        for layer in (model[0], model[2], model[5]):
            layer.weight.fill_(1e25)
    found = estimate_margins(model, LinfBall(torch.rand(1, 1, 8, 8), 0.1), torch.tensor([0]), 5).values
    assert not bool((found[0, 1:] > 0).any())
