"""The rows of clauses as a search sees them: functionals of the input and of the open neurons' outputs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClauseRows:
    """Rows of clauses; a clause is bounded by its largest row.

    Attributes:
        parts: what each row reads of the neurons, [rows, columns].
        input: what each row reads of the input, [rows, input elements].
        constant: [rows].
        clause: the clause of each row, int64 [rows].
        guard: what a bound of each clause must exceed, [clauses].
    """

    parts: Tensor
    input: Tensor
    constant: Tensor
    clause: Tensor
    guard: Tensor

    def __len__(self) -> int:
        return len(self.constant)

    def membership(self) -> Tensor:
        """Which rows belong to each clause, as 0 and 1, [clauses, rows]."""
        number = torch.arange(len(self.guard), device=self.clause.device)
        return (self.clause == number.unsqueeze(1)).to(self.constant.dtype)

    def to(self, dtype: torch.dtype) -> ClauseRows:
        """The same numbers in another floating point type."""
        parts = (getattr(self, field.name) for field in fields(self))
        return ClauseRows(*(part.to(dtype) if part.is_floating_point() else part for part in parts))

    def take(self, kept: Tensor) -> ClauseRows:
        """The rows of some clauses, by int64 [clauses kept], ascending; the clauses are numbered anew."""
        rows = torch.isin(self.clause, kept)
        number = torch.searchsorted(kept, self.clause[rows])
        return ClauseRows(self.parts[rows], self.input[rows], self.constant[rows], number, self.guard[kept])
