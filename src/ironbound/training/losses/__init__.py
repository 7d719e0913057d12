"""Losses of certified training, plain functions of (model, region, labels), and regularizers to add to them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ironbound.training.losses.adversary import attacked
from ironbound.training.losses.bounded import crown_ibp, interval, robust, robust_hinge
from ironbound.training.losses.expressive import cc_ibp, exp_ibp, mtl_ibp, sabr, small_region
from ironbound.training.losses.loss import Loss, refuse_dropout
from ironbound.training.losses.norms import frobenius_norm, spectral_norm
from ironbound.training.losses.pointwise import hinge, pgd, standard
from ironbound.training.losses.semidefinite import sdp_hinge, sdp_value
from ironbound.training.losses.tightness import tight, tightness_d, tightness_r
from ironbound.training.losses.warmup import shi, shi_relu_balance, shi_tightness

__all__ = [
    "LOSSES",
    "REGULARIZERS",
    "STEPWISE",
    "Loss",
    "attacked",
    "cc_ibp",
    "crown_ibp",
    "exp_ibp",
    "frobenius_norm",
    "hinge",
    "interval",
    "mtl_ibp",
    "pgd",
    "refuse_dropout",
    "robust",
    "robust_hinge",
    "sabr",
    "sdp_hinge",
    "sdp_value",
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
    "hinge": hinge,
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
    "sdp-hinge": sdp_hinge,
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
    "sdp": sdp_value,
}
"""Regularizers by name; each is called with (model, region, labels, **options) and added with a weight."""

STEPWISE = ("sdp-hinge", "sdp")
"""Names of what moves a solver on with each call, so that a step's batch cannot be cut into parts."""
