"""More families of small networks than `cases`: merges of walks, maps that are no convolution, maxima."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import CASES, Case


class Mixed(nn.Module):
    """One map read by a plain, a grouped and a strided branch: sums of windows and dense rows in every order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.narrow = nn.Conv2d(3, 3, 1)
        self.grouped = nn.Conv2d(3, 3, 1, groups=3)
        self.broad = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(27, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = torch.relu(self.stem(x))
        x = torch.relu(self.narrow(x) + self.grouped(x))
        x = torch.relu(self.grouped(x) - self.broad(x) + 0.1)
        return self.head(x.flatten(1))


class TwoReaders(nn.Module):
    """One value read by two activations with different kinks, and by the sum as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        z = self.first(x)
        z = self.second(torch.relu(z) - F.hardtanh(z, -0.4, 0.3) + 0.5 * torch.sigmoid(z) + 0.2 * z)
        return self.head(torch.relu(z) + torch.tanh(z))


class Resampled(nn.Module):
    """Circular and reflected padding, a transposed convolution, nearest sampling, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1, padding_mode="circular")
        self.up = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1)
        self.same = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = torch.relu(self.down(x))
        x = torch.relu(self.up(x))
        x = torch.relu(self.same(x))
        x = F.interpolate(x, scale_factor=0.5, mode="nearest") + F.avg_pool2d(x, 2)
        return self.head(x.flatten(1))


class Extremes(nn.Module):
    """Maxima and minima of values, over axes and over overlapping windows, after one another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1)
        self.second = nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = F.max_pool1d(self.first(x), 3, 2, 1)
        x = torch.minimum(x, 0.3 * x.amax(2, keepdim=True))
        z = self.second(x.flatten(1))
        return self.head(torch.maximum(z, -0.5 * z))


def _smooth_convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 3, 2, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


class Absolute(nn.Module):
    """|z|, a leaky ReLU with a slope above one, a shrinkage: neither monotone nor convex."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = F.softshrink(self.first(x), 0.3).abs()
        return self.head(F.leaky_relu(self.second(x), 1.7))


def _stacked() -> nn.Module:
    """Affine layers without an activation between them."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=2), nn.BatchNorm2d(2), nn.ReLU(),
        nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 5), nn.Linear(5, 3),
    )  # fmt: skip


FAMILIES: tuple[Case, ...] = (
    *CASES,
    Case("mixed", Mixed, (1, 3, 3), 3),
    Case("two-readers", TwoReaders, (4,), 3, piecewise=False),
    Case("resampled", Resampled, (1, 6, 6), 3),
    Case("extremes", Extremes, (2, 5), 3),
    Case("smooth-convolutional", _smooth_convolutional, (1, 4, 4), 3, piecewise=False),
    Case("stacked", _stacked, (1, 4, 4), 3),
    Case("absolute", Absolute, (5,), 3),
    Case(
        "wide",
        lambda: nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3)),
        (2,),
        3,
    ),
)
