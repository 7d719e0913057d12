"""Affine operators whose constant is computed from a live tensor at every use, so that its changes are seen."""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.ops.affine import Scale, Shift


class Division(Scale):
    """Division by a constant, element by element.

    Attributes:
        divisor: broadcastable to [*shape] from the right (no batch axis).
    """

    divisor: Tensor

    def __init__(self, divisor: Tensor) -> None:
        object.__setattr__(self, "divisor", divisor)

    @property
    def factor(self) -> Tensor:  # type: ignore[override]
        """1 / divisor."""
        return torch.reciprocal(self.divisor)

    def tensors(self) -> list[Tensor]:
        """The live tensor."""
        return [self.divisor]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Divides; multiplying by the reciprocal would round twice."""
        return inputs[0] / self.divisor


class Subtraction(Shift):
    """Subtraction of a constant.

    Attributes:
        subtrahend: broadcastable to [*shape] from the right (no batch axis).
    """

    subtrahend: Tensor

    def __init__(self, subtrahend: Tensor) -> None:
        object.__setattr__(self, "subtrahend", subtrahend)

    @property
    def offset(self) -> Tensor:  # type: ignore[override]
        """The subtrahend's negative."""
        return -self.subtrahend

    def tensors(self) -> list[Tensor]:
        """The live tensor."""
        return [self.subtrahend]
