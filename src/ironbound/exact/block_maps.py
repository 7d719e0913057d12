"""Matrices of convolutions as blocks: what is near in an image reads what is near.

The maps between open neurons, and from the input, are sparse where they come from convolutions, too irregularly for a
sparse format to be faster than a dense product. Grouped by place they are a few dense blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GRID = 4  # regions of an image to each side
_DENSE = 0.5  # share of the matrix from which on the blocks are not worth gathering what they read


def places(shape: tuple[int, ...]) -> Tensor:
    """The region of an image that each element lies in.

    Args:
        shape: of an example.

    Returns:
        For [channels, height, width] a number below 16 for each element, else 0: int64, flat.
    """
    if len(shape) != 3:
        return torch.zeros(shape, dtype=torch.int64).flatten()
    vertical, horizontal = (torch.arange(size) * _GRID // size for size in shape[1:])
    return (vertical[:, None] * _GRID + horizontal).expand(shape).flatten()


@dataclass(frozen=True, eq=False)
class _Block:
    """Columns that are near each other, and the rows that are not zero in all of them."""

    rows: Tensor | None  # None: all
    matrix: Tensor


@dataclass(frozen=True, eq=False)
class _Blocks:
    blocks: tuple[_Block, ...]
    order: Tensor  # where each column stands in the blocks one after another

    def __call__(self, x: Tensor) -> Tensor:
        parts = [(x if one.rows is None else x.index_select(1, one.rows)) @ one.matrix for one in self.blocks]
        return torch.cat(parts, 1).index_select(1, self.order)


def _blocks(matrix: Tensor, place: Tensor) -> _Blocks | None:
    """The blocks of a matrix by the places of its columns; None where most of it is in them."""
    found, columns, size = [], [], 0
    for number in place.unique().tolist():
        here = torch.nonzero(place == number).squeeze(1)
        part = matrix[:, here]
        rows = torch.nonzero((part != 0).any(1)).squeeze(1)
        full = len(rows) == len(matrix)
        found.append(_Block(None if full else rows, part if full else part[rows]))
        columns.append(here)
        size += found[-1].matrix.numel()
    if size >= _DENSE * matrix.numel():
        return None
    return _Blocks(tuple(found), torch.cat(columns).argsort())


class BlockMap:
    """A matrix as a linear map and its adjoint.

    Args:
        matrix: [rows, columns].
        rows: place of each row, int64.
        columns: place of each column, int64.
    """

    def __init__(self, matrix: Tensor, rows: Tensor, columns: Tensor) -> None:
        self._matrix = matrix
        self._adjoint, self._forward = _blocks(matrix, columns), _blocks(matrix.T, rows)

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """Start + x @ matrix.T, with x [n, columns]."""
        return torch.addmm(start, x, self._matrix.T) if self._forward is None else self._forward(x) + start

    def adjoint(self, start: Tensor, x: Tensor) -> Tensor:
        """Start + x @ matrix, with x [n, rows]."""
        return torch.addmm(start, x, self._matrix) if self._adjoint is None else self._adjoint(x) + start
