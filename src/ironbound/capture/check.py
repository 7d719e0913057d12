"""Comparisons that no rule replaces: are examples treated alone, and does the graph compute what the module does?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironbound.capture.source import error_source
from ironbound.errors import BatchMixingError, CaptureError, InputError
from ironbound.graph import Graph

_PROBES = 3
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def probes(example: Tensor) -> Tensor:
    """Three random points around an example, from a generator of their own.

    Args:
        example: [batch, *shape]; an empty batch, or one that is not finite, counts as zeros.

    Returns:
        [3, *shape].
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_PROBES, *example.shape[1:])
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    center = torch.zeros(shape, dtype=torch.float64)
    if len(example) and bool(torch.isfinite(example).all()):
        center = center + example[:1].detach().to("cpu", torch.float64)
    spread = center.std() if center.numel() > 1 else center.abs().sum()
    scale = spread if bool(spread > 0) else torch.ones_like(spread)
    return (center + scale * noise).to(example.device, example.dtype)


def run(model: nn.Module, points: Tensor) -> Tensor:
    """Runs the module.

    Args:
        model: the module.
        points: [batch, *shape].

    Returns:
        Its values, [batch, *out].

    Raises:
        InputError: the module rejects the points.
        CaptureError: its output is no floating-point tensor [batch, *out].
    """
    shape = list(points.shape)
    try:
        with torch.no_grad():
            values = model(points.clone())
    except Exception as error:  # the user's module may raise anything
        where = error_source(error)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"the network fails on an input of shape {shape}, {points.dtype} on {points.device}"
            f"{f' at {where}' if where else ''}: {reason}"
        ) from error
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise CaptureError(f"the network must return one floating-point tensor [batch, *out], not {kind}.")
    if values.dim() < 1 or len(values) != len(points):
        raise CaptureError(
            f"the network must return [batch, *out]; for an input of shape {shape} it returns {list(values.shape)}."
        )
    return values


def check_examples(model: nn.Module, points: Tensor, values: Tensor) -> None:
    """Runs the module on a batch again and on each example alone.

    Args:
        model: the module.
        points: [3, *shape].
        values: the module's values there.

    Raises:
        CaptureError: its output changes from run to run.
        BatchMixingError: an example's output depends on the others.
    """
    tolerance = _TOLERANCE.get(values.dtype, 5e-2)
    if not _agree(values, run(model, points), tolerance, 0.0):
        raise CaptureError(
            "the network is not deterministic: two runs on one input differ; make it a fixed function of its input."
        )
    for index in range(len(points)):
        if not _agree(values[index : index + 1], run(model, points[index : index + 1]), tolerance, 0.0):
            raise BatchMixingError(
                "the network mixes the examples of a batch: an example alone gets another output than in a batch; "
                "use layers that treat each example by itself."
            )


def check_graph(graph: Graph, points: Tensor, values: Tensor) -> None:
    """Compares a graph with the module it was captured from.

    Args:
        graph: the graph.
        points: [3, *shape].
        values: the module's values there.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    with torch.no_grad():
        results: list[Tensor] = [points]
        for node in graph.nodes[1:]:
            results.append(node.operator.forward(*(results[source] for source in node.inputs)))
            if results[-1].shape[1:] != node.shape:
                found = list(results[-1].shape[1:])
                raise CaptureError(f"the node {node.name!r} has the shape {found}, not {list(node.shape)} as traced.")
    largest = max((_largest(result) for result in results), default=0.0)
    slack = 100 * torch.finfo(points.dtype).eps * largest
    if not _agree(values, results[-1], _TOLERANCE.get(values.dtype, 5e-2), slack):
        raise CaptureError("the graph computes other values than the network; please report this network as a bug.")


def _largest(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _agree(values: Tensor, others: Tensor, tolerance: float, slack: float) -> bool:
    """Whether two results differ by rounding only; NaN agrees with NaN, since NaN weights are found elsewhere."""
    if values.shape != others.shape:
        return False
    limit = tolerance * _largest(values) + slack
    return bool(torch.isclose(values, others, rtol=0.0, atol=limit, equal_nan=True).all())
