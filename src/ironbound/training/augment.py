"""Augmentation of images: random crops and mirror images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ironbound.errors import InputError


def crop_and_flip(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Moves each image by up to `padding` pixels in each direction, and mirrors half of them.

    Args:
        images: [batch, channels, height, width].
        padding: zeros around an image before it is cropped to its size again.
        flip: whether half of the images are mirrored left to right.
        generator: on the CPU.

    Returns:
        New images of the same shape.

    Raises:
        InputError: these are no images.
    """
    if images.dim() != 4:
        raise InputError(
            f"augmentation needs images [channels, height, width], the examples are {list(images.shape[1:])}"
        )
    count, _, height, width = images.shape
    moves = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator).to(images.device)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(images.device)
    rows = moves[:, :1] + torch.arange(height, device=images.device)
    columns = moves[:, 1:] + torch.arange(width, device=images.device)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    index = torch.arange(count, device=images.device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
