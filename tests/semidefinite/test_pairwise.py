"""Laws of `sdp`: order of the bounds, agreement with a general solver, every activation, any dual vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ironbound.capture import capture
from ironbound.errors import InputError
from ironbound.semidefinite import solving
from ironbound.semidefinite.dual_form import coupling_matrix, dual_form
from ironbound.semidefinite.pairwise import sdp
from ironbound.semidefinite.slopes import slope_range
from semidefinite.sdp_cases import interior_point, largest_gradient, model, network, right_matrix

GROTHENDIECK = 1.7823  # an upper bound of the constant: the relaxation is never further off
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def at(classes: int, i: int, j: int) -> torch.Tensor:
    """The functional logit[i] - logit[j]."""
    eye = torch.eye(classes, dtype=torch.float64)
    return eye[i] - eye[j]


@pytest.mark.parametrize("seed", range(5))
def test_the_values_are_those_of_a_general_solver(seed: int) -> None:
    net = model(inputs=5, neurons=7, classes=3, seed=seed)
    found = sdp(net, torch.zeros(1, 5), gap=1e-5)
    weight, last = net[0].weight.detach().double(), net[2].weight.detach().double()
    for place, (i, j) in enumerate(found.pairs.tolist()):
        primal, dual = interior_point(right_matrix(weight, last[i] - last[j]))
        assert dual - primal < 1e-6
        assert float(found.dual[place]) == pytest.approx(dual / 4, rel=3e-5)
        assert float(found.dual[place]) >= primal / 4 - 1e-9
        assert float(found.primal[place]) <= dual / 4 + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_a_modelling_language_agrees(seed: int) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    net = model(inputs=5, neurons=7, classes=2, seed=seed)
    weight, last = net[0].weight.detach().double(), net[2].weight.detach().double()
    matrix = right_matrix(weight, last[0] - last[1])
    gram = cvxpy.Variable(matrix.shape, PSD=True)
    problem = cvxpy.Problem(cvxpy.Maximize(cvxpy.trace(matrix @ gram)), [cvxpy.diag(gram) <= 1])
    value = problem.solve(solver=cvxpy.SCS, eps=1e-7)
    assert float(sdp(net, torch.zeros(1, 5)).dual[0]) == pytest.approx(value / 4, rel=3e-4)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("seed", range(2))
def test_between_enumeration_and_its_limit(name: str, seed: int) -> None:
    net = model(seed=seed, activation=ACTIVATIONS[name])
    found = sdp(net, torch.zeros(1, 4))
    read = network(net)
    assert read.activation is not None and read.output is not None
    low, high = slope_range(read.activation)
    ones = torch.ones(6, dtype=torch.float64)
    for place, (i, j) in enumerate(found.pairs.tolist()):
        v = at(3, i, j) @ read.output.weight
        exact = largest_gradient(read.hidden.weight, v, low * ones, high * ones, torch.ones(4))
        assert exact <= float(found.dual[place])
        assert float(found.primal[place]) <= GROTHENDIECK * exact
    assert (found.primal <= found.dual).all()
    assert (found.gap < 1.1e-4).all()
    assert (found.primal <= found.spectral).all()
    assert (found.spectral <= found.frobenius).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_gradient_is_larger(name: str) -> None:
    net = model(seed=5, activation=ACTIVATIONS[name]).double()
    matrix = sdp(net, torch.zeros(1, 4, dtype=torch.float64)).matrix()
    x = (3 * torch.randn(400, 4, dtype=torch.float64)).requires_grad_()
    for i, j in ((0, 1), (0, 2), (2, 1)):
        logits = net(x)
        (gradient,) = torch.autograd.grad((logits[:, i] - logits[:, j]).sum(), x)
        assert float(gradient.abs().sum(1).max()) <= float(matrix[i, j])


def test_the_sigmoid_is_a_quarter_of_relu() -> None:
    x = torch.zeros(1, 4)
    relu, sigmoid = (sdp(model(seed=1, activation=kind), x) for kind in (nn.ReLU, nn.Sigmoid))
    assert torch.allclose(relu.dual, 4 * sigmoid.dual, rtol=2e-4)
    assert torch.allclose(relu.spectral, 4 * sigmoid.spectral, rtol=1e-9)


def test_norms() -> None:
    net = model(inputs=5, neurons=4, seed=2)
    found = sdp(net, torch.zeros(1, 5))
    weight, last = net[0].weight.detach().double(), net[2].weight.detach().double()
    i, j = found.pairs.T
    length = (last[i] - last[j]).norm(dim=1)
    for bound, norm in ((found.spectral, np.linalg.norm(weight, 2)), (found.frobenius, np.linalg.norm(weight))):
        exact = 5**0.5 * float(norm) * length
        assert (bound >= exact * (1 - 1e-15)).all()
        assert torch.allclose(bound, exact, rtol=1e-8)


def test_linear_classifier_is_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).eval()
    found = sdp(net, torch.zeros(1, 2, 3))
    weight = net[1].weight.detach().double()
    for place, (i, j) in enumerate(found.pairs.tolist()):
        exact = float((weight[i] - weight[j]).abs().sum())
        assert exact <= float(found.dual[place]) <= exact * (1 + 1e-12)
    assert found.c.numel() == 0


def test_dual_variables_give_the_bound_in_the_papers_form() -> None:
    net = model(inputs=5, neurons=7, seed=3)
    found, read = sdp(net, torch.zeros(1, 5)), network(net, 5)
    for place, (i, j) in enumerate(found.pairs.tolist()):
        c, dual = found.c[place], float(found.dual[place])
        assert float(c.sum()) == pytest.approx(4 * dual, rel=1e-12)
        assert dual_form(read, at(3, i, j), c) / 4 == pytest.approx(dual, rel=1e-6)
        slack = torch.diag(c) - coupling_matrix(read, at(3, i, j))[0]
        assert torch.linalg.eigvalsh(slack)[0] > -1e-9 * float(c.max())


@pytest.mark.parametrize("seed", range(4))
def test_any_dual_vector_gives_a_bound(seed: int) -> None:
    net = model(inputs=5, neurons=7, seed=seed)
    found, read = sdp(net, torch.zeros(1, 5), gap=1e-5), network(net, 5)
    functional = at(3, 0, 1)
    matrix = coupling_matrix(read, functional)[0]
    for scale in (0.0, 0.1, 1.0, 10.0):
        c = scale * torch.randn(len(matrix), dtype=torch.float64)
        top = max(0.0, float(torch.linalg.eigvalsh(matrix - torch.diag(c))[-1]))
        formula = len(c) * top + float(c.clamp(min=0).sum())
        bound = dual_form(read, functional, c)
        assert formula * (1 - 1e-12) <= bound <= formula * (1 + 1e-6)
        assert bound / 4 >= float(found.primal[0])


def test_pairs_are_symmetric_and_complete() -> None:
    net = model(classes=5)
    found = sdp(capture(net, torch.zeros(1, 4)))
    assert found.pairs.shape == (10, 2)
    matrix = found.matrix()
    assert torch.equal(matrix, matrix.T)
    assert (matrix.diagonal() == 0).all()
    assert (matrix + torch.eye(5) > 0).all()


def test_cutting_into_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = model(classes=5), torch.zeros(1, 4)
    whole = sdp(net, x)
    monkeypatch.setattr(solving, "_BYTES", 4 * 32 * 10 * 3)  # three problems at a time
    parts = sdp(net, x)
    assert torch.allclose(whole.dual, parts.dual, rtol=1e-4)
    assert torch.allclose(whole.primal, parts.primal, rtol=1e-4)
    assert whole.c.shape == parts.c.shape


def test_equal_classes_never_part() -> None:
    net = model()
    with torch.no_grad():
        net[2].weight[1] = net[2].weight[0]
    found = sdp(net, torch.zeros(1, 4))
    assert 0 <= float(found.dual[0]) < 1e-5  # the root of what rounding could have hidden
    assert float(found.dual[1]) > 0.1


def test_arguments_are_checked() -> None:
    net, x = model(), torch.zeros(1, 4)
    for arguments, message in (
        ({"model": net}, "inputs x"),
        ({"model": net, "x": x, "gap": 0.0}, "gap"),
        ({"model": net, "x": x, "rank": 1}, "rank"),
        ({"model": model(classes=1), "x": x}, "at least 2 outputs"),
    ):
        with pytest.raises(InputError, match=message):
            sdp(**arguments)
    with pytest.raises(InputError, match="not known"):
        sdp(net, x).matrix("c")
    with pytest.raises(InputError, match="shape"):
        dual_form(network(net), at(3, 0, 1), torch.zeros(3))
