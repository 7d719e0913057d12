"""The certificates as methods "sdp" and "sdp-chord" of `bounds` and `margins`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ironbound.bounding.alpha import proof_threshold
from ironbound.bounding.backward import Range
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import Relaxed
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.regions import Box, LinfBall, Region
from ironbound.semidefinite.network import TwoLayer, two_layer
from ironbound.semidefinite.problems import linear_reach, problems
from ironbound.semidefinite.rounding import COVER, down, lowered, raised, up
from ironbound.semidefinite.slopes import chord_range
from ironbound.semidefinite.solving import Effort, Enough, solved
from ironbound.semidefinite.speeds import speeds

CHORD = Effort(gap=1e-3, rank=16, steps=20, rounds=8)

# (points, functionals [n, outputs], their examples, whether both bounds are asked) -> how far each can move, [n]
Reach = Callable[[Tensor, Tensor, bool], Tensor]


def sdp(graph: Graph, region: Region, budget: int | None) -> Relaxed:
    """One semidefinite program for each functional, whatever the input (Raghunathan et al. 2018, equation (11)).

    The range of the inputs (`clip`) is not used. The programs of a network are solved once.

    Args:
        graph: a linear classifier or a two-layer network.
        region: an l-infinity ball with one ε for all elements of an example.
        budget: not used.

    Returns:
        The method.

    Raises:
        InputError: the network or the region is another one.
    """
    if not isinstance(region, LinfBall) or region.eps[0].numel() != 1:
        raise InputError(
            "method 'sdp' bounds l-infinity balls with one eps for all elements; "
            "use 'sdp-chord' for boxes, or 'dual', 'crown' or 'alpha'."
        )
    network = two_layer(graph)
    center = region.center.detach().double().cpu().flatten(1)
    lower, upper = (_flat(end) for end in (region.center - region.eps, region.center + region.eps))
    eps = torch.maximum(up(upper - center), up(center - lower)).amax(1)
    eps = torch.maximum(eps, region.eps.detach().double().cpu().flatten(1).amax(1))

    def reach(rows: Tensor, example: Tensor, both: bool) -> Tensor:
        return up(eps[example] * speeds(network, rows))

    return _relaxed(graph, region, network, (center, eps[:, None].expand_as(center)), reach)


def sdp_chord(graph: Graph, region: Region, budget: int | None) -> Relaxed:
    """A semidefinite program for each input and functional, with the slopes that its neurons can have there.

    Where only lower bounds are asked they are margins: a program is left as soon as its bound proves that the margin is
    positive, or its value that it cannot.

    Args:
        graph: a linear classifier or a two-layer network.
        region: an l-infinity ball, with `clip` or without, or a Box.
        budget: not used.

    Returns:
        The method.

    Raises:
        InputError: the network or the region is another one.
    """
    if not isinstance(region, LinfBall | Box):
        raise InputError("method 'sdp-chord' bounds l-infinity balls and boxes; use 'dual', 'crown' or 'alpha'.")
    network = two_layer(graph)
    center, radius = _middle(region)
    guard = proof_threshold(graph, region).double().cpu()

    def reach(rows: Tensor, example: Tensor, both: bool) -> Tensor:
        found = torch.empty(len(rows), dtype=torch.float64)
        value = network.functionals(center, rows, example)
        for one in torch.unique(example).tolist():
            index = torch.nonzero(example == one).squeeze(1)
            enough = None if both else _decided(value[index], float(guard[one]))
            found[index] = chord_reach(network, center[one], radius[one], rows[index], CHORD, enough)
        return found

    return _relaxed(graph, region, network, (center, radius), reach)


def chord_reach(
    network: TwoLayer, center: Tensor, radius: Tensor, rows: Tensor, effort: Effort, enough: Enough | None = None
) -> Tensor:
    """How far functionals can move in one box.

    Args:
        network: a linear classifier or two layers.
        center: of the box, [inputs].
        radius: its half widths, [inputs].
        rows: functionals, [n, outputs].
        effort: of the solver.
        enough: ends problems earlier.

    Returns:
        Upper bounds in exact arithmetic, [n].
    """
    if network.activation is None:
        return linear_reach(network, rows, radius)
    value, error = network.neurons(center[None])
    slopes = chord_range(network.activation, value[0], error[0], _neuron_reach(network, radius[None])[0])
    return solved(problems(network, rows, slopes, radius), effort, enough).dual


def _decided(value: Tensor, guard: float) -> Enough:
    """Whether the sign of the margins value - reach is known."""

    def enough(primal: Tensor, dual: Tensor, index: Tensor) -> Tensor:
        margin = value[index]
        return (margin - dual > guard) | (margin - primal * (1 - 1e-6) < 0)

    return enough


def _neuron_reach(network: TwoLayer, radius: Tensor) -> Tensor:
    """How far what the neurons read can move, [batch, neurons], rounded upward."""
    layer = network.hidden
    still = torch.zeros_like(layer.bias)
    moved, error = type(layer)(layer.weight.abs(), still, layer.roundings, still).run(radius)
    return up(moved + error)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu().flatten(1)


def _middle(region: Region) -> tuple[Tensor, Tensor]:
    """Center and half widths of boxes that hold the region, both as computed in its dtype and in exact arithmetic."""
    lower, upper = (_flat(end) for end in region.box())
    if isinstance(region, LinfBall):
        center, eps = _flat(region.center), _flat(region.eps)
        least, most = down(center - eps), up(center + eps)
        if region.clip is not None:
            least, most = least.clamp(min=region.clip[0]), most.clamp(max=region.clip[1])
        lower, upper = torch.minimum(lower, least), torch.maximum(upper, most)
    middle = (lower + upper) / 2
    radius = torch.maximum(upper - middle, middle - lower)
    return middle, torch.where(radius > 0, up(radius), radius)


def _relaxed(
    graph: Graph, region: Region, network: TwoLayer, box: tuple[Tensor, Tensor], reach: Callable[..., Tensor]
) -> Relaxed:
    center, radius = box
    dtype, device = region.dtype, region.center.device

    @torch.no_grad()
    def answer(rows: DenseRows, both: bool) -> tuple[Tensor, Tensor | None]:
        coefficients, example = rows.coefficients.detach().double().cpu().flatten(1), rows.example.cpu()
        moved = reach(coefficients, example, both)
        lower = down(network.functionals(center, coefficients, example) - moved)
        if not both:
            return lowered(lower, dtype).to(device), None
        upper = -down(network.functionals(center, -coefficients, example) - moved)
        return lowered(lower, dtype).to(device), raised(upper, dtype).to(device)

    @torch.no_grad()
    def layers() -> dict[int, Range]:
        if network.activation is None:
            return {}
        value, error = network.neurons(center)
        moved = (_neuron_reach(network, radius) + error) * COVER
        shape = (len(center), *graph.nodes[graph.nodes[network.place].inputs[0]].shape)
        ends = lowered(down(value - moved), dtype), raised(up(value + moved), dtype)
        return {network.place: (ends[0].reshape(shape).to(device), ends[1].reshape(shape).to(device))}

    return Relaxed(answer, layers)
