"""What a certificate carries besides its claim, found on the bounds that the checker will recompute."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ironbound.bounding.alpha import AlphaState, alpha_state, optimised, output_rows
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS
from ironbound.bounding.precision import full_precision
from ironbound.capture import capture
from ironbound.certificate.checker.claims import SLOPES
from ironbound.certificate.network_file import checker_nodes
from ironbound.exact.query import Budget
from ironbound.exact.search import label_query
from ironbound.exact.split import _Search
from ironbound.exact.split_relaxation import relaxed
from ironbound.exact.split_tree import Tree
from ironbound.graph import Graph
from ironbound.regions import Region, ball

_STEPS = 65535
_ASCENT = Ascent(60)
_LEAF = 0xFFFF
_GUARD = 1e-4  # above the differences between the checker's bounds and ours


class Prover:
    """Looks for payloads, one example at a time, in float64.

    Intermediate bounds are the best of two relaxations, as in the checker: it could not find tighter ones again.

    Args:
        model: the network in float64.
        x: inputs [n, *shape].
        labels: int64 [n].
        query: norm, mode and clip.
        seconds: for a search.
    """

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor, query: tuple, seconds: float) -> None:
        self.model, self.x, self.labels, self.seconds = model, x, labels, seconds
        self.norm, _, clip = query
        self.clip = None if np.isnan(clip[0]) else clip

    @cached_property
    def graph(self) -> Graph:
        """The captured graph."""
        return capture(self.model, self.x[:2].double())

    def payload(self, kind: int, index: int, eps: float, targets: np.ndarray) -> bytes | None:
        """A payload that raises some margins.

        Args:
            kind: SLOPES or TREE.
            index: number of the example.
            eps: its radius.
            targets: classes whose margins are not proved yet.

        Returns:
            Its bytes, or None where none is found.
        """
        graph = self.graph  # captured outside of the block below, whose settings the tracer does not take
        region = ball(self.norm, self.x[index : index + 1].double(), eps, self.clip)
        with full_precision(region.center.device), torch.no_grad():
            if kind == SLOPES:
                return _slopes(graph, region, int(self.labels[index]), targets)
            return _trees(graph, region, int(self.labels[index]), targets, self.seconds)


def _slopes(graph: Graph, region: Region, label: int, targets: np.ndarray) -> bytes:
    state = _state(graph, region)
    eye = torch.eye(graph.output_shape[0], dtype=torch.float64)
    coefficients = eye[label] - eye[torch.as_tensor(targets)]
    rows = output_rows(state, DenseRows(coefficients, torch.zeros(len(targets), dtype=torch.int64)))
    _, chosen = optimised(state, rows)
    place = checker_nodes(graph)
    nodes = [node for node in sorted(state.maps) if len(state.opened[node].neurons[0])]
    levels = dict(zip(sorted(state.maps), chosen, strict=True))
    indices = [state.opened[node].neurons[0].numpy().astype("<u4") for node in nodes]
    parts = [np.array([len(targets)], "<u2"), targets.astype("<u2")]
    parts += _neurons([place[node] for node in nodes], indices)
    for row in range(len(targets)):
        parts += [_shares(levels[node][row]) for node in nodes]
    return b"".join(part.tobytes() for part in parts)


def _state(graph: Graph, region: Region) -> AlphaState:
    known = [METHODS[name](graph, region, None).layers() for name in ("dual", "crown")]
    return replace(alpha_state(graph, region, known, None, None), ascent=_ASCENT)


def _neurons(nodes: list[int], indices: list[np.ndarray]) -> list[np.ndarray]:
    parts = [np.array([len(nodes)], "<u2")]
    for node, index in zip(nodes, indices, strict=True):
        parts += [np.array([node, len(index)], "<u4"), index.astype("<u4")]
    return parts


def _shares(slopes: Tensor) -> np.ndarray:
    return np.rint(slopes.double().clamp(0, 1).numpy() * _STEPS).astype("<u2")


def _trees(graph: Graph, region: Region, label: int, targets: np.ndarray, seconds: float) -> bytes | None:
    """Branch and bound over all targets, as one tree for each; None where it does not end, or lost slopes."""
    query = label_query(graph, region, label, torch.as_tensor(targets), _GUARD)
    net = relaxed(query, None, None)
    outcome = _Search(query, Budget.of(seconds), net).run()
    tree = outcome.tree
    if outcome.why != "proved" or tree is None or len(tree.t) < len(tree) or net.width >= _LEAF:
        return None
    place = checker_nodes(graph)
    nodes = list(dict.fromkeys(tree.node.tolist()))
    parts = _neurons([place[node] for node in nodes], [tree.neuron[tree.node == node].numpy() for node in nodes])
    parts.append(np.array([len(targets)], "<u2"))
    for clause, target in enumerate(targets):
        parts.append(np.array([target], "<u2"))
        written = _preorder(tree, torch.nonzero(tree.clause == clause).flatten(), ())
        if written is None:
            return None
        parts += written
    return b"".join(part.tobytes() for part in parts)


def _preorder(tree: Tree, leaves: Tensor, path: tuple[int, ...]) -> list[np.ndarray] | None:
    """A subtree from the leaves below it: its root is a neuron that all of them hold, some to each side."""
    signs = tree.signs[leaves]
    open_columns = torch.ones(signs.shape[1], dtype=torch.bool)
    open_columns[list(path)] = False
    if len(leaves) == 1 and not bool((signs[0][open_columns] != 0).any()):
        leaf = int(leaves[0])
        betas = tree.beta[leaf, list(path)].float().numpy().astype("<f4")
        return [np.array([_LEAF], "<u2"), _shares(tree.t[leaf]), betas]
    both = open_columns & (signs > 0).any(0) & (signs < 0).any(0) & (signs != 0).all(0)
    if not bool(both.any()):
        return None
    column = int(torch.nonzero(both)[0])
    sides = [_preorder(tree, leaves[signs[:, column] == sign], (*path, column)) for sign in (1, -1)]
    if sides[0] is None or sides[1] is None:
        return None
    return [np.array([column], "<u2"), *sides[0], *sides[1]]
