"""The relaxed network between its open neurons, by the checker's own bounds: to find payloads with, not for proofs.

Source: Wong & Kolter (2017, arXiv v1), equations (22) and (23); multipliers of splits as in Wang et al. (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ironbound.certificate.checker.bounds import Analysis
from ironbound.certificate.checker.layers import Affine, Rows


@dataclass(frozen=True, eq=False)
class Leaves:
    """Subproblems with their multipliers; one row each, all [leaves, columns].

    Attributes:
        signs: 1 or -1 where an open neuron is held to one side of 0, else 0.
        t: lower slopes in [0, 1].
        beta: multipliers >= 0 of the splits.
    """

    signs: Tensor
    t: Tensor
    beta: Tensor

    def take(self, index: Tensor) -> Leaves:
        """Some of the leaves."""
        return Leaves(self.signs[index], self.t[index], self.beta[index])

    def rounded(self, bits: int) -> Leaves:
        """What a payload keeps of them."""
        steps = 2**bits - 1
        return Leaves(self.signs, (self.t * steps).round() / steps, self.beta.half().double())


class Relaxed:
    """One example's relaxation with one functional of the output.

    Args:
        analysis: the checker's bounds.
        row: coefficients of the output, [outputs].
    """

    def __init__(self, analysis: Analysis, row: np.ndarray) -> None:
        self.region = analysis.region
        columns = analysis.open_neurons()
        nodes, neurons = (np.array(part, np.int64) for part in zip(*columns, strict=True)) if columns else ([], [])
        self.width = len(columns)
        maps, inputs, constants = [], [], []
        self.levels: list[slice] = []
        for node in dict.fromkeys(node for node, _ in columns):
            here = np.flatnonzero(np.asarray(nodes) == node)
            self.levels.append(slice(int(here[0]), int(here[-1]) + 1))
            source = analysis.nodes[node].inputs[0]
            unit = np.zeros((len(here), analysis.nodes[source].size))
            unit[np.arange(len(here)), np.asarray(neurons)[here]] = 1
            for part, found in zip((maps, inputs, constants), _carried(analysis, columns, source, unit), strict=True):
                part.append(found)
        last = len(analysis.nodes) - 1
        self.row, self.input, self.constant = (
            torch.from_numpy(part) for part in _carried(analysis, columns, last, row[None].astype(float))
        )
        self.maps, self.inputs, self.constants = (
            [torch.from_numpy(part) for part in parts] for parts in (maps, inputs, constants)
        )
        sources = [analysis.nodes[node].inputs[0] for node, _ in columns]
        ends = [(analysis.low[s][i], analysis.high[s][i]) for s, (_, i) in zip(sources, columns, strict=True)]
        low, high = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2).T
        self.chord = high / (high - low)
        self.top = -low * self.chord
        self.start = (high > -low).double()  # the slope that leaves less room
        self.middle, self.radius, self.x = (
            torch.from_numpy(part) for part in (self.region.middle, self.region.radius, self.region.x)
        )

    def root(self) -> Leaves:
        """The problem without splits."""
        nothing = torch.zeros(1, self.width, dtype=torch.float64)
        return Leaves(nothing, self.start[None].clone(), nothing.clone())

    def bound(self, leaves: Leaves) -> tuple[Tensor, Tensor]:
        """Lower bounds of the functional, [leaves], and the coefficients of the open neurons' outputs."""
        count = len(leaves.signs)
        below = self.row.expand(count, -1)
        reads, value = self.input.expand(count, -1), self.constant.expand(count)
        found = []
        for level, maps, inputs, constants in reversed(
            list(zip(self.levels, self.maps, self.inputs, self.constants, strict=True))
        ):
            c, sign = below[:, level], leaves.signs[:, level]
            held = (sign > 0).double()
            lower = torch.where(sign == 0, leaves.t[:, level], held)
            upper = torch.where(sign == 0, self.chord[level], held)
            top = torch.where(sign == 0, self.top[level], 0.0)
            value = value + (c.clamp(max=0) * top).sum(1)
            c_in = c.clamp(min=0) * lower + c.clamp(max=0) * upper - sign * leaves.beta[:, level]
            below, reads, value = below + c_in @ maps, reads + c_in @ inputs, value + c_in @ constants
            found.insert(0, c)
        return value + self._least(reads), torch.cat(found, 1) if found else below

    def _least(self, c: Tensor) -> Tensor:
        """The least value of functionals of the input over the region."""
        found = []
        if self.region.norm == "linf" or self.region.clipped:
            found.append(c @ self.middle - c.abs() @ self.radius)
        if self.region.norm != "linf":
            order = 2 if self.region.norm == "l2" else torch.inf
            found.append(c @ self.x - float(self.region.eps) * torch.linalg.vector_norm(c, order, dim=1))
        return torch.stack(found).amax(0)


def _carried(
    analysis: Analysis, columns: list[tuple[int, int]], start: int, coef: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a node as functions of the open neurons' outputs below it and of the input, plus constants."""
    parts, constant = np.zeros((len(coef), len(columns))), np.zeros(len(coef))
    pending = {start: coef}
    reads = np.zeros((len(coef), analysis.nodes[0].size))
    for n in range(start, -1, -1):
        if n not in pending:
            continue
        node, coef = analysis.nodes[n], pending.pop(n)
        if isinstance(node, Affine):
            constant = constant + coef @ node.bias
            below = [part.coef for part in node.pull(Rows(coef))]
        elif node.kind == "relu":
            here = [(place, neuron) for place, (at, neuron) in enumerate(columns) if at == n]
            if here:
                places, neurons = (list(part) for part in zip(*here, strict=True))
                parts[:, places] = coef[:, neurons]
            below = [coef * (analysis.low[node.inputs[0]] >= 0)]
        else:
            reads = coef
            continue
        for source, part in zip(node.inputs, below, strict=True):
            pending[source] = pending[source] + part if source in pending else part
    return parts, reads, constant
