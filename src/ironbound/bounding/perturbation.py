"""The optimal perturbation of a linearly relaxed network, and what every relaxed node does there.

Zhu et al. (2020) read a linear relaxation as a linear network whose adversary also moves every open neuron between its
two lines (equation 3). That adversary's best choice is explicit: the input goes to the minimiser of a linear function
(equation 6), every open neuron to the line that its coefficient asks for. The input part is a point that an attacker
may try; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ironbound.bounding.api import check_labels, piece_length, prepared
from ironbound.bounding.backward import Rows
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.lines import LinesState, lines_state
from ironbound.bounding.parallel import parallel_state
from ironbound.bounding.precision import full_precision
from ironbound.bounding.threads import over_examples
from ironbound.errors import InputError
from ironbound.graph import Graph
from ironbound.ops.operator import Activation, Affine, Lines
from ironbound.ops.piecewise import Maximum
from ironbound.regions import Region, Set

LINEAR_METHODS = ("dual", "dual+interval", "crown", "crown-ibp")


@dataclass(frozen=True, eq=False)
class RelaxedNode:
    """One relaxed node at the optimum of the relaxed problem; n functionals per example.

    Attributes:
        lower, upper: bounds of the value that it reads, [batch, *shape].
        before: the value that it reads in the relaxed network (x* of the paper), [batch, n, *shape].
        after: its own value there (z*), [batch, n, *shape].
        network: the value that it reads when the network itself runs at the same input (x'), [batch, n, *shape].
        raised: where it sits on its upper line (for open ReLUs: delta* > 0), bool [batch, n, *shape].
    """

    lower: Tensor
    upper: Tensor
    before: Tensor
    after: Tensor
    network: Tensor
    raised: Tensor


@dataclass(frozen=True, eq=False)
class OptimalPerturbation:
    """The optimum of the relaxed problem, for n functionals of each example's output.

    At best an attack's candidate, never a verdict: the network may well keep its answer at `points`.

    Attributes:
        delta: what is added to the region's centre, [batch, n, *input shape].
        points: centre + delta, inside the region, [batch, n, *input shape].
        margins: the relaxed problem's value, a lower bound of the functional over the region, [batch, n].
        attained: the network's own value of the functional at `points`, never below `margins`, [batch, n].
        nodes: every relaxed node, by name.
    """

    delta: Tensor
    points: Tensor
    margins: Tensor
    attained: Tensor
    nodes: Mapping[str, RelaxedNode]


@dataclass(frozen=True, eq=False)
class Optimum:
    """The optimum of the relaxed problem, row by row.

    Attributes:
        lower: lower bound of each functional, [rows].
        points: the minimising input of each, in the region, [rows, *input shape].
        raised: by relaxed node, where the upper line is taken, bool [rows, *node shape].
    """

    lower: Tensor
    points: Tensor
    raised: dict[int, Tensor]


def optimal_perturbation(
    model: nn.Module | Graph,
    region: Region,
    labels: Tensor | None,
    method: str = "dual",
    functionals: Tensor | None = None,
    memory: int | None = None,
) -> OptimalPerturbation:
    """The perturbation that a relaxation thinks worst: an attack's candidate, never a verdict.

    In a box an element with coefficient 0 goes to its lower end, as in the paper; in an l1 ball the first of the
    largest coefficients takes all. A clipped l2 or l1 ball is bounded by the better of two sets; there the better
    set's minimiser is moved into the region, along the ray to the centre.

    Source: Zhu et al. (2020), equations (3) to (7) and Algorithm 1.

    Args:
        model: a network in evaluation mode, or its graph.
        region: the inputs.
        labels: int64 [batch]: n = classes, functional k is logit[label] - logit[k] (of k = label: 0, not perturbed).
        method: one of `LINEAR_METHODS`.
        functionals: instead of labels (None then): coefficients [batch, n, *output shape].
        memory: bytes that the rows of one step may take (default 2 GiB).

    Returns:
        The perturbations; differentiable in parameters and centre.

    Raises:
        InputError, LabelError: arguments do not fit, or the method has no linear relaxation of the input.
        CaptureError: the network has an operator without a rule, is in training mode, or mixes the examples of a batch.
        MemoryLimitError: one functional alone does not fit into memory.
    """
    graph = prepared_linear(model, region, method)
    coefficients = _coefficients(graph, region, labels, functionals)
    names = [node.name for node in graph.nodes]
    relaxed: list[list[int]] = []

    def work(piece: slice) -> tuple[Tensor, ...]:
        state = linear_state(graph, region[piece], method, memory)
        found, nodes = _solved(state, coefficients[piece])
        relaxed.append(list(nodes))
        return *found, *(value for node in nodes.values() for value in vars(node).values())

    with full_precision(region.center.device):
        each = max(1, piece_length(graph, region, memory) // coefficients.shape[1])
        delta, points, lower, attained, *flat = over_examples(work, len(region), each, region.center.device)
    nodes = {names[index]: RelaxedNode(*flat[6 * i : 6 * i + 6]) for i, index in enumerate(relaxed[0])}
    return OptimalPerturbation(delta, points, lower, attained, nodes)


def _coefficients(graph: Graph, region: Region, labels: Tensor | None, functionals: Tensor | None) -> Tensor:
    """Checked functionals, [batch, n, *output shape]."""
    like = region.center
    if (labels is None) == (functionals is None):
        raise InputError("give labels, or labels=None and functionals: one of the two says what is minimised")
    if labels is not None:
        labels = check_labels(labels, len(region), graph).to(like.device)
        eye = torch.eye(graph.output_shape[0], dtype=like.dtype, device=like.device)
        return eye[labels].unsqueeze(1) - eye
    assert functionals is not None
    fits = (
        functionals.dim() >= 2 and functionals.shape[0] == len(region) and functionals.shape[2:] == graph.output_shape
    )
    if not fits or functionals.shape[1] == 0:
        wanted = ", ".join(str(extent) for extent in graph.output_shape)
        raise InputError(f"functionals must be [{len(region)}, n, {wanted}], n >= 1, got {tuple(functionals.shape)}")
    if functionals.dtype != like.dtype or not bool(torch.isfinite(functionals).all()):
        raise InputError(f"functionals must be finite and of the region's dtype {like.dtype}")
    return functionals.to(like.device)


def _solved(state: LinesState, coefficients: Tensor) -> tuple[list[Tensor], dict[int, RelaxedNode]]:
    """[delta, points, margins, attained] and the relaxed nodes of some examples."""
    graph, center = state.graph, state.region.center
    batch, count = coefficients.shape[:2]
    example = torch.arange(batch, device=center.device).repeat_interleave(count)
    rows = DenseRows(coefficients.flatten(0, 1), example, (0, count))
    best = relaxed_optimum(state, rows)
    idle = (rows.coefficients.flatten(1) == 0).all(1).reshape(-1, *(1,) * len(graph.input_shape))
    points = torch.where(idle, center[example], best.points)
    values = node_values(graph, points)
    relaxed = _relaxed_values(state, points, best.raised, example)
    attained = (rows.coefficients * values[-1]).flatten(1).sum(1)

    def split(value: Tensor) -> Tensor:
        return value.reshape(batch, count, *value.shape[1:])

    nodes = {}
    for index, (low, high) in state.layers.items():
        source = graph.nodes[index].inputs[0]
        raised = best.raised.get(index)
        if raised is None:  # no functional depends on it
            raised = torch.zeros_like(relaxed[index], dtype=torch.bool)
        before = (split(relaxed[source]), split(relaxed[index]), split(values[source]), split(raised))
        nodes[index] = RelaxedNode(low, high, *before)
    return [split(points - center[example]), split(points), split(best.lower), split(attained)], nodes


def prepared_linear(model: nn.Module | Graph, region: Region, method: str) -> Graph:
    """The graph of a network, checked, for a method with linear lines down to the input.

    Args:
        model: the network or its graph.
        region: the inputs.
        method: name of the method.

    Returns:
        The graph.

    Raises:
        InputError: the method has no such lines, or arguments do not fit.
    """
    if method not in LINEAR_METHODS:
        raise InputError(
            f"method {method!r} does not relax the network to a linear one; choose one of {', '.join(LINEAR_METHODS)}"
        )
    return prepared(model, region, method)


def linear_state(graph: Graph, region: Region, method: str, budget: int | None = None) -> LinesState:
    """The lines of every relaxed node by a method's name.

    Args:
        graph: the network.
        region: the inputs.
        method: one of `LINEAR_METHODS`.
        budget: bytes for the rows of one chunk.

    Returns:
        The relaxed network; a walk through it gives the numbers of `margins` with the same method.
    """
    if method in ("crown", "crown-ibp"):
        return lines_state(graph, region, "adaptive", "walk" if method == "crown" else "interval", budget)
    if any(isinstance(node.operator, Maximum) for node in graph.nodes):
        return lines_state(graph, region, "parallel", "walk", budget)
    layers = parallel_state(graph, region, method == "dual+interval", budget).layers
    return parallel_lines(graph, region, layers)


def parallel_lines(graph: Graph, region: Region, layers: dict[int, tuple[Tensor, Tensor]]) -> LinesState:
    """The network relaxed by parallel lines on given bounds.

    Args:
        graph: the network; every relaxed node is an activation.
        region: the inputs.
        layers: bounds [batch, *shape] of the value that each relaxed node reads, by the node's index.

    Returns:
        The relaxed network.
    """
    lines = {}
    for index, (low, high) in layers.items():
        operator = graph.nodes[index].operator
        assert isinstance(operator, Activation)
        lines[index] = operator.parallel_lines(low, high)
    return LinesState(graph, region, lines, layers, {})


def relaxed_optimum(state: LinesState, rows: DenseRows) -> Optimum:
    """Solves the relaxed problem (C) of Zhu et al. (2020) for functionals of the output, by one backward walk.

    Args:
        state: the relaxed network, with lines at every relaxed node.
        rows: the functionals.

    Returns:
        Value and minimiser: the bound of equation (7), the input of equation (6), and each neuron's line.
    """
    graph, region = state.graph, state.region
    pending: dict[int, Rows] = {len(graph.nodes) - 1: rows}
    total = rows.coefficients.new_zeros(len(rows))
    raised: dict[int, Tensor] = {}
    at_input = rows.coefficients.new_zeros((len(rows), *graph.input_shape))
    for index in range(len(graph.nodes) - 1, -1, -1):
        current = pending.pop(index, None)
        if current is None:
            continue
        node = graph.nodes[index]
        pulled: tuple[Rows, ...]
        if index == 0:
            at_input = current.dense().coefficients
            break
        if isinstance(node.operator, Affine):
            shapes = tuple(graph.nodes[source].shape for source in node.inputs)
            total = total + current.dot(node.operator.constant(shapes, region.center))
            pulled = current.pull_affine(node.operator, shapes)
        else:
            raised[index] = current.coefficients < 0
            pull = current.pull_lines(state.lines[index], isinstance(node.operator, Maximum))
            total, pulled = total + pull.lower, (pull.rows,)  # type: ignore[assignment]
        for source, part in zip(node.inputs, pulled, strict=True):
            pending[source] = pending[source] + part if source in pending else part  # type: ignore[operator]
    points, fall = minimiser(region, at_input, rows.example)
    center = region.center if len(region) == 1 else region.center[rows.example]
    return Optimum(total + (at_input * center).flatten(1).sum(1) - fall, points, raised)


def minimiser(region: Region, coefficients: Tensor, example: Tensor) -> tuple[Tensor, Tensor]:
    """Where a linear function of the input is least.

    Source: Zhu et al. (2020), equation (6), for the regions of Ironbound.

    Args:
        region: the inputs.
        coefficients: [rows, *input shape].
        example: the example of each row, int64 [rows].

    Returns:
        The points [rows, *input shape], and how far the bound falls below the value at the centre, [rows]. In a
        clipped l2 or l1 ball the bound is the better set's, whose minimiser is moved into the region.
    """
    delta = fall = None
    sets = region.sets()
    for part in sets:
        radius = part.radius[example] if len(part.radius) > 1 else part.radius
        step, length = _steepest(coefficients * radius, part.dual)
        step = step * radius
        if part.offset is not None:
            offset = part.offset[example]
            step, length = step + offset, length - (coefficients * offset).flatten(1).sum(1)
        if delta is None or fall is None:
            delta, fall = step, length
            continue
        better = (length < fall).reshape(-1, *(1,) * (delta.dim() - 1))
        delta, fall = torch.where(better, step, delta), torch.minimum(length, fall)
    assert delta is not None and fall is not None
    lower, upper = (end[example] for end in region.box())
    points = torch.minimum(torch.maximum(region.center[example] + delta, lower), upper)
    if len(sets) > 1:  # the box's minimiser may leave the ball; the ray to the centre stays in both
        points = _shrunk(points, region.center[example], sets[0], example)
    return points, fall


def _steepest(scaled: Tensor, dual: float) -> tuple[Tensor, Tensor]:
    """The unit vector of the norm with this dual that lowers c · d most, and how far: the dual norm of c, [rows]."""
    flat = scaled.flatten(1)
    if dual == 1:
        step = torch.where(flat >= 0, -1.0, 1.0).to(flat.dtype)
        return step.reshape(scaled.shape), flat.abs().sum(1)
    length = torch.linalg.vector_norm(flat, dual, dim=1)
    if dual == 2:
        some = (length > 0).unsqueeze(1)
        step = torch.where(some, -flat / torch.where(some, length.unsqueeze(1), 1.0), 0.0)
        return step.reshape(scaled.shape), length
    largest = flat.detach().abs().argmax(1, keepdim=True)
    step = torch.zeros_like(flat).scatter(1, largest, -flat.detach().sign().gather(1, largest))
    return step.reshape(scaled.shape), length


def _shrunk(points: Tensor, center: Tensor, ball: Set, example: Tensor) -> Tensor:
    """Moves points towards the centre until they lie in the ball; radius 0: onto it."""
    radius = ball.radius[example] if len(ball.radius) > 1 else ball.radius
    delta = points - center
    scaled = torch.where(radius > 0, delta / torch.where(radius > 0, radius, 1.0), 0.0)
    order = 2.0 if ball.dual == 2 else 1.0
    length = torch.linalg.vector_norm(scaled.flatten(1), order, dim=1).reshape(-1, *(1,) * (points.dim() - 1))
    return center + delta / length.clamp(min=1)


def node_values(graph: Graph, points: Tensor) -> list[Tensor]:
    """Every node's value when the network runs at `points` [rows, *input shape]; each [rows, *node shape]."""
    values = [points]
    for node in graph.nodes[1:]:
        values.append(node.operator.forward(*(values[source] for source in node.inputs)))
    return values


def _relaxed_values(state: LinesState, points: Tensor, raised: dict[int, Tensor], example: Tensor) -> list[Tensor]:
    """Every node's value in the relaxed network (equation 3): each neuron on the line that was chosen for it."""
    values = [points]
    for index, node in enumerate(state.graph.nodes[1:], start=1):
        inputs = [values[source] for source in node.inputs]
        if isinstance(node.operator, Affine):
            values.append(node.operator.forward(*inputs))
            continue
        lines: Lines = state.lines[index]
        up = raised.get(index, torch.zeros((), dtype=torch.bool, device=points.device))
        low = lines.lower_slope.new_zeros(()) if lines.lower_intercept is None else lines.lower_intercept[example]
        intercept = torch.where(up, lines.upper_intercept[example], low)
        window = isinstance(node.operator, Maximum)
        chosen = up.unsqueeze(-1) if window and up.dim() else up
        moved = torch.where(chosen, lines.upper_slope[example], lines.lower_slope[example]) * inputs[0]
        values.append((moved.sum(-1) if window else moved) + intercept)
    return values
