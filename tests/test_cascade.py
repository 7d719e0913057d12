"""The cascade with made-up methods and attacks: what it asks of them, and what it believes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound import cascade, certify
from ironbound.attacks import Attack
from ironbound.bounding import margins
from ironbound.errors import SoundnessError


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(40, 2, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(model: nn.Module, x: Tensor) -> Tensor:
    """The predictions, with every eighth one wrong."""
    with torch.no_grad():
        found = model(x).argmax(1)
    found[::8] = (found[::8] + 1) % 4
    return found


def test_each_stage_is_asked_only_what_is_open(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recording(network, region, given, method, targets, memory):
        asked.append((method, region.center, targets))
        return margins(network, region, given, method=method, targets=targets, memory=memory)

    monkeypatch.setattr(cascade, "margins", recording)
    result = certify(model, x, labels, eps=0.05, methods=("interval", "dual"), attack="fgsm")
    (first, points, targets), (second, later_points, later_targets) = asked
    assert (first, second) == ("interval", "dual")
    assert len(points) == (result.status != "misclassified").sum() - len(result.adversarial)
    assert (targets.sum(1) == 3).all()
    assert len(later_points) == len(points) - (result.method == "interval").sum() > 0
    assert ((later_targets.sum(1) >= 1) & (later_targets.sum(1) <= 3)).all()
    assert (later_targets.sum(1) < 3).any()  # intervals closed single classes
    assert (result.method == "interval").any()
    assert (result.method == "dual").any()


def fake_margins(value: float, exact: float | None = None):
    """A method that claims one number for every class, and another in float64."""

    def claim(network, region, labels, method, targets, memory):
        number = exact if region.dtype == torch.float64 and exact is not None else value
        return torch.where(targets, torch.full(targets.shape, number, dtype=region.dtype), torch.nan)

    return claim


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1.0])
def test_what_is_not_above_zero_is_never_proved(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(cascade, "margins", fake_margins(value))
    result = certify(model, x, labels, eps=1e-6, attack=None)
    assert set(result.status.tolist()) == {"misclassified", "unknown"}


@pytest.mark.parametrize("value", [1e3, float("inf")])
def test_a_bound_above_what_the_network_does_is_a_contradiction(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr(cascade, "margins", fake_margins(value))
    with pytest.raises(SoundnessError, match="nothing of this run is certified"):
        certify(model, x, labels, eps=1e-6, attack=None)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_a_proof_of_what_the_attack_refutes_is_a_contradiction(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    """An unsound method that proves all classes but one must not survive the attack on that one."""

    def unsound(network, region, given, method, targets, memory):
        with torch.no_grad():
            logits = network(region.center)
            true = logits.gather(1, given[:, None]) - logits  # as if ε were 0
        rival = true.scatter(1, given[:, None], torch.inf).argmin(1)
        return torch.where(targets, true, torch.nan).scatter(1, (rival[:, None] + 1) % 4, -1.0)

    monkeypatch.setattr(cascade, "margins", unsound)
    if attack == "pgd":
        monkeypatch.setattr(cascade, "fgsm", finds_nothing)
    with pytest.raises(SoundnessError, match="please report it"):
        certify(model, x, labels, eps=0.1, attack=attack, methods=("dual",))


def finds_nothing(network, region, labels) -> Attack:
    with torch.no_grad():
        logits = network(region.center)
    difference = logits.gather(1, labels[:, None]) - logits.scatter(1, labels[:, None], -torch.inf).amax(
        1, keepdim=True
    )
    return Attack(region.center, torch.zeros(len(region), dtype=torch.bool), difference[:, 0])


@pytest.mark.parametrize(("exact", "status"), [(-1e-6, "unknown"), (0.0, "unknown"), (1e-6, "certified")])
def test_margins_near_zero_are_decided_in_float64(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, exact: float, status: str
) -> None:
    monkeypatch.setattr(cascade, "margins", fake_margins(1e-6, exact))
    result = certify(model, x, labels, eps=1e-7, attack=None, methods=("dual",))
    right = result.status != "misclassified"
    assert set(result.status[right].tolist()) == {status}
    assert set(result.arithmetic[right].tolist()) == {"float64 recheck"}
    assert result.summary()["arithmetic"]["float64 recheck"] == right.sum()


@pytest.mark.parametrize("where", ["outside", "harmless"])
def test_an_attack_is_believed_only_after_the_network_ran_again(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def boastful(network, region, given):
        points = region.center + 5.0 if where == "outside" else region.center
        return Attack(points, torch.ones(len(region), dtype=torch.bool), -torch.ones(len(region)))

    monkeypatch.setattr(cascade, "fgsm", boastful)
    result = certify(model, x, labels, eps=0.05, attack="fgsm")
    assert not result.adversarial
    assert "falsified" not in result.status
