from __future__ import annotations

import gc
import io
import weakref

import pytest
import torch
from torch import nn

from ironbound.capture import capture
from ironbound.errors import CaptureError, InputError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


def agrees(model: nn.Module, x: torch.Tensor) -> bool:
    return torch.allclose(capture(model, x)(x), model(x), atol=1e-5)


def test_an_unchanged_module_is_captured_once() -> None:
    model = network()
    graph = capture(model, torch.zeros(1, 4))
    assert capture(model, torch.ones(9, 4)) is graph
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert capture(model, torch.ones(9, 4)) is graph
    model[3].bias.grad = torch.ones(3)
    assert capture(model, torch.ones(9, 4)) is graph


def test_shape_and_dtype_are_part_of_the_key() -> None:
    model = nn.Sequential(nn.ReLU()).eval()
    graph = capture(model, torch.zeros(1, 4))
    assert capture(model, torch.zeros(1, 5)).input_shape == (5,)
    assert capture(model, torch.zeros(1, 4).double()) is not graph
    assert capture(model, torch.zeros(1, 4)) is graph


def test_a_changed_module_is_captured_again() -> None:
    x = torch.randn(6, 4)
    model = network()
    graph = capture(model, x)

    def recaptured() -> bool:
        nonlocal graph
        previous, graph = graph, capture(model, x)
        return graph is not previous and agrees(model, x)

    model[0].weight = nn.Parameter(torch.randn(5, 4))
    assert recaptured()
    model[1].negative_slope = 0.4
    assert recaptured()
    model[1] = nn.Tanh().eval()
    assert recaptured()
    model[2].running_mean = torch.randn(5)
    assert recaptured()
    model[2].eps = 0.5
    assert recaptured()
    model.append(nn.ReLU())
    model.eval()
    assert recaptured()
    state = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert recaptured()


def test_a_change_of_dtype_and_back_keeps_views_live() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ self.w) @ self.w.t()

    model, x = Tied().eval(), torch.randn(5, 4)
    capture(model, x)
    model.double()
    assert agrees(model, x.double())
    model.float()
    with torch.no_grad():
        model.w.mul_(2)
    assert agrees(model, x)


def test_constants_computed_from_a_buffer_follow_it() -> None:
    class Squared(nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale**2

    model, x = Squared().eval(), torch.randn(5, 4)
    assert agrees(model, x)
    model.scale.fill_(3.0)
    assert agrees(model, x)


def test_the_cache_keeps_no_module_alive() -> None:
    model = network()
    capture(model, torch.zeros(1, 4))
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_an_exported_program_can_be_captured() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x = torch.randn(3, 1, 4, 4)
    batch = torch.export.Dim("batch")
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: batch},)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    graph = capture(loaded, x[:1])
    torch.testing.assert_close(graph(x), model(x))
    assert [type(node.operator).__name__ for node in graph.nodes] == [
        "Input", "Convolution", "BatchNorm", "ReLU", "Reshape", "Linear",
    ]  # fmt: skip
    assert {id(t) for t in graph.parameters()} <= {id(t) for t in (*loaded.parameters(), *loaded.buffers())}


def test_gradients_flow_after_a_capture_without_gradients() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    with torch.no_grad():
        graph = capture(model, x)
    graph(x).sum().backward()
    assert model.weight.grad is not None
    with torch.inference_mode():
        graph = capture(nn.Sequential(model, nn.ReLU()).eval(), torch.randn(2, 4))
    graph(x).sum().backward()


def test_an_exported_program_with_a_fixed_batch_size_is_refused() -> None:
    x = torch.randn(3, 4)
    program = torch.export.export(nn.Linear(4, 2).eval(), (x,)).module()
    # older torch checks the batch size when the program runs, newer torch also when it is exported again
    with pytest.raises((CaptureError, InputError), match="dynamic batch axis|to be equal to 3"):
        capture(program, x)


def test_wrappers_and_shared_layers() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: torch.Tensor, **options: bool) -> torch.Tensor:
            return self.inner(*args)

    shared = nn.Linear(4, 4)
    model, x = Wrapper(nn.Sequential(shared, nn.ReLU(), shared)).eval(), torch.randn(5, 4)
    graph = capture(model, x)
    torch.testing.assert_close(graph(x), model(x))
    assert graph.nodes[1].operator.weight is graph.nodes[3].operator.weight is shared.weight
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
