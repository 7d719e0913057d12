"""The losses: each one number per batch, and which examples it sees as wrong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ironbound.attacks.logits import margins_at, step_up, untargeted
from ironbound.bounding import margins
from ironbound.errors import InputError, LabelError
from ironbound.regions import Region


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch.

    Attributes:
        value: scalar, differentiable in the parameters.
        wrong: bool [batch], the examples that the loss sees as wrong.
    """

    value: Tensor
    wrong: Tensor


def _at(model: nn.Module, points: Tensor, labels: Tensor) -> Loss:
    logits = model(points)
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise LabelError(f"labels must lie in 0 to {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}")
    return Loss(cross_entropy(logits, labels), margins_at(logits.detach().nan_to_num(), labels) <= 0)


def standard(model: nn.Module, region: Region, labels: Tensor) -> Loss:
    """Cross-entropy at the centers; wrong: misclassified.

    Args:
        model: the network.
        region: only its centers [batch, *shape] count.
        labels: int64 [batch].

    Returns:
        The loss.
    """
    return _at(model, region.center, labels)


def pgd(model: nn.Module, region: Region, labels: Tensor, steps: int, generator: torch.Generator) -> Loss:
    """Cross-entropy at points that projected gradient ascent finds from random starts; wrong: misclassified there.

    The attack sees the network in evaluation mode; unlike `ironbound.pgd` it goes on after the first error, up to the
    worst loss.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), equation (2.1).

    Args:
        model: the network, in any mode.
        region: what the attacker may do to each example.
        labels: int64 [batch].
        steps: number of steps, each 2.5 / steps of the radius.
        generator: for the starts.

    Returns:
        The loss.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    points = region.sample(generator)
    for _ in range(steps):
        _, gradient = step_up(model, points, labels, untargeted(labels, None))
        points = region.project(points + region.ascent(gradient, 2.5 / steps))
    for part, mode in modes:
        part.training = mode
    return _at(model, points, labels)


def refuse_two_modes(model: nn.Module) -> None:
    """Raises for layers that act differently in training and evaluation mode, which the interval loss cannot train.

    Raises:
        InputError: the network has batch norm or dropout.
    """
    for name, part in model.named_modules():
        if isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            raise InputError(
                f"the interval loss cannot train {type(part).__name__} ({name}) yet: the next release will; "
                "take the layer out, or train with the pgd loss"
            )


def interval(model: nn.Module, region: Region, labels: Tensor, kappa: float) -> Loss:
    """Mixes cross-entropy (kappa) and robust cross-entropy of interval margins (1 - kappa); wrong: not proved.

    Robust cross-entropy takes minus the lower bounds of logit[label] - logit[k] as logits: an upper bound of
    cross-entropy in the region (Wong and Kolter 2018, theorem 2).

    Source: Gowal et al., "On the effectiveness of interval bound propagation" (2018), equation (12).

    Args:
        model: the network, in evaluation mode.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        kappa: weight of the standard part, in [0, 1].

    Returns:
        The loss.

    Raises:
        InputError: a layer acts differently in training and evaluation mode.
    """
    refuse_two_modes(model)
    lower = margins(model, region, labels, method="interval")
    robust = cross_entropy(-lower, labels)
    rivals = lower.detach().scatter(1, labels.unsqueeze(1), float("inf"))
    wrong = ~(rivals > 0).all(1)
    if kappa == 0:
        return Loss(robust, wrong)
    return Loss(kappa * cross_entropy(model(region.center), labels) + (1 - kappa) * robust, wrong)
