"""Regularizers for a short warm-up of interval training: keep the bounds' widths steady and the ReLUs balanced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironbound.bounding import bounds
from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.ops.piecewise import ReLU
from ironbound.regions import Region
from ironbound.training.losses.loss import as_used

_Range = tuple[Tensor, Tensor]


def shi_tightness(model: nn.Module, region: Region, labels: Tensor, tolerance: float = 0.5) -> Tensor:
    """Penalises layers whose interval bounds are wider, on average, than 1 / tolerance times the input region.

    Source: Shi et al., "Fast certified robust training with short warmup" (2021), equation (7).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: not used; regularizers are called alike.
        tolerance: tau in (0, 1].

    Returns:
        Scalar in [0, 1], differentiable in the parameters.

    Raises:
        InputError: tolerance does not fit, or the network has no activation or has dropout.
    """
    _check(tolerance)
    return _tightness(_layers(model, region), region, tolerance)


def shi_relu_balance(model: nn.Module, region: Region, labels: Tensor, tolerance: float = 0.5) -> Tensor:
    """Penalises ReLU layers in which active and inactive neurons contribute unequally to the mean and the variance.

    A layer without an active or without an inactive neuron adds nothing.

    Source: Shi et al., "Fast certified robust training with short warmup" (2021), equation (8).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: not used; regularizers are called alike.
        tolerance: tau in (0, 1].

    Returns:
        Scalar in [0, 2], differentiable in the parameters.

    Raises:
        InputError: tolerance does not fit, or the network has no ReLU or has dropout.
    """
    _check(tolerance)
    return _balance(_layers(model, region), tolerance)


def shi(model: nn.Module, region: Region, labels: Tensor, tolerance: float = 0.5) -> Tensor:
    """The sum of both regularizers from one interval pass.

    Source: Shi et al., "Fast certified robust training with short warmup" (2021), equation (10). There its weight
    falls as 0.5 (1 - eps / final eps).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: not used; regularizers are called alike.
        tolerance: tau in (0, 1].

    Returns:
        Scalar in [0, 3], differentiable in the parameters.

    Raises:
        InputError: tolerance does not fit, or the network has no ReLU or has dropout.
    """
    _check(tolerance)
    layers = _layers(model, region)
    return _tightness(layers, region, tolerance) + _balance(layers, tolerance)


def _check(tolerance: float) -> None:
    if not 0 < tolerance <= 1:
        raise InputError(f"tolerance must lie in (0, 1], got {tolerance}")


def _layers(model: nn.Module, region: Region) -> list[tuple[bool, _Range]]:
    """For each activation: whether it is a ReLU, and interval bounds [batch, *shape] of what it reads."""
    with as_used(model, region):
        operators = {node.name: node.operator for node in capture(model, region.center).nodes}
        found = bounds(model, region, "interval").layers
    return [(isinstance(operators[name], ReLU), ends) for name, ends in found.items()]


def _tightness(layers: list[tuple[bool, _Range]], region: Region, tolerance: float) -> Tensor:
    if not layers:
        raise InputError("the network has no activation, so there are no inner bounds to keep tight")
    low, high = region.box()
    first = (high - low).mean()
    penalties = []
    for _, (lower, upper) in layers:
        width = (upper - lower).mean()
        # where the width is 0 (a radius of 0) tau * width <= first holds: no penalty
        ratio = torch.where(width > 0, first / torch.where(width > 0, width, 1.0), 1.0)
        penalties.append(torch.relu(tolerance - ratio) / tolerance)
    return torch.stack(penalties).mean()


def _balance(layers: list[tuple[bool, _Range]], tolerance: float) -> Tensor:
    ends = [ends for relu, ends in layers if relu]
    if not ends:
        raise InputError("the network has no ReLU whose states could be balanced")
    penalties = []
    for lower, upper in ends:
        center = (lower + upper) / 2
        active, inactive = lower > 0, upper < 0
        spread = (center - center.mean()) ** 2
        penalty = _imbalance((center * active).sum(), -(center * inactive).sum(), tolerance)
        penalty = penalty + _imbalance((spread * active).sum(), (spread * inactive).sum(), tolerance)
        penalties.append(torch.where(active.any() & inactive.any(), penalty, 0.0))
    return torch.stack(penalties).mean()


def _imbalance(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """The penalty relu(tau - min(r, 1 / r)) / tau with r = one / other; none where both are 0."""
    larger = torch.maximum(one, other)
    ratio = torch.where(larger > 0, torch.minimum(one, other) / torch.where(larger > 0, larger, 1.0), 1.0)
    return torch.relu(tolerance - ratio) / tolerance
