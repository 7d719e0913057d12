"""Equation (8) of Raghunathan et al. (2018) is unsound as printed; with the linear term at t it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ironbound.semidefinite.dual_form import coupling_matrix
from ironbound.semidefinite.network import Layer, TwoLayer
from ironbound.semidefinite.pairwise import sdp
from semidefinite.sdp_cases import interior_point, largest_gradient, model, printed_matrix, right_matrix

EPS = 0.5


def counterexample() -> nn.Sequential:
    """One neuron on two inputs: logits (relu(x_1 - x_2), 0)."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
    return net


def test_the_printed_matrix_certifies_what_is_false() -> None:
    net = counterexample()
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    moved = x + EPS * torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        change = float((net(moved) - net(x))[0, 0])
    weight, v = torch.tensor([[1.0, -1.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    printed = max(interior_point(printed_matrix(weight, v))) / 4
    assert printed == pytest.approx(1, abs=1e-6)
    assert change == 2 * EPS > EPS * printed  # the "bound" is half of what happens
    found = sdp(net, x)
    assert float(found.dual[0]) == pytest.approx(2, abs=1e-3)
    assert change <= EPS * float(found.dual[0])


@pytest.mark.parametrize("seed", range(4))
def test_the_right_matrix_is_the_one_of_equation_7(seed: int) -> None:
    net = model(seed=seed)
    weight, last = net[0].weight.detach().double(), net[2].weight.detach().double()
    zeros = torch.zeros(1, dtype=torch.float64)
    read = TwoLayer(Layer(weight, zeros, 0, zeros), nn_relu(), Layer(last, zeros, 0, zeros))
    g = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    ours = coupling_matrix(read, g)[0]
    assert torch.allclose(ours, torch.from_numpy(right_matrix(weight, g @ last)), atol=1e-14)
    assert not torch.allclose(ours, torch.from_numpy(printed_matrix(weight, g @ last)), atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_only_the_right_matrix_bounds_the_quadratic_program(seed: int) -> None:
    torch.manual_seed(seed)
    weight, v = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    quadratic = largest_gradient(weight, v, torch.zeros(5), torch.ones(5), torch.ones(4))
    right = interior_point(right_matrix(weight, v))
    assert right[1] - right[0] < 1e-6
    assert quadratic <= right[1] / 4 + 1e-9


def nn_relu():
    """The operator."""
    from ironbound.ops.piecewise import ReLU

    return ReLU()
