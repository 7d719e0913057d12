"""Certified radii: closed forms, bisection, attacks beside them, and independence of the batch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import ironbound.certified_radius as module
from bounding.rational import rational
from cases import CASES
from ironbound.bounding import margins
from ironbound.bounding.rounding import Ledger
from ironbound.capture import capture
from ironbound.cascade_types import AttackOptions
from ironbound.certified_radius import radius
from ironbound.errors import (
    InputError,
    LabelError,
    SoundnessError,
    StoreError,
    StoreMismatchError,
    UnsupportedOperatorError,
)
from ironbound.network import Network
from ironbound.radius_search import MOST, Search
from ironbound.regions import ball
from laws.exact import exact_minimum
from laws.writeup import ball as writeup_ball
from laws.writeup import dense_layers, interval_bounds

DUALS = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
PRIMALS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


def _network(name: str = "convolutional", dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    case = next(case for case in CASES if case.name == name)
    return case.model(dtype=dtype), case.inputs(12, dtype=dtype)


def _bisected(model: nn.Module, x: Tensor, labels: Tensor, norm: str, method: str) -> Tensor:
    """The border of the certificate in float64, by halving alone."""
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), 4.0, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(30):
            eps = (low + high) / 2
            found = margins(model, ball(norm, x, eps), labels, method).scatter(1, labels.unsqueeze(1), torch.inf)
            proved = found.amin(1) > 0
            low, high = torch.where(proved, eps, low), torch.where(proved, high, eps)
    return low


@pytest.mark.parametrize("norm", DUALS)
def test_linear_models_have_a_closed_form(norm: str) -> None:
    model = nn.Linear(6, 4).double().eval()
    x = torch.randn(9, 6, dtype=torch.float64)
    labels = torch.arange(9) % 4
    with torch.no_grad():
        logits = model(x)
        own = model.weight[labels].unsqueeze(1) - model.weight
        size = torch.linalg.vector_norm(own, DUALS[norm], dim=2)
        ratio = (logits.gather(1, labels.unsqueeze(1)) - logits) / size
        expected = ratio.scatter(1, labels.unsqueeze(1), torch.inf).amin(1).clamp(min=0)
    for method in ("dual", "interval"):
        found = radius(model, x, norm, method, labels, attack=AttackOptions(steps=20, targeted=True))
        torch.testing.assert_close(found.certified, expected, rtol=1e-4, atol=1e-12)
        assert bool((found.certified <= expected * (1 + 1e-9)).all())
        # towards each class, the ball's own ascent has the exact direction (for l1 nearly)
        assert bool((found.attacked >= expected * (1 - 1e-9)).all())
        assert bool((found.attacked <= expected * (1.3 if norm == "l1" else 1.02) + 1e-9).all())
    assert 0 < int((expected == 0).sum()) < 9


@pytest.mark.parametrize("norm", DUALS)
@pytest.mark.parametrize("method", ["dual", "crown"])
def test_the_border_is_that_of_bisection(norm: str, method: str) -> None:
    for dtype in (torch.float32, torch.float64):
        model, x = _network(dtype=dtype)
        found = radius(model, x, norm, method)
        expected = _bisected(model.double(), x.double(), found.labels, norm, method)
        torch.testing.assert_close(found.certified, expected, rtol=1e-4, atol=0)
        assert set(found.arithmetic.tolist()) == {"real arithmetic"}
        assert bool((found.certified > 0).all())
        assert int(found.evaluations.max()) <= 22 and found.evaluations.double().mean() <= 11


@pytest.mark.parametrize("norm", DUALS)
def test_certificate_holds_at_the_radius_and_the_attack_beyond_it(norm: str) -> None:
    model, x = _network("mlp")
    labels = model(x).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    found = radius(model, x, norm, "dual", labels, clip=(-5.0, 5.0))
    assert found.certified[0] == found.attacked[0] == 0
    assert torch.equal(found.adversarial[0], x[0])
    assert bool((found.certified <= found.attacked).all())
    wide = ball(norm, x.double(), found.certified, (-5.0, 5.0))
    with torch.no_grad():
        proved = margins(model.double(), wide, labels).scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
        assert bool((proved[1:] > 0).all())
        changed = torch.isfinite(found.attacked)
        changed[0] = False
        assert int(changed.sum()) >= 8
        points = found.adversarial[changed]
        assert bool((model.float()(points).argmax(1) != labels[changed]).all())
        far = torch.linalg.vector_norm((points.double() - x[changed].double()), PRIMALS[norm], dim=1)
        torch.testing.assert_close(far, found.attacked[changed], rtol=1e-9, atol=0)
        assert bool((points.abs() <= 5).all())


def test_the_batch_does_not_matter() -> None:
    model, x = _network(dtype=torch.float64)
    whole = radius(model, x, attack=None)
    order = torch.randperm(12)
    torch.testing.assert_close(
        radius(model, x[order], attack=None).certified, whole.certified[order], rtol=1e-5, atol=0
    )
    alone = torch.cat([radius(model, x[i : i + 1], attack=None).certified for i in range(4)])
    torch.testing.assert_close(alone, whole.certified[:4], rtol=1e-5, atol=0)
    assert bool(torch.isinf(whole.attacked).all())


def test_between_the_certificate_and_the_attack_lies_the_exact_radius() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    found = radius(model, x, attack=AttackOptions(steps=30, targeted=True, restarts=2))
    layers = dense_layers(model, (3,))
    assert bool((found.certified > 0).all()) and bool(torch.isfinite(found.attacked).all())
    for at in range(len(x)):
        own = int(found.labels[at])
        for eps, kept in ((float(found.certified[at]), True), (float(found.attacked[at]) * (1 + 1e-9), False)):
            region = writeup_ball("linf", x[at], torch.full((3,), eps, dtype=torch.float64), None)
            outer = interval_bounds(layers, region)
            least = [
                exact_minimum(layers, region, outer, torch.eye(3, dtype=torch.float64)[own] - other)
                for k, other in enumerate(torch.eye(3, dtype=torch.float64))
                if k != own
            ]
            assert (min(least) > 0) == kept


def test_many_examples_learn_from_a_few() -> None:
    case = next(case for case in CASES if case.name == "convolutional")
    model, x = case.model(dtype=torch.float64), case.inputs(80, dtype=torch.float64)
    found = radius(model, x, attack=None)
    expected = _bisected(model, x, found.labels, "linf", "dual")
    torch.testing.assert_close(found.certified, expected, rtol=1e-4, atol=0)
    assert bool((found.certified <= expected * (1 + 1e-6)).all())
    parts = radius(model, x, attack=None, shard=7)
    torch.testing.assert_close(parts.certified, found.certified, rtol=1e-4, atol=0)
    assert found.evaluations.double().mean() < parts.evaluations.double().mean()


@pytest.mark.parametrize("shape", ["line", "square", "knee", "step", "spike", "nan"])
def test_the_search_finds_the_root_of_any_falling_function(shape: str) -> None:
    root = torch.logspace(-6, 3, 64, dtype=torch.float64)
    shapes = {
        "line": lambda t: 1 - t,
        "square": lambda t: 1 - t**2,
        "knee": lambda t: torch.where(t < 0.9, 1 - 0.1 * t, 9.1 - 9.1 * t),
        "step": lambda t: torch.where(t <= 1, 0.5, -1.0).double(),
        "spike": lambda t: torch.where(t <= 1, (1 - t) ** 3 + 1e-9, -torch.inf),
        "nan": lambda t: torch.where(t <= 1, 1.5 - t, torch.nan),
    }

    def evaluate(index: Tensor, eps: Tensor, final: bool) -> Tensor:
        return shapes[shape](eps / root[index])

    search = Search(evaluate, torch.ones(64, dtype=torch.float64), root * 5, 1e-4)
    search.run()
    assert bool((search.low <= root * (1 + 1e-9)).all())
    assert int(search.evaluations.max()) < MOST
    if shape != "spike":  # there the slopes promise nothing
        assert bool((search.low >= root * (1 - 1e-4)).all())


@pytest.mark.parametrize("share", [1 - 1e-6, 1 - 1e-4, 0.97, 0.6, 0.01])
@pytest.mark.parametrize("bend", [1, 2, 6])
def test_what_the_final_arithmetic_proves_is_found_below_what_the_coarse_one_accepts(share: float, bend: int) -> None:
    root = torch.logspace(-6, 3, 64, dtype=torch.float64)

    def evaluate(index: Tensor, eps: Tensor, final: bool) -> Tensor:
        return 1 - (eps / root[index] / (share if final else 1)) ** bend

    search = Search(evaluate, torch.ones(64, dtype=torch.float64), root * 5, 1e-4)
    search.run()
    assert bool((search.low <= share * root * (1 + 1e-9)).all())
    assert bool((search.low >= share * root * (1 - 1e-4)).all())
    assert int(search.evaluations.max()) < MOST


def test_a_store_goes_on_where_it_was(tmp_path: Path) -> None:
    model, x = _network()
    path, seen = tmp_path / "radii.sqlite", []

    def stop(done: int, total: int, counts: Mapping[str, int]) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        radius(model, x, store=path, shard=4, progress=stop)
    resumed = radius(model, x, store=path, shard=4, progress=lambda done, total, counts: seen.append(done))
    whole = radius(model, x, shard=4)
    assert seen == [8, 12]
    for name in ("certified", "attacked", "adversarial", "evaluations", "labels", "predictions"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    with pytest.raises(StoreMismatchError):
        radius(model, x, store=path, shard=5)


def test_a_tighter_method_certifies_more() -> None:
    model, x = _network()
    dual, alpha = (radius(model, x, method=method, attack=None).certified for method in ("dual", "alpha:5"))
    assert bool((alpha >= dual * (1 - 2e-4)).all())
    assert bool((alpha > dual * 1.001).any())


@pytest.mark.parametrize("method", ["interval", "dual", "dual+interval", "crown", "crown-ibp"])
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.no_cover
def test_at_every_radius_there_is_a_proof(method: str, arithmetic: str) -> None:
    """Another computation of the margins at exactly the radius that was returned, with every rounding subtracted."""
    said = {"real": "real arithmetic", "float32": "as executed in float32"}[arithmetic]
    for norm, clip in (("linf", None), ("l2", (-1.0, 1.0)), ("l1", None), ("linf", (-0.5, 2.0))):
        model, x = _network()
        labels = None if norm == "l1" else model(x.clamp(*(clip or (None, 9.0)))).argmax(1)
        x = x if clip is None else x.clamp(*clip)
        found = radius(model, x, norm, method, labels, clip=clip, attack=None, arithmetic=arithmetic)  # type: ignore[arg-type]
        here = found.certified > 0
        assert int(here.sum()) >= 11
        assert found.arithmetic.tolist() == [said if positive else "" for positive in here.tolist()]
        wide = ball(norm, x.double(), found.certified, clip)
        proved = margins(model.double(), wide, found.labels, method, arithmetic=arithmetic)  # type: ignore[arg-type]
        assert bool((proved.scatter(1, found.labels.unsqueeze(1), torch.inf).amin(1) > 0)[here].all())


def test_rounding_that_is_larger_shrinks_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _network()
    right = radius(model, x, attack=None).certified
    plain = Ledger.below
    monkeypatch.setattr(Ledger, "below", lambda self, index, rows, lower: plain(self, index, rows, lower) - 0.02)
    smaller = radius(model, x, attack=None)
    assert bool((smaller.certified < right * (1 - 1e-3)).all())
    assert bool((smaller.certified > 0).any())
    wide = ball("linf", x.double(), smaller.certified)
    proved = margins(model.double(), wide, smaller.labels, arithmetic="real")
    worst = proved.scatter(1, smaller.labels.unsqueeze(1), torch.inf).amin(1)[smaller.certified > 0]
    assert bool((worst > 0).all()) and bool((worst < 0.01).all())  # the border of the larger rounding
    monkeypatch.setattr(Ledger, "below", lambda self, index, rows, lower: lower - torch.inf)
    assert bool((radius(model.float(), x, attack=None).certified == 0).all())


def test_the_radius_is_never_beyond_the_exact_one_of_a_network_that_cancels() -> None:
    """A linear network in fractions: products of 1e8 cancel to 1e-5, and what they round is more than the guard."""
    generator = torch.Generator().manual_seed(4)
    weight = 1e8 * torch.randn(6, generator=generator, dtype=torch.float64)
    middle = torch.randn(6, generator=generator, dtype=torch.float64)
    products = rational(weight) * rational(middle)
    model = nn.Linear(6, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.stack([weight, torch.zeros(6)]))
        model.bias.copy_(torch.tensor([-float(sum(products)), 0.0], dtype=torch.float64))
    x = middle + torch.linspace(2e-14, 2e-13, 40, dtype=torch.float64)[:, None] * weight.sign()
    bias, size = Fraction(float(model.bias.detach()[0])), sum(abs(rational(weight)))
    exact = [(sum(rational(weight) * rational(point)) + bias) / size for point in x]
    labels = torch.zeros(40, dtype=torch.int64)

    def beyond(arithmetic: Literal["real"] | None) -> int:
        found = radius(model, x, labels=labels, attack=None, tolerance=1e-6, arithmetic=arithmetic)
        assert int((found.certified > 0).sum()) > 30
        return sum(
            Fraction(value) > max(limit, 0) for value, limit in zip(found.certified.tolist(), exact, strict=True)
        )

    assert beyond("real") == 0
    assert beyond(None) > 0


def test_what_is_no_proof_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, x = _network("mlp")
    x = x[:4]
    with pytest.raises(InputError, match="arithmetic=None"):
        radius(model, x, "linf", "milp", attack=None)
    said = radius(model, x, "linf", "milp", attack=None, arithmetic=None).arithmetic
    assert set(said.tolist()) <= {"solver tolerances", ""}
    said = radius(model, x, attack=None, arithmetic=None).arithmetic
    assert set(said.tolist()) == {"float64, not outward rounded"}
    for proving in ("alpha:2", "dual"):
        assert set(radius(model, x, "linf", proving, attack=None).arithmetic.tolist()) <= {"real arithmetic", ""}
    of_graph = radius(capture(model, x), x, attack=None)
    assert set(of_graph.arithmetic.tolist()) == {"real arithmetic"}
    assert torch.equal(of_graph.certified, radius(model, x, attack=None).certified)
    path = tmp_path / "radii.sqlite"
    radius(model, x, attack=None, store=path)
    with pytest.raises(StoreMismatchError, match="arithmetic"):
        radius(model, x, attack=None, store=path, arithmetic="float32")
    honest = module.margins

    def unknown(graph, region, *arguments, arithmetic=None, **options) -> Tensor:
        if arithmetic is not None:
            raise UnsupportedOperatorError("its rounding has no bound")
        return honest(graph, region, *arguments, arithmetic=arithmetic, **options)

    monkeypatch.setattr(module, "margins", unknown)
    for wanted in ("real", "float32"):
        with pytest.raises(UnsupportedOperatorError):
            radius(model, x, attack=None, arithmetic=wanted)  # type: ignore[arg-type]


def test_a_store_of_radii_that_were_no_proofs_is_refused(tmp_path: Path) -> None:
    model, x = _network("mlp")
    path = tmp_path / "radii.sqlite"
    radius(model, x, attack=None, store=path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = 'ironbound-radius-store/1' WHERE key = 'format'")
    with pytest.raises(StoreError, match="format"):
        radius(model, x, attack=None, store=path)


def test_nan_is_never_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _network()
    honest = module.margins

    def broken(*arguments, **options) -> Tensor:
        found = honest(*arguments, **options).clone()
        found[:, 1] = torch.nan
        return found

    monkeypatch.setattr(module, "margins", broken)
    labels = torch.zeros(12, dtype=torch.int64)
    assert bool((radius(model, x, labels=labels, attack=None).certified == 0).all())


def test_a_bound_that_the_float64_check_refutes_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _network()
    right = radius(model, x, attack=None)
    honest = module.margins

    def optimistic(graph, region, *arguments, **options) -> Tensor:
        found = honest(graph, region, *arguments, **options)
        return found if region.dtype == torch.float64 else found + 0.01

    monkeypatch.setattr(module, "margins", optimistic)
    found = radius(model, x, attack=None)
    assert bool((found.certified <= right.certified * (1 + 1e-4)).all())
    assert bool((found.certified >= right.certified * 0.9).any())


def test_a_contradiction_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _network()
    honest = module.margins
    monkeypatch.setattr(module, "margins", lambda *a, **o: honest(*a, **o) + 50.0)
    with pytest.raises(SoundnessError):
        radius(model, x, attack=AttackOptions(steps=10))


def test_constant_answers_and_wrong_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(3, 2).eval()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([1.0, 0.0]))
    x = torch.rand(2, 3)
    found = radius(model, x, attack=None)
    assert bool((found.certified == module.LARGEST).all())
    with pytest.raises(LabelError):
        radius(model, x, labels=torch.tensor([0, 5]))
    with pytest.raises(LabelError):
        radius(model, x, labels=torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError):
        radius(model, x, method="nothing")
    with pytest.raises(InputError):
        radius(model, x, norm="l3")
    with pytest.raises(InputError):
        radius(model, x, tolerance=0.0)
    with pytest.raises(InputError, match="split"):
        radius(model, x, method="split", arithmetic="float32")
    with pytest.raises(InputError, match="exact"):
        radius(model, x, arithmetic="exact")  # type: ignore[arg-type]
    monkeypatch.setattr(Network, "double", None)  # a network that is tied to float32
    with pytest.raises(InputError, match="float32"):
        radius(model, x, arithmetic="float32")
    with pytest.raises(InputError, match="arithmetic=None"):
        radius(model, x)
