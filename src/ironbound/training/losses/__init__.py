"""Losses of certified training, plain functions of (model, region, labels), and regularizers to add to them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ironbound.training.losses.adversary import attacked
from ironbound.training.losses.bounded import crown_ibp, interval, robust, robust_hinge
from ironbound.training.losses.expressive import cc_ibp, exp_ibp, mtl_ibp, sabr, small_region
from ironbound.training.losses.loss import Loss, refuse_dropout
from ironbound.training.losses.norms import frobenius_norm, spectral_norm
from ironbound.training.losses.pointwise import pgd, standard
from ironbound.training.losses.tightness import tight, tightness_d, tightness_r
from ironbound.training.losses.warmup import shi, shi_relu_balance, shi_tightness

__all__ = [
    "LOSSES",
    "REGULARIZERS",
    "Loss",
    "attacked",
    "cc_ibp",
    "crown_ibp",
    "exp_ibp",
    "frobenius_norm",
    "interval",
    "mtl_ibp",
    "pgd",
    "refuse_dropout",
    "robust",
    "robust_hinge",
    "sabr",
    "shi",
    "shi_relu_balance",
    "shi_tightness",
    "small_region",
    "spectral_norm",
    "standard",
    "tight",
    "tightness_d",
    "tightness_r",
]

LOSSES: dict[str, Callable[..., Loss]] = {
    "standard": standard,
    "pgd": pgd,
    "robust": robust,
    "robust-hinge": robust_hinge,
    "tight": tight,
    "interval": interval,
    "crown-ibp": crown_ibp,
    "sabr": sabr,
    "mtl-ibp": mtl_ibp,
    "cc-ibp": cc_ibp,
    "exp-ibp": exp_ibp,
}
"""Losses by the name that a recipe gives; each is called with (model, region, labels, **options)."""

REGULARIZERS: dict[str, Callable[..., Tensor]] = {
    "tightness-d": tightness_d,
    "tightness-r": tightness_r,
    "shi": shi,
    "shi-tightness": shi_tightness,
    "shi-balance": shi_relu_balance,
    "spectral": spectral_norm,
    "frobenius": frobenius_norm,
}
"""Regularizers by name; each is called with (model, region, labels, **options) and added with a weight."""
