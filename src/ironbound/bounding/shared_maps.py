"""Maps of the few live neurons of a narrow layer, computed once: they serve every functional of the layers above.

A functional of a layer's value is a combination of its neurons. Where more functionals are to be bounded than neurons
are alive, carrying the neurons to the input and combining the results is less work, and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.backward import Band, Range, Rows, descend, reach, unit_rows
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.memory import in_chunks
from ironbound.graph import Graph
from ironbound.regions import Set


@dataclass(frozen=True, eq=False)
class ExampleMaps:
    """What one example's live neurons are made of.

    Attributes:
        neurons: their indices in the layer, int64 [neurons].
        noise: what each open neuron below adds, times its gap, [neurons, open neurons].
        input: functionals of the input, [neurons, input elements].
    """

    neurons: Tensor
    noise: Tensor
    input: Tensor


def narrow_layer(graph: Graph, bands: Mapping[int, Band], target: int) -> int | None:
    """The relaxed vector right below a node that all its functionals pass, if there is more to pass below that.

    Args:
        graph: the network.
        bands: the relaxations of the nodes below `target`.
        target: index of the node.

    Returns:
        Index of the relaxed node, or None.
    """
    index = target
    while index not in bands:
        node = graph.nodes[index]
        if len(node.inputs) != 1:
            return None
        (index,) = node.inputs
    layer = graph.nodes[index].inputs[0]
    jumped = any(source < layer for node in graph.nodes[layer + 1 :] for source in node.inputs)
    if jumped or len(graph.nodes[layer].shape) != 1 or not any(below < layer for below in bands):
        return None
    return index


def shared_maps(graph: Graph, bands: Mapping[int, Band], layer: int, live: Tensor, length: int) -> list[ExampleMaps]:
    """Carries the live neurons of a layer to the input.

    Args:
        graph: the network.
        bands: the parallel relaxation of every relaxed node below `layer`.
        layer: index of a node whose value is a vector.
        live: bool [batch, neurons].
        length: neurons to carry at a time.

    Returns:
        One entry per example.
    """
    like = next(iter(bands.values())).gap
    return [
        _of_example(graph, bands, layer, example, torch.nonzero(row).squeeze(1), like, length)
        for example, row in enumerate(live)
    ]


def _of_example(
    graph: Graph, bands: Mapping[int, Band], layer: int, example: int, neurons: Tensor, like: Tensor, length: int
) -> ExampleMaps:
    below = {index: band.gap[example].flatten() for index, band in bands.items() if index < layer}
    opened = {index: torch.nonzero(gap).squeeze(1) for index, gap in below.items()}

    def work(piece: slice) -> Range:
        part = neurons[piece]
        rows, start = unit_rows(graph, layer, part, torch.full_like(part, example), like)
        noise, functionals = [], []

        def visit(index: int, current: Rows, alone: bool) -> Rows:
            flat = current.dense().coefficients.flatten(1)
            if index == 0:
                functionals.append(flat)
            else:
                where = opened[index]
                noise.append(flat.index_select(1, where) * below[index][where])
            return current

        descend(graph, bands, start, rows, visit)
        return torch.cat(noise, 1), functionals[0]

    return ExampleMaps(neurons, *in_chunks(work, len(neurons), length))


def combined_spread(maps: list[ExampleMaps], rows: DenseRows, sets: tuple[Set, ...], shape: tuple[int, ...]) -> Range:
    """How far functionals of the layer can move from their value in the middle of all bands.

    Args:
        maps: of the layer, one per example.
        rows: functionals of the layer, [rows, neurons], zero for neurons that are not alive.
        sets: the region's sets, offsets relative to the centre that was passed forward.
        shape: of one input.

    Returns:
        (down, up), each [rows], >= 0.
    """
    order = torch.argsort(rows.example, stable=True)
    present, counts = torch.unique_consecutive(rows.example[order], return_counts=True)
    noise, inputs = [], []
    for example, chosen in zip(present.tolist(), order.split(counts.tolist()), strict=True):
        own = maps[example]
        factors = rows.coefficients[chosen].index_select(1, own.neurons)
        noise.append((factors @ own.noise).abs().sum(1))
        inputs.append(factors @ own.input)
    functionals = DenseRows(torch.cat(inputs).reshape(-1, *shape), rows.example[order])
    down, up = reach(functionals, sets)
    widened, back = torch.cat(noise), torch.argsort(order)
    return (widened + down)[back], (widened + up)[back]
