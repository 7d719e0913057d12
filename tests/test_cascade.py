"""The cascade with made-up methods and attacks: what it asks of them, and what it believes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound import cascade, certify
from ironbound.attacks import Attack
from ironbound.bounding import METHODS, margins, rounding
from ironbound.bounding.precision import sums_in_float32
from ironbound.certificate import finding
from ironbound.errors import InputError, SoundnessError, UnsupportedOperatorError
from ironbound.network import Network
from ironbound.ops.operator import Affine, Input
from ironbound.ops.piecewise import ReLU
from ironbound.regions import LinfBall

in_float32 = pytest.mark.skipif(not sums_in_float32(torch.device("cpu")), reason="float32 proves on x86 only")


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


@in_float32
def test_each_stage_is_asked_only_what_is_open(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def recording(network, region, given, method, targets, memory, arithmetic):
        asked.append((method, region.center, targets))
        call = {"method": method, "targets": targets, "memory": memory, "arithmetic": arithmetic}
        return margins(network, region, given, **call)

    monkeypatch.setattr(cascade, "margins", recording)
    result = certify(model, x, labels, eps=0.05, methods=("interval", "dual"), attack="fgsm")
    (first, points, targets), (second, later_points, later_targets), (third, last_points, last_targets) = asked
    assert (first, second, third) == ("interval", "dual", "dual")
    assert (points.dtype, later_points.dtype, last_points.dtype) == (torch.float64, torch.float32, torch.float64)
    assert 0 < (result.status == "unknown").sum() <= len(last_points) < len(later_points)
    assert last_targets.any(1).all()  # what float32 left open
    assert len(points) == (result.status != "misclassified").sum() - len(result.adversarial)
    assert (targets.sum(1) == 3).all()
    assert len(later_points) == len(points) - (result.method == "interval").sum() > 0
    assert ((later_targets.sum(1) >= 1) & (later_targets.sum(1) <= 3)).all()
    assert (later_targets.sum(1) < 3).any()  # intervals closed single classes
    assert (result.method == "interval").any()
    assert (result.method == "dual").any()


def fake_margins(value: float, exact: float | None = None):
    """A method that claims one number for every class, and another in float64."""

    def claim(network, region, labels, method, targets, memory, arithmetic=None):
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

    def unsound(network, region, given, method, targets, memory, arithmetic):
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


def refuses(arrays, region, labels, seconds) -> list[bool]:
    return [False] * len(labels)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("clip", [None, (0.1, 0.9)])
def test_what_alpha_and_split_prove_is_proved_again_with_its_rounding(
    model: nn.Module, x: Tensor, norm: str, clip: tuple[float, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = x if clip is None else x.clamp(*clip)
    query = {"eps": 0.2, "norm": norm, "clip": clip, "attack": None, "budget": 60.0}
    methods = ("dual", "alpha", "split") if norm == "linf" else ("dual", "alpha")
    again = certify(model, x, methods=methods, **query)
    monkeypatch.setattr(finding, "proved_again", refuses)
    once = certify(model, x, methods=methods, arithmetic=None, **query)
    never = certify(model, x, methods=methods, **query)
    assert set(again.arithmetic[again.status == "certified"].tolist()) == {"real arithmetic"}
    late = (once.status == "certified") & (once.method == "split")
    assert late.any() == (norm == "linf")
    assert (again.status == "certified")[late].mean() > 0.9 if late.any() else True
    assert set(never.status[late].tolist()) <= {"unknown"} and set(never.method[late].tolist()) <= {""}
    said = {"float64, not outward rounded"} if late.any() else set()
    assert set(never.arithmetic[late].tolist()) == said
    assert never.summary()["unproved"] == {name: int(late.sum()) for name in said}
    assert (never.status == again.status)[~late].all()
    monkeypatch.undo()
    each = torch.full((len(x), 1, 1), 0.12).expand(-1, 2, 3) * torch.linspace(1, 0.9, 6).reshape(2, 3)
    by_element = certify(model, x, methods=methods, **{**query, "eps": each})
    assert set(by_element.arithmetic[by_element.status == "certified"].tolist()) == {"real arithmetic"}
    assert (by_element.status == "certified").any()


def test_a_wrong_proof_is_not_proved_again(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "margins", fake_margins(1e-3))
    monkeypatch.setattr(cascade._State, "_check", lambda self, index, why: None)
    result = certify(model, x[:4], eps=3.0, attack=None, methods=("lp",), budget=0.2)
    assert set(result.status.tolist()) == {"unknown"}
    assert set(result.arithmetic.tolist()) == {"float32, not outward rounded"}


@pytest.mark.parametrize(("exact", "status"), [(-1e-6, "unknown"), (0.0, "unknown"), (1e-6, "certified")])
def test_margins_without_a_bound_of_their_rounding_need_a_guard(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, exact: float, status: str
) -> None:
    """Near 0 they are decided in float64, and the result says that they are not outward rounded."""
    monkeypatch.setattr(cascade, "margins", fake_margins(1e-6, exact))
    result = certify(model, x, labels, eps=1e-7, attack=None, methods=("lp",), arithmetic=None)
    right = result.status != "misclassified"
    assert set(result.status[right].tolist()) == {status}
    said = "float64, not outward rounded" if status == "certified" else ""
    assert set(result.arithmetic[right].tolist()) == {said}
    assert result.summary()["arithmetic"] == ({said: right.sum()} if said else {})


@in_float32
@pytest.mark.parametrize(("arithmetic", "said"), [("real", "real arithmetic"), ("float32", "as executed in float32")])
def test_bounded_rounding_needs_no_guard_and_is_asked_in_float64_last(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch, arithmetic: str, said: str
) -> None:
    asked = []

    def tiny(network, region, given, method, targets, memory, arithmetic):
        asked.append((region, arithmetic))
        return torch.full(targets.shape, 1e-300, dtype=region.dtype).masked_fill(~targets, torch.nan)  # 0 in float32

    monkeypatch.setattr(cascade, "margins", tiny)
    result = certify(model, x, labels, eps=0.7, attack=None, methods=("dual",), arithmetic=arithmetic)
    assert [(region.dtype, given) for region, given in asked] == [
        (torch.float32, arithmetic),
        (torch.float64, arithmetic),
    ]
    for region, _ in asked:
        assert region.eps.double().item() >= 0.7 > x.new_tensor(0.7).double().item()  # float32 rounds this radius down
    certified = result.status == "certified"
    assert certified.sum() == (result.status != "misclassified").sum() > 0
    assert set(result.arithmetic[certified].tolist()) == {said}
    assert set(result.arithmetic[~certified].tolist()) == {""}


class Folded(nn.Module):
    """A constant that float32 rounds away."""

    def __init__(self, small: float) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("parts", torch.tensor([1.0, small, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.parts.sum()


def test_constants_that_float32_computes_otherwise_are_noticed() -> None:
    x = torch.zeros(1, 3)
    assert not Network(Folded(1e-9).eval(), x).same_numbers
    assert Network(Folded(0.5).eval(), x).same_numbers
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    assert Network(normed, x).same_numbers


def test_the_weakest_claim_of_all_classes_is_the_examples(
    model: nn.Module, x: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(network, region, given, method, targets, memory, arithmetic=None):
        found = torch.full(targets.shape, 1e-3, dtype=region.dtype)
        if method == "dual":
            found = torch.where(torch.arange(4) < 2, found, -1.0)
        return torch.where(targets, found, torch.nan)

    monkeypatch.setattr(cascade, "margins", some)
    monkeypatch.setattr(finding, "proved_again", refuses)
    result = certify(model, x, labels, eps=1e-7, attack=None, methods=("dual", "lp"))
    right = result.status != "misclassified"
    assert set(result.status[right].tolist()) == {"unknown"}
    assert set(result.arithmetic[right].tolist()) == {"float32, not outward rounded"}


def test_what_rounding_alone_proves_is_not_certified() -> None:
    """1 is lost beside 1e20, in the forward pass of float32 and of float64: the network's true answer is class 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1e20], [1e20], [1.0]]))
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
        model[3].weight.copy_(torch.tensor([[0.0, 0.0, 0.5], [1.0, -1.0, 0.0]]))
        model[3].bias.zero_()
    x, label = torch.ones(1, 1), torch.tensor([0])
    for dtype, guard in ((torch.float32, cascade.COARSE), (torch.float64, cascade.FINE)):
        with torch.no_grad():
            claimed = margins(model.to(dtype), LinfBall(x.to(dtype), 0.0), label)[0, 1]
        assert claimed > 2 * guard
    result = certify(model.float(), x, label, eps=0.0, methods=("interval", "dual", "crown"), attack=None)
    assert result.status.tolist() == ["unknown"]


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ("dual", "lp")}, "lp"),
        ({"methods": ("split",)}, "split"),
        ({"double": True}, "float64"),
        ({"arithmetic": "exact"}, "exact"),
    ],
)
def test_what_proves_nothing_of_float32_runs_is_refused(model: nn.Module, x: Tensor, change: dict, words: str) -> None:
    options = {"methods": ("dual",), "arithmetic": "float32", **change}
    if options.pop("double", False):
        model, x = model.double(), x.double()
    with pytest.raises(InputError, match=words):
        certify(model, x, eps=0.1, **options)


@pytest.mark.parametrize("bend", [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU()])
@pytest.mark.parametrize(("arithmetic", "said"), [("real", "real arithmetic"), ("float32", "as executed in float32")])
@pytest.mark.no_cover
def test_smooth_networks_have_proofs(x: Tensor, bend: nn.Module, arithmetic: str, said: str) -> None:
    torch.manual_seed(3)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), bend, nn.Linear(8, 8), bend, nn.Linear(8, 3)).eval()
    for method in sorted(METHODS):
        result = certify(smooth, x, eps=1e-3, methods=(method,), attack=None, arithmetic=arithmetic)  # type: ignore[arg-type]
        certified = result.status == "certified"
        assert certified.mean() > 0.9
        assert set(result.arithmetic[certified].tolist()) == {said}


def test_a_network_without_a_bound_of_its_rounding_says_so(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    monkeypatch.setattr(rounding, "_RULES", Input | Affine | ReLU)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    refused = certify(smooth, x, eps=1e-3, methods=("dual",), attack=None)
    assert "certified" not in refused.status
    result = certify(smooth, x, eps=1e-3, methods=("dual",), attack=None, arithmetic=None)
    said = set(result.arithmetic[result.status == "certified"].tolist())
    assert set(refused.summary()["unproved"]) == said
    assert said <= {"float32, not outward rounded", "float64, not outward rounded"}
    with pytest.raises(UnsupportedOperatorError, match="Tanh"):
        certify(smooth, x, eps=1e-3, methods=("dual",), attack=None, arithmetic="float32")


def test_an_attack_alone_captures_nothing(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards run on threads, and capture changes settings of torch that all threads share."""

    def refused(*args: object) -> None:
        raise AssertionError("captured")

    monkeypatch.setattr("ironbound.network.capture", refused)
    result = certify(model, x, eps=0.3, methods=(), attack="pgd", shard=8)
    assert (result.status == "falsified").any()
