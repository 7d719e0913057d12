"""`radius`: the largest ε that is certified for each example, and the smallest at which an attack succeeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ironbound.attacks import pgd
from ironbound.attacks.logits import check_labels as check_integers
from ironbound.attacks.logits import chunk_size, logits_at, margins_at, step_up
from ironbound.bounding.api import check_labels, margins, prepared
from ironbound.cascade import COARSE, FINE, AttackOptions, Network
from ironbound.errors import InputError, SoundnessError
from ironbound.graph import Graph
from ironbound.regions import Region, ball

LARGEST = 1e6  # regions refuse larger radii
_MOST = 60  # evaluations per example
_FIRST, _GROWTH = 0.12, 1.5  # share of the first-order radius to begin with; most that ε grows while it is certified
_WIDE = 1.25  # ends of a bracket that are so far apart do not show how the margin falls between them
_SHRINKS = 4  # attacks between the largest radius that withstood and the smallest that did not
_GOALS = 12  # steps of bisection on the line to an adversarial point
_NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
_DUALS = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


@dataclass(frozen=True, eq=False)
class Radius:
    """How far each example is certified, and how far an attack has to go; ε is in the units of the data.

    Attributes:
        certified: a proof: no input within this distance changes the answer; 0 for misclassified examples, float64 [n].
        attacked: the distance of a point that changes the answer as the network was run on it; 0 for misclassified
            examples, infinite where no attack found one, float64 [n]. The true radius lies between the two.
        adversarial: those points, [n, *shape]; the example itself where there is none.
        evaluations: of the margins, for each example, int64 [n].
        labels: int64 [n].
        predictions: int64 [n].
        arithmetic: "float64" or "float32": in which the final evaluation at `certified` was made.
    """

    certified: Tensor
    attacked: Tensor
    adversarial: Tensor
    evaluations: Tensor
    labels: Tensor
    predictions: Tensor
    arithmetic: str

    def __len__(self) -> int:
        return len(self.certified)


@torch.no_grad()
def radius(
    model: nn.Module | Graph,
    x: Tensor,
    norm: str = "linf",
    method: str = "dual",
    labels: Tensor | None = None,
    *,
    clip: Sequence[float] | None = None,
    attack: AttackOptions | None = AttackOptions(steps=20),  # noqa: B008
    tolerance: float = 1e-4,
    memory: int | None = None,
) -> Radius:
    """The largest certified ε of each example, by a safeguarded Newton method on its worst margin.

    The derivative is the divided difference of the last two evaluations: an evaluation with gradients costs three
    without. The bracket between the largest certified and the smallest uncertified ε bounds every step, and is closed
    to the tolerance. At last the margins at exactly the ε that is returned are computed in float64.

    Source: Wong & Kolter (2018), ICML, equation (17) and appendix B.2.

    Args:
        model: a classifier in evaluation mode, or its graph.
        x: [n, *shape], float32 or float64.
        norm: "linf", "l2" or "l1".
        method: one of `ironbound.bounding.METHODS`.
        labels: int64 [n]; None takes each prediction.
        clip: (low, high) that every input element is limited to, or None.
        attack: PGD's options, or None for no attack.
        tolerance: relative; between the certified ε and one at which the method fails.
        memory: bytes that a method may take, see `ironbound.margins`.

    Returns:
        The radii.

    Raises:
        InputError: an argument does not fit.
        LabelError: labels do not fit.
        CaptureError: the network cannot be captured.
        SoundnessError: a certificate and a run of the network contradict each other.
    """
    if not 1e-7 <= tolerance < 1:
        raise InputError(f"tolerance must lie between 1e-7 and 1, got {tolerance}")
    region = ball(norm, x, 0.0, clip)
    graph = prepared(model, region, method)
    network = Network(model, x[:1])
    runnable = model if isinstance(model, nn.Module) else graph
    first = logits_at(runnable, x, torch.zeros(len(x), dtype=torch.int64, device=x.device), chunk_size(region))
    predictions = first.argmax(1)
    given = predictions if labels is None else check_labels(check_integers(region, labels), len(x), graph)
    search = _Search(network, graph, region, given, method, memory, tolerance)
    correct = predictions == given
    search.run(correct, first)
    certified = search.verified()
    attacked = torch.where(correct, torch.inf, 0.0).double()
    points = x.clone()
    if attack is not None:
        attacked, points = _attacked(runnable, search, certified, attacked, attack)
    bad = torch.nonzero(certified > attacked * (1 + 1e-6))
    if len(bad):
        example = int(bad[0])
        raise SoundnessError(
            f"example {example} is certified up to {certified[example]:g}, but the network changes its answer at a "
            f"distance of {attacked[example]:g}; nothing of this run is certified: please report it."
        )
    used = "float32" if search.double is None and x.dtype == torch.float32 else "float64"
    return Radius(certified, attacked, points, search.evaluations, given, predictions, used)


class _Search:
    """The bracket of each example's certified radius.

    Args:
        network: the classifier and its float64 copy.
        graph: its graph.
        region: the examples, of radius 0.
        labels: int64 [n].
        method: of the bounds.
        memory: of the bounds.
        tolerance: relative width of a closed bracket.
    """

    def __init__(
        self,
        network: Network,
        graph: Graph,
        region: Region,
        labels: Tensor,
        method: str,
        memory: int | None,
        tolerance: float,
    ) -> None:
        self.graph, self.region, self.labels = graph, region, labels
        self.method, self.memory, self.tolerance = method, memory, tolerance
        self.double = network.double if region.dtype == torch.float32 else None
        n, device = len(labels), labels.device
        self.low = torch.zeros(n, dtype=torch.float64, device=device)
        self.high = torch.full_like(self.low, torch.inf)
        self.start = torch.zeros_like(self.low)
        self.evaluations = torch.zeros(n, dtype=torch.int64, device=device)
        self.scale = torch.ones_like(self.low)

    def margin(self, index: Tensor, eps: Tensor, graph: Graph | None = None) -> Tensor:
        """The least margin of some examples at radii of their own, float64; NaN counts as not proved."""
        x = self.region.center[index]
        double = graph is not None
        x = x.double() if double else x
        region = ball(self.region.norm, x, eps.to(x.dtype), self.region.clip)
        found = margins(graph or self.graph, region, self.labels[index], self.method, memory=self.memory).double()
        self.evaluations[index] += 1
        worst = found.scatter(1, self.labels[index].unsqueeze(1), torch.inf).amin(1)
        return torch.where(torch.isfinite(found).all(1), worst, -torch.inf)  # NaN and overflow prove nothing

    def guard(self) -> Tensor:
        """What a margin must exceed, [n]: rounding, as for `certify`; the float32 search is checked in float64."""
        coarse = self.double is None and self.region.dtype == torch.float32
        return (COARSE if coarse else FINE) * self.scale

    def run(self, correct: Tensor, logits: Tensor) -> None:
        """Closes the brackets of the correctly classified examples.

        Args:
            correct: bool [n].
            logits: at the examples, [n, classes].
        """
        clean = margins_at(logits, self.labels).double()
        self.scale = 1 + logits.abs().amax(1).double()
        self.start = self._first_order(clean)
        guard = self.guard()
        index = torch.nonzero(correct & (clean > guard)).squeeze(1)
        size = clean.clamp(min=torch.finfo(torch.float64).tiny)
        zero = torch.stack([torch.zeros_like(clean), clean - guard])  # an ε, and what its margin has above the guard
        known = [zero, zero, zero]  # the last three
        width = torch.full_like(clean, torch.inf)
        eps = self._rounded(_FIRST * self.start)  # low: the more is open, the more a bound costs
        for count in range(_MOST):
            if len(index) == 0:
                break
            at = eps[index]
            value = self.margin(index, at) - guard[index]
            proved = value > 0  # never for NaN
            self.low[index] = torch.where(proved, torch.maximum(self.low[index], at), self.low[index])
            self.high[index] = torch.where(proved, self.high[index], torch.minimum(self.high[index], at))
            # far beyond the root the bound falls exponentially
            value = torch.where(proved, value, -size[index] * torch.log1p(-value / size[index]))
            newest = zero.clone()
            newest[:, index] = torch.stack([at, value])
            known = [newest, *known[:2]]
            slow = torch.zeros_like(proved)
            if count % 3 == 2:  # three steps should have halved the bracket
                slow = (self.high - self.low)[index] > width[index] / 2
                width[index] = (self.high - self.low)[index]
            wide = self.high[index] > _WIDE * self.low[index]
            bent = self._bent(index, newest[0, index], newest[1, index], size[index])
            guess = torch.where(wide, bent, _newton([point[:, index] for point in known]))
            eps[index] = self._safe(index, guess, proved, slow)
            index = index[~self._closed(index)]

    def verified(self) -> Tensor:
        """The radii, each with a final evaluation at exactly this ε; what fails is lowered and tried again."""
        eps = self.low.clone()
        graph = None if self.double is None else self.double.graph
        guard = self.guard()
        index = torch.nonzero(eps > 0).squeeze(1)
        share = self.tolerance / 4
        for _ in range(20):
            if len(index) == 0:
                return eps
            found = self.margin(index, eps[index], graph)
            index = index[~(found > guard[index])]
            eps[index] = self._rounded(eps[index] * max(0.0, 1 - share))
            share *= 2
        eps[index] = 0.0
        return eps

    def _first_order(self, clean: Tensor) -> Tensor:
        """Where the margin would vanish if it were linear, [n]: the first guess."""
        x, norm = self.region.center, self.region.norm
        steep = []
        size = chunk_size(self.region)
        for start in range(0, len(x), size):
            part, own = x[start : start + size], self.labels[start : start + size]

            def rise(logits: Tensor, own: Tensor = own) -> Tensor:
                return -margins_at(logits, own)

            _, gradient = step_up(self.graph, part, own, rise)
            steep.append(torch.linalg.vector_norm(gradient.flatten(1).double(), _DUALS[norm], dim=1))
        guess = clean.clamp(min=0) / torch.cat(steep)
        spread = 1 + x.abs().max().double()
        return torch.where(torch.isfinite(guess) & (guess > 0), guess, spread).clamp(1e-9, LARGEST)

    def _bent(self, index: Tensor, eps: Tensor, value: Tensor, clean: Tensor) -> Tensor:
        """The root of the parabola with the clean margin and its slope at 0 that passes the first evaluation."""
        slope = clean / self.start[index]
        bend = (clean - slope * eps - value) / eps**2
        return 2 * clean / (slope + (slope**2 + 4 * bend * clean).clamp(min=0).sqrt())

    def _safe(self, index: Tensor, guess: Tensor, proved: Tensor, slow: Tensor) -> Tensor:
        """The ε to try next, [index]: the guess where it lies in the bracket, else a bisection."""
        low, high = self.low[index], self.high[index]
        # a little to the other side of the root, so that the bracket closes
        newton = guess * (1 + torch.where(proved, self.tolerance / 4, -self.tolerance / 4))
        top = torch.where(torch.isfinite(high), high, torch.minimum(low * _GROWTH, torch.full_like(low, LARGEST)))
        middle = torch.where(low > 0, (low * top).sqrt(), top / 8)
        middle = torch.where(top < 2 * low, (low + top) / 2, middle)
        growing = ~torch.isfinite(high)
        inside = (newton > low) & (newton < top) & ~slow
        chosen = torch.where(inside, newton, torch.where(growing, top, middle))
        margin = torch.minimum(0.05 * (top - low), self.tolerance / 8 * top)
        chosen = torch.where(growing, chosen.clamp(min=1.02 * low), torch.clamp(chosen, low + margin, top - margin))
        return self._rounded(torch.minimum(chosen, torch.full_like(chosen, LARGEST)))

    def _closed(self, index: Tensor) -> Tensor:
        low, high = self.low[index], self.high[index]
        narrow = torch.isfinite(high) & (high - low <= 0.75 * self.tolerance * high)
        return narrow | (low >= LARGEST) | (high < 1e-9 * self.start[index])

    def _rounded(self, eps: Tensor) -> Tensor:
        """As the region will hold it."""
        return eps.to(self.region.dtype).double()


def _newton(known: list[Tensor]) -> Tensor:
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


def _attacked(
    model: nn.Module | Graph, search: _Search, certified: Tensor, attacked: Tensor, options: AttackOptions
) -> tuple[Tensor, Tensor]:
    """The smallest distances at which PGD changes the answer, and the points; 0 in `attacked`: nothing to do."""
    x, norm, labels = search.region.center, search.region.norm, search.labels
    points = x.clone()
    withstood = certified.clone()
    eps = torch.maximum(search.start, 1.1 * certified).clamp(max=LARGEST)
    todo = torch.nonzero(attacked > 0).squeeze(1)
    shrinks = torch.zeros_like(labels)
    for count in range(20 + _SHRINKS):
        if len(todo) == 0:
            break
        region = ball(norm, x[todo], search._rounded(eps[todo]), search.region.clip)
        given = replace(options, seed=options.seed + count)
        found = pgd(model, region, labels[todo], given.steps, None, given.restarts, given.targeted, None, given.seed)
        hit = found.success & region.contains(found.points)
        best, distance = _nearest(model, search.region, todo, found.points, hit)
        better = distance < attacked[todo]
        points[todo[better]], attacked[todo[better]] = best[better], distance[better]
        failed = todo[~better]
        withstood[failed] = torch.maximum(withstood[failed], eps[failed])
        known = torch.isfinite(attacked[todo])
        shrinks[todo[known]] += 1
        eps[todo] = torch.where(known, (withstood[todo] + attacked[todo]) / 2, (2 * eps[todo]).clamp(max=LARGEST))
        close = known & (attacked[todo] - withstood[todo] <= 0.01 * attacked[todo])
        todo = todo[~(close | (shrinks[todo] > _SHRINKS) | (withstood[todo] >= LARGEST))]
    return attacked, points


def _nearest(
    model: nn.Module | Graph, region: Region, index: Tensor, points: Tensor, hit: Tensor
) -> tuple[Tensor, Tensor]:
    """Moves adversarial points towards their examples while the answer stays wrong; each is run alone at last.

    Args:
        model: the network.
        region: the examples.
        index: of the points' examples, int64 [points].
        points: [points, *shape].
        hit: which of them are adversarial.

    Returns:
        The points, and their distances, infinite where the answer is right.
    """
    x = region.center[index]
    shape = (-1, *(1,) * (x.dim() - 1))
    labels = _labels_of(model, x)
    near = torch.ones(len(x), dtype=torch.float64, device=x.device)
    far = torch.zeros_like(near)
    best = points.clone()
    for _ in range(_GOALS):
        share = (near + far) / 2
        there = x + share.to(x.dtype).reshape(shape) * (points - x)
        wrong = _labels_of(model, there) != labels
        near, far = torch.where(wrong, share, near), torch.where(wrong, far, share)
        best = torch.where(wrong.reshape(shape), there, best)
    if region.clip is not None:
        best = best.clamp(*region.clip)
    distance = torch.linalg.vector_norm((best.double() - x.double()).flatten(1), _NORMS[region.norm], dim=1)
    for row in torch.nonzero(hit).squeeze(1).tolist():
        for candidate in (best, points):
            if bool(_labels_of(model, candidate[row : row + 1]) != labels[row]):
                best[row] = candidate[row]
                break
        else:
            hit = hit.index_fill(0, torch.tensor([row], device=hit.device), False)
        distance[row] = torch.linalg.vector_norm((best[row].double() - x[row].double()).flatten(), _NORMS[region.norm])
    return best, torch.where(hit, distance, torch.inf)


def _labels_of(model: nn.Module | Graph, points: Tensor) -> Tensor:
    return model(points).argmax(1)
