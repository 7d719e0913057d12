"""Linear and mixed-integer programs against independent write-ups, enumeration and each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from cases import CASES
from ironbound.bounding import bounds, margins
from ironbound.bounding.alpha import optimised, output_rows
from ironbound.bounding.alpha_dual import Ascent
from ironbound.bounding.functionals import DenseRows
from ironbound.bounding.methods import METHODS
from ironbound.capture import capture
from ironbound.errors import InputError, SoundnessError
from ironbound.exact.highs import Solver
from ironbound.exact.linear import lp as lp_method
from ironbound.exact.linear import minimised, one_state, raised_state, relaxed_optimum
from ironbound.exact.mixed import MixedSearch, clause_rows, milp, mixed
from ironbound.exact.polytope import lines_of, polytope
from ironbound.exact.program import Builder, Program
from ironbound.exact.query import Budget, Clauses, Query
from ironbound.ops.piecewise import PiecewiseLinear, ReLU
from ironbound.regions import Box, L1Ball, L2Ball, LinfBall, Region
from ironbound.regions import ball as region_ball
from laws.exact import exact_minimum, triangle_minimum
from laws.families import FAMILIES
from laws.writeup import ball, dense_layers, interval_bounds

EYE = torch.eye(3, dtype=torch.float64)
NORMS = {"linf": ("linf", 0.3, None), "clipped": ("linf", 0.5, (0.0, 1.0)), "l1": ("l1", 0.6, None)}
TINY = {
    "dense": (lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)), (2,)),
    "convolutional": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 1, 3, 2, 1), nn.ReLU(), nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3, 3)
        ),
        (1, 3, 3),
    ),
}  # fmt: skip


def tiny(name: str, seed: int) -> tuple[nn.Sequential, Tensor]:
    build, shape = TINY[name]
    torch.manual_seed(seed)
    model = build().double().eval()
    for tensor in model.parameters():
        tensor.data.mul_(2 if tensor.dim() > 1 else 0.2)
    return model, torch.rand(1, *shape, dtype=torch.float64) * 0.6


def query(
    model: nn.Module, region: Region, outputs: Tensor, clause: list[int] | None = None, **given_: Tensor
) -> Query:
    count = len(outputs)
    zero = torch.zeros(count, dtype=outputs.dtype)
    number = torch.arange(count) if clause is None else torch.tensor(clause)
    parts = {"inputs": None, "constant": zero, "guard": zero + 1e-7} | given_
    return Query(capture(model, region.center), region, Clauses(outputs, clause=number, **parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TINY)
def test_linear_programs_equal_equation_15_written_down_for_the_whole_network(name: str, norm: str) -> None:
    kind, eps, clip = NORMS[norm]
    gains = []
    for seed in range(3):
        model, x = tiny(name, seed)
        region = region_ball(kind, x, eps, clip)
        one = ball(kind, x.flatten(), torch.full((x.numel(),), eps, dtype=torch.float64), clip)
        layers = dense_layers(model, tuple(x.shape[1:]))
        for method in ("dual+interval", "alpha"):  # alpha meets with intervals
            found = relaxed_optimum(model, region, torch.tensor([0]), method)
            flat = [(low.flatten(), high.flatten()) for low, high in bounds(model, region, method).layers.values()]
            for target in (1, 2):
                best = triangle_minimum(layers, one, flat, EYE[0] - EYE[target])
                assert found.objective[0, target].item() == pytest.approx(best, abs=1e-6)
                assert best - 1e-5 <= found.lower[0, target].item() <= best + 1e-7
            assert bool((found.attained >= found.lower - 1e-9).all())
            assert bool(region[torch.zeros(3, dtype=torch.int64)].contains(found.points[0]).all())
        gains.append((found.lower - margins(model, region, torch.tensor([0]), "crown")).max().item())
    assert max(gains) > 1e-3


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_ascent_over_the_slopes_ends_at_the_linear_program(norm: str) -> None:
    for seed in range(2):
        model, x = tiny("dense", seed)
        region = region_ball(norm, x, 0.3)
        graph = capture(model, x)
        known = METHODS["dual"](graph, region, None).layers()
        state = one_state(graph, region, [known], None, None)
        rows = output_rows(state, DenseRows(EYE[0] - EYE[1:], torch.zeros(2, dtype=torch.int64)))
        with torch.no_grad():
            lower, _, _ = minimised(state, rows)
            best, _ = optimised(replace(state, ascent=Ascent(2000)), rows)
        torch.testing.assert_close(best, lower, rtol=0, atol=1e-4)
        assert bool((best <= lower + 1e-8).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", TINY)
@pytest.mark.no_cover
def test_mixed_programs_equal_the_enumeration_of_patterns(name: str, norm: str) -> None:
    kind, eps, clip = NORMS[norm]
    gains = []
    for seed in range(3):
        model, x = tiny(name, seed)
        region = region_ball(kind, x, eps, clip)
        one = ball(kind, x.flatten(), torch.full((x.numel(),), eps, dtype=torch.float64), clip)
        layers = dense_layers(model, tuple(x.shape[1:]))
        inner = interval_bounds(layers, one)
        exact = [exact_minimum(layers, one, inner, EYE[0] - EYE[k]) for k in (1, 2)]
        graph = capture(model, x)
        outputs = DenseRows(EYE[0] - EYE[1:], torch.zeros(2, dtype=torch.int64))
        lower, upper = mixed(graph, region, None).answer(outputs, True)
        assert lower.tolist() == pytest.approx(exact, abs=1e-5)
        assert bool((lower <= torch.tensor(exact, dtype=torch.float64) + 1e-7).all())
        assert upper is not None
        assert upper[0].item() == pytest.approx(-exact_minimum(layers, one, inner, EYE[1] - EYE[0]), abs=1e-5)
        gains.append((lower - lp_method(graph, region, None).answer(outputs, False)[0]).max().item())
        found = milp(query(model, region, EYE[0] - EYE[1:]))
        assert (found.why == "proved") == (min(exact) > 1e-6)
        assert (found.why == "candidate") == (min(exact) < -1e-5)
        assert bool((found.lower <= torch.tensor(exact, dtype=torch.float64) + 1e-7).all())
        if found.candidate is not None:
            y = model(found.candidate)
            assert bool((y[0, 0] <= y[0, 1:]).any()) and bool(region.contains(found.candidate))
    assert max(gains) > 1e-3


@given(seed=st.integers(0, 10**6), eps=st.floats(0.0, 0.6), norm=st.sampled_from(["linf", "l1"]))
@settings(max_examples=15)
@pytest.mark.no_cover
def test_methods_are_in_order_and_no_point_lies_below(seed: int, eps: float, norm: str) -> None:
    model, x = tiny("dense", seed)
    region = region_ball(norm, x, eps)
    found = [bounds(model, region, method) for method in ("dual", "crown", "alpha", "lp", "milp")]
    split = bounds(model, region, "split")
    torch.testing.assert_close(split.lower, found[-1].lower, rtol=0, atol=1e-5)
    torch.testing.assert_close(split.upper, found[-1].upper, rtol=0, atol=1e-5)
    assert bool((torch.maximum(found[0].lower, found[1].lower) <= found[2].lower + 1e-9).all())
    for weak, strong in zip(found[2:], found[3:], strict=False):
        assert bool((weak.lower <= strong.lower + 1e-9).all() and (weak.upper >= strong.upper - 1e-9).all())
    points = model(region[torch.zeros(500, dtype=torch.int64)].sample())
    assert bool((found[-1].lower <= points + 1e-9).all() and (found[-1].upper >= points - 1e-9).all())


def _small(name: str) -> bool:
    return name not in ("gelu", "silu", "smooth-convolutional", "residual", "convolutional", "mixed", "resampled")


@pytest.mark.parametrize("case", [case for case in FAMILIES if _small(case.name)], ids=lambda case: case.name)
@pytest.mark.no_cover
def test_every_family_is_bounded_soundly_and_no_worse_than_by_slopes(case) -> None:
    model, x = case.model(dtype=torch.float64), case.inputs(1, dtype=torch.float64)
    for region in (LinfBall(x, 0.05), L1Ball(x, 0.4, (-9.0, 9.0))):
        found = {method: bounds(model, region, method) for method in ("alpha", "lp", "milp")}
        points = model(region[torch.zeros(2000, dtype=torch.int64)].sample())
        for weak, strong in (("alpha", "lp"), ("lp", "milp")):
            assert bool((found[weak].lower <= found[strong].lower + 1e-6).all())
        assert bool((found["milp"].lower <= points + 1e-7).all() and (found["milp"].upper >= points - 1e-7).all())


@pytest.mark.parametrize(
    "name", ["hardtanh", "leaky", "max-pooling", "overlapping-max-pooling", "branches", "extremes"]
)
def test_exact_programs_are_attained_by_the_network(name: str) -> None:
    case = next(case for case in FAMILIES if case.name == name)
    model, x = case.model(dtype=torch.float64), case.inputs(1, dtype=torch.float64)
    region = LinfBall(x, 0.15)
    graph = capture(model, x)
    eye = torch.eye(case.classes, dtype=torch.float64)
    state = raised_state(graph, region, None)
    with torch.no_grad():
        rows = output_rows(state, DenseRows(eye, torch.zeros(len(eye), dtype=torch.int64)))
        search = MixedSearch(state, rows, lambda points: graph(points), Budget())
        opened = 0
        for row in range(case.classes):
            bound, point = search.solve(torch.tensor([row]), float("inf"), exact=True)
            assert point is not None and bool(region.contains(point))
            assert graph(point)[0, row].item() == pytest.approx(bound.item(), abs=1e-5)
            opened += int(search.exact_polytope().program.integral.sum())
    assert opened > 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_program_serves_both_precisions(dtype: torch.dtype) -> None:
    case = next(case for case in CASES if case.name == "overlapping-max-pooling")
    model, x = case.model(dtype=dtype), case.inputs(2, dtype=dtype)[1:]
    found = bounds(model, L1Ball(x, 0.7, (-9.0, 9.0)), "milp")
    assert found.lower.dtype == dtype
    assert found.lower[0].tolist() == pytest.approx([0.212004, 0.292183, -0.536361, 0.927583], abs=2e-5)


def test_clauses_of_several_rows_and_of_inputs() -> None:
    model, x = tiny("dense", 1)
    region = LinfBall(x, 0.3)
    generator = torch.Generator().manual_seed(3)
    grid = torch.linspace(-0.3, 0.3, 241, dtype=torch.float64)
    points = x + torch.cartesian_prod(grid, grid)
    outputs, inputs = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    seen = set()
    for shift in (-0.5, 0.0, 0.5, 1.5):
        constant = torch.full((5,), shift, dtype=torch.float64)
        asked = query(model, region, outputs, [0, 0, 0, 1, 1], inputs=inputs, constant=constant)
        least = asked.clauses.best(asked.clauses.values(points, model(points))).amin(0)
        found = milp(asked)
        assert bool((found.lower <= least + 1e-9).all())
        seen.add(found.why)
        if found.why == "proved":
            assert bool((least > 0).all())
        else:
            assert found.why == "candidate" and found.candidate is not None
            at = asked.clauses.best(asked.clauses.values(found.candidate, model(found.candidate)))
            assert bool((at <= 0).any()) and bool((least <= 1e-2).any())
        state = raised_state(asked.graph, region, None)
        with torch.no_grad():
            search = MixedSearch(state, clause_rows(state, asked.clauses), lambda at: at.new_zeros(1), Budget())
            search._agreed = True
            exact, _ = search.solve(torch.tensor([0, 1, 2]), float("inf"), exact=True)
        assert least[0].item() - 0.05 <= exact.item() <= least[0].item() + 1e-9
    assert seen == {"proved", "candidate"}


def test_searches_that_are_stopped_keep_valid_bounds() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).double().eval()
    region = LinfBall(torch.rand(1, 4, dtype=torch.float64), 0.6)
    least = model(region[torch.zeros(20000, dtype=torch.int64)].sample()).amin(0)
    shift = -least.detach() + 0.05  # nearly refuted, so that bounds alone do not decide
    for budget in (Budget(nodes=1), Budget.of(0.0), Budget.of(0.05), Budget(nodes=0)):
        found = milp(query(model, region, EYE, constant=shift), budget)
        assert found.why in ("time", "nodes") or found.candidate is not None
        assert bool(torch.isfinite(found.lower).all())
        assert bool((found.lower <= least + shift + 1e-9).all())
    free = milp(query(model, region, EYE, constant=shift + 1.0), Budget.of(60))
    assert free.why == "proved"


def test_regions_without_open_neurons_and_points() -> None:
    model, x = tiny("dense", 0)
    y = model(x)[0]
    best = int(y.argmax())
    rows = EYE[best] - EYE[[k for k in range(3) if k != best]]
    for region in (LinfBall(x, 0.0), Box(x, x), L1Ball(x, 0.0), LinfBall(x, 1e-12), L1Ball(x, 1e-12)):
        state = raised_state(capture(model, x), region, None)
        assert polytope(state, integral=True).exact
        found = milp(query(model, region, rows))
        assert found.why == "proved"
        torch.testing.assert_close(found.lower, rows @ y, rtol=0, atol=1e-6)
        refuted = milp(query(model, region, -rows[:1]))
        assert refuted.why == "candidate"
    half = Box(torch.cat([x[:, :1], x[:, 1:] - 0.3], 1), torch.cat([x[:, :1], x[:, 1:] + 0.3], 1))
    found = milp(query(model, half, -rows[:1]))
    assert found.candidate is not None and found.candidate[0, 0] == x[0, 0]


def test_small_float32_regions_do_not_lose_their_points() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        x = torch.rand(1, 6) * 100
        for module in (model[0], model[2]):  # kinks at the point itself
            z = x if module is model[0] else torch.relu(model[0](x))
            module.bias -= (module.weight @ z[0]) + module.bias
        y = model(x)[0]
        worst = int(y.argmin())
        rows = torch.eye(3)[worst] - torch.eye(3)[[k for k in range(3) if k != worst]]
        for eps in (1e-7, 1e-6, 1e-5):
            found = milp(query(model, LinfBall(x, eps), rows))
            assert found.why != "proved", eps


def test_networks_with_huge_numbers_prove_nothing_or_the_truth() -> None:
    for scale in (1e8, 1e100, 1e200):
        model, x = tiny("dense", 2)
        with torch.no_grad():
            model[0].weight.mul_(scale)
            model[2].weight.mul_(scale)
        region = LinfBall(x, 0.3)
        points = model(region[torch.zeros(500, dtype=torch.int64)].sample())
        found = milp(query(model, region, EYE), Budget.of(5))
        bad = ~torch.isfinite(points).all(0)
        assert bool((found.lower <= points.amin(0) + 1e-6 * points.abs().amax(0)).logical_or(bad).all())
        assert not bool((found.lower > 0)[points.amin(0) <= 0].any())


def test_round_regions_are_refused() -> None:
    model, x = tiny("dense", 0)
    for region in (L2Ball(x, 0.1), L2Ball(x, 0.1, (0.0, 1.0))):
        with pytest.raises(InputError, match="flat sides"):
            milp(query(model, region, EYE))
        for method in ("lp", "milp"):
            with pytest.raises(InputError, match="flat sides"):
                bounds(model, region, method)
        with pytest.raises(InputError, match="flat sides"):
            relaxed_optimum(model, region, torch.tensor([0]))
    with pytest.raises(InputError, match="either"):
        relaxed_optimum(model, LinfBall(x, 0.1), None)
    with pytest.raises(InputError, match="shape"):
        relaxed_optimum(model, LinfBall(x, 0.1), None, functionals=EYE)


def test_a_program_that_contradicts_the_network_is_a_defect() -> None:
    model, x = tiny("dense", 1)
    graph, region = capture(model, x), LinfBall(x, 0.3)
    state = raised_state(graph, region, None)
    with torch.no_grad():
        rows = output_rows(state, DenseRows(EYE, torch.zeros(3, dtype=torch.int64)))
        with pytest.raises(SoundnessError, match="centre"):
            MixedSearch(state, rows, lambda points: graph(points) + 1, Budget()).agrees()
        assert MixedSearch(state, rows, lambda points: graph(points), Budget()).agrees()


# --- programs as data ------------------------------------------------------------------------------------------------


def _random(seed: int) -> tuple[Program, np.ndarray]:
    generator = np.random.default_rng(seed)
    build = Builder()
    columns = build.columns(generator.uniform(-2, 0, 6), generator.uniform(0, 2, 6))
    build.constrain([(generator.normal(size=(4, 6)), columns)], -np.inf, generator.uniform(0, 1, 4))
    build.constrain([(generator.normal(size=(3, 6)), columns)], generator.uniform(-1, 0, 3), np.inf)
    build.constrain([(generator.normal(size=(1, 6)), columns), (0.5, columns[:1])], 0.0, 0.0)
    return build.program(), generator.normal(size=6)


def test_any_multipliers_give_a_bound_and_the_solvers_the_optimum() -> None:
    for seed in range(10):
        program, cost = _random(seed)
        dense = program.matrix.toarray()
        above, below = np.isfinite(program.row_upper), np.isfinite(program.row_lower)
        best = linprog(
            cost,
            np.concatenate([dense[above], -dense[below]]),
            np.concatenate([program.row_upper[above], -program.row_lower[below]]),
            bounds=np.stack([program.lower, program.upper], 1),
        ).fun
        found = Solver(program).minimum(cost)
        assert found.status == "optimal"
        assert best - 1e-6 <= found.lower <= best + 1e-10
        assert found.objective == pytest.approx(best, abs=1e-7)
        generator = np.random.default_rng(seed)
        for size in (0.0, 0.1, 1.0, 10.0):
            bad = found.multipliers + size * generator.normal(size=len(found.multipliers))
            assert program.dual_bound(cost, bad) <= best + 1e-10
        assert program.dual_bound(cost, np.full(len(bad), np.nan)) == pytest.approx(program.interval(cost)[0], abs=1e-9)


def test_a_program_solved_for_several_objectives_is_solved_for_each() -> None:
    program, cost = _random(1)
    solver = Solver(program)
    for objective in (cost, -cost, cost[::-1].copy()):
        alone = Solver(program).minimum(objective)
        assert solver.minimum(objective).lower == pytest.approx(alone.lower, abs=1e-8)
    assert solver.minimum(cost, 0.0).lower <= Solver(program).minimum(cost).lower + 1e-9


def test_statements_that_a_program_is_infeasible_prove_nothing() -> None:
    build = Builder()
    columns = build.columns(np.zeros(2), np.ones(2), integral=True)
    build.constrain([(np.ones((1, 2)), columns)], 2.5, np.inf)
    program, cost = build.program(), np.array([1.0, 2.0])
    assert Solver(program).minimum(cost).status == "infeasible"
    found = Solver(program, relaxed=False).mixed_minimum(cost, enough=0.0)
    assert found.status == "infeasible" and found.lower == -np.inf and found.values is None


def test_tiny_coefficients_leave_room_in_their_rows() -> None:
    build = Builder()
    columns = build.columns(-1e6 * np.ones(2), 1e6 * np.ones(2))
    build.constrain([(np.array([[1.0, 1e-12]]), columns)], 1.0, 1.0)
    program = build.program()
    assert program.matrix.nnz == 1
    assert program.row_lower[0] == pytest.approx(1 - 1e-6) and program.row_upper[0] == pytest.approx(1 + 1e-6)


def test_lines_of_one_kink_are_its_convex_hull() -> None:
    low, high = -torch.rand(40, dtype=torch.float64) - 0.1, torch.rand(40, dtype=torch.float64) + 0.1
    convex, concave = PiecewiseLinear((0.05,), (-0.5, 1.0), 0.2), PiecewiseLinear((0.05,), (1.7, 1.0), 0.2)
    for operator in (ReLU(), convex, concave):
        below, above = lines_of(operator, low, high)
        share = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
        z = low + share * (high - low)
        f = operator.forward(z)
        lower = torch.stack([torch.from_numpy(s) * z + torch.from_numpy(c) for s, c in below]).amax(0)
        upper = torch.stack([torch.from_numpy(s) * z + torch.from_numpy(c) for s, c in above]).amin(0)
        assert bool((lower <= f + 1e-12).all() and (upper >= f - 1e-12).all())
        chord = operator.forward(low) + share * (operator.forward(high) - operator.forward(low))
        hull = (torch.minimum(f, chord), torch.maximum(f, chord))
        torch.testing.assert_close(torch.stack([lower, upper]), torch.stack(hull))


def test_functions_with_two_kinks_inside_their_bounds_are_exact() -> None:
    torch.manual_seed(4)
    for activation in (nn.Hardtanh(-0.5, 0.7), nn.Softshrink(0.4)):
        model = nn.Sequential(nn.Linear(1, 4), activation, nn.Linear(4, 3)).double().eval()
        model[0].weight.data.mul_(4)
        x = torch.zeros(1, 1, dtype=torch.float64)
        found = bounds(model, LinfBall(x, 2.0), "milp")
        grid = torch.linspace(-2, 2, 40001, dtype=torch.float64)[:, None]
        y = model(grid)
        torch.testing.assert_close(found.lower[0], y.amin(0), rtol=0, atol=1e-3)
        torch.testing.assert_close(found.upper[0], y.amax(0), rtol=0, atol=1e-3)
