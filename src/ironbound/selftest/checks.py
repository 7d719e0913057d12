"""The checks of the self-test: each compares what Ironbound proves with what is true by another way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from ironbound.attacks import pgd
from ironbound.bounding import EXACT, METHODS, margins
from ironbound.errors import InputError, IronboundError
from ironbound.regions import ball
from ironbound.selftest.networks import Subject, least_margins, mlp, points, subjects

Finding = str | None
"""What is wrong, or None: one for each case."""

NEAR = 1e-6  # what linear programs and float64 may differ by
CLOSE = 1e-4  # above it a search has to decide
PLANTED = 1e-3  # how far a planted counterexample is on the other side
_ORDER = (("dual", "alpha"), ("crown", "alpha"), ("alpha", "lp"))
_DECIDES = (("lp", "milp"), ("lp", "split"))
_BY_SEARCH = ("milp", "split")


def names() -> tuple[str, ...]:
    """All methods."""
    return (*METHODS, *EXACT)


def _bounded(method: str, subject: Subject) -> Tensor | None:
    """Margins [n, classes], or None where the method is not for this network or region."""
    try:
        with torch.no_grad():
            return margins(subject.model, subject.region(), subject.labels(), method=method)
    except InputError:
        return None


def _differences(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    return logits.gather(1, labels[:, None]) - logits


@cache
def _attained(subject: Subject) -> Tensor:
    """The least margins seen at sampled and attacked points, [n, classes]."""
    region, labels = subject.region(), subject.labels()
    generator = torch.Generator().manual_seed(0)
    seen = _differences(subject.model, subject.x, labels)
    for _ in range(50):
        seen = torch.minimum(seen, _differences(subject.model, region.sample(generator), labels))
    attacked = pgd(subject.model, region, labels, steps=20, restarts=2, targeted=True).points.detach()
    inside = region.contains(attacked)
    reached = _differences(subject.model, attacked, labels)
    return torch.where(inside[:, None], torch.minimum(seen, reached), seen)


def attacks(method: str) -> Iterator[Finding]:
    """No sampled or attacked point of the region lies below a margin."""
    for subject in subjects():
        found = _bounded(method, subject)
        if found is None:
            continue
        excess = (found - _attained(subject)).nan_to_num(nan=0.0).max().item()
        yield f"{subject.name}: a point of the region lies {excess:.2g} below the bound" if excess > NEAR else None


@cache
def _enumerated() -> tuple[tuple[Subject, Tensor], ...]:
    found = []
    for seed, widths in ((10, (2, 4, 3)), (11, (3, 3, 3, 3))):
        model, x = mlp(seed, widths), points(seed, 3, widths[0])
        subject = Subject(f"{len(widths) - 1} layers", model, x)
        exact = [
            least_margins(model, point, subject.eps, label)
            for point, label in zip(x, subject.labels().tolist(), strict=True)
        ]
        found.append((subject, torch.stack([torch.from_numpy(row) for row in exact])))
    return tuple(found)


def enumeration(method: str) -> Iterator[Finding]:
    """No margin is above the exact optimum; searches prove all that is true."""
    for subject, exact in _enumerated():
        found = _bounded(method, subject)
        if found is None:
            continue
        excess = (found - exact).max().item()
        yield f"{subject.name}: {excess:.2g} above the optimum" if not excess <= NEAR else None
        if method in _BY_SEARCH:
            missed = int(((exact > CLOSE) & ~(found > 0)).sum())
            yield f"{subject.name}: {missed} margins that are positive are not proved" if missed else None


@contextmanager
def _changed(tensor: Tensor, value: Tensor) -> Generator[None, None, None]:
    """Another value in a parameter for a while; the module stays the same, so that it is not captured again."""
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(kept)


def planted(method: str) -> Iterator[Finding]:
    """A counterexample is planted just across the boundary: no method proves it away."""
    for subject, exact in _enumerated():
        labels, bias = subject.labels(), subject.model[-1].bias
        assert isinstance(bias, Tensor)
        for row, label in enumerate(labels.tolist()):
            own = torch.arange(exact.shape[1]) == label
            other = int(exact[row].masked_fill(own, torch.inf).argmin())
            shift = torch.zeros_like(exact[row]).index_fill(
                0, torch.tensor([other]), float(exact[row, other]) + PLANTED
            )
            with _changed(bias, bias.detach() + shift):
                try:
                    with torch.no_grad():
                        region = subject.region()[row : row + 1]
                        found = margins(subject.model, region, labels[row : row + 1], method=method)[0, other].item()
                except InputError:
                    continue
            yield f"{subject.name}: a planted counterexample is proved away ({found:.2g})" if found > 0 else None


@cache
def _victim() -> nn.Sequential:
    return mlp(20, (2, 3, 2))


def not_numbers(method: str) -> Iterator[Finding]:
    """NaN and infinity, in weights and in inputs, never end in a proof."""
    model, zero = _victim(), torch.zeros(1, 2, dtype=torch.float64)
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    for value in (torch.nan, torch.inf, -torch.inf):
        with _changed(weight, weight.detach().index_fill(1, torch.tensor([0]), value)):
            yield _proves(method, model, zero, f"a weight of {value}")
        yield _proves(method, model, zero.index_fill(1, torch.tensor([0]), value), f"an input of {value}")
    with _changed(weight, weight.detach() * 1e307):
        yield _proves(method, model, zero + 1e3, "an overflow")


def _proves(method: str, model: nn.Module, x: Tensor, what: str) -> Finding:
    try:
        with torch.no_grad():
            label = torch.zeros(1, dtype=torch.int64)
            found = margins(model, ball("linf", x, 0.1), label, method=method)[0, 1].item()
    except (IronboundError, ArithmeticError):
        return None
    return f"{what} ends in a proof ({found:.2g})" if found > 0 else None


def order() -> Iterator[Finding]:
    """Every method is at least as tight as what it is built on; searches prove what that proves."""
    for subject in subjects():
        if subject.norm != "linf":
            continue
        found = {name: _bounded(name, subject) for name in {name for pair in _ORDER + _DECIDES for name in pair}}
        for looser, tighter in _ORDER:
            low, high = found[looser], found[tighter]
            if low is None or high is None:
                continue
            excess = (low - high).max().item()
            yield f"{subject.name}: {looser} is {excess:.2g} above {tighter}" if not excess <= NEAR else None
        for weaker, decides in _DECIDES:
            low, high = found[weaker], found[decides]
            if low is None or high is None:
                continue
            lost = int(((low > NEAR) & ~(high > 0)).sum())
            yield f"{subject.name}: {decides} does not prove {lost} margins that {weaker} proves" if lost else None


def guard() -> Iterator[Finding]:
    """An attacked input whose answer is another one is flagged."""
    from ironbound.guard import Guard

    for subject in subjects()[1:4]:
        region, labels = subject.region(), subject.labels()
        attacked = pgd(subject.model, region, labels, steps=20, targeted=True).points.detach()
        said = Guard(subject.model, subject.eps * (1 + 1e-5), subject.norm)(attacked)
        missed = int((said.safe & (said.predictions != labels)).sum())
        yield f"{subject.name}: {missed} adversarial inputs are passed" if missed else None


EACH: dict[str, Callable[[str], Iterator[Finding]]] = {
    "sampling and attacks": attacks,
    "enumeration": enumeration,
    "planted counterexamples": planted,
    "NaN and infinity": not_numbers,
}
"""Checks of one method."""
