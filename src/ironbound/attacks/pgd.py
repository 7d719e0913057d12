"""Projected gradient descent, untargeted or towards every class, with restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ironbound.attacks.logits import (
    Network,
    assess,
    check_labels,
    chunk_size,
    logits_at,
    margins_at,
    others,
    step_up,
    targeted,
    untargeted,
)
from ironbound.attacks.result import Attack
from ironbound.errors import InputError
from ironbound.regions import Region

Progress = Callable[[int, int], None]
"""Called with the number of runs done and the number of all runs; broken examples skip the rest of theirs."""


@dataclass(frozen=True)
class _Runs:
    """One run of the attack per row: which example, towards which class (-1: away from the label), from where."""

    examples: Tensor
    goals: Tensor
    random: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Tensor | slice) -> _Runs:
        return _Runs(self.examples[index], self.goals[index], self.random[index])


@dataclass(frozen=True)
class _Problem:
    """What stays the same over all runs."""

    model: Network
    region: Region
    labels: Tensor
    allowed: Tensor | None
    steps: int
    step_size: float

    def loss(self, runs: _Runs) -> Callable[[Tensor], Tensor]:
        labels = self.labels[runs.examples]
        if len(runs) and runs.goals[0] >= 0:
            return targeted(labels, runs.goals)
        return untargeted(labels, None if self.allowed is None else self.allowed[runs.examples])


def pgd(
    model: Network,
    region: Region,
    labels: Tensor,
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    targeted: bool = False,
    targets: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Attack:
    """Repeated steps in the direction in which the loss rises fastest, each projected back into the region.

    The loss is cross-entropy, or with `targeted` the margin of one class over the label, in one run per class,
    likeliest classes first. The first run starts at the center (so that it depends on no seed), later ones at random
    points. The runs of an example end as soon as one finds an error; the center itself counts.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks" (2018), section 2.1; Wong
    and Kolter, "Provable defenses against adversarial examples via the convex outer adversarial polytope" (2018),
    section 4.

    Args:
        model: the network, any callable from [batch, *shape] to [batch, classes]; its mode and gradients do not change.
        region: what the attacker may do.
        labels: integers [batch].
        steps: number of steps of each run.
        step_size: length of a step as a fraction of the radius; None: 2.5 / steps.
        restarts: number of runs per example (and class).
        targeted: one run for each class other than the label.
        targets: classes to aim at, bool [batch, classes]; None: all. An error towards any class is a success.
        seed: of the random starts; the global generators are not touched.
        progress: called after every chunk of runs.

    Returns:
        The worst candidate found for each example.

    Raises:
        LabelError: labels are not integers, not one per example or not classes of the network.
        InputError: another argument does not fit, or the network's output is not [batch, classes], is NaN or does not
            depend differentiably on the input.
    """
    labels = check_labels(region, labels)
    size = chunk_size(region)
    logits = logits_at(model, region.center, labels, size)
    allowed = _check(logits, steps, step_size, restarts, targets)
    problem = _Problem(model, region, labels, allowed, steps, 2.5 / steps if step_size is None else step_size)
    points, margins = region.center.clone(), margins_at(logits, labels)
    runs = _plan(logits, labels, allowed, targeted, restarts)
    generator = torch.Generator(labels.device).manual_seed(seed)
    total = len(runs)
    while len(runs := runs[margins[runs.examples] > 0]):
        chunk, runs = runs[:size], runs[size:]
        worst, found = _climb(problem, chunk, generator)
        _keep_worst(chunk.examples, worst, found, margins, points)
        if progress is not None:
            progress(total - len(runs), total)
    return assess(model, region, points, labels)


def _check(logits: Tensor, steps: int, step_size: float | None, restarts: int, targets: Tensor | None) -> Tensor | None:
    """Refuses what does not fit; returns the targets on the right device."""
    if steps < 1 or restarts < 1:
        raise InputError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    if step_size is not None and not 0 < step_size < float("inf"):
        raise InputError(f"step_size must be a positive fraction of the radius, got {step_size}")
    if targets is None:
        return None
    if targets.dtype != torch.bool or targets.shape != logits.shape:
        raise InputError(f"targets must be bool {tuple(logits.shape)}, got {targets.dtype} {tuple(targets.shape)}")
    return targets.to(logits.device)


def _plan(logits: Tensor, labels: Tensor, allowed: Tensor | None, targeted: bool, restarts: int) -> _Runs:
    """All runs: by restart, then by rank of the class, then by example, so that what breaks easily breaks early."""
    rivals = others(torch.zeros_like(logits), labels) == 0
    if allowed is not None:
        rivals &= allowed
    if targeted:
        ranked = torch.where(rivals, logits, float("-inf")).argsort(dim=1, descending=True, stable=True)
        ranks, examples = rivals.gather(1, ranked).T.nonzero(as_tuple=True)
        goals = ranked[examples, ranks]
    else:
        (examples,) = rivals.any(1).nonzero(as_tuple=True)
        goals = torch.full_like(examples, -1)
    random = torch.arange(restarts, device=labels.device).repeat_interleave(len(examples)) > 0
    return _Runs(examples.repeat(restarts), goals.repeat(restarts), random)


def _climb(problem: _Problem, runs: _Runs, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Smallest margin [runs] and its point [runs, *shape] of each run of a chunk; stops the runs of broken examples."""
    region = problem.region[runs.examples]
    starts = runs.random.reshape(-1, *(1,) * len(region.shape))
    points = torch.where(starts, region.sample(generator), region.center) if runs.random.any() else region.center
    worst = torch.full((len(runs),), float("inf"), dtype=points.dtype, device=points.device)
    found = points.clone()
    rows = torch.arange(len(runs), device=points.device)
    for step in range(problem.steps + 1):
        labels = problem.labels[runs.examples]
        if step == problem.steps:
            margins, gradient = margins_at(logits_at(problem.model, points, labels, len(points)), labels), None
        else:
            margins, gradient = step_up(problem.model, points, labels, problem.loss(runs))
        worse = margins < worst[rows]
        worst[rows[worse]], found[rows[worse]] = margins[worse].to(worst.dtype), points[worse]
        if gradient is None:
            break
        keep = ~torch.isin(runs.examples, runs.examples[margins <= 0])
        if not keep.all():
            if not keep.any():
                break
            runs, rows, region, points, gradient = runs[keep], rows[keep], region[keep], points[keep], gradient[keep]
        points = region.project(points + region.ascent(_inward(region, points, gradient), problem.step_size))
    return worst, found


def _inward(region: Region, points: Tensor, gradient: Tensor) -> Tensor:
    """The gradient without the elements that the clipping range stops: an l1 or l2 step spent on them is lost."""
    if region.clip is None or region.norm == "linf":
        return gradient
    low, high = region.clip
    return gradient.masked_fill(((points <= low) & (gradient < 0)) | ((points >= high) & (gradient > 0)), 0)


def _keep_worst(examples: Tensor, worst: Tensor, found: Tensor, margins: Tensor, points: Tensor) -> None:
    """Enters the runs of a chunk into the results; where several runs belong to one example, the worst of them."""
    order = worst.argsort(stable=True)
    order = order[examples[order].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = examples[order][1:] != examples[order][:-1]
    order = order[first]
    order = order[worst[order] < margins[examples[order]]]
    margins[examples[order]], points[examples[order]] = worst[order].to(margins.dtype), found[order]
