"""Read VNNLIB 1: boxes of inputs and linear constraints, combined by `and` and `or`.

A number is the float64 nearest to its text. Sums and products of numbers are computed exactly; a bound that then is
no float64 is rounded so that the set of counterexamples does not shrink.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np

from ironbound.data.files import read
from ironbound.errors import DataError
from ironbound.spec.constraints import Case, Clause, Constraint, Property, Vector
from ironbound.spec.expressions import Tree, Variable, above, is_number, linear, tokens_of, trees

LIMIT = 100_000  # conjunctions that `and` and `or` may multiply out to
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_IGNORED = {"set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"}

Conjunction = tuple[Constraint, ...]


def read_vnnlib(path: str | os.PathLike[str]) -> Property:
    """Read a property.

    Args:
        path: a .vnnlib file, also compressed by gzip.

    Returns:
        The property; the cases are those whose box differs, each with its clauses in the file's order.

    Raises:
        DataError: the file cannot be read, or is not VNNLIB 1; the message names the line.
    """
    path = Path(path)
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file; name a .vnnlib file.") from error
    return parse_vnnlib(text, str(path))


def parse_vnnlib(text: str, name: str = "the property") -> Property:
    """Read a property from its text (see `read_vnnlib`).

    Args:
        text: content of a VNNLIB 1 file.
        name: of the file, for messages.

    Returns:
        The property.

    Raises:
        DataError: the text is not VNNLIB 1; the message names the line.
    """
    return _Reader(text, name).property()


class _Reader:
    """Reads one text. Expressions are trees of places in the list of tokens, so that errors know their line."""

    def __init__(self, text: str, name: str) -> None:
        self._text = re.sub(r";[^\n]*", "", text) if ";" in text else text
        self._name = name
        self._tokens = tokens_of(self._text)
        self._declared: dict[str, tuple[Variable, int]] = {}
        self._ends: dict[str, list[tuple[int, float]]] = {"<=": [], ">=": []}  # bounds of inputs, most of the file
        self._base: list[Constraint] = []
        self._choices: list[list[Conjunction]] = []
        self._possible = True

    def property(self) -> Property:
        """The whole text as a property."""
        for tree in trees(self._tokens, self._fail):
            self._command(tree)
        inputs, outputs = self._count("X", "input"), self._count("Y", "output")
        return Property(inputs, outputs, tuple(self._cases(inputs)) if self._possible else ())

    def _fail(self, place: int, reason: str) -> NoReturn:
        at = 0
        for number, token in enumerate(re.finditer(r"[()]|[^\s()]+", self._text)):
            at = token.start()
            if number == place:
                break
        raise DataError(f"{self._name}, line {self._text.count(chr(10), 0, at) + 1}: {reason}.")

    # --- commands ------------------------------------------------------------------------------------------------

    def _command(self, tree: Tree) -> None:
        place, *parts = tree
        word = self._tokens[parts[0]] if parts and isinstance(parts[0], int) else ""
        if word == "assert" and len(parts) == 2:
            if not self._plain_bound(parts[1]):
                self._assert(parts[1])
        elif word == "declare-const":
            self._declare(place, parts[1:])
        elif word not in _IGNORED:
            self._fail(place, f"{word or 'this'!r} is no command of VNNLIB 1; it has (declare-const …) and (assert …)")

    def _declare(self, place: int, parts: Iterable[Tree | int]) -> None:
        words = [self._tokens[part] if isinstance(part, int) else "(" for part in parts]
        found = _NAME.fullmatch(words[0]) if len(words) == 2 else None
        if found is None or words[1] != "Real":
            self._fail(place, f"{' '.join(words)!r} cannot be declared; inputs are X_0, X_1, … Real, outputs Y_0, …")
        if words[0] in self._declared:
            self._fail(place, f"{words[0]} is declared a second time")
        self._declared[words[0]] = ((found[1], int(found[2])), place)

    def _count(self, letter: str, kind: str) -> int:
        found = {index: place for (prefix, index), place in self._declared.values() if prefix == letter}
        if not found:
            self._fail(0, f"no {kind} {letter}_0 is declared")
        last = max(found)
        if last != len(found) - 1:
            missing = next(index for index in range(len(found)) if index not in found)
            self._fail(found[last], f"{letter}_{last} is declared, but not {letter}_{missing}")
        return len(found)

    # --- formulas ------------------------------------------------------------------------------------------------

    def _plain_bound(self, tree: Tree | int) -> bool:
        """Reads (<= X_i number) and (>= X_i number) without the detour through expressions; says whether it was one."""
        if isinstance(tree, int) or len(tree) != 4 or any(isinstance(part, list) for part in tree):
            return False
        word, name, number = (self._tokens[part] for part in tree[1:])
        if word not in self._ends or name[:1] != "X" or name not in self._declared or not is_number(number):
            return False
        value = float(number)
        if math.isfinite(value):
            self._ends[word].append((self._declared[name][0][1], value))
        return math.isfinite(value)

    def _assert(self, tree: Tree | int) -> None:
        options = self._options(tree)
        if not options:
            self._possible = False
        elif len(options) == 1:
            self._base.extend(options[0])
        else:
            self._choices.append(options)

    def _options(self, tree: Tree | int) -> list[Conjunction]:
        """A formula as a disjunction of conjunctions of constraints."""
        if isinstance(tree, int) or len(tree) < 2 or not isinstance(tree[1], int):
            self._fail(tree if isinstance(tree, int) else tree[0], "a formula must be (<= a b), (>= a b), and, or")
        place, head, *parts = tree
        word = self._tokens[head]
        if word == "or":
            return list(chain.from_iterable(self._options(part) for part in parts))
        if word == "and":
            return self._product([self._options(part) for part in parts], place)
        if word not in ("<=", ">=", "=") or len(parts) != 2:
            self._fail(place, f"{word!r} with {len(parts)} arguments is not supported; use (<= a b), (>= a b), and, or")
        if word == "=":
            pair = [self._comparison(place, *parts), self._comparison(place, *reversed(parts))]
            return self._product(pair, place)
        return self._comparison(place, *(parts if word == "<=" else reversed(parts)))

    def _product(self, factors: list[list[Conjunction]], place: int) -> list[Conjunction]:
        if math.prod(len(factor) for factor in factors) > LIMIT:
            self._fail(place, f"its and-or multiplies out to more than {LIMIT} cases")
        result: list[Conjunction] = [()]
        for factor in factors:
            result = [(*front, *back) for front in result for back in factor]
        return result

    def _comparison(self, place: int, left: Tree | int, right: Tree | int) -> list[Conjunction]:
        """The constraint left <= right: one conjunction of it, an empty one if it is always true, none if never."""
        total, constant = linear(left, self._tokens, self._variable, self._fail)
        minus, other = linear(right, self._tokens, self._variable, self._fail)
        for variable, factor in minus.items():
            total[variable] = total.get(variable, 0) - factor
        bound = other - constant
        terms = [(letter, index, factor) for (letter, index), factor in sorted(total.items()) if factor != 0]
        if not terms:
            return [()] if bound >= 0 else []
        try:
            if len(terms) == 1 and terms[0][0] == "X":  # a bound: divided here, where it is still exact
                ((_, index, factor),) = terms
                sign = 1.0 if factor > 0 else -1.0
                return [(Constraint(((index, sign),), (), above(bound / abs(factor))),)]
            sides = {"X": [], "Y": []}
            for letter, index, factor in terms:
                sides[letter].append((index, float(factor)))
            if any(factor == 0 for _, factor in (*sides["X"], *sides["Y"])):
                raise OverflowError
            return [(Constraint(tuple(sides["X"]), tuple(sides["Y"]), above(bound)),)]
        except OverflowError:
            self._fail(place, "its numbers are too large or too small for float64")

    def _variable(self, place: int) -> Variable:
        word = self._tokens[place]
        if word not in self._declared:
            self._fail(place, f"{word!r} is neither a number nor a declared variable")
        return self._declared[word][0]

    # --- cases ---------------------------------------------------------------------------------------------------

    def _cases(self, inputs: int) -> Iterable[Case]:
        base_lower, base_upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
        for word, ends, extreme in ((">=", base_lower, np.maximum), ("<=", base_upper, np.minimum)):
            if self._ends[word]:
                places, values = zip(*self._ends[word], strict=True)
                extreme.at(ends, np.array(places), np.array(values))
        shared = _tighten(self._base, base_lower, base_upper)
        count = math.prod(len(options) for options in self._choices)
        if count > LIMIT:
            self._fail(len(self._tokens) - 1, f"its assertions multiply out to more than {LIMIT} cases")
        groups: dict[bytes, tuple[Vector, Vector, list[Clause]]] = {}
        for conjunction in self._product(self._choices, 0):
            lower, upper = base_lower, base_upper
            if any(_is_bound(constraint) for constraint in conjunction):
                lower, upper = base_lower.copy(), base_upper.copy()
            clause = Clause((*shared, *_tighten(conjunction, lower, upper)))
            key = b"" if lower is base_lower else lower.tobytes() + upper.tobytes()
            groups.setdefault(key, (lower, upper, []))[2].append(clause)
        for lower, upper, clauses in groups.values():
            for ends, kind in ((lower, "lower"), (upper, "upper")):
                if not np.isfinite(ends).all():
                    name = f"X_{int(np.argmax(~np.isfinite(ends)))}"
                    self._fail(self._declared[name][1], f"{name} has no {kind} bound in every case; bound every input")
            yield Case(lower, upper, tuple(clauses))


def _is_bound(constraint: Constraint) -> bool:
    return len(constraint.inputs) == 1 and not constraint.outputs


def _tighten(constraints: Iterable[Constraint], lower: Vector, upper: Vector) -> Conjunction:
    """Moves bounds of single inputs into the ends of a box; returns the other constraints."""
    rest = []
    for constraint in constraints:
        if not _is_bound(constraint):
            rest.append(constraint)
            continue
        ((place, sign),) = constraint.inputs
        if sign > 0:
            upper[place] = min(upper[place], constraint.bound)
        else:
            lower[place] = max(lower[place], -constraint.bound)
    return tuple(rest)
