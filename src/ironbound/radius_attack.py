"""The smallest distance at which PGD changes an answer: an upper bound of the true radius, beside the certified one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ironbound.attacks import pgd
from ironbound.cascade_types import AttackOptions
from ironbound.radius_search import LARGEST
from ironbound.regions import Region, ball

_SHRINKS = 3  # attacks between the largest radius that withstood and the smallest that did not
_MOST = 24  # attacks per example
_HALVINGS = 8  # of the line to an adversarial point: 0.4 % of its length
_CLOSE = 0.02  # a gap between the two radii that is not worth another attack
_NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}

Logits = Callable[[Tensor], Tensor]


def nearest_adversarial(
    model: Logits, region: Region, labels: Tensor, certified: Tensor, start: Tensor, options: AttackOptions
) -> tuple[Tensor, Tensor]:
    """Attacks within growing, then shrinking balls, and moves what succeeds towards the example.

    Args:
        model: the network.
        region: the examples, which it gets right; of any radius.
        labels: int64 [n].
        certified: what need not be attacked, float64 [n].
        start: the first radius to try, float64 [n].
        options: PGD's.

    Returns:
        Distances, float64 [n], infinite where no attack succeeds, and the points [n, *shape], each run alone at last;
        the example itself where there is none.
    """
    x, norm = region.center, region.norm
    found = [x.clone(), x.clone()]  # the nearest point of each example, and the one of PGD that led there
    distance, withstood = torch.full_like(certified, torch.inf), certified.clone()
    eps = torch.maximum(start, 1.1 * certified).clamp(max=LARGEST)
    shrinks = torch.zeros_like(labels)
    todo = torch.arange(len(labels), device=labels.device)
    for count in range(_MOST):
        if len(todo) == 0:
            break
        part = ball(norm, x[todo], eps[todo].to(x.dtype), region.clip)
        seed = options.seed + count
        attack = pgd(model, part, labels[todo], options.steps, None, options.restarts, options.targeted, seed=seed)
        hit = attack.success & part.contains(attack.points)
        near = _nearer(model, region[todo], labels[todo], attack.points)
        far = torch.where(hit, _distance(near, x[todo], norm), torch.inf)
        better = far < distance[todo]
        won, failed = todo[better], todo[~better]
        found[0][won], found[1][won], distance[won] = near[better], attack.points[better], far[better]
        withstood[failed] = torch.maximum(withstood[failed], eps[failed])
        known = torch.isfinite(distance[todo])
        shrinks[todo[known]] += 1
        eps[todo] = torch.where(known, (withstood[todo] + distance[todo]) / 2, (2 * eps[todo]).clamp(max=LARGEST))
        close = known & (distance[todo] - withstood[todo] <= _CLOSE * distance[todo])
        todo = todo[~(close | (shrinks[todo] > _SHRINKS) | (withstood[todo] >= LARGEST))]
    return _run_alone(model, region, labels, distance, found)


def _nearer(model: Logits, region: Region, labels: Tensor, points: Tensor) -> Tensor:
    """Moves points towards their examples as long as the answer stays wrong, [n, *shape]."""
    x = region.center
    shape = (-1, *(1,) * (x.dim() - 1))
    near, far = x.new_ones(len(x)), x.new_zeros(len(x))
    best = points
    for _ in range(_HALVINGS):
        share = (near + far) / 2
        there = x + share.reshape(shape) * (points - x)
        if region.clip is not None:
            there = there.clamp(*region.clip)
        wrong = model(there).argmax(1) != labels
        near, far = torch.where(wrong, share, near), torch.where(wrong, far, share)
        best = torch.where(wrong.reshape(shape), there, best)
    return best


def _run_alone(
    model: Logits, region: Region, labels: Tensor, distance: Tensor, found: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """What counts: each point run on a batch of its own, since a batch's arithmetic may differ in the last digits."""
    points = region.center.clone()
    distance = distance.clone()
    for row in torch.nonzero(torch.isfinite(distance)).squeeze(1).tolist():
        one = slice(row, row + 1)
        distance[row] = torch.inf
        for candidate in found:
            if bool((model(candidate[one]).argmax(1) != labels[one]).all()):
                points[one] = candidate[one]
                distance[one] = _distance(candidate[one], region.center[one], region.norm)
                break
    return distance, points


def _distance(points: Tensor, x: Tensor, norm: str) -> Tensor:
    return torch.linalg.vector_norm((points.double() - x.double()).flatten(1), _NORMS[norm], dim=1)
