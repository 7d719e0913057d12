"""Write a property as VNNLIB text, and a counterexample in the competition's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ironbound.errors import InputError
from ironbound.spec.constraints import Clause, Constraint, Property, Terms


def vnnlib_text(prop: Property, comment: str = "") -> str:
    """Writes a property as VNNLIB 1 text, which `parse_vnnlib` reads back as the same property.

    Args:
        prop: the property.
        comment: lines to put in front.

    Returns:
        The text.
    """
    lines = [f"; {line}" for line in comment.splitlines()]
    lines += [f"(declare-const X_{place} Real)" for place in range(prop.inputs)]
    lines += [f"(declare-const Y_{place} Real)" for place in range(prop.outputs)]
    if not prop.cases:
        lines.append("(assert (<= 1.0 0.0))")
    elif len(prop.cases) == 1:
        (case,) = prop.cases
        lines += [f"(assert {bound})" for bound in _bounds(case.lower, case.upper)]
        lines += _clauses(case.clauses)
    else:
        lines.append("(assert (or")
        for case in prop.cases:
            bounds = " ".join(_bounds(case.lower, case.upper))
            lines += [f"  (and {' '.join([bounds, *_constraints(clause)])})" for clause in case.clauses]
        lines.append("))")
    return "\n".join(lines) + "\n"


def counterexample_text(x: Any, y: Any) -> str:
    """Writes a counterexample as the competition wants it: ((X_0 v) … (Y_0 v) …), one value per line.

    Args:
        x: the input, in row-major order.
        y: the network's output there.

    Returns:
        The text, with as many digits as distinguish the numbers in their own type.

    Raises:
        InputError: a number is NaN or infinite.
    """
    lines = []
    for name, values in (("X", x), ("Y", y)):
        array = np.asarray(values.detach().cpu().numpy() if hasattr(values, "detach") else values).reshape(-1)
        array = array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InputError("a counterexample has finite numbers; this one holds NaN or infinity")
        # the shortest text that reads back as the same float64: what a reader in float32 then rounds to is the value
        lines += [f"({name}_{place} {float(value)!r})" for place, value in enumerate(array)]
    return "(" + "\n".join(lines) + ")\n"


def _bounds(lower: np.ndarray, upper: np.ndarray) -> Iterator[str]:
    for place, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        yield f"(>= X_{place} {low!r})"
        yield f"(<= X_{place} {high!r})"


def _clauses(clauses: tuple[Clause, ...]) -> Iterator[str]:
    if len(clauses) == 1:
        yield from (f"(assert {text})" for text in _constraints(clauses[0]))
        return
    yield "(assert (or"
    for clause in clauses:
        yield f"  (and {' '.join(_constraints(clause)) or '(<= 0.0 1.0)'})"
    yield "))"


def _constraints(clause: Clause) -> list[str]:
    return [_constraint(constraint) for constraint in clause.constraints]


def _constraint(constraint: Constraint) -> str:
    terms = [*_terms("X", constraint.inputs), *_terms("Y", constraint.outputs)]
    pair = [factor for _, factor in (*constraint.inputs, *constraint.outputs)]
    names = [name for name, _ in (*_named("X", constraint.inputs), *_named("Y", constraint.outputs))]
    if constraint.bound == 0 and sorted(pair) == [-1.0, 1.0]:  # the form that every tool reads
        more, less = (names[0], names[1]) if pair[0] > 0 else (names[1], names[0])
        return f"(<= {more} {less})"
    left = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})" if terms else "0.0"
    return f"(<= {left} {constraint.bound!r})"


def _named(letter: str, terms: Terms) -> list[tuple[str, float]]:
    return [(f"{letter}_{place}", factor) for place, factor in terms]


def _terms(letter: str, terms: Terms) -> list[str]:
    return [name if factor == 1 else f"(* {factor!r} {name})" for name, factor in _named(letter, terms)]
