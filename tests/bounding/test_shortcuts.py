"""Work that the bounds of `dual` leave out changes no number: dead channels, rows closed on the way, shared maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound.attacks import pgd
from ironbound.bounding import bounds, margins, parallel, spread
from ironbound.bounding.backward import Band
from ironbound.bounding.pruning import without_dead_channels
from ironbound.capture import capture
from ironbound.regions import Region, ball

LABELS = torch.tensor([0, 2, 1])


class Branches(nn.Module):
    """A map read by two layers, and a sum that needs every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x)) + torch.relu(self.third(x))
        return self.last(torch.relu(y).flatten(1))


def _networks() -> dict[str, nn.Module]:
    deep = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 4, 2, 1), nn.ReLU(), nn.Conv2d(12, 6, 3)]
    return {
        "convolutions": nn.Sequential(*deep, nn.ReLU(), nn.Flatten(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 40),
                                      nn.ReLU(), nn.Linear(40, 3)),
        "linear": nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 6), nn.ReLU(),
                                nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)),
        "branches": Branches(),
        "map out": nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 4), nn.ReLU(), nn.Flatten()),
        "smooth": nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(72, 10), nn.Sigmoid(),
                                nn.Linear(10, 3)),
    }  # fmt: skip


def _network(name: str) -> nn.Module:
    """A network of which every second channel, and most neurons of the narrow layers, are dead."""
    torch.manual_seed(3)
    model = _networks()[name].double().eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.mul_(1.5)
                if part.weight.shape[0] not in (3, 6, 40) and part.bias is not None:
                    part.bias[::2] -= 6
    return model


def _region(norm: str) -> Region:
    torch.manual_seed(5)
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    eps = {"linf": 0.1, "l2": 0.4, "l1": 0.8}[norm] * torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    return ball(norm, x, eps, (-5.0, 5.0) if norm == "l1" else None)


def _plain(patch: pytest.MonkeyPatch) -> None:
    """Takes every shortcut out."""
    patch.setattr(parallel, "without_dead_channels", lambda graph, index, band: (graph, None))
    patch.setattr(spread, "narrow_layer", lambda graph, bands, target: None)
    exact = spread.exact_rows
    patch.setattr(parallel, "exact_rows", lambda state, target, index, budget, closes=None: exact(
        state, target, index, budget))  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", list(_networks()))
def test_the_shortcuts_change_no_number(name: str, norm: str) -> None:
    graph, region = capture(_network(name), torch.rand(2, 1, 6, 6, dtype=torch.float64)), _region(norm)
    with torch.no_grad():
        found, lower = bounds(graph, region), margins(graph, region, LABELS)
        with pytest.MonkeyPatch.context() as patch:
            _plain(patch)
            expected, plain = bounds(graph, region), margins(graph, region, LABELS)
    for one, other in ((found.lower, expected.lower), (found.upper, expected.upper), (lower, plain)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", list(_networks()))
def test_no_attack_beats_the_bounds(name: str, norm: str) -> None:
    # all shortcuts on: nothing that is sampled or attacked leaves the bounds
    region = _region(norm)
    graph = capture(_network(name), region.center)
    many = region[torch.arange(3).repeat_interleave(400)]
    labels = LABELS.repeat_interleave(400)
    attack = pgd(graph, many, labels, steps=20, targeted=True, seed=1)
    points = torch.cat([many.sample(torch.Generator().manual_seed(0)), attack.points])
    with torch.no_grad():
        found, lower, values = bounds(graph, region), margins(graph, region, LABELS), graph(points)
    example = torch.arange(3).repeat_interleave(400).repeat(2)
    assert bool((values >= found.lower[example] - 1e-9).all() and (values <= found.upper[example] + 1e-9).all())
    differences = values.gather(1, LABELS[example].unsqueeze(1)) - values
    assert bool((differences >= lower[example] - 1e-9).all())


@pytest.mark.parametrize("name", list(_networks()))
def test_the_shortcuts_change_no_gradient(name: str) -> None:
    model = _network(name)

    def gradients() -> list[Tensor]:
        region = _region("linf")
        graph = capture(model, region.center)
        return list(torch.autograd.grad(margins(graph, region, LABELS).tanh().sum(), list(model.parameters())))

    found = gradients()
    with pytest.MonkeyPatch.context() as patch:
        _plain(patch)
        expected = gradients()
    assert any(bool((part != 0).any()) for part in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_each_shortcut_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"pruned": 0, "closed": 0, "shared": 0}
    prune, share, write = parallel.without_dead_channels, spread.shared_maps, spread._Spreading._write

    def pruned(graph, index, band):
        result = prune(graph, index, band)
        taken["pruned"] += result[1] is not None
        return result

    def shared(*arguments):
        taken["shared"] += 1
        return share(*arguments)

    def closed(self, which, down, up):
        taken["closed"] += len(which)
        return write(self, which, down, up)

    monkeypatch.setattr(parallel, "without_dead_channels", pruned)
    monkeypatch.setattr(spread, "shared_maps", shared)
    monkeypatch.setattr(spread._Spreading, "_write", closed)
    with torch.no_grad():
        bounds(_network("convolutions"), _region("linf"))
    assert all(taken.values()), taken


def test_maps_that_the_budget_cannot_hold_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    share, made = spread.shared_maps, []
    monkeypatch.setattr(spread, "shared_maps", lambda *arguments: made.append(1) or share(*arguments))
    model, region = _network("convolutions"), _region("linf")
    with torch.no_grad():
        whole, few = bounds(model, region), len(made)
        small = bounds(model, region, memory=100)
    assert 0 < few == len(made)
    torch.testing.assert_close(small.lower, whole.lower, rtol=0, atol=1e-11)


def test_rows_closed_on_the_way_are_closed_by_the_exact_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, compared = spread.exact_rows, 0

    def watched(state, target, index, budget, closes=None):
        nonlocal compared
        down, up = exact(state, target, index, budget, closes)
        least, most = exact(state, target, index, budget)
        assert bool((down >= least - 1e-12).all() and (up >= most - 1e-12).all())
        if closes is not None:
            which = torch.arange(len(index))
            assert torch.equal(closes(which, torch.maximum(down, up)), closes(which, torch.maximum(least, most)))
            compared += int((down > least + 1e-9).sum())
        return down, up

    monkeypatch.setattr(parallel, "exact_rows", watched)
    with torch.no_grad():
        for name in ("convolutions", "branches", "linear"):
            bounds(_network(name), _region("linf"))
    assert compared > 0


def test_a_channel_that_is_not_a_number_stays() -> None:
    graph = capture(_network("convolutions"), torch.rand(2, 1, 6, 6, dtype=torch.float64))
    slope = torch.zeros(2, *graph.nodes[2].shape, dtype=torch.float64)
    slope[0, 1], slope[1, 4, 0, 0] = 0.5, torch.nan
    smaller, kept = without_dead_channels(graph, 2, Band(slope, torch.zeros_like(slope), torch.zeros_like(slope)))
    assert kept is not None and kept.tolist() == [1, 4]
    assert smaller.nodes[1].shape[0] == smaller.nodes[2].shape[0] == smaller.nodes[3].operator.weight.shape[1] == 2
    value = torch.rand(2, *smaller.nodes[2].shape, dtype=torch.float64)
    padded = torch.zeros(2, *graph.nodes[2].shape, dtype=torch.float64).index_copy(1, kept, value)
    torch.testing.assert_close(smaller.nodes[3].operator.forward(value), graph.nodes[3].operator.forward(padded))


def test_the_output_keeps_its_shape() -> None:
    graph = capture(_network("map out"), torch.rand(2, 1, 6, 6, dtype=torch.float64))
    dead = torch.zeros(2, *graph.nodes[4].shape, dtype=torch.float64)
    dead[:, 0] = 1
    smaller, kept = without_dead_channels(graph, 4, Band(dead, dead, dead))
    assert smaller is graph and kept is None
