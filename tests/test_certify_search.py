"""Searches as stages of `certify`: everything is decided, and nothing that a search says is believed unchecked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound import cascade, certify
from ironbound.errors import InputError, SoundnessError
from ironbound.exact.query import Outcome
from ironbound.models import build
from ironbound.network import Network


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(24, 2, 3, generator=torch.Generator().manual_seed(1))


def test_a_search_decides_every_example(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        labels = model(x).argmax(1)
    quick = certify(model, x, labels, eps=0.12, methods=("dual",), attack=None)
    assert (quick.status == "unknown").sum() > 3
    by_signs = certify(model, x, labels, eps=0.12, methods=("dual", "split"), attack=None)
    by_program = certify(model, x, labels, eps=0.12, methods=("dual", "milp"), attack=None)
    assert set(by_signs.status.tolist()) == {"certified", "falsified"}
    assert by_signs.status.tolist() == by_program.status.tolist()
    assert "split" in by_signs.method and "milp" in by_program.method
    for example, point in by_signs.adversarial.items():
        assert ((point - x[example]).abs() <= 0.12 + 1e-6).all()
        assert model(point[None]).argmax() != labels[example]
    certified = by_signs.status == "certified"
    by_split = by_signs.arithmetic[certified & (by_signs.method == "split")]
    assert set(by_split.tolist()) == {"real arithmetic"}  # proved again by the checker of certificates
    by_solver = by_program.arithmetic[certified & (by_program.method == "milp")]
    assert set(by_solver.tolist()) == {"real arithmetic"}
    assert set(by_program.arithmetic[by_program.method == "dual"].tolist()) <= {"real arithmetic"}


def test_the_attack_comes_before_a_search(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("fgsm", "pgd", "search"):
        plain = getattr(cascade, name)

        def noted(*args, _name=name, _plain=plain, **options):
            order.append(_name)
            return _plain(*args, **options)

        monkeypatch.setattr(cascade, name, noted)
    result = certify(model, x, eps=0.05, methods=("interval", "split"))
    assert order[:2] == ["fgsm", "pgd"]
    assert order.count("search") == (result.method == "split").sum() > 0
    assert "unknown" not in result.status


def claims(lower: float, candidate: Tensor | None = None):
    """A search that says one number for every clause, and names a point."""

    def search(name, query, budget) -> Outcome:
        return Outcome(query.clauses.constant.new_full((len(query.clauses),), lower), candidate, 1, "proved")

    return search


@pytest.mark.parametrize("lower", [float("nan"), float("-inf"), -1.0, 0.0])
def test_what_is_not_above_zero_proves_nothing(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, lower: float
) -> None:
    monkeypatch.setattr(cascade, "search", claims(lower))
    assert set(certify(model, x, eps=1e-6, methods=("split",), attack=None).status.tolist()) == {"unknown"}


def test_a_bound_above_what_the_network_does_is_a_contradiction(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade, "search", claims(1e3))
    with pytest.raises(SoundnessError, match="nothing of this run is certified"):
        certify(model, x, eps=1e-6, methods=("split",), attack=None)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_candidate_is_run_before_it_is_believed(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    monkeypatch.setattr(cascade, "search", claims(-1.0, x[:1].double() + shift))
    result = certify(model, x[:1], eps=1e-5, methods=("split",), attack=None)
    assert not result.adversarial
    assert result.status.tolist() == ["unknown"]


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_budgets_that_mean_nothing(model: nn.Module, x: Tensor, budget: float) -> None:
    with pytest.raises(InputError, match="budget"):
        certify(model, x, eps=0.1, methods=("split",), budget=budget)


def test_an_unknown_method_names_the_searches(model: nn.Module, x: Tensor) -> None:
    with pytest.raises(InputError, match="lp, milp, split"):
        certify(model, x, eps=0.1, methods=("splits",))


def test_searches_count_in_networks_of_tens_of_thousands_of_values(model: nn.Sequential, x: Tensor) -> None:
    # the same function by way of 8 500 neurons that are always on
    torch.manual_seed(4)
    wide, back = nn.Linear(12, 8500), nn.Linear(8500, 12)
    with torch.no_grad():
        wide.bias.fill_(8.0)
        back.weight.copy_(torch.linalg.pinv(wide.weight))
        back.bias.copy_(-back.weight @ wide.bias)
    through = nn.Sequential(*model[:5], wide, nn.ReLU(), back, model[5]).eval()
    assert torch.allclose(through(x), model(x), atol=1e-4)
    found = certify(through, x[:12], eps=0.12, methods=("dual", "split"), attack=None)
    by_split = (found.status == "certified") & (found.method == "split")
    assert by_split.any()
    assert set(found.arithmetic[by_split].tolist()) == {"real arithmetic"}
    assert found.status.tolist() == certify(model, x[:12], eps=0.12, methods=("dual", "milp")).status.tolist()


@pytest.mark.parametrize(("name", "options"), [("wide", {}), ("small", {"in_channels": 3, "size": 32})])
def test_networks_that_train_on_two_cores_can_be_proved_again(name: str, options: dict[str, int]) -> None:
    example = torch.zeros(1, options.get("in_channels", 1), *[options.get("size", 28)] * 2)
    assert Network(build(name, **options), example).plain is not None
