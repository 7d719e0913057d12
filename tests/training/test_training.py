"""Training: the losses against independent formulas, the schedule, determinism, refusals, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ironbound.errors import InputError, LabelError, TrainingError
from ironbound.regions import LinfBall, ball
from ironbound.training import Epoch, Recipe, digits_demo, losses, train
from training.training_cases import clusters, interval_margins, network


def test_the_interval_loss_is_the_robust_cross_entropy_of_interval_margins() -> None:
    model, (x, labels) = network(), clusters(30)
    margins = interval_margins(model, x, 0.05, labels)
    robust = nn.functional.cross_entropy(-margins, labels)
    clean = nn.functional.cross_entropy(model(x), labels)
    for kappa in (0.0, 0.3, 1.0):
        loss = losses.interval(model, LinfBall(x, 0.05), labels, kappa)
        torch.testing.assert_close(loss.value, kappa * clean + (1 - kappa) * robust)
        wanted = torch.autograd.grad(kappa * clean + (1 - kappa) * robust, list(model.parameters()), retain_graph=True)
        for have, want in zip(torch.autograd.grad(loss.value, list(model.parameters())), wanted, strict=True):
            torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)
        others = margins.detach().masked_fill(nn.functional.one_hot(labels, 3).bool(), math.inf)
        assert torch.equal(loss.wrong, ~(others.amin(1) > 0))


def test_the_losses_are_ordered() -> None:
    """Standard <= attacked <= interval bound, for a network that has learned something."""
    model, (x, labels) = network(), clusters()
    train(model, x, labels, epochs=5, lr=1e-2)
    region = LinfBall(x, 0.05)
    clean = losses.standard(model, region, labels)
    attacked = losses.pgd(model, region, labels, 10, torch.Generator().manual_seed(0))
    proved = losses.interval(model, region, labels, 0.0)
    assert clean.value < attacked.value <= proved.value + 1e-6
    assert clean.wrong.sum() <= attacked.wrong.sum() <= proved.wrong.sum()
    assert torch.equal(clean.wrong, model(x).argmax(1) != labels)


def test_the_pgd_loss_finds_the_worst_point_of_a_linear_network() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 2)
    x, labels = torch.rand(20, 6), torch.arange(20) % 2
    weight = (model.weight[1 - labels] - model.weight[labels]).detach()
    worst = nn.functional.cross_entropy(model(x + 0.1 * weight.sign()), labels)
    loss = losses.pgd(model, LinfBall(x, 0.1), labels, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss.value, worst)


def test_the_pgd_loss_attacks_in_evaluation_mode_and_restores_the_mode() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    model[2].eval()
    x, labels = clusters(30)
    losses.pgd(model, LinfBall(x, 0.1), labels, 10, torch.Generator().manual_seed(0))
    assert [part.training for part in model.modules()] == [True, True, True, False]
    assert model[1].num_batches_tracked.item() == 1  # the step itself, none of the attack's


@pytest.mark.parametrize("loss", ["standard", "pgd", "interval"])
def test_training_learns_and_repeats_itself(loss: str) -> None:
    x, labels = clusters()
    model, again, other = network(), network(), network()
    settings = {"loss": loss, "eps": 0.1, "epochs": 12, "batch_size": 20, "lr": 1e-2, "ramp": (1, 8), "norm": "linf"}
    state = torch.get_rng_state()
    seen: list[Epoch] = []
    record = train(model, x, labels, progress=seen.append, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert tuple(seen) == record.epochs and [epoch.number for epoch in seen] == list(range(1, 13))
    assert record == train(again, x, labels, **settings)
    train(other, x, labels, **settings, seed=1)
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))
    assert (model(x).argmax(1) == labels).float().mean() > 0.98
    assert seen[-1].error < 0.05 and seen[-1].eps == (0 if loss == "standard" else pytest.approx(0.1))
    assert not any(part.training for part in model.modules())


def test_interval_training_makes_networks_that_intervals_prove() -> None:
    x, labels = clusters()
    proved = {}
    for loss in ("standard", "interval"):
        model = network()
        train(model, x, labels, loss=loss, eps=0.2, epochs=15, batch_size=20, lr=1e-2, ramp=(1, 8))
        margins = interval_margins(model, x, 0.2, labels).detach()
        margins = margins.masked_fill(nn.functional.one_hot(labels, 3).bool(), math.inf)
        proved[loss] = (margins.amin(1) > 0).float().mean().item()
    assert proved["interval"] > proved["standard"] + 0.1


def test_the_ramp_shows_in_the_record() -> None:
    x, labels = clusters(40)
    record = train(network(), x, labels, loss="interval", eps=0.2, epochs=6, batch_size=40, ramp=(2, 4), kappa=0.5)
    assert [epoch.eps for epoch in record.epochs] == pytest.approx([0, 0, 0, 0.1, 0.2, 0.2])
    assert [epoch.options["kappa"] for epoch in record.epochs] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.5])
    assert record.recipe.region.eps == 0.2


def test_dropout_is_active_and_seeded_with_the_standard_loss() -> None:
    x, labels = clusters(60)
    runs = []
    for rate in (0.5, 0.5, 0.0):
        model = network()
        model.insert(2, nn.Dropout(rate))
        train(model, x, labels, epochs=2)
        runs.append(next(model.parameters()).detach())
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("loss", ["pgd", "interval"])
def test_every_norm_and_clipping_train(norm: str, loss: str) -> None:
    x, labels = clusters(30)
    record = train(network(), x, labels, loss=loss, norm=norm, eps=0.1, clip=(0, 1), epochs=1)
    assert math.isfinite(record.epochs[0].loss) and isinstance(ball(norm, x, 0.1, (0, 1)).norm, str)


def test_the_interval_loss_refuses_dropout_at_once() -> None:
    model, (x, labels) = network(), clusters(30)
    model.insert(2, nn.Dropout(0.5))
    with pytest.raises(InputError, match="Dropout"):
        train(model, x, labels, loss="interval", ramp=(5, 10))  # at once, not when the ramp starts


@pytest.mark.parametrize("loss", ["standard", "pgd", "interval"])
def test_batch_norm_trains_and_its_averages_are_those_of_one_pass_a_step(loss: str) -> None:
    model, (x, labels) = network(), clusters(60)
    model.insert(1, nn.BatchNorm1d(12))
    record = train(model, x, labels, loss=loss, eps=0.05, epochs=3, batch_size=20, ramp=(1, 2))
    assert model[1].num_batches_tracked.item() == 9 and math.isfinite(record.epochs[-1].loss)
    assert not model.training and not torch.equal(model[1].running_mean, torch.zeros(12))


def test_a_loss_that_is_no_number_stops_training() -> None:
    model, (x, labels) = network(), clusters(30)
    nn.init.constant_(model[2].bias, math.nan)
    with pytest.raises(TrainingError, match="epoch 1"):
        train(model, x, labels)
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "hinges"},
        {"norm": "l3"},
        {"eps": -0.1},
        {"eps": math.nan},
        {"lr": 0.0},
        {"lr": math.nan},
        {"kappa": 1.5},
        {"epochs": 0},
        {"batch_size": 0},
        {"loss": "pgd", "steps": 0},
        {"ramp": (3, 2)},
        {"ramp": (0, 11)},
        {"clip": (0.5, 1)},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings: dict) -> None:
    with pytest.raises(InputError):
        train(network(), *clusters(30), **settings)


def test_inputs_and_labels_that_do_not_fit_are_refused() -> None:
    x, labels = clusters(30)
    with pytest.raises(InputError, match="NaN"):
        train(network(), x * math.nan, labels)
    with pytest.raises(LabelError):
        train(network(), x, labels.float())
    with pytest.raises(LabelError):
        train(network(), x, labels[:7])
    for loss in ("standard", "pgd", "interval"):
        with pytest.raises(LabelError):
            train(network(), x, labels + 1, loss=loss)
    with pytest.raises(InputError, match="nothing to train"):
        train(network().requires_grad_(False), x, labels)
    with pytest.raises(InputError, match="nothing to train"):
        train(network(), x[:0], labels[:0])


def test_the_demo_recipe_starts_standard_and_ends_certified() -> None:
    recipe = digits_demo()
    (plan,) = recipe.plans()
    assert plan.loss.name == "interval" and plan.eps(0) == plan.eps(1) == 0 and plan.eps(plan.epochs - 1) == 0.1
    assert recipe.region.eps == 0.1 and isinstance(recipe, Recipe)
