"""`margins` and `bounds` by "sdp" and "sdp-chord": sound, ordered, for the regions they are made for, solved once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.bounding.methods import EXACT
from ironbound.errors import InputError
from ironbound.semidefinite import methods, speeds
from ironbound.semidefinite.slopes import chord_range
from semidefinite.sdp_cases import largest_gradient, model, network

METHODS = ("sdp", "sdp-chord")
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU, lambda: nn.Hardtanh(-0.4, 0.6), nn.Sigmoid, nn.SiLU)


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXACT, "sdp", ("ironbound.semidefinite.methods", "sdp"))
    monkeypatch.setitem(EXACT, "sdp-chord", ("ironbound.semidefinite.methods", "sdp_chord"))
    speeds._kept.clear()


def inputs(batch: int = 4, low: float = 0.0) -> Tensor:
    """Points of [0, 1]."""
    return low + (1 - low) * torch.rand(batch, 4, generator=torch.Generator().manual_seed(1))


def corners(region: ib.LinfBall, extra: int = 200) -> Tensor:
    """Corners and random points of every example's box, [points, batch, inputs]."""
    lower, upper = region.box()
    signs = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=lower.dtype)
    shares = torch.cat([signs, torch.rand(extra, 4, dtype=lower.dtype)])
    return lower + shares[:, None] * (upper - lower)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_point_of_the_region_beats_a_bound(method: str, clip: tuple[float, float] | None, activation) -> None:
    for seed, eps in ((0, 0.05), (1, 0.4)):
        net, x = model(seed=seed, activation=activation), inputs()
        with torch.no_grad():
            net[2].weight.mul_(5)
        region = ib.LinfBall(x, eps, clip)
        labels = net(x).argmax(1)
        margins = ib.margins(net, region, labels, method)
        found = ib.bounds(net, region, method)
        with torch.no_grad():
            outputs = net.double()(corners(region).double())
        own = outputs.gather(2, labels.expand(len(outputs), -1)[..., None])
        assert (own - outputs >= margins.double() - 1e-12).all()
        assert (outputs >= found.lower.double() - 1e-12).all()
        assert (outputs <= found.upper.double() + 1e-12).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_those_of_the_relaxation(method: str, seed: int) -> None:
    net, x, eps = model(seed=seed).double(), inputs().double(), 0.3
    read = network(model(seed=seed))
    region = ib.LinfBall(x, eps)
    found = ib.bounds(net, region, method)
    assert read.output is not None and read.activation is not None
    center, radius = methods._middle(region)
    for place in range(len(x)):
        value, error = read.neurons(center[place : place + 1])
        reach = radius[place] @ read.hidden.weight.abs().T
        low, high = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
        if method == "sdp-chord":
            low, high = chord_range(read.activation, value[0], error[0], reach)
        for output, v in enumerate(read.output.weight):
            exact = largest_gradient(read.hidden.weight, v, low, high, radius[place])
            half = float(found.upper[place, output] - found.lower[place, output]) / 2
            assert exact <= half <= 1.7823 * 1.002 * exact


@pytest.mark.parametrize("seed", range(3))
def test_chord_slopes_are_tighter(seed: int) -> None:
    net, x = model(neurons=12, seed=seed).double(), inputs(6).double()
    plain, chord, clipped = (
        ib.bounds(net, region, method)
        for region, method in (
            (ib.LinfBall(x, 0.2), "sdp"),
            (ib.LinfBall(x, 0.2), "sdp-chord"),
            (ib.LinfBall(x, 0.2, (0, 1)), "sdp-chord"),
        )
    )
    widths = [found.upper - found.lower for found in (plain, chord, clipped)]
    assert (widths[1] <= widths[0] * 1.0015).all() and widths[1].sum() < 0.95 * widths[0].sum()
    assert (widths[2] <= widths[1] * 1.0015).all() and widths[2].sum() < 0.99 * widths[1].sum()


def test_signs_of_margins_are_those_of_the_solved_programs() -> None:
    net, x = model(neurons=12, classes=5, seed=2).double(), inputs(12).double()
    with torch.no_grad():
        net[2].weight.mul_(3)
    labels = net(x).argmax(1)
    for eps in (0.02, 0.05, 0.1):
        region = ib.LinfBall(x, eps)
        margins = ib.margins(net, region, labels, "sdp-chord")
        center, radius = methods._middle(region)
        read = network(model(neurons=12, classes=5, seed=2))
        read.output.weight.mul_(3)  # type: ignore[union-attr]
        eye = torch.eye(5, dtype=torch.float64)
        for place, label in enumerate(labels.tolist()):
            rows = eye[label] - eye[[other for other in range(5) if other != label]]
            reach = methods.chord_reach(read, center[place], radius[place], rows, methods.CHORD)
            lower = read.functionals(center, rows, torch.full((4,), place)) - reach
            quick = margins[place][torch.arange(5) != label]
            clear = lower.abs() > 1e-2
            assert ((quick > 0) == (lower > 0))[clear].all()


def test_a_sign_is_known_by_the_bound_or_by_the_value() -> None:
    enough = methods._decided(torch.tensor([9.0, 1, 1, 1]), 0.1)
    index = torch.tensor([1, 2, 3])
    primal, dual = torch.tensor([0.5, 0.5, 1.2]), torch.tensor([0.85, 0.95, 1.5])
    assert enough(primal, dual, index).tolist() == [True, False, True]


def test_layers_hold_what_neurons_read() -> None:
    net, x = model().double(), inputs().double()
    for method, clip in (("sdp", None), ("sdp-chord", None), ("sdp-chord", (0.0, 1.0))):
        region = ib.LinfBall(x, 0.2, clip)
        ((lower, upper),) = ib.bounds(net, region, method).layers.values()
        read = net[0](corners(region))
        assert (read >= lower).all() and (read <= upper).all()
        assert torch.allclose(torch.stack([read.amin(0), read.amax(0)]), torch.stack([lower, upper]), atol=1e-9)


@pytest.mark.parametrize("clip", [None, (0.1, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_hold_the_region_in_both_arithmetics(clip: tuple[float, float] | None, dtype: torch.dtype) -> None:
    x = (0.1 + 0.6 * torch.rand(200, 4)).clamp(0.11, 0.69).to(dtype)
    region = ib.LinfBall(x, 0.1, clip)
    center, radius = methods._middle(region)
    ends = region.box()
    for c, r, z, low, high in zip(*(part.flatten().tolist() for part in (center, radius, x, *ends)), strict=True):
        left, right = Fraction(c) - Fraction(r), Fraction(c) + Fraction(r)
        eps = Fraction(region.eps.item())
        exact = [Fraction(z) - eps, Fraction(z) + eps]
        if clip is not None:
            exact = [max(exact[0], Fraction(clip[0])), min(exact[1], Fraction(clip[1]))]
        assert left <= min(Fraction(low), exact[0]) and right >= max(Fraction(high), exact[1])


def test_half_widths_of_boxes_are_rounded_up() -> None:
    ends = torch.randn(300, 2, 4, dtype=torch.float64) * 10.0 ** torch.randint(-9, 9, (300, 2, 4))
    box = ib.Box(ends.amin(1), ends.amax(1))
    parts = (*methods._middle(box), box.lower, box.upper)
    for c, r, low, high in zip(*(part.flatten().tolist() for part in parts), strict=True):
        assert Fraction(c) - Fraction(r) <= Fraction(low) and Fraction(high) <= Fraction(c) + Fraction(r)


def test_linear_classifiers_are_bounded_exactly() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3).eval().double(), inputs().double()
    labels = net(x).argmax(1)
    weight = net.weight.detach()
    exact = net(x).gather(1, labels[:, None]) - net(x) - 0.1 * (weight[labels][:, None] - weight).abs().sum(2)
    for method in METHODS:
        margins = ib.margins(net, ib.LinfBall(x, 0.1), labels, method)
        assert torch.allclose(margins, exact, atol=1e-12)
        assert ib.bounds(net, ib.LinfBall(x, 0.1), method).layers == {}


def test_one_eps_for_each_example() -> None:
    net, x = model(), inputs()
    labels, eps = torch.zeros(4, dtype=torch.long), torch.tensor([0.0, 0.1, 0.2, 0.3])
    for method in METHODS:
        together = ib.margins(net, ib.LinfBall(x, eps), labels, method)
        for place in range(4):
            alone = ib.margins(net, ib.LinfBall(x[place : place + 1], float(eps[place])), labels[:1], method)
            assert torch.allclose(together[place], alone[0], atol=2e-3)
        assert torch.allclose(together[0], net(x)[0, 0] - net(x)[0], atol=1e-5)


def test_networks_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    solve = speeds.solved
    monkeypatch.setattr(speeds, "solved", lambda posed, effort: calls.append(len(posed)) or solve(posed, effort))
    net, x = model(), inputs(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    first = ib.margins(net, ib.LinfBall(x, 0.1), labels, "sdp")
    assert calls == [3]  # (0, 1) is (1, 0)
    ib.margins(net, ib.LinfBall(x, 0.3), labels, "sdp")
    ib.margins(model().double(), ib.LinfBall(x.double(), 0.1), labels, "sdp")
    assert calls == [3]  # another radius, a float64 copy
    with torch.no_grad():
        net[0].weight.mul_(2)
    second = ib.margins(net, ib.LinfBall(x, 0.1), labels, "sdp")
    net[2].weight.data.mul_(2)  # changes no version counter
    third = ib.margins(net, ib.LinfBall(x, 0.1), labels, "sdp")
    assert calls == [3, 3, 3]
    assert not torch.allclose(first, second) and not torch.allclose(second, third)
    ib.margins(model(activation=nn.Sigmoid), ib.LinfBall(x, 0.1), labels, "sdp")
    assert calls == [3, 3, 3, 3]  # the same weights, other slopes


def test_only_the_latest_networks_are_kept() -> None:
    x, labels = inputs(1), torch.zeros(1, dtype=torch.long)
    for seed in range(speeds._NETWORKS + 2):
        ib.margins(model(seed=seed), ib.LinfBall(x, 0.1), labels, "sdp")
    assert len(speeds._kept) == speeds._NETWORKS


class _Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)) + x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)), "alone"),
        (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), "follows another linear layer"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 3)), "does not stand between"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "not followed by a linear layer"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "is a BatchNorm"),
        (_Skip(), "reads something else"),
    ],
)
def test_other_networks_are_refused(net: nn.Module, message: str) -> None:
    for method in METHODS:
        with pytest.raises(InputError, match=message):
            ib.margins(net.eval(), ib.LinfBall(inputs(), 0.1), torch.zeros(4, dtype=torch.long), method)


def test_other_regions_are_refused() -> None:
    net, x, labels = model(), inputs(), torch.zeros(4, dtype=torch.long)
    for method in METHODS:
        with pytest.raises(InputError, match=f"method '{method}' bounds l-infinity balls"):
            ib.margins(net, ib.L2Ball(x, 0.1), labels, method)
    with pytest.raises(InputError, match="one eps for all elements"):
        ib.margins(net, ib.LinfBall(x, torch.full_like(x, 0.1)), labels, "sdp")
    box = ib.Box(x - 0.1, x + 0.2)
    with pytest.raises(InputError, match="use 'sdp-chord' for boxes"):
        ib.margins(net, box, labels, "sdp")
    assert torch.isfinite(ib.margins(net, box, labels, "sdp-chord")).all()
    assert torch.isfinite(ib.margins(net, ib.LinfBall(x, torch.full_like(x, 0.1)), labels, "sdp-chord")).all()
