"""Cuts: linear functionals of the input and the neurons' outputs that are at most 0 wherever the network can be."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from ironbound.exact.block_maps import BlockMap

BYTES = 40  # of a cut for each input element and column: twice as a matrix and as maps, in float64 and 32, and shares


@dataclass(frozen=True, eq=False)
class Shares:
    """What cuts are made of, whatever the bounds: with any bounds of the neurons these numbers give valid cuts.

    Attributes:
        column: the neuron whose output each cut bounds from above, int64 [cuts].
        high: share of the chord's end at the upper bound, [cuts].
        low: share of its end at the lower bound, [cuts]; high + low <= 1.
        input: share of each input element that the neuron reads, from 0 to 1 - high - low, [cuts, input elements].
        parts: of each neuron's output that it reads, likewise, [cuts, columns].
    """

    column: Tensor
    high: Tensor
    low: Tensor
    input: Tensor
    parts: Tensor

    def __len__(self) -> int:
        return len(self.column)

    def take(self, index: Tensor | slice) -> Shares:
        """Some of them, by int64 or bool index, or slice."""
        return Shares(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def join(some: list[Shares]) -> Shares:
        """All of them."""
        return Shares(*(torch.cat([getattr(one, field.name) for one in some]) for field in fields(Shares)))


@dataclass(frozen=True, eq=False)
class Cuts:
    """Cuts of one relaxed network.

    Attributes:
        shares: what they are made of.
        parts: coefficients of the neurons' outputs, [cuts, columns].
        input: of the input, [cuts, input elements].
        constant: [cuts].
        place, column_place, input_place: the region that each cut's neuron, each column, each input element lies in.
    """

    shares: Shares
    parts: Tensor
    input: Tensor
    constant: Tensor
    place: Tensor
    column_place: Tensor
    input_place: Tensor

    def __len__(self) -> int:
        return len(self.constant)

    @property
    def bytes(self) -> int:
        """What they take in a search."""
        return BYTES * (self.parts.numel() + self.input.numel())

    @cached_property
    def parts_map(self) -> BlockMap:
        """`parts` as a map."""
        return BlockMap(self.parts, self.place, self.column_place)

    @cached_property
    def input_map(self) -> BlockMap:
        """`input` as a map."""
        return BlockMap(self.input, self.place, self.input_place)

    def values(self, point: Tensor, out: Tensor) -> Tensor:
        """The functionals: [n, cuts] of inputs [n, input elements] and outputs of the neurons [n, columns]."""
        if len(self) == 0:
            return out[:, :0]
        return self.input_map.forward(self.parts_map.forward(self.constant, out), point)

    def take(self, index: Tensor) -> Cuts:
        """Some of them, by int64 or bool index."""
        parts, source, constant, place = (part[index] for part in (self.parts, self.input, self.constant, self.place))
        return Cuts(self.shares.take(index), parts, source, constant, place, self.column_place, self.input_place)

    def joined(self, more: Cuts) -> Cuts:
        """With others of the same network."""
        names = ("parts", "input", "constant", "place")
        parts, source, constant, place = (torch.cat([getattr(self, name), getattr(more, name)]) for name in names)
        shares = Shares.join([self.shares, more.shares])
        return Cuts(shares, parts, source, constant, place, self.column_place, self.input_place)

    def to(self, dtype: torch.dtype) -> Cuts:
        """The same numbers in another floating point type."""
        return replace(self, parts=self.parts.to(dtype), input=self.input.to(dtype), constant=self.constant.to(dtype))


def no_cuts(place: Tensor, input_place: Tensor, like: Tensor) -> Cuts:
    """No cuts.

    Args:
        place: of each column, int64 [columns].
        input_place: of each input element, int64 [input elements].
        like: of the dtype and on the device of the network.

    Returns:
        Cuts of the length 0.
    """
    parts, source = like.new_zeros((0, len(place))), like.new_zeros((0, len(input_place)))
    empty = like.new_zeros(0)
    shares = Shares(place[:0], *(part.float() for part in (empty, empty, source, parts)))
    return Cuts(shares, parts, source, empty, place[:0], place, input_place)
