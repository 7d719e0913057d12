"""The self-test passes here, and it can fail: unsound methods, checkers and guards are planted and must be caught."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ironbound import guard as guard_module
from ironbound.bounding import METHODS, find_method
from ironbound.certificate.checker import Checker
from ironbound.selftest import checks, rational, running
from ironbound.selftest.networks import least_margins, mlp, points

FAST = ("interval", "dual", "crown", "alpha", "sdp")


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("check", list(checks.EACH))
def test_passes(name: str, check: str) -> None:
    findings = list(checks.EACH[check](name))
    assert findings and not any(findings)


def test_the_parts_pass() -> None:
    for whole in (checks.order, checks.guard, rational.checker):
        findings = list(whole())
        assert findings and not any(findings)


def test_all_methods_are_tried() -> None:
    assert set(METHODS) < set(checks.names())
    assert running.count() == len(checks.names()) * len(checks.EACH) + len(running.OF_ALL)


def raised(amount: float):
    """The method "dual" with margins that are too high."""
    sound = METHODS["dual"]

    def method(graph, region, budget, **options):
        state = sound(graph, region, budget, **options)

        def answer(rows, both):
            lower, upper = state.answer(rows, both)
            return lower + amount, upper

        return replace(state, answer=answer)

    return method


@pytest.mark.parametrize(
    ("check", "amount"), [("sampling and attacks", 1.0), ("enumeration", 0.5), ("planted counterexamples", 0.3)]
)
def test_an_unsound_method_is_caught(monkeypatch: pytest.MonkeyPatch, check: str, amount: float) -> None:
    monkeypatch.setitem(METHODS, "dual", raised(amount))
    assert any(checks.EACH[check]("dual"))


def test_a_method_that_ignores_nan_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(graph, region, budget, **options):
        state = find_method("interval")(graph, region, budget)  # type: ignore[misc]
        return replace(state, answer=lambda rows, both: (torch.ones(len(rows), dtype=torch.float64), None))

    monkeypatch.setitem(METHODS, "dual", blind)
    assert any(checks.EACH["NaN and infinity"]("dual"))


def test_a_wrong_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "crown", METHODS["alpha"])
    monkeypatch.setitem(METHODS, "alpha", METHODS["interval"])
    assert any(checks.order())


def test_a_lenient_checker_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Checker.margins
    monkeypatch.setattr(Checker, "margins", lambda self, one, *query: honest(self, one, *query) + 0.5)
    assert any(rational.checker())
    monkeypatch.setattr(Checker, "margins", lambda self, one, *query: honest(self, one, *query) - 0.01)
    assert any(rational.checker())


def test_a_guard_that_passes_everything_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def passes(self, network, points, method) -> tuple[Tensor, Tensor]:
        return torch.ones(len(points), dtype=torch.bool), torch.ones(len(points), dtype=torch.float64)

    monkeypatch.setattr(guard_module.Guard, "_proved", passes)
    assert any(checks.guard())


def test_a_crash_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph, region, budget, **options):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(METHODS, "dual", broken)
    result = running._result("dual", "enumeration", lambda: checks.enumeration("dual"))
    assert result.failures == ("RuntimeError: no such kernel",)


def test_enumeration_finds_what_sampling_finds() -> None:
    model, x = mlp(5, (2, 4, 3)), points(5, 1, 2)
    label = int(model(x).argmax())
    exact = least_margins(model, x[0], 0.3, label)
    grid = torch.linspace(-0.3, 0.3, 201, dtype=torch.float64)
    inside = x + torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        logits = model(inside)
    seen = (logits[:, [label]] - logits).amin(0).numpy()
    assert (exact <= seen + 1e-9).all()
    assert (seen - exact < 0.02).all()
