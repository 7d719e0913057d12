"""Training against the semidefinite certificate: its value as a regularizer, and a hinge loss on the certified margins.

The values come from the low-rank solver with one step (or a few) for each call, from the vectors of the call before. By
Danskin's theorem the gradient at the best vectors is that of the objective with the vectors held fixed, so no gradient
runs through the solver. Values in training are the solver's, from below, not certificates: `dual_bounds` turns the
vectors at hand into certificates, and `ironbound.sdp` solves for good ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.ops.affine import Linear, Scale
from ironbound.ops.operator import Activation
from ironbound.regions import LinfBall, Region
from ironbound.semidefinite.bilinear import dual_bound
from ironbound.semidefinite.mixing import Vectors, values
from ironbound.semidefinite.network import two_layer
from ironbound.semidefinite.pairwise import whole_range
from ironbound.semidefinite.problems import problems
from ironbound.semidefinite.slopes import slope_range
from ironbound.training.losses.loss import Loss, as_used, clean_logits, differences, weighted

RANK = 8
_MEMORY = 0.99  # of the running mean of the pairs' shares


@dataclass(eq=False)
class Progress:
    """What the solver keeps of a network between calls.

    Attributes:
        first: unit vectors of the linear term, [pairs, rank].
        rest: of the neurons, [neurons, pairs, rank].
        shares: running mean of how often a pair decides an example, [classes, classes], or None before the first.
    """

    first: Tensor
    rest: Tensor
    shares: Tensor | None = None


_progress: weakref.WeakKeyDictionary[nn.Module, Progress] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Live:
    """A two-layer network's own tensors, with their gradients.

    Attributes:
        hidden: W, [neurons, inputs].
        output: V, [classes, neurons].
        slopes: least and largest slope of the activation.
    """

    hidden: Tensor
    output: Tensor
    slopes: tuple[float, float]


def solver_state(model: nn.Module) -> dict[str, Any] | None:
    """What the solver keeps of a network, for checkpoints; None before its first call."""
    kept = _progress.get(model)
    return None if kept is None else dict(vars(kept))


def set_solver_state(model: nn.Module, state: Mapping[str, Any] | None) -> None:
    """Sets what the solver keeps of a network.

    Args:
        model: the network.
        state: from `solver_state`; None: the solver begins anew.
    """
    if state is None:
        _progress.pop(model, None)
    else:
        _progress[model] = Progress(**state)


def pair_values(model: nn.Module, region: Region, rank: int = RANK, steps: int = 1) -> Tensor:
    """Max <M^ij, P> / 4 for all pairs of classes, from below, by the solver's vectors, which move on with each call.

    Args:
        model: a two-layer network.
        region: its inputs; only their shape counts.
        rank: length of the vectors.
        steps: of the solver in this call.

    Returns:
        Symmetric [classes, classes], differentiable in the weights; how far logit differences move per unit of ε.

    Raises:
        InputError: the network is another one, or an argument does not fit.
    """
    if rank < 2 or steps < 1:
        raise InputError(f"rank must be at least 2 and steps at least 1, got {rank} and {steps}")
    live = _live(model, region)
    pairs = torch.triu_indices(len(live.output), len(live.output), 1, device=live.output.device)
    vectors = _vectors(model, live, pairs.shape[1], rank)
    low, high = live.slopes
    mid, half = (low + high) / 2, (high - low) / 2
    through = (live.output[pairs[0]] - live.output[pairs[1]]).T.unsqueeze(-1)
    for step in range(steps):
        with torch.no_grad():
            inner = (through * (mid * vectors.first + half * vectors.rest)).flatten(1)
            rows = _unit((live.hidden.T @ inner).unflatten(1, vectors.first.shape))
        last = step == steps - 1
        with torch.set_grad_enabled(last and torch.is_grad_enabled()):
            moved = through * (live.hidden @ rows.flatten(1)).unflatten(1, vectors.first.shape)
            linear = mid * moved.sum(0)
        vectors.first, vectors.rest = _unit(linear.detach()), _unit(half * moved.detach())
    value = torch.linalg.vector_norm(linear, dim=-1) + half * torch.linalg.vector_norm(moved, dim=-1).sum(0)
    result = value.new_zeros(len(live.output), len(live.output)).index_put((pairs[0], pairs[1]), value)
    return result + result.T


def sdp_hinge(
    model: nn.Module,
    region: Region,
    labels: Tensor,
    rank: int = RANK,
    steps: int = 1,
    margin: float = 1.0,
    weights: Tensor | None = None,
) -> Loss:
    """Hinge loss on the certified margins: relu(margin + max_i (f^{iy}(x) + ε L^{iy})).

    Args:
        model: a two-layer network.
        region: l-infinity balls with one ε for all elements of an example.
        labels: int64 [batch].
        rank: of the solver's vectors.
        steps: of the solver in each call.
        margin: by which margins should be positive.
        weights: of the examples, [batch], or None.

    Returns:
        The loss; wrong is what L does not certify.

    Raises:
        InputError: the network, the region or an argument does not fit.
        LabelError: labels do not fit.
    """
    if not isinstance(region, LinfBall) or region.eps[0].numel() != 1:
        raise InputError("the hinge loss on semidefinite certificates needs l-infinity balls with one eps per example")
    logits = clean_logits(model, region.center, labels)
    values = pair_values(model, region, rank, steps)
    upper = region.eps.reshape(-1, 1) * values[labels] - differences(logits, labels)
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    worst = upper.masked_fill(own, -torch.inf).amax(1)
    return weighted(
        torch.relu(margin + worst), ~(worst.detach() < 0), weights, {"largest_value": float(values.detach().max())}
    )


def sdp_value(
    model: nn.Module, region: Region, labels: Tensor, rank: int = RANK, steps: int = 1, weigh: bool = False
) -> Tensor:
    """The paper's regularizer: the sum over i != j of w^ij max <M^ij, P>.

    Source: Raghunathan, Steinhardt & Liang (2018), equation (13); section 6.3 for the weights, which are updated every
    20 epochs there and follow a running mean over batches here.

    Args:
        model: a two-layer network.
        region: the inputs; ε counts for the weights only.
        labels: int64 [batch], for the weights only.
        rank: of the solver's vectors.
        steps: of the solver in each call.
        weigh: False: w^ij = 1. True: the share of the examples whose largest bound f^{iy} + ε L^{iy} is that of the
            pair (i, j).

    Returns:
        Scalar, differentiable in the weights.

    Raises:
        InputError: the network or an argument does not fit.
    """
    values = 4 * pair_values(model, region, rank, steps)
    if not weigh:
        return values.sum()
    progress = _progress[model]
    now = pair_shares(model, region, labels, values.detach() / 4)
    progress.shares = now if progress.shares is None else _MEMORY * progress.shares + (1 - _MEMORY) * now
    return (progress.shares * values).sum()


@torch.no_grad()
def pair_shares(model: nn.Module, region: Region, labels: Tensor, values: Tensor) -> Tensor:
    """The share of the examples whose largest bound in equation (12) is that of a pair of classes.

    Args:
        model: a classifier.
        region: l-infinity balls with one ε per example.
        labels: int64 [batch].
        values: bounds per unit of ε, [classes, classes].

    Returns:
        Symmetric [classes, classes], with the share of (i, j) or (j, i) in both places; the upper half sums up to 1.

    Raises:
        InputError: the region is another one.
    """
    if not isinstance(region, LinfBall) or region.eps[0].numel() != 1:
        raise InputError("weights of pairs need l-infinity balls with one eps per example")
    logits = clean_logits(model, region.center, labels)
    upper = region.eps.reshape(-1, 1) * values[labels] - differences(logits, labels)
    rival = upper.scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    shares = torch.zeros_like(values)
    ones = torch.full_like(upper[:, 0], 1 / len(labels))
    shares.index_put_((labels, rival), ones.to(shares), accumulate=True)
    return shares + shares.T


@torch.no_grad()
def dual_bounds(model: nn.Module, region: Region) -> Tensor:
    """The certificates that the solver's present vectors give, without solving on: a proof whatever they are.

    Source: Raghunathan et al. (2018), equation (16), with the best scaling of the dual variables.

    Args:
        model: a two-layer network that `pair_values` was called on.
        region: its inputs; only their shape counts.

    Returns:
        Symmetric float64 [classes, classes]: no two inputs within ε differ by more than ε times this in a difference of
        two logits.

    Raises:
        InputError: the solver has no vectors of this network yet.
    """
    kept = _progress.get(model)
    if kept is None:
        raise InputError("the solver has not seen this network yet; call pair_values, or train, first")
    with as_used(model, region):
        network = two_layer(capture(model, region.center))
    pairs = torch.triu_indices(network.classes, network.classes, 1)
    eye = torch.eye(network.classes, dtype=torch.float64)
    ones = torch.ones_like(network.hidden.weight[0])
    posed = problems(network, eye[pairs[0]] - eye[pairs[1]], whole_range(network), ones)
    first, rest = kept.first.cpu(), kept.rest.cpu()
    _, weights = values(posed, Vectors(first, rest, first, rest))
    result = torch.zeros(network.classes, network.classes, dtype=torch.float64)
    result[pairs[0], pairs[1]] = torch.tensor(
        [dual_bound(posed, place, weights) for place in range(pairs.shape[1])], dtype=torch.float64
    )
    return result + result.T


def _unit(vectors: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.clamp(min=torch.finfo(vectors.dtype).tiny)


def _vectors(model: nn.Module, live: Live, pairs: int, rank: int) -> Progress:
    shape = (len(live.hidden), pairs, rank)
    kept = _progress.get(model)
    if kept is None or kept.rest.shape != shape or kept.rest.dtype != live.hidden.dtype:
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
        rest = torch.randn(shape, generator=generator, dtype=torch.float64)
        kept = _progress[model] = Progress(_unit(first).to(live.hidden), _unit(rest).to(live.hidden))
    kept.first, kept.rest = kept.first.to(live.hidden.device), kept.rest.to(live.hidden.device)
    return kept


def _live(model: nn.Module, region: Region) -> Live:
    with as_used(model, region):
        graph = capture(model, region.center)
    if model not in _progress:
        two_layer(graph)  # refuses other networks, once
    found = _weights(graph)
    activations = [node.operator for node in graph.nodes if isinstance(node.operator, Activation)]
    if len(found) != 2 or len(activations) != 1:
        raise InputError("training on semidefinite certificates needs two linear layers around one activation")
    return Live(found[0], found[1], slope_range(activations[0]))


def _weights(graph: Graph) -> list[Tensor]:
    """The weights of the linear layers, with factors before and after them."""
    layers: list[Tensor] = []
    before: Tensor | None = None
    for index, node in enumerate(graph.nodes):
        operator = node.operator
        if isinstance(operator, Linear):
            layers.append(operator.weight if before is None else operator.weight * before)
            before = None
        elif isinstance(operator, Scale):
            factor = operator.factor.expand(node.shape).flatten()
            starts = not any(
                isinstance(earlier.operator, Linear) for earlier in graph.nodes[_start(graph, index) : index]
            )
            if starts:
                before = factor if before is None else before * factor
            else:
                layers[-1] = layers[-1] * factor.unsqueeze(1)
    return layers


def _start(graph: Graph, index: int) -> int:
    """Where the part of the network that holds a node begins: at the last activation before it, or at the input."""
    return max((place for place in range(index) if isinstance(graph.nodes[place].operator, Activation)), default=0)
