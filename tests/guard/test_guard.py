"""The guard in torch: what it promises, what it flags, and that it keeps its budget of time."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import ironbound as ib
from cases import CASES, Case
from ironbound.attacks import pgd
from ironbound.errors import InputError
from ironbound.guarding.deadline import Deadline

MLP = next(case for case in CASES if case.name == "mlp")
SMALL = [case for case in CASES if case.name in ("mlp", "convolutional", "max-pooling", "tanh")]


@cache
def _balanced(case: Case) -> nn.Module:
    """With outputs that are 0 on average, so that no class always wins."""
    model = case.model(seed=7)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= model(case.inputs(batch=200)).mean(0)
    return model


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_false_negatives(case: Case, norm: str) -> None:
    """Whatever an attack makes of x, the guard flags where the answer is another than at x."""
    model, x = _balanced(case), case.inputs(batch=60)
    eps = {"linf": 0.2, "l2": 0.5}[norm] * (1 if case.name in ("mlp", "tanh") else 5)
    with torch.no_grad():
        labels = model(x).argmax(1)
    region = (ib.LinfBall if norm == "linf" else ib.L2Ball)(x, eps * 0.9999)
    attacked = pgd(model, region, labels, steps=20, targeted=True).points.detach()
    found = ib.Guard(model, eps, norm)(attacked)
    fooled = found.predictions != labels
    assert fooled.any()
    assert found.flagged[fooled].all()
    assert ((found.margins > 0) >= found.safe).all()


def test_a_shifted_batch_is_decided_row_by_row() -> None:
    model, x = MLP.model(), MLP.inputs(batch=20)
    guard = ib.Guard(model, 0.02)
    whole, shifted = guard(x), guard(x.roll(7, 0))
    assert whole.safe.any()
    assert torch.equal(whole.safe.roll(7), shifted.safe)
    torch.testing.assert_close(whole.margins.roll(7), shifted.margins)
    assert guard(x[3:4]).safe[0] == whole.safe[3]


def test_the_answer_agrees_with_certify() -> None:
    model, x = MLP.model(seed=2), MLP.inputs(batch=30)
    found = ib.Guard(model, 0.05)(x)
    certified = ib.certify(model.double(), x.double(), None, eps=0.05, methods=("dual",), attack=None)
    assert [status == "certified" for status in certified.status] == found.safe.tolist()


def test_broken_inputs_are_flagged_alone() -> None:
    model, x = MLP.model(), MLP.inputs(batch=5).clamp(-1, 1)
    guard = ib.Guard(model, 0.001, clip=(-1, 1))
    assert guard(x).safe.all()
    broken = x.clone()
    broken[0, 0], broken[1, 0], broken[2, 0] = torch.nan, torch.inf, 1.001
    found = guard(broken)
    assert found.safe.tolist() == [False, False, False, True, True]
    assert found.reasons == ("not finite", "not finite", "outside clip", "", "")
    assert found.predictions[:2].tolist() == [-1, -1]
    assert torch.isneginf(found.margins[:3]).all()
    assert found.answers[0] == "flagged" and found.answers[4] == "cannot be adversarial"


def test_a_network_that_overflows_is_flagged() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(1e200)
    found = ib.Guard(model, 0.1)(torch.ones(2, 2, dtype=torch.float64))
    assert not found.safe.any()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 5, dtype=torch.float64),
        torch.zeros(2, 5, dtype=torch.int64),
        torch.zeros(2, 4),
        torch.zeros(5),
        [[0.0] * 5],
    ],
    ids=["float64", "integers", "shape", "no batch", "list"],
)
def test_what_does_not_fit_is_refused(wrong: object) -> None:
    guard = ib.Guard(MLP.model(), 0.1, shape=(5,))
    with pytest.raises(InputError):
        guard(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf"), "0.1", None, True])
def test_a_wrong_radius_is_refused(eps: object) -> None:
    with pytest.raises(InputError):
        ib.Guard(MLP.model(), eps)  # type: ignore[arg-type]


def test_wrong_queries_are_refused() -> None:
    for options in ({"norm": "l3"}, {"clip": (1, 0)}, {"latency": 0.0}, {"methods": ("magic",), "shape": (5,)}):
        with pytest.raises(InputError):
            ib.Guard(MLP.model(), 0.1, **options)  # type: ignore[arg-type]


def test_an_empty_batch() -> None:
    found = ib.Guard(MLP.model(), 0.1)(torch.zeros(0, 5))
    assert len(found) == 0 and found.logits.shape == (0, 3) and found.predictions.dtype == torch.int64


class Clock:
    """A clock that stands still until work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_deadline_is_kept_with_room_to_spare() -> None:
    clock = Clock()
    deadline = Deadline(1.0, clock)

    def work(seconds: float) -> None:
        clock.now += seconds

    deadline.timed("dual", 1, lambda: work(0.01))
    start, done = clock.now, 0
    while size := deadline.affordable("dual", start, 64):
        deadline.timed("dual", size, lambda count=size: work(0.01 * count))
        done += size
    assert clock.now - start <= 1.0
    assert done >= 90
    assert Deadline(None, clock).affordable("dual", -1e9, 64) == 64


def test_what_is_not_decided_in_time_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = MLP.model(), MLP.inputs(batch=5)
    guard = ib.Guard(model, 1e-6, latency=60.0, shape=(5,))
    assert guard.methods == ("interval", "dual")
    assert guard(x).safe.all()
    monkeypatch.setattr(Deadline, "affordable", lambda self, method, start, most: 2 if method == "interval" else 0)
    wide = ib.Guard(model, 0.6, latency=60.0, shape=(5,))(x)
    assert not wide.safe.any() and set(wide.reasons) == {"out of time"}
    monkeypatch.setattr(Deadline, "affordable", lambda self, method, start, most: 0)
    late = guard(x)
    assert not late.safe.any() and set(late.reasons) == {"out of time"}
    assert (late.predictions >= 0).all()


def test_flags_nothing_less_than_the_truth_on_a_line() -> None:
    """One weight: the distance to the boundary is known, so the guard must turn over exactly there."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.zero_()
    found = ib.Guard(model.eval(), 0.5)(torch.tensor([[0.25], [0.5], [0.5001], [-0.6]]))
    assert found.safe.tolist() == [False, False, True, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    model, x = MLP.model(), MLP.inputs(batch=20)
    here = ib.Guard(model, 0.05)(x)
    there = ib.Guard(MLP.model().cuda(), 0.05)(x.cuda())
    assert there.safe.cpu().tolist() == here.safe.tolist()
