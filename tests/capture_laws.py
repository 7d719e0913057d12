"""What every captured graph must satisfy, used by the tests of capture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ironbound.capture import capture
from ironbound.graph import Graph
from ironbound.ops.operator import Affine


def captured(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph of a float64 copy in evaluation mode, compared with the module and law by law."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(3)
    graph = capture(model, torch.randn(2, *shape, generator=generator, dtype=torch.float64))
    assert graph.input_shape == shape
    for batch in (1, 5):
        x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            expected = model(x.clone())
        value = graph(x)
        assert value.shape == (batch, *graph.output_shape)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    check_affine(graph, generator)
    return graph


def check_affine(graph: Graph, generator: torch.Generator) -> None:
    """Adjoint identity, fast adjoint = general adjoint, |A| r = the dense Jacobian's, for every affine node."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for node in graph.nodes:
        operator = node.operator
        if not isinstance(operator, Affine):
            continue
        shapes = tuple(graph.nodes[source].shape for source in node.inputs)
        inputs = tuple(random(2, *shape) for shape in shapes)
        rows = random(2, *node.shape)
        value = operator.forward(*inputs)
        assert value.shape == (2, *node.shape), node
        linear = value - operator.constant(shapes, rows)
        pulled = operator.adjoint(rows, shapes)
        assert [tuple(part.shape[1:]) for part in pulled] == list(shapes)
        left = (rows * linear).reshape(2, -1).sum(1)
        right = sum((part * x).reshape(2, -1).sum(1) for part, x in zip(pulled, inputs, strict=True))
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
        for fast, general in zip(pulled, Affine.adjoint(operator, rows, shapes), strict=True):
            torch.testing.assert_close(fast, general, rtol=1e-9, atol=1e-9)
        _check_magnitude(operator, shapes, inputs)


def _check_magnitude(operator: Affine, shapes: tuple[tuple[int, ...], ...], inputs: tuple[Tensor, ...]) -> None:
    if sum(x[0].numel() for x in inputs) > 500:
        return
    radii = tuple(x.abs() for x in inputs)
    total = torch.zeros(())
    for place, shape in enumerate(shapes):

        def one(x: Tensor, place: int = place) -> Tensor:
            return operator.forward(*(x if k == place else torch.zeros(1, *s).double() for k, s in enumerate(shapes)))

        jacobian = torch.autograd.functional.jacobian(one, torch.zeros(1, *shape, dtype=torch.float64))
        matrix = jacobian.detach().reshape(-1, radii[place][0].numel())
        total = total + radii[place].reshape(2, -1) @ matrix.abs().T
    torch.testing.assert_close(operator.magnitude(*radii).detach().reshape(2, -1), total, rtol=1e-9, atol=1e-9)


class Apply(nn.Module):
    """A module that applies a function, and may own a few tensors that the function gets as `self`."""

    def __init__(self, function, **tensors) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            elif isinstance(tensor, nn.Module):
                self.add_module(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        has_own = len(list(self.parameters())) + len(list(self.buffers())) + len(list(self.children()))
        return self.function(self, x) if has_own else self.function(x)
