"""Payloads of certificates as bytes, found on the bounds that the checker will recompute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from ironbound.certificate.checker import Certificate, Checker
from ironbound.certificate.checker.bounds import Analysis
from ironbound.certificate.checker.claims import NONE, SLOPES
from ironbound.certificate.checker.payloads import LEAF
from ironbound.certificate.relaxed import relaxed
from ironbound.certificate.search import Node, slopes, tree
from ironbound.exact.split_relaxation import Relaxation
from ironbound.graph import Graph

_GUARD = 1e-5  # above the rounding that the checker subtracts
NOISE = 1.25  # the noise of a float32 run depends on the slopes
_TREE_BITS = ((1, 0.25), (2, 0.5), (4, 1.0))  # for a slope, and what share of the time left is spent on it
_ROOM = 1 + 1e-6  # semidefinite vectors are kept in float32

Query = tuple[str, str, tuple[float, float]]


def payload(checker: Checker, one: Certificate, query: Query, targets: np.ndarray, seconds: float) -> bytes | None:
    """A payload that raises some margins above 0.

    Args:
        checker: of the network and the data.
        one: the certificate without its payload; its kind says which is wanted.
        query: norm, mode and clip.
        targets: the classes.
        seconds: for the search of a tree.

    Returns:
        Its bytes, or None where none is found.
    """
    with np.errstate(all="ignore"):
        analysis, rows = checker.analysis(one, *query), checker.rows(one.label)
    short = np.zeros(len(rows))
    if query[1] == "float32":
        bare = replace(one, kind=NONE)
        short = NOISE * (checker.margins(bare, query[0], "real", query[2]) - checker.margins(bare, *query))
    return payload_of(analysis, rows, one.kind, dict(zip(targets.tolist(), short[targets], strict=True)), seconds)


def payload_of(
    analysis: Analysis, rows: np.ndarray, kind: int, targets: Mapping[int, float], seconds: float
) -> bytes | None:
    """A payload that raises rows of the output far enough.

    Args:
        analysis: the checker's bounds of the network.
        rows: functionals of the output.
        kind: `SLOPES` or `TREE`.
        targets: which rows, and what else their bounds must exceed 0 by: the noise of a run and a constant.
        seconds: for the search of a tree, for each row.

    Returns:
        Its bytes, or None where none is found.
    """
    if len(analysis.open_neurons()) >= LEAF:
        return None
    found = []
    for target, short in targets.items():
        net = relaxed(analysis, rows[target], _GUARD + short)
        best = slopes(net) if kind == SLOPES else _tree(net, seconds)
        if best is None:
            return None
        found.append((int(target), *best))
    bits = max(bits for _, bits, _ in found)
    parts = [np.array([bits], "u1"), np.array([len(found)], "<u2")]
    for target, _, best in found:
        parts.append(np.array([target], "<u2"))
        parts += _preorder(best, bits) if isinstance(best, Node) else _numbers(Node(leaf=best), bits)
    return b"".join(part.tobytes() for part in parts)


def _tree(net: Relaxation, seconds: float) -> tuple[int, Node] | None:
    """The first tree found, from short leaves on, and its bits for a slope."""
    end = time.monotonic() + seconds
    for bits, share in _TREE_BITS:
        root = tree(net, share * (end - time.monotonic()), bits)
        if root is not None:
            return bits, root
    return None


def _preorder(node: Node, bits: int) -> list[np.ndarray]:
    """A subtree: a split before its sides, a leaf after its mark."""
    if node.leaf is not None:
        return [np.array([LEAF], "<u2"), *_numbers(node, bits)]
    sides = [part for side in node.sides for part in _preorder(side, bits)]
    return [np.array([node.column], "<u2"), *sides]


def _numbers(node: Node, bits: int) -> list[np.ndarray]:
    """A leaf's slopes, packed, and the multipliers of its splits."""
    assert node.leaf is not None
    steps = np.rint(node.leaf.t[0].numpy() * (2**bits - 1)).astype(np.uint8)
    digits = np.unpackbits(steps[:, None], axis=1)[:, 8 - bits :]
    return [np.packbits(digits.reshape(-1)), node.leaf.beta[0, list(node.path)].numpy().astype("<f2")]


def sdp_vectors(model: nn.Module | Graph, x: Tensor) -> bytes:
    """The semidefinite bounds of a two-layer network with the vectors that prove them, for all pairs of classes.

    Args:
        model: the network.
        x: inputs [batch, *shape] that it reads.

    Returns:
        The common part of a file of certificates; nothing for a linear classifier, whose margins need none.
    """
    from ironbound.semidefinite.pairwise import sdp

    found = sdp(model, x)
    if found.c.shape[1] == 0:
        return b""
    parts = [np.array([len(found.pairs)], "<u2").tobytes()]
    for pair, bound, c in zip(found.pairs.tolist(), found.dual.tolist(), found.c.numpy(), strict=True):
        parts += [
            np.array(pair, "<u2").tobytes(),
            np.array([bound * _ROOM], "<f8").tobytes(),
            c.astype("<f4").tobytes(),
        ]
    return b"".join(parts)
