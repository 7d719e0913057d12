"""The checker against rational arithmetic, in three number formats: no bound above the exact one, none far below."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from certificate.exact_networks import (
    FAMILIES,
    GAMMA_UNIT,
    Builder,
    build,
    exact,
    exact_dual,
    exact_network,
    exact_run,
    zeros,
)
from ironbound.certificate.checker.bounds import Analysis, Region
from ironbound.certificate.checker.files import network
from ironbound.certificate.checker.layers import Arithmetic, CertificateError, Rows

FORMATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
TIGHT = {"float16": 30.0, "float32": 1e-3, "float64": 1e-12}  # shares of the magnitudes that rounding may cost


class Recorded(Analysis):
    """Keeps every bound of single values that the induction asks for."""

    def __init__(self, *args, **kwargs):
        self.calls = []
        super().__init__(*args, **kwargs)

    def bound(self, source, neurons, lines, sign=1):
        """Keeps the answer."""
        answer = super().bound(source, neurons, lines, sign)
        self.calls.append((source, neurons, dict(lines), sign, answer))
        return answer


class Oracle:
    """The exact side of one analysis."""

    def __init__(self, arrays, dtype, region, mode="real", sharp=False):
        norm, x, eps, clip = region
        self.a = Arithmetic(dtype)
        self.nodes = exact_network(arrays)
        ends = (np.nan, np.nan) if clip is None else clip
        self.mine = network(arrays, self.a)
        self.region = (norm, exact(x).reshape(-1), Fraction(eps), None if clip is None else exact(clip))
        with np.errstate(all="ignore"):
            region = Region(self.a, x, norm, eps, ends)
            self.found = Recorded(self.mine, self.a, region, mode, sharp)
        self.noise = [self._noise(n) if mode == "float32" else None for n in range(len(self.nodes))]

    def _noise(self, n):
        node = self.nodes[n]
        if node.kind != "affine":
            return None
        parts = [exact(self.found.most[i]) for i in node.inputs]
        most = sum(abs(matrix) @ part for matrix, part in zip(node.matrices, parts, strict=True)) + node.spread
        pairs = zip(node.matrices, parts, strict=True)
        live = sum((matrix != 0).astype(int) @ (part > 0).astype(int) for matrix, part in pairs)
        count = np.array([Fraction(int(value)) for value in live], dtype=object) + node.extra
        return count * GAMMA_UNIT / (1 - count * GAMMA_UNIT) * most

    def lines(self, lines):
        return {n: tuple(exact(part) for part in line) for n, line in lines.items()}

    def dual(self, start, row, lines, holds=None):
        return exact_dual(self.nodes, start, row, self.lines(lines), self.region, self.noise, holds)

    def check_nodes(self):
        """Magnitudes, closed neurons' intervals, and lines."""
        found = self.found
        for n, node in enumerate(self.nodes):
            if node.kind == "affine":
                ends = [(exact(found.low[i]), exact(found.high[i]), exact(found.most[i])) for i in node.inputs]
                zero = Fraction(0)
                low = node.bias - (0 if self.noise[n] is None else self.noise[n])
                high = node.bias + (0 if self.noise[n] is None else self.noise[n])
                most = node.spread
                for matrix, (below, above, size) in zip(node.matrices, ends, strict=True):
                    low = low + np.maximum(matrix, zero) @ below + np.minimum(matrix, zero) @ above
                    high = high + np.maximum(matrix, zero) @ above + np.minimum(matrix, zero) @ below
                    most = most + abs(matrix) @ size
                assert (exact(found.most[n]) >= most).all(), n
                asked = np.zeros(len(low), bool)
                for source, neurons, *_ in found.calls:
                    if source == n:
                        asked[neurons] = True
                assert (exact(found.low[n]) <= low)[~asked].all(), n
                assert (exact(found.high[n]) >= high)[~asked].all(), n
            if node.kind == "relu":
                for _, lines in (("parallel", found.lines), ("adaptive", found.with_slopes())):
                    self.check_line(lines[n], exact(found.low[node.inputs[0]]), exact(found.high[node.inputs[0]]))

    @staticmethod
    def check_line(line, low, high):
        lower, upper, top = (exact(part) for part in line)
        for at in (low, high, np.minimum(np.maximum(low, Fraction(0)), high)):
            value = np.maximum(at, Fraction(0))
            assert (lower * at <= value).all()
            assert (value <= upper * at + top).all()

    def check_calls(self):
        """Every bound of the induction against the exact dual, and against the magnitudes."""
        for source, neurons, lines, sign, (low, high) in self.found.calls:
            parallel = all(line[0] is line[1] for line in lines.values())
            for place, neuron in enumerate(neurons):
                unit = zeros(len(self.nodes[source].bias))
                unit[neuron] = Fraction(sign)
                self.compare(source, unit, lines, low[place], high[place] if parallel else None)

    def compare(self, start, row, lines, low, high=None, holds=None):
        least = self.dual(start, row, lines, holds)
        assert np.isfinite(low)
        assert Fraction(float(low)) <= least, float(Fraction(float(low)) - least)
        room = TIGHT[str(self.a.dtype)] * (1 + sum(float(most.max()) for most in self.found.most))
        if holds is None and self.found.mode == "real":
            assert float(least) - float(low) <= room
        if high is not None:
            most = -self.dual(start, -row, lines)
            assert Fraction(float(high)) >= most

    def check_output(self, rng):
        """Rows of the output with random slopes."""
        last = len(self.nodes) - 1
        slopes = {n: rng.random(len(self.nodes[n].bias)).astype(self.a.dtype) for n in self.found.lines}
        rows = np.array([[1, -1, 0], [0, 1, -1], [-1, 0, 1]], self.a.dtype)
        for lines in (self.found.lines, self.found.with_slopes(), self.found.with_slopes(slopes)):
            with np.errstate(all="ignore"):
                low, _ = self.found.walk(last, Rows(rows), lines)
            for row, value in zip(rows, low, strict=True):
                self.compare(last, exact(row), lines, value)


REGIONS = [("linf", None), ("l2", None), ("l1", None), ("linf", (0.0, 1.0)), ("l2", (0.0, 1.0)), ("l1", (0.0, 1.0))]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.no_cover
def test_no_bound_exceeds_the_exact_one(family: str, dtype: str) -> None:
    for seed in range(9):
        arrays, x = build(family, FORMATS[dtype], seed)
        norm, clip = REGIONS[seed % len(REGIONS)]
        eps = [0.03, 0.11, 0.4][seed % 3]
        mode = "float32" if seed % 4 == 3 and dtype == "float64" else "real"
        oracle = Oracle(arrays, FORMATS[dtype], (norm, x, eps, clip), mode, sharp=seed % 2 == 1)
        oracle.check_nodes()
        oracle.check_calls()
        oracle.check_output(np.random.default_rng(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_of_the_exact_network_are_above_the_bounds(family: str) -> None:
    rng = np.random.default_rng(5)
    for seed in range(3):
        arrays, x = build(family, np.float32, seed)
        oracle = Oracle(arrays, np.float32, ("linf", x, 0.125, None), sharp=True)
        low, high = exact(oracle.found.low[-1]), exact(oracle.found.high[-1])
        for _ in range(3):
            inside = exact(x).reshape(-1) + exact(rng.choice([-0.125, 0.125, 0.03], x.size))
            y = exact_run(oracle.nodes, inside)
            assert (low <= y).all() and (y <= high).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("spread", [1e-3, 4.0])
def test_underflow_and_cancellation_are_paid_for(spread: float, dtype: str) -> None:
    small = spread * (1.0 if dtype == "float16" or spread > 1 else 1e-17)  # products below the normal range
    for family in ("mlp", "line", "volume"):
        for seed in range(4):
            arrays, x = build(family, FORMATS[dtype], seed, small)
            if spread < 1:
                x = (x * small).astype(x.dtype)
            oracle = Oracle(arrays, FORMATS[dtype], ("linf", x, min(0.1, small), None))
            oracle.check_nodes()
            oracle.check_calls()
            oracle.check_output(np.random.default_rng(seed))


@pytest.mark.parametrize("dtype", FORMATS)
def test_charges_pay_for_every_step(dtype: str) -> None:
    a = Arithmetic(FORMATS[dtype])
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 40):
        p, q = (rng.random((50, n)).astype(a.dtype) for _ in range(2))
        truth = (exact(p) * exact(q)).sum(1)
        in_turn = np.array([np.cumsum(r * s)[-1] for r, s in zip(p, q, strict=True)])
        for computed in (np.einsum("rk,rk->r", p, q), (p * q).sum(1), in_turn):
            assert (exact(a.over(computed, n)) >= truth).all()
            assert (abs(exact(computed) - truth) <= exact(a.e(n) * a.over(computed, n))).all()
        tiny = np.full((3, n), a.tiny, a.dtype)
        assert (exact(a.over((tiny * tiny).sum(1), n)) >= (exact(tiny) * exact(tiny)).sum(1)).all()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pulls_are_exact_up_to_their_charge(family: str, dtype: str) -> None:
    rng = np.random.default_rng(7)
    arrays, x = build(family, FORMATS[dtype], 1)
    oracle = Oracle(arrays, FORMATS[dtype], ("linf", x, 0.1, None))
    for n, node in enumerate(oracle.nodes):
        if node.kind != "affine":
            continue
        coef = rng.standard_normal((3, len(node.bias))).astype(FORMATS[dtype])
        parts = oracle.mine[n].pull(Rows(coef))
        paid = exact(abs(coef)) @ exact(oracle.found.rounding[n]) + Fraction(float(oracle.found.slack[n]))
        lost = abs(exact(coef) @ node.bias - exact(Rows(coef).dot(oracle.mine[n].bias)))
        for matrix, part, source in zip(node.matrices, parts, node.inputs, strict=True):
            most = exact(oracle.found.most[source])
            lost = lost + abs(exact(coef) @ matrix - exact(part.coef)) @ most
        assert (lost <= paid).all()


def test_rows_of_several_readers_pay_for_their_sum() -> None:
    arrays, x = build("residual", np.float16, 2)
    oracle = Oracle(arrays, np.float16, ("linf", x, 0.1, None))
    assert any(len([node for node in oracle.nodes if n in node.inputs]) > 1 for n in range(len(oracle.nodes)))
    source = next(n for n in range(1, len(oracle.nodes)) if sum(n in node.inputs for node in oracle.nodes) > 1)
    assert (exact(oracle.found.charge[source]) >= exact(oracle.found.rounding[source])).all()
    assert (oracle.found.rounding[source] >= 2**-11 * oracle.found.most[source]).all()


@pytest.mark.parametrize("family", ["mlp", "conv", "norms", "residual", "pooled"])
def test_noise_covers_float32_runs(family: str) -> None:
    rng = np.random.default_rng(11)
    for seed in range(4):
        arrays, x = build(family, np.float32, seed)
        oracle = Oracle(arrays, np.float64, ("linf", x, 0.05, None), "float32")
        single = network(arrays, Arithmetic(np.float32))
        for _ in range(20):
            inside = (x + rng.uniform(-0.05, 0.05, x.shape)).astype(np.float32).reshape(-1)
            values = [inside]
            for n, node in enumerate(single[1:], 1):
                if node.kind == "relu":
                    values.append(np.maximum(values[node.inputs[0]], 0))
                    continue
                values.append(node.run([values[i] for i in node.inputs]) + node.bias)
                truth = oracle.nodes[n].bias + sum(
                    matrix @ exact(values[i]) for matrix, i in zip(oracle.nodes[n].matrices, node.inputs, strict=True)
                )
                assert (abs(exact(values[n]) - truth) <= exact(oracle.found.charge[n])).all()
            assert (oracle.found.low[-1] <= values[-1]).all() and (values[-1] <= oracle.found.high[-1]).all()


def test_lost_coefficients_of_large_values_are_paid_for() -> None:
    builder = Builder((5,), np.float16, np.random.default_rng(0))
    last = 0
    for width, size in ((6, 700.0), (6, 3e-5), (3, 3e-5)):  # the product of the last two is 0 in float16
        last = builder.linear(last, width, bias=False)
        name = builder.nodes[-1]["weight"]
        builder.arrays[name] = np.full_like(builder.arrays[name], size)
        last = builder.relu(last) if width == 6 else last
    oracle = Oracle(builder.file(), np.float16, ("linf", np.ones(5, np.float16), 0.001, None))
    row = np.array([[0, 0, -1]], np.float16)
    low, _ = oracle.found.walk(len(oracle.nodes) - 1, Rows(row), oracle.found.lines)
    oracle.compare(len(oracle.nodes) - 1, exact(row[0]), oracle.found.lines, low[0])


HALF = 0.45 * 2.0**-24  # is lost when it is taken from 1 in float32


def _scaled(builder: Builder, source: int, factor: float, offset: float) -> int:
    numbers = {
        key: builder.array(np.full(2, value))
        for key, value in (("factor", factor), ("offset", offset), ("divisor", 1.0))
    }
    return builder.add("scale", [source], [2], **numbers)


def _first_output_is_paid_for(builder: Builder, x: np.ndarray) -> None:
    oracle = Oracle(builder.file(), np.float32, ("linf", x, 0.0, None))
    low, _ = oracle.found.walk(len(oracle.nodes) - 1, Rows(np.array([[1, 0]], np.float32)), {})
    assert Fraction(float(low[0])) <= oracle.dual(len(oracle.nodes) - 1, exact(np.array([1, 0])), {})


def test_every_addition_to_the_running_value_is_paid_for() -> None:
    builder = Builder((2,), np.float32, np.random.default_rng(0))
    last, length = 0, 110
    for depth in range(length):  # each constant is HALF when it arrives at the output, and lost beside the last one
        last = _scaled(builder, last, 0.5, -HALF * 2.0 ** (length - 1 - depth))
    _scaled(builder, last, 1.0, 1.0)
    _first_output_is_paid_for(builder, np.zeros(2, np.float32))


def test_sums_of_many_readers_are_paid_for() -> None:
    builder = Builder((2,), np.float32, np.random.default_rng(0))
    last = _scaled(builder, 0, -HALF, 0.0)
    for _ in range(400):  # each coefficient is lost beside the last one
        last = builder.sum([_scaled(builder, 0, -HALF, 0.0), last], [1.0, 1.0])
    builder.sum([_scaled(builder, 0, 1.0, 0.0), last], [1.0, 1.0])
    _first_output_is_paid_for(builder, np.ones(2, np.float32))


@pytest.mark.parametrize("dtype", FORMATS)
def test_regions_cover_their_balls(dtype: str) -> None:
    rng = np.random.default_rng(2)
    a = Arithmetic(FORMATS[dtype])
    for eps in rng.random(40):
        x = rng.random(5).astype(a.dtype)
        for clip in ((np.nan, np.nan), (0.0, 1.0)):
            region = Region(a, x, "linf", float(eps), clip)
            low, high = exact(x) - Fraction(float(eps)), exact(x) + Fraction(float(eps))
            if clip[0] == 0:
                low, high = np.maximum(low, Fraction(0)), np.minimum(high, Fraction(1))
            assert Fraction(float(region.eps)) >= Fraction(float(eps))
            assert (exact(region.middle) - exact(region.radius) <= low).all()
            assert (exact(region.middle) + exact(region.radius) >= high).all()


def test_noise_covers_runs_that_flush_to_zero() -> None:
    builder = Builder((5,), np.float32, np.random.default_rng(0))
    builder.linear(0, 3, bias=False)
    for name in builder.arrays:
        builder.arrays[name] = abs(builder.arrays[name] * np.float32(1e-25))
    x = np.full(5, 1e-22, np.float32)
    oracle = Oracle(builder.file(), np.float64, ("linf", x, 1e-30, None), "float32")
    run = network(builder.file(), Arithmetic(np.float32))[1].run([x])
    truth = oracle.nodes[1].matrices[0] @ exact(x)
    assert (run == 0).all() and (truth > 0).all()
    assert (truth - exact(run) <= exact(oracle.found.charge[1])).all()
    assert (exact(oracle.found.low[1]) <= 0).all()


def test_numbers_of_a_wider_format_are_refused() -> None:
    arrays, _ = build("mlp", np.float32, 0)
    with pytest.raises(CertificateError, match="not a float16"):
        network(arrays, Arithmetic(np.float16))
    with pytest.raises(CertificateError, match="too long"):
        Arithmetic(np.float16).e(257)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_upper_bound_covers_products_that_are_lost(dtype: type) -> None:
    small = np.full(3, np.finfo(dtype).smallest_subnormal, dtype)
    lost = small @ small
    assert lost == 0 and Fraction(float(Arithmetic(dtype).over(lost, 3))) >= 3 * Fraction(float(small[0])) ** 2
