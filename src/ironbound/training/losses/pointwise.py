"""Losses at points: the examples themselves, or what an attack makes of them. They prove nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ironbound.regions import Region
from ironbound.training.losses.adversary import attacked
from ironbound.training.losses.bounded import worst_hinge
from ironbound.training.losses.loss import Loss, check_share, clean_logits, differences, misclassified, weighted


def standard(model: nn.Module, region: Region, labels: Tensor, weights: Tensor | None = None) -> Loss:
    """Cross-entropy at the centers; wrong: misclassified.

    Args:
        model: the network, in any mode.
        region: only its centers [batch, *shape] count.
        labels: int64 [batch].
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.
    """
    return at_points(model, region.center, labels, weights)


def hinge(model: nn.Module, region: Region, labels: Tensor, weights: Tensor | None = None) -> Loss:
    """The multi-class hinge [1 - min over k of margin_k]+ at the centers; wrong: misclassified.

    Source: Raghunathan et al., "Certified defenses against adversarial examples" (2018), section 6.

    Args:
        model: the network, in any mode.
        region: only its centers [batch, *shape] count.
        labels: int64 [batch].
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.
    """
    logits = clean_logits(model, region.center, labels)
    return weighted(worst_hinge(differences(logits, labels), labels), misclassified(logits, labels), weights)


def pgd(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    steps: int = 10,
    generator: torch.Generator | None = None,
    step_size: float | None = None,
    weights: Tensor | None = None,
    kappa: float = 0.0,
) -> Loss:
    """Adversarial training: cross-entropy at points that gradient ascent finds; wrong: misclassified there.

    The attack sees the network in evaluation mode, the loss sees it in the mode it came in. With one step and no
    generator the points are FGSM's.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), equation (2.1).

    Args:
        model: the network, in any mode.
        region: what the attacker may do to each example.
        labels: int64 [batch].
        steps: number of steps of the attack.
        generator: draws the starts; None: the attack starts at the centers.
        step_size: as a fraction of the radius; None: 2.5 / steps.
        weights: of the examples, [batch], or None for 1.
        kappa: weight of the clean loss, in [0, 1]; that of the attacked one is 1 - kappa.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit.
    """
    check_share("kappa", kappa)
    found = at_points(model, attacked(model, region, labels, steps, generator, step_size), labels, weights)
    if kappa == 0:
        return found
    clean = standard(model, region, labels, weights)
    assert clean.each is not None and found.each is not None
    each = kappa * clean.each + (1 - kappa) * found.each
    parts = {"clean": clean.each.mean().item(), "adversarial": found.each.mean().item()}
    return Loss(kappa * clean.value + (1 - kappa) * found.value, found.wrong, parts, each)


def at_points(model: nn.Module, points: Tensor, labels: Tensor, weights: Tensor | None) -> Loss:
    """Cross-entropy at given points.

    Args:
        model: the network, in any mode.
        points: [batch, *shape].
        labels: int64 [batch].
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss; wrong: misclassified.
    """
    logits = clean_logits(model, points, labels)
    return weighted(cross_entropy(logits, labels, reduction="none"), misclassified(logits, labels), weights)
