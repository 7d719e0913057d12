"""`alpha_margins`: optimised margins together with the slopes that prove them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ironbound.bounding.alpha import AlphaState, alpha_state, groups, optimised, output_rows, proof_threshold
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.api import check_labels, piece_length, prepared
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import in_chunks
from ironbound.bounding.methods import METHODS
from ironbound.bounding.precision import full_precision
from ironbound.errors import InputError, MemoryLimitError
from ironbound.graph import Graph
from ironbound.ops.piecewise import Maximum, ReLU
from ironbound.regions import Region


@dataclass(frozen=True, eq=False)
class Slopes:
    """Lower slopes of open ReLUs, one entry per margin and neuron.

    With these, equations (22) and (23) of Wong & Kolter (2017, arXiv v1) give the margins again, on any sound
    intermediate bounds that are not wider.

    Attributes:
        example, target: the margin logit[label] - logit[target] that an entry belongs to, int64 [entries].
        neuron: flat index of the ReLU in its node, int64 [entries].
        alpha: in [0, 1], [entries].
    """

    example: Tensor
    target: Tensor
    neuron: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return len(self.alpha)


@dataclass(frozen=True, eq=False)
class AlphaMargins:
    """Margins that are proofs up to floating point rounding, and what proves them.

    Attributes:
        margins: lower bounds of logit[label] - logit[k], [batch, classes]; 0 at the label, NaN where not asked.
        slopes: by name of the ReLU's node; zero coefficients make a slope meaningless, so it may be any.
        layers: the intermediate bounds (lower, upper) that the slopes go with, [batch, *shape], by name of the node.
    """

    margins: Tensor
    slopes: dict[str, Slopes]
    layers: dict[str, tuple[Tensor, Tensor]]


def alpha_margins(
    model: nn.Module | Graph,
    region: Region,
    labels: Tensor,
    ascent: Ascent | None = None,
    decide: bool = False,
    targets: Tensor | None = None,
    memory: int | None = None,
) -> AlphaMargins:
    """Margins by the dual maximised over its slopes, intermediate bounds included; every margin to the end.

    `margins(..., method="alpha")` stops at the first proof of a margin and returns the best of several methods; here
    each margin is what the slopes give.

    Source: Wong & Kolter (2017), arXiv v1, section 3.2, equations (22) to (24).

    Args:
        model: a classifier in evaluation mode, or its graph.
        region: the inputs.
        labels: int64 [batch].
        ascent: iterations, or the one-step rule by signs; None: 20 iterations.
        decide: whether to stop work on a margin that is proved.
        targets: bool [batch, classes]: the classes to bound; None: all.
        memory: bytes that the rows of one step may take (default 2 GiB).

    Returns:
        Margins, slopes and intermediate bounds, without gradients.

    Raises:
        InputError: arguments do not fit, or weights are not finite.
        LabelError: labels do not fit.
        CaptureError: the network cannot be captured.
        MemoryLimitError: one example alone does not fit into memory.
    """
    graph = prepared(model, region, "alpha")
    labels = check_labels(labels, len(region), graph).to(region.center.device)
    classes = graph.output_shape[0]
    wanted = torch.ones((len(region), classes), dtype=torch.bool) if targets is None else torch.as_tensor(targets)
    if wanted.shape != (len(region), classes) or wanted.dtype != torch.bool:
        raise InputError(f"targets must be bool [{len(region)}, {classes}], got {wanted.dtype} {tuple(wanted.shape)}")
    wanted = wanted.to(labels.device) & ~torch.nn.functional.one_hot(labels, classes).bool()
    found: list[tuple[int, AlphaMargins]] = []

    def work(piece: slice) -> Tensor:
        part = region[piece]
        known = [METHODS[start](graph, part, memory).layers() for start in ("dual", "crown")]
        if len(groups(graph, part, known, memory, torch.arange(len(part)))) > 1:
            raise MemoryLimitError("the maps of several examples do not fit")  # the piece is halved
        state = alpha_state(graph, part, known, ascent or Ascent(), memory)
        result = _piece(state, labels[piece], wanted[piece], decide)
        found.append((piece.start, result))
        return result.margins

    with full_precision(region.center.device), torch.no_grad():
        margins = in_chunks(work, len(region), piece_length(graph, region, memory))
    return AlphaMargins(margins, _joined_slopes(found), _joined_layers(found))


def _piece(state: AlphaState, labels: Tensor, wanted: Tensor, decide: bool) -> AlphaMargins:
    graph, center = state.graph, state.region.center
    example, other = wanted.nonzero(as_tuple=True)
    eye = torch.eye(wanted.shape[1], dtype=center.dtype, device=center.device)
    rows = output_rows(state, DenseRows(eye[labels[example]] - eye[other], example))
    enough = proof_threshold(graph, state.region)[example] if decide else None
    margins = center.new_full(wanted.shape, torch.nan).scatter(1, labels.unsqueeze(1), 0.0)
    slopes: dict[str, Slopes] = {}
    if len(example):
        best, chosen = optimised(state, rows, enough)
        margins[example, other] = best
        for node, t in zip(sorted(state.maps), chosen, strict=True):
            if isinstance(graph.nodes[node].operator, ReLU):
                layer = state.opened[node]
                row, slot = layer.valid[example].nonzero(as_tuple=True)
                neuron = layer.neurons[example[row], slot]
                slopes[graph.nodes[node].name] = Slopes(example[row], other[row], neuron, t[row, slot])
    kept = {
        graph.nodes[node].name: ends
        for node, ends in state.layers.items()
        if not isinstance(graph.nodes[node].operator, Maximum)
    }
    return AlphaMargins(margins, slopes, kept)


def _joined_slopes(found: list[tuple[int, AlphaMargins]]) -> dict[str, Slopes]:
    names = dict.fromkeys(name for _, part in found for name in part.slopes)
    joined = {}
    for name in names:
        parts = [(start, part.slopes[name]) for start, part in found if name in part.slopes]
        joined[name] = Slopes(
            torch.cat([part.example + start for start, part in parts]),
            torch.cat([part.target for _, part in parts]),
            torch.cat([part.neuron for _, part in parts]),
            torch.cat([part.alpha for _, part in parts]),
        )
    return joined


def _joined_layers(found: list[tuple[int, AlphaMargins]]) -> dict[str, tuple[Tensor, Tensor]]:
    names = found[0][1].layers
    return {
        name: (
            torch.cat([part.layers[name][0] for _, part in found]),
            torch.cat([part.layers[name][1] for _, part in found]),
        )
        for name in names
    }
