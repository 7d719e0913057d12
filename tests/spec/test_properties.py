"""Properties as data: evaluation at points, boxes as regions, label margins, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ironbound.errors import InputError, LabelError
from ironbound.spec import Case, Clause, Constraint, Property, label_property, margin_label

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def ends(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_a_counterexample_lies_in_a_box_and_satisfies_a_clause() -> None:
    # x0 in [0, 1] and y0 - y1 <= 0, or x0 in [2, 3] and (y0 >= 5 or x0 + y1 <= 1 and y1 >= -1)
    first = Case(ends(0), ends(1), (Clause((Constraint((), ((0, 1.0), (1, -1.0)), 0.0),)),))
    inner = (Constraint(((0, 1.0),), ((1, 1.0),), 1.0), Constraint((), ((1, -1.0),), 1.0))
    second = Case(ends(2), ends(3), (Clause((Constraint((), ((0, -1.0),), -5.0),)), Clause(inner)))
    prop = Property(1, 2, (first, second))
    x = torch.tensor([[0.5], [0.5], [1.5], [2.5], [2.0], [2.0], [2.0], [0.5]])
    y = torch.tensor([[1.0, 2], [2, 1], [0, 0], [5, 0], [0, -1], [0, 0], [0, -1.5], [float("nan"), 0]])
    assert prop.counterexample(x, y).tolist() == [True, False, False, True, True, False, False, False]
    assert not prop.trivial
    left, right, bound = Clause(inner).matrices(1, 2)
    assert left.tolist() == [[1], [0]]
    assert right.tolist() == [[0, 1], [0, -1]]
    assert bound.tolist() == [1, 1]


def test_nan_is_never_a_counterexample_and_infinity_is_outside_of_every_box() -> None:
    prop = Property(1, 1, (Case(ends(0), ends(1), (Clause(()),)),))
    x = torch.tensor([[float("nan")], [float("inf")], [1.0]])
    assert prop.counterexample(x, torch.zeros(3, 1)).tolist() == [False, False, True]


@given(st.integers(2, 6), st.data())
def test_the_label_property_is_that_no_other_output_reaches_the_label(classes: int, data: st.DataObject) -> None:
    label = data.draw(st.integers(0, classes - 1))
    y = np.array(data.draw(st.lists(st.lists(FINITE, min_size=classes, max_size=classes), min_size=1, max_size=5)))
    prop = label_property(ends(0, 0), ends(1, 1), label, classes)
    expected = [max(row[other] for other in range(classes) if other != label) >= row[label] for row in y.tolist()]
    assert prop.counterexample(np.full((len(y), 2), 0.5), y).tolist() == expected
    (case,) = prop.cases
    assert margin_label(case) == (label, [other for other in range(classes) if other != label])


def test_other_forms_are_not_taken_for_a_label() -> None:
    def label(*clauses: tuple[Constraint, ...]) -> tuple[int, list[int]] | None:
        return margin_label(Case(ends(0), ends(1), tuple(Clause(clause) for clause in clauses)))

    margin = Constraint((), ((0, 1.0), (1, -1.0)), 0.0)
    assert label((margin,)) == (0, [1])
    assert label((Constraint((), ((0, -2.0), (1, 2.0)), 0.0),)) == (1, [0])
    assert label((margin, margin)) is None
    assert label((margin,), (Constraint((), ((0, -1.0), (1, 1.0)), 0.0),)) is None
    assert label((Constraint((), ((0, 1.0), (1, -1.0)), 0.5),)) is None
    assert label((Constraint((), ((0, 1.0), (1, -2.0)), 0.0),)) is None
    assert label((Constraint(((0, 1.0),), ((0, 1.0), (1, -1.0)), 0.0),)) is None
    assert label(()) is None


@given(st.lists(st.tuples(FINITE, st.floats(0, 1e3)), min_size=1, max_size=6))
def test_a_region_contains_the_box_and_reaches_at_most_one_number_further(pairs: list[tuple[float, float]]) -> None:
    lower = ends(*(low for low, _ in pairs))
    upper = ends(*(low + width for low, width in pairs))
    case = Case(lower, upper, (Clause(()),))
    region = case.box((1, len(pairs)))
    assert region.lower.dtype == torch.float32
    assert region.lower.shape == (1, 1, len(pairs))
    low, high = (end.double().reshape(-1).numpy() for end in region.box())
    assert (low <= lower).all()
    assert (high >= upper).all()
    assert (np.nextafter(low.astype(np.float32), np.float32(np.inf)) > lower).all()
    assert (np.nextafter(high.astype(np.float32), np.float32(-np.inf)) < upper).all()
    exact = case.box((len(pairs),), torch.float64)
    np.testing.assert_array_equal(exact.lower.numpy()[0], lower)


def test_an_empty_box_is_reported() -> None:
    case = Case(ends(0, 2), ends(1, 1), (Clause(()),))
    assert case.empty
    assert Property(2, 1, (case,)).trivial
    assert Property(2, 1, ()).trivial
    with pytest.raises(InputError, match="box is empty"):
        case.box((2,))


def test_properties_that_make_no_sense_are_refused() -> None:
    clause = (Clause(()),)
    for wrong, reason in (
        (lambda: Constraint(((1, 1.0), (0, 1.0)), (), 0.0), "sorted by index"),
        (lambda: Constraint(((0, 0.0),), (), 0.0), "other than 0"),
        (lambda: Constraint((), ((0, float("inf")),), 0.0), "finite factors"),
        (lambda: Constraint((), (), float("nan")), "is nan"),
        (lambda: Case(ends(0), ends(0, 1), clause), "one length"),
        (lambda: Case(ends(0), ends(np.inf), clause), "bound every input"),
        (lambda: Case(ends(0), ends(1), ()), "needs a clause"),
        (lambda: Property(2, 1, (Case(ends(0), ends(1), clause),)), "bounds 1 inputs"),
        (
            lambda: Property(1, 1, (Case(ends(0), ends(1), (Clause((Constraint((), ((1, 1.0),), 0.0),)),)),)),
            "reads output 1",
        ),
        (lambda: Property(1, 1, ()).counterexample(np.zeros((1, 2)), np.zeros((1, 1))), "2 inputs per example"),
        (lambda: Property(1, 1, ()).counterexample(np.zeros((2, 1)), np.zeros((1, 1))), "one output for each"),
        (lambda: Case(ends(0), ends(1), clause).box((2,)), "does not fit"),
    ):
        with pytest.raises(InputError, match=reason):
            wrong()
    with pytest.raises(LabelError, match="not one of the 3 classes"):
        label_property(ends(0), ends(1), 3, 3)
