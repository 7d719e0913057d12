"""Arithmetic of bounds: every product in the full precision of its dtype, whatever speed settings the caller chose."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Generator[None, None, None]:
    """Switches off autocast, TF32 (torch's default for convolutions on a GPU) and bfloat16 products of float32 values.

    They keep 8 to 11 bits of every factor, an error of about 1e-3 that no bound accounts for.

    Args:
        device: where the bound is computed.

    Yields:
        Nothing; the caller's settings are restored at the end.
    """
    with torch.autocast(device.type, enabled=False):
        kinds = _kinds()
        kept = [kind.fp32_precision for kind in kinds]
        matmul, convolution = torch.get_float32_matmul_precision(), None if kinds else torch.backends.cudnn.allow_tf32
        try:
            for kind in kinds:
                kind.fp32_precision = "ieee"
            if not kinds:
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            yield
        finally:
            for kind, precision in zip(kinds, kept, strict=True):
                kind.fp32_precision = precision
            if not kinds:
                torch.set_float32_matmul_precision(matmul)
                torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def plain_products(device: torch.device) -> Generator[None, None, None]:
    """Leaves out cuDNN, whose convolutions may go by Winograd or Fourier transforms and then round otherwise.

    What remains in float64, and on a CPU is all there is, are sums of products in some order: the model of rounding.

    Args:
        device: where the bound is computed.

    Yields:
        Nothing; the caller's setting is restored at the end.
    """
    kept = torch.backends.cudnn.enabled
    if device.type == "cuda":
        torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.backends.cudnn.enabled = kept


def _kinds() -> list[Any]:
    """The settings of each kind of product; none before torch 2.9, which has two flags instead."""
    if not hasattr(torch.backends.cudnn, "conv"):
        return []
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
