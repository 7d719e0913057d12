"""The bounds of a search's leaves computed again, in another arithmetic: a float32 search ends as a float64 proof."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ironbound.bounding.alpha import AlphaState, alpha_state
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.memory import CACHE
from ironbound.bounding.methods import METHODS
from ironbound.bounding.precision import full_precision
from ironbound.exact.query import Query
from ironbound.exact.split_ascent import Pace, climbed
from ironbound.exact.split_bounds import Multipliers
from ironbound.exact.split_columns import below, bounded, is_open, pruned
from ironbound.exact.split_leaf import solved
from ironbound.exact.split_relaxation import Relaxation, of_state
from ironbound.exact.split_separation import cuts_of
from ironbound.exact.split_tightening import bounds_of
from ironbound.exact.split_tree import Proof, Tightening, Tree, covers

_PACE = Pace(iterations=40, slope=0.1, beta=0.1)


@torch.no_grad()
def recheck(query: Query, proofs: tuple[Proof, ...], memory: int | None = None) -> Tensor:
    """Bounds every leaf anew from its sign clamps; slopes and multipliers that the trees have are where it begins.

    The bounds of neurons that the tree builds on are found again first, from the leaves behind them, level by level.

    Args:
        query: the network, region and clauses of the search, in the arithmetic to trust.
        proofs: the leaves.
        memory: bytes that the rows of one step may take, or None.

    Returns:
        For each clause a number that its largest row exceeds at every point of the region, [clauses]; -inf where it has
        no leaves or they leave something out.
    """
    with full_precision(query.region.center.device):
        known = [METHODS[name](query.graph, query.region, memory).layers() for name in ("dual", "crown")]
        state = alpha_state(query.graph, query.region, known, Ascent(20), memory)
        lower = query.clauses.constant.new_full((len(query.clauses),), -torch.inf)
        for proof in proofs:
            net, ends = of_state(state, query.clauses.take(proof.clauses)), _Ends(state)
            for one in proof.tree.tightenings:
                net = _tightened(net, ends, one)
            lower[proof.clauses] = torch.maximum(lower[proof.clauses], _bounds(net, ends, proof.tree))
        return lower


class _Ends:
    """Bounds of what every neuron reads, as they get tighter."""

    def __init__(self, state: AlphaState) -> None:
        self._layers = {node: [end.flatten().clone() for end in ends] for node, ends in state.layers.items()}
        self._graph = state.graph

    def note(self, net: Relaxation) -> None:
        """Takes over the bounds of a network's columns."""
        for node, (low, high) in self._layers.items():
            there = net.splittable & (net.nodes == node)
            index = net.neurons[there]
            low[index] = torch.maximum(low[index], net.low[there])
            high[index] = torch.minimum(high[index], net.high[there])

    def side(self, node: int, neuron: int) -> int:
        """1 where the neuron's input is above its kink for sure, -1 where below, else 0."""
        low, high = (float(end[neuron]) for end in self._layers[node])
        knot = self._graph.nodes[node].operator.knots[0]  # type: ignore[attr-defined]
        return int(low > knot) - int(high < knot)


def _tightened(net: Relaxation, ends: _Ends, one: Tightening) -> Relaxation:
    """The network with the bounds that some leaves give their neurons."""
    count = len(one.neurons)
    place, present = _places(net, torch.full_like(one.neurons, one.node), one.neurons)
    # a neuron that is closed already needs no bounds
    present &= is_open(net)[place] if net.width else present
    if not bool(present.any()):
        return net
    index = torch.nonzero(present).squeeze(1)
    which = place[index]
    both = torch.cat([index, index + count])
    chosen = one.tree.take(both, both)  # a clause has one row
    better = bounded(net, *bounds_of(net, which, _bounds(below(net, which), ends, chosen)))
    ends.note(better)
    return pruned(better)


def _bounds(net: Relaxation, ends: _Ends, tree: Tree) -> Tensor:
    """The lowest bound of each clause's leaves, [clauses]; -inf where they leave something out."""
    lower = net.constant.new_full((len(net.rows.guard),), torch.inf)
    net, kept = _with_cuts(net, tree)
    signs, possible = _clamps(net, ends, tree)
    length = max(1, CACHE // (net.constant.element_size() * (12 * net.width + 6 * net.input.shape[1])))
    for piece in torch.nonzero(possible).flatten().split(length):
        value = _values(net, _multipliers(net, tree, signs[piece], piece, kept), tree.clause[piece])
        lower = lower.scatter_reduce(0, tree.clause[piece], value, "amin")
    whole = [covers(tree, clause) for clause in range(len(lower))]
    return torch.where(torch.tensor(whole, device=lower.device), lower, -torch.inf)


def _with_cuts(net: Relaxation, tree: Tree) -> tuple[Relaxation, Tensor]:
    """The network with the tree's cuts, made anew from its own bounds, and which of them those are, bool [cuts]."""
    shares = tree.shares
    place, present = _places(net, tree.node, tree.neuron)
    kept = present[shares.column]
    parts = shares.parts.new_zeros((len(shares), net.width))
    parts[:, place[present]] = shares.parts[:, present]
    here = replace(shares, column=place[shares.column], parts=parts).take(kept)
    return replace(net, cuts=cuts_of(net, here)), kept


def _values(net: Relaxation, at: Multipliers, clause: Tensor) -> Tensor:
    best = climbed(net, at, clause, _PACE)
    value = best.value
    for leaf in torch.nonzero(~(value > net.rows.guard[clause])).flatten():
        one = best.at.take(leaf.unsqueeze(0))
        exact = solved(net, one, int(clause[leaf]))
        if exact is not None:
            value[leaf] = torch.maximum(value[leaf], exact.value[0])
    return value


def _places(net: Relaxation, nodes: Tensor, neurons: Tensor) -> tuple[Tensor, Tensor]:
    """For each neuron its column in the network, int64 [neurons], and whether it has one."""
    if net.width == 0 or len(nodes) == 0:
        return torch.zeros_like(nodes), torch.zeros_like(nodes, dtype=torch.bool)
    same = (nodes.unsqueeze(1) == net.nodes) & (neurons.unsqueeze(1) == net.neurons)
    return same.to(torch.uint8).argmax(1), same.any(1)


def _clamps(net: Relaxation, ends: _Ends, tree: Tree) -> tuple[Tensor, Tensor]:
    """The leaves' signs as the network has its columns, [leaves, columns], and which leaves may hold a point."""
    # a neuron that is closed on one side of its kink has no column; a leaf on the other side is empty
    place, present = _places(net, tree.node, tree.neuron)
    signs = net.constant.new_zeros((len(tree), net.width))
    signs[:, place[present]] = tree.signs[:, present].to(signs.dtype)
    possible = torch.ones(len(tree), dtype=torch.bool, device=signs.device)
    clamped = (tree.signs != 0).any(0)
    for column in torch.nonzero(~present & clamped).flatten().tolist():
        side = ends.side(int(tree.node[column]), int(tree.neuron[column]))
        possible &= tree.signs[:, column] * side >= 0
    return signs, possible


def _multipliers(net: Relaxation, tree: Tree, signs: Tensor, piece: Tensor, kept: Tensor) -> Multipliers:
    rows = net.rows.membership()[tree.clause[piece]]
    weight = rows / rows.sum(1, keepdim=True)
    t, beta = net.starts[1].expand_as(signs).clone(), torch.zeros_like(signs)
    cuts = signs.new_zeros((len(signs), len(net.cuts)))
    has = torch.nonzero(piece < len(tree.t)).flatten()
    place, present = _places(net, tree.node, tree.neuron)
    if len(has):
        leaf = piece[has].unsqueeze(1)
        there, here = torch.nonzero(present).flatten(), place[present]
        t[has.unsqueeze(1), here] = tree.t[leaf, there].to(t.dtype)
        beta[has.unsqueeze(1), here] = tree.beta[leaf, there].to(t.dtype)
        stored = tree.weight[piece[has]].to(t.dtype)
        weight[has] = stored / stored.sum(1, keepdim=True)
        cuts[has] = tree.cuts[piece[has]][:, kept].to(t.dtype)
    return Multipliers(signs, t, beta, weight, cuts)
