"""What `bounds` and `margins` refuse, and that nothing which is not a number ever counts as proved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.errors import InputError, LabelError
from ironbound.graph import Graph, Node
from ironbound.ops.affine import Linear
from ironbound.ops.operator import Input
from ironbound.regions import Box, L2Ball, LinfBall


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


X = torch.linspace(0, 1, 8).reshape(2, 4)
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    for place in (0, 1, 2, 3):
        model = _model()
        with torch.no_grad():
            list(model.parameters())[place].view(-1)[0] = bad
        for method in METHODS:
            with pytest.raises(InputError, match="NaN or infinity"):
                bounds(model, LinfBall(X, 0.1), method)
            with pytest.raises(InputError, match="NaN or infinity"):
                margins(model, LinfBall(X, 0.1), LABELS, method)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_weights_that_overflow_prove_nothing(case: Case) -> None:
    # finite weights whose products are not: every margin is NaN or negative, never a proof
    model, x = case.model(), case.inputs()
    graph = capture(model, x)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.mul_(1e30 if "weight" in name else 1.0)
        for method in METHODS:
            found = margins(graph, LinfBall(x, 0.1), torch.tensor([0, 1, 2]), method)
            others = ~torch.nn.functional.one_hot(torch.tensor([0, 1, 2]), case.classes).bool()
            logits = graph(x)
            honest = torch.isfinite(logits).all(1, keepdim=True)
            assert not bool(((found > 0) & others & ~honest).any()), method


@pytest.mark.parametrize("method", METHODS)
def test_bounds_that_are_not_numbers_prove_nothing(method: str) -> None:
    # the first layer's bounds reach beyond float32, the values at the center do not
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(3e38)
        model[0].bias.fill_(0)
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
        found = margins(model, LinfBall(torch.zeros(1, 2), 1.0), torch.tensor([1]), method)
        assert not bool(found[0, 0] > 0)
        found = bounds(model, LinfBall(torch.zeros(1, 2), 1.0), method)
        assert not bool((found.upper[0, 0] < 1e38).any())


def test_labels_and_targets_that_do_not_fit() -> None:
    model, region = _model(), LinfBall(X, 0.1)
    for labels, reason in (
        (torch.tensor([0.0, 1.0]), "integers"),
        (torch.tensor([True, False]), "integers"),
        (torch.tensor([0]), "shape"),
        (torch.tensor([[0, 1]]), "shape"),
        (torch.tensor([0, 3]), r"0\.\.2"),
        (torch.tensor([-1, 0]), r"0\.\.2"),
    ):
        with pytest.raises(LabelError, match=reason):
            margins(model, region, labels)
    for targets in (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3), torch.ones(3, dtype=torch.bool), [1, 0, 1]):
        with pytest.raises(InputError, match="targets"):
            margins(model, region, LABELS, targets=targets)
    assert margins(model, region, torch.tensor([0, 2], dtype=torch.uint8)).shape == (2, 3)


def test_networks_that_are_no_classifiers() -> None:
    with pytest.raises(InputError, match="classifier"):
        margins(nn.Sequential(nn.Linear(4, 1)).eval(), LinfBall(X, 0.1), LABELS)
    with pytest.raises(InputError, match="classifier"):
        margins(nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).eval(), LinfBall(X, 0.1), LABELS)


def test_regions_and_methods_that_do_not_fit() -> None:
    model = _model()
    with pytest.raises(InputError, match="method"):
        bounds(model, LinfBall(X, 0.1), "dua")
    with pytest.raises(InputError, match=r"float64"):
        bounds(model, LinfBall(X.double(), 0.1))
    with pytest.raises(InputError):
        bounds(model, LinfBall(torch.rand(2, 5), 0.1))
    with pytest.raises(InputError):
        bounds(capture(model, X), LinfBall(torch.rand(2, 5), 0.1))
    with pytest.raises(InputError, match="no example"):
        bounds(model, LinfBall(X, 0.1)[:0])
    with pytest.raises(InputError, match="method"):
        margins(model, LinfBall(X, 0.1), LABELS, "")


def test_targets_choose_what_is_computed() -> None:
    model, region = _model(), L2Ball(X, 0.4)
    targets = torch.tensor([[True, True, False], [False, False, True]])
    for method in METHODS:
        whole = margins(model, region, LABELS, method)
        some = margins(model, region, LABELS, method, targets=targets)
        torch.testing.assert_close(some[0, 1], whole[0, 1])
        assert some[0, 0] == 0 and some[1, 2] == 0  # a class against itself, asked for or not
        assert bool(torch.isnan(some[0, 2])) and bool(torch.isnan(some[1, :2]).all())
        none = margins(model, region, LABELS, method, targets=torch.zeros(2, 3, dtype=torch.bool))
        assert bool((torch.isnan(none) | (none == 0)).all()) and int(torch.isnan(none).sum()) == 4


def test_numbers_in_the_code_take_the_networks_dtype() -> None:
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            """Run the network."""
            return self.head(torch.relu(self.first(2 * x - 1) / 3 + 0.1))

    for dtype in (torch.float32, torch.float64):
        model = Numbers().eval().to(dtype)
        found = bounds(model, LinfBall(X.to(dtype), 0.1))
        assert found.lower.dtype == dtype


def test_networks_without_a_relaxation_are_exact() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    identity = Graph((Node("input", Input(), (), (2,)),))
    linear = Graph((Node("input", Input(), (), (2,)), Node("linear", Linear(weight), (0,), (2,))))
    x = torch.tensor([[0.5, 0.25]])
    for method in METHODS:
        found = bounds(identity, LinfBall(x, 0.25, (0.0, 1.0)), method)
        torch.testing.assert_close(found.lower, torch.tensor([[0.25, 0.0]]))
        torch.testing.assert_close(found.upper, torch.tensor([[0.75, 0.5]]))
        found = bounds(linear, Box(x - 0.25, x + 0.25), method)
        torch.testing.assert_close(found.upper - found.lower, torch.tensor([[1.5, 1.75]]))
        margin = margins(linear, L2Ball(x, 0.1), torch.tensor([1]), method)
        torch.testing.assert_close(margin, torch.tensor([[1.0 - 0.1 * (0.25 + 25) ** 0.5, 0.0]]))
        assert not found.layers
