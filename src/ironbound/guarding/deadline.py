"""A budget of time for one call: how many more inputs a method can decide before it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")
_SPARE = 2.0  # a piece of work is begun only where twice the time that it should take is left


class Deadline:
    """Times methods, and says what is affordable.

    Args:
        latency: seconds that a call may take, or None for no limit.
        clock: seconds from any start.
    """

    def __init__(self, latency: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._latency, self._clock = latency, clock
        self._cost: dict[str, float] = {}  # seconds for an input, the last time

    def timed(self, method: str, count: int, work: Callable[[], _Result]) -> _Result:
        """Runs a piece of work on `count` inputs and notes what it took."""
        start = self._clock()
        result = work()
        self._cost[method] = (self._clock() - start) / count
        return result

    def affordable(self, method: str, start: float, most: int) -> int:
        """How many inputs a method may take on now, at most `most`, in a call that began at `start`; 0: none."""
        if self._latency is None:
            return most
        left = start + self._latency - self._clock()
        cost = self._cost.get(method, 0.0)
        if left <= 0:
            return 0
        return most if cost <= 0 else min(most, int(left / (_SPARE * cost)))
