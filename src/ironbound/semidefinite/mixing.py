"""The relaxation solved by low rank: block coordinate ascent on unit vectors, with momentum, for many problems at once.

Source: Wang, Chang & Kolter, "The mixing method: low rank coordinate descent for semidefinite programming with diagonal
constraints" (2017); here all t move at once and then all w, because the matrix couples only t to w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.semidefinite.bilinear import Bilinear, Weights

MOMENTUM = 0.8


@dataclass(frozen=True, eq=False)
class Vectors:
    """Unit vectors of the columns, and those of the step before.

    Attributes:
        first: of the linear term, [n, rank].
        rest: of the neurons, [k, n, rank].
        first_before, rest_before: one step ago.
    """

    first: Tensor
    rest: Tensor
    first_before: Tensor
    rest_before: Tensor

    def __getitem__(self, index: Tensor) -> Vectors:
        """Those of some problems."""
        return Vectors(self.first[index], self.rest[:, index], self.first_before[index], self.rest_before[:, index])

    def put(self, index: Tensor, part: Vectors) -> Vectors:
        """These, with those of some problems replaced."""

        def merged(whole: Tensor, new: Tensor, dim: int) -> Tensor:
            return whole.index_copy(dim, index, new)

        return Vectors(
            merged(self.first, part.first, 0),
            merged(self.rest, part.rest, 1),
            merged(self.first_before, part.first_before, 0),
            merged(self.rest_before, part.rest_before, 1),
        )


def random_vectors(problems: Bilinear, rank: int, dtype: torch.dtype, seed: int = 0) -> Vectors:
    """Random unit vectors.

    Args:
        problems: the problems.
        rank: length of the vectors.
        dtype: to compute in.
        seed: of the random numbers.

    Returns:
        The start.
    """
    generator = torch.Generator().manual_seed(seed)
    first = _unit(torch.randn(1, rank, generator=generator, dtype=torch.float64))[0].to(dtype)
    rest = _unit(torch.randn(len(problems.weight), 1, rank, generator=generator, dtype=torch.float64))[0].to(dtype)
    first = first.expand(len(problems), rank).contiguous()
    rest = rest.expand(len(problems.weight), len(problems), rank).contiguous()
    return Vectors(first, rest, first, rest)


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of length 1 and their former lengths; vectors of length 0 stay."""
    length = torch.linalg.vector_norm(vectors, dim=-1)
    return vectors / length.clamp(min=torch.finfo(vectors.dtype).tiny).unsqueeze(-1), length


@dataclass(frozen=True, eq=False)
class Climb:
    """The problems laid out for the iteration.

    Attributes:
        down: radius times W^T, as [d, k] where all problems share the radius.
        up: its transpose, [k, d].
        factor: [k, n, 1].
        linear: [d, n, 1].
        radius: [d, n, 1], or None where it is part of `down` and `up`.
    """

    down: Tensor
    up: Tensor
    factor: Tensor
    linear: Tensor
    radius: Tensor | None

    @staticmethod
    def of(problems: Bilinear, dtype: torch.dtype) -> Climb:
        """The layout of problems in a dtype."""
        p = problems.to(dtype)
        shared = len(p.radius) == 1
        up = (p.weight * p.radius if shared else p.weight).contiguous()
        radius = None if shared else p.radius.T.unsqueeze(-1).contiguous()
        factor, linear = p.factor.T.unsqueeze(-1).contiguous(), p.linear.T.unsqueeze(-1).contiguous()
        return Climb(up.T.contiguous(), up, factor, linear, radius)

    def rows(self, first: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The best unit vectors of the rows, [d, n, rank], and their weights a, [d, n]."""
        moved = (self.down @ (self.factor * rest).flatten(1)).unflatten(1, rest.shape[1:])
        if self.radius is not None:
            moved = moved * self.radius
        return _unit(torch.addcmul(moved, self.linear, first))

    def columns(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best unit vectors of the columns for those of the rows, and their weights: b_0 [n], b [k, n]."""
        first, first_length = _unit((self.linear * rows).sum(0))
        if self.radius is not None:
            rows = rows * self.radius
        rest, length = _unit((self.up @ rows.flatten(1)).unflatten(1, rows.shape[1:]) * self.factor)
        return first, rest, first_length, length

    def run(self, vectors: Vectors, steps: int) -> Vectors:
        """Some steps.

        Args:
            vectors: the start.
            steps: how many.

        Returns:
            Where they lead to.
        """
        for _ in range(steps):
            first = vectors.first + MOMENTUM * (vectors.first - vectors.first_before)
            rest = vectors.rest + MOMENTUM * (vectors.rest - vectors.rest_before)
            new_first, new_rest, *_ = self.columns(self.rows(first, rest)[0])
            vectors = Vectors(new_first, new_rest, vectors.first, vectors.rest)
        return vectors


def values(problems: Bilinear, vectors: Vectors) -> tuple[Tensor, Weights]:
    """The objective that vectors attain, in float64, and weights for a dual bound.

    Args:
        problems: the problems.
        vectors: of the columns.

    Returns:
        A lower bound of the relaxation up to rounding, [n], and the weights.
    """
    climb = Climb.of(problems, torch.float64)
    rows, lengths = climb.rows(_unit(vectors.first.double())[0], _unit(vectors.rest.double())[0])
    _, _, first, rest = climb.columns(rows)
    primal = first + rest.sum(0)
    return primal, Weights.of(lengths.T, torch.cat([first.unsqueeze(1), rest.T], 1))
