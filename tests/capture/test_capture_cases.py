from __future__ import annotations

import pytest
import torch

from capture_laws import captured
from cases import CASES, Case
from ironbound.capture import capture
from ironbound.ops.affine import Affine


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graph_is_the_network_and_its_affine_nodes_obey_their_laws(case: Case) -> None:
    graph = captured(case.model(), case.shape)
    assert graph.output_shape == (case.classes,)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_reach_every_live_parameter(case: Case) -> None:
    model, x = case.model(), case.inputs()
    graph = capture(model, x)
    weights = torch.randn(3, case.classes)
    expected = torch.autograd.grad((model(x) * weights).sum(), list(model.parameters()))
    found = torch.autograd.grad((graph(x) * weights).sum(), list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_change_in_place_is_seen_without_a_new_capture(case: Case) -> None:
    model, x = case.model(), case.inputs()
    graph = capture(model, x)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.25).add_(0.125)
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_operators_hold_the_modules_own_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
    graph = capture(model, torch.zeros(1, 3))
    held = {id(tensor) for tensor in graph.parameters()}
    assert held == {
        id(tensor) for tensor in (*model.parameters(), *model.buffers()) if tensor is not model[1].num_batches_tracked
    }
    assert all(isinstance(node.operator, Affine) for node in graph.nodes[1:])


def test_common_layers_have_one_node_each() -> None:
    layers = [torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.ReLU(), torch.nn.Identity(), torch.nn.Dropout(0.5)]
    model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(32, 3)).eval()
    graph = capture(model, torch.zeros(1, 1, 4, 4))
    kinds = [type(node.operator).__name__ for node in graph.nodes]
    assert kinds == ["Input", "Convolution", "ReLU", "Reshape", "Linear"]
    assert [node.name for node in graph.nodes] == ["input", "0", "1", "4", "5"]
