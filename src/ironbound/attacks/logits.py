"""What every attack does with a network: run it in chunks, read margins, differentiate by the input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ironbound.attacks.result import Attack
from ironbound.errors import InputError, LabelError
from ironbound.regions import Region

Network = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]

CHUNK_ROWS = 256
"""Most points that the network sees at once: larger chunks leave the cache and gain nothing."""
CHUNK_ELEMENTS = 2**19
"""Most input elements at once: activations are some hundred times larger, and are all kept for the gradient."""


def chunk_size(region: Region) -> int:
    """Number of points per call of the network."""
    return max(1, min(CHUNK_ROWS, CHUNK_ELEMENTS // max(1, region.center[:1].numel())))


def check_labels(region: Region, labels: Tensor) -> Tensor:
    """Labels on the region's device, as int64.

    Args:
        region: the examples.
        labels: [batch], integers.

    Returns:
        [batch], int64.

    Raises:
        LabelError: not integers, or not one per example.
    """
    labels = torch.as_tensor(labels, device=region.center.device)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise LabelError(f"labels must be integers, not {labels.dtype}; convert them with .long()")
    if labels.shape != (len(region),):
        raise LabelError(f"labels must have shape [{len(region)}], one per example, got {tuple(labels.shape)}")
    return labels.long()


def run(model: Network, points: Tensor, labels: Tensor) -> Tensor:
    """Logits of the points.

    Args:
        model: any callable from [batch, *shape] to [batch, classes].
        points: [batch, *shape].
        labels: int64 [batch].

    Returns:
        [batch, classes].

    Raises:
        InputError: the output is not [batch, classes], or holds NaN.
        LabelError: a label is not one of the classes.
    """
    logits = model(points)
    if logits.dim() != 2 or len(logits) != len(points) or logits.shape[1] < 2:
        raise InputError(
            f"an attack needs logits [{len(points)}, 2 or more classes], the network gives {tuple(logits.shape)}"
        )
    classes = logits.shape[1]
    if ((labels < 0) | (labels >= classes)).any():
        raise LabelError(f"labels must lie in 0 to {classes - 1}, got {labels.min().item()} to {labels.max().item()}")
    if logits.isnan().any():
        raise InputError(
            "the network returns NaN for points of the region; check its weights and the range of the inputs"
        )
    return logits


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits [batch, classes] with -inf at the label [batch]."""
    return logits.scatter(1, labels.unsqueeze(1), float("-inf"))


def margins_at(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the largest other, [batch].

    Args:
        logits: [batch, classes].
        labels: int64 [batch].

    Returns:
        [batch]; not above 0 where the network prefers another class, ties included.

    Raises:
        InputError: infinite logits of one sign, whose difference is NaN.
    """
    margins = logits.gather(1, labels.unsqueeze(1)).squeeze(1) - others(logits, labels).amax(1)
    if margins.isnan().any():
        raise InputError("the network returns infinite logits, which cannot be compared; check its weights")
    return margins


def step_up(model: Network, points: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Margins at the points, and the gradient of each point's loss; the parameters' gradients stay as they are.

    Args:
        model: the network.
        points: [batch, *shape].
        labels: int64 [batch].
        loss: from logits [batch, classes] to [batch].

    Returns:
        Margins [batch] and gradients [batch, *shape], 0 where a gradient is NaN.

    Raises:
        InputError: the output does not depend differentiably on the input.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits = run(model, points, labels)
        value = loss(logits).sum()
        if not value.requires_grad:
            raise InputError(
                "the network cuts its output from its input (detach or no_grad), so no gradient attack works on it"
            )
        (gradient,) = torch.autograd.grad(value, points)
    return margins_at(logits.detach(), labels), gradient.nan_to_num()


def untargeted(labels: Tensor, allowed: Tensor | None) -> Loss:
    """Cross-entropy up to a monotone function: log(exp(this) + 1).

    The steepest direction is that of cross-entropy, but the gradient does not vanish where the network is certain
    (1 - p is 0 in float32 once the margin passes 17).

    Args:
        labels: int64 [batch].
        allowed: classes to count, bool [batch, classes], or None for all.

    Returns:
        The loss.
    """

    def loss(logits: Tensor) -> Tensor:
        rivals = others(logits, labels)
        if allowed is not None:
            rivals = rivals.masked_fill(~allowed, float("-inf"))
        return rivals.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)

    return loss


def targeted(labels: Tensor, goals: Tensor) -> Loss:
    """The margin of one other class over the label.

    Args:
        labels: int64 [batch].
        goals: int64 [batch].

    Returns:
        The loss.
    """

    def loss(logits: Tensor) -> Tensor:
        return (logits.gather(1, goals.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(1)

    return loss


@torch.no_grad()
def logits_at(model: Network, points: Tensor, labels: Tensor, size: int) -> Tensor:
    """Logits [batch, classes] of any number of points, `size` at a time."""
    if not len(points):
        raise InputError("there is no example to attack")
    parts = zip(points.split(size), labels.split(size), strict=True)
    return torch.cat([run(model, part, part_labels) for part, part_labels in parts])


def assess(model: Network, region: Region, points: Tensor, labels: Tensor) -> Attack:
    """Runs the network on exactly the points that are returned."""
    margins = margins_at(logits_at(model, points, labels, chunk_size(region)), labels)
    return Attack(points, margins <= 0, margins)
