"""Norm penalties against dense matrices, Shi's warm-up regularizers against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironbound.errors import InputError
from ironbound.regions import Box, L2Ball, LinfBall
from ironbound.training import losses
from laws.writeup import ball, dense_layers, interval_bounds
from training.losses_cases import EPS, SHAPE, examples, margins_of, network, slope_along

LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, 2, 1), (2, 6, 6)),
    "grouped": (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2, dilation=2), (2, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1), (2, 4, 4)),
    "one-dimensional": (lambda: nn.Conv1d(2, 3, 3), (2, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_those_of_the_matrix_that_a_layer_applies(name: str) -> None:
    build, shape = LAYERS[name]
    layer = build().double().eval()
    x = torch.rand(2, *shape, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v.unsqueeze(0)).flatten(), x[0]).flatten(1)
    region = LinfBall(x, EPS)
    frobenius = losses.frobenius_norm(layer, region, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(frobenius, matrix.norm())
    spectral = losses.spectral_norm(layer, region, torch.zeros(2, dtype=torch.int64), iterations=1000)
    torch.testing.assert_close(spectral, torch.linalg.matrix_norm(matrix, 2), rtol=1e-6, atol=0)
    few = losses.spectral_norm(layer, region, torch.zeros(2, dtype=torch.int64), iterations=3)
    assert few <= spectral * (1 + 1e-9)


def test_the_penalties_sum_over_the_layers() -> None:
    model, (x, labels) = network(), examples()
    matrices = [weight for weight, _ in dense_layers(model, SHAPE)]
    region = LinfBall(x, EPS)
    torch.testing.assert_close(
        losses.frobenius_norm(model, region, labels), torch.stack([m.norm() for m in matrices]).sum()
    )
    want = torch.stack([torch.linalg.svdvals(m)[0] for m in matrices]).sum()
    torch.testing.assert_close(losses.spectral_norm(model, region, labels, 200), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["spectral_norm", "frobenius_norm", "shi_tightness", "shi_relu_balance", "shi"])
def test_gradients_of_regularizers_equal_differences(name: str) -> None:
    model, (x, labels) = _balanced(), examples()
    options = {"iterations": 300} if name == "spectral_norm" else {}
    if name.startswith("shi"):
        options = {"tolerance": 1.0}
    region = LinfBall(x, 0.02)
    slope, difference = slope_along(model, lambda: getattr(losses, name)(model, region, labels, **options))
    assert abs(difference.item()) > 1e-4
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-7)


def test_spectral_and_frobenius_bounds_of_a_two_layer_network_hold() -> None:
    """Equations (17) and (18): margins fall by at most eps sqrt(d) |W| |V_i - V_j|."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x, labels = torch.rand(5, 9, dtype=torch.float64), torch.arange(5) % 3
    first = nn.Sequential(model[0])
    rows = model[2].weight[labels].unsqueeze(1) - model[2].weight
    for norm in (
        losses.spectral_norm(first, LinfBall(x, 0), labels, 200),
        losses.frobenius_norm(first, LinfBall(x, 0), labels),
    ):
        fall = EPS * 3 * norm * rows.norm(dim=2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            points = L2Ball(x, EPS * 3).sample(generator)
            assert bool((margins_of(model(points), labels) >= margins_of(model(x), labels) - fall - 1e-9).all())


def test_norms_of_zero_weights_have_zero_gradients() -> None:
    model, (x, labels) = network(), examples()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for norm in (losses.spectral_norm, losses.frobenius_norm):
        value = norm(model, LinfBall(x, EPS), labels)
        assert value == 0
        for gradient in torch.autograd.grad(value, list(model.parameters()), allow_unused=True):
            assert gradient is None or bool((gradient == 0).all())


def _balanced() -> nn.Sequential:
    """A network with active, inactive and open neurons in both layers."""
    model = network()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.6, -0.5, 0.0]))
        model[3].bias.copy_(torch.linspace(-0.6, 0.9, 8))
    return model


def _intervals(model: nn.Sequential, x: Tensor, eps: float) -> list[tuple[Tensor, Tensor]]:
    layers = dense_layers(model, SHAPE)
    found = [interval_bounds(layers, ball("linf", image, torch.full_like(image, eps), None)) for image in x.flatten(1)]
    return [
        (torch.stack([one[i][0] for one in found]), torch.stack([one[i][1] for one in found]))
        for i in range(len(layers) - 1)
    ]


@pytest.mark.parametrize("tolerance", [0.3, 0.5, 1.0])
def test_shis_regularizers_are_equations_7_and_8(tolerance: float) -> None:
    model, (x, labels) = _balanced(), examples()
    with torch.no_grad():
        model[3].weight.mul_(3)  # wide bounds in the second layer
    for eps in (0.01, 0.03):
        layers = _intervals(model, x, eps)
        tight, balance = 0.0, 0.0
        for lower, upper in layers:
            tight += max(0.0, tolerance - 2 * eps / (upper - lower).mean().item())
            center = (lower + upper) / 2
            active, inactive = lower > 0, upper < 0
            assert bool(active.any() and inactive.any())
            spread = (center - center.mean()) ** 2
            alpha = (center[active].sum() / -center[inactive].sum()).item()
            beta = (spread[active].sum() / spread[inactive].sum()).item()
            balance += sum(max(0.0, tolerance - min(ratio, 1 / ratio)) for ratio in (alpha, beta))
        assert tight > 0
        region = LinfBall(x, eps)
        have = [f(model, region, labels, tolerance).item() for f in (losses.shi_tightness, losses.shi_relu_balance)]
        assert have[0] == pytest.approx(tight / tolerance / 2, abs=1e-12)
        assert have[1] == pytest.approx(balance / tolerance / 2, abs=1e-12)
        assert losses.shi(model, region, labels, tolerance).item() == pytest.approx(sum(have), abs=1e-12)
        assert losses.shi_tightness(model, Box(x - eps, x + eps), labels, tolerance).item() == pytest.approx(have[0])


def test_shis_regularizers_where_a_ratio_has_no_meaning() -> None:
    model, (x, labels) = network(), examples()
    assert losses.shi_tightness(model, LinfBall(x, 0.0), labels) == 0  # all widths are 0
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.bias.fill_(50)  # no inactive neuron
    value = losses.shi_relu_balance(model, LinfBall(x, EPS), labels)
    assert value == 0
    for gradient in torch.autograd.grad(value, list(model.parameters()), allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


def test_regularizers_refuse_what_they_cannot_read() -> None:
    x, labels = examples()
    region = LinfBall(x, EPS)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double().eval()
    for function, word in ((losses.shi_tightness, "activation"), (losses.shi_relu_balance, "ReLU")):
        with pytest.raises(InputError, match=word):
            function(flat, region, labels)
        for tolerance in (0.0, 1.1, float("nan")):
            with pytest.raises(InputError, match="tolerance"):
                function(network(), region, labels, tolerance)
    for function in (losses.spectral_norm, losses.frobenius_norm):
        with pytest.raises(InputError, match="layer"):
            function(nn.Flatten(), region, labels)
    with pytest.raises(InputError, match="iterations"):
        losses.spectral_norm(network(), region, labels, 0)
