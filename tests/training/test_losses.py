"""Losses at points and on bounds: equal to the papers' formulas written down again, ordered, differentiable."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ironbound.attacks import fgsm
from ironbound.bounding import margins
from ironbound.errors import InputError, LabelError
from ironbound.regions import Box, L2Ball, LinfBall
from ironbound.training import losses
from ironbound.training.losses import LOSSES, REGULARIZERS, STEPWISE, Loss
from training.losses_cases import (
    EPS,
    corners,
    examples,
    margins_of,
    mean_log_sum,
    network,
    slope_along,
    written_margins,
)

ANY_DEPTH = sorted(set(LOSSES) - set(STEPWISE))  # those for two layers are in tests/semidefinite
BOUNDED = ("robust", "robust-hinge", "interval", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp")


def grads(model: nn.Module, loss: Loss) -> list[Tensor]:
    return list(torch.autograd.grad(loss.value, list(model.parameters()), retain_graph=True))


def same(model: nn.Module, have: Loss, want: Loss) -> None:
    """Exactly the same value and gradient."""
    assert torch.equal(have.value, want.value)
    for one, other in zip(grads(model, have), grads(model, want), strict=True):
        assert torch.equal(one, other)


def test_standard_is_cross_entropy() -> None:
    model, (x, labels) = network(), examples()
    loss = losses.standard(model, LinfBall(x, EPS), labels)
    logits = model(x)
    torch.testing.assert_close(loss.value, mean_log_sum(margins_of(logits, labels)))
    assert torch.equal(loss.wrong, logits.argmax(1) != labels)
    assert loss.each is not None and not loss.each.requires_grad
    torch.testing.assert_close(loss.each.mean(), loss.value.detach())


def test_hinge_is_its_formula() -> None:
    model, (x, labels) = network(), examples()
    with torch.no_grad():
        model[5].weight.mul_(400)  # else every margin is below 1
    loss = losses.hinge(model, LinfBall(x, EPS), labels)
    logits = model(x).tolist()
    for place, y in enumerate(labels.tolist()):
        worst = min(logits[place][y] - logits[place][k] for k in range(3) if k != y)
        assert loss.each is not None and float(loss.each[place]) == pytest.approx(max(0.0, 1 - worst))
        assert bool(loss.wrong[place]) == (worst <= 0)
    assert 0 < float((loss.each == 0).float().mean()) < 1


def test_pgd_with_a_share_of_the_clean_loss() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    attacked, clean = losses.pgd(model, region, labels), losses.standard(model, region, labels)
    mixed = losses.pgd(model, region, labels, kappa=0.25)
    torch.testing.assert_close(mixed.value, 0.25 * clean.value + 0.75 * attacked.value)
    assert mixed.each is not None
    torch.testing.assert_close(mixed.each.mean(), mixed.value.detach())
    assert torch.equal(mixed.wrong, attacked.wrong)
    assert mixed.parts == pytest.approx({"clean": clean.value.item(), "adversarial": attacked.value.item()})


def test_one_step_from_the_center_is_fgsm() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS, (0, 1))
    points = losses.attacked(model, region, labels, steps=1)
    torch.testing.assert_close(points, fgsm(model, region, labels).points)
    loss = losses.pgd(model, region, labels, steps=1)
    torch.testing.assert_close(loss.value, mean_log_sum(margins_of(model(points), labels)))


@pytest.mark.parametrize("region", [LinfBall, L2Ball, Box])
def test_the_attack_stays_inside_and_gets_worse_with_steps(region: type) -> None:
    model, (x, labels) = network(), examples()
    where = Box(x - EPS, x + EPS) if region is Box else region(x, EPS)
    found = [losses.attacked(model, where, labels, steps, torch.Generator().manual_seed(0)) for steps in (1, 20)]
    assert all(bool(where.contains(points).all()) for points in found)
    assert not any(points.requires_grad for points in found)
    values = [losses.standard(model, LinfBall(points, 0.0), labels).value for points in (x, *found)]
    assert values[0] < values[2] and values[1] <= values[2] + 1e-9


@pytest.mark.parametrize("scale", [0.5, 2.1])
def test_the_attack_scale_scales_the_attackers_radius(scale: float) -> None:
    torch.manual_seed(0)
    model, (x, labels) = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double(), examples()
    labels = labels % 2
    points = losses.attacked(model, LinfBall(x, EPS), labels, attack_scale=scale)
    torch.testing.assert_close((points - x).abs(), torch.full_like(x, scale * EPS))
    box = losses.attacked(model, Box(x - EPS, x + EPS), labels, attack_scale=scale)
    torch.testing.assert_close(box, points)


@pytest.mark.parametrize("method", ["dual", "interval", "crown", "crown-ibp"])
def test_the_robust_losses_are_those_of_the_written_margins(method: str) -> None:
    model, (x, labels) = network(), examples()
    written = written_margins(model, x, labels, EPS, method)
    region = LinfBall(x, EPS)
    loss = losses.robust(model, region, labels, method=method)
    torch.testing.assert_close(loss.value, mean_log_sum(written))
    rivals = written.masked_fill(nn.functional.one_hot(labels, 3).bool(), math.inf)
    assert torch.equal(loss.wrong, ~(rivals.amin(1) > 0))
    hinge = losses.robust(model, region, labels, kind="hinge", method=method)
    torch.testing.assert_close(hinge.value, (1 - rivals.amin(1)).clamp(min=0).mean())
    assert torch.equal(hinge.value, LOSSES["robust-hinge"](model, region, labels, method=method).value)


def test_the_interval_and_crown_ibp_losses_are_their_mixtures() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    clean = mean_log_sum(margins_of(model(x), labels))
    box, lines = (written_margins(model, x, labels, EPS, method) for method in ("interval", "crown-ibp"))
    loss = losses.interval(model, region, labels, kappa=0.3)
    torch.testing.assert_close(loss.value, 0.3 * clean + 0.7 * mean_log_sum(box))
    assert loss.parts["clean"] == pytest.approx(clean.item())
    assert loss.parts["robust"] == pytest.approx(mean_log_sum(box).item())
    assert loss.parts["clean_error"] == pytest.approx((model(x).argmax(1) != labels).float().mean().item())
    loss = losses.crown_ibp(model, region, labels, beta=0.25, kappa=0.3)
    mixed = 0.25 * lines + 0.75 * box
    torch.testing.assert_close(loss.value, 0.3 * clean + 0.7 * mean_log_sum(mixed))
    rivals = mixed.masked_fill(nn.functional.one_hot(labels, 3).bool(), math.inf)
    assert torch.equal(loss.wrong, ~(rivals.amin(1) > 0))


def test_the_ends_of_the_mixing_weights_are_the_named_losses() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    plain = losses.interval(model, region, labels)
    same(model, losses.interval(model, region, labels, kappa=1.0), losses.standard(model, region, labels))
    same(model, losses.crown_ibp(model, region, labels, 0.3, kappa=1.0), losses.standard(model, region, labels))
    same(model, losses.crown_ibp(model, region, labels, beta=0.0), plain)
    same(
        model, losses.crown_ibp(model, region, labels, beta=0.0, kappa=0.4), losses.interval(model, region, labels, 0.4)
    )
    same(model, losses.crown_ibp(model, region, labels, 1.0), losses.robust(model, region, labels, method="crown-ibp"))
    same(model, plain, losses.robust(model, region, labels, method="interval"))
    same(model, losses.sabr(model, region, labels, lambda_=1.0), plain)
    for name in ("mtl-ibp", "cc-ibp", "exp-ibp"):
        same(model, LOSSES[name](model, region, labels, alpha=1.0), plain)
        same(model, LOSSES[name](model, region, labels, alpha=0.0, steps=5), losses.pgd(model, region, labels, 5))
        assert torch.equal(LOSSES[name](model, region, labels, alpha=0.0).wrong, plain.wrong)


@pytest.mark.parametrize("name", sorted(set(ANY_DEPTH) - {"hinge", "robust-hinge"}))
def test_at_radius_zero_every_loss_is_standard(name: str) -> None:
    model, (x, labels) = network(), examples()
    point = LinfBall(x, 0.0)
    want, have = losses.standard(model, point, labels), LOSSES[name](model, point, labels)
    torch.testing.assert_close(have.value, want.value)
    for one, other in zip(grads(model, have), grads(model, want), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(have.wrong, want.wrong)


@pytest.mark.parametrize("method", ["dual", "interval", "crown-ibp"])
def test_the_robust_loss_bounds_the_loss_everywhere_in_the_region(method: str) -> None:
    model, (x, labels) = network(), examples()
    for region in (LinfBall(x, EPS), L2Ball(x, 0.3), LinfBall(x, 0.3, (0, 1))):
        bound = losses.robust(model, region, labels, method=method)
        points = [*corners(region), losses.attacked(model, region, labels, 20)]
        assert bound.each is not None
        for point in points:
            found = losses.standard(model, LinfBall(point, 0.0), labels)
            assert found.each is not None
            assert bool((found.each <= bound.each + 1e-9).all())
            assert bool((found.wrong <= bound.wrong).all())


@pytest.mark.parametrize("name", ANY_DEPTH)
def test_gradients_of_losses_equal_differences(name: str) -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    # without a generator an attack repeats itself; a step of 1e-6 does not change a sign of its gradient here
    options = {"interval": {"kappa": 0.3}, "crown-ibp": {"beta": 0.4, "kappa": 0.2}}.get(name, {})
    slope, difference = slope_along(model, lambda: LOSSES[name](model, region, labels, **options).value)
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ANY_DEPTH)
def test_weights_of_examples(name: str) -> None:
    model, (x, labels) = network(), examples()
    loss, region = LOSSES[name], LinfBall(x, EPS)
    plain = loss(model, region, labels)
    assert plain.each is not None and plain.each.shape == (6,)
    torch.testing.assert_close(plain.each.mean(), plain.value.detach())
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 5.0, 0.5])
    have = loss(model, region, labels, weights=weights)
    torch.testing.assert_close(have.value.detach(), (plain.each * weights).sum() / 6)
    torch.testing.assert_close(have.each, plain.each)
    # weights 1 / p of the examples that stay are the same as leaving the others out
    kept = weights > 0
    alone = loss(model, LinfBall(x[kept], EPS), labels[kept], weights=weights[kept])
    torch.testing.assert_close(alone.value * 4 / 6, have.value)
    for bad in (weights[:4], weights - 1, weights * math.nan, 2.0):
        with pytest.raises(InputError, match="weights"):
            loss(model, region, labels, weights=bad)


@pytest.mark.parametrize("name", ANY_DEPTH)
def test_what_does_not_fit_is_refused(name: str) -> None:
    model, (x, labels) = network(), examples()
    loss, region = LOSSES[name], LinfBall(x, EPS)
    for bad in (labels + 1, labels - 1, labels[:4], labels.double()):
        with pytest.raises(LabelError):
            loss(model, region, bad)
    with pytest.raises(InputError, match="NaN"):
        loss(model, LinfBall(x * math.nan, EPS), labels)
    shares = ("kappa", "beta", "alpha", *(["lambda_"] if name != "tight" else []))  # there a weight without a limit
    for option in shares:
        if option in loss.__code__.co_varnames[: loss.__code__.co_argcount]:
            for value in (-0.1, 1.1, math.nan):
                with pytest.raises(InputError, match=option):
                    loss(model, region, labels, **{option: value})
    if "steps" in loss.__code__.co_varnames:
        with pytest.raises(InputError, match="steps"):
            loss(model, region, labels, steps=0)
    if name in BOUNDED:
        nn.init.constant_(model[5].bias, math.nan)
        with pytest.raises(InputError, match="NaN"):
            loss(model, region, labels)


@pytest.mark.parametrize(
    "name", [*BOUNDED, *(n for n in REGULARIZERS if not n.startswith("tightness") and n not in STEPWISE)]
)
def test_losses_on_bounds_refuse_dropout_and_take_training_mode(name: str) -> None:
    function = (LOSSES | REGULARIZERS)[name]
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)

    def value() -> Tensor:
        found = function(model, region, labels)
        return found.value if isinstance(found, Loss) else found

    want = value()
    model.train()
    model[1].eval()
    assert torch.equal(value(), want)
    assert [part.training for part in model.modules()] == [True, True, False, True, True, True, True]
    model.insert(2, nn.Dropout(0.0))
    torch.testing.assert_close(value(), want)
    model[2].p = 0.5
    with pytest.raises(InputError, match="Dropout"):
        value()


def test_options_of_attack_and_bound_are_checked() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    with pytest.raises(InputError, match="kind"):
        losses.robust(model, region, labels, kind="zero-one")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="projections"):
        losses.robust(model, region, labels, method="crown", projections=4)
    with pytest.raises(InputError, match="method"):
        losses.robust(model, region, labels, method="guess")
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="step_size"):
            losses.pgd(model, region, labels, step_size=size)
    with pytest.raises(InputError, match="scaled"):
        losses.mtl_ibp(model, region, labels, attack_scale=-1.0)


def test_a_failed_attack_leaves_the_modes_as_they_were() -> None:
    model, (x, labels) = network(), examples()
    model.train()
    nn.init.constant_(model[5].bias, math.nan)
    with pytest.raises(InputError, match="NaN"):
        losses.attacked(model, LinfBall(x, EPS), labels)
    assert all(part.training for part in model.modules())


def test_the_pgd_loss_attacks_in_evaluation_mode_and_trains_in_the_mode_it_finds() -> None:
    x, labels = examples()
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)).double().train()
    model[2].eval()
    losses.pgd(model, LinfBall(x, EPS), labels)
    assert [part.training for part in model.modules()] == [True, True, True, False]
    assert model[1].num_batches_tracked.item() == 1  # the step itself, none of the attack's


def test_what_is_no_number_counts_as_wrong() -> None:
    model, (x, labels) = network(), examples()
    nn.init.constant_(model[5].bias, math.nan)
    loss = losses.standard(model, LinfBall(x, EPS), labels)
    assert bool(loss.wrong.all()) and bool(loss.value.isnan())


def test_projections_estimate_the_dual_loss_and_carry_gradients() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    exact = losses.robust(model, region, labels)
    many = losses.robust(model, region, labels, projections=2000, generator=torch.Generator().manual_seed(0))
    assert abs(many.value.item() - exact.value.item()) < 0.1 * exact.value.item()
    assert not torch.equal(many.value, exact.value)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in grads(model, many))


def test_the_losses_are_ordered_by_tightness() -> None:
    model, (x, labels) = network(), examples()
    region = LinfBall(x, EPS)
    attack = losses.pgd(model, region, labels, 20).value
    assert losses.standard(model, region, labels).value < attack
    for method in ("dual", "crown", "interval"):
        assert attack <= losses.robust(model, region, labels, method=method).value + 1e-9
    assert bool((margins(model, region, labels, "crown-ibp") <= margins(model, LinfBall(x, 0.0), labels)).all())
