"""The ascent over slopes, split multipliers and shares of rows, for many subproblems at once."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ironbound.exact.split_bounds import Multipliers, Slopes, Walk, fixed, gradient, walk
from ironbound.exact.split_relaxation import Relaxation

_MOMENTS = (0.7, 0.99)
_REGROUP = 4  # iterations after which closed subproblems are left out


@dataclass(frozen=True)
class Pace:
    """How an ascent steps.

    Attributes:
        iterations: most steps.
        slope: first step of a slope.
        beta: first step of a multiplier, as a share of the coefficients that the row has at its level.
        weight: first step of a row's share.
        cut: first step of a cut's multiplier, as that of a split's.
        last: the share of the first step that the last one has.
    """

    iterations: int = 20
    slope: float = 0.25
    beta: float = 0.25
    weight: float = 0.1
    last: float = 0.1
    cut: float = 0.1


# of a side of a split, which goes on from the whole's multipliers; deep in a search small steps would fall behind
CHILD = Pace(iterations=5, slope=0.05, beta=1.8, last=0.4)
WITH_CUTS = replace(CHILD, iterations=10)  # likewise, where there are cuts: more multipliers need more steps
_STALLED = Pace(iterations=40, slope=0.1, beta=0.6)  # of one that these steps leave where the whole was


@dataclass(frozen=True, eq=False)
class Best:
    """The best bound found for each subproblem.

    Attributes:
        value: [n]; -inf where nothing finite was found.
        at: what gives it.
    """

    value: Tensor
    at: Multipliers

    def entered(self, index: Tensor, part: Best) -> Best:
        """The same with other bounds for some of the subproblems, by int64 index; none is lower than it was."""

        def one(whole: Tensor, new: Tensor) -> Tensor:
            return whole.index_copy(0, index, new)

        at = Multipliers(*(one(getattr(self.at, f.name), getattr(part.at, f.name)) for f in fields(Multipliers)))
        return Best(one(self.value, part.value), at)


class Climb:
    """An ascent; every tensor of its state has one entry per subproblem."""

    def __init__(self, net: Relaxation, at: Multipliers, clause: Tensor) -> None:
        self.net, self.at = net, at
        self.lines = fixed(net, at.signs)
        self.rows = net.rows.membership()[clause]
        self.value = torch.full_like(at.weight[:, 0], -torch.inf)
        self.kept = at
        self.mean = self.square = None
        self.scale: Tensor | None = None

    def look(self) -> Walk:
        """Bounds at the present multipliers; keeps what is better."""
        found = walk(self.net, self.lines, self.at)
        better = (found.value > self.value) & torch.isfinite(found.value)  # an overflow is no bound
        self.value = torch.where(better, found.value, self.value)
        one = better.unsqueeze(1)
        pairs = zip(self.at.parts()[1:], self.kept.parts()[1:], strict=True)
        self.kept = Multipliers(self.at.signs, *(torch.where(one, new, old) for new, old in pairs))
        return found

    def step(self, count: int, pace: Pace) -> tuple[Walk, Slopes]:
        """One step with moments per multiplier, projected onto what is allowed; returns what it stepped from."""
        found = self.look()
        slopes = gradient(self.net, self.lines, found)
        if self.scale is None:
            size = torch.empty_like(found.met)
            for columns in self.net.levels:
                size[:, columns] = found.met[:, columns].abs().mean(1, keepdim=True)
            self.scale = torch.maximum(size, found.met.abs())
        rate = pace.last ** ((count - 1) / max(1, pace.iterations - 1))
        t, beta, weight, cuts = self._directions(slopes, count)
        self.at = Multipliers(
            self.at.signs,
            (self.at.t + rate * pace.slope * t).clamp_(0, 1),
            torch.addcmul(self.at.beta, beta, self.scale, value=rate * pace.beta).clamp_(min=0),
            self.at.weight
            if len(self.net.rows.clause) == len(self.net.rows.guard)
            else onto_simplex(self.at.weight + rate * pace.weight * weight, self.rows),
            torch.addcmul(self.at.cuts, cuts, self.scale[:, self.net.cuts.shares.column], value=rate * pace.cut).clamp_(
                min=0
            ),
        )
        return found, slopes

    def _directions(self, slopes: Slopes, count: int) -> list[Tensor]:
        news = [slopes.t, slopes.beta, slopes.weight, slopes.cuts]
        if self.mean is None or self.square is None:
            self.mean, self.square = [torch.zeros_like(g) for g in news], [torch.zeros_like(g) for g in news]
        bias, spread = 1 - _MOMENTS[0] ** count, 1 - _MOMENTS[1] ** count
        found = []
        for i, g in enumerate(news):
            self.mean[i] = torch.lerp(g, self.mean[i], _MOMENTS[0])
            self.square[i] = torch.lerp(g * g, self.square[i], _MOMENTS[1])
            size = (self.square[i] / spread).sqrt_().add_(torch.finfo(g.dtype).tiny ** 0.5)
            found.append(self.mean[i] / bias / size)
        return found

    def restricted(self, index: Tensor) -> None:
        """Goes on with some of the subproblems only."""
        self.at, self.kept = self.at.take(index), self.kept.take(index)
        self.lines = fixed(self.net, self.at.signs)
        for name in ("rows", "value", "scale"):
            setattr(self, name, getattr(self, name)[index])
        assert self.mean is not None and self.square is not None
        self.mean, self.square = [m[index] for m in self.mean], [s[index] for s in self.square]


def climbed(net: Relaxation, at: Multipliers, clause: Tensor, pace: Pace) -> Best:
    """The best bounds that an ascent visits; a subproblem above its clause's guard is not worked on further.

    Args:
        net: the relaxed network.
        at: where to begin.
        clause: of each subproblem, int64 [n].
        pace: of the ascent.

    Returns:
        The bounds.
    """
    climb = Climb(net, at, clause)
    index = torch.arange(len(clause), device=clause.device)
    value = climb.value.clone()
    kept = [part.clone() for part in at.parts()[1:]]

    def enter() -> None:
        value[index] = climb.value
        for whole, part in zip(kept, climb.kept.parts()[1:], strict=True):
            whole[index] = part

    for count in range(1, pace.iterations + 1):
        climb.step(count, pace)
        if count % _REGROUP == 1:
            still = torch.nonzero(~(climb.value > net.rows.guard[clause[index]])).squeeze(1)
            if 4 * len(still) <= 3 * len(index):
                enter()
                index = index[still]
                if len(index) == 0:
                    break
                climb.restricted(still)
    if len(index):
        climb.look()
        enter()
    return Best(value, Multipliers(at.signs, *kept))


def climbed_on(net: Relaxation, at: Multipliers, clause: Tensor, floor: Tensor, first: Pace) -> Best:
    """An ascent for all subproblems, and a longer one for those that it leaves where their parents were.

    Deep in a search a few steps often end no higher than the parent's bound. Without more of them such a subproblem
    is split again and again, although its own optimum may be above the guard.

    Args:
        net: the relaxed network.
        at: where to begin.
        clause: of each subproblem, int64 [n].
        floor: the bounds of their parents, [n].
        first: pace of the ascent for all.

    Returns:
        The bounds.
    """
    best = climbed(net, at, clause, first)
    stalled = torch.nonzero((best.value <= floor.to(best.value)) & (best.value <= net.rows.guard[clause])).squeeze(1)
    if len(stalled) == 0:
        return best
    return best.entered(stalled, climbed(net, best.at.take(stalled), clause[stalled], _STALLED))


def onto_simplex(weight: Tensor, rows: Tensor) -> Tensor:
    """The nearest shares >= 0 with the sum 1 over the rows of each clause.

    Args:
        weight: [n, rows].
        rows: which rows count, as 0 and 1, [n, rows].

    Returns:
        [n, rows], 0 at the other rows.
    """
    ordered = torch.where(rows > 0, weight, -torch.inf).sort(1, descending=True).values
    number = torch.arange(1, weight.shape[1] + 1, device=weight.device)
    excess = (torch.where(torch.isfinite(ordered), ordered, 0.0).cumsum(1) - 1) / number
    last = ((ordered - excess > 0).sum(1, keepdim=True) - 1).clamp(min=0)
    found = (weight - excess.gather(1, last)).clamp(min=0) * rows
    return found / found.sum(1, keepdim=True)
