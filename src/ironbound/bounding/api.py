"""`bounds` and `margins`: what users call to bound a network's output over a region."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import DEFAULT_BUDGET
from ironbound.bounding.methods import (
    EXACT,
    METHODS,
    SHORT_SUMS,
    Method,
    bounds_rounding,
    example_bytes,
    find_method,
    identity_rows,
)
from ironbound.bounding.precision import full_precision, plain_products, sums_in_float32
from ironbound.bounding.rounding import Arithmetic
from ironbound.bounding.threads import over_examples
from ironbound.capture import capture
from ironbound.errors import InputError, LabelError
from ironbound.graph import Graph
from ironbound.regions import Region

_CHUNK = 1 << 20  # bytes of one batch's values on a CPU: about its second-level cache


@dataclass(frozen=True, eq=False)
class Bounds:
    """Bounds that are proofs: up to floating point rounding, or with it where an arithmetic was named.

    Attributes:
        lower, upper: of the network's output, [batch, *output shape].
        layers: (lower, upper) of the value that each activation reads, [batch, *shape], by the activation's node name.
            Where the activation is affine on them they may be wider than the method's best, never on another side of a
            kink.
    """

    lower: Tensor
    upper: Tensor
    layers: Mapping[str, tuple[Tensor, Tensor]]


def bounds(
    model: nn.Module | Graph,
    region: Region,
    method: str = "dual",
    memory: int | None = None,
    arithmetic: Arithmetic | None = None,
) -> Bounds:
    """Bounds of every output of a network over a region of inputs; differentiable in parameters and centre.

    Args:
        model: a feed-forward network in evaluation mode, or its graph.
        region: the inputs, e.g. `LinfBall(x, 0.1)` with x of shape [batch, *input shape].
        method: one of `METHODS`: "interval", "dual", "dual+interval", "crown", "crown-ibp", "alpha" ("alpha:100": with
            100 iterations, not 20), "alpha-sign"; or of `EXACT`: "lp", "milp" (right up to the solver's tolerances),
            "split" ("split:10": 10 seconds for an example, not 60), and for two-layer networks in linf balls "sdp" and
            "sdp-chord"; those have no gradients.
        memory: bytes that the rows of one step may take (default 2 GiB).
        arithmetic: None: the bounds are as computed. "real": they are moved outward by all that rounding can have done
            to them, and are proofs for the network in real arithmetic. "float32": also for every run of it in float32
            (docs/arithmetic.md). For the methods in `METHODS`, without gradients; give network and region in float64
            (for "dual" on an x86 CPU float32 will do: faster, and wider by what it rounds).

    Returns:
        Lower and upper bounds of shape [batch, *output shape], and those of every activation's input.

    Raises:
        InputError: arguments do not fit, or weights are not finite.
        CaptureError: the network has an operator without a rule, is in training mode, or mixes the examples of a batch.
        MemoryLimitError: one functional alone does not fit into memory.
    """
    graph = prepared(model, region, method)
    with full_precision(region.center.device), _proving(graph, region, method, arithmetic):
        return _bounds(graph, region, _method(method, arithmetic), memory)


def _bounds(graph: Graph, region: Region, bound: Method, memory: int | None) -> Bounds:
    names = [node.name for node in graph.nodes]
    relaxed: list[list[int]] = []

    def work(piece: slice) -> tuple[Tensor, ...]:
        part = region[piece]
        state = bound(graph, part, memory)
        lower, upper = state.answer(identity_rows(graph, len(part), part.center), True)
        assert upper is not None
        layers = state.layers()
        relaxed.append(list(layers))
        shape = (len(part), *graph.output_shape)
        flat = [end for found in layers.values() for end in found]
        return lower.reshape(shape), upper.reshape(shape), *flat

    lower, upper, *flat = over_examples(work, len(region), piece_length(graph, region, memory), region.center.device)
    layers = {names[index]: (flat[2 * i], flat[2 * i + 1]) for i, index in enumerate(relaxed[0])}
    return Bounds(lower, upper, layers)


def margins(
    model: nn.Module | Graph,
    region: Region,
    labels: Tensor,
    method: str = "dual",
    targets: Tensor | None = None,
    memory: int | None = None,
    arithmetic: Arithmetic | None = None,
) -> Tensor:
    """Lower bounds of logit[label] - logit[k] for every class k.

    Where all of them are positive, no input of the region changes the answer.

    Args:
        model: a classifier in evaluation mode with outputs [batch, classes], or its graph.
        region: the inputs.
        labels: int64 [batch].
        method: as for `bounds`.
        targets: bool [batch, classes]: the classes to bound; the others are NaN (which never compares as proved).
        memory: bytes that the rows of one step may take (default 2 GiB).
        arithmetic: as for `bounds`.

    Returns:
        [batch, classes]; 0 at k = label. Differentiable in parameters and centre.

    Raises:
        InputError, LabelError: arguments do not fit, or weights are not finite.
        CaptureError: the network has an operator without a rule, is in training mode, or mixes the examples of a batch.
        MemoryLimitError: one functional alone does not fit into memory.
    """
    graph = prepared(model, region, method)
    with full_precision(region.center.device), _proving(graph, region, method, arithmetic):
        return _margins(graph, region, labels, _method(method, arithmetic), targets, memory)


def _margins(
    graph: Graph, region: Region, labels: Tensor, bound: Method, targets: Tensor | None, memory: int | None
) -> Tensor:
    labels = check_labels(labels, len(region), graph).to(region.center.device)
    classes = graph.output_shape[0]
    wanted = (
        torch.ones((len(region), classes), dtype=torch.bool, device=labels.device)
        if targets is None
        else torch.as_tensor(targets, device=labels.device)
    )
    if wanted.shape != (len(region), classes) or wanted.dtype != torch.bool:
        raise InputError(f"targets must be bool [{len(region)}, {classes}], got {wanted.dtype} {tuple(wanted.shape)}")
    own = torch.nn.functional.one_hot(labels, classes).bool()

    def work(piece: slice) -> Tensor:
        part, label = region[piece], labels[piece]
        asked = torch.nonzero(wanted[piece] & ~own[piece])
        result = part.center.new_full((len(part), classes), torch.nan).masked_fill(own[piece], 0.0)
        if len(asked) == 0:
            return result
        example, other = asked[:, 0], asked[:, 1]
        eye = torch.eye(classes, dtype=part.dtype, device=label.device)
        state = bound(graph, part, memory)
        layout = (0, classes - 1) if len(asked) == len(part) * (classes - 1) else None
        lower, _ = state.answer(DenseRows(eye[label[example]] - eye[other], example, layout), False)
        return result.index_put((example, other), lower)

    return over_examples(work, len(region), piece_length(graph, region, memory), region.center.device)


def check_labels(labels: Tensor, batch: int, graph: Graph) -> Tensor:
    """Checks that labels fit a classifier's graph.

    Args:
        labels: integers [batch].
        batch: number of examples.
        graph: the classifier.

    Returns:
        The labels, int64 [batch].

    Raises:
        LabelError: not integers, not one per example, or no class of the network.
        InputError: the network is no classifier.
    """
    if len(graph.output_shape) != 1 or graph.output_shape[0] < 2:
        raise InputError(
            f"margins need a classifier with outputs [batch, classes]; this network's output is {graph.output_shape}"
        )
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.is_complex():
        raise LabelError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (batch,):
        raise LabelError(f"labels must have shape ({batch},), one per example, got {tuple(labels.shape)}")
    if batch and (labels.min() < 0 or labels.max() >= graph.output_shape[0]):
        raise LabelError(
            f"labels must lie in 0..{graph.output_shape[0] - 1}, found {labels.min().item()}..{labels.max().item()}"
        )
    return labels.long()


def prepared(model: nn.Module | Graph, region: Region, method: str) -> Graph:
    """The graph of a network, checked to fit a query.

    Args:
        model: a network in evaluation mode, or its graph.
        region: the inputs.
        method: see `bounds`.

    Returns:
        The graph.

    Raises:
        InputError: arguments do not fit, or weights are not finite.
    """
    _method(method)
    if len(region) == 0:
        raise InputError("the region holds no example")
    with torch.autocast(region.center.device.type, enabled=False):
        graph = capture(model, region.center)
    if graph.input_shape != region.shape:
        raise InputError(
            f"the network reads inputs of shape {graph.input_shape}, the region's examples have {region.shape}"
        )
    for tensor in graph.parameters():
        # a tensor without axes is a number of the code, which takes the dtype of what it meets
        if tensor.dim() and tensor.is_floating_point() and tensor.dtype != region.dtype:
            raise InputError(
                f"the network computes in {tensor.dtype}, the region is given in {region.dtype}; convert one of them"
            )
        if not _is_finite(tensor):
            raise InputError("the network's weights hold NaN or infinity: nothing can be proved of it")
    return graph


@contextmanager
def _proving(graph: Graph, region: Region, method: str, arithmetic: Arithmetic | None) -> Generator[None, None, None]:
    """What a proof needs: a dtype that bears it, plain products, no gradients; for runs in float32 float32 weights."""
    if arithmetic is None:
        yield
        return
    if arithmetic not in get_args(Arithmetic):
        raise InputError(f"arithmetic {arithmetic!r} is not known; choose one of {', '.join(get_args(Arithmetic))}.")
    if region.dtype != torch.float64 and not proves_in(region.dtype, method, region.center.device):
        raise InputError(
            f"bounds by {method!r} with an arithmetic are computed in float64, not {region.dtype}; "
            "convert with .double()."
        )
    for tensor in graph.parameters() if arithmetic == "float32" else ():
        if tensor.dim() and not torch.equal(tensor.float().to(tensor.dtype), tensor):
            raise InputError("the weights are no float32 numbers: this network cannot be executed in float32.")
    with torch.no_grad(), plain_products(region.center.device):
        yield


def proves_in(dtype: torch.dtype, method: str, device: torch.device) -> bool:
    """Whether a method's bounds can be proofs where they are computed in this dtype.

    Args:
        dtype: of network and region.
        method: its name.
        device: where it runs.

    Returns:
        True for `METHODS` in float64, and for those whose sums are short enough for float32 where it is plain there.
    """
    if dtype == torch.float64:
        return bounds_rounding(method)
    return dtype == torch.float32 and method in SHORT_SUMS and sums_in_float32(device)


def _method(name: str, arithmetic: Arithmetic | None = None) -> Method:
    """The method of a name, or an InputError that lists all."""
    found = find_method(name)
    if found is None:
        raise InputError(f"method {name!r} is not known; choose one of {', '.join((*METHODS, *EXACT))}")
    if arithmetic is None:
        return found
    if not bounds_rounding(name):
        raise InputError(f"the rounding of method {name!r} has no bound; choose one of {', '.join(METHODS)}.")
    return partial(found, arithmetic=arithmetic)


def _is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite, in one pass: both ends of the range show it."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor.detach()))


def piece_length(graph: Graph, region: Region, memory: int | None) -> int:
    """How many examples to bound at a time.

    Args:
        graph: the network.
        region: the inputs.
        memory: bytes, or None for the default.

    Returns:
        At least 1.
    """
    limit = DEFAULT_BUDGET // 8 if memory is None else memory // 8
    if region.center.device.type == "cpu":
        # with gradients the values are kept anyway: fewer, larger pieces; and every piece reads all weights anew
        weights = sum(tensor.numel() * tensor.element_size() for tensor in graph.parameters())
        limit = min(limit, 8 * _CHUNK if torch.is_grad_enabled() else max(_CHUNK, weights // 2))
    return max(1, limit // example_bytes(graph, region.center.element_size()))
