"""A property as plain data: where the input may lie, and which outputs would be a counterexample.

A `Property` is a disjunction of cases. A `Case` is a box of inputs and a disjunction of clauses. A `Clause` is a
conjunction of linear constraints over inputs and outputs. A counterexample is an input x with output y such that
for some case x lies in the box and some clause holds at (x, y). The property holds where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ironbound.errors import InputError

if TYPE_CHECKING:
    import torch

    from ironbound.regions import Box

Vector = NDArray[np.float64]
Terms = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Constraint:
    """The half-space sum of inputs + sum of outputs <= bound; its terms are sorted by index, with no factor 0.

    Attributes:
        inputs: (index, factor) for each input that appears.
        outputs: (index, factor) for each output that appears.
        bound: right-hand side.

    Raises:
        InputError: a number is not finite, or the terms are not sorted by index or hold a factor 0.
    """

    inputs: Terms
    outputs: Terms
    bound: float

    def __post_init__(self) -> None:
        for terms in (self.inputs, self.outputs):
            places = [place for place, _ in terms]
            if places != sorted(set(places)) or any(place < 0 for place in places):
                raise InputError("a Constraint has one term per index, sorted by index from 0 on")
            if any(factor == 0 or not math.isfinite(factor) for _, factor in terms):
                raise InputError("a Constraint has finite factors other than 0; leave the term out")
        if not math.isfinite(self.bound):
            raise InputError(f"the bound of a Constraint is {self.bound}; give a finite number")


@dataclass(frozen=True)
class Clause:
    """All of some constraints; without any, always true.

    Attributes:
        constraints: the constraints.
    """

    constraints: tuple[Constraint, ...]

    @property
    def reads_inputs(self) -> bool:
        """Whether a constraint has a term of an input."""
        return any(constraint.inputs for constraint in self.constraints)

    def matrices(self, inputs: int, outputs: int) -> tuple[Vector, Vector, Vector]:
        """The clause as A x + B y <= c.

        Args:
            inputs: number of inputs.
            outputs: number of outputs.

        Returns:
            A [constraints, inputs], B [constraints, outputs], c [constraints].
        """
        left = np.zeros((len(self.constraints), inputs))
        right = np.zeros((len(self.constraints), outputs))
        for row, constraint in enumerate(self.constraints):
            for place, factor in constraint.inputs:
                left[row, place] = factor
            for place, factor in constraint.outputs:
                right[row, place] = factor
        return left, right, np.array([constraint.bound for constraint in self.constraints])

    def holds(self, x: Vector, y: Vector) -> NDArray[np.bool_]:
        """Whether all constraints hold at points.

        Args:
            x: inputs [batch, inputs].
            y: outputs [batch, outputs].

        Returns:
            bool [batch]; False where a number that matters is NaN.
        """
        held = np.ones(len(y), dtype=bool)
        for constraint in self.constraints:
            total = np.zeros(len(y))
            for values, terms in ((x, constraint.inputs), (y, constraint.outputs)):
                for place, factor in terms:
                    total = total + factor * values[:, place]
            held &= total <= constraint.bound
        return held


@dataclass(frozen=True, eq=False)
class Case:
    """A box of inputs, and what of its outputs would be a counterexample.

    Attributes:
        lower: of the inputs in row-major order, [inputs], float64.
        upper: likewise. Where it is below `lower`, the box is empty and the case holds no counterexample.
        clauses: one of them must hold for a counterexample.
    """

    lower: Vector
    upper: Vector
    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if self.lower.ndim != 1 or self.lower.shape != self.upper.shape:
            raise InputError(
                f"the ends of a Case must have one axis and one length, not {self.lower.shape} and {self.upper.shape}"
            )
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            raise InputError("the box of a Case has an end that is NaN or infinite; bound every input")
        if not self.clauses:
            raise InputError("a Case needs a clause; leave the case out, or give a Clause without constraints")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Case):
            return NotImplemented
        same = np.array_equal(self.lower, other.lower) and np.array_equal(self.upper, other.upper)
        return same and self.clauses == other.clauses

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    @property
    def empty(self) -> bool:
        """Whether no input lies in the box."""
        return bool((self.lower > self.upper).any())

    def contains(self, x: Vector) -> NDArray[np.bool_]:
        """Whether points [batch, inputs] lie in the box, bool [batch]; NaN never does."""
        return np.all((x >= self.lower) & (x <= self.upper), axis=1)

    def box(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Box:
        """The box as a region of one example, rounded outwards where the dtype is coarser than float64.

        A proof for the region is one for the box. A point of the region may lie outside the box by that rounding:
        test counterexamples by `contains`.

        Args:
            shape: of an input example.
            dtype: floating-point type; None means float32.

        Returns:
            The region, with a batch of 1.

        Raises:
            InputError: the box is empty, or the shape has another number of elements.
        """
        import torch

        from ironbound.regions import Box

        if self.empty:
            raise InputError("this case's box is empty, so it holds no counterexample: skip it (Case.empty)")
        if int(np.prod(shape)) != len(self.lower):
            raise InputError(f"the property has {len(self.lower)} inputs, which the shape {list(shape)} does not fit")
        ends = []
        for exact, beyond in ((self.lower, -torch.inf), (self.upper, torch.inf)):
            double = torch.from_numpy(exact.copy())
            end = double.to(dtype or torch.float32)
            inside = end.double() > double if beyond < 0 else end.double() < double
            ends.append(torch.where(inside, torch.nextafter(end, torch.full_like(end, beyond)), end))
        return Box(*(end.reshape(1, *shape) for end in ends))


@dataclass(frozen=True)
class Property:
    """What a network must never do, as a disjunction of cases.

    Attributes:
        inputs: number of inputs.
        outputs: number of outputs.
        cases: a counterexample lies in one of them; without any, the property holds for every network.

    Raises:
        InputError: a case or a constraint has other inputs or outputs.
    """

    inputs: int
    outputs: int
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        for case in self.cases:
            if len(case.lower) != self.inputs:
                raise InputError(f"a case bounds {len(case.lower)} inputs, the property has {self.inputs}")
            for constraint in (one for clause in case.clauses for one in clause.constraints):
                _check_range(constraint.inputs, self.inputs, "input")
                _check_range(constraint.outputs, self.outputs, "output")

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    @property
    def trivial(self) -> bool:
        """Whether it holds for every network, since no case has an input in its box."""
        return all(case.empty for case in self.cases)

    def counterexample(self, x: Any, y: Any) -> NDArray[np.bool_]:
        """Whether inputs with their outputs are counterexamples.

        Args:
            x: inputs [batch, *shape], flattened in row-major order.
            y: outputs of the network there, [batch, *shape].

        Returns:
            bool [batch]; False where a number that matters is NaN.

        Raises:
            InputError: other numbers of inputs or outputs.
        """
        x, y = _rows(x, self.inputs, "inputs"), _rows(y, self.outputs, "outputs")
        if len(x) != len(y):
            raise InputError(f"there are {len(x)} inputs and {len(y)} outputs; give one output for each input")
        found = np.zeros(len(x), dtype=bool)
        for case in self.cases:
            inside = case.contains(x)
            if inside.any():
                reached = np.zeros(len(x), dtype=bool)
                for clause in case.clauses:
                    reached |= clause.holds(x, y)
                found |= inside & reached
        return found


def terms(factors: Iterable[tuple[int, float]]) -> Terms:
    """Sorts terms by index, adds up those of one index and drops those that vanish."""
    total: dict[int, float] = {}
    for place, factor in factors:
        total[place] = total.get(place, 0.0) + factor
    return tuple(sorted((place, factor) for place, factor in total.items() if factor != 0))


def _check_range(terms: Terms, count: int, kind: str) -> None:
    if terms and terms[-1][0] >= count:
        raise InputError(f"a constraint reads {kind} {terms[-1][0]}, the property has {count}")


def _rows(values: Any, count: int, kind: str) -> Vector:
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    array = array.reshape(len(array), -1) if array.ndim > 1 else array.reshape(1, -1)
    if array.shape[1] != count:
        raise InputError(f"there are {array.shape[1]} {kind} per example; the property has {count}")
    return array
