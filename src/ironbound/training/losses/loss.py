"""What every loss returns, and what several of them need: checks, means, margins turned into losses."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ironbound.errors import InputError, LabelError
from ironbound.regions import Region
from ironbound.training.batch_norm import batch_statistics


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch.

    Attributes:
        value: scalar, differentiable in the parameters.
        wrong: bool [batch], the examples that the loss sees as wrong.
        parts: named terms for the logs, numbers without gradient.
        each: the loss of each example before weights, [batch], without gradient: what importance sampling needs.
    """

    value: Tensor
    wrong: Tensor
    parts: Mapping[str, float] = field(default_factory=dict)
    each: Tensor | None = None


def weighted(each: Tensor, wrong: Tensor, weights: Tensor | None, parts: Mapping[str, float] | None = None) -> Loss:
    """The loss of a batch from that of its examples.

    Args:
        each: loss of each example, [batch].
        wrong: bool [batch].
        weights: weight of each example, [batch]; None: 1. The sum is divided by the number of examples, not by that of
            the weights, so that weights 1 / p of examples kept with probability p leave the expected loss unchanged.
        parts: terms for the logs.

    Returns:
        The loss.

    Raises:
        InputError: the weights are not finite numbers >= 0, one per example.
    """
    if weights is None:
        value = each.mean()
    else:
        if not isinstance(weights, Tensor) or weights.shape != each.shape:
            raise InputError(f"weights must be a tensor of shape {tuple(each.shape)}, one weight per example")
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise InputError("weights must be finite numbers >= 0")
        value = (each * weights.to(each)).mean()
    return Loss(value, wrong, parts or {}, each.detach())


def check_share(name: str, value: float) -> float:
    """Refuses a mixing weight outside [0, 1].

    Args:
        name: of the option.
        value: its value.

    Returns:
        The value.

    Raises:
        InputError: it is NaN or outside [0, 1].
    """
    if not 0 <= value <= 1 or math.isnan(value):
        raise InputError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def clean_logits(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    """Logits of points, for labels that are classes of the network.

    Args:
        model: the network, in the mode it is in.
        points: [batch, *shape].
        labels: int64 [batch].

    Returns:
        [batch, classes].

    Raises:
        InputError: the output is not [batch, classes].
        LabelError: labels are not integers [batch] or not classes of the network.
    """
    logits = model(points)
    if logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] < 2:
        raise InputError(f"a loss needs logits [{len(points)}, 2 or more classes], got {tuple(logits.shape)}")
    if labels.shape != (len(points),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise LabelError(f"labels must be integers [{len(points)}], got {labels.dtype} {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise LabelError(f"labels must lie in 0 to {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}")
    return logits


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Where another class is as large as the label's or a logit is NaN, bool [batch]."""
    return unproved(differences(logits.detach(), labels), labels)


def differences(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus each, [batch, classes]; 0 at the label."""
    return logits.gather(1, labels.unsqueeze(1)) - logits


def unproved(lower: Tensor, labels: Tensor) -> Tensor:
    """Where a lower bound [batch, classes] of a margin, the label's own apart, is not > 0 (or NaN), bool [batch]."""
    rivals = lower.detach().scatter(1, labels.unsqueeze(1), float("inf"))
    return ~(rivals > 0).all(1)


def robust_cross_entropy(lower: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example with minus the lower bounds of its margins as logits.

    An upper bound of cross-entropy wherever the bounds hold, since cross-entropy rises with every logit but the
    label's and does not change when all are shifted.

    Source: Wong and Kolter, "Provable defenses ..." (ICML 2018), theorem 2 and equation (14).

    Args:
        lower: lower bounds of logit[label] - logit[k], [batch, classes].
        labels: int64 [batch].

    Returns:
        [batch].
    """
    return cross_entropy(-lower, labels, reduction="none")


def refuse_dropout(model: nn.Module) -> None:
    """Raises for layers that switch elements off at random, of which no bound of the trained network can tell.

    Args:
        model: the network.

    Raises:
        InputError: the network has a dropout layer with a positive rate.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            raise InputError(
                f"losses on bounds cannot train {type(part).__name__} ({name}): bounds are those of the network "
                "without it; take the layer out, set its rate to 0, or train with the standard or the pgd loss"
            )


@contextmanager
def as_used(model: nn.Module, region: Region) -> Generator[None]:
    """The network as it is used, for bounds: in evaluation mode.

    A network that comes in training mode takes the statistics of the clean batch for its batch norm (see
    `batch_statistics`); one that comes in evaluation mode, also inside that context, is left as it is.

    Args:
        model: the network.
        region: its centers are the clean batch.

    Yields:
        Nothing.

    Raises:
        InputError: the network has dropout, or batch norm that cannot be handled.
    """
    refuse_dropout(model)
    if any(part.training for part in model.modules()):
        with batch_statistics(model, region.center):
            yield
    else:
        yield
