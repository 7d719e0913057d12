"""Metrics on the validation split while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ironbound.attacks import pgd
from ironbound.bounding import margins
from ironbound.regions import ball
from ironbound.training import recipe as recipes
from ironbound.training.record import Evaluation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_BATCH = 500


def evaluate(
    model: nn.Module, inputs: Tensor, labels: Tensor, recipe: recipes.Recipe, fabric: Fabric | None = None
) -> Evaluation:
    """Errors of a network: clean, under attack, and not proved. The processes share the examples.

    These are estimates for choosing settings: margins are compared with 0 as they come, in float32, without the care
    for rounding that `ironbound.certify` takes.

    Args:
        model: the network in evaluation mode.
        inputs: [examples, *shape].
        labels: int64 [examples].
        recipe: says region, attack, methods, and how many examples the attack and the proofs see.
        fabric: the processes; None: this one alone.

    Returns:
        The errors.
    """
    settings, place = recipe.evaluation, recipe.region
    rank, processes = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    subset = min(settings.examples, len(inputs))
    counts = torch.zeros(3 + len(settings.methods), dtype=torch.float64, device=inputs.device)
    with torch.no_grad():
        for piece in torch.arange(rank, len(inputs), processes, device=inputs.device).split(_BATCH):
            counts[0] += int((model(inputs[piece]).argmax(1) != labels[piece]).sum())
        for piece in torch.arange(rank, subset, processes, device=inputs.device).split(_BATCH):
            region, label = ball(place.norm, inputs[piece], place.eps, place.clip), labels[piece]
            counts[1] += int(pgd(model, region, label, steps=settings.attack_steps).success.sum())
            best = torch.full((), float("-inf"), device=inputs.device)
            for position, method in enumerate(settings.methods):
                found = margins(model, region, label, method=method).scatter(1, label[:, None], float("inf"))
                counts[3 + position] += int((~(found > 0).all(1)).sum())
                best = torch.fmax(best, found)
            counts[2] += int((~(best > 0)).any(1).sum()) if settings.methods else len(piece)
    if fabric is not None and processes > 1:
        counts = fabric.all_reduce(counts, reduce_op="sum")
        assert isinstance(counts, Tensor)
    clean, attacked, best_error, *each = counts.tolist()
    return Evaluation(
        subset,
        clean / len(inputs),
        attacked / subset,
        {name: count / subset for name, count in zip(settings.methods, each, strict=True)},
        best_error / subset,
    )
