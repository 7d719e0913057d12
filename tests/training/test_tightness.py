"""Zhu et al. (2020): d and r equal the paper's algorithm, proposition 1 holds, gradients are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES
from ironbound.bounding import margins
from ironbound.bounding.perturbation import LINEAR_METHODS, optimal_perturbation
from ironbound.errors import InputError, UnsupportedOperatorError
from ironbound.regions import L2Ball, LinfBall, Region, ball
from ironbound.training.losses.bounded import crown_ibp, robust
from ironbound.training.losses.tightness import tight, tightness_d, tightness_r
from laws.exact import exact_minimum
from laws.writeup import Input, dense_layers, dual_bounds
from laws.writeup import ball as flat_ball
from laws.zhu import algorithm_1

NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "deep": (
        lambda: nn.Sequential(
            nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
        ),
        (4,),
    ),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 4, 2, 1), nn.ReLU(), nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        (1, 8, 8),
    ),
}
EPS = {"linf": 0.1, "l2": 0.4, "l1": 0.7}


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", NETWORKS)
def test_d_and_r_equal_algorithm_1(name: str, norm: str) -> None:
    build, shape = NETWORKS[name]
    model = build().double().eval()
    layers = dense_layers(model, shape)
    x = torch.rand(4, *shape, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1])
    eye = torch.eye(3, dtype=torch.float64)
    d = r = torch.zeros((), dtype=torch.float64)
    for flat, label in zip(x.flatten(1), labels.tolist(), strict=True):
        for other in {0, 1, 2} - {label}:
            found = algorithm_1(layers, flat, EPS[norm], norm, eye[label] - eye[other])
            d, r = d + found.d / 4, r + found.r / 4  # equation (10): the sum over classes
    assert d > 1e-3 and r > 1e-3
    region = ball(norm, x, EPS[norm])
    torch.testing.assert_close(tightness_d(model, region, labels), d, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(tightness_r(model, region, labels), r, rtol=1e-9, atol=1e-9)


# --- proposition 1 ---------------------------------------------------------------------------------------------------


def _two_class(*layers: tuple[Tensor, Tensor]) -> nn.Sequential:
    """A ReLU chain from (W_i, b_i), the last one a row: class 0 gets it as logit, class 1 gets 0."""
    parts: list[nn.Module] = []
    for place, (weight, bias) in enumerate(layers):
        if place == len(layers) - 1:
            weight, bias = torch.cat([weight, 0 * weight]), torch.cat([bias, 0 * bias])
        linear = nn.Linear(*weight.T.shape).double()
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def _minimum(model: nn.Sequential, x: Tensor, eps: float) -> float:
    """Of logit 0 - logit 1 over the box, by enumeration of all patterns of active neurons."""
    layers = dense_layers(model, (x.shape[1],))
    one: Input = flat_ball("linf", x[0], torch.full_like(x[0], eps), None)
    return exact_minimum(layers, one, dual_bounds(layers, one), torch.tensor([1.0, -1.0], dtype=torch.float64))


LABEL = torch.tensor([0])
NUMBERS = st.integers(0, 2**31 - 1)


@settings(max_examples=20)
@given(NUMBERS)
def test_r_zero_on_upper_lines_implies_the_true_minimum(seed: int) -> None:
    # a fall in positive combinations of neurons that each read one input: all move to their upper end together
    draw = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> Tensor:
        return 0.1 + torch.rand(*shape, generator=draw, dtype=torch.float64)

    first = torch.diag(positive(3) * torch.tensor([1.0, -1.0, 1.0]))
    eps, x = 0.5, torch.zeros(1, 3, dtype=torch.float64)
    model = _two_class((first, 0.08 * torch.rand(3, generator=draw, dtype=torch.float64) - 0.04),
                       (positive(2, 3), -0.1 * positive(2)), (-positive(1, 2), positive(1)))  # fmt: skip
    region = LinfBall(x, eps)
    found = optimal_perturbation(model, region, LABEL)
    is_open = [(node.lower < 0) & (node.upper > 0) for node in found.nodes.values()]
    assert bool(is_open[0].all()) and bool(is_open[1].any())
    assert tightness_r(model, region, LABEL).item() == pytest.approx(0, abs=1e-12)
    assert found.attained[0, 1].item() == pytest.approx(found.margins[0, 1].item(), abs=1e-12)
    assert found.margins[0, 1].item() == pytest.approx(_minimum(model, x, eps), abs=1e-9)
    assert tightness_d(model, region, LABEL).item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=20)
@given(NUMBERS)
def test_r_zero_on_the_lower_line_implies_the_true_minimum(seed: int) -> None:
    # the neuron x1 - x2 has a positive coefficient, and the sum, which weighs more, drives both inputs to one side
    draw = torch.Generator().manual_seed(seed)
    little, much = torch.rand(2, generator=draw, dtype=torch.float64) * 0.9 + 0.05
    first = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    last = torch.stack([little, little + much]).reshape(1, 2)
    model = _two_class((first, torch.tensor([0.0, 2.0]).double()), (last, torch.zeros(1).double()))
    x, eps = torch.full((1, 2), 0.1, dtype=torch.float64), 0.4
    region = LinfBall(x, eps)
    found = optimal_perturbation(model, region, LABEL)
    (node,) = found.nodes.values()
    assert bool(node.lower[0, 0] < 0) and bool(node.upper[0, 0] > 0) and not bool(node.raised[0, 1, 0])
    assert tightness_r(model, region, LABEL).item() == pytest.approx(0, abs=1e-12)
    assert found.margins[0, 1].item() == pytest.approx(_minimum(model, x, eps), abs=1e-9)
    assert found.attained[0, 1].item() == pytest.approx(found.margins[0, 1].item(), abs=1e-12)


@settings(max_examples=20)
@given(NUMBERS)
def test_r_zero_in_an_l2_ball_implies_the_true_minimum(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    row = torch.randn(1, 4, generator=draw, dtype=torch.float64)
    scale, eps = torch.rand(2, generator=draw, dtype=torch.float64) + 0.1
    model = _two_class((row, torch.zeros(1, dtype=torch.float64)), (-scale.reshape(1, 1), torch.ones(1).double()))
    region = L2Ball(torch.zeros(1, 4, dtype=torch.float64), float(eps))
    true = 1 - scale * eps * row.norm()
    assert tightness_r(model, region, LABEL).item() == pytest.approx(0, abs=1e-9)
    assert tightness_d(model, region, LABEL).item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(margins(model, region, LABEL)[0, 1], true)


@pytest.mark.parametrize("method", LINEAR_METHODS)
def test_no_open_neuron_r_and_d_are_zero(method: str) -> None:
    build, shape = NETWORKS["deep"]
    model = build().double().eval()
    region = LinfBall(torch.rand(2, *shape, dtype=torch.float64), 1e-9)
    labels = torch.tensor([0, 1])
    assert tightness_r(model, region, labels, method).item() == 0
    assert tightness_d(model, region, labels, method).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", LINEAR_METHODS)
def test_a_loose_bound_has_positive_r_and_d(method: str) -> None:
    generator = torch.Generator().manual_seed(1)
    loose = 0
    for _ in range(8):
        weights = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((4, 2), (3, 4), (1, 3))]
        model = _two_class(*((weight, 0 * weight[:, 0]) for weight in weights))
        x, eps = torch.full((1, 2), 0.2, dtype=torch.float64), 0.5
        bound = margins(model, LinfBall(x, eps), LABEL, method)[0, 1].item()
        r, d = (f(model, LinfBall(x, eps), LABEL, method).item() for f in (tightness_r, tightness_d))
        gap = _minimum(model, x, eps) - bound
        assert d > gap - 1e-9
        if gap > 1e-3:
            loose += 1
            assert r > 1e-3
    assert loose >= 3


@settings(max_examples=20)
@given(NUMBERS)
def test_proposition_1_with_adaptive_slopes(seed: int) -> None:
    # one open neuron; on the lower line of slope 0 or 1 a whole side of the kink is reached without a gap
    draw = torch.Generator().manual_seed(seed)
    bias, scale = torch.randn(2, generator=draw, dtype=torch.float64)
    # a flat line leaves the input without a coefficient: it then goes down, which is where this neuron's value is low
    row = torch.randn(1, 3, generator=draw, dtype=torch.float64).abs()
    model = _two_class((row, 0.5 * row.abs().sum() * bias.clamp(-0.9, 0.9).reshape(1)),
                       (scale.reshape(1, 1), torch.zeros(1).double()))  # fmt: skip
    x, eps = torch.zeros(1, 3, dtype=torch.float64), 0.5
    region = LinfBall(x, eps)
    r = tightness_r(model, region, LABEL, "crown").item()
    gap = _minimum(model, x, eps) - margins(model, region, LABEL, "crown")[0, 1].item()
    d = tightness_d(model, region, LABEL, "crown").item()
    slope_one = bias > 0
    if scale < 0 or not slope_one:  # the upper line's end, or the flat lower line
        assert r == pytest.approx(0, abs=1e-12) and gap == pytest.approx(0, abs=1e-9)
        assert d == pytest.approx(0, abs=1e-12)
    else:  # slope 1 ends at l < 0, where ReLU is 0: off by |l|
        low = 0.5 * row.abs().sum() * (bias.clamp(-0.9, 0.9) - 1)
        assert r == pytest.approx(-low.item(), rel=1e-9) and gap == pytest.approx(-(low * scale).item(), rel=1e-9)


# --- gradients, the loss, refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", LINEAR_METHODS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_equal_differences(name: str, norm: str, method: str) -> None:
    build, shape = NETWORKS[name]
    model = build().double().eval()
    region = ball(norm, torch.rand(3, *shape, dtype=torch.float64), EPS[norm])
    labels, parameters = torch.tensor([0, 2, 1]), list(model.parameters())
    for term in (tightness_d, tightness_r, lambda *a: tight(*a[:3], 0.3, 0.7, a[3]).value):
        # no term but d reads the last bias, and r not even the last weight
        gradients = torch.autograd.grad(term(model, region, labels, method), parameters, materialize_grads=True)
        for _ in range(3):
            directions = [torch.randn_like(parameter) for parameter in parameters]
            slope = sum((g * v).sum() for g, v in zip(gradients, directions, strict=True))
            ends = []
            with torch.no_grad():
                for step in (1e-6, -2e-6):
                    for parameter, direction in zip(parameters, directions, strict=True):
                        parameter.add_(step * direction)
                    ends.append(term(model, region, labels, method))
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(1e-6 * direction)
            torch.testing.assert_close(torch.as_tensor(slope), (ends[0] - ends[1]) / 2e-6, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("method", LINEAR_METHODS)
def test_the_loss_is_the_sum_of_its_terms(method: str) -> None:
    build, shape = NETWORKS["convolutional"]
    model = build().eval()
    labels, weights = torch.tensor([0, 2, 1]), torch.tensor([2.0, 0.0, 0.5])
    region = LinfBall(torch.rand(3, *shape), 0.05)
    base = robust(model, region, labels, method=method)
    d, r = tightness_d(model, region, labels, method), tightness_r(model, region, labels, method)
    found = tight(model, region, labels, 0.2, 3.0, method)
    torch.testing.assert_close(found.value, base.value + 0.2 * d + 3.0 * r, rtol=1e-5, atol=1e-5)
    assert bool((found.wrong == base.wrong).all())
    assert found.parts == pytest.approx({"robust": base.value.item(), "d": d.item(), "r": r.item()}, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(tight(model, region, labels, 0.0, 0.0, method).value, base.value)
    weighted = tight(model, region, labels, 0.2, 3.0, method, weights=weights)
    alone = [tight(model, region[i : i + 1], labels[i : i + 1], 0.2, 3.0, method).value for i in range(3)]
    torch.testing.assert_close(weighted.value, (2 * alone[0] + 0.5 * alone[2]) / 3, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_with_beta_it_is_crown_ibp_with_the_regularizers(beta: float) -> None:
    build, shape = NETWORKS["convolutional"]
    model, labels = build().eval(), torch.tensor([0, 2, 1])
    region = LinfBall(torch.rand(3, *shape), 0.05)
    base, r = crown_ibp(model, region, labels, beta), tightness_r(model, region, labels, "crown-ibp")
    for gamma in (0.0, 3.0):
        found = tight(model, region, labels, 0.0, gamma, "crown-ibp", beta=beta)
        torch.testing.assert_close(found.value, base.value + gamma * r, rtol=1e-5, atol=1e-5)
        assert bool((found.wrong == base.wrong).all())


def test_a_step_against_r_lowers_it() -> None:
    build, shape = NETWORKS["deep"]
    model = build().double().eval()
    region, labels = LinfBall(torch.rand(8, *shape, dtype=torch.float64), 0.1), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    values = []
    for _ in range(30):
        value = tightness_r(model, region, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def test_projected_terms_come_near_the_exact_ones() -> None:
    build, shape = NETWORKS["convolutional"]
    model = build().double().eval()
    labels = torch.tensor([0, 2, 1])
    for region in (LinfBall(torch.rand(3, *shape).double(), 0.05), L2Ball(torch.rand(3, *shape).double(), 0.2)):
        generator = torch.Generator().manual_seed(0)
        exact = tight(model, region, labels, 1.0, 1.0)
        found = tight(model, region, labels, 1.0, 1.0, projections=20_000, generator=generator)
        for name, value in exact.parts.items():
            assert found.parts[name] == pytest.approx(value, rel=0.05)


def test_every_family_gives_finite_numbers_and_gradients() -> None:
    for case in CASES:
        model, x = case.model(), case.inputs()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        labels = torch.tensor([0, 1, 2])
        regions: list[Region] = [LinfBall(x, 0.1), L2Ball(x.sigmoid(), 0.5, (0.0, 1.0)), L2Ball(x, 0.0)]
        for region in regions:
            d = tightness_d(model, region, labels)
            assert d >= -1e-4
            gradients = torch.autograd.grad(d, list(model.parameters()), allow_unused=True)
            assert all(gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_leaky_relu_has_its_kink_too() -> None:
    case = next(case for case in CASES if case.name == "leaky")
    model, x = case.model(dtype=torch.float64), case.inputs(dtype=torch.float64)
    labels, region = torch.tensor([0, 1, 2]), LinfBall(x, 0.3)
    found = optimal_perturbation(model, region, labels)
    total = torch.zeros(3, dtype=torch.float64)
    count = torch.zeros(3, dtype=torch.float64)
    for node in found.nodes.values():
        low, high = node.lower.unsqueeze(1), node.upper.unsqueeze(1)
        ends = torch.minimum(node.network - low, high - node.network)
        is_open = (low < 0) & (high > 0)
        far = torch.where(node.raised, ends, node.network.abs()) * is_open
        far[torch.arange(3), labels] = 0
        total, count = total + far.flatten(1).sum(1), count + is_open.flatten(1).sum(1)
    torch.testing.assert_close(tightness_r(model, region, labels), (total / count).mean())


def test_batch_norm_takes_the_clean_statistics() -> None:
    case = next(case for case in CASES if case.name == "batch-norm")
    model, x = case.model(), case.inputs(6)
    model.train()
    before = model[1].running_mean.clone()
    value = tight(model, LinfBall(x, 0.05), torch.arange(6) % 3).value
    assert bool(torch.isfinite(value)) and model.training
    assert not torch.equal(before, model[1].running_mean)


def test_refusals() -> None:
    case = CASES[0]
    model, region, labels = case.model(), LinfBall(case.inputs(), 0.1), torch.tensor([0, 1, 2])
    with pytest.raises(InputError, match="does not relax"):
        tightness_d(model, region, labels, "interval")
    with pytest.raises(InputError, match="leave projections out"):
        tightness_r(model, region, labels, "crown", projections=10)
    for weights in ((-1.0, 0.0), (0.0, float("nan")), (float("inf"), 0.0)):
        with pytest.raises(InputError, match="finite number >= 0"):
            tight(model, region, labels, *weights)
    for name in ("sigmoid", "hardtanh", "max-pooling"):
        other = next(case for case in CASES if case.name == name)
        with pytest.raises(UnsupportedOperatorError, match="needs convex activations with one kink"):
            tightness_r(other.model(), LinfBall(other.inputs(), 0.1), labels)


def test_nan_is_never_right() -> None:
    build, shape = NETWORKS["deep"]
    model = build().eval()
    with torch.no_grad():
        model[0].weight.fill_(1e30)
        model[2].weight.fill_(1e30)
    x = torch.rand(2, *shape)
    found = tight(model, LinfBall(x, 0.1), torch.tensor([0, 1]))
    assert bool(found.wrong.all())
