"""Semidefinite vectors: the verified bound against rational arithmetic and enumeration, and lies about it."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import ironbound as ib
from certificate.exact_networks import Builder, exact, exact_network, exact_run
from ironbound.certificate.checker import Arithmetic, Certificate, CertificateError, Checker, File
from ironbound.certificate.checker.claims import LABEL, SDP
from ironbound.certificate.checker.files import network
from ironbound.certificate.checker.semidefinite import TwoLayers
from ironbound.certificate.network_file import network_arrays
from ironbound.certificate.payloads import sdp_vectors

NO_CLIP = (float("nan"), float("nan"))
FORMATS = {"float32": np.float32, "float64": np.float64}
INPUTS, NEURONS, CLASSES = 4, 5, 3


def two_layers(seed: int) -> dict[str, np.ndarray]:
    builder = Builder((INPUTS,), np.float32, np.random.default_rng(seed))
    builder.linear(builder.relu(builder.linear(0, NEURONS)), CLASSES)
    return builder.file()


def cancelling(seed: int) -> dict[str, np.ndarray]:
    """What all neurons read together cancels but for its rounding."""
    arrays = two_layers(seed)
    weight, output = arrays["a000"].copy(), arrays["a002"].astype(float)
    v = output[0] - output[1]
    weight[-1] = -(v[:-1] @ weight[:-1].astype(float)) / v[-1]
    return {**arrays, "a000": weight}


def vectors(*found: tuple[int, int, float, np.ndarray]) -> bytes:
    parts = [np.array([len(found)], "<u2").tobytes()]
    for i, j, bound, c in found:
        parts += [np.array([i, j], "<u2").tobytes(), np.array([bound], "<f8").tobytes(), c.astype("<f4").tobytes()]
    return b"".join(parts)


def smallest(nodes, a: Arithmetic, c: np.ndarray) -> tuple[float, float]:
    """About the smallest bound of the first pair that is accepted, and what is proved of it."""
    low, high, proved = 1e-3, 1e3, np.nan
    for _ in range(60):
        middle = (low * high) ** 0.5
        try:
            proved = float(TwoLayers(nodes, a, vectors((0, 1, middle, c))).reach[0, 1])
            high = middle
        except CertificateError:
            low = middle
    return high, proved


def positive_semidefinite(matrix: np.ndarray) -> bool:
    """Exactly, by elimination in fractions."""
    matrix = matrix.copy()
    for k in range(len(matrix)):
        if matrix[k, k] < 0 or (matrix[k, k] == 0 and (matrix[k] != 0).any()):
            return False
        if matrix[k, k] > 0:
            matrix -= np.outer(matrix[:, k], matrix[k]) / matrix[k, k]
    return True


@pytest.mark.parametrize("dtype", FORMATS)
def test_verified_bounds_hold_in_rational_arithmetic(dtype: str) -> None:
    rng = np.random.default_rng(4)
    a = Arithmetic(FORMATS[dtype])
    for seed in range(12):
        arrays = cancelling(seed) if seed % 2 else two_layers(seed)
        c = (0.1 + rng.random(1 + INPUTS + NEURONS)).astype(np.float32)
        c[0] = 1e-12 if seed % 2 else c[0]
        with np.errstate(all="ignore"):
            asked, proved = smallest(network(arrays, a), a, c)
        assert asked <= proved * (1 + 1e-6) and (seed % 2 or proved < 1.01 * asked)
        hidden, output = (node.matrices[0] for node in exact_network(arrays) if node.kind == "affine")
        v = output[0] - output[1]
        roots = exact(np.sqrt(a.exact(c)))
        p, q = roots[1 : 1 + INPUTS], np.append(roots[0], roots[1 + INPUTS :])
        half = hidden.T * v / 2
        scaled = np.concatenate([half.sum(1)[:, None], half], 1) / p[:, None] / q
        share = Fraction(proved) ** 2 / ((p * p).sum() * (q * q).sum())
        assert positive_semidefinite(share * np.diag([Fraction(1)] * len(q)) - scaled.T @ scaled)
        moves = [abs((v * s) @ hidden).sum() for s in itertools.product([Fraction(0), Fraction(1)], repeat=NEURONS)]
        assert max(moves) <= Fraction(proved)


def test_false_vectors_are_refused() -> None:
    nodes, a = network(two_layers(0), Arithmetic()), Arithmetic()
    c = np.ones(1 + INPUTS + NEURONS, np.float32)
    asked, _ = smallest(nodes, a, c)
    for bound in (asked * 0.999, 0.0, -asked, np.nan, np.inf, 1e-300, 1e300):
        with pytest.raises(CertificateError):
            TwoLayers(nodes, a, vectors((0, 1, bound, c)))
    for place, value in ((0, 0.0), (3, -1.0), (5, np.nan), (9, np.inf)):
        wrong = c.copy()
        wrong[place] = value
        with pytest.raises(CertificateError):
            TwoLayers(nodes, a, vectors((0, 1, asked, wrong)))
    good = vectors((0, 1, asked, c))
    for broken in (vectors((1, 0, asked, c)), vectors((0, 3, asked, c)), vectors((0, 1, asked, c), (0, 1, asked, c))):
        with pytest.raises(CertificateError):
            TwoLayers(nodes, a, broken)
    for broken in (good[:-1], good + b"\0", good[:5], b""):
        with pytest.raises(CertificateError):
            TwoLayers(nodes, a, broken)


def test_other_networks_have_no_vectors() -> None:
    a = Arithmetic()
    for family in ("mlp", "normalised", "deeper"):
        builder = Builder((INPUTS,), np.float32, np.random.default_rng(0))
        last = builder.batch_norm(0) if family == "normalised" else builder.linear(0, NEURONS)
        last = builder.relu(builder.linear(builder.relu(last), NEURONS)) if family == "deeper" else builder.relu(last)
        last = builder.linear(last, CLASSES)
        nodes = network(builder.file(), a)
        if family == "mlp":
            assert TwoLayers(nodes, a, vectors()).reach == {}
            continue
        with pytest.raises(CertificateError, match="SDP vectors are for"):
            TwoLayers(nodes, a, vectors())


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    centers = torch.eye(3, 6)
    y = torch.arange(24) % 3
    x = centers[y] + 0.1 * torch.randn(24, 6)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False), x, y


def test_vectors_of_a_trained_network_prove_its_margins(trained) -> None:
    model, x, y = trained
    arrays, common = network_arrays(model, x), sdp_vectors(model, x)
    checker = Checker(arrays, {"x": x.numpy(), "labels": y.numpy()})
    margins = ib.margins(model.double(), ib.LinfBall(x.double(), 0.05), y, method="sdp").numpy()
    nodes = exact_network(arrays)
    rng = np.random.default_rng(0)
    for index in range(8):
        one = Certificate(index, int(y[index]), LABEL, SDP, 0.05, 0.0)
        found = {mode: checker.margins(one, "linf", mode, NO_CLIP, common) for mode in ("real", "float32")}
        assert (found["real"] >= margins[index] - 1e-4).all() and (found["float32"] <= found["real"]).all()
        assert checker.check(one, "linf", "real", NO_CLIP, common) is None
        assert "are about linf" in str(checker.check(one, "l2", "real", NO_CLIP, common))
        far = Certificate(index, int(y[index]), LABEL, SDP, 5.0, 0.0)
        assert checker.check(far, "linf", "real", NO_CLIP, common) is not None
        for _ in range(20):
            inside = exact(x[index].numpy()) + exact(0.05 * (1 - 1e-9) * rng.choice([-1.0, 1.0], 6))
            out = exact_run(nodes, inside).astype(float)
            assert (out[one.label] - out >= found["real"] - 1e-12).all()


def test_vectors_alone_decide_where_the_relaxation_is_loose(trained) -> None:
    """The margins of the kind are those of the vectors, not only of the dual network."""
    model, x, y = trained
    checker = Checker(network_arrays(model.float(), x), {"x": x.numpy(), "labels": y.numpy()})
    one = Certificate(0, int(y[0]), LABEL, SDP, 0.05, 0.0)
    with np.errstate(all="ignore"):
        ball, center = (checker.analysis(one, "linf", "float32", NO_CLIP, eps) for eps in (None, 0.0))
        layers = TwoLayers(checker.nodes, checker.a, sdp_vectors(model, x))
        found = layers.margins(center, ball, checker.rows(one.label), one.label)
    logits = model(x[:1])[0].numpy()
    for k in range(3):
        if k != one.label:
            reach = float(layers.reach[min(k, one.label), max(k, one.label)])
            assert found[k] == pytest.approx(logits[one.label] - logits[k] - 0.05 * reach, abs=1e-4)
            assert found[k] < logits[one.label] - logits[k] - 0.05 * reach + 1e-6


def test_the_writer_uses_vectors_where_they_prove_more(trained, tmp_path, monkeypatch) -> None:
    model, x, y = trained
    result = ib.certify(model, x, y, eps=0.05, methods=("sdp",), attack=None)
    plain = Checker.margins

    def weak(self, one, *query):
        return plain(self, one, *query) - (0 if one.kind == SDP else 1e3) * (np.arange(CLASSES) != one.label)

    monkeypatch.setattr(Checker, "margins", weak)
    written = ib.write_certificates(result, model, x, tmp_path)
    monkeypatch.undo()
    assert written.certificates and {one.kind for one in written.certificates} == {SDP}
    file = File.read(tmp_path / "certificates.ibc")
    assert len(file.common) == 2 + 3 * (12 + 4 * (1 + 6 + 10))
    checker = Checker(network_arrays(model, x), {"x": x.numpy(), "labels": y.numpy()})
    assert set(checker.check_file(file).values()) == {None}
    assert checker.check(file.certificates[0], "linf", "real", NO_CLIP, b"") is not None
