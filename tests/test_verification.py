"""Verdicts against enumeration; borders, empty boxes, ties, broken networks; who confirms a counterexample."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ironbound import verification_recheck
from ironbound.capture.onnx import save_onnx
from ironbound.errors import InputError
from ironbound.spec import Case, Clause, Constraint, Property, label_property, vnnlib_text
from ironbound.verdicts import Proved, Refuted, Unknown
from ironbound.verification import verify
from ironbound.verification_recheck import inside
from ironbound.verification_stages import Verification
from verification_cases import chain, least_of, random_property, shifted

LOW, HIGH = np.array([-1.0, -1.0]), np.array([1.0, 1.0])


def at_most(bound: float, output: int = 0) -> Clause:
    """The counterexample has y <= bound."""
    return Clause((Constraint((), ((output, 1.0),), bound),))


def one_case(*clauses: Clause, lower: np.ndarray = LOW, upper: np.ndarray = HIGH, outputs: int = 1) -> Property:
    """A property of one case."""
    return Property(len(lower), outputs, (Case(lower, upper, clauses),))


def check(model: nn.Module, prop: Property, verdict: Refuted) -> None:
    """What a refutation promises, computed anew."""
    with torch.no_grad():
        y = model(verdict.x.float())
    assert torch.equal(y, verdict.y)
    assert prop.counterexample(verdict.x, y)[0]


@settings(max_examples=25)
@given(st.integers(0, 10_000))
@pytest.mark.no_cover
def test_agrees_with_enumeration(seed: int) -> None:
    inputs = 1 + seed % 3
    model = chain(seed, inputs, 4, 3, 2)
    prop = random_property(seed, inputs, 2)
    exact = least_of(model, prop)
    for target in (exact, 1e-3, -1e-3):  # as it is; counterexamples just out of reach; just within reach
        asked = prop if target == exact or np.isinf(exact) else shifted(prop, exact - target)
        verdict = verify(model, asked, timeout=20)
        if target > 5e-5:
            assert isinstance(verdict, Proved), (verdict, target)
        elif target < -5e-5:
            assert isinstance(verdict, Refuted), (verdict, target)
        if isinstance(verdict, Refuted):
            check(model, asked, verdict)


def test_an_empty_box_holds_nothing() -> None:
    prop = one_case(at_most(1e9), lower=np.array([0.0, 0.5]), upper=np.array([1.0, 0.4]))
    verdict = verify(chain(0, 2, 3, 1), prop)
    assert isinstance(verdict, Proved)
    assert verdict.word == "unsat"
    assert verify(chain(0, 2, 3, 1), Property(2, 1, ()))


def test_one_empty_case_of_two_changes_nothing() -> None:
    empty = Case(HIGH, LOW, (at_most(1e9),))
    full = Case(LOW, HIGH, (at_most(1e9),))
    assert isinstance(verify(chain(0, 2, 3, 1), Property(2, 1, (empty, full))), Refuted)
    far = Case(LOW, HIGH, (at_most(-1e9),))
    assert isinstance(verify(chain(0, 2, 3, 1), Property(2, 1, (empty, far))), Proved)


def test_repeated_clauses_and_cases() -> None:
    case = Case(LOW, HIGH, (at_most(-1e3), at_most(-1e3)))
    assert isinstance(verify(chain(1, 2, 4, 1), Property(2, 1, (case, case))), Proved)


def test_a_clause_without_constraints() -> None:
    assert isinstance(verify(chain(1, 2, 4, 1), one_case(Clause(()))), Refuted)


def constant(value: float) -> nn.Sequential:
    """Always answers `value`."""
    model = chain(0, 2, 3, 1)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(value)
    return model


@pytest.mark.parametrize(
    ("bound", "kind"), [(0.5, Refuted), (0.5 - 1e-6, Proved), (0.5 - 1e-12, Unknown), (0.5 + 1e-12, Refuted)]
)
def test_constants_and_the_border(bound: float, kind: type) -> None:
    verdict = verify(constant(0.5), one_case(at_most(bound)), timeout=2)
    assert isinstance(verdict, kind)
    if isinstance(verdict, Unknown):
        assert verdict.why in {"stuck", "time", "memory"}
        assert 0 < verdict.gap < 1e-6


def test_a_counterexample_at_a_single_corner() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.zero_()
        model[2].weight.fill_(-1.0)
        model[2].bias.zero_()
    verdict = verify(model, one_case(at_most(-2.0)))  # -relu(x0 + x1) = -2 at (1, 1) only
    assert isinstance(verdict, Refuted)
    assert verdict.x.tolist() == [[1.0, 1.0]]
    assert isinstance(verify(model, one_case(at_most(-2.0001))), Proved)


def test_huge_bounds() -> None:
    lower, upper = np.array([-1e30, -1e30]), np.array([1e30, 1e30])
    model = chain(2, 2, 4, 1)
    verdict = verify(model, one_case(at_most(-1.0), lower=lower, upper=upper), timeout=5)
    if isinstance(verdict, Refuted):
        check(model, one_case(at_most(-1.0), lower=lower, upper=upper), verdict)
    other = verify(constant(0.5), one_case(at_most(0.4), lower=lower, upper=upper), timeout=5)
    assert not isinstance(other, Refuted)


def test_nan_weights_are_refused() -> None:
    model = chain(2, 2, 4, 1)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        verify(model, one_case(at_most(0.0)))


def test_overflow_is_never_proved() -> None:
    model = chain(2, 2, 4, 1).double()
    with torch.no_grad():
        model[0].weight.mul_(1e200)
        model[2].weight.mul_(1e200)
    assert not isinstance(verify(model, one_case(at_most(0.0)), timeout=2), Proved)


def test_an_infinite_output_is_never_proved() -> None:
    model = chain(2, 2, 1, 1).double()
    with torch.no_grad():
        for tensor, value in zip(model.parameters(), (0.0, 1e308, 10.0, 0.0), strict=True):
            tensor.fill_(value)
    assert isinstance(verify(model, one_case(at_most(0.0)), timeout=2), Unknown)


def test_a_network_that_returns_nan_is_neither() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_full((1,), torch.inf) - torch.relu(x[:, :1]) * torch.inf

    try:
        verdict = verify(Root().eval(), one_case(at_most(0.0)), timeout=5)
    except Exception as error:
        assert type(error).__module__ == "ironbound.errors"  # noqa: PT017
    else:
        assert isinstance(verdict, Unknown)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="inputs"):
        verify(chain(0, 3, 3, 1), one_case(at_most(0.0)), input_shape=(3,))
    with pytest.raises(InputError, match="outputs"):
        verify(chain(0, 2, 3, 2), one_case(at_most(0.0)))
    with pytest.raises(InputError, match="timeout"):
        verify(chain(0, 2, 3, 1), one_case(at_most(0.0)), timeout=0)


def test_many_inputs_go_to_relu_splitting() -> None:
    model = chain(4, 30, 12, 12, 3)
    x = torch.randn(30, generator=torch.Generator().manual_seed(0)).double().numpy()
    with torch.no_grad():
        label = int(model(torch.from_numpy(x).float()[None]).argmax())
    small = verify(model, label_property(x - 0.01, x + 0.01, label, 3), timeout=30)
    large = verify(model, label_property(x - 2, x + 2, label, 3), timeout=30)
    assert isinstance(small, Proved)
    assert isinstance(large, Refuted)
    check(model, label_property(x - 2, x + 2, label, 3), large)


def test_time_ends_the_search() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1)).eval()
    wide = np.full(8, 3.0)
    with torch.no_grad():
        reached = float(model(6 * torch.rand(20_000, 8) - 3).min())
    verdict = verify(model, one_case(at_most(reached - 1.0), lower=-wide, upper=wide), timeout=1.0)
    assert isinstance(verdict, Unknown)
    assert (verdict.why, verdict.word) == ("time", "timeout")
    assert verdict.seconds < 30


def test_boxes_between_float32_numbers() -> None:
    third = 1 / 3  # no float32 number
    lower, upper = np.array([third, -1.0]), np.array([third, 1.0])
    model = chain(3, 2, 4, 1)
    verdict = verify(model, one_case(at_most(1e3), lower=lower, upper=upper))
    assert isinstance(verdict, Refuted)
    assert verdict.x[0, 0].item() == third
    check(model, one_case(at_most(1e3), lower=lower, upper=upper), verdict)


@given(st.integers(0, 10_000))
def test_points_are_moved_inside_in_the_networks_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=5)
    upper = lower + rng.choice([0, 1e-9, 1e-7, 1e-3, 1.0], size=5)
    point = rng.normal(size=5)
    moved = inside(point, Case(lower, upper, (Clause(()),)), torch.float32)
    assert ((moved >= lower) & (moved <= upper)).all()
    for value, low, high in zip(moved, lower, upper, strict=True):
        near = np.float32(low) if np.float32(low) >= low else np.nextafter(np.float32(low), np.float32(np.inf))
        assert (float(near) <= high) == (float(np.float32(value)) == value)


# --- ONNX files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A network and a property that it does not have, as files."""
    model = chain(11, 3, 6, 2)
    save_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 3))
    prop = Property(3, 2, (Case(-np.ones(3), np.ones(3), (at_most(float(model(torch.zeros(1, 3)).detach()[0, 0])),)),))
    (tmp_path / "prop.vnnlib").write_text(vnnlib_text(prop))
    return tmp_path / "net.onnx", tmp_path / "prop.vnnlib", prop


def test_files_and_onnxruntime(files) -> None:
    network, path, prop = files
    verdict = verify(network, path, timeout=20)
    assert isinstance(verdict, Refuted)
    assert verdict.checked_by == ("torch", "onnxruntime")
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: verdict.x.numpy()})
    assert prop.counterexample(verdict.x, y)[0]
    assert "sat" in verdict.word
    assert "onnxruntime" in str(verdict)


def test_without_onnxruntimes_consent_there_is_no_refutation(files, monkeypatch) -> None:
    network, path, _ = files
    monkeypatch.setattr(verification_recheck, "onnx_runner", lambda path: lambda x: np.full((1, 2), 1e9))
    verdict = verify(network, path, timeout=3)
    assert isinstance(verdict, Unknown)


def test_without_onnxruntime_the_verdict_says_so(files, monkeypatch) -> None:
    network, path, _ = files
    monkeypatch.setattr(verification_recheck, "onnx_runner", lambda path: None)
    verdict = verify(network, path, timeout=20)
    assert isinstance(verdict, Refuted)
    assert verdict.checked_by == ("torch",)


def test_only_one_kind_of_verdict_is_true() -> None:
    proved, refuted = verify(constant(0.5), one_case(at_most(0.0))), verify(constant(0.5), one_case(at_most(1.0)))
    assert proved
    assert not refuted
    assert not Unknown(1.0, "time", 1.0)
    assert isinstance(refuted, Refuted)
    assert "counterexample" in str(refuted)
    assert "x=" in repr(refuted)


def test_bounds_with_a_guard_below_them_prove_nothing() -> None:
    """NaN and values within the guard are never entered as proofs."""
    prop = one_case(at_most(0.0), at_most(1.0))
    state = Verification(constant(0.5), prop, (2,), 0.0, None, None, 0, None)
    state._enter(0, [0, 1], torch.tensor([torch.nan, torch.inf]), "test")
    state._enter(0, [1], torch.tensor([0.0]), "test")
    assert set(state.lower) == {(0, 0), (0, 1)}
    state._enter(0, [0], torch.tensor([1e-30]), "test")
    assert set(state.lower) == {(0, 1)}


def test_bounds_of_many_cases_at_once_are_those_of_each() -> None:
    near = Case(LOW * 0.01, HIGH * 0.01, (at_most(0.0), at_most(-1.0)))
    far = Case(LOW * 5 + 3, HIGH * 5 + 3, (at_most(-2.0),))
    together = Verification(chain(6, 2, 8, 1), Property(2, 1, (near, far, near)), (2,), 0.0, None, None, 0, None)
    bounds = together._bounded([(0, [0, 1]), (1, [0]), (2, [0, 1])])
    for place, case in enumerate((near, far, near)):
        alone = Verification(chain(6, 2, 8, 1), Property(2, 1, (case,)), (2,), 0.0, None, None, 0, None)
        alone.__dict__["scale"] = together.scale
        (expected,) = alone._bounded([(0, list(range(len(case.clauses))))])
        assert torch.allclose(bounds[place], expected, rtol=0, atol=1e-12)
    assert bounds[1].item() < bounds[0].min()
