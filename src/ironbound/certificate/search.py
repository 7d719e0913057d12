"""Slopes and split trees that prove a margin: ascent over the dual, and branch and bound on the signs of neurons."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.certificate.relaxed import Leaves, Relaxed

_ROOT, _CHILD = 80, 25  # steps of the ascent
_RATE, _LEFT = 0.2, 0.05  # the first step of a slope, and what share of it is left at the last one
_TRIED = 6  # neurons whose split is tried
_TOGETHER = 32  # subproblems at a time
_BITS = (1, 2, 4, 8)


@dataclass(eq=False)
class Node:
    """A node of a tree: a leaf with its multipliers, or a split with both of its sides.

    Attributes:
        leaf: the leaf alone, where it is proved.
        column: the split neuron.
        sides: where its input is at least 0, and at most 0.
        path: columns split above, from the root on.
    """

    path: tuple[int, ...] = ()
    leaf: Leaves | None = None
    column: int = -1
    sides: tuple[Node, ...] = ()


def slopes(net: Relaxed, guard: float) -> tuple[int, Leaves] | None:
    """Slopes that prove the functional positive, in as few bits as possible.

    Args:
        net: the relaxation.
        guard: what the bound must exceed.

    Returns:
        Bits for a slope, and the slopes; None where none are found.
    """
    best, _ = climbed(net, net.root(), _ROOT)
    for bits in _BITS:
        if float(net.bound(best.rounded(bits))[0]) > guard:
            return bits, best.rounded(bits)
    return None


def tree(net: Relaxed, guard: float, seconds: float, bits: int) -> Node | None:
    """Branch and bound until every leaf is proved.

    Args:
        net: the relaxation.
        guard: what every leaf's bound must exceed.
        seconds: how long to search.
        bits: for a slope.

    Returns:
        The root; None where time ends, or nothing is left to split.
    """
    end = time.monotonic() + seconds
    root = Node()
    queue, steps = [(root, net.root())], _ROOT
    while queue:
        if time.monotonic() > end:
            return None
        nodes, given = [node for node, _ in queue[-_TOGETHER:]], _joined([at for _, at in queue[-_TOGETHER:]])
        del queue[-_TOGETHER:]
        leaves, _ = climbed(net, given, steps)
        value, coefficients = net.bound(leaves.rounded(bits))
        steps = _CHILD
        for place in torch.nonzero(value > guard).flatten().tolist():
            nodes[place].leaf = leaves.take(torch.tensor([place])).rounded(bits)
        for place in torch.nonzero(~(value > guard)).flatten().tolist():
            here = leaves.take(torch.tensor([place]))
            column = _chosen(net, here, coefficients[place])
            if column is None:
                return None
            node = nodes[place]
            path = (*node.path, column)
            node.column, node.sides = column, (Node(path), Node(path))
            queue += [(side, _held(here, column, sign)) for side, sign in zip(node.sides, (1, -1), strict=True)]
    return root


def climbed(net: Relaxed, leaves: Leaves, steps: int) -> tuple[Leaves, Tensor]:
    """Raises the bounds of leaves over slopes and multipliers, by Adam's steps; the best met.

    Args:
        net: the relaxation.
        leaves: where to begin.
        steps: how many.

    Returns:
        Leaves and bounds.
    """
    t, beta = (part.clone().requires_grad_(True) for part in (leaves.t, leaves.beta))
    best, top = leaves, torch.full((len(t),), -torch.inf, dtype=torch.float64)
    if net.width == 0:
        return leaves, net.bound(leaves)[0]
    optimizer = torch.optim.Adam([{"params": [t]}, {"params": [beta]}], _RATE, betas=(0.7, 0.99), maximize=True)
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, _LEFT ** (1 / steps))
    for _ in range(steps):
        with torch.enable_grad():
            value, _ = net.bound(replace(leaves, t=t, beta=beta))
            optimizer.zero_grad()
            value.sum().backward()
        with torch.no_grad():
            better = (value > top).unsqueeze(1)
            best = replace(leaves, t=torch.where(better, t, best.t), beta=torch.where(better, beta, best.beta))
            top = torch.maximum(top, value)
            optimizer.step()
            decay.step()
            t.clamp_(0, 1)
            beta.clamp_(min=0)
    return best, top


def _chosen(net: Relaxed, leaf: Leaves, coefficients: Tensor) -> int | None:
    """The neuron whose split leaves the better worse side, among those where the relaxation costs most."""
    c = coefficients.detach()
    cost = torch.where(c < 0, -c * net.top, c * net.top * 0.5)
    free = leaf.signs[0] == 0
    count = min(_TRIED, int(free.sum()))
    if count == 0:
        return None
    tried = torch.where(free, cost, -1.0).topk(count).indices.tolist()
    both = _joined([_held(leaf, column, sign) for column in tried for sign in (1, -1)])
    worse = net.bound(both)[0].reshape(-1, 2).amin(1)
    return tried[int(worse.argmax())]


def _held(leaf: Leaves, column: int, sign: int) -> Leaves:
    signs = leaf.signs.clone()
    signs[:, column] = sign
    return replace(leaf, signs=signs)


def _joined(parts: list[Leaves]) -> Leaves:
    return Leaves(*(torch.cat([getattr(part, name) for part in parts]) for name in ("signs", "t", "beta")))
