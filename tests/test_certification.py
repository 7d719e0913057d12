"""`certify`: the laws of the cascade, what it refuses, and the summary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import ironbound
from ironbound import certification, certify
from ironbound.bounding import margins
from ironbound.cascade import certify_shard
from ironbound.cascade_types import AttackOptions
from ironbound.certification import Certification, rate
from ironbound.data import load
from ironbound.errors import InputError, LabelError, SoundnessError, StoreMismatchError, TrainingModeError
from ironbound.models import build, load_weights
from ironbound.regions import LinfBall, ball
from ironbound.store import finished_examples


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


def same(one: Certification, other: Certification) -> bool:
    return (
        one.status.tolist() == other.status.tolist()
        and one.method.tolist() == other.method.tolist()
        and torch.allclose(one.margins, other.margins, rtol=0, atol=0, equal_nan=True)
        and one.summary(per_class=True) == other.summary(per_class=True)
        and one.adversarial.keys() == other.adversarial.keys()
        and all(torch.equal(point, other.adversarial[at]) for at, point in one.adversarial.items())
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_status_means_what_it_says(model: nn.Module, x: Tensor, labels: Tensor, norm: str, clip: tuple | None) -> None:
    eps = {"linf": 0.05, "l2": 0.12, "l1": 0.2}[norm]
    result = certify(model, x, labels, eps=eps, norm=norm, clip=clip)
    region = ball(norm, x, eps, clip)
    assert {"misclassified", "falsified", "certified"} <= set(result.status.tolist())  # else nothing is tested
    with torch.no_grad():
        wrong = model(x).argmax(1) != labels
        dual = margins(model, region, labels, method="dual")
        best = torch.maximum(dual, margins(model, region, labels, method="interval"))
    assert (result.status == "misclassified").tolist() == wrong.tolist()
    certified = torch.from_numpy(result.status == "certified")
    others = best.scatter(1, labels[:, None], torch.inf)
    assert not (others.abs() < 1e-6).any()  # else rounding decides
    assert certified.tolist() == ((others > 0).all(1) & ~wrong).tolist()
    for _ in range(50):
        with torch.no_grad():
            assert (model(region.sample()).argmax(1) == labels)[certified].all()
    for example, point in result.adversarial.items():
        assert region[example : example + 1].contains(point[None])
        assert model(point[None]).argmax(1) != labels[example]
    assert sorted(result.adversarial) == (result.status == "falsified").nonzero()[0].tolist()


def test_a_shard_decides_what_the_whole_decides(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    eps = torch.linspace(0.0, 0.1, len(x))
    whole = certify(model, x, labels, eps=eps)
    parts = certify(model, x, labels, eps=eps, shard=7)
    assert whole.status.tolist() == parts.status.tolist()
    assert torch.allclose(whole.margins, parts.margins, atol=1e-5, equal_nan=True)


def test_without_radius_every_right_answer_is_certified(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    result = certify(model, x, labels, eps=0.0)
    assert set(result.status.tolist()) == {"misclassified", "certified"}
    logits = model(x).detach().double()
    exact = logits.gather(1, labels[:, None]) - logits
    certified = result.status == "certified"
    assert torch.allclose(result.margins[certified], exact[certified], atol=1e-4)


def test_a_float64_network_needs_no_second_look(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    result = certify(model.double(), x.double(), labels, eps=0.05)
    certified = result.status == "certified"
    assert certified.any()
    assert set(result.arithmetic[certified].tolist()) == {"real arithmetic"}


def test_the_network_stays_as_it_was(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    certify(model, x, labels, eps=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_detection_needs_no_label(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    detected = certify(model, x, eps=0.05, attack=None)
    assert detected.detection
    assert torch.equal(detected.labels, detected.predictions)
    certified = certify(model, x, detected.predictions, eps=0.05, attack=None)
    assert detected.status.tolist() == certified.status.tolist()
    summary = detected.summary()
    assert summary["certified"]["count"] + summary["flagged"]["count"] == len(x)
    assert summary["certified"]["count"] == (certified.status == "certified").sum()
    assert "clean_error" not in summary


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_change_nothing(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    options = AttackOptions(steps=5, restarts=3)
    two = certify(model, x, labels, eps=0.06, attack=options, shard=4)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert same(two, certify(model, x, labels, eps=0.06, attack=options, shard=4))


@pytest.mark.usefixtures("two_threads")
def test_a_failing_shard_stops_the_run_and_keeps_the_others(
    model: nn.Module, x: Tensor, labels: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.sqlite"

    def failing(network, region, given, cascade, first):
        if first >= 24:
            raise SoundnessError("made up")
        return certify_shard(network, region, given, cascade, first)

    with monkeypatch.context() as patch:
        patch.setattr(certification, "certify_shard", failing)
        with pytest.raises(SoundnessError, match="made up"):
            certify(model, x, labels, eps=0.06, shard=4, store=path)
    assert 0 < finished_examples(path) <= 24
    assert same(certify(model, x, labels, eps=0.06, shard=4, store=path), certify(model, x, labels, eps=0.06, shard=4))


@pytest.mark.shared
def test_the_released_network_is_certified_where_the_peers_margins_are_positive(shared: Path) -> None:
    data = load("mnist", "test", shared / "data" / "mnist", limit=64)
    model = load_weights(build("small"), shared / "models" / "wong_kolter_mnist_small.pth")
    with np.load(shared / "oracles" / "mnist_small_peers.npz") as peers:
        oracle = torch.from_numpy(peers["linf/0.1/wong_kolter"])
    result = certify(model, data.inputs, data.labels, eps=0.1, methods=("dual",), attack="fgsm")
    others = oracle.scatter(1, data.labels[:, None], torch.inf)
    assert (result.status == "certified").tolist() == (others > 0).all(1).tolist()
    known = ~result.margins.isnan()
    assert (result.margins <= oracle + 1e-4)[known].all()
    assert (result.margins >= 0.97 * oracle - 0.3)[known].all()  # proofs in float32 pay for what float32 rounds


class Stop(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stopped_run_goes_on_and_ends_with_the_same_table(
    model: nn.Module, x: Tensor, labels: Tensor, tmp_path: Path, after: int
) -> None:
    options = AttackOptions(steps=5, restarts=3)
    path = tmp_path / "results.sqlite"

    def stop(done: int, total: int, counts: object) -> None:
        if done >= 8 * after:
            raise Stop

    with pytest.raises(Stop):
        certify(model, x, labels, eps=0.06, attack=options, shard=8, store=path, progress=stop)
    started: list[int] = []
    resumed = certify(
        model, x, labels, eps=0.06, attack=options, shard=8, store=path, progress=lambda done, *_: started.append(done)
    )
    assert started == [8 * shard for shard in range(after, 6)]
    assert same(resumed, certify(model, x, labels, eps=0.06, attack=options, shard=8))
    again = certify(model, x, labels, eps=0.06, attack=options, shard=8, store=path)
    assert same(resumed, again)
    assert again.seconds == resumed.seconds


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"eps": 0.07}, "eps"),
        ({"norm": "l2"}, "norm"),
        ({"clip": (0.0, 1.0)}, "clip"),
        ({"methods": ("dual",)}, "methods"),
        ({"attack": None}, "attack"),
        ({"shard": 9}, "shard"),
        ({"arithmetic": "float32"}, "arithmetic"),
    ],
)
def test_a_store_serves_one_query(
    model: nn.Module, x: Tensor, labels: Tensor, tmp_path: Path, change: dict, name: str
) -> None:
    query = {"eps": 0.06, "shard": 40}
    certify(model, x, labels, store=tmp_path / "results.sqlite", **query)
    with pytest.raises(StoreMismatchError, match=name):
        certify(model, x, labels, store=tmp_path / "results.sqlite", **{**query, **change})


def test_a_store_knows_network_and_data(model: nn.Module, x: Tensor, labels: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite"
    certify(model, x, labels, eps=0.06, store=path)
    with pytest.raises(StoreMismatchError, match="data_sha256"):
        certify(model, x + 1e-6, labels, eps=0.06, store=path)
    with torch.no_grad():
        model[1].weight[0, 0] += 1e-6
    with pytest.raises(StoreMismatchError, match="network_sha256"):
        certify(model, x, labels, eps=0.06, store=path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"eps": -0.1}, InputError, "negative"),
        ({"eps": float("nan")}, InputError, "NaN"),
        ({"eps": float("inf")}, InputError, "infinite"),
        ({"eps": 1e30}, InputError, "huge"),
        ({"eps": torch.ones(3)}, InputError, "one per example"),
        ({"norm": "l3"}, InputError, "l3"),
        ({"clip": (1.0, 0.0)}, InputError, "low < high"),
        ({"methods": ("duel",)}, InputError, "duel"),
        ({"methods": (), "attack": None}, InputError, "nothing to do"),
        ({"attack": "cw"}, InputError, "cw"),
        ({"attack": AttackOptions(steps=0)}, InputError, "at least 1"),
        ({"shard": 0}, InputError, "shard"),
        ({"x": torch.rand(40, 7)}, InputError, "float32 \\[40, 7\\]|shape"),
        ({"x": torch.rand(0, 2, 3), "labels": torch.zeros(0, dtype=torch.int64)}, InputError, "no example"),
        ({"x": torch.full((40, 2, 3), torch.nan)}, InputError, "NaN"),
        ({"x": torch.ones(40, 2, 3, dtype=torch.int64)}, InputError, "floating point"),
        ({"x": torch.ones(40, 2, 3, dtype=torch.float16)}, InputError, "float32 or float64"),
        ({"x": torch.ones(40, 2, 3, dtype=torch.float64)}, InputError, "float64"),
        ({"labels": torch.zeros(39, dtype=torch.int64)}, LabelError, "one per example"),
        ({"labels": torch.zeros(40)}, LabelError, "integers"),
        ({"labels": torch.full((40,), 4)}, LabelError, "0 … 3"),
        ({"labels": torch.full((40,), -1)}, LabelError, "0 … 3"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    model: nn.Module, x: Tensor, labels: Tensor, change: dict, error: type[Exception], words: str
) -> None:
    call = {"x": x, "labels": labels, "eps": 0.1, **change}
    with pytest.raises(error, match=words) as caught:
        certify(model, call.pop("x"), call.pop("labels"), **call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("methods", [("dual",), ()])
def test_networks_that_do_not_fit_are_refused(model: nn.Module, x: Tensor, labels: Tensor, methods: tuple) -> None:
    broken = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        broken[1].bias[2] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity .first in 1.bias"):
        certify(broken, x, labels, eps=0.1, methods=methods)
    with pytest.raises(TrainingModeError, match="eval"):
        certify(model.train(), x, labels, eps=0.1, methods=methods)
    with pytest.raises(InputError, match="classes"):
        certify(nn.Sequential(nn.Flatten(), nn.Linear(6, 1)).eval(), x, eps=0.1, methods=methods)
    huge = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        huge[1].weight.fill_(3e38)
    with pytest.raises(InputError, match="infinity for example 0"):
        certify(huge, x, labels, eps=0.1, methods=methods)


def test_the_summary_counts_what_the_statuses_say(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    result = certify(model, x, labels, eps=0.05)
    summary = result.summary(per_class=True)
    count = {status: int((result.status == status).sum()) for status in set(result.status.tolist())}
    assert summary["clean_error"]["count"] == count["misclassified"] == 5
    assert summary["attack_error"]["count"] == count["misclassified"] + count["falsified"]
    assert summary["certified_error_bound"]["count"] == 40 - count["certified"]
    assert sum(summary["method"].values()) == count["certified"]
    for key in ("clean_error", "attack_error", "certified_error_bound"):
        assert sum(found[key]["count"] for found in summary["per_class"].values()) == summary[key]["count"]
    assert certify(model, x, labels, eps=0.05, attack=None).summary()["attack_error"] is None


def test_json_holds_the_settings_and_every_example(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    result = certify(model, x, labels, eps=0.05, clip=(0, 1))
    found = json.loads(result.to_json())
    assert found["format"] == "ironbound-certification/1"
    settings = found["settings"]
    assert (settings["eps"], settings["norm"], settings["clip"]) == (0.05, "linf", [0.0, 1.0])
    assert settings["unit"] == "units of the data as loaded"
    assert settings["versions"]["ironbound"] == ironbound.__version__
    assert settings["versions"]["torch"] == str(torch.__version__)
    assert found["seconds"].keys() == {"prediction", "bounds", "attack"}
    examples = found["examples"]
    assert {len(column) for column in examples.values()} == {40}
    for status, margin, prediction, label in zip(
        examples["status"], examples["margin"], examples["prediction"], examples["label"], strict=True
    ):
        assert (status == "misclassified") == (prediction != label)
        assert status != "certified" or margin > 0
        assert status != "misclassified" or margin is None


@pytest.mark.parametrize(("count", "n"), [(0, 10), (10, 10), (1, 10), (582, 10_000), (5, 7)])
def test_the_interval_is_wilsons(count: int, n: int) -> None:
    expected = binomtest(count, n).proportion_ci(0.95, method="wilson")
    found = rate(count, n)
    assert found["fraction"] == count / n
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found["low"] <= found["fraction"] <= found["high"] <= 1


def test_a_point_within_reach_is_found(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    """With a large radius every right answer of this network can be changed, and PGD finds how."""
    result = certify(model, x, labels, eps=2.0)
    assert set(result.status.tolist()) <= {"misclassified", "falsified", "unknown"}
    assert (result.status == "falsified").any()
    region = LinfBall(x, 2.0)
    chosen = sorted(result.adversarial)
    assert region[torch.tensor(chosen)].contains(torch.stack([result.adversarial[at] for at in chosen])).all()
