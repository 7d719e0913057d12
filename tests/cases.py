"""Small networks of every family, for tests that must hold for all of them: `from cases import CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A family of small classifiers.

    Attributes:
        name: of the family.
        build: makes a network with fresh random weights.
        shape: shape of an input example.
        classes: number of outputs.
        piecewise: whether every activation is piecewise linear.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    piecewise: bool = True

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A network in evaluation mode; the same for the same seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.build()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 2)
                    nn.init.uniform_(module.weight, -1, 1)
                    nn.init.normal_(module.bias, 0, 0.3)
        return model.eval().to(dtype)

    def inputs(self, batch: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        """Random inputs [batch, *shape]; the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


class Residual(nn.Module):
    """Two residual blocks, the second with a strided projection, and a difference of two values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.project = nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.head = nn.Linear(4 * 3 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.first(x))
        x = torch.relu(self.project(x) - self.second(x))
        return self.head(x.flatten(1))


class Branches(nn.Module):
    """Slices, concatenation, transpose, pad, mean, constants: the operators that only move or weigh elements."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(3, 5)
        self.gain = nn.Parameter(torch.randn(5))
        self.register_buffer("offset", torch.randn(5))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        left = torch.relu(self.left(x[:, :4])) * self.gain - self.offset
        right = nn.functional.leaky_relu(self.right(x[:, 4:]), 0.2) / 2 + 1
        both = torch.stack([left, right], 2).transpose(1, 2).mean(1)
        return self.head(torch.relu(nn.functional.pad(both, (1, 1), value=0.5)))


def _mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 3))


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, padding=1, dilation=1),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(27, 8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 4),
    )


def _pooling(pool: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 4))


def _batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


_SQUARE = (1, 6, 6)

CASES: tuple[Case, ...] = (
    Case("mlp", lambda: _mlp(nn.ReLU), (5,), 3),
    Case("leaky", lambda: _mlp(lambda: nn.LeakyReLU(0.1)), (5,), 3),
    Case("hardtanh", lambda: _mlp(lambda: nn.Hardtanh(-0.5, 0.7)), (5,), 3),
    Case("convolutional", _convolutional, (2, 5, 5), 4),
    Case("residual", Residual, _SQUARE, 4),
    Case("max-pooling", lambda: _pooling(nn.MaxPool2d(2), 12), _SQUARE, 4),
    Case("overlapping-max-pooling", lambda: _pooling(nn.MaxPool2d(3, 2, 1), 12), _SQUARE, 4),
    Case("average-pooling", lambda: _pooling(nn.AvgPool2d(2), 12), _SQUARE, 4),
    Case("batch-norm", _batch_norm, _SQUARE, 3),
    Case("branches", Branches, (7,), 3),
    Case("sigmoid", lambda: _mlp(nn.Sigmoid), (5,), 3, piecewise=False),
    Case("tanh", lambda: _mlp(nn.Tanh), (5,), 3, piecewise=False),
    Case("gelu", lambda: _mlp(nn.GELU), (5,), 3, piecewise=False),
    Case("silu", lambda: _mlp(nn.SiLU), (5,), 3, piecewise=False),
)
