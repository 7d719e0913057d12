"""A network, data and a write-up that the tests of training share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def clusters(count: int = 240) -> tuple[Tensor, Tensor]:
    """Three separable groups of points in [0, 1]^6."""
    labels = torch.arange(count) % 3
    centers = torch.eye(3).repeat(1, 2) * 0.6 + 0.2
    return (centers[labels] + 0.05 * torch.randn(count, 6)).clamp(0, 1), labels


def interval_margins(model: nn.Sequential, x: Tensor, eps: float, labels: Tensor) -> Tensor:
    """Interval propagation written down again, the last layer merged with the differences of logits."""
    first, last = model[0], model[2]
    middle, radius = first(x), eps * first.weight.abs().sum(1)
    lower, upper = (middle - radius).relu(), (middle + radius).relu()
    rows = []
    for index, label in enumerate(labels.tolist()):
        weight, bias = last.weight[label] - last.weight, last.bias[label] - last.bias
        rows.append(weight.clamp(min=0) @ lower[index] + weight.clamp(max=0) @ upper[index] + bias)
    return torch.stack(rows)
