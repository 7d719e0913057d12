"""Normalisation as a layer, so that ε stays in the units of the data: (x − mean) / std."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ironbound.errors import InputError

Statistic = float | Sequence[float] | Tensor


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel or for all values alike.

    Args:
        mean: one number, or one per channel (the axis after the batch).
        std: like mean; positive.

    Raises:
        InputError: values that are not finite, a std that is not positive, or shapes that do not fit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Statistic, std: Statistic) -> None:
        super().__init__()
        center, scale = _statistic(mean), _statistic(std)
        if center.dim() > 1 or scale.dim() > 1 or (center.dim() == scale.dim() == 1 and len(center) != len(scale)):
            shapes = f"{list(center.shape)} and {list(scale.shape)}"
            raise InputError(f"mean and std must be one number, or one per channel; they have shapes {shapes}.")
        if not bool(torch.isfinite(torch.cat([center.reshape(-1), scale.reshape(-1)])).all()) or not bool(
            (scale > 0).all()
        ):
            raise InputError("mean and std must be finite, and std positive.")
        self.register_buffer("mean", center)
        self.register_buffer("std", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise.

        Args:
            inputs: [batch, channels, *].

        Returns:
            Values of the same shape.
        """
        trailing = (1,) * (inputs.dim() - 2)
        mean, std = (each.reshape(-1, *trailing) if each.dim() else each for each in (self.mean, self.std))
        return (inputs - mean) / std


def normalized(model: nn.Module, mean: Statistic, std: Statistic) -> nn.Sequential:
    """Put a normalisation in front of a network.

    Args:
        model: network on normalised inputs; it is used, not copied.
        mean: see `Normalize`.
        std: see `Normalize`.

    Returns:
        Network on inputs in the data's own units, in evaluation mode.
    """
    layer = Normalize(mean, std)
    parameter = next(model.parameters(), None)
    if parameter is not None:
        layer = layer.to(parameter.device, parameter.dtype)
    return nn.Sequential(layer, model).eval()


def _statistic(value: Statistic) -> Tensor:
    return torch.as_tensor(value, dtype=torch.get_default_dtype()).detach().clone()
