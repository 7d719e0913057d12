"""The attacks on the released MNIST network, against the published errors."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironbound.attacks import fgsm, pgd
from ironbound.regions import LinfBall

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def small(shared: Path) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    path = shared / "models" / "wong_kolter_mnist_small.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


@pytest.fixture(scope="module")
def mnist(shared: Path) -> tuple[Tensor, Tensor]:
    def read(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((shared / "data" / "mnist" / name).read_bytes()), np.uint8, offset=offset)

    pixels = read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(pixels), torch.from_numpy(read("t10k-labels-idx1-ubyte.gz", 8).astype(np.int64))


def test_fgsm_gives_the_published_error(small: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    found = fgsm(small, LinfBall(mnist[0], 0.1), mnist[1])
    assert abs(int(found.success.sum()) - 393) <= 2  # 3.93 %, Wong and Kolter (2018), table 1


def test_pgd_finds_the_published_errors_where_one_step_does_not(small: nn.Module, mnist: tuple[Tensor, Tensor]) -> None:
    """Only the images whose margin one step leaves small, to save time; the other ones stay far from any error."""
    region, labels = LinfBall(mnist[0], 0.1), mnist[1]
    step = fgsm(small, region, labels)
    near = step.margins < 1.5
    found = pgd(small, region[near], labels[near])
    assert 400 <= int(found.success.sum()) <= 440  # 4.11 % in table 1: between 4.0 and 4.4 %
    assert found.success[step.success[near]].float().mean() > 0.99
