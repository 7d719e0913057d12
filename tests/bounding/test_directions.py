"""The forward direction (generators) and the backward one (rows) give the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ironbound.bounding import bounds
from ironbound.bounding.forward import forward_pays, generator_state
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.parallel import parallel_state
from ironbound.bounding.spread import output_spread
from ironbound.capture import capture
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region

BUILDS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.Sequential(nn.Linear(3, 14), nn.ReLU(), nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 4)),
    "tanh": lambda: nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 13), nn.Tanh(), nn.Linear(13, 4)),
    "hardtanh": lambda: nn.Sequential(
        nn.Linear(3, 12), nn.Hardtanh(-0.3, 0.2), nn.Linear(12, 15), nn.ReLU(), nn.Linear(15, 4)
    ),
    "normalised": lambda: nn.Sequential(
        nn.BatchNorm1d(3), nn.Linear(3, 12), nn.BatchNorm1d(12), nn.LeakyReLU(0.3),
        nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
    ),
    "ends in a relaxation": lambda: nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU()),
}  # fmt: skip


def _regions(x: Tensor) -> list[Region]:
    return [
        LinfBall(x, 0.2),
        LinfBall(x, torch.rand_like(x), (0.0, 1.0)),
        L2Ball(x, torch.tensor([0.2, 0.5, 0.0], dtype=torch.float64)),
        L1Ball(x, 0.6),
        Box(x - 0.3, x + 0.1),
    ]


@pytest.mark.parametrize("name", BUILDS)
def test_forward_equals_backward(name: str) -> None:
    model = BUILDS[name]().double().eval()
    x = torch.rand(3, 3, dtype=torch.float64)
    graph = capture(model, x)
    outputs = graph.output_shape[0]
    example = torch.tensor([0, 2, 1, 2, 0, 1, 1])
    functionals = torch.randn(len(example), outputs, dtype=torch.float64)
    for region in _regions(x):
        assert forward_pays(graph, region)
        with torch.no_grad():
            pushed, pulled = generator_state(graph, region), parallel_state(graph, region)
            rows = DenseRows(functionals, example)
            lower, upper = pushed.answer(rows, True)
            center, down, up = output_spread(pulled, rows, None)
        torch.testing.assert_close(lower, center - down, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(upper, center + up, rtol=1e-10, atol=1e-10)
        assert list(pushed.layers) == list(pulled.layers)
        for index, (low, high) in pushed.layers.items():
            is_open = ~graph.nodes[index].operator.linear_on(low, high)  # type: ignore[attr-defined]
            assert bool(is_open.any())
            torch.testing.assert_close(pulled.layers[index][0][is_open], low[is_open], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(pulled.layers[index][1][is_open], high[is_open], rtol=1e-10, atol=1e-10)


def test_clipped_round_balls_stay_with_the_backward_direction() -> None:
    x = torch.rand(2, 3)
    graph = capture(BUILDS["relu"]().eval(), x)
    assert not forward_pays(graph, L2Ball(x, 0.3, (0.0, 1.0)))
    assert forward_pays(graph, LinfBall(x, 0.3, (0.0, 1.0)))
    convolutional = nn.Sequential(nn.Conv2d(1, 9, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).eval()
    assert not forward_pays(capture(convolutional, torch.rand(1, 1, 2, 2)), LinfBall(torch.rand(1, 1, 2, 2), 0.1))


def test_the_public_name_takes_either_direction() -> None:
    # one network that is pushed and one that is pulled, the same function: an idle layer in front makes the difference
    wide = BUILDS["relu"]().double().eval()
    padded = nn.Sequential(nn.ZeroPad1d((0, 4)), *wide).double().eval()
    first = nn.Linear(7, 14).double()
    with torch.no_grad():
        first.weight.copy_(torch.cat([wide[0].weight, torch.randn(14, 4, dtype=torch.float64)], 1))
        first.bias.copy_(wide[0].bias)
    padded[1] = first
    padded.eval()
    region = LinfBall(torch.rand(2, 3, dtype=torch.float64), 0.2)
    one, two = bounds(wide, region), bounds(padded, region)
    torch.testing.assert_close(one.lower, two.lower, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(one.upper, two.upper, rtol=1e-10, atol=1e-10)
