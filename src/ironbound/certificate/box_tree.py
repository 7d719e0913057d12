"""Trees of cuts that prove a clause: found depth first, every box bounded by the checker itself."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ironbound.certificate.checker.bounds import Analysis
from ironbound.certificate.checker.layers import Affine, Arithmetic, Rows
from ironbound.certificate.checker.payloads import LEAF
from ironbound.certificate.checker.properties import DEPTH_LIMIT, Box, Property, halves, highest

GUARD = 1e-9  # a leaf is kept where its bound is above this: another BLAS rounds differently
WIDTH_SHARE = 0.2  # weight of an element's share of the width, as in `exact.input_split`


class _Watched(Box):
    """A box that keeps the coefficients of the inputs in the last functionals that were bounded over it."""

    def __init__(self, a: Arithmetic, low: np.ndarray, high: np.ndarray) -> None:
        super().__init__(a, low, high)
        self.reads = np.zeros((1, len(low)))

    def values(self, rows: Rows) -> Any:
        """Keeps them."""
        self.reads = rows.dense(len(self.x))
        return super().values(rows)


def box_tree(prop: Property, number: int, mode: str, deadline: float) -> bytes | None:
    """Cuts the box of a clause until the checker's bounds prove every part.

    Args:
        prop: the checker's view of the property.
        number: of the clause.
        mode: "real" or "float32".
        deadline: when to give up, a value of `time.monotonic()`.

    Returns:
        The payload: the tree in preorder. None where time ends, or where no cut is possible any more.
    """
    with np.errstate(all="ignore"):
        low, high = prop.ends(number, mode)
        _, rows, base = prop.rows(number)
        whole, open_parts, tree = high - low, [(low, high, 0)], []
        while open_parts:
            if time.monotonic() > deadline:
                return None
            low, high, depth = open_parts.pop()
            region = _Watched(prop.a, low, high)
            analysis = prop.analysis(number, region, mode, sharp=True)
            if highest(analysis.output(rows, base)) > GUARD:
                tree.append(LEAF)
                continue
            element = _chosen(analysis, rows, region, whole)
            if element is None or depth >= DEPTH_LIMIT:
                return None
            below, above = halves(low, high, element)
            tree.append(element)
            open_parts += [(*above, depth + 1), (*below, depth + 1)]
    return np.array(tree, "<u2").tobytes()


def _chosen(analysis: Analysis, rows: np.ndarray, box: _Watched, whole: np.ndarray) -> int | None:
    """The element to cut, by three shares added up: as `exact.input_split` does, for the same reason.

    They are |coefficient| times width in the bounding functionals, what the element can do to the rows at most, and
    its width next to that of the whole box.

    Returns:
        It; None where no element can be cut.
    """
    width = np.where(2 * box.radius > 1e-12 * abs(box.middle), 2 * box.radius, 0) * (whole > 0)
    varied = np.flatnonzero(width)
    varied = varied[varied < LEAF]
    if len(varied) == 0:
        return None
    coefficients = (abs(box.reads) @ np.diag(width)).sum(0)[varied]
    reach = np.array([_reach(analysis, rows, box, element) for element in varied])
    share = _share(coefficients) + _share(reach) + WIDTH_SHARE * _share(width[varied] / whole[varied])
    return int(varied[share.argmax()])


def _reach(analysis: Analysis, rows: np.ndarray, box: _Watched, element: int) -> float:
    """How far one element can move the rows, through magnitudes of weights and the upper slopes of ReLUs."""
    moved: list[np.ndarray] = []
    for n, node in enumerate(analysis.nodes):
        if isinstance(node, Affine):
            moved.append(node.run([moved[i] for i in node.inputs], 1))
        elif node.kind == "relu":
            moved.append(moved[node.inputs[0]] * analysis.lines[n][1])
        else:
            moved.append(np.where(np.arange(node.size) == element, box.radius, 0))
    return float((abs(rows) @ moved[-1]).sum())


def _share(parts: np.ndarray) -> np.ndarray:
    """Each part of the sum; 0 where all are 0, or where the sum is not finite."""
    total = parts.sum()
    return parts / total if 0 < total < np.inf else 0 * np.nan_to_num(parts)
