"""The exported program: what it says against torch, rational arithmetic and attacks; what it refuses."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import ironbound as ib
from cases import CASES, Case
from ironbound.attacks import pgd
from ironbound.certificate.network_file import network_arrays
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.guarding import bounds, exporting
from ironbound.regions import ball

ort = pytest.importorskip("onnxruntime")
EXPORTED = [
    case for case in CASES if case.name in ("mlp", "convolutional", "residual", "average-pooling", "batch-norm")
]


class Deep(nn.Sequential):
    """Four convolutions, one dilated, one in groups of one: patches, gathers and rows that begin as single outputs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Conv2d(3, 4, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 7),
            nn.BatchNorm1d(7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )


DEEP = Case("deep", Deep, (2, 12, 12), 3)


@cache
def network(case: Case, seed: int = 3) -> nn.Module:
    """In float64, and one for all tests: every fresh module is captured anew."""
    return case.model(seed=seed, dtype=torch.float64)


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def least(model: nn.Module, x: Tensor, norm: str, eps: float, clip: tuple[float, float] | None) -> np.ndarray:
    """The least margin of the method "dual" in float64, straight from `ib.margins`."""
    with torch.no_grad():
        labels = model(x).argmax(1)
        found = ib.margins(model, ball(norm, x, eps, clip), labels, method="dual")
        found.scatter_(1, labels[:, None], torch.inf)
    return found.amin(1).numpy()


@pytest.mark.parametrize("case", [*EXPORTED, DEEP], ids=lambda case: case.name)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.0), ("linf", 0.2), ("l2", 0.2), ("l1", 0.4)])
def test_equals_torch_and_is_never_more_certain(case: Case, norm: str, eps: float, tmp_path: Path) -> None:
    model, x = network(case), case.inputs(batch=6, dtype=torch.float64)
    guard = ib.Guard(model, eps, norm, shape=case.shape)
    program = session(guard.export(tmp_path / "guard.onnx"))
    logits, margin = program.run(None, {"x": x.numpy()})
    with torch.no_grad():
        assert np.abs(logits - model(x).numpy()).max() < 1e-9
    expected = least(model, x, norm, eps, None)
    assert (margin <= expected).all()
    np.testing.assert_allclose(margin, expected, rtol=0, atol=1e-5)
    for number in range(len(x)):  # a batch says what single inputs say
        alone = program.run(["margin"], {"x": x[number : number + 1].numpy()})[0]
        np.testing.assert_allclose(alone, margin[number : number + 1], rtol=0, atol=1e-9)


def test_a_float32_network_takes_float32_inputs(tmp_path: Path) -> None:
    model, x = EXPORTED[1].model(seed=3), EXPORTED[1].inputs(batch=6)
    guard = ib.Guard(model, 0.03)
    said = guard(x)
    logits, margin = session(guard.export(tmp_path / "guard.onnx")).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(margin, said.margins.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, said.logits.numpy(), rtol=0, atol=1e-5)
    assert ((margin > 0) <= said.safe.numpy()).all()


@pytest.mark.parametrize("case", [*EXPORTED, DEEP], ids=lambda case: case.name)
def test_with_a_clip(case: Case, tmp_path: Path) -> None:
    model, x = network(case), case.inputs(batch=5, dtype=torch.float64).clamp(-1, 1)
    guard = ib.Guard(model, 0.1, clip=(-1, 1), shape=case.shape)
    program = session(guard.export(tmp_path / "guard.onnx"))
    margin = program.run(["margin"], {"x": x.numpy()})[0]
    expected = least(model, x, "linf", 0.1, (-1, 1))
    assert (margin <= expected).all()
    np.testing.assert_allclose(margin, expected, rtol=0, atol=1e-5)
    outside = x.clone()
    outside[0].view(-1)[0] = 1.0001
    assert program.run(["margin"], {"x": outside.numpy()})[0][0] == -np.inf


def test_no_attack_reaches_a_passed_input(tmp_path: Path) -> None:
    case = EXPORTED[0]
    model, x = case.model(seed=7), case.inputs(batch=200)
    program = session(ib.Guard(model, 0.15, shape=case.shape).export(tmp_path / "guard.onnx"))
    with torch.no_grad():
        labels = model(x).argmax(1)
    attacked = pgd(model, ib.LinfBall(x, 0.1499), labels, steps=20, restarts=2, targeted=True)
    logits, margin = program.run(None, {"x": attacked.points.numpy()})
    fooled = logits.argmax(1) != labels.numpy()
    assert fooled.sum() > 5
    assert not (margin[fooled] > 0).any()


def test_any_batch_size_and_broken_inputs(tmp_path: Path) -> None:
    model, x = DEEP.model(), DEEP.inputs(batch=4)
    program = session(ib.Guard(model, 0.01, shape=DEEP.shape).export(tmp_path / "guard.onnx"))
    logits, margin = program.run(None, {"x": x[:0].numpy()})
    assert logits.shape == (0, 3) and margin.shape == (0,)
    whole = program.run(["margin"], {"x": x.numpy()})[0]
    for value in (np.nan, np.inf, -np.inf):
        broken = x.clone()
        broken[1, 0, 5, 5] = value
        margin = program.run(["margin"], {"x": broken.numpy()})[0]
        assert margin[1] == -np.inf
        np.testing.assert_allclose(margin[[0, 2, 3]], whole[[0, 2, 3]], atol=1e-9)
    for wrong in (x.double().numpy(), x[:, :1].numpy(), x[0].numpy()):
        with pytest.raises(Exception, match="INVALID_ARGUMENT|Unexpected input|Invalid"):
            program.run(None, {"x": wrong})


def test_the_metadata_states_the_guarantee(tmp_path: Path) -> None:
    model = EXPORTED[0].model()
    path = ib.Guard(model, 0.25, "l2", shape=(5,)).export(tmp_path / "guard.onnx")
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["ironbound.norm"] == "l2" and float(said["ironbound.eps"]) == 0.25
    assert said["ironbound.version"] == ib.__version__
    assert "margin > 0" in said["ironbound.guarantee"] and "Corollary 2" in said["ironbound.guarantee"]
    other = ib.Guard(EXPORTED[0].model(seed=9), 0.25, "l2", shape=(5,)).export(tmp_path / "other.onnx")
    hashes = {entry.value for entry in onnx.load(other).metadata_props if entry.key == "ironbound.network_sha256"}
    assert said["ironbound.network_sha256"] not in hashes


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    tanh = next(case for case in CASES if case.name == "tanh")
    with pytest.raises(UnsupportedOperatorError, match="Tanh"):
        ib.Guard(tanh.model(), 0.1, shape=tanh.shape).export(tmp_path / "guard.onnx")
    with pytest.raises(InputError, match="clip"):
        ib.Guard(EXPORTED[0].model(), 0.1, "l2", clip=(0, 1), shape=(5,)).export(tmp_path / "guard.onnx")
    with pytest.raises(InputError, match="shape="):
        ib.Guard(EXPORTED[0].model(), 0.1).export(tmp_path / "guard.onnx")


def program_of(model: nn.Module, eps: float, path: Path) -> ort.InferenceSession:
    return session(ib.Guard(model, eps, shape=(4,)).export(path))


def mlp(widths: list[int], scales: list[float], seed: int) -> nn.Sequential:
    """A float64 MLP on four inputs whose layers are scaled."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    for number, scale in enumerate(scales):
        layer = nn.Linear(widths[number], widths[number + 1]).double()
        for tensor, size in ((layer.weight, scale), (layer.bias, math.prod(scales[: number + 1]))):
            tensor.data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * size
        model.extend([layer, nn.ReLU()])
    return model[:-1].eval()


def with_tie(seed: int) -> nn.Sequential:
    """Two classes of equal logits in real arithmetic, computed in another order:."""
    model = mlp([4, 16, 3], [1.0, 1e6], seed)
    hidden, last = model[0], model[2]
    assert isinstance(hidden, nn.Linear) and isinstance(last, nn.Linear)
    hidden.weight.data[8:], hidden.bias.data[8:] = hidden.weight.data[:8].flip(0), hidden.bias.data[:8].flip(0)
    last.weight.data[:, 8:] = -last.weight.data[:, :8].flip(1)  # 0 but for rounding
    last.bias.data = torch.tensor([0.0, 0.0, -1e7], dtype=torch.float64)
    return model


def test_rounding_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passed() -> int:
        found = 0
        for seed in range(20):
            x = torch.randn(16, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
            found += int(
                (program_of(with_tie(seed), 0.0, tmp_path / "guard.onnx").run(None, {"x": x.numpy()})[1] > 0).sum()
            )
        return found

    assert not passed()
    monkeypatch.setattr(bounds.Network, "slack", lambda self: 0.0)
    assert passed()  # the same inputs show what the slack is for


@pytest.mark.parametrize("scales", [(1e-25, 1e-25, 1e49, 1.0), (1e-30, 1e-15, 1e45, 1.0), (1e30, 1e30, 1e-60, 1.0)])
def test_float32_on_the_way_may_underflow_or_overflow(scales: tuple[float, ...], tmp_path: Path) -> None:
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for seed in range(5):
        model = mlp([4, 6, 6, 6, 3], list(scales), seed)
        margin = program_of(model, 0.5, tmp_path / "guard.onnx").run(["margin"], {"x": x.numpy()})[0]
        expected = least(model, x, "linf", 0.5, None)
        assert (margin <= expected).all()
        assert np.isfinite(margin).all() == (scales[0] < 1)  # beyond all scales nothing is claimed


def test_underflow_in_float32_is_paid_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "FLOOR32", 0.0)
    monkeypatch.setattr(bounds.Network, "limit", lambda self: math.inf)
    with pytest.raises(AssertionError):
        test_float32_on_the_way_may_underflow_or_overflow((1e-25, 1e-25, 1e49, 1.0), tmp_path)


def test_nothing_is_claimed_beyond_all_scales(tmp_path: Path) -> None:
    x = np.ones((2, 4))
    for scales in ((1e160, 1e-160, 1.0), (1e150, 1e100, 1e-240)):
        program = program_of(mlp([4, 6, 6, 3], list(scales), 0), 0.0, tmp_path / "guard.onnx")
        assert not (program.run(["margin"], {"x": x})[0] > 0).any()


def test_every_sum_of_the_program_counts_as_roundings() -> None:
    """Kernels of two layers may be longer together than any one layer: their pixels meet in one sum."""
    model = nn.Sequential(
        nn.Conv2d(6, 1, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(1, 1, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 2),
    ).eval()
    arrays = network_arrays(model, torch.zeros(1, 6, 6, 6))
    _, read = exporting._network(arrays)  # pyright: ignore[reportPrivateUsage]
    longest = 5 * 5 * (6 * 5 * 5)
    assert read.roundings() > longest + sum(node.size for node in read.nodes)
