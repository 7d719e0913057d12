"""Properties of labels: every input of a box keeps its class."""

from __future__ import annotations

from typing import Any

import numpy as np

from ironbound.errors import LabelError
from ironbound.spec.constraints import Case, Clause, Constraint, Property, terms


def label_property(lower: Any, upper: Any, label: int, classes: int) -> Property:
    """The property that every input of a box is classified as `label`; a tie counts as a counterexample.

    Args:
        lower: lower ends [*shape], in row-major order.
        upper: upper ends, likewise.
        label: the class that must have the largest output.
        classes: number of outputs.

    Returns:
        The property: a counterexample has some other class with output >= that of the label.

    Raises:
        LabelError: the label is not one of the classes.
        InputError: the ends are not finite, or differ in number.
    """
    if not 0 <= label < classes:
        raise LabelError(f"the label {label} is not one of the {classes} classes, 0 to {classes - 1}")
    others = (other for other in range(classes) if other != label)
    clauses = tuple(Clause((Constraint((), terms([(label, 1.0), (other, -1.0)]), 0.0),)) for other in others)
    ends = [np.array(end, dtype=np.float64, copy=True).reshape(-1) for end in (lower, upper)]
    return Property(len(ends[0]), classes, (Case(ends[0], ends[1], clauses),) if clauses else ())


def margin_label(case: Case) -> tuple[int, list[int]] | None:
    """Recognises a case that only asks one class to stay above others, as image benchmarks do.

    Args:
        case: the case.

    Returns:
        The label and the other classes that no output may reach, or None for every other form.
    """
    pairs = []
    for clause in case.clauses:
        if len(clause.constraints) != 1:
            return None
        (constraint,) = clause.constraints
        if constraint.inputs or constraint.bound != 0 or len(constraint.outputs) != 2:
            return None
        (one, a), (two, b) = constraint.outputs
        if a != -b:
            return None
        pairs.append((one, two) if a > 0 else (two, one))
    labels = {label for label, _ in pairs}
    return (pairs[0][0], [other for _, other in pairs]) if len(labels) == 1 else None
