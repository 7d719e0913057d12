"""Rows that read few open neurons, such as those of a feature map: each gets a small network of its own.

The numbers are those of the whole network; the products are as small as what a row can reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.bounding.alpha_dual import Layout, Level, Lines4, Network
from ironbound.bounding.alpha_rows import Functionals, padded_index

_WORTH = 0.5  # share of the open neurons that a row may reach at most


@dataclass(frozen=True, eq=False)
class Local:
    """Rows with the part of the network that they reach.

    Attributes:
        network: one "example" per row.
        rows: the rows, as those of that network.
        places: which neurons of each level the small network has, int64 [rows, width], and which are no filling.
    """

    network: Network
    rows: Functionals
    places: tuple[tuple[Tensor, Tensor], ...]

    def spread(self, slopes: list[Tensor], net: Network) -> list[Tensor]:
        """Slopes of the small networks as slopes of the whole one, [rows, width] for each level."""
        result = []
        for level, (index, valid), t in zip(net.levels, self.places, slopes, strict=True):
            whole = t.new_zeros((len(t), level.above.shape[2]))
            result.append(whole.scatter_add(1, index, t * valid))
        return result


def reached(net: Network, rows: Functionals) -> list[Tensor] | None:
    """Which open neurons of each level rows can reach, bool [rows, width]; None where they reach too many."""
    if not net.levels:
        return None
    direct = [rows.parts[level.node] != 0 for level in net.levels]
    most = int(torch.cat(direct, 1).sum(1).max())
    if most > _WORTH * net.input.shape[1]:
        return None
    layout = Layout(rows.example)
    present = layout.present
    above = rows.input.new_zeros((len(rows), 0))
    for place in range(len(direct) - 1, -1, -1):
        links = (net.levels[place].above[present] != 0).to(above.dtype)
        if links.shape[1]:
            direct[place] = direct[place] | (layout.flat(torch.bmm(layout.block(above), links)) > 0)
        above = torch.cat([direct[place].to(above.dtype), above], 1)
    most = int(above.sum(1).max())
    return direct if most <= _WORTH * net.input.shape[1] else None


def local(net: Network, rows: Functionals, masks: list[Tensor]) -> Local:
    """Cuts the network down to what each row reaches.

    Args:
        net: the network of all examples.
        rows: the functionals.
        masks: of `reached`.

    Returns:
        The small networks and the rows.
    """
    example = rows.example
    places = tuple(padded_index(mask) for mask in masks)
    offset = 0
    shifted = []
    for mask, (index, _) in zip(masks, places, strict=True):
        shifted.append(index + offset)
        offset += mask.shape[1]
    everyone, filled = torch.cat(shifted, 1), torch.cat([valid for _, valid in places], 1)
    layout = Layout(example)
    links = (net.input[layout.present] != 0).to(rows.input.dtype)
    touched = layout.flat(torch.bmm(layout.block(torch.cat(masks, 1).to(links.dtype)), links)) > 0
    pixel, used = padded_index(touched | (rows.input != 0))
    levels = []
    first = 0
    for level, (index, valid) in zip(net.levels, places, strict=True):
        first += index.shape[1]
        start = net.input.shape[1] - level.above.shape[1]
        upper = (everyone[:, first:] - start).clamp(min=0)
        links = level.above[example[:, None, None], upper.unsqueeze(2), index.unsqueeze(1)]
        links = links * filled[:, first:].unsqueeze(2) * valid.unsqueeze(1)
        line = _picker(example, index, valid)
        lower: Lines4 = tuple(line(value) for value in level.lower)  # type: ignore[assignment]
        above: Lines4 = tuple(line(value) for value in level.upper)  # type: ignore[assignment]
        levels.append(Level(level.node, lower, above, (line(level.starts[0]), line(level.starts[1])), links))
    whole = net.input[example[:, None, None], everyone.unsqueeze(2), pixel.unsqueeze(1)]
    take = _picker(example, pixel, used)
    size = rows.input.shape[1]
    small = Network(
        tuple(levels),
        whole * filled.unsqueeze(2) * used.unsqueeze(1),
        net.constant[example.unsqueeze(1), everyone] * filled,
        tuple((dual, take(radius.expand(-1, 1, size)), take(middle)) for dual, radius, middle in net.sets),
    )
    parts = {
        level.node: rows.parts[level.node].gather(1, index) * valid
        for level, (index, valid) in zip(net.levels, places, strict=True)
    }
    own = torch.arange(len(rows), device=example.device)
    return Local(small, Functionals(own, parts, rows.input.gather(1, pixel) * used, rows.constant), places)


def _picker(example: Tensor, index: Tensor, valid: Tensor):
    def pick(value: Tensor) -> Tensor:
        """[examples or 1, 1, width] -> [rows, 1, width of the row]."""
        which = example if len(value) > 1 else torch.zeros_like(example)
        return (value[which.unsqueeze(1), 0, index] * valid).unsqueeze(1)

    return pick
