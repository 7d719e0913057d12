"""Training terms: the solver's values and their gradients are those of the solved programs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.errors import InputError, LabelError
from ironbound.semidefinite.pairwise import sdp
from ironbound.training.losses import semidefinite as training
from ironbound.training.losses.semidefinite import (
    dual_bounds,
    pair_shares,
    pair_values,
    sdp_hinge,
    sdp_value,
    set_solver_state,
    solver_state,
)
from semidefinite.sdp_cases import model

EPS = 0.2


def region(batch: int = 5, dtype: torch.dtype = torch.float64) -> ib.LinfBall:
    """Points of [0, 1]."""
    return ib.LinfBall(torch.rand(batch, 4, generator=torch.Generator().manual_seed(1), dtype=dtype), EPS)


def solved(net: nn.Module) -> Tensor:
    """The programs' values to eight digits."""
    return sdp(net, torch.zeros(1, 4, dtype=torch.float64), gap=1e-8).matrix("primal")


class Normalised(nn.Module):
    """Factors before both layers and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        return self.last(torch.relu(self.first((x - 0.1) / 0.3) * 0.7) * 1.5) * 0.9


def normalised() -> nn.Module:
    """A network with factors."""
    torch.manual_seed(0)
    return Normalised().eval()


@pytest.mark.parametrize("make", [model, lambda: model(activation=nn.Sigmoid), normalised])
def test_values_become_those_of_the_solved_programs(make) -> None:
    net = make().double()
    with torch.no_grad():
        first = pair_values(net, region())
        for _ in range(20):
            last = pair_values(net, region(), steps=20)
    exact = solved(net)
    assert torch.allclose(last, exact, rtol=1e-6)
    assert (first <= exact * (1 + 1e-9)).all() and (last <= exact * (1 + 1e-7)).all()
    assert torch.equal(last, last.T)


@pytest.mark.parametrize("make", [model, lambda: model(activation=nn.Sigmoid), normalised])
def test_gradients_are_finite_differences_of_the_solved_programs(make) -> None:
    net = make().double()
    with torch.no_grad():
        pair_values(net, region(), steps=600)
    parts = [parameter for parameter in net.parameters() if parameter.dim() == 2]
    weights = torch.rand(3, 3, dtype=torch.float64)
    gradients = torch.autograd.grad((weights * pair_values(net, region())).sum(), parts)
    for seed, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        direction = torch.randn(part.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(net)
            target = dict(moved.named_parameters())[next(n for n, p in net.named_parameters() if p is part)]
            with torch.no_grad():
                target.add_(sign * 1e-4 * direction)
            ends.append((weights * solved(moved)).sum())
        slope = float(ends[0] - ends[1]) / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_the_hinge_is_its_formula() -> None:
    net, labels = model().double(), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        pair_values(net, region(), steps=400)
    found = sdp_hinge(net, region(), labels, margin=0.3)
    logits, values = net(region().center).detach(), solved(net)
    assert found.each is not None
    for place, y in enumerate(labels.tolist()):
        worst = max(float(logits[place, i] - logits[place, y] + EPS * values[i, y]) for i in range(3) if i != y)
        assert float(found.each[place]) == pytest.approx(max(0.0, 0.3 + worst), abs=1e-6)
        assert bool(found.wrong[place]) == (worst >= 0)
    assert float(found.value.detach()) == pytest.approx(float(found.each.mean()))
    (gradient,) = torch.autograd.grad(found.value, [net[2].bias])
    assert float(gradient.abs().sum()) > 0
    halves = torch.tensor([2.0, 0, 0, 0, 0])
    assert float(sdp_hinge(net, region(), labels, margin=0.3, weights=halves).value.detach()) == pytest.approx(
        float(found.each[0]) * 2 / 5, abs=1e-6
    )


def test_the_regularizer_is_the_sum_over_ordered_pairs() -> None:
    net, labels = model().double(), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        pair_values(net, region(), steps=400)
    exact = 4 * solved(net)
    assert float(sdp_value(net, region(), labels).detach()) == pytest.approx(float(exact.sum()), rel=1e-6)
    shares = pair_shares(net, region(), labels, exact / 4)
    weighed = sdp_value(net, region(), labels, weigh=True)
    assert float(weighed.detach()) == pytest.approx(float((shares * exact).sum()), rel=1e-5)
    kept = solver_state(net)
    assert kept is not None and torch.equal(kept["shares"], shares)


def test_shares_count_the_deciding_pairs() -> None:
    net, labels = model().double(), torch.tensor([0, 1, 2, 0, 1])
    values = solved(net)
    shares = pair_shares(net, region(), labels, values)
    counted = torch.zeros(3, 3, dtype=torch.float64)
    logits = net(region().center).detach()
    for place, y in enumerate(labels.tolist()):
        i = max((i for i in range(3) if i != y), key=lambda i: float(logits[place, i] + EPS * values[i, y]))
        counted[i, y] += 0.2
        counted[y, i] += 0.2
    assert torch.allclose(shares, counted)
    assert float(shares.triu().sum()) == pytest.approx(1)


def test_training_brings_the_certified_error_down() -> None:
    torch.manual_seed(0)
    x = torch.rand(300, 4)
    y = (x[:, 0] > 0.5).long()
    keep = (x[:, 0] - 0.5).abs() > 0.15
    x, y = x[keep], y[keep]
    net = model(neurons=20, classes=2)
    ball = ib.LinfBall(x, 0.1)
    before = float(sdp_hinge(net, ball, y).wrong.double().mean())
    adam = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        adam.zero_grad()
        sdp_hinge(net, ball, y).value.backward()
        adam.step()
    dual = sdp(net, x[:1]).matrix()[y]
    logits = net(x).detach().double()
    margins = (logits.gather(1, y[:, None]) - logits - 0.1 * dual).scatter(1, y[:, None], torch.inf)
    assert float((margins.amin(1) <= 0).double().mean()) < 0.05 < before


def test_the_state_resumes_bit_for_bit() -> None:
    net, labels = model(), torch.tensor([0, 1, 2, 0, 1])
    ball = region(dtype=torch.float32)
    assert solver_state(net) is None
    for _ in range(3):
        sdp_value(net, ball, labels, weigh=True)
    kept = copy.deepcopy(solver_state(net))
    assert kept is not None
    going_on = [float(sdp_value(net, ball, labels, weigh=True).detach()) for _ in range(2)]
    again = copy.deepcopy(net)
    set_solver_state(again, kept)
    assert [float(sdp_value(again, ball, labels, weigh=True).detach()) for _ in range(2)] == going_on
    set_solver_state(again, None)
    assert float(sdp_value(again, ball, labels, weigh=True).detach()) != going_on[0]


def test_the_state_follows_the_network() -> None:
    net = model()
    pair_values(net, region(dtype=torch.float32))
    pair_values(net.double(), region(), rank=5)
    kept = solver_state(net)
    assert kept is not None and kept["rest"].shape[2] == 5 and kept["rest"].dtype == torch.float64
    gone = weakref.ref(net)
    del net, kept
    gc.collect()
    assert gone() is None and all(key is not None for key in training._progress)


@pytest.mark.parametrize("make", [model, lambda: model(activation=nn.Sigmoid), normalised])
def test_the_vectors_at_hand_give_bounds(make) -> None:
    net = make().double()
    exact = solved(net)
    with pytest.raises(InputError, match="has not seen this network"):
        dual_bounds(net, region())
    with torch.no_grad():
        pair_values(net, region(), rank=3)
    early = dual_bounds(net, region())
    with torch.no_grad():
        pair_values(net, region(), rank=8, steps=400)
    late = dual_bounds(net, region())
    own = torch.eye(3, dtype=torch.bool)
    assert torch.equal(late, late.T) and (late[own] == 0).all()
    assert (early[~own] > exact[~own] * (1 + 1e-4)).all()  # far from solved, yet a bound
    assert (late >= exact).all() and torch.allclose(late, exact, rtol=1e-3)


def test_arguments_are_checked() -> None:
    net, labels = model().double(), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(InputError, match="rank"):
        pair_values(net, region(), rank=1)
    with pytest.raises(InputError, match="steps"):
        pair_values(net, region(), steps=0)
    ball = ib.L2Ball(region().center, 0.1)
    with pytest.raises(InputError, match="l-infinity"):
        sdp_hinge(net, ball, labels)
    with pytest.raises(InputError, match="l-infinity"):
        sdp_value(net, ball, labels, weigh=True)
    with pytest.raises(LabelError):
        sdp_hinge(net, region(), labels + 3)
    deep = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    with pytest.raises(InputError, match="two linear layers around one activation"):
        sdp_value(deep, region(), labels)
    with pytest.raises(InputError, match="two linear layers around one activation"):
        sdp_value(nn.Linear(4, 3).double().eval(), region(), labels)
