"""Claims about properties: true ones are accepted, no more than rational arithmetic proves, and nothing else."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from certificate.exact_networks import (
    Builder,
    ExactNode,
    build,
    exact,
    exact_dual,
    exact_network,
    exact_run,
    zeros,
)
from ironbound.certificate.checker import Arithmetic, Certificate, CertificateError, Checker, File
from ironbound.certificate.checker.__main__ import main
from ironbound.certificate.checker.bounds import Analysis
from ironbound.certificate.checker.claims import BOXES, LABEL, NONE, PROPERTY, SDP, SLOPES, TREE
from ironbound.certificate.checker.files import network
from ironbound.certificate.checker.layers import Rows
from ironbound.certificate.checker.payloads import LEAF
from ironbound.certificate.checker.properties import Box, Property, halves

FORMATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
NO_CLIP = (float("nan"), float("nan"))


def claim(number: int, kind: int = NONE, payload: bytes = b"", margin: float = 0.0) -> Certificate:
    return Certificate(number, 0, PROPERTY, kind, 0.0, margin, payload)


def tree(*columns: int) -> bytes:
    return np.array(columns, "<u2").tobytes()


def boxed(rng: np.random.Generator, nodes: int, shape, dtype, width: float, reads: bool) -> dict[str, np.ndarray]:
    """Two boxes and three clauses of one to three rows; numbers of a format, held in float64."""
    low = rng.random((2, *shape)).astype(dtype)
    counts = [2, 1, 3]
    data = {
        "lower": low,
        "upper": low + np.array(width, dtype) * rng.random((2, *shape)).astype(dtype),
        "outputs": rng.standard_normal((6, nodes)),
        "bounds": rng.standard_normal(6),
    }
    if reads:
        data["inputs"] = rng.standard_normal((6, int(np.prod(shape)))) * (np.arange(6) < 3)[:, None]
    data = {name: array.astype(dtype).astype("<f8") for name, array in data.items()}
    return {**data, "clause": np.repeat(np.arange(3), counts), "case": np.array([0, 1, 1])}


class Setting:
    """A network of three inputs, and a property of four clauses of which all are true, one of them in an empty box."""

    def __init__(self, seed: int = 2, dtype=np.float32, outputs: int = 2, reads: bool = True):
        rng = np.random.default_rng(seed)
        builder = Builder((3,), dtype, rng)
        last = builder.relu(builder.linear(0, 6))
        last = builder.relu(builder.linear(last, 5))
        builder.linear(last, outputs)
        self.arrays = builder.file()
        self.nodes = exact_network(self.arrays)
        self.data = boxed(rng, outputs, (3,), np.float32, 3.0, reads)
        self.data["lower"] = np.append(self.data["lower"], [[0.0, 1.0, 0.0]], 0)
        self.data["upper"] = np.append(self.data["upper"], [[1.0, 0.5, 1.0]], 0)
        self.data["case"] = np.append(self.data["case"], 2)
        for number in range(3):  # the bounds move until the clause is just true
            here = self.data["clause"] == number
            self.data["bounds"][here] += self.worst(number, self.data) - 0.15
        self.checker = Checker(self.arrays, self.data)
        assert self.checker.property is not None
        self.property = self.checker.property
        self.file = File(self.checker.network_hash, self.checker.data_hash, "box", "real", NO_CLIP, [])

    def worst(self, number: int, data, count: int = 40) -> float:
        """The least of the clause's highest row at corners of its box and points inside, in rational arithmetic."""
        rng, case = np.random.default_rng(number), data["case"][number]
        low, high = exact(data["lower"][case]), exact(data["upper"][case])
        shares = [*itertools.product((0.0, 1.0), repeat=3), *rng.random((count, 3))]
        here = np.flatnonzero(data["clause"] == number)
        inputs = data.get("inputs", np.zeros((len(data["clause"]), 3)))
        found = []
        for share in shares:
            x = low + exact(np.array(share)) * (high - low)
            y = exact_run(self.nodes, x)
            found.append(
                (exact(data["outputs"][here]) @ y + exact(inputs[here]) @ x - exact(data["bounds"][here])).max()
            )
        return float(min(found))

    def check(self, one: Certificate, data=None, mode: str = "real") -> str | None:
        checker = self.checker if data is None else Checker(self.arrays, data)
        return checker.check(one, "box", mode, NO_CLIP)

    def grown(self, number: int, depth: int = 0, part=None) -> list[int]:
        """A tree that proves a clause, found in a plain way: the widest element is cut."""
        low, high = self.property.ends(number, "real") if part is None else part
        _, rows, base = self.property.rows(number)
        analysis = self.property.analysis(number, Box(self.checker.a, low, high), "real", True)
        if (analysis.output(rows, base) > 0).any() or depth > 12:
            return [LEAF]
        element = int((high - low).argmax())
        sides = [self.grown(number, depth + 1, side) for side in halves(low, high, element)]
        return [element, *sides[0], *sides[1]]

    def claims(self) -> list[Certificate]:
        """A claim for each clause that checks."""
        return [*(claim(number, BOXES, tree(*self.grown(number))) for number in range(3)), claim(3)]


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def joined(nodes: list[ExactNode]) -> list[ExactNode]:
    """The network of x -> (f(x), x)."""
    outputs, inputs = len(nodes[-1].bias), len(nodes[0].bias)
    unit = np.array([[Fraction(int(i == j)) for j in range(outputs + inputs)] for i in range(outputs + inputs)])
    both = zeros(outputs + inputs)
    return [*nodes, ExactNode("affine", [len(nodes) - 1, 0], [unit[:, :outputs], unit[:, outputs:]], both, both, 1)]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("family", ["mlp", "residual", "norms", "pooled"])
def test_no_clause_is_proved_beyond_the_exact_walk(family: str, dtype: str) -> None:
    a = Arithmetic(FORMATS[dtype])
    for seed in range(4):
        arrays, x = build(family, FORMATS[dtype], seed)
        nodes, mine = exact_network(arrays), network(arrays, a)
        rng = np.random.default_rng(seed)
        prop = Property(mine, a, x.shape, boxed(rng, mine[-1].size, x.shape, a.dtype, 0.3, seed % 2 == 0))
        for number in range(3):
            low, high = prop.ends(number, "real")
            middle, half = (exact(low) + exact(high)) / 2, (exact(high) - exact(low)) / 2
            net = joined(nodes) if seed % 2 == 0 and number < 2 else nodes
            with np.errstate(all="ignore"):
                here, rows, base = prop.rows(number)
                analysis = Analysis(here, a, Box(a, low, high))
                kinds = analysis.lines, analysis.with_slopes()
                found = analysis.output(rows, base)
            assert len(here) == len(net)
            best = None
            for row, constant, mine_low in zip(rows, base, found, strict=True):
                truth = max(
                    exact_dual(
                        net,
                        len(net) - 1,
                        exact(row),
                        {n: tuple(exact(part) for part in line) for n, line in lines.items()},
                        ("linf", middle, half, None),
                    )
                    for lines in kinds
                ) + Fraction(float(constant))
                assert Fraction(float(mine_low)) <= truth
                best = truth if best is None else max(best, truth)
            assert best is not None and Fraction(float(prop.least(claim(number), "real"))) <= best


def test_the_sum_with_the_bound_is_paid_for() -> None:
    builder = Builder((2,), np.float16, np.random.default_rng(0))
    numbers = {key: builder.array(np.full(2, value)) for key, value in (("factor", 1.0), ("offset", 0.0))}
    builder.add("scale", [0], [2], **numbers, divisor=builder.array(np.ones(2)))
    a = Arithmetic(np.float16)
    low = np.array([[0.26, 0.3]], np.float16).astype(float)
    data = {"lower": low, "upper": low, "outputs": np.array([[1.0, 0.0]]), "bounds": np.array([-1000.0])}
    data |= {"clause": np.array([0]), "case": np.array([0])}
    prop = Property(network(builder.file(), a), a, (2,), data)
    assert Fraction(float(prop.least(claim(0), "real"))) <= Fraction(float(low[0, 0])) + 1000  # float16 rounds it up


@pytest.mark.parametrize("dtype", FORMATS)
def test_boxes_hold_their_ends_and_halves_cover_them(dtype: str) -> None:
    rng, a = np.random.default_rng(4), Arithmetic(FORMATS[dtype])
    tiny = np.finfo(a.dtype).smallest_subnormal
    ends = [np.sort(rng.standard_normal((2, 40)).astype(a.dtype) * a.dtype.type(scale), 0) for scale in (1, 1e-3, 200)]
    ends += [np.array([[k * tiny] * 3, [k * tiny, (k + 1) * tiny, (k + 3) * tiny]], a.dtype) for k in (-3, 1, 3)]
    ends += [np.array([[one, one], [one, np.nextafter(one, a.top)]], a.dtype) for one in rng.random(9).astype(a.dtype)]
    for low, high in ends:
        box = Box(a, low, high)
        assert (exact(box.middle) - exact(box.radius) <= exact(low)).all()
        assert (exact(box.middle) + exact(box.radius) >= exact(high)).all()
        for element in range(len(low)):
            (first, cut), (again, last) = halves(low, high, element)
            assert low[element] <= cut[element] == again[element] <= high[element]
            assert (first == low).all() and (last == high).all()
            others = np.arange(len(low)) != element
            assert (cut[others] == high[others]).all() and (again[others] == low[others]).all()


@pytest.mark.parametrize("seed", range(1, 5))
def test_what_is_proved_is_true_and_no_more_is_accepted(seed: int) -> None:
    setting = Setting(seed, outputs=1 if seed == 3 else 2, reads=seed % 2 == 0)
    for one in setting.claims():
        assert setting.check(one) is None
        if one.index < 3:
            least = float(setting.property.least(one, "real"))
            assert 0 < least <= setting.worst(one.index, setting.data)
            assert setting.check(replace(one, margin=float(np.nextafter(least, 0)))) is None
            assert setting.check(replace(one, margin=least)) is not None
            assert setting.check(replace(one, margin=2 * least + 1)) is not None


def test_a_tree_proves_what_the_whole_box_does_not(setting: Setting) -> None:
    deep = [one for one in setting.claims() if len(one.payload) > 2]
    assert deep
    for one in deep:
        assert setting.check(claim(one.index)) is not None
        assert setting.check(claim(one.index, BOXES, tree(LEAF))) is not None


def test_a_tree_without_a_part_proves_nothing(setting: Setting) -> None:
    """A tree that ends early, that goes on, or that lacks one cut with one of its parts."""
    one = max(setting.claims(), key=lambda one: len(one.payload))
    columns = np.frombuffer(one.payload, "<u2").tolist()
    assert setting.check(replace(one, payload=tree(*columns, LEAF))) == "bytes follow a payload"
    for length in range(len(columns)):
        assert setting.check(replace(one, payload=tree(*columns[:length]))) == "a payload is cut short"
    for place, column in enumerate(columns):
        if column != LEAF:  # only the part below is read
            shorter = columns[:place] + columns[place + 1 :]
            assert setting.check(replace(one, payload=tree(*shorter))) is not None
    assert setting.check(replace(one, payload=tree(*[3] + columns))) is not None
    assert "does not have" in str(setting.check(replace(one, payload=tree(3, LEAF, LEAF))))


def test_each_half_counts() -> None:
    """|x| - 0.5 on [-1, 1], claimed to be positive: both halves of the second cut prove it outside only."""
    builder = Builder((1,), np.float64, np.random.default_rng(0))
    first = {"weight": builder.array(np.array([[1.0], [-1.0]]))}
    last = builder.relu(builder.add("linear", [0], [2], **first))
    builder.add("linear", [last], [1], weight=builder.array(np.ones((1, 2))))
    ends = {"lower": np.array([[-1.0]]), "upper": np.array([[1.0]])}
    rows = {"outputs": np.array([[1.0]]), "bounds": np.array([0.4]), "clause": np.array([0]), "case": np.array([0])}
    shapes = [(0, 0, LEAF, LEAF, LEAF), (0, LEAF, 0, LEAF, LEAF), (0, 0, LEAF, LEAF, 0, LEAF, LEAF)]
    for columns in (*shapes, (LEAF,)):
        assert Checker(builder.file(), {**ends, **rows}).check(claim(0, BOXES, tree(*columns)), "box", "real", NO_CLIP)
    true = {**ends, **rows, "bounds": np.array([-0.1])}
    assert Checker(builder.file(), true).check(claim(0), "box", "real", NO_CLIP) is None
    outside = {**ends, **rows, "lower": np.array([[0.5]])}  # x >= 0.5
    assert Checker(builder.file(), outside).check(claim(0), "box", "real", NO_CLIP) is None
    for low, high in ((-1.0, -0.5), (0.5, 1.0)):  # a gap in the middle would make the whole true
        part = {**rows, "lower": np.array([[low]]), "upper": np.array([[high]])}
        assert Checker(builder.file(), part).check(claim(0, BOXES, tree(0, LEAF, LEAF)), "box", "real", NO_CLIP) is None


def test_lies_about_the_property(setting: Setting) -> None:
    """A true claim does not carry over to a wider box, another bound, other rows, or fewer of them."""
    for one in setting.claims()[:3]:
        here, case = setting.data["clause"] == one.index, setting.data["case"][one.index]
        wide = {**setting.data, "lower": setting.data["lower"].copy(), "upper": setting.data["upper"].copy()}
        wide["lower"][case] -= 20
        wide["upper"][case] += 20
        above = {**setting.data, "bounds": setting.data["bounds"] + 3.0 * here}
        other = {**setting.data, "outputs": np.where(here[:, None], -setting.data["outputs"], setting.data["outputs"])}
        other["bounds"] = np.where(here, 5.0, setting.data["bounds"])
        for data in (wide, above, other):
            assert setting.worst(one.index, data) < 0
            assert setting.check(one, data) is not None
            file = replace(setting.file, certificates=[one])
            with pytest.raises(CertificateError, match="other data"):
                Checker(setting.arrays, data).check_file(file)
    arrays = {**setting.arrays, "a001": setting.arrays["a001"] + np.float32(1)}
    with pytest.raises(CertificateError, match="another network"):
        Checker(arrays, setting.data).check_file(replace(setting.file, certificates=setting.claims()))


def test_rows_of_other_clauses_do_not_help(setting: Setting) -> None:
    data = {**setting.data, "bounds": np.array([9.0, 9.0, -50.0, 9.0, 9.0, 9.0])}  # only clause 1 is true
    answers = [setting.check(claim(number), data) for number in range(4)]
    assert [answer is None for answer in answers] == [False, True, False, True]


def test_only_one_row_has_to_be_positive(setting: Setting) -> None:
    data = {**setting.data, "bounds": np.array([9.0, -50.0, 9.0, 9.0, 9.0, -50.0])}
    assert [setting.check(claim(number), data) is None for number in range(3)] == [True, False, True]


def test_a_clause_without_constraints_is_never_proved_but_in_an_empty_box(setting: Setting) -> None:
    for case, proved in ((0, False), (2, True)):
        data = {**setting.data, "case": np.append(setting.data["case"], case)}
        for kind, payload in ((NONE, b""), (BOXES, tree(LEAF)), (SLOPES, b"\1\0\0"), (TREE, b"\1\0\0")):
            assert (setting.check(claim(4, kind, payload), data) is None) == proved


def test_a_box_of_one_point_is_not_empty(setting: Setting) -> None:
    data = {**setting.data, "upper": setting.data["lower"].copy()}
    false = {**data, "bounds": np.full(6, 99.0)}
    assert setting.check(claim(0), false) is not None
    true = {**data, "bounds": np.full(6, -99.0)}
    assert setting.check(claim(0), true) is None


def test_kinds_of_claims_do_not_mix(setting: Setting) -> None:
    one = setting.claims()[0]
    x = np.zeros((4, 3), np.float32)
    inputs = Checker(setting.arrays, {"x": x, "labels": np.zeros(4, np.int64)})
    label = Certificate(3, int(exact_run(setting.nodes, exact(x[3])).argmax()), LABEL, NONE, 0.0, 0.0)
    inputs.data["labels"][:] = label.label
    assert inputs.check(label, "linf", "real", NO_CLIP) is None
    assert inputs.check(label, "box", "real", NO_CLIP) is not None
    assert inputs.check(one, "box", "real", NO_CLIP) is not None
    assert inputs.check(one, "linf", "real", NO_CLIP) is not None
    assert setting.checker.check(label, "linf", "real", NO_CLIP) is not None
    assert setting.checker.check(label, "box", "real", NO_CLIP) is not None
    assert setting.checker.check(one, "linf", "real", NO_CLIP) is not None
    assert setting.checker.check(one, "box", "real", (0.0, 1.0)) is not None
    assert setting.check(replace(one, index=4)) == "there is no such clause"
    for broken in ({"eps": 0.1}, {"label": 1}, {"kind": SDP, "payload": b""}, {"margin": -1.0}, {"subject": LABEL}):
        with pytest.raises(CertificateError):
            replace(one, **broken)


def test_malformed_properties_are_refused(setting: Setting) -> None:
    data = setting.data
    lost = {name: array for name, array in data.items() if name != "bounds"}
    nan = data["upper"].copy()
    nan[0, 0] = np.nan
    changes = [
        {"x": np.zeros((1, 3))},
        {"upper": nan},
        {"upper": np.full_like(nan, np.inf)},
        {"upper": data["upper"][:2]},
        {"lower": data["lower"][:, :2], "upper": data["upper"][:, :2]},
        {"outputs": data["outputs"][:, :1]},
        {"outputs": data["outputs"][:5]},
        {"outputs": data["outputs"] * np.nan},
        {"inputs": data["inputs"][:, :2]},
        {"bounds": data["bounds"] * np.inf},
        {"clause": data["clause"] + 2},
        {"clause": data["clause"] - 1},
        {"clause": data["clause"].astype(float)},
        {"case": data["case"] + 1},
        {"case": data["case"][None]},
        {"lower": data["lower"].astype(np.int64)},
    ]
    for changed in [lost, *({**data, **change} for change in changes)]:
        with pytest.raises(CertificateError):
            Checker(setting.arrays, changed)
    without = {name: array for name, array in data.items() if name != "inputs"}
    assert Checker(setting.arrays, without).property is not None


def test_a_clause_that_would_take_too_much_memory_is_refused(setting: Setting, monkeypatch) -> None:
    from ironbound.certificate.checker import properties

    monkeypatch.setattr(properties, "SIZE_LIMIT", 2 * 6 - 1)
    answers = [setting.check(claim(number)) for number in (0, 3)]
    assert answers == ["a clause has too many constraints", None]


def test_overflow_is_never_a_proof(setting: Setting) -> None:
    data = {**setting.data, "lower": np.full((3, 3), -1.7e308), "upper": np.full((3, 3), 1.7e308)}
    data["bounds"] = np.full(6, -1e300)
    for kind, payload in ((NONE, b""), (BOXES, tree(LEAF)), (BOXES, tree(0, LEAF, LEAF))):
        assert setting.check(claim(0, kind, payload), data) is not None


def test_a_property_is_proved_where_no_clause_is_missing(setting: Setting, tmp_path: Path, capsys) -> None:
    claims = setting.claims()
    np.savez(tmp_path / "net.npz", **setting.arrays)
    np.savez(tmp_path / "data.npz", **setting.data)
    file = tmp_path / "claims.ibc"
    arguments = [str(file), "--network", str(tmp_path / "net.npz"), "--data", str(tmp_path / "data.npz")]
    file.write_bytes(replace(setting.file, certificates=claims).pack())
    assert main(arguments) == 0
    assert "property proved: all 4 clauses" in capsys.readouterr().out
    for dropped in range(4):
        rest = [one for one in claims if one.index != dropped]
        file.write_bytes(replace(setting.file, certificates=rest).pack())
        assert main(arguments) == 1
        assert f"1 of 4 clauses have no accepted certificate ({dropped})" in capsys.readouterr().out
    lie = [replace(claims[0], margin=9.0), *claims[1:]]
    file.write_bytes(replace(setting.file, certificates=lie).pack())
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "clause 0: refused" in out and "no accepted certificate (0)" in out
    file.write_bytes(setting.file.pack())
    assert main(arguments) == 1


def test_a_clause_without_a_certificate_is_missing(setting: Setting) -> None:
    answers = setting.checker.check_file(replace(setting.file, certificates=setting.claims()))
    assert setting.checker.missing(answers) == []
    for dropped in range(4):
        rest = {number: answer for number, answer in answers.items() if number != dropped}
        assert setting.checker.missing(rest) == setting.checker.missing({**rest, dropped: "refused"}) == [dropped]


def test_a_property_without_cases_is_proved_by_no_certificate(setting: Setting) -> None:
    empty = {name: array[:0] for name, array in setting.data.items()}
    checker = Checker(setting.arrays, empty)
    assert checker.property is not None and not checker.missing({})
    assert checker.property.verdict([]) == "property proved: all 0 clauses"


def test_trees_of_signs_and_slopes_speak_of_a_row(setting: Setting) -> None:
    for number in range(3):
        _, rows, base = setting.property.rows(number)
        box = Box(setting.checker.a, *setting.property.ends(number, "real"))
        analysis = setting.property.analysis(number, box, "real", True)
        width, start = len(analysis.open_neurons()), len(analysis.nodes) - 1
        for row in range(len(rows)):
            parts = [np.array([8], "u1"), np.array([1, row], "<u2"), np.full(width, 255, "u1")]
            payload = b"".join(part.tobytes() for part in parts)
            least = setting.property.least(claim(number, SLOPES, payload), "real")
            assert least <= setting.worst(number, setting.data)
            ones = {n: np.ones(analysis.nodes[n].size) for n in analysis.lines}
            own = analysis.walk(start, Rows(rows[[row]]), analysis.with_slopes(ones), base[[row]])[0][0]
            assert least == max(own, analysis.output(rows, base).max())
            leaf = [np.array([LEAF], "<u2"), np.full(width, 255, "u1")]
            split = [np.array([8], "u1"), np.array([1, row, 0], "<u2"), *(leaf + [np.zeros(1, "<f2")]) * 2]
            grown = b"".join(part.tobytes() for part in split)
            if width:
                assert setting.property.least(claim(number, TREE, grown), "real") <= setting.worst(number, setting.data)
        assert "none" in str(setting.check(claim(number, SLOPES, b"\1\1\0" + bytes([len(rows), 0]))))


def test_float32_runs_read_rounded_inputs(setting: Setting) -> None:
    third = np.full((3, 3), 1 / 3)
    data = {**setting.data, "lower": third, "upper": third}
    checker = Checker(setting.arrays, data)
    assert checker.property is not None
    low, high = checker.property.ends(0, "float32")
    assert (low < third[0]).all() and (third[0] < high).all()
    assert (np.float32(low) == low).all() and (np.float32(high) == high).all()
    near = np.nextafter(np.float32(1 / 3), np.float32([0, 1])).tolist() + [float(np.float32(1 / 3))]
    assert sorted(near)[1] in (low[0], high[0])
    even = np.full((3, 3), 0.5)
    same = Checker(setting.arrays, {**data, "lower": even, "upper": even}).property
    assert same is not None and (same.ends(0, "float32")[0] == 0.5).all() and (same.ends(0, "float32")[1] == 0.5).all()
    one = setting.claims()[1]
    assert setting.property.least(one, "float32") < setting.property.least(one, "real")
    assert Setting(dtype=np.float64).check(claim(3), mode="float32") == "the network is not in float32"
    nodes = network(setting.arrays, Arithmetic(np.float32))
    rng = np.random.default_rng(0)
    least = setting.property.least(one, "float32")
    ends = setting.property.ends(1, "float32")
    for _ in range(30):
        values = [rng.uniform(*ends).astype(np.float32)]
        for node in nodes[1:]:
            affine = node.kind == "affine"
            values.append(node.run([values[-1]]) + node.bias if affine else np.maximum(values[-1], 0))
        x, y = exact(values[0]), exact(values[-1])
        here = setting.data["clause"] == 1
        rows = [exact(setting.data[name][here]) for name in ("outputs", "inputs", "bounds")]
        assert Fraction(float(least)) <= (rows[0] @ y + rows[1] @ x - rows[2]).max()


def test_trees_that_are_too_large_are_refused(setting: Setting) -> None:
    number = next(one.index for one in setting.claims() if len(one.payload) > 2)
    assert "too large" in str(setting.check(claim(number, BOXES, tree(*[0] * 5000))))
    proved = {**setting.data, "bounds": np.full(6, -99.0)}
    assert "too large" in str(setting.check(claim(0, BOXES, tree(*[0] * 5000, *[LEAF] * 5001)), proved))
    deep = [0] * 1000
    assert setting.check(claim(0, BOXES, tree(*deep, *[LEAF] * 1001)), proved) is None  # ends that are equal in the end


def test_fuzzed_bytes_end_in_a_typed_error_or_a_true_answer(setting: Setting) -> None:
    rng = np.random.default_rng(0)
    data = replace(setting.file, certificates=setting.claims()).pack()
    worst = [setting.worst(number, setting.data) for number in range(3)] + [np.inf]
    accepted = 0
    for _ in range(2000):
        fuzzed = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(102 if rng.random() < 0.8 and len(fuzzed) > 102 else 0, len(fuzzed)))
            how = rng.integers(5)
            if how == 0:
                fuzzed[place] = int(rng.integers(256))
            elif how == 1:
                fuzzed = fuzzed[: place + 1]
            elif how == 2:
                fuzzed[place:place] = rng.bytes(int(rng.integers(1, 9)))
            elif how == 3:
                fuzzed[place] ^= 1 << int(rng.integers(8))
            else:
                fuzzed[place : place + 2] = b"\xff\xff"
        try:
            found = File.unpack(bytes(fuzzed))
            answers = setting.checker.check_file(found)
        except CertificateError:
            continue
        for one in found.certificates:
            if answers[one.index] is None:
                accepted += 1
                assert one.subject == PROPERTY and one.margin <= worst[one.index]
    assert accepted > 100
