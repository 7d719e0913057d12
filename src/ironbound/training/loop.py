"""The loop: stages of epochs of steps, on one process or several, with checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ironbound.attacks.logits import check_labels
from ironbound.data.dataset import digest
from ironbound.errors import InputError
from ironbound.regions import ball
from ironbound.training.artefact import RunFolder
from ironbound.training.checkpoint import isolated_rng
from ironbound.training.order import split_off
from ironbound.training.recipe import Recipe
from ironbound.training.record import Epoch, Step, TrainingRecord
from ironbound.training.shorthand import simple
from ironbound.training.step import threads
from ironbound.training.trainer import Examples, Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    recipe: Recipe | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Callable[[Epoch], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    **settings: Any,
) -> TrainingRecord:
    """Trains a network in place and leaves it in evaluation mode; one seed, one result.

    Under `torchrun` the processes share every batch. With a folder, a run that was stopped at any point goes on where
    its last checkpoint is, and ends on a CPU bit for bit as if it had never been stopped.

    Args:
        model: the network, from [batch, *shape] to logits [batch, classes].
        inputs: [examples, *shape], floating point.
        labels: integers [examples].
        recipe: the settings; its sections on network and data are not used, but for the validation split and
            augmentation. None: those that `settings` name.
        folder: of the run: checkpoints, weights, recipe, logs. None: nothing is written.
        progress: called after every epoch, in the first process.
        on_step: called after every step, in the first process.
        **settings: in place of a recipe, those of `simple`, such as loss="interval", eps=0.1, epochs=10.

    Returns:
        Loss and error of every epoch.

    Raises:
        InputError: a setting, the inputs or the labels do not fit, there is nothing to train, or the folder belongs to
            another run.
        TrainingError: the loss is NaN or infinite, training has collapsed, or a file cannot be written.
    """
    if recipe is not None and settings:
        raise InputError(f"give a recipe or settings ({', '.join(settings)}), not both; see Recipe.override.")
    recipe = simple(**settings) if recipe is None else recipe
    labels = check_labels(ball(recipe.region.norm, inputs, recipe.region.eps, recipe.region.clip), labels)
    if not any(parameter.requires_grad for parameter in model.parameters()) or not len(inputs):
        raise InputError("there is nothing to train: no parameter that requires a gradient, or no example")
    fabric = processes(recipe.run.device)
    place = None
    if folder is not None:
        facts = {"sha256": digest(inputs, labels), "examples": len(labels), "name": recipe.data.name}
        place = RunFolder(folder, recipe, facts)
    before = [tensor.device for tensor in model.state_dict().values()][:1]
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(recipe.run.seed))
        wanted = recipe.run.threads or (1 if recipe.run.workers > 1 else torch.get_num_threads())
        stack.enter_context(threads(wanted))
        if place is not None:
            if fabric.is_global_zero:
                stack.enter_context(place.locked())
                place.open()
            fabric.barrier()
        try:
            model.to(fabric.device)
            examples = _split(inputs.to(fabric.device), labels.to(fabric.device), recipe)
            trainer = Trainer(model, examples, recipe, fabric, place)
            epochs = trainer.run(progress, on_step)
        finally:
            model.eval()
            model.to(*before)
    return TrainingRecord(recipe, epochs)


def processes(device: str) -> Fabric:
    """The processes that train together: those of `torchrun`, or this one alone.

    Args:
        device: "auto", "cpu" or "cuda".

    Returns:
        Lightning Fabric, launched.

    Raises:
        InputError: there is no such device.
    """
    import logging

    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        fabric = Fabric(
            accelerator=name,
            devices=here if world > 1 else 1,
            num_nodes=max(1, world // here),
            strategy="ddp" if world > 1 else "auto",
        )
    except Exception as error:  # Fabric's own error types differ by version
        raise InputError(f"device {device!r} cannot be used: {' '.join(str(error).split())}") from error
    fabric.launch()
    return fabric


def _split(inputs: Tensor, labels: Tensor, recipe: Recipe) -> Examples:
    """Training and validation examples."""
    rest, chosen = split_off(len(labels), recipe.data.validation, recipe.data.validation_seed)
    if not len(chosen):
        return Examples(inputs, labels, inputs[:0], labels[:0])
    if not len(rest):
        raise InputError("data.validation leaves no example to train on; lower it.")
    rest, chosen = rest.to(inputs.device), chosen.to(inputs.device)
    return Examples(inputs[rest], labels[rest], inputs[chosen], labels[chosen])
