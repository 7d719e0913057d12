"""`sdp`: how fast the difference of two logits can change, for all pairs of classes, with certificates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ironbound.bounding.precision import full_precision
from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.semidefinite.bilinear import Weights
from ironbound.semidefinite.network import Layer, TwoLayer, two_layer
from ironbound.semidefinite.problems import linear_reach, problems
from ironbound.semidefinite.rounding import COVER, UNIT, gamma, up
from ironbound.semidefinite.slopes import slope_range
from ironbound.semidefinite.solving import Effort, solved
from ironbound.semidefinite.verified import largest_eigenvalue


@dataclass(frozen=True, eq=False)
class SdpCertificate:
    """For each pair of classes (i, j) an L with |f^ij(x') - f^ij(x)| <= L ε for all x and ||x' - x||_inf <= ε.

    f^ij = logit[i] - logit[j]; L bounds the l1 norm of its gradient anywhere. Multiplied by 4 it is the paper's
    max <M^ij, P>, with the right M (see docs/sdp.md). L of (j, i) is that of (i, j).

    Attributes:
        pairs: int64 [n, 2], i < j.
        primal: what unit vectors attain: the relaxation's value is no smaller, up to rounding, [n].
        dual: no smaller than the relaxation's value in exact arithmetic (a proof), [n].
        c: dual variables of the paper's equations (14) and (16), ordered as (1, t, s): diag(c) - M^ij is positive
            semidefinite and 1^T c = 4 dual, both up to rounding; [n, 1 + inputs + neurons]. Empty for a linear
            classifier.
        spectral: equation (17), sqrt(d) ||W||_2 ||V_i - V_j||_2 times the activation's largest slope (a proof), [n].
        frobenius: equation (18), the same with ||W||_F, [n].
    """

    pairs: Tensor
    primal: Tensor
    dual: Tensor
    c: Tensor
    spectral: Tensor
    frobenius: Tensor

    @property
    def gap(self) -> Tensor:
        """Relative distance of the two values, dual / primal - 1, [n]; 0 where both are 0."""
        return torch.where(self.dual == self.primal, 0.0, self.dual / self.primal - 1)

    def matrix(self, bound: str = "dual") -> Tensor:
        """A bound as a symmetric matrix over the classes.

        Args:
            bound: "dual", "primal", "spectral" or "frobenius".

        Returns:
            [classes, classes], 0 on the diagonal.

        Raises:
            InputError: no such bound.
        """
        if bound not in ("dual", "primal", "spectral", "frobenius"):
            raise InputError(f"bound {bound!r} is not known; choose dual, primal, spectral or frobenius")
        classes = int(self.pairs.max()) + 1
        result = torch.zeros(classes, classes, dtype=torch.float64)
        i, j = self.pairs.T
        result[i, j] = result[j, i] = getattr(self, bound)
        return result


def sdp(model: nn.Module | Graph, x: Tensor | None = None, gap: float = 1e-4, rank: int = 32) -> SdpCertificate:
    """The semidefinite certificate of a linear classifier or a two-layer network, for all pairs of classes at once.

    Source: Raghunathan, Steinhardt & Liang, "Certified defenses against adversarial examples" (2018), equations (2),
    (11), (14), (17), (18), with equation (8) corrected.

    Args:
        model: linear, or linear, activation, linear, with biases, flattening and normalisation; in evaluation mode.
        x: inputs [batch, *shape] that a module reads; not needed for a graph.
        gap: relative gap of primal and dual at which a pair is solved.
        rank: length of the vectors of the low-rank solver.

    Returns:
        Values, bounds and dual variables.

    Raises:
        InputError: the network is another one, or has one output only; arguments do not fit.
        CaptureError: the network cannot be captured.
    """
    if not gap > 0 or rank < 2:
        raise InputError(f"gap must be positive and rank at least 2, got {gap} and {rank}")
    if not isinstance(model, Graph) and x is None:
        raise InputError("give inputs x [batch, *shape] that the network reads, or its graph")
    graph = model if isinstance(model, Graph) else capture(model, x)  # type: ignore[arg-type]
    network = two_layer(graph)
    if network.classes < 2:
        raise InputError("a certificate for pairs of classes needs at least 2 outputs")
    with full_precision(torch.device("cpu")), torch.no_grad():
        return pairwise(network, Effort(gap=gap, rank=rank))


def pairwise(network: TwoLayer, effort: Effort) -> SdpCertificate:
    """The certificate of a network that has been read.

    Args:
        network: a linear classifier or two layers.
        effort: of the solver.

    Returns:
        Values, bounds and dual variables.
    """
    eye = torch.eye(network.classes, dtype=torch.float64)
    pairs = torch.triu_indices(network.classes, network.classes, 1).T
    rows = eye[pairs[:, 0]] - eye[pairs[:, 1]]
    spectral, frobenius = (_norm_bounds(network, rows, norm) for norm in (_spectral_norm, _frobenius_norm))
    if network.output is None:
        dual = linear_reach(network, rows, torch.ones_like(network.hidden.weight[0]))
        primal = (rows @ network.hidden.weight).abs().sum(1)
        return SdpCertificate(pairs, primal, dual, torch.empty(len(pairs), 0), spectral, frobenius)
    posed = problems(network, rows, whole_range(network), torch.ones_like(network.hidden.weight[0]))
    found = solved(posed, effort)
    c = _dual_variables(found.weights, found.dual)
    return SdpCertificate(pairs, found.primal, found.dual, c, spectral, frobenius)


def whole_range(network: TwoLayer) -> tuple[Tensor, Tensor]:
    """Least and largest slope of each neuron, whatever it reads; [neurons] each."""
    assert network.activation is not None
    low, high = slope_range(network.activation)
    ones = torch.ones_like(network.hidden.bias)
    return low * ones, high * ones


def _dual_variables(weights: Weights, dual: Tensor) -> Tensor:
    """The paper's c: rows and columns scaled so that either sums up to twice the bound (of M / 4), in its order."""
    rows, columns = weights.rows**2, weights.columns**2
    rows = rows * (2 * dual / rows.sum(1)).unsqueeze(1)
    columns = columns * (2 * dual / columns.sum(1)).unsqueeze(1)
    return torch.cat([columns[:, :1], rows, columns[:, 1:]], 1)


def _norm_bounds(network: TwoLayer, rows: Tensor, norm: Callable[[Layer], float]) -> Tensor:
    """sqrt(d) ||W|| ||g V||_2 times the largest slope; for a linear classifier sqrt(d) ||g W||_2. Rounded upward."""
    inputs = network.hidden.weight.shape[1]
    last = network.output or network.hidden
    size = rows.abs() @ last.weight.abs()
    error = gamma(rows.shape[1] + last.roundings + 2) * torch.linalg.vector_norm(size, dim=1) * COVER
    length = torch.linalg.vector_norm(rows @ last.weight, dim=1) * (1 + gamma(size.shape[1] + 4)) + error
    factor = 1.0
    if network.activation is not None:
        factor = norm(network.hidden) * max(abs(slope) for slope in slope_range(network.activation))
    return up(length * (inputs**0.5 * factor * (1 + 8 * UNIT)) * (1 + 4 * UNIT))


def _frobenius_norm(layer: Layer) -> float:
    length = float(torch.linalg.vector_norm(torch.linalg.vector_norm(layer.weight, dim=1)))
    return length * (1 + gamma(sum(layer.weight.shape) + layer.roundings + 8))


def _spectral_norm(layer: Layer) -> float:
    """The largest singular value, by a verified factorisation of the smaller Gram matrix; or the Frobenius norm."""
    weight = layer.weight if layer.weight.shape[0] <= layer.weight.shape[1] else layer.weight.T
    gram = weight @ weight.T
    error = gamma(weight.shape[1] + 2 * layer.roundings + 4) * float(gram.diagonal().sum()) * COVER
    return min(largest_eigenvalue(gram, error) ** 0.5 * (1 + 4 * UNIT), _frobenius_norm(layer))
