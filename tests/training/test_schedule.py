"""Schedules: against the papers' formulas, their laws, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ironbound.training.schedule import KINDS, Schedule, extremes, ramp

READ = TypeAdapter(Schedule).validate_python
RAMPS = ("linear", "smooth", "cosine")


def test_ramp_and_linear() -> None:
    assert [ramp(t, 2, 4) for t in (0, 2, 2.5, 3, 4, 9)] == [0, 0, 0.25, 0.5, 1, 1]
    assert [ramp(t, 2, 2) for t in (0, 1.9, 2, 3)] == [0, 0, 1, 1]
    assert ramp(0, 0, 0) == 1
    schedule = READ({"kind": "linear", "from": 1, "to": 0.5, "start": 2, "end": 4})
    assert [schedule(t) for t in (0, 2, 3, 4, 9)] == [1, 1, 0.75, 0.5, 0.5]


def test_a_number_is_constant() -> None:
    assert READ(0.3)(17.5) == READ({"kind": "constant", "value": 0.3})(0) == 0.3


def test_stepped() -> None:
    schedule = READ({"kind": "stepped", "values": [1, 0.1, 0.01], "at": [3, 5.5]})
    assert [schedule(t) for t in (0, 2.99, 3, 5.4, 5.5, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [schedule.settled(t) for t in (0, 5.4, 5.5)] == [False, False, True]


def test_cosine() -> None:
    schedule = READ({"kind": "cosine", "from": 2, "to": 0, "start": 1, "end": 5})
    for t in (1.0, 1.7, 3.0, 4.9, 5.0):
        assert schedule(t) == pytest.approx(1 + math.cos(math.pi * (t - 1) / 4))


def released_smooth(step: float, start: float, end: float, first: float, final: float) -> float:
    """The schedule as Gowal et al. released it: power 4 up to a quarter, then a line."""
    beta, mid = 4.0, start + 0.25 * (end - start)
    t = (mid - start) ** (beta - 1)
    alpha = (final - first) / ((end - mid) * beta * t + (mid - start) * t)
    middle = first + alpha * (mid - start) ** beta
    if step <= start:
        return first
    if step < mid:
        return first + alpha * (step - start) ** beta
    return min(final, middle + (final - middle) * (step - mid) / (end - mid))


@pytest.mark.parametrize("time", [0.0, 1.0, 1.5, 2.9, 3.0, 3.1, 6.0, 8.99, 9.0, 20.0])
def test_smooth_is_the_published_one(time: float) -> None:
    schedule = READ({"kind": "smooth", "from": 0.0, "to": 0.3, "start": 1, "end": 9})
    assert schedule(time) == pytest.approx(released_smooth(time, 1, 9, 0.0, 0.3), abs=1e-12)


@given(
    kind=st.sampled_from(RAMPS),
    begin=st.floats(-5, 5),
    to=st.floats(-5, 5),
    start=st.floats(0, 5),
    length=st.floats(0.01, 5),
    times=st.lists(st.floats(0, 12), min_size=2, max_size=10),
)
def test_ramps_are_monotone_and_hit_their_ends(kind, begin, to, start, length, times) -> None:  # noqa: PLR0913
    schedule = READ({"kind": kind, "from": begin, "to": to, "start": start, "end": start + length})
    assert schedule(0) == schedule(start) == begin and schedule(start + length) == schedule(99) == to
    values = [schedule(time) for time in sorted(times)]
    rises = [b - a for a, b in zip(values, values[1:], strict=False)]
    assert all(rise * (to - begin) >= -1e-9 for rise in rises)
    low, high = extremes(schedule)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in values)
    for time in times:
        if schedule.settled(time):
            assert schedule(time) == schedule(99)


@given(mid=st.floats(0.05, 1), power=st.floats(1, 8))
def test_smooth_has_no_kink_and_no_jump(mid: float, power: float) -> None:
    schedule = READ({"kind": "smooth", "from": 0, "to": 1, "start": 0, "end": 1, "mid": mid, "power": power})
    step = 1e-6
    left = (schedule(mid) - schedule(mid - step)) / step
    right = (schedule(mid + step) - schedule(mid)) / step if mid + step < 1 else left
    assert left == pytest.approx(right, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        "fast",
        True,
        math.nan,
        None,
        {"kind": "jump"},
        {"from": 0, "to": 1, "end": 2},
        {"kind": "linear", "from": 0, "to": 1},
        {"kind": "linear", "from": 0, "to": 1, "start": 3, "end": 2},
        {"kind": "linear", "from": 0, "to": math.inf, "end": 2},
        {"kind": "linear", "from": 0, "to": 1, "end": 2, "mid": 1},
        {"kind": "stepped", "values": [1, 2], "at": []},
        {"kind": "stepped", "values": [1, 2, 3], "at": [4, 2]},
        {"kind": "smooth", "from": 0, "to": 1, "end": 2, "mid": 0},
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        READ(wrong)


def test_every_kind_is_in_the_table() -> None:
    assert all(KINDS[name].model_fields["kind"].default == name for name in KINDS)
