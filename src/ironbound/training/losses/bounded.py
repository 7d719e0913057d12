"""Losses on proved margins: robust cross-entropy and hinge, interval training, CROWN-IBP."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ironbound.bounding import margins
from ironbound.bounding.projection import estimate_margins
from ironbound.errors import InputError
from ironbound.regions import Region
from ironbound.training.losses.loss import (
    Loss,
    as_used,
    check_share,
    clean_logits,
    misclassified,
    robust_cross_entropy,
    unproved,
    weighted,
)


def robust(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    kind: Literal["cross-entropy", "hinge"] = "cross-entropy",
    method: str = "dual",
    projections: int | None = None,
    projection: Literal["cauchy", "normal"] | None = None,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The robust loss: a loss of the worst margins that a method proves; wrong: not proved.

    It is never below the loss at any input of the region. With projections the margins are estimates: it may be, and
    `wrong` is an estimate too.

    Source: Wong and Kolter, "Provable defenses ..." (ICML 2018), equation (14); the first version of that paper
    (2017), equations (32) to (34), for the hinge [1 - min_k margin_k]+; Wong et al., "Scaling provable adversarial
    defenses" (2018), section 3.2, for projections.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        kind: "cross-entropy" or "hinge".
        method: of the bounds, as for `ironbound.margins`.
        projections: number k of random projections that estimate the dual bound's norms; None: exact.
        projection: their distribution, "cauchy" or "normal"; None: the one that fits the region.
        generator: draws them; None: torch's own.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """
    if kind not in ("cross-entropy", "hinge"):
        raise InputError(f"kind must be 'cross-entropy' or 'hinge', got {kind!r}")
    if projections is not None and method != "dual":
        raise InputError(f"random projections estimate the dual bound only, not {method!r}; set projections to None")
    with as_used(model, region):
        if projections is None:
            lower = margins(model, region, labels, method)
        else:
            lower = estimate_margins(model, region, labels, projections, projection, generator).values
    each = robust_cross_entropy(lower, labels) if kind == "cross-entropy" else worst_hinge(lower, labels)
    return weighted(each, unproved(lower, labels), weights)


def robust_hinge(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    method: str = "dual",
    projections: int | None = None,
    projection: Literal["cauchy", "normal"] | None = None,
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The robust loss with the hinge, `robust(..., kind="hinge")`, under a name of its own.

    Source: the first version of Wong and Kolter's paper (2017), equations (32) and (33).

    Args:
        model: as for `robust`.
        region: as for `robust`.
        labels: int64 [batch].
        method: as for `robust`.
        projections: as for `robust`.
        projection: as for `robust`.
        generator: as for `robust`.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.
    """
    return robust(model, region, labels, "hinge", method, projections, projection, generator, weights)


def worst_hinge(lower: Tensor, labels: Tensor) -> Tensor:
    """The multi-class hinge [1 - min over k of margin_k]+ of each example.

    Source: Wong and Kolter (2017), equations (32) and (33).

    Args:
        lower: lower bounds of logit[label] - logit[k], [batch, classes].
        labels: int64 [batch].

    Returns:
        [batch].
    """
    rivals = lower.scatter(1, labels.unsqueeze(1), float("inf"))
    return torch.relu(1 - rivals.amin(1))


def interval(
    model: nn.Module, region: Region, labels: Tensor, kappa: float = 0.0, weights: Tensor | None = None
) -> Loss:
    """Mixes cross-entropy (kappa) and robust cross-entropy of interval margins (1 - kappa); wrong: not proved.

    The last layer is merged with the differences of logits.

    Source: Gowal et al., "On the effectiveness of interval bound propagation" (2018), equation (12).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        kappa: weight of the standard part, in [0, 1]; falls from 1 to 1/2 in the paper.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """
    check_share("kappa", kappa)
    with as_used(model, region):
        with torch.set_grad_enabled(torch.is_grad_enabled() and kappa < 1):  # weight 0: only `wrong` needs the bounds
            lower = margins(model, region, labels, method="interval")
        return _with_clean(model, region, labels, lower, kappa, weights)


def crown_ibp(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    beta: float = 1.0,
    kappa: float = 0.0,
    weights: Tensor | None = None,
) -> Loss:
    """As `interval`, with the margins beta * CROWN-IBP + (1 - beta) * interval; wrong: not proved by the mixture.

    Both are lower bounds, hence so is their mixture.

    Source: Zhang et al., "Towards stable and efficient training of verifiably robust neural networks" (2020),
    section 3.2, the training objective of CROWN-IBP.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        beta: weight of the CROWN-IBP margins, in [0, 1]; falls from 1 to 0 in the paper.
        kappa: weight of the standard part, in [0, 1].
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """
    check_share("beta", beta)
    check_share("kappa", kappa)
    with as_used(model, region):
        with torch.set_grad_enabled(torch.is_grad_enabled() and kappa < 1):
            if beta in (0, 1):
                lower = margins(model, region, labels, "crown-ibp" if beta else "interval")
            else:
                lower = beta * margins(model, region, labels, "crown-ibp")
                lower = lower + (1 - beta) * margins(model, region, labels, "interval")
        return _with_clean(model, region, labels, lower, kappa, weights)


def _with_clean(
    model: nn.Module, region: Region, labels: Tensor, lower: Tensor, kappa: float, weights: Tensor | None
) -> Loss:
    """The mixture kappa * standard + (1 - kappa) * robust, with the ends exact."""
    each = robust_cross_entropy(lower, labels)
    parts = {"robust": each.mean().item()}
    if kappa > 0:
        logits = clean_logits(model, region.center, labels)
        clean = cross_entropy(logits, labels, reduction="none")
        parts |= {"clean": clean.mean().item(), "clean_error": misclassified(logits, labels).float().mean().item()}
        each = kappa * clean + (1 - kappa) * each if kappa < 1 else clean
    return weighted(each, unproved(lower, labels), weights, parts)
