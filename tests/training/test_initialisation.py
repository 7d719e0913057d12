"""Shi et al.'s initialisation: its moments, and what it is for: bounds that keep their width."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ironbound.bounding import bounds
from ironbound.errors import InputError
from ironbound.regions import LinfBall
from ironbound.training.initialisation import fan_in, ibp_initialise


def _deep() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(6):
        layers += [nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 3)).eval()


def _widths(model: nn.Sequential) -> list[float]:
    x = torch.rand(20, 256, generator=torch.Generator().manual_seed(1))
    found = bounds(model, LinfBall(x, 0.1), "interval").layers.values()
    return [(upper - lower).mean().item() for lower, upper in found]


def test_bounds_keep_their_width_instead_of_exploding() -> None:
    model = _deep()
    default = _widths(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    ibp_initialise(model, torch.Generator().manual_seed(0))
    widths = _widths(model)
    # the first layer reads no ReLU: gain 2; then the gain is 1, for symmetric ends (equation 6)
    assert widths[0] == pytest.approx(0.2 * 2, rel=0.05)
    for before, after in zip(widths, widths[1:], strict=False):
        assert after / before == pytest.approx(1, rel=0.15)
    assert default[-1] > 100 * widths[-1]


@pytest.mark.parametrize(
    ("layer", "reads"),
    [
        (nn.Linear(300, 400), 300),
        (nn.Conv2d(8, 64, 3, 2), 72),
        (nn.Conv2d(8, 64, (3, 5), groups=2), 60),
        (nn.Conv1d(30, 90, 7), 210),
        (nn.ConvTranspose2d(32, 64, 4, 2), 128),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_have_the_papers_deviation(layer: nn.Module, reads: int) -> None:
    assert fan_in(layer) == reads
    bias = layer.bias.detach().clone()
    ibp_initialise(layer, torch.Generator().manual_seed(0))
    weight = layer.weight.detach()
    deviation = math.sqrt(2 * math.pi) / reads
    assert weight.std().item() == pytest.approx(deviation, rel=0.05)
    assert abs(weight.mean().item()) < 5 * deviation / math.sqrt(weight.numel())
    inside = (weight.abs() < deviation).float().mean().item()  # normal, not uniform
    assert inside == pytest.approx(0.6827, abs=0.03)
    assert torch.equal(layer.bias, bias) and layer.weight.requires_grad


def test_fan_in_counts_what_an_output_reads() -> None:
    layer = nn.ConvTranspose1d(3, 5, 4, 2).double()
    x = torch.zeros(3, 9, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(lambda v: layer(v.unsqueeze(0))[0], x)
    assert (matrix != 0).flatten(2).sum(2)[:, 6:12].float().mean().item() == fan_in(layer) == 6


def test_the_generator_alone_decides() -> None:
    one, other, third = _deep(), _deep(), _deep()
    state = torch.get_rng_state()
    for model, seed in ((one, 0), (other, 0), (third, 1)):
        ibp_initialise(model, torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one[1].weight, other[1].weight) and not torch.equal(one[1].weight, third[1].weight)


def test_what_cannot_be_initialised_is_refused() -> None:
    with pytest.raises(InputError, match="no linear"):
        ibp_initialise(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
    with pytest.raises(InputError, match="computed"):
        ibp_initialise(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    with pytest.raises(InputError, match="inputs per output"):
        fan_in(nn.ReLU())
