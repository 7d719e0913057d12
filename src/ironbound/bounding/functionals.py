"""Linear functionals of a node's value, one per row, each belonging to one example of the batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ironbound.ops.operator import Affine, Lines
from ironbound.regions import Set


def row_norm(rows: Tensor, order: float) -> Tensor:
    """Norm of order 1, 2 or inf over the last axis; for order 1 several times faster than `vector_norm` on a CPU."""
    if order == 1:
        return rows.abs().sum(-1)
    return torch.linalg.vector_norm(rows, order, dim=-1)


class _PullBySign(torch.autograd.Function):
    """c -> c times the slope that its sign chooses, and min(c, 0) times the upper intercept, in few passes.

    The slopes and the intercept are [examples, 1, *shape], c is [examples, rows per example, *shape].
    """

    @staticmethod
    def forward(ctx, c: Tensor, low: Tensor, high: Tensor, intercept: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        negative = c.clamp(max=0)
        ctx.save_for_backward(c, negative, low, high, intercept)
        return torch.addcmul(c * low, negative, high - low), negative * intercept

    @staticmethod
    def backward(ctx, rows: Tensor, products: Tensor):  # type: ignore[override]
        c, negative, low, high, intercept = ctx.saved_tensors
        needs = ctx.needs_input_grad
        below = torch.addcmul(rows * (high - low), products, intercept).mul_(c < 0)
        return (
            torch.addcmul(below, rows, low) if needs[0] else None,
            (rows * (c - negative)).sum(1, keepdim=True) if needs[1] else None,
            (rows * negative).sum(1, keepdim=True) if needs[2] else None,
            (products * negative).sum(1, keepdim=True) if needs[3] else None,
        )


@dataclass(frozen=True, eq=False)
class Pull:
    """What a relaxation does to functionals of its output.

    Attributes:
        rows: functionals of its input.
        lower: what it adds to the lower bound, [rows].
    """

    rows: DenseRows | object
    lower: Tensor


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Functionals with a coefficient for every element of the node.

    Attributes:
        coefficients: [rows, *node shape].
        example: the example that each row belongs to, int64 [rows].
        layout: (first example, rows per example) where the rows of consecutive examples follow each other, else None.
            Values of examples are then broadcast, not gathered.
    """

    coefficients: Tensor
    example: Tensor
    layout: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.coefficients)

    def __add__(self, other: DenseRows) -> DenseRows:
        # the other part may be windows, whose coefficients have another layout that would broadcast silently
        return replace(self, coefficients=self.coefficients + other.dense().coefficients)

    @property
    def group(self) -> int:
        """Rows that should stay together: those of one example where the layout is known, else 1."""
        return 1 if self.layout is None else self.layout[1]

    def part(self, piece: slice) -> DenseRows:
        """Some of the rows; the layout is kept where the cut falls between examples."""
        layout = None
        if self.layout is not None:
            first, each = self.layout
            if piece.start % each == 0 and piece.stop % each == 0:
                layout = (first + piece.start // each, each)
        return DenseRows(self.coefficients[piece], self.example[piece], layout)

    def dense(self) -> DenseRows:
        """Itself."""
        return self

    def _grouped(self) -> Tensor:
        """The coefficients, [examples, rows per example, *shape] where the layout is known, else [rows, *shape]."""
        return self.coefficients if self.layout is None else self.coefficients.unflatten(0, (-1, self.layout[1]))

    def _at(self, value: Tensor) -> Tensor:
        """`value` [batch or 1, *shape] at every row, broadcastable to the grouped coefficients."""
        channels_last = value.dim() == 4
        if len(value) == 1:
            return value.contiguous(memory_format=torch.channels_last) if channels_last else value
        if self.layout is not None:
            first, each = self.layout
            part = value[first : first + len(self) // each]
            return (part.contiguous(memory_format=torch.channels_last) if channels_last else part).unsqueeze(1)
        if channels_last:
            return value.permute(0, 2, 3, 1).contiguous().index_select(0, self.example).permute(0, 3, 1, 2)
        return value.index_select(0, self.example)

    def _total(self, grouped: Tensor) -> Tensor:
        """Sum per row, without a copy where the layout is channels last."""
        kept = 1 if self.layout is None else 2
        if grouped.dim() == kept:
            return grouped.flatten()
        return grouped.sum(dim=tuple(range(kept, grouped.dim()))).flatten()

    def _with(self, grouped: Tensor) -> DenseRows:
        return replace(self, coefficients=grouped if self.layout is None else grouped.flatten(0, 1))

    def dot(self, value: Tensor) -> Tensor:
        """Applies each row to its example's `value` [batch or 1, *shape]; returns [rows]."""
        return self._inner(self._grouped(), value)

    def _inner(self, grouped: Tensor, value: Tensor) -> Tensor:
        """Inner products of the (grouped) coefficients with a value per example, [rows]."""
        whole = value.shape[1:] == grouped.shape[2:]  # a radius may be one number per example
        if grouped.dim() == 3 and self.layout is not None and len(value) > 1 and whole:  # vectors: a product each
            return torch.bmm(grouped, self._at(value).transpose(1, 2)).flatten()
        return self._total(grouped * self._at(value))

    def pull_affine(self, operator: Affine, shapes: tuple[tuple[int, ...], ...]) -> tuple[DenseRows, ...]:
        """Functionals of the operator's inputs."""
        return tuple(replace(self, coefficients=part) for part in operator.adjoint(self.coefficients, shapes))

    def pull_lines(self, lines: Lines, window: bool) -> Pull:
        """Goes through a relaxation: positive coefficients take the lower line, negative ones the upper line.

        Args:
            lines: slopes and intercepts per example.
            window: whether the slopes have one more axis than the rows (a maximum over it).

        Returns:
            Functionals of the relaxation's input, and what they add to the lower bound, [rows].
        """
        c = self._grouped()
        if lines.lower_intercept is None and not lines.parallel and not window and self.layout is not None:
            values = (lines.lower_slope, lines.upper_slope, lines.upper_intercept)
            # a batch of one comes without the axis of the rows
            at = (self._at(value) if len(value) > 1 else self._at(value).unsqueeze(1) for value in values)
            pulled, products = _PullBySign.apply(c, *at)
            return Pull(self._with(pulled), self._total(products))
        lower = self._total(c.clamp(max=0) * self._at(lines.upper_intercept))
        if lines.lower_intercept is not None:
            lower = lower + self._total(c.clamp(min=0) * self._at(lines.lower_intercept))
        if lines.parallel:
            return Pull(self._with(c * self._at(lines.lower_slope)), lower)
        if window:
            c = c.unsqueeze(-1)
        slope = torch.where(c < 0, self._at(lines.upper_slope), self._at(lines.lower_slope))
        return Pull(self._with(c * slope), lower)

    def take(self, index: Tensor) -> DenseRows:
        """Some of the rows, by int64 [rows kept]."""
        return DenseRows(self.coefficients[index], self.example[index])

    def scaled(self, factor: Tensor) -> DenseRows:
        """The coefficients times a value per example, [batch or 1, *shape]."""
        return self._with(self._grouped() * self._at(factor))

    def widening(self, gap: Tensor) -> Tensor:
        """Sum |c| gap, [rows], for a value per example, [batch or 1, *shape]."""
        return self._inner(self._grouped().abs(), gap)

    def norm(self, region_set: Set) -> Tensor:
        """The support function of a centered set, [rows]."""
        if region_set.dual == 1:
            return self._inner(self._grouped().abs(), region_set.radius)
        scaled = self._grouped() * self._at(region_set.radius)
        return row_norm(self._with(scaled).coefficients.flatten(1), region_set.dual)
