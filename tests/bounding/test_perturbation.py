"""The optimum of the relaxed problem: equal to the paper's algorithm, attained, inside the region, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from ironbound.bounding import margins
from ironbound.bounding.perturbation import LINEAR_METHODS, OptimalPerturbation, optimal_perturbation
from ironbound.errors import InputError, LabelError
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region, ball
from laws.families import FAMILIES
from laws.writeup import dense_layers
from laws.zhu import algorithm_1

NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "deep": (
        lambda: nn.Sequential(
            nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4)
        ),
        (5,),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 4, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        (1, 8, 8),
    ),
}
EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.7}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_algorithm_1(name: str, norm: str) -> None:
    build, shape = NETWORKS[name]
    model = build().double().eval()
    layers = dense_layers(model, shape)
    x = torch.rand(3, *shape, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1])
    with torch.no_grad():
        found = optimal_perturbation(model, ball(norm, x, EPS[norm]), labels)
    classes = found.margins.shape[1]
    eye = torch.eye(classes, dtype=torch.float64)
    kinds = {True: 0, False: 0}
    for example, label in enumerate(labels.tolist()):
        for other in set(range(classes)) - {label}:
            expected = algorithm_1(layers, x[example].flatten(), EPS[norm], norm, eye[label] - eye[other])
            at = (example, other)
            _close(found.margins[at], expected.margin)
            _close(found.delta[at].flatten(), expected.delta)
            _close(found.points[at].flatten(), x[example].flatten() + expected.delta)
            _close(found.attained[at] - found.margins[at], expected.d)
            for place, node in enumerate(found.nodes.values()):
                is_open = (expected.lower[place] < 0) & (expected.upper[place] > 0)
                low, high = node.lower[example].flatten(), node.upper[example].flatten()
                _close(low[is_open], expected.lower[place][is_open])
                _close(high[is_open], expected.upper[place][is_open])
                _close(node.before[at].flatten(), expected.before[place])
                _close(node.after[at].flatten(), expected.after[place])
                _close(node.network[at].flatten(), expected.network[place])
                raised = node.raised[at].flatten()[is_open]
                assert bool((raised == expected.raised[place][is_open]).all())
                kinds[True] += int(raised.sum())
                kinds[False] += int((~raised).sum())
    assert min(kinds.values()) > 10  # else the comparison says nothing
    own = torch.arange(3), labels
    assert bool((found.delta[own] == 0).all()) and bool((found.margins[own] == 0).all())


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def _regions(x: Tensor) -> list[Region]:
    inside = x.sigmoid()
    one = torch.linspace(0.05, 0.2, len(x), dtype=x.dtype)
    return [
        LinfBall(x, 0.1), LinfBall(x, one), LinfBall(inside, 0.4, (0.0, 1.0)), Box(x - 0.05, x + 0.15),
        L2Ball(x, 0.3), L2Ball(x, 0.3 * torch.rand_like(x)), L1Ball(x, 0.5), L2Ball(inside, 0.9, (0.0, 1.0)),
        L1Ball(inside, 1.5, (0.0, 1.0)), LinfBall(x, 0.0), L2Ball(x, 0.0), L1Ball(inside, 0.0, (0.0, 1.0)),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["dual", "crown"])
@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
@pytest.mark.no_cover
def test_laws_of_every_family(case: Case, method: str) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    for region in _regions(x):
        with torch.no_grad():
            found = optimal_perturbation(model, region, labels, method)
            _close(found.margins, margins(model, region, labels, method))
            for k in range(case.classes):
                point = found.points[:, k]
                assert bool(region.contains(point).all()), (region.norm, region.clip)
                _close(point - region.center, found.delta[:, k])
                logits = model(point)
                _close(found.attained[:, k], logits.gather(1, labels.unsqueeze(1)).squeeze(1) - logits[:, k])
        assert bool((found.attained >= found.margins - 1e-9).all())
        for node in found.nodes.values():
            assert bool((node.network >= node.lower.unsqueeze(1) - 1e-9).all())
            assert bool((node.network <= node.upper.unsqueeze(1) + 1e-9).all())


@pytest.mark.parametrize("method", LINEAR_METHODS)
@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("mlp", "leaky", "sigmoid", "max-pooling")],
                         ids=lambda case: case.name)  # fmt: skip
def test_the_relaxed_network_attains_its_bound(case: Case, method: str) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    assert isinstance(model, nn.Sequential)
    head = model[-1]
    with torch.no_grad():
        for region in (LinfBall(x, 0.2), L2Ball(x, 0.5), L1Ball(x, 0.8), Box(x - 0.1, x + 0.3)):
            found = optimal_perturbation(model, region, labels, method)
            _close(found.margins, margins(model, region, labels, method))
            last = list(found.nodes.values())[-1].after.flatten(2)
            logits = head(last)
            own = torch.arange(3)
            relaxed = logits[own, :, labels] - torch.diagonal(logits, dim1=1, dim2=2)
            relaxed[own, labels] = 0
            _close(relaxed, found.margins)


def test_the_perturbation_of_a_linear_network_is_the_worst() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double().eval()
    x = torch.rand(2, 4, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    for region in _regions(x):
        if region.clip is not None and region.norm != "linf":
            continue  # the better of two sets is only a bound
        with torch.no_grad():
            found = optimal_perturbation(model, region, labels)
            _close(found.attained, found.margins)
            samples = torch.stack([model(region.sample()) for _ in range(200)], 1)
        least = (samples.gather(2, labels.reshape(2, 1, 1).expand(-1, 200, 1)) - samples).amin(1)
        assert bool((least >= found.attained - 1e-9).all())


@pytest.mark.parametrize("make", [L2Ball, L1Ball])
def test_in_a_clipped_ball_the_better_set_decides(make: Any) -> None:
    model = CASES[0].model(dtype=torch.float64)
    x = torch.full((2, 5), 0.5, dtype=torch.float64) + 0.1 * torch.rand(2, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1])
    small, plain = (optimal_perturbation(model, make(x, 0.2, clip), labels) for clip in ((0.0, 1.0), None))
    _close(small.delta, plain.delta)  # the ball does not touch the range
    large = optimal_perturbation(model, make(x, 50.0, (0.0, 1.0)), labels)
    corners = optimal_perturbation(model, Box(torch.zeros_like(x), torch.ones_like(x)), labels)
    other = torch.arange(3) != labels.unsqueeze(1)
    _close(large.points[other], corners.points[other])  # nor the range the ball
    _close(large.margins, corners.margins)


def test_ties_go_down_in_a_box_and_stay_in_an_l2_ball() -> None:
    model = nn.Linear(3, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 2.0]]))
    x = torch.zeros(1, 3, dtype=torch.float64)
    labels = torch.tensor([0])
    _close(optimal_perturbation(model, LinfBall(x, 0.1), labels).delta[0, 1], x.new_tensor([-0.1, -0.1, 0.1]))
    _close(optimal_perturbation(model, L1Ball(x, 0.1), labels).delta[0, 1], x.new_tensor([0.0, 0.0, 0.1]))
    with torch.no_grad():
        model.weight.zero_()
    still = optimal_perturbation(model, L2Ball(x, 0.1), labels)
    assert bool((still.delta == 0).all())
    (gradient,) = torch.autograd.grad(still.attained.sum() + still.margins.sum(), [model.weight])
    assert bool(torch.isfinite(gradient).all())


def test_functionals_are_what_labels_stand_for() -> None:
    case = CASES[0]
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    labels, eye = torch.tensor([2, 0, 1]), torch.eye(3, dtype=torch.float64)
    region = L2Ball(x, 0.3)
    by_labels = optimal_perturbation(model, region, labels)
    functionals = (eye[labels].unsqueeze(1) - eye)[:, :2]
    by_rows = optimal_perturbation(model, region, None, functionals=functionals)
    _close(by_rows.delta, by_labels.delta[:, :2])
    _close(by_rows.margins, by_labels.margins[:, :2])


def test_chunks_change_nothing() -> None:
    case = CASES[3]
    model, x = case.model(dtype=torch.float64), case.inputs(7, dtype=torch.float64)
    labels = torch.arange(7) % 4
    with torch.no_grad():
        whole = optimal_perturbation(model, LinfBall(x, 0.1), labels)
        parts = optimal_perturbation(model, LinfBall(x, 0.1), labels, memory=1 << 14)
    _close(parts.delta, whole.delta)
    for one, other in zip(parts.nodes.values(), whole.nodes.values(), strict=True):
        _close(one.after, other.after)


@pytest.mark.parametrize("make", [LinfBall, L2Ball, L1Ball])
def test_gradients_equal_differences(make: Any) -> None:
    build, shape = NETWORKS["deep"]
    model = build().double().eval()
    x = torch.rand(2, *shape, dtype=torch.float64, requires_grad=True)
    eps = torch.full((2,), 0.2, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(2, 4, dtype=torch.float64)

    def value(center: Tensor, radius: Tensor, *_: Tensor) -> Tensor:
        found = optimal_perturbation(model, make(center, radius), torch.tensor([0, 3]))
        return (found.attained * mix).sum() + (found.delta * mix.unsqueeze(2)).sum() + (found.margins * mix).sum()

    assert torch.autograd.gradcheck(value, (x, eps, *model.parameters()), eps=1e-7, atol=2e-5)


def test_refusals() -> None:
    case = CASES[0]
    model, region = case.model(), LinfBall(case.inputs(), 0.1)
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match="choose one of dual"):
        optimal_perturbation(model, region, labels, "interval")
    with pytest.raises(InputError, match="one of the two"):
        optimal_perturbation(model, region, None)
    with pytest.raises(InputError, match="one of the two"):
        optimal_perturbation(model, region, labels, functionals=torch.zeros(3, 1, 3))
    for wrong in (torch.zeros(3, 3), torch.zeros(2, 1, 3), torch.zeros(3, 0, 3), torch.zeros(3, 1, 4)):
        with pytest.raises(InputError, match="functionals must be"):
            optimal_perturbation(model, region, None, functionals=wrong)
    for value in (torch.full((3, 1, 3), float("nan")), torch.zeros(3, 1, 3, dtype=torch.float64)):
        with pytest.raises(InputError, match="finite and of the region's dtype"):
            optimal_perturbation(model, region, None, functionals=value)
    with pytest.raises(LabelError):
        optimal_perturbation(model, region, torch.tensor([0, 1, 3]))


def test_it_is_no_proof() -> None:
    assert not issubclass(OptimalPerturbation, Tensor)
    assert OptimalPerturbation.__doc__ is not None and "never a verdict" in OptimalPerturbation.__doc__
