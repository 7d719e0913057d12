"""Optimised slopes: never above the linear program, up to it in the end, and from the slopes the margins again."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cases import CASES
from ironbound.bounding import alpha_local, bounds, margins
from ironbound.bounding.alpha import alpha_state, optimised, output_rows
from ironbound.bounding.alpha_dual import Ascent, Block, dual_value, slope_gradient
from ironbound.bounding.alpha_slopes import alpha_margins
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS, find_method
from ironbound.capture import capture
from ironbound.errors import InputError, MemoryLimitError
from ironbound.graph import Graph
from ironbound.regions import L2Ball, LinfBall, Region
from ironbound.regions import ball as region_ball
from laws.exact import triangle_minimum
from laws.writeup import ball, dense_layers

TINY = {
    "dense": (lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (3,)),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)
        ),
        (1, 3, 3),
    ),
}  # fmt: skip


def _tiny(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    build, shape = TINY[name]
    torch.manual_seed(seed)
    model = build().double().eval()
    for tensor in model.parameters():
        tensor.data.mul_(2 if tensor.dim() > 1 else 0.2)
    return model, torch.rand(1, *shape, dtype=torch.float64) * 0.6


def _state(graph: Graph, region: Region, ascent: Ascent):
    known = [METHODS[start](graph, region, None).layers() for start in ("dual", "crown")]
    return alpha_state(graph, region, known, ascent, None)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", TINY)
def test_the_ascent_ends_at_the_linear_program(name: str, norm: str) -> None:
    gaps = []
    for seed in range(3):
        model, x = _tiny(name, seed)
        eps = 0.3 if norm == "linf" else 0.6
        region = region_ball(norm, x, eps)
        one = ball(norm, x.flatten(), torch.full((x.numel(),), eps, dtype=torch.float64), None)
        layers = dense_layers(model, tuple(x.shape[1:]))
        eye = torch.eye(3, dtype=torch.float64)
        for iterations, slack in ((1, 10.0), (300, 1e-2)):
            found = alpha_margins(model, region, torch.tensor([0]), Ascent(iterations))
            flat = [(low.flatten(), high.flatten()) for low, high in found.layers.values()]
            for target in (1, 2):
                best = triangle_minimum(layers, one, flat, eye[0] - eye[target])
                assert found.margins[0, target] <= best + 1e-7
                assert found.margins[0, target] >= best - slack
        before = [margins(model, region, torch.tensor([0]), method) for method in ("dual", "crown")]
        gaps.append((found.margins - torch.maximum(*before)).max().item())
    assert max(gaps) > 1e-2  # there was something to gain


def test_margins_are_not_below_those_of_the_methods_it_starts_from() -> None:
    for case in (case for case in CASES if case.name in ("mlp", "convolutional", "residual", "max-pooling", "tanh")):
        model, x = case.model(dtype=torch.float64), case.inputs(4, dtype=torch.float64)
        labels = torch.tensor([0, 1, 2, 1])
        for region in (LinfBall(x, 0.2), L2Ball(x, 0.5, (-9.0, 9.0))):
            with torch.no_grad():
                starts = [margins(model, region, labels, method) for method in ("dual", "crown")]
                sign = margins(model, region, labels, "alpha-sign")
                found = margins(model, region, labels, "alpha:3")
            assert bool((found >= torch.maximum(*starts) - 1e-9).all()), case.name
            assert bool((sign >= torch.maximum(*starts) - 1e-9).all()), case.name
            assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_slopes_give_the_margins_by_the_papers_formula(norm: str) -> None:
    model, x = _tiny("dense", 1)
    eps = 0.25
    labels = torch.tensor([2])
    found = alpha_margins(model, region_ball(norm, x, eps), labels, Ascent(7))
    layers = dense_layers(model, (3,))
    ends = [(low[0], high[0]) for low, high in found.layers.values()]
    slopes = list(found.slopes.values())
    used = 0
    for target in (0, 1):
        nu = -(torch.eye(3, dtype=torch.float64)[2] - torch.eye(3, dtype=torch.float64)[target])
        value = -(nu @ layers[-1][1])
        for place in (1, 0):  # equations (22) and (23): nu_hat = W^T nu
            hat = layers[place + 1][0].T @ nu
            low, high = ends[place]
            alpha = torch.zeros_like(low)
            chosen = slopes[place]
            mine = chosen.target == target
            alpha[chosen.neuron[mine]] = chosen.alpha[mine]
            is_open = (low < 0) & (high > 0)
            used += int(is_open.sum())
            chord = torch.where(is_open, high / (high - low), (low >= 0).double())
            lower = torch.where(is_open, alpha, (low >= 0).double())
            nu = chord * hat.clamp(min=0) - lower * (-hat).clamp(min=0)
            value = value + (torch.where(is_open, low, 0.0) * nu.clamp(min=0)).sum() - nu @ layers[place][1]
        first = layers[0][0].T @ nu
        size = torch.linalg.vector_norm(first, {"linf": 1, "l2": 2}[norm])
        value = value - x[0] @ first - eps * size
        torch.testing.assert_close(found.margins[0, target], value, rtol=1e-10, atol=1e-10)
    assert used > 4


def test_the_gradient_is_the_derivative() -> None:
    case = next(case for case in CASES if case.name == "residual")
    model, x = case.model(dtype=torch.float64), case.inputs(2, dtype=torch.float64)
    graph = capture(model, x)
    inside = x.clamp(-0.3, 0.3)  # the ball and the box around it take turns in being the smaller one
    for region in (LinfBall(x, 0.3), L2Ball(x, 0.9), L2Ball(inside, 1.2, (-0.3, 0.3))):
        with torch.no_grad():
            state = _state(graph, region, Ascent(1))
            net = state.between()
            rows = [torch.randn(2, 3, level.above.shape[2], dtype=torch.float64) for level in net.levels]
            block = Block(tuple(rows), torch.randn(2, 3, 36, dtype=torch.float64), torch.zeros(2, 3).double())
        slopes = [torch.rand_like(row).requires_grad_() for row in rows]
        value, met, point = dual_value(net, block, slopes)
        expected = torch.autograd.grad(value.sum(), slopes)
        assert len(slopes) == 3 and all(bool(part.any()) for part in expected)
        for found, want in zip(slope_gradient(net, [t.detach() for t in slopes], met, point), expected, strict=True):
            torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_small_networks_of_rows_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 3),
    ).double().eval()  # fmt: skip
    x = torch.rand(2, 1, 10, 10, dtype=torch.float64)
    graph, region = capture(model, x), LinfBall(x, 0.05)
    honest, seen = alpha_local.local, []
    import ironbound.bounding.alpha as alpha_module

    monkeypatch.setattr(alpha_module, "local", lambda *given: seen.append(1) or honest(*given))
    with torch.no_grad():
        small = bounds(graph, region, "alpha:4")
        assert seen
        monkeypatch.setattr(alpha_local, "_WORTH", 0.0)
        count = len(seen)
        whole = bounds(graph, region, "alpha:4")
        assert len(seen) == count
    torch.testing.assert_close(small.lower, whole.lower, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(small.upper, whole.upper, rtol=1e-9, atol=1e-9)
    for one, two in zip(small.layers.values(), whole.layers.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_proved_rows_are_left_alone_and_open_ones_go_on() -> None:
    case = next(case for case in CASES if case.name == "convolutional")
    model, x = case.model(dtype=torch.float64), case.inputs(12, dtype=torch.float64)
    region = LinfBall(x, 0.1)
    labels = model(x).argmax(1)
    full = alpha_margins(model, region, labels, Ascent(20))
    quick = alpha_margins(model, region, labels, Ascent(20), decide=True)
    assert bool(((full.margins > 1e-6) == (quick.margins > 1e-6)).all())
    assert bool((quick.margins <= full.margins + 1e-9).all())
    assert not torch.equal(quick.margins, full.margins)
    asked = torch.zeros(12, 4, dtype=torch.bool)
    asked[3, 0] = asked[7, 2] = True
    some = alpha_margins(model, region, labels, Ascent(20), targets=asked)
    told = asked & ~torch.nn.functional.one_hot(labels, 4).bool()
    torch.testing.assert_close(some.margins[told], full.margins[told], rtol=1e-9, atol=1e-9)
    assert int(torch.isnan(some.margins).sum()) == 12 * 3 - int(told.sum())


def test_names_of_methods() -> None:
    assert find_method("alpha:7") is not None and find_method("alpha-sign") is METHODS["alpha-sign"]
    assert find_method("split:2") is not None and find_method("lp") is not None
    for name in ("lp:1", "split:", "alpha:", "alpha:0", "alpha:-1", "alpha:x", "dual:3", "alpha:٣"):
        assert find_method(name) is None
        with pytest.raises(InputError, match="not known"):
            margins(nn.Linear(2, 2).eval(), LinfBall(torch.zeros(1, 2), 0.1), torch.tensor([0]), name)


def test_maps_beyond_every_budget_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ironbound.bounding.alpha as alpha_module

    model, x = _tiny("dense")
    monkeypatch.setattr(alpha_module, "DEFAULT_BUDGET", 10)
    with pytest.raises(MemoryLimitError):
        margins(model, LinfBall(x, 0.3), torch.tensor([0]), "alpha", memory=10)


@pytest.mark.shared
def test_margins_reach_those_of_a_peer(shared: Path) -> None:
    def pixels(name: str, header: int) -> np.ndarray:
        with gzip.open(shared / "data" / "mnist" / name) as file:
            return np.frombuffer(file.read(), np.uint8, offset=header).copy()

    x = torch.from_numpy(pixels("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:16]).float() / 255
    labels = torch.from_numpy(pixels("t10k-labels-idx1-ubyte.gz", 8)[:16]).long()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    path = shared / "models" / "wong_kolter_mnist_small.pth"
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    with np.load(shared / "oracles" / "mnist_small_peers.npz") as file:
        for eps in (0.05, 0.1):
            peer = torch.from_numpy(file[f"linf/{eps}/alpha_crown_first16"])
            found = alpha_margins(model.eval(), LinfBall(x, eps), labels, Ascent(100)).margins
            assert found.mean() >= peer.mean() - 1e-5
            assert bool((found >= peer - 3e-3).all())
            assert bool((found <= peer + 2e-2).all())  # much tighter would be a red flag


def test_functionals_of_any_sign_and_scale() -> None:
    model, x = _tiny("convolutional")
    graph, region = capture(model, x), LinfBall(x, 0.3)
    with torch.no_grad():
        state = _state(graph, region, Ascent(5))
        c = torch.randn(6, 3, dtype=torch.float64) * torch.tensor([1e-6, 1.0, 1e3]).repeat(2).unsqueeze(1)
        found, slopes = optimised(state, output_rows(state, DenseRows(c, torch.zeros(6, dtype=torch.int64))))
        points = region[torch.zeros(5000, dtype=torch.int64)].sample()
        assert bool((found <= (graph(points) @ c.T).amin(0) + 1e-9).all())
        assert all(bool(((t >= 0) & (t <= 1)).all()) for t in slopes)
