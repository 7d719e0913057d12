"""Arithmetic of bounds: every product in the full precision of its dtype, whatever speed settings the caller chose."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

_MODES, _STRICT = (
    ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_BLAS_COMPUTE_MODE"),
    ("strict", "standard"),
)
_X86 = ("x86_64", "amd64", "i386", "i686")


@contextmanager
def full_precision(device: torch.device) -> Generator[None, None, None]:
    """Switches off autocast, TF32 (torch's default for convolutions on a GPU), bfloat16 products and NNPACK.

    The first three keep 8 to 11 bits of every factor, an error of about 1e-3 that no bound accounts for. NNPACK's
    convolutions of float32 go by Winograd and Fourier transforms, which are no sums of products.

    The settings are one for all threads: the first that enters changes them, the last that leaves restores them.

    Args:
        device: where the bound is computed.

    Yields:
        Nothing; the caller's settings are restored at the end.
    """
    with torch.autocast(device.type, enabled=False):
        _settings.enter()
        try:
            yield
        finally:
            _settings.leave()


class _Settings:
    """Global settings that are held changed while any thread needs them so."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.restore: list[Callable[[], Any]] = []

    def enter(self) -> None:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.restore = [change() for change in (_products_in_full, _without_nnpack)]

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                for restore in self.restore:
                    restore()


_settings = _Settings()


def _products_in_full() -> Callable[[], None]:
    kinds = _kinds()
    if not kinds:
        matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

        def restore() -> None:
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = convolution

        return restore
    kept = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"

    def restore_kinds() -> None:
        for kind, precision in zip(kinds, kept, strict=True):
            kind.fp32_precision = precision

    return restore_kinds


def _without_nnpack() -> Callable[[], Any]:
    if not _has_nnpack_switch():
        return lambda: None
    kept = torch.backends.nnpack.set_flags(False)
    return lambda: torch.backends.nnpack.set_flags(*kept)


def _has_nnpack_switch() -> bool:
    return hasattr(torch.backends, "nnpack") and hasattr(torch.backends.nnpack, "set_flags")


def sums_in_float32(device: torch.device) -> bool:
    """Whether float32 convolutions under `full_precision` are known to be sums of products in some order.

    Args:
        device: where they run.

    Returns:
        True on an x86 CPU, where oneDNN is asked for direct convolutions, and NNPACK can be switched off, unless the
        environment lets a library compute with narrower numbers.
    """
    narrow = any(os.environ.get(name, "strict").lower() not in _STRICT for name in _MODES)
    return device.type == "cpu" and platform.machine().lower() in _X86 and _has_nnpack_switch() and not narrow


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
