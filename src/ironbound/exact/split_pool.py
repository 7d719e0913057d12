"""The queue of open subproblems: compact columns, and the worst or the best of them at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ironbound.exact.split_bounds import Multipliers

_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False)
class Batch:
    """Subproblems with the bounds that they have so far.

    Attributes:
        lower: [n].
        clause: int64 [n].
        at: where to go on from.
    """

    lower: Tensor
    clause: Tensor
    at: Multipliers

    def __len__(self) -> int:
        return len(self.clause)

    def take(self, index: Tensor) -> Batch:
        """Some of the subproblems, by int64 or bool index."""
        return Batch(self.lower[index], self.clause[index], self.at.take(index))

    @staticmethod
    def join(parts: list[Batch]) -> Batch:
        """All of them."""
        at = Multipliers(*(torch.cat([getattr(p.at, f.name) for p in parts]) for f in fields(Multipliers)))
        return Batch(torch.cat([p.lower for p in parts]), torch.cat([p.clause for p in parts]), at)


def packed(at: Multipliers) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Signs in 8 bits, slopes and multipliers in 16: whatever rounding makes of them, they give a bound."""
    beta, cuts = (part.clamp(max=_HALF).half() for part in (at.beta, at.cuts))
    return at.signs.to(torch.int8), at.t.half(), beta, at.weight, cuts


def unpacked(columns: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> Multipliers:
    """The inverse, in the dtype of the rows' shares."""
    weight = columns[3]
    return Multipliers(*(part.to(weight.dtype) for part in columns))


class Pool:
    """Open subproblems in places that are used again; an empty place has the lower bound +inf.

    Args:
        like: subproblems with the columns to hold.
    """

    def __init__(self, like: Batch) -> None:
        self._columns = [part[:0] for part in (like.lower, like.clause, *packed(like.at))]
        self._free = torch.zeros(0, dtype=torch.int64, device=like.clause.device)
        self.bytes_each = sum(part.element_size() * part[0].numel() for part in (like.lower, like.clause))
        self.bytes_each += sum(part.element_size() * part.shape[1] for part in packed(like.at))

    def __len__(self) -> int:
        return len(self._columns[0]) - len(self._free)

    def add(self, batch: Batch) -> None:
        """Puts subproblems in."""
        if len(batch) == 0:
            return
        if len(self._free) < len(batch):
            self._grow(max(len(batch), len(self._columns[0]) // 2))
        place, self._free = self._free[: len(batch)], self._free[len(batch) :]
        for column, part in zip(self._columns, (batch.lower, batch.clause, *packed(batch.at)), strict=True):
            column[place] = part

    def widen(self, cuts: int) -> None:
        """Makes room for the multipliers of more cuts, which begin at 0."""
        last = self._columns[-1]
        more = last.new_zeros((len(last), cuts - last.shape[1]))
        self._columns[-1] = torch.cat([last, more], 1)
        self.bytes_each += more.element_size() * more.shape[1]

    def _grow(self, more: int) -> None:
        size = len(self._columns[0])
        self._columns = [torch.cat([part, part.new_zeros((more, *part.shape[1:]))]) for part in self._columns]
        self._columns[0][size:] = torch.inf
        self._free = torch.cat([self._free, torch.arange(size, size + more, device=self._free.device)])

    def take(self, count: int, worst: bool = True) -> Batch:
        """Takes out the subproblems with the lowest bounds (or, to keep the queue short, with the highest)."""
        count = min(count, len(self))
        lower = self._columns[0]
        place = torch.topk(
            lower if worst else lower.masked_fill(lower == torch.inf, -torch.inf), count, largest=not worst
        )
        index = place.indices
        found, clause, *rest = (part[index] for part in self._columns)
        lower[index] = torch.inf
        self._free = torch.cat([self._free, index])
        return Batch(found, clause, unpacked(tuple(rest)))  # type: ignore[arg-type]

    def least(self, clauses: int) -> Tensor:
        """The lowest bound of each clause's open subproblems, [clauses]; +inf where it has none."""
        start = self._columns[0].new_full((clauses,), torch.inf)
        return start.scatter_reduce(0, self._columns[1], self._columns[0], "amin")
