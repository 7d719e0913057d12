"""VNNLIB: what is read means what the text says at every point, what is written reads back, errors name their line."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ironbound.errors import DataError, InputError
from ironbound.spec import (
    Case,
    Clause,
    Constraint,
    Property,
    counterexample_text,
    label_property,
    margin_label,
    parse_vnnlib,
    read_vnnlib,
    vnnlib_text,
)

HEAD = "(declare-const X_0 Real) (declare-const X_1 Real)\n(declare-const Y_0 Real) (declare-const Y_1 Real)\n"
BOX = "(assert (>= X_0 -1)) (assert (<= X_0 1.0))\n(assert (>= X_1 0)) (assert (<= X_1 2e0))\n"


# --- a second reader, by definition: the formula is evaluated at a point ---------------------------------------------


def parsed(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(";.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    return stack[0]


def number(tree: Any, point: dict[str, Fraction]) -> Fraction:
    if isinstance(tree, str):
        return point[tree] if tree in point else Fraction(float(tree))
    head, *parts = tree
    values = [number(part, point) for part in parts]
    if head == "+":
        return sum(values, Fraction(0))
    if head == "-":
        return -values[0] if len(values) == 1 else values[0] - sum(values[1:], Fraction(0))
    result = values[0]
    for value in values[1:]:
        result = result * value if head == "*" else result / value
    return result


def truth(tree: Any, point: dict[str, Fraction]) -> bool:
    head, *parts = tree
    if head in ("and", "or"):
        return (all if head == "and" else any)(truth(part, point) for part in parts)
    left, right = (number(part, point) for part in parts)
    return {"<=": left <= right, ">=": left >= right, "=": left == right}[head]


def violated(text: str, x: list[float], y: list[float]) -> bool:
    point = {f"X_{place}": Fraction(value) for place, value in enumerate(x)}
    point.update({f"Y_{place}": Fraction(value) for place, value in enumerate(y)})
    return all(truth(tree[1], point) for tree in parsed(text) if tree[0] == "assert")


# small multiples of 1/4: sums of products of them are exact in float64
EIGHTHS = st.integers(-12, 12).map(lambda n: n / 4)
ATOMS = st.sampled_from(["X_0", "X_1", "Y_0", "Y_1"])
TEXTS = EIGHTHS.map(lambda value: f"(- {-value})" if value < 0 and value % 1 else repr(value))


def products(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(TEXTS, inner, st.booleans()).map(lambda t: f"(* {t[0]} {t[1]})" if t[2] else f"(* {t[1]} {t[0]})")


EXPRESSIONS = st.recursive(
    ATOMS | TEXTS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(+ {' '.join(parts)})")
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(- {' '.join(parts)})")
        | products(inner)
        | st.tuples(inner, st.sampled_from(["2", "-0.5", "(* 2 4)"])).map(lambda t: f"(/ {t[0]} {t[1]})")
    ),
    max_leaves=4,
)
COMPARISONS = st.tuples(st.sampled_from(["<=", ">="]), EXPRESSIONS, EXPRESSIONS).map(
    lambda t: f"({t[0]} {t[1]} {t[2]})"
)
FORMULAS = st.recursive(
    COMPARISONS,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)).map(
        lambda t: f"({t[0]} {' '.join(t[1])})"
    ),
    max_leaves=6,
)
POINTS = st.lists(st.tuples(*[EIGHTHS] * 4), min_size=5, max_size=20)


@given(st.lists(FORMULAS, min_size=1, max_size=3), POINTS)
def test_what_is_read_is_true_where_the_text_is(formulas: list[str], points: list[tuple[float, ...]]) -> None:
    text = HEAD + BOX + "".join(f"(assert {formula})\n" for formula in formulas)
    prop = parse_vnnlib(text)
    x, y = np.array([point[:2] for point in points]), np.array([point[2:] for point in points])
    expected = [violated(text, list(point[:2]), list(point[2:])) for point in points]
    assert prop.counterexample(x, y).tolist() == expected
    again = parse_vnnlib(vnnlib_text(prop))
    assert again.counterexample(x, y).tolist() == expected


# --- round trips -----------------------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30)
FACTORS = FINITE.filter(lambda value: abs(value) > 1e-30)


@st.composite
def properties(draw: st.DrawFn) -> Property:
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def terms(count: int, least: int) -> st.SearchStrategy[tuple[tuple[int, float], ...]]:
        places = st.sets(st.integers(0, count - 1), min_size=least, max_size=count)
        return places.flatmap(lambda found: st.tuples(*(st.tuples(st.just(place), FACTORS) for place in sorted(found))))

    constraints = st.builds(Constraint, terms(inputs, 0), terms(outputs, 1), FINITE)
    clauses = st.lists(constraints, min_size=1, max_size=3).map(lambda found: Clause(tuple(found)))
    cases = []
    for place in range(draw(st.integers(0, 3))):
        pairs = draw(st.lists(st.tuples(FINITE, FINITE), min_size=inputs, max_size=inputs))
        lower, upper = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
        lower[0] = place  # cases of one box would be read as one
        cases.append(Case(lower, upper, tuple(draw(st.lists(clauses, min_size=1, max_size=3)))))
    return Property(inputs, outputs, tuple(cases))


@given(properties())
def test_what_is_written_reads_back_as_the_same_property(prop: Property) -> None:
    text = vnnlib_text(prop, "made by a test\nin two lines")
    assert text.startswith("; made by a test\n; in two lines\n(declare-const X_0 Real)\n")
    assert parse_vnnlib(text) == prop


def test_the_label_property_is_written_in_the_common_form() -> None:
    prop = label_property([0.0, -1e-9], [0.1, 1e22], 1, 3)
    text = vnnlib_text(prop)
    assert text.splitlines()[5:] == [
        *("(assert (>= X_0 0.0))", "(assert (<= X_0 0.1))", "(assert (>= X_1 -1e-09))", "(assert (<= X_1 1e+22))"),
        *("(assert (or", "  (and (<= Y_1 Y_0))", "  (and (<= Y_1 Y_2))", "))"),
    ]
    assert parse_vnnlib(text) == prop


def test_a_clause_without_constraints_is_written() -> None:
    always, some = Clause(()), Clause((Constraint((), ((0, 1.0),), 0.0),))
    lower, upper = np.zeros(1), np.ones(1)
    for cases in ((Case(lower, upper, (always,)),), (Case(lower, upper, (always, some)),)):
        assert parse_vnnlib(vnnlib_text(Property(1, 1, cases))) == Property(1, 1, cases)


# --- the normal form -------------------------------------------------------------------------------------------------


def test_boxes_in_a_disjunction_become_cases_and_share_the_clauses() -> None:
    text = (
        HEAD
        + "(assert (or (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0))"
        + " (and (<= 2 X_0) (<= X_0 3) (<= X_1 5) (>= X_1 4))))"
        + "(assert (or (<= Y_0 Y_1) (and (>= Y_0 2) (<= (+ X_0 Y_1) 7))))"
    )
    prop = parse_vnnlib(text)
    clauses = (
        Clause((Constraint((), ((0, 1.0), (1, -1.0)), 0.0),)),
        Clause((Constraint((), ((0, -1.0),), -2.0), Constraint(((0, 1.0),), ((1, 1.0),), 7.0))),
    )
    one = Case(np.array([0.0, 0]), np.array([1.0, 1]), clauses)
    two = Case(np.array([2.0, 4]), np.array([3.0, 5]), clauses)
    assert prop == Property(2, 2, (one, two))


def test_the_tightest_bound_counts_and_an_empty_box_is_reported() -> None:
    prop = parse_vnnlib(HEAD + BOX + "(assert (<= X_0 0.5)) (assert (>= X_1 1)) (assert (<= Y_0 0))")
    (case,) = prop.cases
    assert (case.lower.tolist(), case.upper.tolist(), case.empty) == ([-1, 1], [0.5, 2], False)
    prop = parse_vnnlib(HEAD + BOX + "(assert (>= X_1 3)) (assert (<= Y_0 0))")
    assert prop.cases[0].empty
    assert prop.trivial


def test_bounds_that_are_no_float_are_rounded_outwards() -> None:
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (<= (* 3 X_0) 1)) (assert (>= (* 3.0 X_1) 1))").cases
    third = Fraction(1, 3)
    assert Fraction(case.upper[0]) > third > Fraction(np.nextafter(case.upper[0], -1))
    assert Fraction(case.lower[1]) < third < Fraction(np.nextafter(case.lower[1], 1))
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (<= X_0 0.1)) (assert (>= X_1 0.1))").cases
    assert (case.upper[0], case.lower[1]) == (0.1, 0.1)


def test_equality_is_two_constraints_and_constant_comparisons_are_decided() -> None:
    (case,) = parse_vnnlib(HEAD + BOX + "(assert (= X_0 0.25)) (assert (= Y_0 Y_1)) (assert (<= 1 2))").cases
    assert (case.lower[0], case.upper[0]) == (0.25, 0.25)
    assert [c.outputs for c in case.clauses[0].constraints] == [((0, 1.0), (1, -1.0)), ((0, -1.0), (1, 1.0))]
    assert parse_vnnlib(HEAD + BOX + "(assert (<= 2 1))").cases == ()
    assert len(parse_vnnlib(HEAD + BOX + "(assert (or (<= 2 1) (<= Y_0 0) (<= 0 0)))").cases[0].clauses) == 2


# --- errors ----------------------------------------------------------------------------------------------------------

ERRORS = {
    "undeclared": ("(assert (<= X_2 1))", 5, "'X_2' is neither a number nor a declared variable"),
    "misspelt number": ("\n\n(assert (<= X_0 1.2.3))", 7, "'1.2.3' is neither"),
    "product": ("(assert (<= (* X_0 Y_0) 1))", 5, "multiplies two variables"),
    "hidden product": ("(assert (<= (* 2 X_0 3 X_0) 1))", 5, "multiplies two variables"),
    "division": ("(assert (<= (/ 1 X_0) 1))", 5, "divides by a variable"),
    "zero": ("(assert (<= (/ X_0 0.0) 1))", 5, "divides by zero"),
    "strict": ("(assert (< X_0 1))", 5, "'<' with 2 arguments"),
    "not": ("(assert (or\n(not (<= X_0 1))))", 6, "'not' with 1 arguments"),
    "three": ("(assert (<= X_0 X_1 1))", 5, "'<=' with 3 arguments"),
    "function": ("(assert (<= (max X_0 1) 1))", 5, "'max' is no linear expression"),
    "huge": ("(assert (<= Y_0 1e999))", 5, "too large"),
    "overflow": ("(assert (<= (* 1e200 Y_0 1e200) 1))", 5, "too large or too small"),
    "second": ("(declare-const X_0 Real)", 5, "declared a second time"),
    "gap": ("(declare-const X_5 Real)", 5, "X_5 is declared, but not X_2"),
    "type": ("(declare-const X_2 Int)", 5, "cannot be declared"),
    "name": ("(declare-const Z_0 Real)", 5, "inputs are X_0, X_1"),
    "command": ("(push 1)", 5, "'push' is no command"),
    "version 2": ("(declare-network f (declare-input X Real [1]))", 5, "is no command of VNNLIB 1"),
    "open": ("(assert (<= X_0 1)", 5, "never closed"),
    "closed": ("(assert (<= X_0 1)))", 5, "outside of all parentheses"),
    "word": ("assert", 5, "'assert' stands outside"),
    "nothing": ("()", 5, "no command"),
    "bare": ("(assert X_0)", 5, "a formula must be"),
    "deep": ("(" * 200, 5, "nested more than"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_their_line(name: str) -> None:
    text, line, reason = ERRORS[name]
    with pytest.raises(DataError, match=re.escape(f"file.vnnlib, line {line}: ") + ".*" + re.escape(reason)) as caught:
        parse_vnnlib("; a comment (with parentheses\n" + HEAD + BOX.replace("\n", " ") + "\n" + text, "file.vnnlib")
    assert "\n" not in str(caught.value)


def test_inputs_without_bounds_are_named() -> None:
    with pytest.raises(DataError, match=r"line 1: X_1 has no upper bound"):
        parse_vnnlib(HEAD + "(assert (<= X_0 1)) (assert (>= X_0 1)) (assert (>= X_1 1))")
    with pytest.raises(DataError, match=r"X_0 has no lower bound in every case"):
        parse_vnnlib(HEAD + BOX.replace("(assert (>= X_0 -1))", "(assert (or (>= X_0 -1) (<= Y_0 0)))"))
    for empty in ("", "; nothing\n"):
        with pytest.raises(DataError, match="there is nothing in it"):
            parse_vnnlib(empty)
    with pytest.raises(DataError, match="no output Y_0 is declared"):
        parse_vnnlib("(declare-const X_0 Real)")


def test_an_explosion_of_cases_is_refused() -> None:
    choice = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    with pytest.raises(DataError, match="more than 100000 cases"):
        parse_vnnlib(HEAD + BOX + choice * 17)
    nested = "(assert (and " + "(or (<= Y_0 0) (<= Y_1 0))" * 17 + "))"
    with pytest.raises(DataError, match="line 5: .*more than 100000 cases"):
        parse_vnnlib(HEAD + BOX + nested)


@given(st.integers(0, 400), st.integers(0, 127))
def test_damaged_text_is_a_typed_error_or_a_property(place: int, code: int) -> None:
    text = HEAD + BOX + "(assert (or (and (<= (+ Y_0 (* -2.5 X_1)) 1e-3)) (and (>= Y_1 Y_0))))"
    for damaged in (text[:place], text[:place] + chr(code) + text[place + 1 :]):
        try:
            assert isinstance(parse_vnnlib(damaged), Property)
        except DataError as error:
            assert ", line " in str(error)


def test_files_are_read_plain_and_compressed(tmp_path: Path) -> None:
    text = HEAD + BOX + "(assert (<= Y_0 0))"
    (tmp_path / "one.vnnlib").write_text(text, encoding="utf-8")
    (tmp_path / "one.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    assert read_vnnlib(tmp_path / "one.vnnlib") == read_vnnlib(tmp_path / "one.vnnlib.gz") == parse_vnnlib(text)
    (tmp_path / "cut.vnnlib.gz").write_bytes(gzip.compress(text.encode())[:-12])
    (tmp_path / "binary.vnnlib").write_bytes(b"\xff\xfe\x00")
    for name in ("cut.vnnlib.gz", "binary.vnnlib", "missing.vnnlib"):
        with pytest.raises(DataError, match=name):
            read_vnnlib(tmp_path / name)


def test_a_counterexample_is_written_as_the_competition_wants_it() -> None:
    text = counterexample_text(np.array([[0.1, -2.0]], np.float32), [1e-7])
    assert text == "((X_0 0.10000000149011612)\n(X_1 -2.0)\n(Y_0 1e-07))\n"
    with pytest.raises(InputError, match="NaN or infinity"):
        counterexample_text([float("nan")], [0.0])


@pytest.mark.shared
def test_the_competitions_properties_are_read(shared: Path) -> None:
    paths = sorted((shared / "vnncomp").glob("*/vnnlib/*.vnnlib*"))
    if not paths:
        pytest.skip("the shared folder has no competition properties")
    forms: Counter[tuple[str, str]] = Counter()
    generator = np.random.default_rng(0)
    for path in paths:
        prop = read_vnnlib(path)
        assert prop.cases
        assert not any(case.empty for case in prop.cases)
        if len(prop.cases) > 1:
            form = "several boxes"
        elif margin_label(prop.cases[0]) is not None:
            form = "label margin"
        else:
            form = "one conjunction" if len(prop.cases[0].clauses) == 1 else "disjunction"
        forms[path.parts[-3], form] += 1
        if prop.inputs > 20:
            continue
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
        for case in prop.cases:
            x = generator.uniform(case.lower, case.upper).tolist()
            y = generator.normal(size=prop.outputs).tolist()
            assert prop.counterexample([x], [y]).tolist() == [violated(text, x, y)]
        assert parse_vnnlib(vnnlib_text(prop)) == prop
    for (benchmark, form), count in sorted(forms.items()):
        print(f"{benchmark}: {count} x {form}")
    assert sum(forms.values()) == len(paths)
