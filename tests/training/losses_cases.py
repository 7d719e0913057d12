"""Networks, data and write-ups that the tests of the losses share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironbound.regions import Region
from laws.writeup import ball, dense_layers, objective

SHAPE = (1, 4, 4)
EPS = 0.08


def network(seed: int = 0) -> nn.Sequential:
    """A convolutional ReLU chain with three classes, float64, in evaluation mode."""
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
        )  # fmt: skip
        .double()
        .eval()
    )


def examples(count: int = 6) -> tuple[Tensor, Tensor]:
    """Images in [0.2, 0.8] and labels."""
    generator = torch.Generator().manual_seed(1)
    x = 0.2 + 0.6 * torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % 3


def written_margins(model: nn.Sequential, x: Tensor, labels: Tensor, eps: float, method: str) -> Tensor:
    """Margins of a method over l-infinity balls by the dense write-up, [batch, classes]."""
    layers = dense_layers(model, SHAPE)
    rows = []
    for image, label in zip(x.flatten(1), labels.tolist(), strict=True):
        _, lower = objective(method, layers, ball("linf", image, torch.full_like(image, eps), None))
        eye = torch.eye(3, dtype=torch.float64)
        rows.append(lower(eye[label] - eye))
    return torch.stack(rows).masked_fill(nn.functional.one_hot(labels, 3).bool(), 0.0)


def mean_log_sum(margins: Tensor) -> Tensor:
    """Cross-entropy written as log sum_k exp(-margin_k), k = label included, mean over the batch."""
    return (-margins).exp().sum(1).log().mean()


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    """logit[label] - logit[k]."""
    return logits[torch.arange(len(labels)), labels].unsqueeze(1) - logits


def corners(region: Region, count: int = 200) -> list[Tensor]:
    """Points of a region: random ones, half of them pushed to its border."""
    generator = torch.Generator().manual_seed(2)
    points = []
    for index in range(count):
        point = region.sample(generator)
        points.append(region.project(region.center + 50 * (point - region.center)) if index % 2 else point)
    return points


def slope_along(model: nn.Module, value, seed: int = 3) -> tuple[Tensor, Tensor]:
    """A scalar's derivative in one random direction of all parameters: by autograd, and by central differences."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    gradients = torch.autograd.grad(value(), parameters, allow_unused=True)
    slope = sum(
        ((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None),
        torch.zeros((), dtype=torch.float64),
    )
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(sign * step * direction)
            ends.append(value().detach())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(sign * step * direction)
    return slope, (ends[0] - ends[1]) / (2 * step)
