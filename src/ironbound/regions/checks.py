"""What the arguments of a region must be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ironbound.errors import InputError

Radius = float | Tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuses what is no batch of finite floating point numbers.

    Args:
        name: of the argument.
        tensor: its value.

    Raises:
        InputError: another dtype, no batch axis, NaN or infinity.
    """
    if not tensor.is_floating_point():
        raise InputError(f"{name} must be floating point, not {tensor.dtype}; convert it with .float()")
    if tensor.dim() < 2:
        raise InputError(f"{name} must have a batch axis and at least one more, got shape {tuple(tensor.shape)}")
    if not is_finite(tensor):
        raise InputError(f"{name} holds NaN or infinity; remove those examples first")


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, in one pass: both ends of the range show it."""
    return not tensor.numel() or all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def radius_of(eps: Radius, center: Tensor) -> Tensor:
    """Checks ε and lays it out so that it broadcasts against [batch, *shape].

    Args:
        eps: a number, one per example or one per element.
        center: [batch, *shape].

    Returns:
        A tensor of the dimension of `center`.

    Raises:
        InputError: another shape, NaN, negative, infinite or beyond any data's units.
    """
    radius = torch.as_tensor(eps, dtype=center.dtype, device=center.device)
    if radius.dim() == 1 and len(radius) == len(center):
        radius = radius.reshape(-1, *(1,) * (center.dim() - 1))
    elif radius.dim() == 0:
        radius = radius.reshape((1,) * center.dim())
    elif radius.dim() != center.dim() or any(
        have not in (1, want) for have, want in zip(radius.shape, center.shape, strict=True)
    ):
        raise InputError(
            f"eps must be a number, one per example [{len(center)}] or one per element {tuple(center.shape)}, "
            f"got {tuple(radius.shape)}"
        )
    if not radius.numel():
        return radius
    least, most = (float(end) for end in torch.aminmax(radius.detach()))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise InputError("eps is NaN or infinite; give a finite number in the units of the data")
    if least < 0:
        raise InputError("eps is negative; give a number >= 0 in the units of the data")
    if most > 1e6:
        raise InputError(
            f"eps = {most:g} is huge; it is in the units of the data (pixels in [0, 1]), not in grey levels"
        )
    return radius


def check_clip(clip: Sequence[float] | None, center: Tensor) -> tuple[float, float] | None:
    """Checks a clipping range against the centers.

    Args:
        clip: (low, high) or None.
        center: [batch, *shape].

    Returns:
        The range, or None.

    Raises:
        InputError: it is no range, or a center lies outside.
    """
    if clip is None:
        return None
    low, high = (float(end) for end in clip) if len(clip) == 2 else (0.0, 0.0)
    if not low < high:
        raise InputError(f"clip must be (low, high) with low < high, got {tuple(clip)}")
    if ((center < low) | (center > high)).any():
        raise InputError(
            f"the examples leave the clipping range [{low:g}, {high:g}]; is clip in the units of the data?"
        )
    return low, high
