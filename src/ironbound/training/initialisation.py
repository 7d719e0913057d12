"""Initial weights for interval training."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from ironbound.errors import InputError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@torch.no_grad()
def ibp_initialise(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draws the weights of linear and convolutional layers so that interval bounds keep their width.

    Each weight is normal with mean 0 and standard deviation sqrt(2 pi) / n, n the number of inputs that an output
    reads; the usual initialisations let the width grow with sqrt(n). Biases and all other parameters stay as they are.

    Source: Shi et al., "Fast certified robust training with short warmup" (2021), section 3.3.1 and equation (6).
    Written there for a chain of layers with a ReLU before each; the layer after a residual sum sees twice the width.

    Args:
        model: the network, changed in place.
        generator: draws the weights, on their device; None: torch's own.

    Raises:
        InputError: the network has no such layer, or a weight is computed from other parameters.
    """
    found = False
    for name, part in model.named_modules():
        if not isinstance(part, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)):
            continue
        if parametrize.is_parametrized(part, "weight") or not isinstance(part.weight, nn.Parameter):
            raise InputError(f"the weight of {name!r} is computed from other parameters; remove that first")
        part.weight.normal_(0.0, math.sqrt(2 * math.pi) / fan_in(part), generator=generator)
        found = True
    if not found:
        raise InputError("the network has no linear or convolutional layer to initialise")


def fan_in(layer: nn.Module) -> float:
    """Number of inputs that one output reads, of a convolution away from the border.

    Args:
        layer: linear, convolutional or transposed convolutional; of the last, where the stride does not divide the
            kernel, the average over outputs.

    Returns:
        The number.

    Raises:
        InputError: another layer.
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        reads = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        return reads / math.prod(layer.stride) if isinstance(layer, _TRANSPOSED) else reads
    raise InputError(f"a {type(layer).__name__} has no number of inputs per output")
