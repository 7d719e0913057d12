"""The relaxed network between its open neurons, by the checker's own bounds: to find payloads with, not for proofs.

Source: Wong & Kolter (2017, arXiv v1), equations (22) and (23).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ironbound.certificate.checker.bounds import Analysis, Region
from ironbound.certificate.checker.layers import Affine, Rows
from ironbound.exact.split_cuts import no_cuts
from ironbound.exact.split_relaxation import Relaxation
from ironbound.exact.split_rows import ClauseRows


def relaxed(analysis: Analysis, row: np.ndarray, guard: float) -> Relaxation:
    """One example's relaxation, with one functional of the output as its only clause.

    Args:
        analysis: the checker's bounds.
        row: coefficients of the output, [outputs].
        guard: what the functional must exceed.

    Returns:
        The relaxed network in float64; its columns are the analysis's open neurons, in that order.
    """
    columns = analysis.open_neurons()
    nodes, neurons = torch.tensor(columns, dtype=torch.int64).reshape(-1, 2).T
    levels = [torch.nonzero(nodes == node).flatten() for node in dict.fromkeys(nodes.tolist())]
    slices = tuple(slice(int(here[0]), int(here[-1]) + 1) for here in levels)
    carried = [_of_level(analysis, columns, nodes[here[0]], neurons[here]) for here in levels]
    width, size = len(columns), analysis.nodes[0].size
    reads, source, constant = (
        torch.cat([torch.zeros(shape, dtype=torch.float64), *parts])
        for shape, parts in zip(
            ((0, width), (0, size), (0,)), zip(*carried, strict=True) if carried else ((), (), ()), strict=True
        )
    )
    last = _carried(analysis, columns, len(analysis.nodes) - 1, row[None].astype(float))
    guards = torch.tensor([guard], dtype=torch.float64)
    inputs = [analysis.nodes[node].inputs[0] for node, _ in columns]
    ends = [(analysis.low[s][i], analysis.high[s][i]) for s, (_, i) in zip(inputs, columns, strict=True)]
    low, high = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2).T
    zero, chord = torch.zeros_like(low), high / (high - low)
    places = torch.zeros_like(nodes), torch.zeros(size, dtype=torch.int64)
    return Relaxation(
        slices,
        tuple(reads[columns.stop :, columns].contiguous() for columns in slices),
        source,
        constant,
        (zero, zero + 1, zero, zero),
        (chord, zero, -low * chord, zero),
        (chord, (high > -low).double()),
        zero,
        torch.ones_like(zero, dtype=torch.bool),
        low,
        high,
        nodes,
        neurons,
        *places,
        _sets(analysis.region),
        ClauseRows(*last, torch.zeros(1, dtype=torch.int64), guards),
        no_cuts(*places, zero),
    )


def _sets(region: Region) -> tuple[tuple[float, Tensor, Tensor], ...]:
    """The sets whose intersection is the region: exponents of their dual norms, radii and middles."""
    found = []
    if region.norm == "linf" or region.clipped:
        found.append((1.0, torch.from_numpy(region.radius)[None], torch.from_numpy(region.middle)[None]))
    if region.norm != "linf":
        radius = torch.full((1, 1), float(region.eps), dtype=torch.float64)
        found.append((2.0 if region.norm == "l2" else torch.inf, radius, torch.from_numpy(region.x)[None]))
    return tuple(found)


def _of_level(
    analysis: Analysis, columns: list[tuple[int, int]], node: Tensor, neurons: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What some neurons of a relaxed node read."""
    source = analysis.nodes[int(node)].inputs[0]
    unit = np.zeros((len(neurons), analysis.nodes[source].size))
    unit[np.arange(len(neurons)), neurons.numpy()] = 1
    return _carried(analysis, columns, source, unit)


def _carried(
    analysis: Analysis, columns: list[tuple[int, int]], start: int, coef: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
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
    return torch.from_numpy(parts), torch.from_numpy(reads), torch.from_numpy(constant)
