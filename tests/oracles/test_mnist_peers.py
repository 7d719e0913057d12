"""The peers' margins on Wong & Kolter's released network, first 64 MNIST test images; skipped where they are absent."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironbound.bounding import bounds, margins
from ironbound.bounding.methods import METHODS
from ironbound.regions import ball

pytestmark = pytest.mark.shared
COUNT = 64
# peer -> (our method, largest difference, mean difference); CROWN: the peer closes other neurons by intervals
PEERS = {
    "wong_kolter": ("dual", 1e-4, 2e-5),
    "crown_same_slope": ("dual", 1e-4, 2e-5),
    "interval": ("interval", 1e-4, 2e-5),
    "crown_ibp": ("crown-ibp", 1e-4, 2e-5),
    "crown": ("crown", 2e-2, 2e-3),
}


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header).copy()


@pytest.fixture(scope="module")
def images(shared: Path) -> tuple[Tensor, Tensor]:
    folder = shared / "data" / "mnist"
    pixels = _idx(folder / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:COUNT]
    labels = _idx(folder / "t10k-labels-idx1-ubyte.gz", 8)[:COUNT]
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels).long()


@pytest.fixture(scope="module")
def network(shared: Path) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    state = torch.load(shared / "models" / "wong_kolter_mnist_small.pth", weights_only=True, map_location="cpu")
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture(scope="module")
def peers(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "oracles" / "mnist_small_peers.npz") as file:
        return {key: file[key] for key in file.files if "/" in key}


@pytest.mark.parametrize("peer", PEERS)
def test_margins_are_the_peers(
    peer: str, network: nn.Module, images: tuple[Tensor, Tensor], peers: dict[str, np.ndarray]
) -> None:
    method, largest, mean = PEERS[peer]
    queries = [key for key in peers if key.split("/")[2] == peer]
    assert queries
    for key in queries:
        norm, eps, _ = key.split("/")
        with torch.no_grad():
            found = margins(network, ball(norm, images[0], float(eps)), images[1], method)
        expected = torch.from_numpy(peers[key])
        difference = (found - expected).abs()
        scale = 1e-6 * expected.abs().amax()  # at large radii the margins are in the hundreds
        assert difference.max() <= largest + 2 * scale, (key, difference.max())
        assert difference.mean() <= mean + scale, (key, difference.mean())


def test_the_optimised_bound_of_a_peer_is_not_below_ours(
    network: nn.Module, images: tuple[Tensor, Tensor], peers: dict[str, np.ndarray]
) -> None:
    # alpha-CROWN optimises the slopes that the dual fixes: "tighter than the peers" would be a red flag
    for key in (key for key in peers if key.endswith("alpha_crown_first16")):
        norm, eps, _ = key.split("/")
        best = torch.from_numpy(peers[key])
        for method in METHODS:
            with torch.no_grad():
                found = margins(network, ball(norm, images[0][:16], float(eps)), images[1][:16], method)
            assert bool((found[: len(best)] <= best + 2e-2).all()), (key, method, (found - best).max())


def test_sampled_points_never_violate_the_bounds(network: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, labels = images[0][:8], images[1][:8]
    for norm, eps in (("linf", 0.1), ("l2", 1.0)):
        region = ball(norm, x, eps)
        many = region[torch.arange(8).repeat_interleave(50)]
        owner = labels.repeat_interleave(50)
        points = many.sample()
        for _ in range(10):
            points = points.detach().requires_grad_()
            logits = network(points)
            gap = (
                torch.logsumexp(logits.scatter(1, owner.unsqueeze(1), -1e9), 1)
                - logits.gather(1, owner.unsqueeze(1))[:, 0]
            )
            (gradient,) = torch.autograd.grad(gap.sum(), points)
            points = many.project(points + many.ascent(gradient, 0.25))
        with torch.no_grad():
            logits = network(points)
            worst = (logits.gather(1, owner.unsqueeze(1)) - logits).unflatten(0, (8, 50)).amin(1)
            for method in METHODS:
                assert bool((margins(network, region, labels, method) <= worst + 1e-4).all()), (norm, method)
                found = bounds(network, region, method)
                assert bool((found.lower <= logits.unflatten(0, (8, 50)).amin(1) + 1e-4).all()), (norm, method)
