"""A-priori bounds of rounding in float64: what a sum of products can be off by, and numbers rounded outward.

Source: Higham, "Accuracy and Stability of Numerical Algorithms" (2002), section 3.1: a sum of n products in any order,
with or without fused multiply-adds, is off by at most gamma_n times the sum of the products' absolute values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ironbound.errors import InputError

UNIT = 2.0**-53  # unit roundoff of float64
# Error terms are sums of positive numbers, computed in float64 themselves: this factor outgrows their own rounding.
COVER = 1 + 1e-9


def gamma(count: int) -> float:
    """The factor n u / (1 - n u), rounded up.

    Args:
        count: number of roundings that a value went through, at most 4e6.

    Returns:
        The bound of the relative error.

    Raises:
        InputError: there are more roundings than the error bounds were made for.
    """
    if count > 4_000_000:
        raise InputError(f"a sum of {count} numbers is longer than the error bounds were made for (4000000)")
    return count * UNIT / (1 - count * UNIT) * COVER


def up(value: Tensor) -> Tensor:
    """The next larger float64."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))


def down(value: Tensor) -> Tensor:
    """The next smaller float64."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def lowered(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 numbers in another dtype, no larger."""
    near = value.to(dtype)
    return torch.where(near.double() > value, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)


def raised(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 numbers in another dtype, no smaller."""
    return -lowered(-value, dtype)
