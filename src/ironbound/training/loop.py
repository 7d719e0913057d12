"""The loop: shuffled batches, Adam, a ramp of the radius."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ironbound.attacks.logits import check_labels
from ironbound.errors import InputError, TrainingError
from ironbound.regions import ball
from ironbound.training import losses
from ironbound.training.recipes import Recipe
from ironbound.training.record import Epoch, TrainingRecord
from ironbound.training.schedule import decay, ramp

Progress = Callable[[Epoch], None]


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainingRecord:
    """Trains a network in place and leaves it in evaluation mode; one seed, one result.

    Args:
        model: the network, from [batch, *shape] to logits [batch, classes].
        inputs: [examples, *shape], floating point.
        labels: integers [examples].
        recipe: the settings; None: those of `Recipe()`.
        progress: called after every epoch.
        **settings: fields of `Recipe` that replace the recipe's, such as loss="interval", eps=0.1.

    Returns:
        Loss and error of every epoch.

    Raises:
        InputError: a setting, the inputs or the labels do not fit, the network has no parameter to train, or, with the
            interval loss, it has batch norm or dropout.
        TrainingError: the loss is NaN or infinite.
    """
    recipe = replace(recipe or Recipe(), **settings)
    region = ball(recipe.norm, inputs, recipe.eps, recipe.clip)  # checks the inputs
    labels = check_labels(region, labels)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters or not len(inputs):
        raise InputError("there is nothing to train: no parameter that requires a gradient, or no example")
    if recipe.loss == "interval":
        losses.refuse_two_modes(model)
    optimizer = torch.optim.Adam(parameters, lr=recipe.lr)
    order = torch.Generator().manual_seed(recipe.seed)
    starts = torch.Generator(inputs.device).manual_seed(recipe.seed)
    epochs = []
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(recipe.seed)  # dropout draws from the global generator
            for number in range(1, recipe.epochs + 1):
                model.train(recipe.loss != "interval")  # bounds are those of the network as it is used
                epochs.append(_epoch(model, inputs, labels, recipe, (optimizer, order, starts), number))
                if progress is not None:
                    progress(epochs[-1])
    finally:
        model.eval()
    return TrainingRecord(recipe, tuple(epochs))


def _epoch(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe,
    state: tuple[torch.optim.Optimizer, torch.Generator, torch.Generator],
    number: int,
) -> Epoch:
    """One pass over the examples in a new order."""
    optimizer, order, starts = state
    batches = torch.randperm(len(inputs), generator=order).to(inputs.device).split(recipe.batch_size)
    total, wrong, share = 0.0, 0, 0.0
    for index, batch in enumerate(batches):
        time = number - 1 + index / len(batches)
        share = ramp(time, *recipe.ramp)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * decay(time, recipe.ramp[1], recipe.epochs)
        loss = _loss(model, inputs[batch], labels[batch], recipe, share, starts)
        value = loss.value.item()
        if not abs(value) < float("inf"):
            raise TrainingError(f"the loss is {value} in epoch {number}; lower lr, or ramp eps up more slowly")
        optimizer.zero_grad(set_to_none=True)
        loss.value.backward()
        optimizer.step()
        total += value * len(batch)
        wrong += int(loss.wrong.sum())
    kappa = _kappa(recipe, share)
    eps = 0.0 if recipe.loss == "standard" else recipe.eps * share
    return Epoch(number, eps, kappa, total / len(inputs), wrong / len(inputs))


def _kappa(recipe: Recipe, share: float) -> float:
    """Weight of the standard loss after a share of the ramp."""
    if recipe.loss == "standard":
        return 1.0
    return 1.0 - share * (1.0 - recipe.kappa) if recipe.loss == "interval" else 0.0


def _loss(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe, share: float, starts: torch.Generator
) -> losses.Loss:
    """The recipe's loss at a share of the final radius; standard where the radius is 0."""
    region = ball(recipe.norm, inputs, recipe.eps * share, recipe.clip)
    if recipe.loss == "standard" or share == 0:
        return losses.standard(model, region, labels)
    if recipe.loss == "pgd":
        return losses.pgd(model, region, labels, recipe.attack_steps, starts)
    return losses.interval(model, region, labels, _kappa(recipe, share))
