"""The relaxed network with other columns: the neurons of a level as clauses, new bounds, closed neurons taken out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ironbound.exact.split_cuts import no_cuts
from ironbound.exact.split_relaxation import Line, Relaxation
from ironbound.exact.split_rows import ClauseRows

GUARD = 1e-9  # share of a neuron's range by which its bound must exceed the kink


def is_open(net: Relaxation) -> Tensor:
    """Which neurons have a kink between their bounds, bool [columns]."""
    return net.splittable & (net.low < net.knot) & (net.knot < net.high)


def below(net: Relaxation, which: Tensor) -> Relaxation:
    """The network below a level, with clauses of one row: each neuron's input above its kink, then each below it.

    Args:
        net: the relaxed network.
        which: columns of one level, int64 [neurons], one at the least.

    Returns:
        A network of 2 * neurons clauses, without cuts.
    """
    level = next(k for k, columns in enumerate(net.levels) if int(which[0]) < columns.stop)
    first = net.levels[level].start
    parts = torch.cat([net.input[which, :0], *(net.above[j][which - net.levels[j].stop] for j in range(level))], 1)
    above = (parts, net.input[which], net.constant[which] - net.knot[which])
    number = torch.arange(2 * len(which), device=which.device)
    guard = GUARD * (1 + net.high[which] - net.low[which]).repeat(2)
    rows = ClauseRows(*(torch.cat([part, -part]) for part in above), clause=number, guard=guard)

    def lines(line: Line) -> Line:
        return tuple(part[:first] for part in line)  # type: ignore[return-value]

    place = net.place[:first]
    columns = ("constant", "knot", "splittable", "low", "high", "nodes", "neurons", "input")
    return replace(
        net,
        **{name: getattr(net, name)[:first] for name in columns},
        place=place,
        levels=net.levels[:level],
        above=tuple(net.above[j][: first - net.levels[j].stop] for j in range(level)),
        lower=lines(net.lower),
        upper=lines(net.upper),
        starts=(net.starts[0][:first], net.starts[1][:first]),
        rows=rows,
        cuts=no_cuts(place, net.input_place, net.constant),
    )


def bounded(net: Relaxation, low: Tensor, high: Tensor) -> Relaxation:
    """The network with other bounds of what its neurons read.

    Args:
        net: the relaxed network.
        low: sound lower bounds, [columns].
        high: upper ones, [columns]; those that are no better change nothing.

    Returns:
        The network with the chords between the new ends; a neuron that they close takes its one line.
    """
    low, high = torch.maximum(net.low, low), torch.minimum(net.high, high)
    slope, step, height, rise = net.lower
    left, right = (slope, height), (slope + step, height + rise)
    width = high - low
    chord = (right[0] * high + right[1] - left[0] * low - left[1]) / torch.where(width > 0, width, 1.0)
    top = (chord, left[0] * low + left[1] - chord * low)
    on, off = low >= net.knot, high <= net.knot
    changed = net.splittable & ((low > net.low) | (high < net.high))
    upper = [
        torch.where(changed, torch.where(on, right[k], torch.where(off, left[k], top[k])), net.upper[2 * k])
        for k in (0, 1)
    ]
    lower = [torch.where(changed & on, right[k], net.lower[2 * k]) for k in (0, 1)]
    closed = changed & (on | off)
    adaptive = ((high - net.knot) > (net.knot - low)).to(low.dtype)
    parallel = ((chord - slope) / torch.where(step != 0, step, 1.0)).clamp(0, 1)
    return replace(
        net,
        low=low,
        high=high,
        lower=(lower[0], step.masked_fill(closed, 0.0), lower[1], rise.masked_fill(closed, 0.0)),
        upper=(upper[0], net.upper[1], upper[1], net.upper[3]),
        starts=(torch.where(changed, parallel, net.starts[0]), torch.where(changed, adaptive, net.starts[1])),
    )


def pruned(net: Relaxation) -> Relaxation:
    """The same network without the neurons that their bounds close: what reads them reads below them instead."""
    gone = net.splittable & ~is_open(net)
    if not bool(gone.any()):
        return net
    width, rows = net.width, len(net.rows)
    reads = net.constant.new_zeros((width + rows, width))
    for columns, above in zip(net.levels, net.above, strict=True):
        reads[columns.stop : width, columns] = above
    reads[width:] = net.rows.parts
    source = torch.cat([net.input, net.rows.input])
    constant = torch.cat([net.constant, net.rows.constant])
    for columns in net.levels:
        out = torch.nonzero(gone[columns]).squeeze(1) + columns.start
        share = reads[:, out] * net.lower[0][out]
        constant = constant + share @ constant[out] + reads[:, out] @ net.lower[2][out]
        source = source + share @ source[out]
        reads = reads + share @ reads[out]
        reads[:, out] = 0.0
    return _kept(net, ~gone, reads, source, constant)


def _kept(net: Relaxation, kept: Tensor, reads: Tensor, source: Tensor, constant: Tensor) -> Relaxation:
    """Some columns of a network whose other columns nothing reads."""
    width = net.width
    index = torch.nonzero(kept).squeeze(1)
    levels, above, first = [], [], 0
    for columns in net.levels:
        count = int(kept[columns].sum())
        if count:
            levels.append(slice(first, first + count))
            first += count
    inner = reads[:width][index][:, index]
    above = [inner[columns.stop :, columns] for columns in levels]
    names = ("knot", "splittable", "low", "high", "nodes", "neurons", "place")
    return replace(
        net,
        **{name: getattr(net, name)[index] for name in names},
        levels=tuple(levels),
        above=tuple(part.contiguous() for part in above),
        input=source[:width][index],
        constant=constant[:width][index],
        lower=tuple(part[index] for part in net.lower),
        upper=tuple(part[index] for part in net.upper),
        starts=(net.starts[0][index], net.starts[1][index]),
        rows=replace(net.rows, parts=reads[width:][:, index], input=source[width:], constant=constant[width:]),
        cuts=no_cuts(net.place[index], net.input_place, net.constant),
    )
