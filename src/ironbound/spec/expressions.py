"""The text of VNNLIB as trees of tokens, and linear expressions with exact numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NoReturn

DEPTH = 100  # of nested parentheses
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")

Tree = list[Any]  # the place of "(", then places of tokens and trees
Variable = tuple[str, int]
Linear = tuple[dict[Variable, Fraction], Fraction]
Fail = Callable[[int, str], NoReturn]


def tokens_of(text: str) -> list[str]:
    """Parentheses and the words between them."""
    return re.findall(r"[()]|[^\s()]+", text)


def trees(tokens: list[str], fail: Fail) -> Iterator[Tree]:
    """The expressions of a text, one after the other.

    Args:
        tokens: of the text.
        fail: raises for the token at a place.

    Yields:
        Each expression between parentheses.
    """
    stack: list[Tree] = []
    for place, token in enumerate(tokens):
        if token == "(":
            if len(stack) >= DEPTH:
                fail(place, f"parentheses are nested more than {DEPTH} deep")
            stack.append([place])
        elif not stack:
            fail(place, f"{token!r} stands outside of all parentheses")
        elif token == ")":
            tree = stack.pop()
            if stack:
                stack[-1].append(tree)
            else:
                yield tree
        else:
            stack[-1].append(place)
    if stack:
        fail(stack[0][0], "this parenthesis is never closed; the file is truncated")
    if not tokens:
        fail(0, "there is nothing in it")


def is_number(word: str) -> bool:
    """Whether a word is a number."""
    return _NUMBER.fullmatch(word) is not None


def linear(tree: Tree | int, tokens: list[str], variable: Callable[[int], Variable], fail: Fail) -> Linear:
    """A linear expression of sums, differences and products with numbers.

    Args:
        tree: the expression.
        tokens: of the text.
        variable: finds the variable that a token names.
        fail: raises for the token at a place.

    Returns:
        A factor for each variable, and the constant; both exact.
    """
    if isinstance(tree, int):
        if not is_number(tokens[tree]):
            return {variable(tree): Fraction(1)}, Fraction(0)
        number = float(tokens[tree])
        if not math.isfinite(number):
            fail(tree, f"{tokens[tree]} is too large for float64")
        return {}, Fraction(number)
    place, *parts = tree
    word = tokens[parts[0]] if parts and isinstance(parts[0], int) else ""
    operands = [linear(part, tokens, variable, fail) for part in parts[1:]]
    if word not in ("+", "-", "*", "/") or not operands:
        fail(place, f"{word or 'this'!r} is no linear expression of variables and numbers")
    if word == "+":
        return _sum(operands)
    if word == "-":
        first, *others = operands
        return _scaled(first, -1) if not others else _sum([first, *(_scaled(other, -1) for other in others)])
    result = operands[0]
    for operand in operands[1:]:
        if word == "/" and (operand[0] or operand[1] == 0):
            fail(place, "it divides by zero" if not operand[0] else "it divides by a variable, which is not linear")
        if result[0] and operand[0]:
            fail(place, "it multiplies two variables, which is not linear")
        if word == "/":
            result = _scaled(result, 1 / operand[1])
        else:
            result = _scaled(operand, result[1]) if not result[0] else _scaled(result, operand[1])
    return result


def above(number: Fraction) -> float:
    """The smallest float64 that is not below a number."""
    near = float(number)
    return near if Fraction(near) >= number else math.nextafter(near, math.inf)


def _scaled(expression: Linear, factor: Fraction | int) -> Linear:
    terms, constant = expression
    return {variable: factor * value for variable, value in terms.items()}, constant * factor


def _sum(expressions: list[Linear]) -> Linear:
    total: dict[Variable, Fraction] = {}
    for terms, _ in expressions:
        for variable, value in terms.items():
            total[variable] = total.get(variable, Fraction(0)) + value
    return total, sum((constant for _, constant in expressions), Fraction(0))
