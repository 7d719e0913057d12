"""Regularizers that make a linear relaxation tight, and the loss that they were made for.

Source: Zhu et al., "Improved training of certifiably robust models" (2020), equations (8) to (10).

Per example both are summed over the classes other than the label, as in equation (10), and averaged over the batch.
The bounds that they need are most of the cost: `tight` computes them once for the loss and both regularizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ironbound.bounding import check_labels, margins
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.lines import LinesState
from ironbound.bounding.perturbation import (
    Optimum,
    linear_state,
    node_values,
    prepared_linear,
    relaxed_optimum,
)
from ironbound.bounding.precision import full_precision
from ironbound.bounding.projection import projected_state
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.ops.piecewise import PiecewiseLinear
from ironbound.regions import Region
from ironbound.training.losses.loss import Loss, as_used, check_share, robust_cross_entropy, unproved, weighted

# (number of random projections or None for exact bounds, their kind, generator)
ProjectionOptions = tuple[int | None, Literal["cauchy", "normal"] | None, torch.Generator | None]


def tightness_d(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    method: str = "dual",
    projections: int | None = None,
    projection: Literal["cauchy", "normal"] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far the network at the relaxation's worst input stays above the relaxation's bound.

    d = c^T h(x + delta*) - p*, never negative for a proved bound; 0 means that the bound is reached.

    Source: Zhu et al. (2020), equation (8).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        method: a method with linear lines: "dual", "dual+interval", "crown" or "crown-ibp".
        projections: number of random projections that estimate the inner bounds instead (method "dual" only).
        projection: as for `robust`.
        generator: as for `robust`.

    Returns:
        Scalar: the sum over classes, mean over the batch.

    Raises:
        InputError: an option does not fit, or the network has dropout.
    """
    with as_used(model, region):
        return _terms(model, region, labels, method, (projections, projection, generator)).gap().mean()


def tightness_r(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    method: str = "dual",
    projections: int | None = None,
    projection: Literal["cauchy", "normal"] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far open neurons are, at the relaxation's worst input, from where their line touches the activation.

    For the paper's parallel lines that is |x'| on the lower line and min(|x' - l|, |x' - u|) on the upper one. A lower
    line with an adaptive slope ("crown") touches along a whole side of the kink, and the distance is that to this side.
    If r = 0 the bound is the network's true minimum (proposition 1).

    Source: Zhu et al. (2020), equation (9).

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers. Its activations are
            ReLU, or others that are convex with one kink.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        method: a method with linear lines: "dual", "dual+interval", "crown" or "crown-ibp".
        projections: number of random projections that estimate the inner bounds instead (method "dual" only).
        projection: as for `robust`.
        generator: as for `robust`.

    Returns:
        Scalar: the mean over an example's open neurons, sum over classes, mean over the batch; 0 where none is open.

    Raises:
        InputError: an option does not fit, or the network has dropout.
        UnsupportedOperatorError: another activation.
    """
    with as_used(model, region):
        return _terms(model, region, labels, method, (projections, projection, generator)).distance().mean()


def tight(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    lambda_: float = 5e-3,
    gamma: float = 0.5,
    method: str = "dual",
    projections: int | None = None,
    projection: Literal["cauchy", "normal"] | None = None,
    generator: torch.Generator | None = None,
    beta: float = 1.0,
    weights: Tensor | None = None,
) -> Loss:
    """Robust cross-entropy of a linear relaxation + lambda d + gamma r, on one relaxation; wrong: not proved.

    With `method="crown-ibp"` and beta falling from 1 to 0 it is CROWN-IBP with these regularizers. With projections
    the margins are estimates.

    Source: Zhu et al. (2020), equation (10), and section 5 for CROWN-IBP; the defaults are those of its "small"
    networks.

    Args:
        model: the network; in training mode its batch norm takes the statistics of the centers.
        region: the inputs that each example may turn into.
        labels: int64 [batch].
        lambda_: weight of d, >= 0.
        gamma: weight of r, >= 0.
        method: a method with linear lines: "dual", "dual+interval", "crown" or "crown-ibp".
        projections: number of random projections that estimate the inner bounds instead (method "dual" only).
        projection: as for `robust`.
        generator: as for `robust`.
        beta: weight of this method's margins, in [0, 1]; the rest is that of interval margins.
        weights: of the examples, [batch], or None for 1.

    Returns:
        The loss. Its parts: "robust", and "d" and "r" where their weight is not 0.

    Raises:
        InputError: an option does not fit, or the network has dropout.
        UnsupportedOperatorError: r of an activation other than those of `tightness_r`.
    """
    for name, weight in (("lambda_", lambda_), ("gamma", gamma)):
        if not 0 <= weight < float("inf"):
            raise InputError(f"{name} must be a finite number >= 0, got {weight}")
    check_share("beta", beta)
    regular = lambda_ > 0 or gamma > 0
    terms = plain = None
    labels = labels.to(region.center.device)
    with as_used(model, region):
        if beta > 0 or regular:
            terms = _terms(model, region, labels, method, (projections, projection, generator), network=regular)
        if beta < 1:
            plain = margins(model, region, labels, "interval")
    lower = _mixture(terms, plain, beta)
    each = robust = robust_cross_entropy(lower, labels)
    parts = {"robust": robust.mean().item()}
    if terms is not None and lambda_ > 0:
        d = terms.gap()
        each, parts["d"] = each + lambda_ * d, d.mean().item()
    if terms is not None and gamma > 0:
        r = terms.distance()
        each, parts["r"] = each + gamma * r, r.mean().item()
    return weighted(each, unproved(lower, labels), weights, parts)


def _mixture(terms: _Terms | None, plain: Tensor | None, beta: float) -> Tensor:
    """Beta * the relaxation's margins + (1 - beta) * interval margins, with the ends exact."""
    if plain is None:
        assert terms is not None
        return terms.margins()
    return plain if terms is None or beta == 0 else beta * terms.margins() + (1 - beta) * plain


@dataclass(frozen=True, eq=False)
class _Terms:
    """The relaxed problem's optimum for every class but the label, [batch * (classes - 1)] rows, and the network there.

    `values` are those of every node at the optimum's input.
    """

    state: LinesState
    labels: Tensor
    rows: DenseRows
    optimum: Optimum
    values: list[Tensor]

    def margins(self) -> Tensor:
        """Lower bounds, [batch, classes]; 0 at the label."""
        batch, classes = len(self.labels), self.state.graph.output_shape[0]
        own = torch.nn.functional.one_hot(self.labels, classes).bool()
        lower = self.optimum.lower
        return lower.new_zeros((batch, classes)).masked_scatter(~own, lower)

    def gap(self) -> Tensor:
        """Equation (8), d, summed over classes, [batch]."""
        attained = (self.rows.coefficients * self.values[-1]).sum(1)
        return (attained - self.optimum.lower).reshape(len(self.labels), -1).sum(1)

    def distance(self) -> Tensor:
        """Equation (9), r, summed over classes, [batch]."""
        graph, batch, classes = self.state.graph, len(self.labels), self.state.graph.output_shape[0] - 1
        total = self.optimum.lower.new_zeros(batch)
        count = total
        for index, raised in self.optimum.raised.items():
            low, high = self.state.layers[index]
            operator = graph.nodes[index].operator
            if not isinstance(operator, PiecewiseLinear) or len(operator.knots) != 1 or _is_concave(operator):
                raise UnsupportedOperatorError(
                    f"{graph.nodes[index].name}: the regularizer r needs convex activations with one kink, such as "
                    f"ReLU, not {type(operator).__name__}; use d (lambda) alone"
                )
            example, neuron = torch.nonzero(~operator.linear_on(low, high).flatten(1), as_tuple=True)
            low, high = low.flatten(1)[example, neuron].unsqueeze(1), high.flatten(1)[example, neuron].unsqueeze(1)
            # [open neurons, classes - 1]
            value = self.values[graph.nodes[index].inputs[0]].reshape(batch, classes, -1)[example, :, neuron]
            above = raised.reshape(batch, classes, -1)[example, :, neuron]
            slope = self.state.lines[index].lower_slope.detach().flatten(1)[example, neuron].unsqueeze(1)
            to_ends = torch.minimum((value - low).abs(), (value - high).abs())
            far = torch.where(above, to_ends, _to_lower_line(operator, value, slope))
            total = total.index_add(0, example, far.sum(1))
            count = count + torch.bincount(example, minlength=batch)
        return total / count.clamp(min=1)


def _is_concave(operator: PiecewiseLinear) -> bool:
    return operator.slopes[0] > operator.slopes[1]


def _to_lower_line(operator: PiecewiseLinear, value: Tensor, slope: Tensor) -> Tensor:
    """Distance to where a line of this slope through the kink touches: the kink, or a whole side of it."""
    move = value - operator.knots[0]
    left, right = operator.slopes
    return move.clamp(min=0) * (slope != right) + (-move).clamp(min=0) * (slope != left)


def _terms(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    method: str,
    estimate: ProjectionOptions,
    network: bool = True,
) -> _Terms:
    """Solves the relaxed problem of every class; `network`: whether to run the network at the solutions too."""
    graph = prepared_linear(model, region, method)
    labels = check_labels(labels, len(region), graph).to(region.center.device)
    count, kind, generator = estimate
    if count is not None and method != "dual":
        raise InputError(f"projections estimate the method 'dual', not {method!r}; leave projections out")
    classes = graph.output_shape[0]
    eye = torch.eye(classes, dtype=region.dtype, device=labels.device)
    others = torch.nonzero(eye[labels] == 0)
    example = others[:, 0]
    rows = DenseRows(eye[labels[example]] - eye[others[:, 1]], example, (0, classes - 1))
    with full_precision(region.center.device):
        if count is None:
            state = linear_state(graph, region, method)
        else:
            state = projected_state(graph, region, count, kind, generator)
        optimum = relaxed_optimum(state, rows)
        return _Terms(state, labels, rows, optimum, node_values(graph, optimum.points) if network else [])
