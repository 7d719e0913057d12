"""The fast gradient sign method, and its counterpart for the other norms."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.attacks.logits import Network, assess, check_labels, chunk_size, step_up, untargeted
from ironbound.attacks.result import Attack
from ironbound.regions import Region


def fgsm(model: Network, region: Region, labels: Tensor) -> Attack:
    """One step over the whole radius in the direction in which cross-entropy rises fastest.

    Source: Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (2015), section 4.

    Args:
        model: the network, any callable from [batch, *shape] to [batch, classes]; its mode and gradients do not change.
        region: what the attacker may do.
        labels: integers [batch].

    Returns:
        One candidate per example, also where the network is wrong about the center already.

    Raises:
        LabelError: labels are not integers, not one per example or not classes of the network.
        InputError: the network's output is not [batch, classes], is NaN or does not depend differentiably on the input.
    """
    labels = check_labels(region, labels)
    points = torch.empty_like(region.center)
    for rows in torch.arange(len(region), device=labels.device).split(chunk_size(region)):
        part = region[rows]
        _, gradient = step_up(model, part.center, labels[rows], untargeted(labels[rows], None))
        points[rows] = part.project(part.center + part.ascent(gradient, 1.0))
    return assess(model, region, points, labels)
