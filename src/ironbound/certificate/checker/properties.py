"""Claims about properties: at no input of a box do all constraints of a clause hold."""

from __future__ import annotations

import math

import numpy as np

from .bounds import Analysis, Region
from .claims import BOXES, SLOPES, TREE, Certificate
from .layers import SIZE_LIMIT, Affine, Arithmetic, need
from .payloads import LEAF, STEPS_LIMIT, Improvement, Payload

ARRAYS = {"lower", "upper", "outputs", "inputs", "bounds", "clause", "case"}
DEPTH_LIMIT = 1 << 10  # cuts above a leaf


class Box(Region):
    """All inputs between two ends."""

    def __init__(self, a: Arithmetic, low, high):
        self.a, self.norm, self.clipped = a, "linf", False
        self.middle = self.x = low / 2 + high / 2
        self.radius = a.over(np.maximum(high - self.middle, self.middle - low), 1)


def halves(low, high, element):
    """A box cut through the middle of one element; the cut belongs to both parts, so they cover the box."""
    ends = low[element], high[element]
    below, above = high.copy(), low.copy()
    below[element] = above[element] = np.clip(ends[0] / 2 + ends[1] / 2, *ends)
    return (low, below), (above, high)


def highest(values):
    """The largest of some lower bounds; NaN is no bound."""
    return np.where(np.isnan(values), -math.inf, values).max()


class Property:
    """The boxes and clauses of a data file.

    A clause holds at an input x of its case's box where outputs f(x) + inputs x - bounds <= 0 in all of its rows. The
    property is that no clause does so anywhere.

    Args:
        nodes: of the network.
        a: the arithmetic.
        shape: of an input.
        data: the arrays.
    """

    def __init__(self, nodes, a: Arithmetic, shape, data):
        need(data.keys() | {"inputs"} == ARRAYS, "the arrays are not those of a property")
        kinds = {name: array.dtype.kind for name, array in data.items()}
        fits = all(kind == ("i" if name in ("clause", "case") else "f") for name, kind in kinds.items())
        need(fits, "an array of the property is of a wrong type")
        size, self.clause, self.case = nodes[0].size, data["clause"], data["case"]
        need(
            data["lower"].shape == data["upper"].shape == (len(data["lower"]), *shape), "a box does not fit the network"
        )
        self.lower, self.upper = (a.exact(data[name]).reshape(-1, size) for name in ("lower", "upper"))
        self.outputs, self.bounds = a.exact(data["outputs"]), a.exact(data["bounds"])
        self.inputs = a.exact(data.get("inputs", np.zeros((0, size))))
        rows = len(self.clause) if "inputs" in data else 0
        shapes = (len(self.clause), nodes[-1].size), (rows, size), self.clause.shape
        need((self.outputs.shape, self.inputs.shape, self.bounds.shape) == shapes, "the constraints do not fit")
        for index, count in ((self.clause, len(self.case)), (self.case, len(self.lower))):
            need(index.ndim == 1 and ((index >= 0) & (index < count)).all(), "there is no such clause or case")
        self.a, self.nodes = a, nodes
        if self.inputs.any():  # the input is handed on beside the output
            both = nodes[-1].size + size
            one = np.ones((1, 1, 1), a.dtype)
            join = Affine([len(nodes) - 1, 0], [nodes[-1].size, size], one, np.arange(both).reshape(1, -1, 1))
            self.joined = [*nodes, join]

    def rows(self, number):
        """The nodes, the rows as functionals of the last one, and what is added to them: for a clause's number."""
        here = np.flatnonzero(self.clause == number)
        need(len(here) > 0, "a clause without constraints always holds")
        wide = len(here) * max(node.size for node in self.nodes)
        need(wide <= SIZE_LIMIT, "a clause has too many constraints")
        base = -self.bounds[here]
        if len(self.inputs) and self.inputs[here].any():
            return self.joined, np.append(self.outputs[here], self.inputs[here], 1), base
        return self.nodes, self.outputs[here], base

    def ends(self, number, mode):
        """The ends of a clause's box; for runs in float32 with all that its inputs can be rounded to."""
        low, high = (ends[self.case[number]] for ends in (self.lower, self.upper))
        if mode == "float32":
            single = low.astype(np.float32), high.astype(np.float32)
            below, above = np.nextafter(single[0], np.float32(-np.inf)), np.nextafter(single[1], np.float32(np.inf))
            low, high = np.where(single[0] > low, below, single[0]), np.where(single[1] < high, above, single[1])
        return low.astype(self.a.dtype), high.astype(self.a.dtype)

    def empty(self, number) -> bool:
        """Whether a clause's box holds no input."""
        return bool((self.lower[self.case[number]] > self.upper[self.case[number]]).any())

    def analysis(self, number, box, mode, sharp) -> Analysis:
        """Bounds of every node over a box."""
        return Analysis(self.rows(number)[0], self.a, box, mode, sharp)

    def least(self, one: Certificate, mode) -> float:
        """A number that some row reaches at every input of the box; a tree is read until a leaf is not above margin."""
        with np.errstate(all="ignore"):
            low, high = self.ends(one.index, mode)
            if one.kind == BOXES:
                return self._boxes(one, mode, low, high)
            _, rows, base = self.rows(one.index)
            analysis = self.analysis(one.index, Box(self.a, low, high), mode, one.kind in (SLOPES, TREE))
            best = analysis.output(rows, base)
            if one.kind in (SLOPES, TREE):
                Improvement(analysis, rows, base).raise_(one.kind, one.payload, best)
            return highest(best)

    def _boxes(self, one, mode, low, high):
        """The least bound of the leaves of a tree of cuts: they cover the box, as both parts follow a cut."""
        data, lowest, open_parts, steps = Payload(one.payload), math.inf, [(low, high, 0)], 0
        _, rows, base = self.rows(one.index)
        while open_parts:
            low, high, depth = open_parts.pop()
            steps, element = steps + 1, data.one("<u2")
            if element == LEAF:
                analysis = self.analysis(one.index, Box(self.a, low, high), mode, True)
                lowest = min(lowest, highest(analysis.output(rows, base)))
                if not lowest > one.margin:
                    return lowest
                continue
            need(element < len(low), "a tree cuts an element that the input does not have")
            large = steps > STEPS_LIMIT or depth >= DEPTH_LIMIT or depth * len(low) > SIZE_LIMIT
            need(not large, "a tree is too large")
            below, above = halves(low, high, element)
            open_parts += [(*above, depth + 1), (*below, depth + 1)]  # the part below is read first
        data.end()
        return lowest

    def check(self, one: Certificate, mode) -> str | None:
        """None if the clause is proved to hold nowhere in its box, else why not."""
        need(one.index < len(self.case), "there is no such clause")
        if self.empty(one.index):
            return None
        least = self.least(one, mode)
        return None if least > one.margin else f"only a margin of {least:.4g} is proved"

    def verdict(self, missing) -> str:
        """A sentence, from the clauses without an accepted certificate."""
        if not missing:
            return f"property proved: all {len(self.case)} clauses"
        named = ", ".join(str(number) for number in missing[:10]) + (", ..." if len(missing) > 10 else "")
        return f"property not proved: {len(missing)} of {len(self.case)} clauses have no accepted certificate ({named})"
