"""The loop against itself written by hand: parts, stages, regularizers, sampling, validation, collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ironbound
from ironbound.errors import InputError, TrainingError
from ironbound.regions import LinfBall
from ironbound.training import Recipe, losses, train
from ironbound.training.augment import crop_and_flip
from ironbound.training.evaluation import evaluate
from ironbound.training.loop import processes
from ironbound.training.order import Sampler, split_off
from ironbound.training.recipe import Sampling
from ironbound.training.step import Batch, Stepper
from training.training_cases import clusters, interval_margins, network


def by_hand(x: Tensor, labels: Tensor, epochs: int, batch: int, eps: float) -> nn.Sequential:
    """Interval training written down again, on the module alone."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        index = torch.randperm(len(x), generator=order)
        for step, some in enumerate(index.split(batch)):
            moment = epoch + step / math.ceil(len(x) / batch)
            share = min(1.0, max(0.0, (moment - 1) / 2))
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - max(0.0, (moment - 3) / (epochs - 3)))
            kappa = 1 - 0.5 * share
            margins = interval_margins(model, x[some], eps * share, labels[some])
            robust = nn.functional.cross_entropy(-margins, labels[some])
            optimizer.zero_grad()
            (kappa * nn.functional.cross_entropy(model(x[some]), labels[some]) + (1 - kappa) * robust).backward()
            optimizer.step()
    return model


def test_the_loop_is_the_loop_written_by_hand() -> None:
    x, labels = clusters(70)
    model = network()
    train(model, x, labels, loss="interval", eps=0.1, epochs=5, batch_size=20, lr=0.01, ramp=(1, 3))
    for have, want in zip(model.parameters(), by_hand(x, labels, 5, 20, 0.1).parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["standard", "interval"])
def test_workers_give_the_gradient_of_the_whole_batch(loss: str) -> None:
    x, labels = clusters(70)
    one, two, again = network(), network(), network()
    settings = {"loss": loss, "eps": 0.1, "epochs": 4, "batch_size": 15, "lr": 0.01, "ramp": (1, 3)}
    records = [
        train(model, x, labels, workers=workers, **settings) for model, workers in ((one, 1), (two, 3), (again, 3))
    ]
    for a, b, c in zip(one.parameters(), two.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert torch.equal(b, c)  # whichever thread is faster
    assert records[0].epochs[-1].loss == pytest.approx(records[1].epochs[-1].loss, rel=1e-3)
    assert records[0].epochs[-1].error == pytest.approx(records[1].epochs[-1].error, abs=0.02)


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    model, (x, labels) = network(), clusters(30)
    model.insert(1, nn.BatchNorm1d(12))
    with pytest.raises(InputError, match=r"run\.workers = 1"):
        train(model, x, labels, workers=2)


def test_a_regularizer_is_added_with_its_weight() -> None:
    """One step of plain gradient descent moves the weights by the gradient of loss + weight x norm."""
    x, labels = clusters(30)
    model, plain = network(), network()
    recipe = Recipe(
        regularizer=[{"name": "frobenius", "weight": {"kind": "stepped", "values": [0.5, 0], "at": [1]}}],
        optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0},
        run={"epochs": 1, "batch_size": 30},
    )
    record = train(model, x, labels, recipe)
    penalty = losses.REGULARIZERS["frobenius"](plain, LinfBall(x, 0.1), labels)
    objective = nn.functional.cross_entropy(plain(x), labels) + 0.5 * penalty
    gradients = torch.autograd.grad(objective, list(plain.parameters()))
    for have, old, step in zip(model.parameters(), plain.parameters(), gradients, strict=True):
        torch.testing.assert_close(have, old - 0.1 * step)
    assert record.epochs[0].parts["frobenius"] == pytest.approx(penalty.item())
    assert record.epochs[0].options["weight.frobenius"] == 0.5


def test_stages_follow_each_other_with_a_new_optimiser_each() -> None:
    x, labels = clusters(60)
    run = {"epochs": 2, "batch_size": 20}
    second = {"epochs": 1, "loss": {"name": "interval", "eps": 0.05}, "optimizer": {"name": "sgd", "lr": 0.02}}
    record = train(network(), x, labels, Recipe(run=run, stage=[{"name": "plain"}, second]))
    assert [(epoch.number, epoch.stage, epoch.eps, epoch.lr) for epoch in record.epochs] == [
        (1, "plain", 0, 1e-3),
        (2, "plain", 0, 1e-3),
        (3, "2", 0.05, 0.02),
    ]
    assert record.epochs[1].loss == train(network(), x, labels, Recipe(run=run)).epochs[1].loss


def test_gradients_are_clipped() -> None:
    x, labels = clusters(30)
    recipe = Recipe(
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0, "clip_norm": 1e-3}, run={"epochs": 1, "batch_size": 30}
    )
    model, plain = network(), network()
    train(model, x, labels, recipe)
    moved = [(have - old).flatten() for have, old in zip(model.parameters(), plain.parameters(), strict=True)]
    assert torch.cat(moved).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_collapsed_network_stops_training() -> None:
    x, labels = clusters(60)
    model = network()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # every unit is dead, so the answer is the same for all
    with pytest.raises(TrainingError, match=r"collapsed.*same answer"):
        train(model, x, labels, epochs=200, batch_size=10)
    train(model, x, labels, epochs=30, batch_size=10, collapse_epochs=0)


def test_a_loss_stuck_at_guessing_stops_training() -> None:
    x, labels = clusters(60)
    recipe = Recipe(
        loss={"name": "interval", "eps": 5.0}, optimizer={"lr": 1e-9}, run={"epochs": 100, "batch_size": 10}
    )
    with pytest.raises(TrainingError, match=r"collapsed.*loss stays"):
        train(network(), x, labels, recipe)


def test_validation_is_split_off_and_measured() -> None:
    x, labels = clusters(90)
    recipe = Recipe(
        data={"validation": 0.2, "validation_seed": 3},
        loss={"name": "interval"},
        region={"eps": 0.05},
        optimizer={"lr": 1e-2},
        run={"epochs": 9, "batch_size": 20},
        evaluation={"every": 4, "examples": 10},
    )
    model = network()
    record = train(model, x, labels, recipe)
    assert [epoch.number for epoch in record.epochs if epoch.evaluation] == [4, 8, 9]
    assert record.epochs[0].seen == 72
    rest, chosen = split_off(90, 0.2, 3)
    assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(90)) and len(chosen) == 18
    found = record.epochs[-1].evaluation
    assert found is not None and found.examples == 10
    assert found.clean == pytest.approx((model(x[chosen]).argmax(1) != labels[chosen]).float().mean().item())
    margins = interval_margins(model, x[chosen[:10]], 0.05, labels[chosen[:10]])
    margins = margins.masked_fill(nn.functional.one_hot(labels[chosen[:10]], 3).bool(), math.inf)
    assert found.certified["interval"] == pytest.approx((margins.amin(1) <= 0).float().mean().item())
    assert found.attacked <= found.certified_best <= min(found.certified.values())
    changed = x.clone()
    changed[chosen] = 0.5
    again = network()
    train(again, changed, labels, recipe)  # never trained on: other values there change nothing
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_skipping_easy_examples_keeps_the_expected_loss() -> None:
    sampler = Sampler(Sampling(easy="skip", threshold=0.1, p_min=0.2), 4000, 0)
    assert len(sampler.draw().index) == 4000  # nothing is known yet
    truth = torch.rand(4000) * 0.2
    sampler.seen(torch.arange(4000), truth)
    chance = (truth / 0.1).clamp(0.2, 1)
    sums, kept = [], []
    for _ in range(20):
        order = sampler.draw()
        assert order.weights is not None and len(order.index.unique()) == len(order.index)
        share = torch.full((len(order.index),), len(order.index) / 4000)
        torch.testing.assert_close(order.weights * chance[order.index], share)
        sums.append((order.weights * truth[order.index]).mean().item())
        kept.append(len(order.index))
    assert sum(kept) / 20 == pytest.approx(chance.sum().item(), rel=0.02)
    assert sum(sums) / 20 == pytest.approx(truth.mean().item(), rel=0.02)


def test_training_skips_what_is_easy() -> None:
    x, labels = clusters(120)
    recipe = Recipe(sampling={"easy": "skip"}, optimizer={"lr": 0.02}, run={"epochs": 15, "batch_size": 20})
    model = network()
    seen = [epoch.seen for epoch in train(model, x, labels, recipe).epochs]
    assert seen[0] == 120 and seen[-1] < 60
    assert (model(x).argmax(1) == labels).float().mean() > 0.98


def test_augmentation_moves_and_mirrors() -> None:
    images = torch.arange(1.0, 13).reshape(1, 1, 3, 4).expand(200, 1, 3, 4)
    padded = nn.functional.pad(images[0, 0], (1, 1, 1, 1))
    crops = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    for flip, wanted in ((False, crops), (True, crops + [crop.flip(1) for crop in crops])):
        made = crop_and_flip(images, 1, flip, torch.Generator().manual_seed(0))
        found = {tuple(image.flatten().tolist()) for image in made}
        assert found == {tuple(crop.flatten().tolist()) for crop in wanted}


def test_a_recipe_and_settings_do_not_mix() -> None:
    with pytest.raises(InputError, match="not both"):
        train(network(), *clusters(30), Recipe(), eps=0.1)


def test_weights_of_examples_reach_the_gradient_also_in_parts() -> None:
    model, (x, labels) = network(), clusters(21)
    weights = torch.rand(21) * 3
    recipe = Recipe(loss={"name": "interval", "eps": 0.05}, run={"workers": 2})
    stepper = Stepper(model, recipe, recipe.plans()[0], processes("cpu"))
    stepper.prepare(x[:1])
    try:
        found = stepper.gradient(Batch(x, labels, weights, 0.0, (0, 0)))
    finally:
        stepper.close()
    margins = interval_margins(model, x, 0.05, labels)
    each = nn.functional.cross_entropy(-margins, labels, reduction="none")
    wanted = torch.autograd.grad((weights * each).mean(), list(model.parameters()))
    for have, want in zip(found.gradients, wanted, strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.each.float(), each.detach())
    assert found.value == pytest.approx((weights * each).mean().item())


class Root(nn.Module):
    """The gradient of a root at 0 is infinite, its value is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * self.weight.sqrt()


def test_an_infinite_gradient_stops_training_before_the_weights_change() -> None:
    model = Root()
    with pytest.raises(TrainingError, match="gradient is not finite in epoch 1"):
        train(model, *clusters(30))
    assert torch.equal(model.weight, torch.zeros(3))


def test_each_stage_is_watched_anew() -> None:
    x, labels = clusters(60)
    model = network()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    train(model, x, labels, Recipe(run={"epochs": 1, "batch_size": 1}, stage=[{}, {}]))


def test_evaluation_takes_the_best_method_for_each_margin() -> None:
    x, labels = clusters(60)
    model = network()
    train(model, x, labels, epochs=10, lr=0.02)
    recipe = Recipe(region={"eps": 0.12})
    found = evaluate(model, x, labels, recipe)
    each = [ironbound.margins(model, LinfBall(x, 0.12), labels, method=method) for method in ("interval", "dual")]
    own = nn.functional.one_hot(labels, 3).bool()
    errors = [
        (~(margins.masked_fill(own, 1) > 0).all(1)).float().mean().item() for margins in (*each, torch.maximum(*each))
    ]
    assert errors[0] > errors[1] > 0  # else this network tests nothing
    assert [*found.certified.values(), found.certified_best] == pytest.approx(errors)
    attacked = ironbound.pgd(model, LinfBall(x, 0.12), labels, steps=20).success.float().mean().item()
    assert found.attacked == pytest.approx(attacked) and found.examples == 60


@pytest.mark.parametrize("name", [*losses.LOSSES, "robust with projections"])
def test_every_loss_trains_by_its_name_in_parts_and_with_weights(name: str) -> None:
    x, labels = clusters(24)
    options = {"projections": 5} if "projections" in name else {}
    loss = {
        "name": name.split()[0],
        "eps": {"kind": "linear", "from": 0, "to": 0.05, "start": 0.5, "end": 1},
        **options,
    }
    recipe = Recipe(
        region={"eps": 0.05},
        loss=loss,
        sampling={"easy": "skip", "threshold": 10},
        run={"epochs": 2, "batch_size": 8, "workers": 1 if name in losses.STEPWISE else 2},
    )
    one, again = network(), network()
    record = train(one, x, labels, recipe)
    assert record == train(again, x, labels, recipe) and record.epochs[1].seen < 24
    pairs = list(zip(one.parameters(), again.parameters(), network().parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("name", losses.REGULARIZERS)
def test_every_regularizer_trains_by_its_name(name: str) -> None:
    x, labels = clusters(24)
    recipe = Recipe(
        loss={"name": "interval", "eps": {"kind": "linear", "from": 0, "to": 0.05, "end": 1}},
        regularizer=[{"name": name, "weight": 0.1}],
        run={"epochs": 2, "batch_size": 8, "workers": 1 if name in losses.STEPWISE else 2},
    )
    record = train(network(), x, labels, recipe)
    assert name in record.epochs[1].parts and math.isfinite(record.epochs[1].loss)
