"""SABR, MTL-IBP, CC-IBP, Exp-IBP: the formulas again, small regions inside, order between attack and bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region
from ironbound.training import losses
from training.losses_cases import EPS, corners, examples, margins_of, mean_log_sum, network, written_margins

MIXED = {"mtl": losses.mtl_ibp, "cc": losses.cc_ibp, "exp": losses.exp_ibp}


def each(margins: Tensor) -> Tensor:
    return (-margins).exp().sum(1).log()


def parts(alpha: float, scale: float = 1.0) -> tuple[nn.Sequential, LinfBall, Tensor, Tensor, Tensor]:
    model, (x, labels) = network(), examples()
    points = losses.attacked(model, LinfBall(x, scale * EPS), labels, 8)
    return (
        model,
        LinfBall(x, EPS),
        labels,
        margins_of(model(points), labels),
        written_margins(model, x, labels, EPS, "interval"),
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_the_convex_combinations_are_their_formulas(alpha: float, scale: float) -> None:
    model, region, labels, attacked, box = parts(alpha, scale)
    want = {
        "mtl": (1 - alpha) * mean_log_sum(attacked) + alpha * mean_log_sum(box),
        "cc": mean_log_sum((1 - alpha) * attacked + alpha * box),
        "exp": (each(attacked) ** (1 - alpha) * each(box) ** alpha).mean(),
    }
    for name, loss in MIXED.items():
        found = loss(model, region, labels, alpha, attack_scale=scale)
        torch.testing.assert_close(found.value, want[name])
        assert found.parts["adversarial"] == pytest.approx(mean_log_sum(attacked).item())
        assert found.parts["interval"] == pytest.approx(mean_log_sum(box).item())
        rivals = box.masked_fill(nn.functional.one_hot(labels, 3).bool(), float("inf"))
        assert torch.equal(found.wrong, ~(rivals.amin(1) > 0))
        error = (attacked.masked_fill(nn.functional.one_hot(labels, 3).bool(), float("inf")).amin(1) <= 0).float()
        assert found.parts["adversarial_error"] == pytest.approx(error.mean().item())


def test_they_lie_between_attack_and_bound_in_the_papers_order() -> None:
    """They rise with alpha (expressivity), and Exp <= MTL (geometric and arithmetic mean), CC <= MTL (convexity)."""
    model, region, labels, attacked, box = parts(0.5)
    before = {name: mean_log_sum(attacked) for name in MIXED}
    for alpha in (0.1, 0.3, 0.5, 0.7, 0.9):
        value = {name: loss(model, region, labels, alpha).value for name, loss in MIXED.items()}
        assert all(bool(before[name] <= value[name] + 1e-12) for name in MIXED)
        assert value["exp"] <= value["mtl"] + 1e-12 and value["cc"] <= value["mtl"] + 1e-12
        assert all(bool(found <= mean_log_sum(box) + 1e-12) for found in value.values())
        before = value


def test_exp_ibp_has_finite_gradients_where_a_loss_underflows() -> None:
    model = network().float()
    x, labels = examples()
    with torch.no_grad():
        model[5].weight.zero_()
        model[5].bias.copy_(torch.tensor([200.0, 0, 0]))
    found = losses.exp_ibp(model, LinfBall(x.float(), EPS), labels * 0)
    assert bool(torch.isfinite(found.value)) and found.value >= 0
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found.value, list(model.parameters())))


def test_random_starts_come_from_the_generator_alone() -> None:
    model, region, labels, _, _ = parts(0.5)
    for loss in (*MIXED.values(), losses.sabr, losses.pgd):
        state = torch.get_rng_state()
        runs = [
            loss(model, region, labels, steps=1, generator=torch.Generator().manual_seed(seed)).value
            for seed in (0, 0, 1)
        ]
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(torch.get_rng_state(), state)


REGIONS = {
    "linf": lambda x: LinfBall(x, 0.1),
    "clipped": lambda x: LinfBall(x, 0.3, (0.0, 1.0)),
    "per-element": lambda x: LinfBall(x, 0.2 * x),
    "box": lambda x: Box(x - 0.1, x + 0.2),
    "l2": lambda x: L2Ball(x, 0.4),
    "l2-clipped": lambda x: L2Ball(x, 0.9, (0.0, 1.0)),
    "l1": lambda x: L1Ball(x, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", REGIONS)
def test_the_small_region_lies_in_the_region(kind: str, dtype: torch.dtype) -> None:
    model, (x, labels) = network().to(dtype), examples()
    region: Region = REGIONS[kind](x.to(dtype))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    low, high = region.box()
    for lambda_ in (0.0, 0.1, 0.4, 1.0):
        starts = [region.sample(torch.Generator().manual_seed(seed)) for seed in range(3)]
        for points in (region.center, losses.attacked(model, region, labels), *starts):
            small = losses.small_region(region, points, lambda_)
            assert type(small) is type(region) and small.clip == region.clip
            below, above = small.box()
            assert bool((below >= low - tolerance).all() and (above <= high + tolerance).all())
            assert bool(small.contains(small.center).all())
            for point in corners(small, 20):
                assert bool((point - region.project(point)).abs().max() <= 10 * tolerance)
            if lambda_ == 0:  # nothing but the attacked point
                torch.testing.assert_close(small.center, points, atol=tolerance, rtol=0)
                assert bool((above - below).abs().max() <= tolerance)
            if lambda_ == 1:
                torch.testing.assert_close(small.center, region.center)
                torch.testing.assert_close((above - below), (high - low))


@pytest.mark.parametrize("lambda_", [0.0, 0.1, 0.6])
def test_sabr_is_the_interval_loss_of_the_small_box(lambda_: float) -> None:
    model, (x, labels) = network(), examples()
    points = losses.attacked(model, LinfBall(x, EPS), labels, 8)
    # τ = λ ε; the center is clipped to within ε - τ of x
    center = torch.minimum(torch.maximum(points, x - (1 - lambda_) * EPS), x + (1 - lambda_) * EPS)
    margins = written_margins(model, center, labels, lambda_ * EPS, "interval")
    found = losses.sabr(model, LinfBall(x, EPS), labels, lambda_)
    torch.testing.assert_close(found.value, mean_log_sum(margins))
    rivals = margins.masked_fill(nn.functional.one_hot(labels, 3).bool(), float("inf"))
    assert torch.equal(found.wrong, ~(rivals.amin(1) > 0))
    assert found.value <= losses.interval(model, LinfBall(x, EPS), labels).value + 1e-12
