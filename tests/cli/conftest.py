"""A network for the command line: class means behind one hidden layer, made without training, slow on request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

NETWORK = '''
import os, time
import torch
from torch import nn
from ironbound.data import load


class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep(float(os.environ.get("TEST_SLOWNESS", "0")))
        return super().forward(x)


def make():
    """Nearest class mean: argmin |x - m|^2 = argmax 2 m x - |m|^2; the hidden layer hands the (positive) pixels on."""
    data = load("digits", "train")
    flat = data.inputs.flatten(1)
    means = torch.stack([flat[data.labels == k].mean(0) for k in range(10)])
    hidden, last = nn.Linear(64, 64), nn.Linear(64, 10)
    with torch.no_grad():
        hidden.weight.copy_(torch.eye(64))
        hidden.bias.zero_()
        last.weight.copy_(2 * means)
        last.bias.copy_(-(means**2).sum(1))
    return Slow(nn.Flatten(), hidden, nn.ReLU(), last)


def linear():
    return Slow(nn.Flatten(), nn.Linear(64, 10))
'''


@pytest.fixture
def network(tmp_path: Path) -> str:
    """What to give to --factory."""
    path = tmp_path / "network.py"
    path.write_text(NETWORK)
    return f"{path}:make"


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)
