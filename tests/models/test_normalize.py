"""Normalisation as a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ironbound.errors import InputError
from ironbound.models import Normalize, build, normalized

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 4)])
def test_each_channel_is_shifted_and_scaled(shape: tuple[int, ...]) -> None:
    x = torch.rand(2, *shape)
    found = Normalize(MEAN, STD)(x)
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], (x[:, channel] - MEAN[channel]) / STD[channel])


def test_one_number_serves_all_channels_and_mixes_with_a_list() -> None:
    x = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(Normalize(0.25, 0.5)(x), (x - 0.25) / 0.5)
    torch.testing.assert_close(Normalize(0.25, STD)(x)[:, 2], (x[:, 2] - 0.25) / 2)


def test_a_step_in_pixels_is_a_step_over_std_behind_the_layer() -> None:
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    layer = Normalize(MEAN, STD).double()
    step = (layer(x + 0.01) - layer(x)).abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(step, 0.01 / torch.tensor(STD, dtype=torch.float64))


def test_normalized_is_the_composition_in_evaluation_mode_and_dtype() -> None:
    model = build("small", in_channels=3, size=8).double().train()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    whole = normalized(model, MEAN, STD)
    assert not any(part.training for part in whole.modules())
    expected = model((x - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(3, 1, 1))
    torch.testing.assert_close(whole(x), expected)


def test_statistics_are_saved_but_not_trained_nor_shared() -> None:
    mean = torch.tensor(MEAN)
    layer = Normalize(mean, STD)
    mean += 1
    torch.testing.assert_close(layer.mean, torch.tensor(MEAN))
    assert set(layer.state_dict()) == {"mean", "std"}
    assert not list(layer.parameters())


def test_a_network_without_parameters_is_served() -> None:
    assert normalized(nn.Flatten(), 0.0, 1.0)(torch.ones(1, 2, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (0.0, 0.0),
        (0.0, -1.0),
        (0.0, float("nan")),
        (float("inf"), 1.0),
        ([0.0] * 3, [1.0] * 2),
        (torch.zeros(1, 1), 1.0),
    ],
)
def test_unusable_statistics_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(InputError):
        Normalize(mean, std)
