"""The attack inside training: from random starts up to the worst loss, and regions scaled for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironbound.attacks.logits import check_labels, step_up, untargeted
from ironbound.errors import InputError
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region


def attacked(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    steps: int = 8,
    generator: torch.Generator | None = None,
    step_size: float | None = None,
    attack_scale: float = 1.0,
) -> Tensor:
    """Points of the region that projected gradient ascent on cross-entropy reaches; no gradient flows through them.

    The network runs in evaluation mode and leaves in the mode it came in. Unlike `ironbound.pgd` the ascent goes on
    after the first error. One step from the center is FGSM.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), section 2.1.

    Args:
        model: the network.
        region: what the attacker may do to each example.
        labels: integers [batch].
        steps: number of steps.
        generator: draws the starts; None: the centers.
        step_size: length of a step as a fraction of the radius; None: 2.5 / steps.
        attack_scale: the attacker's radius in units of the region's; De Palma et al. (2024) attack further than they
            bound where the radius is small (2.1 for CIFAR-10 at 2/255).

    Returns:
        [batch, *shape].

    Raises:
        InputError: an option does not fit, or the network returns NaN.
        LabelError: labels do not fit.
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    length = 2.5 / steps if step_size is None else step_size
    if not 0 < length < float("inf"):
        raise InputError(f"step_size must be a positive fraction of the radius, got {step_size}")
    labels = check_labels(region, labels)
    wide = region if attack_scale == 1 else scaled(region, attack_scale)
    if not isinstance(wide, Box) and not bool(_radius(wide).any()):
        return region.center  # a ramp begins at 0: nothing to search
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        points = wide.center if generator is None else wide.sample(generator)
        for _ in range(steps):
            _, gradient = step_up(model, points, labels, untargeted(labels, None))
            points = wide.project(points + wide.ascent(gradient, length))
    finally:
        for part, mode in modes:
            part.training = mode
    return points.detach()


def scaled(region: Region, factor: float, center: Tensor | None = None) -> Region:
    """The region with its radius multiplied, possibly around other centers.

    Args:
        region: a ball or a box; a clipping range stays as it is.
        factor: of the radius, finite, not negative.
        center: [batch, *shape], in the clipping range; None: the region's own.

    Returns:
        The region, of the same kind.

    Raises:
        InputError: the factor does not fit, or the region is of another kind.
    """
    if not 0 <= factor < float("inf"):
        raise InputError(f"a radius can be scaled by a finite number >= 0 only, got {factor}")
    around = region.center if center is None else center
    if isinstance(region, Box):
        half = factor * ((region.upper - region.lower) / 2)
        return Box(around - half, around + half)
    return type(region)(around, _radius(region) * factor, region.clip)  # type: ignore[call-arg]


def _radius(region: Region) -> Tensor:
    if not isinstance(region, LinfBall | L2Ball | L1Ball):
        raise InputError(f"the radius of a {type(region).__name__} is not known; use LinfBall, L2Ball, L1Ball or Box")
    return region.eps
