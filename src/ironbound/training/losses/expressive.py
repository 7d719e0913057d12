"""Losses between an attack and a bound: small boxes (SABR) and convex combinations (MTL-IBP, CC-IBP, Exp-IBP).

None of them bounds the loss in the region; they train networks that the exact methods then prove.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ironbound.bounding import margins
from ironbound.regions import Box, Region
from ironbound.training.losses.adversary import attacked, scaled
from ironbound.training.losses.loss import (
    Loss,
    as_used,
    check_share,
    clean_logits,
    differences,
    misclassified,
    robust_cross_entropy,
    unproved,
    weighted,
)

# (attacked logits, interval margins, labels) -> loss of each example
_Combine = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Attack:
    steps: int
    scale: float
    generator: torch.Generator | None

    def __call__(self, model: nn.Module, region: Region, labels: Tensor) -> Tensor:
        return attacked(model, region, labels, self.steps, self.generator, attack_scale=self.scale)


def sabr(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    lambda_: float = 0.4,
    steps: int = 8,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """Robust cross-entropy of interval margins on a small region around an attacked point; wrong: not proved there.

    Source: Müller et al., "Certified training: small boxes are all you need" (2023), section 3.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        lambda_: radius of the small region as a share of the region's, in [0, 1]; 1 is the interval loss.
        steps: number of steps of the attack.
        generator: draws the attack's starts; None: it starts at the centers.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """
    check_share("lambda_", lambda_)
    with as_used(model, region):
        small = (
            region if lambda_ == 1 else small_region(region, attacked(model, region, labels, steps, generator), lambda_)
        )
        lower = margins(model, small, labels, method="interval")
    return weighted(robust_cross_entropy(lower, labels), unproved(lower, labels), weights)


def small_region(region: Region, points: Tensor, lambda_: float) -> Region:
    """A region of lambda_ times the radius, inside the region and as close to the points as it can be.

    Its centers are the points projected into the region of 1 - lambda_ times the radius; a clipping range cuts both.

    Source: Müller et al. (2023), section 3.

    Args:
        region: the whole region.
        points: [batch, *shape], in the clipping range.
        lambda_: share of the radius, in [0, 1].

    Returns:
        The small region, of the same kind.
    """
    center = scaled(region, 1 - lambda_).project(points)
    if isinstance(region, Box):  # rounding must not carry an end out of the box
        small = scaled(region, lambda_, center)
        return Box(region.project(small.box()[0]), region.project(small.box()[1]))
    return scaled(region, lambda_, center)


def mtl_ibp(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    alpha: float = 0.5,
    steps: int = 8,
    attack_scale: float = 1.0,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The mixture (1 - alpha) * adversarial + alpha * interval loss; wrong: not proved by intervals.

    Source: De Palma et al., "Expressive losses for verified robustness via convex combinations" (2024), MTL-IBP.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        alpha: weight of the interval loss, in [0, 1]; 0 is adversarial training, 1 the interval loss.
        steps: number of steps of the attack.
        attack_scale: the attacker's radius in units of the region's; the paper attacks further than it bounds where
            the radius is small (2.1 for CIFAR-10 at 2/255).
        generator: draws the attack's starts; None: it starts at the centers.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """

    def combine(logits: Tensor, lower: Tensor, labels: Tensor) -> Tensor:
        adversarial = cross_entropy(logits, labels, reduction="none")
        return (1 - alpha) * adversarial + alpha * robust_cross_entropy(lower, labels)

    attack = _Attack(steps, attack_scale, generator)
    return _between(model, region, labels, alpha, combine, attack, weights)


def cc_ibp(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    alpha: float = 0.5,
    steps: int = 8,
    attack_scale: float = 1.0,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """Cross-entropy of mixed margins, (1 - alpha) * attacked + alpha * interval; wrong: not proved by intervals.

    Source: De Palma et al., "Expressive losses for verified robustness via convex combinations" (2024), CC-IBP.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        alpha: weight of the interval margins, in [0, 1]; 0 is adversarial training, 1 the interval loss.
        steps: number of steps of the attack.
        attack_scale: the attacker's radius in units of the region's; the paper attacks further than it bounds where
            the radius is small (2.1 for CIFAR-10 at 2/255).
        generator: draws the attack's starts; None: it starts at the centers.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """

    def combine(logits: Tensor, lower: Tensor, labels: Tensor) -> Tensor:
        return robust_cross_entropy((1 - alpha) * differences(logits, labels) + alpha * lower, labels)

    attack = _Attack(steps, attack_scale, generator)
    return _between(model, region, labels, alpha, combine, attack, weights)


def exp_ibp(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    alpha: float = 0.5,
    steps: int = 8,
    attack_scale: float = 1.0,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The product adversarial^(1 - alpha) * interval^alpha, example by example; wrong: not proved by intervals.

    A loss that underflows counts as the smallest normal number, and then carries no gradient.

    Source: De Palma et al., "Expressive losses for verified robustness via convex combinations" (2024), Exp-IBP.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        alpha: exponent of the interval loss, in [0, 1]; 0 is adversarial training, 1 the interval loss.
        steps: number of steps of the attack.
        attack_scale: the attacker's radius in units of the region's; the paper attacks further than it bounds where
            the radius is small (2.1 for CIFAR-10 at 2/255).
        generator: draws the attack's starts; None: it starts at the centers.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """

    def combine(logits: Tensor, lower: Tensor, labels: Tensor) -> Tensor:
        floor = torch.finfo(logits.dtype).tiny
        adversarial = cross_entropy(logits, labels, reduction="none").clamp(min=floor)
        proved = robust_cross_entropy(lower, labels).clamp(min=floor)
        return adversarial ** (1 - alpha) * proved**alpha

    attack = _Attack(steps, attack_scale, generator)
    return _between(model, region, labels, alpha, combine, attack, weights)


def _between(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    alpha: float,
    combine: _Combine,
    attack: _Attack,
    weights: Tensor | None,
) -> Loss:
    """One attack, one run at its points, one interval pass, combined; the ends of alpha are exact."""
    check_share("alpha", alpha)
    with as_used(model, region):
        with torch.set_grad_enabled(torch.is_grad_enabled() and alpha > 0):  # weight 0: only `wrong` needs the bounds
            lower = margins(model, region, labels, method="interval")
        proved = robust_cross_entropy(lower, labels)
        parts = {"interval": proved.mean().item()}
        if alpha == 1:
            return weighted(proved, unproved(lower, labels), weights, parts)
        logits = clean_logits(model, attack(model, region, labels), labels)
    adversarial = cross_entropy(logits, labels, reduction="none")
    parts["adversarial"] = adversarial.mean().item()
    parts["adversarial_error"] = misclassified(logits, labels).float().mean().item()
    each = adversarial if alpha == 0 else combine(logits, lower, labels)
    return weighted(each, unproved(lower, labels), weights, parts)
