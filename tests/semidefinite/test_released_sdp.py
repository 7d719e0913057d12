"""The paper's released network: its published certified error, every pair proved; chord slopes against an attack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from ironbound.bounding.methods import EXACT
from ironbound.models.raghunathan import load_raghunathan
from ironbound.semidefinite.pairwise import SdpCertificate, sdp

pytestmark = pytest.mark.shared
EPS = 0.1


@pytest.fixture(scope="module")
def network(shared: Path) -> nn.Module:
    return load_raghunathan(shared / "models" / "raghunathan_mnist").eval()


@pytest.fixture(scope="module")
def test_set(shared: Path) -> tuple[Tensor, Tensor]:
    data = ib.data.load("mnist", split="test", root=shared / "data" / "mnist")
    return torch.as_tensor(data.inputs), torch.as_tensor(data.labels).long()


@pytest.fixture(scope="module")
def certificate(network: nn.Module) -> SdpCertificate:
    return sdp(network, torch.zeros(1, 1, 28, 28), gap=1e-4)


def _margins(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(x).double()
    return (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], torch.inf)


def test_every_pair_is_proved_and_the_error_is_the_published_one(
    network: nn.Module, test_set: tuple[Tensor, Tensor], certificate: SdpCertificate
) -> None:
    x, y = test_set
    assert len(certificate.pairs) == 45 and torch.isfinite(certificate.dual).all()
    assert (certificate.primal <= certificate.dual).all() and (certificate.gap <= 1e-4).all()
    clean = _margins(network, x, y)
    errors = {
        name: round(100 * float((~(clean - EPS * certificate.matrix(name)[y] > 0).all(1)).double().mean()), 2)
        for name in ("dual", "spectral", "frobenius")
    }
    assert errors == {"dual": 34.77, "spectral": 100.0, "frobenius": 100.0}


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
def test_no_attack_beats_chord_slopes(
    network: nn.Module,
    test_set: tuple[Tensor, Tensor],
    certificate: SdpCertificate,
    monkeypatch: pytest.MonkeyPatch,
    clip: tuple[float, float] | None,
) -> None:
    monkeypatch.setitem(EXACT, "sdp-chord", ("ironbound.semidefinite.methods", "sdp_chord"))
    x, y = test_set[0][:400], test_set[1][:400]
    plain = _margins(network, x, y) - EPS * certificate.matrix()[y]
    targets = ~(plain > 0)
    doubtful = torch.nonzero(targets.any(1)).squeeze(1)[:25]
    x, y, targets, plain = x[doubtful], y[doubtful], targets[doubtful], plain[doubtful]
    region = ib.LinfBall(x, EPS, clip)
    margins = ib.margins(network, region, y, "sdp-chord", targets=targets).double()
    points = ib.pgd(network, region, y, targeted=True).points
    assert (_margins(network, points, y) >= margins - 1e-5)[targets].all()
    if clip is None:  # where the sign was open, more is proved than by slopes in [0, 1], and nothing is lost
        assert ((margins > 0) & targets).sum() > 0
        assert (margins > plain - 2e-2 * plain.abs() - 1e-2)[targets].all()
