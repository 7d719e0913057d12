"""Slopes and split trees that prove a margin: ascent over the dual, and branch and bound on the signs of neurons."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.exact.split_ascent import Pace, climbed, climbed_on
from ironbound.exact.split_bounds import Multipliers, confirmed
from ironbound.exact.split_branching import chosen, halves, splittable
from ironbound.exact.split_pool import Batch
from ironbound.exact.split_relaxation import Relaxation
from ironbound.exact.split_tightening import roots

_ROOT, _CHILD = Pace(iterations=80), Pace(iterations=25, slope=0.2, beta=0.3)
_TOGETHER = 32  # subproblems at a time
_BITS = (1, 2, 4, 8)
_HALF = torch.finfo(torch.float16).max


@dataclass(eq=False)
class Node:
    """A node of a tree: a leaf with its multipliers, or a split with both of its sides.

    Attributes:
        path: columns split above, from the root on.
        leaf: the multipliers of the leaf alone, where it is proved.
        column: the split neuron.
        sides: where its input is at least 0, and at most 0.
    """

    path: tuple[int, ...] = ()
    leaf: Multipliers | None = None
    column: int = -1
    sides: tuple[Node, ...] = ()


def slopes(net: Relaxation) -> tuple[int, Multipliers] | None:
    """Slopes that prove the functional above its guard, in as few bits as possible.

    Args:
        net: the relaxation.

    Returns:
        Bits for a slope, and the slopes; None where none are found.
    """
    root = roots(net)
    best = climbed(_endless(net), root.at, root.clause, _ROOT)
    for bits in _BITS:
        kept = rounded(best.at, bits)
        if bool(confirmed(net, kept) > net.rows.guard):
            return bits, kept
    return None


def tree(net: Relaxation, seconds: float, bits: int) -> Node | None:
    """Branch and bound until every leaf is proved.

    Args:
        net: the relaxation.
        seconds: how long to search.
        bits: for a slope.

    Returns:
        The root; None where time ends, or nothing is left to split.
    """
    end, pace = time.monotonic() + seconds, _ROOT
    root, endless = Node(), _endless(net)
    nodes, queue = [root], roots(net)
    while nodes:
        if time.monotonic() > end:
            return None
        first = max(0, len(nodes) - _TOGETHER)
        here, nodes = nodes[first:], nodes[:first]
        queue, given = (queue.take(part) for part in torch.arange(len(queue)).tensor_split([first]))
        best = climbed_on(endless, given.at, given.clause, given.lower, pace)
        pace, kept = _CHILD, rounded(best.at, bits)
        proved = confirmed(net, kept) > net.rows.guard
        for place in torch.nonzero(proved).flatten().tolist():
            here[place].leaf = kept.take(torch.tensor([place]))
        if bool(proved.all()):
            continue
        left = Batch(best.value, given.clause, best.at).take(~proved)
        if not bool(splittable(net, left.at.signs).any(1).all()):
            return None
        column = chosen(net, left.at, left.clause)
        sides = _split([here[place] for place in torch.nonzero(~proved).flatten().tolist()], column)
        queue = Batch.join([queue, Batch(left.lower.repeat(2), left.clause.repeat(2), halves(net, left.at, column))])
        nodes += sides
    return root


def _split(nodes: list[Node], column: Tensor) -> list[Node]:
    """Splits nodes; their upper sides, then their lower ones."""
    for node, one in zip(nodes, column.tolist(), strict=True):
        path = (*node.path, one)
        node.column, node.sides = one, (Node(path), Node(path))
    return [node.sides[side] for side in (0, 1) for node in nodes]


def _endless(net: Relaxation) -> Relaxation:
    """The same, where no bound is high enough to end an ascent: what is above the guard must stay so when rounded."""
    return replace(net, rows=replace(net.rows, guard=torch.full_like(net.rows.guard, torch.inf)))


def rounded(at: Multipliers, bits: int) -> Multipliers:
    """What a payload keeps of multipliers.

    Args:
        at: multipliers.
        bits: for a slope; a split's multiplier has 16.

    Returns:
        The multipliers that will be read.
    """
    steps = 2**bits - 1
    return replace(at, t=(at.t * steps).round() / steps, beta=at.beta.clamp(max=_HALF).half().double())
