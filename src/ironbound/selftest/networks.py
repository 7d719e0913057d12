"""Tiny random classifiers, and the exact least margin of one that has few ReLUs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.regions import Region, ball


@dataclass(frozen=True)
class Subject:
    """A network in float64 and inputs to bound it at.

    Attributes:
        name: of the network.
        model: a classifier.
        x: inputs [n, *shape].
        norm: of the balls.
        eps: their radius.
    """

    name: str
    model: nn.Sequential
    x: Tensor
    norm: str = "linf"
    eps: float = 0.3

    def region(self) -> Region:
        """The balls around the inputs."""
        return ball(self.norm, self.x, self.eps)

    def labels(self) -> Tensor:
        """The network's answers, int64 [n]."""
        with torch.no_grad():
            return self.model(self.x).argmax(1)


def mlp(seed: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLUs between them, in float64; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, dtype=torch.float64), nn.ReLU()]
    return _drawn(nn.Sequential(*layers[:-1]), generator)


def convolutional(seed: int) -> nn.Sequential:
    """Two convolutions and two linear layers on 1 x 6 x 6 inputs, in float64."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    return _drawn(model.double(), torch.Generator().manual_seed(seed))


def _drawn(model: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    with torch.no_grad():
        for tensor in model.parameters():
            scale = 0.5 if tensor.dim() == 1 else (tensor[0].numel()) ** -0.5
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def points(seed: int, *shape: int) -> Tensor:
    """Random inputs in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def subjects() -> tuple[Subject, ...]:
    """Networks and norms on which every method is tried."""
    flat, image = points(1, 6, 3), points(2, 3, 1, 6, 6)
    return (
        Subject("two layers", mlp(0, (3, 6, 3)), flat),
        Subject("three layers", mlp(1, (3, 5, 4, 3)), flat),
        Subject("three layers, l2", mlp(2, (3, 5, 4, 3)), flat, "l2", 0.4),
        Subject("three layers, l1", mlp(3, (3, 5, 4, 3)), flat, "l1", 0.5),
        Subject("convolutions", convolutional(4), image, eps=0.1),
    )


def least_margins(model: nn.Sequential, x: Tensor, eps: float, label: int) -> np.ndarray:
    """The exact least logit[label] - logit[k] over an l-infinity ball, by a linear program per sign pattern.

    Args:
        model: of `mlp`, with few ReLUs.
        x: one input [features].
        eps: radius.
        label: the class.

    Returns:
        [classes]; 0 at the label.
    """
    from scipy.optimize import linprog

    weights = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in model[::2]]  # type: ignore[union-attr]
    center, hidden = x.numpy(), sum(len(bias) for _, bias in weights[:-1])
    box = np.stack([center - eps, center + eps], 1)
    least = np.full(len(weights[-1][1]), np.inf)
    for signs in itertools.product((0.0, 1.0), repeat=hidden):
        matrix, offset, used = np.eye(len(center)), np.zeros(len(center)), 0
        rows, limits = [], []
        for weight, bias in weights[:-1]:
            matrix, offset = weight @ matrix, weight @ offset + bias
            on = np.array(signs[used : used + len(bias)])
            used += len(bias)
            rows.append((1 - 2 * on)[:, None] * matrix)  # z <= 0 where off, -z <= 0 where on
            limits.append(-(1 - 2 * on) * offset)
            matrix, offset = on[:, None] * matrix, on * offset
        matrix, offset = weights[-1][0] @ matrix, weights[-1][0] @ offset + weights[-1][1]
        for k in range(len(least)):
            if k != label:
                cost = matrix[label] - matrix[k]
                found = linprog(cost, np.concatenate(rows), np.concatenate(limits), bounds=box, method="highs")
                if found.status == 0:
                    least[k] = min(least[k], found.fun + offset[label] - offset[k])
    least[label] = 0.0
    return least
