"""Linear and mixed-integer programs as plain data, and how they are put together.

Columns are variables, rows are constraints: minimise cost · v + offset where row_lower <= matrix v <= row_upper and
lower <= v <= upper, with whole numbers where `integral` says so. Every column is bounded: then any multipliers of the
rows give a lower bound of the minimum (`Program.dual_bound`), whatever a solver did to find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import sparse

_TINY = 1e-11  # coefficients below this take part as slack of their row: solvers drop the smallest without a word
_LARGE = 1e15
Sparse = Any  # a scipy.sparse matrix, whose own annotations know no shape


@dataclass(frozen=True, eq=False)
class Program:
    """A program without its objective.

    Attributes:
        matrix: [rows, columns].
        row_lower, row_upper: [rows], infinite where a row has one side only.
        lower, upper: finite, [columns].
        integral: bool [columns].
    """

    matrix: Sparse
    row_lower: np.ndarray
    row_upper: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    integral: np.ndarray

    def is_finite(self) -> bool:
        """Whether its numbers are finite, and not so large that solvers take them for infinite or refuse them."""
        below, above = self.row_lower, self.row_upper
        sides = (np.isfinite(below) | np.isneginf(below)) & (np.isfinite(above) | np.isposinf(above))
        reach = np.maximum(np.abs(self.lower), np.abs(self.upper))
        ends = (reach < _LARGE) & (self.lower <= self.upper)  # neither for NaN
        return bool(sides.all() and ends.all() and (np.abs(self.matrix.data) < _LARGE).all())

    def worst(self, costs: np.ndarray, constants: np.ndarray) -> Program:
        """The program with one more column, at the end: no less than any of some functions.

        Its minimum is the least value of their largest.

        Args:
            costs: [functions, columns].
            constants: [functions].

        Returns:
            The program.
        """
        low, high = self.interval(costs)
        ends = float((low + constants).max()), float((high + constants).max())
        rows: Sparse = sparse.hstack([sparse.csr_matrix(-costs), np.ones((len(costs), 1))])
        return self.extended(ends, rows, constants, np.full(len(costs), np.inf))

    def extended(
        self, ends: tuple[float, float], rows: Sparse, row_lower: np.ndarray, row_upper: np.ndarray
    ) -> Program:
        """The program with one more column, at the end, and more rows.

        Args:
            ends: bounds of the column.
            rows: [rows, columns + 1].
            row_lower: their lower sides, [rows].
            row_upper: their upper sides, [rows].

        Returns:
            The program.
        """
        old = sparse.hstack([self.matrix, sparse.csr_matrix((self.matrix.shape[0], 1))])
        return Program(
            sparse.csr_matrix(sparse.vstack([old, rows], format="csr")),
            np.append(self.row_lower, row_lower),
            np.append(self.row_upper, row_upper),
            np.append(self.lower, ends[0]),
            np.append(self.upper, ends[1]),
            np.append(self.integral, False),
        )

    def interval(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest value of linear functions [..., columns] over the columns' bounds."""
        positive, negative = np.maximum(cost, 0), np.minimum(cost, 0)
        low = positive @ self.lower + negative @ self.upper
        return low, positive @ self.upper + negative @ self.lower

    def dual_bound(self, cost: np.ndarray, multipliers: np.ndarray) -> float:
        """A lower bound of cost · v over the program, by weak duality: it holds for any multipliers.

        cost · v = y · (A v) + (cost - Aᵀy) · v; the first term is at least what the rows' sides say, the second what
        the columns' bounds say. A multiplier that leans on an infinite side counts as 0. The rounding of the sums is
        bounded a priori and subtracted.

        Args:
            cost: [columns].
            multipliers: y, [rows].

        Returns:
            The bound; -inf where the numbers overflow.
        """
        y = np.where(np.isfinite(multipliers), multipliers, 0.0)
        y = np.where((y > 0) & np.isneginf(self.row_lower) | (y < 0) & np.isposinf(self.row_upper), 0.0, y)
        side = np.where(y > 0, self.row_lower, self.row_upper)
        side = np.where(y == 0, 0.0, side)
        rest = cost - self.matrix.T @ y
        low, _ = self.interval(rest)
        size = np.abs(cost) + abs(self.matrix).T @ np.abs(y)
        total = np.abs(y) @ np.abs(side) + size @ np.maximum(np.abs(self.lower), np.abs(self.upper))
        bound = y @ side + low - 4 * (sum(self.matrix.shape) + 4) * np.finfo(np.float64).eps * total
        return float(bound) if np.isfinite(bound) else -np.inf


Term = tuple["np.ndarray | sparse.spmatrix | float", np.ndarray]


@dataclass(eq=False)
class Builder:
    """Gathers columns and rows; every method adds some."""

    _columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _sides: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    count: int = 0
    rows: int = 0

    def columns(self, lower: np.ndarray, upper: np.ndarray, integral: bool = False) -> np.ndarray:
        """Adds columns with bounds; returns their numbers."""
        numbers = np.arange(self.count, self.count + len(lower))
        self._columns.append((lower, upper, np.full(len(lower), integral)))
        self.count += len(lower)
        return numbers

    def reach(self) -> np.ndarray:
        """The largest absolute value of every column so far."""
        return np.concatenate([np.maximum(np.abs(low), np.abs(high)) for low, high, _ in self._columns])

    def constrain(self, terms: Sequence[Term], lower: np.ndarray | float, upper: np.ndarray | float) -> None:
        """Adds rows lower <= sum of terms <= upper.

        Args:
            terms: (coefficients, columns) each; a matrix [rows, columns], or a number or [rows] where row i reads
                columns[i] alone.
            lower: [rows] or one for all; infinite for no side.
            upper: likewise.
        """
        count = 0
        for coefficients, columns in terms:
            if isinstance(coefficients, sparse.spmatrix) or np.ndim(coefficients) == 2:
                part: Sparse = sparse.coo_matrix(coefficients)
                count = part.shape[0]
                self._entries.append((part.row + self.rows, columns[part.col], part.data))
            else:
                count = len(columns)
                values = np.broadcast_to(np.asarray(coefficients, dtype=np.float64), count)
                self._entries.append((np.arange(count) + self.rows, columns, values))
        self._sides.append(tuple(np.broadcast_to(np.asarray(end, dtype=np.float64), count) for end in (lower, upper)))  # type: ignore[arg-type]
        self.rows += count

    def program(self) -> Program:
        """Everything added so far."""
        lower, upper, integral = (np.concatenate(part) for part in zip(*self._columns, strict=True))
        if self._sides:
            row, column, value = (np.concatenate(part) for part in zip(*self._entries, strict=True))
            row_lower, row_upper = (np.concatenate(part) for part in zip(*self._sides, strict=True))
        else:
            row = column = np.zeros(0, dtype=np.int64)
            value = row_lower = row_upper = np.zeros(0)
        matrix = sparse.csr_matrix((value, (row, column)), shape=(self.rows, self.count))
        matrix.eliminate_zeros()
        found = Program(matrix, row_lower, row_upper, lower, upper, integral)
        return _without_tiny(found) if found.is_finite() else found


def _without_tiny(program: Program) -> Program:
    """The program with room in its rows for the tiny coefficients that leave it: it allows no point less."""
    matrix = program.matrix.copy()
    tiny = np.abs(matrix.data) < _TINY
    if not tiny.any():
        return program
    reach = np.maximum(np.abs(program.lower), np.abs(program.upper))
    lost = matrix.copy()
    lost.data = np.where(tiny, np.abs(matrix.data), 0.0)
    room = lost @ reach
    matrix.data = np.where(tiny, 0.0, matrix.data)
    matrix.eliminate_zeros()
    return replace(program, matrix=matrix, row_lower=program.row_lower - room, row_upper=program.row_upper + room)
