"""The search for the largest certified ε of each example: Newton's method on the least margin, within a bracket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LARGEST = 1e6  # regions refuse larger radii
MOST = 60  # evaluations per example
_FIRST, _GROWTH = 0.12, 1.35  # share of the first-order radius to begin with; most that ε grows while it is certified
_WIDE = 1.25  # evaluations that are so far apart do not show how the margin falls between them
_NEAR = 1.02  # a secant is trusted that far beyond the last ε; the margin bends where neurons open
_AIM, _REACH = 0.45, 0.9  # shares of the tolerance: how far below the root to aim, how far to accept
_CURVATURE = 8.0  # a prediction from a relative distance of d is taken to be off by this times d²
_PILOTS, _FEWEST = 12, 32  # examples that are solved first; fewer examples than the second have no pilots

# (examples, their ε, whether in the final arithmetic) -> what the least margin has above its guard, float64
Evaluate = Callable[[Tensor, Tensor, bool], Tensor]


@dataclass(eq=False)
class Search:
    """The brackets of the certified radii of a batch.

    The derivative is the divided difference of the last evaluations: an evaluation with gradients costs three without.
    As soon as the next ε is expected to be the last, it is tried in the final arithmetic, and so is all that follows.

    Source: Wong & Kolter (2018), ICML, equation (17) and section 4.2: Newton with backtracking.

    Attributes:
        evaluate: the function whose roots are sought.
        clean: its values at ε = 0, above 0, float64 [n].
        rough: where it would vanish if it were linear, float64 [n].
        tolerance: relative distance from the root that is accepted, as the last evaluations predict the root.
        low: the largest ε that the final arithmetic certified, float64 [n].
        evaluations: int64 [n].
    """

    evaluate: Evaluate
    clean: Tensor
    rough: Tensor
    tolerance: float
    low: Tensor = field(init=False)
    evaluations: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.low = torch.zeros_like(self.clean)
        self.evaluations = torch.zeros_like(self.clean, dtype=torch.int64)
        self._inner, self._outer = torch.zeros_like(self.clean), torch.full_like(self.clean, torch.inf)  # the bracket
        self._slope = self.clean / self.rough  # of the margin's fall
        self._final = torch.zeros_like(self.clean, dtype=torch.bool)
        origin = torch.stack([torch.zeros_like(self.clean), self.clean])
        self._known = [
            origin,
            origin.clone(),
            origin.clone(),
        ]  # ε and value of the last three evaluations, the newest first

    def run(self) -> None:
        """Solves every example: a few pilots first, from which the others learn where to begin."""
        n = len(self.clean)
        every = torch.arange(n, device=self.clean.device)
        if n < _FEWEST:
            self._solve(every, _FIRST * self.rough, None)
            return
        pilots = every[:: -(-n // _PILOTS)]
        others = every[~torch.isin(every, pilots)]
        self._solve(pilots, (_FIRST * self.rough)[pilots], None)
        guess, steepness = self._learned(pilots, others)
        self._solve(others, guess, steepness)

    def _learned(self, pilots: Tensor, others: Tensor) -> tuple[Tensor, float | None]:
        """First guesses of the others, and how steeply margins fall at the root, in units of margin(0) / root."""
        pilots = pilots[self.low[pilots] > 0]
        if len(pilots) < 4:
            return (_FIRST * self.rough)[others], None
        x, y = self.rough[pilots].log(), self.low[pilots].log()
        spread = x - x.mean()
        power = (spread @ y / (spread @ spread).clamp(min=1e-12)).clamp(0, 1)
        guess = (y.median() + power * (self.rough[others].log() - x.median())).exp()
        steepness = (self._slope * self.low / self.clean)[pilots].median()
        return guess, float(steepness) if 0 < steepness < torch.inf else None

    def _solve(self, index: Tensor, guess: Tensor, steepness: float | None) -> None:
        """Closes the brackets of some examples.

        Args:
            index: int64 [examples].
            guess: the first ε of each.
            steepness: of a typical margin at its root, or None.
        """
        at = self._as_held(guess)
        width = torch.full_like(at, torch.inf)
        for count in range(MOST):
            if len(index) == 0:
                return
            value = self._tried(index, at)
            closed = self._closed(index, at, value)
            root = self._predicted(index)
            if steepness is not None:
                typical = at * (1 + value / (steepness * self.clean[index])).clamp(0.5, 2)
                hasty = (value > 0) & torch.isinf(self._outer[index]) & ~((root > at) & (root <= _NEAR * at))
                root = torch.where(hasty, typical, root) if count else typical
            slow = torch.zeros_like(closed)
            if count % 3 == 2:  # three steps should have halved the bracket
                now = (self._outer - self._inner)[index]
                slow, width = now > width / 2, now
            at = self._safe(index, root, slow)
            index, at, width = index[~closed], at[~closed], width[~closed]

    def _tried(self, index: Tensor, at: Tensor) -> Tensor:
        """Evaluates, and moves the brackets; returns the values as the predictions use them."""
        value = torch.full_like(at, -torch.inf)
        final = self._final[index]
        for kind in (False, True):
            rows = torch.nonzero(final == kind).squeeze(1)
            if len(rows):
                value[rows] = self.evaluate(index[rows], at[rows], kind)
        self.evaluations[index] += 1
        proved = value > 0  # never for NaN
        self.low[index] = torch.where(proved & final, torch.maximum(self.low[index], at), self.low[index])
        self._inner[index] = torch.where(proved, torch.maximum(self._inner[index], at), self._inner[index])
        self._outer[index] = torch.where(proved, self._outer[index], torch.minimum(self._outer[index], at))
        # the final arithmetic refutes what the coarse one accepted
        self._inner[index] = torch.where(self._inner[index] < self._outer[index], self._inner[index], self.low[index])
        # far beyond the root the bound falls exponentially
        size = self.clean[index]
        value = torch.where(proved, value, -size * torch.log1p(-value / size))
        self._remember(index, at, value)
        return value

    def _remember(self, index: Tensor, at: Tensor, value: Tensor) -> None:
        """Enters the newest evaluations; one of the same ε again, in the final arithmetic, takes the other's place."""
        first, second, third = (point[:, index] for point in self._known)
        again = first[0] == at
        second, third = torch.where(again, second, first), torch.where(again, third, second)
        for point, new in zip(self._known, (torch.stack([at, value]), second, third), strict=True):
            point[:, index] = new
        slope = (second[1] - value) / (at - second[0])
        self._slope[index] = torch.where(torch.isfinite(slope) & (slope > 0), slope, self._slope[index])

    def _closed(self, index: Tensor, at: Tensor, value: Tensor) -> Tensor:
        """Whether the largest certified ε is near enough to the root, [index]."""
        low, outer = self.low[index], self._outer[index]
        near = (value > 0) & (at == low) & (value / self._slope[index] <= _REACH * self.tolerance * at)
        narrow = torch.isfinite(outer) & (outer - low <= _REACH * self.tolerance * outer)
        return near | narrow | (low >= LARGEST) | (outer < 1e-9 * self.rough[index])

    def _predicted(self, index: Tensor) -> Tensor:
        """Where the margin vanishes, by the last evaluations, [index]; NaN or far away where they say nothing."""
        known = [point[:, index] for point in self._known]
        low, high = self._inner[index], self._outer[index]
        low, high = torch.where(torch.isfinite(high), low, known[1][0]), torch.where(torch.isfinite(high), high, low)
        wide = high > _WIDE * low
        return torch.where(wide, self._bent(index, *known[0]), newton(known))

    def _bent(self, index: Tensor, eps: Tensor, value: Tensor) -> Tensor:
        """The root of the parabola with the clean margin and its slope at 0 that passes the last evaluation."""
        clean = self.clean[index]
        slope = clean / self.rough[index]
        bend = (clean - slope * eps - value) / eps**2
        return 2 * clean / (slope + (slope**2 + 4 * bend * clean).clamp(min=0).sqrt())

    def _safe(self, index: Tensor, root: Tensor, slow: Tensor) -> Tensor:
        """The ε to try next, [index]: a little below the predicted root where that is in the bracket, else a bisection.

        Where the prediction is trusted to the tolerance, the next evaluation is made in the final arithmetic.

        Args:
            index: int64 [examples].
            root: the predictions.
            slow: where the bracket should have closed faster.

        Returns:
            [examples].
        """
        low, high, last = self._inner[index], self._outer[index], self._known[0][0, index]
        aim = root * (1 - _AIM * self.tolerance)
        top = torch.where(torch.isfinite(high), high, torch.minimum(low * _GROWTH, torch.full_like(low, LARGEST)))
        middle = torch.where(low > 0, (low * top).sqrt(), top / 8)
        middle = torch.where(top < 2 * low, (low + top) / 2, middle)
        growing = ~torch.isfinite(high)
        inside = (aim > low) & (aim < top) & ~slow
        chosen = torch.where(inside, aim, torch.where(growing, top, middle))
        # the largest ε that was accepted is as near as is asked: it is confirmed, or the far end of the tolerance tried
        settled = (root >= low) & (aim <= low * (1 + self.tolerance / 8)) & (low > 0)
        confirmed = settled & (self.low[index] >= low)
        edge = torch.minimum(0.05 * (top - low), self.tolerance / 8 * top)
        chosen = torch.where(growing, chosen, torch.clamp(chosen, low + edge, top - edge))
        chosen = torch.where(settled, low, chosen)
        # what only the coarse arithmetic accepted bounds nothing: where the root is not above it, it is asked itself
        unconfirmed = self._final[index] & (self.low[index] < low)
        chosen = torch.where(unconfirmed & ~inside, low, chosen)
        chosen = torch.where(confirmed, torch.minimum(low * (1 + 0.8 * _REACH * self.tolerance), top), chosen)
        trusted = settled | (inside & (_CURVATURE * (chosen / last - 1) ** 2 <= self.tolerance))
        self._final[index] |= trusted | (top - low <= self.tolerance * top) | (chosen >= LARGEST)
        return self._as_held(torch.minimum(chosen, torch.full_like(chosen, LARGEST)))

    @staticmethod
    def _as_held(eps: Tensor) -> Tensor:
        """Rounded to float32, which regions of either type hold exactly."""
        return eps.clamp(max=LARGEST).float().double()


def newton(known: list[Tensor]) -> Tensor:
    """Where the margin vanishes by the last three evaluations (inverse quadratic), or else by the last two (secant).

    Args:
        known: ε and margin, [2, n], the newest first.

    Returns:
        [n]; NaN or far away where the evaluations say nothing.
    """
    (e2, f2), (e1, f1), (e0, f0) = known
    secant = e2 - f2 * (e2 - e1) / (f2 - f1)
    inverse = (
        e0 * f1 * f2 / ((f0 - f1) * (f0 - f2))
        + e1 * f0 * f2 / ((f1 - f0) * (f1 - f2))
        + e2 * f0 * f1 / ((f2 - f0) * (f2 - f1))
    )
    first, last = torch.minimum(e1, e2), torch.maximum(e1, e2)
    crossed = (f1 > 0) != (f2 > 0)
    usable = torch.isfinite(inverse) & (~crossed | ((inverse > first) & (inverse < last)))
    return torch.where(usable, inverse, secant)
